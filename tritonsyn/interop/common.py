"""What the adapters share."""

from typing import Any

from torch import nn

from .. import RecordTensor, checks
from ..modules.delay import Delay
from ..modules.projection import DelayedProjection
from ..modules.synapse import ExponentialCurrent

Module = ExponentialCurrent | DelayedProjection | Delay
"""The modules of tritonsyn that have a state."""


def accepted(module: Any, batch_first: bool | None = None) -> Module:
    """The module that an adapter is asked to hold.

    Raises:
        TypeError: it is not one of tritonsyn's that have a state.
        ValueError: the library has the batch first, or has time first, and the module differs.
    """
    if not isinstance(module, Module):
        raise TypeError(
            "module must be a synapse, a delayed layer or a Delay of tritonsyn, but is "
            f"{checks.shown(module)}"
        )
    if batch_first not in (None, module.batch_first):
        first = "the batch" if batch_first else "time"
        raise ValueError(
            f"module must have batch_first={batch_first}: this library has {first} first"
        )
    return module


def records(module: nn.Module) -> dict[str, RecordTensor]:
    """The records of a module by their paths, in the order of its ``state()``."""
    return {path: m for path, m in module.named_modules() if isinstance(m, RecordTensor)}
