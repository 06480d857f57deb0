"""The demonstration's picture: what goes in, what the synapses make of it, what was learned."""

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ..system import written_whole
from .data import COPIES, QUIET_STEPS, ROW_STEPS, ROWS, STEP_TIME, STEPS, Digits, encode_test
from .network import Network
from .train import Run

# Okabe and Ito's colours: told apart in any common kind of colour vision.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#8A8A8A"


def draw(learned: Run, frozen: Run, test: Digits, path: Path) -> None:
    """Writes the picture as PNG."""
    matplotlib.use("Agg")
    with plt.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = plt.subplots(2, 3, figsize=(15, 8.2), layout="constrained")
        example = 3
        spikes = encode_test(test.images)[:, example]
        _draw_digit(axes[0, 0], test.images[example], int(test.labels[example]))
        _draw_spikes(axes[0, 1], spikes)
        _draw_currents(axes[0, 2], learned.network, encode_test(test.images)[:, : example + 1])
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
        plt.close(figure)


def _draw_digit(axes: Axes, image: torch.Tensor, label: int) -> None:
    axes.imshow(image, cmap="Greys", vmin=0, vmax=1)
    axes.set(title=f"A scanned {label}: one row every {ROW_STEPS * STEP_TIME:g} ms", xticks=[])
    axes.set_yticks(range(ROWS), [f"{row * ROW_STEPS * STEP_TIME:g}" for row in range(ROWS)])
    axes.set_ylabel("shown from (ms)")


def _draw_spikes(axes: Axes, spikes: torch.Tensor) -> None:
    step, neuron = spikes.nonzero(as_tuple=True)
    half = spikes.shape[1] // COPIES
    for copy, colour in enumerate((BLUE, GREEN)):
        mine = neuron // half == copy
        axes.scatter(step[mine] * STEP_TIME, neuron[mine] + 1, s=34, marker="|", color=colour)
    _shade_quiet(axes)
    axes.set(title="Its spikes", xlabel="time (ms)", ylabel="input neuron")
    axes.set(xlim=(-1, STEPS * STEP_TIME), ylim=(0, spikes.shape[1] + 1))


@torch.no_grad()
def _draw_currents(axes: Axes, network: Network, spikes: torch.Tensor) -> None:
    """Currents of the busiest input synapse and of the busiest hidden one."""
    device = network.hidden.weight.device
    spikes = spikes.to(device)
    hidden = network.hidden_spikes(spikes)
    time = torch.arange(STEPS) * STEP_TIME
    pairs = [
        (network.hidden, spikes, BLUE, "single exponential (input)"),
        (network.readout, hidden, ORANGE, "double exponential (hidden)"),
    ]
    for layer, x, colour, label in pairs:
        layer.synapse.clear()
        layer.synapse.batchsz = x.shape[1]
        current = layer.synapse.scan(x)[:, -1]
        busiest = int(x[:, -1].sum(0).argmax())
        axes.plot(time, current[:, busiest].cpu(), color=colour, label=label, lw=2)
    _shade_quiet(axes)
    axes.set(title="Currents of two synapses", xlabel="time (ms)", ylabel="current (nA)")
    axes.legend(frameon=False, loc="upper left")
    axes.set_ylim(top=axes.get_ylim()[1] * 1.25)


def _draw_delays(axes: Axes, run: Run, index: int, name: str) -> None:
    layer = run.network.layers()[index]
    longest = layer.max_delay
    bins = torch.linspace(0, longest, 27).tolist()
    before = run.initial_delays[index].flatten()
    after = layer.delay.detach().cpu().flatten()
    axes.hist(before, bins, color=GREY, alpha=0.45, label="at the start")
    axes.hist(after, bins, histtype="step", color=ORANGE, lw=2, label="learned")
    axes.set(title=f"Delays of the {name}", xlabel="delay (ms)", ylabel="connections")
    axes.set_ylim(top=axes.get_ylim()[1] * 1.25)
    axes.legend(frameon=False, loc="upper right", ncols=2)


def _draw_accuracy(axes: Axes, learned: Run, frozen: Run) -> None:
    for run, colour, label in ((learned, BLUE, "learned delays"), (frozen, GREY, "frozen at zero")):
        epochs = range(1, len(run.accuracy) + 1)
        axes.plot(epochs, [100 * a for a in run.accuracy], "o-", color=colour, label=label, lw=2)
    axes.set(title="What delays are worth", xlabel="epoch", ylabel="test accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(0, 100)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, loc="lower right")


def _shade_quiet(axes: Axes) -> None:
    start = (STEPS - QUIET_STEPS) * STEP_TIME
    axes.axvspan(start - 0.5, STEPS - 0.5, color=GREY, alpha=0.15, lw=0)
    middle = (start + STEPS - 1) / 2
    within = axes.get_xaxis_transform()  # heights from 0 to 1
    axes.text(middle, 0.97, "decision", transform=within, ha="center", va="top", color=GREY)
