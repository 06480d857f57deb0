"""The step of an exponential synapse as a differentiable operation on its records."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..values import Dynamics, Slot
from .common import (
    Layout,
    chained,
    first_order,
    flat_observation,
    flat_record,
    hand_over,
    held,
    implementation,
    over_synapses,
    own_gradient,
    unchained,
    without_graph,
)
from .operator import traced_as
from .record import read, row_slots, write_slots


class Ring(NamedTuple):
    """The records of a group of synapses, and the slot that each writes next."""

    components: tuple[Tensor, ...]
    """The record of each state: ``[K, B, *shape]``, floating."""
    pointers: tuple[Slot, ...]
    spikes: Tensor
    """``[K, B, *shape]``, bool."""
    spike_pointer: Slot
    arrivals: Tensor | None = None
    """An int32 zero, with which a step advances pointers that are kept on the device; None leaves
    them, as numbers are left."""


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        modules: tuple[ModuleType, ModuleType],
        ring: Ring,
        coupled: bool,
        x: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        count = len(tensors) - len(ring.components)
        constants, records = tensors[:count], tensors[count:]
        wants_gain, *wants_others = ctx.needs_input_grad[4 : 4 + count]
        flat = [flat_record(record.detach()) for record in records]
        newest = []
        if any(wants_others):
            slots = [(pointer - 1) % flat[0].shape[0] for pointer in ring.pointers]
            newest = [read(record, slot)[1] for record, slot in zip(flat, slots, strict=True)]
        ctx.pointers = tuple(map(held, ring.pointers))
        y = _run(modules[0], ring, flat, x, Dynamics.of(constants, coupled))
        ctx.mark_dirty(*records)
        ctx.set_materialize_grads(False)
        ctx.modules, ctx.coupled, ctx.x_dtype = modules, coupled, x.dtype
        ctx.layout, ctx.count = Layout.of(records[0]), count
        ctx.save_for_backward(*constants, *newest, *([x] if wants_gain else []))
        return (y, *records)

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor | None, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        states, count = len(given), ctx.count
        if dy is None and all(d is None for d in given):
            return (None,) * (4 + count + states)
        step, reads = ctx.modules
        constants, saved = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        dynamics = Dynamics.of(constants, ctx.coupled)
        wants_x, wanted = ctx.needs_input_grad[3], ctx.needs_input_grad[4 : 4 + count]
        layout, pointers = ctx.layout, ctx.pointers
        if all(d is None for d in given) and not any(ctx.needs_input_grad[4 + count :]):
            # No step before or after this one takes part: one slot is enough for its gradient.
            layout, pointers = layout.slots(1), (0,) * states
        owned = [own_gradient(ctx, d, layout) for d in given]
        flat = [flat_record(d) for d in owned]
        dx, zs = step.step_backward(
            dy, flat, dynamics, pointers, ctx.x_dtype if wants_x else None, any(wanted)
        )
        dconstants: list[Tensor | None] = [None] * count
        if wanted[0]:
            x = saved[-1].reshape(flat[0].shape[1:]).to(dynamics.gain.dtype)
            z = zs[0] if dynamics.inputs == 1 else zs[0] + zs[1]
            dconstants[0] = over_synapses(reads.batch_dot(z, x), constants[0])
        if any(wanted[1:]):
            newest = [state.to(dynamics.gain.dtype) for state in saved[:states]]
            pairs = zip(_sensitivities(zs, newest, dynamics), constants[1:], strict=True)
            for i, (terms, like) in enumerate(pairs, 1):
                first, *others = (reads.batch_dot(*term) for term in terms)
                dconstants[i] = over_synapses(sum(others, first), like)
        if dx is not None:
            dx = dx.view(ctx.layout.shape[1:])
        drecords: list[Tensor | None] = [None] * states
        if layout is ctx.layout:
            drecords = [hand_over(ctx, d, i - states) for i, d in enumerate(owned)]
        return None, None, None, dx, *dconstants, *drecords


Terms = list[tuple[Tensor, Tensor]]


def _sensitivities(
    zs: Sequence[Tensor], newest: Sequence[Tensor], dynamics: Dynamics
) -> list[Terms]:
    """For each decay, and for a coupling: pairs whose products add up to its gradient."""
    if dynamics.coupling is None:
        return [[pair] for pair in zip(zs, newest, strict=True)]
    joined = torch.addcmul(newest[1], newest[0], dynamics.coupling)
    return [[(zs[0], newest[0]), (zs[1], joined)], [(zs[1] * dynamics.decay(1), newest[0])]]


def _run(
    module: ModuleType, ring: Ring, flat: Sequence[Tensor], x: Tensor, dynamics: Dynamics
) -> Tensor:
    """The step on flat tensors: the current ``[B, N]``.

    Reshaped outside the Function: a view returned from a Function cannot be written in place.
    """
    return module.step(
        flat_observation(x),
        flat,
        flat_record(ring.spikes),
        dynamics,
        ring.pointers,
        ring.spike_pointer,
        ring.arrivals,
    )


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
    device = ring.spikes.device
    module = implementation("step", device, backend)
    torch.autograd.graph.increment_version(ring.spikes)
    if graph and chained(x, *dynamics.constants, *ring.components):
        modules = (module, implementation("read", device, backend))
        coupled = dynamics.coupling is not None
        y, *records = _Step.apply(modules, ring, coupled, x, *dynamics.constants, *ring.components)
        return _shaped(y, x), tuple(records)
    records = tuple([unchained(record) for record in ring.components])
    with without_graph():
        y = _run(module, ring, [flat_record(record) for record in records], x, dynamics)
    return _shaped(y, x), records


def _shaped(y: Tensor, x: Tensor) -> Tensor:
    return y if y.shape == x.shape else y.view(x.shape)
