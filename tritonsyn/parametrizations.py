"""Parametrizations of delays and constants, for ``torch.nn.utils.parametrize``.

``parametrize.register_parametrization(layer, "delay", Bounded(0.0, 25.0))`` keeps a delay within
bounds, ``WholeSteps`` on whole steps; ``Positive`` keeps a time constant or a charge above zero.
All work value by value, and tensors can be assigned to them: what a layer writes to its delays goes
through the inverse.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from . import checks

__all__ = ["Bounded", "Positive", "WholeSteps"]


class _Elementwise(nn.Module):
    """Makes each value of one value of the parameter, so that others can be assigned alone."""

    elementwise: ClassVar[bool] = True


class Bounded(_Elementwise):
    r"""Values between two bounds: :math:`l + (h - l)\,\sigma(\mathrm{raw})`.

    An optimiser can then take any step. The closer to a bound, the smaller is the gradient: start
    inside. Assigned values outside count as the bound.

    Args:
        low: lower bound :math:`l`, ms for delays.
        high: upper bound :math:`h`, > ``low``.

    Raises:
        TypeError, ValueError: a bound is not a finite number, or they are not in order.

    Example:
        >>> physics = SingleExponentialCurrent.partialconstructor(1.0, 5.0)
        >>> layer = DelayedLinear(3, 2, 1.0, synapse=physics, delay=25.0)
        >>> _ = parametrize.register_parametrization(layer, "delay", Bounded(0.0, 25.0))
    """

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = checks.interval("low", low, "high", high)

    def forward(self, raw: Tensor) -> Tensor:
        """The values of a parameter, as torch asks for them.

        Args:
            raw: the parameter, of any shape, floating.

        Returns:
            ``low + (high - low) * sigmoid(raw)``, shaped like ``raw``.
        """
        return self.low + (self.high - self.low) * raw.sigmoid()

    def right_inverse(self, value: Tensor) -> Tensor:
        """The parameter that gives these values, as torch asks for it where they are assigned.

        Args:
            value: values of any shape, floating; those outside of the bounds count as the bound.

        Returns:
            The parameter, finite and shaped like ``value``.

        Raises:
            TypeError: ``value`` is not a floating tensor.
        """
        value = checks.check_floating("value", value)
        part = (value - self.low) / (self.high - self.low)
        # Finite, and at a bound closer to it than a delay can tell.
        closest = torch.finfo(part.dtype).eps
        return part.clamp(closest**2, 1 - closest / 2).logit()

    def extra_repr(self) -> str:
        return f"{self.low}, {self.high}"


class WholeSteps(_Elementwise):
    """Values rounded to multiples of a step; the gradient passes as if they were not.

    The parameter keeps its fractions, and so learns by small steps what is read in whole ones: a
    straight-through estimator. Bengio, Léonard and Courville, Estimating or Propagating Gradients
    Through Stochastic Neurons for Conditional Computation (2013), doi:10.48550/arXiv.1308.3432.

    The layer's own bounds should be whole steps as well: a delay that is rounded to beyond them
    counts as the bound and has no gradient.

    Args:
        step_time: the step, ms, > 0.

    Raises:
        TypeError, ValueError: ``step_time`` is not a positive number.
    """

    def __init__(self, step_time: float) -> None:
        super().__init__()
        self.step_time = checks.step_time("step_time", step_time)

    def forward(self, raw: Tensor) -> Tensor:
        """The values of a parameter, as torch asks for them.

        Args:
            raw: the parameter, of any shape, ms.

        Returns:
            ``round(raw / step_time) * step_time``, with the gradient of ``raw``.
        """
        whole = (raw.detach() / self.step_time).round() * self.step_time
        # Not raw + (whole - raw), which is rounded.
        return _PassGradient.apply(raw, whole)

    def right_inverse(self, value: Tensor) -> Tensor:
        """The parameter that gives these values, as torch asks for it where they are assigned.

        Args:
            value: values of any shape, floating, ms.

        Returns:
            ``value`` itself, so that fractions of steps are kept.

        Raises:
            TypeError: ``value`` is not a floating tensor.
        """
        return checks.check_floating("value", value)

    def extra_repr(self) -> str:
        return f"{self.step_time}"


class _PassGradient(torch.autograd.Function):
    """Values of one tensor with the gradient of another."""

    @staticmethod
    def forward(raw: Tensor, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class Positive(_Elementwise):
    r"""Values above zero, or above ``low``: :math:`l + \exp(\mathrm{raw})`.

    A step of an optimiser then changes a value by a part of its distance from ``low``, whatever
    its unit is. For time constants and charges, which have to be an ``nn.Parameter`` before.

    Args:
        low: lower bound :math:`l` that the values stay above, >= 0, in their unit.

    Raises:
        TypeError, ValueError: ``low`` is not such a number; on assignment, a value is not above it.

    Example:
        >>> tau = nn.Parameter(torch.tensor(5.0))
        >>> synapse = SingleExponentialCurrent(3, 1.0, spike_charge=1.0, time_constant=tau)
        >>> _ = parametrize.register_parametrization(synapse, "time_constant", Positive())
        >>> synapse.time_constant = torch.tensor(4.0)
    """

    def __init__(self, low: float = 0.0) -> None:
        super().__init__()
        self.low = checks.nonnegative("low", low)

    def forward(self, raw: Tensor) -> Tensor:
        """The values of a parameter, as torch asks for them.

        Args:
            raw: the parameter, of any shape, floating.

        Returns:
            ``low + exp(raw)``, shaped like ``raw``.
        """
        return self.low + raw.exp()

    def right_inverse(self, value: Tensor) -> Tensor:
        """The parameter that gives these values, as torch asks for it where they are assigned.

        Args:
            value: values of any shape, floating, all above ``low``.

        Returns:
            ``log(value - low)``, shaped like ``value``.

        Raises:
            TypeError, ValueError: ``value`` is not a floating tensor, or a value is not above
                ``low``.
        """
        value = checks.check_floating("value", value)
        above = value - self.low
        if not value.is_meta and not (above > 0).all():
            worst = value[~(above > 0)].flatten()[0].item()
            raise ValueError(f"value must be greater than {self.low}, but holds {worst}")
        return above.log()

    def extra_repr(self) -> str:
        return f"{self.low}"
