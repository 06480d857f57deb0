"""Time and memory of a job: on the host's clock, or with events and graphs on a GPU.

Times are added to a stopwatch, which pytest-benchmark reads as its timer: so its tables show the
time of a call on the device, not that of the Python around it.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from providers import Job

COLD = 2
"""Jobs in turn touch this many times the memory that the L2 cache holds."""
COPIES = 32
"""At most."""
_BACKLOG = 1e-3
"""Seconds that the device is kept busy at the least, while the host runs ahead."""
_LONGEST = 0.2
"""And at the most."""
_CLOCK = 2e9
"""Cycles that a device spins in a second, or fewer."""
_ROUND = 2e-3
"""Seconds that a round of a short graph takes at the least."""

_passed = 0.0


def stopwatch() -> float:
    """Seconds that were measured so far."""
    return _passed


def advance(seconds: float) -> None:
    """Adds a measured time to the stopwatch."""
    global _passed
    _passed += seconds


class Timer(Protocol):
    """Times a call of a job."""

    method: str
    """How it is done, in a word."""

    def prepare(self) -> None:
        """What a round needs before it; not timed."""

    def seconds(self) -> float:
        """Time of one call in one round."""


class HostTimer:
    """The host's clock. On a GPU it sees what a call costs the host, and no more."""

    method = "host"

    def __init__(self, job: Job, calls: int) -> None:
        self._job, self._calls = job, calls

    def prepare(self) -> None:
        self._job.reset()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def seconds(self) -> float:
        start = time.perf_counter()
        self._job.run()
        return (time.perf_counter() - start) / self._calls


class EventTimer:
    """CUDA events around the jobs, which run one after another on memory of their own."""

    method = "events"

    def __init__(self, jobs: Sequence[Job], calls: int) -> None:
        self._jobs, self._calls = jobs, calls * len(jobs)
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._ahead = _BACKLOG

    def prepare(self) -> None:
        for job in self._jobs:
            job.reset()

    def work(self) -> None:
        for job in self._jobs:
            job.run()

    def seconds(self) -> float:
        # Behind this the work queues up, so that short launches do not wait for the host.
        torch.cuda._sleep(int(self._ahead * _CLOCK))
        self._start.record()
        begin = time.perf_counter()
        self.work()
        # Twice what the host took, from the next round on.
        self._ahead = min(max(self._ahead, 2 * (time.perf_counter() - begin)), _LONGEST)
        self._end.record()
        self._end.synchronize()
        return 1e-3 * self._start.elapsed_time(self._end) / self._calls


class GraphTimer(EventTimer):
    """CUDA events around replays of one graph that holds all the jobs."""

    method = "graph"

    def __init__(self, jobs: Sequence[Job], calls: int) -> None:
        super().__init__(jobs, calls)
        self._graph, self._replays = _captured(super().work), 1
        replay = self.seconds() * self._calls
        self._replays = max(1, round(_ROUND / max(replay, 1e-6)))
        self._calls *= self._replays

    def prepare(self) -> None:
        pass  # steps go on from where they are, and reads change nothing

    def work(self) -> None:
        for _ in range(self._replays):
            self._graph.replay()


def on_device(jobs: Sequence[Job], calls: int) -> EventTimer:
    """The timer of these jobs on a GPU: of a graph, where one can hold them."""
    if jobs[0].graph:
        try:
            return GraphTimer(jobs, calls)
        except RuntimeError as error:  # some operation waits for the host after all
            print(f"not captured: {error}")
            torch.cuda.synchronize()
    return EventTimer(jobs, calls)


def _captured(work: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """The work as a graph; run before on a stream of its own, as a capture wants it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def copies(device: torch.device, moved: float) -> int:
    """Jobs with memory of their own that it takes to find none of it in the L2 cache."""
    if device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return min(max(-(-COLD * cache // max(int(moved), 1)), 1), COPIES)


def synchronize(device: torch.device) -> None:
    """Waits for what the device has been given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(job: Job, device: torch.device) -> float:
    """Bytes that a round has allocated at the most, over what it found."""
    job.reset()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        results = job.run()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) - before
        del results
        return peak
    return host_memory(job.run).most


class Memory(NamedTuple):
    """Bytes that a call has allocated over what it found, by PyTorch's own account of a CPU."""

    kept: int
    """With its results."""
    most: int
    """At any moment."""


def host_memory(call: Callable[[], object]) -> Memory:
    """What a call on the CPU allocates and frees."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        results = call()
    del results
    events = profile.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    held = most = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        held += change
        most = max(most, held)
    return Memory(held, most)
