"""Exponential scans of whole sequences as differentiable operations."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..values import Dynamics, PackedSpikes, Ring, data_of, words_per_row
from .common import (
    Home,
    chained,
    first_order,
    flat_observation,
    implementation,
    keep,
    kept,
    kind_of,
    link,
    refuse_transforms,
    running,
    unchained,
    without_graph,
    without_owner,
)
from .operator import operator, traced_as
from .ring import Ends, apart, extend_ring, flat_ring, last_spikes, newest, ring_state

Tensors = list[Tensor]


def _like_scan(x, shape, constants, coupled, initials, last, dtype, backend):  # type: ignore[no-untyped-def]
    steps, *row = x.shape if shape is None else shape
    y = [] if dtype is None else [x.new_empty((steps, *row), dtype=dtype)]
    return [*y, *(constants[0].new_empty((last, *row)) for _ in initials)]


@operator(_like_scan)
def scan_forward(
    x: Tensor,
    shape: list[int] | None,
    constants: Tensors,
    coupled: bool,
    initials: list[Tensor | None],
    last: int,
    dtype: torch.dtype | None,
    backend: str | None,
) -> Tensors:
    """``[*y, *tails]`` of a scan; ``shape [T, B, N]`` is that of packed spikes, ``dtype`` that of
    ``y``."""
    if not x.shape[0]:
        return _like_scan(x, shape, constants, coupled, initials, last, dtype, backend)
    module = implementation("scan", x.device, backend)
    dynamics = Dynamics.of(constants, coupled)
    y, tails = module.scan(sequence_of(x, shape), dynamics, initials, last, dtype)
    return tails if y is None else [y, *tails]


def _like_gradients(  # type: ignore[no-untyped-def]
    dy, dtails, x, shape, constants, coupled, initials, dx_dtype, want_initials, backend
):
    dx = [] if dx_dtype is None else [dy.new_empty(dy.shape, dtype=dx_dtype)]
    dinitials = [constants[0].new_empty(dy.shape[1:]) for _ in initials if want_initials]
    row = max((c.shape for c in constants), key=len)
    stacked = [] if x is None else [constants[0].new_empty((len(constants), *row))]
    return [*dx, *dinitials, *stacked]


@operator(_like_gradients)
def scan_backward(
    dy: Tensor,
    dtails: list[Tensor | None],
    x: Tensor | None,
    shape: list[int] | None,
    constants: Tensors,
    coupled: bool,
    initials: list[Tensor | None],
    dx_dtype: torch.dtype | None,
    want_initials: bool,
    backend: str | None,
) -> Tensors:
    """``[*dx, *dinitials, *dconstants]``: the input's without a dtype, and the constants' without
    ``x``, are not wanted; the last is one tensor, stacked as the implementations do it."""
    dynamics = Dynamics.of(constants, coupled)
    if not dy.shape[0]:
        operands = (dy, dtails, x, shape, constants, coupled, initials)
        return [d.zero_() for d in _like_gradients(*operands, dx_dtype, want_initials, backend)]
    sequence = None if x is None else sequence_of(x, shape)
    module = implementation("scan", dy.device, backend)
    dx, dinitials, dconstants = module.scan_backward(
        dy, dtails, sequence, dynamics, initials, dx_dtype, want_initials
    )
    return [d for d in (dx, *dinitials, dconstants) if d is not None]


class ScanSettings(NamedTuple):
    """What a scan is told besides tensors."""

    coupled: bool
    last: int
    dtype: torch.dtype | None
    shape: list[int] | None
    backend: str | None
    constants: int
    """How many there are."""


class _Scan(torch.autograd.Function):
    """Of input, constants and initial states; the same in eager and in compiled code."""

    @staticmethod
    def forward(ctx: Any, settings: ScanSettings, x: Tensor, *tensors: Any) -> tuple[Tensor, ...]:
        coupled, last, dtype, shape, backend, count = settings
        constants, initials = list(tensors[:count]), list(tensors[count:])
        results = scan_forward(x, shape, constants, coupled, initials, last, dtype, backend)
        ctx.settings, ctx.x_dtype = settings, x.dtype
        ctx.size = x.shape[0], *results[-1].shape[1:]
        # The input's gradient alone needs neither the input nor the initial states.
        ctx.learned = any(ctx.needs_input_grad[2 : 2 + count])
        keep(ctx, constants, [x, *initials] if ctx.learned else [None] * (1 + len(initials)))
        return tuple(results)

    @staticmethod
    @first_order
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        dtype = ctx.settings.dtype
        constants, (x, *initials) = kept(ctx)
        dy, dtails = (None, gradients) if dtype is None else (gradients[0], gradients[1:])
        if dy is None:
            dy = constants[0].new_zeros(ctx.size, dtype=dtype)
        results = input_gradients(
            ctx.settings, ctx.needs_input_grad[1:], dy, dtails, x, ctx.x_dtype, constants, initials
        )
        return None, *results


def input_gradients(
    settings: ScanSettings,
    wanted: Sequence[bool],
    dy: Tensor,
    dtails: Sequence[Tensor | None],
    x: Tensor | None,
    x_dtype: torch.dtype,
    constants: Tensors,
    initials: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """The gradients of a scan to its input, constants and initials, as far as they are wanted.

    With ``x``, those of the constants are.
    """
    coupled, _, _, shape, backend, count = settings
    want_x, want_initials = wanted[0], wanted[1 + count :]
    operands = (dy, list(dtails), x, shape, constants, coupled, initials)
    results = scan_backward(*operands, x_dtype if want_x else None, any(want_initials), backend)
    dx = results[0] if want_x else None
    learned = x is not None
    dconstants = map(_of_shape, results[-1], constants) if learned else [None] * count
    found = results[want_x:] if any(want_initials) else [None] * len(want_initials)
    dinitials = [d if w else None for d, w in zip(found, want_initials, strict=False)]
    return [dx, *dconstants, *dinitials]


def _of_shape(gradient: Tensor, constant: Tensor) -> Tensor:
    """The gradient of a constant, one of a stack; summed over the synapses if they share it."""
    return gradient.sum() if gradient.ndim > constant.ndim else gradient.detach()


def parts_of(x: Tensor | PackedSpikes) -> tuple[Tensor, list[int] | None]:
    """A sequence as operators take it: where it is kept and, of packed spikes, ``[T, B, N]``."""
    return data_of(x), [*x.shape[:2], x.synapses] if isinstance(x, PackedSpikes) else None


def sequence_of(x: Tensor, shape: Sequence[int] | None) -> Tensor | PackedSpikes:
    """The sequence of such parts."""
    return x if shape is None else PackedSpikes(x, tuple(shape))


def scan(
    x: Tensor | PackedSpikes,
    dynamics: Dynamics,
    initials: Sequence[Tensor | None],
    *,
    last: int = 1,
    dtype: torch.dtype | None,
    backend: str | None = None,
) -> tuple[Any, Tensors]:
    """The states of a synapse over T steps.

    ``x [T, B, N]`` or packed; constants 0-d or ``[N]`` and ``initials [B, N]`` (None at rest), of
    each state, all in the arithmetic's dtype of ``dtype``. Returns the current ``[T, B, N]`` in
    ``dtype``, or None without a ``dtype``, and the ``last`` values of each state. Differentiable to
    everything floating; for the gradient to ``x`` nothing of the size of ``x`` is kept.
    """
    data, shape = parts_of(x)
    constants, coupled = list(dynamics.constants), dynamics.coupling is not None
    if chained(data, *constants, *initials):
        # Backward runs where forward ran, whatever the default is by then.
        backend = running(data.device, backend)
        settings = ScanSettings(coupled, last, dtype, shape, backend, len(constants))
        results = list(_Scan.apply(settings, data, *constants, *initials))
    else:
        operands = (data, shape, constants, coupled, list(initials))
        with without_graph():
            results = scan_forward(*operands, last, dtype, backend)
    return (None, results) if dtype is None else (results[0], results[1:])


class _ScanRing(torch.autograd.Function):
    """Of input, constants and state; the last is changed in place and returned."""

    @staticmethod
    def forward(
        ctx: Any, settings: ScanSettings, at_rest: bool, ring: Ring, x: Tensor, *tensors: Any
    ) -> tuple[Tensor | None, ...]:
        coupled, _, dtype, shape, backend, count = settings
        constants, state = list(tensors[:count]), tensors[count:]
        flat = flat_ring(ring, [tensor.detach() for tensor in state])
        states, learned = len(flat.components), any(ctx.needs_input_grad[4 : 4 + count])
        starts = newest(flat) if learned and not at_rest else [None] * states
        keep(ctx, constants, [x if learned else None, *starts])
        sequence = sequence_of(x, shape)
        ctx.settings, ctx.x_dtype, ctx.size = settings, x.dtype, sequence.shape
        ctx.ends = Ends.of(flat, x.shape[0])
        link(ctx, *state)
        module = implementation("scan", x.device, backend)
        return module.scan_ring(sequence, flat, Dynamics.of(constants, coupled), dtype), *state

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor | None, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        constants, (x, *starts) = kept(ctx)
        settings = ctx.settings
        if dy is None:
            dy = constants[0].new_zeros(ctx.size, dtype=settings.dtype)
        operands = (dy, given, x, ctx.x_dtype, constants, starts)
        found = ring_gradients(ctx, settings, ctx.needs_input_grad[3:], *operands)
        return None, None, None, *found


def ring_gradients(
    ctx: Any,
    settings: ScanSettings,
    wanted: Sequence[bool],
    dy: Tensor,
    given: Sequence[Tensor | None],
    x: Tensor | None,
    x_dtype: torch.dtype,
    constants: Tensors,
    starts: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """:func:`input_gradients` with the state of a ring in the place of tails and initials.

    ``given`` are the gradients of the state after; ``ctx.ends`` is where the scan did what.
    """
    owned, dtails = ctx.ends.arriving(ctx, given, constants[0].dtype)
    count = 1 + len(constants)
    wanted = [*wanted[:count], *[any(wanted[count:])] * len(dtails)]
    initials = [None if start is None else start.to(constants[0].dtype) for start in starts]
    operands = (x, x_dtype, constants, initials)
    found = input_gradients(settings, wanted, dy, dtails, *operands)
    return [*found[:count], *ctx.ends.leaving(ctx, owned, found[count:])]


def _traced_scan_ring(
    x: Tensor | PackedSpikes,
    ring: Ring,
    dynamics: Dynamics,
    *,
    at_rest: bool = False,
    dtype: torch.dtype | None,
    backend: str | None = None,
) -> tuple[Tensor | None, tuple[Tensor, ...]]:
    steps, slots = x.shape[0], len(ring.spikes)
    starts = [flat_observation(s).to(dynamics.gain.dtype) for s in newest(ring)]
    last = min(steps, slots)
    y, tails = scan(x, dynamics, starts, last=last, dtype=dtype, backend=backend)
    return y, extend_ring(ring, last_spikes(x, last), steps, tails)


@traced_as(_traced_scan_ring)
def scan_ring(
    x: Tensor | PackedSpikes,
    ring: Ring,
    dynamics: Dynamics,
    *,
    at_rest: bool = False,
    dtype: torch.dtype | None,
    backend: str | None = None,
) -> tuple[Tensor | None, tuple[Tensor, ...]]:
    """T >= 1 steps from the ring's newest values, which writes their end into the ring.

    ``x [T, B, N]`` or packed. Returns the current as :func:`scan` does, and the state, which is
    changed in place: as there differentiable to everything floating. With ``arrivals`` the
    pointers advance. ``at_rest``: the ring is known to hold zeros.
    """
    state = ring_state(ring)
    data, shape = parts_of(apart(x, ring))
    linked = chained(data, *dynamics.constants, *state)
    torch.autograd.graph.increment_version(ring.spikes)
    if linked:
        constants, coupled = dynamics.constants, dynamics.coupling is not None
        backend = running(data.device, backend)
        settings = ScanSettings(coupled, 1, dtype, shape, backend, len(constants))
        y, *state = _ScanRing.apply(settings, at_rest, ring, data, *constants, *state)
        return y, tuple(state)
    module = implementation("scan", data.device, backend)
    state = tuple([unchained(tensor) for tensor in state])
    with without_graph():
        y = module.scan_ring(sequence_of(data, shape), flat_ring(ring, state), dynamics, dtype)
    return y, state


ScanPlan = Callable[[Tensor, bool], Tensor | None]


def scan_ring_again(
    x: Tensor,
    ring: Ring,
    dynamics: Dynamics,
    home: Home,
    *,
    dtype: torch.dtype,
    backend: str | None = None,
) -> ScanPlan | None:
    """:func:`scan_ring` of an input ``[T, B, *shape]`` once more at little cost, on this memory.

    ``home`` and what is returned are as for :func:`tritonsyn.ops.step.step_again`, but that no
    graph is recorded: None, where one is to be.
    """
    fits, find = kind_of(x), home.finder()
    if not fits(x):
        return None
    own = flat_ring(ring, [without_owner(tensor) for tensor in ring_state(ring)])
    module, flat = implementation("scan", x.device, backend), x.detach().flatten(2)
    scan = module.scan_ring_again(flat, own, dynamics, dtype)
    if scan is None:
        return None
    memory = {place[name].untyped_storage().data_ptr() for place, name in home.places}
    pointers, cursors = (*ring.pointers, ring.spike_pointer), home.cursors
    steps, size = len(x), len(ring.spikes)

    def plan(x: Tensor, graph: bool) -> Tensor | None:
        if not fits(x) or (found := find()) is None:
            return None
        if graph and x.requires_grad and torch.is_grad_enabled():
            return None
        for tensor in found:
            if tensor.requires_grad:
                return None
        # An input in the rings is copied, as by apart.
        if x.untyped_storage().data_ptr() in memory:
            return None
        increment_version(found)
        slots = [cursor["_cursor"] for cursor in cursors] or pointers
        y = scan(x.detach() if x.requires_grad else x, slots)
        home.moved(steps, size)
        return y

    return plan


def _like_words(x, backend):  # type: ignore[no-untyped-def]
    return x.new_empty((x.shape[0], words_per_row(x.shape[1])), dtype=torch.int32)


@operator(_like_words)
def pack_rows(x: Tensor, backend: str | None) -> Tensor:
    """Spikes ``[rows, N]`` as bits, ``[rows, ceil(N / 32)]``."""
    return implementation("scan", x.device, backend).pack(x)


def pack_spikes(x: Tensor, *, backend: str | None = None) -> PackedSpikes:
    """Spikes ``[T, B, *shape]`` (``x != 0``) as bits, 32 synapses a word."""
    refuse_transforms()
    words = pack_rows(x.detach().flatten(0, 1).flatten(1), backend)
    return PackedSpikes(words.view(*x.shape[:2], words.shape[1]), tuple(x.shape))
