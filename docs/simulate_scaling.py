"""Simulates a recurrent layer that is sharded over many GPUs: python docs/simulate_scaling.py

Each GPU computes its part of the neurons for a block of steps, and then their spikes go round a
ring until every GPU has all of them. Prints the tables of docs/distributed.md, which says where the
figures of the machine are from.
"""

from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

BATCH, GPUS, BLOCK = 64, (1, 8, 64), 10
BIT, FLOAT = 1 / 8, 4.0
"""Bytes of a spike on the wire."""


class Machine(NamedTuple):
    """GPUs in nodes; times in µs."""

    taps: float = 1.9e6
    """Connections that a GPU computes in a µs, for one step and sample."""
    bandwidth: float = 0.37e6
    """Bytes that a GPU sends in a µs."""
    start: float = 6.6
    """Of an exchange, before anything is on its way."""
    hop: float = 0.6
    """From one GPU to the next of the same node, for the first byte."""
    network: float = 2.7
    """The same to another node."""
    node: int = 8
    """GPUs in a node."""


class Cost(NamedTuple):
    """Of one step of the layer, on each GPU."""

    compute: float
    """µs."""
    exchange: float
    """µs."""
    received: float
    """Bytes."""

    @property
    def efficiency(self) -> float:
        """The part of the time in which something is computed."""
        return self.compute / (self.compute + self.exchange)


def ring(gpus: int, part: float, machine: Machine) -> tuple[float, float]:
    """Time and bytes received, where each GPU has a part of so many bytes that all are to have.

    In each round every GPU passes on what it received in the last one.
    """
    here = np.arange(gpus) // machine.node
    latency = np.where(
        here == np.roll(here, 1), machine.hop, machine.network
    )  # from the one before
    have, sent = np.full(gpus, machine.start), np.zeros(gpus)
    for _ in range(gpus - 1):
        sent = np.maximum(have, sent) + part / machine.bandwidth
        have = np.roll(sent, 1) + latency
    return (have.max() if gpus > 1 else 0.0), (gpus - 1) * part


def step(
    neurons: int, gpus: int, block: int = 1, spike: float = BIT, machine: Machine | None = None
) -> Cost:
    """A step of a dense recurrent layer, whose spikes are exchanged once in a block of steps."""
    machine = machine or Machine()
    own = neurons / gpus
    time, received = ring(gpus, block * BATCH * own * spike, machine)
    return Cost(BATCH * own * neurons / machine.taps, time / block, received / block)


def crossing(neurons: int, block: int, spike: float) -> int:
    """The first number of whole nodes' GPUs that take longer to exchange than to compute."""

    def exchanges_longer(nodes: int) -> bool:
        cost = step(neurons, nodes * Machine().node, block, spike)
        return cost.exchange > cost.compute

    return Machine().node * bisect_left(range(1000), True, lo=1, key=exchanges_longer)


def sized(count: float) -> str:
    """Bytes to read."""
    return f"{count / 2**20:.3g} MiB" if count >= 2**20 else f"{count / 2**10:.3g} KiB"


def timed(time: float) -> str:
    """A time to read."""
    return f"{time:,.0f} µs" if time >= 100 else f"{time:.3g} µs"


def table(neurons: int) -> Iterator[str]:
    """Costs for numbers of GPUs, in Markdown."""
    yield "| GPUs | bits | float32 | compute | exchange of bits | in blocks | float32 in blocks |"
    yield "|---|---|---|---|---|---|---|"
    for gpus in GPUS:
        bits, blocks = step(neurons, gpus), step(neurons, gpus, BLOCK)
        floats = step(neurons, gpus, BLOCK, FLOAT)
        times = [f"{timed(c.exchange)}, {c.efficiency:.0%}" for c in (bits, blocks, floats)]
        cells = [sized(bits.received), sized(floats.received), timed(bits.compute), *times]
        yield f"| {gpus} | {' | '.join(cells)} |"


def crossings() -> Iterator[str]:
    """Where exchanging takes as long as computing, in Markdown."""
    yield "| neurons | bits, each step | bits, in blocks | float32, in blocks |"
    yield "|---|---|---|---|"
    for neurons in (2048, 16384, 65536):
        ways = ((1, BIT), (BLOCK, BIT), (BLOCK, FLOAT))
        found = [f"{crossing(neurons, *way):,}" for way in ways]
        yield f"| {neurons:,} | {' | '.join(found)} |"


if __name__ == "__main__":
    for lines in (table(16384), table(2048), crossings()):
        print("\n".join(lines), end="\n\n")
