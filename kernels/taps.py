"""Connections with a weight and a delay as taps, and the gradients back to them."""

import triton
import triton.language as tl

from .common import coefficient, gradient, locate, store_as, tile_of
from .read import taps
from .streams import READ, WRITE, streams


@triton.jit
def _tile(R, C, BLOCK_R: tl.constexpr, BLOCK: tl.constexpr):
    """A program's tile: its place ``(row, column)`` among the tiles, its outputs and inputs."""
    column, row = tile_of(tl.program_id(0), C, BLOCK)
    offs_r = row.to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    offs_c = column * BLOCK + tl.arange(0, BLOCK)
    return row, column, offs_r[:, None], offs_c[None, :]


@triton.jit
def _located(
    delay_ptr, offs_r, offs_c, mask, C, K, lower, step, inverse, limit, tolerance,
    PER_OUTPUT: tl.constexpr, PER_INPUT: tl.constexpr,
    DIVIDE: tl.constexpr, EPSILON: tl.constexpr, TIME: tl.constexpr,
):  # fmt: skip
    """Whole steps back, the fraction of a step from there, and whether the delay is in its bounds.

    The fraction of a NaN is NaN, and it counts as no step.
    """
    offs = tl.zeros(mask.shape, tl.int64)
    if PER_OUTPUT:
        offs += offs_r
    if PER_INPUT:
        offs = offs * C + offs_c
    delay = tl.load(delay_ptr + offs, mask=mask, other=0.0).to(TIME)
    # In the dtype of the delays, half precision via float32: what they are kept in is what counts.
    least = tl.full(delay.shape, lower, TIME).to(delay_ptr.dtype.element_ty).to(TIME)
    most = tl.full(delay.shape, limit, TIME).to(delay_ptr.dtype.element_ty).to(TIME)
    time = tl.where(delay < least, least, delay)
    older, fraction, _, _ = locate(time, K, step, inverse, limit, tolerance, DIVIDE, EPSILON)
    valid = time == time
    older = tl.where(valid, older, 0.0)
    return older, tl.where(valid, fraction, float("nan")), (delay >= least) & (delay <= most)


