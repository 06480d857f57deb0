"""Stateless functions: sequences, delayed layers, steps, reads of records, and interpolations.

The interpolations have the signature that :meth:`tritonsyn.RecordTensor.select` calls,
``f(prev_data, next_data, sample_at, step_time, **kwargs)``: ``prev_data`` is the observation
before the sample, ``next_data`` the one a ``step_time`` later, ``sample_at`` the time from the
first to the sample. All are plain tensor expressions, broadcast and differentiable.

The operations check their arguments before they change anything, and name the one that they refuse.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import checks, ops
from .checks import Constant
from .ops import Ring
from .ops.common import as_tensor
from .physics import usable_time_constant
from .values import Dynamics, PackedSpikes, ReadRule, Slot, compute_dtype, highest_rate, record_size

__all__ = [
    "PackedSpikes",
    "ReadRule",
    "Ring",
    "alpha_scan",
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
    prev_data: Tensor, next_data: Tensor, sample_at: Tensor, step_time: float, **kwargs: object
) -> Tensor:
    """The earlier observation: what was last known at the time of the sample.

    Args:
        prev_data: the earlier observation, of any real dtype.
        next_data: the later one; not used.
        sample_at: time from the earlier observation to the sample; not used.
        step_time: time between both; not used.
        kwargs: ignored.

    Returns:
        ``prev_data`` itself.

    Raises:
        TypeError: ``prev_data`` is not a real tensor.
    """
    checks.check_real("prev_data", prev_data)
    return prev_data


def interp_next(
    prev_data: Tensor, next_data: Tensor, sample_at: Tensor, step_time: float, **kwargs: object
) -> Tensor:
    """The later observation.

    Args:
        prev_data: the earlier observation; not used.
        next_data: the later one, of any real dtype.
        sample_at: time from the earlier observation to the sample; not used.
        step_time: time between both; not used.
        kwargs: ignored.

    Returns:
        ``next_data`` itself.

    Raises:
        TypeError: ``next_data`` is not a real tensor.
    """
    checks.check_real("next_data", next_data)
    return next_data


def interp_nearest(
    prev_data: Tensor, next_data: Tensor, sample_at: Tensor, step_time: float, **kwargs: object
) -> Tensor:
    """The closer observation; the earlier one in the middle.

    Args:
        prev_data: the earlier observation, of any real dtype.
        next_data: the later one, likewise.
        sample_at: time from the earlier observation to the sample, floating.
        step_time: time between both, in the unit of ``sample_at``, > 0.
        kwargs: ignored.

    Returns:
        One of both for each element. Times get no gradient.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind, device, shape or range.
    """
    _check_interpolated(sample_at, step_time=step_time, prev_data=prev_data, next_data=next_data)
    return torch.where(sample_at / step_time > 0.5, next_data, prev_data)


def interp_linear(
    prev_data: Tensor, next_data: Tensor, sample_at: Tensor, step_time: float, **kwargs: object
) -> Tensor:
    """The straight line between both: ``prev + (next - prev) * sample_at / step_time``.

    Args:
        prev_data: the earlier observation, integer or floating.
        next_data: the later one, likewise.
        sample_at: time from the earlier observation to the sample, floating.
        step_time: time between both, in the unit of ``sample_at``, > 0.
        kwargs: ignored.

    Returns:
        The values. Differentiable to observations and times.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind, device, shape or range, or an
            observation is bool.
    """
    _check_interpolated(sample_at, step_time=step_time, prev_data=prev_data, next_data=next_data)
    for name, value in (("prev_data", prev_data), ("next_data", next_data)):
        if value.dtype == torch.bool:
            raise TypeError(f"{name} is torch.bool, between whose values there are none")
    return prev_data + (next_data - prev_data) * (sample_at / step_time)


def interp_expdecay(
    prev_data: Tensor,
    next_data: Tensor,
    sample_at: Tensor,
    step_time: float,
    *,
    time_constant: float | Tensor,
    **kwargs: object,
) -> Tensor:
    """The earlier observation, decayed since: ``prev * exp(-sample_at / time_constant)``.

    Args:
        prev_data: the earlier observation, of any real dtype.
        next_data: the later one; not used.
        sample_at: time from the earlier observation to the sample, floating.
        step_time: time between both, in the unit of ``sample_at``, > 0. It bounds the shortest time
            constant.
        time_constant: in the unit of ``sample_at``: a number > 0, or a tensor, whose values are not
            checked. One below :math:`2^{-32}` steps (float64: :math:`2^{-256}`) counts as that.
        kwargs: ignored.

    Returns:
        The values. Differentiable to ``prev_data``, times and time constant.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind, device, shape or range.
    """
    _check_interpolated(sample_at, prev_data=prev_data, time_constant=time_constant)
    step, dtype = checks.positive("step_time", step_time), compute_dtype(sample_at.dtype)
    return prev_data * torch.exp(-sample_at / usable_time_constant(time_constant, step, dtype))


def interp_expratedecay(
    prev_data: Tensor,
    next_data: Tensor,
    sample_at: Tensor,
    step_time: float,
    *,
    rate_constant: float | Tensor,
    **kwargs: object,
) -> Tensor:
    """The earlier observation, decayed since: ``prev * exp(-sample_at * rate_constant)``.

    Args:
        prev_data: the earlier observation, of any real dtype.
        next_data: the later one; not used.
        sample_at: time from the earlier observation to the sample, floating.
        step_time: time between both; not used.
        rate_constant: one over the unit of ``sample_at``: a number > 0, or a tensor, whose values
            are not checked.
        kwargs: ignored.

    Returns:
        The values. Differentiable to ``prev_data``, times and rate.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind, device, shape or range.
    """
    _check_interpolated(sample_at, prev_data=prev_data, rate_constant=rate_constant)
    return prev_data * torch.exp(-sample_at * rate_constant)


def _check_interpolated(sample_at: Tensor, **given: object) -> None:
    """All fit the times of the samples; the values of tensors are not read."""
    shape = checks.check_floating("sample_at", sample_at).shape
    for name, value in given.items():
        if isinstance(value, Tensor) or name.endswith("_data"):
            tensor = checks.check_real(name, value)
            checks.check_device(name, tensor, sample_at.device, owner="sample_at")
            others = "sample_at and what it is read from"
            shape = checks.check_broadcasts(name, tensor, shape, others)
        else:
            checks.positive(name, value)


INTERPOLATIONS: dict[str, Callable[..., Tensor]] = {
    "previous": interp_previous,
    "nearest": interp_nearest,
    "next": interp_next,
    "linear": interp_linear,
    "expdecay": interp_expdecay,
    "expratedecay": interp_expratedecay,
}
"""The known modes by name."""


def push(record: Tensor, value: Tensor, slot: Slot, *, backend: str | None = None) -> Tensor:
    """Writes an observation into a slot of a record, in place.

    Args:
        record: ``[K, B, ...]``, contiguous; float64, float32, bfloat16, float16 or bool.
        value: ``[B, ...]`` of any real dtype, converted; a bool record holds ``value != 0``.
        slot: a number in 0 to K - 1, or a 0-d integer tensor on the record's device, whose value is
            not checked.
        backend: ``"auto"``, ``"triton"``, ``"reference"``; None for the package's default.

    Returns:
        The record, without a graph where gradients are disabled. Differentiable (first order) to
        the value and to what the other slots hold.

    Raises:
        TypeError, ValueError, IndexError: wrong kind, shape or device, or no such slot.
    """
    checks.check_record("record", record)
    checks.check_input("value", value, record.shape[1:], record.device)
    checks.check_slot("slot", slot, record.shape[0])
    return ops.push(record, value, slot, backend=backend)


def read(record: Tensor, slot: Slot) -> tuple[Tensor, Tensor]:
    """A copy of one slot of a record.

    Args:
        record: ``[K, B, ...]``, as for :func:`push`.
        slot: a number in 0 to K - 1, or a 0-d integer tensor, as for :func:`push`.

    Returns:
        ``(record, value)``: the record, whose graph has the read from now on, and the observation
        ``[B, ...]`` in its dtype. Differentiable (first order) to the record.

    Raises:
        TypeError, ValueError, IndexError: not a record, or no such slot.
    """
    checks.check_record("record", record)
    checks.check_slot("slot", slot, record.shape[0])
    return ops.read(record, slot)


def step(
    x: Tensor,
    ring: Ring,
    gain: Tensor,
    decays: Sequence[Tensor],
    *,
    coupling: Tensor | None = None,
    graph: bool = True,
    backend: str | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    r"""Advances an exponential synapse by one step, in place.

    .. math:: C_c[t] = d_c\,C_c[t-1] + g\,x[t]

    The current is :math:`C_1`, of two components :math:`C_1 - C_2`. Two *coupled* components share
    :math:`d`: the first, :math:`A`, takes the input, and the second is the current:

    .. math:: I[t] = d\,(I[t-1] + r\,A[t-1])

    Args:
        x: the input ``[B, *shape]``, bool, integer or floating.
        ring: the records. That of spikes takes ``x != 0``. Pointers stay where they are, unless
            the ring has ``arrivals``.
        gain: factor :math:`g` of the input, a tensor, 0-d or ``[*shape]``, in nA.
        decays: factor :math:`d_c` of each component in a step, 0-d or ``[*shape]``; one for two
            coupled components.
        coupling: :math:`r` of two coupled components, 0-d or ``[*shape]``; None for others.
        graph: whether to record an autograd graph where gradients are enabled.
        backend: ``"auto"``, ``"triton"``, ``"reference"``; None for the package's default.

    Returns:
        ``(current, state)``: the current ``[B, *shape]`` in the dtype of the records; and the
        records of the components, followed by the carries if there are any. Differentiable (first
        order) to x, factors, records and carries; with carries a step does not see the newest slots
        of the records.

    Raises:
        TypeError, ValueError, IndexError: wrong kind, shape or device, or no such slot.
    """
    if not isinstance(ring, Ring):
        raise TypeError(f"ring must be a Ring, but is {checks.shown(ring)}")
    shape = checks.check_records("ring.components", ring.components, ring.pointers)
    for component in ring.components:
        checks.check_floating("ring.components", component)
    checks.check_records("ring.spikes", (ring.spikes,), (ring.spike_pointer,), shape)
    if ring.spikes.dtype != torch.bool:
        raise TypeError(f"ring.spikes must be torch.bool, but is {ring.spikes.dtype}")
    device = ring.spikes.device
    if ring.arrivals is not None:
        checks.check_input("ring.arrivals", ring.arrivals, (), device)
        if ring.arrivals.dtype != torch.int32:
            raise TypeError(f"ring.arrivals must be torch.int32, but is {ring.arrivals.dtype}")
    if ring.carries is not None:
        _check_as_many("ring.carries", ring.carries, len(ring.components))
        for carry in ring.carries:
            checks.check_carry("ring.carries", carry, ring.components[0])
    checks.check_step_input("x", x, shape[1:], device, scan="exp_scan, or another scan,")
    graph = checks.flag("graph", graph)
    coupled = coupling is not None
    counts = {"gain": 1, "decays": len(ring.components) - coupled, "coupling": 1}
    factors = {"gain": (gain,), "decays": decays} | ({"coupling": (coupling,)} if coupled else {})
    constants: list[Any] = []
    for name, values in factors.items():
        constants += checks.check_coefficients(name, values, counts[name], ring.components[0])
    dynamics = Dynamics.of(constants, coupled)
    return ops.step(x, ring, dynamics, graph=graph, backend=backend)


def select(
    records: Sequence[Tensor],
    sel: Tensor | float,
    rates: Sequence[Tensor | None],
    pointers: Sequence[Slot],
    rule: ReadRule,
    *,
    backend: str | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Values of a record, or of the first minus the second, at times before the present.

    Args:
        records: one or two, ``[K, B, *shape]`` each, as for :func:`push`.
        sel: the times ``[1 or B, *shape]`` or ``[1 or B, *shape, D]``, in the unit of ``rule``; any
            axis of ``shape`` may be 1, and a number or a 0-d tensor is one time for all.
        rates: step over time constant of each record, a tensor, 0-d or ``[*shape]``. The modes
            ``"expdecay"`` and ``"alpha"`` need them, others take None.
        pointers: for each record the slot that is written next; time 0 reads the one before it.
        rule: how a time becomes a value.
        backend: ``"auto"``, ``"triton"``, ``"reference"``; None for the package's default.

    Returns:
        ``(value, records)``: ``[B, *shape]`` or ``[B, *shape, D]`` in the dtype of the records, and
        the records, whose graph has the read from now on. Differentiable (first order) to records,
        times and rates.

    Raises:
        TypeError, ValueError, IndexError: wrong kind, shape or device, or no such slot.
    """
    checks.check_records("records", records, pointers)
    sel, rates = _checked_read(sel, rates, rule, records)
    return ops.select(records, sel, rates, pointers, rule, backend=backend)


