"""The fused step of an exponential synapse: decay, inject, record, in one launch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels.step import synapse_step_bwd_kernel, synapse_step_fwd_kernel
from ..values import Dynamics, Slot
from .launcher import constant_arguments, launch, tiles


def step(
    x: Tensor,
    records: Sequence[Tensor],
    spikes: Tensor,
    dynamics: Dynamics,
    pointers: Sequence[Slot],
    spike_pointer: Slot,
    arrivals: Tensor | None = None,
) -> Tensor:
    slots, batch, synapses = records[0].shape
    y = torch.empty((batch, synapses), dtype=records[0].dtype, device=records[0].device)
    size = y.numel()
    if size == 0:
        return y
    constants, flags = constant_arguments(dynamics)
    launch(
        synapse_step_fwd_kernel, lambda config: (tiles(size, config.BLOCK),),
        x.contiguous(), y, spikes, records[0], records[-1],
        *constants, arrivals,
        pointers[0], pointers[-1], spike_pointer,
        slots, size, synapses,
        DOUBLE=len(records) == 2, **flags, work=(size,), dtype=y.dtype,
    )  # fmt: skip
    return y


def step_backward(
    dy: Tensor | None,
    drecords: Sequence[Tensor],
    dynamics: Dynamics,
    pointers: Sequence[Slot],
    dx_dtype: torch.dtype | None,
    want_z: bool,
) -> tuple[Tensor | None, list[Tensor]]:
    slots, batch, synapses = drecords[0].shape
    size = batch * synapses
    like = drecords[0][0]
    dx = None if dx_dtype is None else torch.empty_like(like, dtype=dx_dtype)
    zs = [torch.empty_like(like, dtype=dynamics.gain.dtype) for _ in drecords] if want_z else []
    if size == 0:
        return dx, zs
    constants, flags = constant_arguments(dynamics)
    launch(
        synapse_step_bwd_kernel, lambda config: (tiles(size, config.BLOCK),),
        None if dy is None else dy.contiguous(), dx, drecords[0], drecords[-1],
        zs[0] if zs else None, zs[-1] if zs else None,
        *constants,
        pointers[0], pointers[-1],
        slots, size, synapses,
        DOUBLE=len(drecords) == 2, **flags, work=(size,), dtype=like.dtype,
    )  # fmt: skip
    return dx, zs
