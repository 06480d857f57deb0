"""Stateless functions: interpolations between two observations, and the operations on records.

The interpolations have the signature that :meth:`tritonsyn.RecordTensor.select` calls,
``f(prev_data, next_data, sample_at, step_time, **kwargs)``: ``prev_data`` is the observation
before the sample, ``next_data`` the one a ``step_time`` later, ``sample_at`` the time from the
first to the sample. All are plain tensor expressions, broadcast and differentiable.
"""

from collections.abc import Callable

import torch

from .ops import Ring, push, read, select, step
from .rules import ReadRule

__all__ = [
    "ReadRule",
    "Ring",
    "interp_expdecay",
    "interp_expratedecay",
    "interp_linear",
    "interp_nearest",
    "interp_next",
    "interp_previous",
    "push",
    "read",
    "select",
    "step",
]


def interp_previous(
    prev_data: torch.Tensor,
    next_data: torch.Tensor,
    sample_at: torch.Tensor,
    step_time: float,
    **kwargs: object,
) -> torch.Tensor:
    """The earlier observation: what was last known at the time of the sample."""
    return prev_data


def interp_next(
    prev_data: torch.Tensor,
    next_data: torch.Tensor,
    sample_at: torch.Tensor,
    step_time: float,
    **kwargs: object,
) -> torch.Tensor:
    """The later observation."""
    return next_data


def interp_nearest(
    prev_data: torch.Tensor,
    next_data: torch.Tensor,
    sample_at: torch.Tensor,
    step_time: float,
    **kwargs: object,
) -> torch.Tensor:
    """The closer observation; the earlier one in the middle."""
    return torch.where(sample_at / step_time > 0.5, next_data, prev_data)


def interp_linear(
    prev_data: torch.Tensor,
    next_data: torch.Tensor,
    sample_at: torch.Tensor,
    step_time: float,
    **kwargs: object,
) -> torch.Tensor:
    """On the straight line between them: ``prev + (next - prev) * sample_at / step_time``."""
    return prev_data + (next_data - prev_data) * (sample_at / step_time)


def interp_expdecay(
    prev_data: torch.Tensor,
    next_data: torch.Tensor,
    sample_at: torch.Tensor,
    step_time: float,
    *,
    time_constant: float | torch.Tensor,
    **kwargs: object,
) -> torch.Tensor:
    """The earlier observation, decayed since: ``prev * exp(-sample_at / time_constant)``."""
    return prev_data * torch.exp(-sample_at / time_constant)


def interp_expratedecay(
    prev_data: torch.Tensor,
    next_data: torch.Tensor,
    sample_at: torch.Tensor,
    step_time: float,
    *,
    rate_constant: float | torch.Tensor,
    **kwargs: object,
) -> torch.Tensor:
    """The earlier observation, decayed since: ``prev * exp(-sample_at * rate_constant)``."""
    return prev_data * torch.exp(-sample_at * rate_constant)


INTERPOLATIONS: dict[str, Callable[..., torch.Tensor]] = {
    "previous": interp_previous,
    "nearest": interp_nearest,
    "next": interp_next,
    "linear": interp_linear,
    "expdecay": interp_expdecay,
    "expratedecay": interp_expratedecay,
}
"""The known modes by name."""
