"""The delayed projection as a differentiable operation.

Two of its three identities are used here. Interpolation folds into the weight, so that a
connection is one tap, a whole number of steps back; that and its gradients to weight, delay and
time constants are plain tensor expressions of the size of the weight. With one time constant for
the group, delaying and filtering commute: then spikes are projected and the result is filtered.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch

from ..checks import check_floating, check_input, check_sequence
from ..values import PackedSpikes, ReadRule, Slot, compute_dtype, locate
from . import registered
from .common import chained, first_order, implementation
from .scan import (
    Coefficient,
    coefficient,
    last_values,
    output_dtype,
    pack_spikes,
    scan,
    unpack_spikes,
)
from .strategy import STRATEGIES, Work, cheapest, precision


class Taps(NamedTuple):
    """What each connection reads, and with which weight."""

    back: torch.Tensor
    """``[O, I]`` int32: whole steps."""
    weights: tuple[torch.Tensor, ...]
    """``[O, I]`` of each component, the second one's with its sign."""


def taps(
    weight: torch.Tensor,
    delay: torch.Tensor,
    rates: Sequence[torch.Tensor],
    rule: ReadRule,
    slots: int,
) -> Taps:
    """Each connection as one tap: ``back = ceil(delay / step)`` and ``weight * exp(-rest * rate)``.

    ``weight`` and ``delay [O, I]``; ``rates`` (steps over time constant, 0-d or ``[I]``) one for
    each component. Differentiable to all three; the delay is clamped to ``[0, rule.limit]`` with
    zero gradient outside.
    """
    located = locate(delay.detach(), rule, slots)
    dtype = rates[0].dtype
    bounded = delay.clamp(0.0, rule.limit)
    rest = located.frac.to(dtype) - ((bounded - bounded.detach()) / rule.step).to(dtype)
    # Packed rows, whatever the strides of weight and delay are.
    weights = [(weight.to(dtype) * torch.exp(-rest * rate)).contiguous() for rate in rates]
    if len(weights) == 2:
        weights[1] = -weights[1]
    back = located.older.nan_to_num(0.0).to(torch.int32).contiguous()
    return Taps(back, tuple(weights))


class _Way(NamedTuple):
    """How a projection is computed."""

    module: ModuleType
    strategy: str
    precision: str


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        way: _Way,
        steps: int,
        back: torch.Tensor,
        sequence: torch.Tensor,
        weight: torch.Tensor,
    ) -> torch.Tensor:
        ctx.way, ctx.rows, ctx.sequence_dtype = way, sequence.shape[0], sequence.dtype
        wants_sequence, wants_weight = ctx.needs_input_grad[3:]
        # Each gradient needs the other operand.
        ctx.save_for_backward(
            back, sequence if wants_weight else None, weight if wants_sequence else None
        )
        module, strategy, digits = way
        return module.project(sequence, weight, back, steps, strategy, digits)

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        module, strategy, digits = ctx.way
        back, sequence, weight = ctx.saved_tensors
        dsequence = dweight = None
        if weight is not None:
            dsequence = module.project_input(dy, weight, back, ctx.rows, strategy, digits)
            dsequence = dsequence.to(ctx.sequence_dtype)
        if sequence is not None:
            dweight = module.project_weight(dy, sequence, back, strategy, digits)
        return None, None, None, dsequence, dweight