def select_scan(
    sequences: Sequence[Tensor],
    sel: Tensor | float,
    rates: Sequence[Tensor | None],
    rule: ReadRule,
    steps: int,
    *,
    per_step: bool = False,
    backend: str | None = None,
) -> Tensor:
    """The read of :func:`select` at each of the last ``steps`` steps of a sequence.

    Args:
        sequences: one or two ``[K - 1 + steps, B, *shape]``, floating, oldest first; step t reads
            the K observations from row t on.
        sel: the times, as for :func:`select`, the same at every step.
        rates: step over time constant of each sequence, or None, as for :func:`select`.
        rule: how a time becomes a value.
        steps: how many.
        per_step: the times of step t are ``sel[t]``; so ``sel`` is a tensor ``[steps, ...]``.
        backend: ``"auto"``, ``"triton"``, ``"reference"``; None for the package's default.

    Returns:
        ``[steps, B, *shape]`` or ``[steps, B, *shape, D]``, in the dtype of the sequences.
        Differentiable (first order) to sequences, times and rates.

    Raises:
        TypeError, ValueError: wrong kind, shape or device, or more steps than rows.
    """
    if not isinstance(sequences, Sequence):
        raise TypeError(f"sequences must be one or two tensors, but is {checks.shown(sequences)}")
    rows = [checks.check_floating("sequences", s).contiguous().resolve_neg() for s in sequences]
    shape = checks.check_records("sequences", rows, (0,) * len(rows))
    steps = checks.integer("steps", steps)
    if not 1 <= steps <= shape[0]:
        raise ValueError(f"steps must be in 1 to {shape[0]}, the rows, but is {steps}")
    per_step = checks.flag("per_step", per_step)
    sel, rates = _checked_read(sel, rates, rule, rows, steps if per_step else None)
    how: dict[str, Any] = {"per_step": per_step, "backend": backend}
    return ops.select_scan(rows, sel, rates, rule, steps, **how)


