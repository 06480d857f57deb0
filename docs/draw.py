"""Draws the picture of the README: ``python docs/draw.py`` writes ``docs/images/synapses.png``."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes

from tritonsyn import DoubleExponentialCurrent, SingleExponentialCurrent, plot
from tritonsyn.plot import INK, PALE

IMAGE = Path(__file__).parent / "images" / "synapses.png"

SINGLE, DOUBLE = plot.BLUE, plot.ORANGE  # which stay apart in print without colour, too

STEP = 1.0  # ms
PRESENT = 59.0  # ms
DELAY = 12.0  # ms
SPIKES = (6, 20, 23, 26, 40, 50, 55)  # steps at which the input spikes

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11.5,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


Synapses = dict[str, SingleExponentialCurrent | DoubleExponentialCurrent]
LOOKS = {
    "single": {"color": SINGLE, "linestyle": "-"},
    "double": {"color": DOUBLE, "linestyle": "--"},
}


def simulate(delay: float) -> Synapses:
    """Synapses that have received the spikes, and record ``delay`` ms."""
    x = torch.zeros(int(PRESENT / STEP) + 1, 1, 1)
    x[list(SPIKES)] = 1.0
    how = {"spike_charge": 10.0, "delay": delay}
    synapses: Synapses = {
        "single": SingleExponentialCurrent(1, STEP, time_constant=8.0, **how),
        "double": DoubleExponentialCurrent(1, STEP, tc_decay=8.0, tc_rise=2.0, **how),
    }
    for synapse in synapses.values():
        synapse.scan(x)
    return synapses


def draw_spikes(axes: Axes) -> None:
    axes.vlines([s * STEP for s in SPIKES], 0, 1, color=INK, linewidth=2)
    axes.set_title("Input spikes")
    axes.set_ylim(0, 1.1)
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(bottom=False, labelbottom=False)


def draw_currents(axes: Axes, synapses: Synapses) -> None:
    ago = torch.linspace(0.0, PRESENT, 100 * int(PRESENT) + 1)
    for name, synapse in synapses.items():
        current = synapse.current_at(ago.view(1, 1, -1)).flatten()
        axes.plot(PRESENT - ago, current, linewidth=2, **LOOKS[name])
    axes.set_title("Currents of the two synapses")
    axes.set_xlabel("time (ms)")
    axes.set_ylabel("current (nA)")
    axes.set_ylim(0, 3)
    axes.text(1, 2.65, "single exponential", color=SINGLE, weight="bold")
    axes.text(1, 2.35, "double exponential", color=DOUBLE, weight="bold")
    axes.text(
        PRESENT - DELAY + 0.5, 2.72, f"recorded:\nthe last {DELAY:g} ms", va="center", fontsize=10
    )


def draw_window(axes: Axes) -> None:
    """The time that a record of ``DELAY`` spans."""
    axes.axvspan(PRESENT - DELAY, PRESENT, color=PALE, zorder=0, linewidth=0)


def draw_reads(axes: Axes, synapses: Synapses) -> None:
    for name, synapse in synapses.items():
        plot.read(synapse, torch.empty(0), ax=axes, **LOOKS[name])
    axes.get_legend().remove()
    axes.set_facecolor(PALE)
    axes.set_title("Delayed reads at the present")
    axes.set(xlabel="delay (ms before the present)", xticks=range(0, 13, 3), ylim=(0, 3))
    axes.text(DELAY, 2.78, "marks: recorded, one per step", fontsize=10)
    axes.text(DELAY, 2.56, "lines: current_at(delay), for any delay", fontsize=10)


def main() -> None:
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(10.5, 4.2), layout="constrained")
        grid = figure.add_gridspec(2, 2, height_ratios=[1, 5.2], width_ratios=[1.35, 1])
        left = figure.add_subplot(grid[1, 0])
        top = figure.add_subplot(grid[0, 0], sharex=left)
        right = figure.add_subplot(grid[:, 1])
        draw_spikes(top)
        draw_window(top)
        draw_currents(left, simulate(PRESENT))
        draw_window(left)
        left.set_xlim(0, PRESENT)
        draw_reads(right, simulate(DELAY))
        IMAGE.parent.mkdir(exist_ok=True)
        figure.savefig(IMAGE, dpi=160, facecolor="white", metadata={"Software": None})
    print(IMAGE)


if __name__ == "__main__":
    main()
