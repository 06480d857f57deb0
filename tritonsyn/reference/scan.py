"""Exponential scans of whole sequences: forward, adjoint, and the gradient of the constants."""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import cache, partial

import torch
from torch import Tensor

from ..values import (
    WORD,
    Dynamics,
    PackedSpikes,
    Ring,
    Slot,
    as_real,
    dense,
    unpack_bits,
    words_per_row,
)
from .step import scaled

Pair = Sequence[Tensor | None]

# Measured on two cores: from 100 steps and up to 8,192 synapses times batch, blocks win.
_BLOCKS_STEPS, _BLOCKS_ROW = 100, 8192


def scan(
    x: Tensor | PackedSpikes,
    dynamics: Dynamics,
    initials: Pair,
    last: int,
    dtype: torch.dtype | None,
) -> tuple[Tensor | None, list[Tensor]]:
    """T steps of the states at once.

    ``x [T, B, N]``, T >= 1, or packed; constants 0-d or ``[N]``; ``initials``, of each state,
    ``[B, N]`` or None. Returns the current ``[T, B, N]`` in ``dtype`` (None without a ``dtype``)
    and the ``last <= T`` values of each state in the dtype of the constants.
    """
    states = _states(x, dynamics, initials)
    steps = states[0].shape[0]
    tails = [state[steps - last :].clone() for state in states]
    return None if dtype is None else dynamics.current_(states).to(dtype), tails


def _states(x: Tensor | PackedSpikes, dynamics: Dynamics, initials: Pair) -> list[Tensor]:
    """Each state ``[T, B, N]`` in the dtype of the constants."""
    values = dense(x)

    def begin(place: int) -> Tensor:
        """The input of a state, with what its initial value adds to the first step."""
        initial = initials[place]
        if place < dynamics.inputs:
            arriving = _scaled(values, dynamics.gain)
        else:
            assert dynamics.coupling is not None
            factor = dynamics.decay(place) * dynamics.coupling
            arriving = torch.empty_like(states[0])
            torch.mul(states[0][:-1], factor, out=arriving[1:])
            arriving[0] = 0.0 if initials[0] is None else initials[0] * factor
        if initial is not None:
            arriving[0].addcmul_(initial, dynamics.decay(place))
        return arriving

    states: list[Tensor] = []
    for place in range(dynamics.states):
        states.append(_filtered(partial(begin, place), dynamics.decay(place)))
    return states


def _scaled(x: Tensor, factor: Tensor) -> Tensor:
    """``factor * x``, packed, in new memory."""
    return scaled(x, factor).contiguous()


def _filtered(begin: Callable[[], Tensor], decay: Tensor, reverse: bool = False) -> Tensor:
    """``y[t] = x[t] + decay * y[t - 1]``, with ``reverse`` ``y[t + 1]``, in the memory of x.

    ``begin`` makes x, packed ``[T, B, N]``.
    """
    y = begin()
    small = y.device.type == "cpu" and y.numel() <= _BLOCKS_ROW * y.shape[0]
    if small and y.shape[0] >= _BLOCKS_STEPS:
        if _filter_blocks(y, decay, reverse):
            return y
        y = begin()
    _walk(_in_order(y, reverse), decay)
    return y


def _filter_blocks(y: Tensor, decay: Tensor, reverse: bool) -> bool:
    """Filters in place in ``sqrt(T)`` blocks at once, to each of which the one before is added.

    A small row costs less to add than an operation costs to start; here the operations are few and
    each covers many rows. Returns False if a block or a power of the decay is not finite, although
    the sequence itself may be; what ``y`` holds is then useless.
    """
    length = math.isqrt(y.shape[0])
    head = y.shape[0] % length
    whole, edge = (y[head:], y[: head + 1]) if reverse else (y[: -head or None], y[-head - 1 :])
    blocks = whole.unflatten(0, (-1, length))
    places = _in_order(blocks.transpose(0, 1), reverse)
    _walk(places, decay)
    exponents = torch.arange(1, length + 1, dtype=decay.dtype, device=decay.device)
    powers = decay ** exponents.view(-1, 1, 1)
    # A non-finite value anywhere in a block reaches the last element of the block.
    last = places[-1].clone()
    _walk(_in_order(last, reverse), powers[-1].view(decay.shape))
    if not math.isfinite(last.sum()):
        return False
    if reverse:
        blocks[:-1].addcmul_(last[1:, None], powers.flip(0))
    else:
        blocks[1:].addcmul_(last[:-1, None], powers)
    _walk(_in_order(edge, reverse), decay)
    return True


def _in_order(rows: Tensor, reverse: bool) -> Sequence[Tensor]:
    return rows.unbind(0)[::-1] if reverse else rows.unbind(0)


def _walk(rows: Sequence[Tensor], decay: Tensor) -> None:
    """``rows[i] += decay * rows[i - 1]`` in place, in the order given."""
    if decay.device.type == "cpu" and len(rows) > 1 and _foreach_walks_in_order():
        _walk_by_foreach(rows, decay)
        return
    for before, row in itertools.pairwise(rows):
        row.addcmul_(before, decay)


