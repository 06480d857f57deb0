"""Delayed sums over connections, all or those that there are, as bags of embeddings."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..values import Links

_WINDOW = 4096
"""Places of a line that are summed at once, at most, so that sums stay in the cache."""


class Bags(NamedTuple):
    """Connections as bags of embeddings have them: the bag of an output is what it reads."""

    starts: Tensor
    """``[O]``: where the connections of each output start."""
    outputs: Tensor
    """``[n]``: of each connection its output,"""
    inputs: Tensor
    """its input,"""
    back: Tensor
    """and its steps back, int64."""

    @classmethod
    def of(cls, back: Tensor, links: Links | None) -> "Bags":
        """Those that wait ``back`` steps: all connections ``[O, I]``, or those linked ``[n]``."""
        if links is not None:
            return cls(links.starts[:-1], links.outputs, links.inputs, back.long())
        (outputs, inputs), device = back.shape, back.device
        number = torch.arange(outputs, device=device)
        read = torch.arange(inputs, device=device).repeat(outputs)
        return cls(number * inputs, number.repeat_interleave(inputs), read, back.flatten().long())

    @classmethod
    def adjoint(cls, back: Tensor, links: Links | None) -> "Bags":
        """The same with outputs and inputs in each other's place."""
        if links is None:
            return cls.of(back.t(), None)
        order = links.order
        return cls(links.input_starts[:-1], links.inputs[order], links.readers, back[order].long())


def transposed(weight: Tensor, links: Links | None) -> Tensor:
    """The weights in the order of :meth:`Bags.adjoint`."""
    return weight.t() if links is None else weight[links.order]


def project(
    sequence: Tensor, weight: Tensor, back: Tensor, steps: int, slots: int, links: Links | None
) -> Tensor:
    """``y[t, b, o] = sum_i weight[o, i] * S[t - back[o, i], b, i]`` over the connected inputs.

    The last ``steps`` steps, ``[T, B, O]`` in the dtype of the weight. ``sequence [rows, B, I]``,
    with zeros before it; ``weight`` and ``back [O, I]``, or ``[n]`` where there are links.
    """
    missing, bags = slots - 1 + steps - len(sequence), Bags.of(slots - 1 - back, links)
    return _shifted_sum(sequence.to(weight.dtype), missing, 0, weight, bags, steps)


def project_to_sequence(
    dy: Tensor, weight: Tensor, back: Tensor, rows: int, slots: int, links: Links | None
) -> Tensor:
    """Adjoint of :func:`project` to the last ``rows`` of the sequence."""
    # A step of the sequence is read up to K - 1 steps later, and not before the first one.
    around, bags = (rows - len(dy), slots - 1), Bags.adjoint(back, links)
    return _shifted_sum(dy.to(weight.dtype), *around, transposed(weight, links), bags, rows)


def project_to_weight(
    dy: Tensor, sequence: Tensor, back: Tensor, slots: int, links: Links | None
) -> Tensor:
    """Adjoint of :func:`project` to the weight: ``sum over t, b of dy[t, b, o] * S[t - back[o, i],
    b, i]``, in the size of ``back``."""
    steps, batch, _ = dy.shape
    memory, length = _lines(sequence.to(dy.dtype), slots - 1 + steps - len(sequence), 0)
    bags = Bags.of(slots - 1 - back, links)
    places = bags.inputs * length + bags.back * batch
    dlines, how = dy.flatten(0, 1).t().contiguous(), (places, bags.starts, bags.outputs, 0)
    dweight = dy.new_zeros(back.shape)
    dot = torch.ops.aten._embedding_bag_per_sample_weights_backward
    for first, window, unread in _windows(memory, steps * batch):
        part = dlines[:, first : first + window.shape[1]]
        dweight.view(-1).add_(dot(part, window, *how, unread))
    return dweight


def _lines(sequence: Tensor, before: int, after: int) -> tuple[Tensor, int]:
    """``[T, B, N]`` between so many rows of zeros as lines ``[N, rows * B]``, and their length.

    A delay is an offset along a line. One more element follows the last line.
    """
    rows, batch, synapses = sequence.shape
    length = (before + rows + after) * batch
    memory = sequence.new_empty(synapses * length + 1)
    lines = memory[:-1].view(synapses, length)
    zeros, here, more = lines.split((before * batch, rows * batch, after * batch), 1)
    zeros.zero_()
    here.copy_(sequence.flatten(0, 1).t())
    more.zero_()
    return memory, length


def _windows(memory: Tensor, length: int) -> Iterator[tuple[int, Tensor, int]]:
    """From each place on the next ``length``, in parts: where a part starts, all windows of it,
    and the last of them, which nobody reads.

    With a window to leave out PyTorch lets windows overlap, which share memory.
    """
    count = memory.numel() - length + 1
    for first in range(0, length if count > 1 else 0, _WINDOW):
        size = count, min(_WINDOW, length - first)
        yield first, memory.as_strided(size, (1, 1), first), count - 1


def _shifted_sum(
    sequence: Tensor, before: int, after: int, weight: Tensor, bags: Bags, steps: int
) -> Tensor:
    """``out[t, b, o] = sum_i weight[o, i] * sequence[t + back[o, i], b, i]``, ``steps`` of them, of
    the sequence between so many rows of zeros."""
    batch, outputs = sequence.shape[1], bags.starts.shape[0]
    memory, length = _lines(sequence, before, after)
    places, weights = bags.inputs * length + bags.back * batch, weight.reshape(-1)
    out = sequence.new_zeros(steps * batch, outputs)
    for first, window, unread in _windows(memory, len(out)):
        how = bags.starts, False, 0, False, weights, False, unread
        out[first : first + window.shape[1]] = torch.embedding_bag(window, places, *how)[0].t()
    return torch.ops.aten._unsafe_view(out, (steps, batch, outputs))
