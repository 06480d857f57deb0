"""Delayed reads as a differentiable operation on records and times."""

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple, cast

import torch

from ..values import ReadRule, Slot, compute_dtype, locate
from . import registered
from .common import (
    Layout,
    chained,
    first_order,
    flat_coefficients,
    flat_record,
    hand_over,
    held,
    implementation,
    own_gradient,
    reduce_coefficient,
)


def _flat_sel(sel: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Times as ``[1 or B, N, D]``, also where the last axis is missing; ``shape`` the record's."""
    if sel.ndim == len(shape) - 1:
        sel = sel.unsqueeze(-1)
    return sel.reshape(sel.shape[0], math.prod(shape[2:]), sel.shape[-1])


class _Reading(NamedTuple):
    """What a read is, apart from its tensors."""

    module: ModuleType
    rule: ReadRule
    pointers: tuple[Slot, ...]
    steps: int = 1


def _read(
    reading: _Reading,
    sel: torch.Tensor,
    rates: Sequence[torch.Tensor | None],
    records: Sequence[torch.Tensor],
    wants_sel: bool = False,
    wants_rates: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None, list[torch.Tensor]]:
    """The value ``[steps * B, N, D]`` and the derivatives that are wanted.

    Its final shape comes after the Functions: what those return as a view cannot be written in
    place.
    """
    module, rule, pointers, steps = reading
    return module.select(
        [flat_record(record) for record in records],
        _flat_sel(sel, records[0].shape), flat_coefficients(rates), pointers, rule,
        wants_sel, wants_rates, steps,
    )  # fmt: skip


def _read_forward(
    ctx: Any,
    reading: _Reading,
    sel: torch.Tensor,
    rates: Sequence[torch.Tensor | None],
    records: Sequence[torch.Tensor],
) -> torch.Tensor:
    """The value of a read; keeps its derivatives where they will be asked for."""
    count = len(records)
    wants_sel, wants_rates = ctx.needs_input_grad[1], any(ctx.needs_input_grad[2 : 2 + count])
    value, slope, rate_slopes = _read(
        reading, sel.detach(), rates, [record.detach() for record in records],
        wants_sel, wants_rates,
    )  # fmt: skip
    ctx.set_materialize_grads(False)
    ctx.reading, ctx.layout = reading, Layout.of(records[0])
    ctx.save_for_backward(sel, slope, *rates, *rate_slopes)
    return value


def _read_backward(
    ctx: Any, dvalue: torch.Tensor, drecords: Sequence[torch.Tensor | None], into_records: bool
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of times, rates and records; the records' are added to in place."""
    module, rule, pointers, steps = ctx.reading
    count = len(pointers)
    sel, slope, *saved = ctx.saved_tensors
    rates, rate_slopes = saved[:count], saved[count:]
    flat_sel = _flat_sel(sel, ctx.layout.shape)
    if into_records:
        drecords = [own_gradient(ctx, d, ctx.layout) for d in drecords]
        flat = [flat_record(d) for d in drecords if d is not None]
        # Many small terms would not move a large sum in half precision: it is rounded once.
        acc = compute_dtype(ctx.layout.dtype)
        whole = acc == ctx.layout.dtype or steps * flat_sel.shape[2] == 1
        sums = flat if whole else [torch.zeros_like(d, dtype=acc) for d in flat]
        module.select_backward(
            dvalue, sums, flat_sel, flat_coefficients(rates), pointers, rule, steps
        )
        if not whole:
            for d, total in zip(flat, sums, strict=True):
                d.add_(total)
    dsel = None if slope is None else _selector_gradient(module, dvalue, slope, sel)
    drates: list[torch.Tensor | None] = [None] * count
    if rate_slopes:
        drates = [
            reduce_coefficient(dvalue.to(s.dtype), s, rate, module)
            for s, rate in zip(rate_slopes, rates, strict=True)
        ]
    return dsel, *drates, *drecords


class _Select(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, reading: _Reading, sel: torch.Tensor, *rest: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        count = len(reading.pointers)
        rates, records = rest[:count], cast(Sequence[torch.Tensor], rest[count:])
        value = _read_forward(ctx, reading, sel, rates, records)
        ctx.chain = any(ctx.needs_input_grad[2 + count :])
        if not ctx.chain:
            return (value,)
        ctx.mark_dirty(*records)
        return (value, *records)

    @staticmethod
    @first_order
    def backward(
        ctx: Any, dvalue: torch.Tensor | None, *drecords: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        count = len(ctx.reading.pointers)
        drecords = drecords or (None,) * count
        if dvalue is None:  # the records' gradients pass through
            passed = (None if d is None else own_gradient(ctx, d, ctx.layout) for d in drecords)
            dread = (*(None,) * (1 + count), *passed)
        else:
            dread = _read_backward(ctx, dvalue, drecords, ctx.chain)
        chain = (
            None if d is None else hand_over(ctx, d, i - count)
            for i, d in enumerate(dread[1 + count :])
        )
        return None, *dread[: 1 + count], *chain


class _SelectScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, reading: _Reading, sel: torch.Tensor, *rest: torch.Tensor | None
    ) -> torch.Tensor:
        count = len(reading.pointers)
        rates, sequences = rest[:count], cast(Sequence[torch.Tensor], rest[count:])
        return _read_forward(ctx, reading, sel, rates, sequences)

    @staticmethod
    @first_order
    def backward(ctx: Any, dvalue: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        count = len(ctx.reading.pointers)
        if dvalue is None:
            return (None,) * (2 + 2 * count)
        into_sequences = any(ctx.needs_input_grad[2 + count :])
        return None, *_read_backward(ctx, dvalue, (None,) * count, into_sequences)


def _selector_gradient(
    module: ModuleType, dvalue: torch.Tensor, slope: torch.Tensor, sel: torch.Tensor
) -> torch.Tensor:
    """``dvalue * slope``, summed over the rows that share a time."""
    dvalue = dvalue.to(slope.dtype)
    if sel.shape[0] == dvalue.shape[0]:
        dsel = dvalue * slope
    else:
        shape = (dvalue.shape[0] // sel.shape[0], sel.numel())
        dsel = module.batch_dot(dvalue.reshape(shape), slope.reshape(shape))
    return dsel.view(sel.shape).to(sel.dtype)


def select(
    records: Sequence[torch.Tensor],
    sel: torch.Tensor,
    rates: Sequence[torch.Tensor | None],
    pointers: Sequence[Slot],
    rule: ReadRule,
    *,
    backend: str | None = None,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Values of a record, or of the first minus the second, at times before the present.

    ``records`` one or two ``[K, B, *shape]``; ``sel`` ``[1 or B, *shape]`` or ``[..., D]``, in the
    unit of ``rule.step``; ``rates`` (steps over time constant, 0-d or ``[*shape]``) for the mode
    ``expdecay``. Returns the value and the records, which carry the read in their graph.
    Differentiable to the records, to the times and to the rates.
    """
    chain: Sequence[torch.Tensor] = ()
    if torch.compiler.is_compiling():
        value = _registered_select(records, sel, rates, pointers, rule, 1, backend)
    elif records[0].is_floating_point() and chained(sel, *rates, *records):
        module = implementation("read", sel.device, backend)
        reading = _Reading(module, rule, tuple([held(pointer) for pointer in pointers]))
        value, *chain = _Select.apply(reading, sel, *rates, *records)
    else:
        reading = _Reading(implementation("read", sel.device, backend), rule, tuple(pointers))
        with torch.no_grad():
            value, _, _ = _read(reading, sel, rates, records)
    return value.view(records[0].shape[1], *sel.shape[1:]), tuple(chain) or tuple(records)


def time_since_older(sel: torch.Tensor, rule: ReadRule, slots: int) -> torch.Tensor:
    """Time from the older neighbouring observation to each time, in ``[0, step)``.

    Differentiable to ``sel``: the derivative is -1 between the bounds, 0 outside of them.
    """
    frac = locate(sel.detach(), rule, slots).frac
    bounded = sel.clamp(0.0, rule.limit)
    return (frac * rule.step).to(sel.dtype) - (bounded - bounded.detach())


def _registered_select(
    records: Sequence[torch.Tensor],
    sel: torch.Tensor,
    rates: Sequence[torch.Tensor | None],
    pointers: Sequence[Slot],
    rule: ReadRule,
    steps: int,
    backend: str | None,
) -> torch.Tensor:
    """The read as an operator, for ``torch.compile``."""
    mode, *times, overbound = rule
    floating = records[0].is_floating_point()
    return registered.select(
        [flat_record(record) for record in records],
        _flat_sel(sel, records[0].shape),
        [rate for rate in flat_coefficients(rates) if rate is not None],
        [torch.as_tensor(pointer, device=sel.device) for pointer in pointers],
        mode, [float(time) for time in times],
        None if overbound is None else float(overbound), steps,
        floating and chained(sel), floating and chained(*rates), backend,
    )[0]  # fmt: skip


def select_scan(
    sequences: Sequence[torch.Tensor],
    sel: torch.Tensor,
    rates: Sequence[torch.Tensor | None],
    rule: ReadRule,
    steps: int,
    *,
    backend: str | None = None,
) -> torch.Tensor:
    """The read of :func:`select` at each of the last ``steps`` steps of a sequence.

    ``sequences`` one or two ``[K - 1 + steps, B, *shape]``, oldest first; step t reads the K
    observations from row t on. ``sel`` ``[1 or B, *shape]`` or with an axis more, the same at every
    step. Returns ``[steps, B, *shape]`` or with an axis more. Differentiable to sequences, times
    and rates.
    """
    sequences = [sequence.contiguous() for sequence in sequences]
    if torch.compiler.is_compiling():
        zeros = [torch.zeros((), dtype=torch.int64, device=sel.device) for _ in sequences]
        value = _registered_select(sequences, sel, rates, zeros, rule, steps, backend)
    else:
        module = implementation("read", sel.device, backend)
        reading = _Reading(module, rule, (0,) * len(sequences), steps)
        if chained(sel, *rates, *sequences):
            value = _SelectScan.apply(reading, sel, *rates, *sequences)
        else:
            with torch.no_grad():
                value, _, _ = _read(reading, sel, rates, sequences)
    return value.view(steps, sequences[0].shape[1], *sel.shape[1:])
