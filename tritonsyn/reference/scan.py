"""Exponential scans of whole sequences: forward, adjoint, and the gradient of the constants."""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch

from ..values import WORD, PackedSpikes, unpack_bits, words_per_row
from .step import as_real, scaled

Pair = Sequence[torch.Tensor | None]

# Measured on two cores: from 100 steps and up to 8,192 synapses times batch, blocks win.
_BLOCKS_STEPS, _BLOCKS_ROW = 100, 8192


def scan(
    x: torch.Tensor | PackedSpikes,
    gain: torch.Tensor,
    decays: Sequence[torch.Tensor],
    initials: Pair,
    keep: int,
    dtype: torch.dtype | None,
) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
    """``C_c[t] = decay_c * C_c[t-1] + gain * x[t]`` for one or two components, T steps at once.

    ``x [T, B, N]`` or packed; ``gain`` and ``decays`` 0-d or ``[N]``; ``initials`` ``[B, N]`` or
    None. Returns the current ``[T, B, N]`` in ``dtype`` (first component, or first minus second;
    None without a ``dtype``) and the last ``keep <= T`` values of each component in the dtype of
    the decays.
    """
    components = _components(x, gain, decays, initials)
    steps = components[0].shape[0]
    tails = [component[steps - keep :].clone() for component in components]
    if dtype is None:
        return None, tails
    y = components[0] if len(components) == 1 else components[0].sub_(components[1])
    return y.to(dtype), tails


def _components(
    x: torch.Tensor | PackedSpikes,
    gain: torch.Tensor,
    decays: Sequence[torch.Tensor],
    initials: Pair,
) -> list[torch.Tensor]:
    """Each component ``[T, B, N]`` in the dtype of the decays."""
    dense = _dense(x)

    def begin(decay: torch.Tensor, initial: torch.Tensor | None) -> torch.Tensor:
        injected = _scaled(dense, gain)
        if initial is not None and injected.numel():
            injected[0].addcmul_(initial, decay)
        return injected

    pairs = zip(decays, initials, strict=True)
    return [_filtered(partial(begin, decay, initial), decay) for decay, initial in pairs]


def _dense(x: torch.Tensor | PackedSpikes) -> torch.Tensor:
    """The input ``[T, B, N]``."""
    if isinstance(x, PackedSpikes):
        return unpack_bits(x.words, x.synapses)
    return x


