"""What several modules share: types of options, signatures that list them, properties.

The defaults are in the constructors of the base classes only.
"""

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
    batch_first: bool
    device: torch.device | str | None
    dtype: torch.dtype | None
    capturable: bool
    backend: str | None


PARTIAL = ("spike_interp_mode", "interp_tol", "current_overbound", "spike_overbound", "inplace")
"""The options that ``partialconstructor`` takes after the constants, in the order of inferno."""


class LayerOptions(TypedDict, total=False):
    """Options of every delayed layer, besides its size and its synapses."""

    delays: str
    min_delay: float
    bias: bool
    batch_size: int
    batch_first: bool
    weight_init: Initializer | None
    bias_init: Initializer | None
    delay_init: Initializer | None
    device: torch.device | str | None
    dtype: torch.dtype | None
    strategy: str
    spread: float
    capturable: bool
    backend: str | None


def _defaults_of(constructor: Callable[..., None]) -> dict[str, inspect.Parameter]:
    """The parameters of a constructor that have a default."""
    parameters = inspect.signature(constructor).parameters
    return {n: p for n, p in parameters.items() if p.default is not inspect.Parameter.empty}


def lists_options_of(base: type) -> Callable[[_Function], _Function]:
    """Decorates a constructor: its signature shows the base's options in place of ``**options``."""

    def declare(constructor: _Function) -> _Function:
        own = inspect.signature(constructor)
        named = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        listed = [*named, *_defaults_of(base.__init__).values()]  # type: ignore[misc]
        constructor.__signature__ = own.replace(parameters=listed)  # type: ignore[attr-defined]
        return constructor

    return declare


def partialconstructor_of(
    constants: Sequence[str], constructor: Callable[..., None]
) -> Callable[..., Any]:
    """The ``partialconstructor`` of a synapse with these constants, all of it positional."""
    kind, options = inspect.Parameter.POSITIONAL_OR_KEYWORD, _defaults_of(constructor)
    shown = [inspect.Parameter(name, kind, annotation=Constant) for name in constants]
    physics = inspect.Signature([*shown, *(options[n].replace(kind=kind) for n in PARTIAL)])

    def partialconstructor(cls: Any, *constants: Any, **options: Any) -> Callable[..., Any]:
        """Fixes the physics of a synapse, and leaves its size to a layer.

        The arguments are those of the synapse. A parameter given here is shared by all that is
        made.

        Returns:
            A function ``f(shape, step_time, delay, batch_size)``, which also takes ``device``,
            ``dtype``, ``capturable`` and ``backend`` and makes the synapse.
        """
        given = physics.bind(*constants, **options)
        given.apply_defaults()

        def make(
            shape: Sequence[int] | int,
            step_time: float,
            delay: float,
            batch_size: int,
            **factory: Any,
        ) -> Any:
            run = {"delay": delay, "batch_size": batch_size}
            return cls(shape, step_time, **run, **given.arguments, **factory)

        return make

    of_class = [inspect.Parameter("cls", kind), *physics.parameters.values()]
    signature = inspect.Signature(of_class, return_annotation=Callable[..., Any])
    partialconstructor.__signature__ = signature  # type: ignore[attr-defined]
    return partialconstructor


def setting(
    name: str, doc: str, rule: Callable[[str, Any], Any] | None = None, rebuilds: str = ""
) -> Any:
    """A property kept as ``_name``, which can be set if there is a rule for its values.

    ``rebuilds`` says what setting does besides, by ``_rebuild`` of the module.
    """

    def change(module: Any, value: Any) -> None:
        assert rule is not None
        checked = rule(name, value)
        if rebuilds:
            module._rebuild(**{name: checked})
        else:
            setattr(module, f"_{name}", checked)

    doc = f"{doc} {rebuilds}".strip()
    # Not an attrgetter, which torch.compile does not trace.
    return property(lambda module: getattr(module, f"_{name}"), change if rule else None, doc=doc)