def _walk_by_foreach(rows: Sequence[Tensor], decay: Tensor) -> None:
    """The same on a CPU, without returning to Python between rows."""
    later, earlier = list(rows[1:]), list(rows[:-1])
    if decay.ndim == 0:
        torch._foreach_add_(later, earlier, alpha=decay.item())
    else:
        torch._foreach_addcmul_(later, earlier, [decay] * len(later))


@cache
def _foreach_walks_in_order() -> bool:
    """Whether this PyTorch handles overlapping lists in order, which it does not promise."""
    for decay in (torch.tensor(0.5), torch.tensor([0.5])):
        rows = torch.ones(3, 1)
        _walk_by_foreach(rows.unbind(0), decay)
        if rows.flatten().tolist() != [1.0, 1.5, 1.75]:
            return False
    return True


def scan_ring(
    x: Tensor | PackedSpikes,
    ring: Ring,
    dynamics: Dynamics,
    dtype: torch.dtype | None,
    lines: Tensor | None = None,
) -> Tensor | None:
    """T >= 1 steps from the ring's newest values, whose end it takes up, as T single steps would.

    Returns the current ``[T, B, N]`` in ``dtype`` (None without a ``dtype``), or writes it into
    ``lines`` as :func:`scan_lines` does. Records, spikes and carries change in place; with
    ``arrivals`` the pointers advance.
    """
    records, pointers, spikes, spike_pointer, arrivals, carries = ring
    steps, slots = x.shape[0], len(spikes)
    last = min(steps, slots)
    newest = [record[int(p) - 1] for record, p in zip(records, pointers, strict=True)]
    starts = [state.to(dynamics.gain.dtype) for state in carries or newest]
    y, tails = scan(x, dynamics, starts, last, dtype)
    if isinstance(x, PackedSpikes):
        marks = PackedSpikes(x.words[-last:], (last, *x.shape[1:])).dense()
    else:
        marks = x[-last:].bool()  # quicker than `!= 0`
    places = [*zip(records, pointers, tails, strict=True), (spikes, spike_pointer, marks)]
    order = torch.arange(steps - last, steps, device=x.device)
    for record, pointer, rows in places:
        record.index_copy_(0, (int(pointer) + order) % slots, rows.to(record.dtype))
    for carry, tail in zip(carries or (), tails, strict=False):
        carry.copy_(tail[-1])
    if arrivals is not None:
        for pointer in (*pointers, spike_pointer):
            if isinstance(pointer, Tensor):
                pointer.add_(steps).remainder_(slots)
    if lines is None:
        return y
    assert y is not None
    write_lines(lines, y)
    return None


def scan_ring_again(
    x: Tensor, ring: Ring, dynamics: Dynamics, dtype: torch.dtype
) -> Callable[[Tensor, Sequence[Slot]], Tensor] | None:
    """:func:`scan_ring` on this ring at less cost, or None where that cannot be had.

    What is returned takes an input of the kind of ``x``, ``[T, B, *shape]``, and the pointers of
    the records and of the spikes; the current has the input's shape.
    """

    def scan(x: Tensor, slots: Sequence[Slot]) -> Tensor:
        *pointers, spike_pointer = slots
        now = ring._replace(pointers=pointers, spike_pointer=spike_pointer)
        y = scan_ring(x.flatten(2), now, dynamics, dtype)
        assert y is not None
        return y.view(x.shape)

    return scan


def scan_lines(
    x: Tensor | PackedSpikes, y: Tensor, dynamics: Dynamics, initials: Pair, last: int
) -> list[Tensor]:
    """:func:`scan` that writes the current into lines ``y [N, ceil(B / 32), T, 32]``.

    Element ``[n, c, t, i]`` is row ``32 c + i`` of the batch, zero beyond B. They may be parts of
    longer lines, ``lines[:, :, first:]``. Returns the ``last`` values ``[last, B, N]`` of each
    state.
    """
    rows, tails = scan(x, dynamics, initials, last, y.dtype)
    assert rows is not None
    write_lines(y, rows)
    return tails


def write_lines(lines: Tensor, rows: Tensor) -> None:
    """``rows [T, B, N]`` as ``lines [N, groups, T, width]``, zero beyond B."""
    groups, width = lines.shape[1], lines.shape[3]
    full = rows.new_zeros(rows.shape[0], groups * width, rows.shape[2])
    full[:, : rows.shape[1]] = rows
    lines.copy_(full.unflatten(1, (groups, width)).permute(3, 1, 0, 2))


