"""The delayed projection as a differentiable operation.

Interpolation folds into the weight, so that a connection is one tap, a whole number of steps back.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..values import Links, PackedSpikes, Slot, SpikeTrains, data_of
from .common import chained, first_order, implementation, keep, kept, running
from .operator import operator, traced_as
from .record import row_slots
from .strategy import precision
from .taps import Taps

Way = tuple[str, str | None, str | None]
"""How a projection is computed, forward and backward: strategy, precision and backend."""


@traced_as(lambda strategy, device, backend: (strategy, None, backend))
def way_of(strategy: str, device: torch.device, backend: str | None) -> Way:
    """The way with the present precision and default backend, which compiled graphs look up when
    they run."""
    return strategy, precision(), running(device, backend)


def _spikes(
    strategy: str, words: Tensor, shape: list[int], backend: str | None
) -> tuple[PackedSpikes | SpikeTrains, Any]:
    """Spikes as the strategy takes them, and the module that projects them."""
    kind = SpikeTrains if strategy == "bits" else PackedSpikes
    return kind(words, tuple(shape)), implementation("spikes", words.device, backend)


def _links(tensors: list[Tensor]) -> Links | None:
    """The links of an operator's argument, which is empty where there are none."""
    return Links(*tensors) if tensors else None


def _like_currents(sequence, shape, weight, back, links, steps, *others):  # type: ignore[no-untyped-def]
    batch = (sequence.shape if shape is None else shape)[1]
    outputs = Links(*links).size[0] if links else weight.shape[0]
    return weight.new_empty((steps, batch, outputs))


@operator(fake=_like_currents)
def project_component(
    sequence: Tensor,
    shape: list[int] | None,
    weight: Tensor,
    back: Tensor,
    links: list[Tensor],
    steps: int,
    slots: int,
    strategy: str,
    digits: str | None,
    backend: str | None,
) -> Tensor:
    """The delayed projection ``[T, B, O]`` of one component ``[rows, B, I]`` at its last T steps.

    Before its first row there is nothing. Or with their ``shape`` of spikes ``[T, B, I]``, packed,
    or by ``bits`` as bits over time; of all connections, then.
    """
    if shape is not None:
        spikes, module = _spikes(strategy, sequence, shape, backend)
        return module.project_spikes(spikes, weight, back, slots)
    module = implementation("projection", back.device, backend)
    way = (slots, strategy, digits or precision(), _links(links))
    return module.project(sequence, weight, back, steps, *way)


def _like_operands(dy, sequence, shape, weight, back, links, rows, slots, dtype, *way):  # type: ignore[no-untyped-def]
    inputs = Links(*links).size[1] if links else back.shape[1]
    dsequence = dy.new_empty((rows, dy.shape[1], inputs), dtype=dtype)
    dweight = dy.new_empty(back.shape)
    return [*([] if weight is None else [dsequence]), *([] if sequence is None else [dweight])]


@operator(fake=_like_operands)
def project_component_backward(
    dy: Tensor,
    sequence: Tensor | None,
    shape: list[int] | None,
    weight: Tensor | None,
    back: Tensor,
    links: list[Tensor],
    rows: int,
    slots: int,
    dtype: torch.dtype,
    strategy: str,
    digits: str | None,
    backend: str | None,
) -> list[Tensor]:
    """``[*dsequence, *dweight]``; the gradient of each needs the other operand.

    ``rows`` are the last ones of the sequence that want a gradient, ``dtype`` is its dtype.
    """
    if sequence is not None and shape is not None:
        spikes, module = _spikes(strategy, sequence, shape, backend)
        return [module.project_spikes_weight(dy, spikes, back, slots)]
    module = implementation("projection", back.device, backend)
    way = (strategy, digits or precision(), _links(links))
    dsequence, dweight = module.project_backward(dy, sequence, weight, back, rows, slots, *way)
    found = [None if dsequence is None else dsequence.to(dtype), dweight]
    return [gradient for gradient in found if gradient is not None]


