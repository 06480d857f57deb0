"""Exponential scans of whole sequences: forward, adjoint, and the gradient of the constants."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels.record import pack_bits_kernel, transpose_bits_kernel
from ..kernels.scan import exp_scan_constants_kernel, exp_scan_kernel
from ..values import Dynamics, PackedSpikes, data_of, words_per_row
from .config import LaunchConfig, config_for
from .launcher import both, constant_arguments, covering, launch, tiles

Pair = Sequence[Tensor | None]


def scan(
    x: Tensor | PackedSpikes,
    dynamics: Dynamics,
    initials: Pair,
    last: int,
    dtype: torch.dtype | None,
) -> tuple[Tensor | None, list[Tensor]]:
    shape = _shape(x)
    carried = dynamics.gain.dtype
    y = None if dtype is None else torch.empty(shape, dtype=dtype, device=x.device)
    tails = [
        torch.empty((last, *shape[1:]), dtype=carried, device=x.device)
        for _ in range(dynamics.states)
    ]
    narrower = _narrower(x, dtype or carried)
    config = config_for("exp_scan_kernel", (shape[0], shape[1] * shape[2]), narrower, x.device)
    if math.prod(shape):
        carries = _carries(x, dynamics, initials, (), last, config, reverse=False)
        _launch(x, y, tails, carries, (), dynamics, last, config, reverse=False)
    return y, tails


def scan_backward(
    dy: Tensor,
    dtails: Pair,
    x: Tensor | PackedSpikes | None,
    dynamics: Dynamics,
    initials: Pair,
    dx_dtype: torch.dtype | None,
    want_initials: bool = True,
) -> tuple[Tensor | None, list[Tensor], list[Tensor]]:
    row, carried = dy.shape[1:], dynamics.gain.dtype
    narrower = _narrower(dy, dx_dtype or dy.dtype)
    config = config_for("exp_scan_kernel", (dy.shape[0], row.numel()), narrower, dy.device)
    if dy.numel() == 0:
        dx = None if dx_dtype is None else dy.new_zeros(dy.shape, dtype=dx_dtype)
        zeros = dy.new_zeros(row, dtype=carried)
        dinitials = [zeros.clone() for _ in range(dynamics.states)]
        constants = [] if x is None else [zeros.clone() for _ in dynamics.constants]
        return dx, dinitials if want_initials else [], constants
    dy = dy.contiguous()
    dtails = [None if d is None else d.contiguous() for d in dtails]
    last = max((d.shape[0] for d in dtails if d is not None), default=0)
    dx = None if dx_dtype is None else dy.new_empty(dy.shape, dtype=dx_dtype)
    dcarries = _carries(dy, dynamics, (), dtails, last, config, reverse=True)
    size = (config.chunks, *row)
    states = range(dynamics.states if want_initials else 0)
    outs = [torch.empty(size, dtype=carried, device=dy.device) for _ in states]
    if dx is not None or want_initials:
        _launch(dy, dx, dtails, dcarries, outs, dynamics, last, config, reverse=True)
    dinitials = _before_first([out[0] for out in outs], dynamics)
    if x is None:
        return dx, dinitials, []
    carries = _carries(x, dynamics, initials, (), last, config, reverse=False)
    return dx, dinitials, _constants(dy, dtails, last, x, dynamics, carries, dcarries, config)


def _before_first(zs: Sequence[Tensor], dynamics: Dynamics) -> list[Tensor]:
    """Gradients of the initial states from the adjoints that the kernel carries out."""
    if dynamics.coupling is not None and zs:
        decay = dynamics.decay(0)
        return [decay * (zs[0] + dynamics.coupling * zs[1]), decay * zs[1]]
    # The second of two is carried with its sign turned.
    signs = (1.0, -1.0)
    return [z * (d * s) for z, d, s in zip(zs, dynamics.decays, signs, strict=False)]


def _carries(
    x: Tensor | PackedSpikes,
    dynamics: Dynamics,
    initials: Pair,
    tails: Pair,
    last: int,
    config: LaunchConfig,
    reverse: bool,
) -> Pair:
    """The state that enters each chunk in the direction of the scan, ``[chunks, B, N]``.

    Each chunk runs from zero first; a scan over the chunks, whose decay is that of a whole chunk,
    adds up what they leave. A sequence in one chunk receives its initial state.
    """
    initials = [None if initial is None else initial.contiguous() for initial in initials]
    if config.chunks == 1:
        return initials
    steps, *row = _shape(x)
    shape, carried = (config.chunks, *row), dynamics.gain.dtype
    left = [torch.empty(shape, dtype=carried, device=x.device) for _ in range(dynamics.states)]
    given = tails if reverse else ()
    _launch(x, None, given, (), left, dynamics, last, config, reverse)
    length = _chunk_length(steps, config)
    carries: list[Tensor | None] = [None] * dynamics.states
    # Of two coupled states one feeds the other: it comes first, and backward that is the second.
    order = range(dynamics.states)
    coupled = dynamics.coupling is not None
    for place in reversed(order) if coupled and reverse else order:
        feeding = carries[1 - place] if coupled else None
        whole = _power(dynamics.decay(place), length)
        carry = torch.zeros_like(left[place])
        initial = initials[place] if initials else None
        if initial is not None:
            carry[0] = initial
        source, target, fed = left[place][:-1], carry[1:], slice(-1)
        if reverse:
            source, target, fed = left[place][1:], carry[:-1], slice(1, None)
        if feeding is not None and dynamics.coupling is not None:
            source = torch.addcmul(source, feeding[fed], whole * (length * dynamics.coupling))
        among = Dynamics(whole.new_ones(()), (whole,))
        whole_length = config.with_chunks(1)
        _launch(source, target, (), [initial], (), among, 0, whole_length, reverse)
        carries[place] = carry
    return carries


def _power(decay: Tensor, length: int) -> Tensor:
    """The decay of a whole chunk; 0 only where that of a step is.

    If it underflowed to 0 where the decay of a step is not 0, an infinite carry would become NaN.
    """
    power = decay**length
    least = power.abs().clamp(min=torch.finfo(decay.dtype).tiny).copysign(power)
    return torch.where(decay != 0, least, power)


def _constants(
    dy: Tensor,
    dtails: Pair,
    last: int,
    x: Tensor | PackedSpikes,
    dynamics: Dynamics,
    carries: Pair,
    dcarries: Pair,
    config: LaunchConfig,
) -> list[Tensor]:
    """Gradients of the constants, ``[B, N]``: partials of the chunks and their sum."""
    shape, carried = (config.chunks, *dy.shape[1:]), dynamics.gain.dtype
    dgain, *others = (
        torch.empty(shape, dtype=carried, device=dy.device) for _ in dynamics.constants
    )
    data, constants, sizes, flags = _arguments(x, dynamics)
    work = (dy.shape[0], dy[0].numel())
    given = (data, dy, *both(dtails), *both(carries), *both(dcarries))
    numbers = (dy.shape[0], _chunk_length(dy.shape[0], config), last, *sizes)
    launch(
        exp_scan_constants_kernel,
        # The chunks are those of the scans that made the carries.
        lambda own: (tiles(work[1], own.BLOCK), config.chunks),
        *(*given, *both(others), dgain, *constants, *numbers),
        **{**flags, "work": work, "dtype": _narrower(x, dy.dtype)},
    )
    return [partial.sum(0) for partial in (dgain, *others)]


def _launch(
    x: Tensor | PackedSpikes,
    y: Tensor | None,
    tails: Pair,
    carry_in: Pair,
    carry_out: Pair,
    dynamics: Dynamics,
    last: int,
    config: LaunchConfig,
    reverse: bool,
) -> None:
    steps, *row = _shape(x)
    data, constants, sizes, flags = _arguments(x, dynamics)
    work = (steps, row[0] * row[1])
    dtype = _narrower(x, dynamics.gain.dtype if y is None else y.dtype)
    grid = (tiles(work[1], config.BLOCK), config.chunks)
    tensors = (data, y, *both(tails), *both(carry_in), *both(carry_out), *constants)
    numbers = (steps, _chunk_length(steps, config), last, *sizes)
    options = {**flags, "REVERSE": reverse, "work": work, "dtype": dtype, "config": config}
    launch(exp_scan_kernel, grid, *tensors, *numbers, **options)


def _arguments(
    x: Tensor | PackedSpikes, dynamics: Dynamics
) -> tuple[Tensor, list[Tensor | None], tuple[int, ...], dict[str, Any]]:
    """The input's data, the constants, the sizes, and the flags, as the kernels take them."""
    _, batch, synapses = _shape(x)
    constants, flags = constant_arguments(dynamics)
    flags["PACKED"] = isinstance(x, PackedSpikes)
    sizes = (batch * synapses, synapses, words_per_row(synapses))
    return data_of(x).contiguous(), constants, sizes, flags


