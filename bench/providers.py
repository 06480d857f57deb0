"""Who is timed: tritonsyn on each of its backends, inferno-ai, plain PyTorch, and the ceilings.

A provider has a method for each kind of work that it does (``step``, ``read``, ``scan``,
``project``, ``shift``), which prepares a ``Job``. It computes the very same thing as the others, or
has no such method.
"""

import importlib.util
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from workloads import (
    ADDITION,
    PHYSICS,
    STEP_TIME,
    Convolve,
    Project,
    Ragged,
    Read,
    ReadSteps,
    Scan,
    Shift,
    Sparse,
    Step,
    Tensors,
    Workload,
)

import tritonsyn

_CLASSES = {"single": "SingleExponentialCurrent", "double": "DoubleExponentialCurrent"}


def _nothing() -> None:
    pass


def _same(results: Tensors) -> Tensors:
    return results


def _without_delays(results: Tensors) -> Tensors:
    """At whole steps the libraries' derivatives to the delay differ on purpose."""
    return results[:3]


@dataclass
class Job:
    """A provider's work, ready to be run round after round."""

    run: Callable[[], Tensors]
    """One round, and what it computed."""
    reset: Callable[[], None] = _nothing
    """Back to the state from which a round starts; not timed."""
    finish: Callable[[Tensors], Tensors] = _same
    """Puts what a round computed into the form of the others; not timed."""
    graph: bool = False
    """Whether a CUDA graph can hold it."""
    leniency: float = 1.0
    """How much more error is allowed, where a peer computes in less precision."""
    calls: int | None = None
    """Calls in a round, where not as many as the workload's."""
    moved: float | None = None
    """Bytes moved by a call, where not as many as the workload's."""


class Provider:
    """A library, or a way to use it."""

    name: str
    devices: tuple[str, ...] = ("cpu", "cuda")
    ceiling = False
    """Whether it only does the least that the work needs; then there is nothing to check."""

    def offers(self, work: Workload, device: str) -> bool:
        """Whether it does this work at all."""
        return hasattr(self, work.work) and device in self.devices

    def missing(self, work: Workload) -> str | None:
        """Why it cannot be timed here although it does such work; None if it can."""
        return None

    def job(self, work: Workload, inputs: Tensors) -> Job:
        """The work, ready to run."""
        job: Job = getattr(self, work.work)(work, inputs)
        return job


def not_installed(module: str) -> str | None:
    """The reason if a peer is not there."""
    found = importlib.util.find_spec(module.partition(".")[0])
    return None if found else "not installed"


def trained(
    work: Scan | Project | Shift,
    forward: Callable[[], tuple[torch.Tensor, list[torch.Tensor]]],
    dy: torch.Tensor,
    reset: Callable[[], None] = _nothing,
    finish: Callable[[Tensors], Tensors] = _same,
) -> Job:
    """The job of a forward pass that gives results and leaves, and of gradients to the leaves.

    Without leaves it ends there; where the backward pass alone is timed, it is part of the reset.
    """
    begun: list[tuple[torch.Tensor, list[torch.Tensor]]] = []

    def begin() -> None:
        reset()
        begun[:] = [forward()] if work.backward else []

    def run() -> Tensors:
        y, leaves = begun.pop() if work.backward else forward()
        return (y.detach(), *torch.autograd.grad(y, leaves, dy)) if leaves else (y,)

    return Job(run, begin, finish)


# -- modules: inferno-ai and tritonsyn ------------------------------------------------------------


