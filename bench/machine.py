"""The machine: what it is called, and how much of it others use."""

import contextlib
import os
import platform
from pathlib import Path
from typing import NamedTuple

import torch


def is_there(kind: str) -> bool:
    """Whether this machine has such a device."""
    return kind == "cpu" or (kind == "cuda" and torch.cuda.is_available())


def device_name(kind: str) -> str:
    """The device in words."""
    if kind == "cuda":
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


class Usage(NamedTuple):
    """Processor time since some moment, s."""

    machine: float
    """Used by everything, and taken by the host of a virtual machine."""
    process: float
    """Used by this process."""
    seconds: float
    """On the clock."""

    @classmethod
    def now(cls) -> "Usage":
        """Zero for the machine where the system does not tell (it does on Linux)."""
        times = os.times()
        machine = 0.0
        stat = Path("/proc/stat")
        if stat.exists():
            user, nice, system, _, _, irq, softirq, steal = map(
                int, stat.read_text().split(maxsplit=9)[1:9]
            )
            ticks = user + nice + system + irq + softirq + steal
            machine = ticks / os.sysconf("SC_CLK_TCK")
        return cls(machine, times.user + times.system, times.elapsed)


def others(before: Usage, after: Usage) -> float:
    """The part of the machine that other processes used between two moments, 0 to 1."""
    used = (after.machine - before.machine) - (after.process - before.process)
    there = (after.seconds - before.seconds) * (os.cpu_count() or 1)
    return min(max(used / max(there, 1e-9), 0.0), 1.0)


class PeakMemory:
    """How far the memory of this process has risen since this was made.

    ``resource.getrusage`` does not tell: the peak that it gives a process starts with that of the
    one which started it.
    """

    def __init__(self) -> None:
        with contextlib.suppress(OSError):  # not allowed, or not Linux: the peak so far counts
            Path("/proc/self/clear_refs").write_text("5")
        self._before = _peak()

    def megabytes(self) -> float | None:
        """MB of 10^6 bytes; None where the system does not tell (it does on Linux)."""
        now = _peak()
        return None if now is None or self._before is None else (now - self._before) / 1e6


def _peak() -> int | None:
    """Bytes that this process had in memory at the most."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    return found[0] if found else None
