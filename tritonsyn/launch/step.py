"""The fused step of an exponential synapse: decay, inject, record, in one launch."""

from collections.abc import Sequence
from typing import Any

import torch

from ..kernels.step import synapse_step_bwd_kernel, synapse_step_fwd_kernel
from ..values import Slot
from .launcher import launch, tiles


def _coefficients(
    gain: torch.Tensor, decays: Sequence[torch.Tensor]
) -> tuple[list[torch.Tensor], dict[str, Any]]:
    """Gain, decay and rise, and the flags that say which of them has a value per synapse."""
    decay, rise = decays[0], decays[-1]
    flags = {
        "GAIN_PER_SYNAPSE": gain.ndim > 0,
        "DECAY_PER_SYNAPSE": decay.ndim > 0,
        "RISE_PER_SYNAPSE": rise.ndim > 0,
    }
    return [gain.contiguous(), decay.contiguous(), rise.contiguous()], flags


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
    slots, batch, synapses = records[0].shape
    y = torch.empty((batch, synapses), dtype=records[0].dtype, device=records[0].device)
    size = y.numel()
    if size == 0:
        return y
    coefficients, flags = _coefficients(gain, decays)
    launch(
        synapse_step_fwd_kernel, lambda config: (tiles(size, config.BLOCK),),
        x.contiguous(), y, spikes, records[0], records[-1],
        *coefficients, arrivals,
        pointers[0], pointers[-1], spike_pointer,
        slots, size, synapses,
        DOUBLE=len(records) == 2, **flags, work=(size,), dtype=y.dtype,
    )  # fmt: skip
    return y


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
    slots, batch, synapses = drecords[0].shape
    size = batch * synapses
    like = drecords[0][0]
    dx = None if dx_dtype is None else torch.empty_like(like, dtype=dx_dtype)
    zs = [torch.empty_like(like, dtype=gain.dtype) for _ in drecords] if want_z else []
    if size == 0:
        return dx, zs
    coefficients, flags = _coefficients(gain, decays)
    launch(
        synapse_step_bwd_kernel, lambda config: (tiles(size, config.BLOCK),),
        None if dy is None else dy.contiguous(), dx, drecords[0], drecords[-1],
        zs[0] if zs else None, zs[-1] if zs else None,
        *coefficients,
        pointers[0], pointers[-1],
        slots, size, synapses,
        DOUBLE=len(drecords) == 2, **flags, work=(size,), dtype=like.dtype,
    )  # fmt: skip
    return dx, zs
