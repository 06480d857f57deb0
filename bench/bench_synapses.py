"""Times every provider on every workload: ``pytest bench``, with ``--record`` to keep the figures.

A provider is timed in pairs: a round of inferno-ai, then a round of the provider, so that the
ratio of a pair does not see the machine drift. Pairs during which other processes used more than
a tenth of the machine do not count, unless there are too few without them. A provider whose first
round is wrong is not timed.
"""

import time
from itertools import pairwise
from statistics import median

import pytest
import torch
from machine import Usage, others
from providers import DEVICES, INFERNO, PROVIDERS
from results import Result
from workloads import WORKLOADS

SECONDS = 6.0
"""Time spent on the pairs of one provider on one workload."""
PAIRS = 5, 60
"""Fewest and most."""
CALM = 0.1
"""Part of the machine that others may use during a pair."""

CASES = [
    pytest.param(workload, device, provider, id=f"{workload.name}-{device}-{provider.name}")
    for workload in WORKLOADS
    for device in DEVICES
    for provider in PROVIDERS
    if provider.runs_on(device)
]


class Runner:
    """One provider on one workload: checked once, then run round after round."""

    def __init__(self, workload, provider, inputs):
        self.workload, self.provider, self.inputs = workload, provider, inputs
        self.module = workload.prepare(provider, inputs)

    def prepare(self):
        if self.workload.fresh:
            self.module = self.workload.prepare(self.provider, self.inputs)
        synchronize(self.inputs[0].device)

    def run(self):
        results = self.workload.run(self.provider, self.module, self.inputs)
        synchronize(self.inputs[0].device)
        return results

    def seconds(self):
        """Time of one round."""
        self.prepare()
        start = time.perf_counter()
        self.run()
        return time.perf_counter() - start


def checked(workload, provider, inputs, expected):
    """A runner whose first round was right; the test fails where it was wrong."""
    runner = Runner(workload, provider, inputs)
    complaint = workload.complaint(runner.run(), expected)
    if complaint:
        pytest.fail(f"{provider.name} is wrong and was not timed: {complaint}")
    return runner


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@pytest.mark.parametrize("workload, device, provider", CASES)
def test_provider(workload, device, provider, benchmark, record_result):
    benchmark.group = f"{workload.name} ({workload.size}, {device})"
    inputs = workload.inputs(device)
    expected = workload.expected(inputs)
    runner = checked(workload, provider, inputs, expected)
    rival = None
    if provider is not INFERNO and INFERNO.runs_on(device):
        rival = checked(workload, INFERNO, inputs, expected)
    theirs, usage = [], []

    def setup():
        usage.append(Usage.now())
        if rival is not None:
            theirs.append(rival.seconds())
        runner.prepare()

    fewest, most = PAIRS
    pair = runner.seconds() + (rival.seconds() if rival else 0.0)
    # inferno-ai's own row needs few rounds: what counts is its time in the pairs.
    rounds = min(max(round(SECONDS / pair), fewest), most) if rival else 3
    benchmark.pedantic(runner.run, setup=setup, rounds=rounds)
    if benchmark.stats is None:  # --benchmark-disable
        return
    usage.append(Usage.now())
    shares = [others(before, after) for before, after in pairwise(usage)]
    counting = [i for i, share in enumerate(shares) if share <= CALM]
    if len(counting) < fewest:
        counting = list(range(len(shares)))
    ours = [benchmark.stats.stats.data[i] for i in counting]
    theirs = [theirs[i] for i in counting] if rival else []
    record_result(
        Result(
            workload=workload.name,
            size=workload.size,
            provider=provider.name,
            dtype=str(workload.dtype).removeprefix("torch."),
            device=device.type,
            milliseconds=1e3 * median(ours) / workload.calls,
            inferno_milliseconds=1e3 * median(theirs) / workload.calls if rival else None,
            ratio=median(a / b for a, b in zip(theirs, ours, strict=True)) if rival else None,
            target=workload.target if device.type == "cpu" else None,
            pairs=len(ours),
            others=median(shares[i] for i in counting),
        )
    )
