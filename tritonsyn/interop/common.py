"""What the adapters share."""

from typing import Any

from .. import checks
from ..modules.delay import Delay
from ..modules.projection import DelayedProjection
from ..modules.synapse import ExponentialCurrent

Module = ExponentialCurrent | DelayedProjection | Delay
"""The modules of tritonsyn that have a state."""


def accepted(module: Any, time_first: bool = False) -> Module:
    """The module that an adapter is asked to hold.

    Raises:
        TypeError: it is not one of tritonsyn's that have a state.
        ValueError: it takes the batch first, and the library is one that has ``time_first``.
    """
    if not isinstance(module, Module):
        raise TypeError(
            "module must be a synapse, a delayed layer or a Delay of tritonsyn, but is "
            f"{checks.shown(module)}"
        )
    if time_first and module.batch_first:
        raise ValueError("module must have batch_first=False: this library has time first")
    return module
