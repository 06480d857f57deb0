"""Spikes as bits, 32 a word: a thirty-second of what float32 spikes would move."""

import math
from typing import NamedTuple

import torch

WORD = 32
"""Spikes in a word."""


class PackedSpikes(NamedTuple):
    """Spikes ``[T, B, *shape]`` as bits; made by :func:`tritonsyn.functional.pack_spikes`."""

    words: torch.Tensor
    """``[T, B, ceil(N / 32)]`` int32: bit ``n % 32`` of word ``n // 32`` is synapse n's spike."""
    shape: tuple[int, ...]
    """``(T, B, *shape)``."""

    @property
    def synapses(self) -> int:
        """Number of synapses N in a row of the batch."""
        return math.prod(self.shape[2:])

    @property
    def device(self) -> torch.device:
        """Where the words are."""
        return self.words.device


def words_per_row(synapses: int) -> int:
    """Words that hold the spikes of one row of the batch."""
    return -(-synapses // WORD)


def unpack_bits(words: torch.Tensor, synapses: int) -> torch.Tensor:
    """The spikes in words ``[..., ceil(N / 32)]``: bool ``[..., N]``."""
    place = torch.arange(WORD, dtype=torch.int32, device=words.device)
    bits = (words.unsqueeze(-1) >> place) & 1
    return bits.flatten(-2)[..., :synapses].bool()
