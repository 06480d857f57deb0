"""Delayed reads of a record: a gather with interpolation, and its adjoints."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..values import Located, ReadRule, Slot, compute_dtype, locate

# Elements of a group of rows: its handful of intermediates fit in a core's cache.
_CACHED = 131072


class Weights(NamedTuple):
    """How much an observation counts."""

    weight: Tensor
    """The value is ``sum(weight * tap)``, and the adjoint adds ``weight * dvalue``."""
    slope: Tensor | float | None = None
    """The derivative to the time is ``sum(slope * tap)``; None for 0, or where it is not wanted."""
    rate_slope: Tensor | None = None
    """The same for the rate."""


class Tap(NamedTuple):
    """An observation that contributes to a component's value."""

    back: Tensor
    """Whole steps before the newest."""
    weigh: Callable[[], Weights] | None = None
    """Its weights, None for 1. Called after the gather, whose arithmetic an exponential before it
    slows down."""


def taps(
    rule: ReadRule,
    located: Located,
    rate: Tensor | None,
    slots: int,
    dtype: torch.dtype,
    second: bool = False,
    want_slope: bool = False,
    want_rate_slope: bool = False,
) -> tuple[Tap, ...]:
    """The observations that make one component's value: the whole meaning of a mode.

    ``dtype`` is that of the arithmetic.
    """
    mode, older, fraction = rule.mode, located.older, located.fraction
    if mode == "next":
        return (Tap(torch.where(fraction > 0, older - 1, older)),)
    if mode == "nearest":
        return (Tap(torch.where(fraction > 0.5, older - 1, older)),)
    if mode == "linear":
        return _segment(located, slots, dtype, 1.0 / rule.step if want_slope else None)
    if mode == "previous":
        return (Tap(older),)
    assert rate is not None
    rises, step = mode == "alpha" and not second, rule.step if want_slope else None
    fraction, rate = fraction.to(dtype), rate.unsqueeze(-1)
    return (Tap(older, partial(_decayed, fraction, rate, rises, step, want_rate_slope)),)


def _decayed(
    fraction: Tensor, rate: Tensor, rises: bool, step: float | None, want_rate_slope: bool
) -> Weights:
    """What is left of an observation, or with ``rises`` what it has fed into the current."""
    weight = (fraction * -rate).exp_()
    slope = None if step is None else weight * (rate / step)
    rate_slope = weight * -fraction if want_rate_slope else None
    if rises:
        passed = fraction * rate
        weight.mul_(passed)
        for derivative in (d for d in (slope, rate_slope) if d is not None):
            derivative.mul_(passed - 1.0)
    return Weights(weight, slope, rate_slope)


def _segment(
    located: Located, slots: int, dtype: torch.dtype, rise: float | None
) -> tuple[Tap, Tap]:
    """The two ends of a segment, of which the near one has the opposite slope."""
    older, fraction = located.older, located.fraction
    if rise is None:
        share = fraction.to(dtype)
        near = older - fraction.ceil()
        return Tap(older, lambda: Weights(1.0 - share)), Tap(near, lambda: Weights(share))
    # An observation is the near end of the segment before it, unless that is not kept.
    ends = (fraction == 0).logical_and_(older < slots - 1)
    far, share = older + ends, (fraction + ends).to(dtype)
    near = (far - 1).clamp_(min=0)
    return Tap(far, lambda: Weights(1.0 - share, rise)), Tap(near, lambda: Weights(share))


def _sign(rule: ReadRule) -> int:
    """The sign of the second component in the value of a pair."""
    return 1 if rule.mode == "alpha" else -1


class _Window(NamedTuple):
    """Some rows of a read's result, and the observations that they see."""

    rows: range
    """Rows of ``[steps * B]``."""
    slots: int
    """Observations that a row sees, K."""
    cells: Tensor
    """``[len(rows), N, 1]``: places of the rows' synapses in an observation, from the first on."""

    def flat(self, record: Tensor) -> Tensor:
        """The record as one axis, from the first cell of its first observation on."""
        return record.view(-1)[self.rows.start * record.shape[2] :]


def _windows(count: int, slots: int, record: Tensor, selectors: int) -> Iterator[_Window]:
    """Windows of few enough rows that intermediate results stay in the cache."""
    _, batch, synapses = record.shape
    groups = _row_groups(count, synapses * selectors, record.device)
    longest = len(groups[0]) if groups else 0
    # int32 takes half the bytes.
    integer = torch.int32 if (slots + 1) * batch * synapses < 2**31 else torch.int64
    cells = torch.arange(longest * synapses, dtype=integer, device=record.device)
    cells = cells.view(longest, synapses, 1)
    for rows in groups:
        yield _Window(rows, slots, cells[: len(rows)])


