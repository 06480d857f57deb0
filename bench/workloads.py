"""The kinds of work: what each asks for, and what the right answer is.

The rows, with their sizes and targets, are in ``table.py``. To add another kind of work, write a
subclass of ``Workload``, give the providers a method named like its ``work``, and add rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import oracle
import torch

Tensors = tuple[torch.Tensor, ...]

STEP_TIME = 1.0  # ms
PHYSICS: dict[str, dict[str, float]] = {
    "single": {"spike_charge": 10.0, "time_constant": 5.0},
    "double": {"spike_charge": 10.0, "tc_decay": 6.0, "tc_rise": 2.0},
}
FIRING = 0.1
"""Part of the inputs that are spikes."""
FILL = 5
"""Steps beyond its length that fill a record, so that it is past its end once."""
ADDITION = "torch.add"
"""What the host's time for a call is held against."""
EVERYWHERE, GPU = ("cpu", "cuda"), ("cuda",)


def uniform(shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """Numbers between 0 and 1, the same at every call."""
    generator = torch.Generator(device).manual_seed(1)
    return torch.rand(shape, generator=generator, device=device)


def normal(shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """Numbers of either sign, the same at every call."""
    generator = torch.Generator(device).manual_seed(2)
    return torch.randn(shape, generator=generator, device=device)


@dataclass(frozen=True)
class Target:
    """How tritonsyn's time has to compare with another time of the same run."""

    device: str
    limit: float
    rival: str
    """A provider; "" for tritonsyn itself at another size."""
    size: str = ""
    """The rival's size; "" for the same."""
    least: bool = True
    """The rival's time is at least ``limit`` times as long; else ours at most ``limit`` times."""
    of: str = ""
    """The provider it speaks of; "" for tritonsyn on the backend that users get there."""

    def reached(self, ratio: float) -> bool:
        """Whether a ratio, the rival's time over ours, is good enough."""
        return ratio >= self.limit if self.least else ratio >= 1 / self.limit

    def __str__(self) -> str:
        against = self.rival or f"at {self.size}"
        return f"{'at least' if self.least else 'at most'} {self.limit:g}x {against}"


def faster(device: str, limit: float, rival: str, of: str = "") -> Target:
    """At least ``limit`` times as fast as the rival."""
    return Target(device, limit, rival, of=of)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A piece of work that several providers do."""

    kind: str = "single"
    """``"single"`` or ``"double"``."""
    batch: int = 128
    synapses: int = 4096
    record: int = 20
    """Steps of delay that the record spans."""
    dtype: torch.dtype = torch.float32
    calls: int = 1
    """Calls in one timed round; times are given for one call."""
    host: bool = False
    """Time what a call costs the host, not what it costs the device."""
    devices: tuple[str, ...] = EVERYWHERE
    sweep: bool = False
    """One of many sizes: on a CPU only if asked for."""
    targets: tuple[Target, ...] = ()

    work: ClassVar[str]
    """The method of a provider that does it."""

    @property
    def title(self) -> str:
        """What is done, in words."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        return f"{self.title}, {self.kind}" + (", host time of a call" if self.host else "")

    @property
    def size(self) -> str:
        return f"B={self.batch}, N={self.synapses}, K={self.record + 1}"

    @property
    def components(self) -> int:
        return len(PHYSICS[self.kind]) - 1

    def inputs(self, device: torch.device) -> Tensors:
        """The tensors that every provider gets."""
        raise NotImplementedError

    def expected(self, inputs: Tensors) -> Tensors:
        """What a first round must compute, in float64."""
        raise NotImplementedError

    @property
    def moved(self) -> float:
        """Bytes that a call has to move at the least: inputs read and outputs written once."""
        raise NotImplementedError

    @property
    def operations(self) -> float:
        """Multiplications and additions of a call, where these are what it costs; else 0."""
        return 0

    # -- helps --------------------------------------------------------------------------------

    def spikes(self, steps: int, device: torch.device, firing: float = FIRING) -> torch.Tensor:
        """Spikes ``[steps, B, N]``, bool as inferno-ai's neurons make them."""
        return uniform((steps, self.batch, self.synapses), device) < firing

    def model(self, x: torch.Tensor, physics: oracle.Physics | None = None) -> oracle.Components:
        return oracle.components(self.kind, x, STEP_TIME, physics or PHYSICS[self.kind])

    # -- the gate -----------------------------------------------------------------------------

    def limits(self) -> tuple[float, ...]:
        """Largest error of each result, relative to its largest value."""
        # Rounding errors of a run: many steps in float32, few that add up in shorter dtypes.
        units = 32 if self.dtype.itemsize >= 4 else 4
        return (units * torch.finfo(self.dtype).eps,)

    def complaint(self, results: Tensors, expected: Tensors, leniency: float = 1.0) -> str | None:
        """What is wrong with the results of a first round; None if nothing is."""
        limits = self.limits() * len(expected) if len(self.limits()) == 1 else self.limits()
        for result, wanted, limit in zip(results, expected, limits, strict=True):
            if result.dtype != self.dtype or result.shape != wanted.shape:
                return f"{result.dtype} {tuple(result.shape)} instead of {tuple(wanted.shape)}"
            scale = wanted.abs().max().item()
            error = (result.double() - wanted).abs().max().item() / scale
            if not error <= leniency * limit:
                return f"error {error:.1e} of the largest value, more than {leniency * limit:.1e}"
        return None


@dataclass(frozen=True, kw_only=True)
class Step(Workload):
    """Steps without gradient; ``inplace`` is the streaming mode."""

    inplace: bool = False
    work: ClassVar[str] = "step"

    @property
    def title(self):
        return "step, streaming" if self.inplace else "step, default"

    @property
    def moved(self):
        newest_and_slot, current, spikes = 2 * self.components, 1, 2
        values = (newest_and_slot + current) * self.dtype.itemsize
        return self.batch * self.synapses * (values + spikes)

    def inputs(self, device):
        return (self.spikes(self.record + FILL + self.calls, device),)

    def expected(self, inputs):
        return (oracle.total(self.model(inputs[0]))[-1],)


@dataclass(frozen=True, kw_only=True)
class Read(Workload):
    """``current_at`` without gradient on a record that is full."""

    shared: bool = False
    """Whether all of the batch reads at the same times, one per synapse."""
    selectors: int = 0
    """Times per synapse, as a last axis; 0 for one, without that axis."""
    work: ClassVar[str] = "read"

    @property
    def title(self):
        return "current_at, per synapse" if self.shared else "current_at, per element"

    @property
    def size(self):
        return super().size + (f", D={self.selectors}" if self.selectors else "")

    @property
    def moved(self):
        read = self.batch * self.synapses * max(self.selectors, 1)
        times = read // self.batch if self.shared else read
        # Several times per synapse find the record's lines in a cache after the first.
        record = self.batch * self.synapses * min(max(self.selectors, 1), self.record + 1)
        return (times + read + self.components * record) * self.dtype.itemsize

    def inputs(self, device):
        rows = 1 if self.shared else self.batch
        shape = (rows, self.synapses) + ((self.selectors,) if self.selectors else ())
        steps = uniform(shape, device) * self.record
        # The libraries differ on purpose within rounding of an observation: keep clear of them.
        distance = steps - steps.round()
        steps = torch.where(distance.abs() < 1e-3, steps.round() + 1e-3, steps)
        steps = steps.clamp(max=self.record - 1e-3)
        x = self.spikes(self.record + FILL, device)
        return x, (steps * STEP_TIME).to(self.dtype)

    def expected(self, inputs):
        return (oracle.delayed(self.model(inputs[0]), inputs[1], STEP_TIME),)


@dataclass(frozen=True, kw_only=True)
class OverTime(Workload):
    """A sequence from rest."""

    steps: int = 500
    batch: int = 16
    synapses: int = 256

    @property
    def size(self):
        return f"T={self.steps}, {super().size}"


@dataclass(frozen=True, kw_only=True)
class Scan(OverTime):
    """A whole sequence from rest, with gradients to what ``gradients`` names."""

    source: str = "float"
    """What the input is: ``"float"``, ``"bool"`` or packed ``"bits"``."""
    gradients: tuple[str, ...] = ("input",)
    """Of ``"input"`` and ``"tau"``, in this order."""
    stateless: bool = False
    """The function alone, without the state of a module; forward."""
    backward: bool = False
    """Time the backward pass alone."""
    work: ClassVar[str] = "scan"

    @property
    def title(self):
        if not self.gradients:
            return f"{'exp_scan' if self.stateless else 'sequence'} from {self.source}"
        alone = ", backward alone" if self.backward else ""
        return "sequence with gradient to " + " and ".join(self.gradients) + alone

    @property
    def moved(self):
        values, item = self.steps * self.batch * self.synapses, self.dtype.itemsize
        read = {"float": item, "bool": 1, "bits": 1 / 8}[self.source]
        forward = 0 if self.backward else read + item
        backward = 2 * item if "input" in self.gradients else 0
        return values * (forward + backward + (read if "tau" in self.gradients else 0))

    def inputs(self, device):
        x = self.spikes(self.steps, device)
        x = x.to(self.dtype) if self.source == "float" else x
        if not self.gradients:
            return (x,)
        return x, normal(x.shape, device).to(self.dtype)

    def expected(self, inputs):
        if not self.gradients:
            return (oracle.total(self.model(inputs[0])),)
        x = inputs[0].double().requires_grad_()
        physics: oracle.Physics = dict(PHYSICS[self.kind])
        leaves = {"input": x}
        if "tau" in self.gradients:
            leaves["tau"] = torch.tensor(
                PHYSICS[self.kind]["time_constant"], dtype=torch.float64, device=x.device
            ).requires_grad_()
            physics["time_constant"] = leaves["tau"]
        current = oracle.total(self.model(x, physics))
        wanted = [leaves[name] for name in self.gradients]
        gradients = torch.autograd.grad(current, wanted, inputs[1].double())
        return current.detach(), *gradients

    def limits(self):
        (limit,) = super().limits()
        # A sum of T*B*N numbers of either sign: what remains of it is small.
        return (limit, *(1e-3 if name == "tau" else limit for name in self.gradients))


@dataclass(frozen=True, kw_only=True)
class ReadSteps(OverTime):
    """A sequence from rest, read at times of each step that the batch shares; forward."""

    steps: int = 200
    work: ClassVar[str] = "read_steps"
    title: ClassVar[str] = "sequence read at the times of each step"

    @property
    def moved(self):
        values = self.steps * self.batch * self.synapses
        return values + (2 * values + values // self.batch) * self.dtype.itemsize

    def inputs(self, device):
        part = 0.1 + 0.8 * uniform((self.steps, 1, self.synapses), device)  # of a step
        whole = (normal(part.shape, device).abs() * 3).round().clamp(max=self.record - 1)
        return self.spikes(self.steps, device), ((whole + part) * STEP_TIME).to(self.dtype)

    def expected(self, inputs):
        x, times = inputs
        before = 0, 0, 0, 0, self.record + 1, 0
        parts = [(c, torch.nn.functional.pad(v, before)) for c, v in self.model(x)]
        reads = []
        for t in range(self.steps):
            past = [(c, v[t : t + self.record + 2]) for c, v in parts]
            reads.append(oracle.delayed(past, times[t], STEP_TIME))
        return (torch.stack(reads),)


@dataclass(frozen=True, kw_only=True)
class Ragged(OverTime):
    """A sequence from rest of samples that each end after steps of their own; forward."""

    work: ClassVar[str] = "ragged"
    title: ClassVar[str] = "sequence of samples of several lengths"

    @property
    def lengths(self) -> list[int]:
        """Steps of each sample: from a fifth of the longest on."""
        return [self.steps * (1 + i % 5) // 5 for i in range(self.batch)]

    @property
    def moved(self):
        return self.steps * self.batch * self.synapses * (1 + self.dtype.itemsize)

    def inputs(self, device):
        return (self.spikes(self.steps, device),)

    def expected(self, inputs):
        current = oracle.total(self.model(inputs[0]))
        for sample, length in enumerate(self.lengths):
            current[length:, sample] = 0.0
        return (current,)


@dataclass(frozen=True, kw_only=True)
class Project(Workload):
    """A delayed linear layer over a sequence from rest, forward or with all gradients."""

    steps: int = 50
    batch: int = 32
    synapses: int = 140
    outputs: int = 128
    record: int = 25
    firing: float = 0.05
    gradient: bool = False
    """To the input, the weights and, unless ``whole``, the delays."""
    whole: bool = False
    """Delays at whole steps, where a temporal convolution computes the same."""
    delays: str = "connection"
    """What has a delay of its own: every ``"connection"``, ``"input"`` or ``"output"``."""
    backward: bool = False
    """Time the backward pass alone."""
    work: ClassVar[str] = "project"

    @property
    def title(self):
        delays = " at whole steps" if self.whole else ""
        if self.delays != "connection":
            delays = f", a delay for each {self.delays}"
        if self.backward:
            return f"delayed linear{delays}, backward alone"
        return f"delayed linear{delays}, forward" + (" and backward" if self.gradient else "")

    @property
    def size(self):
        shape = f"T={self.steps}, B={self.batch}, I={self.synapses}, O={self.outputs}"
        return f"{shape}, K={self.record + 1}, spikes={self.firing:g}"

    @property
    def moved(self):
        return self.passes * self.steps * self.batch * (self.synapses + self.outputs) * 4

    @property
    def operations(self):
        taps = self.steps * self.batch * self.synapses * self.outputs
        return 2 * taps * self.passes

    @property
    def passes(self) -> int:
        """Of results, gradients to the input, and those to the parameters."""
        return (not self.backward) + 2 * self.gradient

    def inputs(self, device):
        weight = normal((self.outputs, self.synapses), device)
        shape = {"input": (1, self.synapses), "output": (self.outputs, 1)}
        delay = uniform(shape.get(self.delays, weight.shape), device)
        delay = delay * (self.record - 2e-3) + 1e-3
        # Away from observations, where one-sided derivatives differ, or on them.
        distance = delay - delay.round()
        delay = torch.where(distance.abs() < 1e-3, delay.round() + 2e-3, delay)
        delay = delay.round() if self.whole else delay
        x = self.spikes(self.steps, device, self.firing)
        found = [x, weight.to(self.dtype), (delay * STEP_TIME).to(self.dtype)]
        if self.gradient:
            found[0] = x.to(self.dtype)
            shape = (self.steps, self.batch, self.outputs)
            found.append(normal(shape, device).to(self.dtype))
        return tuple(found)

    def expected(self, inputs):
        x, weight, delay = (tensor.double() for tensor in inputs[:3])
        leaves = [x, weight] if self.whole else [x, weight, delay]
        with torch.set_grad_enabled(self.gradient):
            for leaf in leaves:
                leaf.requires_grad_(self.gradient)
            y = oracle.projected(self.model(x), weight, delay.expand_as(weight), STEP_TIME)
        if not self.gradient:
            return (y,)
        return y.detach(), *torch.autograd.grad(y, leaves, inputs[3].double())

    def limits(self):
        # Sums over a thousand products and more, in another order.
        return (8 * super().limits()[0],)


@dataclass(frozen=True, kw_only=True)
class Sparse(Project):
    """A delayed layer that has some of the connections; the weights of the others are zero."""

    density: float = 0.1
    """The part of the connections that there are."""
    work: ClassVar[str] = "sparse"

    @property
    def title(self):
        return super().title.replace("linear", f"linear, {self.density:.0%} of the connections")

    @property
    def operations(self):
        return round(super().operations * self.density)

    def inputs(self, device):
        x, weight, *others = super().inputs(device)
        there = uniform(tuple(weight.shape), device) < self.density
        return x, torch.where(there, weight, 0.0), *others

    def expected(self, inputs):
        return self.connected(inputs[1], super().expected(inputs))

    def connected(self, weight: torch.Tensor, found: Tensors) -> Tensors:
        """Results, and gradients without those of weights that are zero because they have to be."""
        return *found[:2], *(torch.where(weight != 0, dweight, 0.0) for dweight in found[2:])


@dataclass(frozen=True, kw_only=True)
class Convolve(Project):
    """A delayed convolution over lines: the delayed linear layer of all windows."""

    batch: int = 8
    synapses: int = 16
    """Channels."""
    outputs: int = 32
    record: int = 20
    length: int = 100
    kernel: int = 5
    work: ClassVar[str] = "convolve"

    @property
    def title(self):
        return super().title.replace("linear", "convolution")

    @property
    def size(self):
        return f"{super().size}, L={self.length}, kernel={self.kernel}"

    @property
    def dense(self) -> Project:
        """The layer of the windows."""
        rows = self.batch * (self.length - self.kernel + 1)
        sizes = {"batch": rows, "synapses": self.synapses * self.kernel, "outputs": self.outputs}
        run = {"steps": self.steps, "record": self.record, "gradient": self.gradient}
        return Project(kind=self.kind, dtype=self.dtype, **sizes, **run)

    @property
    def moved(self):
        outputs = self.outputs * self.dense.batch
        return self.passes * self.steps * (self.batch * self.synapses * self.length + outputs) * 4

    @property
    def operations(self):
        return self.dense.operations

    def windows(self, x: torch.Tensor) -> torch.Tensor:
        """Lines ``[T, B, C, L]`` as rows of the layer of their windows."""
        return x.unfold(-1, self.kernel, 1).movedim(2, 3).flatten(3).flatten(1, 2)

    def lines(self, y: torch.Tensor) -> torch.Tensor:
        """What comes out of that layer as lines."""
        return y.unflatten(1, (self.batch, -1)).movedim(-1, 2)

    def inputs(self, device):
        _, weight, delay, *dy = self.dense.inputs(device)
        lines = self.batch, self.synapses, self.length
        x = uniform((self.steps, *lines), device) < self.firing
        size = self.outputs, self.synapses, self.kernel
        x = x.to(self.dtype) if self.gradient else x
        return x, weight.view(size), delay.view(size), *map(self.lines, dy)

    def expected(self, inputs):
        x, weight, delay = (tensor.double().requires_grad_(self.gradient) for tensor in inputs[:3])
        parts = self.model(self.windows(x))
        y = self.lines(oracle.projected(parts, weight.flatten(1), delay.flatten(1), STEP_TIME))
        if not self.gradient:
            return (y,)
        return y.detach(), *torch.autograd.grad(y, [x, weight, delay], inputs[3].double())


@dataclass(frozen=True, kw_only=True)
class Shift(OverTime):
    """A signal delayed over a sequence from rest, forward, and backward to signal and delays."""

    steps: int = 250
    batch: int = 64
    record: int = 25
    interp: str = "linear"
    """What is between steps: ``"linear"``, or a ``"gaussian"`` as wide as a step."""
    backward: bool = False
    """Time the backward pass alone."""
    work: ClassVar[str] = "shift"

    @property
    def title(self):
        return f"delayed signal, {self.interp}, forward and backward"

    @property
    def name(self):
        return self.title

    @property
    def moved(self):
        # Signal and result; their gradients, and the signal again for that of the delays.
        return 5 * self.steps * self.batch * self.synapses * self.dtype.itemsize

    def inputs(self, device):
        steps = uniform((self.synapses,), device) * (self.record - 1)
        # At observations the libraries' derivatives differ on purpose.
        steps = steps.floor() + steps.frac().clamp(1e-2, 1 - 1e-2)
        shape = (self.steps, self.batch, self.synapses)
        x, dy = self.spikes(self.steps, device).to(self.dtype), normal(shape, device)
        return x, (steps * STEP_TIME).to(self.dtype), dy.to(self.dtype)

    def expected(self, inputs):
        x, delay, dy = (tensor.double() for tensor in inputs)
        leaves = [x.requires_grad_(), delay.requires_grad_()]
        weights = oracle.weights_of_lags(delay / STEP_TIME, self.record + 1, self.interp)
        y = oracle.summed_lags(x, weights)
        return y.detach(), *torch.autograd.grad(y, leaves, dy)

    def limits(self):
        (limit,) = super().limits()
        # The gradient of a delay is a sum of T*B numbers of either sign.
        return limit, limit, 1e-3
