"""Sequences in which each sample ends after steps of its own."""

from typing import Any

import torch
from torch import Tensor

from ..values import PackedSpikes, Ring
from .common import flat_record
from .record import row_slots


def after_end(lengths: Tensor, steps: int) -> Tensor:
    """Which of so many steps come after the end of each sample: bool ``[steps, B]``."""
    return torch.arange(steps, device=lengths.device).unsqueeze(1) >= lengths


def silenced(y: Tensor, lengths: Tensor) -> Tensor:
    """``y [T, B, ...]`` with zeros after the end of each sample; written unless it has a graph."""
    after = after_end(lengths, y.shape[0])
    after = after.view(*after.shape, *[1] * (y.ndim - 2))
    return y.masked_fill(after, 0) if y.requires_grad else y.masked_fill_(after, 0)


def input_until(x: Any, lengths: Tensor) -> Any:
    """The input, in which what comes after the end is finite: a NaN would reach gradients."""
    if isinstance(x, PackedSpikes) or not x.is_floating_point():
        return x
    after = after_end(lengths, x.shape[0])
    return x.masked_fill(after.view(*after.shape, *[1] * (x.ndim - 2)), 0)


def held(rows: Tensor, lengths: Tensor, steps: int) -> Tensor:
    """Rows ``[R, B, N]``, the last of them of so many steps, kept from each sample's end on."""
    last = (lengths + (len(rows) - steps - 1)).clamp(min=0)
    every = torch.arange(len(rows), device=rows.device).unsqueeze(1)
    return _taken(rows, every.minimum(last))


def last_rows(
    x: Tensor | PackedSpikes, lengths: Tensor, slots: int, history: Tensor | None
) -> Tensor:
    """The last values of each sample at its own end, ``[slots, B, N]`` oldest first.

    ``x [T, B, N]``, and before it ``history [slots, B, N]``, None for zeros.
    """
    rows = torch.arange(slots, device=lengths.device).unsqueeze(1) + (lengths - slots)
    taken = _taken(x, rows.clamp(min=0))
    before = 0 if history is None else _taken(history, (rows + slots).clamp(max=slots - 1))
    return torch.where((rows >= 0).unsqueeze(-1), taken, before)


def _taken(x: Tensor | PackedSpikes, rows: Tensor) -> Tensor:
    """Of each sample these of its rows ``[L, B]``."""
    steps, batch = x.shape[:2]
    places = (rows * batch + torch.arange(batch, device=rows.device)).flatten()
    if isinstance(x, PackedSpikes):
        words = x.words.flatten(0, 1).index_select(0, places).view(*rows.shape, -1)
        return PackedSpikes(words, (*rows.shape, x.synapses)).dense()
    return x.reshape(steps * batch, -1).index_select(0, places).view(*rows.shape, -1)


def last_spikes_of_each(x: Tensor | PackedSpikes, lengths: Tensor, ring: Ring) -> Tensor:
    """The last spikes of each sample, as :func:`last_rows` has values."""
    slots = len(ring.spikes)
    order = row_slots(ring.spike_pointer, slots, ring.spikes)
    history = flat_record(ring.spikes).index_select(0, order)
    x = x if isinstance(x, PackedSpikes) else x.detach()
    return last_rows(x, lengths, slots, history) != 0
