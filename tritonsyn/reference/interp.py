"""Delayed reads of a record: a gather with interpolation, and its adjoints."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..rules import ReadRule, compute_dtype

_EXPONENT_BITS = {torch.float32: (torch.int32, 0x7F800000), torch.float64: (torch.int64, 0x7FF << 52)}


class Located(NamedTuple):
    """Where times lie among the observations; what is not needed is None."""

    older: torch.Tensor
    """Older neighbour in whole steps, NaN for a NaN time."""
    frac: torch.Tensor
    """Steps from the older neighbour to the time, in [0, 1)."""
    inside: torch.Tensor | None
    """Within tolerance of the bounds; None: all are."""
    within: torch.Tensor | None
    """Between the bounds, which are included; None: all are."""


def _all_within(time: torch.Tensor, limit: float) -> bool:
    """Whether no time needs bounding; asked only on a CPU, where the answer costs no wait."""
    if time.device.type != "cpu" or time.numel() == 0:
        return False
    low, high = torch.aminmax(time)
    return 0.0 <= low.item() and high.item() <= limit


def locate(sel: torch.Tensor, rule: ReadRule, slots: int) -> Located:
    """Older neighbour, fraction and bounds of each time; every operation rounds as IEEE says."""
    time = sel.to(compute_dtype(sel.dtype))
    inside = within = None
    bounded = time
    plain = _all_within(time, rule.limit)
    if not plain:
        bounded = time.clamp(0.0, rule.limit)
        within = time == bounded
    tolerance = _tolerance(bounded, torch.finfo(sel.dtype).eps, rule)
    if not plain:
        inside = (time - bounded).abs_() <= tolerance
    steps = bounded / rule.step
    nearest = steps.round()
    hit = (nearest * rule.step).sub_(bounded).abs_() <= tolerance
    steps = torch.where(hit, nearest, steps).clamp_(max=slots - 1)
    older = steps.ceil()
    return Located(older, torch.sub(older, steps, out=steps), inside, within)


def _tolerance(bounded: torch.Tensor, epsilon: float, rule: ReadRule) -> torch.Tensor:
    """The larger of the rule's tolerance and four units in the last place at the time."""
    integer, mask = _EXPONENT_BITS[bounded.dtype]
    unit = bounded.clamp(min=rule.step).view(integer).bitwise_and_(mask).view(bounded.dtype)
    unit.mul_(4.0 * epsilon)
    return unit.clamp_(min=rule.tolerance) if rule.tolerance > 0 else unit


def _nearest_tap(located: Located, mode: str) -> torch.Tensor:
    """Whole steps back to the observation that a mode other than linear reads."""
    older, frac = located.older, located.frac
    if mode == "next":
        return torch.where(frac > 0, older - 1, older)
    if mode == "nearest":
        return torch.where(frac > 0.5, older - 1, older)
    return older


def _addresses(steps: torch.Tensor, pointer: int, slots: int, batch: int) -> torch.Tensor:
    """Place in a flat record of the observation ``steps`` back, ``[B, N, D]``; any slot for NaN."""
    size = batch * steps.shape[1]
    slot = (pointer - 1 - steps.nan_to_num(0.0)).to(torch.int64)
    slot += (slot >> 63) & slots
    cells = torch.arange(size, device=steps.device).view(batch, -1, 1)
    return slot.mul_(size) + cells


def _tap(record: torch.Tensor, steps: torch.Tensor, pointer: int) -> torch.Tensor:
    """The observations ``steps`` before the newest, ``[B, N, D]``, for arithmetic."""
    index = _addresses(steps, pointer, *record.shape[:2])
    taken = record.view(-1).index_select(0, index.view(-1)).view(index.shape)
    return taken.to(compute_dtype(record.dtype))


