"""A scan and the shifted sum of its currents in one differentiable operation.

The scan writes the currents into the lines that the sum reads, and that the gradient of the weight
reads again. Eager code takes it where kernels run; all else scans first and then projects.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..values import WORD, Dynamics, Lines, PackedSpikes
from .common import chained, first_order, implementation, keep, kept, running, without_graph
from .operator import traced_as
from .scan import ScanSettings, input_gradients, parts_of, sequence_of


@traced_as(lambda *arguments: False)
def takes_lines(x: Tensor | PackedSpikes, backend: str | None) -> bool:
    """Whether a sequence ``[T, B, N]`` is projected in lines of 32 rows of the batch.

    Those of fewer rows are narrower, and a single step reads each row once.
    """
    return x.shape[0] > 1 and x.shape[1] > WORD // 2 and running(x.device, backend) == "triton"


class _Settings(NamedTuple):
    """What the operation is told besides tensors."""

    scan: ScanSettings
    size: tuple[int, int, int]
    """``(T, B, N)``."""
    slots: int


def _forward(
    settings: _Settings, back: Tensor, past: Tensor | None, weight: Tensor, x: Tensor, *tensors: Any
) -> tuple[Tensor, Tensor, Lines]:
    """The projection ``[T, B, O]``, the last values of the current, and its lines."""
    (coupled, last, dtype, shape, backend, count), size, slots = settings
    assert dtype is not None
    dynamics, initials = Dynamics.of(tensors[:count], coupled), tensors[count:]
    scan, projection = (implementation(n, x.device, backend) for n in ("scan", "projection"))
    lines = projection.lines_for(size, past, back, slots, dtype)
    steps = size[0]
    current = lines.view[:, :, -steps:]
    tails = scan.scan_lines(sequence_of(x, shape), current, dynamics, initials, last)
    return projection.project(lines, weight, back, steps, slots, "shift", ""), tails[-1], lines


class _ScanProject(torch.autograd.Function):
    """Of what comes before the sequence, weight, input, constants and initial states."""

    @staticmethod
    def forward(
        ctx: Any,
        settings: _Settings,
        back: Tensor,
        past: Tensor | None,
        weight: Tensor,
        x: Tensor,
        *tensors: Any,
    ) -> tuple[Tensor, Tensor]:
        y, tail, lines = _forward(settings, back, past, weight, x, *tensors)
        wants_past, wants_weight, *wanted = ctx.needs_input_grad[2:]
        count = settings.scan.constants
        ctx.settings, ctx.x_dtype, ctx.size = settings, x.dtype, lines.size
        if not any(wanted):
            ctx.mark_non_differentiable(tail)
        ctx.before = past.shape[0] if past is not None and wants_past else 0
        ctx.states = len(tensors) - count
        upstream = wants_past or any(wanted)
        learned = any(wanted[1 : 1 + count])
        keep(
            ctx,
            (back, lines.memory if wants_weight else None, weight if upstream else None),
            tensors[:count],
            (x, *tensors[count:]) if learned else (None,) * (1 + ctx.states),
        )
        return y, tail

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor | None, dtail: Tensor | None) -> tuple[Tensor | None, ...]:
        (back, memory, weight), constants, (x, *initials) = kept(ctx)
        scan, (steps, batch, inputs), slots = ctx.settings
        before: int = ctx.before
        dsequence: Any = None
        dweight: Tensor | None = None
        if dy is not None:
            lines = None if memory is None else Lines(memory, ctx.size, batch)
            projection = implementation("projection", back.device, scan.backend)
            dsequence, dweight = projection.project_backward(
                dy, lines, weight, back, before + steps, slots, "shift", ""
            )
        elif weight is not None:
            dsequence = weight.new_zeros((before + steps, batch, inputs))
        wants_past, _, *wanted = ctx.needs_input_grad[2:]
        found: Sequence[Tensor | None] = [None] * len(wanted)
        if dsequence is not None:
            dsequence = dsequence.to(scan.dtype)
        dpast = dsequence[:before] if wants_past else None
        if any(wanted):
            dtails = [None] * (ctx.states - 1) + [dtail]
            operands = (dsequence[before:], dtails, x, ctx.x_dtype, constants, initials)
            found = input_gradients(scan, wanted, *operands)
        return None, None, dpast, dweight, *found


def scan_project(
    x: Tensor | PackedSpikes,
    dynamics: Dynamics,
    initials: Sequence[Tensor | None],
    past: Tensor | None,
    weight: Tensor,
    back: Tensor,
    slots: int,
    *,
    last: int,
    dtype: torch.dtype,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """The projection ``[T, B, O]`` of a scan's current in ``dtype``, and its ``last`` values.

    Operands are those of :func:`tritonsyn.ops.scan.scan`, and of
    :func:`tritonsyn.ops.projection.project` for one component. Differentiable to everything
    floating; the lines ``[N, ceil(B / 32), T, 32]`` are kept for the gradient to the weight.
    """
    (data, shape), constants = parts_of(x), dynamics.constants
    backend = running(data.device, backend)
    scan = ScanSettings(dynamics.coupling is not None, last, dtype, shape, backend, len(constants))
    settings = _Settings(scan, (x.shape[0], x.shape[1], x.shape[2]), slots)
    operands: tuple[Any, ...] = (back, past, weight, data, *constants, *initials)
    if chained(*operands):
        y, tail = _ScanProject.apply(settings, *operands)
        return y, tail
    with without_graph():
        return _forward(settings, *operands)[:2]
