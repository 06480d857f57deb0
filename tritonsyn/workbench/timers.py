"""How a sweep judges a configuration: by its machine code, or by the time that it takes."""

import math
import threading
from collections.abc import Mapping
from typing import Protocol

import torch

from ..kernels.signatures import SIGNATURES
from ..launch.config import SCANS, override_config
from .checking import DTYPES, TARGETS, check_names
from .occupancy import LIMITS
from .report import Report
from .search import Trial
from .workers import Compilers, Job
from .workloads import WORKLOADS


class Timer(Protocol):
    """What judges trials. Any callable will do; these attributes are optional."""

    name: str
    """Told in every row; results of timers of other names are not resumed from."""
    device: str
    """Under which ``--install`` keeps the winner: a GPU's name, or an architecture."""
    parallel: int
    """Trials that may be judged at once; 1 unless given."""

    def __call__(self, trial: Trial) -> Mapping[str, float]:
        """``{"cost": ...}``, the lower the better, and whatever else is worth a note."""


class StaticTimer:
    """Ranks by the compiled code, for a GPU that need not be there. It measures nothing.

    The cost is 1 for code that nothing holds back, and more the more of these apply, multiplied:

    * too few bytes in flight to hide the memory's latency: bytes that the resident warps load in
      one pass of the code, against 20 KiB per multiprocessor (3.35 TB/s over 132 of them for 800
      ns: an H100);
    * narrow accesses: up to 2 where they are much narrower than 128 bits;
    * instructions: 4 of a warp are issued in each clock, in which 15 bytes come from memory;
    * bytes beyond the minimum, such as an input that chunks make a scan read twice;
    * a last wave of programs that leaves multiprocessors idle;
    * spills: 2.

    Of kernels without streams, products of matrices and walks over spikes, it knows what a pass of
    their code moves, not what that pass achieves: it cannot compare tiles of different sizes.

    Raises ``ValueError`` for an unknown target. A context manager; leaving it ends its processes.
    """

    def __init__(self, target: str = "sm_90") -> None:
        check_names("target", [target], TARGETS)
        self.name = f"static {target}"
        self.device = target
        self._compilers = Compilers()
        self.parallel = self._compilers.count
        self._reports: dict[Job, Report] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> "StaticTimer":
        return self

    def __exit__(self, *exception: object) -> None:
        self._compilers.__exit__(*exception)

    def __call__(self, trial: Trial) -> dict[str, float]:
        """The cost, and the figures of the code that it comes from."""
        report = self._report(trial)
        if not report.resident_warps:
            raise ValueError("not even one program fits on a multiprocessor")
        return {
            "cost": round(_cost(report, trial), 4),
            "registers": report.registers,
            "spills": report.spills,
            "shared": report.shared,
            "occupancy": report.occupancy,
            "instructions": report.instructions,
            "bytes_per_element": report.bytes_per_element,
        }

    def _report(self, trial: Trial) -> Report:
        # Chunks are a matter of the grid: the code is the same.
        config = trial.config.with_chunks(1)
        job = Job(trial.kernel, variant_for(trial), self.device, config)
        with self._lock:
            known_report = self._reports.get(job)
        report = known_report or self._compilers.compile(job)
        with self._lock:
            self._reports[job] = report
        return report


def variant_for(trial: Trial) -> int:
    """The variant that stands for a kernel in a dtype: the first of that dtype, or of its size.

    Raises ``ValueError`` where there is none, with the dtypes that there are.
    """
    variants = [(i, DTYPES[v.dtype]) for i, v in enumerate(SIGNATURES[trial.kernel]) if v.aligned]
    wanted: torch.dtype = getattr(torch, trial.dtype)
    same = [i for i, dtype in variants if dtype == wanted]
    alike = [
        i
        for i, dtype in variants
        if (dtype.itemsize, dtype.is_floating_point) == (wanted.itemsize, wanted.is_floating_point)
    ]
    if not same and not alike:
        have = ", ".join(sorted({str(dtype).removeprefix("torch.") for _, dtype in variants}))
        raise ValueError(f"{trial.kernel} is not compiled for {trial.dtype}, but for {have}")
    return (same or alike)[0]


_IN_FLIGHT = 20 * 1024
_ISSUED = 4 * 32  # instructions of threads per clock
_PER_CLOCK = 15  # bytes from memory per clock


def _cost(report: Report, trial: Trial) -> float:
    threads = 32 * report.config["num_warps"]
    multiprocessors = LIMITS[report.target].multiprocessors
    programs = trial.programs
    by_grid = programs * report.config["num_warps"] / multiprocessors
    warps = min(report.resident_warps, by_grid)
    loaded = sum(bits // 8 * count for bits, count in report.loads.items())
    flight = min(1.0, max(loaded, 1) * 32 * warps / _IN_FLIGHT)

    accesses = [*report.loads.items(), *report.stores.items()]
    moved = sum(bits // 8 * count for bits, count in accesses)
    width = sum(bits / 128 * bits // 8 * count for bits, count in accesses) / max(moved, 1)

    by_thread = report.elements * report.copies / threads
    per_element = report.instructions / by_thread
    bytes_per_element = report.minimum or moved / by_thread
    issue = min(1.0, bytes_per_element / _PER_CLOCK / (per_element / _ISSUED))

    waves = programs / multiprocessors / (report.resident_warps / report.config["num_warps"])
    tail = waves / math.ceil(waves) if waves > 1 else 1.0
    spilled = 2 if report.spills else 1
    return _traffic(report, trial) * spilled / (flight * (1 + width) / 2 * issue * tail)


def _traffic(report: Report, trial: Trial) -> float:
    """Bytes against the minimum: chunks read the input of a scan a second time.

    Never below 1: of addresses that were spilled, the accesses cannot be told from others.
    """
    if not report.minimum:
        return 1.0
    streams = SIGNATURES[report.kernel][report.variant].streams
    read = sum(report.streams[name].itemsize * s.loads for name, s in streams.items())
    again = read if trial.kernel in SCANS and trial.config.chunks > 1 else 0
    return max(1.0, (report.bytes_per_element + again) / report.minimum)


class DeviceTimer:
    """Times launches on this machine's GPU: the median of many, in milliseconds.

    Raises ``ValueError`` where there is no GPU.
    """

    parallel = 1

    def __init__(self, device: str = "cuda") -> None:
        if not torch.cuda.is_available():
            raise ValueError(
                "timer device needs a GPU, and this machine has none; timer static ranks by the "
                "compiled code, without one"
            )
        self._device = torch.device(device)
        self.device = torch.cuda.get_device_name(self._device)
        self.name = f"device {self.device}"

    def __call__(self, trial: Trial) -> dict[str, float]:
        """``cost`` in ms."""
        from triton.testing import do_bench

        dtype = getattr(torch, trial.dtype)
        with torch.cuda.device(self._device), override_config(trial.config, trial.kernel):
            call = WORKLOADS[trial.kernel].call(trial.shape, dtype, self._device)
            return {"cost": float(do_bench(call, return_mode="median"))}
