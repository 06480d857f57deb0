"""Delayed sums over the connections that there are, as bags of embeddings."""

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
    inputs: Tensor
    """``[n]``: of each connection its input,"""
    weight: Tensor
    """its weight,"""
    back: Tensor
    """and its steps back, int64."""

    @classmethod
    def of(cls, weight: Tensor, back: Tensor, links: Links | None, adjoint: bool) -> "Bags":
        """Those of ``weight`` and ``back``, of all connections or those linked; for the adjoint
        with outputs and inputs in each other's place."""
        if links is None:
            weight, back = (weight.t(), back.t()) if adjoint else (weight, back)
            outputs, inputs = weight.shape
            number = torch.arange(inputs, device=weight.device)
            starts = torch.arange(outputs, device=weight.device) * inputs
            return cls(starts, number.repeat(outputs), weight.reshape(-1), back.reshape(-1).long())
        if adjoint:
            weight, back = weight[links.order], back[links.order]
            return cls(links.input_starts[:-1], links.readers, weight, back.long())
        return cls(links.starts[:-1], links.inputs, weight, back.long())


def project(
    sequence: Tensor, weight: Tensor, back: Tensor, steps: int, slots: int, links: Links
) -> Tensor:
    """``y[t, b, o] = sum_i weight[o, i] * S[t - back[o, i], b, i]`` over the linked inputs.

    The last ``steps`` steps, ``[T, B, O]`` in the dtype of the weight. ``sequence [rows, B, I]``,
    with zeros before it; ``weight`` and ``back [n]``.
    """
    missing, bags = slots - 1 + steps - len(sequence), Bags.of(weight, back, links, False)
    later = bags._replace(back=slots - 1 - bags.back)
    return _shifted_sum(sequence.to(weight.dtype), missing, 0, later, steps)


def project_backward(
    dy: Tensor,
    sequence: Tensor | None,
    weight: Tensor | None,
    back: Tensor,
    rows: int,
    slots: int,
    links: Links,
) -> tuple[Tensor | None, Tensor | None]:
    """Adjoint of :func:`project` to the last ``rows`` of the sequence, and to the weight ``[n]``.

    The gradient of each needs the other operand.
    """
    dsequence = dweight = None
    if weight is not None:
        # A step of the sequence is read up to K - 1 steps later, and not before the first one.
        around, bags = (rows - len(dy), slots - 1), Bags.of(weight, back, links, True)
        dsequence = _shifted_sum(dy.to(weight.dtype), *around, bags, rows)
    if sequence is not None:
        dweight = _shifted_dot(dy, sequence.to(dy.dtype), back, slots, links)
    return dsequence, dweight


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


def _shifted_sum(sequence: Tensor, before: int, after: int, bags: Bags, steps: int) -> Tensor:
    """``out[t, b, o] = sum_i weight[o, i] * sequence[t + back[o, i], b, i]``, ``steps`` of them, of
    the sequence between so many rows of zeros."""
    batch, (starts, inputs, weight, back) = sequence.shape[1], bags
    memory, length = _lines(sequence, before, after)
    places = inputs * length + back * batch
    out = sequence.new_zeros(steps * batch, starts.shape[0])
    for first, window, unread in _windows(memory, len(out)):
        how = starts, False, 0, False, weight, False, unread
        out[first : first + window.shape[1]] = torch.embedding_bag(window, places, *how)[0].t()
    return torch.ops.aten._unsafe_view(out, (steps, batch, starts.shape[0]))


def _shifted_dot(dy: Tensor, sequence: Tensor, back: Tensor, slots: int, links: Links) -> Tensor:
    """``sum over t, b of dy[t, b, o] * sequence[t - back[o, i], b, i]``, ``[n]``."""
    steps, batch, _ = dy.shape
    memory, length = _lines(sequence, slots - 1 + steps - len(sequence), 0)
    places = links.inputs * length + (slots - 1 - back.long()) * batch
    dlines, bags = dy.flatten(0, 1).t().contiguous(), (links.starts[:-1], links.outputs)
    dweight = dy.new_zeros(back.shape)
    dot = torch.ops.aten._embedding_bag_per_sample_weights_backward
    for first, window, unread in _windows(memory, steps * batch):
        part = dlines[:, first : first + window.shape[1]]
        dweight += dot(part, window, places, *bags, 0, unread)
    return dweight
