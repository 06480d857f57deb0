"""What is timed: one table of workloads, and how each kind of them is run and checked.

To add a size, a dtype or a delay, add a row to ``WORKLOADS``. To add another kind of work, write a
subclass of ``Workload`` with its ``inputs``, ``run`` and ``expected``, and add rows of it.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import oracle
import torch
from providers import Provider

STEP_TIME = 1.0  # ms
PHYSICS: dict[str, dict[str, float]] = {
    "single": {"spike_charge": 10.0, "time_constant": 5.0},
    "double": {"spike_charge": 10.0, "tc_decay": 6.0, "tc_rise": 2.0},
}
FIRING = 0.1
"""Part of the inputs that are spikes."""
FILL = 5
"""Steps beyond its length that fill a record, so that it is past its end once."""

# Rounding errors of a run, in units of the dtype's epsilon and relative to the largest value.
_ERROR = 32


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A piece of work that every provider does."""

    kind: str
    """``"single"`` or ``"double"``."""
    batch: int = 128
    synapses: int = 4096
    record: int = 20
    """Steps of delay that the record spans."""
    dtype: torch.dtype = torch.float32
    target: float | None = None
    """How many times faster than inferno-ai on two CPU cores it has to be."""
    calls: int = 1
    """Calls in one timed round; times are given for one call."""

    title: ClassVar[str]

    @property
    def name(self) -> str:
        return f"{self.title}, {self.kind}"

    @property
    def size(self) -> str:
        return f"B={self.batch}, N={self.synapses}, {self.record} steps of delay"

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(1)

    def spikes(self, steps: int, device: torch.device) -> torch.Tensor:
        """Spikes ``[steps, B, N]``, bool as inferno-ai's neurons make them."""
        shape = (steps, self.batch, self.synapses)
        return (torch.rand(shape, generator=self.generator()) < FIRING).to(device)

    def synapse(self, provider: Provider, device: torch.device, **options: Any) -> Any:
        """The provider's synapse module for this workload."""
        return provider.synapse(
            self.kind, self.synapses, STEP_TIME, **PHYSICS[self.kind],
            delay=self.record * STEP_TIME, batch_size=self.batch, dtype=self.dtype, device=device,
            **options,
        )  # fmt: skip

    def model(self, x: torch.Tensor) -> list[tuple[float, torch.Tensor]]:
        """Oracle: time constant and values ``[T, B, N]`` of each component."""
        return oracle.components(self.kind, x, STEP_TIME, **PHYSICS[self.kind])

    # -- what a kind of work defines ----------------------------------------------------------

    def inputs(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        """The tensors that every provider gets."""
        raise NotImplementedError

    def prepare(self, provider: Provider, inputs: tuple[torch.Tensor, ...]) -> Any:
        """The module, in the state from which a round starts; not timed."""
        raise NotImplementedError

    fresh: ClassVar[bool] = False
    """Whether every round has to start from a module prepared anew."""

    def run(
        self, provider: Provider, module: Any, inputs: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...]:
        """One round, ``calls`` calls, and what it computed."""
        raise NotImplementedError

    def expected(self, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """What the first round must compute, in float64."""
        raise NotImplementedError

    # -- the gate -----------------------------------------------------------------------------

    def complaint(
        self, results: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]
    ) -> str | None:
        """What is wrong with the results of a first round; None if nothing is."""
        for result, wanted in zip(results, expected, strict=True):
            if result.dtype != self.dtype or result.shape != wanted.shape:
                return f"{result.dtype} {tuple(result.shape)} instead of {tuple(wanted.shape)}"
            scale = wanted.abs().max().item()
            error = (result.double() - wanted).abs().max().item() / scale
            limit = _ERROR * torch.finfo(self.dtype).eps
            if not error <= limit:
                return f"largest error {error:.1e} of the largest value, more than {limit:.1e}"
        return None


@dataclass(frozen=True, kw_only=True)
class Step(Workload):
    """Steps without gradient; ``inplace`` is the streaming mode."""

    inplace: bool = False

    @property
    def title(self) -> str:  # type: ignore[override]
        return "step, streaming" if self.inplace else "step, default"

    def inputs(self, device):
        return (self.spikes(self.record + FILL + self.calls, device),)

    def prepare(self, provider, inputs):
        module = self.synapse(provider, inputs[0].device, inplace=self.inplace)
        return stepped(module, inputs[0][: -self.calls])

    def run(self, provider, module, inputs):
        with torch.no_grad():
            for x in inputs[0][-self.calls :].unbind():
                current = module(x)
        return (current,)

    def expected(self, inputs):
        return (oracle.total(self.model(inputs[0]))[-1],)


@dataclass(frozen=True, kw_only=True)
class Read(Workload):
    """``current_at`` without gradient on a record that is full."""

    shared: bool = False
    """Whether all of the batch reads at the same times, one per synapse."""

    @property
    def title(self) -> str:  # type: ignore[override]
        return "current_at, per synapse" if self.shared else "current_at, per element"

    def inputs(self, device):
        rows = 1 if self.shared else self.batch
        steps = torch.rand((rows, self.synapses), generator=self.generator()) * self.record
        # The libraries differ on purpose within rounding of an observation: keep clear of them.
        distance = steps - steps.round()
        steps = torch.where(distance.abs() < 1e-3, steps.round() + 1e-3, steps)
        steps = steps.clamp(max=self.record - 1e-3)
        x = self.spikes(self.record + FILL, device)
        return x, (steps * STEP_TIME).to(device, self.dtype)

    def prepare(self, provider, inputs):
        return stepped(self.synapse(provider, inputs[0].device, inplace=True), inputs[0])

    def run(self, provider, module, inputs):
        times = provider.times(inputs[1], self.batch)
        with torch.no_grad():
            for _ in range(self.calls):
                value = module.current_at(times)
        return (value,)

    def expected(self, inputs):
        return (oracle.delayed(self.model(inputs[0]), inputs[1], STEP_TIME),)


@dataclass(frozen=True, kw_only=True)
class Scan(Workload):
    """A whole sequence, forward and backward to the input."""

    steps: int = 500
    batch: int = 16
    synapses: int = 256

    fresh: ClassVar[bool] = True

    @property
    def title(self) -> str:  # type: ignore[override]
        return "sequence with its gradient" + ("" if self.record else ", no delay")

    @property
    def size(self) -> str:
        delay = f"{self.record} steps of delay" if self.record else "no delay"
        return f"T={self.steps}, B={self.batch}, N={self.synapses}, {delay}"

    def inputs(self, device):
        x = self.spikes(self.steps, device).to(self.dtype)
        return x, torch.randn(x.shape, generator=self.generator()).to(device, self.dtype)

    def prepare(self, provider, inputs):
        return self.synapse(provider, inputs[0].device)

    def run(self, provider, module, inputs):
        x = inputs[0].detach().requires_grad_()
        current = provider.sequence(module, x)
        (dx,) = torch.autograd.grad(current, x, inputs[1])
        return current.detach(), dx

    def expected(self, inputs):
        x = inputs[0].double().requires_grad_()
        current = oracle.total(self.model(x))
        (dx,) = torch.autograd.grad(current, x, inputs[1].double())
        return current.detach(), dx


def stepped(module: Any, x: torch.Tensor) -> Any:
    """The module after these steps."""
    with torch.no_grad():
        for row in x.unbind():
            module(row)
    return module


WORKLOADS: list[Workload] = [
    workload
    for kind in PHYSICS
    for workload in (
        Step(kind=kind, inplace=True, calls=40, target=2),
        Step(kind=kind, calls=2, target=30),
        Read(kind=kind, calls=3, target=8),
        Read(kind=kind, shared=True, calls=3, target=8),
        Scan(kind=kind, record=0, target=10),
        Scan(kind=kind, target=50),
    )
]
