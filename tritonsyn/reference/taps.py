"""Connections with a weight and a delay as taps, and the gradients back to them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..values import Located, ReadRule, locate
from .read import decayed


def taps(
    weight: Tensor, delay: Tensor, rates: Sequence[Tensor], rule: ReadRule, slots: int, lower: float
) -> list[Tensor]:
    """``[back, *weights]``: the observation that each connection reads, and its weights.

    A connection is one tap ``ceil(delay / step)`` steps back, int32, of the weight
    ``weight * exp(-fraction * rate)`` for each component, with the fraction of a step from there to
    the delay. The second component of a pair counts negatively; in the mode ``alpha`` both count
    positively, and the first, which is the rise, is also multiplied by ``fraction * rate``.

    ``weight [O, I]``; ``delay`` the same, or of size 1 along an axis; both of any dtype. ``rates``
    one or two, 0-d or ``[I]``, in the arithmetic's dtype, which is that of the result ``[O, I]``.
    Delays are clamped to ``[lower, rule.limit]``; that of a NaN counts as 0, and its weight is NaN.
    """
    located, dtype = _located(delay, rule, slots, lower), rates[0].dtype
    older = located.older if located.valid else located.older.nan_to_num(0.0)
    back = older.to(torch.int32).expand(weight.shape).contiguous()
    fraction, weight = located.fraction.to(dtype), weight.to(dtype)
    signed = [weight, weight if rule.mode == "alpha" else -weight]
    rises = (rule.mode == "alpha", False)
    triples = zip(signed, rates, rises, strict=False)
    return [back, *(w * decayed(fraction, rate, rise, None, False)[0] for w, rate, rise in triples)]


def taps_backward(
    dweights: Sequence[Tensor | None],
    weight: Tensor,
    delay: Tensor,
    rates: Sequence[Tensor],
    rule: ReadRule,
    slots: int,
    lower: float,
    wanted: Sequence[bool],
) -> list[Tensor]:
    """Adjoint of :func:`taps`: the gradients of weight, delay and rates that are wanted.

    ``dweights`` those of the components' weights, any but not all of them None. That of a delay
    outside of its bounds is zero. Each has the shape and dtype of what it is the gradient of.
    """
    _, want_delay, *want_rates = wanted
    located, dtype = _located(delay, rule, slots, lower), rates[0].dtype
    fraction, cast = located.fraction.to(dtype), weight.to(dtype)
    step = rule.step if want_delay else None
    by_weight, by_delay = torch.zeros_like(cast), torch.zeros_like(cast)
    by_rates = [torch.zeros_like(rate) for rate in rates]
    for i, (dweight, rate) in enumerate(zip(dweights, rates, strict=True)):
        if dweight is None:
            continue
        signed = dweight if i == 0 or rule.mode == "alpha" else -dweight
        rises = rule.mode == "alpha" and i == 0
        factor, slope, rate_slope = decayed(fraction, rate, rises, step, want_rates[i])
        by_weight.addcmul_(signed, factor)
        if slope is not None:
            by_delay += signed * cast * slope
        if rate_slope is not None:
            by_rates[i] = signed * cast * rate_slope
    if located.within is not None:
        by_delay = torch.where(located.within, by_delay, 0.0)
    triples = zip(wanted, (by_weight, by_delay, *by_rates), (weight, delay, *rates), strict=True)
    return [d.sum_to_size(x.shape).to(x.dtype) for want, d, x in triples if want]


def _located(delay: Tensor, rule: ReadRule, slots: int, lower: float) -> Located:
    """The delays among the observations, those below the lower bound as at it.

    They are within their bounds as these are in the dtype of the delays.
    """
    located = locate(delay if lower <= 0.0 else delay.clamp(min=lower), rule, slots)
    if located.within is None and lower <= 0.0:
        return located
    return located._replace(within=delay == delay.clamp(max(lower, 0.0), rule.limit))
