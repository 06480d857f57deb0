"""The tape of a recurrent run: rows that come one after the other, and shifted sums of them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..values import Connections, Dynamics, Lines, compute_dtype
from .projection import project, project_backward
from .step import advanced, scaled

Tape = Tensor | Lines


def blank(rows: int, batch: int, synapses: int, dtype: torch.dtype, device: torch.device) -> Tape:
    """A tape of zeros for ``[rows, B, N]`` in a dtype.

    Here in that of the arithmetic, and ``[B, rows, N]``: consecutive rows of a sample are one
    operand of a product, in place.
    """
    return torch.zeros((batch, rows, synapses), dtype=compute_dtype(dtype), device=device)


def add(tape: Tape, row: int, values: Tensor) -> None:
    """Adds ``values [m, B, N]`` to the rows from ``row`` on."""
    assert isinstance(tape, Tensor)
    tape[:, row : row + len(values)] += values.transpose(0, 1)


def rows(tape: Tape, first: int, count: int) -> Tensor:
    """A copy of ``count`` rows from ``first`` on, ``[count, B, N]``."""
    assert isinstance(tape, Tensor)
    here = tape[:, first : first + count].transpose(0, 1)
    return here.clone(memory_format=torch.contiguous_format)


def advance(
    x: Tensor,
    tapes: Sequence[Tape],
    row: int,
    dynamics: Dynamics,
    present: Sequence[Tensor],
    dtype: torch.dtype,
) -> list[Tensor]:
    """Steps with the inputs ``x [m, B, N]``; each state is added to its tape from ``row`` on.

    ``present`` are the states ``[B, N]`` before, in the dtype of the arithmetic; those after are
    returned. On the tape they are as records of ``dtype`` hold them.
    """
    states = list(present)
    for j, drive in enumerate(scaled(x, dynamics.gain), row):
        states = advanced(states, drive, dynamics)
        for tape, state in zip(tapes, states, strict=True):
            assert isinstance(tape, Tensor)
            tape[:, j].copy_(state if state.dtype == dtype else state.to(dtype))
    return states


def connections(weight: Tensor, back: Tensor, slots: int, least: int, adjoint: bool) -> Connections:
    """``weight [O, I]`` and the steps ``back``, from ``least`` to K - 1, prepared for :func:`sums`.

    Here one matrix, ``[(K - least) * I, O]`` in the order of the rows that are summed.
    """
    outputs, inputs = weight.shape
    width, place = slots - least, back.long()
    if adjoint:
        table = weight.new_zeros(width, outputs, inputs)
        table.scatter_(0, (place - least).unsqueeze(0), weight.unsqueeze(0))
        return Connections(table.view(-1, inputs), weight, back, slots, least, adjoint)
    table = weight.new_zeros(outputs, width, inputs)
    table.scatter_(1, (slots - 1 - place).unsqueeze(1), weight.unsqueeze(1))
    return Connections(table.view(outputs, -1).t(), weight, back, slots, least, adjoint)


def sums(tape: Tape, row: int, count: int, taken: Connections) -> Tensor:
    """``out[j B + b, o] = sum_i weight[o, i] * tape[row + j - back[o, i], b, i]``.

    The adjoint sums over the outputs what is ``back`` rows later. Rows that no connection reads
    need not be on the tape yet.
    """
    assert isinstance(tape, Tensor)
    table, _, _, slots, least, adjoint = taken
    batch, length, columns = tape.shape
    first, width = row + (least if adjoint else 1 - slots), slots - least
    strides = (columns, length * columns, 1)
    window = tape.as_strided((count, batch, width * columns), strides, first * columns)
    out = tape.new_empty(count * batch, table.shape[1])
    # Into given memory, which autocast leaves in its dtype.
    torch.mm(window.flatten(0, 1), table, out=out)
    if not math.isfinite(out.sum().item()):  # a zero of the matrix met what is not finite
        out = _apart(tape, first, count, taken)
    return out


def _apart(tape: Tensor, first: int, count: int, taken: Connections) -> Tensor:
    """The same, connection by connection."""
    _, weight, back, slots, least, adjoint = taken
    seen = rows(tape, first, slots - least + count - 1)
    if not adjoint:
        how = count, slots - least, "shift", ""
        return project(seen, weight, back - least, *how).flatten(0, 1)
    found, _ = project_backward(
        seen, None, weight, back - least, len(seen), slots - least, "shift", ""
    )
    assert found is not None
    return found[:count].flatten(0, 1)


def dot(dtape: Tape, tape: Tape, back: Tensor, slots: int, strategy: str) -> Tensor:
    """``sum over t, b of dtape[t, b, o] * tape[K - 1 + t - back[o, i], b, i]``, ``[O, I]``.

    The tape has K - 1 rows more than there are steps, and that of the gradient has them at the end.
    """
    assert isinstance(tape, Tensor) and isinstance(dtape, Tensor)
    steps = tape.shape[1] - (slots - 1)
    dy, sequence = rows(dtape, 0, steps), rows(tape, 0, tape.shape[1])
    found = project_backward(dy, sequence, None, back, len(sequence), slots, strategy, "ieee")[1]
    assert found is not None
    return found
