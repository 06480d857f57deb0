"""Spiking neurons for networks that are timed or trained."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, slope: float) -> Tensor:
        ctx.save_for_backward(v)
        ctx.slope = slope
        return (v > 1).to(v.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (v,) = ctx.saved_tensors
        return gradient / (1 + ctx.slope * (v - 1).abs()) ** 2, None


def spike(v: Tensor, slope: float = 5.0) -> Tensor:
    """A step at 1 whose gradient counts as that of a fast sigmoid."""
    return _Spike.apply(v, slope)


class Neurons(NamedTuple):
    """Leaky neurons with a threshold of 1, set to 0 by a spike."""

    keep: float
    """What is left of a membrane after a step."""
    slope: float
    """Of the gradient's fast sigmoid."""

    def run(self, currents: Tensor, step: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Spikes ``[T, B, N]`` of currents ``[T, B, N]``, from rest.

        With ``step``, neurons also receive what it makes of their spikes of the step before.
        """
        v = z = torch.zeros_like(currents[0])
        spikes = []
        for current in currents:
            received = current if step is None else current + step(z)
            v = self.keep * v * (1 - z.detach()) + received
            z = spike(v, self.slope)
            spikes.append(z)
        return torch.stack(spikes)
