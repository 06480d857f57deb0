"""The step of an exponential synapse: decay, inject, record."""

from collections.abc import Sequence

import torch


def step(
    x: torch.Tensor,
    records: Sequence[torch.Tensor],
    spikes: torch.Tensor,
    gain: torch.Tensor,
    decays: Sequence[torch.Tensor],
    pointers: Sequence[int],
    spike_pointer: int,
) -> torch.Tensor:
    """One step in place: ``C' = decay_c * C + gain * x`` for one or two components.

    ``x [B, N]``; ``records`` one or two ``[K, B, N]``, whose newest slot ``pointer - 1`` is read
    and whose slot ``pointer`` is written; ``spikes [K, B, N]`` bool; ``gain`` and ``decays`` 0-d
    or ``[N]``. Returns the current: the first component, or the first minus the second.
    """
    spikes[spike_pointer].copy_(x)
    injected = _injected(x, gain)
    newest = []
    for record, decay, pointer in zip(records, decays, pointers, strict=True):
        written = record[pointer]
        if record.dtype == decay.dtype:
            torch.mul(record[pointer - 1], decay, out=written).add_(injected)
        else:
            written.copy_((record[pointer - 1] * decay.unsqueeze(0)).add_(injected))
        newest.append(written)
    return newest[0].clone() if len(newest) == 1 else newest[0] - newest[1]


def _injected(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """``gain * x`` in the dtype of the gain."""
    if x.is_floating_point() and x.dtype != gain.dtype:
        x = x.to(gain.dtype)
    return x * gain


def step_backward(
    dy: torch.Tensor | None,
    drecords: Sequence[torch.Tensor],
    gain: torch.Tensor,
    decays: Sequence[torch.Tensor],
    pointers: Sequence[int],
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
    for drecord, decay, pointer in zip(drecords, decays, pointers, strict=True):
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