class _Project(torch.autograd.Function):
    """Of the rows before the steps, if there are any, the sequence, and the weight."""

    @staticmethod
    def forward(
        ctx: Any,
        way: Way,
        shape: list[int] | None,
        steps: int,
        slots: int,
        back: Tensor,
        past: Tensor | None,
        sequence: Tensor,
        weight: Tensor,
        *links: Tensor,
    ) -> Tensor:
        wants_past, wants_sequence, wants_weight = ctx.needs_input_grad[5:8]
        ctx.way, ctx.shape, ctx.slots, ctx.sequence_dtype = way, shape, slots, sequence.dtype
        ctx.wants = wants_past, wants_sequence
        ctx.rows = (0 if past is None else past.shape[0]), sequence.shape[0]
        rows = _after(past, sequence)
        # Each gradient needs the other operand.
        wants_any = wants_past or wants_sequence
        keep(ctx, (back, rows if wants_weight else None, weight if wants_any else None), links)
        return project_component(rows, shape, weight, back, list(links), steps, slots, *way)

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (back, sequence, weight), links = kept(ctx)
        before, own = ctx.rows
        wants_past, wants_sequence = ctx.wants
        rows = before + own if wants_past else own
        operands = (dy, sequence, ctx.shape, weight, back, links)
        size = (rows, ctx.slots, ctx.sequence_dtype)
        results = project_component_backward(*operands, *size, *ctx.way)
        dpast = results[0][:before] if wants_past else None
        dsequence = results[0][rows - own :] if wants_sequence else None
        dweight = None if sequence is None else results[-1]
        return (None,) * 5 + (dpast, dsequence, dweight) + (None,) * len(links)


def _after(past: Tensor | None, sequence: Tensor) -> Tensor:
    return sequence if past is None else torch.cat((past, sequence))


def component(
    way: Way,
    sequence: Tensor | PackedSpikes | SpikeTrains,
    weight: Tensor,
    back: Tensor,
    steps: int,
    slots: int,
    past: Tensor | None = None,
    links: Links | None = None,
) -> Tensor:
    """What one component delivers, ``[T, B, O]``; differentiable to past, sequence and weight."""
    data = data_of(sequence)
    shape = None if isinstance(sequence, Tensor) else list(sequence.shape)
    if chained(past, data, weight):
        return _Project.apply(way, shape, steps, slots, back, past, data, weight, *(links or ()))
    size = steps, slots
    return project_component(_after(past, data), shape, weight, back, [*(links or ())], *size, *way)


def project(
    sequences: Sequence[Tensor],
    taps: Taps,
    steps: int,
    slots: int,
    *,
    pasts: Sequence[Tensor] | None = None,
    strategy: str,
    backend: str | None = None,
) -> Tensor:
    """``y[t, b, o] = sum_i weight[o, i] * S[t - back[o, i], b, i]``, summed over the components.

    Where there are links, ``i`` are the inputs that they name.

    ``sequences`` one or two ``[rows, B, I]``, oldest first, that end with the ``steps``; ``pasts``
    what comes before each of them, zeros where there is nothing; ``slots`` is K. ``strategy`` is
    ``shift`` or ``gemm``. Returns ``[steps, B, O]`` in the dtype of the weights. Differentiable to
    sequences, pasts and weights.
    """
    way = way_of(strategy, taps.back.device, backend)
    before: Sequence[Tensor | None] = pasts or [None] * len(sequences)
    parts = [
        component(way, sequence, weight, taps.back, steps, slots, past, taps.links)
        for past, sequence, weight in zip(before, sequences, taps.weights, strict=True)
    ]
    return total(parts)


def _project_rows(
    records: Sequence[Tensor], pointers: Sequence[Slot], taps: Taps, *, backend: str | None = None
) -> Tensor:
    """The same by way of copies of the records in order of time, which keep the graph."""
    ordered = [
        record.index_select(0, row_slots(pointer, record.shape[0], record))
        for record, pointer in zip(records, pointers, strict=True)
    ]
    slots = ordered[0].shape[0]
    return project(ordered, taps, 1, slots, strategy="shift", backend=backend)[0]


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
            module.project_step(record, pointer, weight, taps.back, taps.links)
            for record, pointer, weight in zip(records, pointers, taps.weights, strict=True)
        ]
    return total(parts)


def total(parts: Sequence[Tensor]) -> Tensor:
    """The sum over the components, one or two."""
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]
