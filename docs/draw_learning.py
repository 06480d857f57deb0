"""Draws the pictures of the page on how delays learn, from runs of small layers.

``python docs/draw_learning.py`` writes ``docs/images/learning-*.png``.
"""

from io import BytesIO
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from draw import STYLE
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from tritonsyn import DelayedLinear, DoubleExponentialCurrent, SingleExponentialCurrent
from tritonsyn.plot import BLUE, GREEN, GREY, INK, ORANGE

IMAGES = Path(__file__).parent / "images"
WIDTH = 6.4  # inches: text stays readable where a phone shrinks a picture to its own width
LOOK = {**STYLE, "font.size": 12.5, "axes.titlesize": 12.5, "lines.linewidth": 2.4}

SINGLE = SingleExponentialCurrent.partialconstructor(4.0, 4.0)  # pC, ms
DOUBLE = DoubleExponentialCurrent.partialconstructor(8.0, 6.0, 2.5)  # pC, ms, ms
LONGEST = 40.0  # ms
PLANTED = 17.0  # ms, the delay that is to be found
UPDATES = 200

Curve = tuple[Tensor, Tensor, Tensor]  # delays, the values that they read, and the slopes


def layer(synapse, weight: Tensor, delay: Tensor, step: float = 1.0, spread: float = 0.0):
    """A layer with these weights and delays ``[outputs, inputs]``."""
    outputs, inputs = weight.shape
    return DelayedLinear(
        inputs, outputs, step, synapse=synapse, delay=LONGEST, spread=spread,
        weight_init=lambda _: weight, delay_init=lambda _: delay,
    )  # fmt: skip


def readers(synapse, delays: Tensor, spread: float = 0.0) -> DelayedLinear:
    """A layer of one input that each output reads at a delay of its own."""
    return layer(synapse, torch.ones(len(delays), 1), delays.view(-1, 1), spread=spread)


def draw_coincidence() -> Figure:
    """Currents of two spikes, which meet where the earlier one is delayed."""
    early, late, end, step = 8.0, 20.0, 42.0, 0.25  # ms
    x = torch.zeros(int(end / step), 1, 2)
    x[int(early / step), 0, 0] = x[int(late / step), 0, 1] = 1.0
    time = step * torch.arange(len(x))
    figure, columns = plt.subplots(
        2, 2, figsize=(WIDTH, 4.4), sharex=True, sharey="row", height_ratios=(1, 3.2),
        layout="constrained",
    )  # fmt: skip
    for (top, bottom), delay in zip(columns.T, (0.0, late - early), strict=True):
        # Outputs 0 and 1 are what arrives from each input, output 2 is the sum of both.
        weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        delays = torch.tensor([delay, 0.0]).expand(3, 2)
        with torch.no_grad():
            currents = layer(DOUBLE, weight, delays, step)(x)[:, 0]
        for row, (name, colour, when) in enumerate((("A", BLUE, early), ("B", ORANGE, late))):
            top.vlines(when, 1.2 - row, 2.0 - row, color=colour, linewidth=4)
            top.text(0, 1.6 - row, name, color=colour, weight="bold", va="center")
            bottom.plot(time, currents[:, row], color=colour, linestyle=("-", "--")[row])
        bottom.plot(time, currents[:, 2], color=INK, linewidth=1.4)
        bottom.axhline(1.15, color=GREY, linestyle=":", linewidth=1.8)
        title = f"A waits {delay:g} ms: both meet" if delay else "No delay: each comes alone"
        top.set(ylim=(0, 2.2), yticks=[], title=title)
        top.spines[["left", "bottom"]].set_visible(False)
        top.tick_params(bottom=False)
        bottom.set(xlabel="time (ms)", ylim=(0, 1.7), xlim=(-1, end))
    columns[1, 0].set(ylabel="current (nA)")
    columns[1, 0].text(0, 1.18, "threshold", color=INK, va="bottom")
    columns[1, 0].annotate(
        "sum", (23.5, 0.9), (28, 1.02), arrowprops={"arrowstyle": "-", "color": INK}
    )
    columns[0, 1].annotate(
        "", (late, 1.6), (early + 0.6, 1.6), arrowprops={"arrowstyle": "->", "color": BLUE, "lw": 2}
    )
    return figure


