"""Steps of a delayed layer on a tape, for recurrent networks: the currents of a run in memory of
their own, and one gradient of the connections at the end.

A step appends a row to the tape and sums rows; it is an autograd Function, and a chain of tokens
keeps them in order. In backward the gradients of the outputs go to a second tape, on which the
gradient of the currents is the adjoint sum, since all that is later is known by then. What is kept
of a step is a row of the currents and a row of that gradient, whatever the longest delay is.
"""

from collections import deque
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Variable

from ..values import Connections, data_of
from .common import (
    bare_apply,
    chained,
    first_order,
    implementation,
    keep,
    kept,
    running,
    saved,
    without_graph,
)
from .delayed import Run
from .scan import ScanSettings, input_gradients
from .spread import Spread
from .strategy import Work, cheapest
from .taps import Taps

Sums = list[Connections]
"""Of each state."""


class _Pass:
    """What one backward pass collects on its way from the last step to the first."""

    def __init__(self, tape: "Tape") -> None:
        rows, dtype = tape.outputs + 2 * (tape.slots - 1), tape.taps.weights[0].dtype
        self.dy = tape.blank(rows, tape.columns, dtype)
        """After K - 1 rows, from before the first step, that stay zero."""
        self.later: Sequence[Tensor] | None = None
        """The gradient of each state in the step that comes next."""
        self.dtails: Sequence[Tensor | None] = ()
        """Of the last values of each state."""
        self.dstates: list[Tensor] = []
        """Of all steps ``[T, B, N]``, and the input, where constants are learned."""
        self.x: Tensor | None = None


