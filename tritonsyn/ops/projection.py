"""The delayed projection as a differentiable operation.

Two identities make it cheap. Interpolation folds into the weight, so that a connection is one tap,
a whole number of steps back; the tap and its gradients to weight, delay and time constants are
plain tensor expressions of the size of the weight. With one time constant for the group, delaying
and filtering commute: then spikes are projected and the result is filtered.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..values import Dynamics, PackedSpikes, ReadRule, Slot, locate
from .common import chained, first_order, implementation, running
from .operator import operator, traced_as
from .scan import pack_spikes, scan
from .strategy import Work, cheapest, precision


class Taps(NamedTuple):
    """The observation that each connection reads, and its weight."""

    back: Tensor
    """``[O, I]`` int32: whole steps."""
    weights: tuple[Tensor, ...]
    """``[O, I]`` of each component, the second one's with its sign."""


def taps(
    weight: Tensor, delay: Tensor, rates: Sequence[Tensor], rule: ReadRule, slots: int
) -> Taps:
    """Each connection as one tap: ``ceil(delay / step)`` and ``weight * exp(-fraction * rate)``.

    The second component of a pair counts negatively; in the mode ``alpha`` both count positively,
    and the first, which is the rise, is also multiplied by ``fraction * rate``.
    ``weight`` and ``delay [O, I]``; ``rates`` (steps over time constant, 0-d or ``[I]``) one for
    each component. Differentiable to all three; the delay is clamped to ``[0, rule.limit]`` with
    zero gradient outside.
    """
    located = locate(delay.detach(), rule, slots)
    dtype = rates[0].dtype
    bounded = delay.clamp(0.0, rule.limit)
    fraction = located.fraction.to(dtype) - ((bounded - bounded.detach()) / rule.step).to(dtype)
    weights = [weight.to(dtype) * torch.exp(-fraction * rate) for rate in rates]
    if rule.mode == "alpha":
        weights[0] = weights[0] * (fraction * rates[0])
    elif len(weights) == 2:
        weights[1] = -weights[1]
    back = located.older.nan_to_num(0.0).to(torch.int32).contiguous()
    # Packed rows, whatever the strides of weight and delay are.
    return Taps(back, tuple([weight.contiguous() for weight in weights]))


class _Way(NamedTuple):
    """How a projection is computed, forward and backward."""

    strategy: str
    precision: str | None
    backend: str | None


def _way_at_run_time(strategy: str, device: torch.device, backend: str | None) -> _Way:
    return _Way(strategy, None, backend)


@traced_as(_way_at_run_time)
def _way(strategy: str, device: torch.device, backend: str | None) -> _Way:
    """The way with the present precision and default backend, which compiled graphs look up when
    they run."""
    return _Way(strategy, precision(), running(device, backend))


def _like_currents(sequence, weight, back, steps, strategy, digits, backend):  # type: ignore[no-untyped-def]
    return weight.new_empty((steps, sequence.shape[1], weight.shape[0]))


@operator(fake=_like_currents)
def project_component(
    sequence: Tensor,
    weight: Tensor,
    back: Tensor,
    steps: int,
    strategy: str,
    digits: str | None,
    backend: str | None,
) -> Tensor:
    """The delayed projection ``[steps, B, O]`` of one component ``[K - 1 + steps, B, I]``."""
    module = implementation("projection", back.device, backend)
    return module.project(sequence, weight, back, steps, strategy, digits or precision())


def _like_operands(dy, sequence, weight, back, rows, dtype, strategy, digits, backend):  # type: ignore[no-untyped-def]
    dsequence = dy.new_empty((rows, dy.shape[1], back.shape[1]), dtype=dtype)
    dweight = dy.new_empty(back.shape)
    return [*([] if weight is None else [dsequence]), *([] if sequence is None else [dweight])]


