"""Spikes as bits over time, which a delayed projection sums densely."""

import torch
from torch import Tensor

from ..values import PackedSpikes, SpikeTrains, data_of
from .common import implementation
from .operator import operator


def _like_trains(x, shape, slots, backend):  # type: ignore[no-untyped-def]
    steps, batch, synapses = x.shape if shape is None else shape
    return x.new_empty((batch, synapses, SpikeTrains.width(steps, slots)), dtype=torch.int32)


@operator(_like_trains)
def pack_steps(x: Tensor, shape: list[int] | None, slots: int, backend: str | None) -> Tensor:
    """The words of :class:`SpikeTrains` of ``x [T, B, N]``, or of packed spikes of this shape."""
    spikes = x if shape is None else PackedSpikes(x, tuple(shape))
    return implementation("spikes", x.device, backend).pack_trains(spikes, slots)


def pack_trains(x: Tensor | PackedSpikes, slots: int, *, backend: str | None = None) -> SpikeTrains:
    """Spikes ``[T, B, N]`` as bits over time, to be read up to ``slots - 1`` steps back."""
    shape = list(x.shape) if isinstance(x, PackedSpikes) else None
    return SpikeTrains(pack_steps(data_of(x), shape, slots, backend), tuple(x.shape))
