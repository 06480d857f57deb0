"""Sweeps over launch settings: what to try, in what order, and a row for each that was tried."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..launch import tables
from ..launch.config import HEURISTICS, LaunchConfig, check_names, forget
from ..system import parse_json, write_whole
from .calls import CALLS, Shape
from .record import main_launch
from .spaces import SETTINGS, Space, configs_of, default_configs
from .workers import MACHINE_ERRORS, side_by_side

if TYPE_CHECKING:
    from ..launch.launcher import Launch


@dataclass(frozen=True)
class Trial:
    """One configuration of one kernel on one shape and dtype."""

    kernel: str
    shape: Shape
    dtype: str
    """Of the call that the kernel is launched in, as PyTorch calls it: ``"float32"``."""
    config: LaunchConfig

    @property
    def launch(self) -> "Launch":
        """The launch that does the main part of the work, on tensors without values."""
        return main_launch(self.kernel, self.shape, self.dtype, self.config)

    @property
    def programs(self) -> int:
        """How many a launch has."""
        return math.prod(self.launch.grid)


@dataclass(frozen=True)
class Row:
    """What came of a trial."""

    trial: Trial
    timer: str
    cost: float | None
    """The lower the better; None if the trial failed."""
    error: str = ""
    details: dict[str, float] = field(default_factory=dict)
    """What else the timer noted."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        values = asdict(self)
        trial = {**values.pop("trial"), "shape": str(self.trial.shape)}
        config = trial.pop("config")
        return {**trial, **config, **values}

    @classmethod
    def from_dict(cls, values: Any) -> "Row":
        """The inverse of :meth:`as_dict`; ``ValueError`` for anything else."""
        names = ("kernel", "shape", "dtype", *SETTINGS, "timer", "cost", "error", "details")
        if not isinstance(values, dict) or values.keys() != set(names):
            raise ValueError(f"not an object of {', '.join(names)}")
        rest = dict(values)
        texts = {name: rest.pop(name) for name in ("kernel", "shape", "dtype", "timer", "error")}
        if not all(isinstance(text, str) for text in texts.values()):
            raise ValueError(f"{', '.join(texts)} must be texts")
        cost, details = rest.pop("cost"), rest.pop("details")
        if not (cost is None or (isinstance(cost, float) and math.isfinite(cost))):
            raise ValueError(f"cost must be a finite number or null, but is {cost!r:.80}")
        if not isinstance(details, dict):
            raise ValueError(f"details must be an object, but are {details!r:.80}")
        shape, config = Shape.parse(texts["shape"]), LaunchConfig(**rest)
        trial = Trial(texts["kernel"], shape, texts["dtype"], config)
        return cls(trial, texts["timer"], cost, texts["error"], details)


Spaces = Space | Mapping[str, Sequence[LaunchConfig]]
"""The values to try of each setting, or the configurations by kernel."""
Timer = Callable[[Trial], Mapping[str, float]]
"""The cost of a trial, the lower the better, and whatever else is worth a note.

A timer may have a ``name``, which stands in every row (a sweep does not go on from the rows of
another name), and say how many trials it can judge at once (``parallel``, 1 unless given).
"""
Progress = Callable[[Iterable[Row], int], Iterable[Row]]


def trials(
    kernels: Sequence[str], shapes: Sequence[Shape], dtypes: Sequence[str], space: Spaces | None
) -> list[Trial]:
    """Everything that a sweep tries, each once; ``ValueError`` as for :func:`sweep`."""
    check_names("kernel", kernels, CALLS)
    for kernel in kernels:
        check_names(f"dtype of {kernel}", dtypes, CALLS[kernel].dtypes)
    found = [
        Trial(kernel, shape, dtype, config)
        for kernel in kernels
        for shape in shapes
        for dtype in dtypes
        for config in _configs(kernel, shape, dtype, space)
    ]
    return list(dict.fromkeys(found))


