"""Parameters of a model in groups for an optimiser: weights, delays, constants."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from .. import checks
from .state import Stateful


def parameter_groups(
    model: nn.Module,
    lr: float | None = None,
    *,
    delay_lr: float | None = None,
    constant_lr: float | None = None,
    weight_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Groups for an optimiser: delays and constants learn at their own rates, and do not decay.

    Weight decay would pull delays and time constants to 0, which is no simpler than any other
    value. Nor does it touch what has fewer than two axes: biases, gains of norms, constants of
    neurons.

    Args:
        model: any module; those of tritonsyn in it are found at any depth, parametrized or pruned
            ones too, and a parameter that is shared is taken once.
        lr: learning rate of all parameters without one of their own; None for the optimiser's.
        delay_lr: learning rate of delays; None for ``lr``. It is in ms for optimisers whose steps
            are about as large as the rate, such as Adam.
        constant_lr: learning rate of time constants and charges; None for ``lr``.
        weight_decay: weight decay of weights, which are all other parameters with two axes or
            more; None for the optimiser's.

    Returns:
        At most four groups, those without parameters left out; each has a ``"name"``:
        ``"weights"``, ``"vectors"``, ``"delays"``, ``"constants"``. Frozen parameters are in them,
        since they may be thawed later: optimisers pass over what has no gradient.

    Raises:
        TypeError, ValueError: ``model`` is not a module, or a number is negative or not finite.

    Example:
        >>> physics = SingleExponentialCurrent.partialconstructor(1.0, 5.0)
        >>> layer = DelayedLinear(3, 2, 1.0, synapse=physics, delay=10.0)
        >>> groups = parameter_groups(layer, 1e-3, delay_lr=0.1, weight_decay=1e-2)
        >>> optimizer = torch.optim.AdamW(groups)
        >>> [(group["name"], group["lr"], group["weight_decay"]) for group in groups]
        [('weights', 0.001, 0.01), ('delays', 0.1, 0.0)]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but is {checks.shown(model)}")
    rule = checks.optional(checks.nonnegative)
    lr, decay = rule("lr", lr), rule("weight_decay", weight_decay)
    rates = {"delays": rule("delay_lr", delay_lr), "constants": rule("constant_lr", constant_lr)}
    # By name, because modules() and parameters() are dictionaries in rockpool.
    kinds = {id(p): kind for _, module in model.named_modules() for kind, p in _learned(module)}
    members: dict[str, list[nn.Parameter]] = {
        "weights": [], "vectors": [], "delays": [], "constants": []
    }  # fmt: skip
    for _, parameter in model.named_parameters():
        usual = "weights" if parameter.ndim > 1 else "vectors"
        members[kinds.get(id(parameter), usual)].append(parameter)
    groups: list[dict[str, Any]] = []
    for name, parameters in members.items():
        rate = rates.get(name)
        settings = {
            "lr": lr if rate is None else rate,
            "weight_decay": decay if name == "weights" else 0.0,
        }
        if parameters:
            given = {key: value for key, value in settings.items() if value is not None}
            groups.append({"params": parameters, "name": name, **given})
    return groups


def _learned(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The delays and constants of a module, each with its kind."""
    if not isinstance(module, Stateful):
        return
    for kind, names in (("constants", module._constants), ("delays", module._delay_names)):
        for name in names:
            for parameter in _parameters_of(module, name):
                yield kind, parameter


def _parameters_of(module: nn.Module, name: str) -> Iterator[nn.Parameter]:
    """What a value is made of: itself, what is parametrized, or what was pruned."""
    for kept in (name, f"{name}_orig"):
        parameter = module._parameters.get(kept)
        if parameter is not None:
            yield parameter
    parametrizations = getattr(module, "parametrizations", {})
    if name in parametrizations:
        yield from parametrizations[name].parameters()
