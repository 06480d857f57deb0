"""A scan and the shifted sum of its currents in one differentiable operation.

The scan writes the currents into the lines that the sum reads, and that the gradient of the weight
reads again. Eager code takes it where kernels run; all else scans first and then projects.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..values import WORD, Dynamics, Lines, Links, PackedSpikes, Ring
from .common import (
    chained,
    first_order,
    implementation,
    keep,
    kept,
    link,
    running,
    unchained,
    without_graph,
)
from .operator import traced_as
from .ring import Ends, apart, flat_ring, newest, ring_state
from .scan import ScanSettings, input_gradients, parts_of, ring_gradients, sequence_of


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
    settings: _Settings,
    ring: Ring | None,
    links: Links | None,
    back: Tensor,
    past: Tensor | None,
    weight: Tensor,
    x: Tensor,
    *tensors: Any,
) -> tuple[Tensor, Sequence[Tensor], Lines]:
    """The projection ``[T, B, O]``, the last values of the current, if no ring takes them, and its
    lines."""
    (coupled, last, dtype, shape, backend, count), size, slots = settings
    assert dtype is not None
    dynamics, initials = Dynamics.of(tensors[:count], coupled), tensors[count:]
    scan, projection = (implementation(n, x.device, backend) for n in ("scan", "projection"))
    outputs = back.shape[0] if links is None else links.size[0]
    lines = projection.lines_for((*size, outputs), past, slots, dtype, back.device)
    steps, sequence = size[0], sequence_of(x, shape)
    current, tails = lines.view[:, :, -steps:], ()
    if ring is None:
        tails = scan.scan_lines(sequence, current, dynamics, initials, last)
    else:
        scan.scan_ring(sequence, ring, dynamics, dtype, current)
    y = projection.project(lines, weight, back, steps, slots, "shift", "", links)
    return y, tails[-1:], lines


class _ScanProject(torch.autograd.Function):
    """Of what comes before the sequence, weight, input, constants, and initial states or the state
    of the ring, which is changed in place and returned."""

    @staticmethod
    def forward(
        ctx: Any,
        settings: _Settings,
        ring: Ring | None,
        links: Links | None,
        back: Tensor,
        past: Tensor | None,
        weight: Tensor,
        x: Tensor,
        *tensors: Any,
    ) -> tuple[Tensor, ...]:
        count, before = settings.scan.constants, tensors[settings.scan.constants :]
        wants_past, wants_weight, *wanted = ctx.needs_input_grad[4:]
        learned = any(wanted[1 : 1 + count])
        starts: Sequence[Tensor | None] = before
        ctx.ends = None
        if ring is not None:
            ring = flat_ring(ring, [tensor.detach() for tensor in before])
            starts = newest(ring) if learned and past is not None else (None,)
            ctx.ends = Ends.of(ring, settings.size[0])
            link(ctx, *before)
        y, tail, lines = _forward(settings, ring, links, back, past, weight, x, *tensors)
        end = tail if ring is None else before
        ctx.settings, ctx.x_dtype, ctx.size = settings, x.dtype, lines.size
        if not any(wanted):
            ctx.mark_non_differentiable(*end)
        ctx.before = past.shape[0] if past is not None and wants_past else 0
        upstream = wants_past or any(wanted)
        keep(
            ctx,
            (back, lines.memory if wants_weight else None, weight if upstream else None),
            tensors[:count],
            (x, *starts) if learned else (None,) * (1 + len(starts)),
            links or (),
        )
        return y, *end

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor | None, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        (back, memory, weight), constants, (x, *starts), links = kept(ctx)
        scan, (steps, batch, inputs), slots = ctx.settings
        before: int = ctx.before
        dsequence: Any = None
        dweight: Tensor | None = None
        if dy is not None:
            lines = None if memory is None else Lines(memory, ctx.size, batch)
            projection = implementation("projection", back.device, scan.backend)
            way = before + steps, slots, "shift", "", Links(*links) if links else None
            dsequence, dweight = projection.project_backward(dy, lines, weight, back, *way)
        elif weight is not None:
            dsequence = weight.new_zeros((before + steps, batch, inputs))
        wants_past, _, *wanted = ctx.needs_input_grad[4:]
        found: Sequence[Tensor | None] = [None] * len(wanted)
        if dsequence is not None:
            dsequence = dsequence.to(scan.dtype)
        dpast = dsequence[:before] if wants_past else None
        if any(wanted):
            operands = (dsequence[before:], given, x, ctx.x_dtype, constants, starts)
            if ctx.ends is None:
                dtails = [*[None] * (len(starts) - 1), *given]
                found = input_gradients(scan, wanted, operands[0], dtails, *operands[2:])
            else:
                found = ring_gradients(ctx, scan, wanted, *operands)
        return None, None, None, None, dpast, dweight, *found


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
    links: Links | None = None,
    ring: Ring | None = None,
    backend: str | None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The projection ``[T, B, O]`` of a scan's current in ``dtype``, and its ``last`` values.

    Operands are those of :func:`tritonsyn.ops.scan.scan`, and of
    :func:`tritonsyn.ops.projection.project` for one component. With a ``ring``, of a single state,
    the scan starts and ends there, and the ring's state is returned; no ``past`` means that it is
    at rest. Differentiable to everything floating; the lines ``[N, ceil(B / 32), T, 32]`` are kept
    for the gradient to the weight.
    """
    data, shape = parts_of(x if ring is None else apart(x, ring))
    constants = dynamics.constants
    backend = running(data.device, backend)
    scan = ScanSettings(dynamics.coupling is not None, last, dtype, shape, backend, len(constants))
    settings = _Settings(scan, (x.shape[0], x.shape[1], x.shape[2]), slots)
    state = () if ring is None else ring_state(ring)
    before: Sequence[Any] = initials if ring is None else state
    operands: tuple[Any, ...] = (back, past, weight, data, *constants, *before)
    linked = chained(*operands)
    if ring is not None:
        torch.autograd.graph.increment_version(ring.spikes)
    if linked:
        y, *end = _ScanProject.apply(settings, ring, links, *operands)
        return y, tuple(end)
    if ring is not None:
        state = tuple([unchained(tensor) for tensor in state])
        ring = flat_ring(ring, state)
    with without_graph():
        y, tails, _ = _forward(settings, ring, links, *operands)
    return y, (*tails, *state)
