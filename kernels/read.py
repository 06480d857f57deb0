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
def taps(
    older, fraction, rate, K, inverse, MODE: tl.constexpr, SECOND: tl.constexpr, ACC: tl.constexpr
):
    """The observations that make one component's value: the whole meaning of a mode.

    Returns ``(back, weight, slope, rate_slope, near, near_weight)``. One tap lies ``back`` steps
    before the newest observation. The value is ``weight * tap``, its derivative to the time is
    ``slope * tap``, that to the rate is ``rate_slope * tap``, and the adjoint adds
    ``weight * dvalue`` there. In the mode ``linear`` a second tap lies ``near`` steps back, with
    ``near_weight`` and the opposite slope.
    """
    hit = fraction == 0.0
    back = older
    weight = tl.full(fraction.shape, 1.0, ACC)
    slope = tl.zeros(fraction.shape, ACC)
    rate_slope = tl.zeros(fraction.shape, ACC)
    near_weight = tl.zeros(fraction.shape, ACC)
    per_step = tl.full(fraction.shape, inverse, ACC)
    if MODE == "next":
        back = tl.where(hit, older, older - 1)
    if MODE == "nearest":
        back = tl.where(fraction > 0.5, older - 1, older)
    if MODE == "linear":
        # An observation is the near end of the segment before it, unless that is not kept.
        ends = hit & (older < K - 1)
        back = tl.where(ends, older + 1, older)
        near_weight = tl.where(ends, 1.0, fraction).to(ACC)
        weight = 1.0 - near_weight
        slope += per_step
    if MODE == "expdecay" or MODE == "alpha":
        fraction = fraction.to(ACC)
        weight = tl.exp(-(fraction * rate))
        slope = weight * (rate * per_step)
        rate_slope = -fraction * weight
        if MODE == "alpha" and not SECOND:
            # What the rise feeds into the current on the way.
            passed = fraction * rate
            slope *= passed - 1.0
            rate_slope *= passed - 1.0
            weight *= passed
    return back, weight, slope, rate_slope, tl.maximum(back - 1, 0), near_weight


@triton.jit
def _weighted(weight, tap):
    """A tap of zero weight does not count, whatever it holds."""
    return tl.where(weight == 0.0, 0.0, weight * tap)


@triton.jit
def _rate(rate_ptr, offs_n, mask, MODE: tl.constexpr, PER_SYNAPSE: tl.constexpr):
    """The rate of a component, where the mode has one."""
    if MODE == "expdecay" or MODE == "alpha":
        return coefficient(rate_ptr, offs_n, mask, PER_SYNAPSE)
    else:
        return 0.0


