"""Training of a network in a process of its own, with its times and its memory."""

import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import mean, quantiles
from typing import NamedTuple

import torch
from delays import PROVIDERS
from machine import PeakMemory, Usage, others
from tasks import TASKS, Examples, Network, Task
from torch.nn.functional import cross_entropy

_TEST_SEED = 12345


class Training(NamedTuple):
    """What is trained, and how."""

    task: str
    provider: str
    delays: str = "learned"
    """``learned`` or ``none``: then the longest is 0."""
    seed: int = 0
    epochs: int = 10
    examples: int | None = None
    """How many are learned from; None for all."""
    threads: int = 1

    def __str__(self) -> str:
        return f"{self.task}, {self.provider}, delays {self.delays}, seed {self.seed}"


class Outcome(NamedTuple):
    """What a training gave."""

    accuracy: float
    """Part of the test examples that are told rightly after the last epoch."""
    seconds: list[float]
    """Of each epoch."""
    others: float
    """Part of the machine that other processes used meanwhile."""
    peak_mb: float | None
    """How far the memory has risen while it was trained, MB."""

    def quartiles(self) -> tuple[float, float, float]:
        """Seconds of an epoch but the first, where there are several."""
        counted = self.seconds[1:] or self.seconds
        low, median, high = quantiles(counted * 2, n=4, method="inclusive")
        return low, median, high


def trained_apart(training: Training) -> Outcome:
    """Trains in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(train, training).result()


def train(training: Training) -> Outcome:
    """Trains, and tells on stderr how it goes."""
    torch.set_num_threads(training.threads)
    torch.manual_seed(training.seed)
    task = TASKS[training.task]
    learn, test = task.examples(training.seed)
    network = task.network(PROVIDERS[training.provider], training.delays == "learned")
    epoch = _Epoch(task, network, learn.at(slice(training.examples)), training)
    before, memory, seconds = Usage.now(), PeakMemory(), []
    for number in range(1, training.epochs + 1):
        start = time.perf_counter()
        loss = epoch.run()
        seconds.append(time.perf_counter() - start)
        tell(f"{training}: epoch {number:2d}, {seconds[-1]:.2f} s, loss {loss:.3f}")
    busy, peak = others(before, Usage.now()), memory.megabytes()
    return Outcome(accuracy(task, network, test), seconds, busy, peak)


class _Epoch:
    """Passes through all examples, and what goes on from one to the next."""

    def __init__(
        self, task: Task, network: Network, examples: Examples, training: Training
    ) -> None:
        self.task, self.network, self.examples = task, network, examples
        self.generator = torch.Generator().manual_seed(training.seed)
        delays = [layer.delay for layer in network.layers]
        for delay in delays:
            delay.requires_grad_(training.delays == "learned")
        known = {id(delay) for delay in delays}
        weights = [p for p in network.parameters() if id(p) not in known]
        rates = [task.rate, task.delay_rate]
        groups = [{"params": weights}, {"params": delays}]
        self.optimizer = torch.optim.Adam(groups)
        steps = training.epochs * -(-len(examples.labels) // task.batch)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, rates, steps)

    def run(self) -> float:
        """The mean loss of the batches of a pass."""
        order = torch.randperm(len(self.examples.labels), generator=self.generator)
        return mean(self._batch(self.examples.at(part)) for part in order.split(self.task.batch))

    def _batch(self, batch: Examples) -> float:
        self.optimizer.zero_grad()
        x = self.task.encode(batch.x, self.generator)
        loss = cross_entropy(self.network(x, batch.lengths), batch.labels)
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        for layer in self.network.layers:
            layer.clamp_delays_()
        return loss.item()


@torch.no_grad()
def accuracy(task: Task, network: Network, test: Examples) -> float:
    """Part of the examples that are told rightly; their inputs are the same in every call."""
    x = task.encode(test.x, torch.Generator().manual_seed(_TEST_SEED))
    right = network(x, test.lengths).argmax(1) == test.labels
    return right.float().mean().item()


def tell(what: str) -> None:
    """Progress."""
    print(what, file=sys.stderr, flush=True)
