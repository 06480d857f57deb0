"""A gradient of delays that sees the jumps of currents from afar.

The derivative of a delayed read is that of the current at one time. Where currents jump, as those
of the single synapse do at each spike, it misses all that a delay would gain by passing the jump.
Here the projection keeps its values, and only its delays get another gradient,

    dd[o, i] = -w[o, i] / step * sum over t, b of dy[t, b, o] * D[t - k[o, i], b, i],
    D[s]     = sum over j of g[j] * (I[s + j + 1] - I[s + j]),

with the whole steps ``k`` back, at least 1, and a Gaussian ``g``: the slope between neighbouring
observations, smoothed in both directions of time. Beyond the sequence, or the end of a sample, and
beyond what is known from before it, the current counts as constant. The sum is the one that weights
get as a gradient.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..values import ReadRule
from .common import first_order, keep, kept, without_autocast, without_graph
from .delayed import End, Run
from .lengths import held
from .projection import project_component_backward, way_of
from .read import after_pasts
from .strategy import Work, cheapest

_REACH = 4
"""Widths of the Gaussian after which it counts as zero."""
_LARGEST = 2**20
"""Rows after which it does so however wide it is."""
_BLOCK = 128
"""Rows that one product smooths, or as many as the Gaussian is long."""


class SpreadSettings(NamedTuple):
    """What the gradient is told besides tensors."""

    width: float
    """Standard deviation of the Gaussian, steps."""
    step: float
    bounds: tuple[float, float]
    """Of the delays; outside, their gradient is zero."""
    slots: int
    backend: str | None

    @classmethod
    def of(
        cls, width: float, rule: ReadRule, slots: int, lower: float, backend: str | None
    ) -> "SpreadSettings":
        """Of a width in the unit of the delays, which are read by this rule."""
        bounds = max(lower, 0.0), rule.limit
        return cls(width / rule.step, rule.step, bounds, slots, backend)

    def gradient(
        self, dy: Tensor, delay: Tensor, weight: Tensor, back: Tensor, currents: Tensor
    ) -> Tensor:
        """That of the delays of a :class:`Spread`, of ``dy [T, B, O]`` and ``currents [R, B, I]``.

        R are K - 1 + T rows.
        """
        slots, weight = self.slots, weight.to(dy.dtype)
        slopes = smoothed_slopes(currents.to(dy.dtype), self.width)
        # A delay of 0 moves into the past.
        back = back.clamp(1, slots - 1)
        by_input, by_output = delay.shape[0] < back.shape[0], delay.shape[1] < back.shape[1]
        if by_input and not by_output:
            found = delayed_product(dy @ weight, slopes, back[0], slots).unsqueeze(0)
        elif by_output and not by_input:
            found = delayed_product(dy, slopes @ weight.t(), back[:, 0], slots).unsqueeze(1)
        else:
            strategy = cheapest(Work(dy.numel() * back.shape[1], 0, slots, None), dy.device)
            way = way_of(strategy, dy.device, self.backend)
            operands: tuple[Any, ...] = (dy, slopes, None, None, back, [], 0, slots, dy.dtype)
            found = weight * project_component_backward(*operands, *way)[-1]
        return self.bounded(found.sum_to_size(delay.shape), delay)

    def bounded(self, found: Tensor, delay: Tensor) -> Tensor:
        """The gradient per unit of time of what is found per step back; zero out of bounds."""
        found = (found / -self.step).to(delay.dtype)
        return torch.where(delay == delay.clamp(*self.bounds), found, 0.0)


class Spread(NamedTuple):
    """Delays that get this gradient, and the connections that they belong to."""

    delay: Tensor
    """``[O, I]``, or ``[1, I]`` or ``[O, 1]`` where connections share it."""
    weight: Tensor
    """``[O, I]``."""
    back: Tensor
    """``[O, I]`` int32: whole steps."""
    settings: SpreadSettings

    @classmethod
    def of(
        cls,
        delay: Tensor,
        weight: Tensor,
        back: Tensor,
        width: float,
        rule: ReadRule,
        slots: int,
        lower: float = 0.0,
        *,
        backend: str | None = None,
    ) -> "Spread":
        """Of a Gaussian with this standard deviation, above 0, in the unit of the delays.

        The other arguments are those of :func:`tritonsyn.ops.taps`.
        """
        return cls(delay, weight, back, SpreadSettings.of(width, rule, slots, lower, backend))

    def projected(
        self, run: Run, project: Callable[[Run], tuple[Tensor, End]]
    ) -> tuple[Tensor, End]:
        """What ``project`` makes of the run, with the gradient of the delays."""
        return spread(run, project, self.settings, (self.delay, self.weight, self.back))

    def gradient(self, dy: Tensor, currents: Tensor) -> Tensor:
        """That of the delays, of ``dy [T, B, O]`` and ``currents [K - 1 + T, B, I]``."""
        with without_autocast(dy.device):
            return self.settings.gradient(dy, self.delay, self.weight, self.back, currents)


def spread(
    run: Run,
    project: Callable[[Run], tuple[Tensor, End]],
    settings: Any,
    connections: tuple[Tensor, Tensor, Tensor],
) -> tuple[Tensor, End]:
    """What ``project`` makes of the run, with a gradient of the delays.

    It is ``settings.gradient(dy, *connections, currents)``; connections are delays, weights and
    whole steps.
    """
    currents = currents_of(run)  # before the state of the run is written
    y, end = project(run)
    return _Spread.apply(settings, y, *connections, currents), end


class _Spread(torch.autograd.Function):
    """Of what is projected and the delays."""

    @staticmethod
    def forward(
        ctx: Any,
        settings: Any,
        y: Tensor,
        delay: Tensor,
        weight: Tensor,
        back: Tensor,
        currents: Tensor,
    ) -> Tensor:
        ctx.settings = settings
        keep(ctx, (delay, weight, back, currents))
        return y.clone()

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (operands,) = kept(ctx)
        with without_autocast(dy.device):
            found = ctx.settings.gradient(dy, *operands)
        return None, dy, found, None, None, None


def currents_of(run: Run) -> Tensor:
    """The current of a run ``[K - 1 + T, B, I]``, what is known from before it first."""
    with without_graph():
        plain = run.detached()._replace(ring=None, lengths=None)
        states, _ = plain.scanned()
        states = after_pasts(states, plain.before(), run.slots)
        currents = plain.dynamics.current(states)
        return currents if run.lengths is None else held(currents, run.lengths, run.x.shape[0])


def delayed_product(dy: Tensor, slopes: Tensor, back: Tensor, slots: int) -> Tensor:
    """``sum over t, b of dy[t, b, n] * slopes[t - back[n], b, n]``, the slopes from K - 1 rows
    before ``dy [T, B, N]`` on."""
    steps = torch.arange(slots - 1, slots - 1 + dy.shape[0], device=dy.device)
    rows = (steps.unsqueeze(1) - back).unsqueeze(1).expand(dy.shape)
    return (dy * slopes.gather(0, rows)).sum((0, 1))


def smoothed_slopes(currents: Tensor, width: float) -> Tensor:
    """``D`` per step of the currents ``[R, ...]``, smoothed by a Gaussian of this width in steps.

    Blocks of rows are products with one matrix, which has the differences of the Gaussian.
    """
    rows = currents.shape[0]
    whole = min(math.ceil(_REACH * width), _LARGEST)
    offsets = torch.arange(-whole, whole + 1, dtype=torch.float64)
    gaussian = (-0.5 * (offsets / width) ** 2).exp()
    gaussian /= gaussian.sum()
    reach = min(whole, rows)  # the currents are constant beyond
    gaussian = gaussian[whole - reach : whole + reach + 1]
    zero = gaussian.new_zeros(1)
    taps = torch.cat((zero, gaussian)) - torch.cat((gaussian, zero))
    taps = taps.to(currents)
    block = min(max(_BLOCK, len(taps)), rows)
    # Row r of the matrix is the taps, r places to the right.
    shifted = torch.nn.functional.pad(taps.expand(block, -1), (0, block))
    matrix = shifted.flatten()[: block * (len(taps) + block - 1)].view(block, -1)
    flat = currents.flatten(1)
    first, last = flat[:1].expand(reach, -1), flat[-1:].expand(reach + 1, -1)
    known = torch.cat((first, flat, last))
    parts = [
        matrix[: min(block, rows - start), : min(block, rows - start) + len(taps) - 1]
        @ known[start : min(start + block, rows) + len(taps) - 1]
        for start in range(0, rows, block)
    ]
    return torch.cat(parts).view(currents.shape)
