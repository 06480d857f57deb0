"""Initial delays: each function returns what ``delay_init=`` takes, times in ms.

``DelayedLinear(..., delay_init=init.uniform(0.0, 10.0))``. They draw from torch's generator, as
``torch.nn.init`` does, fill the tensor in place and return it. Values beyond a layer's own bounds
count as these.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from . import checks

__all__ = ["constant", "log_uniform", "normal", "uniform"]


def constant(value: float) -> Callable[[Tensor], Tensor]:
    """The same delay everywhere.

    Args:
        value: the delay, ms.

    Returns:
        A function that fills a tensor in place and returns it.

    Raises:
        TypeError, ValueError: ``value`` is not a finite number.
    """
    return partial(nn.init.constant_, val=checks.finite("value", value))


def uniform(low: float, high: float) -> Callable[[Tensor], Tensor]:
    """Delays between two bounds, each as likely as any other; a layer's default.

    Args:
        low: shortest delay, ms.
        high: longest delay, ms, > ``low``.

    Returns:
        A function that fills a tensor in place and returns it.

    Raises:
        TypeError, ValueError: a bound is not a finite number, or they are not in order.
    """
    low, high = checks.interval("low", low, "high", high)
    return partial(nn.init.uniform_, a=low, b=high)


def normal(
    mean: float, std: float, *, low: float = 0.0, high: float | None = None
) -> Callable[[Tensor], Tensor]:
    """Normally distributed delays; those outside of ``[low, high]`` are put on the bound.

    ``normal(0.0, std)`` leaves one half at 0, and the other is half-normal.

    Args:
        mean: mean of the distribution, ms.
        std: its standard deviation, ms, > 0.
        low: shortest delay, ms.
        high: longest delay, ms, > ``low``; None for no bound.

    Returns:
        A function that fills a tensor in place and returns it.

    Raises:
        TypeError, ValueError: an argument is not a finite number, or breaks its rule.
    """
    mean, std, low = (
        checks.finite("mean", mean),
        checks.positive("std", std),
        checks.finite("low", low),
    )
    if high is not None:
        low, high = checks.interval("low", low, "high", high)

    @torch.no_grad()
    def fill(tensor: Tensor) -> Tensor:
        return nn.init.normal_(tensor, mean, std).clamp_(low, high)

    return fill


def log_uniform(low: float, high: float) -> Callable[[Tensor], Tensor]:
    """Delays whose logarithms are uniform: as many between 1 and 2 ms as between 10 and 20.

    Args:
        low: shortest delay, ms, > 0.
        high: longest delay, ms, > ``low``.

    Returns:
        A function that fills a tensor in place and returns it.

    Raises:
        TypeError, ValueError: a bound is not a number above 0, or they are not in order.
    """
    low, high = checks.interval("low", checks.positive("low", low), "high", high)
    a, b = math.log(low), math.log(high)

    @torch.no_grad()
    def fill(tensor: Tensor) -> Tensor:
        return nn.init.uniform_(tensor, a, b).exp_().clamp_(low, high)

    return fill
