"""Delayed reads of a record: a gather with interpolation, and its adjoints."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch

from ..values import Located, ReadRule, Slot, compute_dtype, locate

# Elements of a group of rows: its handful of intermediates fit in a core's cache.
_CACHED = 131072


def _nearest_tap(located: Located, mode: str) -> torch.Tensor:
    """Whole steps back to the observation that a mode other than linear reads."""
    older, frac = located.older, located.frac
    if mode == "next":
        return torch.where(frac > 0, older - 1, older)
    if mode == "nearest":
        return torch.where(frac > 0.5, older - 1, older)
    return older


class _Window(NamedTuple):
    """Some rows of a read's result, and the observations that they see."""

    rows: range
    """Rows of ``[steps * B]``."""
    slots: int
    """Observations that a row sees, K."""
    cells: torch.Tensor
    """``[len(rows), N, 1]``: places of the rows' synapses in an observation, from the first on."""

    def flat(self, record: torch.Tensor) -> torch.Tensor:
        """The record as one axis, from the first cell of its first observation on."""
        return record.view(-1)[self.rows.start * record.shape[2] :]


def _windows(count: int, slots: int, record: torch.Tensor, selectors: int) -> Iterator[_Window]:
    """Windows of few enough rows that what is made between stays in the cache."""
    _, batch, synapses = record.shape
    groups = _row_groups(count, synapses * selectors, record.device)
    longest = len(groups[0]) if groups else 0
    # Half the bytes wherever it suffices.
    integer = torch.int32 if (slots + 1) * batch * synapses < 2**31 else torch.int64
    cells = torch.arange(longest * synapses, dtype=integer, device=record.device)
    cells = cells.view(longest, synapses, 1)
    for rows in groups:
        yield _Window(rows, slots, cells[: len(rows)])


def _addresses(
    steps_back: torch.Tensor, pointer: int, size: int, window: _Window, valid: bool
) -> torch.Tensor:
    """Place in the window's flat record of the observation ``steps_back``, ``[b, N, D]``.

    ``size = B * N`` is that of an observation. Unless all are ``valid`` some may be NaN; their
    place is any.
    """
    cells = window.cells
    back = (steps_back if valid else steps_back.nan_to_num(0.0)).to(cells.dtype)
    start = torch.rsub(back, (pointer - 1) * size, alpha=size)
    # A negative number has its sign, -1, in every bit of the shifted one.
    start.sub_(start >> (cells.dtype.itemsize * 8 - 1), alpha=window.slots * size)
    return start.add_(cells) if start.shape[0] == cells.shape[0] else start + cells


def _tap(
    record: torch.Tensor, back: torch.Tensor, pointer: int, window: _Window, valid: bool
) -> torch.Tensor:
    """The observations ``back`` steps before the newest, for arithmetic."""
    index = _addresses(back, pointer, record[0].numel(), window, valid)
    taken = window.flat(record).index_select(0, index.reshape(-1)).view(index.shape)
    return taken.to(compute_dtype(record.dtype))


