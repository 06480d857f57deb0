"""The tape of a recurrent run: rows that come one after the other, and shifted sums of them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..values import Connections, Dynamics, Lines, Links, Rows, compute_dtype
from .bags import Bags, transposed
from .projection import project_backward
from .step import advanced, scaled

Tape = Rows | Lines
_TOGETHER = 32
"""Steps that are summed at once, at most: each has places and weights of its own."""


def blank(
    rows: int, batch: int, synapses: int, width: int, dtype: torch.dtype, device: torch.device
) -> Tape:
    """A tape of zeros for ``[rows, B, N]`` in a dtype, of which ``width`` rows are summed at once.

    Here in that of the arithmetic, and ``[rows, N, B]``: what a connection reads is consecutive.
    """
    memory = torch.zeros((rows, synapses, batch), dtype=compute_dtype(dtype), device=device)
    size, strides = (rows - width + 1, width * synapses, batch), (synapses * batch, batch, 1)
    return Rows(memory, memory.transpose(1, 2).unbind(), memory.as_strided(size, strides).unbind())


def add(tape: Tape, row: int, values: Tensor) -> None:
    """Adds ``values [B, N]`` or ``[m, B, N]`` to the rows from ``row`` on."""
    assert isinstance(tape, Rows)
    for i, value in enumerate((values,) if values.ndim == 2 else values.unbind(), row):
        tape.rows[i].add_(value)


def rows(tape: Tape, first: int, count: int) -> Tensor:
    """A copy of ``count`` rows from ``first`` on, ``[count, B, N]``."""
    assert isinstance(tape, Rows)
    here = tape.memory[first : first + count].transpose(1, 2)
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
    steps = []
    for drive in drives.unbind() if x.ndim == 3 else (drives,):
        present = advanced(present, drive, dynamics)
        steps.append(present)
    for tape, *states in zip(tapes, *steps, strict=True):
        assert isinstance(tape, Rows)
        if len(states) == 1:
            state = states[0]
            tape.rows[row].copy_(state if state.dtype == dtype else state.to(dtype))
        else:
            several = torch.stack(states).to(dtype).transpose(1, 2)
            tape.memory[row : row + len(states)].copy_(several)
    return present


def connections(
    weight: Tensor, back: Tensor, slots: int, least: int, adjoint: bool, links: Links | None = None
) -> Connections:
    """``weight [O, I]`` and the steps ``back``, from ``least`` to K - 1, prepared for :func:`sums`.

    Both ``[n]`` where there are links. Here places in a window, where each output's begin, and
    weights, as bags of embeddings have them: an embedding is what an input was on the rows of the
    batch. There are those of a step, and of up to ``least + 1`` consecutive ones, one after the
    other.
    """
    taken = Connections(None, weight, back, slots, least, adjoint)
    outputs, size = weight.shape if links is None else links.size
    size = outputs if adjoint else size
    if adjoint:
        weight, bags = transposed(weight, links), Bags.adjoint(back, links)
    else:
        bags = Bags.of(back, links)
    weight, back = weight.reshape(-1), bags.back
    steps, count = min(least + 1, _TOGETHER), weight.numel()
    kind = torch.int32 if max(slots * size, steps * count) < 2**31 else torch.int64
    step = torch.arange(steps, device=weight.device).unsqueeze(1)
    row = back - least if adjoint else slots - 1 - back
    place = (row * size + bags.inputs + step * size).to(kind)
    starts = (bags.starts + step * count).to(kind)
    several = place.flatten(), starts.flatten(), weight.repeat(steps)
    single = tuple(part[: len(part) // steps] for part in several)
    return taken._replace(table=(single, several))


def sums(tape: Tape, row: int, count: int, taken: Connections) -> Tensor:
    """``out[j B + b, o] = sum_i weight[o, i] * tape[row + j - back[o, i], b, i]``.

    The adjoint sums over the outputs what is ``back`` rows later. Rows that no connection reads
    need not be on the tape yet.
    """
    assert isinstance(tape, Rows)
    most = min(taken.least + 1, _TOGETHER)
    if count > most:
        parts = range(0, count, most)
        return torch.cat([sums(tape, row + j, min(most, count - j), taken) for j in parts])
    first = row + (taken.least if taken.adjoint else 1 - taken.slots)
    if count == 1:
        place, starts, weights = taken.table[0]
        bags = torch.embedding_bag(tape.windows[first], place, starts, False, 0, False, weights)[0]
        return bags.t().clone(memory_format=torch.contiguous_format)  # never a view
    place, starts, weights = (part[: count * len(part) // most] for part in taken.table[1])
    window = tape.memory[first:].flatten(0, 1)
    bags = torch.embedding_bag(window, place, starts, False, 0, False, weights)[0]
    return bags.view(count, -1, bags.shape[1]).transpose(1, 2).flatten(0, 1)


def dot(
    dtape: Tape, tape: Tape, back: Tensor, slots: int, strategy: str, links: Links | None = None
) -> Tensor:
    """``sum over t, b of dy[t, b, o] * S[t - back[o, i], b, i]``, in the size of ``back``.

    A step is on either tape after K - 1 rows from before the first, and on that of ``dy`` as many
    follow the last.
    """
    assert isinstance(tape, Rows) and isinstance(dtape, Rows)
    count = len(tape.rows)
    dy, sequence = rows(dtape, slots - 1, count - (slots - 1)), rows(tape, 0, count)
    way = count, slots, strategy, "ieee", links
    found = project_backward(dy, sequence, None, back, *way)[1]
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
        self, weight: Tensor, back: Tensor, slots: int, least: int, adjoint: bool, links: None
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
        seen = torch.stack([*tape.windows[first : first + count]]).transpose(1, 2)
        values = seen.gather(2, taken.table.expand(*seen.shape[:2], -1)) * taken.weight
        if taken.adjoint:
            values = values.unflatten(2, (-1, taken.back.shape[1])).sum(2)
        return values.flatten(0, 1)

    def dot(
        self, dtape: Tape, tape: Tape, back: Tensor, slots: int, strategy: str, links: None
    ) -> Tensor:
        """``sum over t, b of dy[t, b, d, n] * S[t - back[d, n], b, n]``."""
        assert isinstance(tape, Rows) and isinstance(dtape, Rows)
        total = torch.zeros_like(dtape.rows[0])
        unit = self.connections(total.new_ones(back.shape), back, slots, 0, False, links)
        for row in range(slots - 1, len(tape.rows)):
            total += self.sums(tape, row, 1, unit) * dtape.rows[row]
        return (total if self._samples > 1 else total.sum(0)).reshape(back.shape)
