"""Delayed reads as a differentiable operation on records and times."""

import math
from collections.abc import Sequence

import torch

from ..backend import implementation
from ..reference.interp import locate
from ..rules import ReadRule
from .common import (
    Layout,
    chained,
    flat_coefficients,
    flat_record,
    own_gradient,
    reduce_coefficient,
)


def _flat_sel(sel: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Times as ``[1 or B, N, D]``, also where the last axis is missing; ``shape`` the record's."""
    if sel.ndim == len(shape) - 1:
        sel = sel.unsqueeze(-1)
    return sel.reshape(sel.shape[0], math.prod(shape[2:]), sel.shape[-1])


class _Select(torch.autograd.Function):
    @staticmethod
    def forward(ctx, module, rule: ReadRule, pointers, sel, *rest):
        count = len(pointers)
        rates, records = rest[:count], rest[count:]
        needs = ctx.needs_input_grad
        wants_sel, wants_rates = needs[3], any(needs[4 : 4 + count])
        flat = _flat_sel(sel.detach(), records[0].shape)
        value, slope, rate_slopes = module.select(
            [flat_record(record.detach()) for record in records],
            flat, flat_coefficients(rates), pointers, rule, wants_sel, wants_rates,
        )  # fmt: skip
        ctx.chain = any(needs[4 + count :])
        if ctx.chain:
            ctx.mark_dirty(*records)
        ctx.set_materialize_grads(False)
        ctx.module, ctx.rule, ctx.pointers = module, rule, pointers
        ctx.layout = Layout.of(records[0])
        ctx.save_for_backward(sel, slope, *rates, *rate_slopes)
        shape = (records[0].shape[1], *sel.shape[1:])
        return (value.view(shape), *records) if ctx.chain else (value.view(shape),)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dvalue, *drecords):
        count = len(ctx.pointers)
        if dvalue is None:
            drecords = drecords or (None,) * count
            return (None,) * (4 + count) + tuple(drecords)
        sel, slope, *saved = ctx.saved_tensors
        rates, rate_slopes = saved[:count], saved[count:]
        flat_sel = _flat_sel(sel, ctx.layout.shape)
        dvalue = dvalue.reshape(-1, *flat_sel.shape[1:])
        if ctx.chain:
            drecords = tuple(own_gradient(d, ctx.layout) for d in drecords)
            ctx.module.select_backward(
                dvalue, [flat_record(d) for d in drecords],
                flat_sel, flat_coefficients(rates), ctx.pointers, ctx.rule,
            )  # fmt: skip
        dsel = None if slope is None else _selector_gradient(ctx.module, dvalue, slope, sel)
        drates = [None] * count
        if rate_slopes:
            pairs = zip(rate_slopes, rates, strict=True)
            drates = [
                reduce_coefficient(dvalue.to(s.dtype), s, rate, ctx.module) for s, rate in pairs
            ]
        return None, None, None, dsel, *drates, *(drecords or (None,) * count)


def _selector_gradient(module, dvalue, slope, sel):
    """``dvalue * slope``, summed over the batch where the selector is shared by it."""
    dvalue = dvalue.to(slope.dtype)
    if sel.shape[0] == dvalue.shape[0]:
        dsel = dvalue * slope
    else:
        dsel = module.batch_dot(dvalue.flatten(1), slope.flatten(1))
    return dsel.view(sel.shape).to(sel.dtype)


def select(
    records: Sequence[torch.Tensor],
    sel: torch.Tensor,
    rates: Sequence[torch.Tensor | None],
    pointers: Sequence[int],
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
    module = implementation("interp", sel.device, backend)
    if records[0].is_floating_point() and chained(sel, *rates, *records):
        value, *chain = _Select.apply(module, rule, tuple(pointers), sel, *rates, *records)
        return value, tuple(chain) or tuple(records)
    with torch.no_grad():
        value, _, _ = module.select(
            [flat_record(record) for record in records],
            _flat_sel(sel, records[0].shape), flat_coefficients(rates), pointers, rule,
        )  # fmt: skip
    return value.view(records[0].shape[1], *sel.shape[1:]), tuple(records)


def time_since_older(sel: torch.Tensor, rule: ReadRule, slots: int) -> torch.Tensor:
    """Time from the older neighbouring observation to each time, in ``[0, step)``.

    Differentiable to ``sel``: the derivative is -1 between the bounds, 0 outside of them.
    """
    frac = locate(sel.detach(), rule, slots).frac
    bounded = sel.clamp(0.0, rule.limit)
    return (frac * rule.step).to(sel.dtype) - (bounded - bounded.detach())
