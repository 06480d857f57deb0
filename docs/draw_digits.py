"""Draws what ``bench/compare_digits.py`` has trained: ``docs/images/digits.png``."""

import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from draw import DOUBLE, INK, PALE, SINGLE, STYLE
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

sys.path.insert(0, str(Path(__file__).resolve().parent / "examples"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))
import compare_digits
import digits

from tritonsyn import plot
from tritonsyn.plot import GREY

IMAGE = Path(__file__).parent / "images" / "digits.png"
LIGHT = "#C8C8C8"
LOOKS = {"delayed": (DOUBLE, "o"), "undelayed": (SINGLE, "s"), "none": (GREY, "^")}
SHOWN = 5  # the digit that is read in the picture
SHOWN_STEPS = 64  # of 1 ms


def reading(model: digits.Network, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Spikes ``[T, 64]`` while ``pixels [T]`` are shown, and what would be answered after each.

    The answers ``[T, 10]`` are probabilities. A step is fed the spikes of the step before, so a
    step is added.
    """
    fed = []
    hook = model.recurrent.register_forward_pre_hook(lambda _, given: fed.append(given[0][0]))
    with torch.no_grad():
        model(torch.cat((pixels, torch.zeros(1))).unsqueeze(1))
        hook.remove()
        spikes = torch.stack(fed[1:])
        return spikes, model.readout(spikes).softmax(1)


def draw_digit(axes: Axes, pixels: torch.Tensor) -> None:
    axes.imshow(pixels.view(8, 8), cmap="Greys", vmin=0, vmax=1)
    path = torch.arange(64)
    axes.plot(path % 8, path // 8, color=DOUBLE, lw=0.8, alpha=0.6)
    axes.set(title="One pixel a ms,\nrow by row", xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def draw_pixels(axes: Axes, pixels: torch.Tensor) -> None:
    axes.imshow(pixels.unsqueeze(0), cmap="Greys", vmin=0, vmax=1, aspect="auto")
    axes.set(title="What the network sees: the digit, then nothing", yticks=[])
    axes.set_xlim(-0.5, len(pixels) + 0.5)
    axes.tick_params(bottom=False, labelbottom=False)
    axes.spines["left"].set_visible(False)


def draw_pause(axes: Axes, steps: int) -> None:
    """The time after the last pixel, and the step in which the answer is read."""
    axes.axvspan(SHOWN_STEPS - 0.5, steps - 0.5, color=PALE, zorder=0, lw=0)
    axes.axvline(steps - 1, color=DOUBLE, lw=5, alpha=0.25, zorder=1)


def draw_raster(axes: Axes, spikes: torch.Tensor) -> None:
    """Neurons in the order of their mean time of spiking."""
    when = torch.arange(len(spikes)).unsqueeze(1)
    count = spikes.sum(0)
    mean = torch.where(count > 0, (when * spikes).sum(0) / count.clamp(min=1), torch.inf)
    plot.raster(spikes[:, mean.argsort()], ax=axes, markeredgewidth=1.1)
    draw_pause(axes, len(spikes))
    axes.set(xlabel="", yticks=[])
    axes.set_title(f"Spikes of its {digits.NEURONS} neurons: the last ms gives the answer")
    axes.tick_params(labelbottom=False)


def draw_answers(axes: Axes, answers: torch.Tensor, label: int) -> None:
    for digit in range(10):
        right = digit == label
        look = {"color": DOUBLE if right else LIGHT, "lw": 2.2 if right else 1.0}
        axes.plot(100 * answers[:, digit], zorder=3 if right else 2, **look)
    draw_pause(axes, len(answers))
    axes.set(xlabel="time (ms)", ylabel="probability (%)", ylim=(-4, 104))
    axes.set_title(f"What it would answer at the time: {label} (orange), or another digit (grey)")


def draw_accuracy(axes: Axes, lines: list[compare_digits.Line], pixels: str) -> None:
    """Means of the seeds, and their range."""
    for kind, (colour, marker) in LOOKS.items():
        mine = [line for line in lines if (line["network"], line["pixels"]) == (kind, pixels)]
        each = torch.tensor([[float(a) for a in line["accuracy"].split()] for line in mine])
        epochs = torch.arange(1, each.shape[1] + 1)
        end = f"{compare_digits.KINDS[kind]}: {each[:, -1].mean():.0f} %"
        axes.plot(epochs, each.mean(0), color=colour, marker=marker, ms=5, lw=2, label=end)
        axes.fill_between(epochs, each.amin(0), each.amax(0), color=colour, alpha=0.2, lw=0)
    axes.axhline(10, color=INK, lw=0.8, ls=":")
    axes.set(title=f"Pixels {pixels}", xlabel="epoch", ylim=(0, 103))
    axes.legend(frameon=False, fontsize=9.5, loc="center right", bbox_to_anchor=(1.0, 0.56))
    axes.set_ylabel("unseen digits read (%)")
    axes.grid(axis="y", alpha=0.3)


def draw_delays(
    axes: Axes, before: torch.Tensor, after: torch.Tensor, weight: torch.Tensor
) -> None:
    """Delays at the start and after training, and of the strongest tenth of the connections."""
    bins = torch.linspace(0, 32, 17).tolist()
    strong = weight.abs() > weight.abs().quantile(0.9)
    axes.hist(before.flatten(), bins, density=True, color=LIGHT, label="before training")
    look = {"density": True, "histtype": "step", "lw": 1.8}
    axes.hist(after.flatten(), bins, color=INK, label="after", **look)
    axes.hist(after[strong], bins, color=DOUBLE, label="after, strongest tenth", **look)
    axes.set(title="Delays", xlabel="delay (ms)", ylabel="density", yticks=[], xlim=(0, 32))
    axes.set_ylim(top=2.3 * axes.get_ylim()[1])
    axes.legend(frameon=False, fontsize=9, loc="upper left", borderaxespad=0.1)


def draw_moves(axes: Axes, before: torch.Tensor, after: torch.Tensor) -> None:
    moved = (after - before).flatten()
    axes.hist(moved, torch.linspace(-10, 10, 61).tolist(), color=DOUBLE)
    mean = moved.abs().mean()
    axes.set(title=f"Moved by {mean:.1f} ms on average", xlabel="after - before (ms)")
    axes.set(yticks=[], ylabel="connections")


def picture(lines: list[compare_digits.Line], run: dict[str, Any]) -> Figure:
    images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
    torch.manual_seed(0)
    test = torch.randperm(len(labels))[1344:]
    model = digits.Network("delayed")
    model.load_state_dict(run["state"])
    pixels = images[test[labels[test] == SHOWN][0]].float() / 16.0
    shown = torch.cat((pixels, torch.zeros(compare_digits.PAUSE)))
    spikes, answers = reading(model, shown)
    figure = plt.figure(figsize=(10.5, 9.2), layout="constrained")
    grid = figure.add_gridspec(4, 1, height_ratios=[1.1, 4.2, 2.2, 4.4])
    top = grid[0:3].subgridspec(3, 2, height_ratios=[0.5, 4.4, 2.4], width_ratios=[1, 4.4])
    strip = figure.add_subplot(top[0, 1])
    raster = figure.add_subplot(top[1, 1], sharex=strip)
    answer = figure.add_subplot(top[2, 1], sharex=strip)
    draw_digit(figure.add_subplot(top[1, 0]), pixels)
    draw_pixels(strip, shown)
    draw_raster(raster, spikes)
    draw_answers(answer, answers, SHOWN)
    bottom = grid[3].subgridspec(1, 3)
    for column, order in enumerate(compare_digits.PIXELS):
        draw_accuracy(figure.add_subplot(bottom[column]), lines, order)
    delays = bottom[2].subgridspec(2, 1)
    before, after = run["before"], run["state"]["recurrent.delay"]
    draw_delays(figure.add_subplot(delays[0]), before, after, run["state"]["recurrent.weight"])
    draw_moves(figure.add_subplot(delays[1]), before, after)
    return figure


def main() -> None:
    run = torch.load(compare_digits.Task("delayed", compare_digits.PIXELS[0], 0).path)
    with plt.rc_context(STYLE):
        figure = picture(compare_digits.kept(), run)
        figure.savefig(IMAGE, dpi=160, facecolor="white", metadata={"Software": None})
    print(IMAGE)


if __name__ == "__main__":
    main()
