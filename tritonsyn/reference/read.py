"""Delayed reads of a record: a gather with interpolation, and its adjoints."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..values import Located, Reading, ReadRule, Slot, compute_dtype, locate, readable

# Elements of a group of rows: its handful of intermediates fit in a core's cache.
_CACHED = 131072


class Weights(NamedTuple):
    """How much an observation counts, and the derivatives of that; None: 0, or not wanted.

    The value is ``sum(weight * tap)``, and the adjoint adds ``weight * dvalue``.
    """

    weight: Tensor
    slope: Tensor | float | None
    rate_slope: Tensor | None

    def negated(self) -> "Weights":
        slope = None if self.slope is None else -self.slope
        rate_slope = None if self.rate_slope is None else -self.rate_slope
        return Weights(-self.weight, slope, rate_slope)


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

    Times are located as ``[..., N, D]``, or as ``[N]``. ``dtype`` is that of the arithmetic.
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
    fraction, rate = fraction.to(dtype), rate if fraction.ndim == 1 else rate.unsqueeze(-1)
    return (Tap(older, partial(decayed, fraction, rate, rises, step, want_rate_slope)),)


def decayed(
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
    far, share = located.older, located.fraction
    if rise is None:
        near = far - share.ceil()
    else:
        # An observation is the near end of the segment before it, unless that is not kept.
        ends = (share == 0).logical_and_(far < slots - 1)
        far, share = far + ends, share + ends
        near = (far - 1).clamp_(min=0)
    share = share.to(dtype)
    return (
        Tap(far, lambda: Weights(1.0 - share, rise, None)),
        Tap(near, lambda: Weights(share, None, None)),
    )


def second_sign(rule: ReadRule) -> int:
    """The sign of the second component in the value of a pair."""
    return 1 if rule.mode == "alpha" else -1


class _Window(NamedTuple):
    """Some rows of a read's result, and the observations that they see."""

    rows: slice
    """Rows of ``[steps * B]``."""
    slots: int
    """Observations that a row sees, K."""
    cells: Tensor
    """``[rows, N, 1]``: places of the rows' synapses in an observation, from the first on."""
    located: Located
    """Where the times of the rows lie."""

    def flat(self, record: Tensor) -> Tensor:
        """The record as one axis, from the first cell of its first observation on."""
        return record.view(-1)[self.rows.start * record.shape[2] :]

    def addresses(self, back: Tensor, pointer: int, size: int) -> Tensor:
        """Places in the flat record of the observations ``back`` steps before the newest.

        ``size = B * N`` is that of an observation. A NaN, where a time is not valid, gets an
        arbitrary, in-range address.
        """
        cells = self.cells
        back = (back if self.located.valid else back.nan_to_num(0.0)).to(cells.dtype)
        start = torch.rsub(back, (pointer - 1) * size, alpha=size)
        # A negative number has its sign, -1, in every bit of the shifted one.
        start.sub_(start >> (cells.dtype.itemsize * 8 - 1), alpha=self.slots * size)
        return start.add_(cells) if start.shape[0] == cells.shape[0] else start + cells

    def tap(self, record: Tensor, back: Tensor, pointer: int) -> Tensor:
        """The observations ``back`` steps before the newest, for arithmetic: ``[rows, N, D]``."""
        index = self.addresses(back, pointer, record[0].numel())
        taken = self.flat(record).index_select(0, index.reshape(-1)).view(index.shape)
        return taken.to(compute_dtype(record.dtype))


def _windows(record: Tensor, reading: Reading) -> Iterator[_Window]:
    """Windows of few enough rows that intermediate results stay in the cache."""
    _, batch, synapses = record.shape
    steps, slots = reading.steps, record.shape[0] + 1 - reading.steps
    located_in = _located(reading, batch, slots)
    # int32 takes half the bytes.
    integer = torch.int32 if (slots + 1) * batch * synapses < 2**31 else torch.int64
    cells = None
    for rows in row_groups(steps * batch, synapses * reading.sel.shape[-1], record.device):
        count = rows.stop - rows.start
        if cells is None:  # the first group is the longest
            cells = torch.arange(count * synapses, dtype=integer, device=record.device)
            cells = cells.view(count, synapses, 1)
        yield _Window(rows, slots, cells[:count], located_in(rows))


