"""The record: one slot written, one slot's gradient taken out."""

import torch


def push(record: torch.Tensor, value: torch.Tensor, slot: int) -> None:
    """``record[slot] = value``, converted to the record's dtype (a bool record holds ``!= 0``)."""
    record[slot].copy_(value)


def take(drecord: torch.Tensor, slot: int) -> torch.Tensor:
    """Adjoint of :func:`push`: returns the slot's gradient and leaves zeros."""
    taken = drecord[slot].clone()
    drecord[slot].zero_()
    return taken
