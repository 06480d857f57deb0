"""Delayed reads as a differentiable operation on records and times."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..values import ReadRule, Slot, compute_dtype, locate
from .common import (
    Layout,
    chained,
    first_order,
    flat_record,
    hand_over,
    held,
    implementation,
    over_synapses,
    own_gradient,
    running,
)
from .operator import operator, traced_as

Tensors = list[Tensor]
Optionals = list[Tensor | None]


def _like_values(records, sel, rates, pointers, *settings):  # type: ignore[no-untyped-def]
    *_, steps, want_slope, want_rate_slopes, _ = settings
    shape = (steps * records[0].shape[1], *sel.shape[1:])
    value = sel.new_empty(shape, dtype=records[0].dtype)
    slopes = range(want_slope + len(records) * want_rate_slopes)
    return [value, *(value.new_empty(shape, dtype=compute_dtype(value.dtype)) for _ in slopes)]


@operator(fake=_like_values)
def read_values(
    records: Tensors,
    sel: Tensor,
    rates: Optionals,
    pointers: Tensors,
    mode: str,
    step: float,
    limit: float,
    tolerance: float,
    overbound: float | None,
    steps: int,
    want_slope: bool,
    want_rate_slopes: bool,
    backend: str | None,
) -> Tensors:
    """``[value, *slope, *rate slopes]``, each ``[steps * B, N, D]``; the slopes where wanted.

    Records are ``[rows, B, N]``, times ``[1 or B, N, D]``. From ``mode`` to ``overbound`` the
    arguments are the fields of a :class:`ReadRule`.
    """
    rule = ReadRule(mode, step, limit, tolerance, overbound)
    value, slope, rate_slopes = implementation("read", sel.device, backend).select(
        records, sel, rates, pointers, rule, want_slope, want_rate_slopes, steps
    )
    return [value, *([] if slope is None else [slope]), *rate_slopes]


def _like_records(dvalue, rows, sel, rates, *settings):  # type: ignore[no-untyped-def]
    steps = settings[-2]
    shape = (rows, dvalue.shape[0] // steps, dvalue.shape[1])
    return [dvalue.new_empty(shape) for _ in rates]


@operator(fake=_like_records)
def read_adjoint(
    dvalue: Tensor,
    rows: int,
    sel: Tensor,
    rates: Optionals,
    pointers: Tensors,
    mode: str,
    step: float,
    limit: float,
    tolerance: float,
    overbound: float | None,
    steps: int,
    backend: str | None,
) -> Tensors:
    """The gradient of each record ``[rows, B, N]``."""
    shape = (rows, dvalue.shape[0] // steps, dvalue.shape[1])
    # In half precision many small terms vanish in a large sum: it is rounded once.
    acc = compute_dtype(dvalue.dtype)
    sums = [dvalue.new_zeros(shape, dtype=acc) for _ in rates]
    rule = ReadRule(mode, step, limit, tolerance, overbound)
    implementation("read", sel.device, backend).select_backward(
        dvalue, sums, sel, rates, pointers, rule, steps
    )
    return [total.to(dvalue.dtype) for total in sums]


@operator(fake=lambda a, b, backend: a.new_empty(a.shape[1:]))
def batch_dot(a: Tensor, b: Tensor, backend: str | None) -> Tensor:
    """``sum over the batch of a * b``, of ``[B, M]`` each: ``[M]``, in a fixed order."""
    return implementation("read", a.device, backend).batch_dot(a, b)


def _flat_sel(sel: Tensor, shape: torch.Size) -> Tensor:
    """Times as ``[1 or B, N, D]``, also where the last axis is missing; ``shape`` the record's."""
    if sel.ndim == len(shape) - 1:
        sel = sel.unsqueeze(-1)
    return sel.reshape(sel.shape[0], math.prod(shape[2:]), sel.shape[-1])


class _Reading(NamedTuple):
    """The settings of a read."""

    rule: ReadRule
    steps: int
    backend: str | None


def _values(
    reading: _Reading,
    sel: Tensor,
    pointers: Sequence[Slot],
    rates: Sequence[Tensor | None],
    records: Sequence[Tensor],
    wants_sel: bool = False,
    wants_rates: bool = False,
) -> Tensors:
    """The value ``[steps * B, N, D]`` and the derivatives that are wanted.

    Reshaped outside the Functions: a view returned from a Function cannot be written in place.
    """
    rule, steps, backend = reading
    rows, times = [flat_record(record) for record in records], _flat_sel(sel, records[0].shape)
    operands = (rows, times, list(rates), list(pointers))
    return read_values(*operands, *rule, steps, wants_sel, wants_rates, backend)


