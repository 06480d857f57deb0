"""The fused step of an exponential synapse: decay, inject, record, in one launch."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..kernels.step import synapse_step_bwd_kernel, synapse_step_fwd_kernel
from ..values import Dynamics, Ring, Slot
from .launcher import (
    Launch,
    both,
    constant_arguments,
    covering,
    launch,
    launch_of,
    packed,
    repeated,
    run,
)


def step(x: Tensor, ring: Ring, dynamics: Dynamics) -> Tensor:
    y = torch.empty(x.shape, dtype=ring.components[0].dtype, device=x.device)
    run(_launch(x, y, ring, dynamics))
    return y


def step_again(
    x: Tensor, ring: Ring, dynamics: Dynamics
) -> Callable[[Tensor, Sequence[Slot]], Tensor] | None:
    like, double = ring.components[0][0], dynamics.states == 2
    made = _launch(x, torch.empty_like(like), ring, dynamics)
    again, tensors, sizes = repeated(made), made.arguments[2:-6], made.arguments[-3:]

    def advance(x: Tensor, slots: Sequence[Slot]) -> Tensor:
        y = torch.empty_like(like)
        again(x, y, *tensors, slots[0], slots[1] if double else None, slots[-1], *sizes)
        return y

    return advance


def _launch(x: Tensor, y: Tensor, ring: Ring, dynamics: Dynamics) -> Launch:
    records, pointers, spikes, spike_pointer, arrivals, carries = ring
    slots, size, synapses = len(spikes), y.numel(), records[0].shape[2:].numel()
    constants, flags = constant_arguments(dynamics)
    states = (*both(records), *both(carries or ()))
    tensors = (packed(x), y, spikes, *states, *constants, arrivals)
    numbers = (*both(pointers), spike_pointer, slots, size, synapses)
    grid = covering(size)
    arguments = (*tensors, *numbers)
    how = {"work": (size,), "dtype": y.dtype, **flags}
    return launch_of(synapse_step_fwd_kernel, grid, *arguments, **how)


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