class Modules(Provider):
    """A library of synapse modules with inferno-ai's members."""

    graphs = False
    """Whether a CUDA graph can hold its steps and reads."""
    packs = False
    """Whether its sequences take spikes as bits."""

    def synapse(self, work: Workload, device: torch.device, **options: Any) -> Any:
        """A synapse module for this workload."""
        raise NotImplementedError

    def layer(self, work: Project, device: torch.device) -> Any:
        """A delayed linear layer for this workload, of which the parameters are not set."""
        raise NotImplementedError

    def sequence(self, module: Any, x: Any) -> torch.Tensor:
        """What the module gives for a whole sequence."""
        raise NotImplementedError

    def times(self, times: torch.Tensor, batch: int) -> torch.Tensor:
        """Times ``[1 or B, ...]`` as its delayed read takes them."""
        return times

    def packed(self, x: torch.Tensor) -> Any:
        """Spikes as bits."""
        raise NotImplementedError

    def offers(self, work, device):
        bits = isinstance(work, Scan) and work.source == "bits"
        return super().offers(work, device) and (self.packs or not bits)

    def step(self, work: Step, inputs: Tensors) -> Job:
        (x,) = inputs
        module = _stepped(self.synapse(work, x.device, inplace=work.inplace), x[: -work.calls])
        frames = x[-work.calls :].unbind()

        @torch.no_grad()
        def run() -> Tensors:
            for frame in frames:
                current = module(frame)
            return (current,)

        return Job(run, graph=self.graphs)

    def read(self, work: Read, inputs: Tensors) -> Job:
        module = _stepped(self.synapse(work, inputs[0].device, inplace=True), inputs[0])
        times = self.times(inputs[1], work.batch)

        @torch.no_grad()
        def run() -> Tensors:
            for _ in range(work.calls):
                value = module.current_at(times)
            return (value,)

        return Job(run, graph=self.graphs)

    def scan(self, work: Scan, inputs: Tensors) -> Job:
        x = self.packed(inputs[0]) if work.source == "bits" else inputs[0]
        present: dict[str, Any] = {}

        def reset() -> None:
            present["module"] = self.synapse(work, inputs[0].device)

        def forward() -> tuple[torch.Tensor, list[torch.Tensor]]:
            module = present["module"]
            with torch.set_grad_enabled(bool(work.gradients)):
                leaves, given = {}, x
                if "input" in work.gradients:
                    leaves["input"] = given = x.detach().requires_grad_()
                if "tau" in work.gradients:
                    leaves["tau"] = module.time_constant
                current = self.sequence(module, given)
            return current, [leaves[name] for name in work.gradients]

        return trained(work, forward, inputs[-1], reset)

    def project(self, work: Project, inputs: Tensors) -> Job:
        x, weight, delay = inputs[:3]
        present: dict[str, Any] = {}

        def reset() -> None:
            layer = self.layer(work, x.device).requires_grad_(work.gradient)
            layer.weight.data = weight.clone()
            layer.delay.data = delay.reshape(layer.delay.shape).clone()
            present["layer"] = layer

        def forward() -> tuple[torch.Tensor, list[torch.Tensor]]:
            layer, leaves = present["layer"], []
            given = x.detach().requires_grad_(work.gradient)
            with torch.set_grad_enabled(work.gradient):
                if work.gradient:
                    leaves = [given, layer.weight, layer.delay]
                y = self.sequence(layer, given)
            return y, leaves

        def finish(found: Tensors) -> Tensors:
            if work.whole:
                return _without_delays(found)
            return (*found[:3], *(ddelay.view(delay.shape) for ddelay in found[3:]))

        return trained(work, forward, inputs[-1], reset, finish)


def _stepped(module: Any, x: torch.Tensor) -> Any:
    """The module after these steps."""
    with torch.no_grad():
        for row in x.unbind():
            module(row)
    return module


