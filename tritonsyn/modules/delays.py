"""What all modules with learned delays share: bounds, clamping, rounding."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from .. import checks
from ..checks import check_input
from ..values import whole_steps
from .options import Initializer
from .state import Stateful


class LearnedDelays(Stateful):
    """A module with a parameter ``delay``, ms, that counts between two bounds."""

    _delay_names = ("delay",)
    delay: nn.Parameter
    dt: float
    max_delay: float
    _min_delay: float

    @property
    def min_delay(self) -> float:
        """Shortest delay, ms; smaller delays count as this."""
        return self._min_delay

    @min_delay.setter
    def min_delay(self, value: float) -> None:
        self.check_at_home()
        self._min_delay = self._checked_min_delay(value)

    def _checked_min_delay(self, value: object) -> float:
        number = checks.nonnegative("min_delay", value)
        if number > self.max_delay:
            raise ValueError(
                f"min_delay must be at most the longest delay, {self.max_delay}, but is {number}"
            )
        return number

    def _checked_max_delay(self, value: object) -> float:
        number = checks.nonnegative("max_delay", value)
        if number < self._min_delay:
            raise ValueError(
                f"max_delay must be at least min_delay, {self._min_delay}, but is {number}"
            )
        return number

    def _not_too_short(self, delay: Tensor) -> Tensor:
        """These delays between the bounds for reads, which bound them above."""
        return delay.clamp(min=self._min_delay) if self._min_delay else delay

    @torch.no_grad()
    def clamp_delays_(self) -> None:
        """Brings every delay into ``[min_delay, max_delay]``; call it after an optimiser's step.

        A delay outside has no gradient, so without this it would stay there.

        Raises:
            RuntimeError: delays are computed from another parameter, as by pruning.
        """
        self._set_delays(self.delay.clamp(self._min_delay, self.max_delay))

    @torch.no_grad()
    def round_delays_(self) -> None:
        """Rounds every delay to whole steps, for hardware that supports no others.

        Bounds come first: a delay at a bound between two steps stays at the bound.

        Raises:
            RuntimeError: delays are computed from another parameter, as by pruning.
        """
        steps = (self.delay / self.dt).round_()
        steps.clamp_(0, whole_steps(self.dt, self.max_delay))
        self._set_delays((steps * self.dt).clamp_(self._min_delay, self.max_delay))

    def _set_delays(self, values: Tensor) -> None:
        """Writes delays where they are kept: a parametrization takes them by its inverse."""
        if "delay" in self._parameters:
            self.delay.copy_(values)
        elif is_parametrized(self, "delay"):
            self._assign_delays(values)
        else:
            raise RuntimeError(
                "delay is computed from another parameter before each call, as pruning and the "
                "older weight_norm do; change that parameter, or make the delays permanent first"
            )

    def _assign_delays(self, values: Tensor) -> None:
        """Writes delays by the inverse of what makes them.

        Where a delay stays, so does what it is made of: rounded delays would lose their fractions.
        """
        made_by: Any = self.parametrizations["delay"]  # type: ignore[index]
        unchanged = None
        if all(getattr(each, "elementwise", False) for each in made_by):
            unchanged, before = values == self.delay, made_by.original.clone()
        self.delay = values  # type: ignore[assignment]
        if unchanged is not None:
            made_by.original.copy_(torch.where(unchanged, before, made_by.original))


def uniform(low: float, high: float) -> Initializer:
    """Fills with numbers between these two."""
    return lambda tensor: nn.init.uniform_(tensor, low, high)


def initialized(name: str, values: Tensor, init: Initializer) -> nn.Parameter:
    """A parameter with the values that an initialiser filled in, or returned."""
    if not callable(init):
        raise TypeError(f"{name} must be a function of a tensor, but is {checks.shown(init)}")
    with torch.no_grad():
        result = init(values)
    result = values if result is None else result
    check_input(name, result, values.shape, values.device)
    if not result.is_meta and not result.isfinite().all():
        raise ValueError(f"{name} must give finite values")
    made = result.detach().to(values.dtype).clone(memory_format=torch.contiguous_format)
    return nn.Parameter(made)
