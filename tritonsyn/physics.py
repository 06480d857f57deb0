"""How charge and time constants become the constants of a step: of numbers, and of tensors."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .checks import rounded
from .values import highest_rate


def bounded(value: Any, low: Any, high: Any) -> Any:
    """The number, or tensor, brought into these bounds; beyond them its gradient is zero."""
    if isinstance(value, Tensor):
        return value.clamp(low, high)
    return min(max(value, low), high)


def longest_time_constant(dtype: torch.dtype) -> float:
    """The longest time constant that arithmetic of this dtype takes: four times it still fits."""
    return float(torch.finfo(dtype).max / 4)


def usable_time_constant(value: Any, step_time: float, dtype: torch.dtype) -> Any:
    """The time constant, or the nearest one that arithmetic of this dtype takes.

    The shortest has the highest rate.
    """
    return bounded(value, step_time / highest_rate(dtype), longest_time_constant(dtype))


def separation(dtype: torch.dtype) -> float:
    r"""The distance of two time constants, over their sum, within which they are moved apart.

    Three cube roots of the precision :math:`\epsilon`: that balances the error of moving, of the
    order of its square, and that of rounding two large components, of the order of
    :math:`\epsilon` over it.
    """
    return float(3.0 * torch.finfo(dtype).eps ** (1 / 3))


def apart(first: Any, second: Any, dtype: torch.dtype) -> tuple[Any, Any]:
    r"""The longer and the shorter time constant, moved apart where they are almost equal.

    Their current is an even function of their distance :math:`g`: the distance becomes
    :math:`(g^2 + r^2) / 2r` within :math:`r = w\,(\tau_1 + \tau_2)`, with w the
    :func:`separation`, about their mean, which is smooth and never 0.
    """
    width = separation(dtype)
    if isinstance(first, Tensor):
        longer, shorter = torch.maximum(first, second), torch.minimum(first, second)
    else:
        longer, shorter = max(first, second), min(first, second)
    total = longer + shorter
    lacking = bounded(width - (longer - shorter) / total, 0.0, width)
    # Exactly zero further apart, where the constants stay what they are.
    shift = total * lacking**2 * (0.25 / width)
    return longer + shift, shorter - shift


def _rounding(tau: Any, decay: Any, step_time: float) -> Any:
    """How far the time constant that a rounded decay stands for is from the one it was made of."""
    if isinstance(tau, Tensor):
        between = (decay > 0.0) & (decay < 1.0)
        return torch.where(between, -step_time / torch.log(decay) - tau, 0.0)
    return -step_time / math.log(decay) - tau if 0.0 < decay < 1.0 else 0.0


def distance(taus: Sequence[Any], decays: Sequence[Any], step_time: float) -> Any:
    """What a charge is divided by to give the gain: one time constant, or how far two are apart.

    As two components almost cancel, their gain has to be that of what remains. So the second is
    that of the time constants which the rounded decays stand for, a constant for gradients.
    """
    if len(taus) == 1:
        return taus[0]
    gap = taus[0] - taus[1]
    with torch.no_grad():
        off = [_rounding(*pair, step_time) for pair in zip(taus, decays, strict=True)]
        correction = bounded(off[0] - off[1], -0.5 * gap, 0.5 * gap)
    return gap + correction


def coefficient_shapes(charge: Tensor, taus: Sequence[Tensor]) -> list[torch.Size]:
    """Those of gain, decays and rates of constants that are 0-d or ``[N]``."""
    used = max((tau.shape for tau in taus), key=len)
    return [max(charge.shape, used, key=len), *[used] * (2 * len(taus))]


def coefficients(
    charge: Any, taus: Sequence[Any], step_time: float, dtype: torch.dtype
) -> tuple[Any, list[Any], list[Any]]:
    r"""Gain, decays and rates of charge and time constants, all numbers or all tensors.

    .. math::
        r_c = \Delta t / \tau_c, \qquad d_c = \exp(-r_c), \qquad
        g = Q / \tau \quad\text{or}\quad g = Q / (\tau_1 - \tau_2)

    ``dtype`` is that of the arithmetic that will use them, whose bounds time constants are brought
    into. Two may come in any order and be equal: the longer one counts as the first, and they are
    moved :func:`apart`.
    """
    taus = [usable_time_constant(tau, step_time, dtype) for tau in taus]
    if len(taus) == 2:
        taus = apart(taus[0], taus[1], dtype)
    rates = [step_time / tau for tau in taus]
    decays = [
        torch.exp(-rate) if isinstance(rate, Tensor) else rounded(math.exp(-rate), dtype)
        for rate in rates
    ]
    return charge / distance(taus, decays, step_time), decays, rates
