"""Exponential scans of whole sequences as differentiable operations."""

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch

from ..checks import check_floating, check_packed, check_sequence, finite, record_dtype
from ..values import PackedSpikes, compute_dtype, unpack_bits, words_per_row
from . import registered
from .common import as_tensor, chained, first_order, implementation, pack_rows

Coefficient = float | torch.Tensor


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


def sequence_scan(
    x: torch.Tensor | PackedSpikes,
    gain: Coefficient,
    decays: Sequence[Coefficient],
    initials: Sequence[torch.Tensor | None],
    *,
    dtype: torch.dtype | None,
    backend: str | None,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A scan of a sequence ``[T, ...]`` of any rank: ``(y, final component values)``.

    Coefficients broadcast to ``x.shape[1:]``; the last axes, which any of them spans, are the
    synapses, and the others the batch.
    """
    check_sequence(x)
    shape = tuple(x.shape)
    if not isinstance(initials, Sequence) or len(initials) != len(decays):
        raise ValueError(f"initial must hold {len(decays)} tensors, but is {initials!r:.80}")
    for initial in initials:
        _check_initial(initial, shape, x.device)
    dtype = output_dtype(x, initials, dtype)
    acc = compute_dtype(dtype)
    inner = _synapse_axes(shape, [gain, *decays])
    if isinstance(x, PackedSpikes):
        # Words are of whole rows of the batch: coefficients that differ along it need the spikes.
        x, inner = (x, len(shape) - 2) if inner <= len(shape) - 2 else (unpack_spikes(x), inner)
    synapses = shape[len(shape) - inner :]
    batch, count = math.prod(shape[1 : len(shape) - inner]), math.prod(synapses)
    names = ("gain", "decay", "rise")
    coefficients = [
        coefficient(name, c, synapses, acc, x.device)
        for name, c in zip(names, [gain, *decays], strict=False)
    ]
    starts = [None if s is None else s.to(acc).reshape(batch, count) for s in initials]
    flat = x if isinstance(x, PackedSpikes) else x.reshape(shape[0], batch, count)
    keep = min(shape[0], 1)
    y, tails = scan(
        flat, coefficients[0], coefficients[1:], starts, keep=keep, dtype=dtype, backend=backend
    )
    if keep:
        finals = [tail[-1].view(shape[1:]) for tail in tails]
    else:
        rest = torch.zeros((batch, count), dtype=acc, device=x.device)
        finals = [(rest if s is None else s.clone()).reshape(shape[1:]) for s in starts]
    return y.view(shape), finals


def output_dtype(
    x: torch.Tensor | PackedSpikes,
    initials: Sequence[torch.Tensor | None],
    dtype: torch.dtype | None,
) -> torch.dtype:
    """The dtype asked for, else that of a floating input or initial state, else the default."""
    sources = [*([] if isinstance(x, PackedSpikes) else [x]), *initials]
    floating = [s.dtype for s in sources if s is not None and s.is_floating_point()]
    return record_dtype(floating[0] if dtype is None and floating else dtype)


def _synapse_axes(shape: tuple[int, ...], coefficients: Sequence[Coefficient]) -> int:
    """How many of the last axes the coefficients span."""
    spans = [0]
    for value in coefficients:
        if isinstance(value, torch.Tensor) and value.numel() > 1:
            sizes = list(value.shape)
            while sizes[0] == 1:
                sizes.pop(0)
            spans.append(len(sizes))
    return min(max(spans), len(shape) - 1)


def coefficient(
    name: str,
    value: Coefficient,
    synapses: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> torch.Tensor:
    """0-d, or ``[N]``."""
    if isinstance(value, torch.Tensor):
        if value.is_complex() or value.layout != torch.strided:
            raise TypeError(f"{name} must be dense and real, but is {value.dtype}, {value.layout}")
        if value.is_meta and device.type != "meta":
            raise ValueError(f"{name} is on meta, where tensors hold no values")
    else:
        finite(name, value)
    tensor = as_tensor(value, dtype, device)
    if tensor.numel() == 1:
        return tensor.reshape(())
    sizes = tuple(tensor.shape)
    try:
        fits = torch.broadcast_shapes(sizes, synapses)[-len(synapses) :] == synapses
        fits = fits and math.prod(torch.broadcast_shapes(sizes, synapses)) == math.prod(synapses)
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(f"{name} has shape {sizes}, which does not broadcast to {synapses}")
    return tensor.broadcast_to(torch.broadcast_shapes(sizes, synapses)).reshape(-1)


def _check_initial(
    initial: torch.Tensor | None, shape: tuple[int, ...], device: torch.device
) -> None:
    """An initial state is None, or floating and of the shape of a step."""
    if initial is None:
        return
    check_floating("the initial state", initial)
    if tuple(initial.shape) != shape[1:]:
        raise ValueError(
            f"the initial state has shape {tuple(initial.shape)}, but must have {shape[1:]}"
        )
    if initial.device != device:
        raise ValueError(f"the initial state is on {initial.device}, but the input is on {device}")


def pack_spikes(x: torch.Tensor, *, backend: str | None = None) -> PackedSpikes:
    """Spikes ``[T, B, *shape]`` (``x != 0``) as bits, 32 synapses a word."""
    if not isinstance(x, torch.Tensor) or x.layout != torch.strided:
        raise TypeError(f"x must be a dense tensor, but is {x!r:.80}")
    if x.ndim < 3:
        raise ValueError(f"x has shape {tuple(x.shape)}, but must have (T, B, *shape)")
    shape = tuple(x.shape)
    rows = x.detach().reshape(shape[0] * shape[1], math.prod(shape[2:]))
    words = pack_rows(rows, backend)
    return PackedSpikes(words.view(*shape[:2], words_per_row(math.prod(shape[2:]))), shape)


def unpack_spikes(packed: PackedSpikes) -> torch.Tensor:
    """Inverse of :func:`pack_spikes`: bool ``[T, B, *shape]``."""
    if not isinstance(packed, PackedSpikes):
        raise TypeError(f"packed must be PackedSpikes, but is {packed!r:.80}")
    check_packed("packed", packed)
    return unpack_bits(packed.words, packed.synapses).view(packed.shape)
