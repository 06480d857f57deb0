"""Steps of a delayed layer on a tape, for recurrent networks: the currents of a run in memory of
their own, and one gradient of the connections at the end.

A step appends a row to the tape and sums rows; it is an autograd Function, and a chain of tokens
keeps them in order. In backward the gradients of the outputs go to a second tape, on which the
gradient of the currents is the adjoint sum, since all that is later is known by then. What is kept
of a step is a row of the currents and a row of that gradient, whatever the longest delay is.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..values import Connections, data_of
from .common import chained, first_order, implementation, keep, kept, running, saved, without_graph
from .delayed import Run
from .projection import project_component_backward, total
from .scan import ScanSettings, input_gradients
from .strategy import Work, cheapest, precision
from .taps import Taps

Sums = list[Connections]
"""Of each state."""


class _Pass:
    """What one backward pass collects on its way from the last step to the first."""

    def __init__(self, tape: "Tape", task: int) -> None:
        self.task = task
        outputs, dtype = tape.taps.back.shape[0], tape.taps.weights[0].dtype
        self.dy = tape.blank(tape.outputs + tape.slots - 1, outputs, dtype)
        self.carries: list[Tensor] | None = None
        """The gradient of each state after the step that comes next."""
        self.dtails: Sequence[Tensor | None] = [None] * tape.states
        self.dstates: list[Tensor] = []
        """Of all steps ``[T, B, N]``, and the input, where constants are learned."""
        self.x: Tensor | None = None


class Tape:
    """A run of at most ``steps`` steps, of synapses that hold ``run.past``.

    ``run.x [1, B, I]`` is the input of the first step, which :meth:`step` is still to be given;
    ``taps`` and constants count as they are now. No connection has a delay below ``least`` steps.
    Without ``graph`` nothing is differentiated but the taps.
    """

    def __init__(self, run: Run, taps: Taps, steps: int, least: int, *, graph: bool = True) -> None:
        run = run if graph else run.detached()
        self.dynamics, self.slots, self.dtype, self.taps = run.dynamics, run.slots, run.dtype, taps
        self.batch, self.least, self.graph = run.x.shape[1], least, graph
        self.device, self.backend = taps.back.device, running(taps.back.device, run.backend)
        self.module = implementation("tape", self.device, self.backend)
        self.steps, self.outputs, self.done = steps, steps + least, 0
        """Outputs of the last steps may be known before their inputs are."""
        self.states = self.dynamics.states
        synapses = run.x.shape[2]
        pasts, starts = run.before(), run.starts
        operands = (*taps.weights, *self.dynamics.constants, *(pasts or ()), *starts)
        self.counts = len(taps.weights), len(self.dynamics.constants), len(pasts or ())
        self.recorded = chained(data_of(run.x) if graph else None, *operands)
        self.learned = any(c.requires_grad for c in self.dynamics.constants)
        self.upstream = self.recorded and any(
            t is not None and t.requires_grad for t in operands[self.counts[0] :]
        )
        rows = self.slots - 1 + self.outputs
        with without_graph():
            self.tapes = [self.blank(rows, synapses, self.dtype) for _ in range(self.states)]
            for tape, past in zip(self.tapes, pasts or (), strict=False):
                self.module.add(tape, 0, past)
            self.present = [self._start(start, synapses) for start in starts]
            self.sums = self.connections(adjoint=False)
        self.adjoints: Sums | None = None
        self.pass_: _Pass | None = None
        self.zero = torch.zeros((), device=self.device)
        self.token: Tensor | None = _Begin.apply(self, *operands) if self.recorded else None

    def _start(self, start: Tensor | None, synapses: int) -> Tensor:
        """The present value of a state, in memory of its own."""
        if start is not None:
            return start.detach()
        size, dtype = (self.batch, synapses), self.dynamics.gain.dtype
        return torch.zeros(size, dtype=dtype, device=self.device)

    def blank(self, rows: int, columns: int, dtype: torch.dtype) -> Any:
        """A tape for so many rows."""
        return self.module.blank(rows, self.batch, columns, dtype, self.device)

    def connections(self, adjoint: bool) -> Sums:
        """The taps, prepared for the sums of each state."""
        how = self.taps.back, self.slots, self.least, adjoint
        return [self.module.connections(weight.detach(), *how) for weight in self.taps.weights]

    def records(self, x: Tensor) -> bool:
        """Whether a step with this input is to be recorded by autograd."""
        return chained(x if self.graph else None, self.token)

    def step(self, x: Tensor) -> Tensor:
        """A step with the input ``[B, I]``; or ``m`` of them with ``[m, B, I]``, ``m - 1`` at most
        ``least``: the outputs ``[m, B, O]`` of the last of them and of the ``m - 1`` after it."""
        if self.token is None:
            with without_graph():
                y = self.append(x.detach())
        else:
            y, self.token = _Step.apply(self, self.token, x if self.graph else x.detach())
        self.done += _rows(x).shape[0]
        return y

    def append(self, x: Tensor) -> Tensor:
        """What a step does to the tape, and its outputs."""
        rows, row = _rows(x), self.slots - 1 + self.done
        how = self.dynamics, self.present, self.dtype
        self.present = self.module.advance(rows, self.tapes, row, *how)
        count, parts = len(rows), zip(self.tapes, self.sums, strict=True)
        y = total([self.module.sums(tape, row + count - 1, count, sums) for tape, sums in parts])
        # Not a view, which could not be written in place where a graph is recorded.
        return y if x.ndim == 2 else torch.ops.aten._unsafe_view(y, (*x.shape[:2], -1))

    def tails(self, last: int) -> Sequence[Tensor]:
        """The ``last`` values of each state, in the dtype of the arithmetic; differentiable."""
        if self.token is None:
            with without_graph():
                return self.ends(last)
        return _Leave.apply(self, self.token, last)

    def ends(self, last: int) -> tuple[Tensor, ...]:
        """The same without a graph."""
        first, dtype = self.slots - 1 + self.done - last, self.dynamics.gain.dtype
        found = [self.module.rows(tape, first, last).to(dtype) for tape in self.tapes]
        for tail, present in zip(found, self.present, strict=True):
            tail[-1] = present  # as it was before the tape rounded it
        return tuple(found)

    # -- backward -----------------------------------------------------------------------------

    def passing(self) -> _Pass:
        """What the present backward pass has collected."""
        task = torch._C._current_graph_task_id()
        if self.pass_ is None or self.pass_.task != task:
            self.pass_ = _Pass(self, task)
        return self.pass_

    def step_backward(
        self, dy: Tensor | None, x: Tensor | None, first: int, count: int, upstream: bool
    ) -> Tensor | None:
        """The gradient ``[count, B, I]`` of the input of the steps from ``first`` on."""
        now = self.passing()
        if dy is not None:
            self.module.add(now.dy, first + count - 1, _rows(dy))
        if not upstream:
            return None
        if self.adjoints is None:
            self.adjoints = self.connections(adjoint=True)
        size = count, self.batch, -1
        dstates = [
            self.module.sums(now.dy, first, count, sums).view(size) for sums in self.adjoints
        ]
        self._add_tails(dstates, now, first)
        if x is not None:
            self._collect(dstates, _rows(x), now, first)
        dx = torch.empty_like(dstates[0])
        carries = now.carries
        for j in reversed(range(count)):
            lambdas = [d[j] for d in dstates]
            if carries is not None:
                lambdas = [d + carry for d, carry in zip(lambdas, carries, strict=True)]
            taking = lambdas[0] if self.dynamics.inputs == 1 else lambdas[0] + lambdas[1]
            torch.mul(taking, self.dynamics.gain, out=dx[j])
            carries = [d * self.dynamics.decay(i) for i, d in enumerate(lambdas)]
            if self.dynamics.coupling is not None:
                carries[0] = torch.addcmul(carries[0], carries[1], self.dynamics.coupling)
        now.carries = carries
        return dx

    def _add_tails(self, dstates: Sequence[Tensor], now: _Pass, first: int) -> None:
        """Adds the gradients of the last values to those of the steps that they are of."""
        for dstate, dtail in zip(dstates, now.dtails, strict=True):
            if dtail is not None:
                start = first - (self.done - dtail.shape[0])
                here = dtail[max(start, 0) : max(start + dstate.shape[0], 0)]
                if len(here):
                    dstate[-len(here) :] += here

    def _collect(self, dstates: Sequence[Tensor], x: Tensor, now: _Pass, first: int) -> None:
        """Keeps what the gradients of the constants are computed from."""
        if now.x is None:
            size = (self.done, *x.shape[1:])
            now.x = dstates[0].new_zeros(size)
            now.dstates = [dstates[0].new_zeros(size) for _ in dstates]
        for kept_, part in zip((now.x, *now.dstates), (x, *dstates), strict=True):
            kept_[first : first + len(part)] = part

    def gradients(self, wanted: Sequence[bool], starts: Sequence[Any]) -> list[Tensor | None]:
        """Those of taps, constants, what is from before, and the present values."""
        now = self.passing()
        weights, constants, before = self.counts
        edges = (0, weights, weights + constants, weights + constants + before, None)
        of_weights, of_constants, of_pasts, of_starts = (wanted[a:b] for a, b in pairwise(edges))
        dweights = [
            self._dweight(tape, now) if w else None
            for tape, w in zip(self.tapes, of_weights, strict=True)
        ]
        dconstants: list[Tensor | None] = [None] * constants
        if any(of_constants) and now.x is not None:
            dconstants = self._dconstants(now, starts)
        dpasts = [
            self._dpast(weight, now) if w else None
            for weight, w in zip(self.taps.weights, of_pasts, strict=False)
        ]
        carries: Sequence[Tensor | None] = now.carries or [None] * len(of_starts)
        dstarts = [carry if w else None for carry, w in zip(carries, of_starts, strict=True)]
        self.pass_ = None
        return [*dweights, *dconstants, *dpasts, *dstarts]

    def _strategy(self) -> str:
        connections = self.outputs * self.batch * self.taps.back.numel()
        return cheapest(Work(connections, 0, self.slots, None), self.device)

    def _dweight(self, tape: Any, now: _Pass) -> Tensor:
        return self.module.dot(now.dy, tape, self.taps.back, self.slots, self._strategy())

    def _dpast(self, weight: Tensor, now: _Pass) -> Tensor:
        """Of the K - 1 rows before the first."""
        before = self.slots - 1
        dy = self.module.rows(now.dy, 0, min(before, self.outputs))
        way = (self._strategy(), precision(), self.backend)
        rows, operands = before + len(dy), (weight.detach(), self.taps.back)
        found = project_component_backward(
            dy, None, None, *operands, rows, self.slots, weight.dtype, *way
        )
        return found[0][:before]

    def _dconstants(self, now: _Pass, starts: Sequence[Any]) -> list[Tensor | None]:
        """Of each state by itself, added up where states share a constant."""
        found: list[Tensor | None] = [None] * len(self.dynamics.constants)
        for i, dstate in enumerate(now.dstates):
            alone = self.dynamics.alone(i)
            constants = list(alone.constants)
            coupled = alone.coupling is not None
            settings = ScanSettings(coupled, 1, None, None, self.backend, len(constants))
            wanted = [False, *[True] * len(constants), *[False] * alone.states]
            initials = starts[i + 1 - alone.states : i + 1]
            dtails = [None] * alone.states
            operands = (dstate, dtails, now.x, dstate.dtype, constants, initials)
            places = range(3) if coupled else (0, 1 + min(i, len(self.dynamics.decays) - 1))
            parts = input_gradients(settings, wanted, *operands)[1 : 1 + len(constants)]
            for place, part in zip(places, parts, strict=True):
                before = found[place]
                found[place] = part if before is None or part is None else before + part
        return found


def _rows(x: Tensor) -> Tensor:
    """One step or several, as several."""
    return x.unsqueeze(0) if x.ndim == 2 else x


class _Begin(torch.autograd.Function):
    """The token of the first step, of taps, constants, pasts and starts."""

    @staticmethod
    def forward(ctx: Any, tape: Tape, *tensors: Any) -> Tensor:
        ctx.tape = tape
        starts = tensors[len(tensors) - tape.states :]
        keep(ctx, starts if tape.learned else [None] * len(starts))
        return tape.zero.clone()

    @staticmethod
    @first_order
    def backward(ctx: Any, dtoken: Tensor) -> tuple[Tensor | None, ...]:
        (starts,) = kept(ctx)
        return None, *ctx.tape.gradients(ctx.needs_input_grad[1:], starts)


class _Step(torch.autograd.Function):
    """Appends the input to the tape: the output, and the token of the next step."""

    @staticmethod
    def forward(ctx: Any, tape: Tape, token: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        tape.upstream |= ctx.needs_input_grad[2]
        ctx.tape, ctx.x_dtype, ctx.upstream = tape, x.dtype, tape.upstream
        ctx.shape = x.shape
        ctx.place = tape.done, len(_rows(x))
        ctx.save_for_backward(x if tape.learned else None)
        ctx.set_materialize_grads(False)
        ctx.mark_dirty(token)
        return tape.append(x), token

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor | None, dtoken: Tensor | None) -> tuple[Any, ...]:
        (x,) = saved(ctx)
        dx = ctx.tape.step_backward(dy, x, *ctx.place, ctx.upstream)
        if dx is not None:
            dx = dx.view(ctx.shape).to(ctx.x_dtype) if ctx.needs_input_grad[2] else None
        return None, ctx.tape.zero, dx


class _Leave(torch.autograd.Function):
    """The last values of each state."""

    @staticmethod
    def forward(ctx: Any, tape: Tape, token: Tensor, last: int) -> tuple[Tensor, ...]:
        ctx.tape = tape
        ctx.set_materialize_grads(False)
        return tape.ends(last)

    @staticmethod
    @first_order
    def backward(ctx: Any, *dtails: Tensor | None) -> tuple[Any, ...]:
        ctx.tape.passing().dtails = dtails
        return None, ctx.tape.zero, None
