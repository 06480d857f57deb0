"""The delayed projection as a differentiable operation.

Interpolation folds into the weight, so that a connection is one tap, a whole number of steps back;
the tap and its gradients to weight, delay and time constants are plain tensor expressions of the
size of the weight.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..values import PackedSpikes, ReadRule, Slot, data_of, locate
from .common import chained, first_order, implementation, keep, kept, refuse_transforms, running
from .operator import operator, traced_as
from .record import row_slots
from .strategy import precision


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
    refuse_transforms()
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


Way = tuple[str, str | None, str | None]
"""How a projection is computed, forward and backward: strategy, precision and backend."""


@traced_as(lambda strategy, device, backend: (strategy, None, backend))
def way_of(strategy: str, device: torch.device, backend: str | None) -> Way:
    """The way with the present precision and default backend, which compiled graphs look up when
    they run."""
    return strategy, precision(), running(device, backend)


def _like_currents(sequence, shape, weight, back, slots, *way):  # type: ignore[no-untyped-def]
    rows, batch, _ = sequence.shape
    steps = rows + 1 - slots if shape is None else rows
    return weight.new_empty((steps, batch, weight.shape[0]))


@operator(fake=_like_currents)
def project_component(
    sequence: Tensor,
    shape: list[int] | None,
    weight: Tensor,
    back: Tensor,
    slots: int,
    strategy: str,
    digits: str | None,
    backend: str | None,
) -> Tensor:
    """The delayed projection ``[T, B, O]`` of one component ``[K - 1 + T, B, I]``.

    Or with their ``shape`` of packed spikes ``[T, B, I]``, before which there are none.
    """
    module = implementation("projection", back.device, backend)
    if shape is not None:
        return module.project_spikes(PackedSpikes(sequence, tuple(shape)), weight, back, slots)
    steps = sequence.shape[0] + 1 - slots
    return module.project(sequence, weight, back, steps, strategy, digits or precision())


def _like_operands(dy, sequence, shape, weight, back, slots, dtype, *way):  # type: ignore[no-untyped-def]
    dsequence = dy.new_empty((slots - 1 + dy.shape[0], dy.shape[1], back.shape[1]), dtype=dtype)
    dweight = dy.new_empty(back.shape)
    return [*([] if weight is None else [dsequence]), *([] if sequence is None else [dweight])]


@operator(fake=_like_operands)
def project_component_backward(
    dy: Tensor,
    sequence: Tensor | None,
    shape: list[int] | None,
    weight: Tensor | None,
    back: Tensor,
    slots: int,
    dtype: torch.dtype,
    strategy: str,
    digits: str | None,
    backend: str | None,
) -> list[Tensor]:
    """``[*dsequence, *dweight]``; the gradient of each needs the other operand.

    ``dtype`` is that of the sequence.
    """
    module = implementation("projection", back.device, backend)
    way, results = (strategy, digits or precision()), []
    if weight is not None:
        rows = slots - 1 + dy.shape[0]
        results.append(module.project_input(dy, weight, back, rows, *way).to(dtype))
    if sequence is not None and shape is not None:
        spikes = PackedSpikes(sequence, tuple(shape))
        results.append(module.project_spikes_weight(dy, spikes, back, slots))
    elif sequence is not None:
        results.append(module.project_weight(dy, sequence, back, *way))
    return results


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        way: Way,
        shape: list[int] | None,
        slots: int,
        back: Tensor,
        sequence: Tensor,
        weight: Tensor,
    ) -> Tensor:
        ctx.way, ctx.shape, ctx.slots, ctx.sequence_dtype = way, shape, slots, sequence.dtype
        wants_sequence, wants_weight = ctx.needs_input_grad[4:]
        # Each gradient needs the other operand.
        operands = sequence if wants_weight else None, weight if wants_sequence else None
        keep(ctx, (back, *operands))
        return project_component(sequence, shape, weight, back, slots, *way)

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        ((back, sequence, weight),) = kept(ctx)
        operands = (dy, sequence, ctx.shape, weight, back, ctx.slots, ctx.sequence_dtype)
        results = project_component_backward(*operands, *ctx.way)
        dsequence = None if weight is None else results[0]
        dweight = None if sequence is None else results[-1]
        return None, None, None, None, dsequence, dweight


def component(
    way: Way, sequence: Tensor | PackedSpikes, weight: Tensor, back: Tensor, slots: int
) -> Tensor:
    """What one component delivers, ``[T, B, O]``; differentiable to the sequence and the weight."""
    data = data_of(sequence)
    shape = list(sequence.shape) if isinstance(sequence, PackedSpikes) else None
    if chained(data, weight):
        return _Project.apply(way, shape, slots, back, data, weight)
    return project_component(data, shape, weight, back, slots, *way)


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
    way = way_of(strategy, taps.back.device, backend)
    slots = sequences[0].shape[0] + 1 - steps
    pairs = zip(sequences, taps.weights, strict=True)
    return total([component(way, *pair, taps.back, slots) for pair in pairs])


def _project_rows(
    records: Sequence[Tensor], pointers: Sequence[Slot], taps: Taps, *, backend: str | None = None
) -> Tensor:
    """The same by way of copies of the records in order of time, which keep the graph."""
    ordered = [
        record.index_select(0, row_slots(pointer, record.shape[0], record))
        for record, pointer in zip(records, pointers, strict=True)
    ]
    return project(ordered, taps, 1, strategy="shift", backend=backend)[0]


@traced_as(_project_rows)
def project_step(
    records: Sequence[Tensor], pointers: Sequence[Slot], taps: Taps, *, backend: str | None = None
) -> Tensor:
    """``[B, O]`` of what the components' records ``[K, B, I]`` hold now; differentiable."""
    if chained(*taps.weights, *records):
        return _project_rows(records, pointers, taps, backend=backend)
    module = implementation("projection", taps.back.device, backend)
    with torch.no_grad():
        parts = [
            module.project(record, weight, taps.back, 1, "shift", "ieee", pointer)
            for record, pointer, weight in zip(records, pointers, taps.weights, strict=True)
        ]
    return total(parts)[0]


def total(parts: Sequence[Tensor]) -> Tensor:
    """The sum over the components, one or two."""
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]
