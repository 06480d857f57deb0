"""What each kernel does for a shape ``[T, B, N]``, as sizes, and as a call that can be timed."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .config import Work

if TYPE_CHECKING:
    from ..rules import ReadRule

Call = Callable[[], Any]

FLOATING = ("float32", "float64", "bfloat16", "float16")
DTYPES = (*FLOATING, "bool", "uint8", "int64")


class Shape(NamedTuple):
    """Steps of a sequence, samples of a batch, synapses of a group."""

    steps: int
    batch: int
    synapses: int

    def __str__(self) -> str:
        return "x".join(map(str, self))

    @classmethod
    def parse(cls, text: str) -> "Shape":
        """From ``"1000x64x1024"``; ``ValueError`` for anything else."""
        parts = text.split("x")
        if len(parts) != 3 or not all(p.isdecimal() and int(p) > 0 for p in parts):
            raise ValueError(
                f"shape is {text!r}, but must be three positive sizes TxBxN (steps, batch, "
                "synapses), such as 1000x64x1024"
            )
        return cls(*map(int, parts))


class Workload(NamedTuple):
    """What a kernel is given for a shape."""

    work: Callable[[Shape], Work]
    """The sizes by which its configuration is looked up."""
    call: Callable[[Shape, torch.dtype, torch.device], Call]
    """Makes the tensors, and returns what launches the kernel on them."""
    dtypes: tuple[str, ...] = FLOATING
    """For which it can be tuned."""


def _step_work(shape: Shape) -> Work:
    return (shape.batch * shape.synapses,)


def _row_work(shape: Shape) -> Work:
    return shape.batch, shape.synapses


def _scan_work(shape: Shape) -> Work:
    return shape.steps, shape.batch * shape.synapses


def _pack_work(shape: Shape) -> Work:
    return (shape.steps * shape.batch * math.ceil(shape.synapses / 32),)


def _random(*sizes: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return (torch.rand(sizes, device=device) * 2).to(dtype)


def _record(shape: Shape, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return _random(_SLOTS, shape.batch, shape.synapses, dtype=dtype, device=device)


def _constant(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    carried = torch.float64 if dtype == torch.float64 else torch.float32
    return torch.tensor(0.9, dtype=carried, device=device)


_SLOTS = 21  # of the records: 20 steps of delay


def _push(shape: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    from ..launch import ring

    record = _record(shape, dtype, device)
    value = record[0].clone()
    return lambda: ring.push(record, value, 1)


def _take(shape: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    from ..launch import ring

    record = _record(shape, dtype, device)
    return lambda: ring.take(record, 1)


def _pack(shape: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    from ..launch import decay

    x = _random(shape.steps * shape.batch, shape.synapses, dtype=dtype, device=device)
    return lambda: decay.pack(x)


def _step(shape: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    from ..launch import synapse

    record, one = _record(shape, dtype, device), _constant(dtype, device)
    spikes = record.bool()
    return lambda: synapse.step(spikes[0], [record], spikes, one, [one], [1], 1)


def _step_backward(shape: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    from ..launch import synapse

    record, one = _record(shape, dtype, device), _constant(dtype, device)
    dy = record[0].clone()
    return lambda: synapse.step_backward(dy, [record], one, [one], [1], dtype, False)


def _rule() -> "ReadRule":
    from ..rules import ReadRule

    return ReadRule("expdecay", 1.0, _SLOTS - 1.0, 0.0, 0.0)


def _times(shape: Shape, device: torch.device) -> torch.Tensor:
    return torch.rand(shape.batch, shape.synapses, 1, device=device) * (_SLOTS - 1)


def _select(shape: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    from ..launch import interp

    record, sel, rule = _record(shape, dtype, device), _times(shape, device), _rule()
    rates = [_constant(dtype, device)]
    return lambda: interp.select([record], sel, rates, [1], rule)


def _select_backward(shape: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    from ..launch import interp

    record, sel, rule = _record(shape, dtype, device), _times(shape, device), _rule()
    rates = [_constant(dtype, device)]
    dvalue = torch.zeros_like(sel, dtype=dtype)
    return lambda: interp.select_backward(dvalue, [record], sel, rates, [1], rule)


def _batch_dot(shape: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    from ..launch import interp

    a = _random(shape.batch, shape.synapses, dtype=dtype, device=device)
    return lambda: interp.batch_dot(a, a)


def _scan(shape: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    from ..launch import decay

    x, one = _random(*shape, dtype=dtype, device=device), _constant(dtype, device)
    return lambda: decay.scan(x, one, [one], [None], 1, dtype)


def _scan_constants(shape: Shape, dtype: torch.dtype, device: torch.device) -> Call:
    """The whole backward pass of a scan, of which the kernel is a part."""
    from ..launch import decay

    x, one = _random(*shape, dtype=dtype, device=device), _constant(dtype, device)
    return lambda: decay.scan_backward(x, [None], 1, x, one, [one], [None], dtype)


WORKLOADS = {
    "ring_push_kernel": Workload(_step_work, _push, DTYPES),
    "ring_take_kernel": Workload(_step_work, _take),
    "pack_bits_kernel": Workload(_pack_work, _pack, DTYPES),
    "synapse_step_fwd_kernel": Workload(_step_work, _step),
    "synapse_step_bwd_kernel": Workload(_step_work, _step_backward),
    "select_fwd_kernel": Workload(_row_work, _select),
    "select_bwd_kernel": Workload(_row_work, _select_backward),
    "batch_dot_kernel": Workload(_row_work, _batch_dot),
    "exp_scan_kernel": Workload(_scan_work, _scan),
    "exp_scan_constants_kernel": Workload(_scan_work, _scan_constants),
}
"""By kernel. Those with a heuristic, and no others, can be tuned."""