def _checked_read(
    sel: Tensor | float,
    rates: Sequence[Tensor | None],
    rule: ReadRule,
    records: Sequence[Tensor],
    steps: int | None = None,
) -> tuple[Tensor, list[Tensor | None]]:
    """Times and rates for a read of these records, once all that it takes fits."""
    first = records[0]
    rates = checks.check_coefficients("rates", rates, len(records), first, or_none=True)
    checks.check_rule(rule, rates, first.dtype)
    shape, dtype = first.shape[1:], compute_dtype(first.dtype)
    return checks.check_selector("sel", sel, shape, first.device, dtype, steps), rates


def pack_spikes(x: Tensor, *, backend: str | None = None) -> PackedSpikes:
    """Spikes as bits, 32 synapses per word.

    Args:
        x: ``[T, B, *shape]``, dense, of any real dtype; a spike is ``x != 0``.
        backend: ``"auto"``, ``"triton"``, ``"reference"``; None for the package's default.

    Returns:
        The packed spikes, which scans and layers take in place of dense ones.

    Raises:
        TypeError, ValueError: not a dense tensor, or too few axes.
    """
    if checks.check_real("x", x).ndim < 3:
        raise checks.misshapen("x", x, "(T, B, *shape)")
    return ops.pack_spikes(x, backend=backend)