@triton.jit
def _component(
    record_ptr, rate_ptr, pointer, older, fraction, K, inverse, size, offs, offs_n, mask,
    MODE: tl.constexpr, RATE_PER_SYNAPSE: tl.constexpr, SECOND: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Value of one component at a time, and its derivatives to that time and to the rate.

    The compiler drops what the caller does not store.
    """
    rate = _rate(rate_ptr, offs_n, mask, MODE, RATE_PER_SYNAPSE)
    back, weight, slope, rate_slope, near, near_weight = taps(
        older, fraction, rate, K, inverse, MODE, SECOND, ACC
    )
    tap = _tap(record_ptr, pointer, back, K, size, offs, mask).to(ACC)
    value = weight * tap
    if MODE == "linear":
        near_tap = _tap(record_ptr, pointer, near, K, size, offs, mask).to(ACC)
        value = _weighted(weight, tap) + _weighted(near_weight, near_tap)
        # Subtracted first: neighbours are often close to each other.
        slope *= tap - near_tap
    if MODE == "expdecay" or MODE == "alpha":
        slope *= tap
        rate_slope *= tap
    return value, slope, rate_slope


@triton.jit
def _mixed(first, second, MODE: tl.constexpr):
    """The value of a pair: the first minus the second, in the mode ``alpha`` their sum."""
    if MODE == "alpha":
        return first + second
    else:
        return first - second


@triton.jit(do_not_specialize=["pos_pointer", "neg_pointer", "K"])
def select_fwd_kernel(
    sel_ptr, pos_ptr, neg_ptr, pos_rate_ptr, neg_rate_ptr,
    value_ptr, slope_ptr, pos_rate_slope_ptr, neg_rate_slope_ptr,
    pos_pointer, neg_pointer,
    step: tl.float64, inverse: tl.float64, limit: tl.float64, tolerance: tl.float64,
    overbound: tl.float64,
    K, B, N, D, sel_rows,
    DIVIDE: tl.constexpr, EPSILON: tl.constexpr, REPLACE: tl.constexpr,
    MODE: tl.constexpr, DOUBLE: tl.constexpr,
    POS_RATE_PER_SYNAPSE: tl.constexpr, NEG_RATE_PER_SYNAPSE: tl.constexpr,
    TIME: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``value[b, n, d]``: the record of synapse n, ``sel[b, n, d]`` ago.

    Of a pair it is ``pos - neg``, or ``pos + neg`` in the mode ``alpha``.
    ``sel [sel_rows, N, D]`` (1 row or B) in the unit of ``step``, records ``[K, B, N]``, outputs
    ``[B, N, D]``. A record may be a sequence ``[K - 1 + T, B, N]``, read at each of T steps: row
    ``t * B + b`` of the outputs ``[T * B, N, D]`` sees rows t to t + K - 1.
    ``slope`` and ``rate_slope`` (derivatives to sel and to each component's rate) are optional.
    With ``REPLACE`` ``overbound`` is the value outside of ``[0, limit]``, else the limit's is.
    Bytes per element in float32: sel 4, value 4, slope 4, pos_rate_slope 4, neg_rate_slope 4;
    and 4 per tap, spread over K rows: neighbours with similar delays share sectors.
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
    older, fraction, inside, within = locate(
        time, K, step, inverse, limit, tolerance, DIVIDE, EPSILON
    )
    older = tl.where(valid, older, 0.0).to(tl.int32)

    value, slope, rate_slope = _component(
        pos_ptr, pos_rate_ptr, position(pos_pointer), older, fraction, K, inverse, size,
        cell, offs_n, mask, MODE, POS_RATE_PER_SYNAPSE, False, ACC,
    )  # fmt: skip
    counted = valid
    if REPLACE:
        counted = valid & inside
    row = pid_b * (N * D) + offs
    if pos_rate_slope_ptr is not None:
        tl.store(pos_rate_slope_ptr + row, tl.where(counted, rate_slope, 0.0), mask=mask)
    if DOUBLE:
        neg_value, neg_slope, neg_rate_slope = _component(
            neg_ptr, neg_rate_ptr, position(neg_pointer), older, fraction, K, inverse, size,
            cell, offs_n, mask, MODE, NEG_RATE_PER_SYNAPSE, True, ACC,
        )  # fmt: skip
        value = _mixed(value, neg_value, MODE)
        slope = _mixed(slope, neg_slope, MODE)
        if neg_rate_slope_ptr is not None:
            mixed = _mixed(tl.zeros_like(neg_rate_slope), neg_rate_slope, MODE)
            tl.store(neg_rate_slope_ptr + row, tl.where(counted, mixed, 0.0), mask=mask)
    if slope_ptr is not None:
        tl.store(slope_ptr + row, tl.where(within, slope, 0.0), mask=mask)
    if REPLACE:
        value = tl.where(inside, value, tl.full(value.shape, overbound, ACC))
    if value_ptr.dtype.element_ty == tl.int1:
        tl.store(value_ptr + row, (value != 0) & valid, mask=mask)
    else:
        value = tl.where(valid, value, float("nan"))
        tl.store(value_ptr + row, value.to(value_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _scatter(
    drecord_ptr, rate_ptr, pointer, dvalue, older, fraction, K, inverse, size, offs, offs_n, mask,
    MODE: tl.constexpr, RATE_PER_SYNAPSE: tl.constexpr, SECOND: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Adds ``dvalue`` to the taps that made one component's value."""
    rate = _rate(rate_ptr, offs_n, mask, MODE, RATE_PER_SYNAPSE)
    back, weight, _, _, near, near_weight = taps(
        older, fraction, rate, K, inverse, MODE, SECOND, ACC
    )
    if MODE == "linear":
        _add_at(drecord_ptr, pointer, back, _weighted(weight, dvalue), K, size, offs, mask)
        _add_at(drecord_ptr, pointer, near, _weighted(near_weight, dvalue), K, size, offs, mask)
    else:
        _add_at(drecord_ptr, pointer, back, weight * dvalue, K, size, offs, mask)


@triton.jit
def _add_at(drecord_ptr, pointer, steps, value, K, size, offs, mask):
    """Adds to the observations ``steps`` before the newest; a later call sees the sums."""
    ptrs = drecord_ptr + ring_slot(pointer, steps + 1, K).to(tl.int64) * size + offs
    total = tl.load(ptrs, mask=mask).to(value.dtype) + value
    tl.store(ptrs, total.to(drecord_ptr.dtype.element_ty), mask=mask)
    # The element may be loaded next by a different thread from the one that stored it.
    tl.debug_barrier()


@triton.jit(do_not_specialize=["pos_pointer", "neg_pointer", "K", "steps"])
def select_bwd_kernel(
    sel_ptr, dvalue_ptr, dpos_ptr, dneg_ptr, pos_rate_ptr, neg_rate_ptr,
    pos_pointer, neg_pointer,
    step: tl.float64, inverse: tl.float64, limit: tl.float64, tolerance: tl.float64,
    K, B, N, D, sel_rows, steps,
    DIVIDE: tl.constexpr, EPSILON: tl.constexpr, REPLACE: tl.constexpr,
    MODE: tl.constexpr, DOUBLE: tl.constexpr,
    POS_RATE_PER_SYNAPSE: tl.constexpr, NEG_RATE_PER_SYNAPSE: tl.constexpr,
    TIME: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adjoint of the read to the record: ``drecord[slot] += weight * dvalue``, in place.

    Shapes as in the forward kernel. A program owns its synapses and handles their times in
    order, so no atomics are needed and runs repeat bit for bit. Bytes per element in float32:
    sel 4, dvalue 4; and 8 per tap.
    """
    tile, pid_b = tile_of(tl.program_id(0), N, BLOCK)
    pid_b = pid_b.to(tl.int64)
    offs_n = tile * BLOCK + tl.arange(0, BLOCK)
    mask = offs_n < N
    size = tl.cast(B, tl.int64) * N

    pos_slot = position(pos_pointer)
    if DOUBLE:
        neg_slot = position(neg_pointer)
    # One stage: a later iteration's loads must not move above an earlier one's stores.
    for t in tl.range(0, steps, num_stages=1):
        row = t * tl.cast(B, tl.int64) + pid_b
        cell = row * N + offs_n
        sel_row = (row % sel_rows) * N * D
        for d in tl.range(0, D, num_stages=1):
            offs = offs_n.to(tl.int64) * D + d
            time = tl.load(sel_ptr + sel_row + offs, mask=mask, other=0.0).to(TIME)
            dvalue = tl.load(dvalue_ptr + row * N * D + offs, mask=mask, other=0.0).to(ACC)
            valid = time == time
            older, fraction, inside, _ = locate(
                time, K, step, inverse, limit, tolerance, DIVIDE, EPSILON
            )
            older = tl.where(valid, older, 0.0).to(tl.int32)
            fraction = tl.where(valid, fraction, 0.0)
            if REPLACE:
                dvalue = tl.where(inside, dvalue, 0.0)
            dvalue = tl.where(valid, dvalue, 0.0)
            _scatter(
                dpos_ptr, pos_rate_ptr, pos_slot, dvalue,
                older, fraction, K, inverse, size, cell, offs_n, mask,
                MODE, POS_RATE_PER_SYNAPSE, False, ACC,
            )  # fmt: skip
            if DOUBLE:
                _scatter(
                    dneg_ptr, neg_rate_ptr, neg_slot, _mixed(tl.zeros_like(dvalue), dvalue, MODE),
                    older, fraction, K, inverse, size, cell, offs_n, mask,
                    MODE, NEG_RATE_PER_SYNAPSE, True, ACC,
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


# With several times per synapse neighbouring synapses are apart: nothing is read in order.
_IN_ORDER = READ.where(D=1)

STREAMS = {
    "select_fwd_kernel": streams(
        "BLOCK", sel=READ, value=WRITE, slope=WRITE, pos_rate_slope=WRITE,
        neg_rate_slope=WRITE.where(DOUBLE=True),
    ),
    "select_bwd_kernel": streams("BLOCK", sel=_IN_ORDER, dvalue=_IN_ORDER),
    "batch_dot_kernel": streams("BLOCK", a=READ, b=READ),
}  # fmt: skip
