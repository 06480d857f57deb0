"""Synapses and the delayed projection of their currents over time: one step, and sequences.

Layers and the functional form share it: the choice of a strategy, the sequences that delayed reads
see, and the state afterwards.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..values import Dynamics, PackedSpikes, Slot, data_of, dense, readable
from .common import chained
from .operator import traced_as
from .projection import Taps, project, project_record, project_spikes
from .record import row_slots
from .scan import scan
from .strategy import Work, cheapest


class Run(NamedTuple):
    """A sequence of at least one step, and the synapses that receive it."""

    x: Tensor | PackedSpikes
    """``[T, B, N]``."""
    dynamics: Dynamics
    """Constants are 0-d or ``[N]``."""
    histories: Sequence[Tensor] | None
    """The last K values of each state, ``[K, B, N]`` oldest first; None at rest."""
    slots: int
    """K."""
    dtype: torch.dtype
    """Of the states."""
    backend: str | None = None

    @property
    def last(self) -> int:
        """How many of the steps a record will hold."""
        return min(self.x.shape[0], self.slots)

    @property
    def starts(self) -> Sequence[Tensor | None]:
        """The present value of each state, in the dtype of the arithmetic."""
        if self.histories is None:
            return [None] * self.dynamics.states
        return [history[-1].to(self.dynamics.gain.dtype) for history in self.histories]

    def components(self) -> list[Tensor]:
        """What delayed reads see: of each state ``[K - 1 + T, B, N]``, the past first."""
        sequences = []
        for i in range(self.dynamics.states):
            alone = self.dynamics.alone(i)
            starts = self.starts[i + 1 - alone.states : i + 1]
            new, _ = scan(self.x, alone, starts, dtype=self.dtype, backend=self.backend)
            if self.histories is None:
                past = new.new_zeros(self.slots - 1, *new.shape[1:])
            else:
                past = self.histories[i][1:].to(self.dtype)
            sequences.append(torch.cat((past, new)))
        return sequences


def _project_rows(
    records: Sequence[Tensor], pointers: Sequence[Slot], taps: Taps, *, backend: str | None = None
) -> Tensor:
    """The same by way of copies of the records in order of time, which keep the graph."""
    ordered = [
        record.index_select(0, row_slots(pointer, record.shape[0], record))
        for record, pointer in zip(records, pointers, strict=True)
    ]
    return project(ordered, taps, 1, strategy="shift", backend=backend)[0]


@traced_as(_project_rows)
def project_step(
    records: Sequence[Tensor], pointers: Sequence[Slot], taps: Taps, *, backend: str | None = None
) -> Tensor:
    """``[B, O]`` of what the components' records ``[K, B, I]`` hold now; differentiable."""
    wanted = chained(*taps.weights, *records)
    way = _project_rows if wanted else project_record
    return way(records, pointers, taps, backend=backend)


def project_sequence(
    run: Run, taps: Taps, *, strategy: str, graph: bool = True
) -> tuple[Tensor, list[Tensor]]:
    """The projection after each step, ``[T, B, O]``, and the last values of each component.

    The projection has the dtype of the weights. With ``graph`` false the components carry no graph;
    the taps still do.
    """
    x, dynamics, histories, slots, _, backend = run
    outputs = taps.back.shape[0]
    chosen = choose(strategy, x, outputs, slots, dynamics.decays, at_rest=histories is None)
    graph = graph and torch.is_grad_enabled()
    if chosen == "events":
        with torch.set_grad_enabled(graph):
            _, tails = scan(x, dynamics, run.starts, last=run.last, dtype=None, backend=backend)
        return project_spikes(x, taps, dynamics, histories, slots, backend=backend), tails
    with torch.set_grad_enabled(graph):
        sequences = run.components()
    y = project(sequences, taps, x.shape[0], strategy=chosen, backend=backend)
    return y, [sequence[-run.last :] for sequence in sequences]


def choose(
    strategy: str,
    x: Tensor | PackedSpikes,
    outputs: int,
    slots: int,
    decays: Sequence[Tensor],
    at_rest: bool,
) -> str:
    """The strategy for a sequence ``[T, B, I]``: the one asked for, or the cheapest."""
    if strategy != "auto":
        return strategy
    arrivals = None
    counted = x.dtype == torch.bool and readable(data_of(x))
    if counted and all(decay.ndim == 0 for decay in decays):
        arrivals = int(dense(x).count_nonzero()) * outputs
    steps, batch, inputs = x.shape
    row = batch * inputs * outputs
    past = 0 if at_rest else row * min(steps, slots - 1)
    finite = not x.dtype.is_floating_point
    return cheapest(Work(steps * row, past, slots, arrivals, finite), x.device)
