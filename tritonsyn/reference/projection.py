"""The delayed projection: each connection reads its input some whole steps back."""

import math

import torch
from torch import Tensor

from ..values import WORD, Lines, Links, Slot, after_zeros
from . import bags
from .scan import write_lines

_SLOTS_A_SHIFT = 6
"""Products with the weights of one delay that take as long as a shifted sum, on a CPU."""

_FEW = 4
"""Rows of a batch up to which a step reads each connection by itself, on a CPU."""


def lines_for(
    shape: tuple[int, int, int, int],
    past: Tensor | None,
    slots: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Lines:
    """Lines for a sequence ``[T, B, N]`` that is yet to be written, after its past.

    ``shape`` is ``(T, B, N, O)`` with the outputs that read it; B is above 16, so that lines of 32
    rows of the batch are full enough. ``past [before, B, N]`` or None. The sequence is
    ``view[:, :, -T:]``. What comes before the past is zero, or left out where no tile reaches.
    """
    steps, batch, synapses, _ = shape
    size = synapses, -(-batch // WORD), slots - 1 + steps, WORD
    lines = Lines(torch.zeros(math.prod(size), dtype=dtype, device=device), size, batch)
    if past is not None:
        write_lines(lines.view[:, :, slots - 1 - past.shape[0] : slots - 1], past)
    return lines


def _rows(sequence: Tensor | Lines) -> Tensor:
    """The sequence as ``[rows, B, N]``."""
    if isinstance(sequence, Tensor):
        return sequence
    return sequence.view.permute(2, 1, 3, 0).flatten(1, 2)[:, : sequence.batch]


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
    """``y[t, b, o] = sum_i weight[o, i] * S[t - back[o, i], b, i]`` at the last ``steps`` steps.

    ``sequence [rows, B, I]`` oldest first, with zeros before it where ``rows < K - 1 + steps``, or
    for ``shift`` in lines; ``K = slots``; ``weight [O, I]`` in the arithmetic's dtype; ``back [O,
    I]`` int32 in 0 to K - 1; both ``[n]`` where there are links, and ``i`` then the inputs that
    these name. ``strategy`` is ``shift`` or without links ``gemm``, ``precision`` that of its
    products. Returns ``[steps, B, O]`` in the dtype of the weight.
    """
    sequence = _rows(sequence)
    if strategy == "gemm":
        y = _products(sequence, weight, back, steps, slots)
        if _contained(y):
            return y
    return bags.project(sequence, weight, back, steps, slots, links)


def project_step(
    record: Tensor, pointer: Slot, weight: Tensor, back: Tensor, links: Links | None = None
) -> Tensor:
    """The same ``[B, O]`` at the newest row of a record ``[K, B, I]`` that writes next at
    ``pointer``.
    """
    slots, batch, inputs = record.shape
    slot = (int(pointer) - 1 - back).remainder(slots)
    if links is None and batch <= _FEW:
        place = slot * inputs + torch.arange(inputs, device=slot.device)
        rows = record.to(weight.dtype).transpose(0, 1).reshape(batch, -1)
        return (rows.index_select(1, place.flatten()).unflatten(1, back.shape) * weight).sum(2)
    # Steps back from the last row that lead to the same slot of the record.
    return project(record, weight, slots - 1 - slot, 1, slots, "shift", "ieee", links)[0]


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
    """Adjoint of :func:`project` to the last ``rows`` of the sequence, and to the weight.

    The gradient of each needs the other operand: ``[rows, B, I]`` in the dtype of the weight, if
    that is given, and ``sum over t, b of dy[t, b, o] * S[t - back[o, i], b, i]``, in the size of
    the weight and the dtype of ``dy``, if the sequence is given. With factors of each connection
    the latter gives the gradients of the delay and of the time constants, too.
    """
    dsequence = dweight = None
    products = strategy == "gemm"
    if weight is not None:
        # Of few steps after a long past most shifted sums are of zeros.
        if products or (links is None and len(dy) * slots < _SLOTS_A_SHIFT * rows):
            dsequence = _products_to_sequence(dy, weight, back, rows, slots)
        if dsequence is None or not _contained(dsequence):
            dsequence = bags.project_to_sequence(dy, weight, back, rows, slots, links)
    if sequence is not None:
        if products:
            dweight = _products_to_weight(dy, _rows(sequence), back, slots)
        else:
            dweight = bags.project_to_weight(dy, _rows(sequence), back, slots, links)
    return dsequence, dweight


def _products(sequence: Tensor, weight: Tensor, back: Tensor, steps: int, slots: int) -> Tensor:
    """:func:`project` of all connections as a product with the weights of each delay."""
    rows = after_zeros(sequence.to(weight.dtype), slots - 1 + steps)
    y = rows.new_zeros(steps, rows.shape[1], weight.shape[0])
    for k, part in enumerate(_masked(weight, back, slots)):
        here = rows[slots - 1 - k : slots - 1 - k + steps]
        y.flatten(0, 1).addmm_(here.flatten(0, 1), part.t())
    return y


def _products_to_sequence(
    dy: Tensor, weight: Tensor, back: Tensor, rows: int, slots: int
) -> Tensor:
    steps, batch, _ = dy.shape
    before, dy = rows - steps, dy.to(weight.dtype)
    dsequence = dy.new_zeros(rows, batch, weight.shape[1])
    for k, part in enumerate(_masked(weight, back, slots)):
        # What was read before the first row gets no gradient.
        beyond = min(max(k - before, 0), steps)
        here = dsequence[before - k + beyond : before - k + steps]
        here.flatten(0, 1).addmm_(dy[beyond:].flatten(0, 1), part)
    return dsequence


def _products_to_weight(dy: Tensor, sequence: Tensor, back: Tensor, slots: int) -> Tensor:
    steps, batch, outputs = dy.shape
    sequence = after_zeros(sequence.to(dy.dtype), slots - 1 + steps)
    flat = dy.reshape(steps * batch, outputs).t()
    found = dy.new_empty(slots, *back.shape)
    for k, product in enumerate(found):
        rows = sequence[slots - 1 - k : slots - 1 - k + steps]
        # Into given memory, which autocast leaves in its dtype.
        torch.mm(flat, rows.flatten(0, 1), out=product)
    return found.gather(0, back.long().unsqueeze(0)).squeeze(0)


def _contained(product: Tensor) -> bool:
    """Whether no zero of a masked product met a non-finite number, which would spread.

    Asked only on a CPU, where the answer costs no wait.
    """
    return product.device.type != "cpu" or math.isfinite(product.sum().item())


def _masked(weight: Tensor, back: Tensor, slots: int) -> Tensor:
    """``[K, O, I]``: the weights of the connections of each delay, zero elsewhere."""
    parts = weight.new_zeros(slots, *weight.shape)
    return parts.scatter_(0, back.long().unsqueeze(0), weight.unsqueeze(0))
