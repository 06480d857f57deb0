"""How a sweep judges a configuration: by its code, or by the time that it takes."""

import math

import torch

from ..launch.config import SCANS, check_names
from .inspect import LIMITS, TARGETS, Job, Report, report
from .record import Variant, launches_of
from .search import Trial
from .workers import Workers

_FIGURES = ("registers", "spills", "shared", "occupancy", "instructions", "bytes_per_element")


class StaticTimer(Workers[Job, Report]):
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
        super().__init__(report)
        self.name = f"static {target}"
        self.device = target
        self._reports: dict[Job, Report] = {}

    def __call__(self, trial: Trial) -> dict[str, float]:
        """The cost, and the figures of the code that it comes from."""
        # Chunks are a matter of the grid: the code is the same.
        job = Job(Variant.of(trial.launch, trial.shape), self.device, trial.config.with_chunks(1))
        found = self._reports[job] = self._reports.get(job) or self.run(job)
        if not found.resident_warps:
            raise ValueError("not even one program fits on a multiprocessor")
        figures = {name: getattr(found, name) for name in _FIGURES}
        return {"cost": round(_cost(found, trial), 4), **figures}


_IN_FLIGHT = 20 * 1024
_ISSUED = 4 * 32  # instructions of threads per clock
_PER_CLOCK = 15  # bytes from memory per clock


def _cost(report: Report, trial: Trial) -> float:
    threads = 32 * trial.config.num_warps
    # Warps of the whole grid for each multiprocessor, of which some are resident at once.
    warps = trial.programs * trial.config.num_warps / LIMITS[report.job.target].multiprocessors
    loaded = sum(bits // 8 * count for bits, count in report.loads.items())
    flight = min(1.0, max(loaded, 1) * 32 * min(report.resident_warps, warps) / _IN_FLIGHT)

    accesses = [*report.loads.items(), *report.stores.items()]
    moved = sum(bits // 8 * count for bits, count in accesses)
    width = sum(bits / 128 * bits // 8 * count for bits, count in accesses) / max(moved, 1)

    # Accesses and instructions are both those of the PTX: machine code may be unrolled further.
    by_thread = report.elements * report.copies / threads
    per_element = report.virtual / by_thread
    bytes_per_element = report.minimum or moved / by_thread
    issue = min(1.0, bytes_per_element / _PER_CLOCK / (per_element / _ISSUED))

    waves = warps / report.resident_warps
    tail = waves / math.ceil(waves) if waves > 1 else 1.0
    spilled = 2 if report.spills else 1
    return _traffic(report, trial) * spilled / (flight * (1 + width) / 2 * issue * tail)


def _traffic(report: Report, trial: Trial) -> float:
    """Bytes against the minimum: chunks read the input of a scan a second time.

    Never below 1: of addresses that are not followed to an argument, accesses are not counted.
    """
    if not report.minimum:
        return 1.0
    read = sum(stream.itemsize * stream.loads for stream in report.streams.values())
    again = read if trial.kernel in SCANS and trial.config.chunks > 1 else 0
    return max(1.0, (report.bytes_per_element + again) / report.minimum)


class DeviceTimer:
    """Times the launches of a kernel on this machine's GPU: the median of many, in milliseconds.

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
        """``cost`` in ms: of all launches of the kernel in its call, such as those of chunks."""
        from triton.testing import do_bench

        with torch.cuda.device(self._device):
            launches = launches_of(
                trial.kernel, trial.shape, trial.dtype, trial.config, self._device
            )

            def call() -> None:
                for launch in launches:
                    launch.run()

            return {"cost": float(do_bench(call, return_mode="median"))}
