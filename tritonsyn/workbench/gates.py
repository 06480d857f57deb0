"""The speed gates as data, and what arithmetic on the compiled code says of each. No GPU needed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .. import functional
from .calls import Shape, Site
from .inspect import Job, Listing, listing
from .model import H100, Machine, Prediction, predict
from .record import META, Variant, record_run
from .workers import CompileError, Workers

Run = Callable[[], object]


# -- the calls ------------------------------------------------------------------------------------
# Each prepares its tensors and modules, and returns what is timed, as the benchmarks time it.


def step(site: Site, **group: Any) -> Run:
    """A streaming step, as a CUDA graph captures it."""
    synapse = site.synapse(inplace=True, capturable=True, **group)
    x = site.values(dtype=torch.bool)
    synapse(x)  # constants are made in the first call
    return lambda: synapse(x)


def read(site: Site, selectors: int = 1) -> Run:
    """A read at several times per synapse, which the batch shares."""
    synapse = site.synapse(inplace=True, capturable=True)
    times = site.values(1, site.shape.synapses, selectors)
    synapse.current_at(times)
    return lambda: synapse.current_at(times)


def scan(site: Site, source: str = "float") -> Run:
    """The stateless scan."""
    x: Any = site.values(*site.shape[:3], dtype=None if source == "float" else torch.bool)
    x = functional.pack_spikes(x) if source == "bits" else x
    decay = site.values(1)[0].detach()
    return lambda: functional.exp_scan(x, decay, decay, dtype=site.dtype)


def train(site: Site) -> Run:
    """A sequence through a synapse with a learned time constant, forward and backward."""
    synapse = site.synapse(learned=True, capturable=True)
    x, dy = site.values(*site.shape[:3]), site.values(*site.shape[:3]).detach()
    leaves = [x, synapse.time_constant]
    return lambda: torch.autograd.grad(synapse.scan(x), leaves, dy)


def project(site: Site, strategy: str = "auto") -> Run:
    """A sequence through a delayed layer, with a graph also backward."""
    shape, layer = site.shape, site.layer(strategy).requires_grad_(site.graph)
    layer.synapse.coefficients()  # constants are made in the first call
    if not site.graph:
        x = site.values(*shape[:3], dtype=torch.bool)
        return lambda: layer.scan(x)
    outputs = layer.weight.shape[0]
    x, dy = site.values(*shape[:3]), site.values(*shape[:2], outputs).detach()
    leaves = [x, layer.weight, layer.delay]
    return lambda: torch.autograd.grad(layer.scan(x), leaves, dy)


class Work(NamedTuple):
    """A call at a size."""

    prepare: Callable[..., Run]
    shape: Shape
    options: Mapping[str, Any] = {}
    graph: bool = False


@dataclass(frozen=True)
class Gate:
    """How fast a call has to be."""

    name: str
    work: Work
    limit: float
    rival: str
    """What it is compared with, in words."""
    milliseconds: float | None = None
    """The rival's time; None where the rival is a piece of work below."""
    against: Work | None = None
    least: bool = False
    """The rival takes at least ``limit`` times as long; else ours at most ``limit`` times."""
    origin: str = "measured"
    """What the rival's time is: ``"measured"`` on an H100, or ``"calculated"``."""

    @property
    def target(self) -> str:
        """The condition in words."""
        return f"{'at least' if self.least else 'at most'} {self.limit:g}x {self.rival}"


def _inferno_step(slots: int) -> float:
    """Milliseconds of inferno-ai's step: copies of its two records, float32 and bool, and more."""
    return 1e3 * (2 * slots * 128 * 4096 * 5 / H100.memory + 3 * H100.operation)


