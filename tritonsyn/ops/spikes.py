"""Spikes as bits over time, which a delayed projection sums densely."""

import torch
from torch import Tensor

from ..values import PackedSpikes, SpikeTrains
from .common import implementation
from .operator import operator
from .scan import parts_of, sequence_of


def _like_trains(x, shape, slots, backend):  # type: ignore[no-untyped-def]
    size = SpikeTrains.size(x.shape if shape is None else shape, slots)
    return x.new_empty(size, dtype=torch.int32)


@operator(_like_trains)
def pack_steps(x: Tensor, shape: list[int] | None, slots: int, backend: str | None) -> Tensor:
    """The words of :class:`SpikeTrains` of ``x [T, B, N]``, or of packed spikes of this shape."""
    module = implementation("spikes", x.device, backend)
    return module.pack_trains(sequence_of(x, shape), slots)


def pack_trains(x: Tensor | PackedSpikes, slots: int, *, backend: str | None = None) -> SpikeTrains:
    """Spikes ``[T, B, N]`` as bits over time, to be read up to ``slots - 1`` steps back."""
    return SpikeTrains(pack_steps(*parts_of(x), slots, backend), tuple(x.shape))
