"""Exponential scans of whole sequences: forward, adjoint, and the gradient of the constants."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..kernels.record import pack_bits_kernel, transpose_bits_kernel
from ..kernels.scan import exp_scan_constants_kernel, exp_scan_kernel
from ..values import PackedSpikes, words_per_row
from .config import LaunchConfig, config_for
from .launcher import launch, tiles

Pair = Sequence[torch.Tensor | None]
_NONE: Pair = (None, None)


def scan(
    x: torch.Tensor | PackedSpikes,
    gain: torch.Tensor,
    decays: Sequence[torch.Tensor],
    initials: Pair,
    keep: int,
    dtype: torch.dtype | None,
) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
    """``C_c[t] = decay_c * C_c[t-1] + gain * x[t]`` for one or two components, T steps at once.

    ``x [T, B, N]`` or packed; ``gain`` and ``decays`` 0-d or ``[N]``; ``initials`` ``[B, N]`` or
    None. Returns the current ``[T, B, N]`` in ``dtype`` (first component, or first minus second;
    None without a ``dtype``) and the last ``keep <= T`` values of each component in the dtype of
    the decays.
    """
    shape = _shape(x)
    carried = decays[0].dtype
    y = None if dtype is None else torch.empty(shape, dtype=dtype, device=x.device)
    tails = [torch.empty((keep, *shape[1:]), dtype=carried, device=x.device) for _ in decays]
    narrower = _narrower(x, dtype or carried)
    config = config_for("exp_scan_kernel", (shape[0], shape[1] * shape[2]), narrower, x.device)
    if math.prod(shape):
        carries = _carries(x, gain, decays, initials, _NONE, keep, config, reverse=False)
        _launch(x, y, tails, carries, _NONE, gain, decays, keep, config, reverse=False)
    return y, tails


def scan_backward(
    dy: torch.Tensor,
    dtails: Pair,
    x: torch.Tensor | PackedSpikes | None,
    gain: torch.Tensor,
    decays: Sequence[torch.Tensor],
    initials: Pair,
    dx_dtype: torch.dtype | None,
    want_initials: bool = True,
) -> tuple[torch.Tensor | None, list[torch.Tensor], list[torch.Tensor]]:
    """Adjoint of :func:`scan`: gradients of the input, of the initials and of the constants.

    ``dtails [keep, B, N]`` or None are the gradients of the last values of the components. With
    ``x`` given, the gradients of the gain and of each decay are returned too, ``[B, N]`` each, to
    be summed over what shares a value. ``dx_dtype`` None: the input's gradient is not wanted;
    without ``want_initials`` theirs are an empty list.
    """
    row, carried = dy.shape[1:], decays[0].dtype
    narrower = _narrower(dy, dx_dtype or dy.dtype)
    config = config_for("exp_scan_kernel", (dy.shape[0], row.numel()), narrower, dy.device)
    if dy.numel() == 0:
        dx = None if dx_dtype is None else dy.new_zeros(dy.shape, dtype=dx_dtype)
        zeros = [dy.new_zeros(row, dtype=carried) for _ in range(1 + len(decays))]
        return dx, zeros[1:] if want_initials else [], [] if x is None else zeros
    dy = dy.contiguous()
    dtails = [None if d is None else d.contiguous() for d in dtails]
    keep = max((d.shape[0] for d in dtails if d is not None), default=0)
    dx = None if dx_dtype is None else dy.new_empty(dy.shape, dtype=dx_dtype)
    dcarries = _carries(dy, None, decays, _NONE, dtails, keep, config, reverse=True)
    size = (config.chunks, *row)
    outs = [torch.empty(size, dtype=carried, device=dy.device) for _ in decays if want_initials]
    if dx is not None or want_initials:
        _launch(dy, dx, dtails, dcarries, outs or _NONE, gain, decays, keep, config, reverse=True)
    signs = (1.0, -1.0)
    dinitials = [out[0] * (d * s) for out, d, s in zip(outs, decays, signs, strict=False)]
    if x is None:
        return dx, dinitials, []
    carries = _carries(x, gain, decays, initials, _NONE, keep, config, reverse=False)
    return dx, dinitials, _constants(dy, dtails, keep, x, gain, decays, carries, dcarries, config)


def _carries(
    x: torch.Tensor | PackedSpikes,
    gain: torch.Tensor | None,
    decays: Sequence[torch.Tensor],
    initials: Pair,
    tails: Pair,
    keep: int,
    config: LaunchConfig,
    reverse: bool,
) -> Pair:
    """What each chunk receives from those before it in its direction, ``[chunks, B, N]``.

    Each chunk runs from zero first; a scan over the chunks, whose decay is that of a whole chunk,
    adds up what they leave. A sequence in one chunk receives its initial state.
    """
    if config.chunks == 1:
        return [None if initial is None else initial.contiguous() for initial in initials]
    steps, *row = _shape(x)
    shape = (config.chunks, *row)
    left = [torch.empty(shape, dtype=decays[0].dtype, device=x.device) for _ in decays]
    _launch(x, None, tails if reverse else _NONE, _NONE, left, gain, decays, keep, config, reverse)
    whole_length = config.with_chunks(1)
    carries: list[torch.Tensor | None] = []
    for out, decay, initial in zip(left, decays, initials, strict=False):
        carry = torch.zeros_like(out)
        if initial is not None:
            carry[0] = initial
        source, target = (out[1:], carry[:-1]) if reverse else (out[:-1], carry[1:])
        power = decay ** _chunk_length(steps, config)
        # Where it vanishes though no step's does, an infinite carry would become NaN.
        least = power.abs().clamp(min=torch.finfo(decay.dtype).tiny).copysign(power)
        whole = [torch.where(decay != 0, least, power)]
        first = [None if initial is None else initial.contiguous()]
        _launch(source, target, _NONE, first, _NONE, None, whole, 0, whole_length, reverse)
        carries.append(carry)
    return carries


def _constants(
    dy: torch.Tensor,
    dtails: Pair,
    keep: int,
    x: torch.Tensor | PackedSpikes,
    gain: torch.Tensor,
    decays: Sequence[torch.Tensor],
    carries: Pair,
    dcarries: Pair,
    config: LaunchConfig,
) -> list[torch.Tensor]:
    """Gradients of the gain and of each decay, ``[B, N]``: partials of the chunks and their sum."""
    shape = (config.chunks, *dy.shape[1:])
    dgain, *ddecays = (
        torch.empty(shape, dtype=decays[0].dtype, device=dy.device) for _ in (gain, *decays)
    )
    data, arguments, flags = _arguments(x, gain, decays)
    work = (dy.shape[0], dy[0].numel())
    # The chunks are those of the scans that made the carries.
    launch(
        exp_scan_constants_kernel, lambda own: (tiles(work[1], own.BLOCK), config.chunks),
        data, dy, dtails[0], dtails[-1],
        carries[0], carries[-1], dcarries[0], dcarries[-1],
        ddecays[0], ddecays[-1], dgain,
        *arguments["coefficients"],
        dy.shape[0], _chunk_length(dy.shape[0], config), keep, *arguments["sizes"],
        **flags, work=work, dtype=_narrower(x, dy.dtype),
    )  # fmt: skip
    return [partial.sum(0) for partial in (dgain, *ddecays)]


def _launch(
    x: torch.Tensor | PackedSpikes,
    y: torch.Tensor | None,
    tails: Pair,
    carry_in: Pair,
    carry_out: Pair,
    gain: torch.Tensor | None,
    decays: Sequence[torch.Tensor],
    keep: int,
    config: LaunchConfig,
    reverse: bool,
) -> None:
    steps, *row = _shape(x)
    data, arguments, flags = _arguments(x, gain, decays)
    work = (steps, row[0] * row[1])
    grid = (tiles(work[1], config.BLOCK), config.chunks)
    launch(
        exp_scan_kernel, grid,
        data, y, tails[0], tails[-1],
        carry_in[0], carry_in[-1], carry_out[0], carry_out[-1],
        *arguments["coefficients"],
        steps, _chunk_length(steps, config), keep, *arguments["sizes"],
        REVERSE=reverse, **flags,
        work=work, dtype=_narrower(x, decays[0].dtype if y is None else y.dtype), config=config,
    )  # fmt: skip


def _arguments(
    x: torch.Tensor | PackedSpikes, gain: torch.Tensor | None, decays: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, dict[str, Any], dict[str, Any]]:
    """The input's data, the coefficients and sizes, and the flags, as the kernels take them."""
    _, batch, synapses = _shape(x)
    packed = isinstance(x, PackedSpikes)
    coefficients = [gain, decays[0], decays[-1]]
    names = ("GAIN_PER_SYNAPSE", "DECAY_PER_SYNAPSE", "RISE_PER_SYNAPSE")
    flags = {n: c is not None and c.ndim > 0 for n, c in zip(names, coefficients, strict=True)}
    flags |= {"DOUBLE": len(decays) == 2, "PACKED": packed}
    arguments = {
        "coefficients": [None if c is None else c.contiguous() for c in coefficients],
        "sizes": (batch * synapses, synapses, words_per_row(synapses)),
    }
    data = x.words if isinstance(x, PackedSpikes) else x
    return data.contiguous(), arguments, flags