def _scaled(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """``factor * x``, packed, in new memory."""
    return scaled(x, factor).contiguous()


def _filtered(
    begin: Callable[[], torch.Tensor], decay: torch.Tensor, reverse: bool = False
) -> torch.Tensor:
    """``y[t] = x[t] + decay * y[t - 1]``, with ``reverse`` ``y[t + 1]``, in the memory of x.

    ``begin`` makes x, packed ``[T, B, N]``.
    """
    y = begin()
    small = y.device.type == "cpu" and 0 < y.numel() <= _BLOCKS_ROW * y.shape[0]
    if small and y.shape[0] >= _BLOCKS_STEPS:
        if _filter_blocks(y, decay, reverse):
            return y
        y = begin()
    _walk(_in_order(y, reverse), decay)
    return y


def _filter_blocks(y: torch.Tensor, decay: torch.Tensor, reverse: bool) -> bool:
    """Filters in place in ``sqrt(T)`` blocks at once, to each of which the one before is added.

    Small rows cost more to name than to add; here the operations are few and on many rows. False
    where a block or a power of the decay is not finite, which the sequence itself may be: ``y`` is
    then of no use.
    """
    length = math.isqrt(y.shape[0])
    rest = y.shape[0] % length
    whole, edge = (y[rest:], y[: rest + 1]) if reverse else (y[: -rest or None], y[-rest - 1 :])
    blocks = whole.unflatten(0, (-1, length))
    places = _in_order(blocks.transpose(0, 1), reverse)
    _walk(places, decay)
    exponents = torch.arange(1, length + 1, dtype=decay.dtype, device=decay.device)
    powers = decay ** exponents.view(-1, 1, 1)
    # What is not finite anywhere in a block is not at its end either.
    last = places[-1].clone()
    _walk(_in_order(last, reverse), powers[-1].view(decay.shape))
    if not math.isfinite(last.sum()):
        return False
    if reverse:
        blocks[:-1].addcmul_(last[1:, None], powers.flip(0))
    else:
        blocks[1:].addcmul_(last[:-1, None], powers)
    _walk(_in_order(edge, reverse), decay)
    return True


def _in_order(rows: torch.Tensor, reverse: bool) -> Sequence[torch.Tensor]:
    return rows.unbind(0)[::-1] if reverse else rows.unbind(0)


def _walk(rows: Sequence[torch.Tensor], decay: torch.Tensor) -> None:
    """``rows[i] += decay * rows[i - 1]`` in place, in the order given."""
    if decay.device.type == "cpu" and len(rows) > 1:
        # On a CPU these walk the lists in order, without the interpreter between two rows.
        later, earlier = list(rows[1:]), list(rows[:-1])
        if decay.ndim == 0:
            torch._foreach_add_(later, earlier, alpha=decay.item())
        else:
            torch._foreach_addcmul_(later, earlier, [decay] * len(later))
        return
    for before, row in itertools.pairwise(rows):
        row.addcmul_(before, decay)


def _adjoint(
    dy: torch.Tensor, dtail: torch.Tensor | None, decay: torch.Tensor, factor: torch.Tensor
) -> torch.Tensor:
    """``z[t] = factor * dy[t] + dtail[t] + decay * z[t+1]`` in new memory."""

    def begin() -> torch.Tensor:
        arriving = _scaled(dy, factor)
        if dtail is not None:
            arriving[arriving.shape[0] - dtail.shape[0] :] += dtail
        return arriving

    return _filtered(begin, decay, reverse=True)


def scan_backward(
    dy: torch.Tensor,
    dtails: Pair,
    x: torch.Tensor | PackedSpikes | None,
    gain: torch.Tensor,
    decays: Sequence[torch.Tensor],
    initials: Pair,
    dx_dtype: torch.dtype | None,
    want_initials: bool = True,
) -> tuple[torch.Tensor | None, list[torch.Tensor], list[torch.Tensor]]:
    """Adjoint of :func:`scan`: gradients of the input, of the initials and of the constants.

    ``dtails [keep, B, N]`` or None are the gradients of the last values of the components. With
    ``x`` given, the gradients of the gain and of each decay are returned too, ``[B, N]`` each, to
    be summed over what shares a value. ``dx_dtype`` None: the input's gradient is not wanted;
    without ``want_initials`` theirs are an empty list.
    """
    if dy.shape[0] == 0:
        zeros = [gain.new_zeros(dy.shape[1:]) for _ in range(1 + len(decays))]
        dx = None if dx_dtype is None else dy.new_zeros(dy.shape, dtype=dx_dtype)
        return dx, zeros[1:] if want_initials else [], [] if x is None else zeros
    # The adjoint is linear: where nothing but the input's gradient is wanted, the gain goes first.
    only_dx = x is None and not want_initials
    factor = gain if only_dx else torch.ones_like(gain)
    zs = [
        _adjoint(dy, None if dtail is None else dtail * factor, decay, sign * factor)
        for dtail, decay, sign in zip(dtails, decays, (1.0, -1.0), strict=False)
    ]
    dinitials = []
    if want_initials:
        dinitials = [z[0] * decay for z, decay in zip(zs, decays, strict=True)]
    constants = [] if x is None else _constants(zs, x, gain, decays, initials)
    dx = None
    if dx_dtype is not None:
        total = zs[0] if len(zs) == 1 else zs[0].add_(zs[1])
        dx = (total if only_dx else total.mul_(gain)).to(dx_dtype)
    return dx, dinitials, constants


def _constants(
    zs: Sequence[torch.Tensor],
    x: torch.Tensor | PackedSpikes,
    gain: torch.Tensor,
    decays: Sequence[torch.Tensor],
    initials: Pair,
) -> list[torch.Tensor]:
    """``sum_t z[t] * x[t]`` for the gain and ``sum_t z[t] * C[t-1]`` for each decay."""
    dense = _dense(x)
    real = as_real(dense, gain.dtype)
    total = zs[0] if len(zs) == 1 else zs[0] + zs[1]
    gradients = [(total * real).sum(0)]
    components = _components(dense, gain, decays, initials)
    for z, component, initial in zip(zs, components, initials, strict=False):
        ddecay = (z[1:] * component[:-1]).sum(0)
        gradients.append(ddecay if initial is None else ddecay.addcmul_(z[0], initial))
    return gradients


def pack(x: torch.Tensor) -> torch.Tensor:
    """``x [rows, N] != 0`` as int32 words ``[rows, ceil(N / 32)]``, bit ``n % 32`` of
    word ``n // 32``.
    """
    rows, synapses = x.shape
    width = words_per_row(synapses)
    bits = torch.zeros((rows, width * WORD), dtype=torch.int32, device=x.device)
    bits[:, :synapses] = x != 0
    place = torch.arange(WORD, dtype=torch.int32, device=x.device)
    return (bits.view(rows, width, WORD) << place).sum(-1, dtype=torch.int32)


def transpose_bits(words: torch.Tensor, synapses: int) -> torch.Tensor:
    """What :func:`pack` makes of the rows ``[rows, N]`` in ``words``, of their columns
    ``[N, rows]``.
    """
    return pack(unpack_bits(words, synapses).t())
