"""Connections with a weight and a delay as taps, and the gradients back to them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels.taps import taps_bwd_kernel, taps_kernel
from ..values import ReadRule
from .config import LaunchConfig, config_for
from .launcher import accumulator, both, launch, locating_arguments, packed, tiles


def taps(
    weight: Tensor, delay: Tensor, rates: Sequence[Tensor], rule: ReadRule, slots: int, lower: float
) -> list[Tensor]:
    made = [_empty(weight, *weight.shape, dtype=dtype) for dtype in _dtypes(rates)]
    inputs, numbers, options = _arguments(weight, delay, rates, rule, slots, lower)
    back, *taps = made
    launch(taps_kernel, _grid(weight), *inputs, back, *both(taps), *numbers, **options)
    return made


def taps_backward(
    dweights: Sequence[Tensor | None],
    weight: Tensor,
    delay: Tensor,
    rates: Sequence[Tensor],
    rule: ReadRule,
    slots: int,
    lower: float,
    wanted: Sequence[bool],
) -> list[Tensor]:
    inputs, numbers, options = _arguments(weight, delay, rates, rule, slots, lower)
    (outputs, columns), dtype = weight.shape, rates[0].dtype
    config = config_for(taps_bwd_kernel.fn.__name__, (outputs, columns), dtype, weight.device)
    rows = tiles(outputs, config.BLOCK_R)
    want_weight, want_delay, *want_rates = wanted
    dweight = torch.empty_like(weight) if want_weight else None
    ddelay = None
    summed = [axis for axis in (0, 1) if delay.shape[axis] < weight.shape[axis]]
    if want_delay:
        parts = rows, tiles(columns, config.BLOCK)
        size = [parts[axis] if axis in summed else weight.shape[axis] for axis in (0, 1)]
        ddelay = _empty(weight, *size, dtype=dtype if summed else delay.dtype)
    drates = [_empty(weight, rows, columns, dtype=dtype) if want else None for want in want_rates]
    gradients = both([None if d is None else packed(d) for d in dweights])
    arguments = (*gradients, *inputs, dweight, ddelay, *both(drates), *numbers)
    launch(taps_bwd_kernel, _grid(weight), *arguments, config=config, **options)
    if ddelay is not None and summed:
        ddelay = ddelay.sum(summed, keepdim=True).to(delay.dtype)
    pairs = zip(drates, rates, strict=True)
    totals = [None if d is None else d.sum(0) if rate.ndim else d.sum() for d, rate in pairs]
    return [d for d in (dweight, ddelay, *totals) if d is not None]


def _empty(like: Tensor, *size: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(size, dtype=dtype, device=like.device)


def _dtypes(rates: Sequence[Tensor]) -> list[torch.dtype]:
    """Of the steps back, and of the weights of each component."""
    return [torch.int32, *(rate.dtype for rate in rates)]


def _grid(weight: Tensor) -> Callable[[LaunchConfig], tuple[int]]:
    outputs, inputs = weight.shape
    return lambda config: (tiles(outputs, config.BLOCK_R) * tiles(inputs, config.BLOCK),)


def _arguments(
    weight: Tensor, delay: Tensor, rates: Sequence[Tensor], rule: ReadRule, slots: int, lower: float
) -> tuple[tuple[Tensor | None, ...], tuple[float, ...], dict[str, Any]]:
    """Packed inputs, numbers, and what goes by name: what both kernels take."""
    rule_numbers, options = locating_arguments(rule, delay.dtype)
    options |= {
        "DELAY_PER_OUTPUT": delay.shape[0] == weight.shape[0],
        "DELAY_PER_INPUT": delay.shape[1] == weight.shape[1],
        "RATE_PER_INPUT": rates[0].ndim > 0,
        "SECOND_RATE_PER_INPUT": rates[-1].ndim > 0,
        "MODE": rule.mode,
        "TIME": accumulator(delay.dtype),
        "ACC": accumulator(rates[0].dtype),
        "work": tuple(weight.shape),
        "dtype": rates[0].dtype,
    }
    inputs = (packed(weight), packed(delay), *both([packed(rate) for rate in rates]))
    return inputs, (lower, *rule_numbers, *weight.shape, slots), options
