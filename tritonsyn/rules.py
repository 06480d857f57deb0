"""What a delayed read does, as one hashable value that every layer hands on."""

import math
from typing import NamedTuple

import torch

Slot = int | torch.Tensor
"""A slot of a record: a number, or a 0-d int64 tensor on the record's device."""

RECORD_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Dtypes that records of currents are kept in."""

READ_MODES = ("previous", "nearest", "next", "linear", "expdecay")
"""Modes of a :class:`ReadRule`."""


class ReadRule(NamedTuple):
    """How times before the present become values of a record.

    ``step`` (between observations), ``limit`` (of the times) and ``tolerance`` (to an
    observation) are in the unit of the times; ``overbound`` replaces values outside of
    ``[0, limit]``, None keeps the limit's value.
    """

    mode: str
    step: float
    limit: float
    tolerance: float = 0.0
    overbound: float | None = None


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Arithmetic is float64 for float64 and float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# A duration this close to a whole number of steps is that number (relative to one step).
_WHOLE = 1e-6


def record_size(step_time: float, duration: float, inclusive: bool) -> int:
    """Slots of a record: ``ceil(duration / step_time)``, one more where that is included."""
    steps = duration / step_time
    if not steps < 2**31:
        raise ValueError(
            f"a record cannot hold {steps:g} steps: {duration} in steps of {step_time}; "
            "fewer than 2**31 are allowed"
        )
    return max(math.ceil(_snapped(steps)) + inclusive, 1)


def whole_steps(step_time: float, duration: float) -> int:
    """Steps that fit into a duration."""
    return math.floor(_snapped(duration / step_time))


def _snapped(steps: float) -> float:
    return round(steps) if abs(steps - round(steps)) <= _WHOLE else steps