# Of its read at 256 times per synapse: 34 operations on 8.4 million elements.
_INFERNO_READ = 0.979
_LONG = Shape(1000, 64, 1024, None, 1)
_DENSE = Shape(100, 256, 256, 256, 26)
_TEMPORAL = Shape(1000, 64, 256, 256, 26)
_STEP = {slots: Work(step, Shape(1, 128, 4096, None, slots)) for slots in (26, 61, 1024)}
_BOTH = {slots: Work(project, _DENSE._replace(slots=slots), graph=True) for slots in (26, 252)}
_SHIFT, _BITS = (Work(project, _DENSE, {"strategy": name}) for name in ("shift", "bits"))
_CLONE, _COPY = ("clone", 0.1753), ("copy_", 0.00326)
# Milliseconds of DCLS with TF32 by slots: forward, forward and backward.
_DCLS = {26: (1.06, 4.067), 62: (2.411, 11.09), 252: (9.558, 45.11)}

GATES = (
    Gate("step, K=26", _STEP[26], 1.3, *_COPY),
    Gate("step, K=1024", _STEP[1024], 1.3, *_COPY),
    Gate("step, flat in K", _STEP[1024], 1.1, "at K=26", against=_STEP[26]),
    *(
        Gate(
            f"step, K={slots}, against inferno-ai", _STEP[slots], limit, "inferno-ai",
            _inferno_step(slots), least=True, origin="calculated",
        )
        for slots, limit in ((61, 30), (1024, 400))
    ),
    Gate("exp_scan from bits", Work(scan, _LONG, {"source": "bits"}), 0.65, *_CLONE),
    Gate("exp_scan from bool", Work(scan, _LONG, {"source": "bool"}), 0.75, *_CLONE),
    Gate(
        "scan, gradients to input and tau", Work(train, _LONG, graph=True), 80, "a loop", 99.06,
        least=True,
    ),
    Gate(
        "the same against accelerated-scan", Work(train, _LONG, graph=True), 1.4,
        "accelerated-scan", 1.262, least=True,
    ),
    Gate(
        "read [128, 256, 256]", Work(read, Shape(1, 128, 256, None, 26), {"selectors": 256}), 50,
        "inferno-ai", _INFERNO_READ, least=True, origin="calculated",
    ),
    Gate("delayed layer, shifted sum", _SHIFT, 1.7, "0.23 ms", 0.23),
    Gate("forward and backward, flat in K", _BOTH[252], 1.35, "at K=26", against=_BOTH[26]),
    *(
        Gate(
            f"against DCLS, K={slots}{', both ways' if graph else ''}",
            Work(project, _TEMPORAL._replace(slots=slots), graph=graph),
            limit, "DCLS", _DCLS[slots][graph], least=True,
        )
        for slots, limit in ((26, 1), (62, 2), (252, 4))
        for graph in (False, True)
    ),
    Gate(
        "delayed layer from spikes", _BITS, 2, "the shifted sum", against=_SHIFT, least=True
    ),
)  # fmt: skip


# -- what is predicted ----------------------------------------------------------------------------


class Operation(NamedTuple):
    """Another operation of PyTorch that starts a kernel of its own."""

    name: str
    moved: int  # bytes read and written

    def seconds(self, machine: Machine) -> float:
        """Its time: by its bytes, unless it is small."""
        return max(machine.operation, self.moved / machine.memory)


