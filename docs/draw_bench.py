"""Draws what was measured: ``python docs/draw_bench.py [CSV [FOLDER]]``.

Writes ``bench-times.png`` (time of a call against steps, synapses, slots and density of spikes)
and ``bench-rates.png`` (achieved bandwidth against the copies of the same run) of the device that
has the most lines in the CSV; ``bench/results/synapses.csv`` into ``docs/images`` by default.
"""

import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from draw import STYLE
from matplotlib.axes import Axes

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "bench"))
from results import read  # noqa: E402

from tritonsyn import plot  # noqa: E402
from tritonsyn.plot import INK, PALE  # noqa: E402
from tritonsyn.system import reason, written_whole  # noqa: E402

CSV = HERE.parent / "bench" / "results" / "synapses.csv"
AXES = {
    "T": "steps T",
    "N": "synapses N",
    "K": "slots of the record K",
    "spikes": "part of the inputs that are spikes",
}
COLOURS = {
    "tritonsyn triton": plot.BLUE,
    "tritonsyn reference": plot.SKY,
    "inferno-ai": plot.ORANGE,
    "plain PyTorch": plot.AMBER,
    "torch.compile": plot.YELLOW,
    "snntorch": plot.PINK,
    "accelerated-scan": plot.GREEN,
    "DCLS": plot.GREEN,
    "copy_": INK,
    "clone": "#777777",
    "matrix product": "#B0B0B0",
}
CEILINGS = ("copy_", "clone", "matrix product")
SERIES = 2
"""Kinds of work shown against one axis, those with the most points."""
MARKERS = "os"

Line = dict[str, str]
Series = dict[str, list[tuple[float, Line]]]


def lines_of(path: Path) -> list[Line]:
    """The lines of the device that has the most, host times left out."""
    try:
        lines = [line for line in read(path).values() if "host time" not in line["workload"]]
    except (OSError, ValueError) as error:
        sys.exit(reason(error))
    if not lines:
        sys.exit(f"{path} has no lines to draw")
    device, _ = Counter(line["device"] for line in lines).most_common(1)[0]
    return [line for line in lines if line["device"] == device]


def sizes(line: Line) -> dict[str, float]:
    """The numbers in ``T=500, B=16``."""
    return {name: float(value) for name, value in re.findall(r"(\w+)=([\d.]+)", line["size"])}


def against(name: str, lines: list[Line]) -> list[tuple[str, Series]]:
    """Work done at several values of one size, all others alike: its title and its providers."""
    groups: dict[tuple[str, ...], Series] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        size = sizes(line)
        if name in size:
            value = size.pop(name)
            rest = ", ".join(f"{key}={number:g}" for key, number in size.items())
            key = line["workload"], rest, line["dtype"]
            groups[key][line["provider"]].append((value, line))
    found = [
        (f"{workload} ({rest})", series)
        for (workload, rest, _), series in groups.items()
        if points(series) > 2
    ]
    return sorted(found, key=lambda pair: -points(pair[1]))[:SERIES]


def points(series: Series) -> int:
    """Different values of the size."""
    return len({value for pairs in series.values() for value, _ in pairs})


def draw_times(axes: Axes, name: str, lines: list[Line]) -> None:
    """Time of a call, with its quartiles, against one size."""
    axes.set_xlabel(AXES[name])
    axes.set_ylabel("ms a call")
    found = against(name, lines)
    if not found:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
        return
    axes.set_xscale("log")
    axes.set_yscale("log")
    for marker, style, (_, series) in zip(MARKERS, ("-", "--"), found, strict=False):
        for provider, pairs in series.items():
            pairs.sort(key=lambda pair: pair[0])
            x = [value for value, _ in pairs]
            middle, low, high = (
                [float(line[key]) for _, line in pairs] for key in ("milliseconds", "low", "high")
            )
            colour = COLOURS.get(provider, INK)
            axes.plot(x, middle, style, color=colour, marker=marker, markersize=4, label=provider)
            axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    title = "\n".join(
        f"{'solid' if i == 0 else 'dashed'}: {text}" for i, (text, _) in enumerate(found)
    )
    axes.set_title(title, fontsize=7)


def draw_rates(axes: Axes, lines: list[Line]) -> None:
    """What tritonsyn's kernels reach of the bandwidth of a copy."""
    moved = [line for line in lines if line["unit"] == "GB/s"]
    ours = [line for line in moved if line["provider"].startswith("tritonsyn")]
    best = {}
    for line in ours:  # the backend that users get
        key = f"{line['workload']} ({line['size']}, {line['dtype']})"
        if key not in best or float(line["rate"]) > float(best[key]["rate"]):
            best[key] = line
    ceiling = max(
        (float(line["rate"]) for line in moved if line["provider"] in CEILINGS), default=0
    )
    rates = [float(line["rate"]) for line in best.values()]
    axes.barh(range(len(best)), rates, color=COLOURS["tritonsyn triton"])
    axes.set_yticks(range(len(best)), list(best), fontsize=7)
    axes.invert_yaxis()
    axes.set_facecolor(PALE)
    axes.axvline(ceiling, color=INK, linewidth=1.5)
    axes.set_xlabel(f"GB/s of the least bytes; the line is the fastest copy, {ceiling:.0f}")


def note(lines: list[Line]) -> str:
    """Where and when."""
    line = lines[-1]
    return f"{line['device']}, torch {line['torch']}, commit {line['commit']}, {line['date']}"


def main(arguments: list[str]) -> None:
    path = Path(arguments[0]) if arguments else CSV
    folder = Path(arguments[1]) if len(arguments) > 1 else HERE / "images"
    lines = lines_of(path)
    folder.mkdir(parents=True, exist_ok=True)
    with plt.rc_context({**STYLE, "font.size": 8}):
        figure, grid = plt.subplots(2, 2, figsize=(10.5, 7.5), layout="constrained")
        for axes, name in zip(grid.flat, AXES, strict=True):
            draw_times(axes, name, lines)
        shown = {}
        for axes in grid.flat:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                shown.setdefault(label, handle)
        figure.legend(
            list(shown.values()), list(shown), ncols=len(shown) or 1, loc="outside upper center"
        )
        save(figure, folder / "bench-times.png", note(lines))
        height = 1.5 + 0.2 * len(
            {(line["workload"], line["size"], line["dtype"]) for line in lines}
        )
        figure, axes = plt.subplots(figsize=(10.5, height), layout="constrained")
        draw_rates(axes, lines)
        save(figure, folder / "bench-rates.png", note(lines))


def save(figure: plt.Figure, path: Path, text: str) -> None:
    figure.supxlabel(text, fontsize=7)
    with written_whole(path) as beside:
        figure.savefig(
            beside, dpi=130, format="png", facecolor="white", metadata={"Software": None}
        )
    plt.close(figure)
    print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
