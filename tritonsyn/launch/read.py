"""Delayed reads of a record: a gather with interpolation, and its adjoints."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels.read import batch_dot_kernel, select_bwd_kernel, select_fwd_kernel
from ..values import ReadRule, Slot, compute_dtype
from .launcher import accumulator, both, covering, launch, tiles

# Rows of one batch that a program of the batch reduction adds up.
_ROWS = 16


def _constants(
    sel: Tensor, record: Tensor, rates: Sequence[Tensor | None], rule: ReadRule
) -> dict[str, Any]:
    """The compile-time arguments that the read and its adjoint share."""
    pos_rate, neg_rate = both(rates)
    return {
        "STEP": rule.step,
        "LIMIT": rule.limit,
        "TOLERANCE": rule.tolerance,
        "EPSILON": torch.finfo(sel.dtype).eps,
        "OVERBOUND": None if rule.overbound is None else float(rule.overbound),
        "MODE": rule.mode,
        "DOUBLE": len(rates) == 2,
        "POS_RATE_PER_SYNAPSE": pos_rate is not None and pos_rate.ndim > 0,
        "NEG_RATE_PER_SYNAPSE": neg_rate is not None and neg_rate.ndim > 0,
        "TIME": accumulator(sel.dtype),
        "ACC": accumulator(record.dtype),
        # A fused multiply-add would round the distance to an observation differently.
        "enable_fp_fusion": False,
    }


def _rates(rates: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The rates of the first and the last component, packed."""
    return [None if rate is None else rate.contiguous() for rate in both(rates)]


def _times(sel: Tensor) -> tuple[Tensor, int]:
    """The times with packed rows, and how many rows there are: 1 where the batch shares them."""
    if sel.stride(0) == 0:
        sel = sel[:1]
    return sel.contiguous(), sel.shape[0]


def select(
    records: Sequence[Tensor],
    sel: Tensor,
    rates: Sequence[Tensor | None],
    pointers: Sequence[Slot],
    rule: ReadRule,
    want_slope: bool = False,
    want_rate_slopes: bool = False,
    steps: int = 1,
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    rows, batch, synapses = records[0].shape
    selectors = sel.shape[2]
    shape = (steps * batch, synapses, selectors)
    acc = compute_dtype(records[0].dtype)
    value = torch.empty(shape, dtype=records[0].dtype, device=sel.device)
    slope = torch.empty_like(value, dtype=acc) if want_slope else None
    rate_slopes = [torch.empty_like(value, dtype=acc) for _ in records] if want_rate_slopes else []
    if value.numel() == 0:
        return value, slope, rate_slopes
    times, sel_rows = _times(sel)
    row = synapses * selectors
    if row >= 2**31:
        raise ValueError(
            f"sel must have fewer than 2**31 times per row of the batch, but has {row}"
        )
    tensors = (times, *both(records), *_rates(rates), value, slope, *both(rate_slopes))
    numbers = (*both(pointers), rows - steps + 1, batch, synapses, selectors, sel_rows)
    options = {**_constants(sel, value, rates, rule), "work": (shape[0], row), "dtype": value.dtype}
    launch(select_fwd_kernel, covering(row, shape[0]), *tensors, *numbers, **options)
    return value, slope, rate_slopes


def select_backward(
    dvalue: Tensor,
    drecords: Sequence[Tensor],
    sel: Tensor,
    rates: Sequence[Tensor | None],
    pointers: Sequence[Slot],
    rule: ReadRule,
    steps: int = 1,
) -> None:
    rows, batch, synapses = drecords[0].shape
    if dvalue.numel() == 0:
        return
    times, sel_rows = _times(sel)
    tensors = (times, dvalue.contiguous(), *both(drecords), *_rates(rates))
    numbers = (rows - steps + 1, batch, synapses, sel.shape[2], sel_rows, steps)
    options = _constants(sel, drecords[0], rates, rule)
    options |= {"work": (batch, synapses), "dtype": drecords[0].dtype}
    grid = covering(synapses, batch)
    launch(select_bwd_kernel, grid, *tensors, *both(pointers), *numbers, **options)


def batch_dot(a: Tensor, b: Tensor) -> Tensor:
    batch, columns = a.shape
    groups = tiles(batch, _ROWS)
    partial = torch.empty(groups, columns, dtype=a.dtype, device=a.device)
    if a.numel() == 0:
        return a.new_zeros(columns)
    arguments = (a.contiguous(), b.contiguous(), partial, batch, columns)
    options = {"ROWS": _ROWS, "ACC": accumulator(a.dtype), "work": (batch, columns)}
    launch(batch_dot_kernel, covering(columns, groups), *arguments, **options, dtype=a.dtype)
    return partial.sum(0)