class Inferno(Modules):
    """inferno-ai, whose synapses tritonsyn's replace."""

    name = "inferno-ai"

    def offers(self, work, device):
        # Its time constants are fixed; and the long rows are for temporal convolutions.
        learns = isinstance(work, Scan) and "tau" in work.gradients
        temporal = isinstance(work, Project) and (work.whole or work.delays != "connection")
        stateless = isinstance(work, Scan) and work.stateless
        return super().offers(work, device) and not (learns or temporal or stateless)

    def missing(self, work):
        return not_installed("inferno")

    def synapse(self, work, device, **options):
        import inferno.neural  # type: ignore[import-untyped]

        module = getattr(inferno.neural, _CLASSES[work.kind])(
            work.synapses, STEP_TIME, **PHYSICS[work.kind], delay=work.record * STEP_TIME,
            batch_size=work.batch, **options,
        )  # fmt: skip
        return module.to(device=device, dtype=work.dtype)

    def layer(self, work, device):
        import inferno.neural  # type: ignore[import-untyped]

        constructor = getattr(inferno.neural, _CLASSES[work.kind]).partialconstructor
        layer = inferno.neural.LinearDense(
            work.synapses, work.outputs, STEP_TIME, synapse=constructor(**PHYSICS[work.kind]),
            delay=work.record * STEP_TIME, batch_size=work.batch,
        )  # fmt: skip
        return layer.to(device=device, dtype=work.dtype)

    def times(self, times, batch):
        return times.expand(batch, *times.shape[1:])  # it does not broadcast

    def sequence(self, module, x):
        return torch.stack([module(row) for row in x.unbind()])


class Tritonsyn(Modules):
    """tritonsyn on one backend."""

    packs = True
    layer_options: ClassVar[dict[str, Any]] = {}

    def __init__(self, backend: str, devices: tuple[str, ...]) -> None:
        self.name, self._backend, self.devices = f"tritonsyn {backend}", backend, devices
        self.graphs = backend == "triton"

    def offers(self, work, device):
        slow = self._backend == "reference" and device == "cuda" and work.sweep
        return super().offers(work, device) and not slow

    def missing(self, work):
        if isinstance(work, Project) and not hasattr(tritonsyn, "DelayedLinear"):
            return "tritonsyn has no DelayedLinear yet"
        return None

    def synapse(self, work, device, **options):
        physics: dict[str, Any] = dict(PHYSICS[work.kind])
        if isinstance(work, Scan) and "tau" in work.gradients:
            physics["time_constant"] = torch.nn.Parameter(
                torch.tensor(physics["time_constant"], dtype=work.dtype, device=device)
            )
        return getattr(tritonsyn, _CLASSES[work.kind])(
            work.synapses, STEP_TIME, **physics, delay=work.record * STEP_TIME,
            batch_size=work.batch, dtype=work.dtype, device=device, backend=self._backend,
            capturable=device.type == "cuda" and not work.host, **options,
        )  # fmt: skip

    def layer(self, work, device):
        constructor = getattr(tritonsyn, _CLASSES[work.kind]).partialconstructor
        size: tuple[int, ...] = (work.synapses, work.outputs)
        made = tritonsyn.DelayedLinear
        if isinstance(work, Convolve):
            made, size = tritonsyn.DelayedConv1d, (*size, work.kernel)
        return made(
            *size, STEP_TIME, synapse=constructor(**PHYSICS[work.kind]),
            delay=work.record * STEP_TIME, batch_size=work.batch, dtype=work.dtype, device=device,
            **{"delays": work.delays, **self.layer_options},
        )  # fmt: skip

    def convolve(self, work: Convolve, inputs: Tensors) -> Job:
        return self.project(work, inputs)

    def sparse(self, work: Sparse, inputs: Tensors) -> Job:
        masked = copy(self)
        masked.layer_options = {"mask": inputs[1] != 0}
        return masked.project(work, inputs)

    def scan(self, work, inputs):
        if not work.stateless:
            return super().scan(work, inputs)
        x = self.packed(inputs[0]) if work.source == "bits" else inputs[0]
        gain, (decay,), _ = _coefficients(work, inputs[0].device)

        @torch.no_grad()
        def run() -> Tensors:
            y, _ = tritonsyn.functional.exp_scan(
                x, decay, gain, dtype=work.dtype, backend=self._backend
            )
            return (y,)

        return Job(run, graph=self.graphs)

    def shift(self, work: Shift, inputs: Tensors) -> Job:
        x, delay, dy = inputs
        layer = tritonsyn.Delay(
            work.synapses, STEP_TIME, delay=work.record * STEP_TIME, interp=work.interp,
            delay_init=lambda _: delay, batch_size=work.batch, dtype=work.dtype, device=x.device,
            backend=self._backend,
        )  # fmt: skip

        def forward() -> tuple[torch.Tensor, list[torch.Tensor]]:
            given = x.detach().requires_grad_()
            return layer.scan(given), [given, layer.delay]

        return trained(work, forward, dy, layer.clear)

    def read_steps(self, work: ReadSteps, inputs: Tensors) -> Job:
        x, times = inputs
        present: dict[str, Any] = {}

        def reset() -> None:
            present["module"] = self.synapse(work, x.device, inplace=True)

        @torch.no_grad()
        def run() -> Tensors:
            return (present["module"].scan_at(x, times, per_step=True)[1],)

        return Job(run, reset)

    def ragged(self, work: Ragged, inputs: Tensors) -> Job:
        (x,), present = inputs, {}

        def reset() -> None:
            present["module"] = self.synapse(work, x.device, inplace=True)

        @torch.no_grad()
        def run() -> Tensors:
            return (present["module"].scan(x, work.lengths),)

        return Job(run, reset)

    def packed(self, x):
        return tritonsyn.functional.pack_spikes(x, backend=self._backend)

    def sequence(self, module, x):
        with tritonsyn.use_backend(self._backend):
            return module.scan(x)


