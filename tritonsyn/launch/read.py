"""Delayed reads of a record: a gather with interpolation, and its adjoints."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels.read import batch_dot_kernel, select_bwd_kernel, select_fwd_kernel
from ..values import Reading, Slot, compute_dtype
from .config import LaunchConfig
from .launcher import (
    Grid,
    Launch,
    accumulator,
    both,
    covering,
    launch,
    launch_of,
    locating_arguments,
    packed,
    repeated,
    run,
    tiles,
)

# Rows of one batch that a program of the batch reduction adds up.
_ROWS = 16


def select(
    records: Sequence[Tensor],
    reading: Reading,
    want_slope: bool = False,
    want_rate_slopes: bool = False,
) -> list[Tensor]:
    rows, *others = reading.steps * records[0].shape[1], *reading.sel.shape[-2:]
    dtype, acc = records[0].dtype, compute_dtype(records[0].dtype)
    value = torch.empty((rows, *others), dtype=dtype, device=records[0].device)
    slope = torch.empty_like(value, dtype=acc) if want_slope else None
    rate_slopes = [torch.empty_like(value, dtype=acc) for _ in records] if want_rate_slopes else []
    run(_select((value, slope, *both(rate_slopes)), records, reading))
    return [value, *([] if slope is None else [slope]), *rate_slopes]


def select_again(
    records: Sequence[Tensor], reading: Reading
) -> Callable[[Tensor, Sequence[Slot]], Tensor]:
    shape = (records[0].shape[1], *reading.sel.shape[1:])
    value = records[0].new_empty(shape)
    made = _select((value, None, None, None), records, reading)
    states, numbers = made.arguments[1:5], made.arguments[11:]
    again, double, record = repeated(made), len(records) == 2, records[0]

    def read(sel: Tensor, slots: Sequence[Slot]) -> Tensor:
        value = record.new_empty(shape)
        pointers = slots[0], slots[1] if double else None
        again(sel, *states, value, None, None, None, *pointers, *numbers)
        return value

    return read


def _select(
    outputs: Sequence[Tensor | None], records: Sequence[Tensor], reading: Reading
) -> Launch:
    times, rates, numbers, sizes, options = _arguments(records, reading)
    batch, row, rows = records[0].shape[1], times.shape[-2:].numel(), times.shape[:-2].numel()
    overbound = float(reading.rule.overbound or 0.0)
    shared = reading.steps * batch // max(rows, 1)
    return launch_of(
        select_fwd_kernel,
        _grid(row, rows, shared),
        *(times, *both(records), *rates, *outputs, *numbers, overbound, *sizes, shared),
        work=(rows, shared, row),
        **options,
    )


def select_backward(dvalue: Tensor, drecords: Sequence[Tensor], reading: Reading) -> None:
    _, batch, synapses = drecords[0].shape
    times, rates, numbers, sizes, options = _arguments(drecords, reading)
    rows = times.shape[-3]
    shared = batch // max(rows, 1)
    launch(
        select_bwd_kernel,
        _grid(synapses, rows if dvalue.numel() else 0, shared),
        *(times, packed(dvalue), *both(drecords), *rates, *numbers, *sizes, shared, reading.steps),
        work=(rows, shared, synapses),
        **options,
    )


def _grid(size: int, sel_rows: int, shared: int) -> Callable[[LaunchConfig], Grid]:
    """Programs for ``size`` elements in each of the ``shared`` rows that have a row of times."""
    return lambda config: (sel_rows * tiles(shared, config.UNROLL) * tiles(size, config.BLOCK),)


def _arguments(
    records: Sequence[Tensor], reading: Reading
) -> tuple[Tensor, list[Tensor | None], tuple[Any, ...], tuple[int, ...], dict[str, Any]]:
    """Packed times and rates, slots and the rule's numbers, sizes, and what goes by name."""
    sel, rates, pointers, rule, steps = reading
    rows, batch, synapses = records[0].shape
    # The rows of times: one where the batch shares them, or the steps.
    if sel.ndim == 4 and sel.stride(0) == 0:
        sel = sel[0]
    times = packed(sel[..., :1, :, :] if sel.stride(-3) == 0 else sel)
    pair = [None if rate is None else packed(rate) for rate in both(rates)]
    numbers, options = locating_arguments(rule, sel.dtype)
    sizes = (rows - steps + 1, batch, synapses, sel.shape[-1], times.shape[-3])
    per_synapse = [rate is not None and rate.ndim > 0 for rate in pair]
    options |= {
        "REPLACE": rule.overbound is not None,
        "MODE": rule.mode,
        "DOUBLE": len(rates) == 2,
        "PER_STEP": times.ndim == 4,
        "POS_RATE_PER_SYNAPSE": per_synapse[0],
        "NEG_RATE_PER_SYNAPSE": per_synapse[1],
        "TIME": accumulator(sel.dtype),
        "ACC": accumulator(records[0].dtype),
        "dtype": records[0].dtype,
    }
    return times, pair, (*both(pointers), *numbers), sizes, options


def batch_dot(a: Tensor, b: Tensor, whole: bool = False) -> Tensor:
    *groups, batch, columns = a.shape
    count, parts = math.prod(groups), tiles(batch, _ROWS)
    partial = torch.empty(*groups, parts, columns, dtype=a.dtype, device=a.device)
    arguments = (packed(a), packed(b), partial, batch, columns)
    options = {
        "GROUPS": bool(groups),
        "ROWS": _ROWS,
        "ACC": accumulator(a.dtype),
        "work": (count * batch, columns),
    }
    grid = covering(columns, count * parts)
    launch(batch_dot_kernel, grid, *arguments, **options, dtype=a.dtype)
    if whole:
        return partial.sum()
    return partial.squeeze(-2) if parts == 1 else partial.sum(-2)
