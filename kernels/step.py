"""The fused step of an exponential synapse: decay, inject, record, in one launch.

One kernel serves every synapse: the double one is two components that share their input
(``DOUBLE``), ``y = pos - neg``; in the alpha synapse (``coupling_ptr`` is given) the first state
feeds the second, which is the current. Records of half precision come with a carry for each state,
its newest value before that was rounded into the record.
"""

import triton
import triton.language as tl

from .common import coefficient, position, ring_slot, store_as
from .streams import READ, UPDATE, WRITE, Stream, streams

_POINTERS = ["pos_pointer", "neg_pointer", "spike_pointer"]


@triton.jit
def _newest(record_ptr, carry_ptr, pointer, K, size, offs, mask, ACC: tl.constexpr):
    """The carry, or without one the observation before the slot that is written next."""
    if carry_ptr is not None:
        return tl.load(carry_ptr + offs, mask=mask)
    else:
        newest = ring_slot(pointer, 1, K).to(tl.int64) * size
        return tl.load(record_ptr + newest + offs, mask=mask).to(ACC)


@triton.jit
def _advance(record_ptr, carry_ptr, pointer, before, injected, decay, size, offs, mask):
    """``record[pointer] = before * decay + injected``; returns that, without a carry rounded."""
    value = before * decay + injected
    stored = value.to(record_ptr.dtype.element_ty)
    tl.store(record_ptr + pointer.to(tl.int64) * size + offs, stored, mask=mask)
    if carry_ptr is not None:
        # Another thread may have loaded the same element: every load comes before the store.
        tl.debug_barrier()
        tl.store(carry_ptr + offs, value, mask=mask)
        return value
    else:
        return stored.to(injected.dtype)


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

    x = tl.load(x_ptr + offs, mask=mask, other=0)
    pos_slot = position(pos_pointer)
    neg_slot = position(neg_pointer)
    spike_slot = position(spike_pointer)
    tl.store(spike_ptr + spike_slot.to(tl.int64) * size + offs, x != 0, mask=mask)
    injected = x.to(ACC) * coefficient(gain_ptr, offs_n, mask, GAIN_PER_SYNAPSE)
    decay = coefficient(decay_ptr, offs_n, mask, DECAY_PER_SYNAPSE)
    pos = _newest(pos_ptr, pos_carry_ptr, pos_slot, K, size, offs, mask, ACC)
    y = _advance(pos_ptr, pos_carry_ptr, pos_slot, pos, injected, decay, size, offs, mask)
    if DOUBLE:
        rise = coefficient(rise_ptr, offs_n, mask, RISE_PER_SYNAPSE)
        neg = _newest(neg_ptr, neg_carry_ptr, neg_slot, K, size, offs, mask, ACC)
        if coupling_ptr is not None:
            neg += coefficient(coupling_ptr, offs_n, mask, COUPLING_PER_SYNAPSE) * pos
            fed = tl.zeros([BLOCK], ACC)
            y = _advance(neg_ptr, neg_carry_ptr, neg_slot, neg, fed, rise, size, offs, mask)
        else:
            y -= _advance(neg_ptr, neg_carry_ptr, neg_slot, neg, injected, rise, size, offs, mask)
    tl.store(y_ptr + offs, y.to(y_ptr.dtype.element_ty), mask=mask)
    if arrivals_ptr is not None:
        # Advance the pointers only after every thread of every program has read them. No program
        # reads what another wrote, so relaxed ordering is enough.
        tl.debug_barrier()
        programs = tl.num_programs(0)
        # Subtracted, not set to zero, so that arrivals at another step on the GPU are not lost.
        if (tl.atomic_add(arrivals_ptr, 1, sem="relaxed") + 1) % programs == 0:
            tl.atomic_add(arrivals_ptr, -programs, sem="relaxed")
            tl.store(pos_pointer, (pos_slot + 1) % K)
            tl.store(neg_pointer, (neg_slot + 1) % K)
            tl.store(spike_pointer, (spike_slot + 1) % K)