@triton.jit
def _weighing(
    older, fraction, rate_ptr, offs_c, K, C, inverse,
    MODE: tl.constexpr, SECOND: tl.constexpr, RATE_PER_INPUT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """What a connection's weight is multiplied by, and the derivatives of that to delay and rate.

    The second component of a pair counts negatively, unless the first feeds it.
    """
    rate = coefficient(rate_ptr, offs_c, offs_c < C, RATE_PER_INPUT)
    _, factor, slope, rate_slope, _, _ = taps(older, fraction, rate, K, inverse, MODE, SECOND, ACC)
    if SECOND and MODE != "alpha":
        return -factor, -slope, -rate_slope
    else:
        return factor, slope, rate_slope


@triton.jit(do_not_specialize=["K"])
def taps_kernel(
    weight_ptr, delay_ptr, rate_ptr, second_rate_ptr,
    back_ptr, tap_ptr, second_tap_ptr,
    lower: tl.float64, step: tl.float64, inverse: tl.float64, limit: tl.float64,
    tolerance: tl.float64,
    R, C, K,
    DELAY_PER_OUTPUT: tl.constexpr, DELAY_PER_INPUT: tl.constexpr,
    RATE_PER_INPUT: tl.constexpr, SECOND_RATE_PER_INPUT: tl.constexpr,
    MODE: tl.constexpr, DIVIDE: tl.constexpr, EPSILON: tl.constexpr,
    TIME: tl.constexpr, ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``back[r, c]`` whole steps, and ``tap[r, c] = weight[r, c] * factor`` of each component.

    ``weight [R, C]``, of outputs and inputs; ``delay`` the same, or with one row or column for all;
    rates one number or ``[C]``. Delays count within ``[lower, limit]``. Bytes per element in
    float32: weight 4, delay 4, back 4, tap 4, second_tap 4.
    """
    _, _, offs_r, offs_c = _tile(R, C, BLOCK_R, BLOCK)
    mask = (offs_r < R) & (offs_c < C)
    offs = offs_r * C + offs_c
    older, fraction, _ = _located(
        delay_ptr, offs_r, offs_c, mask, C, K, lower, step, inverse, limit, tolerance,
        DELAY_PER_OUTPUT, DELAY_PER_INPUT, DIVIDE, EPSILON, TIME,
    )  # fmt: skip
    tl.store(back_ptr + offs, older.to(tl.int32), mask=mask)
    weight = tl.load(weight_ptr + offs, mask=mask, other=0.0).to(ACC)
    factor, _, _ = _weighing(
        older, fraction, rate_ptr, offs_c, K, C, inverse, MODE, False, RATE_PER_INPUT, ACC
    )
    tl.store(tap_ptr + offs, weight * factor, mask=mask)
    if second_rate_ptr is not None:
        factor, _, _ = _weighing(
            older, fraction, second_rate_ptr, offs_c, K, C, inverse,
            MODE, True, SECOND_RATE_PER_INPUT, ACC,
        )  # fmt: skip
        tl.store(second_tap_ptr + offs, weight * factor, mask=mask)


@triton.jit
def _store_rate(drate_ptr, drate, row, offs_c, C):
    """Stores the part of a rate's gradient that a tile's outputs make up, per input."""
    part = tl.sum(drate, axis=0)[None, :]
    tl.store(drate_ptr + row.to(tl.int64) * C + offs_c, part, mask=offs_c < C)


@triton.jit
def _store_delay(
    ddelay_ptr, ddelay, row, column, offs_r, offs_c, mask, R, C,
    PER_OUTPUT: tl.constexpr, PER_INPUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Stores the gradient of the delays; along an axis of one delay, the sum over the tile."""
    if PER_OUTPUT and PER_INPUT:
        store_as(ddelay_ptr + offs_r * C + offs_c, ddelay, mask)
    elif PER_INPUT:
        part = tl.sum(ddelay, axis=0)[None, :]
        store_as(ddelay_ptr + row.to(tl.int64) * C + offs_c, part, offs_c < C)
    else:
        columns = (C - 1) // BLOCK + 1
        part = tl.sum(ddelay, axis=1)[:, None]
        if PER_OUTPUT:
            store_as(ddelay_ptr + offs_r * columns + column, part, offs_r < R)
        else:
            store_as(ddelay_ptr + row * columns + column, tl.sum(part), None)


@triton.jit(do_not_specialize=["K"])
def taps_bwd_kernel(
    dtap_ptr, dsecond_tap_ptr, weight_ptr, delay_ptr, rate_ptr, second_rate_ptr,
    dweight_ptr, ddelay_ptr, drate_ptr, dsecond_rate_ptr,
    lower: tl.float64, step: tl.float64, inverse: tl.float64, limit: tl.float64,
    tolerance: tl.float64,
    R, C, K,
    DELAY_PER_OUTPUT: tl.constexpr, DELAY_PER_INPUT: tl.constexpr,
    RATE_PER_INPUT: tl.constexpr, SECOND_RATE_PER_INPUT: tl.constexpr,
    MODE: tl.constexpr, DIVIDE: tl.constexpr, EPSILON: tl.constexpr,
    TIME: tl.constexpr, ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adjoint of ``taps_kernel`` to weights, delays and rates, those of them that have a pointer.

    Sums over a tile are stored as partial ones: of a rate ``[cdiv(R, BLOCK_R), C]``, of delays with
    an axis of one value along the tiles of that axis. The gradient of a delay outside of its bounds
    is 0. Bytes per element in float32: dtap 4, dsecond_tap 4, weight 4, delay 4, dweight 4,
    ddelay 4.
    """
    row, column, offs_r, offs_c = _tile(R, C, BLOCK_R, BLOCK)
    mask = (offs_r < R) & (offs_c < C)
    offs = offs_r * C + offs_c
    older, fraction, within = _located(
        delay_ptr, offs_r, offs_c, mask, C, K, lower, step, inverse, limit, tolerance,
        DELAY_PER_OUTPUT, DELAY_PER_INPUT, DIVIDE, EPSILON, TIME,
    )  # fmt: skip
    weight = tl.load(weight_ptr + offs, mask=mask, other=0.0).to(ACC)
    dtap = gradient(dtap_ptr, offs, mask, ACC)
    factor, slope, rate_slope = _weighing(
        older, fraction, rate_ptr, offs_c, K, C, inverse, MODE, False, RATE_PER_INPUT, ACC
    )
    dweight = dtap * factor
    ddelay = dtap * slope
    if drate_ptr is not None:
        _store_rate(drate_ptr, dtap * weight * rate_slope, row, offs_c, C)
    if second_rate_ptr is not None:
        dtap = gradient(dsecond_tap_ptr, offs, mask, ACC)
        factor, slope, rate_slope = _weighing(
            older, fraction, second_rate_ptr, offs_c, K, C, inverse,
            MODE, True, SECOND_RATE_PER_INPUT, ACC,
        )  # fmt: skip
        dweight += dtap * factor
        ddelay += dtap * slope
        if dsecond_rate_ptr is not None:
            _store_rate(dsecond_rate_ptr, dtap * weight * rate_slope, row, offs_c, C)
    if dweight_ptr is not None:
        store_as(dweight_ptr + offs, dweight, mask)
    if ddelay_ptr is not None:
        ddelay = tl.where(within, ddelay * weight, 0.0)
        _store_delay(
            ddelay_ptr, ddelay, row, column, offs_r, offs_c, mask, R, C,
            DELAY_PER_OUTPUT, DELAY_PER_INPUT, BLOCK,
        )  # fmt: skip


_DELAY = {"DELAY_PER_OUTPUT": True, "DELAY_PER_INPUT": True}

STREAMS = {
    "taps_kernel": streams(
        "BLOCK_R", "BLOCK", weight=READ, delay=READ.where(**_DELAY),
        back=WRITE, tap=WRITE, second_tap=WRITE,
    ),
    "taps_bwd_kernel": streams(
        "BLOCK_R", "BLOCK", dtap=READ, dsecond_tap=READ, weight=READ, delay=READ.where(**_DELAY),
        dweight=WRITE, ddelay=WRITE.where(**_DELAY),
    ),
}  # fmt: skip
