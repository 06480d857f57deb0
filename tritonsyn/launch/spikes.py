"""The delayed projection of spikes, which are one bit each."""

from dataclasses import replace

import torch
from torch import Tensor

from ..kernels.spikes import (
    bit_dot_kernel,
    bit_sum_kernel,
    pack_trains_kernel,
    spike_dot_kernel,
    spike_sum_kernel,
)
from ..values import WORD, PackedSpikes, SpikeTrains, data_of, words_per_row
from .config import LaunchConfig, config_for
from .launcher import accumulator, launch, packed, sum_of_parts, tiles
from .lines import table
from .scan import transpose_bits

Spikes = PackedSpikes | SpikeTrains


def pack_trains(x: Tensor | PackedSpikes, slots: int) -> Tensor:
    steps, batch, synapses = x.shape
    width = SpikeTrains.width(steps, slots)
    size = SpikeTrains.size(x.shape, slots)
    words = torch.empty(size, dtype=torch.int32, device=x.device)
    if not batch * synapses:
        return words.zero_()
    launch(
        pack_trains_kernel,
        lambda config: (tiles(synapses, config.BLOCK) * width * batch,),
        *(packed(data_of(x)), words, steps, batch, synapses),
        *(words_per_row(synapses), width, SpikeTrains.lead(slots)),
        PACKED=isinstance(x, PackedSpikes),
        work=(batch * width, synapses),
        dtype=data_of(x).dtype,
    )
    return words


def project_spikes(spikes: Spikes, weight: Tensor, back: Tensor, slots: int) -> Tensor:
    if isinstance(spikes, SpikeTrains):
        return _bits(spikes, weight, back, slots)
    return _walk(spikes, weight, back, slots)


def project_spikes_weight(dv: Tensor, spikes: Spikes, back: Tensor, slots: int) -> Tensor:
    if isinstance(spikes, SpikeTrains):
        return _bits_weight(dv, spikes, back, slots)
    return _walk_weight(dv, spikes, back, slots)


def _bits(trains: SpikeTrains, weight: Tensor, back: Tensor, slots: int) -> Tensor:
    steps, batch, inputs = trains.shape
    outputs = weight.shape[0]
    v = torch.empty((steps, batch, outputs), dtype=weight.dtype, device=weight.device)
    if not inputs:
        return v.zero_()
    weights, backs = table(weight, back, slots)
    work, width = (steps, batch, outputs), trains.width(steps, slots)
    config = _counting(config_for("bit_sum_kernel", work, v.dtype, v.device), width)
    groups = tiles(tiles(batch, config.BLOCK_R) * outputs, config.BLOCK)
    launch(
        bit_sum_kernel,
        (groups * tiles(steps, config.UNROLL),),
        *(packed(trains.words), weights, backs, v),
        *(steps, WORD * trains.lead(slots), batch, width, inputs, outputs, weights.shape[1]),
        work=work,
        dtype=weight.dtype,
        config=config,
    )
    return v


def _counting(config: LaunchConfig, width: int) -> LaunchConfig:
    """Settings with so few inputs of a turn that 32 bits count the bits of their rows."""
    most = max((2**31 - 1) // (WORD * width), 1)
    return replace(config, BLOCK_C=min(config.BLOCK_C, 1 << (most.bit_length() - 1)))


def _bits_weight(dv: Tensor, trains: SpikeTrains, back: Tensor, slots: int) -> Tensor:
    steps, batch, outputs = dv.shape
    inputs = trains.shape[-1]
    work = (steps, batch, inputs, outputs)
    width = trains.width(steps, slots)
    config = _counting(config_for("bit_dot_kernel", work, dv.dtype, dv.device), width)
    config = replace(config, UNROLL=min(config.UNROLL, steps))
    share = tiles(tiles(steps, config.UNROLL) * batch, config.chunks)
    partial = torch.empty((config.chunks, *back.shape), dtype=dv.dtype, device=dv.device)
    launch(
        bit_dot_kernel,
        (tiles(tiles(inputs, config.BLOCK_C) * outputs, config.BLOCK), config.chunks),
        *(packed(trains.words), packed(dv), packed(back), partial),
        *(steps, WORD * trains.lead(slots), share, batch, width, inputs, outputs),
        work=work,
        dtype=dv.dtype,
        config=config,
    )
    return sum_of_parts(partial)


def _walk(spikes: PackedSpikes, weight: Tensor, back: Tensor, slots: int) -> Tensor:
    (steps, batch, _), (outputs, inputs) = spikes.shape, weight.shape
    v = torch.empty((steps, batch, outputs), dtype=weight.dtype, device=weight.device)
    if not inputs:
        return v.zero_()
    weights, backs = table(weight, back, slots)
    words = packed(spikes.words)
    work = (steps, slots, batch, outputs)
    config = config_for("spike_sum_kernel", work, weight.dtype, v.device)
    share = tiles(steps, config.chunks)
    launch(
        spike_sum_kernel,
        (batch * tiles(outputs, config.BLOCK), config.chunks),
        *(words, weights, backs, v),
        *(steps, share, slots, batch, words.shape[-1], outputs, weights.shape[1]),
        work=work,
        dtype=weight.dtype,
        config=config,
    )
    return v


def _walk_weight(dv: Tensor, spikes: PackedSpikes, back: Tensor, slots: int) -> Tensor:
    steps, batch, outputs = dv.shape
    inputs = spikes.synapses
    words = transpose_bits(spikes.words.flatten(0, 1), inputs)
    width = words.shape[1]
    work = (width, inputs, outputs)
    config = config_for("spike_dot_kernel", work, dv.dtype, dv.device)
    partial = torch.empty((config.chunks, *back.shape), dtype=dv.dtype, device=dv.device)
    launch(
        spike_dot_kernel,
        (inputs * tiles(outputs, config.BLOCK), config.chunks),
        *(words, packed(dv), packed(back), partial),
        *(width, tiles(width, config.chunks), steps * batch, batch, inputs, outputs),
        ACC=accumulator(dv.dtype),
        work=work,
        dtype=dv.dtype,
        config=config,
    )
    return sum_of_parts(partial)