def seen(synapse, delays: Tensor, spread: float = 0.0) -> tuple[Tensor, Tensor]:
    """What these delays read, 26 ms after a spike, and the slope that each of them is told."""
    x = torch.zeros(130, 1, 1)
    x[60] = 1.0
    net = readers(synapse, delays, spread)
    current = net(x)[60 + 26, 0]
    current.sum().backward()
    return current.detach(), net.delay.grad.flatten()


def integral(slopes: Tensor, delays: Tensor) -> Tensor:
    """The curve that has these slopes and begins at 0."""
    return torch.cat((torch.zeros(1), torch.cumulative_trapezoid(slopes, delays)))


def draw_read(axes: Axes, at: float, curve: Curve, colour: str) -> None:
    """The point that is read, and the tangent there."""
    delays, values, slopes = curve
    i = int((delays - at).abs().argmin())
    reach = torch.tensor([-4.0, 4.0])
    axes.plot(at + reach, values[i] + slopes[i] * reach, color=INK, linewidth=1.8, zorder=3)
    ring = {"markersize": 10, "markeredgewidth": 2.4, "markeredgecolor": colour, "zorder": 4}
    axes.plot(at, values[i], "o", color="white", **ring)


def draw_pull(axes: Axes, start: float, end: float, height: float) -> None:
    look = {"arrowstyle": "->", "color": GREEN, "lw": 2.6}
    axes.annotate("", (end, height), (start, height), arrowprops=look)


def draw_slopes() -> Figure:
    """A slope that pulls a delay, a place without one, and a jump that a spread smooths."""
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(WIDTH, 6.4), sharex=True, layout="constrained"
    )
    delays = torch.linspace(0.0, 36.0, 361)
    curve = delays, *seen(DOUBLE, delays)
    top.plot(delays, curve[1], color=BLUE)
    draw_read(top, 14.0, curve, BLUE)
    draw_pull(top, 14.0, 18.0, 0.17)
    top.text(16.0, 0.14, "pulled", color=GREEN, ha="center", va="top")
    draw_read(top, 31.0, curve, BLUE)
    top.text(31.0, 0.06, "no slope,\nno pull", ha="center", va="bottom")
    top.axhline(0.57, color=GREEN, linestyle="--", linewidth=1.8)
    top.text(0.3, 0.59, "wanted", color=GREEN, ha="right", va="bottom")
    top.set_title("Double-exponential synapse: a slope near the spike only")

    curve = delays, *seen(SINGLE, delays)
    _, slope = seen(SINGLE, delays, spread=5.0)
    smooth = delays, integral(slope, delays), slope
    bottom.plot(delays, curve[1], color=BLUE)
    bottom.plot(delays, smooth[1], color=ORANGE, linestyle="--")
    draw_read(bottom, 31.0, curve, BLUE)
    draw_read(bottom, 31.0, smooth, ORANGE)
    draw_pull(bottom, 31.0, 27.0, 0.4)
    bottom.text(29.0, 0.43, "pulled", color=GREEN, ha="center", va="bottom")
    bottom.text(24.0, 0.8, "the current", color=BLUE)
    bottom.text(19.5, 0.3, "as a spread of 5 ms sees it", color=ORANGE)
    bottom.set_title("Single-exponential synapse: a jump, which only a spread sees")
    for axes in (top, bottom):
        axes.set(xlim=(36, 0), ylabel="current (nA)")
        axes.set_xticks(range(0, 36, 5))
    bottom.set_xlabel("delay (ms before the present)")
    return figure


def losses(net: DelayedLinear, x: Tensor) -> Tensor:
    """How far the output of each reader is from what the planted delay reads, nA squared."""
    with torch.no_grad():
        wanted = readers(SINGLE, torch.tensor([PLANTED]))(x)
    return (net(x) - wanted).square().mean((0, 1))