@triton.jit
def _retreat(drecord_ptr, dcarry_ptr, pointer, dy, fed, decay, K, size, offs, mask):
    """Adjoint of a state's step: the written slot's gradient moves to the slot before it.

    With a carry it moves there, and joins what the carry's gradient was. ``fed`` is what the other
    state's gradient adds, without decay.
    """
    written_ptr = drecord_ptr + pointer.to(tl.int64) * size + offs
    newest_ptr = drecord_ptr + ring_slot(pointer, 1, K).to(tl.int64) * size + offs
    element: tl.constexpr = drecord_ptr.dtype.element_ty
    z = dy + tl.load(written_ptr, mask=mask).to(dy.dtype)
    if dcarry_ptr is not None:
        z += tl.load(dcarry_ptr + offs, mask=mask)
    # The order matters where both are the same slot (K = 1): it is cleared, then added to. The
    # barriers are there because an element may be stored and loaded by different threads.
    tl.debug_barrier()
    tl.store(written_ptr, tl.zeros(dy.shape, element), mask=mask)
    if dcarry_ptr is not None:
        tl.store(dcarry_ptr + offs, decay * z + fed, mask=mask)
    else:
        tl.debug_barrier()
        carried = tl.load(newest_ptr, mask=mask).to(dy.dtype) + decay * z + fed
        tl.store(newest_ptr, carried.to(element), mask=mask)
    return z


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
    [K, size]`` are updated in place. So are the gradients ``dcarry [size]`` of carries: where there
    are any, ``z`` takes them too, and ``dP`` is theirs instead of a slot's. Bytes per element in
    float32: dy 4, dx 4, pos_z 4, neg_z 4, dpos 16, dneg 16 (two reads and two writes each, whatever
    K is; with a carry one of each), pos_dcarry 8, neg_dcarry 8.
    """
    ACC: tl.constexpr = gain_ptr.dtype.element_ty
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offs = start + tl.arange(0, BLOCK)
    mask = offs < size
    offs_n = ((start % N).to(tl.int32) + tl.arange(0, BLOCK)) % N

    dy = tl.zeros([BLOCK], ACC)
    if dy_ptr is not None:
        dy = tl.load(dy_ptr + offs, mask=mask, other=0).to(ACC)
    decay = coefficient(decay_ptr, offs_n, mask, DECAY_PER_SYNAPSE)
    nothing = tl.zeros([BLOCK], ACC)
    fed = nothing
    neg_z = nothing
    if DOUBLE:
        rise = coefficient(rise_ptr, offs_n, mask, RISE_PER_SYNAPSE)
        dneg = dy if coupling_ptr is not None else -dy
        neg_slot = position(neg_pointer)
        neg_z = _retreat(
            dneg_ptr, neg_dcarry_ptr, neg_slot, dneg, nothing, rise, K, size, offs, mask
        )
        if neg_z_ptr is not None:
            tl.store(neg_z_ptr + offs, neg_z, mask=mask)
        if coupling_ptr is not None:
            coupling = coefficient(coupling_ptr, offs_n, mask, COUPLING_PER_SYNAPSE)
            fed = rise * coupling * neg_z
            dy = nothing
            neg_z = nothing
    pos_slot = position(pos_pointer)
    z = _retreat(dpos_ptr, pos_dcarry_ptr, pos_slot, dy, fed, decay, K, size, offs, mask)
    if pos_z_ptr is not None:
        tl.store(pos_z_ptr + offs, z, mask=mask)
    z += neg_z
    if dx_ptr is not None:
        dx = z * coefficient(gain_ptr, offs_n, mask, GAIN_PER_SYNAPSE)
        store_as(dx_ptr + offs, dx, mask)


_BOTH = Stream(loads=2, stores=2)  # the slot that was written, and the one before it

STREAMS = {
    "synapse_step_fwd_kernel": streams(
        "BLOCK", x=READ, y=WRITE, spike=WRITE,
        pos=UPDATE.where(pos_carry_ptr=None), neg=UPDATE.where(DOUBLE=True, neg_carry_ptr=None),
        pos_carry=UPDATE, neg_carry=UPDATE.where(DOUBLE=True),
    ),
    "synapse_step_bwd_kernel": streams(
        "BLOCK", dy=READ, dx=WRITE,
        dpos=_BOTH.where(pos_dcarry_ptr=None), dneg=_BOTH.where(DOUBLE=True, neg_dcarry_ptr=None),
        pos_dcarry=UPDATE, neg_dcarry=UPDATE.where(DOUBLE=True),
        pos_z=WRITE, neg_z=WRITE.where(DOUBLE=True),
    ),
}  # fmt: skip
