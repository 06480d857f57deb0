"""What writing and reading share: times, and the fields of nodes."""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .. import checks
from ..values import ReadRule, locate, record_size

Array = npt.NDArray[np.floating]


class Units(NamedTuple):
    """The step of a model and the unit of time of a graph, both in ms."""

    step: float
    time_unit: float

    @classmethod
    def of(cls, step_time: object, time_unit: object) -> "Units":
        """Raises ``TypeError`` or ``ValueError`` unless both are times."""
        return cls(
            checks.step_time("step_time", step_time), checks.step_time("time_unit", time_unit)
        )

    def rounded(
        self, delays: Tensor, dtype: torch.dtype, tolerance: float = 0.0
    ) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Delays, ms, of which those that reads take for whole steps are just these; and which.

        Args:
            delays: float64.
            dtype: in which they were given, and are read.
            tolerance: of the reads.
        """
        rule = ReadRule("previous", self.step, math.inf, tolerance)
        found = locate(delays.to(dtype), rule, slots=2**62)
        whole = found.fraction == 0.0
        times = torch.where(whole, found.older.double() * self.step, delays)
        return times.numpy(), whole.numpy()

    def ceiling(self, delays: Array) -> float:
        """The whole steps that hold all of these delays, ms."""
        observations = record_size(self.step, delays.max().item(), inclusive=True)
        return (observations - 1) * self.step


def neuron_of(node: Any) -> dict[str, Any]:
    """The fields that LIF and CubaLIF share."""
    names = ("r", "v_leak", "v_threshold", "v_reset")  # the last from nir 1.0.7 on
    return {name: getattr(node, name) for name in names if hasattr(node, name)}
