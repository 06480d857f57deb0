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
    drecords: Sequence[Tensor] | None,
    dcarries: Sequence[Tensor] | None,
    dynamics: Dynamics,
    pointers: Sequence[Slot],
    dx_dtype: torch.dtype | None,
    want_z: bool,
) -> tuple[Tensor | None, list[Tensor]]:
    like = dy if drecords is None else drecords[0][0]
    assert like is not None
    size, synapses, slots = like.numel(), like.shape[1], 1 if drecords is None else len(drecords[0])
    dtypes = [dynamics.gain.dtype] * (dynamics.states if want_z else 0)
    zs = [torch.empty(like.shape, dtype=dtype, device=like.device) for dtype in dtypes]
    dx = None
    if dx_dtype is not None:
        dx = torch.empty(like.shape, dtype=dx_dtype, device=like.device)
    constants, flags = constant_arguments(dynamics)
    dy = None if dy is None else packed(dy)
    tensors = (dy, dx, *both(drecords or ()), *both(dcarries or ()), *both(zs), *constants)
    numbers = (*both(pointers), slots, size, synapses)
    grid, dtype = covering(size), like.dtype
    launch(synapse_step_bwd_kernel, grid, *tensors, *numbers, **flags, work=(size,), dtype=dtype)
    return dx, zs
