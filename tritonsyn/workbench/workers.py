"""Compiles in other processes: without the interpreter, side by side, and safe from crashes."""

import errno
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any, Generic, TypeVar

import torch

Job = TypeVar("Job")
Result = TypeVar("Result")
Self = TypeVar("Self", bound="Workers[Any, Any]")

MACHINE_ERRORS = (OSError, MemoryError, torch.OutOfMemoryError)
"""What says nothing about a job: no space, no permission, no memory, a killed process."""

# Who begins a process changes what the whole process shows to its children.
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
        self._idle: list[_Process] = []

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self._idle:
            process.end()

    def run(self, job: Job) -> Result:
        """Runs one job.

        Raises :class:`CompileError` where it fails or its process crashes, and one of
        :data:`MACHINE_ERRORS` where that is not the job's fault.
        """
        outcome = self._outcome(job)
        if isinstance(outcome, CompileError):
            raise outcome
        return outcome

    def map(self, jobs: Iterable[Job]) -> Iterator[Result | CompileError]:
        """Runs jobs side by side; results in order, a :class:`CompileError` in the place of one."""
        return side_by_side(self._outcome, jobs, self.parallel)

    def _outcome(self, job: Job) -> Result | CompileError:
        process = self._idle.pop() if self._idle else _Process(self._function)
        outcome = process.answer(job)
        if process.ended:
            return outcome
        self._idle.append(process)
        if isinstance(outcome, MACHINE_ERRORS):
            raise outcome
        return outcome


class _Process:
    """A process that answers one job at a time."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, function), daemon=True)
        with _beginning, _afresh():
            self._process.start()
        theirs.close()

    def answer(self, job: Any) -> Any:
        """The result, or the error in its place; raises ``ChildProcessError`` if it is killed."""
        try:
            self._pipe.send(job)
            return self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._process.join()
            if -(self._process.exitcode or 0) in _KILLS:
                raise ChildProcessError(_KILLED) from None
            return CompileError("the compiler crashed")

    @property
    def ended(self) -> bool:
        """Whether it takes no more jobs."""
        return self._process.exitcode is not None

    def end(self) -> None:
        """Ends it."""
        self._pipe.close()
        self._process.join()


_KILLED = "a process that compiles was killed, perhaps because memory ran out"
_KILLS = (9, 15)  # SIGKILL and SIGTERM, which Windows does not name


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


def _serve(pipe: Connection, function: Callable[[Any], Any]) -> None:
    """Answers jobs until the parent has closed its end of the pipe."""
    # An interrupt is for the parent, and what a compiler prints must not get among its output.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            pipe.send(_answer(function, pipe.recv()))


def _answer(function: Callable[[Job], Result], job: Job) -> Result | Exception:
    try:
        return function(job)
    except MACHINE_ERRORS as error:
        return error
    except Exception as error:  # any other failure is this configuration's; the others go on
        # The compiler quotes the source first and gives the reason at the end.
        words = " ".join(str(error).split())
        if _KILLED_BELOW.search(words):
            return ChildProcessError(_KILLED)
        if any(os.strerror(number) in words for number in _TOLD):
            return OSError(words[-300:])
        return CompileError(f"{type(error).__name__}: {words[-300:]}")


# How Triton tells that ptxas was killed, and subprocess that another program was.
_KILLED_BELOW = re.compile(r"failed with error code -(9|15)\b|died with <Signals\.SIG(KILL|TERM)")
# What a program that the compiler calls may meet, which Triton only quotes.
_TOLD = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOMEM)