class _ProjectSpikes(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        module: ModuleType,
        shape: tuple[int, ...],
        slots: int,
        words: torch.Tensor,
        back: torch.Tensor,
        weight: torch.Tensor,
    ) -> torch.Tensor:
        ctx.module, ctx.shape, ctx.slots = module, shape, slots
        ctx.save_for_backward(words, back)
        return module.project_spikes(PackedSpikes(words, shape), weight, back, slots)

    @staticmethod
    @first_order
    def backward(ctx: Any, dv: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        words, back = ctx.saved_tensors
        spikes = PackedSpikes(words, ctx.shape)
        dweight = ctx.module.project_spikes_weight(dv, spikes, back, ctx.slots)
        return None, None, None, None, None, dweight


def choose(
    strategy: str,
    x: torch.Tensor | PackedSpikes,
    outputs: int,
    slots: int,
    decays: Sequence[torch.Tensor],
    rest: bool,
) -> str:
    """The strategy for an input ``[T, B, I]``: the one asked for, or the cheapest.

    ``rest``: the synapses are known to be at rest. Raises ``ValueError`` for an unknown one and
    where spikes cannot be walked.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, but is {strategy!r}")
    spikes = isinstance(x, PackedSpikes) or x.dtype == torch.bool
    commutes = all(decay.ndim == 0 for decay in decays)
    if strategy == "events" and not (spikes and commutes):
        reason = "the time constants differ between inputs" if spikes else f"x is {_kind(x)}"
        raise ValueError(
            "strategy 'events' needs spikes, bool or packed, and one time constant for all inputs, "
            f"but {reason}"
        )
    if strategy != "auto":
        return strategy
    arrivals = None
    # On a GPU counting would wait for it, and a compiled graph cannot branch on a number of spikes.
    counted = x.device.type == "cpu" and not torch.compiler.is_compiling()
    if spikes and commutes and counted:
        arrivals = _count(x) * outputs
    steps, batch, inputs = x.shape
    row = batch * inputs * outputs
    past = 0 if rest else row * min(steps, slots - 1)
    finite = isinstance(x, PackedSpikes) or not x.is_floating_point()
    return cheapest(Work(steps * row, past, slots, arrivals, finite), x.device)


def _kind(x: torch.Tensor | PackedSpikes) -> str:
    return "packed" if isinstance(x, PackedSpikes) else str(x.dtype)


def _count(x: torch.Tensor | PackedSpikes) -> int:
    """Number of spikes."""
    dense = unpack_spikes(x) if isinstance(x, PackedSpikes) else x
    return int(dense.count_nonzero())


def project(
    sequences: Sequence[torch.Tensor],
    taps: Taps,
    steps: int,
    *,
    strategy: str,
    backend: str | None = None,
) -> torch.Tensor:
    """``y[t, b, o] = sum_i weight[o, i] * S[t - back[o, i], b, i]``, summed over the components.

    ``sequences`` one or two ``[K - 1 + steps, B, I]``, oldest first; ``strategy`` ``shift`` or
    ``gemm``. Returns ``[steps, B, O]`` in the dtype of the weights. Differentiable to sequences and
    weights.
    """
    if torch.compiler.is_compiling():
        rest = (taps.back, steps, strategy, backend)
        pairs = zip(sequences, taps.weights, strict=True)
        return _total([registered.project(s, w, *rest) for s, w in pairs])
    module = implementation("projection", taps.back.device, backend)
    way = _Way(module, strategy, precision())
    parts = []
    for sequence, weight in zip(sequences, taps.weights, strict=True):
        if chained(sequence, weight):
            parts.append(_Project.apply(way, steps, taps.back, sequence, weight))
        else:
            parts.append(module.project(sequence, weight, taps.back, steps, *way[1:]))
    return _total(parts)


def project_record(
    records: Sequence[torch.Tensor],
    pointers: Sequence[Slot],
    taps: Taps,
    *,
    backend: str | None = None,
) -> torch.Tensor:
    """The projection of what records ``[K, B, I]`` hold now, ``[B, O]``; carries no graph."""
    module = implementation("projection", taps.back.device, backend)
    with torch.no_grad():
        parts = [
            module.project(record, weight, taps.back, 1, "shift", "ieee", pointer)
            for record, pointer, weight in zip(records, pointers, taps.weights, strict=True)
        ]
    return _total(parts)[0]


def project_spikes(
    spikes: torch.Tensor | PackedSpikes,
    taps: Taps,
    gain: torch.Tensor,
    decays: Sequence[torch.Tensor],
    histories: Sequence[torch.Tensor] | None,
    slots: int,
    *,
    backend: str | None = None,
) -> torch.Tensor:
    """The projected currents of spikes ``[T, B, I]``, in work in proportion to the spikes.

    Delaying and filtering commute for the 0-d ``decays``: the spikes arrive at the outputs, and are
    filtered there. ``histories`` are the components' last K values ``[K, B, I]``, oldest first, or
    None for rest. Returns ``[T, B, O]`` in the dtype of the weights.
    """
    packed = spikes
    if not isinstance(packed, PackedSpikes):
        packed = pack_spikes(packed, backend=backend)
    unit = torch.ones((), dtype=gain.dtype, device=gain.device)
    parts = []
    for i, (weight, decay) in enumerate(zip(taps.weights, decays, strict=True)):
        arriving = _arriving(packed, taps.back, weight * gain, slots, backend)
        initial = None
        if histories is not None:
            tap = Taps(taps.back, (weight,))
            history = histories[i].to(weight.dtype)
            initial = project((history,), tap, 1, strategy="shift", backend=backend)[0]
            arriving = _add_past(arriving, history, decay, tap, backend)
        y, _ = scan(arriving, unit, (decay,), (initial,), dtype=weight.dtype, backend=backend)
        parts.append(y)
    return _total(parts)


def _arriving(
    spikes: PackedSpikes, back: torch.Tensor, weight: torch.Tensor, slots: int, backend: str | None
) -> torch.Tensor:
    """What spikes bring to the outputs, ``[T, B, O]``."""
    if torch.compiler.is_compiling():
        shape = list(spikes.shape)
        return registered.project_spikes(spikes.words, shape, back, weight, slots, backend)
    module = implementation("projection", back.device, backend)
    return _ProjectSpikes.apply(module, spikes.shape, slots, spikes.words, back, weight)


def _add_past(
    arriving: torch.Tensor,
    history: torch.Tensor,
    decay: torch.Tensor,
    tap: Taps,
    backend: str | None,
) -> torch.Tensor:
    """What arrives, with what was injected before the first step and is still under way.

    A history is what its own increments, ``C[t] - decay * C[t-1]``, add up to when they decay.
    """
    steps = min(arriving.shape[0], history.shape[0] - 1)
    if steps == 0:
        return arriving
    increments = history[1:] - decay * history[:-1]
    silence = increments.new_zeros(steps, *increments.shape[1:])
    sequence = torch.cat((increments, silence))
    connections = sequence[:steps].numel() * tap.back.shape[0]
    work = Work(connections, 0, history.shape[0], None, finite=False)
    strategy = cheapest(work, arriving.device)
    past = project((sequence,), tap, steps, strategy=strategy, backend=backend)
    return torch.cat((arriving[:steps] + past, arriving[steps:]))


def delayed_linear(
    x: torch.Tensor | PackedSpikes,
    weight: torch.Tensor,
    delay: torch.Tensor,
    gain: Coefficient,
    decays: Sequence[Coefficient],
    initial: Sequence[torch.Tensor] | None,
    rule: ReadRule,
    slots: int,
    *,
    strategy: str,
    dtype: torch.dtype | None,
    backend: str | None,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Synapses and their delayed projection over a sequence ``[T, B, I]``, T >= 1.

    ``initial`` are the components' last K values ``[K, B, I]``, oldest first; None for rest.
    Returns the projected currents ``[T, B, O]`` and the components' last K values now.
    """
    steps, batch, inputs = x.shape
    past = () if initial is None else initial
    if initial is not None and len(past) != len(decays):
        raise ValueError(f"initial must hold {len(decays)} tensors, but is {initial!r:.80}")
    dtype = output_dtype(x, past, dtype)
    acc = compute_dtype(dtype)
    names = ("gain", "decay", "rise")
    gain, *factors = (
        coefficient(name, value, (inputs,), acc, x.device)
        for name, value in zip(names, (gain, *decays), strict=False)
    )
    for i, history in enumerate(past):
        check_input(f"initial[{i}]", history, (slots, batch, inputs), x.device)
    tapped = taps(weight, delay, [_rate(factor) for factor in factors], rule, slots)
    chosen = choose(strategy, x, weight.shape[0], slots, factors, rest=initial is None)
    starts: list[torch.Tensor | None] = [history[-1].to(acc) for history in past]
    starts = starts or [None] * len(factors)
    if chosen == "events":
        keep = min(steps, slots)
        tails = last_values(x, gain, factors, starts, keep=keep, backend=backend)
        sequences = [tail.to(dtype) for tail in tails]
        y = project_spikes(x, tapped, gain, factors, initial, slots, backend=backend)
    else:
        sequences = [
            scan(x, gain, [factor], [start], dtype=dtype, backend=backend)[0]
            for factor, start in zip(factors, starts, strict=True)
        ]
    rest = torch.zeros((slots, batch, inputs), dtype=dtype, device=x.device)
    histories = [history.to(dtype) for history in past] or [rest] * len(factors)
    whole = [torch.cat(pair) for pair in zip(histories, sequences, strict=True)]
    if chosen != "events":
        recent = [sequence[1:] for sequence in whole]
        y = project(recent, tapped, steps, strategy=chosen, backend=backend)
    return y.to(dtype), tuple(sequence[-slots:].clone() for sequence in whole)


def _rate(factor: torch.Tensor) -> torch.Tensor:
    """Steps over the time constant that a factor of a step stands for.

    Finite where the factor is 0, so that a delay of whole steps stays one, and without a gradient.
    """
    gone = factor == 0
    rate = -torch.log(factor.masked_fill(gone, 1.0))
    return rate.masked_fill(gone, torch.finfo(rate.dtype).max)


def check_layer(
    x: torch.Tensor | PackedSpikes,
    weight: torch.Tensor,
    delay: torch.Tensor,
    bias: torch.Tensor | None,
) -> None:
    """The input is a sequence, and weight, delay and bias are layers for it."""
    check_sequence(x)
    if len(x.shape) != 3 or x.shape[0] == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}, but must have (T, B, in) with T >= 1")
    for name, value in (("weight", weight), ("delay", delay)):
        check_floating(name, value)
        if value.ndim != 2 or value.shape[1] != x.shape[2] or value.shape != weight.shape:
            allowed = "(out, in)" if name == "weight" else f"{tuple(weight.shape)}"
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}, but must have {allowed} "
                f"for an input {tuple(x.shape)}"
            )
        if value.device != x.device:
            raise ValueError(f"{name} is on {value.device}, but the input is on {x.device}")
    if bias is not None:
        check_input("bias", bias, weight.shape[:1], x.device)


def _total(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]
