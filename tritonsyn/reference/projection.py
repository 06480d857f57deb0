"""The delayed projection: each connection reads its input some whole steps back."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..values import WORD, Lines, Links, Slot, after_zeros
from . import links as linked
from .scan import write_lines


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
    if links is not None:
        return linked.project(sequence, weight, back, steps, slots, links)
    batch = sequence.shape[1]
    sequence = after_zeros(sequence.to(weight.dtype), slots - 1 + steps)
    # For one step a gather of every connection costs more than a product with each slot.
    if strategy == "gemm" or steps == 1:
        y = sequence.new_zeros(steps, batch, weight.shape[0])
        for k, part in enumerate(_masked(weight, back, slots)):
            here = sequence[slots - 1 - k : slots - 1 - k + steps]
            y.flatten(0, 1).addmm_(here.flatten(0, 1), part.t())
        if _contained(y):
            return y
    offsets = (slots - 1 - back) * batch
    out = _shifted_sum(_lines(sequence), weight, offsets, steps * batch)
    return _from_lines(out, steps, batch)


def project_step(
    record: Tensor, pointer: Slot, weight: Tensor, back: Tensor, links: Links | None = None
) -> Tensor:
    """The same ``[B, O]`` at the newest row of a record ``[K, B, I]`` that writes next at
    ``pointer``.
    """
    slots = record.shape[0]
    # Steps back from the last row that lead to the same slot of the record.
    back = slots - 1 - (int(pointer) - 1 - back).remainder(slots)
    return project(record, weight, back, 1, slots, "shift", "ieee", links)[0]


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
    if links is not None:
        seen = None if sequence is None else _rows(sequence)
        return linked.project_backward(dy, seen, weight, back, rows, slots, links)
    products = strategy == "gemm"
    return (
        None if weight is None else _to_sequence(dy, weight, back, rows, slots, products),
        None if sequence is None else _to_weight(dy, _rows(sequence), back, slots, products),
    )


def _to_sequence(
    dy: Tensor, weight: Tensor, back: Tensor, rows: int, slots: int, products: bool
) -> Tensor:
    steps, batch, _ = dy.shape
    before = rows - steps
    dy = dy.to(weight.dtype)
    if products:
        dsequence = dy.new_zeros(rows, batch, weight.shape[1])
        for k, part in enumerate(_masked(weight, back, slots)):
            # What was read before the first row gets no gradient.
            beyond = min(max(k - before, 0), steps)
            here = dsequence[before - k + beyond : before - k + steps]
            here.flatten(0, 1).addmm_(dy[beyond:].flatten(0, 1), part)
        if _contained(dsequence):
            return dsequence
    # A step of the sequence is read up to K - 1 steps later, and not before the first one.
    lines = torch.nn.functional.pad(_lines(dy), (before * batch, (slots - 1) * batch))
    out = _shifted_sum(lines, weight.t(), back.t() * batch, rows * batch)
    return _from_lines(out, rows, batch)


def _to_weight(dy: Tensor, sequence: Tensor, back: Tensor, slots: int, products: bool) -> Tensor:
    steps, batch, outputs = dy.shape
    sequence = after_zeros(sequence.to(dy.dtype), slots - 1 + steps)
    if products:
        flat = dy.reshape(steps * batch, outputs).t()
        found = dy.new_empty(slots, *back.shape)
        for k, product in enumerate(found):
            rows = sequence[slots - 1 - k : slots - 1 - k + steps]
            # Into given memory, which autocast leaves in its dtype.
            torch.mm(flat, rows.flatten(0, 1), out=product)
        return found.gather(0, back.long().unsqueeze(0)).squeeze(0)
    dweight = dy.new_zeros(back.shape)
    shifted = _shifted(_lines(sequence), (slots - 1 - back) * batch, steps * batch)
    for row, dline, windows in zip(dweight, _lines(dy), shifted, strict=False):
        torch.mv(windows, dline, out=row)
    return dweight


def _contained(product: Tensor) -> bool:
    """Whether no zero of a masked product met a non-finite number, which would spread.

    Asked only on a CPU, where the answer costs no wait.
    """
    return product.device.type != "cpu" or math.isfinite(product.sum().item())


def _masked(weight: Tensor, back: Tensor, slots: int) -> Tensor:
    """``[K, O, I]``: the weights of the connections of each delay, zero elsewhere."""
    parts = weight.new_zeros(slots, *weight.shape)
    return parts.scatter_(0, back.long().unsqueeze(0), weight.unsqueeze(0))


def _lines(sequence: Tensor) -> Tensor:
    """``[T, B, N]`` as ``[N, T * B]``: a delay is an offset along a line."""
    return sequence.flatten(0, 1).t().contiguous()


def _from_lines(lines: Tensor, steps: int, batch: int) -> Tensor:
    """Inverse of :func:`_lines`, in new memory."""
    sequence = lines.view(lines.shape[0], steps, batch).permute(1, 2, 0)
    return sequence.clone(memory_format=torch.contiguous_format)


def _shifted(lines: Tensor, offsets: Tensor, length: int) -> Iterator[Tensor]:
    """For each row of ``offsets [R, C]`` the lines from there on, ``[C, length]``."""
    if lines.numel() and length:
        starts = torch.arange(lines.shape[0], device=lines.device) * lines.shape[1]
        windows = lines.view(-1).unfold(0, length, 1)
        for start in offsets + starts:
            yield windows[start.long()]


def _shifted_sum(lines: Tensor, weight: Tensor, offsets: Tensor, length: int) -> Tensor:
    """``out[r, j] = sum_c weight[r, c] * lines[c, j + offsets[r, c]]``, ``[R, length]``."""
    out = lines.new_zeros(weight.shape[0], length)
    for line, weights, windows in zip(out, weight, _shifted(lines, offsets, length), strict=False):
        torch.mv(windows.t(), weights, out=line)
    return out
