"""Delayed reads of a record: a gather with interpolation, and its adjoints."""

import triton
import triton.language as tl

from .common import coefficient, locate, position, ring_slot, tile_of
from .streams import READ, WRITE, streams


@triton.jit
def _rows(group, sel_row, sel_rows, shared, TOGETHER: tl.constexpr, UNROLL: tl.constexpr):
    """``UNROLL`` of the ``shared`` rows that share a row of times; where there are fewer, the last
    of them again, which comes to the same. Those that share one follow each other if they are
    ``TOGETHER``, else they are ``sel_rows`` apart."""
    rows = ()
    for i in tl.static_range(UNROLL):
        row = tl.minimum(group * UNROLL + i, tl.cast(shared, tl.int32) - 1)
        if TOGETHER:
            rows += (sel_row.to(tl.int64) * shared + row,)
        else:
            rows += (row.to(tl.int64) * sel_rows + sel_row,)
    return rows


@triton.jit
def _place(slot, back, K, size, offs_n):
    """Where in a record the first row's observations ``back`` steps before the newest are."""
    return ring_slot(slot, back + 1, K).to(tl.int64) * size + offs_n


@triton.jit
def _loaded(ptrs, rows, stride_row, mask, UNROLL: tl.constexpr):
    """What lies there in each of some rows."""
    values = ()
    for i in tl.static_range(UNROLL):
        values += (tl.load(ptrs + rows[i] * stride_row, mask=mask),)
    return values


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
def _component(found, far, near, MODE: tl.constexpr, ACC: tl.constexpr):
    """Value of one component at a time, and its derivatives to that time and to the rate.

    ``found`` is what :func:`taps` returns; ``far`` and ``near`` are the observations. The compiler
    drops what the caller does not store.
    """
    _, weight, slope, rate_slope, _, near_weight = found
    tap = far.to(ACC)
    value = tap
    if MODE == "linear":
        near_tap = near.to(ACC)
        value = _weighted(weight, tap) + _weighted(near_weight, near_tap)
        # Subtracted first: neighbours are often close to each other.
        slope *= tap - near_tap
    if MODE == "expdecay" or MODE == "alpha":
        value = weight * tap
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
    K, B, N, D, sel_rows, shared,
    DIVIDE: tl.constexpr, EPSILON: tl.constexpr, REPLACE: tl.constexpr,
    MODE: tl.constexpr, DOUBLE: tl.constexpr, PER_STEP: tl.constexpr,
    POS_RATE_PER_SYNAPSE: tl.constexpr, NEG_RATE_PER_SYNAPSE: tl.constexpr,
    TIME: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """``value[b, n, d]``: the record of synapse n, ``sel[b, n, d]`` ago.

    Of a pair it is ``pos - neg``, or ``pos + neg`` in the mode ``alpha``.
    ``sel [sel_rows, N, D]`` (1 row or B) in the unit of ``step``, records ``[K, B, N]``, outputs
    ``[B, N, D]``. A record may be a sequence ``[K - 1 + T, B, N]``, read at each of T steps: row
    ``t * B + b`` of the outputs ``[T * B, N, D]`` sees rows t to t + K - 1. With ``PER_STEP`` times
    are ``[T, sel_rows, N, D]``. Each row of times is that of ``shared`` rows of the outputs; a
    program locates its times once for ``UNROLL`` of them.
    ``slope`` and ``rate_slope`` (derivatives to sel and to each component's rate) are optional.
    With ``REPLACE`` ``overbound`` is the value outside of ``[0, limit]``, else the limit's is.
    Bytes per element in float32: sel 4 (one for ``UNROLL`` rows), value 4, slope 4,
    pos_rate_slope 4, neg_rate_slope 4; and 4 per tap, spread over K rows: neighbours with similar
    delays share sectors.
    """
    tile, rest = tile_of(tl.program_id(0), N * D, BLOCK)
    group, sel_row = tile_of(rest, shared, UNROLL)
    rows = _rows(group, sel_row, sel_rows, shared, PER_STEP, UNROLL)
    offs = tile * BLOCK + tl.arange(0, BLOCK)
    mask = offs < N * D
    offs_n = offs // D
    size = tl.cast(B, tl.int64) * N

    pos_rate = _rate(pos_rate_ptr, offs_n, mask, MODE, POS_RATE_PER_SYNAPSE)
    pos_slot = position(pos_pointer)
    time = tl.load(sel_ptr + sel_row.to(tl.int64) * (N * D) + offs, mask=mask).to(TIME)
    valid = time == time
    older, fraction, inside, within = locate(
        time, K, step, inverse, limit, tolerance, DIVIDE, EPSILON
    )
    older = tl.where(valid, older, 0.0).to(tl.int32)
    counted = valid
    # What stands for a value that does not count: of a NaN time NaN, or no spike.
    instead = tl.full([BLOCK], 0.0 if value_ptr.dtype.element_ty == tl.int1 else float("nan"), ACC)
    if REPLACE:
        counted = valid & inside
        instead = tl.where(valid, tl.full([BLOCK], overbound, ACC), instead)

    pos = taps(older, fraction, pos_rate, K, inverse, MODE, False, ACC)
    pos_far = _loaded(pos_ptr + _place(pos_slot, pos[0], K, size, offs_n), rows, N, mask, UNROLL)
    pos_near = pos_far
    if MODE == "linear":
        near = _place(pos_slot, pos[4], K, size, offs_n)
        pos_near = _loaded(pos_ptr + near, rows, N, mask, UNROLL)
    if DOUBLE:
        neg_rate = _rate(neg_rate_ptr, offs_n, mask, MODE, NEG_RATE_PER_SYNAPSE)
        neg_slot = position(neg_pointer)
        neg = taps(older, fraction, neg_rate, K, inverse, MODE, True, ACC)
        far = _place(neg_slot, neg[0], K, size, offs_n)
        neg_far = _loaded(neg_ptr + far, rows, N, mask, UNROLL)
        neg_near = neg_far
        if MODE == "linear":
            near = _place(neg_slot, neg[4], K, size, offs_n)
            neg_near = _loaded(neg_ptr + near, rows, N, mask, UNROLL)

    for i in tl.static_range(UNROLL):
        row = rows[i] * (N * D)
        value, slope, rate_slope = _component(pos, pos_far[i], pos_near[i], MODE, ACC)
        if pos_rate_slope_ptr is not None:
            kept = tl.where(counted, rate_slope, 0.0)
            tl.store(pos_rate_slope_ptr + row + offs, kept, mask=mask)
        if DOUBLE:
            neg_value, neg_slope, rate_slope = _component(neg, neg_far[i], neg_near[i], MODE, ACC)
            value = _mixed(value, neg_value, MODE)
            slope = _mixed(slope, neg_slope, MODE)
            if neg_rate_slope_ptr is not None:
                kept = tl.where(counted, _mixed(0.0, rate_slope, MODE), 0.0)
                tl.store(neg_rate_slope_ptr + row + offs, kept, mask=mask)
        if slope_ptr is not None:
            tl.store(slope_ptr + row + offs, tl.where(within, slope, 0.0), mask=mask)
        value = tl.where(counted, value, instead)
        if value_ptr.dtype.element_ty == tl.int1:
            tl.store(value_ptr + row + offs, value != 0, mask=mask)
        else:
            tl.store(value_ptr + row + offs, value.to(value_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _add_at(
    ptrs, rows, stride_row, weight, dvalues, mask, MODE: tl.constexpr, UNROLL: tl.constexpr
):  # fmt: skip
    """Adds weighted values in each of some rows; a later call sees the sums.

    All are loaded first, so that a row which stands there twice is added to once.
    """
    totals = _loaded(ptrs, rows, stride_row, mask, UNROLL)
    sums = ()
    for i in tl.static_range(UNROLL):
        share = weight * dvalues[i]
        if MODE == "linear":
            share = _weighted(weight, dvalues[i])
        sums += (totals[i].to(weight.dtype) + share,)
    for i in tl.static_range(UNROLL):
        tl.store(ptrs + rows[i] * stride_row, sums[i].to(ptrs.dtype.scalar.element_ty), mask=mask)
    # The element may be loaded next by a different thread from the one that stored it.
    tl.debug_barrier()


@triton.jit
def _scatter(
    drecord_ptr, slot, found, rows, dvalues, K, size, N, offs_n, mask,
    MODE: tl.constexpr, SECOND: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Adds the values' gradients to the taps that made one component of them."""
    back, weight, _, _, near, near_weight = found
    if SECOND and MODE != "alpha":
        weight, near_weight = -weight, -near_weight
    far_ptrs = drecord_ptr + _place(slot, back, K, size, offs_n)
    _add_at(far_ptrs, rows, N, weight, dvalues, mask, MODE, UNROLL)
    if MODE == "linear":
        near_ptrs = drecord_ptr + _place(slot, near, K, size, offs_n)
        _add_at(near_ptrs, rows, N, near_weight, dvalues, mask, MODE, UNROLL)


@triton.jit(do_not_specialize=["pos_pointer", "neg_pointer", "K", "steps"])
def select_bwd_kernel(
    sel_ptr, dvalue_ptr, dpos_ptr, dneg_ptr, pos_rate_ptr, neg_rate_ptr,
    pos_pointer, neg_pointer,
    step: tl.float64, inverse: tl.float64, limit: tl.float64, tolerance: tl.float64,
    K, B, N, D, sel_rows, shared, steps,
    DIVIDE: tl.constexpr, EPSILON: tl.constexpr, REPLACE: tl.constexpr,
    MODE: tl.constexpr, DOUBLE: tl.constexpr, PER_STEP: tl.constexpr,
    POS_RATE_PER_SYNAPSE: tl.constexpr, NEG_RATE_PER_SYNAPSE: tl.constexpr,
    TIME: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Adjoint of the read to the record: ``drecord[slot] += weight * dvalue``, in place.

    Shapes as in the forward kernel. A program owns its synapses in up to ``UNROLL`` of the
    ``shared`` rows of the batch that have the same times, and handles those in order, so no atomics
    are needed and runs repeat bit for bit. Bytes per element in float32: sel 4 (one for ``UNROLL``
    rows), dvalue 4; and 8 per tap.
    """
    tile, rest = tile_of(tl.program_id(0), N, BLOCK)
    group, sel_row = tile_of(rest, shared, UNROLL)
    rows = _rows(group, sel_row, sel_rows, shared, False, UNROLL)
    offs_n = tile * BLOCK + tl.arange(0, BLOCK)
    mask = offs_n < N
    size = tl.cast(B, tl.int64) * N

    pos_slot = position(pos_pointer)
    pos_rate = _rate(pos_rate_ptr, offs_n, mask, MODE, POS_RATE_PER_SYNAPSE)
    if DOUBLE:
        neg_slot = position(neg_pointer)
        neg_rate = _rate(neg_rate_ptr, offs_n, mask, MODE, NEG_RATE_PER_SYNAPSE)
    # One stage: a later iteration's loads must not move above an earlier one's stores.
    for t in tl.range(0, steps, num_stages=1):
        start = t * size
        times_row = sel_row.to(tl.int64)
        if PER_STEP:
            times_row += t * sel_rows
        for d in tl.range(0, D, num_stages=1):
            offs = offs_n.to(tl.int64) * D + d
            time = tl.load(sel_ptr + times_row * N * D + offs, mask=mask).to(TIME)
            given = _loaded(
                dvalue_ptr + start * D + offs, rows, tl.cast(N, tl.int64) * D, mask, UNROLL
            )
            valid = time == time
            older, fraction, inside, _ = locate(
                time, K, step, inverse, limit, tolerance, DIVIDE, EPSILON
            )
            older = tl.where(valid, older, 0.0).to(tl.int32)
            fraction = tl.where(valid, fraction, 0.0)
            counted = valid
            if REPLACE:
                counted = valid & inside
            dvalues = ()
            for i in tl.static_range(UNROLL):
                dvalues += (tl.where(counted, given[i].to(ACC), 0.0),)
            pos = taps(older, fraction, pos_rate, K, inverse, MODE, False, ACC)
            _scatter(
                dpos_ptr + start, pos_slot, pos, rows, dvalues, K, size, N, offs_n, mask,
                MODE, False, UNROLL,
            )  # fmt: skip
            if DOUBLE:
                neg = taps(older, fraction, neg_rate, K, inverse, MODE, True, ACC)
                _scatter(
                    dneg_ptr + start, neg_slot, neg, rows, dvalues, K, size, N, offs_n, mask,
                    MODE, True, UNROLL,
                )  # fmt: skip


@triton.jit
def batch_dot_kernel(
    a_ptr, b_ptr, partial_ptr, B, M,
    GROUPS: tl.constexpr, ROWS: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``partial[p, m]``: sum of ``a[i, m] * b[i, m]`` over the p-th group of ``ROWS`` rows.

    ``a, b [B, M]``, ``partial [cdiv(B, ROWS), M]``, or with ``GROUPS`` as many of each as there
    are. Bytes per element in float32: a 4, b 4; and a write per group.
    """
    tile, part = tile_of(tl.program_id(0), M, BLOCK)
    pid_p = part
    if GROUPS:
        pid_p, pid_g = tile_of(part, B, ROWS)
    offs_m = tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], ACC)
    for i in range(ROWS):
        # A vector, because the interpreter cannot mask a vector with a scalar.
        row = tl.zeros_like(offs_m) + pid_p * ROWS + i
        mask = (offs_m < M) & (row < B)
        if GROUPS:
            row += pid_g.to(tl.int64) * B
        offs = row * M + offs_m
        a = tl.load(a_ptr + offs, mask=mask, other=0.0).to(ACC)
        total += a * tl.load(b_ptr + offs, mask=mask, other=0.0).to(ACC)
    offs = part.to(tl.int64) * M + offs_m
    tl.store(partial_ptr + offs, total.to(partial_ptr.dtype.element_ty), mask=offs_m < M)


# With several times per synapse neighbouring synapses are apart: nothing is read in order.
STREAMS = {
    "select_fwd_kernel": streams(
        "BLOCK", "UNROLL", sel=READ.where(UNROLL=1), value=WRITE, slope=WRITE, pos_rate_slope=WRITE,
        neg_rate_slope=WRITE.where(DOUBLE=True),
    ),
    "select_bwd_kernel": streams(
        "BLOCK", "UNROLL", sel=READ.where(D=1, UNROLL=1), dvalue=READ.where(D=1)
    ),
    "batch_dot_kernel": streams("BLOCK", a=READ, b=READ),
}  # fmt: skip
