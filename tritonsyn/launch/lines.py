"""Sequences in lines, and the sums of shifted rows that kernels form of them."""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..kernels.links import links_dot_kernel, links_sum_kernel
from ..kernels.projection import (
    lines_kernel,
    shift_dot_kernel,
    shift_sum_kernel,
    shift_table_kernel,
)
from ..values import WORD, Lines, Links
from .config import LaunchConfig, config_for
from .launcher import accumulator, launch, packed, sum_of_parts, tiles

SUMS = "shift_sum_kernel", "links_sum_kernel"
"""Of all connections, and of those linked."""


class Listed(NamedTuple):
    """The connections of each output one after the other, ``[n]``."""

    weight: Tensor
    back: Tensor
    inputs: Tensor
    starts: Tensor
    """``[R + 1]``: where those of each output start, and n."""

    @classmethod
    def of(cls, weight: Tensor, back: Tensor, links: Links, adjoint: bool) -> "Listed":
        """Those of links; for the adjoint with outputs and inputs in each other's place."""
        if adjoint:
            weight, back = weight[links.order], back[links.order]
            return cls(weight, back, links.readers, links.input_starts)
        return cls(weight, back, links.inputs, links.starts)


class Plan(NamedTuple):
    """How a shifted sum is cut into tiles."""

    work: tuple[int, ...]
    config: LaunchConfig
    width: int
    """Samples of the batch in a line."""

    @property
    def tile(self) -> int:
        """Steps of a tile. So many rows of zeros stand for any number of them."""
        return self.config.BLOCK // self.width

    @classmethod
    def of(cls, out: Tensor, inputs: int, source: Tensor, linked: bool = False) -> "Plan":
        """That of a sum ``[T, B, R]`` of so many sequences in the dtype of the source, or of those
        linked."""
        steps, batch, outputs = out.shape
        width = width_of(batch)
        work = (tiles(batch, width), inputs, outputs, steps * width)
        return cls(work, line_config(SUMS[linked], work, source, width), width)


def line_config(kernel: str, work: tuple[int, ...], source: Tensor, width: int) -> LaunchConfig:
    """The settings of a kernel on lines, whose tiles have a row of a line at least."""
    config = config_for(kernel, work, source.dtype, source.device)
    return replace(config, BLOCK=max(config.BLOCK, width))


def width_of(batch: int) -> int:
    """Samples of the batch in a line: a warp reads 128 bytes of float32 together."""
    return min(WORD, 1 << max(batch - 1, 0).bit_length())


def lead_of(lines: Lines, steps: int) -> int:
    """The rows before so many steps."""
    return lines.size[2] - steps


def as_lines(sequence: Tensor, lead: int, tail: int, beyond: int = 0) -> Lines:
    """``[T, B, N]`` as lines of ``lead + T + tail`` rows, with zeros around the sequence.

    The last tile of a reader may go so many rows ``beyond`` the last line.
    """
    rows = lead + sequence.shape[0] + tail
    lines = room(sequence, rows, width_of(sequence.shape[1]), beyond)
    write_lines(sequence, lines, lead, rows, beyond)
    return lines


def room(like: Tensor, rows: int, width: int, beyond: int) -> Lines:
    """Lines of so many rows, with room beyond the last, for ``[.., B, N]``.

    Raises:
        ValueError: a line is too long for the kernels, which count places in it as int32.
    """
    _, batch, synapses = like.shape
    if (rows + beyond) * width >= 2**31:
        raise ValueError(
            f"a shifted sum takes fewer than {2**31 // width - beyond} steps with the past, "
            f"but was given {rows}; split the sequence"
        )
    size = synapses, tiles(batch, width), rows, width
    memory = torch.empty(math.prod(size) + beyond * width, dtype=like.dtype, device=like.device)
    return Lines(memory, size, batch)


def write_lines(sequence: Tensor, lines: Lines, lead: int, count: int, beyond: int = 0) -> None:
    """The first ``count`` rows of lines: a sequence after ``lead`` rows of zeros, and zeros."""
    steps, batch, synapses = sequence.shape
    _, groups, rows, width = lines.size
    total = synapses * groups * rows + beyond
    covered = tiles(total, max(groups * rows, 1))
    launch(
        lines_kernel,
        lambda config: (tiles(covered, config.BLOCK) * groups * count,),
        *(packed(sequence), lines.memory, steps, batch, synapses),
        *(lead, count, rows, groups, total),
        WIDTH=width,
        work=(count, batch, synapses),
        dtype=sequence.dtype,
    )


def shift_sum(
    lines: Lines,
    weight: Tensor,
    back: Tensor,
    out: Tensor,
    plan: Plan,
    lead: int | None = None,
    links: Links | None = None,
) -> None:
    """``out [T, B, R]`` of lines with so many rows before the first step; None: the adjoint."""
    steps, adjoint = out.shape[0], lead is None
    entries = entries_of(weight, back, links, plan, lines.size[2] + steps, adjoint)
    sum_entries(lines, entries, out, plan, lead or 0, steps if adjoint else None)


