"""The tape of a recurrent run: rows that come one after the other, and shifted sums of them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..values import Connections, Dynamics, Lines, Rows, compute_dtype
from .projection import project, project_backward
from .step import add_decayed, advanced, scaled

Tape = Rows | Lines


def blank(
    rows: int, batch: int, synapses: int, width: int, dtype: torch.dtype, device: torch.device
) -> Tape:
    """A tape of zeros for ``[rows, B, N]`` in a dtype, of which ``width`` rows are summed at once.

    Here in that of the arithmetic, and ``[B, rows, N]``: consecutive rows of a sample are one
    operand of a product, in place.
    """
    memory = torch.zeros((batch, rows, synapses), dtype=compute_dtype(dtype), device=device)
    size, strides = (rows - width + 1, batch, width * synapses), (synapses, rows * synapses, 1)
    return Rows(memory, memory.unbind(1), memory.as_strided(size, strides).unbind())


def add(tape: Tape, row: int, values: Tensor) -> None:
    """Adds ``values [B, N]`` or ``[m, B, N]`` to the rows from ``row`` on."""
    assert isinstance(tape, Rows)
    for i, value in enumerate((values,) if values.ndim == 2 else values.unbind(), row):
        tape.rows[i].add_(value)


def rows(tape: Tape, first: int, count: int) -> Tensor:
    """A copy of ``count`` rows from ``first`` on, ``[count, B, N]``."""
    assert isinstance(tape, Rows)
    here = tape.memory[:, first : first + count].transpose(0, 1)
    return here.clone(memory_format=torch.contiguous_format)


def advance(
    x: Tensor,
    tapes: Sequence[Tape],
    row: int,
    dynamics: Dynamics,
    present: Sequence[Tensor],
    dtype: torch.dtype,
) -> Sequence[Tensor]:
    """Steps with the inputs ``x [B, N]`` or ``[m, B, N]``; each state goes on its tape at ``row``.

    ``present`` are the states ``[B, N]`` before, in the dtype of the arithmetic; those after are
    returned. On the tape they are as records of ``dtype`` hold them.
    """
    drives = scaled(x, dynamics.gain)
    first = tapes[0]
    assert isinstance(first, Rows)
    whole = dynamics.states == 1 and drives.dtype == dtype  # a state is what the tape holds
    for i, drive in enumerate(drives.unbind() if x.ndim == 3 else (drives,), row):
        if whole:
            present = (add_decayed(drive, present[0], dynamics.decays[0], first.rows[i]),)
            continue
        present = advanced(present, drive, dynamics)
        for tape, state in zip(tapes, present, strict=True):
            assert isinstance(tape, Rows)
            tape.rows[i].copy_(state if state.dtype == dtype else state.to(dtype))
    return present


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


_TOGETHER = 32  # rows of which windows are copied for one product; more take less time apart


def sums(tape: Tape, row: int, count: int, taken: Connections) -> Tensor:
    """``out[j B + b, o] = sum_i weight[o, i] * tape[row + j - back[o, i], b, i]``.

    The adjoint sums over the outputs what is ``back`` rows later. Rows that no connection reads
    need not be on the tape yet.
    """
    assert isinstance(tape, Rows)
    first = row + (taken.least if taken.adjoint else 1 - taken.slots)
    if count > _TOGETHER:
        return _apart(tape, first, count, taken)
    windows = tape.windows[first : first + count]
    seen = windows[0] if count == 1 else torch.cat([*windows])
    out = seen.new_empty(seen.shape[0], taken.table.shape[1])
    torch.mm(seen, taken.table, out=out)  # into given memory, which autocast leaves in its dtype
    if not math.isfinite(out.sum().item()):  # a zero of the matrix met what is not finite
        out.copy_(_apart(tape, first, count, taken))
    return out


def _apart(tape: Tape, first: int, count: int, taken: Connections) -> Tensor:
    """The sums of windows from a row on, connection by connection."""
    slots, back = taken.slots - taken.least, taken.back - taken.least
    seen = rows(tape, first, slots + count - 1)
    if not taken.adjoint:
        return project(seen, taken.weight, back, count, slots, "shift", "").flatten(0, 1)
    how = (len(seen), slots, "shift", "")
    found, _ = project_backward(seen, None, taken.weight, back, *how)
    assert found is not None
    return found[:count].flatten(0, 1)


def dot(dtape: Tape, tape: Tape, back: Tensor, slots: int, strategy: str) -> Tensor:
    """``sum over t, b of dy[t, b, o] * S[t - back[o, i], b, i]``, ``[O, I]``.

    A step is on either tape after K - 1 rows from before the first, and on that of ``dy`` as many
    follow the last.
    """
    assert isinstance(tape, Rows) and isinstance(dtape, Rows)
    count = len(tape.rows)
    dy, sequence = rows(dtape, slots - 1, count - (slots - 1)), rows(tape, 0, count)
    found = project_backward(dy, sequence, None, back, count, slots, strategy, "ieee")[1]
    assert found is not None
    return found


class Reads:
    """The same, where the rows of taps are no connections: each reads every synapse.

    Of taps ``[samples * D, N]`` there are D for each of the samples, or for all if that is 1.
    The outputs are ``[B, D * N]``.
    """

    blank = staticmethod(blank)
    add = staticmethod(add)
    rows = staticmethod(rows)
    advance = staticmethod(advance)

    def __init__(self, samples: int) -> None:
        self._samples = samples

    def connections(
        self, weight: Tensor, back: Tensor, slots: int, least: int, adjoint: bool
    ) -> Connections:
        """The table has the place of what is read in a window, ``[samples, D * N]``."""
        synapses, size = weight.shape[1], (self._samples, -1)
        columns = weight.numel() // self._samples
        place = torch.arange(columns, device=weight.device)
        weight, steps = weight.reshape(size), back.reshape(size).long()
        if adjoint:
            table = steps * columns + place
        else:
            table = (slots - 1 - steps) * synapses + place % synapses
        return Connections(table, weight, back, slots, least, adjoint)

    def sums(self, tape: Tape, row: int, count: int, taken: Connections) -> Tensor:
        """What the taps read; the adjoint adds up what they give each synapse."""
        assert isinstance(tape, Rows)
        first = row if taken.adjoint else row + 1 - taken.slots
        seen = torch.stack([*tape.windows[first : first + count]])
        values = seen.gather(2, taken.table.expand(*seen.shape[:2], -1)) * taken.weight
        if taken.adjoint:
            values = values.unflatten(2, (-1, taken.back.shape[1])).sum(2)
        return values.flatten(0, 1)

    def dot(self, dtape: Tape, tape: Tape, back: Tensor, slots: int, strategy: str) -> Tensor:
        """``sum over t, b of dy[t, b, d, n] * S[t - back[d, n], b, n]``."""
        assert isinstance(tape, Rows) and isinstance(dtape, Rows)
        total = torch.zeros_like(dtape.rows[0])
        unit = self.connections(total.new_ones(back.shape), back, slots, 0, False)
        for row in range(slots - 1, len(tape.rows)):
            total += self.sums(tape, row, 1, unit) * dtape.rows[row]
        return (total if self._samples > 1 else total.sum(0)).view(back.shape)
