"""Delayed projections whose connections share the delay of their input, or of their output.

They are a delayed read and one dense product.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..values import ReadRule, as_real, dense
from .common import first_order, keep, kept, without_autocast
from .delayed import End, Past, Run
from .read import select_scan


class Shared(NamedTuple):
    """Connections of which those of an input, or those of an output, have one delay."""

    weight: Tensor
    """``[O, I]``."""
    times: Tensor
    """The delays, ``[1, I]`` or ``[1, O]``."""
    rates: Sequence[Tensor]
    """Steps over time constant of each component, 0-d or ``[I]``."""
    rule: ReadRule
    by_input: bool


def shared(
    weight: Tensor, delay: Tensor, rates: Sequence[Tensor], rule: ReadRule, lower: float = 0.0
) -> Shared | None:
    """The connections of :func:`tritonsyn.ops.taps`, if they make a single dense product.

    They do not where each has a delay of its own, nor where outputs delay inputs of different
    constants.
    """
    by_input = delay.shape[1] == weight.shape[1]
    if delay.shape == weight.shape or not (by_input or all(not rate.ndim for rate in rates)):
        return None
    delay = delay.clamp(min=lower) if lower > 0.0 else delay
    return Shared(weight, delay if by_input else delay.t(), rates, rule, by_input)


def project_shared(run: Run, connections: Shared) -> tuple[Tensor, End]:
    """The projection after each step, ``[T, B, O]``, and the end of the sequence.

    What an input has delayed is weighted; or what the inputs send is weighted first, and each
    output delays its sum. That is exact where the currents of all inputs decay alike: a weighted
    sum of them is a current too, that of the weighted spikes.
    """
    if connections.by_input:
        delayed, end = delayed_currents(run, connections)
        return product(delayed, connections.weight), end
    y, _ = delayed_currents(_at_outputs(run, connections.weight), connections)
    return y, run.ended()


def delayed_currents(run: Run, connections: Shared) -> tuple[Tensor, End]:
    """The currents of the run, each as it was its delay ago, and the end of the sequence."""
    how: dict[str, Any] = {"pasts": run.before(), "slots": run.slots, "backend": run.backend}
    sequences, end = run.scanned()
    _, times, rates, rule, _ = connections
    return select_scan(sequences, times, rates, rule, run.x.shape[0], owned=True, **how), end


def product(x: Tensor, weight: Tensor) -> Tensor:
    """``x [..., I]`` times ``weight [O, I]``, in the arithmetic's own dtype under autocast too."""
    y: Tensor = _Product.apply(x, weight.to(x.dtype))
    return y


class _Product(torch.autograd.Function):
    """Not PyTorch's: a compiled backward pass would be in the dtype of the autocast around it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        keep(ctx, [x, weight])
        with without_autocast(x.device):
            return torch.nn.functional.linear(x, weight)

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        ((x, weight),) = kept(ctx)
        want_x, want_weight = ctx.needs_input_grad
        with without_autocast(dy.device):
            dx = dy @ weight if want_x else None
            dweight = dy.flatten(0, -2).t() @ x.flatten(0, -2) if want_weight else None
        return dx, dweight


def _at_outputs(run: Run, weight: Tensor) -> Run:
    """The weighted sums of the inputs' currents, as the currents of synapses at the outputs."""
    gain, past = run.dynamics.gain, run.past
    dtype, unit = gain.dtype, torch.ones((), dtype=gain.dtype, device=gain.device)
    x = product(as_real(dense(run.x), dtype), weight * gain)
    if past is not None:
        states = [past.histories, past.newest]
        past = Past(*([product(t.to(dtype), weight) for t in tensors] for tensors in states))
    dynamics = run.dynamics._replace(gain=unit)
    return run._replace(x=x, dynamics=dynamics, past=past, dtype=dtype, ring=None, lengths=None)
