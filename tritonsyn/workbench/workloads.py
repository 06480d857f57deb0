"""What each kernel does for a shape, as sizes, and as a call that can be timed."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..launch.config import PASSES, LaunchConfig, Work
from ..values import Dynamics, PackedSpikes, compute_dtype

if TYPE_CHECKING:
    from ..values import ReadRule

Call = Callable[[], Any]

FLOATING = ("float32", "float64", "bfloat16", "float16")
DTYPES = (*FLOATING, "bool", "uint8", "int32", "int64")
_ARITHMETIC = ("float32", "float64")


class Shape(NamedTuple):
    """Steps of a sequence, samples of a batch, synapses of a group, which projections take for
    their inputs."""

    steps: int
    batch: int
    synapses: int
    outputs: int | None = None
    """Of a projection; None: as many as inputs."""
    slots: int | None = None
    """Whole steps that the delays of a projection can be; None: 21."""

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


def _tiles(size: int, block: int) -> int:
    return math.ceil(size / block)


def _row_programs(work: Work, config: LaunchConfig) -> int:
    *rows, size = work
    return math.prod(rows) * _tiles(size, config.block)


class Workload(NamedTuple):
    """What a kernel is given for a shape."""

    work: Callable[[Shape], Work]
    """The sizes by which its configuration is looked up."""
    call: Callable[[Shape, torch.dtype, torch.device], Call]
    """Makes the tensors, and returns what launches the kernel on them."""
    dtypes: tuple[str, ...] = FLOATING
    """For which it can be tuned."""
    programs: Callable[[Work, LaunchConfig], int] = _row_programs
    """How many a launch has."""


def _step_work(shape: Shape) -> Work:
    return (shape.batch * shape.synapses,)


def _row_work(shape: Shape) -> Work:
    return shape.batch, shape.synapses


def _scan_work(shape: Shape) -> Work:
    return shape.steps, shape.batch * shape.synapses


def _pack_work(shape: Shape) -> Work:
    return (shape.steps * shape.batch * math.ceil(shape.synapses / 32),)


def _transpose_work(shape: Shape) -> Work:
    return math.ceil(shape.synapses / 32), math.ceil(shape.steps * shape.batch / 32)


def _transpose_programs(work: Work, config: LaunchConfig) -> int:
    return work[0] * _tiles(work[1], config.block)


def _scan_programs(work: Work, config: LaunchConfig) -> int:
    return config.chunks * _tiles(work[-1], config.block)


class _Layer(NamedTuple):
    """The sizes of a projection."""

    steps: int
    batch: int
    inputs: int
    outputs: int
    slots: int

    @classmethod
    def of(cls, shape: Shape) -> "_Layer":
        return cls(*shape[:3], shape.outputs or shape.synapses, shape.slots or _SLOTS)

    @property
    def places(self) -> int:
        """Steps and samples."""
        return self.steps * self.batch


def _shift_sum_work(shape: Shape) -> Work:
    layer = _Layer.of(shape)
    return layer.steps, layer.inputs, layer.outputs, layer.places


def _shift_dot_work(shape: Shape) -> Work:
    layer = _Layer.of(shape)
    return layer.inputs, layer.outputs, layer.places


def _gemm_work(shape: Shape) -> Work:
    layer = _Layer.of(shape)
    return PASSES[_PRECISION], layer.slots, layer.inputs, layer.outputs, layer.places


def _spike_sum_work(shape: Shape) -> Work:
    layer = _Layer.of(shape)
    return layer.steps, layer.slots, layer.batch, layer.outputs


def _spike_dot_work(shape: Shape) -> Work:
    layer = _Layer.of(shape)
    return math.ceil(layer.places / 32), layer.inputs, layer.outputs


def _sum_programs(work: Work, config: LaunchConfig) -> int:
    """Those of a projection, shifted or by products of matrices."""
    *_, outputs, places = work
    return _tiles(places, config.block) * _tiles(outputs, config.rows)


def _connection_programs(work: Work, config: LaunchConfig) -> int:
    *_, inputs, outputs, _ = work
    return _tiles(outputs, config.rows) * _tiles(inputs, config.columns)


def _shift_dot_programs(work: Work, config: LaunchConfig) -> int:
    return config.chunks * _connection_programs(work, config)


def _gemm_dot_programs(work: Work, config: LaunchConfig) -> int:
    return work[1] * _connection_programs(work, config)


def _spike_sum_programs(work: Work, config: LaunchConfig) -> int:
    *_, batch, outputs = work
    return config.chunks * batch * _tiles(outputs, config.block)


def _spike_dot_programs(work: Work, config: LaunchConfig) -> int:
    _, inputs, outputs = work
    return config.chunks * inputs * _tiles(outputs, config.block)


def _random(*sizes: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return (torch.rand(sizes, device=device) * 2).to(dtype)


def _record(shape: Shape, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return _random(_SLOTS, shape.batch, shape.synapses, dtype=dtype, device=device)


def _constant(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    carried = torch.float64 if dtype == torch.float64 else torch.float32
    return torch.tensor(0.9, dtype=carried, device=device)


_SLOTS = 21  # of the records: 20 steps of delay
_PRECISION = "ieee"  # of products of matrices: PyTorch's default
_RATE = 0.02  # spikes per input and step


def _push(shape: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    from ..launch import record as ring

    record = _record(shape, dtype, device)
    value = record[0].clone()
    return lambda: ring.push(record, value, 1)


def _take(shape: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    from ..launch import record as ring

    record = _record(shape, dtype, device)
    return lambda: ring.take(record, 1)


def _pack(shape: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    from ..launch import scan as decay

    x = _random(shape.steps * shape.batch, shape.synapses, dtype=dtype, device=device)
    return lambda: decay.pack(x)


def _transpose(shape: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    from ..launch import scan as decay

    words = _spikes(shape, device).words.flatten(0, 1)
    return lambda: decay.transpose_bits(words, shape.synapses)


def _step(shape: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    from ..launch import step as synapse

    record, one = _record(shape, dtype, device), _constant(dtype, device)
    spikes = record.bool()
    return lambda: synapse.step(spikes[0], [record], spikes, Dynamics(one, (one,)), [1], 1)


def _step_backward(shape: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    from ..launch import step as synapse

    record, one = _record(shape, dtype, device), _constant(dtype, device)
    dy = record[0].clone()
    return lambda: synapse.step_backward(dy, [record], Dynamics(one, (one,)), [1], dtype, False)


def _rule() -> "ReadRule":
    from ..values import ReadRule

    return ReadRule("expdecay", 1.0, _SLOTS - 1.0, 0.0, 0.0)


def _times(shape: Shape, device: torch.device) -> torch.Tensor:
    return torch.rand(shape.batch, shape.synapses, 1, device=device) * (_SLOTS - 1)


def _select(shape: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    from ..launch import read as interp

    record, sel, rule = _record(shape, dtype, device), _times(shape, device), _rule()
    rates = [_constant(dtype, device)]
    return lambda: interp.select([record], sel, rates, [1], rule)


def _select_backward(shape: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    from ..launch import read as interp

    record, sel, rule = _record(shape, dtype, device), _times(shape, device), _rule()
    rates = [_constant(dtype, device)]
    dvalue = torch.zeros_like(sel, dtype=dtype)
    return lambda: interp.select_backward(dvalue, [record], sel, rates, [1], rule)


def _batch_dot(shape: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    from ..launch import read as interp

    a = _random(shape.batch, shape.synapses, dtype=dtype, device=device)
    return lambda: interp.batch_dot(a, a)


def _scan(shape: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    from ..launch import scan as decay

    x, one = _random(*shape[:3], dtype=dtype, device=device), _constant(dtype, device)
    return lambda: decay.scan(x, Dynamics(one, (one,)), [None], 1, dtype)


def _scan_constants(shape: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    """The whole backward pass of a scan, of which the kernel is a part."""
    from ..launch import scan as decay

    x, one = _random(*shape[:3], dtype=dtype, device=device), _constant(dtype, device)
    return lambda: decay.scan_backward(x, [None], x, Dynamics(one, (one,)), [None], dtype)


def _connections(
    shape: Shape, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and delays of a projection."""
    layer = _Layer.of(shape)
    size = layer.outputs, layer.inputs
    weight = _random(*size, dtype=compute_dtype(dtype), device=device)
    return weight, torch.randint(layer.slots, size, dtype=torch.int32, device=device)


