"""The record: one slot written, one slot's gradient taken out."""

import torch
from torch import Tensor

from ..kernels.record import ring_push_kernel, ring_take_kernel
from ..values import Slot
from .launcher import launch, tiles


def push(record: Tensor, value: Tensor, slot: Slot) -> None:
    size = value.numel()
    if size == 0:
        return
    launch(
        ring_push_kernel, lambda config: (tiles(size, config.BLOCK),),
        value.contiguous(), record, slot, size,
        work=(size,), dtype=record.dtype,
    )  # fmt: skip


def take(drecord: Tensor, slot: Slot) -> Tensor:
    taken = torch.empty_like(drecord[0])
    size = taken.numel()
    if size:
        launch(
            ring_take_kernel, lambda config: (tiles(size, config.BLOCK),),
            drecord, taken, slot, size,
            work=(size,), dtype=drecord.dtype,
        )  # fmt: skip
    return taken