@operator(fake=_like_operands)
def project_component_backward(
    dy: Tensor,
    sequence: Tensor | None,
    weight: Tensor | None,
    back: Tensor,
    rows: int,
    dtype: torch.dtype,
    strategy: str,
    digits: str | None,
    backend: str | None,
) -> list[Tensor]:
    """``[*dsequence, *dweight]``; the gradient of each needs the other operand.

    ``rows`` and ``dtype`` are those of the sequence.
    """
    module = implementation("projection", back.device, backend)
    way = (strategy, digits or precision())
    results = []
    if weight is not None:
        results.append(module.project_input(dy, weight, back, rows, *way).to(dtype))
    if sequence is not None:
        results.append(module.project_weight(dy, sequence, back, *way))
    return results


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, way: _Way, steps: int, back: Tensor, sequence: Tensor, weight: Tensor
    ) -> Tensor:
        ctx.way, ctx.rows, ctx.sequence_dtype = way, sequence.shape[0], sequence.dtype
        wants_sequence, wants_weight = ctx.needs_input_grad[3:]
        # Each gradient needs the other operand.
        ctx.save_for_backward(
            back, sequence if wants_weight else None, weight if wants_sequence else None
        )
        return project_component(sequence, weight, back, steps, *way)

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        back, sequence, weight = ctx.saved_tensors
        results = project_component_backward(
            dy, sequence, weight, back, ctx.rows, ctx.sequence_dtype, *ctx.way
        )
        dsequence = None if weight is None else results[0]
        dweight = None if sequence is None else results[-1]
        return None, None, None, dsequence, dweight


def _like_arriving(words, shape, back, weight, slots, backend):  # type: ignore[no-untyped-def]
    return weight.new_empty((*words.shape[:2], weight.shape[0]))


@operator(fake=_like_arriving)
def project_arrivals(
    words: Tensor, shape: list[int], back: Tensor, weight: Tensor, slots: int, backend: str | None
) -> Tensor:
    """The delayed projection ``[T, B, O]`` of packed spikes; ``shape`` is theirs."""
    module = implementation("projection", back.device, backend)
    return module.project_spikes(PackedSpikes(words, tuple(shape)), weight, back, slots)


@operator(fake=lambda dv, words, shape, back, slots, backend: dv.new_empty(back.shape))
def project_arrivals_backward(
    dv: Tensor, words: Tensor, shape: list[int], back: Tensor, slots: int, backend: str | None
) -> Tensor:
    """The gradient of the weight."""
    module = implementation("projection", back.device, backend)
    return module.project_spikes_weight(dv, PackedSpikes(words, tuple(shape)), back, slots)


class _ProjectArrivals(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        shape: list[int],
        slots: int,
        backend: str | None,
        words: Tensor,
        back: Tensor,
        weight: Tensor,
    ) -> Tensor:
        ctx.shape, ctx.slots, ctx.backend = shape, slots, backend
        ctx.save_for_backward(words, back)
        return project_arrivals(words, shape, back, weight, slots, backend)

    @staticmethod
    @first_order
    def backward(ctx: Any, dv: Tensor) -> tuple[Tensor | None, ...]:
        words, back = ctx.saved_tensors
        dweight = project_arrivals_backward(dv, words, ctx.shape, back, ctx.slots, ctx.backend)
        return None, None, None, None, None, dweight


def project(
    sequences: Sequence[Tensor],
    taps: Taps,
    steps: int,
    *,
    strategy: str,
    backend: str | None = None,
) -> Tensor:
    """``y[t, b, o] = sum_i weight[o, i] * S[t - back[o, i], b, i]``, summed over the components.

    ``sequences`` one or two ``[K - 1 + steps, B, I]``, oldest first; ``strategy`` ``shift`` or
    ``gemm``. Returns ``[steps, B, O]`` in the dtype of the weights. Differentiable to sequences and
    weights.
    """
    way = _way(strategy, taps.back.device, backend)
    parts = []
    for sequence, weight in zip(sequences, taps.weights, strict=True):
        if chained(sequence, weight):
            parts.append(_Project.apply(way, steps, taps.back, sequence, weight))
        else:
            parts.append(project_component(sequence, weight, taps.back, steps, *way))
    return _total(parts)