class Variant(Tritonsyn):
    """tritonsyn doing one kind of work in another way than it usually does, for comparison."""

    way: str
    """In words."""
    kind: type[Workload] = Project
    """The work that it offers, and no other."""

    def __init__(self, backend: str, devices: tuple[str, ...]) -> None:
        super().__init__(backend, devices)
        self.name = f"{self.name}, {self.way}"

    def offers(self, work, device):
        return isinstance(work, self.kind) and device in self.devices


class ByWindows(Variant):
    """tritonsyn's delayed dense layer of windows written out, for a convolution."""

    way = "by windows"
    kind = Convolve

    def convolve(self, work, inputs):
        x, weight, delay, *dy = inputs
        job = self.project(work, (x, weight.flatten(1), delay.flatten(1), *dy))

        def finish(found: Tensors) -> Tensors:
            return (*found[:2], *(gradient.view(weight.shape) for gradient in found[2:]))

        return replace(job, finish=finish)

    def layer(self, work, device):
        layer = super().layer(work.dense, device)
        layer.row = work
        return layer

    def sequence(self, module, x):
        return module.row.lines(super().sequence(module, module.row.windows(x)))


class ByConnection(Variant):
    """tritonsyn's delayed layer with the same delays on every connection."""

    way = "by connection"
    layer_options: ClassVar[dict[str, str]] = {"delays": "connection"}

    def offers(self, work, device):
        return super().offers(work, device) and work.delays != "connection"

    def project(self, work, inputs):
        x, weight, delay, *dy = inputs
        axis = 0 if work.delays == "input" else 1

        def finish(found: Tensors) -> Tensors:
            return (*found[:3], *(ddelay.sum(axis, keepdim=True) for ddelay in found[3:]))

        whole = x, weight, delay.expand_as(weight), *dy
        return replace(super().project(work, whole), finish=finish)


class InFull(Variant):
    """tritonsyn's delayed layer of all connections, many of which have a weight of zero."""

    way = "in full"
    kind = Sparse

    def sparse(self, work, inputs):
        finish = partial(work.connected, inputs[1])
        return replace(self.project(work, inputs), finish=finish)


class OneByOne(Variant):
    """tritonsyn's scans of single samples, one after the other."""

    way = "one by one"
    kind = Ragged

    def ragged(self, work, inputs):
        (x,), samples = inputs, []

        def reset() -> None:
            one = replace(work, batch=1)
            samples[:] = [self.synapse(one, x.device, inplace=True) for _ in work.lengths]

        @torch.no_grad()
        def run() -> Tensors:
            y = torch.zeros(x.shape, dtype=work.dtype, device=x.device)
            for i, (module, length) in enumerate(zip(samples, work.lengths, strict=True)):
                y[:length, i : i + 1] = module.scan(x[:length, i : i + 1])
            return (y,)

        return Job(run, reset)


