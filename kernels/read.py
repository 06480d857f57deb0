"""Delayed reads of a record: a gather with interpolation, and its adjoints."""

import triton
import triton.language as tl

from .common import coefficient, locate, position, ring_slot, tile_of
from .streams import READ, WRITE, streams


@triton.jit
def _tap(record_ptr, pointer, steps, K, size, offs, mask):
    """The observation ``steps`` before the newest."""
    slot = ring_slot(pointer, steps + 1, K)
    return tl.load(record_ptr + slot.to(tl.int64) * size + offs, mask=mask, other=0)


@triton.jit
def _component(
    record_ptr, rate_ptr, pointer, older, frac, K, size, offs, offs_n, mask,
    STEP: tl.constexpr, MODE: tl.constexpr, RATE_PER_SYNAPSE: tl.constexpr, ACC: tl.constexpr,
    WANT_SLOPE: tl.constexpr,
):  # fmt: skip
    """Value of one component at a time, and its derivative to that time."""
    hit = frac == 0.0
    steps = older
    if MODE == "next":
        steps = tl.where(hit, older, older - 1)
    if MODE == "nearest":
        steps = tl.where(frac > 0.5, older - 1, older)
    value = _tap(record_ptr, pointer, steps, K, size, offs, mask).to(ACC)
    slope = tl.zeros(value.shape, ACC)
    if MODE == "expdecay":
        rate = coefficient(rate_ptr, offs_n, mask, RATE_PER_SYNAPSE)
        value *= tl.exp(-(frac.to(ACC) * rate))
        if WANT_SLOPE:
            slope = value * (rate / STEP)
    if MODE == "linear":
        newer = tl.where(hit, older, older - 1)
        newer_value = _tap(record_ptr, pointer, newer, K, size, offs, mask).to(ACC)
        if WANT_SLOPE:
            # At an observation: the older segment, or the newer one where no older one is kept.
            far = tl.where(hit & (older < K - 1), older + 1, older)
            near = tl.where(hit & (older == K - 1) & (K > 1), older - 1, newer)
            far_value = _tap(record_ptr, pointer, far, K, size, offs, mask).to(ACC)
            near_value = _tap(record_ptr, pointer, near, K, size, offs, mask).to(ACC)
            slope = (far_value - near_value) / STEP
        value += (newer_value - value) * frac.to(ACC)
    return value, slope


