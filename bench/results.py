"""Results: the lines of the CSV, and the tables printed at the end of a run."""

import csv
import datetime
import functools
import io
import math
import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from machine import device_name, is_there
from workloads import ADDITION, Target

from tritonsyn.system import package_version, parse_json, write_whole

FILE = Path(__file__).parent / "results" / "synapses.csv"
NETWORKS_FILE = FILE.with_name("networks.csv")
KEY = ("workload", "size", "provider", "dtype", "device", "torch", "triton", "commit", "date")
FIELDS = (
    *KEY, "milliseconds", "low", "high", "timer", "rounds", "others", "rate", "unit", "peak_mb",
    "ratios", "targets",
)  # fmt: skip


class Sheet(NamedTuple):
    """What lines a file of results has."""

    key: tuple[str, ...]
    """Fields in which lines differ."""
    fields: tuple[str, ...]
    times: tuple[str, ...]
    """Fields that are positive numbers."""


SYNAPSES = Sheet(KEY, FIELDS, ("milliseconds", "low", "high"))
_TRAINING = ("task", "provider", "delays", "seed", "device")
NETWORKS = Sheet(
    _TRAINING,
    (
        *_TRAINING, "torch", "triton", "commit", "date", "package", "epochs", "examples",
        "accuracy", "seconds", "low", "high", "others", "peak_mb",
    ),
    ("seconds", "low", "high"),
)  # fmt: skip
"""Of networks: a training that is done again on a machine replaces the one before."""

Times = dict[tuple[str, str, str, str, str], float]
"""Milliseconds by workload, size, provider, dtype and kind of device."""
Lines = dict[tuple[str, ...], dict[str, str]]


