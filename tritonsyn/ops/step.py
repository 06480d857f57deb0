"""The step of an exponential synapse as a differentiable operation on its records."""

from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..values import Dynamics, Ring, Slot
from .common import (
    Home,
    bare_apply,
    chained,
    first_order,
    flat_observation,
    flat_record,
    hand_over,
    held,
    implementation,
    kind_of,
    link,
    saved,
    unchained,
    without_graph,
    without_owner,
)
from .operator import traced_as
from .record import row_slots, write_slots
from .ring import flat_ring, newest, own_state, ring_state


class _How(NamedTuple):
    """What both passes of a step share besides tensors."""

    step: ModuleType
    reads: ModuleType
    """The implementations, which are the same whatever the default is by then."""
    coupled: bool
    state: int
    """Number of records and carries."""

    @classmethod
    def of(cls, ring: Ring, dynamics: Dynamics, backend: str | None) -> "_How":
        step, reads = (implementation(n, ring.spikes.device, backend) for n in ("step", "read"))
        return cls(step, reads, dynamics.coupling is not None, len(ring_state(ring)))


class _Step(torch.autograd.Function):
    """``advance`` is the step itself, and returns the current. ``present`` are the states before
    where constants are learned. ``tensors`` are the constants, the records and, where there are
    any, the carries."""

    @staticmethod
    def forward(
        ctx: Any,
        how: _How,
        advance: Callable[[], Tensor],
        pointers: Sequence[Slot],
        present: Sequence[Tensor],
        x: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        constants, state = tensors[: -how.state], tensors[-how.state :]
        wants_gain = ctx.needs_input_grad[5]
        ctx.save_for_backward(x if wants_gain else None, *present, *constants)
        ctx.how, ctx.pointers, ctx.x_dtype = how, pointers, x.dtype
        link(ctx, *state)
        return (advance(), *state)

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor | None, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        count, states, (step, reads, coupled, _) = len(given), len(ctx.pointers), ctx.how
        wants_x, *wanted = ctx.needs_input_grad[4:-count]
        x, *others = saved(ctx)
        present, constants = others[: -len(wanted)], others[-len(wanted) :]
        dynamics = Dynamics.of(constants, coupled)
        owned = own_state(ctx, given, states, dynamics.gain.dtype)
        drecords = [flat_record(d) for d in owned[:states]] or None
        dcarries = [flat_observation(d) for d in owned[states:]] or None
        x_dtype = ctx.x_dtype if wants_x else None
        dy = None if dy is None else flat_observation(dy)
        operands = (dy, drecords, dcarries, dynamics, ctx.pointers)
        dx, zs = step.step_backward(*operands, x_dtype, any(wanted))
        dconstants: list[Tensor | None] = [None] * len(wanted)
        if zs:
            pairs = zip(_terms(zs, x, present, dynamics), constants, strict=True)
            dconstants = [_gradient(terms, constant, reads) for terms, constant in pairs]
        if dx is not None:
            dx = dx.view(ctx.record[0][1:])
        dstate = [hand_over(ctx, d, i) for i, d in enumerate(owned, -count)] or [None] * count
        return None, None, None, None, dx, *dconstants, *dstate


Terms = list[tuple[Tensor, Tensor]]
"""Pairs of tensors ``[B, N]`` whose products add up to a gradient, in the dtype of the first."""


def _terms(
    zs: Sequence[Tensor], x: Tensor | None, present: Sequence[Tensor], dynamics: Dynamics
) -> list[Terms]:
    """The terms of each constant; none of the gain without ``x``, of others without ``present``."""
    terms: list[Terms] = [[] for _ in dynamics.constants]
    states = [state.to(dynamics.gain.dtype) for state in present]
    if x is not None:
        taking = zs[0] if dynamics.inputs == 1 else zs[0] + zs[1]
        terms[0] = [(taking, flat_observation(x))]
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
    first, *others = (reads.batch_dot(*pair, not constant.ndim) for pair in terms)
    return sum(others, first)


def _traced_step(
    x: Tensor, ring: Ring, dynamics: Dynamics, *, graph: bool = True, backend: str | None = None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The step as an expression, which ``torch.compile`` fuses into one kernel by itself."""
    constants = [c.view(x.shape[1:]) if c.ndim else c for c in dynamics.constants]
    dynamics = Dynamics.of(constants, dynamics.coupling is not None)
    with torch.set_grad_enabled(graph and torch.is_grad_enabled()):
        states = _advanced(x, newest(ring), dynamics)
        dtype = ring.components[0].dtype
        if not ring.carries:
            states = [state.to(dtype) for state in states]
        triples = zip(ring.components, ring.pointers, states, strict=True)
        records = [
            write_slots(record, value.unsqueeze(0), row_slots(pointer, 1, record))
            for record, pointer, value in triples
        ]
        carries = [
            state if chained(carry, state) else unchained(carry).copy_(state)
            for carry, state in zip(ring.carries or (), states, strict=False)
        ]
        spikes = x.detach().unsqueeze(0)
        write_slots(ring.spikes, spikes, row_slots(ring.spike_pointer, 1, ring.spikes))
        # In memory of its own.
        y = dynamics.current(states)
        y = y.to(dtype) if dynamics.inputs == 2 else y.to(dtype, copy=True)
    return y, (*records, *carries)


def _advanced(x: Tensor, present: Sequence[Tensor], dynamics: Dynamics) -> list[Tensor]:
    """The states after a step, in the arithmetic's dtype."""
    states = [state.to(dynamics.gain.dtype) for state in present]
    injected = dynamics.gain * x.to(dynamics.gain.dtype)
    advanced = [
        state * decay + injected for state, decay in zip(states, dynamics.decays, strict=False)
    ]
    if dynamics.coupling is not None:
        advanced.append((states[1] + dynamics.coupling * states[0]) * dynamics.decay(1))
    return advanced


@traced_as(_traced_step)
def step(
    x: Tensor, ring: Ring, dynamics: Dynamics, *, graph: bool = True, backend: str | None = None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """:func:`tritonsyn.functional.step`, with constants that are 0-d or ``[N]``."""
    module = implementation("step", x.device, backend)
    state, constants = ring_state(ring), dynamics.constants
    linked = chained(x, *constants, *state) and graph
    increment_version(ring.spikes)
    if linked:
        how, flat = _How.of(ring, dynamics, backend), flat_ring(ring, [t.detach() for t in state])
        advance = partial(module.step, flat_observation(x).detach(), flat, dynamics)
        present = newest(flat) if any(c.requires_grad for c in constants[1:]) else ()
        pointers = list(map(held, ring.pointers))
        y, *state = _Step.apply(how, advance, pointers, present, x, *constants, *state)
        return _shaped(y, x), tuple(state)
    state = tuple([unchained(tensor) for tensor in state])
    with without_graph():
        y = module.step(flat_observation(x), flat_ring(ring, state), dynamics)
    return _shaped(y, x), state


_apply = bare_apply(_Step)

StepPlan = Callable[[Tensor, bool], Tensor | None]


def step_again(
    x: Tensor, ring: Ring, dynamics: Dynamics, home: Home, *, backend: str | None = None
) -> StepPlan | None:
    """:func:`step` once more at little cost, on the memory of this ring and with these constants.

    ``home`` are the records, the carries, the spikes and what is on the device, and the pointers of
    records and spikes. What is returned takes an input and ``graph``, and does all that a step of
    the module does. It returns None, having done nothing, if anything is otherwise than now.
    """
    how, fits, find = _How.of(ring, dynamics, backend), kind_of(x), home.finder()
    plain, states = [without_owner(tensor) for tensor in ring_state(ring)], len(ring.components)
    own = ring._replace(components=plain[:states], carries=plain[states:] or None)
    advance = how.step.step_again(x.detach(), own, dynamics) if fits(x) else None
    if advance is None:
        return None
    places, cursors = home.places[: how.state], home.cursors
    constants, size = dynamics.constants, len(ring.spikes)
    pointers = (*ring.pointers, ring.spike_pointer)

    def plan(x: Tensor, graph: bool) -> Tensor | None:
        if not fits(x) or (found := find()) is None:
            return None
        chain = False
        for tensor in found:
            chain = chain or tensor.requires_grad
        slots = [cursor["_cursor"] for cursor in cursors] or pointers
        if graph and torch.is_grad_enabled() and (chain or x.requires_grad):
            increment_version(found[how.state])
            run, state = partial(advance, x, slots), found[: how.state]
            kept = slots[:states] if cursors else list(map(held, slots[:states]))
            y, *state = _apply(how, run, kept, (), x, *constants, *state)
            for (keeper, name), tensor in zip(places, state, strict=True):
                keeper[name] = tensor
        elif chain:
            return None
        else:
            increment_version(found)
            y = advance(x.detach() if x.requires_grad else x, slots)
        home.moved(1, size)
        return y

    return plan


def _shaped(y: Tensor, x: Tensor) -> Tensor:
    """The current ``[B, N]`` as ``[B, *shape]``; outside the Function, because a view that one
    returns cannot be written in place."""
    return y if y.shape == x.shape else y.view(x.shape)