@triton.jit(do_not_specialize=["pos_pointer", "neg_pointer"])
def select_fwd_kernel(
    sel_ptr, pos_ptr, neg_ptr, pos_rate_ptr, neg_rate_ptr,
    value_ptr, slope_ptr, pos_rate_slope_ptr, neg_rate_slope_ptr,
    pos_pointer, neg_pointer,
    K, B, N, D, sel_rows,
    STEP: tl.constexpr, LIMIT: tl.constexpr, TOLERANCE: tl.constexpr, EPSILON: tl.constexpr,
    OVERBOUND: tl.constexpr, MODE: tl.constexpr, DOUBLE: tl.constexpr,
    POS_RATE_PER_SYNAPSE: tl.constexpr, NEG_RATE_PER_SYNAPSE: tl.constexpr,
    TIME: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``value[b, n, d]``: the record (or ``pos - neg``) of synapse n, ``sel[b, n, d]`` ago.

    ``sel [sel_rows, N, D]`` (1 row or B) in the unit of ``STEP``, records ``[K, B, N]``, outputs
    ``[B, N, D]``. A record may be a sequence ``[K - 1 + T, B, N]``, read at each of T steps: row
    ``t * B + b`` of the outputs ``[T * B, N, D]`` sees rows t to t + K - 1.
    ``slope`` and ``rate_slope`` (derivatives to sel and to each component's rate) are optional.
    ``OVERBOUND`` replaces the value outside of ``[0, LIMIT]``; None keeps the limit's value.
    Bytes per element in float32: sel 4, value 4, slope 4, pos_rate_slope 4, neg_rate_slope 4;
    and 4 per tap, which fall on K rows: neighbours with like delays share their sectors.
    """
    tile, pid_b = tile_of(tl.program_id(0), N * D, BLOCK)
    pid_b = pid_b.to(tl.int64)
    offs = tile * BLOCK + tl.arange(0, BLOCK)
    mask = offs < N * D
    offs_n = offs // D
    size = tl.cast(B, tl.int64) * N
    cell = pid_b * N + offs_n

    sel_row = (pid_b % sel_rows) * N * D
    time = tl.load(sel_ptr + sel_row + offs, mask=mask, other=0.0).to(TIME)
    valid = time == time
    older, frac, inside, within = locate(time, K, STEP, LIMIT, TOLERANCE, EPSILON)
    older = tl.where(valid, older, 0.0).to(tl.int32)

    value, slope = _component(
        pos_ptr, pos_rate_ptr, position(pos_pointer), older, frac, K, size, cell, offs_n, mask,
        STEP, MODE, POS_RATE_PER_SYNAPSE, ACC, slope_ptr is not None,
    )  # fmt: skip
    keep = valid
    if OVERBOUND is not None:
        keep = valid & inside
    row = pid_b * (N * D) + offs
    if pos_rate_slope_ptr is not None:
        tl.store(pos_rate_slope_ptr + row, tl.where(keep, -frac.to(ACC) * value, 0.0), mask=mask)
    if DOUBLE:
        neg_value, neg_slope = _component(
            neg_ptr, neg_rate_ptr, position(neg_pointer), older, frac, K, size, cell, offs_n, mask,
            STEP, MODE, NEG_RATE_PER_SYNAPSE, ACC, slope_ptr is not None,
        )  # fmt: skip
        value -= neg_value
        slope -= neg_slope
        if neg_rate_slope_ptr is not None:
            tl.store(
                neg_rate_slope_ptr + row, tl.where(keep, frac.to(ACC) * neg_value, 0.0), mask=mask
            )
    if slope_ptr is not None:
        tl.store(slope_ptr + row, tl.where(within, slope, 0.0), mask=mask)
    if OVERBOUND is not None:
        value = tl.where(inside, value, OVERBOUND)
    if value_ptr.dtype.element_ty == tl.int1:
        tl.store(value_ptr + row, (value != 0) & valid, mask=mask)
    else:
        value = tl.where(valid, value, float("nan"))
        tl.store(value_ptr + row, value.to(value_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _scatter(
    drecord_ptr, rate_ptr, pointer, dvalue, older, frac, K, size, offs, offs_n, mask,
    MODE: tl.constexpr, RATE_PER_SYNAPSE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Adds ``dvalue`` to the taps that made one component's value."""
    hit = frac == 0.0
    steps = older
    weight = tl.full(frac.shape, 1.0, ACC)
    if MODE == "next":
        steps = tl.where(hit, older, older - 1)
    if MODE == "nearest":
        steps = tl.where(frac > 0.5, older - 1, older)
    if MODE == "expdecay":
        rate = coefficient(rate_ptr, offs_n, mask, RATE_PER_SYNAPSE)
        weight = tl.exp(-(frac.to(ACC) * rate))
    if MODE == "linear":
        weight = 1.0 - frac.to(ACC)
    _add_at(drecord_ptr, pointer, steps, weight * dvalue, K, size, offs, mask)
    if MODE == "linear":
        newer = tl.where(hit, older, older - 1)
        _add_at(drecord_ptr, pointer, newer, frac.to(ACC) * dvalue, K, size, offs, mask)


@triton.jit
def _add_at(drecord_ptr, pointer, steps, value, K, size, offs, mask):
    """Adds to the observations ``steps`` before the newest; a later call sees the sums."""
    ptrs = drecord_ptr + ring_slot(pointer, steps + 1, K).to(tl.int64) * size + offs
    total = tl.load(ptrs, mask=mask).to(value.dtype) + value
    tl.store(ptrs, total.to(drecord_ptr.dtype.element_ty), mask=mask)
    # Another thread than the one that stores an element may load it next.
    tl.debug_barrier()


@triton.jit(do_not_specialize=["pos_pointer", "neg_pointer", "steps"])
def select_bwd_kernel(
    sel_ptr, dvalue_ptr, dpos_ptr, dneg_ptr, pos_rate_ptr, neg_rate_ptr,
    pos_pointer, neg_pointer,
    K, B, N, D, sel_rows, steps,
    STEP: tl.constexpr, LIMIT: tl.constexpr, TOLERANCE: tl.constexpr, EPSILON: tl.constexpr,
    OVERBOUND: tl.constexpr, MODE: tl.constexpr, DOUBLE: tl.constexpr,
    POS_RATE_PER_SYNAPSE: tl.constexpr, NEG_RATE_PER_SYNAPSE: tl.constexpr,
    TIME: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adjoint of the read to the record: ``drecord[slot] += weight * dvalue``, in place.

    Shapes as in the forward kernel. A program owns its synapses and walks their selectors in
    order, so no atomics are needed and runs repeat bit for bit. Bytes per element in float32:
    sel 4, dvalue 4; and 8 per tap.
    """
    tile, pid_b = tile_of(tl.program_id(0), N, BLOCK)
    pid_b = pid_b.to(tl.int64)
    offs_n = tile * BLOCK + tl.arange(0, BLOCK)
    mask = offs_n < N
    size = tl.cast(B, tl.int64) * N

    pos_slot = position(pos_pointer)
    neg_slot = position(neg_pointer)
    # One stage: a later iteration's loads must not move above an earlier one's stores.
    for i in tl.range(0, steps * D, num_stages=1):
        row = (i // D) * B + pid_b
        cell = row * N + offs_n
        offs = offs_n.to(tl.int64) * D + i % D
        sel_row = (row % sel_rows) * N * D
        time = tl.load(sel_ptr + sel_row + offs, mask=mask, other=0.0).to(TIME)
        dvalue = tl.load(dvalue_ptr + row * N * D + offs, mask=mask, other=0.0).to(ACC)
        valid = time == time
        older, frac, inside, _ = locate(time, K, STEP, LIMIT, TOLERANCE, EPSILON)
        older = tl.where(valid, older, 0.0).to(tl.int32)
        frac = tl.where(valid, frac, 0.0)
        if OVERBOUND is not None:
            dvalue = tl.where(inside, dvalue, 0.0)
        dvalue = tl.where(valid, dvalue, 0.0)
        _scatter(
            dpos_ptr, pos_rate_ptr, pos_slot, dvalue, older, frac, K, size, cell, offs_n, mask,
            MODE, POS_RATE_PER_SYNAPSE, ACC,
        )  # fmt: skip
        if DOUBLE:
            _scatter(
                dneg_ptr, neg_rate_ptr, neg_slot, -dvalue, older, frac, K, size, cell, offs_n,
                mask, MODE, NEG_RATE_PER_SYNAPSE, ACC,
            )  # fmt: skip


@triton.jit
def batch_dot_kernel(
    a_ptr, b_ptr, partial_ptr, B, M, ROWS: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr
):
    """``partial[p, m]``: sum of ``a[i, m] * b[i, m]`` over the p-th group of ``ROWS`` rows.

    ``a, b [B, M]``, ``partial [cdiv(B, ROWS), M]``. Bytes per element in float32:
    a 4, b 4; and a write per group.
    """
    tile, pid_p = tile_of(tl.program_id(0), M, BLOCK)
    offs_m = tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], ACC)
    for i in range(ROWS):
        # A vector, because the interpreter cannot mask a vector with a scalar.
        row = tl.zeros_like(offs_m) + pid_p * ROWS + i
        mask = (offs_m < M) & (row < B)
        offs = row * M + offs_m
        a = tl.load(a_ptr + offs, mask=mask, other=0.0).to(ACC)
        total += a * tl.load(b_ptr + offs, mask=mask, other=0.0).to(ACC)
    offs = pid_p.to(tl.int64) * M + offs_m
    tl.store(partial_ptr + offs, total.to(partial_ptr.dtype.element_ty), mask=offs_m < M)


# With more than one time of a synapse its neighbours lie apart, and nothing is read in order.
_IN_ORDER = READ.where("D", 1)

STREAMS = {
    "select_fwd_kernel": streams(
        "BLOCK", sel=READ, value=WRITE, slope=WRITE, pos_rate_slope=WRITE,
        neg_rate_slope=WRITE.where("DOUBLE", True),
    ),
    "select_bwd_kernel": streams("BLOCK", sel=_IN_ORDER, dvalue=_IN_ORDER),
    "batch_dot_kernel": streams("BLOCK", a=READ, b=READ),
}  # fmt: skip
