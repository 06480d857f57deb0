"""Who is timed: inferno-ai, and tritonsyn on each backend that can run."""

import importlib.util
from typing import Any

import torch

import tritonsyn

_CLASSES = {"single": "SingleExponentialCurrent", "double": "DoubleExponentialCurrent"}


class Provider:
    """A library, as the workloads use it."""

    name: str

    def runs_on(self, device: torch.device) -> bool:
        """Whether it can be timed on this device."""
        raise NotImplementedError

    def synapse(self, kind: str, *args: Any, **options: Any) -> torch.nn.Module:
        """A synapse module."""
        raise NotImplementedError

    def times(self, times: torch.Tensor, batch: int) -> torch.Tensor:
        """Times ``[1 or B, N]`` as its delayed read takes them."""
        return times

    def sequence(self, module: Any, x: torch.Tensor) -> torch.Tensor:
        """Currents of a whole sequence ``[T, B, N]``."""
        raise NotImplementedError


class Inferno(Provider):
    """inferno-ai, which every other provider is compared with."""

    name = "inferno-ai"

    def runs_on(self, device):
        return importlib.util.find_spec("inferno") is not None

    def synapse(self, kind, *args, dtype, device, **options):
        import inferno.neural  # type: ignore[import-untyped]

        module = getattr(inferno.neural, _CLASSES[kind])(*args, **options)
        return module.to(device=device, dtype=dtype)

    def times(self, times, batch):
        return times.expand(batch, *times.shape[1:])  # it does not broadcast

    def sequence(self, module, x):
        return torch.stack([module(row) for row in x.unbind()])


class Tritonsyn(Provider):
    """tritonsyn on one backend."""

    def __init__(self, backend: str) -> None:
        self.name, self._backend = f"tritonsyn {backend}", backend

    def runs_on(self, device):
        # On a CPU the kernels run interpreted: right, and far too slow to say anything.
        return self._backend == "reference" or device.type == "cuda"

    def synapse(self, kind, *args, **options):
        return getattr(tritonsyn, _CLASSES[kind])(*args, backend=self._backend, **options)

    def sequence(self, module, x):
        return module.scan(x)


INFERNO = Inferno()
PROVIDERS: list[Provider] = [INFERNO, Tritonsyn("reference"), Tritonsyn("triton")]
DEVICES = [torch.device("cpu")]
if torch.cuda.is_available():
    DEVICES.append(torch.device("cuda"))
