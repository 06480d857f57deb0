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

from ..values import PackedSpikes, ReadRule, Slot, locate
from . import registered
from .common import chained, first_order, implementation
from .scan import pack_spikes, scan
from .strategy import Work, cheapest, precision


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
    dynamics: Dynamics,
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


def _total(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]
