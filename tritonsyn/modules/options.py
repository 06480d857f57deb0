"""Options that several constructors share: their types, and signatures that list them one by one.

The defaults stand in the constructors of the base classes alone.
"""

import inspect
from collections.abc import Callable
from typing import Any, TypedDict, TypeVar

import torch

Initializer = Callable[[torch.Tensor], torch.Tensor | None]
_Function = TypeVar("_Function", bound=Callable[..., Any])


class SynapseOptions(TypedDict, total=False):
    """What every synapse takes besides its constants."""

    delay: float
    spike_interp_mode: str
    interp_tol: float
    current_overbound: float | None
    spike_overbound: bool | None
    batch_size: int
    inplace: bool
    device: torch.device | str | None
    dtype: torch.dtype | None
    capturable: bool
    backend: str | None


PARTIAL = ("spike_interp_mode", "interp_tol", "current_overbound", "spike_overbound", "inplace")
"""Those that ``partialconstructor`` takes after the constants, in the order of inferno."""


class LayerOptions(TypedDict, total=False):
    """What every delayed layer takes besides its size and its synapses."""

    bias: bool
    batch_size: int
    weight_init: Initializer | None
    bias_init: Initializer | None
    delay_init: Initializer | None
    device: torch.device | str | None
    dtype: torch.dtype | None
    strategy: str
    capturable: bool
    backend: str | None


def defaults_of(constructor: Callable[..., None]) -> dict[str, inspect.Parameter]:
    """The parameters of a constructor that have a default."""
    parameters = inspect.signature(constructor).parameters
    return {n: p for n, p in parameters.items() if p.default is not inspect.Parameter.empty}


def lists_options_of(base: type) -> Callable[[_Function], _Function]:
    """Decorates a constructor: its signature shows the base's options in place of ``**options``."""

    def declare(constructor: _Function) -> _Function:
        own = inspect.signature(constructor)
        named = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        listed = [*named, *defaults_of(base.__init__).values()]  # type: ignore[misc]
        constructor.__signature__ = own.replace(parameters=listed)  # type: ignore[attr-defined]
        return constructor

    return declare