def _shape(x: Tensor | PackedSpikes) -> tuple[int, int, int]:
    """``(T, B, N)`` of values or bits."""
    return x.shape[0], x.shape[1], math.prod(x.shape[2:])


def _narrower(x: Tensor | PackedSpikes, dtype: torch.dtype) -> torch.dtype:
    """The dtype that tiles must suit: half precision, unless the arithmetic is double."""
    given = data_of(x).dtype
    halves = [d for d in (given, dtype) if d in (torch.float16, torch.bfloat16)]
    return halves[0] if halves and torch.float64 not in (given, dtype) else dtype


def _chunk_length(steps: int, config: LaunchConfig) -> int:
    return tiles(steps, config.chunks)


def pack(x: Tensor) -> Tensor:
    rows, synapses = x.shape
    width = words_per_row(synapses)
    words = torch.empty((rows, width), dtype=torch.int32, device=x.device)
    if words.numel():
        arguments = (x.contiguous(), words, rows, synapses, width)
        size = words.numel()
        launch(pack_bits_kernel, covering(size), *arguments, work=(size,), dtype=x.dtype)
    return words


def transpose_bits(words: Tensor, synapses: int) -> Tensor:
    rows, width = words.shape
    high = words_per_row(rows)
    turned = torch.empty((synapses, high), dtype=torch.int32, device=words.device)
    if turned.numel():
        arguments = (words.contiguous(), turned, rows, synapses, width, high)
        grid, work = covering(high, width), (width, high)
        launch(transpose_bits_kernel, grid, *arguments, work=work, dtype=words.dtype)
    return turned