class Strategy(Variant):
    """tritonsyn's delayed layer computed in one of the ways that it else chooses from."""

    def __init__(self, strategy: str, backend: str, devices: tuple[str, ...]) -> None:
        self.way, self.layer_options = strategy, {"strategy": strategy}
        super().__init__(backend, devices)

    def offers(self, work, device):
        if not super().offers(work, device) or work.host:
            return False
        # Spikes alone, which the gradient to the input is not; nor are these ways of convolutions.
        of_spikes = not work.gradient and not isinstance(work, Convolve)
        return of_spikes or self.way not in ("bits", "events")


class Spread(Variant):
    """tritonsyn's delayed layer with delays that learn from smoothed currents."""

    way = "spread"
    layer_options: ClassVar[dict[str, float]] = {"spread": 5.0 * STEP_TIME}

    def offers(self, work, device):
        # The gradient to delays is another one, and no whole steps ask for it.
        return super().offers(work, device) and work.gradient and work.whole and not work.host


# -- plain PyTorch, eager and compiled ------------------------------------------------------------


def _advance(values: Tensors, x: torch.Tensor, gain: Any, decays: Tensors) -> Tensors:
    return tuple(v * decay + gain * x for v, decay in zip(values, decays, strict=True))


def _total(values: Tensors) -> torch.Tensor:
    return values[0] if len(values) == 1 else values[0] - values[1]


def _step(
    old: Tensors, new: Tensors, spikes: torch.Tensor, x: torch.Tensor, gain: Any, decays: Tensors
) -> torch.Tensor:
    values = _advance(old, x, gain, decays)
    for slot, value in zip(new, values, strict=True):
        slot.copy_(value)
    spikes.copy_(x)
    return _total(values)


def _read(records: Tensors, times: torch.Tensor, newest: int, constants: Tensors) -> torch.Tensor:
    """Reads ``[B, N]`` or ``[B, N, D]`` of records ``[K, B, N]``."""
    slots, batch, synapses = records[0].shape
    back = torch.ceil(times / STEP_TIME)
    since = back * STEP_TIME - times
    slot = torch.remainder(newest - back.long(), slots).expand(batch, *times.shape[1:])
    index = slot.reshape(batch, synapses, -1).permute(2, 0, 1)
    return _total(
        tuple(
            record.gather(0, index).permute(1, 2, 0).reshape(slot.shape)
            * torch.exp(-since / constant)
            for record, constant in zip(records, constants, strict=True)
        )
    )


def _project(history: torch.Tensor, back: torch.Tensor, scaled: torch.Tensor) -> torch.Tensor:
    """One step of the layer from ``[K, B, I]``, newest first, at offsets ``back [O, I]``."""
    inputs = torch.arange(back.shape[1], device=back.device)
    return torch.einsum("oib,oi->bo", history.transpose(1, 2)[back, inputs], scaled)


