"""The record: one slot written, one slot's gradient taken out."""

import torch

from ..kernels.record import ring_push_kernel, ring_take_kernel
from ..values import Slot
from .launcher import launch, tiles


def push(record: torch.Tensor, value: torch.Tensor, slot: Slot) -> None:
    size = value.numel()
    if size == 0:
        return
    launch(
        ring_push_kernel, lambda config: (tiles(size, config.BLOCK),),
        value.contiguous(), record, slot, size,
        work=(size,), dtype=record.dtype,
    )  # fmt: skip


def take(drecord: torch.Tensor, slot: Slot) -> torch.Tensor:
    taken = torch.empty_like(drecord[0])
    size = taken.numel()
    if size:
        launch(
            ring_take_kernel, lambda config: (tiles(size, config.BLOCK),),
            drecord, taken, slot, size,
            work=(size,), dtype=drecord.dtype,
        )  # fmt: skip
    return taken