@dataclass(frozen=True)
class Result:
    """One provider on one workload."""

    workload: str
    size: str
    provider: str
    dtype: str
    device: str
    milliseconds: float
    """Median time of a call."""
    low: float
    high: float
    """Quartiles."""
    timer: str
    """``host``, ``events`` or ``graph``."""
    rounds: int
    """Rounds that count."""
    others: float
    """Part of the machine that other processes used during these rounds, at the median."""
    rate: float | None
    unit: str
    """What the time amounts to: GB/s of the least bytes, or Gop/s; none for the host's time."""
    peak_mb: float | None
    """Memory that a call has allocated at the most, MB."""
    ratios: dict[str, float] = field(default_factory=dict)
    """Time over the provider's, of each rival timed in turn with it: medians of pairs."""
    targets: tuple[Target, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """Whether a target is reached."""

    result: Result
    target: Target
    ratio: float | None
    """The rival's time over the provider's; None where the rival has none."""

    def __str__(self) -> str:
        if self.ratio is None:
            return f"{self.target}: not compared"
        shown = self.ratio if self.target.least else 1 / self.ratio
        verdict = "reached" if self.target.reached(self.ratio) else "missed"
        return f"{self.target}: {shown:.3g}x, {verdict}"


def verdicts(results: list[Result], before: Times | None = None) -> list[Verdict]:
    """Each target of these results, against the pairs or against another line of the same run."""
    times = {(r.workload, r.size, r.provider, r.dtype, r.device): r.milliseconds for r in results}
    times = {**(before or {}), **times}
    found = []
    for r in results:
        for target in r.targets:
            ratio = r.ratios.get(target.rival)
            if ratio is None:
                size, provider = target.size or r.size, target.rival or r.provider
                rival = times.get((r.workload, size, provider, r.dtype, r.device))
                ratio = None if rival is None else rival / r.milliseconds
            found.append(Verdict(r, target, ratio))
    return found


# -- tables ---------------------------------------------------------------------------------------


def columns(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows as lines, with their entries below each other."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def table(results: list[Result]) -> list[str]:
    """Times of all, one line each."""
    heads = ("ms a call", "quartiles", "rate", "peak MB", "others", "timer", "times as fast as")
    rows = [("workload", "dtype", "device", "provider", *heads)]
    for r in results:
        rate = "" if r.rate is None else f"{r.rate:.3g} {r.unit}"
        rows.append(
            (
                f"{r.workload} ({r.size})", r.dtype, r.device, r.provider,
                f"{r.milliseconds:.3g}", f"{r.low:.3g} to {r.high:.3g}", rate,
                "" if r.peak_mb is None else f"{r.peak_mb:.3g}", f"{r.others:.0%}", r.timer,
                _ratios(r),
            )
        )  # fmt: skip
    return columns(rows)


def target_table(found: list[Verdict]) -> list[str]:
    """What had to be reached, one line each."""
    rows = [("workload", "dtype", "device", "provider", "target and what was measured")]
    for v in found:
        r = v.result
        rows.append((f"{r.workload} ({r.size})", r.dtype, r.device, r.provider, str(v)))
    return columns(rows)


def host_table(results: list[Result]) -> list[str]:
    """What a call costs the host, beside a bare addition; empty without such rows."""
    additions = {
        (r.workload, r.size, r.device): r.milliseconds for r in results if r.provider == ADDITION
    }
    rows = [("call", "device", "provider", "us", f"times {ADDITION}")]
    for r in results:
        addition = additions.get((r.workload, r.size, r.device))
        if addition and r.provider != ADDITION:
            times = f"{1e3 * r.milliseconds:.3g}", f"{r.milliseconds / addition:.3g}"
            rows.append((r.workload, r.device, r.provider, *times))
    return columns(rows) if len(rows) > 1 else []


def _ratios(result: Result) -> str:
    return ", ".join(f"{name} {ratio:.3g}" for name, ratio in result.ratios.items())


def ratios_of(line: dict[str, str]) -> dict[str, float]:
    """The ratios of a line of the file, by provider, whose name may have a comma."""
    found = re.findall(r"(.+?) ([\d.e+-]+)(?:, |$)", line["ratios"])
    return {name: float(ratio) for name, ratio in found}


# -- the file -------------------------------------------------------------------------------------


def write(results: list[Result], path: Path, before: Times | None = None) -> None:
    """Puts the results into the file, where a line with the same key is replaced."""
    said: dict[int, list[str]] = {}
    for verdict in verdicts(results, before):
        said.setdefault(id(verdict.result), []).append(str(verdict))
    put([_line(result, said.get(id(result), [])) for result in results], path)


def put(lines: list[dict[str, str]], path: Path, sheet: Sheet = SYNAPSES) -> None:
    """Puts lines into a file, where one with the same key is replaced."""
    found = read(path, sheet)
    for line in lines:
        found[_key(line, sheet)] = line
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, sheet.fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(found.values())
    write_whole(path, text.getvalue())


def read(path: Path, sheet: Sheet = SYNAPSES) -> Lines:
    """The lines of a file by their keys; none where it is not there, half a last one left out.

    Raises ``ValueError`` with the line for a file of something else.
    """
    if not path.exists():
        return {}
    found = {}
    fields, whole = ", ".join(sheet.fields), path.read_bytes().rpartition(b"\n")[0]
    try:
        rows = csv.DictReader(whole.decode().splitlines(), strict=True)
        if whole and rows.fieldnames != list(sheet.fields):
            raise ValueError(f"line 1 does not name the fields {fields}")
        for line in rows:
            if None in line or None in line.values():
                raise ValueError(f"line {rows.line_num} has not the fields {fields}")
            for name in sheet.times:
                if not _is_time(line[name]):
                    raise ValueError(f"line {rows.line_num} has {name} {line[name]!r}")
            found[_key(line, sheet)] = line
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} is not a file of results: {error}") from None
    return found


def _is_time(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


def times_in(path: Path) -> Times:
    """What the file has of this machine, these versions and this commit."""
    found: Times = {}
    names = {device_name(kind): kind for kind in ("cpu", "cuda") if is_there(kind)}
    for line in read(path).values():
        same = {name: line[name] for name in ("torch", "triton", "commit")} == versions()
        if same and line["device"] in names:
            what = line["workload"], line["size"], line["provider"], line["dtype"]
            found[(*what, names[line["device"]])] = float(line["milliseconds"])
    return found


def _key(line: dict[str, str], sheet: Sheet) -> tuple[str, ...]:
    return tuple(line[name] for name in sheet.key)


def _line(result: Result, said: list[str]) -> dict[str, str]:
    plain = (name for name in FIELDS if name not in ("ratios", "targets") and hasattr(result, name))
    return {
        **{name: _text(getattr(result, name)) for name in plain},
        "device": device_name(result.device),
        **versions(),
        "date": datetime.date.today().isoformat(),
        "ratios": _ratios(result),
        "targets": "; ".join(said),
    }


def versions() -> dict[str, str]:
    """What is measured with, as fields of a line."""
    triton = package_version("triton") or ""
    return {"torch": torch.__version__, "triton": triton, "commit": commit()}


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@functools.cache
def commit() -> str:
    """Short hash of the checkout, with a plus where it has changes.

    Of a tree without git, what ``TRITONSYN_COMMIT`` says.
    """
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        run = ["git", "-C", str(here), *arguments]
        return subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("TRITONSYN_COMMIT", "")


# -- probes ---------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """What a probe has found."""

    question: str
    value: float
    unit: str


def answers_in(path: Path) -> dict[str, list[Answer]]:
    """What probes have found, by probe; half a last line is left out, a file may be missing.

    Raises ``ValueError`` for a file of something else.
    """
    found: dict[str, list[Answer]] = {}
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            break
        try:
            row = parse_json(line)
            found[row["probe"]] = [Answer(str(q), float(v), str(u)) for q, v, u in row["answers"]]
        except (ValueError, KeyError, TypeError) as error:
            why = f"line {number}: {type(error).__name__}: {error}"
            raise ValueError(f"{path} is not a file of probes: {why:.200}") from None
    return found