class Plain(Provider):
    """A loop over steps in plain PyTorch, each step as short as the formulas allow."""

    name = "plain PyTorch"

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    def offers(self, work, device):
        bits = isinstance(work, Scan) and work.source == "bits"
        temporal = isinstance(work, Project) and work.whole
        return super().offers(work, device) and not bits and not temporal

    def job(self, work, inputs):
        # Its coefficients are rounded to the dtype.
        return replace(super().job(work, inputs), leniency=1 if work.dtype.itemsize >= 4 else 4)

    def step(self, work: Step, inputs: Tensors) -> Job:
        (x,) = inputs
        gain, decays, _ = _coefficients(work, x.device)
        slots = work.record + 1
        shape = (slots, work.batch, work.synapses)
        records = [torch.zeros(shape, dtype=work.dtype, device=x.device) for _ in decays]
        spikes = torch.zeros(shape, dtype=torch.bool, device=x.device)
        step, pointer = self.wrap(_step), [0]

        def advance(frame: torch.Tensor) -> torch.Tensor:
            slot, last = pointer[0], (pointer[0] - 1) % slots
            pointer[0] = (slot + 1) % slots
            old = tuple(record[last] for record in records)
            new = tuple(record[slot] for record in records)
            return step(old, new, spikes[slot], frame, gain, decays)

        @torch.no_grad()
        def run() -> Tensors:
            for frame in frames:
                current = advance(frame)
            return (current,)

        frames = x[: -work.calls].unbind()
        run()
        frames = x[-work.calls :].unbind()
        return Job(run, graph=True)

    def read(self, work: Read, inputs: Tensors) -> Job:
        x, times = inputs
        gain, decays, constants = _coefficients(work, x.device)
        values = tuple(torch.zeros_like(x[0], dtype=work.dtype) for _ in decays)
        history = []
        for frame in x.unbind():
            values = _advance(values, frame, gain, decays)
            history.append(values)
        kept = history[-work.record - 1 :]
        records = tuple(torch.stack(component) for component in zip(*kept, strict=True))
        read = self.wrap(_read)

        @torch.no_grad()
        def run() -> Tensors:
            for _ in range(work.calls):
                value = read(records, times, work.record, constants)
            return (value.expand(work.batch, *value.shape[1:]),)

        return Job(run, graph=True)

    def read_steps(self, work: ReadSteps, inputs: Tensors) -> Job:
        x, times = inputs
        gain, decays, constants = _coefficients(work, x.device)
        advance, read = self.wrap(_advance), self.wrap(_read)

        @torch.no_grad()
        def run() -> Tensors:
            slots, values = (
                work.record + 1,
                tuple(torch.zeros_like(x[0], dtype=work.dtype) for _ in decays),
            )
            records = tuple(value.new_zeros(slots, *value.shape) for value in values)
            reads = []
            for t, frame in enumerate(x.unbind()):
                values = advance(values, frame, gain, decays)
                for record, value in zip(records, values, strict=True):
                    record[t % slots] = value
                reads.append(read(records, times[t], t % slots, constants))
            return (torch.stack(reads),)

        return Job(run)

    def scan(self, work: Scan, inputs: Tensors) -> Job:
        x, device = inputs[0], inputs[0].device
        advance = self.wrap(_advance)

        def forward() -> tuple[torch.Tensor, list[torch.Tensor]]:
            with torch.set_grad_enabled(bool(work.gradients)):
                leaves, given = {}, x
                if "input" in work.gradients:
                    leaves["input"] = given = x.detach().requires_grad_()
                gain, decays, constants = _coefficients(work, device)
                if "tau" in work.gradients:
                    leaves["tau"] = constants[0].requires_grad_()
                    gain, decays, _ = _coefficients(work, device, constants)
                values = tuple(torch.zeros_like(x[0], dtype=work.dtype) for _ in decays)
                currents = []
                for frame in given.unbind():
                    values = advance(values, frame, gain, decays)
                    currents.append(_total(values))
                current = torch.stack(currents)
            return current, [leaves[name] for name in work.gradients]

        return trained(work, forward, inputs[-1])

    def project(self, work: Project, inputs: Tensors) -> Job:
        x, weight, delay = inputs[:3]
        project = self.wrap(_project)
        gain, (decay,), (constant,) = _coefficients(work, x.device)

        def forward() -> tuple[torch.Tensor, list[torch.Tensor]]:
            given, w, d = (t.detach().requires_grad_(work.gradient) for t in (x, weight, delay))
            with torch.set_grad_enabled(work.gradient):
                back = torch.ceil(d.detach() / STEP_TIME).long().expand_as(w)
                scaled = w * torch.exp(-(back * STEP_TIME - d) / constant)
                past = [torch.zeros_like(x[0], dtype=work.dtype)] * (work.record + 1)
                outputs = []
                for frame in given.unbind():
                    (value,) = _advance((past[0],), frame, gain, (decay,))
                    past = [value, *past[:-1]]
                    outputs.append(project(torch.stack(past), back, scaled))
                y = torch.stack(outputs)
            return y, [given, w, d] if work.gradient else []

        return trained(work, forward, inputs[-1])


