"""Exponential scans of whole sequences as differentiable operations."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..values import Dynamics, PackedSpikes, data_of, words_per_row
from .common import chained, first_order, implementation, pack_rows, running, without_graph
from .operator import operator

Tensors = list[Tensor]


def _row(x: Tensor, shape: Sequence[int] | None) -> tuple[int, int]:
    """``(B, N)`` of values or bits."""
    if shape is None:
        return x.shape[1], x.shape[2]
    return shape[1], PackedSpikes(x, tuple(shape)).synapses


def _empty_scan(x, shape, constants, coupled, initials, last, dtype, backend):  # type: ignore[no-untyped-def]
    row, carried = _row(x, shape), constants[0].dtype
    y = [] if dtype is None else [x.new_empty((x.shape[0], *row), dtype=dtype)]
    states = Dynamics.of(constants, coupled).states
    return [*y, *(x.new_empty((last, *row), dtype=carried) for _ in range(states))]


@operator(_empty_scan)
def scan_forward(
    x: Tensor,
    shape: list[int] | None,
    constants: Tensors,
    coupled: bool,
    initials: list[Tensor | None],
    last: int,
    dtype: torch.dtype | None,
    backend: str | None,
) -> Tensors:
    """``[*y, *tails]`` of a scan; ``shape`` is that of packed spikes, ``dtype`` that of ``y``."""
    module = implementation("scan", x.device, backend)
    dynamics = Dynamics.of(constants, coupled)
    y, tails = module.scan(_sequence(x, shape), dynamics, initials, last, dtype)
    return [*([] if y is None else [y]), *tails]


def _empty_scan_backward(  # type: ignore[no-untyped-def]
    dy, dtails, x, shape, constants, coupled, initials, dx_dtype, want_initials, backend
):
    row, states = dy.shape[1:], Dynamics.of(constants, coupled).states
    dx = [] if dx_dtype is None else [dy.new_empty(dy.shape, dtype=dx_dtype)]
    dinitials = [constants[0].new_empty(row) for _ in range(states if want_initials else 0)]
    return [*dx, *dinitials, *(c.new_empty(c.shape) for c in constants if x is not None)]


@operator(_empty_scan_backward)
def scan_backward(
    dy: Tensor,
    dtails: list[Tensor | None],
    x: Tensor | None,
    shape: list[int] | None,
    constants: Tensors,
    coupled: bool,
    initials: list[Tensor | None],
    dx_dtype: torch.dtype | None,
    want_initials: bool,
    backend: str | None,
) -> Tensors:
    """``[*dx, *dinitials, *dconstants]``: the first only with a dtype, the last only with ``x``."""
    module = implementation("scan", dy.device, backend)
    sequence = None if x is None else _sequence(x, shape)
    dx, dinitials, dconstants = module.scan_backward(
        dy, dtails, sequence, Dynamics.of(constants, coupled), initials, dx_dtype, want_initials
    )
    totals = [d.sum(0) if c.ndim else d.sum() for d, c in zip(dconstants, constants, strict=False)]
    return [*([] if dx is None else [dx]), *dinitials, *totals]


class _Scanning(NamedTuple):
    """The settings of a scan."""

    coupled: bool
    last: int
    dtype: torch.dtype | None
    shape: list[int] | None
    backend: str | None
    constants: int
    """How many there are."""


class _Scan(torch.autograd.Function):
    """Of input, constants and initial states; the same in eager and in compiled code."""

    @staticmethod
    def forward(ctx: Any, scanning: _Scanning, x: Tensor, *tensors: Any) -> tuple[Tensor, ...]:
        coupled, last, dtype, shape, backend, count = scanning
        constants, initials = tensors[:count], tensors[count:]
        results = scan_forward(
            x, shape, list(constants), coupled, list(initials), last, dtype, backend
        )
        ctx.materialize_grads = False  # set_materialize_grads, which Dynamo refuses
        ctx.scanning, ctx.x_dtype = scanning, x.dtype
        ctx.y_layout = (x.shape[0], *results[-1].shape[1:]), dtype or constants[0].dtype
        # The input's gradient alone needs neither the input nor the initial states.
        ctx.learned = any(ctx.needs_input_grad[2 : 2 + count])
        saved = (x, *initials) if ctx.learned else (None, *(None for _ in initials))
        ctx.save_for_backward(*constants, *saved)
        return tuple(results)

    @staticmethod
    @first_order
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        coupled, _, dtype, shape, backend, count = ctx.scanning
        constants, (x, *initials) = list(ctx.saved_tensors[:count]), ctx.saved_tensors[count:]
        dy, dtails = (None, gradients) if dtype is None else (gradients[0], gradients[1:])
        states = len(initials)
        if all(gradient is None for gradient in gradients):
            return (None,) * (2 + count + states)
        if dy is None:
            size, y_dtype = ctx.y_layout
            dy = constants[0].new_zeros(size, dtype=y_dtype)
        want_x, wanted = ctx.needs_input_grad[1], ctx.needs_input_grad[2 + count :]
        dx_dtype = ctx.x_dtype if want_x else None
        operands = (dy, list(dtails), x, shape, constants, coupled, initials)
        results = scan_backward(*operands, dx_dtype, any(wanted), backend)
        first = int(want_x)
        dinitials: list[Tensor | None] = [None] * states
        if any(wanted):
            dinitials = [d if w else None for d, w in zip(results[first:], wanted, strict=False)]
            first += states
        dconstants = results[first:] if ctx.learned else [None] * count
        return None, results[0] if want_x else None, *dconstants, *dinitials


def _sequence(x: Tensor, shape: Sequence[int] | None) -> Tensor | PackedSpikes:
    return x if shape is None else PackedSpikes(x, tuple(shape))


def scan(
    x: Tensor | PackedSpikes,
    dynamics: Dynamics,
    initials: Sequence[Tensor | None],
    *,
    last: int = 1,
    dtype: torch.dtype | None,
    backend: str | None = None,
) -> tuple[Any, Tensors]:
    """The states of a synapse over T steps.

    ``x [T, B, N]`` or packed; constants 0-d or ``[N]`` and ``initials [B, N]`` (None at rest), of
    each state, all in the arithmetic's dtype of ``dtype``. Returns the current ``[T, B, N]`` in
    ``dtype``, or None without a ``dtype``, and the ``last`` values of each state. Differentiable to
    everything floating; for the gradient to ``x`` nothing of the size of ``x`` is kept.
    """
    data, shape = data_of(x), list(x.shape) if isinstance(x, PackedSpikes) else None
    constants, coupled = list(dynamics.constants), dynamics.coupling is not None
    if chained(data, *constants, *initials):
        # Backward runs where forward ran, whatever the default is by then.
        backend = running(data.device, backend)
        scanning = _Scanning(coupled, last, dtype, shape, backend, len(constants))
        results = list(_Scan.apply(scanning, data, *constants, *initials))
    else:
        operands = (data, shape, constants, coupled, list(initials))
        with without_graph():
            results = scan_forward(*operands, last, dtype, backend)
    return (None, results) if dtype is None else (results[0], results[1:])


def pack_spikes(x: Tensor, *, backend: str | None = None) -> PackedSpikes:
    """Spikes ``[T, B, *shape]`` (``x != 0``) as bits, 32 synapses a word."""
    shape = tuple(x.shape)
    rows = x.detach().reshape(shape[0] * shape[1], math.prod(shape[2:]))
    words = pack_rows(rows, backend)
    return PackedSpikes(words.view(*shape[:2], words_per_row(math.prod(shape[2:]))), shape)
