"""Results: the table printed at the end of a run, and the lines of ``bench/results``."""

import csv
import datetime
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from machine import device_name

FOLDER = Path(__file__).parent / "results"
FIELDS = (
    "workload", "size", "provider", "dtype", "device", "torch", "triton", "commit", "date",
    "milliseconds", "inferno_milliseconds", "ratio", "target", "pairs", "others",
)  # fmt: skip
KEY = ("workload", "size", "provider", "dtype", "device", "torch", "triton", "commit", "date")


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
    inferno_milliseconds: float | None
    """The same of inferno-ai in the pairs."""
    ratio: float | None
    """Median over the pairs of inferno-ai's time over the provider's."""
    target: float | None
    pairs: int
    """Pairs of timings that count."""
    others: float
    """Part of the machine that other processes used during these pairs, at the median."""


def table(results: list[Result]) -> list[str]:
    """The ratios and the targets, one line each."""
    rows = [
        (
            "workload", "device", "provider", "ms a call", "inferno ms", "ratio", "target", "",
            "pairs", "others",
        )
    ]  # fmt: skip
    for r in results:
        if r.ratio is None or r.inferno_milliseconds is None:
            continue
        times = f"{r.milliseconds:.3g}", f"{r.inferno_milliseconds:.3g}", f"{r.ratio:.1f}x"
        target = ("", "")
        if r.target is not None:
            target = f">= {r.target:g}x", "reached" if r.ratio >= r.target else "missed"
        quality = str(r.pairs), f"{r.others:.0%}"
        rows.append((f"{r.workload} ({r.size})", r.device, r.provider, *times, *target, *quality))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def write(results: list[Result]) -> Path:
    """Puts the results into the file, where a line with the same key is replaced."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / "synapses.csv"
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    if path.exists():
        with path.open(newline="") as file:
            for line in csv.DictReader(file):
                lines[tuple(line[name] for name in KEY)] = line
    for result in results:
        line = _line(result)
        lines[tuple(line[name] for name in KEY)] = line
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines.values())
    return path


def _line(result: Result) -> dict[str, str]:
    values = {name: _text(getattr(result, name)) for name in FIELDS if hasattr(result, name)}
    return {
        **values,
        "device": device_name(result.device),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
    }


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def commit() -> str:
    """Short hash of the checkout, with a plus where it has changes."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        run = ["git", "-C", str(here), *arguments]
        return subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""
