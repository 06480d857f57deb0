"""Public calls at a shape, for each kernel: what ``check`` compiles and ``tune`` times."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from .. import functional, ops
from ..launch.config import LaunchConfig, override_config
from ..modules.linear import DelayedLinear
from ..modules.record import RecordTensor
from ..modules.synapse import AlphaCurrent, DoubleExponentialCurrent, SingleExponentialCurrent
from ..ops.common import implementation
from ..values import Links, Slot, compute_dtype

FLOATING = ("float32", "float64", "bfloat16", "float16")
DTYPES = (*FLOATING, "bool", "uint8", "int32", "int64")
_KINDS: dict[str, tuple[Callable[..., Any], dict[str, float]]] = {
    "single": (SingleExponentialCurrent, {"spike_charge": 1.0, "time_constant": 5.0}),
    "double": (DoubleExponentialCurrent, {"spike_charge": 1.0, "tc_decay": 6.0, "tc_rise": 2.0}),
    "alpha": (AlphaCurrent, {"spike_charge": 1.0, "time_constant": 5.0}),
}
_SLOTS = 21  # of the records: 20 steps of delay
_RATE = 0.02  # spikes per input and step


class Shape(NamedTuple):
    """Steps of a sequence, samples of a batch, synapses of a group, which projections take for
    their inputs."""

    steps: int
    batch: int
    synapses: int
    outputs: int | None = None  # of a projection; None: as many as inputs
    slots: int | None = None  # whole steps that delays can be; None: 21

    def __str__(self) -> str:
        return "x".join(str(size) for size in self if size is not None)

    @classmethod
    def parse(cls, text: str) -> "Shape":
        """From ``"1000x64x1024"`` or ``"100x64x256x512x21"``; ``ValueError`` for anything else."""
        parts = text.split("x")
        if len(parts) not in (3, 5) or not all(p.isdecimal() and int(p) > 0 for p in parts):
            raise ValueError(
                f"shape is {text!r}, but must be three positive sizes TxBxN (steps, batch, "
                "synapses), such as 1000x64x1024, or five TxBxIxOxK (inputs, outputs, slots)"
            )
        return cls(*map(int, parts))

    @property
    def delay(self) -> float:
        """The longest delay, in steps."""
        return (self.slots or _SLOTS) - 1.0


class Site(NamedTuple):
    """Where a call is made: its sizes, the dtype of its state, the device, a graph or none."""

    shape: Shape
    dtype: torch.dtype
    device: torch.device
    graph: bool

    def values(self, *sizes: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Numbers of these sizes: by default a row of the batch."""
        size = sizes or (self.shape.batch, self.shape.synapses)
        values = (torch.rand(size, device=self.device) * 2).to(dtype or self.dtype)
        return values.requires_grad_(self.graph and values.is_floating_point())

    def synapse(
        self, kind: str = "single", learned: bool = False, each: bool = False, **options: Any
    ) -> Any:
        """A group of synapses; ``each``: with constants of their own."""

        def constant(value: float) -> float | torch.Tensor:
            size = (self.shape.synapses,) if each else ()
            full = torch.full(size, value, device=self.device)
            return torch.nn.Parameter(full) if learned else full if each else value

        made, constants = _KINDS[kind]
        options |= {name: constant(value) for name, value in constants.items()}
        options = {"delay": self.shape.delay, "batch_size": self.shape.batch, **options}
        options |= {"dtype": self.dtype, "device": self.device}
        return made(self.shape.synapses, 1.0, **options)

    def layer(self, strategy: str) -> DelayedLinear:
        """A delayed layer of single exponential synapses."""
        return DelayedLinear(
            self.shape.synapses,
            self.shape.outputs or self.shape.synapses,
            1.0,
            synapse=SingleExponentialCurrent.partialconstructor(1.0, 5.0),
            delay=self.shape.delay,
            batch_size=self.shape.batch,
            strategy=strategy,
            device=self.device,
            dtype=self.dtype,
        )

    def links(self) -> Links:
        """A tenth of the connections, as many of each output."""
        outputs, synapses = self.shape.outputs or self.shape.synapses, self.shape.synapses
        each = max(1, synapses // 10)
        number, rows = (torch.arange(n, device=self.device) for n in (each, outputs + 1))
        inputs = ((rows[:-1, None] + 10 * number) % synapses).flatten()
        owners, order = rows[:-1].repeat_interleave(each), inputs.argsort(stable=True)
        ends = torch.arange(synapses + 1, device=self.device)
        starts = each * rows, torch.searchsorted(inputs[order], ends)
        places = owners * synapses + inputs
        return Links(places, owners, inputs, starts[0], order, owners[order], starts[1])

    def record(self, step_time: float = 1.0, **options: Any) -> RecordTensor:
        """A record of zeros."""
        delay = step_time * self.shape.delay
        return RecordTensor(step_time, delay, torch.zeros_like(self.values()), **options)


Function = Callable[..., object]  # of a site and options


class Call(NamedTuple):
    """A call of public functions or modules, in which kernels are launched."""

    function: Function
    dtypes: tuple[str, ...] = FLOATING
    options: dict[str, Any] = {}  # noqa: RUF012 (no one changes it)
    graph: bool = True  # gradients are enabled, and taken to the inputs

    def __call__(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        """Makes the tensors and calls."""
        with torch.set_grad_enabled(self.graph):
            self.function(Site(shape, dtype, device, self.graph), **self.options)


def _backward(*results: torch.Tensor) -> None:
    """The backward pass, where there is one."""
    torch.autograd.backward([r.float().sum() for r in results if r.requires_grad])


def write(site: Site, value: torch.dtype | None = None, capturable: bool = False) -> None:
    """A record is written, and the gradient of what was written is taken out."""
    record = site.record(capturable=capturable)
    record.push(site.values(dtype=value))
    _backward(record.read(1))


def constants(site: Site, **group: Any) -> None:
    """What a group's constants are in a step, and the gradients to those that are learned."""
    dynamics, rates = site.synapse(**group).coefficients()
    _backward(*dynamics.constants, *rates)


def step(
    site: Site, x: torch.dtype = torch.bool, by: Sequence[str] = ("y", "state"), **group: Any
) -> None:
    """A step of a group, from a row in the middle of a sequence, and its gradient.

    ``by``: what the gradient comes from, the current, the state, or both.
    """
    synapse = site.synapse(**group)
    y = synapse(site.values(2, *site.shape[1:3], dtype=x)[1])
    results = {"y": y, "state": synapse.current}
    _backward(*(results[name] for name in by))


def delayed(
    site: Site, time: torch.dtype | None = None, times: int = 1, shared: bool = False, **group: Any
) -> None:
    """A delayed read of the currents, and its gradients; ``shared``: the batch shares the times."""
    synapse = site.synapse(**group)
    batch, synapses = site.shape[1:3]
    sel = site.values(1 if shared else batch, synapses, times, dtype=time)
    synapse(site.values())
    _backward(synapse.current_at(sel))


def delayed_steps(site: Site, shared: bool = False, **group: Any) -> None:
    """Delayed reads after each step of a sequence, at times of its own, and their gradients."""
    steps, batch, synapses = site.shape[:3]
    sel = site.values(steps, 1 if shared else batch, synapses)
    y, reads = site.synapse(**group).scan_at(site.values(*site.shape[:3]), sel, per_step=True)
    _backward(y, reads)


def select(site: Site, mode: str = "linear", **options: Any) -> None:
    """A read of a record in a mode of interpolation, and its gradients."""
    record = site.record(**options)
    time = torch.float32 if site.dtype == torch.bool else site.dtype
    record.push(site.values())
    _backward(record.select(site.values(dtype=time), mode))


def scan(
    site: Site, x: torch.dtype | None = None, bits: bool = False, again: bool = False, **group: Any
) -> None:
    """A sequence through a group, and its gradients; ``again``: another that goes on from there."""
    synapse = site.synapse(**group)
    sequence: Any = site.values(*site.shape[:3], dtype=x)
    if bits:
        sequence = functional.pack_spikes(sequence)
    _backward(*(synapse.scan(sequence) for _ in range(2 if again else 1)))


def cut(site: Site, **group: Any) -> None:
    """The same cut into chunks, however long it is."""
    chunks = LaunchConfig(32, num_warps=1, UNROLL=16, chunks=4)
    with override_config(chunks, "exp_scan_kernel"):
        scan(site, **group)


def scan_lines(site: Site, x: torch.dtype | None = None, bits: bool = False, **group: Any) -> None:
    """A sequence whose currents go into lines, in which layers take them."""
    steps, batch, synapses = site.shape[:3]
    dynamics = site.synapse(**group).coefficients().dynamics
    y = site.values(synapses, -(-batch // 32), steps, 32).detach()
    sequence: Any = site.values(*site.shape[:3], dtype=x).detach()
    if bits:
        sequence = functional.pack_spikes(sequence)
    initials = [site.values(dtype=dynamics.gain.dtype).detach()] * dynamics.states
    with torch.no_grad():
        implementation("scan", site.device).scan_lines(sequence, y, dynamics, initials, 1)


def scan_layer(site: Site, x: torch.dtype | None = None, bits: bool = False) -> None:
    """The same in a layer, whose records take the end."""
    sequence: Any = site.values(*site.shape[:3], dtype=x)
    site.layer("shift").scan(functional.pack_spikes(sequence) if bits else sequence)


def taps(
    site: Site,
    kind: str = "single",
    delay: str = "each",
    step_time: float = 1.0,
    fixed: bool = False,
    **group: Any,
) -> None:
    """Connections with weights and delays become taps, and their gradients.

    ``delay``: of ``each`` connection, of each ``input`` or each ``output``, or ``one`` of all.
    ``fixed``: neither weights nor delays are learned.
    """
    synapse, shape = site.synapse(kind, **group), site.shape
    outputs, inputs = shape.outputs or shape.synapses, shape.synapses
    rows, columns = delay in ("each", "output"), delay in ("each", "input")
    size = outputs if rows else 1, inputs if columns else 1
    weight, delays = site.values(outputs, inputs), site.values(*size)
    if fixed:
        weight, delays = weight.detach(), delays.detach()
    rates, slots = synapse.coefficients().rates, synapse.spike_.recordsz
    rule = synapse.delay_rule()._replace(step=step_time)
    _backward(*ops.taps(weight, delays, rates, rule, slots).weights)


def pack(site: Site) -> None:
    """Spikes are packed."""
    functional.pack_spikes(site.values(*site.shape[:3]))


def project(
    site: Site,
    strategy: str = "shift",
    precision: str = "highest",
    steps: bool = False,
    packed: bool = False,
) -> None:
    """Sequences, or ``steps`` one by one, through a delayed layer, and their gradients."""
    layer = site.layer(strategy)
    x = site.values(*site.shape[:3])
    x = x < 2 * _RATE if strategy in ("bits", "events") else x
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        sequence = functional.pack_spikes(x) if packed else x
        _backward(layer(x[0]) if steps else layer.scan(sequence))
    finally:
        torch.set_float32_matmul_precision(before)


def linked(site: Site, steps: bool = False) -> None:
    """The same of listed connections, or one step without gradients."""
    links, dtype = site.links(), compute_dtype(site.dtype)
    weight = site.values(links.places.shape[0], dtype=dtype)
    slots = site.shape.slots or _SLOTS
    taps = ops.Taps(torch.zeros_like(weight, dtype=torch.int32), (weight,), links)
    if steps:
        with torch.no_grad():
            record, pointers = site.values(slots, *site.shape[1:3]), list[Slot]([0])
            ops.project_step([record], pointers, taps)
        return
    sequence = site.values(*site.shape[:3])
    _backward(ops.project([sequence], taps, site.shape.steps, slots, strategy="shift"))


def unroll(site: Site) -> None:
    """Steps of a delayed layer on a tape, and their gradients."""
    layer, x = site.layer("shift"), site.values(2, *site.shape[1:3])
    with layer.unrolled(len(x)):
        _backward(torch.stack([layer(row) for row in x]))


_ARITHMETIC = ("float32", "float64")
_LEARNED: dict[str, Any] = {"learned": True}
_DOUBLE: dict[str, Any] = {"kind": "double", "learned": True, "each": True}

CALLS = {
    "ring_push_kernel": Call(write, (*FLOATING, "bool")),
    "ring_take_kernel": Call(write),
    "pack_bits_kernel": Call(pack, DTYPES),
    "transpose_bits_kernel": Call(project, _ARITHMETIC, {"strategy": "events"}),
    "coefficients_kernel": Call(constants, options=_DOUBLE),
    "coefficients_bwd_kernel": Call(constants, options=_DOUBLE),
    "taps_kernel": Call(taps),
    "taps_bwd_kernel": Call(taps),
    "synapse_step_fwd_kernel": Call(step),
    "synapse_step_bwd_kernel": Call(step, options={"x": torch.float32}),
    "select_fwd_kernel": Call(delayed, graph=False),
    "select_bwd_kernel": Call(delayed),
    "batch_dot_kernel": Call(delayed, options={"learned": True, "each": True}),
    "exp_scan_kernel": Call(scan, graph=False),
    "exp_scan_carry_kernel": Call(cut, _ARITHMETIC, graph=False),
    "exp_scan_backward_kernel": Call(scan, options=_LEARNED),
    "exp_scan_constants_kernel": Call(scan, options={**_LEARNED, "kind": "double"}),
    "lines_kernel": Call(project),
    "shift_table_kernel": Call(project, graph=False),
    "shift_sum_kernel": Call(project, graph=False),
    "shift_dot_kernel": Call(project),
    "shift_step_kernel": Call(project, options={"steps": True}, graph=False),
    "links_sum_kernel": Call(linked, graph=False),
    "links_dot_kernel": Call(linked),
    "links_step_kernel": Call(linked, options={"steps": True}, graph=False),
    "temporal_gemm_kernel": Call(project, options={"strategy": "gemm"}, graph=False),
    "temporal_gemm_dot_kernel": Call(project, options={"strategy": "gemm"}),
    "pack_trains_kernel": Call(project, _ARITHMETIC, {"strategy": "bits"}, graph=False),
    "bit_sum_kernel": Call(project, _ARITHMETIC, {"strategy": "bits"}, graph=False),
    "bit_dot_kernel": Call(project, _ARITHMETIC, {"strategy": "bits"}),
    "spike_sum_kernel": Call(project, _ARITHMETIC, {"strategy": "events"}, graph=False),
    "spike_dot_kernel": Call(project, _ARITHMETIC, {"strategy": "events"}),
}
"""By kernel, the call in which it is tuned, and the dtypes of the state for which it can be."""

STEMS: dict[Function, tuple[str, ...]] = {
    write: ("record",),
    taps: ("taps",),
    pack: ("record",),
    constants: ("constants",),
    step: ("step",),
    delayed: ("read",),
    delayed_steps: ("read",),
    select: ("read",),
    scan: ("scan",),
    cut: ("scan",),
    scan_lines: ("scan",),
    scan_layer: ("scan",),
    project: ("projection", "spikes", "record"),
    linked: ("links",),
    unroll: ("projection",),
}
"""The modules of kernels that a call is about; what else it launches is another call's part."""

LARGE, LONG, ODD = Shape(1000, 64, 4096), Shape(4000, 16, 64), Shape(300, 3, 37, 11)
"""Sizes on which heuristics settle, those of a sequence in chunks, and no multiples of 16."""

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
_ALPHA: dict[str, Any] = {"kind": "alpha", "learned": True}


def variants() -> list[tuple[Call, Shape, torch.dtype]]:
    """Calls that together take every branch of a kernel on a dtype, a flag or an absent pointer."""
    found = []

    def at(dtype: torch.dtype, function: Function, graph: bool = True, **options: Any) -> None:
        found.append((Call(function, options=options, graph=graph), LARGE, dtype))

    for dtype, value in ((F32, F32), (F64, torch.uint8), (BF16, torch.int64), (torch.bool, BF16)):
        at(dtype, write, value=value)
    at(F64, write)
    at(BF16, write, capturable=True)
    for dtype in (torch.bool, F32, torch.int64):
        at(dtype, pack)
    for dtype in (F32, F64):
        for kind in ("single", "double", "alpha"):
            at(dtype, constants, kind=kind, learned=True, each=kind == "double")
    at(F32, constants, kind="double", learned=True)
    at(F32, constants, each=True, graph=False)
    for dtype in (F32, F64, BF16):
        for options in ({}, {**_DOUBLE}, {"kind": "alpha"}, {"kind": "alpha", "learned": True}):
            at(dtype, taps, **options)
    for delay in ("input", "output", "one"):
        at(F32, taps, delay=delay)
    at(F32, taps, step_time=0.3)
    at(F32, taps, learned=True, fixed=True)
    at(F32, step)
    at(F32, step, x=F32, graph=False)
    at(F32, step, by=["y"])
    at(F64, step, x=F64, **_DOUBLE, by=["y"])
    at(F32, step, x=F32, **_DOUBLE, delay=0.0)  # a record of one slot
    at(BF16, step, x=BF16, kind="double")
    at(F16, step, x=F32, each=True, by=["state"])
    at(F32, step, x=torch.uint8, **_DOUBLE)
    at(F64, step, x=F64, **_DOUBLE, capturable=True, by=["state"])
    for dtype, kind in ((BF16, "single"), (F16, "double"), (BF16, "alpha")):
        at(dtype, step, x=dtype, kind=kind)
    for mode in ("previous", "nearest"):
        at(torch.bool, select, mode=mode, graph=False)
    for dtype, mode in ((F16, "linear"), (F32, "next"), (F32, "linear"), (F32, "nearest")):
        at(dtype, select, mode=mode)
    at(F64, select, step_time=0.3, capturable=True)
    at(F32, delayed, graph=False)
    at(F32, delayed, times=3, **_DOUBLE)
    at(F32, delayed, shared=True, learned=True)
    at(BF16, delayed, kind="double", current_overbound=None, learned=True)
    at(F64, delayed, **_DOUBLE, capturable=True, times=2, shared=True)
    at(F16, delayed, time=F32, each=True, learned=True)
    at(F32, delayed_steps, shared=True)
    at(F32, delayed_steps, **_DOUBLE)
    at(F32, scan, graph=False, x=torch.bool)
    at(BF16, scan, graph=False, kind="double", capturable=True)
    at(F32, scan, **_LEARNED)
    at(F32, scan, **_LEARNED, x=torch.bool, each=True)
    at(F32, scan, **_LEARNED, bits=True)
    at(F64, scan, **_LEARNED)
    at(BF16, scan, **_LEARNED)
    at(F32, scan)
    at(BF16, scan)
    at(BF16, scan, bits=True, **_DOUBLE)
    at(F16, scan, x=BF16, **_DOUBLE, again=True)
    at(F64, scan, **_DOUBLE)
    for dtype in (F32, BF16, F64):
        at(dtype, project)
        at(dtype, project, graph=False, steps=True)
        at(dtype, unroll)
        at(dtype, linked)
        at(dtype, linked, steps=True)
    for precision in ("highest", "high", "medium"):
        at(F32, project, strategy="gemm", precision=precision)
    for dtype in (F16, F64):
        at(dtype, project, strategy="gemm")
    for dtype in (F32, F64):
        at(dtype, project, strategy="events")
        at(dtype, project, strategy="bits", packed=dtype == F64)
    for each in (False, True):
        at(F32, step, x=F32, **_ALPHA, each=each)
        at(F32, delayed, **_ALPHA, each=each, shared=each)
    at(F32, scan, **_ALPHA)
    at(F32, scan_lines)
    at(F32, scan_lines, bits=True)
    at(F64, scan_lines, x=torch.bool, **_DOUBLE)
    at(BF16, scan_lines, x=torch.bool, **_ALPHA)
    at(F32, scan_layer, x=torch.bool)
    at(F64, scan_layer)
    at(BF16, scan_layer, bits=True)
    for options in (
        {**_LEARNED, "again": True},
        {**_DOUBLE, "again": True},
        {**_ALPHA, "each": True},
    ):
        found.append((Call(scan, options=options), LONG, F32))
    return found
