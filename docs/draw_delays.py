"""Times the three ways of the delayed layer here, and draws what they cost.

``python docs/draw_delays.py`` writes ``docs/images/delayed-linear.png``.
"""

import time
from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from draw import DOUBLE, INK, SINGLE, STYLE
from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatter

from tritonsyn import DelayedLinear, SingleExponentialCurrent

IMAGE = Path(__file__).parent / "images" / "delayed-linear.png"
STEPS, BATCH, INPUTS, OUTPUTS = 50, 32, 140, 128
DELAYS = (1, 5, 10, 25, 60, 120, 250)  # steps
DENSITIES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
DELAY, DENSITY = 25, 0.05  # where the other is varied
ROUNDS = 7
LOOKS = {
    "shift": {"color": SINGLE, "marker": "o"},
    "gemm": {"color": DOUBLE, "marker": "s"},
    "events": {"color": INK, "marker": "^"},
}


def milliseconds(strategy: str, delay: int, density: float) -> float:
    """Median time of a forward and a backward pass from rest."""
    physics = SingleExponentialCurrent.partialconstructor(10.0, 5.0)
    layer = DelayedLinear(
        INPUTS, OUTPUTS, 1.0, synapse=physics, delay=float(delay), batch_size=BATCH,
        strategy=strategy,
    )  # fmt: skip
    spikes = torch.rand(STEPS, BATCH, INPUTS) < density
    seconds = []
    for _ in range(ROUNDS):
        layer.clear()
        layer.zero_grad()
        started = time.perf_counter()
        layer.scan(spikes).square().mean().backward()
        seconds.append(time.perf_counter() - started)
    return 1e3 * median(seconds)


def draw(axes: Axes, values: tuple[float, ...], times: dict[str, list[float]]) -> None:
    for strategy, found in times.items():
        axes.plot(values, found, label=strategy, linewidth=2, **LOOKS[strategy])
    axes.set(xscale="log", yscale="log", ylabel="forward and backward (ms)")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
    axes.grid(alpha=0.3)


def main() -> None:
    torch.manual_seed(0)
    by_delay = {s: [milliseconds(s, delay, DENSITY) for delay in DELAYS] for s in LOOKS}
    by_density = {s: [milliseconds(s, DELAY, density) for density in DENSITIES] for s in LOOKS}
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
        draw(left, DELAYS, by_delay)
        left.set(title=f"{DENSITY:.0%} spikes", xlabel="longest delay (steps)")
        left.legend(frameon=False)
        draw(right, tuple(100 * density for density in DENSITIES), by_density)
        right.set(title=f"Delays up to {DELAY} steps", xlabel="spikes (% of inputs and steps)")
        figure.savefig(IMAGE, dpi=160, facecolor="white", metadata={"Software": None})
    print(IMAGE)


if __name__ == "__main__":
    main()
