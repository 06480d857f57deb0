"""How a sweep judges a configuration: by its code, or by the time that it takes."""

import torch

from ..launch.config import check_names
from .inspect import TARGETS, Job, Listing, listing
from .model import machine_of, predict
from .record import Variant, launches_of
from .search import Trial
from .workers import Workers

_FIGURES = ("registers", "spills", "shared", "occupancy", "instructions", "bytes_per_element")


class StaticTimer(Workers[Job, Listing]):
    """Ranks by the compiled code, for a GPU that need not be there. It measures nothing.

    The cost is the time in microseconds that the arithmetic of :mod:`tritonsyn.workbench.model`
    gives for the launches of the kernel in its call, such as those of all chunks of a scan, twice
    that where registers spill. The arithmetic is that of an H100, with as many multiprocessors as
    the target has.

    Of walks over spikes it does not know how many there are: it cannot compare them.

    Raises ``ValueError`` for an unknown target. A context manager; leaving it ends its processes.
    """

    def __init__(self, target: str = "sm_90") -> None:
        check_names("target", [target], TARGETS)
        super().__init__(listing)
        self.name = f"static {target}"
        self.device = target
        self._machine = machine_of(target)
        self._listings: dict[Job, Listing] = {}

    def __call__(self, trial: Trial) -> dict[str, float]:
        """The cost, and the figures of the code that it comes from."""
        cost = 0.0
        launches = launches_of(trial.kernel, trial.shape, trial.dtype, trial.config)
        for launch in launches:
            # Chunks are a matter of the grid: the code is the same.
            config = launch.config.with_chunks(1)
            job = Job(Variant.of(launch, trial.shape), self.device, config)
            found = self._listings[job] = self._listings.get(job) or self.run(job)
            report = found.report
            if not report.resident_warps:
                raise ValueError("not even one program fits on a multiprocessor")
            predicted = predict(launch, found, self._machine, trial.shape.slots or 1)
            cost += 1e6 * predicted.seconds * (2 if report.spills else 1)
        figures = {name: getattr(report, name) for name in _FIGURES}
        figures |= {"warps": predicted.warps, "in_flight": predicted.in_flight}
        return {"cost": round(cost, 4), **figures}


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
