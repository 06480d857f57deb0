"""Charge and time constants as the constants of a step, and the gradients back to them."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels.constants import coefficients_bwd_kernel, coefficients_kernel
from ..physics import longest_time_constant, separation
from ..values import highest_rate
from .launcher import accumulator, both, covering, launch, packed


def coefficients(
    charge: Tensor, taus: Sequence[Tensor], step_time: float, dtype: torch.dtype
) -> list[Tensor]:
    sizes = [_largest(charge, *taus), *[_largest(*taus)] * (2 * len(taus))]
    results = [torch.empty(size, dtype=dtype, device=charge.device) for size in sizes]
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
    made = [torch.empty_like(c) if w else None for c, w in zip(constants, wanted, strict=True)]
    size = results[0].numel()
    dresults = [None if d is None else packed(d) for d in gradients]
    ddecays, drates = dresults[1 : len(taus) + 1], dresults[len(taus) + 1 :]
    tensors = (
        *(dresults[0], *both(ddecays), *_in_three(drates)),
        *_results(results),
        *both([packed(tau) for tau in taus]),
        *_in_three(made),
    )
    options = _options(charge, taus, dtype)
    # A constant that is one number needs the sum over all synapses.
    summed = any(d is not None and not d.ndim for d in made)
    grid = (1,) if summed else covering(size)
    numbers = (step_time, size)
    launch(coefficients_bwd_kernel, grid, *tensors, *numbers, **options, work=(size,))
    return [d for d in made if d is not None]


def _largest(*constants: Tensor) -> torch.Size:
    """The shape of what is made of constants that are 0-d or ``[N]``."""
    return max((constant.shape for constant in constants), key=len)


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
