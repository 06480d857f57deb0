"""The tape of a recurrent run in lines, on which the kernels of scans and of shifted sums work."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..values import WORD, Connections, Dynamics, Lines, Links, Rows
from .launcher import tiles
from .lines import SUMS, Plan, entries_of, line_config, shift_dot, sum_entries
from .scan import scan_lines

Tape = Rows | Lines


def blank(
    rows: int, batch: int, synapses: int, width: int, dtype: torch.dtype, device: torch.device
) -> Tape:
    size = synapses, tiles(batch, WORD), rows, WORD
    memory = torch.zeros(size, dtype=dtype, device=device)
    return Lines(memory.view(-1), size, batch)


def add(tape: Tape, row: int, values: Tensor) -> None:
    assert isinstance(tape, Lines)
    values = values.unsqueeze(0) if values.ndim == 2 else values
    missing = tape.size[1] * WORD - tape.batch
    if missing:
        values = torch.nn.functional.pad(values, (0, 0, 0, missing))
    lines = values.unflatten(1, (-1, WORD)).permute(3, 1, 0, 2)
    tape.view[:, :, row : row + len(values)].add_(lines)


def rows(tape: Tape, first: int, count: int) -> Tensor:
    assert isinstance(tape, Lines)
    here = tape.view[:, :, first : first + count].permute(2, 1, 3, 0)
    return here.flatten(1, 2)[:, : tape.batch].clone(memory_format=torch.contiguous_format)


def advance(
    x: Tensor,
    tapes: Sequence[Tape],
    row: int,
    dynamics: Dynamics,
    present: Sequence[Tensor],
    dtype: torch.dtype,
) -> Sequence[Tensor]:
    x = x.unsqueeze(0) if x.ndim == 2 else x
    after = []
    for i, tape in enumerate(tapes):
        assert isinstance(tape, Lines) and tape.memory.dtype == dtype
        alone = dynamics.alone(i)
        here = tape.view[:, :, row : row + len(x)]
        tails = scan_lines(x, here, alone, present[i + 1 - alone.states : i + 1], 1)
        after.append(tails[-1][0])
    return after


def connections(
    weight: Tensor, back: Tensor, slots: int, least: int, adjoint: bool, links: Links | None = None
) -> Connections:
    outputs, inputs = weight.shape if links is None else links.size
    if adjoint:
        weight, back, outputs, inputs = weight.t(), back.t(), inputs, outputs
    plan = _plan(outputs, inputs, weight, links is not None)
    entries = entries_of(weight, back, links, plan, slots, adjoint)
    return Connections((entries, plan), weight, back, slots, least, adjoint)


def _plan(outputs: int, inputs: int, weight: Tensor, linked: bool) -> Plan:
    """Tiles of one step."""
    work = (1, inputs, outputs, WORD)
    config = replace(line_config(SUMS[linked], work, weight, WORD), BLOCK=WORD)
    return Plan(work, config, WORD)


def sums(tape: Tape, row: int, count: int, taken: Connections) -> Tensor:
    assert isinstance(tape, Lines)
    entries, plan = taken.table
    outputs, dtype = plan.work[2], taken.weight.dtype
    out = torch.empty(count * tape.batch, outputs, dtype=dtype, device=tape.memory.device)
    size, end = (count, tape.batch, outputs), tape.size[2] if taken.adjoint else None
    sum_entries(tape, entries, out.view(size), plan, row, end)
    return out


def dot(
    dtape: Tape, tape: Tape, back: Tensor, slots: int, strategy: str, links: Links | None = None
) -> Tensor:
    assert isinstance(dtape, Lines) and isinstance(tape, Lines)
    steps = tape.size[2] - (slots - 1)
    return shift_dot(dtape, slots - 1, steps, tape, back, slots, links)