def _forward(ctx: Any, reading: _Reading, sel: Tensor, tensors: Sequence[Any]) -> Tensor:
    """The value of a read; keeps its derivatives where they will be asked for.

    ``tensors`` holds a pointer, a rate and a record for each component, in this order.
    """
    count = len(tensors) // 3
    pointers, rates, records = tensors[:count], tensors[count : 2 * count], tensors[2 * count :]
    wants_rates = any(ctx.needs_input_grad[2 + count : 2 + 2 * count])
    value, *slopes = _values(
        reading, sel, pointers, rates, records, ctx.needs_input_grad[1], wants_rates
    )
    # By the attribute, because torch.compile does not know ctx.set_materialize_grads.
    ctx.materialize_grads = False
    ctx.reading, ctx.count, ctx.shape = reading, count, records[0].shape
    on_device = [isinstance(pointer, Tensor) for pointer in pointers]
    ctx.numbers = [None if there else p for p, there in zip(pointers, on_device, strict=True)]
    kept = [p if there else None for p, there in zip(pointers, on_device, strict=True)]
    ctx.save_for_backward(sel, *kept, *rates, *slopes)
    return value


class _Kept(NamedTuple):
    """What the forward pass keeps for the backward pass."""

    sel: Tensor
    pointers: list[Slot]
    rates: list[Tensor | None]
    slopes: list[Tensor]

    @classmethod
    def of(cls, ctx: Any) -> "_Kept":
        count = ctx.count
        sel, *saved = ctx.saved_tensors
        pairs = zip(saved[:count], ctx.numbers, strict=True)
        pointers = [number if tensor is None else tensor for tensor, number in pairs]
        return cls(sel, pointers, saved[count : 2 * count], saved[2 * count :])


def _gradients(ctx: Any, dvalue: Tensor, kept: _Kept) -> list[Tensor | None]:
    """Gradients of the times, of the pointers, which have none, and of the rates."""
    backend, count = ctx.reading.backend, ctx.count
    slopes, dsel = kept.slopes, None
    if ctx.needs_input_grad[1]:
        dsel = _selector_gradient(dvalue, slopes[0], kept.sel, backend)
        slopes = slopes[1:]
    drates: list[Tensor | None] = [None] * count
    if slopes:
        drates = [
            over_synapses(batch_dot(dvalue.to(s.dtype).flatten(1), s.flatten(1), backend), rate)
            for s, rate in zip(slopes, kept.rates, strict=True)
            if rate is not None
        ]
    return [dsel, *(None for _ in range(count)), *drates]


