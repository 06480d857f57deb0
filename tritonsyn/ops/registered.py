"""Scans as operators that ``torch.compile`` takes whole.

They compute what the autograd Functions beside them do, and call the same implementations; they are
functional, so that a compiled graph may order them freely. Eager code takes the Functions, whose
call costs a quarter of an operator's.
"""

from collections.abc import Sequence
from typing import Any

import torch

from ..values import PackedSpikes
from .common import implementation

Tensors = list[torch.Tensor]


def _sequence(x: torch.Tensor, shape: list[int] | None) -> torch.Tensor | PackedSpikes:
    return x if shape is None else PackedSpikes(x, tuple(shape))


def _row(x: torch.Tensor, shape: list[int] | None) -> tuple[int, int]:
    """``(B, N)`` of values or bits."""
    if shape is None:
        return x.shape[1], x.shape[2]
    return shape[1], PackedSpikes(x, tuple(shape)).synapses


@torch.library.custom_op("tritonsyn::scan", mutates_args=())
def scan(
    x: torch.Tensor,
    shape: list[int] | None,
    gain: torch.Tensor,
    decays: Tensors,
    initials: Tensors,
    keep: int,
    dtype: torch.dtype | None,
    backend: str | None,
) -> Tensors:
    """``[*y, *tails]`` of :func:`tritonsyn.ops.scan`; ``shape`` is that of packed spikes."""
    module = implementation("scan", x.device, backend)
    starts: Sequence[torch.Tensor | None] = initials or [None] * len(decays)
    y, tails = module.scan(_sequence(x, shape), gain, decays, starts, keep, dtype)
    return [*([] if y is None else [y]), *tails]


@scan.register_fake
def _(x, shape, gain, decays, initials, keep, dtype, backend):  # type: ignore[no-untyped-def]
    row = _row(x, shape)
    tails = [x.new_empty((keep, *row), dtype=decay.dtype) for decay in decays]
    y = [] if dtype is None else [x.new_empty((x.shape[0], *row), dtype=dtype)]
    return [*y, *tails]


@torch.library.custom_op("tritonsyn::scan_backward", mutates_args=())
def scan_backward(
    gradients: Tensors,
    x: torch.Tensor | None,
    shape: list[int] | None,
    gain: torch.Tensor,
    decays: Tensors,
    initials: Tensors,
    dx_dtype: torch.dtype | None,
    want_initials: bool,
    backend: str | None,
) -> Tensors:
    """``[*dx, *dinitials, *dconstants]``: ``dx`` only with a ``dx_dtype``, the last only with
    ``x``.
    """
    module = implementation("scan", gain.device, backend)
    starts: Sequence[torch.Tensor | None] = initials or [None] * len(decays)
    dy, *dtails = gradients
    sequence = None if x is None else _sequence(x, shape)
    dx, dinitials, constants = module.scan_backward(
        dy, dtails, sequence, gain, decays, starts, dx_dtype, want_initials
    )
    coefficients = zip(constants, [gain, *decays], strict=False)
    totals = [total.sum(0) if c.ndim else total.sum() for total, c in coefficients]
    return [*([] if dx is None else [dx]), *dinitials, *totals]


@scan_backward.register_fake
def _(gradients, x, shape, gain, decays, initials, dx_dtype, want_initials, backend):  # type: ignore[no-untyped-def]
    row = gradients[0].shape[1:]
    size = gradients[0].shape
    dx = [] if dx_dtype is None else [gradients[0].new_empty(size, dtype=dx_dtype)]
    dinitials = [decay.new_empty(row) for decay in decays if want_initials]
    return [*dx, *dinitials, *(c.new_empty(c.shape) for c in (gain, *decays) if x is not None)]


def _keep_scan(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
    x, ctx.shape, gain, decays, initials, _, dtype, ctx.backend = inputs
    ctx.count, ctx.steps, ctx.x_dtype, ctx.silent = len(decays), x.shape[0], x.dtype, dtype is None
    # The input's gradient alone needs neither the input nor the currents.
    kept = [x, *initials] if any(c.requires_grad for c in (gain, *decays)) else []
    ctx.save_for_backward(gain, *decays, *kept)


def _scan_gradients(ctx: Any, gradients: Tensors) -> tuple[Any, ...]:
    count = ctx.count
    gain, *rest = ctx.saved_tensors
    decays, kept = rest[:count], rest[count:]
    x, initials = (kept[0], kept[1:]) if kept else (None, [])
    wants_x, wants_initials = ctx.needs_input_grad[0], ctx.needs_input_grad[4]
    if ctx.silent:
        dy = gradients[0].new_zeros((ctx.steps, *gradients[0].shape[1:]))
        gradients = [dy, *gradients]
    results = scan_backward(
        gradients, x, ctx.shape, gain, decays, initials,
        ctx.x_dtype if wants_x else None, any(wants_initials), ctx.backend,
    )  # fmt: skip
    dx = results.pop(0) if wants_x else None
    dinitials = [results.pop(0) if any(wants_initials) else None for _ in wants_initials]
    dgain, *ddecays = results or [None] * (1 + count)
    return dx, None, dgain, ddecays, dinitials, None, None, None


scan.register_autograd(_scan_gradients, setup_context=_keep_scan)