def draw_landscape() -> Figure:
    """The loss against the delay, and the landscapes that gradients with a spread come from."""
    torch.manual_seed(0)
    x = torch.rand(400, 64, 1) < 0.02
    delays = torch.linspace(0.0, LONGEST, 401)
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(WIDTH, 6.4), sharex=True, layout="constrained"
    )
    looks = {0.0: (BLUE, "-"), 20.0: (ORANGE, "--"), 5.0: (GREEN, "-.")}
    for spread, (colour, line) in looks.items():
        net = readers(SINGLE, delays, spread)
        loss = losses(net, x)
        loss.sum().backward()
        if not spread:
            top.plot(delays, loss.detach(), color=colour, linewidth=1.8)
        landscape = integral(net.delay.grad.flatten(), delays)
        landscape -= landscape.amin()
        name = f"spread {spread:g} ms" if spread else "exact derivative"
        bottom.plot(delays, landscape / landscape.amax(), color=colour, linestyle=line, label=name)
    top.set(title="The loss jumps at each step and rises in between", ylabel="loss (nA²)")
    top.set_ylim(0, None)
    bottom.set(title="What each gradient makes of it: delays roll downhill", ylim=(0, 1.02))
    bottom.set(xlabel="delay (ms)", ylabel="height / its maximum", xlim=(-0.4, LONGEST + 0.4))
    bottom.legend(frameon=False)
    for axes in (top, bottom):
        axes.axvline(PLANTED, color=GREY, linestyle=":", linewidth=1.8, zorder=0)
    top.text(PLANTED + 1.5, 0.004, "the delay to find", color=INK)
    return figure


def learned(starts: Tensor, widths: Tensor) -> Tensor:
    """The delays at the start and after each update, ``[updates + 1, starts]``."""
    torch.manual_seed(0)
    net = readers(SINGLE, starts)
    optimizer = torch.optim.Adam([net.delay], lr=0.5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(widths))
    path = [net.delay.detach().flatten().clone()]
    for width in widths.tolist():
        net.spread = width
        net.clear()
        optimizer.zero_grad()
        losses(net, torch.rand(100, 16, 1) < 0.02).sum().backward()
        optimizer.step()
        schedule.step()
        net.clamp_delays_()
        path.append(net.delay.detach().flatten().clone())
    return torch.stack(path)


def draw_paths() -> Figure:
    """Delays over the updates from many starts, without and with a spread that narrows."""
    figure, columns = plt.subplots(
        1, 2, figsize=(WIDTH, 4.4), sharex=True, sharey=True, layout="constrained"
    )
    starts = torch.linspace(1.0, 39.0, 11)
    narrowing = 20.0 * (1.0 / 20.0) ** (torch.arange(UPDATES) / UPDATES)
    looks = (("Exact derivative", BLUE, 0 * narrowing), ("Spread 20 to 1 ms", ORANGE, narrowing))
    for axes, (title, colour, widths) in zip(columns, looks, strict=True):
        axes.axhline(PLANTED, color=GREY, linestyle=":", linewidth=1.8)
        path = learned(starts, widths)
        axes.plot(path, color=colour, linewidth=1.6)
        axes.plot(torch.zeros(len(starts)), starts, "o", color=colour, markersize=5)
        found = int(((path[-1] - PLANTED).abs() < 1).sum())
        axes.set(title=f"{title}:\n{found} of {len(starts)} find it", xlabel="update")
    columns[0].text(UPDATES, PLANTED + 0.8, "the delay to find", color=INK, ha="right")
    columns[0].set(ylabel="delay (ms)", ylim=(-1, 41))
    return figure


PICTURES = {
    "coincidence": draw_coincidence,
    "slopes": draw_slopes,
    "landscape": draw_landscape,
    "paths": draw_paths,
}


def save(figure: Figure, path: Path) -> None:
    """In 128 colours, which halves the file."""
    drawn = BytesIO()
    figure.savefig(drawn, dpi=160, facecolor="white", bbox_inches="tight", pad_inches=0.2)
    Image.open(drawn).convert("RGB").quantize(128).save(path, optimize=True)


def main() -> None:
    with plt.rc_context(LOOK):
        for name, draw in PICTURES.items():
            path = IMAGES / f"learning-{name}.png"
            save(draw(), path)
            print(path)


if __name__ == "__main__":
    main()