def _selector_gradient(dvalue: Tensor, slope: Tensor, sel: Tensor, backend: str | None) -> Tensor:
    """``dvalue * slope``, summed over the rows that share a time."""
    dvalue = dvalue.to(slope.dtype)
    if sel.shape[0] == dvalue.shape[0]:
        dsel = dvalue * slope
    else:
        shape = (dvalue.shape[0] // sel.shape[0], sel.numel())
        dsel = batch_dot(dvalue.reshape(shape), slope.reshape(shape), backend)
    return dsel.view(sel.shape).to(sel.dtype)


class _Read(torch.autograd.Function):
    """A read that leaves the records as they are."""

    @staticmethod
    def forward(ctx: Any, reading: _Reading, sel: Tensor, *tensors: Any) -> Tensor:
        return _forward(ctx, reading, sel, tensors)

    @staticmethod
    @first_order
    def backward(ctx: Any, dvalue: Tensor | None) -> tuple[Tensor | None, ...]:
        count = ctx.count
        if dvalue is None:
            return (None,) * (2 + 3 * count)
        kept = _Kept.of(ctx)
        drecords: Sequence[Tensor | None] = [None] * count
        if any(ctx.needs_input_grad[2 + 2 * count :]):
            rule, steps, backend = ctx.reading
            times = _flat_sel(kept.sel, ctx.shape)
            operands = (dvalue, ctx.shape[0], times, list(kept.rates), kept.pointers)
            sums = read_adjoint(*operands, *rule, steps, backend)
            drecords = [total.view(ctx.shape) for total in sums]
        return None, *_gradients(ctx, dvalue, kept), *drecords


class _ChainedRead(torch.autograd.Function):
    """A read of records that carry a graph, as a link in their chain; used in eager code only."""

    @staticmethod
    def forward(ctx: Any, reading: _Reading, sel: Tensor, *tensors: Any) -> tuple[Tensor, ...]:
        value = _forward(ctx, reading, sel, tensors)
        records = tensors[2 * ctx.count :]
        ctx.layout = Layout.of(records[0])
        ctx.mark_dirty(*records)
        return (value, *records)

    @staticmethod
    @first_order
    def backward(
        ctx: Any, dvalue: Tensor | None, *drecords: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        count = ctx.count
        owned = [
            None if d is None and dvalue is None else own_gradient(ctx, d, ctx.layout)
            for d in drecords
        ]
        gradients: Sequence[Tensor | None] = [None] * (1 + 2 * count)
        if dvalue is not None:
            kept = _Kept.of(ctx)
            _add_to(ctx, [d for d in owned if d is not None], dvalue, kept)
            gradients = _gradients(ctx, dvalue, kept)
        chain = (None if d is None else hand_over(ctx, d, i - count) for i, d in enumerate(owned))
        return None, *gradients, *chain


def _add_to(ctx: Any, drecords: Tensors, dvalue: Tensor, kept: _Kept) -> None:
    """Adds what the values give to the records' gradients, in place."""
    rule, steps, backend = ctx.reading
    flat = [flat_record(d) for d in drecords]
    sel, dtype = _flat_sel(kept.sel, ctx.shape), flat[0].dtype
    # In half precision many small terms vanish in a large sum: it is rounded once.
    acc = compute_dtype(dtype)
    whole = acc == dtype or steps * sel.shape[2] == 1
    sums = flat if whole else [torch.zeros_like(d, dtype=acc) for d in flat]
    implementation("read", sel.device, backend).select_backward(
        dvalue, sums, sel, kept.rates, kept.pointers, rule, steps
    )
    if not whole:
        for d, total in zip(flat, sums, strict=True):
            d.add_(total)


def _as_tensors(pointers: Sequence[Slot], device: torch.device) -> list[Slot]:
    return [torch.as_tensor(pointer, device=device) for pointer in pointers]


@traced_as(_as_tensors)
def _operands(pointers: Sequence[Slot], device: torch.device) -> Sequence[Slot]:
    """Pointers as an operator takes them: tensors where it is registered."""
    return pointers


def _as_views(rates: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [None if rate is None else rate.view(rate.shape) for rate in rates]


@traced_as(_as_views)
def _distinct(rates: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """Rates, each a tensor of its own where a Function is traced, which takes none twice.

    The two states of an alpha function have one rate.
    """
    return rates


@traced_as(lambda records: False)
def _linked(records: Sequence[Tensor]) -> bool:
    """Whether a read has to be a link in the chain of operations on these records."""
    return any(record.requires_grad for record in records)


def select(
    records: Sequence[Tensor],
    sel: Tensor,
    rates: Sequence[Tensor | None],
    pointers: Sequence[Slot],
    rule: ReadRule,
    *,
    backend: str | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """:func:`tritonsyn.functional.select`, with rates that are 0-d or ``[N]``."""
    reading = _Reading(rule, 1, running(sel.device, backend))
    pointers = _operands(pointers, sel.device)
    if records[0].is_floating_point() and chained(sel, *rates, *records):
        operands = (reading, sel, *map(held, pointers), *_distinct(rates), *records)
        if _linked(records):
            value, *records = _ChainedRead.apply(*operands)
        else:
            value = _Read.apply(*operands)
    else:
        with torch.no_grad():
            value = _values(reading, sel, pointers, rates, records)[0]
    return value.view(records[0].shape[1], *sel.shape[1:]), tuple(records)


def time_since_older(sel: Tensor, rule: ReadRule, slots: int) -> Tensor:
    """Time from the older neighbouring observation to each time, in ``[0, step)``.

    Differentiable to ``sel``: the derivative is -1 between the bounds, 0 outside of them.
    """
    fraction = locate(sel.detach(), rule, slots).fraction
    bounded = sel.clamp(0.0, rule.limit)
    return (fraction * rule.step).to(sel.dtype) - (bounded - bounded.detach())


def select_scan(
    sequences: Sequence[Tensor],
    sel: Tensor,
    rates: Sequence[Tensor | None],
    rule: ReadRule,
    steps: int,
    *,
    backend: str | None = None,
) -> Tensor:
    """:func:`tritonsyn.functional.select_scan`, with rates that are 0-d or ``[N]``."""
    sequences = [sequence.contiguous() for sequence in sequences]
    reading = _Reading(rule, steps, running(sel.device, backend))
    pointers = _operands([0] * len(sequences), sel.device)
    if chained(sel, *rates, *sequences):
        value = _Read.apply(reading, sel, *pointers, *_distinct(rates), *sequences)
    else:
        with torch.no_grad():
            value = _values(reading, sel, pointers, rates, sequences)[0]
    return value.view(steps, sequences[0].shape[1], *sel.shape[1:])
