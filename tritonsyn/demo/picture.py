"""The demonstration's picture: what goes in, what the synapses make of it, what was learned."""

from pathlib import Path

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .. import plot
from ..plot import BLUE, GREEN, GREY
from ..system import written_whole
from .data import (
    COPIES,
    INPUTS,
    QUIET_STEPS,
    ROW_STEPS,
    ROWS,
    STEP_TIME,
    STEPS,
    Digits,
    encode_test,
)
from .network import Network
from .train import Run


def draw(learned: Run, frozen: Run, test: Digits, path: Path) -> None:
    """Writes the picture as PNG."""
    with rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(15, 8.2), layout="constrained")
        axes = figure.subplots(2, 3)
        example = 3
        spikes = encode_test(test.images)[:, example]
        _draw_digit(axes[0, 0], test.images[example], int(test.labels[example]))
        _draw_spikes(axes[0, 1], spikes)
        _draw_currents(axes[0, 2], learned.network, spikes)
        _draw_delays(axes[1, 0], learned, 0, "hidden layer")
        _draw_delays(axes[1, 1], learned, 1, "readout")
        _draw_accuracy(axes[1, 2], learned, frozen)
        figure.suptitle(
            f"Digits read row by row: {learned.test_accuracy:.1%} with learned delays, "
            f"{frozen.test_accuracy:.1%} with delays frozen at zero",
            fontsize=15,
        )
        with written_whole(path) as beside:
            figure.savefig(beside, dpi=110, format="png")


def _draw_digit(axes: Axes, image: torch.Tensor, label: int) -> None:
    axes.imshow(image, cmap="Greys", vmin=0, vmax=1)
    axes.set(title=f"A scanned {label}: one row every {ROW_STEPS * STEP_TIME:g} ms", xticks=[])
    axes.set_yticks(range(ROWS), [f"{row * ROW_STEPS * STEP_TIME:g}" for row in range(ROWS)])
    axes.set_ylabel("shown from (ms)")


def _draw_spikes(axes: Axes, spikes: torch.Tensor) -> None:
    for copy, colour in enumerate((BLUE, GREEN)):
        mine = torch.arange(INPUTS) // (INPUTS // COPIES) == copy
        plot.raster(spikes * mine, STEP_TIME, ax=axes, color=colour)
    _shade_quiet(axes)
    axes.set(title="Its spikes", ylabel="input neuron")


@torch.no_grad()
def _draw_currents(axes: Axes, network: Network, spikes: torch.Tensor) -> None:
    """Currents and spikes of the busiest input synapse and of the busiest hidden one."""
    spikes = spikes.unsqueeze(1).to(network.hidden.weight.device)
    hidden = network.hidden_spikes(spikes)
    currents, trains = [], []
    for layer, x in ((network.hidden, spikes), (network.readout, hidden)):
        layer.clear()
        busiest = x.sum(0).argmax()
        currents.append(layer.synapse.scan(x)[:, 0, busiest])
        trains.append(x[:, 0, busiest])
    labels = ["single exponential (input)", "double exponential (hidden)"]
    drawn = torch.stack(currents, 1), torch.stack(trains, 1)
    plot.currents(*drawn, STEP_TIME, ax=axes, label=labels)
    _shade_quiet(axes)
    axes.set_title("Currents of two synapses, and their spikes")


def _draw_delays(axes: Axes, run: Run, index: int, name: str) -> None:
    plot.delays(run.network.layers()[index], run.initial_delays[index], ax=axes)
    axes.set(title=f"Delays of the {name}", ylabel="connections")


def _draw_accuracy(axes: Axes, learned: Run, frozen: Run) -> None:
    for run, colour, label in ((learned, BLUE, "learned delays"), (frozen, GREY, "frozen at zero")):
        epochs = range(1, len(run.accuracy) + 1)
        axes.plot(epochs, [100 * a for a in run.accuracy], "o-", color=colour, label=label, lw=2)
    axes.set(title="What delays are worth", xlabel="epoch", ylabel="test accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_ylim(0, 100)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, loc="lower right")


def _shade_quiet(axes: Axes) -> None:
    start = (STEPS - QUIET_STEPS) * STEP_TIME
    axes.axvspan(start - 0.5, STEPS - 0.5, color=GREY, alpha=0.15, lw=0)
    middle = (start + STEPS - 1) / 2
    within = axes.get_xaxis_transform()  # heights from 0 to 1
    axes.text(middle, 0.97, "decision", transform=within, ha="center", va="top", color=GREY)