def _addresses(steps_back: Tensor, pointer: int, size: int, window: _Window, valid: bool) -> Tensor:
    """Place in the window's flat record of the observation ``steps_back``, ``[b, N, D]``.

    ``size = B * N`` is that of an observation. Unless all are ``valid``, some may be NaN: these get
    an arbitrary, in-range address.
    """
    cells = window.cells
    back = (steps_back if valid else steps_back.nan_to_num(0.0)).to(cells.dtype)
    start = torch.rsub(back, (pointer - 1) * size, alpha=size)
    # A negative number has its sign, -1, in every bit of the shifted one.
    start.sub_(start >> (cells.dtype.itemsize * 8 - 1), alpha=window.slots * size)
    return start.add_(cells) if start.shape[0] == cells.shape[0] else start + cells


def _tap(record: Tensor, back: Tensor, pointer: int, window: _Window, valid: bool) -> Tensor:
    """The observations ``back`` steps before the newest, for arithmetic."""
    index = _addresses(back, pointer, record[0].numel(), window, valid)
    taken = window.flat(record).index_select(0, index.reshape(-1)).view(index.shape)
    return taken.to(compute_dtype(record.dtype))


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
    """Value of the record, or of a pair, at the times ``sel [1 or B, N, D]``.

    The value of a pair is the first minus the second, in the mode ``alpha`` their sum. ``rates``
    (steps over time constant, 0-d or ``[N]``) are used by ``expdecay`` and ``alpha``. Returns the
    value ``[B, N, D]``, and if wanted its derivatives to ``sel`` and to each component's rate.

    With ``steps > 1`` each record is a sequence ``[K - 1 + steps, B, N]``, oldest first, that is
    read at every step (pointers are 0); the outputs are ``[steps * B, N, D]``.
    """
    slots, batch, synapses = records[0].shape
    slots += 1 - steps
    shape = (steps * batch, synapses, sel.shape[2])
    dtype, device = records[0].dtype, sel.device
    acc = compute_dtype(dtype)
    value = torch.empty(shape, dtype=dtype, device=device)
    slope = torch.empty(shape, dtype=acc, device=device) if want_slope else None
    rate_slopes = [torch.empty(shape, dtype=acc, device=device) for _ in records]
    rate_slopes = rate_slopes if want_rate_slopes else []
    outputs = [value, *([] if slope is None else [slope]), *rate_slopes]
    shared = locate(sel, rule, slots) if sel.shape[0] == 1 else None
    if steps > 1 and shared is None:
        sel = sel.expand(steps, *sel.shape).flatten(0, 1)
    for window in _windows(shape[0], slots, records[0], sel.shape[2]):
        rows = window.rows
        here = shared or locate(sel[rows.start : rows.stop], rule, slots)
        parts = []
        for i, (record, rate) in enumerate(zip(records, rates, strict=True)):
            seen = taps(rule, here, rate, slots, acc, i > 0, want_slope, want_rate_slopes)
            parts.append(_component(record, int(pointers[i]), window, here.valid, seen))
        results = [_value(parts, here, rule, dtype)]
        results += [_slope(parts, here, rule)] if want_slope else []
        results += _rate_slopes(parts, here, rule) if want_rate_slopes else []
        for output, result in zip(outputs, results, strict=True):
            output[rows.start : rows.stop] = result
    return value, slope, rate_slopes


class _Part(NamedTuple):
    """One component's value, and its derivatives where they are wanted."""

    value: Tensor
    slope: Tensor | None
    rate_slope: Tensor | None


