"""Scans, reads and projections as operators that ``torch.compile`` takes whole.

They compute what the autograd Functions beside them do, and call the same implementations; they are
functional, so that a compiled graph may order them freely. Eager code takes the Functions, whose
call costs a quarter of an operator's.
"""

from collections.abc import Sequence
from typing import Any

import torch

from ..values import PackedSpikes, ReadRule, compute_dtype, words_per_row
from .common import implementation
from .strategy import precision

Tensors = list[torch.Tensor]


@torch.library.custom_op("tritonsyn::hold", mutates_args=())
def hold(pointer: torch.Tensor) -> torch.Tensor:
    """A copy of a pointer that a compiled graph keeps for its backward pass.

    A plain copy would be made again in backward, from a pointer that has been advanced since.
    """
    return pointer.clone()


@hold.register_fake
def _(pointer):  # type: ignore[no-untyped-def]
    return torch.empty_like(pointer)


def _rule(mode: str, times: list[float], overbound: float | None) -> ReadRule:
    step, limit, tolerance = times
    return ReadRule(mode, step, limit, tolerance, overbound)


@torch.library.custom_op("tritonsyn::select", mutates_args=())
def select(
    records: Tensors,
    sel: torch.Tensor,
    rates: Tensors,
    pointers: Tensors,
    mode: str,
    times: list[float],
    overbound: float | None,
    steps: int,
    want_slope: bool,
    want_rate_slopes: bool,
    backend: str | None,
) -> Tensors:
    """``[value, *slope, *rate slopes]`` of a read; ``times`` are step, limit and tolerance.

    Records are ``[rows, B, N]``, times ``[1 or B, N, D]``. The slopes, if wanted, are what the
    gradients to times and rates need.
    """
    module = implementation("read", sel.device, backend)
    given: Sequence[torch.Tensor | None] = rates or [None] * len(records)
    value, slope, rate_slopes = module.select(
        records, sel, given, pointers, _rule(mode, times, overbound),
        want_slope, want_rate_slopes, steps,
    )  # fmt: skip
    return [value, *([] if slope is None else [slope]), *rate_slopes]


@select.register_fake
def _(  # type: ignore[no-untyped-def]
    records, sel, rates, pointers, mode, times, overbound, steps, want_slope, want_rate_slopes,
    backend,
):  # fmt: skip
    shape = (steps * records[0].shape[1], *sel.shape[1:])
    value = sel.new_empty(shape, dtype=records[0].dtype)
    slopes = range(want_slope + len(records) * want_rate_slopes)
    return [value, *(value.new_empty(shape, dtype=compute_dtype(value.dtype)) for _ in slopes)]


