"""The constants of a step from charge and time constants, as a differentiable operation."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..physics import coefficient_shapes
from ..values import Dynamics
from .common import chained, first_order, implementation, keep, kept, running, without_graph
from .operator import operator

Tensors = list[Tensor]


def _like_results(charge, taus, step_time, dtype, backend):  # type: ignore[no-untyped-def]
    shapes = coefficient_shapes(charge, taus)
    return [charge.new_empty(shape, dtype=dtype) for shape in shapes]


@operator(fake=_like_results)
def make_coefficients(
    charge: Tensor, taus: Tensors, step_time: float, dtype: torch.dtype, backend: str | None
) -> Tensors:
    """``[gain, *decays, *rates]`` of constants that are 0-d or ``[N]``."""
    module = implementation("constants", charge.device, backend)
    return module.coefficients(charge, taus, step_time, dtype)


def _like_constants(gradients, results, charge, taus, step_time, dtype, wanted, backend):  # type: ignore[no-untyped-def]
    pairs = zip((charge, *taus), wanted, strict=True)
    return [constant.new_empty(constant.shape) for constant, want in pairs if want]


@operator(fake=_like_constants)
def make_coefficients_backward(
    gradients: list[Tensor | None],
    results: Tensors,
    charge: Tensor,
    taus: Tensors,
    step_time: float,
    dtype: torch.dtype,
    wanted: list[bool],
    backend: str | None,
) -> Tensors:
    """The gradients of charge and time constants, where they are wanted."""
    module = implementation("constants", charge.device, backend)
    return module.coefficients_backward(gradients, results, charge, taus, step_time, dtype, wanted)


_Settings = tuple[float, torch.dtype, bool, str | None]
"""The step time, the dtype of the arithmetic, whether states are coupled, the backend."""


class _Coefficients(torch.autograd.Function):
    """Of the charge and the time constants."""

    @staticmethod
    def forward(ctx: Any, settings: _Settings, *constants: Tensor) -> tuple[Tensor, ...]:
        step_time, dtype, coupled, backend = ctx.settings = settings
        charge, *taus = constants
        results = make_coefficients(charge, taus, step_time, dtype, backend)
        keep(ctx, results, constants)
        # A tensor for each use, so that what reaches one rate in several ways adds up in a kernel.
        rate = results[-1]
        return (*results, *(rate.view(rate.shape) for _ in range(2 * coupled)))

    @staticmethod
    @first_order
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        results, (charge, *taus) = kept(ctx)
        step_time, dtype, _, backend = ctx.settings
        wanted = list(ctx.needs_input_grad[1:])
        way = (step_time, dtype, wanted, backend)
        found = iter(make_coefficients_backward(list(gradients), results, charge, taus, *way))
        return None, *[next(found) if want else None for want in wanted]


def coefficients(
    charge: Tensor,
    taus: Sequence[Tensor],
    step_time: float,
    dtype: torch.dtype,
    coupled: bool,
    backend: str | None = None,
) -> tuple[Dynamics, tuple[Tensor, ...]]:
    """Dynamics, and the rate of each state, of one or two time constants.

    Constants are 0-d or ``[N]`` on one device, of any dtype; what is made of them is in ``dtype``,
    that of the arithmetic. ``coupled``: two states share the one time constant. Differentiable.
    """
    if chained(charge, *taus):
        settings = step_time, dtype, coupled, running(charge.device, backend)
        results = _Coefficients.apply(settings, charge, *taus)
    else:
        with without_graph():
            results = make_coefficients(charge, list(taus), step_time, dtype, backend)
        results = (*results, *[results[-1]] * (2 * coupled))
    gain, decays, rates = results[0], results[1 : len(taus) + 1], results[len(taus) + 1 :]
    if not coupled:
        return Dynamics(gain, tuple(decays)), tuple(rates)
    *rates, coupling = rates
    return Dynamics(gain, tuple(decays), coupling), tuple(rates)
