"""The delayed projection: each connection reads its input some whole steps back."""

from typing import Any

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
from .config import PASSES, LaunchConfig, config_for
from .launcher import accumulator, launch, tiles
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
    rows, batch, inputs = sequence.shape
    y = torch.empty((steps, batch, weight.shape[0]), dtype=weight.dtype, device=weight.device)
    first = rows - steps
    if y.numel() == 0 or inputs == 0:
        return y.zero_()
    if strategy == "gemm" and pointer is None:
        _gemm(sequence, weight, back, y, first, first + 1, precision, adjoint=False)
    elif steps == 1:
        # One step reads each line once: a transposed copy would cost more than it saves.
        ring = pointer is not None
        newest = first if pointer is None else (pointer - 1) % rows
        strides = (1, inputs)
        _shift_sum(sequence.contiguous(), strides, weight, back, y, newest, rows, ring=ring)
    else:
        lines = _lines(sequence)
        _shift_sum(lines, (lines.shape[1], 1), weight, back, y, first, rows)
    return y


def project_input(
    dy: Tensor, weight: Tensor, back: Tensor, rows: int, strategy: str, precision: str
) -> Tensor:
    steps, batch, outputs = dy.shape
    size = (rows, batch, weight.shape[1])
    dsequence = torch.empty(size, dtype=weight.dtype, device=weight.device)
    first = rows - steps
    if dsequence.numel() == 0 or dy.numel() == 0:
        return dsequence.zero_()
    if strategy == "gemm":
        dy = dy.contiguous()
        _gemm(dy, weight.t(), back.t(), dsequence, first, first + 1, precision, adjoint=True)
    else:
        lines = _lines(dy)
        strides = (lines.shape[1], 1)
        _shift_sum(lines, strides, weight.t(), back.t(), dsequence, first, steps, adjoint=True)
    return dsequence


def project_weight(
    dy: Tensor, sequence: Tensor, back: Tensor, strategy: str, precision: str
) -> Tensor:
    steps, batch, outputs = dy.shape
    rows, _, inputs = sequence.shape
    places, first = steps * batch, rows - steps
    if dy.numel() == 0 or sequence.numel() == 0:
        return dy.new_zeros(back.shape)
    if strategy == "gemm":
        return _gemm_dot(dy, sequence, back, precision)
    lines, dlines = _lines(sequence), _lines(dy)
    work = (inputs, outputs, places)
    config = config_for("shift_dot_kernel", work, sequence.dtype, dy.device)
    share = tiles(tiles(places, config.chunks), config.BLOCK) * config.BLOCK
    partial = torch.empty((config.chunks, *back.shape), dtype=dy.dtype, device=dy.device)
    grid = (tiles(outputs, config.BLOCK_R) * tiles(inputs, config.BLOCK_C), config.chunks)
    sizes = (first, outputs, inputs, places, share, batch)
    numbers = (*sizes, dlines.shape[1], 1, lines.shape[1], 1)
    options: dict[str, Any] = {"work": work, "dtype": sequence.dtype, "config": config}
    acc = accumulator(dy.dtype)
    launch(shift_dot_kernel, grid, dlines, lines, back, partial, *numbers, ACC=acc, **options)
    return partial.sum(0)


def _gemm_dot(dy: Tensor, sequence: Tensor, back: Tensor, precision: str) -> Tensor:
    """The same by a matrix product for each delay."""
    steps, batch, outputs = dy.shape
    rows, _, inputs = sequence.shape
    places, first = steps * batch, rows - steps
    work = (PASSES[precision], first + 1, inputs, outputs, places)
    dweight = torch.empty(back.shape, dtype=dy.dtype, device=dy.device)

    def grid(config: LaunchConfig) -> tuple[int]:
        return (tiles(outputs, config.BLOCK_R) * tiles(inputs, config.BLOCK_C) * (first + 1),)

    tensors = (dy.contiguous(), sequence.contiguous(), back, dweight)
    sizes = (first, outputs, inputs, places, batch)
    options: dict[str, Any] = {"PRECISION": precision, "work": work, "dtype": sequence.dtype}
    launch(temporal_gemm_dot_kernel, grid, *tensors, *sizes, **options)
    return dweight


