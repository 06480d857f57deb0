"""Exponential scans of whole sequences: forward, adjoint, and the gradient of the constants.

An exponential current is a linear recurrence with a constant decay, so that its adjoint is the
same recurrence run backward in time: one kernel serves both. The double synapse is two such
recurrences over one input, ``y = pos - neg``; in the alpha synapse (``coupling_ptr`` is given) the
first state feeds the second, which is the current.
"""

import triton
import triton.language as tl

from .common import coefficient, position, ring_slot, store_as
from .streams import READ, WRITE, streams


@triton.jit
def _row_input(x_ptr, row, offs, offs_n, mask, size, N, W, PACKED: tl.constexpr, ACC: tl.constexpr):
    """Input of one step: values, or bits in words of 32 synapses of a row of the batch."""
    if PACKED:
        batch = offs // N
        words = tl.load(
            x_ptr + row * (size // N * W) + batch * W + offs_n // 32, mask=mask, other=0
        )
        return ((words >> (offs_n % 32)) & 1).to(ACC)
    else:
        return tl.load(x_ptr + row * size + offs, mask=mask, other=0).to(ACC)


@triton.jit
def _carry_in(ptr, chunk, offs, mask, size, ACC: tl.constexpr, BLOCK: tl.constexpr):
    carry = tl.zeros([BLOCK], ACC)
    if ptr is not None:
        carry = tl.load(ptr + chunk * size + offs, mask=mask, other=0.0).to(ACC)
    return carry


@triton.jit
def _places(size, N, BLOCK: tl.constexpr, EVERY: tl.constexpr):
    """A program's elements, or every so many of them: place in a row, row of the batch, synapse."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    lane = tl.arange(0, BLOCK // EVERY) * EVERY
    # Divided once as numbers, then as int32: vectors of int64 are divided by a subroutine.
    offs_n = (start % N).to(tl.int32) + lane
    return start + lane, start // N + offs_n // N, offs_n % N


@triton.jit
def _line_places(size, N, BLOCK: tl.constexpr):
    """A program's 8 rows of the batch by a few synapses: whole sectors in lines, halves in rows.

    Places in ``[B, N]``, whether they are inside, their synapses and whether there are so many;
    and for ``[N, cdiv(B, 32), 32]`` the line and the place in it.
    """
    batch = size // N
    count = (batch - 1) // 32 + 1
    i = tl.arange(0, BLOCK)
    offs_b = tl.program_id(0) % (4 * count) * 8 + i % 8
    offs_n = tl.program_id(0) // (4 * count) * (BLOCK // 8) + i // 8
    mask_n = offs_n < N
    line = offs_n.to(tl.int64) * count + offs_b // 32
    return offs_b.to(tl.int64) * N + offs_n, mask_n & (offs_b < batch), offs_n, mask_n, line, offs_b


@triton.jit
def _inputs(x_ptrs, row, mask, left, EVEN: tl.constexpr, EDGE: tl.constexpr, UNROLL: tl.constexpr):
    """The next ``UNROLL`` inputs, as loaded, of which there are ``left``; without an ``EDGE`` that
    is a multiple, and with ``EVEN`` the mask is true."""
    inputs = ()
    for i in tl.static_range(UNROLL):
        # As a vector, because the interpreter cannot mask a vector with a scalar.
        live = tl.zeros(mask.shape, tl.int32) + (i if EDGE else 0) < left
        inputs += (tl.load(x_ptrs + i * row, mask=live if EVEN else mask & live),)
    return inputs


@triton.jit
def _of_group(words, bit, GROUP: tl.constexpr):
    """The word of each element."""
    if GROUP > 1:
        words = tl.reshape(tl.broadcast_to(words[:, None], [words.shape[0], GROUP]), bit.shape)
    return words


@triton.jit
def _scaled(x, bit, gain, silent, GROUP: tl.constexpr):
    """``gain * x`` of an input as loaded; ``silent`` is that of no spike."""
    if bit is not None:
        return tl.where((_of_group(x, bit, GROUP) & bit) != 0, gain, silent)
    elif x.dtype == tl.int1:
        return tl.where(x, gain, silent)
    else:
        return x.to(gain.dtype) * gain


@triton.jit
def _spikes(x, bit, GROUP: tl.constexpr):
    """Whether an input as loaded is not 0."""
    if bit is not None:
        return (_of_group(x, bit, GROUP) & bit) != 0
    else:
        return x != 0


@triton.jit
def _wrapped(slot, K):
    """A slot below ``2 K`` in a ring of K, as int64."""
    return tl.where(slot < K, slot, slot - K).to(tl.int64)


@triton.jit
def _slots(slot, skipped, K, stride):
    """The slot of the first value that is kept after so many others, and where the newest lies."""
    return _wrapped(slot + skipped % K, K), ring_slot(slot, 1, K).to(tl.int64) * stride


@triton.jit
def _newest(record_ptr, carry_ptr, offs, mask, ACC: tl.constexpr):
    """A component's newest value: its carry, or without one that in its record."""
    if carry_ptr is not None:
        return tl.load(carry_ptr + offs, mask=mask, other=0.0).to(ACC)
    else:
        return tl.load(record_ptr + offs, mask=mask, other=0.0).to(ACC)


@triton.jit
def _stepped(state, decay, x, live, EDGE: tl.constexpr):
    """A state a step later; at the edge of a sequence only where there still is a step."""
    if EDGE:
        return tl.where(live, decay * state + x, state)
    else:
        return decay * state + x


_AT_RUN_TIME = ["pos_pointer", "neg_pointer", "spike_pointer", "K", "T", "L", "last"]


@triton.jit(do_not_specialize=_AT_RUN_TIME)
def exp_scan_kernel(
    x_ptr, y_ptr, pos_tail_ptr, neg_tail_ptr,
    pos_in_ptr, neg_in_ptr, pos_out_ptr, neg_out_ptr,
    spike_ptr, pos_carry_ptr, neg_carry_ptr, arrivals_ptr,
    gain_ptr, decay_ptr, rise_ptr, coupling_ptr,
    pos_pointer, neg_pointer, spike_pointer, K,
    T, L, last, size, N, W, stride_line,
    DOUBLE: tl.constexpr, REVERSE: tl.constexpr, PACKED: tl.constexpr, LINES: tl.constexpr,
    GAIN_PER_SYNAPSE: tl.constexpr, DECAY_PER_SYNAPSE: tl.constexpr, RISE_PER_SYNAPSE: tl.constexpr,
    COUPLING_PER_SYNAPSE: tl.constexpr, EVEN: tl.constexpr, GROUP: tl.constexpr,
    BLOCK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """``P[t] = decay * P[t-1] + gain * x[t]``, M likewise with rise, ``y = P - M`` (or P).

    With a coupling M takes no input but from P, ``M[t] = rise * (M[t-1] + coupling * P[t-1])``,
    and ``y = M``.

    ``x, y [T, size]`` with ``size = B * N``, or ``x`` as words ``[T, B, W]``. A program handles
    one chunk of ``L`` steps; the inputs of ``UNROLL`` steps are on their way while it handles those
    before. ``in`` and ``out [chunks, size]`` carry the components into and out of each chunk;
    ``tail [last, size]`` takes the components' last values. Each of these, and ``y``, may be
    absent. ``EVEN`` if ``BLOCK`` divides a row; groups of ``GROUP`` elements share a word.

    ``LINES`` (not in reverse): y is ``[N, cdiv(B, 32), T, 32]``, a line ``stride_line`` elements
    from the next, with zeros beyond B. A program has 8 rows of the batch; ``EVEN`` if these and its
    synapses divide all.

    With ``spike [K, size]`` the tails are rings of K slots, written after their pointers, as spikes
    (``x != 0``) are: these are where a synapse keeps its past. Without ``in`` the components then
    start from what is newest there, or from ``carry [size]``, which also takes their last values
    unrounded. Unless ``arrivals [1]``, which is after as before, is None, the pointers are on the
    device and advance.

    ``REVERSE`` is the adjoint: x is the gradient of y, time runs backward, the gain applies to the
    output, the gradients of the tails are added to the input, and the negative component is
    carried with its sign turned; coupled states keep theirs, and the second feeds the first.
    Bytes per element in float32: x 4 (bool 1, bits 1/8), y 4.
    """
    ACC: tl.constexpr = decay_ptr.dtype.element_ty
    COUPLED: tl.constexpr = coupling_ptr is not None
    stride = tl.cast(size, tl.int64)
    if LINES:
        offs, mask, offs_n, mask_y, line, offs_b = _line_places(size, N, BLOCK)
        offs_y = line * stride_line + offs_b % 32
        y_row = tl.full([], 32, tl.int64)
    else:
        offs, _, offs_n = _places(size, N, BLOCK, 1)
        mask = offs < size
        mask_y = mask
        offs_y = offs
        y_row = stride
    chunk = tl.program_id(1).to(tl.int64)
    first = chunk * L
    length = tl.minimum(T - first, L)

    gain = coefficient(gain_ptr, offs_n, mask, GAIN_PER_SYNAPSE)
    silent = gain * 0.0
    decay = coefficient(decay_ptr, offs_n, mask, DECAY_PER_SYNAPSE)
    pos = _carry_in(pos_in_ptr, chunk, offs, mask, stride, ACC, BLOCK)
    neg = tl.zeros([BLOCK], ACC)
    if DOUBLE:
        rise = coefficient(rise_ptr, offs_n, mask, RISE_PER_SYNAPSE)
        neg = _carry_in(neg_in_ptr, chunk, offs, mask, stride, ACC, BLOCK)
    if spike_ptr is not None:
        pos_slot = position(pos_pointer)
        spike_slot = position(spike_pointer)
        pos_first, pos_newest = _slots(pos_slot, T - last, K, stride)
        if DOUBLE:
            neg_slot = position(neg_pointer)
            neg_first, neg_newest = _slots(neg_slot, T - last, K, stride)
        spike_first, _ = _slots(spike_slot, T - last, K, stride)
        if pos_in_ptr is None:
            pos = _newest(pos_tail_ptr + pos_newest, pos_carry_ptr, offs, mask, ACC)
            if DOUBLE:
                neg = _newest(neg_tail_ptr + neg_newest, neg_carry_ptr, offs, mask, ACC)
            # Another thread may store to the same elements.
            tl.debug_barrier()
    if COUPLED:
        feed = rise * coefficient(coupling_ptr, offs_n, mask, COUPLING_PER_SYNAPSE)

    mask_x = mask
    offs_x = offs
    x_row = stride
    bit = None
    if PACKED and LINES:
        offs_x = offs_b.to(tl.int64) * W + offs_n // 32
    elif PACKED:
        offs_x, batch, offs_bit = _places(size, N, BLOCK, GROUP)
        mask_x = offs_x < size
        offs_x = batch * W + offs_bit // 32
    if PACKED:
        x_row = stride // N * W
        bit = tl.full([BLOCK], 1, tl.int32) << (offs_n % 32)
    start = first + (length - 1 if REVERSE else 0)
    x_base = x_ptr + start * x_row + offs_x
    if y_ptr is not None:
        y_base = y_ptr + start * y_row + offs_y
    if REVERSE:
        y_row = -y_row
        x_row = -x_row

    # Whole turns need no mask for time. The edge does: the steps that have tails, and the odd ones.
    edge = tl.minimum(tl.maximum(first + length - (T - last), 0), length)
    whole = (length - edge) // UNROLL * UNROLL
    edge = length - whole
    for phase in tl.static_range(2):
        count = edge if phase != REVERSE else whole
        begin = 0 if phase == 0 else length - count
        x_ptrs = x_base + begin * x_row
        if phase == REVERSE:
            ahead = _inputs(x_ptrs, x_row, mask_x, count, EVEN, False, UNROLL)
        if y_ptr is not None:
            y_ptrs = y_base + begin * y_row
        for done in range(0, count, UNROLL):
            left = count - done
            if phase == REVERSE:
                now = ahead
                next_ptrs = x_ptrs + UNROLL * x_row
                ahead = _inputs(next_ptrs, x_row, mask_x, left - UNROLL, EVEN, False, UNROLL)
            else:
                now = _inputs(x_ptrs, x_row, mask_x, left, EVEN, True, UNROLL)
            x_ptrs += UNROLL * x_row
            for i in tl.static_range(UNROLL):
                if REVERSE:
                    pos_x = now[i].to(ACC)
                    neg_x = pos_x
                    if COUPLED:
                        pos_x = feed * neg
                else:
                    pos_x = _scaled(now[i], bit, gain, silent, GROUP)
                    neg_x = pos_x
                    if COUPLED:
                        neg_x = feed * pos
                live = mask
                live_y = mask_y
                if phase != REVERSE:
                    step = begin + done + i
                    t = first + (length - 1 - step if REVERSE else step) - (T - last)
                    in_time = tl.zeros([BLOCK], tl.int32) + i < left
                    live = mask & in_time
                    live_y = mask_y & in_time
                    in_tail = live & (tl.zeros([BLOCK], tl.int64) + t >= 0)
                    tail = t * stride + offs
                    neg_tail = tail
                    if spike_ptr is not None:
                        tail = _wrapped(pos_first + t, K) * stride + offs
                        if DOUBLE:
                            neg_tail = _wrapped(neg_first + t, K) * stride + offs
                        spikes = _spikes(now[i], bit, GROUP)
                        place = _wrapped(spike_first + t, K) * stride + offs
                        tl.store(spike_ptr + place, spikes, mask=in_tail)
                    if REVERSE and pos_tail_ptr is not None:
                        pos_x += tl.load(pos_tail_ptr + tail, mask=in_tail, other=0.0).to(ACC)
                    if REVERSE and DOUBLE and neg_tail_ptr is not None:
                        neg_dtail = tl.load(neg_tail_ptr + tail, mask=in_tail, other=0.0).to(ACC)
                        neg_x += neg_dtail if COUPLED else -neg_dtail
                pos = _stepped(pos, decay, pos_x, live, phase != REVERSE)
                y = pos
                if DOUBLE:
                    neg = _stepped(neg, rise, neg_x, live, phase != REVERSE)
                    if not COUPLED:
                        y = pos - neg
                    elif not REVERSE:
                        y = neg
                if phase != REVERSE and not REVERSE:
                    if pos_tail_ptr is not None:
                        store_as(pos_tail_ptr + tail, pos, in_tail)
                    if DOUBLE and neg_tail_ptr is not None:
                        store_as(neg_tail_ptr + neg_tail, neg, in_tail)
                if y_ptr is not None:
                    y = y * gain if REVERSE else y
                    if LINES and not EVEN:
                        y = tl.where(mask, y, 0.0)
                    store_as(y_ptrs, y, None if EVEN and phase == REVERSE else live_y)
                    y_ptrs += y_row

    if pos_out_ptr is not None:
        tl.store(pos_out_ptr + chunk * stride + offs, pos, mask=mask)
    if DOUBLE and neg_out_ptr is not None:
        tl.store(neg_out_ptr + chunk * stride + offs, neg, mask=mask)
    if pos_carry_ptr is not None:
        # A chunk without steps, where there are more chunks than the steps fill, ends nothing.
        begin = tl.zeros([BLOCK], tl.int64) + first
        ends = mask & (begin < T) & (begin + length == T)
        tl.store(pos_carry_ptr + offs, pos, mask=ends)
        if DOUBLE:
            tl.store(neg_carry_ptr + offs, neg, mask=ends)
    if arrivals_ptr is not None:
        # Only after every thread of every program has read the pointers. No program reads what
        # another wrote, so relaxed ordering is enough.
        tl.debug_barrier()
        programs = tl.num_programs(0) * tl.num_programs(1)
        if (tl.atomic_add(arrivals_ptr, 1, sem="relaxed") + 1) % programs == 0:
            # Subtracted, not set to zero, so that arrivals at another step are not lost.
            tl.atomic_add(arrivals_ptr, -programs, sem="relaxed")
            tl.store(pos_pointer, (pos_slot + T) % K)
            tl.store(spike_pointer, (spike_slot + T) % K)
            if DOUBLE:
                tl.store(neg_pointer, (neg_slot + T) % K)


@triton.jit
def _whole_decay(decay, L):
    """``decay ** L``, the decay of a chunk; 0 only where the decay of a step is.

    If it underflowed to 0 elsewhere, an infinite carry would become NaN. In float64, because
    repeated squaring multiplies the error of rounding by ``L``.
    """
    base = tl.abs(decay).to(tl.float64)
    power = tl.full(base.shape, 1.0, tl.float64)
    left = L
    while left > 0:
        if left % 2 == 1:
            power *= base
        base *= base
        left //= 2
    least: tl.constexpr = (
        2.2250738585072014e-308 if decay.dtype == tl.float64 else 1.1754943508222875e-38
    )
    power = tl.where(power < least, least, power).to(decay.dtype)
    power = tl.where((decay < 0.0) & (L % 2 == 1), -power, power)
    return tl.where(decay == 0.0, decay, power)


@triton.jit
def _decayed(state, whole):
    """A state a chunk later; 0 stays 0, also where the power of a decay above 1 is infinite."""
    return tl.where(state == 0.0, state, whole * state)


@triton.jit(do_not_specialize=["L", "C"])
def exp_scan_carry_kernel(
    pos_left_ptr, neg_left_ptr, pos_in_ptr, neg_in_ptr, pos_carry_ptr, neg_carry_ptr,
    decay_ptr, rise_ptr, coupling_ptr,
    L, C, size, N,
    DOUBLE: tl.constexpr, REVERSE: tl.constexpr,
    DECAY_PER_SYNAPSE: tl.constexpr, RISE_PER_SYNAPSE: tl.constexpr,
    COUPLING_PER_SYNAPSE: tl.constexpr,
    BLOCK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """What enters each of C chunks of ``L`` steps, from what each leaves that starts at rest.

    ``left`` and ``carry [C, size]`` of each state; ``in [size]``, which may be absent, enters
    the first. In ``REVERSE`` the last chunk comes first. Signs are those of ``exp_scan_kernel``.
    Bytes per element in float32: pos_left 4, neg_left 4, pos_carry 4, neg_carry 4.
    """
    ACC: tl.constexpr = decay_ptr.dtype.element_ty
    offs, _, offs_n = _places(size, N, BLOCK, 1)
    mask = offs < size
    stride = tl.cast(size, tl.int64)
    COUPLED: tl.constexpr = coupling_ptr is not None
    decay = _whole_decay(coefficient(decay_ptr, offs_n, mask, DECAY_PER_SYNAPSE), L)
    pos = _carry_in(pos_in_ptr, 0, offs, mask, stride, ACC, BLOCK)
    if DOUBLE:
        rise = _whole_decay(coefficient(rise_ptr, offs_n, mask, RISE_PER_SYNAPSE), L)
        neg = _carry_in(neg_in_ptr, 0, offs, mask, stride, ACC, BLOCK)
    if COUPLED:
        feed = rise * L * coefficient(coupling_ptr, offs_n, mask, COUPLING_PER_SYNAPSE)

    for start in range(0, C, UNROLL):
        pos_left = ()
        neg_left = ()
        for i in tl.static_range(UNROLL):
            chunk = C - 1 - (start + i) if REVERSE else start + i
            live = mask & (tl.zeros([BLOCK], tl.int32) + (start + i) < C)
            place = chunk.to(tl.int64) * stride + offs
            pos_left += (tl.load(pos_left_ptr + place, mask=live, other=0.0),)
            if DOUBLE:
                neg_left += (tl.load(neg_left_ptr + place, mask=live, other=0.0),)
        for i in tl.static_range(UNROLL):
            chunk = C - 1 - (start + i) if REVERSE else start + i
            live = mask & (tl.zeros([BLOCK], tl.int32) + (start + i) < C)
            place = chunk.to(tl.int64) * stride + offs
            tl.store(pos_carry_ptr + place, pos, mask=live)
            pos_after = _decayed(pos, decay) + pos_left[i]
            if DOUBLE:
                tl.store(neg_carry_ptr + place, neg, mask=live)
                neg_after = _decayed(neg, rise) + neg_left[i]
                if COUPLED and REVERSE:
                    pos_after += _decayed(neg, feed)
                elif COUPLED:
                    neg_after += _decayed(pos, feed)
                neg = neg_after
            pos = pos_after


@triton.jit
def _store_partial(ptr, place, value, offs, mask, size, EACH: tl.constexpr):
    """A program's part of the gradient of one of the constants, which ``place`` counts.

    Into ``[constants, chunks, size]`` if each synapse has its own (``EACH``), else the program's
    sum into ``[constants, chunks, programs of a chunk]``.
    """
    chunk = place * tl.num_programs(1) + tl.program_id(1).to(tl.int64)
    if EACH:
        tl.store(ptr + chunk * size + offs, value, mask=mask)
    else:
        total = tl.sum(tl.where(mask, value, 0.0))
        tl.store(ptr + chunk * tl.num_programs(0) + tl.program_id(0), total)


@triton.jit
def _sensitivity(state, sens, response, x, gain, decay, live):
    """One step of a component, its derivative to the decay, and its response to a unit gain."""
    sens = tl.where(live, decay * sens + state, sens)
    state = tl.where(live, decay * state + gain * x, state)
    response = tl.where(live, decay * response + x, response)
    return state, sens, response


@triton.jit(do_not_specialize=["T", "L", "last"])
def exp_scan_constants_kernel(
    x_ptr, dy_ptr, pos_dtail_ptr, neg_dtail_ptr,
    pos_in_ptr, neg_in_ptr, pos_dcarry_ptr, neg_dcarry_ptr,
    partial_ptr, gain_ptr, decay_ptr, rise_ptr, coupling_ptr,
    T, L, last, size, N, W,
    PACKED: tl.constexpr,
    GAIN_PER_SYNAPSE: tl.constexpr, DECAY_PER_SYNAPSE: tl.constexpr, RISE_PER_SYNAPSE: tl.constexpr,
    COUPLING_PER_SYNAPSE: tl.constexpr,
    BLOCK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Gradients of gain, decay and rise of two states, in parts to be summed: ``_store_partial``.

    With a coupling that takes the place of the rise, and the decay is the one of both states.

    Forward in time with the sensitivities ``S = dP/d decay`` and ``G = dP/d gain``: the gradient is
    ``sum(dy * S)``, so that the currents need not be saved. ``in`` carries the components
    into each chunk and ``dcarry`` the adjoint of what leaves it (signs as the adjoint scan carries
    them). Bytes per element in float32: x 4 (bool 1, bits 1/8), dy 4.
    """
    ACC: tl.constexpr = decay_ptr.dtype.element_ty
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < size
    offs_n = (offs % N).to(tl.int32)
    chunk = tl.program_id(1).to(tl.int64)
    stride = tl.cast(size, tl.int64)
    first = chunk * L
    length = tl.minimum(T - first, L)
    # As vectors, because the interpreter cannot mask a vector with a scalar.
    lengths = tl.zeros_like(offs) + length
    tail_start = tl.zeros_like(offs) + (T - last)

    COUPLED: tl.constexpr = coupling_ptr is not None
    gain = coefficient(gain_ptr, offs_n, mask, GAIN_PER_SYNAPSE)
    decay = coefficient(decay_ptr, offs_n, mask, DECAY_PER_SYNAPSE)
    zero = tl.zeros([BLOCK], ACC)
    pos = _carry_in(pos_in_ptr, chunk, offs, mask, stride, ACC, BLOCK)
    pos_sens = zero
    pos_response = zero
    neg = _carry_in(neg_in_ptr, chunk, offs, mask, stride, ACC, BLOCK)
    neg_sens = zero
    neg_response = zero
    coupling_sens = zero
    rise = coefficient(rise_ptr, offs_n, mask, RISE_PER_SYNAPSE)
    if COUPLED:
        coupling = coefficient(coupling_ptr, offs_n, mask, COUPLING_PER_SYNAPSE)
    ddecay = zero
    drise = zero
    dgain = zero

    for start in range(0, length, UNROLL):
        inputs = ()
        gradients = ()
        for i in tl.static_range(UNROLL):
            t = first + start + i
            live = mask & (start + i < lengths)
            inputs += (_row_input(x_ptr, t, offs, offs_n, live, stride, N, W, PACKED, ACC),)
            gradients += (tl.load(dy_ptr + t * stride + offs, mask=live, other=0.0).to(ACC),)
        for i in tl.static_range(UNROLL):
            t = first + start + i
            live = mask & (start + i < lengths)
            tail = (t - tail_start) * stride + offs
            in_tail = live & (t >= tail_start)
            dpos = gradients[i]
            dneg = -gradients[i]
            if COUPLED:
                dpos = zero
                dneg = gradients[i]
            if pos_dtail_ptr is not None:
                dpos += tl.load(pos_dtail_ptr + tail, mask=in_tail, other=0.0).to(ACC)
            if neg_dtail_ptr is not None:
                dneg += tl.load(neg_dtail_ptr + tail, mask=in_tail, other=0.0).to(ACC)
            if COUPLED:
                # What the second state takes from the first, before either advances.
                coupling_sens = tl.where(live, decay * (coupling_sens + pos), coupling_sens)
                neg += tl.where(live, coupling * pos, zero)
                neg_sens += tl.where(live, coupling * pos_sens, zero)
                neg_response += tl.where(live, coupling * pos_response, zero)
                neg, neg_sens, neg_response = _sensitivity(
                    neg, neg_sens, neg_response, zero, gain, decay, live
                )
                ddecay += dneg * neg_sens
                drise += dneg * coupling_sens
                dgain += dneg * neg_response
            pos, pos_sens, pos_response = _sensitivity(
                pos, pos_sens, pos_response, inputs[i], gain, decay, live
            )
            ddecay += dpos * pos_sens
            dgain += dpos * pos_response
            if not COUPLED:
                neg, neg_sens, neg_response = _sensitivity(
                    neg, neg_sens, neg_response, inputs[i], gain, rise, live
                )
                drise += dneg * neg_sens
                dgain += dneg * neg_response

    if neg_dcarry_ptr is not None:
        dleft = rise * _carry_in(neg_dcarry_ptr, chunk, offs, mask, stride, ACC, BLOCK)
        if COUPLED:
            ddecay += dleft * (neg_sens + coupling * pos_sens)
            drise += dleft * coupling_sens
            dgain += dleft * (neg_response + coupling * pos_response)
        else:
            drise -= dleft * neg_sens
            dgain -= dleft * neg_response
    if pos_dcarry_ptr is not None:
        dleft = decay * _carry_in(pos_dcarry_ptr, chunk, offs, mask, stride, ACC, BLOCK)
        ddecay += dleft * pos_sens
        dgain += dleft * pos_response
    EACH: tl.constexpr = (
        GAIN_PER_SYNAPSE or DECAY_PER_SYNAPSE or RISE_PER_SYNAPSE or COUPLING_PER_SYNAPSE
    )
    _store_partial(partial_ptr, 0, dgain, offs, mask, stride, EACH)
    _store_partial(partial_ptr, 1, ddecay, offs, mask, stride, EACH)
    _store_partial(partial_ptr, 2, drise, offs, mask, stride, EACH)


@triton.jit
def _load(ptrs, mask):
    if mask is None:
        return tl.load(ptrs)
    else:
        return tl.load(ptrs, mask=mask, other=0)


@triton.jit
def _shifted(ptr, offsets):
    """A pointer moved by offsets; an absent array stays absent."""
    if ptr is None:
        return  # not None, of which Triton 3.6 would make a tensor
    else:
        return ptr + offsets


@triton.jit
def _rows_back(dy_ptrs, x_ptrs, stride, x_stride, mask, left, UNROLL: tl.constexpr):
    """``UNROLL`` rows of both sequences, backward from where the pointers are.

    An absent input has no rows. ``left``: how many there are, where those may be fewer. The mask
    of the lanes is absent where all are there.
    """
    dys = ()
    xs = ()
    for i in tl.static_range(UNROLL):
        live = mask
        if left is not None:
            live = mask & (i < left)
        dys += (_load(dy_ptrs - i * stride, live),)
        if x_ptrs is not None:
            xs += (_load(x_ptrs - i * x_stride, live),)
    return dys, xs


@triton.jit
def _where(live, new, old):
    if live is None:
        return new
    else:
        return tl.where(live, new, old)


@triton.jit
def _turn_back(
    state, rows, dx_ptrs, dtail_ptrs, stride, gain, decay, bit, mask, left, tail,
    UNROLL: tl.constexpr,
):  # fmt: skip
    """``UNROLL`` steps of the adjoint and, with inputs, of the gradients of gain and decay.

    ``left`` steps, and ``tail`` that have a gradient of a tail, where those may be fewer.
    """
    lam, total, dgain, ddecay = state
    dys, xs = rows
    ACC: tl.constexpr = lam.dtype
    for i in tl.static_range(UNROLL):
        live = None
        stored = mask
        dy = dys[i].to(ACC)
        if left is not None:
            live = i < left
            stored = mask & live
            if dtail_ptrs is not None:
                dy += tl.load(dtail_ptrs - i * stride, mask=mask & (i < tail), other=0.0)
        lam = _where(live, decay * lam + dy, lam)
        if len(xs) > 0:
            x = xs[i]
            if bit is not None:
                x = (x >> bit) & 1
            x = x.to(ACC)
            ddecay = _where(live, ddecay + total * x, ddecay)
            dgain = _where(live, dgain + lam * x, dgain)
            total = _where(live, decay * total + lam, total)
        if dx_ptrs is not None:
            store_as(dx_ptrs - i * stride, gain * lam, stored)
    return lam, total, dgain, ddecay


@triton.jit(do_not_specialize=["T", "L", "last"])
def exp_scan_backward_kernel(
    dy_ptr, dtail_ptr, x_ptr, initial_ptr, carry_ptr, total_ptr,
    dx_ptr, dinitial_ptr, partial_ptr, gain_ptr, decay_ptr,
    T, L, last, size, N, W,
    PACKED: tl.constexpr, GAIN_PER_SYNAPSE: tl.constexpr, DECAY_PER_SYNAPSE: tl.constexpr,
    EVEN: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """All gradients of ``y[t] = decay * y[t-1] + gain * x[t]`` from those of y.

    ``lam[t] = dy[t] + decay * lam[t+1]`` backward in time; then ``dx[t] = gain * lam[t]``, the
    gradient of the gain is ``sum(lam[t] * x[t])``, and that of the initial state ``y[-1]``,
    ``initial [size]``, is ``decay * lam[0]``. That of the decay, ``sum(lam[t] * y[t-1])``, is
    taken apart by the inputs that y is made of, so that y itself is not needed: it is
    ``gain * sum(x[t] * total[t+1]) + y[-1] * total[0]`` with
    ``total[t] = lam[t] + decay * total[t+1]``.

    ``dy, dx [T, size]`` with ``size = B * N``, and x alike or as words ``[T, B, W]``. A program
    handles one chunk of ``L`` steps, into which ``carry [chunks, size]`` brings the ``lam`` of the
    step after, and ``total`` what its ``total`` has beyond that; ``dtail [last, size]`` is added to
    the last of dy. The rows of ``UNROLL`` steps are on their way while those of the steps after
    them are computed. ``partial`` takes the gradients of gain and decay (``_store_partial``). All
    but dy and the constants may be absent. ``EVEN`` says that ``BLOCK`` divides the size.
    Bytes per element in float32: dy 4, x 4 (bool 1, bits 1/8), dx 4.
    """
    ACC: tl.constexpr = decay_ptr.dtype.element_ty
    offs, batch, offs_n = _places(size, N, BLOCK, 1)
    mask = offs < size
    chunk = tl.program_id(1).to(tl.int64)
    stride = tl.cast(size, tl.int64)
    first = chunk * L
    length = tl.minimum(T - first, L)
    gain = coefficient(gain_ptr, offs_n, mask, GAIN_PER_SYNAPSE)
    decay = coefficient(decay_ptr, offs_n, mask, DECAY_PER_SYNAPSE)
    zero = tl.zeros([BLOCK], ACC)
    lam = _carry_in(carry_ptr, chunk, offs, mask, stride, ACC, BLOCK)
    total = lam + _carry_in(total_ptr, chunk, offs, mask, stride, ACC, BLOCK)
    state = lam, total, zero, zero

    # The chunk's last step; from there time goes back a turn at a time.
    end = first + length - 1
    place = end * stride + offs
    x_stride = stride
    x_place = place
    bit = None
    if PACKED:
        x_stride = stride // N * W
        x_place = end * x_stride + batch * W + offs_n // 32
        bit = offs_n % 32

    # Steps with gradients of tails come first, and as many more as leave whole turns without masks.
    tail = tl.minimum(tl.maximum(first + length - (T - last), 0), length)
    turns = (length - tail) // UNROLL
    edge = length - turns * UNROLL
    # As vectors, because the interpreter cannot mask a vector with a scalar.
    count = tl.zeros([BLOCK], tl.int64)
    for done in range(0, edge, UNROLL):
        left = count + (edge - done)
        rows = _rows_back(
            dy_ptr + place, _shifted(x_ptr, x_place), stride, x_stride, mask, left, UNROLL
        )
        state = _turn_back(
            state, rows, _shifted(dx_ptr, place), _shifted(dtail_ptr, place - (T - last) * stride),
            stride, gain, decay, bit, mask, left, count + (tail - done), UNROLL,
        )  # fmt: skip
        steps = tl.minimum(edge - done, UNROLL)
        place -= steps * stride
        x_place -= steps * x_stride
    if turns > 0:
        lanes = mask
        if EVEN:
            lanes = None
        ahead = _rows_back(
            dy_ptr + place, _shifted(x_ptr, x_place), stride, x_stride, lanes, None, UNROLL
        )
        for _ in range(1, turns):
            rows = ahead
            dx_ptrs = _shifted(dx_ptr, place)
            place -= UNROLL * stride
            x_place -= UNROLL * x_stride
            ahead = _rows_back(
                dy_ptr + place, _shifted(x_ptr, x_place), stride, x_stride, lanes, None, UNROLL
            )
            state = _turn_back(
                state, rows, dx_ptrs, None, stride, gain, decay, bit, lanes, None, None, UNROLL
            )
        state = _turn_back(
            state, ahead, _shifted(dx_ptr, place), None,
            stride, gain, decay, bit, lanes, None, None, UNROLL,
        )  # fmt: skip
    lam, total, dgain, ddecay = state

    before_all = mask & (count + first == 0)
    if dinitial_ptr is not None:
        tl.store(dinitial_ptr + offs, decay * lam, mask=before_all)
    if partial_ptr is not None:
        ddecay *= gain
        if initial_ptr is not None:
            initial = tl.load(initial_ptr + offs, mask=before_all, other=0.0)
            ddecay += tl.where(before_all, total * initial, 0.0)
        EACH: tl.constexpr = GAIN_PER_SYNAPSE or DECAY_PER_SYNAPSE
        _store_partial(partial_ptr, 0, dgain, offs, mask, stride, EACH)
        _store_partial(partial_ptr, 1, ddecay, offs, mask, stride, EACH)


# Lanes share the words of packed spikes: 1/8 byte per element, which the code gathers.
_UNPACKED = READ.where(PACKED=False)

STREAMS = {
    "exp_scan_kernel": streams("BLOCK", "UNROLL", x=_UNPACKED, y=WRITE),
    "exp_scan_carry_kernel": streams(
        "BLOCK",
        "UNROLL",
        pos_left=READ,
        pos_carry=WRITE,
        neg_left=READ.where(DOUBLE=True),
        neg_carry=WRITE.where(DOUBLE=True),
    ),
    "exp_scan_constants_kernel": streams("BLOCK", "UNROLL", x=_UNPACKED, dy=READ),
    "exp_scan_backward_kernel": streams("BLOCK", "UNROLL", dy=READ, x=_UNPACKED, dx=WRITE),
}
