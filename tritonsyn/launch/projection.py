"""The delayed projection: each connection reads its input some whole steps back."""

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.projection import (
    lines_kernel,
    shift_dot_kernel,
    shift_step_kernel,
    shift_sum_kernel,
    shift_table_kernel,
    temporal_gemm_dot_kernel,
    temporal_gemm_kernel,
)
from ..values import WORD, Lines, Slot
from .config import PASSES, LaunchConfig, config_for
from .launcher import accumulator, launch, packed, sum_of_parts, tiles


def lines_for(
    shape: tuple[int, int, int], past: Tensor | None, back: Tensor, slots: int, dtype: torch.dtype
) -> Lines:
    steps, batch, synapses = shape
    if past is None:
        past = torch.empty((0, batch, synapses), dtype=dtype, device=back.device)
    work, before = (tiles(batch, WORD), synapses, back.shape[0], steps * WORD), past.shape[0]
    # Of all that reads them.
    kernels = "shift_sum_kernel", "shift_dot_kernel"
    tile = max(_config(name, work, past, WORD).BLOCK for name in kernels) // WORD
    lead = min(slots - 1, before + tile)
    lines = _room(past, lead + steps, WORD, tile)
    # So many rows that the last tile's beyond the last line are among them.
    _write_lines(past, lines, lead - before, min(max(lead, tile), lead + steps), tile)
    return lines


def project(
    sequence: Tensor | Lines,
    weight: Tensor,
    back: Tensor,
    steps: int,
    slots: int,
    strategy: str,
    precision: str,
) -> Tensor:
    outputs, inputs = weight.shape
    if isinstance(sequence, Lines):
        size = steps, sequence.batch, outputs
        y = torch.empty(size, dtype=weight.dtype, device=weight.device)
        plan = _Plan.of(y, inputs, sequence.memory)
        _shift_sum(sequence, weight, back, y, plan, _lead(sequence, steps))
        return y
    rows, batch, _ = sequence.shape
    before = rows - steps
    y = torch.empty((steps, batch, outputs), dtype=weight.dtype, device=weight.device)
    if strategy == "gemm":
        _gemm(sequence, weight, back, y, before, slots, precision)
    elif steps == 1 and rows == slots:
        # Each row is read once: lines would cost more than they save.
        _shift_step(sequence, 0, weight, back, y[0])
    else:
        plan = _Plan.of(y, inputs, sequence)
        lead = min(slots - 1, before + plan.tile)
        lines = _lines(sequence, lead - before, 0, plan.tile)
        _shift_sum(lines, weight, back, y, plan, lead)
    return y


def project_step(record: Tensor, pointer: Slot, weight: Tensor, back: Tensor) -> Tensor:
    y = torch.empty((record.shape[1], weight.shape[0]), dtype=weight.dtype, device=weight.device)
    _shift_step(record, pointer, weight, back, y)
    return y


def _shift_step(record: Tensor, pointer: Slot, weight: Tensor, back: Tensor, y: Tensor) -> None:
    (slots, batch, inputs), outputs = record.shape, weight.shape[0]
    launch(
        shift_step_kernel,
        lambda config: (tiles(batch, config.BLOCK) * tiles(outputs, config.BLOCK_R),),
        *(packed(record), y, weight, back),
        *(pointer, outputs, inputs, batch, slots, *weight.stride()),
        work=(inputs, outputs, batch),
        dtype=record.dtype,
    )


def project_backward(
    dy: Tensor,
    sequence: Tensor | Lines | None,
    weight: Tensor | None,
    back: Tensor,
    rows: int,
    slots: int,
    strategy: str,
    precision: str,
) -> tuple[Tensor | None, Tensor | None]:
    steps, batch, _ = dy.shape
    before, dsequence, dweight, dlines = rows - steps, None, None, None
    if weight is not None:
        size = (rows, batch, weight.shape[1])
        dsequence = torch.empty(size, dtype=weight.dtype, device=weight.device)
        if strategy == "gemm":
            _gemm(dy, weight.t(), back.t(), dsequence, before, slots, precision, adjoint=True)
        else:
            plan = _Plan.of(dsequence, dy.shape[2], dy)
            dlines = _lines(dy, before, min(slots - 1, plan.tile), plan.tile)
            _shift_sum(dlines, weight.t(), back.t(), dsequence, plan)
    if sequence is not None:
        if strategy == "gemm" and isinstance(sequence, Tensor):
            dweight = _gemm_dot(dy, sequence, back, slots, precision)
        elif dlines is not None:
            dweight = _shift_dot(dlines, before, dy, sequence, back, slots)
        else:
            dweight = _shift_dot(_lines(dy, 0, 0), 0, dy, sequence, back, slots)
    return dsequence, dweight


# -- shifted sums --------------------------------------------------------------------------------


class _Plan(NamedTuple):
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
    def of(cls, out: Tensor, inputs: int, source: Tensor) -> "_Plan":
        """That of a sum ``[T, B, R]`` of so many sequences in the dtype of the source."""
        steps, batch, outputs = out.shape
        width = _width(batch)
        work = (tiles(batch, width), inputs, outputs, steps * width)
        return cls(work, _config("shift_sum_kernel", work, source, width), width)


def _config(kernel: str, work: tuple[int, ...], source: Tensor, width: int) -> LaunchConfig:
    """The settings of a kernel on lines, whose tiles have a row of a line at least."""
    config = config_for(kernel, work, source.dtype, source.device)
    return replace(config, BLOCK=max(config.BLOCK, width))


