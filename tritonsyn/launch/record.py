"""The record: one slot written, one slot's gradient taken out."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..kernels.record import ring_push_kernel, ring_take_kernel
from ..values import Slot
from .launcher import Launch, covering, launch, launch_of, packed, repeated, run


def push(record: Tensor, value: Tensor, slot: Slot) -> None:
    run(_push(record, value, slot))


def push_again(record: Tensor, value: Tensor) -> Callable[[Tensor, Slot], None]:
    again, size = repeated(_push(record, value, 0)), value.numel()
    return lambda value, slot: again(value, record, slot, size)


def _push(record: Tensor, value: Tensor, slot: Slot) -> Launch:
    size = value.numel()
    arguments = (packed(value), record, slot, size)
    grid, dtype = covering(size), record.dtype
    return launch_of(ring_push_kernel, grid, *arguments, work=(size,), dtype=dtype)


def take(drecord: Tensor, slot: Slot) -> Tensor:
    taken = torch.empty_like(drecord[0])
    size = taken.numel()
    arguments = (drecord, taken, slot, size)
    launch(ring_take_kernel, covering(size), *arguments, work=(size,), dtype=drecord.dtype)
    return taken