class Tape:
    """A run of at most ``steps`` steps, of synapses that hold ``run.past``.

    ``run.x [1, B, I]`` is the input of the first step, which :meth:`step` is still to be given;
    ``taps`` and constants count as they are now. No connection has a delay below ``least`` steps.
    Without ``graph`` nothing is differentiated but the taps.

    With ``reads`` the taps ``[reads * D, I]`` are no connections, but each row of them reads each
    synapse: D rows for each of ``reads`` samples, which are 1 or B. The outputs are ``[B, D * I]``.

    With ``spread`` its delays get that gradient.
    """

    def __init__(
        self,
        run: Run,
        taps: Taps,
        steps: int,
        *,
        least: int = 0,
        graph: bool = True,
        reads: int | None = None,
        spread: Spread | None = None,
    ) -> None:
        run = run if graph else run.detached()
        if least:  # the delay of a NaN counts as 0
            taps = taps._replace(back=taps.back.clamp(min=least))
        self.dynamics, self.slots, self.dtype, self.taps = run.dynamics, run.slots, run.dtype, taps
        self.batch, self.least, self.graph = run.x.shape[1], least, graph
        self.device, self.backend = taps.back.device, running(taps.back.device, run.backend)
        # Reads are gathers of PyTorch's own on any device.
        backend = self.backend if reads is None else "reference"
        self.module: Any = implementation("tape", self.device, backend)
        self.columns = taps.outputs
        if reads is not None:
            self.module, self.columns = self.module.Reads(reads), taps.back.numel() // reads
        self.outputs, self.done = steps + least, 0
        """Outputs of the last steps may be known before their inputs are."""
        self.states = self.dynamics.states
        synapses = run.x.shape[2]
        pasts, starts = run.before(), run.starts
        operands = (*taps.weights, *self.dynamics.constants, *(pasts or ()), *starts)
        self.counts = len(taps.weights), len(self.dynamics.constants), len(pasts or ())
        self.mode, self.spread = _mode(), spread
        delay = None if spread is None else spread.delay
        self.recorded = chained(data_of(run.x) if graph else None, delay, *operands)
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
        self.given: deque[Tensor] = deque(maxlen=self.slots)
        """The last inputs."""
        self.adjoints: Sums | None = None
        self.passes: dict[int, _Pass] = {}
        self.zero = torch.zeros((), device=self.device)
        self.token: Tensor | None = _Begin.apply(self, delay, *operands) if self.recorded else None

    def _start(self, start: Tensor | None, synapses: int) -> Tensor:
        """The present value of a state, in memory of its own."""
        if start is not None:
            return start.detach()
        size, dtype = (self.batch, synapses), self.dynamics.gain.dtype
        return torch.zeros(size, dtype=dtype, device=self.device)

    def blank(self, rows: int, columns: int, dtype: torch.dtype) -> Any:
        """A tape for so many rows."""
        width = self.slots - self.least
        return self.module.blank(rows, self.batch, columns, width, dtype, self.device)

    def connections(self, adjoint: bool) -> Sums:
        """The taps, prepared for the sums of each state."""
        how = self.taps.back, self.slots, self.least, adjoint, self.taps.links
        return [self.module.connections(weight.detach(), *how) for weight in self.taps.weights]

    def takes(self, x: Tensor) -> bool:
        """Whether the run can go on with this input: in the mode it began in, and with a graph if
        the input has one."""
        linked = self.recorded or not (self.graph and x.requires_grad and torch.is_grad_enabled())
        return linked and self.mode == _mode()

    @property
    def links(self) -> bool:
        """Whether the state keeps its graph; otherwise these steps cut it, as plain ones would."""
        return self.graph and self.mode[0]

    def step(self, x: Tensor) -> Tensor:
        """A step with the input ``[B, I]``; or ``m`` of them with ``[m, B, I]``, ``m - 1`` at most
        ``least``: the outputs ``[m, B, O]`` of the last of them and of the ``m - 1`` after it.
        """
        if not self.graph:
            x = x.detach()
        if self.token is None:
            y = self.append(x)
        else:
            y, self.token = _record_step(self, self.token, x)
        self.done += 1 if x.ndim == 2 else x.shape[0]
        return y

    def append(self, x: Tensor) -> Tensor:
        """What a step does to the tape, and its outputs."""
        row, module, single = self.slots - 1 + self.done, self.module, x.ndim == 2
        how = self.dynamics, self.present, self.dtype
        present = module.advance(x, self.tapes, row, *how)
        count = 1 if single else x.shape[0]
        row += count - 1
        y = module.sums(self.tapes[0], row, count, self.sums[0])
        if self.states == 2:
            y += module.sums(self.tapes[1], row, count, self.sums[1])
        given = x.clone()  # which the caller may write to
        self.given.extend((given,) if single else given.unbind())
        self.present = present  # at last: until here an error leaves the tape as it was
        # Not a view, which could not be written in place where a graph is recorded.
        return y if single else torch.ops.aten._unsafe_view(y, (*x.shape[:2], -1))

    def end(self) -> tuple[Tensor, Sequence[Tensor]]:
        """The last inputs and the last values of each state, ``[L, B, I]``, L of at most K steps;
        these in the dtype of the arithmetic, and differentiable. No step follows."""
        spikes, token, self.token = torch.stack([*self.given]), self.token, None
        if token is None or not self.upstream:  # the state does not depend on taps
            with without_graph():
                return spikes, self.tails()
        return spikes, _Leave.apply(self, token)

    def tails(self) -> tuple[Tensor, ...]:
        """The last values of each state without a graph."""
        last = len(self.given)
        first, dtype = self.slots - 1 + self.done - last, self.dynamics.gain.dtype
        found = [self.module.rows(tape, first, last).to(dtype) for tape in self.tapes]
        for tail, present in zip(found, self.present, strict=True):
            tail[-1] = present  # as it was before the tape rounded it
        return tuple(found)

    # -- backward -----------------------------------------------------------------------------

    def this_pass(self) -> _Pass:
        """What the present backward pass has collected."""
        task = torch._C._current_graph_task_id()
        if task not in self.passes:
            # Others may be in progress in other threads, and not every pass comes to the beginning.
            self.passes[task] = _Pass(self)
            Variable._execution_engine.queue_callback(partial(self.passes.__delitem__, task))
        return self.passes[task]

    def step_backward(
        self, dy: Tensor | None, x: Tensor | None, first: int, count: int, upstream: bool
    ) -> Tensor | None:
        """The gradient of the input of ``count`` steps from ``first`` on, ``[B, I]`` of one."""
        now, module = self.this_pass(), self.module
        if dy is not None:
            module.add(now.dy, self.slots - 1 + first + count - 1, dy)
        if not upstream:
            return None
        if self.adjoints is None:
            self.adjoints = self.connections(adjoint=True)
        row = self.slots - 1 + first
        dstates = [module.sums(now.dy, row, count, sums) for sums in self.adjoints]
        if now.dtails or x is not None:
            rows = [dstate.view(count, self.batch, -1) for dstate in dstates]
            self._add_tails(rows, now.dtails, first)
            self._collect(rows, x, now, first)
        if count == 1:
            return self._before(dstates, now)
        steps = zip(*[dstate.split(self.batch) for dstate in dstates], strict=True)
        dx = [self._before(each, now) for each in reversed([*steps])]
        return torch.stack(dx[::-1])

    def _before(self, dstates: Sequence[Tensor], now: _Pass) -> Tensor:
        """The gradient of the input ``[B, I]`` of one step, from those that its states get by what
        is read of them, which may be written to."""
        if now.later is not None:
            self._carry(now.later, dstates)
        now.later = dstates
        taking = dstates[0] if self.dynamics.inputs == 1 else dstates[0] + dstates[1]
        return taking * self.dynamics.gain

    def _carry(self, later: Sequence[Tensor], dstates: Sequence[Tensor]) -> None:
        """Adds what the gradients of the states one step later give these."""
        for i, dstate in enumerate(dstates):
            dstate.addcmul_(later[i], self.dynamics.decay(i))
        if self.dynamics.coupling is not None:
            fed = self.dynamics.coupling * self.dynamics.decay(1)
            dstates[0].addcmul_(later[1], fed)

    def _add_tails(
        self, dstates: Sequence[Tensor], dtails: Sequence[Tensor | None], first: int
    ) -> None:
        """Adds the gradients of the last values to those of the steps that they are of."""
        for dstate, dtail in zip(dstates, dtails, strict=False):
            if dtail is not None:
                start = first - (self.done - dtail.shape[0])
                here = dtail[max(start, 0) : max(start + dstate.shape[0], 0)]
                if len(here):
                    dstate[-len(here) :].add_(here)

    def _collect(self, dstates: Sequence[Tensor], x: Tensor | None, now: _Pass, first: int) -> None:
        """Keeps what the gradients of the constants are computed from, if they are learned."""
        if x is None:
            return
        if now.x is None:
            size = (self.done, *x.shape[-2:])
            now.x = dstates[0].new_zeros(size)
            now.dstates = [dstates[0].new_zeros(size) for _ in dstates]
        for whole, part in zip((now.x, *now.dstates), (x, *dstates), strict=True):
            whole[first : first + dstates[0].shape[0]] = part

    def gradients(self, wanted: Sequence[bool], starts: Sequence[Any]) -> list[Tensor | None]:
        """Those of taps, constants, what is from before, and the present values."""
        now = self.this_pass()
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
        dpasts = [self._dpast(i, now) if w else None for i, w in enumerate(of_pasts)]
        dstarts: list[Tensor | None] = [None] * len(of_starts)
        if any(of_starts) and now.later is not None:
            found = [torch.zeros_like(dstate) for dstate in now.later]
            self._carry(now.later, found)
            dstarts = [dstart if w else None for dstart, w in zip(found, of_starts, strict=True)]
        return [*dweights, *dconstants, *dpasts, *dstarts]

    def delay_gradient(self) -> Tensor:
        """That of the delays by their spread."""
        assert self.spread is not None
        module, before, now = self.module, self.slots - 1, self.this_pass()
        states = [module.rows(tape, 0, before + self.done) for tape in self.tapes]
        currents = self.dynamics.current(states)
        if self.least:  # outputs that are known before their inputs do not read these
            currents = torch.cat((currents, currents[-1:].expand(self.least, -1, -1)))
        dy = module.rows(now.dy, before, self.done + self.least)
        return self.spread.gradient(dy, currents)

    def _strategy(self) -> str:
        taps = self.taps
        if taps.links is not None:
            return "shift"
        connections = self.outputs * self.batch * taps.back.numel()
        return cheapest(Work(connections, 0, self.slots, None), self.device)

    def _dweight(self, tape: Any, now: _Pass) -> Tensor:
        how = self.slots, self._strategy(), self.taps.links
        return self.module.dot(now.dy, tape, self.taps.back, *how)

    def _dpast(self, state: int, now: _Pass) -> Tensor:
        """Of the K - 1 rows before the first."""
        before = self.slots - 1
        if not before:
            return self.present[state].new_empty(0, *self.present[state].shape)
        if self.adjoints is None:
            self.adjoints = self.connections(adjoint=True)
        rows = self.module.sums(now.dy, 0, before, self.adjoints[state])
        return rows.view(before, self.batch, -1)

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


