"""Sums over the past of a sequence, with weights of each channel's own: a filter along time.

Where every channel weights K rows, the sums of some steps are the product of a band matrix and the
rows that these steps see. So a filter is a few batched products, whatever its weights are.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..backend import resolve
from ..values import compute_dtype, in_lines
from .common import chained, first_order, keep, kept, running, without_autocast, without_graph
from .operator import operator

Tensors = list[Tensor]


def gaussian_span(sigma: float, slots: int, dtype: torch.dtype) -> int:
    """How many rows that follow each other a Gaussian of this width in steps counts, of K.

    Weights beyond are less than the rounding of their sum. A compiled graph takes all rows: it is
    for every width.
    """
    if torch.compiler.is_compiling():
        return slots
    reach = sigma * math.sqrt(-2.0 * math.log(torch.finfo(compute_dtype(dtype)).eps))
    return int(min(2.0 * math.ceil(reach + 0.5) + 1.0, slots))


def gaussian_weights(delay: Tensor, sigma: float, slots: int, span: int) -> tuple[Tensor, Tensor]:
    """``(first, weights)`` for delays and a width in steps: those of the rows around each delay.

    They are the rows ``first [*shape]`` to ``first + span - 1`` steps back, of the last K; their
    weights ``[*shape, span]`` sum to 1. The largest exponent is taken out first, so that a small
    width leaves the row next to the delay.
    """
    delay = delay.to(compute_dtype(delay.dtype))
    first = (delay.detach().round() - span // 2).clamp(0, slots - span)
    back = torch.arange(span, dtype=delay.dtype, device=delay.device)
    away = back - (delay - first).unsqueeze(-1)
    return first, torch.softmax((away / sigma).square() * -0.5, -1)


def filtered(rows: Tensor, weights: Tensor, *, backend: str | None = None) -> Tensor:
    """``y[t] = sum over k of weights[:, k] * rows[t + K - 1 - k]``: the newest row has weight 0.

    ``rows [K - 1 + T, B, N]`` and ``weights [N, K]``, or ``[1, K]`` for all channels; T >= 1.
    Returns ``[T, B, N]`` in the dtype of the rows. A product multiplies all that it sees, by 0
    where nothing counts: a value that is not finite makes its line NaN in all of a block.
    """
    backend = running(rows.device, backend)
    if chained(rows, weights):
        return _Filter.apply(rows, weights, backend)
    with without_graph():
        return filter_rows(rows, weights, backend)[0]


def _like_filtered(rows: Tensor, weights: Tensor, backend: str | None) -> Tensors:
    groups, slots = weights.shape
    steps, elements = rows.shape[0], rows[0].numel()
    lines = rows.new_empty(groups, steps, elements // groups)
    return [rows.new_empty(steps - slots + 1, *rows.shape[1:]), lines]


@operator(fake=_like_filtered)
def filter_rows(rows: Tensor, weights: Tensor, backend: str | None) -> Tensors:
    """:func:`filtered`, and the lines of the rows, for :func:`filter_adjoint`."""
    resolve(rows.device, backend)
    groups, slots = weights.shape
    lines = in_lines(rows, groups, rows.dtype)
    with without_autocast(rows.device):
        y = _products(_band(weights, len(rows) - slots + 1), lines.to(weights.dtype))
    return [_rows(y, rows), lines]


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
    groups, slots = weights.shape
    around = slots - 1
    given = in_lines(dy, groups, weights.dtype, around)
    found = []
    with without_autocast(dy.device):
        if want_rows:  # the filter the other way round
            drows = _products(_band(weights.flip(1), lines.shape[1]), given)
            found.append(_rows(drows, dy))
        if want_weights:
            given = given[:, around : around + len(dy)]
            found.append(_dweights(given, lines.to(weights.dtype), slots))
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
        want_rows, want_weights, _ = ctx.needs_input_grad
        found = filter_adjoint(dy, lines, weights, want_rows, want_weights)
        return found[0] if want_rows else None, found[-1] if want_weights else None, None


def _rows(lines: Tensor, like: Tensor) -> Tensor:
    """Lines as rows, of the batch, channels and dtype of others."""
    rows = lines.flatten(1).t() if lines.shape[0] > 1 else lines
    return rows.reshape(-1, *like.shape[1:]).to(like.dtype).contiguous()


def _block(steps: int, slots: int) -> int:
    """Steps of a product. Each costs ``block + slots - 1`` terms for a sum of ``slots``."""
    return min(steps, max(16, min(slots, 64)))


def _blocks(steps: int, slots: int) -> Iterator[tuple[slice, slice]]:
    """Of each product the steps that it gives, and the rows that these see."""
    block = _block(steps, slots)
    for first in range(0, steps, block):
        count = min(block, steps - first)
        yield slice(first, first + count), slice(first, first + count + slots - 1)


def _band(weights: Tensor, steps: int) -> Tensor:
    """The matrix of a product for each row of weights, ``[groups, block, block + K - 1]``."""
    groups, slots = weights.shape
    block = _block(steps, slots)
    band = weights.new_zeros(groups, block, block + slots - 1)
    _diagonals(band).copy_(weights.flip(1).unsqueeze(1))
    return band


def _diagonals(band: Tensor) -> Tensor:
    """What of such matrices is not always zero: ``[groups, block, K]``, oldest rows first."""
    groups, block, width = band.shape
    return band.as_strided((groups, block, width - block + 1), (block * width, width + 1, 1))


def _products(band: Tensor, lines: Tensor) -> Tensor:
    """The filtered lines ``[groups, T, width]``."""
    groups, block, seen = band.shape
    slots = seen - block + 1
    steps = lines.shape[1] - slots + 1
    y = lines.new_empty(groups, steps, lines.shape[2])
    for out, rows in _blocks(steps, slots):
        count = out.stop - out.start
        y[:, out] = torch.bmm(band[:, :count, : count + slots - 1], lines[:, rows])
    return y


def _dweights(dy: Tensor, lines: Tensor, slots: int) -> Tensor:
    """The gradient of the weights: what filtered lines and lines have in common at each lag."""
    groups, steps, _ = dy.shape
    block = _block(steps, slots)
    dband = lines.new_zeros(groups, block, block + slots - 1)
    for out, rows in _blocks(steps, slots):
        count = out.stop - out.start
        part = dband[:, :count, : count + slots - 1]
        part += torch.bmm(dy[:, out], lines[:, rows].mT)
    return _diagonals(dband).sum(1).flip(1)
