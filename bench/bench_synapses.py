"""Times every provider on every workload: ``pytest bench``, with ``--record`` to keep the figures.

A provider whose first round is wrong is reported and not timed. tritonsyn is timed in turn with
those that it is compared with: a round of each rival, then a round of tritonsyn, so that the ratio
of a pair does not see the machine drift. Rounds during which other processes used more than a
tenth of the machine do not count, unless there are too few without them.
"""

import gc
import time
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from statistics import median, quantiles

import pytest
import timing
import torch
from machine import Usage, is_there, others
from peers import PROVIDERS
from providers import Tritonsyn
from results import Result
from table import WORKLOADS, is_gate
from workloads import Step, Workload

BY_NAME = {provider.name: provider for provider in PROVIDERS}
ROUNDS = 5, 60
"""Fewest and most."""
CALM = 0.1
"""Part of the machine that others may use during a round."""
OURS = {"cpu": "tritonsyn reference", "cuda": "tritonsyn triton"}
"""What the targets speak of, on each device."""


def dtype_of(work):
    """The dtype's name."""
    return str(work.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Case:
    """A provider on a workload on a device."""

    work: Workload
    device: str
    provider: str

    def __str__(self) -> str:
        work = self.work
        return f"{work.name} ({work.size}, {dtype_of(work)}), {self.device}, {self.provider}"

    @property
    def targets(self):
        """What the provider has to reach."""
        here = (t for t in self.work.targets if t.device == self.device)
        return tuple(t for t in here if self.provider == (t.of or OURS[self.device]))

    @property
    def rivals(self):
        """Who is timed in turn with it."""
        return dict.fromkeys(t.rival for t in self.targets if t.rival)


def cases(config):
    """The cases that were asked for."""
    kinds, devices = (config.getoption(name) for name in ("--work", "--on"))
    there = [kind for kind in ("cpu", "cuda") if is_there(kind)]
    for work in WORKLOADS:
        if kinds and work.work not in kinds.split(","):
            continue
        for device in devices.split(",") if devices else there:
            if device not in work.devices or device not in there:
                continue
            if device == "cpu" and work.sweep and not config.getoption("--sweep"):
                continue
            group = "gates" if is_gate(work, device) else "rest"
            if config.getoption("--only") not in (None, group):
                continue
            for provider in PROVIDERS:
                if provider.offers(work, device):
                    yield Case(work, device, provider.name)


def pytest_generate_tests(metafunc):
    found = [
        pytest.param(
            case,
            id=str(case),
            marks=pytest.mark.benchmark(
                timer=timing.stopwatch, group=f"{case.work.name} ({case.work.size}, {case.device})"
            ),
        )
        for case in cases(metafunc.config)
    ]
    metafunc.parametrize("case", found)


@lru_cache(maxsize=1)  # the providers of a workload come one after another
def questions(work, device):
    """Inputs and right answers."""
    inputs = work.inputs(torch.device(device))
    return inputs, work.expected(inputs)


class UntimedError(Exception):
    """Why a provider was not timed."""


class WrongError(UntimedError):
    """It computes something else."""


def prepared(case):
    """A timer of the case's job, whose first round was right, with what is known of it."""
    work, provider = case.work, BY_NAME[case.provider]
    reason = provider.missing(work)
    if reason:
        raise UntimedError(reason)
    inputs, expected = questions(work, case.device)
    try:
        return _prepared(case, provider, inputs, expected)
    except torch.OutOfMemoryError:
        pass  # what holds the memory is let go of at the end of this block
    except UntimedError:
        raise
    except Exception as error:
        if isinstance(provider, Tritonsyn):
            raise
        reason = str(error).partition("\n")[0]
        raise UntimedError(f"raises {type(error).__name__}: {reason:.120}") from None
    gc.collect()
    torch.cuda.empty_cache()
    raise UntimedError("out of memory")


def _prepared(case, provider, inputs, expected):
    work, device = case.work, torch.device(case.device)
    job = provider.job(work, inputs)
    job.reset()
    results = job.finish(job.run())
    timing.synchronize(device)
    complaint = None if provider.ceiling else work.complaint(results, expected, job.leniency)
    if complaint:
        raise WrongError(f"wrong: {complaint}")
    del results
    calls = job.calls or work.calls
    if device.type != "cuda" or work.host:
        return timing.HostTimer(job, calls), job
    jobs = [job]
    # Steps outside of a graph wait for the host, not for memory.
    if job.graph or not isinstance(work, Step):
        for _ in range(1, timing.copies(device, (job.moved or work.moved) * calls)):
            jobs.append(provider.job(work, tuple(tensor.clone() for tensor in inputs)))
    for other in jobs:
        other.reset()
    return timing.on_device(jobs, calls), job


def test_provider(case, benchmark, report, pytestconfig):
    work = case.work
    if report.knows(work.name, work.size, case.provider, dtype_of(work), case.device):
        pytest.skip("timed before")
    if report.late:
        report.leave_out(str(case), "no time was left")
        pytest.skip("no time was left")
    try:
        timer, job = prepared(case)
    except UntimedError as reason:
        report.leave_out(str(case), str(reason))
        (pytest.fail if isinstance(reason, WrongError) else pytest.skip)(f"{case}: {reason}")
    rivals = {}
    for name in case.rivals:
        try:
            rivals[name], _ = prepared(Case(case.work, case.device, name))
        except UntimedError as reason:
            report.leave_out(str(Case(case.work, case.device, name)), str(reason))
    theirs, usage = {name: [] for name in rivals}, []

    def setup():
        usage.append(Usage.now())
        for name, rival in rivals.items():
            rival.prepare()
            theirs[name].append(rival.seconds())
        timer.prepare()

    def run():
        timing.advance(timer.seconds())

    rounds = how_many(timer, rivals.values(), pytestconfig.getoption("--seconds"), case)
    benchmark.pedantic(run, setup=setup, rounds=rounds)
    if benchmark.stats is None:  # --benchmark-disable
        return
    usage.append(Usage.now())
    shares = [others(before, after) for before, after in pairwise(usage)]
    counting = [i for i, share in enumerate(shares) if share <= CALM]
    if len(counting) < min(ROUNDS[0], rounds):
        counting = list(range(rounds))
    ours = [benchmark.stats.stats.data[i] for i in counting]
    ratios = {
        name: median(times[i] / mine for i, mine in zip(counting, ours, strict=True))
        for name, times in theirs.items()
    }
    report.add(result(case, timer, job, ours, median(shares[i] for i in counting), ratios))


def how_many(timer, rivals, seconds, case):
    """Rounds that fit into the time; few for those that are timed only to be shown."""
    start = time.perf_counter()
    for each in (*rivals, timer):
        each.prepare()
        each.seconds()
    passed = time.perf_counter() - start
    fewest, most = ROUNDS
    if not rivals and not isinstance(BY_NAME[case.provider], Tritonsyn):
        fewest, seconds = 3, seconds / 4
    return min(max(round(seconds / max(passed, 1e-4)), fewest), most)


def result(case, timer, job, seconds, share, ratios):
    """The line of a case."""
    work, milliseconds = case.work, 1e3 * median(seconds)
    low, _, high = quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
    amount = 0 if work.host else work.operations or job.moved or work.moved
    memory = timing.peak_memory(job, torch.device(case.device)) if not work.host else None
    return Result(
        workload=work.name,
        size=work.size,
        provider=case.provider,
        dtype=dtype_of(work),
        device=case.device,
        milliseconds=milliseconds,
        low=1e3 * low,
        high=1e3 * high,
        timer=timer.method,
        rounds=len(seconds),
        others=share,
        rate=1e-6 * amount / milliseconds if amount else None,
        unit=("Gop/s" if work.operations else "GB/s") if amount else "",
        peak_mb=None if memory is None else 1e-6 * memory,
        ratios=ratios,
        targets=case.targets,
    )
