"""A record that is written in place and differentiable at the price of one slot.

Every operation on a record that carries a graph is an autograd Function that marks the record
dirty and returns it. The operations then form a chain, so that in backward the gradient of the
record has one owner at a time: a read adds into it in place, a push takes its slot out and leaves
zeros. Each costs the size of one observation, whatever the number of slots is.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..values import Slot
from .common import (
    Home,
    chained,
    first_order,
    hand_over,
    held,
    implementation,
    kind_of,
    link,
    own_gradient,
    unchained,
    without_owner,
)
from .operator import traced_as


class _Write(torch.autograd.Function):
    """``way.push`` writes what ``way.take`` takes out in backward."""

    @staticmethod
    def forward(ctx: Any, record: Tensor, value: Tensor, slots: Any, way: Any) -> Tensor:
        way.push(record, value, slots)
        link(ctx, record)
        ctx.slots, ctx.way, ctx.value_dtype = held(slots), way, value.dtype
        return record

    @staticmethod
    @first_order
    def backward(ctx: Any, drecord: Tensor) -> tuple[Tensor | None, ...]:
        drecord = own_gradient(ctx, drecord)
        dvalue = ctx.way.take(drecord, ctx.slots).to(ctx.value_dtype)
        wanted = ctx.needs_input_grad[1]
        return hand_over(ctx, drecord, 0), dvalue if wanted else None, None, None


class _Blank(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, record: Tensor, mask: Tensor) -> Tensor:
        record.masked_fill_(mask, 0.0)
        link(ctx, record)
        ctx.mask = mask
        return record

    @staticmethod
    @first_order
    def backward(ctx: Any, drecord: Tensor) -> tuple[Tensor | None, ...]:
        drecord = own_gradient(ctx, drecord).masked_fill_(ctx.mask, 0.0)
        return hand_over(ctx, drecord, 0), None


class _Span(NamedTuple):
    """Slots that the host knows, around the end of a record."""

    first: int
    length: int

    def of(self, record: Tensor) -> list[Tensor]:
        """These slots, in one or two parts."""
        end, size = self.first + self.length, record.shape[0]
        parts = [record[self.first : min(end, size)]]
        return parts if end <= size else [*parts, record[: end - size]]


class _Parts:
    """A span written and taken, as one slot is by ``launch`` and ``reference``."""

    @staticmethod
    def push(record: Tensor, rows: Tensor, span: _Span) -> None:
        parts = span.of(record)
        for part, new in zip(parts, rows.split([len(part) for part in parts]), strict=True):
            part.copy_(new)

    @staticmethod
    def take(drecord: Tensor, span: _Span) -> Tensor:
        parts = span.of(drecord)
        taken = torch.cat(parts)
        for part in parts:
            part.zero_()
        return taken


class _Rows:
    """The same of slots ``[L]`` that only the device knows."""

    @staticmethod
    def push(record: Tensor, rows: Tensor, slots: Tensor) -> None:
        record.index_copy_(0, slots, rows.to(record.dtype))

    @staticmethod
    def take(drecord: Tensor, slots: Tensor) -> Tensor:
        taken = drecord.index_select(0, slots)
        drecord.index_fill_(0, slots, 0.0)
        return taken


def place_of(slot: Slot, count: int, record: Tensor) -> tuple[Any, Any]:
    """How ``count`` rows from ``slot`` on, around the end, are written and taken, and where."""
    if isinstance(slot, Tensor):
        return _Rows, row_slots(slot, count, record)
    return _Parts, _Span(slot, count)


def add_row(drecord: Tensor, slot: Slot, drow: Tensor) -> None:
    """Adds to one slot in place."""
    if isinstance(slot, Tensor):
        drecord.index_add_(0, slot.view(1), drow.unsqueeze(0))
    else:
        drecord[slot].add_(drow)


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, record: Tensor, slot: Slot) -> tuple[Tensor, Tensor]:
        link(ctx, record)
        ctx.slot = held(slot)
        return record, _row(record, slot)

    @staticmethod
    @first_order
    def backward(
        ctx: Any, drecord: Tensor | None, dvalue: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        drecord = own_gradient(ctx, drecord)
        if dvalue is not None:
            add_row(drecord, ctx.slot, dvalue)
        return hand_over(ctx, drecord, 0), None


def _row(record: Tensor, slot: Slot) -> Tensor:
    """A copy of one slot, not a view, without asking the device for its index."""
    if isinstance(slot, Tensor):
        row = torch.empty_like(record[0])
        torch.index_select(record, 0, slot.view(1), out=row.unsqueeze(0))
        return row
    return record[slot].clone()


def row_slots(slot: Slot, count: int, record: Tensor) -> Tensor:
    """The ``count`` slots from ``slot`` on, around the end of the record."""
    return (slot + torch.arange(count, device=record.device)) % record.shape[0]


def write_slots(record: Tensor, rows: Tensor, slots: Tensor) -> Tensor:
    """The record with ``rows [L, ...]`` in the slots ``[L]``: in place where no graph is recorded.

    A compiled graph cannot write in place what its own backward pass may read again, so a recorded
    write copies the record. The compiler fuses this expression itself.
    """
    rows = rows.to(record.dtype)
    if chained(record, rows):
        return record.index_copy(0, slots, rows)
    return unchained(record).index_copy_(0, slots, rows)


def _traced_push(
    record: Tensor, value: Tensor, slot: Slot, *, backend: str | None = None
) -> Tensor:
    return write_slots(record, value.unsqueeze(0), row_slots(slot, 1, record))


@traced_as(_traced_push)
def push(record: Tensor, value: Tensor, slot: Slot, *, backend: str | None = None) -> Tensor:
    """:func:`tritonsyn.functional.push`."""
    ring = implementation("record", record.device, backend)
    if chained(record, value) and record.is_floating_point():
        return _Write.apply(record, value, slot, ring)
    record = unchained(record)
    ring.push(record, value.detach(), slot)
    return record


PushPlan = Callable[[Tensor, bool], bool | None]


def push_again(
    record: Tensor, value: Tensor, home: Home, *, backend: str | None = None
) -> PushPlan | None:
    """:func:`push` at the pointer once more at little cost, with the pointer moved on.

    ``home`` is the record and its pointer. What is returned takes a value and ``graph``, and
    returns True, or None if a graph is to be recorded or anything is otherwise than now.
    """
    fits, find, size = kind_of(value), home.finder(), record.shape[0]
    if not fits(value) or not home.cursors:
        return None
    (cursor,) = home.cursors
    module = implementation("record", record.device, backend)
    write = module.push_again(without_owner(record), value.detach())

    def plan(value: Tensor, graph: bool) -> bool | None:
        if not fits(value) or (found := find()) is None:
            return None
        if found[0].requires_grad or (graph and torch.is_grad_enabled() and value.requires_grad):
            return None
        increment_version(found)
        write(value.detach() if value.requires_grad else value, cursor["_cursor"])
        home.moved(1, size)
        return True

    return plan


def _traced_read(record: Tensor, slot: Slot) -> tuple[Tensor, Tensor]:
    return record, record.index_select(0, row_slots(slot, 1, record)).squeeze(0)


@traced_as(_traced_read)
def read(record: Tensor, slot: Slot) -> tuple[Tensor, Tensor]:
    """:func:`tritonsyn.functional.read`."""
    if chained(record):
        return _Read.apply(record, slot)
    return record, _row(record.detach(), slot)


def _traced_write(record: Tensor, rows: Tensor, slot: Slot) -> Tensor:
    return write_slots(record, rows, row_slots(slot, rows.shape[0], record))


@traced_as(_traced_write)
def write_rows(record: Tensor, rows: Tensor, slot: Slot) -> Tensor:
    """Writes observations ``[L, B, ...]``, ``L <= K``, into the slots from ``slot`` on.

    In place, around the end of the record; differentiable as :func:`push`.
    """
    way, slots = place_of(slot, rows.shape[0], record)
    if chained(record, rows) and record.is_floating_point():
        return _Write.apply(record, rows, slots, way)
    record = unchained(record)
    way.push(record, rows.detach().resolve_neg(), slots)
    return record


def _traced_blank(record: Tensor, mask: Tensor) -> Tensor:
    if chained(record):
        return record.masked_fill(mask, 0)
    return unchained(record).masked_fill_(mask, 0)


@traced_as(_traced_blank)
def blank(record: Tensor, mask: Tensor) -> Tensor:
    """Zeros, or False, in all slots where the mask is True, in place and differentiable.

    The mask broadcasts to an observation.
    """
    return _Blank.apply(record, mask) if chained(record) else _traced_blank(record, mask)
