"""Pictures of spikes, currents, delays and reads, by matplotlib (extra ``plot``).

Each function draws one thing into axes, those given as ``ax`` or new ones, and returns them.
Tensors may be on any device and have a graph. Other keywords go to the artist that draws the thing
itself. No setting of matplotlib is changed.
"""

from collections.abc import Mapping
from itertools import cycle
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cbook import normalize_kwargs
from matplotlib.collections import PolyCollection
from matplotlib.colors import ListedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from . import checks, functional
from .modules.delays import LearnedDelays
from .modules.linear import DelayedLinear
from .modules.synapse import ExponentialCurrent
from .values import PackedSpikes, ReadRule

# Okabe and Ito's colours: told apart in any common kind of colour vision.
BLUE, ORANGE, GREEN, PINK, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"
AMBER, YELLOW = "#E69F00", "#F0E442"
COLOURS = BLUE, ORANGE, GREEN, PINK, SKY, AMBER
INK, GREY, PALE, ABSENT = "#333333", "#8A8A8A", "#EEEBE3", "#D9D9D9"

_LEGEND = 6  # lines that a legend still tells apart
_BETWEEN = 10  # points of a curve in a step
_SQUARE = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
_DIAMOND = 2**0.5 * np.array([[0, -1], [1, 0], [0, 1], [-1, 0]])  # of the same area
_LARGEST = 0.4  # half the side of the largest square
_DELAYS = ListedColormap(colormaps["viridis"](np.linspace(0, 0.9, 256)))  # not pale on white
_ROW, _ROWS = 0.05, 0.4  # of spikes below currents, and all of them at most, in heights of axes
_LINE = 0.07  # of a legend, in heights of axes


def raster(
    spikes: Tensor | PackedSpikes,
    dt: float = 1.0,
    *,
    sample: int = 0,
    ax: Axes | None = None,
    **look: Any,
) -> Axes:
    """A mark for each spike: time across, neurons up.

    Args:
        spikes: ``[T, N]``, ``[T, B, *shape]``, packed spikes, or ``[T]`` of one neuron; whatever is
            not 0 is a spike.
        dt: length of a step, ms.
        sample: which sample of the batch is drawn.
        ax: axes to draw into; None for new ones.
        look: keywords for ``Axes.plot``, such as ``color`` and ``markersize``.

    Returns:
        The axes.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind, shape or range.
    """
    dt = checks.positive("dt", dt)
    train = _sequence("spikes", spikes, sample)
    ax = _axes(ax)
    steps, neurons = train.shape
    step, neuron = train.nonzero(as_tuple=True)
    given = _look(Line2D, {"color": INK, "linestyle": "none", **_marks(ax, train)}, look)
    ax.plot(step.numpy() * dt, neuron.numpy(), **given)
    ax.set(xlim=((-0.5) * dt, (max(steps, 1) - 0.5) * dt), ylim=(-0.5, max(neurons, 1) - 0.5))
    ax.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.set(xlabel="time (ms)", ylabel="neuron")
    return ax


def _marks(ax: Axes, train: Tensor) -> dict[str, Any]:
    """Marks that fit into the row of a neuron, or pixels, paler where there are many."""
    pixels = ax.get_window_extent()
    points = pixels.height * 72 / ax.figure.dpi / max(train.shape[1], 1)
    if points > 1:
        return {"marker": "|", "markersize": min(0.8 * points, 10.0)}
    crowd = int(train.count_nonzero()) / (pixels.width * pixels.height)
    return {"marker": ",", "alpha": min(1.0, 1.0 / max(crowd, 1.0))}