def _row_groups(batch: int, row: int, device: torch.device) -> list[range]:
    """Rows of the batch in groups so small that intermediate results stay in the cache."""
    rows = max(1, _CACHED // max(row, 1)) if device.type == "cpu" else max(batch, 1)
    return [range(first, min(first + rows, batch)) for first in range(0, batch, rows)]


def _component(
    record: Tensor, pointer: int, window: _Window, valid: bool, taps: tuple[Tap, ...]
) -> _Part:
    """Value and slopes of one component in some rows of the batch."""
    first, *others = taps
    tap = _tap(record, first.back, pointer, window, valid)
    if first.weigh is None:
        return _Part(tap, None, None)
    if not others:
        weight, slope, rate_slope = first.weigh()
        slope = None if slope is None else tap * slope
        rate_slope = None if rate_slope is None else tap * rate_slope
        return _Part(tap.mul_(weight), slope, rate_slope)
    near = _tap(record, others[0].back, pointer, window, valid)
    assert others[0].weigh is not None
    far_weight, rise, _ = first.weigh()
    # Subtracted first: neighbours are often close to each other.
    slope = None if rise is None else (tap - near).mul_(rise)
    for value, weight in ((tap, far_weight), (near, others[0].weigh().weight)):
        value.mul_(weight)
        if slope is not None:
            # A neighbour that only the slope needs may hold anything.
            value.masked_fill_(weight == 0, 0.0)
    return _Part(tap.add_(near), slope, None)


def _value(parts: Sequence[_Part], located: Located, rule: ReadRule, dtype: torch.dtype) -> Tensor:
    """The first component, or the pair; overbound values; NaN for NaN times."""
    value = _mixed([part.value for part in parts], rule)
    if rule.overbound is not None and located.inside is not None:
        value = torch.where(located.inside, value, float(rule.overbound))
    if located.within is not None:
        invalid = located.older.isnan()
        value = value.masked_fill(invalid, 0.0 if dtype == torch.bool else float("nan"))
    return value


def _mixed(parts: Sequence[Tensor], rule: ReadRule) -> Tensor:
    """One component's part as it is, or both; the first may be written."""
    return parts[0] if len(parts) == 1 else parts[0].add_(parts[1], alpha=_sign(rule))


def _slope(parts: Sequence[_Part], located: Located, rule: ReadRule) -> Tensor:
    """The derivative to the time: zero where the time was bounded."""
    slopes = [part.slope for part in parts if part.slope is not None]
    if not slopes:
        return torch.zeros_like(parts[0].value)
    slope = _mixed(slopes, rule)
    return slope if located.within is None else torch.where(located.within, slope, 0.0)


def _rate_slopes(parts: Sequence[_Part], located: Located, rule: ReadRule) -> list[Tensor]:
    """The derivatives to the rates, signed as the components enter."""
    slopes = [
        torch.zeros_like(part.value) if part.rate_slope is None else part.rate_slope
        for part in parts
    ]
    first, *second = (_kept(slope, located, rule) for slope in slopes)
    return [first, *(slope.mul_(_sign(rule)) for slope in second)]


def _kept(part: Tensor, located: Located, rule: ReadRule) -> Tensor:
    """A component's value where it reaches the result, zero elsewhere."""
    if located.inside is None:
        return part
    counted = located.inside if rule.overbound is not None else ~located.older.isnan()
    return torch.where(counted, part, 0.0)


def select_backward(
    dvalue: Tensor,
    drecords: Sequence[Tensor],
    sel: Tensor,
    rates: Sequence[Tensor | None],
    pointers: Sequence[Slot],
    rule: ReadRule,
    steps: int = 1,
) -> None:
    """Adjoint of :func:`select` to the records: scatter-adds into ``drecords`` in place."""
    slots = drecords[0].shape[0] + 1 - steps
    shared = locate(sel, rule, slots) if sel.shape[0] == 1 else None
    if steps > 1 and shared is None:
        sel = sel.expand(steps, *sel.shape).flatten(0, 1)
    acc = compute_dtype(drecords[0].dtype)
    for window in _windows(dvalue.shape[0], slots, drecords[0], dvalue.shape[2]):
        rows = window.rows
        here = shared or locate(sel[rows.start : rows.stop], rule, slots)
        kept = _kept(dvalue[rows.start : rows.stop].to(acc), here, rule)
        valid = here.valid
        if not valid:
            here = here._replace(fraction=here.fraction.nan_to_num(0.0))
        for second, (drecord, rate, pointer) in enumerate(
            zip(drecords, rates, map(int, pointers), strict=True)
        ):
            sign = _sign(rule) if second else 1
            for tap in taps(rule, here, rate, slots, acc, second > 0):
                index = _addresses(tap.back, pointer, drecord[0].numel(), window, valid).reshape(-1)
                share = kept if tap.weigh is None else kept * tap.weigh().weight
                share = share.reshape(-1).to(drecord.dtype)
                window.flat(drecord).index_add_(0, index, share, alpha=sign)


def batch_dot(a: Tensor, b: Tensor) -> Tensor:
    """``sum over the batch of a * b``: ``[B, M], [B, M] -> [M]``, in the dtype of ``a``."""
    total = a.new_zeros(a.shape[1])
    for rows in _row_groups(a.shape[0], a.shape[1], a.device):
        part = slice(rows.start, rows.stop)
        total += (a[part] * b[part]).sum(0)
    return total
