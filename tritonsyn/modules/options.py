"""Options that several constructors share: their types, and signatures that list each of them.

The defaults are in the constructors of the base classes only.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypedDict, TypeVar

import torch
from torch import Tensor

from ..checks import Constant

Initializer = Callable[[Tensor], Tensor | None]
_Function = TypeVar("_Function", bound=Callable[..., Any])


class SynapseOptions(TypedDict, total=False):
    """Options of every synapse, besides its constants."""

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
"""The options that ``partialconstructor`` takes after the constants, in the order of inferno."""


class LayerOptions(TypedDict, total=False):
    """Options of every delayed layer, besides its size and its synapses."""

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


def with_partial_signature(
    function: Callable[..., Any], constants: Sequence[str], options: dict[str, inspect.Parameter]
) -> Callable[..., Any]:
    """A copy of ``partialconstructor`` that shows these constants, and options, all positional."""

    @functools.wraps(function)
    def partialconstructor(cls: type, *constants: Any, **options: Any) -> Any:
        return function(cls, *constants, **options)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    own = inspect.signature(function)
    shown = [
        inspect.Parameter("cls", kind),
        *(inspect.Parameter(name, kind, annotation=Constant) for name in constants),
        *(options[name].replace(kind=kind) for name in PARTIAL),
    ]
    partialconstructor.__signature__ = own.replace(parameters=shown)  # type: ignore[attr-defined]
    return partialconstructor
