"""Charge and time constants as the constants of a step, and the gradients back to them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import physics
from ..physics import apart, separation, usable_time_constant


def coefficients(
    charge: Tensor, taus: Sequence[Tensor], step_time: float, dtype: torch.dtype
) -> list[Tensor]:
    """``[gain, *decays, *rates]`` of one or two time constants: :func:`physics.coefficients`.

    Constants are 0-d or ``[N]``, of any dtype; what comes out is in ``dtype``, that of the
    arithmetic. Decays and rates are 0-d if all time constants are, the gain if the charge is too.
    """
    taus = [tau.to(dtype) for tau in taus]
    gain, decays, rates = physics.coefficients(charge.to(dtype), taus, step_time, dtype)
    return [gain, *decays, *rates]


def coefficients_backward(
    gradients: Sequence[Tensor | None],
    results: Sequence[Tensor],
    charge: Tensor,
    taus: Sequence[Tensor],
    step_time: float,
    dtype: torch.dtype,
    wanted: Sequence[bool],
) -> list[Tensor]:
    """Adjoint of :func:`coefficients`: the gradients of charge and time constants that are wanted.

    ``results`` are what that returned, ``gradients`` those of the results in the same order, any
    but not all of them None; of the one rate of a single time constant there may be several, which
    add up. Each result has the shape and dtype of its constant.
    """
    count = len(taus)
    dgain, ddecays, drates = gradients[0], gradients[1 : count + 1], gradients[count + 1 :]
    gain, decays, rates = results[0], results[1 : count + 1], results[count + 1 :]
    given = [tau.to(dtype) for tau in taus]
    usable = [usable_time_constant(tau, step_time, dtype) for tau in given]
    used = usable if count == 1 else apart(usable[0], usable[1], dtype)
    sums = [torch.zeros_like(charge) if dgain is None else dgain, *given]
    if dgain is not None:
        sums[0] = dgain / physics.distance(used, decays, step_time)
    if any(wanted[1:]):
        own = [drates] if count == 1 else [[drate] for drate in drates]
        dused = [_of_rate(*each) for each in zip(ddecays, own, decays, rates, used, strict=True)]
        if dgain is not None:
            dgap = (sums[0] * gain).sum_to_size(used[0].shape)
            dused = [dused[0] - dgap, *(d + dgap for d in dused[1:])]
        dusable = dused if count == 1 else _apart_backward(dused, usable, dtype)
        pairs = zip(given, usable, dusable, strict=True)
        sums[1:] = [torch.where(tau == bound, d, 0.0) for tau, bound, d in pairs]
    triples = zip(wanted, sums, (charge, *taus), strict=True)
    return [d.sum_to_size(c.shape).to(c.dtype) for want, d, c in triples if want]


def _of_rate(
    ddecay: Tensor | None, drates: Sequence[Tensor | None], decay: Tensor, rate: Tensor, tau: Tensor
) -> Tensor | float:
    """What reaches a time constant by way of its rate, whose decay is ``exp(-rate)``."""
    parts = [drate for drate in drates if drate is not None]
    if ddecay is not None:
        parts.append(ddecay * -decay)
    return sum(parts[1:], parts[0]) * rate / -tau if parts else 0.0


def _apart_backward(
    dused: Sequence[Any], taus: Sequence[Tensor], dtype: torch.dtype
) -> list[Tensor]:
    """Adjoint of :func:`physics.apart`; equal time constants share what reaches both."""
    (dlonger, dshorter), (first, second) = dused, taus
    width = separation(dtype)
    total, gap = first + second, (first - second).abs()
    lacking = (width - gap / total).clamp(0.0, width)
    dlacking = (dlonger - dshorter) * lacking * (0.5 / width)
    dtotal = dlacking * (0.5 * lacking + gap / total)
    dlonger, dshorter = dlonger + dtotal - dlacking, dshorter + dtotal + dlacking
    mean, order = 0.5 * (dlonger + dshorter), torch.sign(first - second)
    return [
        torch.where(order == 0, mean, torch.where(order == sign, dlonger, dshorter))
        for sign in (1.0, -1.0)
    ]
