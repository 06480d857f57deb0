"""Recurrent delayed layers on a CPU, against a loop that one would write by hand.

``python bench/recurrent.py`` prints tables in Markdown, what it is at on stderr:

* **train**: a recurrent network ``z = f(i + layer(z))`` through ``layer.unrolled``, forward alone
  and with the gradients of weights and delays, against six lines of PyTorch that hold the last K
  currents and multiply them by one masked matrix;
* **ahead**: the same network in blocks of 8 steps by ``layer.ahead``, against single steps;
* **memory**: what a step keeps for the backward pass, in rows of one number per neuron.

A ratio is the median over pairs of runs, one right after the other, of the time of the first over
that of the second. Before anything is timed, both must give the same values and gradients. On a
busy machine ``--processor --threads 1`` leaves out the time in which others ran.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, NamedTuple

import torch
from machine import Usage, device_name, others
from neurons import spike
from timing import host_memory
from torch import Tensor

import tritonsyn

TAU, GAIN, DT = 5.0, 1.0, 1.0
BLOCK = 8
LEAST_PAIRS = 5
Neuron = Callable[[Tensor], Tensor]
Run = Callable[[], Tensor]


NEURONS: dict[str, Neuron] = {"smooth": torch.sigmoid, "spikes": spike}


@dataclass(frozen=True)
class Size:
    """How large a network is, and how long it runs."""

    slots: int = 9
    """K: the longest delay is K - 1 steps."""
    batch: int = 32
    neurons: int = 128
    steps: int = 50
    least: int = 0
    """The shortest delay, in steps."""

    def __str__(self) -> str:
        return f"B={self.batch} N={self.neurons} T={self.steps} K={self.slots}"


class Network:
    """Neurons that hear each other through delays, in several ways of running them."""

    def __init__(self, size: Size, neuron: Neuron = torch.sigmoid) -> None:
        torch.manual_seed(0)
        n, physics = size.neurons, (TAU * GAIN, TAU)
        self.size, self.neuron = size, neuron
        self.layer = tritonsyn.DelayedLinear(
            n, n, DT, synapse=tritonsyn.SingleExponentialCurrent.partialconstructor(*physics),
            delay=(size.slots - 1) * DT, min_delay=size.least * DT, batch_size=size.batch,
            weight_init=lambda weight: torch.nn.init.normal_(weight, std=0.2 / math.sqrt(n)),
            backend="reference",
        )  # fmt: skip
        self.x = 3 * torch.rand(size.steps, size.batch, n)
        self.rest = torch.zeros(size.batch, n)

    def alone(self) -> Tensor:
        """The neurons without a layer."""
        z, out = self.layer.weight[0], []
        for i in self.x:
            z = self.neuron(i + z)
            out.append(z)
        return torch.stack(out)

    def plain(self) -> Tensor:
        """Single calls of the layer."""
        self.layer.clear()
        return self._steps()

    def unrolled(self) -> Tensor:
        """Single calls on a tape."""
        self.layer.clear()
        with self.layer.unrolled(self.size.steps):
            return self._steps()

    def _steps(self) -> Tensor:
        z, out = self.rest, []
        for i in self.x:
            z = self.neuron(i + self.layer(z))
            out.append(z)
        return torch.stack(out)

    def ahead(self) -> Tensor:
        """Blocks of steps on a tape."""
        self.layer.clear()
        z, out = self.rest.expand(BLOCK, -1, -1), []
        with self.layer.unrolled(self.size.steps):
            for i in self.x.split(BLOCK):
                z = self.neuron(i + self.layer.ahead(z))
                out.append(z)
        return torch.cat(out)

    def hand(self) -> Tensor:
        """What one would write without a library."""
        decay, past = math.exp(-DT / TAU), [self.rest] * self.size.slots
        delay = self.layer.delay / DT
        back = delay.detach().ceil()
        weight = self.layer.weight * torch.exp(-(back - delay) * (DT / TAU))
        matrix = torch.cat([weight.where(back == k, 0.0) for k in range(self.size.slots)], 1).t()
        z, out = self.rest, []
        for i in self.x:
            past = [past[0] * decay + GAIN * z, *past[:-1]]
            z = self.neuron(i + torch.cat(past, 1) @ matrix)
            out.append(z)
        return torch.stack(out)

    def trained(self, run: Run) -> tuple[Tensor, ...]:
        """A run and its gradients."""
        out = run()
        learned = self.layer.weight, self.layer.delay
        return out, *torch.autograd.grad(out.square().mean(), learned, allow_unused=True)

    def check(self, ours: Run, theirs: Run) -> None:
        """Both runs give the same values and gradients, to the rounding of float32."""
        for one, other in zip(self.trained(ours), self.trained(theirs), strict=True):
            scale = other.abs().max().item()
            torch.testing.assert_close(one, other, rtol=0.0, atol=1e-5 * scale)


class Compared(NamedTuple):
    """Times of two runs, seconds."""

    ours: float
    theirs: float
    ratio: float


def compare(
    ours: Callable[[], Any], theirs: Callable[[], Any], seconds: float, clock: Callable[[], float]
) -> Compared:
    """Medians over pairs of runs, for so many seconds."""
    ours(), theirs()
    pairs, end = [], time.perf_counter() + seconds
    while len(pairs) < LEAST_PAIRS or time.perf_counter() < end:
        pairs.append((_seconds(ours, clock), _seconds(theirs, clock)))
    first, second = zip(*pairs, strict=True)
    return Compared(median(first), median(second), median(a / b for a, b in pairs))


def _seconds(run: Callable[[], Any], clock: Callable[[], float]) -> float:
    start = clock()
    run()
    return clock() - start


# -- measures -------------------------------------------------------------------------------------

Row = tuple[str, ...]
Way = Callable[["Network", Run], Callable[[], Any]]


class Options(NamedTuple):
    """What is asked of a measure."""

    slots: Sequence[int]
    threads: Sequence[int]
    seconds: float
    clock: Callable[[], float] = time.perf_counter


WAYS: dict[str, Way] = {
    "forward": lambda net, run: torch.no_grad()(run),
    "training": lambda net, run: lambda: net.trained(run),
}


def timed(
    net: Network, name: str, options: Options, ours: Run, theirs: Run
) -> Iterator[tuple[Row, str, Compared]]:
    """Both runs, forward alone and in training, with each number of threads."""
    for threads in options.threads:
        torch.set_num_threads(threads)
        for what, way in WAYS.items():
            tell(f"{name}, {what}, threads: {threads}")
            found = compare(way(net, ours), way(net, theirs), options.seconds, options.clock)
            times = (f"{1e3 * seconds:.1f}" for seconds in (found.theirs, found.ours))
            yield (name, str(threads), what, *times, f"{found.ratio:.2f}"), what, found


def train(options: Options) -> Iterator[Row]:
    """Steps on a tape against the loop by hand."""
    yield "network", "threads", "run", "by hand, ms", "unrolled, ms", "ratio", "wanted", "plain"
    wanted = {"forward": "at most 1.3", "training": "at most 1.0"}
    for slots in options.slots:
        for kind, neuron in NEURONS.items():
            net = Network(Size(slots), neuron)
            if kind == "smooth":  # spikes part where a sum is at the threshold
                net.check(net.unrolled, net.hand)
            name = f"{net.size}, {kind}"
            for row, what, _ in timed(net, name, options, net.unrolled, net.hand):
                plain = compare(
                    WAYS[what](net, net.plain), WAYS[what](net, net.hand), 0.0, options.clock
                )
                yield *row, wanted[what], f"{plain.ratio:.1f}"


def ahead(options: Options) -> Iterator[Row]:
    """Blocks of steps against single ones, both on a tape."""
    yield "network", "threads", "run", "blocks, ms", "steps, ms", "times as fast", "wanted"
    for batch, neurons, least in ((16, 64, 1.7), (32, 128, 1.0)):
        for slots in (slots for slots in options.slots if slots >= BLOCK):
            net = Network(Size(slots, batch, neurons, steps=6 * BLOCK, least=BLOCK - 1))
            net.check(net.ahead, net.unrolled)
            for row, _, _ in timed(net, str(net.size), options, net.unrolled, net.ahead):
                yield *row, f"at least {least}"


def memory(options: Options) -> Iterator[Row]:
    """What a step keeps for the backward pass, more than neurons alone do."""
    yield "network", "run", "kept by a step, rows"
    for slots in options.slots:
        size = Size(slots, batch=4, neurons=16)
        alone = row_count(size, "alone")
        for run in ("unrolled", "hand", "plain"):
            tell(f"K={slots}, memory, {run}")
            yield f"K={slots}", run, f"{row_count(size, run) - alone:.1f}"


def row_count(size: Size, run: str) -> float:
    """Rows ``[B, N]`` that a step keeps, by the difference of two lengths."""
    kept = []
    for steps in (2 * size.slots, 2 * size.slots + 10):  # what is kept of K steps only is there
        net = Network(replace(size, steps=steps))
        kept.append(host_memory(getattr(net, run)).kept)
    return (kept[1] - kept[0]) / (10 * 4 * size.batch * size.neurons)


MEASURES: dict[str, Callable[[Options], Iterator[Row]]] = {
    "train": train, "ahead": ahead, "memory": memory,
}  # fmt: skip


def tell(what: str) -> None:
    """Progress."""
    print(what, file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> None:
    """Prints the tables."""
    first, _, rest = str(__doc__).partition("\n")
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=first, epilog=rest, formatter_class=how)
    add = parser.add_argument
    add("--only", nargs="+", choices=MEASURES, default=[*MEASURES], help="which tables (all)")
    add("--slots", nargs="+", type=int, default=[9, 21, 51], metavar="K", help="(9 21 51)")
    add("--threads", nargs="+", type=int, default=[1, 2], help="of PyTorch (1 2)")
    add("--seconds", type=float, default=3.0, help="for each ratio (3)")
    add("--processor", action="store_true", help="time of the processor, not of the clock")
    given = parser.parse_args(argv)
    clock = time.process_time if given.processor else time.perf_counter
    options = Options(given.slots, given.threads, given.seconds, clock)
    print(f"torch {torch.__version__}, {device_name('cpu')}")
    before = Usage.now()
    for name in given.only:
        print()
        for i, row in enumerate(MEASURES[name](options)):
            print("| " + " | ".join(row) + " |", flush=True)
            if i == 0:
                print("|" + " --- |" * len(row), flush=True)
    print(f"\nOthers used {others(before, Usage.now()):.0%} of the machine meanwhile.")


if __name__ == "__main__":
    main()
