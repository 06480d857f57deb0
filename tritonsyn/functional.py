"""Stateless functions: interpolations between two observations, and the operations on records.

The interpolations have the signature that :meth:`tritonsyn.RecordTensor.select` calls,
``f(prev_data, next_data, sample_at, step_time, **kwargs)``: ``prev_data`` is the observation
before the sample, ``next_data`` the one a ``step_time`` later, ``sample_at`` the time from the
first to the sample. All are plain tensor expressions, broadcast and differentiable.
"""

from collections.abc import Callable, Sequence
from functools import wraps

import torch

from . import checks, ops
from .checks import (
    check_coefficients,
    check_floating,
    check_input,
    check_records,
    check_rule,
    check_selector,
)
from .ops import Ring, pack_spikes, push, read, sequence_scan, unpack_spikes
from .values import PackedSpikes, ReadRule, Slot, record_size

__all__ = [
    "PackedSpikes",
    "ReadRule",
    "Ring",
    "delayed_linear",
    "double_exp_scan",
    "exp_scan",
    "interp_expdecay",
    "interp_expratedecay",
    "interp_linear",
    "interp_nearest",
    "interp_next",
    "interp_previous",
    "pack_spikes",
    "push",
    "read",
    "select",
    "select_scan",
    "step",
    "unpack_spikes",
]


def interp_previous(
    prev_data: torch.Tensor,
    next_data: torch.Tensor,
    sample_at: torch.Tensor,
    step_time: float,
    **kwargs: object,
) -> torch.Tensor:
    """The earlier observation: what was last known at the time of the sample."""
    return prev_data


def interp_next(
    prev_data: torch.Tensor,
    next_data: torch.Tensor,
    sample_at: torch.Tensor,
    step_time: float,
    **kwargs: object,
) -> torch.Tensor:
    """The later observation."""
    return next_data


def interp_nearest(
    prev_data: torch.Tensor,
    next_data: torch.Tensor,
    sample_at: torch.Tensor,
    step_time: float,
    **kwargs: object,
) -> torch.Tensor:
    """The closer observation; the earlier one in the middle."""
    return torch.where(sample_at / step_time > 0.5, next_data, prev_data)


def interp_linear(
    prev_data: torch.Tensor,
    next_data: torch.Tensor,
    sample_at: torch.Tensor,
    step_time: float,
    **kwargs: object,
) -> torch.Tensor:
    """On the straight line between them: ``prev + (next - prev) * sample_at / step_time``."""
    return prev_data + (next_data - prev_data) * (sample_at / step_time)


def interp_expdecay(
    prev_data: torch.Tensor,
    next_data: torch.Tensor,
    sample_at: torch.Tensor,
    step_time: float,
    *,
    time_constant: float | torch.Tensor,
    **kwargs: object,
) -> torch.Tensor:
    """The earlier observation, decayed since: ``prev * exp(-sample_at / time_constant)``."""
    return prev_data * torch.exp(-sample_at / time_constant)


def interp_expratedecay(
    prev_data: torch.Tensor,
    next_data: torch.Tensor,
    sample_at: torch.Tensor,
    step_time: float,
    *,
    rate_constant: float | torch.Tensor,
    **kwargs: object,
) -> torch.Tensor:
    """The earlier observation, decayed since: ``prev * exp(-sample_at * rate_constant)``."""
    return prev_data * torch.exp(-sample_at * rate_constant)


INTERPOLATIONS: dict[str, Callable[..., torch.Tensor]] = {
    "previous": interp_previous,
    "nearest": interp_nearest,
    "next": interp_next,
    "linear": interp_linear,
    "expdecay": interp_expdecay,
    "expratedecay": interp_expratedecay,
}
"""The known modes by name."""