class Operations(TorchDispatchMode):
    """Collects operations that start a kernel: no views, no allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Operation] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        """Runs the operation and notes it."""
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        views = any(
            r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns
        )
        moved = sum(map(_bytes, torch.utils._pytree.tree_leaves((args, kwargs, out))))
        if moved and not views and not name.startswith(_NO_KERNEL):
            self.found.append(Operation(name, moved))
        return out


_NO_KERNEL = ("empty", "new_empty", "detach", "resize", "set_", "_local_scalar", "lift", "alias")


def _bytes(value: object) -> int:
    if not isinstance(value, torch.Tensor):
        return 0
    stored = value.untyped_storage().nbytes()
    return min(value.numel() * value.itemsize, stored) if value.numel() else 0


@dataclass(frozen=True)
class Outcome:
    """What the arithmetic says of a piece of work."""

    launches: list[Prediction]
    operations: list[Operation] = field(default_factory=list)
    machine: Machine = H100

    @property
    def others(self) -> float:
        """Seconds of the operations around the launches."""
        return sum(operation.seconds(self.machine) for operation in self.operations)

    @property
    def milliseconds(self) -> float:
        """Of the whole call."""
        return 1e3 * (sum(launch.seconds for launch in self.launches) + self.others)


def outcome(work: Work, compilers: Workers[Job, Listing]) -> Outcome:
    """Predicts a call: its launches by their code for sm_90, and the operations around them."""
    operations = Operations()
    site = Site(work.shape, torch.float32, META, work.graph)
    with torch.set_grad_enabled(work.graph):
        launches = record_run(lambda: work.prepare(site, **work.options), operations)
    jobs = [
        Job(Variant.of(launch, work.shape), TARGET, launch.config.with_chunks(1))
        for launch in launches
    ]
    # Each once; two launches of one variant may differ in their grids.
    made = dict(zip(dict.fromkeys(jobs), compilers.map(dict.fromkeys(jobs)), strict=True))
    found = []
    for launch, job in zip(launches, jobs, strict=True):
        listed = made[job]
        if isinstance(listed, CompileError):
            raise listed
        found.append(predict(launch, listed, H100, work.shape.slots or 1))
    return Outcome(found, operations.found)


TARGET = "sm_90"


@dataclass(frozen=True)
class Verdict:
    """A gate, and what the arithmetic says of it."""

    gate: Gate
    outcome: Outcome
    rival: float
    """Milliseconds of what it is compared with."""

    @property
    def ratio(self) -> float:
        """Our time over the rival's, or the rival's over ours, as the gate has it."""
        ratio = self.outcome.milliseconds / self.rival
        return 1 / ratio if self.gate.least else ratio

    @property
    def reached(self) -> bool:
        """Whether it is good enough."""
        return self.ratio >= self.gate.limit if self.gate.least else self.ratio <= self.gate.limit

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        gate = self.gate
        return {
            "gate": gate.name,
            "target": gate.target,
            "limit": gate.limit,
            "least": gate.least,
            "shape": str(gate.work.shape),
            "milliseconds": self.outcome.milliseconds,
            "rival_milliseconds": self.rival,
            "rival_is": gate.origin,
            "ratio": self.ratio,
            "reached": self.reached,
            "operations": [operation.name for operation in self.outcome.operations],
            "operations_milliseconds": 1e3 * self.outcome.others,
            "launches": [
                {**asdict(launch), "seconds": launch.seconds, "bound": launch.bound}
                for launch in self.outcome.launches
            ],
        }


Progress = Callable[[Iterable[Verdict], int], Iterable[Verdict]]


def judge(words: Sequence[str] = (), progress: Progress | None = None) -> list[Verdict]:
    """What the arithmetic says of the gates that have one of some words in their names, or of all.

    Raises ``ValueError`` where none has, and :class:`CompileError` for a kernel that does not
    compile.
    """
    chosen = [g for g in GATES if not words or any(word in g.name for word in words)]
    if not chosen:
        names = "; ".join(gate.name for gate in GATES)
        raise ValueError(f"no gate has one of {', '.join(words)} in its name: {names}")
    known: dict[str, Outcome] = {}

    def predicted(work: Work) -> Outcome:
        key = repr((work.prepare.__name__, work.shape, work.options, work.graph))
        if key not in known:
            known[key] = outcome(work, compilers)
        return known[key]

    def judged(gate: Gate) -> Verdict:
        rival = gate.milliseconds or predicted(gate.against or gate.work).milliseconds
        return Verdict(gate, predicted(gate.work), rival)

    with Workers(listing) as compilers:
        verdicts = map(judged, chosen)
        return list(progress(verdicts, len(chosen)) if progress else verdicts)
