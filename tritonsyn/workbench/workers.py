"""Compiles in other processes: without Triton's interpreter, side by side, and safe from crashes.

``python -m tritonsyn.workbench.workers`` is such a process: it reads a job per line and answers
each with a line, both in JSON.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from ..launch.config import LaunchConfig
from .report import Report, StreamReport


class Job(NamedTuple):
    """What is to be compiled."""

    kernel: str
    variant: int
    target: str
    config: LaunchConfig
    read_code: bool = True
    """Whether to read the machine code, not only registers and memory."""


class CompileError(Exception):
    """A kernel did not compile; the message is the compiler's, in one line."""


class Compilers:
    """A few processes that compile. A context manager; leaving it ends them."""

    def __init__(self, count: int | None = None) -> None:
        self.count = count or min(8, _cores())
        self._mine = threading.local()
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> "Compilers":
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()

    def compile(self, job: Job) -> Report:
        """Compiles one job; raises :class:`CompileError`, also where the compiler crashes."""
        process = self._process()
        line = json.dumps({**job._asdict(), "config": job.config.as_dict()})
        try:
            print(line, file=process.stdin, flush=True)
            answer = json.loads(process.stdout.readline())  # type: ignore[union-attr]
        except (OSError, json.JSONDecodeError):
            raise CompileError(f"the compiler crashed with status {_ended(process)}") from None
        if "error" in answer:
            raise CompileError(answer["error"])
        return _report(answer)

    def map(self, jobs: Iterable[Job]) -> Iterator[Report | CompileError]:
        """Compiles side by side; results in order, an error in the place of its report."""
        with ThreadPoolExecutor(self.count) as pool:
            try:
                yield from pool.map(self._compile_or_error, jobs)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _compile_or_error(self, job: Job) -> Report | CompileError:
        try:
            return self.compile(job)
        except CompileError as error:
            return error

    def _process(self) -> subprocess.Popen[str]:
        """The process of this thread; a new one if it has none or it has crashed."""
        process: subprocess.Popen[str] | None = getattr(self._mine, "process", None)
        if process is None or process.poll() is not None:
            process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                env=_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,  # an interrupt is for the parent, which ends it in order
            )
            self._mine.process = process
            self._processes.append(process)
        return process


def _ended(process: subprocess.Popen[str]) -> int:
    process.kill()  # nothing, where it has ended by itself
    return process.wait()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def _environment() -> dict[str, str]:
    """This process's environment without the interpreter, and with this tritonsyn."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    here = str(Path(__file__).parents[2])
    return {**kept, "PYTHONPATH": os.pathsep.join([here, *filter(None, [kept.get("PYTHONPATH")])])}


def _report(answer: dict[str, Any]) -> Report:
    streams = {name: StreamReport(**values) for name, values in answer.pop("streams").items()}
    widths = {
        name: {int(bits): count for bits, count in answer.pop(name).items()}
        for name in ("loads", "stores")
    }
    return Report(**{**answer, **widths, "streams": streams})


def _serve() -> None:
    from dataclasses import asdict

    from .compiled import report

    # What the compiler prints must not get among the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        job = json.loads(line)
        try:
            config = LaunchConfig(**job["config"])
            answer: dict[str, Any] = asdict(report(*Job(**{**job, "config": config})))
        except Exception as error:  # whatever it is, it is this configuration's and no end
            # The compiler quotes the source first and gives the reason at the end.
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
