"""The fused step of an exponential synapse: decay, inject, record, in one launch.

One kernel serves every synapse: the double one is two components that share their input
(``DOUBLE``), ``y = pos - neg``; in the alpha synapse (``coupling_ptr`` is given) the first state
feeds the second, which is the current. Records of half precision come with a carry for each state,
its newest value before that was rounded into the record.
"""

import triton
import triton.language as tl

from .common import coefficient, position, ring_slot, store_as
from .streams import READ, UPDATE, WRITE, streams

_POINTERS = ["pos_pointer", "neg_pointer", "spike_pointer"]


@triton.jit
def _place(slot, size, offs):
    """Where the elements of a slot are in a record."""
    return slot.to(tl.int64) * size + offs


@triton.jit
def _newest(record_ptr, carry_ptr, slot, K, size, offs, mask, ACC: tl.constexpr):
    """The carry, or without one the observation before the slot that is written next.

    Either is loaded when the slot is known.
    """
    if carry_ptr is not None:
        return tl.load(carry_ptr + tl.multiple_of(slot >> 31, 16) + offs, mask=mask)
    else:
        return tl.load(record_ptr + _place(ring_slot(slot, 1, K), size, offs), mask=mask).to(ACC)


@triton.jit
def _put(record_ptr, carry_ptr, slot, value, size, offs, mask):
    """Stores a state in its record, and as its carry; returns it, without a carry rounded."""
    stored = value.to(record_ptr.dtype.element_ty)
    tl.store(record_ptr + _place(slot, size, offs), stored, mask=mask)
    if carry_ptr is not None:
        tl.store(carry_ptr + offs, value, mask=mask)
        return value
    else:
        return stored.to(value.dtype)


@triton.jit
def _is_multiple(count, programs):
    """Whether so many arrivals are a whole number of launches, below half a million of them.

    Without a division of integers, which takes 18 instructions.
    """
    root = tl.rsqrt(programs.to(tl.float32))
    launches = tl.floor(count.to(tl.float32) * (root * root) + 0.5).to(tl.int32)
    return count == launches * programs


@triton.jit
def _advance(pointer, slot, K):
    """Moves a pointer that is kept on the device on from its slot."""
    tl.store(pointer, tl.where(slot + 1 == K, 0, slot + 1).to(tl.int64))


