"""The record: one slot written, one slot's gradient taken out."""

from torch import Tensor

from ..values import Slot


def push(record: Tensor, value: Tensor, slot: Slot) -> None:
    """``record[slot] = value``, converted to the record's dtype (a bool record holds ``!= 0``)."""
    record[int(slot)].copy_(value.resolve_neg())


def take(drecord: Tensor, slot: Slot) -> Tensor:
    """Adjoint of :func:`push`: returns the slot's gradient and leaves zeros."""
    row = drecord[int(slot)]
    taken = row.clone()
    row.zero_()
    return taken
