"""The record: one slot written, one slot's gradient taken out."""

from collections.abc import Callable

from torch import Tensor

from ..values import Slot


def push(record: Tensor, value: Tensor, slot: Slot) -> None:
    """``record[slot] = value``, converted to the record's dtype (a bool record holds ``!= 0``)."""
    record[int(slot)].copy_(value.resolve_neg())


def push_again(record: Tensor, value: Tensor) -> Callable[[Tensor, Slot], None]:
    """:func:`push` into this record at less cost, of values of this kind in any slot."""
    rows = record.unbind(0)

    def write(value: Tensor, slot: Slot) -> None:
        rows[int(slot)].copy_(value)

    return write


def take(drecord: Tensor, slot: Slot) -> Tensor:
    """Adjoint of :func:`push`: returns the slot's gradient and leaves zeros."""
    row = drecord[int(slot)]
    taken = row.clone()
    row.zero_()
    return taken