@triton.jit(do_not_specialize=_POINTERS)
def synapse_step_fwd_kernel(
    x_ptr, y_ptr, spike_ptr, pos_ptr, neg_ptr, pos_carry_ptr, neg_carry_ptr,
    gain_ptr, decay_ptr, rise_ptr, coupling_ptr, arrivals_ptr,
    pos_pointer, neg_pointer, spike_pointer,
    K, size, N,
    DOUBLE: tl.constexpr,
    GAIN_PER_SYNAPSE: tl.constexpr, DECAY_PER_SYNAPSE: tl.constexpr, RISE_PER_SYNAPSE: tl.constexpr,
    COUPLING_PER_SYNAPSE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """``P' = decay * P + gain * x``, ``M' = rise * M + gain * x``, ``y = P' - M'`` (or ``P'``).

    With a coupling ``M' = rise * (M + coupling * P)`` and ``y = M'``.

    ``x, y [size]`` with ``size = B * N``; records ``pos, neg, spike [K, size]``; coefficients
    ``[1]`` or ``[N]``. Carries ``[size]``, each of which may be None, are P and M before and P' and
    M' after; without them P and M are the newest observations. ``arrivals [1]`` is after as before,
    a multiple of the number of programs, usually zero; unless it is None, pointers that are kept on
    the device advance. Bytes per element in float32: x 4 (bool 1), spike 1, y 4, pos 8 (with a
    carry only written), neg 8, pos_carry 8, neg_carry 8.
    """
    ACC: tl.constexpr = gain_ptr.dtype.element_ty
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offs = start + tl.arange(0, BLOCK)
    mask = offs < size
    offs_n = ((start % N).to(tl.int32) + tl.arange(0, BLOCK)) % N

    x = tl.load(x_ptr + offs, mask=mask)
    spike_slot = position(spike_pointer)
    # Plus 0, but so the states' loads wait for every slot: no thread passes the barrier, and no
    # program arrives, before it knows them.
    pos_slot = position(pos_pointer) + (spike_slot >> 31)
    spike_slot += spike_slot >> 31
    if DOUBLE:
        neg_slot = position(neg_pointer) + (pos_slot >> 31)
    gain = coefficient(gain_ptr, offs_n, mask, GAIN_PER_SYNAPSE)
    decay = coefficient(decay_ptr, offs_n, mask, DECAY_PER_SYNAPSE)
    pos = _newest(pos_ptr, pos_carry_ptr, pos_slot, K, size, offs, mask, ACC)
    if DOUBLE:
        rise = coefficient(rise_ptr, offs_n, mask, RISE_PER_SYNAPSE)
        neg = _newest(neg_ptr, neg_carry_ptr, neg_slot, K, size, offs, mask, ACC)
        if coupling_ptr is not None:
            coupling = coefficient(coupling_ptr, offs_n, mask, COUPLING_PER_SYNAPSE)
    # The stores below may be to elements that other threads load: to a carry, or where there is
    # one slot only.
    tl.debug_barrier()
    if arrivals_ptr is not None:
        # While the loads are under way. No program reads what another wrote: relaxed will do.
        programs = tl.num_programs(0)
        count = tl.atomic_add(arrivals_ptr, 1, sem="relaxed") + 1
        last = _is_multiple(count, programs)

    tl.store(spike_ptr + _place(spike_slot, size, offs), x != 0, mask=mask)
    injected = x.to(ACC) * gain
    y = _put(pos_ptr, pos_carry_ptr, pos_slot, pos * decay + injected, size, offs, mask)
    if DOUBLE:
        if coupling_ptr is not None:
            fed = (neg + coupling * pos) * rise
            y = _put(neg_ptr, neg_carry_ptr, neg_slot, fed, size, offs, mask)
        else:
            y -= _put(neg_ptr, neg_carry_ptr, neg_slot, neg * rise + injected, size, offs, mask)
    tl.store(y_ptr + offs, y.to(y_ptr.dtype.element_ty), mask=mask)
    if arrivals_ptr is not None:
        if last:
            _advance(pos_pointer, pos_slot, K)
            _advance(spike_pointer, spike_slot, K)
            if DOUBLE:
                _advance(neg_pointer, neg_slot, K)
            # Subtracted, not set to zero, so that arrivals at another step are not lost.
            tl.atomic_add(arrivals_ptr, -programs, sem="relaxed")


@triton.jit
def _several(K, mask):
    """Whether a record has several slots, for each element, as the interpreter has to be told."""
    return tl.full(mask.shape, K, tl.int32) > 1


@triton.jit
def _received(drecord_ptr, dcarry_ptr, slot, K, size, offs, mask, ACC: tl.constexpr):
    """Gradients of a state: after the step, and of its newest observation before."""
    if drecord_ptr is None:
        return tl.zeros(offs.shape, ACC), tl.zeros(offs.shape, ACC)
    else:
        after = tl.load(drecord_ptr + _place(slot, size, offs), mask=mask).to(ACC)
        if dcarry_ptr is not None:
            return after + tl.load(dcarry_ptr + offs, mask=mask), tl.zeros_like(after)
        else:
            before = drecord_ptr + _place(ring_slot(slot, 1, K), size, offs)
            # Where there is one slot only, both are the same, and what is after the step counts.
            return after, tl.load(before, mask=mask & _several(K, mask), other=0).to(ACC)


@triton.jit
def _retreat(drecord_ptr, dcarry_ptr, slot, before, K, size, offs, mask):
    """Empties the slot that was written; the gradient before the step goes to the carry, or
    without one to the slot before it, which may be the same."""
    if drecord_ptr is not None:
        written_ptr = drecord_ptr + _place(slot, size, offs)
        nothing = tl.zeros(before.shape, drecord_ptr.dtype.element_ty)
        if dcarry_ptr is not None:
            tl.store(written_ptr, nothing, mask=mask)
            tl.store(dcarry_ptr + offs, before, mask=mask)
        else:
            tl.store(written_ptr, nothing, mask=mask & _several(K, mask))
            store_as(drecord_ptr + _place(ring_slot(slot, 1, K), size, offs), before, mask)


@triton.jit(do_not_specialize=["pos_pointer", "neg_pointer"])
def synapse_step_bwd_kernel(
    dy_ptr, dx_ptr, dpos_ptr, dneg_ptr, pos_dcarry_ptr, neg_dcarry_ptr, pos_z_ptr, neg_z_ptr,
    gain_ptr, decay_ptr, rise_ptr, coupling_ptr,
    pos_pointer, neg_pointer,
    K, size, N,
    DOUBLE: tl.constexpr,
    GAIN_PER_SYNAPSE: tl.constexpr, DECAY_PER_SYNAPSE: tl.constexpr, RISE_PER_SYNAPSE: tl.constexpr,
    COUPLING_PER_SYNAPSE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """``z = dy + dP'`` taken from the written slot, ``dP += decay * z``, ``dx = gain * sum(z)``.

    With a coupling ``dy`` goes to the second state only, which passes ``rise * coupling * z`` on to
    the first, and ``dx`` is the gain times the first state's ``z``.

    ``dy``, ``dx``, ``pos_z`` and ``neg_z`` ``[size]`` may each be absent (None); ``dpos, dneg
    [K, size]`` are updated in place, or absent where the current alone has a gradient. So are the
    gradients ``dcarry [size]`` of carries: where there are any, ``z`` takes them too, and ``dP`` is
    theirs instead of a slot's. Bytes per element in float32: dy 4, dx 4, pos_z 4, neg_z 4, dpos 8,
    dneg 8 (16 each where there are several slots but no carry: the one that was written, and the
    one before it), pos_dcarry 8, neg_dcarry 8.
    """
    ACC: tl.constexpr = gain_ptr.dtype.element_ty
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offs = start + tl.arange(0, BLOCK)
    mask = offs < size
    offs_n = ((start % N).to(tl.int32) + tl.arange(0, BLOCK)) % N

    nothing = tl.zeros([BLOCK], ACC)
    dy = nothing
    if dy_ptr is not None:
        dy = tl.load(dy_ptr + offs, mask=mask).to(ACC)
    gain = coefficient(gain_ptr, offs_n, mask, GAIN_PER_SYNAPSE)
    decay = coefficient(decay_ptr, offs_n, mask, DECAY_PER_SYNAPSE)
    pos_slot = position(pos_pointer)
    pos_z, dpos = _received(dpos_ptr, pos_dcarry_ptr, pos_slot, K, size, offs, mask, ACC)
    if DOUBLE:
        rise = coefficient(rise_ptr, offs_n, mask, RISE_PER_SYNAPSE)
        neg_slot = position(neg_pointer)
        neg_z, dneg = _received(dneg_ptr, neg_dcarry_ptr, neg_slot, K, size, offs, mask, ACC)
        if coupling_ptr is not None:
            coupling = coefficient(coupling_ptr, offs_n, mask, COUPLING_PER_SYNAPSE)
    # An element may be stored below by another thread than loaded it.
    tl.debug_barrier()

    if DOUBLE and coupling_ptr is not None:
        neg_z += dy
        dpos += rise * coupling * neg_z
    else:
        pos_z += dy
    z = pos_z
    if DOUBLE:
        if coupling_ptr is None:
            neg_z -= dy
            z += neg_z
        dneg += rise * neg_z
        _retreat(dneg_ptr, neg_dcarry_ptr, neg_slot, dneg, K, size, offs, mask)
        if neg_z_ptr is not None:
            tl.store(neg_z_ptr + offs, neg_z, mask=mask)
    dpos += decay * pos_z
    _retreat(dpos_ptr, pos_dcarry_ptr, pos_slot, dpos, K, size, offs, mask)
    if pos_z_ptr is not None:
        tl.store(pos_z_ptr + offs, pos_z, mask=mask)
    if dx_ptr is not None:
        store_as(dx_ptr + offs, z * gain, mask)


STREAMS = {
    "synapse_step_fwd_kernel": streams(
        "BLOCK", x=READ, y=WRITE, spike=WRITE,
        pos=UPDATE.where(pos_carry_ptr=None), neg=UPDATE.where(DOUBLE=True, neg_carry_ptr=None),
        pos_carry=UPDATE, neg_carry=UPDATE.where(DOUBLE=True),
    ),
    "synapse_step_bwd_kernel": streams(
        "BLOCK", dy=READ, dx=WRITE,
        dpos=UPDATE.where(K=1), dneg=UPDATE.where(DOUBLE=True, K=1),
        pos_dcarry=UPDATE, neg_dcarry=UPDATE.where(DOUBLE=True),
        pos_z=WRITE, neg_z=WRITE.where(DOUBLE=True),
    ),
}  # fmt: skip