def _lines(sequence: Tensor) -> Tensor:
    """``[T, B, N]`` as ``[N, T * B]``: a delay is an offset along a line."""
    return sequence.flatten(0, 1).t().contiguous()


def _shift_sum(
    source: Tensor,
    strides: tuple[int, int],
    weight: Tensor,
    back: Tensor,
    out: Tensor,
    first: Slot,
    rows: int,
    adjoint: bool = False,
    ring: bool = False,
) -> None:
    """``out [T, B, R]`` from a source with these ``strides`` and ``rows`` rows of the batch."""
    steps, batch, outputs = out.shape
    inputs, places = weight.shape[1], steps * batch
    sizes = (first, outputs, inputs, places, rows * batch, batch, rows)
    options: dict[str, Any] = {"ADJOINT": adjoint, "RING": ring}
    options |= {"work": (steps, inputs, outputs, places), "dtype": source.dtype}
    launch(
        shift_sum_kernel,
        lambda config: (tiles(places, config.BLOCK) * tiles(outputs, config.BLOCK_R),),
        *(source, out, weight, back),
        *(*sizes, *strides, 1, outputs, *weight.stride()),
        **options,
    )


def _gemm(
    source: Tensor,
    weight: Tensor,
    back: Tensor,
    out: Tensor,
    first: int,
    slots: int,
    precision: str,
    adjoint: bool,
) -> None:
    """``out [T, B, R]`` from a source ``[rows, B, C]`` by a matrix product for each delay."""
    steps, batch, outputs = out.shape
    inputs, places = weight.shape[1], steps * batch
    work = (PASSES[precision], slots, inputs, outputs, places)
    sizes = (first, slots, outputs, inputs, places, source.shape[0] * batch, batch)
    options: dict[str, Any] = {"ADJOINT": adjoint, "PRECISION": precision}
    options |= {"work": work, "dtype": source.dtype}
    launch(
        temporal_gemm_kernel,
        lambda config: (tiles(places, config.BLOCK), tiles(outputs, config.BLOCK_R)),
        *(source.contiguous(), out, weight, back),
        *(*sizes, *weight.stride()),
        **options,
    )


def project_spikes(spikes: PackedSpikes, weight: Tensor, back: Tensor, slots: int) -> Tensor:
    steps, batch, _ = spikes.shape
    outputs = weight.shape[0]
    v = weight.new_zeros(steps, batch, outputs)
    words = spikes.words.contiguous()
    if v.numel() and words.numel():
        work = (steps, slots, batch, outputs)
        config = config_for("spike_sum_kernel", work, weight.dtype, v.device)
        grid = (batch * tiles(outputs, config.BLOCK), config.chunks)
        tensors = (words, weight.t().contiguous(), back.t().contiguous(), v)
        share = tiles(steps, config.chunks)
        sizes = (steps, share, slots, batch, words.shape[-1], outputs)
        options: dict[str, Any] = {"work": work, "dtype": weight.dtype, "config": config}
        launch(spike_sum_kernel, grid, *tensors, *sizes, **options)
    return v


def project_spikes_weight(dv: Tensor, spikes: PackedSpikes, back: Tensor, slots: int) -> Tensor:
    steps, batch, outputs = dv.shape
    inputs = spikes.synapses
    if dv.numel() == 0 or inputs == 0:
        return dv.new_zeros(back.shape)
    words = transpose_bits(spikes.words.reshape(steps * batch, -1), inputs)
    width = words.shape[1]
    work = (width, inputs, outputs)
    config = config_for("spike_dot_kernel", work, dv.dtype, dv.device)
    partial = torch.empty((config.chunks, inputs, outputs), dtype=dv.dtype, device=dv.device)
    grid = (inputs * tiles(outputs, config.BLOCK), config.chunks)
    tensors = (words, dv.contiguous(), back.t().contiguous(), partial)
    sizes = (width, tiles(width, config.chunks), steps * batch, batch, inputs, outputs)
    options: dict[str, Any] = {
        "work": work,
        "dtype": dv.dtype,
        "config": config,
        "ACC": accumulator(dv.dtype),
    }
    launch(spike_dot_kernel, grid, *tensors, *sizes, **options)
    return partial.sum(0).t().contiguous()
