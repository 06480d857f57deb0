"""The step of an exponential synapse as a differentiable operation on its records."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..values import Dynamics, Ring
from .common import (
    chained,
    first_order,
    flat_observation,
    flat_record,
    hand_over,
    held,
    implementation,
    link,
    over_synapses,
    own_gradient,
    unchained,
    without_graph,
)
from .operator import traced_as
from .record import read, row_slots, write_slots

Modules = tuple[ModuleType, ModuleType]
"""The implementations of steps and of reads, which forward and backward pass share."""


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, modules: Modules, ring: Ring, coupled: bool, x: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        states = len(ring.components)
        constants, records = tensors[:-states], tensors[-states:]
        wants_gain, *wants_others = ctx.needs_input_grad[4:-states]
        flat = [flat_record(record.detach()) for record in records]
        newest = []
        if any(wants_others):
            slots = [(pointer - 1) % flat[0].shape[0] for pointer in ring.pointers]
            newest = [read(record, slot)[1] for record, slot in zip(flat, slots, strict=True)]
        ctx.save_for_backward(x if wants_gain else None, *newest, *constants)
        ctx.pointers = list(map(held, ring.pointers))
        ctx.modules, ctx.coupled, ctx.x_dtype = modules, coupled, x.dtype
        link(ctx, *records)
        return (_run(modules[0], ring, flat, x, Dynamics.of(constants, coupled)), *records)

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor | None, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        states, (step, reads) = len(given), ctx.modules
        wants_x, *wanted = ctx.needs_input_grad[3:-states]
        x, *saved = ctx.saved_tensors
        newest, constants = saved[: -len(wanted)], saved[-len(wanted) :]
        dynamics = Dynamics.of(constants, ctx.coupled)
        alone = all(d is None for d in given) and not any(ctx.needs_input_grad[-states:])
        # Where no step before or after takes part, one slot is enough for the gradient.
        pointers = [0] * states if alone else ctx.pointers
        owned = [own_gradient(ctx, d, 1 if alone else None) for d in given]
        flat, x_dtype = [flat_record(d) for d in owned], ctx.x_dtype if wants_x else None
        dx, zs = step.step_backward(dy, flat, dynamics, pointers, x_dtype, any(wanted))
        dconstants: list[Tensor | None] = [None] * len(wanted)
        if zs:
            pairs = zip(_terms(zs, x, newest, dynamics), constants, strict=True)
            dconstants = [_gradient(terms, constant, reads) for terms, constant in pairs]
        if dx is not None:
            dx = dx.view(owned[0].shape[1:])
        drecords = [None if alone else hand_over(ctx, d, i) for i, d in enumerate(owned, -states)]
        return None, None, None, dx, *dconstants, *drecords


Terms = list[tuple[Tensor, Tensor]]
"""Pairs of tensors ``[B, N]`` whose products add up to a gradient."""


def _terms(
    zs: Sequence[Tensor], x: Tensor | None, newest: Sequence[Tensor], dynamics: Dynamics
) -> list[Terms]:
    """The terms of each constant; none of the gain without ``x``, of others without ``newest``."""
    terms: list[Terms] = [[] for _ in dynamics.constants]
    states = [state.to(dynamics.gain.dtype) for state in newest]
    if x is not None:
        taking = zs[0] if dynamics.inputs == 1 else zs[0] + zs[1]
        terms[0] = [(taking, flat_observation(x).to(taking.dtype))]
    if states and dynamics.coupling is not None:
        joined = torch.addcmul(states[1], states[0], dynamics.coupling)
        terms[1] = [(zs[0], states[0]), (zs[1], joined)]
        terms[2] = [(zs[1] * dynamics.decay(1), states[0])]
    elif states:
        terms[1:] = [[pair] for pair in zip(zs, states, strict=True)]
    return terms


def _gradient(terms: Terms, constant: Tensor, reads: ModuleType) -> Tensor | None:
    if not terms:
        return None
    first, *others = (reads.batch_dot(*pair) for pair in terms)
    return over_synapses(sum(others, first), constant)


def _run(
    module: ModuleType, ring: Ring, flat: Sequence[Tensor], x: Tensor, dynamics: Dynamics
) -> Tensor:
    """The step on flat tensors: the current ``[B, N]``.

    Reshaped outside the Function: a view returned from a Function cannot be written in place.
    """
    _, pointers, spikes, spike_pointer, arrivals = ring
    ring = Ring(flat, pointers, flat_record(spikes), spike_pointer, arrivals)
    return module.step(flat_observation(x), ring, dynamics)


def _traced_step(
    x: Tensor, ring: Ring, dynamics: Dynamics, *, graph: bool = True, backend: str | None = None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The step as an expression, which ``torch.compile`` fuses into one kernel by itself."""
    constants = [c.view(x.shape[1:]) if c.ndim else c for c in dynamics.constants]
    dynamics = Dynamics.of(constants, dynamics.coupling is not None)
    with torch.set_grad_enabled(graph and torch.is_grad_enabled()):
        pairs = list(zip(ring.components, ring.pointers, strict=True))
        newest = [read(record, (p - 1) % record.shape[0])[1] for record, p in pairs]
        stored = _advanced(x, newest, dynamics)
        records = tuple(
            write_slots(record, value.unsqueeze(0), row_slots(p, 1, record))
            for (record, p), value in zip(pairs, stored, strict=True)
        )
        spikes = x.detach().unsqueeze(0)
        write_slots(ring.spikes, spikes, row_slots(ring.spike_pointer, 1, ring.spikes))
        y = dynamics.current(stored)
        y = y if dynamics.inputs == 2 else y.clone()
    return y, records


def _advanced(x: Tensor, newest: Sequence[Tensor], dynamics: Dynamics) -> list[Tensor]:
    """The states after a step, in the records' dtype."""
    dtype = newest[0].dtype
    states = [state.to(dynamics.gain.dtype) for state in newest]
    injected = dynamics.gain * x.to(dynamics.gain.dtype)
    advanced = [
        state * decay + injected for state, decay in zip(states, dynamics.decays, strict=False)
    ]
    if dynamics.coupling is not None:
        advanced.append((states[1] + dynamics.coupling * states[0]) * dynamics.decay(1))
    return [state.to(dtype) for state in advanced]


@traced_as(_traced_step)
def step(
    x: Tensor, ring: Ring, dynamics: Dynamics, *, graph: bool = True, backend: str | None = None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """:func:`tritonsyn.functional.step`, with constants that are 0-d or ``[N]``."""
    module = implementation("step", x.device, backend)
    torch.autograd.graph.increment_version(ring.spikes)
    if graph and chained(x, *dynamics.constants, *ring.components):
        modules = module, implementation("read", x.device, backend)
        coupled = dynamics.coupling is not None
        y, *records = _Step.apply(modules, ring, coupled, x, *dynamics.constants, *ring.components)
        return _shaped(y, x), tuple(records)
    records = tuple([unchained(record) for record in ring.components])
    with without_graph():
        y = _run(module, ring, [flat_record(record) for record in records], x, dynamics)
    return _shaped(y, x), records


def _shaped(y: Tensor, x: Tensor) -> Tensor:
    return y if y.shape == x.shape else y.view(x.shape)
