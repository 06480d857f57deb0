"""Checks of arguments that are no data; each error names the argument, its value and the rule."""

import math
import numbers
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch

from .rules import RECORD_DTYPES

Constant = float | torch.Tensor


def finite(name: str, value: object) -> float:
    """A finite real number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            raise TypeError(f"{name} must be a number, but is {value!r}")
        value = value.item()
    value = float(value)
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, but is {value}")
    return value


def positive(name: str, value: object) -> float:
    """A finite number above zero."""
    number = finite(name, value)
    if number <= 0:
        raise ValueError(f"{name} must be greater than 0, but is {number}")
    return number


def nonnegative(name: str, value: object) -> float:
    """A finite number, zero or above."""
    number = finite(name, value)
    if number < 0:
        raise ValueError(f"{name} must be at least 0, but is {number}")
    return number


def positive_integer(name: str, value: object) -> int:
    """A whole number above zero."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be a positive integer, but is {value!r}")
    if value <= 0:
        raise ValueError(f"{name} must be a positive integer, but is {value}")
    return int(value)


def integer(name: str, value: Any) -> int:
    """A whole number."""
    # Of a size that torch.compile keeps open operator.index would make a number.
    if isinstance(value, int | torch.SymInt):
        return cast(int, value)
    try:
        return operator.index(value)
    except (TypeError, RuntimeError):
        raise TypeError(f"{name} must be an integer, but is {value!r:.80}") from None


def flag(name: str, value: object) -> bool:
    """True or False."""
    if isinstance(value, bool) or (isinstance(value, numbers.Real) and value in (0, 1)):
        return bool(value)
    raise TypeError(f"{name} must be True or False, but is {value!r:.80}")


def group_shape(value: object) -> tuple[int, ...]:
    """The shape of a group: one positive integer or a sequence of them."""
    if isinstance(value, numbers.Integral):
        return (positive_integer("shape", value),)
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise TypeError(f"shape must be a positive integer or a sequence of them, but is {value!r}")
    return tuple(positive_integer(f"shape[{i}]", size) for i, size in enumerate(value))


def record_dtype(value: torch.dtype | None) -> torch.dtype:
    """A dtype that records of currents are kept in; None means torch's default dtype."""
    dtype = torch.get_default_dtype() if value is None else value
    if dtype not in RECORD_DTYPES:
        allowed = ", ".join(map(str, RECORD_DTYPES))
        raise TypeError(f"dtype must be one of {allowed}, but is {dtype}")
    return dtype


def one_of(name: str, value: object, allowed: Sequence[str]) -> str:
    """One of these words, in any case."""
    if not isinstance(value, str) or value.lower() not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, but is {value!r}")
    return value.lower()


def constant(
    name: str, value: object, shape: Sequence[int], rule: Callable[[torch.Tensor], torch.Tensor],
    rule_in_words: str,
) -> Constant:  # fmt: skip
    """A constant of the model: a number, or a floating tensor broadcastable to the group's shape.

    Every value must be finite and obey the rule. Reads the values of a tensor on the host; those
    on the meta device are taken on trust.
    """
    if not isinstance(value, torch.Tensor):
        number = finite(name, value)
        if not rule(torch.tensor(number, dtype=torch.float64, device="cpu")):
            raise ValueError(f"{name} must be {rule_in_words}, but is {number}")
        return number
    if not value.is_floating_point():
        raise TypeError(f"{name} must be floating, but is {value.dtype}")
    check_broadcast(name, value, shape)
    if value.is_meta:  # which holds no values
        return value
    with torch.no_grad():
        good = value.isfinite() & rule(value)
        if not good.all():
            worst = value[~good].flatten()[0].item()
            raise ValueError(f"{name} must be finite and {rule_in_words}, but holds {worst}")
    return value


def check_graph(name: str, value: object) -> None:
    """Refuses a tensor with a graph, which a module could not keep: parameters have none."""
    learned = isinstance(value, torch.Tensor) and value.requires_grad
    if learned and not isinstance(value, torch.nn.Parameter):
        raise ValueError(
            f"{name} requires grad but is no nn.Parameter, so that its graph would be lost: "
            "give the parameter, and what is computed from it by torch.nn.utils.parametrize"
        )


def check_saved_shapes(
    present: Mapping[str, torch.Tensor | None], state_dict: Mapping[str, Any], prefix: str
) -> None:
    """Refuses a saved state that holds tensors of other shapes, before anything is taken over."""
    for name, tensor in present.items():
        saved = state_dict.get(prefix + name)
        if tensor is None or not isinstance(saved, torch.Tensor) or saved.shape == tensor.shape:
            continue
        raise RuntimeError(
            f"{prefix}{name} of the saved state has shape {tuple(saved.shape)}, "
            f"but this module has {tuple(tensor.shape)}"
        )


def check_broadcast(name: str, value: torch.Tensor, shape: Sequence[int]) -> None:
    """The tensor is one value, or broadcastable to the group's shape."""
    if value.numel() == 1:
        return
    try:
        fits = torch.broadcast_shapes(value.shape, tuple(shape)) == tuple(shape)
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}, which does not broadcast to {tuple(shape)}"
        )
