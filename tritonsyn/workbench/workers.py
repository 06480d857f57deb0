"""Compiles in other processes: without the interpreter, side by side, and safe from crashes."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Generic, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")
Self = TypeVar("Self", bound="Workers[Any, Any]")

# Whatever pool begins a process changes what the whole process shows to its children.
_beginning = threading.Lock()


class CompileError(Exception):
    """A kernel did not compile; the message is the compiler's, in one line."""


def side_by_side(
    function: Callable[[Job], Result], jobs: Iterable[Job], parallel: int
) -> Generator[Result]:
    """Results in order, from so many threads; none begins another job once the iterator closes."""
    if parallel <= 1:
        yield from map(function, jobs)
        return
    with ThreadPoolExecutor(parallel) as threads:
        try:
            yield from threads.map(function, jobs)
        finally:
            threads.shutdown(cancel_futures=True)


class Workers(Generic[Job, Result]):
    """A function of a job, run in other processes. A context manager; leaving it ends them.

    A process has one job at a time, so that a crash is that job's alone.
    """

    def __init__(self, function: Callable[[Job], Result], parallel: int | None = None) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        self.parallel = parallel or min(8, cores)
        self._function = function
        self._idle: list[ProcessPoolExecutor] = []  # of one process each

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self._idle:
            process.shutdown()

    def run(self, job: Job) -> Result:
        """Runs one job; raises :class:`CompileError`, also where its process crashes."""
        outcome = self._outcome(job)
        if isinstance(outcome, CompileError):
            raise outcome
        return outcome

    def map(self, jobs: Iterable[Job]) -> Iterator[Result | CompileError]:
        """Runs jobs side by side; results in order, an error in the place of its result."""
        return side_by_side(self._outcome, jobs, self.parallel)

    def _outcome(self, job: Job) -> Result | CompileError:
        with _beginning, _afresh():
            if not self._idle:
                spawn = multiprocessing.get_context("spawn")
                self._idle.append(ProcessPoolExecutor(1, spawn, _begin))
            process = self._idle.pop()
            future = process.submit(_answer, self._function, job)
        try:
            outcome = future.result()
        except BrokenProcessPool:
            return CompileError("the compiler crashed")
        self._idle.append(process)
        return outcome


@contextmanager
def _afresh() -> Iterator[None]:
    """Processes that are begun have no interpreter, and do not run the user's script again."""
    main, interpret = sys.modules["__main__"], os.environ.pop("TRITON_INTERPRET", None)
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        if interpret is not None:
            os.environ["TRITON_INTERPRET"] = interpret


def _begin() -> None:
    """An interrupt is for the parent, and what a compiler prints must not get among its output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def _answer(function: Callable[[Job], Result], job: Job) -> Result | CompileError:
    try:
        return function(job)
    except Exception as error:  # any failure is this configuration's; the others go on
        # The compiler quotes the source first and gives the reason at the end.
        reason = " ".join(str(error).split())[-300:]
        return CompileError(f"{type(error).__name__}: {reason}")