def currents(
    currents: Tensor,
    spikes: Tensor | PackedSpikes | None = None,
    dt: float = 1.0,
    *,
    sample: int = 0,
    ax: Axes | None = None,
    **look: Any,
) -> Axes:
    """A line for the current of each synapse over time, and below them marks for their spikes.

    Args:
        currents: ``[T, N]``, ``[T, B, *shape]``, or ``[T]`` of one synapse, nA.
        spikes: those that the synapses received, of as many steps and synapses; None to draw none.
        dt: length of a step, ms.
        sample: which sample of the batch is drawn.
        ax: axes to draw into; None for new ones.
        look: keywords for ``Axes.plot``, such as ``label``, one for each synapse, and ``color``.

    Returns:
        The axes.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind, shape or range.
    """
    dt = checks.positive("dt", dt)
    curves = _sequence("currents", currents, sample).double()
    train = None if spikes is None else _sequence("spikes", spikes, sample)
    if train is not None and train.shape != curves.shape:
        wanted = f"{curves.shape[0]} steps of {curves.shape[1]} synapses, as currents has"
        raise checks.misshapen("spikes", spikes, wanted)  # type: ignore[arg-type]
    ax = _axes(ax)
    steps, synapses = curves.shape
    labels = [f"synapse {n}" for n in range(synapses)]
    given = _look(Line2D, {"linewidth": 1.8, "label": labels}, look)
    time = np.arange(steps) * dt
    lines = ax.plot(time, curves.numpy(), **given) if synapses else []
    if "color" not in given:
        for line, colour in zip(lines, cycle(COLOURS)):
            line.set_color(colour)
    foot = head = 0.0
    if train is not None:
        foot = min(_ROW * synapses, _ROWS)
        _draw_spikes(ax, lines, train.numpy(), dt, foot)
    if "label" in look or 1 < synapses <= _LEGEND:
        columns = 1 if "label" in look else 3
        head = _LINE * -(-synapses // columns)
        ax.legend(frameon=False, loc="upper left", ncols=columns)
    _make_room(ax, foot, head)
    ax.set(xlabel="time (ms)", ylabel="current (nA)")
    return ax


def _draw_spikes(ax: Axes, lines: list[Line2D], train: Any, dt: float, top: float) -> None:
    """A row of marks for each line, from the foot of the axes up to ``top``, in heights of them."""
    row, within = top / max(len(lines), 1), ax.get_xaxis_transform()
    for n, line in enumerate(lines):
        at, foot = dt * train[:, n].nonzero()[0], top - (n + 0.9) * row
        look: dict[str, Any] = {"color": line.get_color(), "transform": within}
        ax.vlines(at, foot, foot + 0.8 * row, **look)


def delays(
    delays: Tensor | LearnedDelays,
    before: Tensor | LearnedDelays | None = None,
    *,
    bins: int = 26,
    density: bool = False,
    ax: Axes | None = None,
    **look: Any,
) -> Axes:
    """A histogram of delays, and one of what they were before.

    Only connections that a layer has count, and only finite delays. The bins reach from 0 to the
    longest delay of the layers, or further where a delay is outside.

    Args:
        delays: a layer or any module that learns delays, or delays of any shape, ms.
        before: the same at another time, such as a copy from before training.
        bins: number of bins.
        density: whether each histogram has the area 1, instead of counts.
        ax: axes to draw into; None for new ones.
        look: keywords for ``Axes.hist`` of the present delays.

    Returns:
        The axes.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or range.
    """
    bins = checks.positive_integer("bins", bins)
    now, then = _found("delays", delays), None
    if before is not None:
        then = _found("before", before, getattr(delays, "mask", None))
    ax = _axes(ax)
    bounds = [part.max_delay for part in (delays, before) if isinstance(part, LearnedDelays)]
    every = np.concatenate([now, [] if then is None else then, [0.0, *bounds]])
    edges = np.histogram_bin_edges(every, bins).tolist()
    plain: dict[str, Any] = {"color": BLUE}
    if then is not None:
        behind: dict[str, Any] = {"color": GREY, "alpha": 0.45, "label": "before"}
        ax.hist(then, edges, density=density and then.size > 0, **behind)
        plain = {"color": ORANGE, "histtype": "step", "linewidth": 2.0, "label": "after"}
    ax.hist(now, edges, density=density and now.size > 0, **_look(Polygon, plain, look))
    ax.set(xlabel="delay (ms)", ylabel="density" if density else "count")
    ax.set_xlim(edges[0], edges[-1])
    if then is not None:
        ax.margins(y=0.2)  # for the legend
        ax.legend(frameon=False, loc="upper right", ncols=2)
    return ax


def delay_weight_map(layer: DelayedLinear, *, ax: Axes | None = None, **look: Any) -> Axes:
    """The connections of a layer: inputs across, outputs down, delays as colours.

    The area of a mark is in proportion to the weight; squares are positive weights, diamonds
    negative ones. Where there is no connection the ground is grey. A bar beside the axes tells the
    delays. What is not finite is left out.

    Args:
        layer: the layer.
        ax: axes to draw into; None for new ones.
        look: keywords for the ``PolyCollection`` of the marks, such as ``cmap``.

    Returns:
        The axes.

    Raises:
        TypeError: an argument is of the wrong kind.
    """
    if not isinstance(layer, DelayedLinear):
        raise TypeError(f"layer must be a DelayedLinear, but is {checks.shown(layer)}")
    weight, delay = _host("layer.weight", layer.weight), _host("layer.delay", layer.delay)
    present = weight.isfinite() if layer.mask is None else weight.isfinite() & layer.mask.cpu()
    output, source = (place.numpy() for place in present.nonzero(as_tuple=True))
    values = weight[present].numpy()
    delays = layer._delays_of_taps(delay).expand_as(weight)[present].numpy()
    ax = _axes(ax)
    if layer.mask is not None:
        ground, mask = ListedColormap([ABSENT, "white"]), layer.mask.cpu().numpy()
        ax.imshow(mask, ground, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    size = _LARGEST * np.sqrt(abs(values) / (abs(values).max(initial=0.0) or 1.0))
    shape = np.where((values < 0)[:, None, None], _DIAMOND, _SQUARE)
    marks = np.stack((source, output), 1)[:, None] + size[:, None, None] * shape
    plain = {"cmap": _DELAYS, "linewidth": 0.0, "clim": (layer.min_delay, layer.max_delay)}
    drawn = PolyCollection(list(marks), array=delays, **_look(PolyCollection, plain, look))
    ax.add_collection(drawn)
    outputs, inputs = weight.shape
    ax.set(xlim=(-0.5, inputs - 0.5), ylim=(outputs - 0.5, -0.5), ylabel="output")
    ax.set_xlabel("input (squares: positive weights, diamonds: negative)")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.figure.colorbar(drawn, ax=ax, label="delay (ms)")
    return ax


@torch.no_grad()
def read(
    synapse: ExponentialCurrent,
    times: Tensor | float,
    *,
    sample: int = 0,
    index: int = 0,
    ax: Axes | None = None,
    **look: Any,
) -> Axes:
    """What ``synapse.current_at`` sees of one synapse: the past, and the values at some times.

    Marks are the recorded observations, the line is the current between them as reads take it, and
    rings are the values at the times. The present is at the right.

    Args:
        synapse: the synapses.
        times: ms before the present, one or any number.
        sample: which sample of the batch is drawn.
        index: which synapse, counted through a group of any shape.
        ax: axes to draw into; None for new ones.
        look: keywords for ``Axes.plot`` of the line.

    Returns:
        The axes.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind, shape or range.
    """
    if not isinstance(synapse, ExponentialCurrent):
        raise TypeError(f"synapse must be a synapse of tritonsyn, but is {checks.shown(synapse)}")
    sample = checks.bounded_integer("sample", sample, synapse.batchsz - 1)
    index = checks.bounded_integer("index", index, synapse.count - 1)
    if not isinstance(times, Tensor):
        times = torch.tensor(checks.finite("times", times), device="cpu")
    times = checks.check_floating("times", times).detach().flatten()
    ax = _axes(ax)
    rule = synapse.delay_rule(synapse._current_overbound)
    recorded = synapse.dt * np.arange(synapse.spike_.recordsz)
    whole = rule._replace(limit=float(recorded[-1]))  # the oldest may be beyond the longest delay
    # From each observation to just before the next, which a spike may have raised.
    ahead = synapse.dt * np.append(np.arange(_BETWEEN) / _BETWEEN, 0.999)
    between = np.minimum(recorded[1:, None] - ahead, synapse.delay)
    curve = np.unique(np.append(between, 0.0))
    plain: dict[str, Any] = {"color": BLUE, "linewidth": 1.6, "label": "between the steps"}
    rings: dict[str, Any] = {"color": ORANGE, "markersize": 9, "markerfacecolor": "none"}

    def seen(times: Tensor, rule: ReadRule) -> Tensor:
        return _current(synapse, times, rule, sample, index)

    given = _look(Line2D, plain, look)
    (line,) = ax.plot(curve, seen(torch.from_numpy(curve), rule), **given)
    marks: dict[str, Any] = {"color": line.get_color(), "markersize": 6.5}
    ax.plot(
        recorded,
        seen(torch.from_numpy(recorded), whole),
        "o",
        **marks,
        markeredgecolor="white",
        label="recorded",
    )
    asked, values = _host("times", times), seen(times, rule)
    ax.plot(asked, values, "o", **rings, markeredgewidth=2, label="read")
    stems = torch.stack((torch.zeros_like(values), values))
    ax.plot(asked.expand(2, -1), stems, color=ORANGE, linewidth=1, zorder=1)
    ax.xaxis.set_inverted(True)
    ax.set(xlabel="time before the present (ms)", ylabel="current (nA)")
    ax.legend(frameon=False, loc="upper right")
    _make_room(ax, 0.0, 3 * _LINE)
    return ax


def _current(
    synapse: ExponentialCurrent, times: Tensor, rule: ReadRule, sample: int, index: int
) -> Tensor:
    """The current of one synapse at times ``[D]`` before the present, by this rule."""
    records = synapse.component_records()
    storages = [
        record.value.flatten(2)[:, sample : sample + 1, index : index + 1].contiguous()
        for record in records
    ]
    rates = [
        rate[index : index + 1] if rate.ndim else rate for rate in synapse.coefficients().rates
    ]
    selector = times.to(storages[0].device).view(1, 1, -1)
    pointers = [record.cursor for record in records]
    value, _ = functional.select(storages, selector, rates, pointers, rule, backend=synapse.backend)
    return _host("value", value.flatten())


def _axes(ax: object) -> Axes:
    """The axes to draw into, new ones for None."""
    if ax is None:
        return plt.subplots(layout="constrained")[1]
    if not isinstance(ax, Axes):
        raise TypeError(f"ax must be matplotlib axes, but is {checks.shown(ax)}")
    return ax


def _make_room(ax: Axes, foot: float, head: float) -> None:
    """Leaves these parts of the height free below and above what was drawn."""
    x, low, high = ax.dataLim.x0, ax.dataLim.y0, ax.dataLim.y1
    if np.isfinite(high - low):
        height = (high - low) / (1 - foot - head)
        ax.update_datalim([(x, low - foot * height), (x, high + head * height)])
        ax.autoscale_view()


def _look(
    artist: type[Artist], plain: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Keywords of an artist, those that a user gave first, in any of their spellings."""
    return {**plain, **normalize_kwargs(dict(given), artist)}


def _host(name: str, x: object) -> Tensor:
    """A tensor in float64 on the CPU, without a graph."""
    x = checks.check_real(name, x)
    checks.check_holds_values(name, x, torch.device("cpu"))
    return x.detach().cpu().double()


def _sequence(name: str, x: object, sample: int) -> Tensor:
    """One sample of a sequence as ``[T, N]``, on the CPU and without a graph."""
    if isinstance(x, PackedSpikes):
        checks.check_packed(name, x)
        x = x.dense()
    x = checks.check_real(name, x)
    checks.check_holds_values(name, x, torch.device("cpu"))
    if x.ndim == 0:
        raise checks.misshapen(name, x, "(T, N) or (T, B, ...)")
    while x.ndim < 3:  # a neuron's train, or that of several
        x = x.unsqueeze(1)
    sample = checks.bounded_integer("sample", sample, x.shape[1] - 1)
    return x.detach()[:, sample].flatten(1).cpu()


def _found(name: str, given: Tensor | LearnedDelays, mask: Tensor | None = None) -> Any:
    """The finite delays of the connections that there are, flat, for matplotlib."""
    if isinstance(given, LearnedDelays):
        mask, given = getattr(given, "mask", None), given.delay
    delay = _host(name, given)
    if mask is not None and mask.shape == delay.shape:
        delay = delay[mask.cpu()]
    return delay[delay.isfinite()].numpy()
