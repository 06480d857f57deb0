"""Options and the final tables of ``pytest bench``."""

import time
from pathlib import Path

import pytest
import results
import torch
from machine import device_name

from tritonsyn.system import reason


class Report:
    """What a run has found so far; kept in a file as it grows, if one is asked for."""

    def __init__(self, path: Path | None, deadline: float, resume: bool) -> None:
        self.results: list[results.Result] = []
        self.untimed: list[str] = []
        self.unfinished = False
        self.path, self._end = path, time.monotonic() + deadline
        self.before = results.times_in(path) if resume and path is not None else {}

    def add(self, result: results.Result) -> None:
        """Keeps a result."""
        self.results.append(result)
        if self.path is not None:
            results.write(self.results, self.path, self.before)

    def knows(self, workload: str, size: str, provider: str, dtype: str, device: str) -> bool:
        """Whether an earlier run that is gone on with has timed it."""
        return (workload, size, provider, dtype, device) in self.before

    def leave_out(self, case: str, reason: str) -> None:
        """Keeps why something was not timed."""
        self.untimed.append(f"{case}: {reason}")

    @property
    def late(self) -> bool:
        """Whether the time for the run is over; asked before each timing."""
        self.unfinished |= time.monotonic() > self._end
        return self.unfinished


UNFINISHED = 75
"""Exit status of a run that has not come to its end in time."""
_REPORT = pytest.StashKey[Report]()


def pytest_addoption(parser):
    group = parser.getgroup("tritonsyn's benchmarks")
    group.addoption(
        "--record", nargs="?", type=Path, const=results.FILE, metavar="FILE",
        help=f"keep the figures as CSV, in bench/results/{results.FILE.name} if none is named",
    )  # fmt: skip
    group.addoption("--work", help="kinds of work, of step,read,scan,project; all if none is named")
    group.addoption("--on", help="devices, of cpu,cuda; all that are there if none is named")
    group.addoption(
        "--only", choices=("gates", "rest"), help="only what has a target there, or what has none"
    )
    group.addoption("--sweep", action="store_true", help="the many sizes on a CPU, too")
    group.addoption(
        "--seconds", type=float, default=2.0, help="time for the rounds of a provider on a workload"
    )
    group.addoption(
        "--deadline", type=float, default=float("inf"), metavar="SECONDS",
        help="start no further timing after this time",
    )  # fmt: skip
    group.addoption(
        "--resume", action="store_true",
        help="leave out what the recorded file has of this machine and commit",
    )  # fmt: skip


def pytest_configure(config):
    record, deadline, resume = map(config.getoption, ("--record", "--deadline", "--resume"))
    try:
        config.stash[_REPORT] = Report(record, deadline, resume)
    except (OSError, ValueError) as error:
        raise pytest.UsageError(reason(error)) from None


@pytest.fixture
def report(request):
    """Takes results and reasons for the final tables."""
    return request.config.stash[_REPORT]


def pytest_sessionfinish(session, exitstatus):
    if session.config.stash[_REPORT].unfinished and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = UNFINISHED


@pytest.hookimpl(trylast=True)  # after the tables of pytest-benchmark
def pytest_terminal_summary(terminalreporter, config):
    report, out = config.stash[_REPORT], terminalreporter
    if report.results:
        out.section("times: medians and quartiles of calls")
        for line in results.table(report.results):
            out.write_line(line)
        out.write_line("others: the part of the machine that other processes used")
        out.write_line("rate: of the least bytes that the work has to move, or of its operations")
        out.write_line(f"cpu: {device_name('cpu')}")
        if torch.cuda.is_available():
            out.write_line(f"cuda: {device_name('cuda')}")
        else:
            out.write_line("no CUDA device here: the Triton backend was not timed")
    found = results.verdicts(report.results, report.before)
    if found:
        out.section("targets")
        for line in results.target_table(found):
            out.write_line(line)
    host = results.host_table(report.results)
    if host:
        out.section("what an eager call costs the host")
        for line in host:
            out.write_line(line)
    if report.untimed:
        out.section("not timed")
        for line in dict.fromkeys(report.untimed):
            out.write_line(line)
    if report.path is not None and report.results:
        results.write(report.results, report.path, report.before)
        out.write_line(f"recorded in {report.path}")
