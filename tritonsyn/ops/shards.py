"""Operations on distributed tensors, of which each process computes its own part."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed

from ..values import PackedSpikes, is_distributed
from .common import first_order
from .operator import traced_as

Axis = str | int | None


class Operand(NamedTuple):
    """What an operation is given, or gives, under the name that errors call it."""

    name: str
    value: Any
    """A tensor; a number or None is the same on every process."""
    axes: Sequence[Axis]
    """What each axis of a tensor is; None is one that is the same for all."""


class _SumGradient(torch.autograd.Function):
    """The tensor, of which each process knows a part of the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total, group=ctx.group)
        return total, None


def summed(x: Tensor, group: Any) -> Tensor:
    """The same, with a gradient that is the sum of those of a group of processes."""
    return _SumGradient.apply(x, group) if torch.is_grad_enabled() and x.requires_grad else x


@traced_as(lambda *values: False)
def any_distributed(*values: Any) -> bool:
    """Whether one of the values is a ``DTensor``."""
    return any(map(is_distributed, values))


def broadcast_axes(value: Any, axes: Sequence[Axis]) -> Sequence[Axis]:
    """The axes of a tensor that broadcasts to others with these axes; of a number, none."""
    if not isinstance(value, Tensor) or not value.ndim:
        return ()
    last = axes[-value.ndim :]
    return [axis if size > 1 else None for axis, size in zip(last, value.shape, strict=True)]


def on_shards(
    call: Callable[..., Sequence[Tensor]],
    operands: Sequence[Operand],
    results: Sequence[Operand],
    allowed: dict[Axis, str],
) -> list[Any]:
    """What a call gives that runs on this process' part of ``DTensor`` operands, as ``DTensor``.

    An axis of the mesh splits one axis of the operation: that over which the first of the operands
    is sharded that is so. Operands that have this axis are brought into parts along it, and so are
    the results; those that have it not are whole on every process, with a gradient that is summed.

    Args:
        call: takes the values of the operands in their order.
        operands: what it is given.
        results: what it returns, with no values.
        allowed: the axes that may be split, and what errors call them.

    Raises:
        TypeError, ValueError: an operand is an ordinary tensor, is on another mesh, or is laid out
            in another way.
    """
    from torch.distributed.tensor import DTensor, Replicate, Shard

    tensors = [o for o in operands if isinstance(o.value, Tensor | PackedSpikes)]
    mesh = next(o.value for o in tensors if isinstance(o.value, DTensor)).device_mesh
    for name, value, _ in tensors:
        if not isinstance(value, DTensor):
            raise TypeError(
                f"{name} is an ordinary tensor beside a DTensor: distribute it too, as by "
                "torch.distributed.tensor.distribute_tensor"
            )
        if value.device_mesh != mesh:
            raise ValueError(f"{name} is on {value.device_mesh}, but others are on {mesh}")
    split = [_split(tensors, dim, allowed) for dim in range(mesh.ndim)]

    def layout(axes: Sequence[Axis]) -> list[Any]:
        places: dict[Axis, Any] = {a: Shard(i) for i, a in enumerate(axes) if a is not None}
        return [places.get(axis, Replicate()) for axis in split]

    def own(operand: Operand) -> Any:
        if not isinstance(operand.value, DTensor):
            return operand.value
        local = operand.value.redistribute(mesh, layout(operand.axes)).to_local()
        for dim, axis in enumerate(split):
            if axis is not None and axis not in operand.axes:
                local = summed(local, mesh.get_group(dim))
        return local

    sizes = {axis: size for o in tensors for axis, size in zip(o.axes, o.value.shape, strict=True)}
    made = []
    for found, result in zip(call(*map(own, operands)), results, strict=True):
        times = math.prod(
            mesh.size(dim)
            for dim, axis in enumerate(split)
            if axis is not None and axis not in result.axes
        )
        if times > 1 and found.requires_grad:
            # All processes have its whole gradient, and the sums over them are to count it once.
            found.register_hook(partial(torch.mul, other=1 / times))
        whole = zip(result.axes, found.shape, strict=True)
        shape = [sizes[axis] if axis in split else size for axis, size in whole]
        made.append(as_distributed(found, mesh, layout(result.axes), shape))
    return made


def as_distributed(own: Tensor, mesh: Any, layout: Sequence[Any], shape: Sequence[int]) -> Tensor:
    """The ``DTensor`` of this shape of which this process has a part, perhaps not an equal one."""
    from torch.distributed.tensor import DTensor

    stride = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    how: dict[str, Any] = {"run_check": False, "shape": torch.Size(shape), "stride": stride}
    return DTensor.from_local(own.contiguous(), mesh, layout, **how)


def _split(operands: Sequence[Operand], dim: int, allowed: dict[Axis, str]) -> Axis:
    """The axis of an operation that an axis of the mesh splits; None: nothing is."""
    split: Axis = None
    for name, value, axes in operands:
        placement = value.placements[dim]
        if placement.is_replicate():
            continue
        axis = axes[placement.dim] if placement.is_shard() else None
        if axis not in allowed:
            raise ValueError(
                f"{name} is {placement}, but may only be replicated, or sharded over "
                f"{' or '.join(allowed.values())}"
            )
        split = axis if split is None else split
    return split
