"""Exponential scans of whole sequences: forward, adjoint, and the gradient of the constants."""

from collections.abc import Sequence

import torch

from ..packing import WORD, PackedSpikes, words_per_row
from .synapse import as_real

Pair = Sequence[torch.Tensor | None]


def scan(
    x: torch.Tensor | PackedSpikes,
    gain: torch.Tensor,
    decays: Sequence[torch.Tensor],
    initials: Pair,
    keep: int,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor | None]]:
    """``C_c[t] = decay_c * C_c[t-1] + gain * x[t]`` for one or two components, T steps at once.

    ``x [T, B, N]`` or packed; ``gain`` and ``decays`` 0-d or ``[N]``; ``initials`` ``[B, N]`` or
    None. Returns the current ``[T, B, N]`` in ``dtype`` (first component, or first minus second),
    the last ``keep <= T`` values of each component in the dtype of the decays, and what
    :func:`scan_backward` wants of the components on the way.
    """
    components = _components(x, gain, decays, initials)
    steps = components[0].shape[0]
    tails = [component[steps - keep :].clone() for component in components]
    y = components[0] if len(components) == 1 else components[0].sub_(components[1])
    return y.to(dtype), tails, list(initials)


def _components(
    x: torch.Tensor | PackedSpikes,
    gain: torch.Tensor,
    decays: Sequence[torch.Tensor],
    initials: Pair,
) -> list[torch.Tensor]:
    """Each component ``[T, B, N]`` in the dtype of the decays."""
    injected = _real(x, gain.dtype) * gain
    copies = [injected, *(injected.clone() for _ in decays[1:])]
    for component, decay, initial in zip(copies, decays, initials, strict=False):
        _accumulate(component, decay, initial)
    return copies


def _real(x: torch.Tensor | PackedSpikes, dtype: torch.dtype) -> torch.Tensor:
    """The input ``[T, B, N]`` in the dtype of the arithmetic."""
    if isinstance(x, PackedSpikes):
        steps, batch = x.shape[:2]
        bits = unpack(x.words.reshape(steps * batch, -1), x.synapses)
        return as_real(bits, dtype).view(steps, batch, x.synapses)
    return as_real(x, dtype)


def _accumulate(rows: torch.Tensor, decay: torch.Tensor, initial: torch.Tensor | None) -> None:
    """``rows[t] += decay * rows[t - 1]`` in place, in order of the first axis."""
    if rows.numel() == 0:
        return
    first, *later = rows.unbind(0)
    if initial is not None:
        first.addcmul_(initial.to(rows.dtype), decay)
    if decay.ndim == 0 and decay.device.type == "cpu":
        factor = decay.item()
        for row in later:
            row.add_(first, alpha=factor)
            first = row
        return
    for row in later:
        row.addcmul_(first, decay)
        first = row


def _adjoint(dy: torch.Tensor, dtail: torch.Tensor | None, decay: torch.Tensor) -> torch.Tensor:
    """``z[t] = dy[t] + dtail[t] + decay * z[t+1]``; the result is laid out backward in time."""
    z = dy.flip(0)
    if dtail is not None:
        z[: dtail.shape[0]] += dtail.flip(0)
    _accumulate(z, decay, None)
    return z


def scan_backward(
    dy: torch.Tensor,
    dtails: Pair,
    keep: int,
    x: torch.Tensor | PackedSpikes | None,
    gain: torch.Tensor,
    decays: Sequence[torch.Tensor],
    carries: Pair,
    dx_dtype: torch.dtype | None,
) -> tuple[torch.Tensor | None, list[torch.Tensor], list[torch.Tensor]]:
    """Adjoint of :func:`scan`: gradients of the input, of the initials and of the constants.

    ``dtails [keep, B, N]`` or None are the gradients of the last values of the components. With
    ``x`` given, the gradients of the gain and of each decay are returned too, ``[B, N]`` each, to
    be summed over what shares a value. ``dx_dtype`` None: the input's gradient is not wanted.
    """
    dy = dy.to(gain.dtype)
    zs = [_adjoint(dy, dtails[0], decays[0])]
    if len(decays) == 2:
        zs.append(_adjoint(-dy, dtails[1], decays[1]))
    if dy.shape[0] == 0:
        zeros = [dy.new_zeros(dy.shape[1:]) for _ in range(1 + len(decays))]
        dx = None if dx_dtype is None else dy.to(dx_dtype)
        return dx, zeros[1:], zeros if x is not None else []
    dinitials = [z[-1] * decay for z, decay in zip(zs, decays, strict=True)]
    constants = [] if x is None else _constants(zs, x, gain, decays, carries)
    dx = None
    if dx_dtype is not None:
        total = zs[0] if len(zs) == 1 else zs[0].add_(zs[1])
        dx = total.mul_(gain).flip(0).to(dx_dtype)
    return dx, dinitials, constants


def _constants(
    zs: Sequence[torch.Tensor],
    x: torch.Tensor | PackedSpikes,
    gain: torch.Tensor,
    decays: Sequence[torch.Tensor],
    initials: Pair,
) -> list[torch.Tensor]:
    """``sum_t z[t] * x[t]`` for the gain and ``sum_t z[t] * C[t-1]`` for each decay."""
    backward = _real(x, gain.dtype).flip(0)
    dgain = sum((z * backward).sum(0) for z in zs)
    gradients = [dgain]
    for z, component, initial in zip(
        zs, _components(x, gain, decays, initials), initials, strict=False
    ):
        ddecay = (z[:-1] * component[:-1].flip(0)).sum(0)
        gradients.append(ddecay if initial is None else ddecay.addcmul_(z[-1], initial))
    return gradients  # type: ignore[return-value]


def pack(x: torch.Tensor) -> torch.Tensor:
    """``x [rows, N] != 0`` as words ``[rows, ceil(N / 32)]`` int32, bit ``n % 32`` of word ``n // 32``."""
    rows, synapses = x.shape
    width = words_per_row(synapses)
    bits = torch.zeros((rows, width * WORD), dtype=torch.int32, device=x.device)
    bits[:, :synapses] = x != 0
    place = torch.arange(WORD, dtype=torch.int32, device=x.device)
    return (bits.view(rows, width, WORD) << place).sum(-1, dtype=torch.int32)


def unpack(words: torch.Tensor, synapses: int) -> torch.Tensor:
    """Inverse of :func:`pack`: bool ``[rows, N]``."""
    place = torch.arange(WORD, dtype=torch.int32, device=words.device)
    bits = (words.unsqueeze(-1) >> place) & 1
    return bits.flatten(1)[:, :synapses].bool()
