"""Connections with a weight and a delay as taps, as a differentiable operation."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..values import Links, ReadRule
from .common import (
    chained,
    distinct,
    first_order,
    implementation,
    keep,
    kept,
    running,
    without_graph,
)
from .operator import operator

Tensors = list[Tensor]


class Taps(NamedTuple):
    """The observation that each connection reads, and its weight."""

    back: Tensor
    """``[O, I]``, or of links ``[n]``, int32: whole steps."""
    weights: tuple[Tensor, ...]
    """The same of each component, the second one's with its sign."""
    links: Links | None = None
    """Which inputs each output reads; None: all."""

    @property
    def outputs(self) -> int:
        """O."""
        return self.back.shape[0] if self.links is None else self.links.size[0]

    @property
    def density(self) -> float:
        """The part of the connections that there are, 1 without links."""
        return 1.0 if self.links is None else self.links.density

    def dense(self) -> "Taps":
        """The same with all connections, zeros where there are none."""
        if self.links is None:
            return self
        spread = self.links.spread
        return Taps(spread(self.back), tuple([spread(weight) for weight in self.weights]))


def _like_taps(weight, delay, rates, *settings):  # type: ignore[no-untyped-def]
    dtypes = [torch.int32, *(rate.dtype for rate in rates)]
    return [weight.new_empty(weight.shape, dtype=dtype) for dtype in dtypes]


@operator(fake=_like_taps)
def make_taps(
    weight: Tensor,
    delay: Tensor,
    rates: Tensors,
    mode: str,
    step: float,
    limit: float,
    tolerance: float,
    lower: float,
    slots: int,
    backend: str | None,
) -> Tensors:
    """``[back, *weights]``; from ``mode`` to ``tolerance`` the fields of a :class:`ReadRule`."""
    rule = ReadRule(mode, step, limit, tolerance)
    module = implementation("taps", weight.device, backend)
    return module.taps(weight, delay, rates, rule, slots, lower)


def _like_inputs(dweights, weight, delay, rates, *settings):  # type: ignore[no-untyped-def]
    *_, wanted, _ = settings
    pairs = zip((weight, delay, *rates), wanted, strict=True)
    return [x.new_empty(x.shape) for x, want in pairs if want]


@operator(fake=_like_inputs)
def make_taps_backward(
    dweights: list[Tensor | None],
    weight: Tensor,
    delay: Tensor,
    rates: Tensors,
    mode: str,
    step: float,
    limit: float,
    tolerance: float,
    lower: float,
    slots: int,
    wanted: list[bool],
    backend: str | None,
) -> Tensors:
    """The gradients of weight, delay and rates, where they are wanted."""
    rule = ReadRule(mode, step, limit, tolerance)
    module = implementation("taps", weight.device, backend)
    operands = (dweights, weight, delay, rates, rule, slots, lower, wanted)
    return module.taps_backward(*operands)


_Settings = tuple[str, float, float, float, float, int]
"""Of the rule: mode, step, limit, tolerance; the lower bound of delays; slots of the records."""


class _Taps(torch.autograd.Function):
    """Of weight, delay and rates."""

    @staticmethod
    def forward(
        ctx: Any, settings: _Settings, backend: str | None, weight: Tensor, delay: Tensor,
        *rates: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        back, *weights = make_taps(weight, delay, list(rates), *settings, backend)
        ctx.settings, ctx.backend = settings, backend
        keep(ctx, (weight, delay), rates)
        ctx.mark_non_differentiable(back)
        return (back, *weights)

    @staticmethod
    @first_order
    def backward(ctx: Any, _: Any, *dweights: Tensor | None) -> tuple[Tensor | None, ...]:
        (weight, delay), rates = kept(ctx)
        wanted = list(ctx.needs_input_grad[2:])
        way = (*ctx.settings, wanted, ctx.backend)
        found = iter(make_taps_backward(list(dweights), weight, delay, rates, *way))
        return None, None, *[next(found) if want else None for want in wanted]


def taps(
    weight: Tensor,
    delay: Tensor,
    rates: Sequence[Tensor],
    rule: ReadRule,
    slots: int,
    lower: float = 0.0,
    *,
    links: Links | None = None,
    backend: str | None = None,
) -> Taps:
    """Each connection as one tap: ``ceil(delay / step)`` and ``weight * exp(-fraction * rate)``.

    The second component of a pair counts negatively; in the mode ``alpha`` both count positively,
    and the first, which is the rise, is also multiplied by ``fraction * rate``.
    ``weight [O, I]``; ``delay [O, I]``, ``[1, I]`` where the outputs share those of the inputs, or
    ``[O, 1]``; ``rates`` (steps over time constant, 0-d or ``[I]``) one for each component.
    Differentiable to all three; the delay is clamped to ``[lower, rule.limit]`` with zero gradient
    outside. With ``links`` only of these connections, ``[n]``.
    """
    if links is not None:
        weight, delay = links.taken(weight).unsqueeze(0), links.taken(delay).unsqueeze(0)
        rates = [rate.index_select(0, links.inputs) if rate.ndim else rate for rate in rates]
        found = taps(weight, delay, rates, rule, slots, lower, backend=backend)
        return Taps(found.back[0], tuple([weight[0] for weight in found.weights]), links)
    settings = (rule.mode, rule.step, rule.limit, rule.tolerance, lower, slots)
    # Packed rows, once for both passes.
    weight, delay = weight.contiguous(), delay.contiguous()
    if chained(weight, delay, *rates):
        backend = running(weight.device, backend)
        back, *weights = _Taps.apply(settings, backend, weight, delay, *distinct(rates))
    else:
        with without_graph():
            back, *weights = make_taps(weight, delay, list(rates), *settings, backend)
    return Taps(back, tuple(weights))
