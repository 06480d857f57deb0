"""Exponential scans of whole sequences as differentiable operations."""

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch

from ..values import PackedSpikes, unpack_bits, words_per_row
from . import registered
from .common import chained, first_order, implementation


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        module: ModuleType,
        keep: int,
        dtype: torch.dtype | None,
        shape: tuple[int, ...] | None,
        x: torch.Tensor,
        gain: torch.Tensor,
        *rest: torch.Tensor | None,
    ) -> tuple[torch.Tensor, ...]:
        count = len(rest) // 2
        decays, initials = rest[:count], rest[count:]
        y, tails = module.scan(_sequence(x, shape), gain, decays, initials, keep, dtype)
        ctx.set_materialize_grads(False)
        ctx.module, ctx.shape, ctx.count = module, shape, count
        ctx.silent = y is None
        ctx.y_layout = (*(shape or x.shape)[:1], *tails[0].shape[1:]), dtype or gain.dtype
        # The input's gradient alone needs neither the input nor the currents.
        ctx.constants = any(ctx.needs_input_grad[5 : 6 + count])
        kept = [x, *initials] if ctx.constants else [x.new_empty(0), *(None for _ in initials)]
        ctx.x_dtype = x.dtype
        ctx.save_for_backward(gain, *decays, *kept)
        return (*([] if y is None else [y]), *tails)

    @staticmethod
    @first_order
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        count = ctx.count
        dy, *dtails = (None, *gradients) if ctx.silent else gradients
        gain, *saved = ctx.saved_tensors
        if dy is None:
            if all(d is None for d in dtails):
                return (None,) * (6 + 2 * count)
            size, dtype = ctx.y_layout
            dy = gain.new_zeros(size, dtype=dtype)
        decays, x, initials = saved[:count], saved[count], saved[count + 1 :]
        needed = ctx.needs_input_grad[6 + count :]
        dx, dinitials, constants = ctx.module.scan_backward(
            dy,
            dtails,
            _sequence(x, ctx.shape) if ctx.constants else None,
            gain,
            decays,
            initials,
            ctx.x_dtype if ctx.needs_input_grad[4] else None,
            any(needed),
        )
        coefficients: list[torch.Tensor | None] = [None] * (1 + count)
        if constants:
            pairs = zip(constants, [gain, *decays], strict=True)
            coefficients = [total.sum(0) if c.ndim else total.sum() for total, c in pairs]
        dinitials = dinitials or [None] * count
        given = [d if need else None for d, need in zip(dinitials, needed, strict=True)]
        return None, None, None, None, dx, *coefficients, *given


def _sequence(x: torch.Tensor, shape: tuple[int, ...] | None) -> torch.Tensor | PackedSpikes:
    return x if shape is None else PackedSpikes(x, shape)


def scan(
    x: torch.Tensor | PackedSpikes,
    gain: torch.Tensor,
    decays: Sequence[torch.Tensor],
    initials: Sequence[torch.Tensor | None],
    *,
    keep: int = 1,
    dtype: torch.dtype,
    backend: str | None = None,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """``C_c[t] = decay_c * C_c[t-1] + gain * x[t]`` for one or two components over T steps.

    ``x [T, B, N]`` or packed; ``gain`` and ``decays`` 0-d or ``[N]`` and ``initials [B, N]`` (None
    for rest), all in the arithmetic's dtype of ``dtype``. Returns the current ``[T, B, N]`` in
    ``dtype``, the first component or the first minus the second, and the last ``keep`` values of
    each component. Differentiable to everything floating; for the gradient to ``x`` nothing of
    the size of ``x`` is kept.
    """
    y, *tails = _scan(x, gain, decays, initials, keep, dtype, backend)
    return y, tails


def last_values(
    x: torch.Tensor | PackedSpikes,
    gain: torch.Tensor,
    decays: Sequence[torch.Tensor],
    initials: Sequence[torch.Tensor | None],
    *,
    keep: int,
    backend: str | None = None,
) -> list[torch.Tensor]:
    """The last values of :func:`scan`, which writes no currents for it."""
    return _scan(x, gain, decays, initials, keep, None, backend)


def _scan(
    x: torch.Tensor | PackedSpikes,
    gain: torch.Tensor,
    decays: Sequence[torch.Tensor],
    initials: Sequence[torch.Tensor | None],
    keep: int,
    dtype: torch.dtype | None,
    backend: str | None,
) -> list[torch.Tensor]:
    """``[*y, *tails]``, with currents only if these have a dtype."""
    packed = isinstance(x, PackedSpikes)
    data, shape = (x.words, x.shape) if isinstance(x, PackedSpikes) else (x, None)
    if torch.compiler.is_compiling():
        # An operator takes all initial states or none.
        given = [i for i in initials if i is not None]
        starts = [torch.zeros_like(given[0]) if i is None else i for i in initials if given]
        size = None if shape is None else list(shape)
        return registered.scan(data, size, gain, list(decays), starts, keep, dtype, backend)
    module = implementation("scan", x.device, backend)
    inputs = [None if packed else data, gain, *decays, *initials]
    if chained(*inputs):
        return list(_Scan.apply(module, keep, dtype, shape, data, gain, *decays, *initials))
    with torch.no_grad():
        y, tails = module.scan(x, gain, decays, initials, keep, dtype)
    return [*([] if y is None else [y]), *tails]


def pack_spikes(x: torch.Tensor, *, backend: str | None = None) -> PackedSpikes:
    """Spikes ``[T, B, *shape]`` (``x != 0``) as bits, 32 synapses a word."""
    shape = tuple(x.shape)
    rows = x.detach().reshape(shape[0] * shape[1], math.prod(shape[2:]))
    if torch.compiler.is_compiling():
        words = registered.pack_spikes(rows, backend)
    else:
        words = implementation("scan", x.device, backend).pack(rows)
    return PackedSpikes(words.view(*shape[:2], words_per_row(math.prod(shape[2:]))), shape)


def unpack_spikes(packed: PackedSpikes) -> torch.Tensor:
    """Inverse of :func:`pack_spikes`: bool ``[T, B, *shape]``."""
    return unpack_bits(packed.words, packed.synapses).view(packed.shape)
