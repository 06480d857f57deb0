"""The record: one slot written, one slot's gradient taken out."""

import torch
from torch import Tensor

from ..kernels.record import ring_push_kernel, ring_take_kernel
from ..values import Slot
from .launcher import covering, launch, packed


def push(record: Tensor, value: Tensor, slot: Slot) -> None:
    size = value.numel()
    arguments = (packed(value), record, slot, size)
    launch(ring_push_kernel, covering(size), *arguments, work=(size,), dtype=record.dtype)


def take(drecord: Tensor, slot: Slot) -> Tensor:
    taken = torch.empty_like(drecord[0])
    size = taken.numel()
    arguments = (drecord, taken, slot, size)
    launch(ring_take_kernel, covering(size), *arguments, work=(size,), dtype=drecord.dtype)
    return taken
