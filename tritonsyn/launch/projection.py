"""The delayed projection: each connection reads its input some whole steps back."""

import torch
from torch import Tensor

from ..kernels.projection import (
    shift_dot_kernel,
    shift_sum_kernel,
    spike_dot_kernel,
    spike_sum_kernel,
    temporal_gemm_dot_kernel,
    temporal_gemm_kernel,
)
from ..values import PackedSpikes, Slot
from .config import PASSES, config_for
from .launcher import accumulator, launch, packed, tiles
from .scan import transpose_bits


def project(
    sequence: Tensor,
    weight: Tensor,
    back: Tensor,
    steps: int,
    strategy: str,
    precision: str,
    pointer: Slot | None = None,
) -> Tensor:
    rows, batch, _ = sequence.shape
    y = torch.empty((steps, batch, weight.shape[0]), dtype=weight.dtype, device=weight.device)
    if strategy == "gemm" and pointer is None:
        _gemm(sequence, weight, back, y, rows - steps, precision)
    else:
        newest = rows - steps if pointer is None else (pointer - 1) % rows
        _shift_sum(sequence, weight, back, y, newest, ring=pointer is not None)
    return y


def project_input(
    dy: Tensor, weight: Tensor, back: Tensor, rows: int, strategy: str, precision: str
) -> Tensor:
    steps, batch, _ = dy.shape
    size = (rows, batch, weight.shape[1])
    dsequence = torch.empty(size, dtype=weight.dtype, device=weight.device)
    if strategy == "gemm":
        _gemm(dy, weight.t(), back.t(), dsequence, rows - steps, precision, adjoint=True)
    else:
        _shift_sum(dy, weight.t(), back.t(), dsequence, rows - steps, adjoint=True)
    return dsequence


def _shift_sum(
    source: Tensor,
    weight: Tensor,
    back: Tensor,
    out: Tensor,
    first: Slot,
    adjoint: bool = False,
    ring: bool = False,
) -> None:
    """``out [T, B, R]`` from a source ``[rows, B, C]``, connection by connection."""
    (steps, batch, outputs), (rows, _, inputs) = out.shape, source.shape
    # One step reads each line once: a transposed copy would cost more than it saves.
    lines = packed(source).flatten(0, 1).t() if steps == 1 else _lines(source)
    places = steps * batch
    launch(
        shift_sum_kernel,
        lambda config: (tiles(places, config.BLOCK) * tiles(outputs, config.BLOCK_R),),
        *(lines, out, weight, back),
        *(first, outputs, inputs, places, rows * batch, batch, rows),
        *(*lines.stride(), 1, outputs, *weight.stride()),
        ADJOINT=adjoint,
        RING=ring,
        work=(steps, inputs, outputs, places),
        dtype=source.dtype,
    )


def _gemm(
    source: Tensor,
    weight: Tensor,
    back: Tensor,
    out: Tensor,
    first: int,
    precision: str,
    adjoint: bool = False,
) -> None:
    """The same by a matrix product for each delay."""
    (steps, batch, outputs), (rows, _, inputs) = out.shape, source.shape
    slots, places = first + 1, steps * batch
    launch(
        temporal_gemm_kernel,
        lambda config: (tiles(places, config.BLOCK), tiles(outputs, config.BLOCK_R)),
        *(packed(source), out, weight, back),
        *(first, slots, outputs, inputs, places, rows * batch, batch, *weight.stride()),
        ADJOINT=adjoint,
        PRECISION=precision,
        work=(PASSES[precision], slots, inputs, outputs, places),
        dtype=source.dtype,
    )


def _lines(sequence: Tensor) -> Tensor:
    """``[T, B, N]`` as ``[N, T * B]``: a delay is an offset along a line."""
    return packed(sequence.flatten(0, 1).t())


def project_weight(
    dy: Tensor, sequence: Tensor, back: Tensor, strategy: str, precision: str
) -> Tensor:
    (steps, batch, outputs), (rows, _, inputs) = dy.shape, sequence.shape
    places, first = steps * batch, rows - steps
    if strategy == "gemm":
        dweight = torch.empty(back.shape, dtype=dy.dtype, device=dy.device)
        launch(
            temporal_gemm_dot_kernel,
            lambda own: (tiles(outputs, own.BLOCK_R) * tiles(inputs, own.BLOCK_C) * (first + 1),),
            *(packed(dy), packed(sequence), back, dweight),
            *(first, outputs, inputs, places, batch),
            PRECISION=precision,
            work=(PASSES[precision], first + 1, inputs, outputs, places),
            dtype=sequence.dtype,
        )
        return dweight
    lines, dlines = _lines(sequence), _lines(dy)
    work = (inputs, outputs, places)
    config = config_for("shift_dot_kernel", work, sequence.dtype, dy.device)
    share = tiles(tiles(places, config.chunks), config.BLOCK) * config.BLOCK
    partial = torch.empty((config.chunks, *back.shape), dtype=dy.dtype, device=dy.device)
    launch(
        shift_dot_kernel,
        (tiles(outputs, config.BLOCK_R) * tiles(inputs, config.BLOCK_C), config.chunks),
        *(dlines, lines, back, partial),
        *(first, outputs, inputs, places, share, batch, *dlines.stride(), *lines.stride()),
        ACC=accumulator(dy.dtype),
        work=work,
        dtype=sequence.dtype,
        config=config,
    )
    return partial.sum(0)


def project_spikes(spikes: PackedSpikes, weight: Tensor, back: Tensor, slots: int) -> Tensor:
    steps, batch, _ = spikes.shape
    outputs = weight.shape[0]
    v = weight.new_zeros(steps, batch, outputs)
    words = packed(spikes.words)
    work = (steps, slots, batch, outputs)
    config = config_for("spike_sum_kernel", work, weight.dtype, v.device)
    share = tiles(steps, config.chunks)
    # The kernel prefetches a word, which there has to be.
    rows = batch if words.numel() else 0
    launch(
        spike_sum_kernel,
        (rows * tiles(outputs, config.BLOCK), config.chunks),
        *(words, packed(weight.t()), packed(back.t()), v),
        *(steps, share, slots, batch, words.shape[-1], outputs),
        work=work,
        dtype=weight.dtype,
        config=config,
    )
    return v


def project_spikes_weight(dv: Tensor, spikes: PackedSpikes, back: Tensor, slots: int) -> Tensor:
    steps, batch, outputs = dv.shape
    inputs = spikes.synapses
    words = transpose_bits(spikes.words.flatten(0, 1), inputs)
    width = words.shape[1]
    work = (width, inputs, outputs)
    config = config_for("spike_dot_kernel", work, dv.dtype, dv.device)
    partial = torch.empty((config.chunks, inputs, outputs), dtype=dv.dtype, device=dv.device)
    launch(
        spike_dot_kernel,
        (inputs * tiles(outputs, config.BLOCK), config.chunks),
        *(words, packed(dv), packed(back.t()), partial),
        *(width, tiles(width, config.chunks), steps * batch, batch, inputs, outputs),
        ACC=accumulator(dv.dtype),
        work=work,
        dtype=dv.dtype,
        config=config,
    )
    return partial.sum(0).t().contiguous()
