"""Delayed reads as a differentiable operation on records and times."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..values import Reading, ReadRule, Slot, after_zeros, compute_dtype, locate, readable
from .common import (
    Home,
    chained,
    check_not_freed,
    distinct,
    first_order,
    flat_record,
    hand_over,
    held,
    implementation,
    keep,
    kept,
    kind_of,
    link,
    own_gradient,
    running,
    without_graph,
    without_owner,
)
from .operator import operator, traced_as
from .steady import read_steadily

Tensors = list[Tensor]
Optionals = list[Tensor | None]


def _like_values(records, sel, rates, pointers, *settings):  # type: ignore[no-untyped-def]
    *_, steps, want_slope, want_rate_slopes, _ = settings
    shape = (steps * records[0].shape[1], *sel.shape[-2:])
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

    Records are ``[rows, B, N]``, times ``[1 or B, N, D]``, or so many of each step. From ``mode``
    to ``overbound`` the arguments are the fields of a :class:`ReadRule`.
    """
    rule = ReadRule(mode, step, limit, tolerance, overbound)
    reading = Reading(sel, rates, pointers, rule, steps)
    module = implementation("read", sel.device, backend)
    return module.select(records, reading, want_slope, want_rate_slopes)


def _like_records(dvalue, rows, sel, rates, *settings):  # type: ignore[no-untyped-def]
    *_, steps, _ = settings
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
    rule = ReadRule(mode, step, limit, tolerance, overbound)
    reading = Reading(sel, rates, pointers, rule, steps)
    shape = (rows, dvalue.shape[0] // steps, dvalue.shape[1])
    drecords = [dvalue.new_zeros(shape) for _ in rates]
    _add_adjoint(drecords, dvalue, reading, backend)
    return drecords


def _like_sums(a, b, whole, backend):  # type: ignore[no-untyped-def]
    return a.new_empty(() if whole else (*a.shape[:-2], a.shape[-1]))


@operator(fake=_like_sums)
def batch_dot(a: Tensor, b: Tensor, whole: bool, backend: str | None) -> Tensor:
    """``sum over the batch of a * b``, of ``[B, M]`` each: ``[M]``, or 0-d, in a fixed order.

    Of ``[G, B, M]`` each sums are ``[G, M]``.
    """
    return implementation("read", a.device, backend).batch_dot(a, b, whole)


def _add_adjoint(drecords: Tensors, dvalue: Tensor, reading: Reading, backend: str | None) -> None:
    """Adds what the values give to the records' gradients ``[rows, B, N]``, in place."""
    # In half precision many small terms vanish in a large sum: it is rounded once.
    acc = compute_dtype(dvalue.dtype)
    whole = acc == dvalue.dtype or reading.steps * reading.sel.shape[-1] == 1
    sums = drecords if whole else [torch.zeros_like(d, dtype=acc) for d in drecords]
    implementation("read", dvalue.device, backend).select_backward(dvalue, sums, reading)
    if not whole:
        for drecord, total in zip(drecords, sums, strict=True):
            drecord.add_(total)


_Settings = tuple[ReadRule, int, str | None]
"""Of a read: the rule, how many steps, the backend."""


def _values(
    records: Sequence[Tensor],
    reading: Reading,
    backend: str | None,
    want_slope: bool = False,
    want_rate_slopes: bool = False,
) -> Tensors:
    """:func:`read_values` of records ``[rows, B, *shape]``."""
    sel, rates, pointers, rule, steps = reading
    operands = ([flat_record(record) for record in records], sel, list(rates), list(pointers))
    return read_values(*operands, *rule, steps, want_slope, want_rate_slopes, backend)


class _Read(torch.autograd.Function):
    """A read that leaves the records as they are.

    After the times it takes a pointer, a rate and a record for each component, in this order.
    """

    @staticmethod
    def forward(ctx: Any, settings: _Settings, sel: Tensor, *tensors: Any) -> tuple[Tensor, ...]:
        count = len(tensors) // 3
        pointers, rates, records = tensors[:count], tensors[count:-count], tensors[-count:]
        rule, steps, backend = settings
        want_slope = ctx.needs_input_grad[1] and not rule.flat
        want_rate_slopes = any(ctx.needs_input_grad[2:-count])
        reading = Reading(sel, rates, pointers, rule, steps)
        value, *slopes = _values(records, reading, backend, want_slope, want_rate_slopes)
        ctx.settings, ctx.count, ctx.shape = settings, count, records[0].shape
        keep(ctx, [sel], pointers, rates, slopes)
        return (value,)

    @staticmethod
    @first_order
    def backward(ctx: Any, dvalue: Tensor) -> tuple[Tensor | None, ...]:
        count, shape, ((sel,), pointers, rates, slopes) = ctx.count, ctx.shape, kept(ctx)
        drecords: Sequence[Tensor | None] = [None] * count
        if any(ctx.needs_input_grad[-count:]):
            rule, *others = ctx.settings
            sums = read_adjoint(dvalue, shape[0], sel, rates, pointers, *rule, *others)
            drecords = [total.view(shape) for total in sums]
        return None, *_gradients(ctx, dvalue, sel, rates, slopes), *drecords


class _ChainedRead(torch.autograd.Function):
    """A read of records that carry a graph, as a link in their chain; used in eager code only."""

    @staticmethod
    def forward(ctx: Any, settings: _Settings, sel: Tensor, *tensors: Any) -> tuple[Tensor, ...]:
        value = _Read.forward(ctx, settings, sel, *tensors)
        records = tensors[-ctx.count :]
        link(ctx, *records)
        return (*value, *records)

    @staticmethod
    @first_order
    def backward(
        ctx: Any, dvalue: Tensor | None, *drecords: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        gradients: Sequence[Tensor | None] = [None] * (1 + 2 * ctx.count)
        chain = [None if d is None and dvalue is None else own_gradient(ctx, d) for d in drecords]
        if dvalue is None:
            check_not_freed(ctx)
        else:
            (sel,), pointers, rates, slopes = kept(ctx)
            gradients = _gradients(ctx, dvalue, sel, rates, slopes)
            flat = [flat_record(d) for d in chain if d is not None]
            rule, steps, backend = ctx.settings
            _add_adjoint(flat, dvalue, Reading(sel, rates, pointers, rule, steps), backend)
        for i, drecord in enumerate(chain, -ctx.count):
            hand_over(ctx, drecord, i)
        return None, *gradients, *chain


def _gradients(
    ctx: Any, dvalue: Tensor, sel: Tensor, rates: Optionals, slopes: Tensors
) -> list[Tensor | None]:
    """Gradients of the times, of the pointers, which have none, and of the rates."""
    count, (rule, _, backend), dsel = ctx.count, ctx.settings, None
    if ctx.needs_input_grad[1]:
        dsel = (
            torch.zeros_like(sel) if rule.flat else _of_times(dvalue, slopes.pop(0), sel, backend)
        )
    drates: list[Tensor | None] = [None] * count
    if slopes:
        drates = [
            None if rate is None else _of_rate(dvalue, slope, rate, backend)
            for slope, rate in zip(slopes, rates, strict=True)
        ]
    return [dsel, *[None] * count, *drates]


def _of_times(dvalue: Tensor, slope: Tensor, sel: Tensor, backend: str | None) -> Tensor:
    """``dvalue * slope``, summed over what shares a row of times."""
    dvalue = dvalue.to(slope.dtype)
    rows = sel.shape[:-2].numel()
    if rows == dvalue.shape[0]:
        dsel = dvalue * slope
    else:
        shape = (*sel.shape[:-3], dvalue.shape[0] // rows, sel.shape[-3:].numel())
        dsel = batch_dot(dvalue.reshape(shape), slope.reshape(shape), False, backend)
    return dsel.view(sel.shape).to(sel.dtype)


def _of_rate(dvalue: Tensor, slope: Tensor, rate: Tensor, backend: str | None) -> Tensor:
    """``dvalue * slope``, summed over the batch and the times, and over synapses of one rate."""
    shape = (dvalue.shape[0], math.prod(dvalue.shape[1:]))
    pair = dvalue.to(slope.dtype).reshape(shape), slope.reshape(shape)
    total = batch_dot(*pair, not rate.ndim, backend)
    return total if total.shape == rate.shape else total.view(len(rate), -1).sum(1)


def _traced_operands(
    pointers: Sequence[Slot], rates: Sequence[Tensor | None], records: Sequence[Tensor]
) -> Any:
    """Where a Function is traced it takes pointers as tensors, no tensor twice, and no record that
    it marks dirty."""
    pointers = [torch.as_tensor(pointer, device=records[0].device) for pointer in pointers]
    return pointers, distinct(rates), _Read


@traced_as(_traced_operands)
def _operands(
    pointers: Sequence[Slot], rates: Sequence[Tensor | None], records: Sequence[Tensor]
) -> Any:
    """Pointers and rates as the read takes them, and its Function: a link in the records' chain
    where they have one."""
    linked = any(record.requires_grad for record in records)
    return pointers, rates, _ChainedRead if linked else _Read


def _read(
    function: Any, records: Sequence[Tensor], reading: Reading, backend: str | None
) -> tuple[Tensor, Sequence[Tensor]]:
    """The value ``[steps * B, N, D]`` of a read, and the records after it.

    Reshaped outside the Functions: a view returned from a Function cannot be written in place.
    """
    sel, rates, pointers, rule, steps = reading
    if chained(sel, *rates, *records) and records[0].is_floating_point():
        settings = rule, steps, running(sel.device, backend)
        value, *linked = function.apply(settings, sel, *map(held, pointers), *rates, *records)
        return value, linked or records
    with without_graph():
        return _values(records, reading, backend)[0], records


def _flat_sel(sel: Tensor, record: Tensor, per_step: bool = False) -> Tensor:
    """Times for a record as ``[1 or B, N, D]``, also where the last axis is missing; or of each
    step, which is their first axis then."""
    if sel.ndim == record.ndim - 1 + per_step:
        sel = sel.unsqueeze(-1)
    return sel.reshape(*sel.shape[: 1 + per_step], math.prod(record.shape[2:]), sel.shape[-1])


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
    pointers, rates, function = _operands(pointers, rates, records)
    reading = Reading(_flat_sel(sel, records[0]), rates, pointers, rule)
    value, records = _read(function, records, reading, backend)
    return value.view(records[0].shape[1], *sel.shape[1:]), tuple(records)


SelectPlan = Callable[[Tensor], Tensor | None]


def select_again(
    records: Sequence[Tensor],
    sel: Tensor,
    rates: Sequence[Tensor | None],
    pointers: Sequence[Slot],
    rule: ReadRule,
    home: Home,
    *,
    backend: str | None = None,
) -> SelectPlan | None:
    """:func:`select` once more at little cost, on the memory of these records.

    ``home`` are the records, what is on the device, and the pointers. What is returned takes times
    and returns values, or None if a graph is to be recorded or anything is otherwise than now.
    """
    fits, find = kind_of(sel), home.finder()
    if not fits(sel):
        return None
    module, flat = implementation("read", sel.device, backend), _flat_sel(sel.detach(), records[0])
    plain = [flat_record(without_owner(record)) for record in records]
    read = module.select_again(plain, Reading(flat, rates, pointers, rule))
    cursors, shape = home.cursors, (records[0].shape[1], *sel.shape[1:])
    viewed = shape != (shape[0], *flat.shape[1:])

    def plan(sel: Tensor) -> Tensor | None:
        if not fits(sel) or (found := find()) is None:
            return None
        if torch.is_grad_enabled():
            for tensor in (sel, *found):
                if tensor.requires_grad:
                    return None
        value = read(sel, [cursor["_cursor"] for cursor in cursors] or pointers)
        return value.view(shape) if viewed else value

    return plan


def replaced(sel: Tensor, rule: ReadRule, slots: int) -> tuple[Tensor, Tensor] | None:
    """At which times nothing is read, and what stands there: the overbound value, or NaN for NaN.

    None where it is known that there is no such time.
    """
    unread = none = sel.isnan()
    if rule.overbound is not None:
        inside = locate(sel, rule, slots).inside
        unread = none if inside is None else none | ~inside
    if readable(unread) and not unread.any():
        return None
    return unread, torch.where(none, math.nan, rule.overbound or 0.0)


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
    pasts: Sequence[Tensor] | None = None,
    slots: int | None = None,
    owned: bool = False,
    per_step: bool = False,
    backend: str | None = None,
) -> Tensor:
    """:func:`tritonsyn.functional.select_scan`, with rates that are 0-d or ``[N]``.

    With ``slots``, which is K, what comes before the sequences may be missing: it is in ``pasts
    [K - 1, B, N]``, or zero. ``owned``: nobody will write the sequences.
    """
    device, shape = sel.device, (steps, sequences[0].shape[1], *sel.shape[1 + per_step :])
    sequences = [sequence.contiguous() for sequence in sequences]
    slots = len(sequences[0]) + 1 - steps if slots is None else slots
    flat = _flat_sel(sel, sequences[0], per_step)
    if steps > 1 and flat.shape[:-2] == (1,) and flat.shape[-1] == 1 and _steadily(device, backend):
        rows, reading = map(flat_record, sequences), Reading(flat, rates, (), rule, steps)
        how: dict[str, Any] = {"owned": owned, "backend": backend}
        return read_steadily(pasts or (), [*rows], reading, slots, **how).view(shape)
    if len(sequences[0]) < slots - 1 + steps:
        sequences = after_pasts(sequences, pasts, slots)
    pointers, rates, _ = _operands([0] * len(sequences), rates, sequences)
    value, _ = _read(_Read, sequences, Reading(flat, rates, pointers, rule, steps), backend)
    return value.view(shape)


def after_pasts(
    sequences: Sequence[Tensor], pasts: Sequence[Tensor] | None, slots: int
) -> list[Tensor]:
    """Each sequence after its past ``[K - 1, B, N]``, or after as many zeros."""
    if not pasts:
        return [after_zeros(rows, slots - 1 + len(rows)) for rows in sequences]
    pairs = zip(pasts, sequences, strict=True)
    return [torch.cat((past.view(-1, *rows.shape[1:]), rows)) for past, rows in pairs]


@traced_as(lambda device, backend: device.type == "cpu" and backend != "triton")
def _steadily(device: torch.device, backend: str | None) -> bool:
    """Whether a sequence read at one time for each synapse is shifted as a whole."""
    return running(device, backend) == "reference"
