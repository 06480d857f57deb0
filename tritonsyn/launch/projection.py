"""The delayed projection: each connection reads its input some whole steps back."""

import torch
from torch import Tensor

from ..kernels.links import links_step_kernel
from ..kernels.projection import shift_step_kernel, temporal_gemm_dot_kernel, temporal_gemm_kernel
from ..values import WORD, Lines, Links, Slot
from .config import PASSES
from .launcher import launch, packed, tiles
from .lines import (
    Listed,
    Plan,
    as_lines,
    lead_of,
    line_config,
    room,
    shift_dot,
    shift_sum,
    write_lines,
)


def lines_for(
    shape: tuple[int, int, int, int],
    past: Tensor | None,
    slots: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Lines:
    steps, batch, synapses, outputs = shape
    if past is None:
        past = torch.empty((0, batch, synapses), dtype=dtype, device=device)
    work, before = (tiles(batch, WORD), synapses, outputs, steps * WORD), past.shape[0]
    # Of all that reads them.
    kernels = "shift_sum_kernel", "shift_dot_kernel", "links_sum_kernel", "links_dot_kernel"
    tile = max(line_config(name, work, past, WORD).BLOCK for name in kernels) // WORD
    lead = min(slots - 1, before + tile)
    lines = room(past, lead + steps, WORD, tile)
    # So many rows that the last tile's beyond the last line are among them.
    write_lines(past, lines, lead - before, min(max(lead, tile), lead + steps), tile)
    return lines


def project(
    sequence: Tensor | Lines,
    weight: Tensor,
    back: Tensor,
    steps: int,
    slots: int,
    strategy: str,
    precision: str,
    links: Links | None = None,
) -> Tensor:
    (outputs, inputs), linked = (weight.shape, False) if links is None else (links.size, True)
    if isinstance(sequence, Lines):
        size = steps, sequence.batch, outputs
        y = torch.empty(size, dtype=weight.dtype, device=weight.device)
        plan = Plan.of(y, inputs, sequence.memory, linked)
        shift_sum(sequence, weight, back, y, plan, lead_of(sequence, steps), links)
        return y
    rows, batch, _ = sequence.shape
    before = rows - steps
    y = torch.empty((steps, batch, outputs), dtype=weight.dtype, device=weight.device)
    if strategy == "gemm":
        _gemm(sequence, weight, back, y, before, slots, precision)
    elif steps == 1 and rows == slots:
        # Each row is read once: lines would cost more than they save.
        _shift_step(sequence, 0, weight, back, y[0], links)
    else:
        plan = Plan.of(y, inputs, sequence, linked)
        lead = min(slots - 1, before + plan.tile)
        lines = as_lines(sequence, lead - before, 0, plan.tile)
        shift_sum(lines, weight, back, y, plan, lead, links)
    return y


def project_step(
    record: Tensor, pointer: Slot, weight: Tensor, back: Tensor, links: Links | None = None
) -> Tensor:
    outputs = weight.shape[0] if links is None else links.size[0]
    y = torch.empty((record.shape[1], outputs), dtype=weight.dtype, device=weight.device)
    _shift_step(record, pointer, weight, back, y, links)
    return y


def _shift_step(
    record: Tensor, pointer: Slot, weight: Tensor, back: Tensor, y: Tensor, links: Links | None
) -> None:
    (slots, batch, inputs), outputs = record.shape, y.shape[1]
    if links is not None:
        launch(
            links_step_kernel,
            lambda config: (tiles(batch, config.BLOCK) * tiles(outputs, config.BLOCK_R),),
            *(packed(record), y, *Listed.of(weight, back, links, adjoint=False)),
            *(pointer, outputs, inputs, batch, slots),
            work=(inputs, outputs, batch),
            dtype=record.dtype,
        )
        return
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
    links: Links | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    (steps, batch, outputs), linked = dy.shape, links is not None
    before, dsequence, dweight, dlines = rows - steps, None, None, None
    if weight is not None:
        size = (rows, batch, weight.shape[1] if links is None else links.size[1])
        dsequence = torch.empty(size, dtype=weight.dtype, device=weight.device)
        if strategy == "gemm":
            _gemm(dy, weight.t(), back.t(), dsequence, before, slots, precision, adjoint=True)
        else:
            plan = Plan.of(dsequence, outputs, dy, linked)
            dlines = as_lines(dy, before, min(slots - 1, plan.tile), plan.tile)
            shift_sum(dlines, weight.t(), back.t(), dsequence, plan, links=links)
    if sequence is not None:
        if strategy == "gemm" and isinstance(sequence, Tensor):
            dweight = _gemm_dot(dy, sequence, back, slots, precision)
        elif dlines is not None:
            dweight = shift_dot(dlines, before, steps, sequence, back, slots, links)
        else:
            dweight = shift_dot(as_lines(dy, 0, 0), 0, steps, sequence, back, slots, links)
    return dsequence, dweight


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