def entries_of(
    weight: Tensor, back: Tensor, links: Links | None, plan: Plan, most: int, adjoint: bool
) -> Tensor | Listed:
    """Connections for :func:`sum_entries`: a list where there are links, and else a table, in which
    ``most`` steps back or more are that many."""
    if links is not None:
        return Listed.of(weight, back, links, adjoint)
    unit = plan.width if adjoint else -plan.width
    return table(weight, back, most, unit, plan.config.BLOCK_R)[0]


def sum_entries(
    lines: Lines, entries: Tensor | Listed, out: Tensor, plan: Plan, first: int, end: int | None
) -> None:
    """The same of connections in a table or a list; ``out`` starts at the row ``first``.

    With an ``end`` it is the adjoint, for which all rows from there on are as that one.
    """
    steps, batch, outputs = out.shape
    work, config, width = plan
    grid = (tiles(outputs, config.BLOCK_R) * tiles(steps, plan.tile) * lines.size[1],)
    strides = out.stride(2), out.stride(0), out.stride(1)
    options: dict[str, Any] = {"ADJOINT": end is not None, "WIDTH": width}
    options |= {"work": work, "dtype": lines.memory.dtype, "config": config}
    if isinstance(entries, Listed):
        launch(
            links_sum_kernel,
            grid,
            *(lines.memory, out, *entries),
            *(outputs, steps, batch, first, end or 0),
            *(*lines.strides, *strides),
            **options,
        )
    else:
        launch(
            shift_sum_kernel,
            grid,
            *(lines.memory, out, entries),
            *(outputs, lines.size[0], steps, batch, first, (end or 0) * width),
            *(*lines.strides, entries.stride(0), *strides),
            **options,
        )


def table(
    weight: Tensor, back: Tensor, most: int, unit: int = 1, tile: int = 0
) -> tuple[Tensor, Tensor]:
    """Weights and offsets of connections ``[R, C]``, each input's in a row.

    The offsets are steps times ``unit``; ``most`` steps back or more, which are beyond every
    sequence, are that many. Those of each ``tile`` of outputs stand behind its weights in one
    tensor, as integers of the same size; without one, apart.
    """
    outputs, inputs = weight.shape
    # Rows of a multiple of 16 are read in wide loads.
    whole = max(16, tile)
    width = tiles(outputs, whole) * whole
    size = (inputs, 2 * width if tile else width)
    weights = torch.empty(size, dtype=weight.dtype, device=weight.device)
    if tile:
        integer = torch.int64 if weight.dtype == torch.float64 else torch.int32
        offsets = weights.view(integer)[:, tile:]
    else:
        offsets = torch.empty(size, dtype=torch.int32, device=weight.device)
    launch(
        shift_table_kernel,
        lambda config: (tiles(width, config.BLOCK) * tiles(inputs, config.BLOCK),),
        *(weight, back, weights, offsets),
        *(outputs, inputs, width, most, *weight.stride(), *back.stride(), size[1]),
        UNIT=unit,
        TILE=tile,
        work=(inputs, outputs),
        dtype=weight.dtype,
    )
    return weights, offsets


def shift_dot(
    dlines: Lines,
    lead: int,
    steps: int,
    sequence: Tensor | Lines,
    back: Tensor,
    slots: int,
    links: Links | None = None,
) -> Tensor:
    """The gradient of the weight from lines of ``dy`` with so many rows before the first step."""
    dtype = dlines.memory.dtype
    _, groups, _, width = dlines.size
    source = sequence.memory if isinstance(sequence, Lines) else sequence
    # A list is as the connections of one output.
    outputs, inputs = back.shape if links is None else (1, back.shape[0])
    work = (groups, inputs, outputs, steps * width)
    kernel = "shift_dot_kernel" if links is None else "links_dot_kernel"
    config = line_config(kernel, work, source, width)
    tile = config.BLOCK // width
    if isinstance(sequence, Tensor):
        missing = min(slots - 1, sequence.shape[0] - steps + tile) + steps - sequence.shape[0]
        sequence = as_lines(sequence, missing, 0)
    lead_x = lead_of(sequence, steps)
    share = tiles(tiles(steps, tiles(config.chunks, max(groups, 1))), tile) * tile
    segments = tiles(steps, share)
    partial = torch.empty((config.chunks, *back.shape), dtype=dtype, device=back.device)
    parts = steps, share, segments, groups * segments, lead, lead_x, *dlines.strides
    options: dict[str, Any] = {"ACC": accumulator(dtype), "WIDTH": width}
    options |= {"work": work, "dtype": source.dtype, "config": config}
    if links is None:
        launch(
            shift_dot_kernel,
            (tiles(outputs, config.BLOCK_R) * tiles(inputs, config.BLOCK_C), config.chunks),
            *(dlines.memory, sequence.memory, back, partial),
            *(outputs, inputs, *parts, *sequence.strides),
            **options,
        )
    else:
        launch(
            links_dot_kernel,
            (tiles(inputs, config.BLOCK_C), config.chunks),
            *(dlines.memory, sequence.memory, back, links.outputs, links.inputs, partial),
            *(inputs, *parts, *sequence.strides),
            **options,
        )
    return sum_of_parts(partial)
