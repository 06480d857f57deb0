"""Charge and time constants as the constants of a step, and the gradients back to them."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels.constants import coefficients_bwd_kernel, coefficients_kernel
from ..physics import coefficient_shapes, longest_time_constant, separation
from ..values import highest_rate
from .config import config_for
from .launcher import accumulator, both, covering, launch, packed, tiles

_TURNS = 8
"""The most tiles that one program adds up by itself. Calculated: a tile takes it a microsecond or
two, and to add up the sums of many programs is another launch, of ten."""


def coefficients(
    charge: Tensor, taus: Sequence[Tensor], step_time: float, dtype: torch.dtype
) -> list[Tensor]:
    shapes = coefficient_shapes(charge, taus)
    results = [torch.empty(shape, dtype=dtype, device=charge.device) for shape in shapes]
    size = results[0].numel()
    tensors = (*_in_three(map(packed, (charge, *taus))), *_results(results))
    options = _options(charge, taus, dtype)
    numbers = (step_time, size)
    launch(coefficients_kernel, covering(size), *tensors, *numbers, **options, work=(size,))
    return results


def coefficients_backward(
    gradients: Sequence[Tensor | None],
    results: Sequence[Tensor],
    charge: Tensor,
    taus: Sequence[Tensor],
    step_time: float,
    dtype: torch.dtype,
    wanted: Sequence[bool],
) -> list[Tensor]:
    constants = (charge, *taus)
    size = results[0].numel()
    config = config_for("coefficients_bwd_kernel", (size,), dtype, charge.device)
    summed = any(want and not c.ndim for want, c in zip(wanted, constants, strict=True))
    count = tiles(size, config.BLOCK)
    programs = 1 if summed and count <= _TURNS else count
    made = [
        _empty_gradient(c, programs, dtype) if want else None
        for want, c in zip(wanted, constants, strict=True)
    ]
    dresults = [None if d is None else packed(d) for d in gradients]
    ddecays, drates = dresults[1 : len(taus) + 1], dresults[len(taus) + 1 :]
    tensors = (
        *(dresults[0], *both(ddecays), *_in_three(drates)),
        *_results(results),
        *both([packed(tau) for tau in taus]),
        *_in_three(made),
    )
    options = _options(charge, taus, dtype)
    arguments = (*tensors, step_time, size)
    launch(coefficients_bwd_kernel, (programs,), *arguments, **options, config=config, work=(size,))
    pairs = zip(made, constants, strict=True)
    return [d if d.shape == c.shape else d.sum().to(c.dtype) for d, c in pairs if d is not None]


def _empty_gradient(constant: Tensor, programs: int, dtype: torch.dtype) -> Tensor:
    """Where the gradient of a constant goes: of one number, the sum of each of the programs."""
    if constant.ndim or programs == 1:
        return torch.empty_like(constant)
    return torch.empty(programs, dtype=dtype, device=constant.device)


def _in_three(tensors: Iterable[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Three arguments of a kernel, None where there are fewer tensors."""
    first, *others = tensors
    return first, *both(others)


def _results(results: Sequence[Tensor]) -> list[Tensor | None]:
    """Gain, two decays and two rates."""
    taus = len(results) // 2
    return [results[0], *both(results[1 : taus + 1]), *both(results[taus + 1 :])]


def _options(charge: Tensor, taus: Sequence[Tensor], dtype: torch.dtype) -> dict[str, Any]:
    """What goes by name, the same for both kernels."""
    return {
        "CHARGE_PER_SYNAPSE": charge.ndim > 0,
        "TAU_PER_SYNAPSE": taus[0].ndim > 0,
        "RISE_PER_SYNAPSE": taus[-1].ndim > 0,
        "HIGHEST": highest_rate(dtype),
        "LONGEST": longest_time_constant(dtype),
        "WIDTH": separation(dtype),
        "ACC": accumulator(dtype),
        "dtype": dtype,
        # As the reference rounds: rates of whole fractions of a step stay what they are.
        "enable_fp_fusion": False,
    }