def _weight(frac: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
    """``exp(-frac * rate)``: what an observation decays to, ``frac`` steps later."""
    return (frac.to(rate.dtype) * -rate.unsqueeze(-1)).exp_()


def select(
    records: Sequence[torch.Tensor],
    sel: torch.Tensor,
    rates: Sequence[torch.Tensor | None],
    pointers: Sequence[int],
    rule: ReadRule,
    want_slope: bool = False,
    want_rate_slopes: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None, list[torch.Tensor]]:
    """Value of the record (or first minus second) at the times ``sel [1 or B, N, D]``.

    ``rates`` (steps over time constant, 0-d or ``[N]``) are used by ``expdecay``. Returns the
    value ``[B, N, D]``, and if wanted its derivatives to ``sel`` and to each component's rate.
    """
    located = locate(sel, rule, records[0].shape[0])
    components = [
        _component(*component, located, rule, want_slope)
        for component in zip(records, rates, pointers, strict=True)
    ]
    value, slope = components[0]
    if len(components) == 2:
        value = value - components[1][0]
        slope = slope - components[1][1] if want_slope else None
    if slope is not None and located.within is not None:
        slope = torch.where(located.within, slope, 0.0)
    rate_slopes = []
    if want_rate_slopes:
        signs = (-1.0, 1.0)
        rate_slopes = [
            _kept(part * located.frac.to(part.dtype), located, rule).mul_(sign)
            for (part, _), sign in zip(components, signs, strict=False)
        ]
    return _finish(value, records[0].dtype, located, rule), slope, rate_slopes


def _component(
    record: torch.Tensor,
    rate: torch.Tensor | None,
    pointer: int,
    located: Located,
    rule: ReadRule,
    want_slope: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Value of one component and its derivative to the time."""
    if rule.mode == "linear":
        return _linear(record, pointer, located, rule, want_slope)
    value = _tap(record, _nearest_tap(located, rule.mode), pointer)
    if rule.mode != "expdecay":
        return value, torch.zeros_like(value) if want_slope else None
    assert rate is not None
    value.mul_(_weight(located.frac, rate))
    return value, value * (rate / rule.step).unsqueeze(-1) if want_slope else None


def _linear(
    record: torch.Tensor, pointer: int, located: Located, rule: ReadRule, want_slope: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``older + (newer - older) * frac``, and the slope of that segment.

    At an observation the slope is that of the older segment, or of the newer one where the
    record keeps no older one.
    """
    older, frac = located.older, located.frac
    newer = torch.where(frac > 0, older - 1, older)
    old, new = _tap(record, older, pointer), _tap(record, newer, pointer)
    value = old + (new - old) * frac.to(old.dtype)
    if not want_slope:
        return value, None
    hit, last = frac == 0, older == record.shape[0] - 1
    far = torch.where(hit & ~last, older + 1, older)
    near = torch.where(hit & last, (older - 1).clamp(min=0), newer)
    return value, (_tap(record, far, pointer) - _tap(record, near, pointer)) / rule.step


def _finish(
    value: torch.Tensor, dtype: torch.dtype, located: Located, rule: ReadRule
) -> torch.Tensor:
    """Overbound values and NaN times; converted to the record's dtype."""
    if rule.overbound is not None and located.inside is not None:
        value = torch.where(located.inside, value, rule.overbound)
    if located.within is not None:
        invalid = located.older.isnan()
        value = value.masked_fill(invalid, 0.0 if dtype == torch.bool else float("nan"))
    return value.to(dtype)


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
    pointers: Sequence[int],
    rule: ReadRule,
) -> None:
    """Adjoint of :func:`select` to the records: scatter-adds into ``drecords`` in place."""
    slots, batch = drecords[0].shape[:2]
    located = locate(sel, rule, slots)
    acc = compute_dtype(drecords[0].dtype)
    dvalue = _kept(dvalue.to(acc), located, rule)
    frac = located.frac.nan_to_num(0.0)
    sign = 1
    for drecord, rate, pointer in zip(drecords, rates, pointers, strict=True):
        for steps, share in _shares(dvalue, located, frac, rate, rule.mode):
            index = _addresses(steps, pointer, slots, batch).view(-1)
            share = share.reshape(-1).to(drecord.dtype)
            drecord.view(-1).index_add_(0, index, share, alpha=sign)
        sign = -1


def _shares(
    dvalue: torch.Tensor,
    located: Located,
    frac: torch.Tensor,
    rate: torch.Tensor | None,
    mode: str,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The observations that made one component's value, and the gradient of each."""
    if mode == "linear":
        share = dvalue * frac.to(dvalue.dtype)
        newer = torch.where(frac > 0, located.older - 1, located.older)
        return [(located.older, dvalue - share), (newer, share)]
    if mode == "expdecay":
        assert rate is not None
        return [(located.older, dvalue * _weight(frac, rate))]
    return [(_nearest_tap(located, mode), dvalue)]


def batch_dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``sum over the batch of a * b``: ``[B, M], [B, M] -> [M]``, in the dtype of ``a``."""
    return (a * b).sum(0)
