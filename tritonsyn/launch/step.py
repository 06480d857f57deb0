"""The fused step of an exponential synapse: decay, inject, record, in one launch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels.step import synapse_step_bwd_kernel, synapse_step_fwd_kernel
from ..values import Dynamics, Ring, Slot
from .launcher import both, constant_arguments, covering, launch, packed


def step(x: Tensor, ring: Ring, dynamics: Dynamics) -> Tensor:
    records, pointers, spikes, spike_pointer, arrivals, carries = ring
    slots, batch, synapses = records[0].shape
    y = torch.empty((batch, synapses), dtype=records[0].dtype, device=records[0].device)
    size = y.numel()
    constants, flags = constant_arguments(dynamics)
    states = (*both(records), *both(carries or ()))
    tensors = (packed(x), y, spikes, *states, *constants, arrivals)
    numbers = (*both(pointers), spike_pointer, slots, size, synapses)
    grid = covering(size)
    launch(synapse_step_fwd_kernel, grid, *tensors, *numbers, **flags, work=(size,), dtype=y.dtype)
    return y


def step_backward(
    dy: Tensor | None,
    drecords: Sequence[Tensor],
    dcarries: Sequence[Tensor] | None,
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
    constants, flags = constant_arguments(dynamics)
    dy = None if dy is None else packed(dy)
    tensors = (dy, dx, *both(drecords), *both(dcarries or ()), *both(zs), *constants)
    numbers = (*both(pointers), slots, size, synapses)
    grid, dtype = covering(size), like.dtype
    launch(synapse_step_bwd_kernel, grid, *tensors, *numbers, **flags, work=(size,), dtype=dtype)
    return dx, zs
