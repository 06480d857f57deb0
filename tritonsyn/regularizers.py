"""Penalties on delays: functions of a tensor, to be added to the loss.

``loss = loss + 1e-3 * regularizers.l1(layer.delay)``. Each is a mean over the delays, so that the
factor does not depend on the size of a layer. Through ``layer.delay`` the gradient reaches what
delays are parametrized by, or were pruned from. Of a layer with a mask, ``layer.delay[layer.mask]``
are the delays of connections.
"""

import math

from torch import Tensor

from . import checks

__all__ = ["l1", "l2", "variance", "whole_steps"]


def l1(delay: Tensor) -> Tensor:
    """Mean absolute delay: pulls all delays to 0 equally, and many of them onto it.

    Short delays need shorter buffers, and a delay of 0 none: Bouhadjar and Neftci, Sparse Axonal
    and Dendritic Delays Enable Competitive SNNs for Keyword Classification (2026),
    doi:10.48550/arXiv.2602.09746, keep the accuracy with a fifth of the delays.

    Args:
        delay: delays of any shape, ms, floating.

    Returns:
        The penalty, 0-d, ms. Differentiable.

    Raises:
        TypeError: ``delay`` is not a floating tensor.
    """
    return checks.check_floating("delay", delay).abs().mean()


def l2(delay: Tensor) -> Tensor:
    """Mean squared delay: pulls long delays the most, and none quite to 0.

    Args:
        delay: delays of any shape, ms, floating.

    Returns:
        The penalty, 0-d, ms². Differentiable.

    Raises:
        TypeError: ``delay`` is not a floating tensor.
    """
    return checks.check_floating("delay", delay).square().mean()


def variance(delay: Tensor) -> Tensor:
    """Variance of the delays: makes them alike; its negative keeps them apart.

    Inputs of different times are told from each other by delays that differ.

    Args:
        delay: delays of any shape, ms, floating.

    Returns:
        The mean squared distance from the mean delay, 0-d, ms². Differentiable.

    Raises:
        TypeError: ``delay`` is not a floating tensor.
    """
    delay = checks.check_floating("delay", delay)
    return (delay - delay.mean()).square().mean()


def whole_steps(delay: Tensor, step_time: float) -> Tensor:
    r"""Mean of :math:`\sin^2(\pi d / \Delta t)`: pulls each delay to its nearest whole step.

    Turned on at the end of a training, it leaves little for rounding to change. Between two steps
    it is 1, on a step 0. Naumov, Diril, Park, Ray, Jablonski and Tulloch, On Periodic Functions as
    Regularizers for Quantization of Neural Networks (2018), doi:10.48550/arXiv.1811.09862.

    Args:
        delay: delays :math:`d` of any shape, ms, floating.
        step_time: the step :math:`\Delta t`, ms, > 0.

    Returns:
        The penalty, 0-d, in 0 to 1. Differentiable.

    Raises:
        TypeError, ValueError: ``delay`` is not a floating tensor, or ``step_time`` not a positive
            number.
    """
    angle = math.pi / checks.step_time("step_time", step_time)
    return (angle * checks.check_floating("delay", delay)).sin().square().mean()