def _configs(kernel: str, shape: Shape, dtype: str, space: Spaces | None) -> Sequence[LaunchConfig]:
    if space is None:
        launch = main_launch(kernel, shape, dtype)
        return default_configs(kernel, launch.work, launch.dtype)
    if any(name in HEURISTICS for name in space):
        if kernel not in space:
            raise ValueError(f"the space has nothing for {kernel}, but for {', '.join(space)}")
        return space[kernel]  # type: ignore[return-value]
    return configs_of(space)  # type: ignore[arg-type]


def sweep(
    kernels: Sequence[str],
    shapes: Sequence[Shape],
    dtypes: Sequence[str] = ("float32",),
    space: Spaces | None = None,
    *,
    timer: Timer,
    out: Path | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """Judges every configuration of a space for every kernel, shape and dtype.

    ``space`` None is the default space of each kernel. A configuration that fails becomes a row
    with an error, and the sweep goes on. With ``out``, a folder, rows go to ``results.jsonl`` one
    by one as they come, each a line of JSON, and rows that are there already are not tried again.

    ``timer`` is a ``StaticTimer`` or ``DeviceTimer`` of :mod:`tritonsyn.workbench.timers`, or any
    callable that takes a :class:`Trial` and returns ``{"cost": ...}``. Raises ``ValueError`` for
    unknown names, with a list of those that exist, a broken space or a folder with another file of
    this name. Where the machine fails, such as for space or memory, its error ends the sweep, which
    is no result of a configuration; rows before it stay readable.
    """
    wanted = trials(kernels, shapes, dtypes, space)
    name = str(getattr(timer, "name", getattr(timer, "__name__", "timer")))
    judge = partial(_judged, timer, name)
    with _results(out) as (past, add):
        done = {row.trial: row for row in past if row.timer == name}
        pending = [trial for trial in wanted if trial not in done]
        with closing(side_by_side(judge, pending, getattr(timer, "parallel", 1))) as rows:
            for row in progress(rows, len(pending)) if progress else rows:
                add(row)
                done[row.trial] = row
    return [done[trial] for trial in wanted]


def _judged(timer: Timer, name: str, trial: Trial) -> Row:
    try:
        verdict = dict(timer(trial))
        cost = float(verdict.pop("cost"))
        if not math.isfinite(cost):
            raise ValueError(f"the cost is {cost}")
    except MACHINE_ERRORS:
        raise
    except Exception as error:  # any other failure is this configuration's; the sweep goes on
        message = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return Row(trial, name, None, message)
    return Row(trial, name, cost, details=verdict)


@contextmanager
def _results(out: Path | None) -> Iterator[tuple[list[Row], Callable[[Row], object]]]:
    """The rows of earlier sweeps, and what adds one; one sweep at a time in a folder."""
    if out is None:
        yield [], lambda row: None
        return
    out.mkdir(parents=True, exist_ok=True)
    path = out / "results.jsonl"
    with ExitStack() as stack:
        try:
            stack.enter_context(tables.locked(out / "results.lock", wait=False))
        except BlockingIOError:
            raise ValueError(f"another sweep writes to {out}") from None
        past = read_rows(path)
        # Anew, because a sweep that was cut off may have left half a line.
        write_whole(path, "".join(map(_line, past)))
        file = stack.enter_context(path.open("a", encoding="utf-8", buffering=1))  # by lines
        yield past, lambda row: file.write(_line(row))


def _line(row: Row) -> str:
    return json.dumps(row.as_dict()) + "\n"


def read_rows(path: Path) -> list[Row]:
    """The rows of a results file, none if there is none; half a last line is left out.

    Raises ``ValueError`` with the line for a file of something else.
    """
    if not path.exists():
        return []
    rows = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                if line.endswith(b"\n"):
                    rows.append(Row.from_dict(parse_json(line)))
                elif not line.startswith(b"{"):
                    raise ValueError("it ends with something else")
            except ValueError as error:
                what = f"{path} is not a results file of this version"
                raise ValueError(f"{what}: line {number}: {error}") from None
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
    for (kernel, _, _), row in best(rows).items():
        launch = row.trial.launch
        entries[tables.key(kernel, launch.dtype, launch.work)] = {
            "config": row.trial.config.as_dict(),
            "timer": row.timer,
            "cost": row.cost,
        }
    path = tables.install(device, entries)
    forget()
    return path