class Compiled(Plain):
    """The same with each step under ``torch.compile``."""

    name = "torch.compile"

    def offers(self, work, device):
        # Compiling takes many seconds a row; one component and few sizes say enough.
        few = work.kind == "single" and not work.host and not work.sweep
        shared = isinstance(work, Project) and work.delays != "connection"
        return super().offers(work, device) and few and not shared

    def wrap(self, function):
        torch._dynamo.config.recompile_limit = 256  # one function, many sizes
        return torch.compile(function, dynamic=False)


def _coefficients(
    work: Workload, device: torch.device, constants: Tensors | None = None
) -> tuple[torch.Tensor, Tensors, Tensors]:
    """Gain, decays and time constants; of the given time constants, if any."""
    charge, *taus = PHYSICS[work.kind].values()
    if constants is None:
        made = partial(torch.tensor, dtype=work.dtype, device=device)
        constants = tuple(made(tau) for tau in taus)
    width = constants[0] if len(constants) == 1 else constants[0] - constants[1]
    decays = tuple(torch.exp(-STEP_TIME / constant) for constant in constants)
    return charge / width, decays, constants


# -- ceilings -------------------------------------------------------------------------------------


class Ceiling(Provider):
    """One operation of PyTorch that nothing which does the work can be much faster than."""

    ceiling = True

    def __init__(self, name: str, makes: Callable[[Workload, Tensors], Job | None]) -> None:
        self.name, self._makes = name, makes

    def offers(self, work, device):
        return self._makes(work, ()) is not None

    def job(self, work, inputs):
        job = self._makes(work, inputs)
        assert job is not None
        return job


def _copy_of_state(work: Workload, inputs: Tensors) -> Job | None:
    if not isinstance(work, Step) or work.host:
        return None
    if not inputs:
        return Job(lambda: ())
    shape = (work.components, work.batch, work.synapses)
    state = torch.rand(shape, device=inputs[0].device).to(work.dtype)
    other = torch.empty_like(state)
    return Job(
        lambda: (other.copy_(state),), graph=True, calls=1, moved=2 * state.numel() * state.itemsize
    )


def _clone_of_result(work: Workload, inputs: Tensors) -> Job | None:
    if not isinstance(work, Scan | Read) or work.host:
        return None
    if not inputs:
        return Job(lambda: ())
    shape = inputs[0].shape if isinstance(work, Scan) else (work.batch, *inputs[1].shape[1:])
    result = torch.rand(shape, device=inputs[0].device).to(work.dtype)
    return Job(
        lambda: (result.clone(),), graph=True, calls=1, moved=2 * result.numel() * result.itemsize
    )


def _undelayed_product(work: Workload, inputs: Tensors) -> Job | None:
    if not isinstance(work, Project) or isinstance(work, Convolve) or work.host:
        return None
    if not inputs:
        return Job(lambda: ())
    x, weight = inputs[0].flatten(0, 1).to(work.dtype), inputs[1].T
    gradients = [(weight.T, x.T)] if work.gradient else []

    def run() -> Tensors:
        y = x @ weight
        return (y, *(part for w, xt in gradients for part in (y @ w, xt @ y)))

    return Job(run, graph=True)


def _one_addition(work: Workload, inputs: Tensors) -> Job | None:
    if not work.host:
        return None
    if not inputs:
        return Job(lambda: ())
    device = inputs[0].device
    a, b = torch.ones(2, work.batch, work.synapses, device=device, dtype=work.dtype)

    def run() -> Tensors:
        for _ in range(100):
            c = torch.add(a, b)
        return (c,)

    return Job(run, calls=100)


CEILINGS: list[Provider] = [
    Ceiling("copy_", _copy_of_state),
    Ceiling("clone", _clone_of_result),
    Ceiling("matrix product", _undelayed_product),
    Ceiling(ADDITION, _one_addition),
]
