"""The step of an exponential synapse: decay, inject, record."""

from collections.abc import Sequence

import torch

from ..values import Slot


def step(
    x: torch.Tensor,
    records: Sequence[torch.Tensor],
    spikes: torch.Tensor,
    gain: torch.Tensor,
    decays: Sequence[torch.Tensor],
    pointers: Sequence[Slot],
    spike_pointer: Slot,
    arrivals: torch.Tensor | None = None,
) -> torch.Tensor:
    """One step in place: ``C' = decay_c * C + gain * x`` for one or two components.

    ``x [B, N]``; ``records`` one or two ``[K, B, N]``, whose newest slot ``pointer - 1`` is read
    and whose slot ``pointer`` is written; ``spikes [K, B, N]`` bool; ``gain`` and ``decays`` 0-d
    or ``[N]``. With ``arrivals``, an int32 zero on the device, pointers that are kept there
    advance. Returns the current: the first component, or the first minus the second.
    """
    spikes[int(spike_pointer)].copy_(x)
    drive = scaled(x, gain)
    currents: list[torch.Tensor] = []
    for record, decay, pointer in zip(records, decays, map(int, pointers), strict=True):
        before = record[pointer - 1].to(gain.dtype)
        # The last component may have the drive's memory: it is in the cache, a slot is not.
        last = len(currents) == len(records) - 1
        current = _add_decayed(drive, before, decay, drive if last else torch.empty_like(drive))
        record[pointer].copy_(current)
        currents.append(current.to(record.dtype))
    if arrivals is not None:
        for slot in (*pointers, spike_pointer):
            if isinstance(slot, torch.Tensor):
                slot.add_(1).remainder_(len(spikes))
    return currents[0] if len(currents) == 1 else currents[0].sub_(currents[1])


def as_real(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The input in the dtype of the arithmetic."""
    if x.dtype == torch.bool:
        # The same bits; PyTorch converts them several times faster than booleans.
        x = x.view(torch.uint8)
    return x.to(dtype)


def scaled(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """``gain * x`` in new memory, in the dtype of the gain."""
    real = as_real(x, gain.dtype)
    return real * gain if real is x else real.mul_(gain)


def _add_decayed(
    drive: torch.Tensor, before: torch.Tensor, decay: torch.Tensor, out: torch.Tensor
) -> torch.Tensor:
    """``drive + decay * before``."""
    if decay.ndim == 0 and decay.device.type == "cpu":
        return torch.add(drive, before, alpha=decay.item(), out=out)
    return torch.addcmul(drive, before, decay, out=out)


def step_backward(
    dy: torch.Tensor | None,
    drecords: Sequence[torch.Tensor],
    gain: torch.Tensor,
    decays: Sequence[torch.Tensor],
    pointers: Sequence[Slot],
    dx_dtype: torch.dtype | None,
    want_z: bool,
) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
    """Adjoint of :func:`step`; ``drecords`` are updated in place.

    ``z_c = +-dy + drecord_c[pointer]`` leaves its slot and ``decay_c * z_c`` joins the slot
    before. Returns ``dx = gain * sum(z_c)`` in ``dx_dtype`` (None: not wanted) and the ``z_c``
    (empty unless ``want_z``).
    """
    zs = []
    sign = 1.0
    for drecord, decay, pointer in zip(drecords, decays, map(int, pointers), strict=True):
        z = drecord[pointer].to(decay.dtype, copy=True)
        if dy is not None:
            z.add_(dy, alpha=sign)
        drecord[pointer].zero_()
        drecord[pointer - 1].add_(z * decay)
        zs.append(z)
        sign = -1.0
    dx = None
    if dx_dtype is not None:
        dx = ((zs[0] if len(zs) == 1 else zs[0] + zs[1]) * gain).to(dx_dtype)
    return dx, zs if want_z else []
