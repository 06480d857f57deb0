"""Sweeps over launch settings: what to try, in what order, and a row for each that was tried."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ..launch import tables
from ..launch.config import HEURISTICS, LaunchConfig, Work, forget
from ..system import write_whole
from .spaces import Space, configs_of, default_configs
from .workloads import WORKLOADS, Shape

_SETTINGS = tuple(field.name for field in fields(LaunchConfig))
COLUMNS = ("kernel", "shape", "dtype", *_SETTINGS, "timer", "cost", "error", "details")


@dataclass(frozen=True)
class Trial:
    """One configuration of one kernel on one shape and dtype."""

    kernel: str
    shape: Shape
    dtype: str
    """As PyTorch calls it: ``"float32"``."""
    config: LaunchConfig

    @property
    def work(self) -> Work:
        """The sizes by which the configuration is looked up."""
        return WORKLOADS[self.kernel].work(self.shape)

    @property
    def programs(self) -> int:
        """How many a launch has."""
        return WORKLOADS[self.kernel].programs(self.work, self.config)


@dataclass(frozen=True)
class Row:
    """What came of a trial."""

    trial: Trial
    timer: str
    cost: float | None
    """The lower the better; None if the trial failed."""
    error: str = ""
    details: str = ""
    """What else the timer noted, as JSON."""

    def cells(self) -> list[str]:
        """As a line of the CSV file, in the order of ``COLUMNS``."""
        trial, config = self.trial, self.trial.config.as_dict()
        place = [trial.kernel, str(trial.shape), trial.dtype, *map(str, config.values())]
        cost = "" if self.cost is None else repr(self.cost)
        return [*place, self.timer, cost, self.error, self.details]

    @classmethod
    def parse(cls, cells: Sequence[str]) -> "Row":
        """The inverse of :meth:`cells`; ``ValueError`` for anything else."""
        values = dict(zip(COLUMNS, cells, strict=True))
        config = LaunchConfig(**{name: int(values[name]) for name in _SETTINGS})
        shape = Shape.parse(values["shape"])
        trial = Trial(values["kernel"], shape, values["dtype"], config)
        cost = float(values["cost"]) if values["cost"] else None
        return cls(trial, values["timer"], cost, values["error"], values["details"])

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        cells: dict[str, Any] = dict(zip(COLUMNS, self.cells(), strict=True))
        details = json.loads(self.details or "{}")
        return {**cells, **self.trial.config.as_dict(), "cost": self.cost, "details": details}


Judge = Callable[[Trial], Mapping[str, float]]
"""A timer: the cost of a trial, the lower the better, and what else is worth a note."""
Progress = Callable[[Iterable[Row], int], Iterable[Row]]


def trials(
    kernels: Sequence[str],
    shapes: Sequence[Shape],
    dtypes: Sequence[str],
    space: Space | Mapping[str, Sequence[LaunchConfig]] | None = None,
) -> list[Trial]:
    """Everything that a sweep tries; ``ValueError`` for names that do not exist, with a list.

    ``space`` gives the values to try of each setting, or the configurations by kernel; None is the
    default space of each kernel.
    """
    for kernel in kernels:
        if kernel not in WORKLOADS:
            raise ValueError(f"kernel is {kernel!r}, but must be one of {', '.join(WORKLOADS)}")
        allowed = WORKLOADS[kernel].dtypes
        for dtype in dtypes:
            if dtype not in allowed:
                names = ", ".join(allowed)
                raise ValueError(f"dtype of {kernel} is {dtype!r}, but must be one of {names}")
    found = []
    for kernel in kernels:
        for shape in shapes:
            for dtype in dtypes:
                configs = _configs(kernel, shape, dtype, space)
                found += [Trial(kernel, shape, dtype, config) for config in configs]
    return found


def _configs(
    kernel: str,
    shape: Shape,
    dtype: str,
    space: Space | Mapping[str, Sequence[LaunchConfig]] | None,
) -> Sequence[LaunchConfig]:
    if space is None:
        work = WORKLOADS[kernel].work(shape)
        return default_configs(kernel, work, getattr(torch, dtype))
    if any(name in HEURISTICS for name in space):
        if kernel not in space:
            raise ValueError(f"the space has nothing for {kernel}, but for {', '.join(space)}")
        return space[kernel]  # type: ignore[return-value]
    return configs_of(space)  # type: ignore[arg-type]


def sweep(
    kernels: Sequence[str],
    shapes: Sequence[Shape],
    dtypes: Sequence[str] = ("float32",),
    space: Space | Mapping[str, Sequence[LaunchConfig]] | None = None,
    *,
    timer: Judge,
    out: Path | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """Judges every configuration of a space for every kernel, shape and dtype.

    A configuration that fails becomes a row with an error, and the sweep goes on. With ``out``, a
    folder, rows go to ``results.csv`` one by one as they come, rows that are there already are not
    tried again, and ``results.json`` has them all at the end.

    ``timer`` is a ``StaticTimer`` or ``DeviceTimer`` of :mod:`tritonsyn.workbench.timers`, or any
    callable that takes a :class:`Trial` and returns ``{"cost": ...}``. Raises ``ValueError`` for
    unknown names, a broken space or a folder with other files of these names, ``OSError`` if a row cannot
    be written; rows before it stay readable.
    """
    wanted = list(dict.fromkeys(trials(kernels, shapes, dtypes, space)))
    name = str(getattr(timer, "name", getattr(timer, "__name__", "timer")))
    with _results(out) as (past, keep):
        done = {row.trial: row for row in past if row.timer == name}
        rest = [trial for trial in wanted if trial not in done]

        def judge(trial: Trial) -> Row:
            return _judged(timer, trial, name)

        with _mapped(judge, rest, getattr(timer, "parallel", 1)) as rows:
            for row in progress(rows, len(rest)) if progress else rows:
                keep(row)
                done[row.trial] = row
        found = [done[trial] for trial in wanted]
        if out is not None:
            text = json.dumps([row.as_dict() for row in found], indent=1)
            write_whole(out / "results.json", text + "\n")
    return found


def _judged(timer: Judge, trial: Trial, name: str) -> Row:
    try:
        verdict = dict(timer(trial))
        cost = float(verdict.pop("cost"))
    except Exception as error:  # whatever it is, it is this configuration's and no end
        message = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return Row(trial, name, None, message)
    return Row(trial, name, cost, details=json.dumps(verdict) if verdict else "")


@contextmanager
def _mapped(
    judge: Callable[[Trial], Row], rest: Sequence[Trial], parallel: int
) -> Iterator[Iterator[Row]]:
    """Rows in order; on the way out what has not begun is dropped."""
    if parallel <= 1:
        yield map(judge, rest)
        return
    pool = ThreadPoolExecutor(parallel)
    try:
        yield pool.map(judge, rest)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _results(
    out: Path | None,
) -> Iterator[tuple[list[Row], Callable[[Row], None]]]:
    """The rows of earlier sweeps, and what adds one; one sweep at a time in a folder."""
    if out is None:
        yield [], lambda row: None
        return
    out.mkdir(parents=True, exist_ok=True)
    path = out / "results.csv"
    with _alone(out / "results.lock"):
        past = read_rows(path)
        # Anew, because a sweep that was cut off may have left half a line.
        write_whole(path, _lines([list(COLUMNS), *(row.cells() for row in past)]))
        with path.open("a", encoding="utf-8", newline="") as file:

            def keep(row: Row) -> None:
                file.write(_lines([row.cells()]))
                file.flush()

            yield past, keep


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(tables.locked(lock, wait=False))
        except BlockingIOError:
            raise ValueError(f"another sweep writes to {lock.parent}") from None
        yield


def _lines(rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def read_rows(path: Path) -> list[Row]:
    """The rows of a results file, none if there is none or an empty one; half a last line is left
    out.

    Raises ``ValueError`` for a file that is none.
    """
    if not path.exists() or path.stat().st_size == 0:
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *lines = [*csv.reader(file)] or [[]]
    except (UnicodeDecodeError, csv.Error):
        header, lines = [], []
    if tuple(header) != COLUMNS:
        raise ValueError(f"{path} is there, and is no results file of this version of tritonsyn")
    rows = []
    for number, cells in enumerate(lines, start=2):
        try:
            rows.append(Row.parse(cells))
        except ValueError as error:
            if number == len(lines) + 1:
                break
            raise ValueError(f"{path}, line {number}, is no row of results: {error}") from None
    return rows


def best(rows: Iterable[Row]) -> dict[tuple[str, Shape, str], Row]:
    """The row of least cost of each kernel, shape and dtype; none where all failed."""
    found: dict[tuple[str, Shape, str], Row] = {}
    for row in rows:
        place = row.trial.kernel, row.trial.shape, row.trial.dtype
        if row.cost is not None and (place not in found or row.cost < found[place].cost):  # type: ignore[operator]
            found[place] = row
    return found


def install(rows: Iterable[Row], device: str) -> Path:
    """Puts the best of each kernel, shape and dtype into the user's table of a device.

    From then on launches use them there, for all sizes that round up to the same powers of two.
    """
    entries = {}
    for (kernel, _, dtype), row in best(rows).items():
        entries[tables.key(kernel, dtype, row.trial.work)] = {
            "config": row.trial.config.as_dict(),
            "timer": row.timer,
            "cost": row.cost,
        }
    path = tables.install(device, entries)
    forget()
    return path