def project_record(
    records: Sequence[Tensor], pointers: Sequence[Slot], taps: Taps, *, backend: str | None = None
) -> Tensor:
    """The projection of what records ``[K, B, I]`` hold now, ``[B, O]``; carries no graph."""
    module = implementation("projection", taps.back.device, backend)
    with torch.no_grad():
        parts = [
            module.project(record, weight, taps.back, 1, "shift", "ieee", pointer)
            for record, pointer, weight in zip(records, pointers, taps.weights, strict=True)
        ]
    return _total(parts)[0]


def project_spikes(
    spikes: Tensor | PackedSpikes,
    taps: Taps,
    dynamics: Dynamics,
    histories: Sequence[Tensor] | None,
    slots: int,
    *,
    backend: str | None = None,
) -> Tensor:
    """The projected currents of spikes ``[T, B, I]``, with work proportional to their number.

    Delaying and filtering commute for 0-d decays: the spikes arrive at the outputs, and are
    filtered there. ``histories`` are the states' last K values ``[K, B, I]``, oldest first, or None
    at rest. Returns ``[T, B, O]`` in the dtype of the weights.
    """
    packed = spikes
    if not isinstance(packed, PackedSpikes):
        packed = pack_spikes(packed, backend=backend)
    gain, dtype = dynamics.gain, taps.weights[0].dtype
    unit = torch.ones((), dtype=gain.dtype, device=gain.device)
    if histories is not None:
        histories = [history.to(dtype) for history in histories]
        under_way = _under_way(histories, taps, dynamics)
    parts = []
    for i, weight in enumerate(taps.weights):
        arriving = _arriving(packed, taps.back, weight * gain, slots, backend)
        alone = dynamics._replace(gain=unit).alone(i)
        initials: list[Tensor | None] = [None] * alone.states
        if histories is not None:
            tap = Taps(taps.back, (weight,))
            seen = histories[i + 1 - alone.states : i + 1]
            initials = [project((h,), tap, 1, strategy="shift", backend=backend)[0] for h in seen]
            for increments, way in under_way[i]:
                arriving = _add_past(arriving, increments, Taps(taps.back, (way,)), backend)
        parts.append(scan(arriving, alone, initials, dtype=dtype, backend=backend)[0])
    return _total(parts)


def _under_way(
    histories: Sequence[Tensor], taps: Taps, dynamics: Dynamics
) -> list[list[tuple[Tensor, Tensor]]]:
    """The input from before the first step, and its weights, for the filter of each state.

    A history is the decaying sum of its own increments, ``C[t] - decay * C[t-1]``. The filter of
    two coupled states takes the increments of the first only; those of the second go through the
    filter of the first state alone, whose decay is the same.
    """
    increments = [
        history[1:] - dynamics.decay(i) * history[:-1] for i, history in enumerate(histories)
    ]
    if dynamics.coupling is None:
        return [[pair] for pair in zip(increments, taps.weights, strict=True)]
    rise, current = increments
    current = current - dynamics.decay(1) * dynamics.coupling * histories[0][:-1]
    first, second = taps.weights
    return [[(rise, first), (current, second)], [(rise, second)]]


def _arriving(
    spikes: PackedSpikes, back: Tensor, weight: Tensor, slots: int, backend: str | None
) -> Tensor:
    """What spikes deliver to the outputs, ``[T, B, O]``."""
    backend = running(back.device, backend)
    return _ProjectArrivals.apply(list(spikes.shape), slots, backend, spikes.words, back, weight)


def _add_past(arriving: Tensor, increments: Tensor, tap: Taps, backend: str | None) -> Tensor:
    """Adds the increments ``[K - 1, B, I]`` from before the first step to what arrives."""
    steps = min(arriving.shape[0], increments.shape[0])
    if steps == 0:
        return arriving
    silence = increments.new_zeros(steps, *increments.shape[1:])
    sequence = torch.cat((increments, silence))
    connections = sequence[:steps].numel() * tap.back.shape[0]
    work = Work(connections, 0, increments.shape[0] + 1, None, finite=False)
    strategy = cheapest(work, arriving.device)
    past = project((sequence,), tap, steps, strategy=strategy, backend=backend)
    return torch.cat((arriving[:steps] + past, arriving[steps:]))


def _total(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]
