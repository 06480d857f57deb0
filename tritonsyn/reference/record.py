"""The record: one slot written, one slot's gradient taken out."""

import torch

from ..values import Slot


def push(record: torch.Tensor, value: torch.Tensor, slot: Slot) -> None:
    """``record[slot] = value``, converted to the record's dtype (a bool record holds ``!= 0``)."""
    record[int(slot)].copy_(value)


def take(drecord: torch.Tensor, slot: Slot) -> torch.Tensor:
    """Adjoint of :func:`push`: returns the slot's gradient and leaves zeros."""
    row = drecord[int(slot)]
    taken = row.clone()
    row.zero_()
    return taken