@torch.library.custom_op("tritonsyn::select_backward", mutates_args=())
def select_backward(
    dvalue: torch.Tensor,
    rows: int,
    sel: torch.Tensor,
    rates: Tensors,
    pointers: Tensors,
    mode: str,
    times: list[float],
    overbound: float | None,
    steps: int,
    backend: str | None,
) -> Tensors:
    """Gradient of each record ``[rows, B, N]``: zeros, with the values' gradients added."""
    module = implementation("read", sel.device, backend)
    shape = (rows, dvalue.shape[0] // steps, dvalue.shape[1])
    # Many small terms would not move a large sum in half precision: it is rounded once.
    acc = compute_dtype(dvalue.dtype)
    drecords = [dvalue.new_zeros(shape, dtype=acc) for _ in pointers]
    given: Sequence[torch.Tensor | None] = rates or [None] * len(drecords)
    module.select_backward(
        dvalue, drecords, sel, given, pointers,
        _rule(mode, times, overbound), steps,
    )  # fmt: skip
    return [drecord.to(dvalue.dtype) for drecord in drecords]


@select_backward.register_fake
def _(dvalue, rows, sel, rates, pointers, mode, times, overbound, steps, backend):  # type: ignore[no-untyped-def]
    shape = (rows, dvalue.shape[0] // steps, dvalue.shape[1])
    return [dvalue.new_empty(shape) for _ in pointers]


def _keep_select(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
    records, sel, rates, pointers, *rule, steps, wants_slope, _, backend = inputs
    ctx.rest = (*rule, steps, backend)
    ctx.rows, ctx.count, ctx.rated = records[0].shape[0], len(records), len(rates)
    ctx.slopes = int(wants_slope)
    ctx.save_for_backward(sel, *rates, *pointers, *output[1:])


def _select_gradients(ctx: Any, gradients: Tensors) -> tuple[Any, ...]:
    sel, *saved = ctx.saved_tensors
    rates, saved = saved[: ctx.rated], saved[ctx.rated :]
    pointers, slopes = saved[: ctx.count], saved[ctx.count :]
    dvalue = gradients[0]
    drecords: Sequence[torch.Tensor | None] = [None] * ctx.count
    if any(ctx.needs_input_grad[0]):
        drecords = select_backward(dvalue, ctx.rows, sel, rates, pointers, *ctx.rest)
    weighted = [dvalue.to(slope.dtype) * slope for slope in slopes]
    dsel = None
    if ctx.slopes:
        rows = dvalue.shape[0] // sel.shape[0]
        dsel = weighted.pop(0).view(rows, *sel.shape).sum(0).to(sel.dtype)
    drates: list[torch.Tensor | None] = [None] * ctx.rated
    if weighted:
        drates = [
            (w.sum((0, 2)) if rate.ndim else w.sum()).to(rate.dtype)
            for w, rate in zip(weighted, rates, strict=True)
        ]
    settings = len(ctx.rest) + 2
    return list(drecords), dsel, drates, [None] * ctx.count, *(None for _ in range(settings))


select.register_autograd(_select_gradients, setup_context=_keep_select)


@torch.library.custom_op("tritonsyn::project", mutates_args=())
def project(
    sequence: torch.Tensor,
    weight: torch.Tensor,
    back: torch.Tensor,
    steps: int,
    strategy: str,
    backend: str | None,
) -> torch.Tensor:
    """The delayed projection ``[steps, B, O]`` of one component ``[K - 1 + steps, B, I]``."""
    module = implementation("projection", back.device, backend)
    return module.project(sequence, weight, back, steps, strategy, precision())


@project.register_fake
def _(sequence, weight, back, steps, strategy, backend):  # type: ignore[no-untyped-def]
    return weight.new_empty((steps, sequence.shape[1], weight.shape[0]))


@torch.library.custom_op("tritonsyn::project_backward", mutates_args=())
def project_backward(
    dy: torch.Tensor,
    sequence: torch.Tensor | None,
    weight: torch.Tensor | None,
    back: torch.Tensor,
    rows: int,
    dtype: torch.dtype,
    strategy: str,
    backend: str | None,
) -> Tensors:
    """``[*dsequence, *dweight]``; the gradient of each needs the other operand.

    ``rows`` and ``dtype`` are those of the sequence.
    """
    module = implementation("projection", back.device, backend)
    way = (strategy, precision())
    results = []
    if weight is not None:
        results.append(module.project_input(dy, weight, back, rows, *way).to(dtype))
    if sequence is not None:
        results.append(module.project_weight(dy, sequence, back, *way))
    return results


@project_backward.register_fake
def _(dy, sequence, weight, back, rows, dtype, strategy, backend):  # type: ignore[no-untyped-def]
    dsequence = dy.new_empty((rows, dy.shape[1], back.shape[1]), dtype=dtype)
    dweight = dy.new_empty(back.shape)
    return [*([] if weight is None else [dsequence]), *([] if sequence is None else [dweight])]


def _keep_project(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    sequence, weight, back, _, *ctx.rest = inputs
    ctx.rows, ctx.dtype = sequence.shape[0], sequence.dtype
    ctx.save_for_backward(
        sequence if weight.requires_grad else None, weight if sequence.requires_grad else None, back
    )


def _project_gradients(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
    sequence, weight, back = ctx.saved_tensors
    results = project_backward(dy, sequence, weight, back, ctx.rows, ctx.dtype, *ctx.rest)
    dsequence = None if weight is None else results.pop(0)
    dweight = None if sequence is None else results.pop(0)
    return dsequence, dweight, None, None, None, None


project.register_autograd(_project_gradients, setup_context=_keep_project)


@torch.library.custom_op("tritonsyn::pack_spikes", mutates_args=())
def pack_spikes(x: torch.Tensor, backend: str | None) -> torch.Tensor:
    """Spikes ``[rows, N]`` as bits, ``[rows, ceil(N / 32)]``."""
    return implementation("scan", x.device, backend).pack(x)


@pack_spikes.register_fake
def _(x, backend):  # type: ignore[no-untyped-def]
    return x.new_empty((x.shape[0], words_per_row(x.shape[1])), dtype=torch.int32)


@torch.library.custom_op("tritonsyn::project_spikes", mutates_args=())
def project_spikes(
    words: torch.Tensor,
    shape: list[int],
    back: torch.Tensor,
    weight: torch.Tensor,
    slots: int,
    backend: str | None,
) -> torch.Tensor:
    """The delayed projection ``[T, B, O]`` of packed spikes; ``shape`` is theirs."""
    module = implementation("projection", back.device, backend)
    return module.project_spikes(PackedSpikes(words, tuple(shape)), weight, back, slots)


@project_spikes.register_fake
def _(words, shape, back, weight, slots, backend):  # type: ignore[no-untyped-def]
    return weight.new_empty((*words.shape[:2], weight.shape[0]))


@torch.library.custom_op("tritonsyn::project_spikes_backward", mutates_args=())
def project_spikes_backward(
    dv: torch.Tensor,
    words: torch.Tensor,
    shape: list[int],
    back: torch.Tensor,
    slots: int,
    backend: str | None,
) -> torch.Tensor:
    """The gradient of the weight."""
    module = implementation("projection", back.device, backend)
    return module.project_spikes_weight(dv, PackedSpikes(words, tuple(shape)), back, slots)


@project_spikes_backward.register_fake
def _(dv, words, shape, back, slots, backend):  # type: ignore[no-untyped-def]
    return dv.new_empty(back.shape)


def _keep_project_spikes(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    words, ctx.shape, back, _, ctx.slots, ctx.backend = inputs
    ctx.save_for_backward(words, back)


def _project_spikes_gradients(ctx: Any, dv: torch.Tensor) -> tuple[Any, ...]:
    words, back = ctx.saved_tensors
    dweight = project_spikes_backward(dv, words, ctx.shape, back, ctx.slots, ctx.backend)
    return None, None, None, dweight, None, None


project_spikes.register_autograd(_project_spikes_gradients, setup_context=_keep_project_spikes)