def _shape(x: torch.Tensor | PackedSpikes) -> tuple[int, int, int]:
    """``(T, B, N)`` of values or bits."""
    if isinstance(x, PackedSpikes):
        return x.shape[0], x.shape[1], x.synapses
    steps, batch, synapses = x.shape
    return steps, batch, synapses


def _narrower(x: torch.Tensor | PackedSpikes, dtype: torch.dtype) -> torch.dtype:
    """The dtype that tiles must suit: half precision, unless the arithmetic is double."""
    data = x.words if isinstance(x, PackedSpikes) else x
    halves = [d for d in (data.dtype, dtype) if d in (torch.float16, torch.bfloat16)]
    return halves[0] if halves and torch.float64 not in (data.dtype, dtype) else dtype


def _chunk_length(steps: int, config: LaunchConfig) -> int:
    return tiles(steps, config.chunks)


def pack(x: torch.Tensor) -> torch.Tensor:
    """``x [rows, N] != 0`` as int32 words ``[rows, ceil(N / 32)]``, bit ``n % 32`` of
    word ``n // 32``.
    """
    rows, synapses = x.shape
    width = words_per_row(synapses)
    words = torch.empty((rows, width), dtype=torch.int32, device=x.device)
    if words.numel():
        launch(
            pack_bits_kernel, lambda config: (tiles(words.numel(), config.BLOCK),),
            x.contiguous(), words, rows, synapses, width,
            work=(words.numel(),), dtype=x.dtype,
        )  # fmt: skip
    return words


def transpose_bits(words: torch.Tensor, synapses: int) -> torch.Tensor:
    """What :func:`pack` makes of the rows ``[rows, N]`` in ``words``, of their columns
    ``[N, rows]``.
    """
    rows, width = words.shape
    high = words_per_row(rows)
    turned = torch.empty((synapses, high), dtype=torch.int32, device=words.device)
    if turned.numel():
        launch(
            transpose_bits_kernel, lambda config: (tiles(high, config.BLOCK) * width,),
            words.contiguous(), turned, rows, synapses, width, high,
            work=(width, high), dtype=words.dtype,
        )  # fmt: skip
    return turned
