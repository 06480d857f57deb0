"""Draws a sweep: the cost of each configuration, a panel for each kernel, shape and dtype."""

import math
import warnings
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from ..plot import INK, ORANGE
from ..system import written_whole
from .search import Row

_WORST = 4.0  # times the best: all beyond has one colour


def draw(rows: Sequence[Row], path: Path) -> None:
    """Writes a PNG. Raises ``ValueError`` where no configuration worked."""
    worked = sorted((row for row in rows if row.cost), key=_place)
    panels = [list(panel) for _, panel in groupby(worked, _place)]
    if not panels:
        raise ValueError("no configuration worked, so there is nothing to draw")
    columns = min(3, len(panels))
    lines = math.ceil(len(panels) / columns)
    size = (5.4 * columns, 3.6 * lines + 0.7)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis, panel in zip(axes.flat, panels, strict=False):
        image = _panel(axis, panel)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_axis_off()
    timers = ", ".join(sorted({row.timer for row in rows}))
    measured = "ranked by the compiled code, not measured" if "static" in timers else "measured"
    figure.suptitle(f"{timers}: {measured}", color=INK, fontsize=11)
    bar = figure.colorbar(image, ax=axes, label="cost, times the best", shrink=0.8)
    bar.ax.spines["outline"].set_visible(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # layouts that a small figure cannot hold
        with written_whole(path) as beside:
            figure.savefig(beside, dpi=110, format="png")


def _place(row: Row) -> tuple[str, str, str]:
    return row.trial.kernel, str(row.trial.shape), row.trial.dtype


def _panel(axis: Axes, rows: Sequence[Row]) -> AxesImage:
    """Tiles down, warps and unrolling across; of several chunks the best counts."""
    costs: dict[tuple[tuple[int, int, int], tuple[int, int]], float] = {}
    for row in rows:
        config = row.trial.config
        tile = config.BLOCK, config.BLOCK_R, config.BLOCK_C
        place = tile, (config.num_warps, config.UNROLL)
        costs[place] = min(row.cost or math.nan, costs.get(place, math.inf))
    tiles = sorted({tile for tile, _ in costs})
    others = sorted({other for _, other in costs})
    least = min(costs.values())
    relative = [[costs.get((t, o), math.nan) / least for o in others] for t in tiles]
    image = axis.imshow(relative, cmap="cividis_r", vmin=1, vmax=_WORST, aspect="auto")
    for (tile, other), cost in costs.items():
        x, y, value = others.index(other), tiles.index(tile), cost / least
        colour = "white" if value > 2.5 else INK
        text = f"{value:.2f}" if value < 10 else f"{value:.0f}"
        axis.text(x, y, text, ha="center", va="center", color=colour, fontsize=7)
        if value == 1:
            corner = (x - 0.5, y - 0.5)
            axis.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=ORANGE, linewidth=2))
    unrolled = any(unroll > 1 for _, unroll in others)
    names = [f"{warps}, {unroll}" if unrolled else f"{warps}" for warps, unroll in others]
    axis.set_xticks(range(len(others)), names, rotation=90 if unrolled else 0, fontsize=8)
    sizes = ("BLOCK", "BLOCK_R", "BLOCK_C") if any(max(t[1:]) > 1 for t in tiles) else ("BLOCK",)
    names = ["x".join(map(str, tile[: len(sizes)])) for tile in tiles]
    axis.set_yticks(range(len(tiles)), names, fontsize=8)
    axis.set_xlabel("warps, UNROLL" if unrolled else "warps", color=INK)
    axis.set_ylabel(" x ".join(sizes), color=INK)
    kernel, shape, dtype = _place(rows[0])
    axis.set_title(f"{kernel}\n{shape}, {dtype}", fontsize=9.5, color=INK, loc="left")
    axis.spines[:].set_visible(False)
    return image