def _mode() -> tuple[bool, bool]:
    """What autograd records."""
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled()


class _Begin(torch.autograd.Function):
    """The token of the first step, of delays with a spread, taps, constants, pasts and starts."""

    @staticmethod
    def forward(ctx: Any, tape: Tape, delay: Tensor | None, *tensors: Any) -> Tensor:
        ctx.tape = tape
        starts = tensors[len(tensors) - tape.states :]
        keep(ctx, starts if tape.learned else [None] * len(starts))
        return tape.zero.clone()

    @staticmethod
    @first_order
    def backward(ctx: Any, dtoken: Tensor) -> tuple[Tensor | None, ...]:
        (starts,) = kept(ctx)
        wants_delay, *wanted = ctx.needs_input_grad[1:]
        ddelay = ctx.tape.delay_gradient() if wants_delay else None
        return None, ddelay, *ctx.tape.gradients(wanted, starts)


class _Step(torch.autograd.Function):
    """Appends the input to the tape: the output, and the token of the next step."""

    @staticmethod
    def forward(ctx: Any, tape: Tape, token: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        tape.upstream |= ctx.needs_input_grad[2]
        ctx.tape, ctx.x_dtype, ctx.upstream = tape, x.dtype, tape.upstream
        ctx.shape = x.shape
        ctx.place = tape.done, 1 if x.ndim == 2 else x.shape[0]
        ctx.learned = tape.learned
        if tape.learned:
            ctx.save_for_backward(x)
        ctx.set_materialize_grads(False)
        ctx.mark_dirty(token)
        return tape.append(x), token

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor | None, dtoken: Tensor | None) -> tuple[Any, ...]:
        x = saved(ctx)[0] if ctx.learned else None
        dx = ctx.tape.step_backward(dy, x, *ctx.place, ctx.upstream)
        if dx is not None:
            dx = dx.view(ctx.shape).to(ctx.x_dtype) if ctx.needs_input_grad[2] else None
        return None, ctx.tape.zero, dx


_record_step = bare_apply(_Step)


class _Leave(torch.autograd.Function):
    """The last values of each state."""

    @staticmethod
    def forward(ctx: Any, tape: Tape, token: Tensor) -> tuple[Tensor, ...]:
        ctx.tape = tape
        ctx.save_for_backward(token)  # for what is said where the graph of an older run is freed
        ctx.set_materialize_grads(False)
        return tape.tails()

    @staticmethod
    @first_order
    def backward(ctx: Any, *dtails: Tensor | None) -> tuple[Any, ...]:
        saved(ctx)
        ctx.tape.this_pass().dtails = dtails
        return None, ctx.tape.zero
