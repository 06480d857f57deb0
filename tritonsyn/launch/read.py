"""Delayed reads of a record: a gather with interpolation, and its adjoints."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels.read import batch_dot_kernel, select_bwd_kernel, select_fwd_kernel
from ..values import ReadRule, Slot
from .launcher import accumulator, launch, tiles

# Rows of one batch that a program of the batch reduction adds up.
_ROWS = 16


def _constants(
    sel: Tensor, record: Tensor, rates: Sequence[Tensor | None], rule: ReadRule
) -> dict[str, Any]:
    """The compile-time arguments that the read and its adjoint share."""
    pos_rate, neg_rate = rates[0], rates[-1]
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
    return [None if rate is None else rate.contiguous() for rate in (rates[0], rates[-1])]


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
    constants = _constants(sel, records[0], rates, rule)
    acc = torch.float64 if records[0].dtype == torch.float64 else torch.float32
    value = torch.empty(shape, dtype=records[0].dtype, device=sel.device)
    slope = torch.empty_like(value, dtype=acc) if want_slope else None
    rate_slopes = [torch.empty_like(value, dtype=acc) for _ in records] if want_rate_slopes else []
    if value.numel() == 0:
        return value, slope, rate_slopes
    times, sel_rows = _times(sel)
    row = synapses * selectors
    if row >= 2**31:
        raise ValueError(f"a read is of fewer than 2**31 times in a row of the batch, not {row}")
    launch(
        select_fwd_kernel, lambda config: (shape[0] * tiles(row, config.BLOCK),),
        times, records[0], records[-1], *_rates(rates),
        value, slope, *((rate_slopes[0], rate_slopes[-1]) if rate_slopes else (None, None)),
        pointers[0], pointers[-1],
        rows - steps + 1, batch, synapses, selectors, sel_rows,
        **constants, work=(shape[0], row), dtype=value.dtype,
    )  # fmt: skip
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
    like = drecords[0]
    launch(
        select_bwd_kernel, lambda config: (batch * tiles(synapses, config.BLOCK),),
        times, dvalue.contiguous(), drecords[0], drecords[-1], *_rates(rates),
        pointers[0], pointers[-1],
        rows - steps + 1, batch, synapses, sel.shape[2], sel_rows, steps,
        **_constants(sel, like, rates, rule), work=(batch, synapses), dtype=like.dtype,
    )  # fmt: skip


def batch_dot(a: Tensor, b: Tensor) -> Tensor:
    batch, columns = a.shape
    groups = tiles(batch, _ROWS)
    partial = torch.empty(groups, columns, dtype=a.dtype, device=a.device)
    if a.numel() == 0:
        return a.new_zeros(columns)
    launch(
        batch_dot_kernel, lambda config: (groups * tiles(columns, config.BLOCK),),
        a.contiguous(), b.contiguous(), partial, batch, columns,
        ROWS=_ROWS, ACC=accumulator(a.dtype), work=(batch, columns), dtype=a.dtype,
    )  # fmt: skip
    return partial.sum(0)
