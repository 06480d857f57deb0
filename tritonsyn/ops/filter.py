"""Sums over the past of a sequence, with weights of each channel's own: a filter along time.

Where every channel weights K rows, the sums of some steps are the product of a band matrix and the
rows that these steps see. So a filter is a few batched products, whatever its weights are.
"""

from typing import Any

import torch
from torch import Tensor

from ..backend import resolve
from ..values import compute_dtype
from .common import chained, first_order, keep, kept, running, without_graph
from .operator import operator

Tensors = list[Tensor]


def gaussian_weights(delay: Tensor, sigma: float, slots: int) -> Tensor:
    """Weights ``[*shape, K]`` of the rows 0 to K - 1 steps back, for delays and a width in steps.

    They sum to 1. The largest exponent is taken out first, so that a small width leaves the row
    next to the delay.
    """
    delay = delay.to(compute_dtype(delay.dtype)).unsqueeze(-1)
    back = torch.arange(slots, dtype=delay.dtype, device=delay.device)
    return torch.softmax(((back - delay) / sigma).square() * -0.5, -1)


def filtered(rows: Tensor, weights: Tensor, *, backend: str | None = None) -> Tensor:
    """``y[t] = sum over k of weights[:, k] * rows[t + K - 1 - k]``: the newest row has weight 0.

    ``rows [K - 1 + T, B, N]`` and ``weights [N, K]``, or ``[1, K]`` for all channels; T >= 1.
    Returns ``[T, B, N]`` in the dtype of the rows.
    """
    backend = running(rows.device, backend)
    if chained(rows, weights):
        return _Filter.apply(rows, weights, backend)
    with without_graph():
        return filter_rows(rows, weights, backend)[0]


def _like_filtered(rows: Tensor, weights: Tensor, backend: str | None) -> Tensors:
    steps, batch, channels = rows.shape[0] - weights.shape[1] + 1, *rows.shape[1:]
    lines = _lines(rows, weights.shape[0])
    return [rows.new_empty(steps, batch, channels), torch.empty_like(lines)]


@operator(fake=_like_filtered)
def filter_rows(rows: Tensor, weights: Tensor, backend: str | None) -> Tensors:
    """:func:`filtered`, and the lines of the rows, for :func:`filter_adjoint`."""
    resolve(rows.device, backend)
    lines = _lines(rows, weights.shape[0]).clone(memory_format=torch.contiguous_format)
    exact, slots = lines.to(weights.dtype), weights.shape[1]
    steps = rows.shape[0] - slots + 1
    y = exact.new_empty(exact.shape[0], steps, exact.shape[2])
    band = _band(weights, _block(steps, slots))
    for out, seen, part in _blocks(steps, slots, band):
        torch.bmm(part, exact[:, seen], out=y[:, out])
    return [_rows(y, rows.shape[1]).to(rows.dtype).contiguous(), lines]


def _like_adjoint(
    dy: Tensor, lines: Tensor, weights: Tensor, want_rows: bool, want_weights: bool
) -> Tensors:
    found = [dy.new_empty(lines.shape[1], *dy.shape[1:])] if want_rows else []
    return found + ([torch.empty_like(weights)] if want_weights else [])


@operator(fake=_like_adjoint)
def filter_adjoint(
    dy: Tensor, lines: Tensor, weights: Tensor, want_rows: bool, want_weights: bool
) -> Tensors:
    """The gradients of the rows ``[K - 1 + T, B, N]`` and of the weights, where wanted."""
    steps, slots = dy.shape[0], weights.shape[1]
    given = _lines(dy, weights.shape[0]).to(weights.dtype).contiguous()
    band = _band(weights, _block(steps, slots))
    found = []
    if want_rows:
        drows = torch.zeros_like(lines, dtype=weights.dtype)
        for out, seen, part in _blocks(steps, slots, band):
            drows[:, seen].baddbmm_(part.mT, given[:, out])
        found.append(_rows(drows, dy.shape[1]).to(dy.dtype).contiguous())
    if want_weights:
        exact, dband = lines.to(weights.dtype), torch.zeros_like(band)
        for out, seen, dpart in _blocks(steps, slots, dband):
            dpart.baddbmm_(given[:, out], exact[:, seen].mT)
        found.append(_diagonals(dband, slots).sum(1).flip(1))
    return found


class _Filter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weights: Tensor, backend: str | None) -> Tensor:
        y, lines = filter_rows(rows, weights, backend)
        keep(ctx, [lines, weights])
        return y

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        ((lines, weights),) = kept(ctx)
        wanted = list(ctx.needs_input_grad[:2])
        found = filter_adjoint(dy, lines, weights, *wanted)
        return *(found.pop(0) if want else None for want in wanted), None


def _lines(rows: Tensor, groups: int) -> Tensor:
    """Rows ``[R, B, N]`` as a matrix per row of weights: ``[N, R, B]``, or ``[1, R, B * N]``."""
    return rows.flatten(1).unsqueeze(0) if groups == 1 else rows.permute(2, 0, 1)


def _rows(lines: Tensor, batch: int) -> Tensor:
    """The reverse of :func:`_lines`."""
    if lines.shape[0] == 1:
        return lines.squeeze(0).unflatten(1, (batch, -1))
    return lines.permute(1, 2, 0)


def _block(steps: int, slots: int) -> int:
    """Steps of a product. Each costs ``block + slots - 1`` terms for a sum of ``slots``."""
    return min(steps, max(16, min(slots, 64)))


def _blocks(steps: int, slots: int, band: Tensor) -> Any:
    """Of each product the steps that it gives, the rows that these see, and its matrix."""
    block = band.shape[1]
    for first in range(0, steps, block):
        count = min(block, steps - first)
        seen = count + slots - 1
        yield slice(first, first + count), slice(first, first + seen), band[:, :count, :seen]


def _band(weights: Tensor, block: int) -> Tensor:
    """The matrices ``[groups, block, block + K - 1]`` of the products."""
    groups, slots = weights.shape
    band = weights.new_zeros(groups, block, block + slots - 1)
    _diagonals(band, slots).copy_(weights.flip(1).unsqueeze(1))
    return band


def _diagonals(band: Tensor, slots: int) -> Tensor:
    """What of a band matrix is not always zero: ``[groups, block, K]``, oldest rows first."""
    groups, block, width = band.shape
    return band.as_strided((groups, block, slots), (block * width, width + 1, 1))