def _width(batch: int) -> int:
    """Samples of the batch in a line: a warp reads 128 bytes of float32 together."""
    return min(WORD, 1 << max(batch - 1, 0).bit_length())


def _lead(lines: Lines, steps: int) -> int:
    """The rows before so many steps."""
    return lines.size[2] - steps


def _lines(sequence: Tensor, lead: int, tail: int, beyond: int = 0) -> Lines:
    """``[T, B, N]`` as lines of ``lead + T + tail`` rows, with zeros around the sequence.

    The last tile of a reader may go so many rows ``beyond`` the last line.
    """
    rows = lead + sequence.shape[0] + tail
    lines = _room(sequence, rows, _width(sequence.shape[1]), beyond)
    _write_lines(sequence, lines, lead, rows, beyond)
    return lines


def _room(like: Tensor, rows: int, width: int, beyond: int) -> Lines:
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


def _write_lines(sequence: Tensor, lines: Lines, lead: int, count: int, beyond: int = 0) -> None:
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


def _shift_sum(
    lines: Lines, weight: Tensor, back: Tensor, out: Tensor, plan: _Plan, lead: int | None = None
) -> None:
    """``out [T, B, R]`` of lines with so many rows before the first step; None: the adjoint."""
    steps, batch, outputs = out.shape
    work, config, width = plan
    unit = width if lead is None else -width
    entries, _ = _table(weight, back, lines.size[2] + steps, unit, config.BLOCK_R)
    launch(
        shift_sum_kernel,
        (tiles(outputs, config.BLOCK_R) * tiles(steps, plan.tile) * lines.size[1],),
        *(lines.memory, out, entries),
        *(outputs, weight.shape[1], steps, batch, lead or 0, steps * width),
        *(*lines.strides, entries.stride(0), out.stride(2), out.stride(0), out.stride(1)),
        ADJOINT=lead is None,
        WIDTH=width,
        work=work,
        dtype=lines.memory.dtype,
        config=config,
    )


def _table(
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


def _shift_dot(
    dlines: Lines, lead: int, dy: Tensor, sequence: Tensor | Lines, back: Tensor, slots: int
) -> Tensor:
    """The gradient of the weight from lines of ``dy`` with so many rows before the first step."""
    (steps, _, outputs), inputs = dy.shape, back.shape[1]
    _, groups, _, width = dlines.size
    source = sequence.memory if isinstance(sequence, Lines) else sequence
    work = (groups, inputs, outputs, steps * width)
    config = _config("shift_dot_kernel", work, source, width)
    tile = config.BLOCK // width
    if isinstance(sequence, Tensor):
        missing = min(slots - 1, sequence.shape[0] - steps + tile) + steps - sequence.shape[0]
        sequence = _lines(sequence, missing, 0)
    share = tiles(tiles(steps, tiles(config.chunks, max(groups, 1))), tile) * tile
    segments = tiles(steps, share)
    partial = torch.empty((config.chunks, *back.shape), dtype=dy.dtype, device=dy.device)
    launch(
        shift_dot_kernel,
        (tiles(outputs, config.BLOCK_R) * tiles(inputs, config.BLOCK_C), config.chunks),
        *(dlines.memory, sequence.memory, back, partial),
        *(outputs, inputs, steps, share, segments, groups * segments, lead, _lead(sequence, steps)),
        *(*dlines.strides, *sequence.strides),
        ACC=accumulator(dy.dtype),
        WIDTH=width,
        work=work,
        dtype=source.dtype,
        config=config,
    )
    return sum_of_parts(partial)


# -- products of matrices ------------------------------------------------------------------------


def _gemm(
    source: Tensor,
    weight: Tensor,
    back: Tensor,
    out: Tensor,
    first: int,
    slots: int,
    precision: str,
    adjoint: bool = False,
) -> None:
    """The same by a matrix product for each delay."""
    (steps, batch, outputs), (rows, _, inputs) = out.shape, source.shape
    places = steps * batch
    launch(
        temporal_gemm_kernel,
        lambda config: (tiles(places, config.BLOCK), tiles(outputs, config.BLOCK_R)),
        *(packed(source), out, weight, back),
        *(first, slots, outputs, inputs, places, rows * batch, batch, *weight.stride()),
        ADJOINT=adjoint,
        PRECISION=precision,
        work=(PASSES[precision], slots, inputs, outputs, places),
        dtype=source.dtype,
    )


def _gemm_dot(dy: Tensor, sequence: Tensor, back: Tensor, slots: int, precision: str) -> Tensor:
    """The gradient of the weight by a matrix product for each delay."""
    (steps, batch, outputs), (rows, _, inputs) = dy.shape, sequence.shape
    places = steps * batch
    dweight = torch.empty(back.shape, dtype=dy.dtype, device=dy.device)
    launch(
        temporal_gemm_dot_kernel,
        lambda own: (tiles(outputs, own.BLOCK_R) * tiles(inputs, own.BLOCK_C) * slots,),
        *(packed(dy), packed(sequence), back, dweight),
        *(rows - steps, outputs, inputs, places, batch),
        PRECISION=precision,
        work=(PASSES[precision], slots, inputs, outputs, places),
        dtype=sequence.dtype,
    )
    return dweight
