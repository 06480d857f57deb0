"""Exponential scans of whole sequences: forward, adjoint, and the gradient of the constants."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..kernels.record import pack_bits_kernel, transpose_bits_kernel
from ..kernels.scan import (
    exp_scan_backward_kernel,
    exp_scan_carry_kernel,
    exp_scan_constants_kernel,
    exp_scan_kernel,
)
from ..values import WORD, Dynamics, PackedSpikes, Ring, Slot, data_of, words_per_row
from .config import LaunchConfig, Work, config_for
from .launcher import (
    Launch,
    both,
    constant_arguments,
    covering,
    launch,
    launch_of,
    packed,
    repeated,
    run,
    tiles,
)

Pair = Sequence[Tensor | None]
Input = Tensor | PackedSpikes


class _Walk(NamedTuple):
    """What the launches of one scan share."""

    dynamics: Dynamics
    last: int
    """How many values of each state are kept."""
    config: LaunchConfig


def scan(
    x: Input, dynamics: Dynamics, initials: Pair, last: int, dtype: torch.dtype | None
) -> tuple[Tensor | None, list[Tensor]]:
    y = None if dtype is None else torch.empty(x.shape, dtype=dtype, device=x.device)
    tails = _for_each(range(dynamics.states), last, x, dynamics)
    walk = _Walk(dynamics, last, _config(x, dtype or dynamics.gain.dtype))
    _launch(x, y, tails, _carries(x, initials, (), walk, reverse=False), (), walk, reverse=False)
    return y, tails


def scan_ring(
    x: Input, ring: Ring, dynamics: Dynamics, dtype: torch.dtype | None, lines: Tensor | None = None
) -> Tensor | None:
    y = lines
    if lines is None and dtype is not None:
        y = torch.empty(x.shape, dtype=dtype, device=x.device)
    last, chosen = min(x.shape[0], len(ring.spikes)), _config(x, ring.components[0].dtype)
    walk = _Walk(dynamics, last, chosen if lines is None else _in_lines(chosen))
    carries: Pair = ()
    if chosen.chunks > 1:
        carries = _carries(x, _present(ring), (), walk, reverse=False)
    in_lines = lines is not None
    _launch(x, y, ring.components, carries, (), walk, False, ring, in_lines)
    return None if in_lines else y


def scan_ring_again(
    x: Tensor, ring: Ring, dynamics: Dynamics, dtype: torch.dtype
) -> Callable[[Tensor, Sequence[Slot]], Tensor] | None:
    config = _config(x, ring.components[0].dtype)
    if config.chunks > 1:
        return None
    walk = _Walk(dynamics, min(x.shape[0], len(ring.spikes)), config)
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    made = _made(x, y, ring.components, (), (), walk, False, ring)
    again, double = repeated(made), dynamics.states == 2
    tensors, numbers = made.arguments[2:16], made.arguments[19:]

    def scan(x: Tensor, slots: Sequence[Slot]) -> Tensor:
        y = torch.empty_like(x, dtype=dtype)
        again(x, y, *tensors, slots[0], slots[1] if double else None, slots[-1], *numbers)
        return y

    return scan


def _present(ring: Ring) -> Pair:
    """The newest value of each state, where it is kept if the host knows the place."""
    if ring.carries:
        return ring.carries
    pairs = list(zip(ring.components, ring.pointers, strict=True))
    return [
        record.index_select(0, (pointer.view(1) - 1) % len(record))[0]
        if isinstance(pointer, Tensor)
        else record[pointer - 1]
        for record, pointer in pairs
    ]


def scan_backward(
    dy: Tensor,
    dtails: Pair,
    x: Input | None,
    dynamics: Dynamics,
    initials: Pair,
    dx_dtype: torch.dtype | None,
    want_initials: bool = True,
) -> tuple[Tensor | None, list[Tensor], Tensor | None]:
    dy = packed(dy)
    dtails = [None if d is None else packed(d) for d in dtails]
    last = max((d.shape[0] for d in dtails if d is not None), default=0)
    walk = _Walk(dynamics, last, _config(dy, dx_dtype or dy.dtype))
    dx = None if dx_dtype is None else torch.empty(dy.shape, dtype=dx_dtype, device=dy.device)
    given = _Given(dy, dtails, x, initials)
    if dynamics.states == 1:
        return dx, *_single(given, dx, walk, want_initials)
    dcarries = _carries(dy, (), dtails, walk, reverse=True)
    outs = _for_each(range(2 * want_initials), walk.config.chunks, dy, dynamics)
    if dx is not None or want_initials:
        _launch(dy, dx, dtails, dcarries, outs, walk, reverse=True)
    dinitials = _before_first([out[0] for out in outs], dynamics)
    return dx, dinitials, None if x is None else _constants(given, dcarries, walk)


class _Given(NamedTuple):
    """What gradients are computed from, besides the constants."""

    dy: Tensor
    dtails: Pair
    x: Input | None
    initials: Pair


def _single(
    given: _Given, dx: Tensor | None, walk: _Walk, want_initials: bool
) -> tuple[list[Tensor], Tensor | None]:
    """All gradients of a single state in one launch; that to the input is written to ``dx``."""
    dy, (dtail,), x, (initial, *_) = given
    data, (gain, decay, *_), numbers, options = _arguments(dy if x is None else x, dy.dtype, walk)
    work, dtype = options["work"], _narrower(dy, dy.dtype if dx is None else dx.dtype)
    config = config_for("exp_scan_backward_kernel", work, dtype, dy.device)
    grid = tiles(work[-1], config.BLOCK), walk.config.chunks
    dinitials = _for_each(range(want_initials), 1, dy, walk.dynamics)
    parts = None if x is None else _parts(dy, grid, walk.dynamics)
    launch(
        exp_scan_backward_kernel,
        grid,
        *(dy, dtail, None if x is None else data, None if initial is None else packed(initial)),
        *(*_adjoint_carries(dy, dtail, x is not None, walk), dx, both(dinitials)[0]),
        *(parts, gain, decay, *numbers),
        EVEN=work[-1] % config.BLOCK == 0,
        work=work,
        dtype=dtype,
        config=config,
        **{name: options[name] for name in ("PACKED", "GAIN_PER_SYNAPSE", "DECAY_PER_SYNAPSE")},
    )
    return [d[0] for d in dinitials], None if parts is None else parts.sum(1)


def _adjoint_carries(
    dy: Tensor, dtail: Tensor | None, learned: bool, walk: _Walk
) -> tuple[Tensor | None, Tensor | None]:
    """The adjoint that enters each chunk, and, for the gradients of constants, its decayed sum.

    That is the adjoint of an alpha synapse with a coupling of 1.
    """
    if walk.config.chunks == 1:
        return None, None
    if not learned:
        (carry,) = _carries(dy, (), [dtail], walk, reverse=True)
        return carry, None
    gain, decay = walk.dynamics.constants
    coupled = walk._replace(dynamics=Dynamics(gain, (decay,), gain.new_ones(())))
    total, carry = _carries(dy, (), [None, dtail], coupled, reverse=True)
    return carry, total


def _parts(dy: Tensor, grid: tuple[int, int], dynamics: Dynamics) -> Tensor:
    """Room for the parts of the constants' gradients, ``[constants, parts]`` or ``[.., parts, N]``.

    A program's sums, or, if any constant has a value for each synapse, a chunk's of each element.
    """
    programs, chunks = grid
    count, batch, synapses = len(dynamics.constants), *dy.shape[1:]
    each = any(constant.ndim for constant in dynamics.constants)
    shape = (count, chunks * batch, synapses) if each else (count, chunks * programs)
    return torch.empty(shape, dtype=dynamics.gain.dtype, device=dy.device)


def scan_lines(x: Input, y: Tensor, dynamics: Dynamics, initials: Pair, last: int) -> list[Tensor]:
    tails = _for_each(range(dynamics.states), last, x, dynamics)
    walk = _Walk(dynamics, last, _in_lines(_config(x, y.dtype)))
    carries = _carries(x, initials, (), walk, reverse=False)
    _launch(x, y, tails, carries, (), walk, reverse=False, in_lines=True)
    return tails


def _in_lines(config: LaunchConfig) -> LaunchConfig:
    """One element of a thread: several are no neighbours, so that nothing is gained by width."""
    return replace(config, BLOCK=32, num_warps=1)


def _before_first(zs: Sequence[Tensor], dynamics: Dynamics) -> list[Tensor]:
    """Gradients of the initial states from the adjoints that the kernel carries out."""
    if dynamics.coupling is not None and zs:
        decay = dynamics.decay(0)
        return [decay * (zs[0] + dynamics.coupling * zs[1]), decay * zs[1]]
    # The second of two is carried with its sign turned.
    signs = (1.0, -1.0)
    return [z * (d * s) for z, d, s in zip(zs, dynamics.decays, signs, strict=False)]


def _carries(x: Input, initials: Pair, tails: Pair, walk: _Walk, reverse: bool) -> Pair:
    """The state that enters each chunk in the direction of the scan, ``[chunks, B, N]``.

    Each chunk runs from zero first; a walk over the chunks, with the decay of a whole chunk, adds
    up what they leave. A sequence in one chunk receives its initial state.
    """
    initials = [None if initial is None else packed(initial) for initial in initials]
    dynamics, _, config = walk
    if config.chunks == 1:
        return initials
    states = range(dynamics.states)
    left, carries = (_for_each(states, config.chunks, x, dynamics) for _ in range(2))
    _launch(x, None, tails, (), left, walk if reverse else walk._replace(last=0), reverse)
    steps, batch, synapses = x.shape
    (_, *constants), flags = constant_arguments(dynamics)
    del flags["GAIN_PER_SYNAPSE"]
    size = batch * synapses
    launch(
        exp_scan_carry_kernel,
        covering(size),
        *(*both(left), *both(initials), *both(carries), *constants),
        *(tiles(steps, config.chunks), config.chunks, size, synapses),
        REVERSE=reverse,
        work=(config.chunks, size),
        dtype=dynamics.gain.dtype,
        **flags,
    )
    return carries


def _constants(given: _Given, dcarries: Pair, walk: _Walk) -> Tensor:
    """Gradients of the constants of two states, forward in time."""
    dy, dtails, x, initials = given
    assert x is not None
    data, constants, numbers, options = _arguments(x, dy.dtype, walk)
    work = options["work"]
    config = config_for("exp_scan_constants_kernel", work, options["dtype"], dy.device)
    grid = tiles(work[-1], config.BLOCK), walk.config.chunks  # of the scans that made the carries
    parts = _parts(dy, grid, walk.dynamics)
    launch(
        exp_scan_constants_kernel,
        grid,
        *(data, dy, *both(dtails), *both(_carries(x, initials, (), walk, reverse=False))),
        *(*both(dcarries), parts, *constants, *numbers),
        config=config,
        **{name: value for name, value in options.items() if name != "DOUBLE"},
    )
    return parts.sum(1)


def _launch(*operands: Any, **how: Any) -> None:
    run(_made(*operands, **how))


def _made(
    x: Input,
    y: Tensor | None,
    tails: Pair,
    carry_in: Pair,
    carry_out: Pair,
    walk: _Walk,
    reverse: bool,
    ring: Ring | None = None,
    in_lines: bool = False,
) -> Launch:
    dtype, config = walk.dynamics.gain.dtype if y is None else y.dtype, walk.config
    data, constants, numbers, options = _arguments(x, dtype, walk)
    kept: tuple[Tensor | None, ...] = (None,) * 4
    slots: tuple[Slot | None, ...] = (None, None, None, 0)
    if ring is not None:
        kept = ring.spikes, *both(ring.carries or ()), ring.arrivals
        slots = *both(ring.pointers), ring.spike_pointer, len(ring.spikes)
    _, batch, synapses = x.shape
    if y is None or not in_lines:
        in_lines, stride, places = False, 0, batch * synapses
    else:
        # Whole lines, and whole programs of 8 rows of the batch.
        stride, each = y.stride(1), config.BLOCK // 8
        places = y.shape[1] * WORD * tiles(synapses, each) * each
    even = places == batch * synapses and places % config.BLOCK == 0
    return launch_of(
        exp_scan_kernel,
        (tiles(places, config.BLOCK), config.chunks),
        *(data, y, *both(tails)),
        *(*both(carry_in), *both(carry_out), *kept, *constants, *slots, *numbers, stride),
        REVERSE=reverse,
        LINES=in_lines,
        EVEN=even,
        GROUP=1 if in_lines else _sharing(config, x),
        config=config,
        **options,
    )


def _sharing(config: LaunchConfig, x: Input) -> int:
    """Neighbouring elements, those of a thread if possible, that are always in one word."""
    if isinstance(x, Tensor):
        return 1
    return math.gcd(max(1, config.BLOCK // (32 * config.num_warps)), x.shape[2], WORD)


def _arguments(
    x: Input, dtype: torch.dtype, walk: _Walk
) -> tuple[Tensor, list[Tensor | None], tuple[int, ...], dict[str, Any]]:
    """The input's data, the constants, the sizes, and what goes by name, as both kernels take them.

    ``dtype`` is that of the other sequence.
    """
    steps, batch, synapses = x.shape
    constants, options = constant_arguments(walk.dynamics)
    options |= {
        "PACKED": isinstance(x, PackedSpikes),
        "work": _work(x),
        "dtype": _narrower(x, dtype),
    }
    sizes = (batch * synapses, synapses, words_per_row(synapses))
    numbers = (steps, tiles(steps, walk.config.chunks), walk.last, *sizes)
    data = packed(data_of(x))
    return data, constants, numbers, options


def _for_each(of: Sequence[Any], count: int, x: Input, dynamics: Dynamics) -> list[Tensor]:
    """``count`` rows ``[count, B, N]`` in the dtype of the constants for each of some things."""
    shape, dtype = (count, *x.shape[1:]), dynamics.gain.dtype
    return [torch.empty(shape, dtype=dtype, device=x.device) for _ in of]


def _config(x: Input, dtype: torch.dtype) -> LaunchConfig:
    """The settings of a scan from ``x`` to a sequence of a dtype, or back."""
    return config_for("exp_scan_kernel", _work(x), _narrower(x, dtype), x.device)


def _work(x: Input) -> Work:
    steps, batch, synapses = x.shape
    given = 0 if isinstance(x, PackedSpikes) else x.dtype.itemsize
    return given, steps, batch * synapses


def _narrower(x: Input, dtype: torch.dtype) -> torch.dtype:
    """The dtype that tiles must suit: half precision, unless the arithmetic is double."""
    given = data_of(x).dtype
    halves = [d for d in (given, dtype) if d in (torch.float16, torch.bfloat16)]
    return halves[0] if halves and torch.float64 not in (given, dtype) else dtype


def pack(x: Tensor) -> Tensor:
    rows, synapses = x.shape
    width = words_per_row(synapses)
    words = torch.empty((rows, width), dtype=torch.int32, device=x.device)
    size, arguments = words.numel(), (packed(x), words, rows, synapses, width)
    launch(pack_bits_kernel, covering(size), *arguments, work=(size,), dtype=x.dtype)
    return words


def transpose_bits(words: Tensor, synapses: int) -> Tensor:
    rows, width = words.shape
    high = words_per_row(rows)
    turned = torch.empty((synapses, high), dtype=torch.int32, device=words.device)
    arguments = (packed(words), turned, rows, synapses, width, high)
    grid, work = covering(high, width), (width, high)
    launch(transpose_bits_kernel, grid, *arguments, work=work, dtype=words.dtype)
    return turned