@wraps(ops.step)
def step(
    x: torch.Tensor,
    ring: Ring,
    gain: torch.Tensor,
    decays: Sequence[torch.Tensor],
    *,
    graph: bool = True,
    backend: str | None = None,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    if not isinstance(ring, Ring):
        raise TypeError(f"ring must be a Ring, but is {ring!r:.80}")
    shape = check_records("ring.components", ring.components, ring.pointers)
    for component in ring.components:
        check_floating("ring.components", component)
    check_records("ring.spikes", (ring.spikes,), (ring.spike_pointer,), shape)
    if ring.spikes.dtype != torch.bool:
        raise TypeError(f"ring.spikes must be torch.bool, but is {ring.spikes.dtype}")
    device = ring.spikes.device
    check_input("x", x, shape[1:], device)
    check_coefficients("gain", (gain,), 1, shape, device)
    check_coefficients("decays", decays, len(ring.components), shape, device)
    return ops.step(x, ring, gain, decays, graph=graph, backend=backend)


@wraps(ops.select)
def select(
    records: Sequence[torch.Tensor],
    sel: torch.Tensor,
    rates: Sequence[torch.Tensor | None],
    pointers: Sequence[Slot],
    rule: ReadRule,
    *,
    backend: str | None = None,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    shape = check_records("records", records, pointers)
    check_rule(rule, rates)
    sel = check_selector("sel", sel, shape[1:], records[0].device)
    check_coefficients("rates", rates, len(records), shape, records[0].device)
    return ops.select(records, sel, rates, pointers, rule, backend=backend)


@wraps(ops.select_scan)
def select_scan(
    sequences: Sequence[torch.Tensor],
    sel: torch.Tensor,
    rates: Sequence[torch.Tensor | None],
    rule: ReadRule,
    steps: int,
    *,
    backend: str | None = None,
) -> torch.Tensor:
    if not isinstance(sequences, Sequence):
        raise TypeError(f"sequences must be one or two tensors, but is {sequences!r:.80}")
    rows = [check_floating("sequences", sequence).contiguous() for sequence in sequences]
    shape = check_records("sequences", rows, (0,) * len(rows))
    if not 1 <= checks.integer("steps", steps) <= shape[0]:
        raise ValueError(f"steps must be in 1 to {shape[0]}, the rows, but is {steps}")
    check_rule(rule, rates)
    sel = check_selector("sel", sel, shape[1:], rows[0].device)
    check_coefficients("rates", rates, len(rows), shape, rows[0].device)
    return ops.select_scan(rows, sel, rates, rule, steps, backend=backend)


def exp_scan(
    x: torch.Tensor | PackedSpikes,
    decay: float | torch.Tensor,
    gain: float | torch.Tensor = 1.0,
    initial: torch.Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""The single-exponential recurrence over a whole sequence, in one kernel.

    .. math:: y[t] = d\,y[t-1] + g\,x[t], \qquad y[-1] = y_0

    Args:
        x: the input ``[T, ...]``, bool, integer or floating, or spikes packed by
            :func:`pack_spikes`. T may be 0.
        decay: factor :math:`d` of a step; with ``gain`` a number or a tensor broadcastable to
            ``x.shape[1:]``. Meant for :math:`|d| \le 1`: where a sequence is cut into chunks,
            powers of a larger one may overflow to NaN before the sequence itself does.
        gain: factor :math:`g` of the input.
        initial: :math:`y_0`, of shape ``x.shape[1:]``; None for rest.
        dtype: of the output; that of a floating ``x``, else of ``initial``, else the default.
        backend: ``"auto"``, ``"triton"``, ``"reference"``; None for the package's default.

    Returns:
        ``(y, final)``: the sequence, shaped like ``x``, and its last value, which continues it:
        ``final`` is float64 for a float64 output and float32 otherwise, as the recurrence itself.

    Differentiable (first order) to ``x``, ``decay``, ``gain`` and ``initial``. For the gradient to
    ``x`` alone nothing of the size of ``x`` is kept.

    Raises:
        TypeError, ValueError: wrong kind, shape or device.
    """
    y, (final,) = sequence_scan(x, gain, [decay], [initial], dtype=dtype, backend=backend)
    return y, final


def double_exp_scan(
    x: torch.Tensor | PackedSpikes,
    decay: float | torch.Tensor,
    rise: float | torch.Tensor,
    gain: float | torch.Tensor = 1.0,
    initial: tuple[torch.Tensor, torch.Tensor] | None = None,
    *,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    r"""The double-exponential recurrence over a whole sequence, in one kernel.

    .. math::
        P[t] = d\,P[t-1] + g\,x[t], \quad M[t] = r\,M[t-1] + g\,x[t], \quad y[t] = P[t] - M[t]

    ``initial`` is the pair :math:`(P[-1], M[-1])`; returns ``(y, (P[T-1], M[T-1]))``. Everything
    else as :func:`exp_scan`.
    """
    initials = (None, None) if initial is None else initial
    y, (pos, neg) = sequence_scan(x, gain, [decay, rise], initials, dtype=dtype, backend=backend)
    return y, (pos, neg)


def delayed_linear(
    x: torch.Tensor | PackedSpikes,
    weight: torch.Tensor,
    delay: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    decay: float | torch.Tensor,
    rise: float | torch.Tensor | None = None,
    gain: float | torch.Tensor = 1.0,
    step_time: float = 1.0,
    max_delay: float,
    initial: tuple[torch.Tensor, ...] | None = None,
    strategy: str = "auto",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    r"""Exponential synapses and a dense layer with a delay on every connection.

    .. math:: y[t, b, o] = \mathrm{bias}_o + \sum_i w_{oi}\, I_{bi}(t\,\Delta t - d_{oi})

    where :math:`I` is what :func:`exp_scan`, or with ``rise`` :func:`double_exp_scan`, gives.

    Args:
        x: the input ``[T, B, in]``, bool, integer or floating, or packed spikes. T >= 1.
        weight: ``[out, in]``.
        delay: ``[out, in]``, in the unit of ``step_time``; clamped to ``[0, max_delay]`` with zero
            gradient outside.
        bias: ``[out]`` or None.
        decay, rise, gain: factors of a step and of the input, numbers or ``[in]``.
        step_time: length of a step.
        max_delay: longest delay.
        initial: the last K values of each component, ``[K, B, in]`` oldest first, with
            ``K = ceil(max_delay / step_time) + 1``; None for rest.
        strategy: as for :class:`tritonsyn.DelayedLinear`.
        dtype: of the output; that of a floating ``x``, else of ``initial``, else the default.
        backend: ``"auto"``, ``"triton"``, ``"reference"``; None for the package's default.

    Returns:
        ``(y, final)``: ``[T, B, out]``, and what continues it as ``initial``.

    Differentiable (first order) to everything floating.

    Raises:
        TypeError, ValueError: wrong kind, shape, device or strategy.
    """
    ops.check_layer(x, weight, delay, bias)
    decays = (decay,) if rise is None else (decay, rise)
    for name, factor in zip(("decay", "rise"), decays, strict=False):
        if not isinstance(factor, torch.Tensor):
            checks.positive(name, factor)
    step_time = checks.positive("step_time", step_time)
    max_delay = checks.nonnegative("max_delay", max_delay)
    slots = record_size(step_time, max_delay, inclusive=True)
    rule = ReadRule("expdecay", step_time, max_delay)
    y, final = ops.delayed_linear(
        x, weight, delay, gain, decays, initial, rule, slots,
        strategy=strategy, dtype=dtype, backend=backend,
    )  # fmt: skip
    return (y if bias is None else (y + bias).to(y.dtype)), final
