"""Synapses and the delayed projection of their currents, over sequences.

Layers and the functional form share it: the choice of a strategy, the sequences that delayed reads
see, and the state afterwards.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..values import Dynamics, PackedSpikes, Ring, SpikeTrains, data_of, dense, readable
from .lengths import input_until, last_rows, last_spikes_of_each
from .lines import scan_project, takes_lines
from .projection import component, project, total, way_of
from .ring import detached_ring, extend_ring, last_spikes
from .scan import pack_spikes, scan, scan_ring
from .spikes import pack_trains
from .strategy import Work, cheapest
from .taps import Taps


class Past(NamedTuple):
    """What the synapses hold when a sequence starts."""

    histories: Sequence[Tensor]
    """The last K values of each state, ``[K, B, N]`` oldest first."""
    newest: Sequence[Tensor]
    """The last of them ``[B, N]``, in the dtype of the arithmetic."""


End = Sequence[Tensor]
"""What a sequence leaves: the last values of each state ``[L, B, N]``, in the dtype of the
arithmetic; or, of a sequence in a ring, the state of the ring."""


class Run(NamedTuple):
    """A sequence of at least one step, and the synapses that receive it."""

    x: Tensor | PackedSpikes
    """``[T, B, N]``."""
    dynamics: Dynamics
    """Constants are 0-d or ``[N]``."""
    past: Past | None
    """None at rest."""
    slots: int
    """K."""
    dtype: torch.dtype
    """Of the states."""
    backend: str | None = None
    ring: Ring | None = None
    """Where the sequence starts and ends, if that is not in tensors of its own."""
    lengths: Tensor | None = None
    """Steps of each sample ``[B]``, whose state is then that at its own end; None: all of them.
    There has to be a ring."""

    def until(self, lengths: Tensor | None) -> "Run":
        """The same, of which each sample ends after so many steps, if there are any given."""
        if lengths is None:
            return self
        return self._replace(x=input_until(self.x, lengths), lengths=lengths)

    @property
    def last(self) -> int:
        """How many of the steps a record will hold."""
        return min(self.x.shape[0], self.slots)

    @property
    def starts(self) -> Sequence[Tensor | None]:
        """The present value of each state, in the dtype of the arithmetic."""
        return [None] * self.dynamics.states if self.past is None else self.past.newest

    def detached(self) -> "Run":
        """The same without a graph of input, constants and state."""
        x = self.x if isinstance(self.x, PackedSpikes) else self.x.detach()
        constants = [constant.detach() for constant in self.dynamics.constants]
        dynamics = Dynamics.of(constants, self.dynamics.coupling is not None)
        past = self.past and Past(*([t.detach() for t in tensors] for tensors in self.past))
        ring = self.ring and detached_ring(self.ring)
        return self._replace(x=x, dynamics=dynamics, past=past, ring=ring)

    def alone(self, state: int) -> tuple[Dynamics, Sequence[Tensor | None]]:
        """The dynamics of which a state is the current, and their present values."""
        alone = self.dynamics.alone(state)
        return alone, self.starts[state + 1 - alone.states : state + 1]

    def scanned(self) -> tuple[list[Tensor], End]:
        """The states ``[T, B, N]``, and the end of the sequence."""
        if self.lengths is not None:
            exact = self._exact()
            return [state.to(self.dtype) for state in exact], self._ended_at(exact, self.lengths)
        if self.ring is not None and self.dynamics.states == 1:
            y, state = self._in_ring(self.ring, self.dtype)
            assert y is not None
            return [y], state
        sequences, tails = [], []
        how: dict[str, Any] = {"last": self.last, "dtype": self.dtype, "backend": self.backend}
        for i in range(self.dynamics.states):
            new, tail = scan(self.x, *self.alone(i), **how)
            sequences.append(new)
            tails.append(tail[-1])
        if self.ring is None:
            return sequences, tails
        spikes = last_spikes(self.x, self.last)
        return sequences, extend_ring(self.ring, spikes, self.x.shape[0], tails)

    def ended(self) -> End:
        """The end of the sequence alone."""
        if self.lengths is not None:
            return self._ended_at(self._exact(), self.lengths)
        if self.ring is not None:
            return self._in_ring(self.ring, None)[1]
        how: dict[str, Any] = {"last": self.last, "dtype": None, "backend": self.backend}
        return scan(self.x, self.dynamics, self.starts, **how)[1]

    def _exact(self) -> list[Tensor]:
        """The states ``[T, B, N]`` in the dtype of the arithmetic."""
        run = self._replace(dtype=self.dynamics.gain.dtype, ring=None, lengths=None)
        return run.scanned()[0]

    def _ended_at(self, states: Sequence[Tensor], lengths: Tensor) -> End:
        """The state of the ring, with each sample as it was at its own end."""
        assert self.ring is not None
        tails = []
        for i, state in enumerate(states):
            history = None
            if self.past is not None:
                older, newest = self.past.histories[i][:-1], self.past.newest[i]
                history = torch.cat((older.to(state.dtype), newest.unsqueeze(0)))
            tails.append(last_rows(state, lengths, self.slots, history))
        spikes = last_spikes_of_each(self.x, lengths, self.ring)
        return extend_ring(self.ring, spikes, self.x.shape[0], tails)

    def _in_ring(self, ring: Ring, dtype: torch.dtype | None) -> tuple[Tensor | None, End]:
        how: dict[str, Any] = {"at_rest": self.past is None, "backend": self.backend}
        return scan_ring(self.x, ring, self.dynamics, dtype=dtype, **how)

    def before(self) -> list[Tensor] | None:
        """The last K - 1 values ``[K - 1, B, N]`` of each state from before; None at rest."""
        if self.past is None:
            return None
        return [history[1:].to(self.dtype) for history in self.past.histories]


def project_sequence(run: Run, taps: Taps, *, strategy: str) -> tuple[Tensor, End]:
    """The projection after each step, ``[T, B, O]`` in the dtype of the weights, and the end of the
    sequence.
    """
    x, dynamics, past, slots, _, backend, *_ = run
    at_rest, density = past is None, taps.density
    chosen = choose(strategy, x, taps.outputs, slots, dynamics.decays, at_rest, density)
    taps = taps if chosen == "shift" else taps.dense()
    if chosen in ("bits", "events"):
        return _project_spikes(run, taps, chosen), run.ended()
    if chosen == "shift" and takes_lines(x, backend):
        return _project_lines(run, taps)
    pasts = run.before()
    sequences, end = run.scanned()
    how: dict[str, Any] = {"pasts": pasts, "strategy": chosen, "backend": backend}
    return project(sequences, taps, x.shape[0], slots, **how), end


def _project_lines(run: Run, taps: Taps) -> tuple[Tensor, End]:
    """The same by shifted sums, with the currents in lines."""
    pasts: Sequence[Tensor | None] = run.before() or [None] * len(taps.weights)
    own = run.dynamics.states == 1 and run.lengths is None
    how: dict[str, Any] = {"dtype": run.dtype, "backend": run.backend}
    how |= {"last": run.last, "ring": run.ring if own else None}
    parts: list[Tensor] = []
    ends: list[Tensor] = []
    for i, (weight, past) in enumerate(zip(taps.weights, pasts, strict=True)):
        alone, starts = run.alone(i)
        operands = (alone, starts, past, weight, taps.back, run.slots)
        y, end = scan_project(run.x, *operands, links=taps.links, **how)
        parts.append(y)
        ends += end
    return total(parts), ends if own or run.ring is None else run.ended()


def choose(
    strategy: str,
    x: Tensor | PackedSpikes,
    outputs: int,
    slots: int,
    decays: Sequence[Tensor],
    at_rest: bool,
    density: float = 1.0,
) -> str:
    """The strategy for a sequence ``[T, B, I]``: the one asked for, or the cheapest.

    ``density`` is the part of the connections that there are.
    """
    if strategy != "auto":
        return strategy
    arrivals = None
    spikes = x.dtype == torch.bool and all(decay.ndim == 0 for decay in decays)
    if spikes and readable(data_of(x)):
        arrivals = int(dense(x).count_nonzero()) * outputs
    steps, batch, inputs = x.shape
    row = batch * inputs * outputs
    past = 0 if at_rest else row * min(steps, slots - 1)
    finite = not x.dtype.is_floating_point
    work = Work(steps * row, past, slots, arrivals, spikes, finite, density=density)
    return cheapest(work, x.device)


def _project_spikes(run: Run, taps: Taps, strategy: str) -> Tensor:
    """The projected currents ``[T, B, O]`` of spikes.

    With one time constant for the group, which 0-d decays are, delaying and filtering commute: the
    spikes arrive at the outputs, and are filtered there.
    """
    x, dynamics, past, slots, _, backend, *_ = run
    spikes: PackedSpikes | SpikeTrains
    if strategy == "bits":
        spikes = pack_trains(x, slots, backend=backend)
    else:
        spikes = x if isinstance(x, PackedSpikes) else pack_spikes(x, backend=backend)
    way = way_of(strategy, taps.back.device, backend)
    gain, dtype = dynamics.gain, taps.weights[0].dtype
    # From rest the filter has one gain of the group; else the weights have it, as what is under way
    # has it already.
    filtered = past is None and not gain.ndim
    if not filtered:
        unit = torch.ones((), dtype=gain.dtype, device=gain.device)
        dynamics = dynamics._replace(gain=unit)
    if past is not None:
        histories = [history.to(dtype) for history in past.histories]
        under_way = _under_way(histories, taps, dynamics)
    parts = []
    for i, weight in enumerate(taps.weights):
        scaled = weight if filtered else weight * gain
        arriving = component(way, spikes, scaled, taps.back, x.shape[0], slots)
        alone = dynamics.alone(i)
        initials: list[Tensor | None] = [None] * alone.states
        if past is not None:
            tap = Taps(taps.back, (weight,))
            seen = histories[i + 1 - alone.states : i + 1]
            how: dict[str, Any] = {"strategy": "shift", "backend": backend}
            initials = [project((h,), tap, 1, slots, **how)[0] for h in seen]
            for increments, through in under_way[i]:
                tap = Taps(taps.back, (through,))
                arriving = _add_past(arriving, increments, tap, backend)
        parts.append(scan(arriving, alone, initials, dtype=dtype, backend=backend)[0])
    return total(parts)


def _under_way(
    histories: Sequence[Tensor], taps: Taps, dynamics: Dynamics
) -> list[list[tuple[Tensor, Tensor]]]:
    """The input from before the first step, and its weights, for the filter of each state.

    A history is the decaying sum of its own increments, ``C[t] - decay * C[t-1]``. The filter of
    two coupled states takes the increments of the first only; those of the second go through the
    filter of the first state alone, whose decay is the same.
    """
    increments = [
        history[1:] - dynamics.decay(i) * history[:-1] for i, history in enumerate(histories)
    ]
    if dynamics.coupling is None:
        return [[pair] for pair in zip(increments, taps.weights, strict=True)]
    rise, current = increments
    current = current - dynamics.decay(1) * dynamics.coupling * histories[0][:-1]
    first, second = taps.weights
    return [[(rise, first), (current, second)], [(rise, second)]]


def _add_past(arriving: Tensor, increments: Tensor, tap: Taps, backend: str | None) -> Tensor:
    """Adds the increments ``[K - 1, B, I]`` from before the first step to what arrives."""
    steps = min(arriving.shape[0], increments.shape[0])
    if steps == 0:
        return arriving
    sequence = torch.cat((increments, increments.new_zeros(steps, *increments.shape[1:])))
    connections = sequence[:steps].numel() * tap.back.shape[0]
    work = Work(connections, 0, increments.shape[0] + 1, None, finite=False)
    strategy = cheapest(work, arriving.device)
    slots = increments.shape[0] + 1
    past = project((sequence,), tap, steps, slots, strategy=strategy, backend=backend)
    return torch.cat((arriving[:steps] + past, arriving[steps:]))
