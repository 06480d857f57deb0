"""Sums over the past of a sequence, with weights of each channel's own: a filter along time.

That is a convolution of each channel, for which a CPU has a quick operation where arithmetic is
float32. Elsewhere the sums of some steps are the product of a band matrix and the rows that these
steps see: a filter is a few batched products, whatever its weights are.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..backend import resolve
from ..values import compute_dtype
from .common import chained, first_order, keep, kept, running, without_autocast, without_graph
from .operator import operator

Tensors = list[Tensor]

_TERMS = 1024
"""That a convolution's gradient adds up at once: one by one in float32, less and less exactly."""


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
    Returns ``[T, B, N]`` in the dtype of the rows. All that is seen is multiplied, by 0 where
    nothing counts: a value that is not finite makes NaN of what sees it, and products make it of
    all of a block of the channel.
    """
    backend = running(rows.device, backend)
    if chained(rows, weights):
        return _Filter.apply(rows, weights, backend)
    with without_graph():
        return filter_rows(rows, weights, backend)


def _like_filtered(rows: Tensor, weights: Tensor, backend: str | None) -> Tensor:
    return rows.new_empty(len(rows) - weights.shape[1] + 1, *rows.shape[1:])


@operator(fake=_like_filtered)
def filter_rows(rows: Tensor, weights: Tensor, backend: str | None) -> Tensor:
    """:func:`filtered`, without a gradient."""
    resolve(rows.device, backend)
    with without_autocast(rows.device):
        return _sums(rows, weights)


def _like_adjoint(
    dy: Tensor, rows: Tensor, weights: Tensor, want_rows: bool, want_weights: bool
) -> Tensors:
    return ([rows.new_empty(rows.shape)] if want_rows else []) + (
        [torch.empty_like(weights)] if want_weights else []
    )


@operator(fake=_like_adjoint)
def filter_adjoint(
    dy: Tensor, rows: Tensor, weights: Tensor, want_rows: bool, want_weights: bool
) -> Tensors:
    """The gradients of the rows and of the weights, where wanted."""
    slots, found = weights.shape[1], []
    with without_autocast(dy.device):
        if want_rows:  # the filter the other way round
            found.append(_sums(dy, weights.flip(1), around=slots - 1))
        if want_weights:
            found.append(_lags(dy, rows, weights))
    return found


class _Filter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weights: Tensor, backend: str | None) -> Tensor:
        keep(ctx, [rows, weights])
        return filter_rows(rows, weights, backend)

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        ((rows, weights),) = kept(ctx)
        want_rows, want_weights, _ = ctx.needs_input_grad
        found = filter_adjoint(dy, rows, weights, want_rows, want_weights)
        return found[0] if want_rows else None, found[-1] if want_weights else None, None


def _sums(rows: Tensor, weights: Tensor, around: int = 0) -> Tensor:
    """The filtered rows, with so many rows of zeros before and behind them."""
    if _convolves(rows, weights):
        kernel = _kernel(weights.flip(1), rows)
        y = torch.conv2d(_image(rows, weights), kernel, padding=(around, 0), groups=len(kernel))
        return _unshared(y.squeeze(0).permute(1, 2, 0), rows.dtype)
    lines = _lines(rows, len(weights), weights.dtype, around)
    steps = lines.shape[1] - weights.shape[1] + 1
    return _rows(_products(_band(weights, steps), lines), rows)


def _lags(dy: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """The gradient of the weights: what both sequences have in common at each lag."""
    if not _convolves(rows, weights):
        given, lines = (_lines(t, len(weights), weights.dtype) for t in (dy, rows))
        return _dweights(given, lines, weights.shape[1])
    kernel, slots = _kernel(weights, rows), weights.shape[1]
    plain = [1, 1], [0, 0], [1, 1], False, [0, 0], len(kernel), [False, True, False]
    dkernel, block = torch.zeros_like(kernel, dtype=torch.float64), max(1, _TERMS // rows.shape[1])
    for first in range(0, len(dy), block):
        given = dy[first : first + block]
        seen = rows[first : first + len(given) + slots - 1]
        operands = (_image(given, weights), _image(seen, weights), kernel, None)
        dkernel += torch.ops.aten.convolution_backward(*operands, *plain)[1]
    return dkernel[:, 0, :, 0].flip(1).sum_to_size(weights.shape).to(weights.dtype)


def _convolves(rows: Tensor, weights: Tensor) -> bool:
    """Whether a filter is a convolution of PyTorch's, which a CPU has a quick one for."""
    quick = rows.device.type == "cpu" and weights.dtype == torch.float32 and rows.numel() > 0
    return quick and torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


def _image(rows: Tensor, weights: Tensor) -> Tensor:
    """``rows [R, B, N]`` as a picture of N channels with R times B points, in place."""
    return rows.to(weights.dtype).unsqueeze(0).permute(0, 3, 1, 2)


def _kernel(weights: Tensor, rows: Tensor) -> Tensor:
    """The weights of each channel as a kernel over the rows."""
    return weights.expand(rows.shape[2], -1)[:, None, :, None]


def _lines(rows: Tensor, lines: int, dtype: torch.dtype, around: int = 0) -> Tensor:
    """Rows ``[R, B, N]`` as ``[lines, R, B * N / lines]`` in this dtype, in new memory.

    As N lines, with the batch in each, or as one of whole rows; with so many rows of zeros before
    and behind them.
    """
    steps, width = len(rows), rows[0].numel() // lines
    made = rows.new_empty(lines, steps + 2 * around, width, dtype=dtype)
    if around:
        made[:, :around] = 0.0
        made[:, -around:] = 0.0
    inner = made[:, around : around + steps]
    if lines == 1:
        inner.copy_(rows.reshape(inner.shape))
    else:  # of two axes, which PyTorch copies fastest
        inner.flatten(1).copy_(rows.reshape(-1, lines).t())
    return made


def _rows(lines: Tensor, like: Tensor) -> Tensor:
    """Lines as rows, of the batch, channels and dtype of others."""
    rows = lines.flatten(1).t() if lines.shape[0] > 1 else lines
    return _unshared(rows.reshape(-1, *like.shape[1:]), like.dtype)


def _unshared(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """The same packed, and no view, which could not be written in place."""
    rows = rows.to(dtype).contiguous()
    return torch.ops.aten._unsafe_view(rows, rows.shape)


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