def _adjoints(dy: Tensor, dtails: Pair, dynamics: Dynamics, factor: Tensor) -> list[Tensor]:
    """``factor`` times the adjoint of each state, in new memory.

    That is ``z[t] = mix * dy[t] + dtail[t] + decay * z[t+1]``; of two coupled states the first also
    gets the gradient of what it fed to the second.
    """
    zs: dict[int, Tensor] = {}

    def begin(place: int) -> Tensor:
        mix, dtail = dynamics.mix[place], dtails[place]
        arriving = _scaled(dy, mix * factor) if mix else torch.zeros_like(dy, dtype=factor.dtype)
        if place == 0 and dynamics.coupling is not None:
            arriving[:-1].addcmul_(zs[1][1:], dynamics.decay(1) * dynamics.coupling)
        if dtail is not None:
            arriving[arriving.shape[0] - dtail.shape[0] :] += dtail * factor
        return arriving

    for place in reversed(range(dynamics.states)):
        zs[place] = _filtered(partial(begin, place), dynamics.decay(place), reverse=True)
    return [zs[place] for place in range(dynamics.states)]


def scan_backward(
    dy: Tensor,
    dtails: Pair,
    x: Tensor | PackedSpikes | None,
    dynamics: Dynamics,
    initials: Pair,
    dx_dtype: torch.dtype | None,
    want_initials: bool = True,
) -> tuple[Tensor | None, list[Tensor], Tensor | None]:
    """Adjoint of :func:`scan`: gradients of the input, of the initials and of the constants.

    ``dtails [last, B, N]`` or None are the gradients of the last values of the states. With ``x``
    given, the gradients of the constants are returned too, stacked in their order,
    ``[constants]``, or ``[constants, N]`` if any has N values: then those of a single value are
    yet to be summed. ``dx_dtype`` None: the input's gradient is not wanted; without
    ``want_initials`` theirs are an empty list.
    """
    # The adjoint is linear: where nothing but the input's gradient is wanted, the gain goes first.
    only_dx = x is None and not want_initials
    factor = dynamics.gain if only_dx else torch.ones_like(dynamics.gain)
    zs = _adjoints(dy, dtails, dynamics, factor)
    dinitials = _before_first(zs, dynamics) if want_initials else []
    constants = None if x is None else _stacked(_constants(zs, x, dynamics, initials), dynamics)
    dx = None
    if dx_dtype is not None:
        total = zs[0] if dynamics.inputs == 1 else zs[0].add_(zs[1])
        dx = (total if only_dx else total.mul_(dynamics.gain)).to(dx_dtype)
    return dx, dinitials, constants


def _before_first(zs: Sequence[Tensor], dynamics: Dynamics) -> list[Tensor]:
    """Gradients of the initial states from the adjoints of the states."""
    gradients = [z[0] * dynamics.decay(place) for place, z in enumerate(zs)]
    if dynamics.coupling is not None:
        gradients[0].addcmul_(gradients[1], dynamics.coupling)
    return gradients


def _stacked(gradients: Sequence[Tensor], dynamics: Dynamics) -> Tensor:
    """Gradients ``[B, N]`` of the constants, each summed over what shares a value."""
    each = any(constant.ndim for constant in dynamics.constants)
    return torch.stack([gradient.sum(0) if each else gradient.sum() for gradient in gradients])


def _constants(
    zs: Sequence[Tensor], x: Tensor | PackedSpikes, dynamics: Dynamics, initials: Pair
) -> list[Tensor]:
    """``sum_t z[t] * x[t]`` for the gain, ``sum_t z[t] * C[t-1]`` for each decay, and the same of
    what a coupled state takes over.
    """
    values = dense(x)
    total = zs[0] if dynamics.inputs == 1 else zs[0] + zs[1]
    dgain = (total * as_real(values, dynamics.gain.dtype)).sum(0)
    states = _states(values, dynamics, initials)
    ddecays = list(map(_with_before, zs, states, initials))
    if dynamics.coupling is None:
        return [dgain, *ddecays]
    shared = _with_before(zs[1], states[0], initials[0])
    ddecay = ddecays[0] + ddecays[1] + dynamics.coupling * shared
    return [dgain, ddecay, dynamics.decay(1) * shared]


def _with_before(z: Tensor, state: Tensor, initial: Tensor | None) -> Tensor:
    """``sum_t z[t] * state[t-1]``."""
    total = (z[1:] * state[:-1]).sum(0)
    return total if initial is None else total.addcmul_(z[0], initial)


def pack(x: Tensor) -> Tensor:
    """``x [rows, N] != 0`` as int32 words ``[rows, ceil(N / 32)]``, bit ``n % 32`` of
    word ``n // 32``.
    """
    rows, synapses = x.shape
    width = words_per_row(synapses)
    words = torch.empty((rows, width), dtype=torch.int32, device=x.device)
    octets = torch.empty((rows, width * WORD // 8), dtype=torch.int64, device=x.device)
    bits = octets.view(torch.bool)
    bits[:, :synapses].copy_(x.resolve_neg())
    bits[:, synapses:] = False
    # The product takes the lowest bit of each of eight bytes into the highest byte.
    octets.mul_(0x0102040810204080).bitwise_right_shift_(56)
    words.view(torch.int8).copy_(octets)
    return words


def transpose_bits(words: Tensor, synapses: int) -> Tensor:
    """Packed rows ``[rows, N]`` turned into packed columns ``[N, rows]``."""
    return pack(unpack_bits(words, synapses).t())
