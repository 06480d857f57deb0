"""The record: one slot written, one slot's gradient taken out."""

import torch

from ..kernels.record import ring_push_kernel, ring_take_kernel
from ..values import Slot
from .config import config_for
from .launcher import launch, tiles


def push(record: torch.Tensor, value: torch.Tensor, slot: Slot) -> None:
    """``record[slot] = value``, converted to the record's dtype (a bool record holds ``!= 0``)."""
    size = value.numel()
    if size == 0:
        return
    config = config_for("ring_push_kernel", (size,), record.dtype, record.device)
    launch(
        ring_push_kernel, (tiles(size, config.block),),
        value.contiguous(), record, slot, size,
        BLOCK=config.block, num_warps=config.num_warps,
    )  # fmt: skip


def take(drecord: torch.Tensor, slot: Slot) -> torch.Tensor:
    """Adjoint of :func:`push`: returns the slot's gradient and leaves zeros."""
    taken = torch.empty_like(drecord[0])
    size = taken.numel()
    if size:
        config = config_for("ring_take_kernel", (size,), drecord.dtype, drecord.device)
        launch(
            ring_take_kernel, (tiles(size, config.block),),
            drecord, taken, slot, size,
            BLOCK=config.block, num_warps=config.num_warps,
        )  # fmt: skip
    return taken
