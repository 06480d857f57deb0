"""The step of an exponential synapse as a differentiable operation on its records."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch

from ..values import Slot
from . import traced
from .common import (
    Layout,
    chained,
    first_order,
    flat_coefficients,
    flat_observation,
    flat_record,
    hand_over,
    held,
    implementation,
    own_gradient,
    reduce_coefficient,
    unchained,
    without_graph,
)
from .record import read, row_slots


class Ring(NamedTuple):
    """The records of one synapse and where each writes next."""

    components: tuple[torch.Tensor, ...]
    """One current, or the positive and the negative one: ``[K, B, *shape]``, floating."""
    pointers: tuple[Slot, ...]
    spikes: torch.Tensor
    """``[K, B, *shape]``, bool."""
    spike_pointer: Slot
    arrivals: torch.Tensor | None = None
    """An int32 zero beside pointers that are kept on the device: a step advances them. None: they
    stay, as numbers do."""


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        modules: tuple[ModuleType, ModuleType],
        ring: Ring,
        x: torch.Tensor,
        gain: torch.Tensor,
        *rest: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        count = len(ring.components)
        decays, records = rest[:count], rest[count:]
        wants_gain, wants_decays = ctx.needs_input_grad[3], any(ctx.needs_input_grad[4 : 4 + count])
        flat = [flat_record(record.detach()) for record in records]
        newest = []
        if wants_decays:
            slots = [(pointer - 1) % flat[0].shape[0] for pointer in ring.pointers]
            newest = [read(record, slot)[1] for record, slot in zip(flat, slots, strict=True)]
        ctx.pointers = tuple(map(held, ring.pointers))
        y = _run(modules[0], ring, flat, x, gain, decays)
        ctx.mark_dirty(*records)
        ctx.set_materialize_grads(False)
        ctx.modules, ctx.x_dtype = modules, x.dtype
        ctx.layout = Layout.of(records[0])
        ctx.save_for_backward(gain, *decays, *newest, *([x] if wants_gain else []))
        return (y, *records)

    @staticmethod
    @first_order
    def backward(
        ctx: Any, dy: torch.Tensor | None, *given: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        count = len(given)
        if dy is None and all(d is None for d in given):
            return (None,) * (4 + 2 * count)
        step, interp = ctx.modules
        gain, *saved = ctx.saved_tensors
        decays, newest = saved[:count], saved[count:]
        wants_x, wants_gain = ctx.needs_input_grad[2:4]
        wants_decays = any(ctx.needs_input_grad[4 : 4 + count])
        layout, pointers = ctx.layout, ctx.pointers
        if all(d is None for d in given) and not any(ctx.needs_input_grad[4 + count :]):
            # Nothing before or after this step: one slot will do for what moves between them.
            layout, pointers = layout.slots(1), (0,) * count
        owned = [own_gradient(ctx, d, layout) for d in given]
        flat = [flat_record(d) for d in owned]
        dx, zs = step.step_backward(
            dy,
            flat,
            *flat_coefficients([gain]),
            flat_coefficients(decays),
            pointers,
            ctx.x_dtype if wants_x else None,
            wants_gain or wants_decays,
        )
        dgain: torch.Tensor | None = None
        ddecays: list[torch.Tensor | None] = [None] * count
        if wants_gain:
            x = newest.pop().reshape(flat[0].shape[1:]).to(gain.dtype)
            z = zs[0] if count == 1 else zs[0] + zs[1]
            dgain = reduce_coefficient(z, x, gain, interp)
        if wants_decays:
            triples = zip(zs, newest, decays, strict=True)
            ddecays = [reduce_coefficient(z, n.to(z.dtype), d, interp) for z, n, d in triples]
        if dx is not None:
            dx = dx.view(ctx.layout.shape[1:])
        drecords: list[torch.Tensor | None] = [None] * count
        if layout is ctx.layout:
            drecords = [hand_over(ctx, d, i - count) for i, d in enumerate(owned)]
        return None, None, dx, dgain, *ddecays, *drecords


def _run(
    module: ModuleType,
    ring: Ring,
    flat: Sequence[torch.Tensor],
    x: torch.Tensor,
    gain: torch.Tensor,
    decays: Sequence[torch.Tensor],
) -> torch.Tensor:
    """The step on flat tensors: the current ``[B, N]``.

    It is given its shape outside of the Function, whose results must be no views: those cannot be
    written in place.
    """
    return module.step(
        flat_observation(x),
        flat,
        flat_record(ring.spikes),
        *flat_coefficients([gain]),
        flat_coefficients(decays),
        ring.pointers,
        ring.spike_pointer,
        ring.arrivals,
    )


def step(
    x: torch.Tensor,
    ring: Ring,
    gain: torch.Tensor,
    decays: Sequence[torch.Tensor],
    *,
    graph: bool = True,
    backend: str | None = None,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Advances an exponential synapse by one step: ``(current, component records)``.

    For each component ``C[t] = decay_c * C[t-1] + gain * x[t]``; the current is the first
    component, or the first minus the second. ``x [B, *shape]`` of any real dtype; ``gain`` and
    ``decays`` 0-d or ``[*shape]``, in the arithmetic's dtype. Records are updated in place;
    the spike record takes ``x != 0``; pointers stay, unless the ring has ``arrivals``. With
    ``graph`` false, or gradients disabled, the records come back without a graph.
    """
    if torch.compiler.is_compiling():
        return _traced_step(x, ring, gain, decays, graph)
    device = ring.spikes.device
    module = implementation("step", device, backend)
    torch.autograd.graph.increment_version(ring.spikes)
    if graph and chained(x, gain, *decays, *ring.components):
        modules = (module, implementation("read", device, backend))
        y, *records = _Step.apply(modules, ring, x, gain, *decays, *ring.components)
        return _shaped(y, x), tuple(records)
    records = tuple([unchained(record) for record in ring.components])
    with without_graph():
        y = _run(module, ring, [flat_record(record) for record in records], x, gain, decays)
    return _shaped(y, x), records


def _shaped(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return y if y.shape == x.shape else y.view(x.shape)


def _traced_step(
    x: torch.Tensor,
    ring: Ring,
    gain: torch.Tensor,
    decays: Sequence[torch.Tensor],
    graph: bool,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    with torch.set_grad_enabled(graph and torch.is_grad_enabled()):
        pairs = list(zip(ring.components, ring.pointers, strict=True))
        newest = [read(record, (p - 1) % record.shape[0])[1] for record, p in pairs]
        y, stored = traced.step(x, newest, gain, decays)
        records = tuple(
            traced.write_rows(record, value.unsqueeze(0), row_slots(p, 1, record))
            for (record, p), value in zip(pairs, stored, strict=True)
        )
        spikes = x.detach().unsqueeze(0)
        traced.write_rows(ring.spikes, spikes, row_slots(ring.spike_pointer, 1, ring.spikes))
    return y, records
