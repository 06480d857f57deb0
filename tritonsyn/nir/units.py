"""What writing and reading share: times, and the fields of nodes."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .. import checks

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

    def rounded(self, delays: Array, epsilon: float) -> tuple[Array, bool]:
        """Delays, ms, where they are whole steps up to rounding as just these; and if all are.

        As in the reads of records, they are where they miss by four units in the last place of the
        dtype that they come from, of which this is the epsilon.
        """
        exact = np.round(delays / self.step) * self.step
        whole = np.abs(exact - delays) <= 4 * epsilon * np.maximum(delays, self.step)
        return np.where(whole, exact, delays), bool(whole.all())

    def ceiling(self, delays: Array) -> float:
        """The whole steps that hold all of these delays, ms."""
        steps: float = np.ceil(delays.max() / self.step - 1e-6).item()
        return steps * self.step


def neuron_of(node: Any) -> dict[str, Any]:
    """The fields that LIF and CubaLIF share."""
    names = ("r", "v_leak", "v_threshold", "v_reset")  # the last from nir 1.0.7 on
    return {name: getattr(node, name) for name in names if hasattr(node, name)}