def _located(reading: Reading, batch: int, slots: int) -> Callable[[slice], Located]:
    """Where the times of some rows of ``[steps * B]`` lie: those of each row of times once."""
    sel, _, _, rule, steps = reading
    times = sel if sel.ndim == 3 else sel.flatten(0, 1)

    def numbers_of(rows: slice) -> Tensor:
        return torch.arange(rows.start, rows.stop, device=sel.device)

    if len(times) == steps * batch:
        return lambda rows: locate(times[rows], rule, slots)
    if len(times) == 1:
        shared = locate(times, rule, slots)
        return lambda rows: shared
    if sel.ndim == 3:
        whole = locate(times, rule, slots)
        return lambda rows: _repeated(whole, numbers_of(rows) % batch)

    def of_steps(rows: slice) -> Located:
        first, last = rows.start // batch, (rows.stop - 1) // batch
        found = locate(times[first : last + 1], rule, slots)
        return found if first == last else _repeated(found, numbers_of(rows) // batch - first)

    return of_steps


def _repeated(located: Located, rows: Tensor) -> Located:
    """The same for each of these rows of times."""
    parts: Any = [None if part is None else part.index_select(0, rows) for part in located]
    return Located(*parts)


def row_groups(batch: int, row: int, device: torch.device, elements: int = _CACHED) -> list[slice]:
    """Rows of the batch in groups so small that intermediate results stay in the cache."""
    rows = max(1, elements // max(row, 1)) if device.type == "cpu" else max(batch, 1)
    return [slice(first, min(first + rows, batch)) for first in range(0, batch, rows)]


def select(
    records: Sequence[Tensor],
    reading: Reading,
    want_slope: bool = False,
    want_rate_slopes: bool = False,
) -> list[Tensor]:
    """Value of the record, or of a pair, at some times.

    The value of a pair is the first minus the second, in the mode ``alpha`` their sum. The rates
    are used by ``expdecay`` and ``alpha``. Returns ``[value, *slope, *rate_slopes]``, where wanted
    the derivatives to the times and to each component's rate, ``[steps * B, N, D]`` each.
    """
    acc = compute_dtype(records[0].dtype)
    shape = (reading.steps * records[0].shape[1], *reading.sel.shape[-2:])
    value = records[0].new_empty(shape)
    slopes = range(want_slope + len(records) * want_rate_slopes)
    outputs = [value, *(torch.empty_like(value, dtype=acc) for _ in slopes)]
    wanted = want_slope, want_rate_slopes
    for window in _windows(records[0], reading):
        _fill(outputs, records, reading, window, *wanted)
    return outputs


def _fill(
    outputs: Sequence[Tensor],
    records: Sequence[Tensor],
    reading: Reading,
    window: _Window,
    want_slope: bool,
    want_rate_slopes: bool,
) -> None:
    """Writes what a window gives to value and slopes."""
    located, rule, acc = window.located, reading.rule, compute_dtype(records[0].dtype)
    parts = []
    for i, (record, rate) in enumerate(zip(records, reading.rates, strict=True)):
        seen = taps(rule, located, rate, window.slots, acc, i > 0, want_slope, want_rate_slopes)
        parts.append(_component(record, int(reading.pointers[i]), window, seen))
    value = _mixed([part.value for part in parts], rule)
    results = [replace_unread(value, located, rule, outputs[0].dtype)]
    results += [_slope(parts, located, rule)] if want_slope else []
    results += _rate_slopes(parts, located, rule) if want_rate_slopes else []
    for output, result in zip(outputs, results, strict=True):
        output[window.rows] = result


class _Part(NamedTuple):
    """One component's value, and its derivatives where they are wanted."""

    value: Tensor
    slope: Tensor | None
    rate_slope: Tensor | None


def _component(record: Tensor, pointer: int, window: _Window, taps: tuple[Tap, ...]) -> _Part:
    """Value and slopes of one component in a window."""
    first, *others = taps
    tap = window.tap(record, first.back, pointer)
    if first.weigh is None:
        return _Part(tap, None, None)
    if not others:
        weight, *slopes = first.weigh()
        derivatives = [None if slope is None else tap * slope for slope in slopes]
        return _Part(tap.mul_(weight), *derivatives)
    near = window.tap(record, others[0].back, pointer)
    assert others[0].weigh is not None
    far_weight, rise, _ = first.weigh()
    # Subtracted first: neighbours are often close to each other.
    slope = None if rise is None else (tap - near).mul_(rise)
    for value, weight in ((tap, far_weight), (near, others[0].weigh().weight)):
        value.mul_(weight)
        if slope is not None:
            _blank_unused(value, weight)
    return _Part(tap.add_(near), slope, None)


def _blank_unused(value: Tensor, weight: Tensor) -> None:
    """Zeros for neighbours that only the slope needs, which may hold anything."""
    unused = weight == 0
    if weight.numel() == value.numel() or not readable(unused) or unused.any():
        value.masked_fill_(unused, 0.0)


def replace_unread(value: Tensor, located: Located, rule: ReadRule, dtype: torch.dtype) -> Tensor:
    """Values with the overbound value where it belongs, and NaN for NaN times."""
    if rule.overbound is not None and located.inside is not None:
        value = torch.where(located.inside, value, float(rule.overbound))
    if located.within is not None:
        invalid = located.older.isnan()
        value = value.masked_fill(invalid, 0.0 if dtype == torch.bool else float("nan"))
    return value


def _mixed(parts: Sequence[Tensor], rule: ReadRule) -> Tensor:
    """One component's part as it is, or both; the first may be written."""
    return parts[0] if len(parts) == 1 else parts[0].add_(parts[1], alpha=second_sign(rule))


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
        torch.zeros_like(value) if slope is None else zero_unread(slope, located, rule)
        for value, _, slope in parts
    ]
    for slope in slopes[1:]:
        slope.mul_(second_sign(rule))
    return slopes


def zero_unread(part: Tensor, located: Located, rule: ReadRule) -> Tensor:
    """A component's value where it reaches the result, zero elsewhere."""
    if located.inside is None:
        return part
    read = located.inside if rule.overbound is not None else ~located.older.isnan()
    return torch.where(read, part, 0.0)


def select_again(
    records: Sequence[Tensor], reading: Reading
) -> Callable[[Tensor, Sequence[Slot]], Tensor]:
    """:func:`select` of these records without slopes, again: what is returned takes times of the
    kind of the reading's, in any shape with as many elements, and the pointers."""

    def read(sel: Tensor, slots: Sequence[Slot]) -> Tensor:
        times = sel.view(reading.sel.shape)
        return select(records, reading._replace(sel=times, pointers=slots))[0]

    return read


def select_backward(dvalue: Tensor, drecords: Sequence[Tensor], reading: Reading) -> None:
    """Adjoint of :func:`select` to the records: scatter-adds into ``drecords`` in place."""
    _, rates, pointers, rule, _ = reading
    acc = compute_dtype(drecords[0].dtype)
    for window in _windows(drecords[0], reading):
        located = window.located
        kept = zero_unread(dvalue[window.rows].to(acc), located, rule)
        if not located.valid:
            located = located._replace(fraction=located.fraction.nan_to_num(0.0))
        for i, (drecord, rate) in enumerate(zip(drecords, rates, strict=True)):
            for tap in taps(rule, located, rate, window.slots, acc, second=i > 0):
                index = window.addresses(tap.back, int(pointers[i]), drecord[0].numel())
                share = (kept if tap.weigh is None else kept * tap.weigh().weight).to(drecord.dtype)
                sign = second_sign(rule) if i > 0 else 1
                flat = window.flat(drecord)
                flat.index_add_(0, index.reshape(-1), share.reshape(-1), alpha=sign)


def batch_dot(a: Tensor, b: Tensor, whole: bool = False) -> Tensor:
    """``sum over the batch of a * b``: ``[B, M], [B, M] -> [M]``, in the dtype of ``a``.

    Also ``[G, B, M]`` to ``[G, M]``. ``b`` is of any dtype. ``whole``: the sum of that, 0-d.
    """
    if a.ndim == 3:
        sums = a.new_empty(a.shape[0], a.shape[2])
        for groups in row_groups(a.shape[0], a[0].numel(), a.device):
            sums[groups] = (a[groups] * b[groups]).sum(1)
        return sums.sum() if whole else sums
    total = a.new_zeros(a.shape[1])
    for rows in row_groups(a.shape[0], a.shape[1], a.device):
        total += (a[rows] * b[rows]).sum(0)
    return total.sum() if whole else total
