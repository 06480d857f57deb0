"""A record that is written in place and differentiable at the price of one slot.

Every operation on a record that carries a graph is an autograd Function that marks the record
dirty and returns it. The operations then form a chain, so that in backward the gradient of the
record has one owner at a time: a read adds into it in place, a push takes its slot out and leaves
zeros. Each costs the size of one observation, whatever the number of slots is.
"""

from types import ModuleType
from typing import Any

import torch

from ..backend import implementation
from .checks import check_input, check_record, check_slot
from .common import Layout, chained, own_gradient, unchained


class _Push(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, record: torch.Tensor, value: torch.Tensor, slot: int, ring: ModuleType
    ) -> torch.Tensor:
        ring.push(record, value, slot)
        ctx.mark_dirty(record)
        ctx.set_materialize_grads(False)
        ctx.slot, ctx.ring, ctx.value_dtype = slot, ring, value.dtype
        return record

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, drecord: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        if drecord is None:
            return None, None, None, None
        drecord = own_gradient(drecord, Layout.of(drecord))
        dvalue = ctx.ring.take(drecord, ctx.slot)
        wanted = ctx.needs_input_grad[1]
        return drecord, dvalue.to(ctx.value_dtype) if wanted else None, None, None


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, record: torch.Tensor, slot: int) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.mark_dirty(record)
        ctx.set_materialize_grads(False)
        ctx.slot = slot
        ctx.layout = Layout.of(record)
        return record, record[slot].clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, drecord: torch.Tensor | None, dvalue: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        if dvalue is not None:
            drecord = own_gradient(drecord, ctx.layout)
            drecord[ctx.slot].add_(dvalue)
        return drecord, None


def push(
    record: torch.Tensor, value: torch.Tensor, slot: int, *, backend: str | None = None
) -> torch.Tensor:
    """Writes ``value`` into a slot of the record, in place, and returns the record.

    ``record [K, B, ...]``, ``value [B, ...]`` of any real dtype (converted; a bool record holds
    ``value != 0``). Differentiable to the value and to what the other slots hold. With gradients
    disabled the record comes back without a graph.
    """
    check_record("record", record)
    check_input("value", value, record.shape[1:], record.device)
    check_slot("slot", slot, record.shape[0])
    ring = implementation("ring", record.device, backend)
    if record.is_floating_point() and chained(record, value):
        return _Push.apply(record, value, slot, ring)
    record = unchained(record)
    ring.push(record, value.detach(), slot)
    return record


def read(record: torch.Tensor, slot: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A copy of one slot: ``(record, value)``, the record now carrying the read in its graph."""
    check_slot("slot", slot, record.shape[0])
    if chained(record):
        return _Read.apply(record, slot)
    return record, record[slot].detach().clone()


class _WriteRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, record: torch.Tensor, rows: torch.Tensor, slot: int) -> torch.Tensor:
        _copy_rows(record, rows, slot)
        ctx.mark_dirty(record)
        ctx.set_materialize_grads(False)
        ctx.slot, ctx.count, ctx.rows_dtype = slot, rows.shape[0], rows.dtype
        return record

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, drecord: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        if drecord is None:
            return None, None, None
        drecord = own_gradient(drecord, Layout.of(drecord))
        taken = []
        for rows in _spans(ctx.slot, ctx.count, drecord.shape[0]):
            taken.append(drecord[rows].to(ctx.rows_dtype, copy=True))
            drecord[rows].zero_()
        return drecord, torch.cat(taken) if ctx.needs_input_grad[1] else None, None


def _spans(slot: int, count: int, slots: int) -> list[slice]:
    """The slots that ``count`` writes from ``slot`` on fall into, as one or two slices."""
    before_end = min(count, slots - slot)
    spans = [slice(slot, slot + before_end)]
    if count > before_end:
        spans.append(slice(0, count - before_end))
    return spans


def _copy_rows(record: torch.Tensor, rows: torch.Tensor, slot: int) -> None:
    first = 0
    for span in _spans(slot, rows.shape[0], record.shape[0]):
        count = span.stop - span.start
        record[span].copy_(rows[first : first + count])
        first += count


def write_rows(record: torch.Tensor, rows: torch.Tensor, slot: int) -> torch.Tensor:
    """Writes observations ``[L, B, ...]``, ``1 <= L <= K``, into the slots from ``slot`` on.

    In place, around the end of the record; differentiable as :func:`push`.
    """
    check_slot("slot", slot, record.shape[0])
    if not 1 <= rows.shape[0] <= record.shape[0] or rows.shape[1:] != record.shape[1:]:
        raise ValueError(
            f"rows have shape {tuple(rows.shape)}, but must have (L, *{tuple(record.shape[1:])}) "
            f"with L in 1 to {record.shape[0]}"
        )
    if record.is_floating_point() and chained(record, rows):
        return _WriteRows.apply(record, rows, slot)
    record = unchained(record)
    _copy_rows(record, rows.detach(), slot)
    return record