def _sequence(shape: Shape, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    layer = _Layer.of(shape)
    rows = layer.slots - 1 + layer.steps
    return _random(rows, layer.batch, layer.inputs, dtype=dtype, device=device)


def _current(shape: Shape, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Like the output of a projection."""
    layer = _Layer.of(shape)
    size = layer.steps, layer.batch, layer.outputs
    return _random(*size, dtype=compute_dtype(dtype), device=device)


def _spikes(shape: Shape, device: torch.device) -> PackedSpikes:
    from ..launch import scan as decay

    steps, batch, inputs, *_ = shape
    x = torch.rand(steps * batch, inputs, device=device) < _RATE
    return PackedSpikes(decay.pack(x).view(steps, batch, -1), shape[:3])


def _projection(strategy: str) -> Callable[[Shape, torch.dtype, torch.device], Call]:
    """The whole projection, of which the kernel is the largest part."""

    def make(shape: Shape, dtype: torch.dtype, device: torch.device) -> Call:
        from ..launch import projection as project

        weight, back = _connections(shape, dtype, device)
        source = _sequence(shape, dtype, device)
        steps = shape.steps
        return lambda: project.project(source, weight, back, steps, strategy, _PRECISION)

    return make


def _projection_weight(strategy: str) -> Callable[[Shape, torch.dtype, torch.device], Call]:
    """The whole adjoint to the weight, of which the kernel is the largest part."""

    def make(shape: Shape, dtype: torch.dtype, device: torch.device) -> Call:
        from ..launch import projection as project

        _, back = _connections(shape, dtype, device)
        source, dy = _sequence(shape, dtype, device), _current(shape, dtype, device)
        return lambda: project.project_weight(dy, source, back, strategy, _PRECISION)

    return make


def _spike_sum(shape: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    from ..launch import projection as project

    weight, back = _connections(shape, dtype, device)
    spikes, slots = _spikes(shape, device), _Layer.of(shape).slots
    return lambda: project.project_spikes(spikes, weight, back, slots)


def _spike_dot(shape: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    from ..launch import projection as project

    _, back = _connections(shape, dtype, device)
    spikes, slots = _spikes(shape, device), _Layer.of(shape).slots
    dv = _current(shape, dtype, device)
    return lambda: project.project_spikes_weight(dv, spikes, back, slots)


WORKLOADS = {
    "ring_push_kernel": Workload(_step_work, _push, DTYPES),
    "ring_take_kernel": Workload(_step_work, _take),
    "pack_bits_kernel": Workload(_pack_work, _pack, DTYPES),
    "transpose_bits_kernel": Workload(_transpose_work, _transpose, ("int32",), _transpose_programs),
    "synapse_step_fwd_kernel": Workload(_step_work, _step),
    "synapse_step_bwd_kernel": Workload(_step_work, _step_backward),
    "select_fwd_kernel": Workload(_row_work, _select),
    "select_bwd_kernel": Workload(_row_work, _select_backward),
    "batch_dot_kernel": Workload(_row_work, _batch_dot),
    "exp_scan_kernel": Workload(_scan_work, _scan, programs=_scan_programs),
    "exp_scan_constants_kernel": Workload(_scan_work, _scan_constants, programs=_scan_programs),
    "shift_sum_kernel": Workload(_shift_sum_work, _projection("shift"), programs=_sum_programs),
    "shift_dot_kernel": Workload(
        _shift_dot_work, _projection_weight("shift"), programs=_shift_dot_programs
    ),
    "temporal_gemm_kernel": Workload(_gemm_work, _projection("gemm"), programs=_sum_programs),
    "temporal_gemm_dot_kernel": Workload(
        _gemm_work, _projection_weight("gemm"), programs=_gemm_dot_programs
    ),
    "spike_sum_kernel": Workload(_spike_sum_work, _spike_sum, _ARITHMETIC, _spike_sum_programs),
    "spike_dot_kernel": Workload(_spike_dot_work, _spike_dot, _ARITHMETIC, _spike_dot_programs),
}
"""By kernel. Those with a heuristic, and no others, can be tuned."""