def _weight(frac: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
    """``exp(-frac * rate)``: what an observation decays to, ``frac`` steps later."""
    return (frac.to(rate.dtype) * -rate.unsqueeze(-1)).exp_()


def select(
    records: Sequence[torch.Tensor],
    sel: torch.Tensor,
    rates: Sequence[torch.Tensor | None],
    pointers: Sequence[Slot],
    rule: ReadRule,
    want_slope: bool = False,
    want_rate_slopes: bool = False,
    steps: int = 1,
) -> tuple[torch.Tensor, torch.Tensor | None, list[torch.Tensor]]:
    """Value of the record (or first minus second) at the times ``sel [1 or B, N, D]``.

    ``rates`` (steps over time constant, 0-d or ``[N]``) are used by ``expdecay``. Returns the
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
        parts = [
            _component(record, rate, pointer, here, rule, window, want_slope)
            for record, rate, pointer in zip(records, rates, map(int, pointers), strict=True)
        ]
        results = [_value(parts, here, rule, dtype)]
        results += [_slope(parts, here)] if want_slope else []
        results += _rate_slopes(parts, here, rule) if want_rate_slopes else []
        for output, result in zip(outputs, results, strict=True):
            output[rows.start : rows.stop] = result
    return value, slope, rate_slopes


Part = tuple[torch.Tensor, torch.Tensor | None]
"""One component's value and its derivative to the time."""


def _row_groups(batch: int, row: int, device: torch.device) -> list[range]:
    """Rows of the batch in groups small enough that what is made between stays in the cache."""
    rows = max(1, _CACHED // max(row, 1)) if device.type == "cpu" else max(batch, 1)
    return [range(first, min(first + rows, batch)) for first in range(0, batch, rows)]


def _component(
    record: torch.Tensor,
    rate: torch.Tensor | None,
    pointer: int,
    located: Located,
    rule: ReadRule,
    window: _Window,
    want_slope: bool,
) -> Part:
    """Value and slope of one component in some rows of the batch."""
    if rule.mode == "linear":
        return _linear(record, pointer, located, rule, window, want_slope)
    tap = _nearest_tap(located, rule.mode)
    value = _tap(record, tap, pointer, window, located.valid)
    if rule.mode != "expdecay":
        return value, torch.zeros_like(value) if want_slope else None
    assert rate is not None
    value.mul_(_weight(located.frac, rate))
    return value, value * (rate / rule.step).unsqueeze(-1) if want_slope else None


def _linear(
    record: torch.Tensor,
    pointer: int,
    located: Located,
    rule: ReadRule,
    window: _Window,
    want_slope: bool,
) -> Part:
    """``older + (newer - older) * frac``, and the slope of that segment.

    At an observation the slope is that of the older segment, or of the newer one where the
    record keeps no older one.
    """
    older, frac = located.older, located.frac
    newer = torch.where(frac > 0, older - 1, older)
    tap = partial(_tap, record, pointer=pointer, window=window, valid=located.valid)
    old, new = tap(older), tap(newer)
    value = old + (new - old) * frac.to(old.dtype)
    if not want_slope:
        return value, None
    hit, last = frac == 0, older == window.slots - 1
    far = torch.where(hit & ~last, older + 1, older)
    near = torch.where(hit & last, (older - 1).clamp(min=0), newer)
    return value, (tap(far) - tap(near)) / rule.step


def _value(
    parts: Sequence[Part], located: Located, rule: ReadRule, dtype: torch.dtype
) -> torch.Tensor:
    """The first component, or first minus second; overbound values; NaN for NaN times."""
    value = parts[0][0] if len(parts) == 1 else parts[0][0] - parts[1][0]
    if rule.overbound is not None and located.inside is not None:
        value = torch.where(located.inside, value, float(rule.overbound))
    if located.within is not None:
        invalid = located.older.isnan()
        value = value.masked_fill(invalid, 0.0 if dtype == torch.bool else float("nan"))
    return value


def _slope(parts: Sequence[Part], located: Located) -> torch.Tensor:
    """The derivative to the time: zero where the time was bounded."""
    first, *rest = (slope for _, slope in parts if slope is not None)
    slope = first - rest[0] if rest else first
    return slope if located.within is None else torch.where(located.within, slope, 0.0)


def _rate_slopes(parts: Sequence[Part], located: Located, rule: ReadRule) -> list[torch.Tensor]:
    """The derivatives to the rates: ``-frac * value`` of each component, signed as it enters."""
    slopes = [_kept(value * located.frac.to(value.dtype), located, rule) for value, _ in parts]
    return [slope.neg() if i == 0 else slope for i, slope in enumerate(slopes)]


def _kept(part: torch.Tensor, located: Located, rule: ReadRule) -> torch.Tensor:
    """A component's value where it reaches the result, zero elsewhere."""
    if located.inside is None:
        return part
    keep = located.inside if rule.overbound is not None else ~located.older.isnan()
    return torch.where(keep, part, 0.0)


def select_backward(
    dvalue: torch.Tensor,
    drecords: Sequence[torch.Tensor],
    sel: torch.Tensor,
    rates: Sequence[torch.Tensor | None],
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
            here = here._replace(frac=here.frac.nan_to_num(0.0))
        sign = 1
        for drecord, rate, pointer in zip(drecords, rates, map(int, pointers), strict=True):
            for back, share in _shares(kept, here, rate, rule.mode):
                index = _addresses(back, pointer, drecord[0].numel(), window, valid).reshape(-1)
                share = share.reshape(-1).to(drecord.dtype)
                window.flat(drecord).index_add_(0, index, share, alpha=sign)
            sign = -1


def _shares(
    dvalue: torch.Tensor,
    located: Located,
    rate: torch.Tensor | None,
    mode: str,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The observations that made one component's value, and the gradient of each."""
    older, frac = located.older, located.frac
    if mode == "linear":
        share = dvalue * frac.to(dvalue.dtype)
        newer = torch.where(frac > 0, older - 1, older)
        return [(older, dvalue - share), (newer, share)]
    if mode == "expdecay":
        assert rate is not None
        return [(older, dvalue * _weight(frac, rate))]
    return [(_nearest_tap(located, mode), dvalue)]


def batch_dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``sum over the batch of a * b``: ``[B, M], [B, M] -> [M]``, in the dtype of ``a``."""
    total = a.new_zeros(a.shape[1])
    for rows in _row_groups(a.shape[0], a.shape[1], a.device):
        part = slice(rows.start, rows.stop)
        total += (a[part] * b[part]).sum(0)
    return total