def unpack_spikes(packed: PackedSpikes) -> Tensor:
    """Inverse of :func:`pack_spikes`.

    Args:
        packed: what that function returned.

    Returns:
        The spikes, bool ``[T, B, *shape]``.

    Raises:
        TypeError, ValueError: not packed spikes, or words that contradict the shape.
    """
    checks.check_packed("packed", packed)
    return packed.dense()


def exp_scan(
    x: Tensor | PackedSpikes,
    decay: float | Tensor,
    gain: float | Tensor = 1.0,
    initial: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""The single-exponential recurrence over a whole sequence, in one kernel.

    .. math:: y[t] = d\,y[t-1] + g\,x[t], \qquad y[-1] = y_0

    With :math:`d = e^{-\Delta t / \tau}` and :math:`g = Q / \tau` that is the current of
    :class:`~tritonsyn.SingleExponentialCurrent`.

    Args:
        x: the input ``[T, ...]``, bool, integer or floating, or spikes packed by
            :func:`pack_spikes`. T may be 0.
        decay: factor :math:`d` of a step, a number or a tensor broadcastable to ``x.shape[1:]``.
            Meant for :math:`|d| \le 1`: where a sequence is cut into chunks, powers of a larger one
            may overflow to NaN before the sequence itself does.
        gain: factor :math:`g` of the input, as ``decay``, in the unit of the output.
        initial: :math:`y_0`, of shape ``x.shape[1:]``, floating; None for zeros.
        dtype: of the output. None: the dtype of a floating ``x``, else of ``initial``, else torch's
            default.
        backend: ``"auto"``, ``"triton"``, ``"reference"``; None for the package's default.

    Returns:
        ``(y, final)``: the sequence, shaped like ``x``, and its last value, which continues it:
        ``final`` is float64 for a float64 output and float32 otherwise, as the arithmetic.
        Differentiable (first order) to ``x``, ``decay``, ``gain`` and ``initial``. For the gradient
        to ``x`` alone nothing of the size of ``x`` is kept.

    Raises:
        TypeError, ValueError: wrong kind, shape or device.

    Example:
        >>> import torch
        >>> from tritonsyn import functional
        >>> functional.exp_scan(torch.tensor([[1.0], [0.0], [1.0]]), 0.5)
        (tensor([[1.0000],
                [0.5000],
                [1.2500]]), tensor([1.2500]))
    """
    constants = {"gain": gain, "decay": decay}
    y, (final,) = _sequence_scan(x, constants, (initial,), dtype, backend)
    return y, final


def double_exp_scan(
    x: Tensor | PackedSpikes,
    decay: float | Tensor,
    rise: float | Tensor,
    gain: float | Tensor = 1.0,
    initial: tuple[Tensor, Tensor] | None = None,
    *,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    r"""The double-exponential recurrence over a whole sequence, in one kernel.

    .. math::
        P[t] = d\,P[t-1] + g\,x[t], \quad M[t] = r\,M[t-1] + g\,x[t], \quad y[t] = P[t] - M[t]

    With :math:`d = e^{-\Delta t / \tau_d}`, :math:`r = e^{-\Delta t / \tau_r}` and
    :math:`g = Q / (\tau_d - \tau_r)` that is the current of
    :class:`~tritonsyn.DoubleExponentialCurrent`.

    Args:
        x: the input ``[T, ...]``, or packed spikes, as for :func:`exp_scan`.
        decay: factor :math:`d` of the first component in a step, a number or a tensor broadcastable
            to ``x.shape[1:]``.
        rise: factor :math:`r` of the second component, as ``decay``.
        gain: factor :math:`g` of the input, as ``decay``, in the unit of the output.
        initial: the pair :math:`(P[-1], M[-1])`, each of shape ``x.shape[1:]``; None for zeros.
        dtype: of the output; None as for :func:`exp_scan`.
        backend: ``"auto"``, ``"triton"``, ``"reference"``; None for the package's default.

    Returns:
        ``(y, (P[T-1], M[T-1]))``: the sequence, shaped like ``x``, and the last values of both
        components, which continue it, in the dtype of the arithmetic. Differentiable (first order)
        to all that is floating.

    Raises:
        TypeError, ValueError: wrong kind, shape or device.
    """
    constants = {"gain": gain, "decay": decay, "rise": rise}
    return _sequence_scan(x, constants, initial, dtype, backend)


def alpha_scan(
    x: Tensor | PackedSpikes,
    decay: float | Tensor,
    ratio: float | Tensor,
    gain: float | Tensor = 1.0,
    initial: tuple[Tensor, Tensor] | None = None,
    *,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    r"""The recurrence of the alpha function over a whole sequence, in one kernel.

    .. math::
        A[t] = d\,A[t-1] + g\,x[t], \quad I[t] = d\,(I[t-1] + r\,A[t-1]), \quad y[t] = I[t]

    With :math:`r = \Delta t / \tau`, :math:`d = e^{-r}` and :math:`g = Q / \tau` that is the
    current of :class:`~tritonsyn.AlphaCurrent`: a spike gives
    :math:`Q\,s / \tau^2\,e^{-s / \tau}` a time :math:`s` after it.

    Args:
        x: the input ``[T, ...]``, or packed spikes, as for :func:`exp_scan`.
        decay: factor :math:`d` of both states in a step, a number or a tensor broadcastable to
            ``x.shape[1:]``.
        ratio: :math:`r`, the part of the first state that joins the second, as ``decay``.
        gain: factor :math:`g` of the input, as ``decay``, in the unit of the output.
        initial: the pair :math:`(A[-1], I[-1])`, each of shape ``x.shape[1:]``; None for zeros.
        dtype: of the output; None as for :func:`exp_scan`.
        backend: ``"auto"``, ``"triton"``, ``"reference"``; None for the package's default.

    Returns:
        ``(y, (A[T-1], I[T-1]))``: the sequence, shaped like ``x``, and the last values of both
        states, which continue it, in the dtype of the arithmetic. Differentiable (first order) to
        all that is floating.

    Raises:
        TypeError, ValueError: wrong kind, shape or device.
    """
    constants = {"gain": gain, "decay": decay, "ratio": ratio}
    return _sequence_scan(x, constants, initial, dtype, backend)


def _sequence_scan(
    x: Tensor | PackedSpikes,
    constants: dict[str, Constant],
    initials: Sequence[Tensor | None] | None,
    dtype: torch.dtype | None,
    backend: str | None,
) -> tuple[Tensor, Any]:
    """A scan of a sequence ``[T, ...]`` of any rank: ``(y, final component values)``.

    The last axes, which any coefficient spans, are the synapses, and the others the batch.
    """
    if ops.any_distributed(x, *constants.values(), *_as_many(initials)):
        return _scan_on_shards(x, constants, initials, dtype, backend)
    checks.check_sequence(x)
    shape = tuple(x.shape)
    states = len(constants) - 1
    initials = (None,) * states if initials is None else initials
    _check_as_many("initial", initials, states)
    for initial in initials:
        if initial is not None:
            checks.check_floating("the initial state", initial)
            checks.check_input("the initial state", initial, shape[1:], x.device, owner="input")
    dtype = _output_dtype(dtype, x, *initials)
    acc = compute_dtype(dtype)
    coefficients = _as_tensors(constants, acc, x.device)
    inner = min(max(value.ndim for value in coefficients.values()), len(shape) - 1)
    if isinstance(x, PackedSpikes):
        # Words are of whole rows of the batch: coefficients that differ along it need the spikes.
        x, inner = (x, len(shape) - 2) if inner <= len(shape) - 2 else (x.dense(), inner)
    synapses = shape[len(shape) - inner :]
    rows = math.prod(shape[1 : len(shape) - inner]), math.prod(synapses)
    checks.check_row("x", *synapses)
    dynamics = _dynamics(coefficients, synapses)
    starts = [None if s is None else s.to(acc).reshape(rows) for s in initials]
    flat = x if isinstance(x, PackedSpikes) else x.reshape(shape[0], *rows)
    last = min(shape[0], 1)
    y, finals = ops.scan(flat, dynamics, starts, last=last, dtype=dtype, backend=backend)
    if not last:
        finals = [
            torch.zeros(rows, dtype=acc, device=x.device) if s is None else s.clone()
            for s in starts
        ]
    return y.view(shape), tuple(final.reshape(shape[1:]) for final in finals)


def _scan_on_shards(
    x: Any,
    constants: dict[str, Constant],
    initials: Sequence[Tensor | None] | None,
    dtype: torch.dtype | None,
    backend: str | None,
) -> tuple[Tensor, Any]:
    """The same of ``DTensor``, in parts of the batch or of the synapses."""
    axes: list[Any] = ["time", *range(1, len(x.shape))]
    states = len(constants) - 1
    initials = [None] * states if initials is None else initials
    _check_as_many("initial", initials, states)
    operands = [ops.Operand("x", x, axes)]
    for name, value in constants.items():
        operands.append(ops.Operand(name, value, ops.broadcast_axes(value, axes)))
    operands += [ops.Operand("the initial state", initial, axes[1:]) for initial in initials]

    def call(x: Tensor, *values: Any) -> Sequence[Tensor]:
        own = dict(zip(constants, values[: states + 1], strict=True))
        y, finals = _sequence_scan(x, own, values[states + 1 :], dtype, backend)
        return y, *finals

    results = [ops.Operand("y", None, axes)]
    results += [ops.Operand("final", None, axes[1:])] * states
    allowed: dict[Any, str] = {axis: f"axis {axis} of x" for axis in axes[1:]}
    y, *finals = ops.on_shards(call, operands, results, allowed)
    return y, tuple(finals)


def _as_many(values: object) -> Sequence[Any]:
    """The tensors of an initial state; none of what is no sequence, which is judged later."""
    return values if isinstance(values, Sequence) else ()


def _check_as_many(name: str, values: object, components: int) -> None:
    if not isinstance(values, Sequence) or len(values) != components:
        raise ValueError(f"{name} must hold {components} tensors, but is {checks.shown(values)}")


def _output_dtype(dtype: torch.dtype | None, *sources: Tensor | PackedSpikes | None) -> torch.dtype:
    """The dtype asked for, else that of the first floating tensor, else the default."""
    tensors = [source for source in sources if isinstance(source, Tensor)]
    floating = [tensor.dtype for tensor in tensors if tensor.is_floating_point()]
    return checks.record_dtype(floating[0] if dtype is None and floating else dtype)


def _as_tensors(
    constants: dict[str, Constant], dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """Constants that hold values, as tensors without leading axes of one element."""
    made = {}
    for name, value in constants.items():
        checks.check_coefficient(name, value, dtype, device)
        tensor = as_tensor(value, dtype, device)
        while tensor.shape[:1] == (1,):
            tensor = tensor[0]
        made[name] = tensor
    return made


def _dynamics(coefficients: dict[str, Tensor], synapses: tuple[int, ...]) -> Dynamics:
    """The dynamics of coefficients that become 0-d or ``[N]``; a ratio couples the states."""
    for name, value in coefficients.items():
        checks.check_broadcast(name, value, synapses)
    made = [v.expand(synapses).reshape(-1) if v.ndim else v for v in coefficients.values()]
    return Dynamics.of(made, coupled="ratio" in coefficients)


def delayed_linear(
    x: Tensor | PackedSpikes,
    weight: Tensor,
    delay: Tensor,
    bias: Tensor | None = None,
    *,
    decay: float | Tensor,
    rise: float | Tensor | None = None,
    ratio: float | Tensor | None = None,
    gain: float | Tensor = 1.0,
    step_time: float = 1.0,
    max_delay: float,
    initial: tuple[Tensor, ...] | None = None,
    strategy: str = "auto",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    r"""Exponential synapses and a dense layer with a delay on every connection.

    .. math:: y[t, b, o] = \mathrm{bias}_o + \sum_i w_{oi}\, I_{bi}(t\,\Delta t - d_{oi})

    where :math:`I` is what :func:`exp_scan`, with ``rise`` :func:`double_exp_scan`, or with
    ``ratio`` :func:`alpha_scan` gives. Between steps it decays as there.

    Args:
        x: the input ``[T, B, in]``, bool, integer or floating, or packed spikes. T >= 1.
        weight: ``[out, in]``.
        delay: ``[out, in]``, or where connections share them ``[1, in]`` or ``[out, 1]``, in the
            unit of ``step_time``; clamped to ``[0, max_delay]`` with zero gradient outside.
        bias: ``[out]`` or None.
        decay: factor of a step, a number > 0 or a tensor, 0-d or ``[in]``.
        rise: factor of the second component, as ``decay``; None for one component.
        ratio: coupling of an alpha function, as ``decay``; None for none. Not with ``rise``.
        gain: factor of the input, a number or a tensor, 0-d or ``[in]``.
        step_time: length of a step, > 0.
        max_delay: longest delay, in the unit of ``step_time``, >= 0.
        initial: the last K values of each component, ``[K, B, in]`` oldest first, with
            ``K = ceil(max_delay / step_time) + 1``; None for zeros.
        strategy: ``"auto"``, ``"shift"``, ``"gemm"``, ``"bits"`` or ``"events"``, as for
            :class:`tritonsyn.DelayedLinear`.
        dtype: of the output. None: the dtype of a floating ``x``, else of ``initial``, else torch's
            default.
        backend: ``"auto"``, ``"triton"``, ``"reference"``; None for the package's default.

    Returns:
        ``(y, final)``: ``[T, B, out]``, and what continues it as ``initial``: a tuple of one tensor
        ``[K, B, in]`` for each component, in the dtype of the output. Differentiable (first order)
        to all that is floating.

    Raises:
        TypeError, ValueError: wrong kind, shape, device or strategy.
    """
    constants_given = {"gain": gain, "decay": decay, "rise": rise, "ratio": ratio}
    if ops.any_distributed(x, weight, delay, bias, *constants_given.values(), *_as_many(initial)):
        how = {"step_time": step_time, "max_delay": max_delay, "strategy": strategy}
        how |= {"dtype": dtype, "backend": backend}
        return _layer_on_shards(x, weight, delay, bias, constants_given, initial, how)
    checks.check_layer(x, weight, delay, bias)
    if rise is not None and ratio is not None:
        raise ValueError("rise and ratio belong to different synapses: give at most one of them")
    optional = {"rise": rise, "ratio": ratio}
    given = {name: value for name, value in optional.items() if value is not None}
    constants = {"gain": gain, "decay": decay, **given}
    for name, factor in constants.items():
        if name != "gain" and not isinstance(factor, Tensor):
            checks.positive(name, factor)
    step_time = checks.step_time("step_time", step_time)
    max_delay = checks.nonnegative("max_delay", max_delay)
    slots = record_size(step_time, max_delay, inclusive=True)
    if initial is not None:
        _check_as_many("initial", initial, len(constants) - 1)
    size = slots, *x.shape[1:]
    for i, history in enumerate(initial or ()):
        checks.check_input(f"initial[{i}]", history, size, x.device)
    dtype = _output_dtype(dtype, x, *(initial or ()))
    dynamics = _dynamics(_as_tensors(constants, compute_dtype(dtype), x.device), size[2:])
    strategy = checks.check_strategy(strategy, x, dynamics.decays)
    rates = [_rate(dynamics.decay(state)) for state in range(dynamics.states)]
    rule = ReadRule("expdecay" if ratio is None else "alpha", step_time, max_delay)
    past = None
    if initial is not None:
        past = ops.Past(initial, [history[-1].to(dynamics.gain.dtype) for history in initial])
    run = ops.Run(x, dynamics, past, slots, dtype, backend)
    shared = ops.shared(weight, delay, rates, rule) if strategy == "auto" else None
    if shared is not None:
        y, tails = ops.project_shared(run, shared)
    else:
        taps = ops.taps(weight, delay, rates, rule, slots, backend=backend)
        y, tails = ops.project_sequence(run, taps, strategy=strategy)
    y = y.to(dtype)
    before = initial or [y.new_zeros(size)] * len(tails)
    final = tuple(
        torch.cat((old[new.shape[0] :].to(dtype), new.to(dtype)))
        for old, new in zip(before, tails, strict=True)
    )
    return (y if bias is None else (y + bias).to(dtype)), final


def _layer_on_shards(
    x: Any,
    weight: Any,
    delay: Any,
    bias: Any,
    constants: dict[str, Any],
    initial: tuple[Tensor, ...] | None,
    how: dict[str, Any],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A delayed layer of ``DTensor``, in parts of the batch or of the outputs."""
    connections = ("out", "in")
    operands = [ops.Operand("x", x, ("time", "batch", "in"))]
    operands.append(ops.Operand("weight", weight, connections))
    operands.append(ops.Operand("delay", delay, ops.broadcast_axes(delay, connections)))
    operands.append(ops.Operand("bias", bias, ("out",)))
    for name, value in constants.items():
        operands.append(ops.Operand(name, value, ops.broadcast_axes(value, ("in",))))
    history = ("slot", "batch", "in")
    operands += [ops.Operand("initial", each, history) for each in initial or ()]

    def call(x: Any, weight: Any, delay: Any, bias: Any, *values: Any) -> Sequence[Tensor]:
        own = dict(zip(constants, values[: len(constants)], strict=True))
        past = values[len(constants) :] or None
        y, final = delayed_linear(x, weight, delay, bias, **own, initial=past, **how)
        return y, *final

    states = 2 if constants["rise"] is not None or constants["ratio"] is not None else 1
    results = [ops.Operand("y", None, ("time", "batch", "out"))]
    results += [ops.Operand("final", None, history)] * states
    allowed: dict[Any, str] = {"batch": "the batch", "out": "the outputs"}
    y, *final = ops.on_shards(call, operands, results, allowed)
    return y, tuple(final)


def _rate(factor: Tensor) -> Tensor:
    """The step over the time constant, from the decay of a step.

    The highest one, without a gradient, where the factor is too small to divide by, or not above 0:
    so a delay of whole steps stays one.
    """
    gone = factor < torch.finfo(factor.dtype).tiny
    rate = -torch.log(factor.masked_fill(gone, 1.0))
    return rate.masked_fill(gone, highest_rate(rate.dtype))
