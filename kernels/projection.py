"""Kernels of the delayed projection: each connection reads its input some whole steps back.

``y[t, b, o] = sum_i weight[o, i] * S[t - back[o, i], b, i]`` is computed in one of three ways: as a
sum of shifted rows, whose cost does not depend on the longest delay; as a masked matrix product for
each delay, on tensor cores; or as an event-driven sum over the spikes.
"""

import triton
import triton.language as tl

from .common import position, store_as, tile_of
from .streams import READ, streams


@triton.jit(do_not_specialize=["first"])
def shift_sum_kernel(
    src_ptr, out_ptr, weight_ptr, back_ptr,
    first, R, C, J, L, unit, slots,
    stride_src_c, stride_src_j, stride_out_r, stride_out_j, stride_w_r, stride_w_c,
    ADJOINT: tl.constexpr, RING: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """``out[r, j] = sum_c weight[r, c] * src[c, j + (first - back[r, c]) * unit]``.

    A row of ``src`` holds time and batch, ``j = t * B + b`` with ``unit = B``, so that a delay is
    an offset and a tile of ``j`` is one contiguous read for each connection. ``ADJOINT`` turns the
    sign of the offset, with zeros outside of ``0 <= j < L``. ``RING``: ``src`` is a record,
    ``first`` the slot of its newest observation (or where the device keeps it), ``slots`` their
    number. Bytes per element in float32: src 4; an element is a connection at one
    output; it comes from L1 except for the first time.
    """
    ACC: tl.constexpr = weight_ptr.dtype.element_ty
    tile_j, tile_r = tile_of(tl.program_id(0), J, BLOCK)
    offs_j = tile_j.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    offs_r = tile_r * BLOCK_R + tl.arange(0, BLOCK_R)
    mask_j = offs_j < J
    mask_r = offs_r < R
    newest = position(first).to(tl.int32)
    acc = tl.zeros([BLOCK_R, BLOCK], ACC)
    for start in range(0, C, UNROLL):
        values = ()
        weights = ()
        for i in tl.static_range(UNROLL):
            c = tl.cast(start + i, tl.int64)
            live = mask_r & (tl.zeros_like(offs_r) + c < C)
            connection = offs_r.to(tl.int64) * stride_w_r + c * stride_w_c
            back = tl.load(back_ptr + connection, mask=live, other=0)
            weights += (tl.load(weight_ptr + connection, mask=live, other=0.0),)
            shift = newest - back
            if ADJOINT:
                shift = -shift
            if RING:
                shift = tl.where(shift < 0, shift + slots, shift)
            place = offs_j[None, :] + (shift.to(tl.int64) * unit)[:, None]
            inside = live[:, None] & mask_j[None, :]
            if ADJOINT:
                inside = inside & (place >= 0) & (place < L)
            row_ptr = src_ptr + tl.zeros_like(offs_r).to(tl.int64)[:, None] + c * stride_src_c
            values += (tl.load(row_ptr + place * stride_src_j, mask=inside, other=0.0).to(ACC),)
        for i in tl.static_range(UNROLL):
            acc += weights[i][:, None] * values[i]
    out_ptrs = (
        out_ptr + offs_r.to(tl.int64)[:, None] * stride_out_r + offs_j[None, :] * stride_out_j
    )
    store_as(out_ptrs, acc, mask_r[:, None] & mask_j[None, :])


@triton.jit
def shift_dot_kernel(
    dy_ptr, src_ptr, back_ptr, partial_ptr,
    first, R, C, J, share, unit, stride_dy_r, stride_dy_j, stride_src_c, stride_src_j,
    ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``sum_j dy[r, j] * src[c, j + (first - back[r, c]) * unit]``, partials over parts of ``j``.

    ``partial [parts, R, C]``, to be summed; a part is ``share`` of the ``J``. One reduction serves
    the gradients of weight and delay. Bytes per element in float32: src 4; an element is a
    connection at one ``j``, and those of ``dy`` are shared by ``BLOCK_C`` connections.
    """
    part = tl.program_id(1).to(tl.int64)
    tile_r, tile_c = tile_of(tl.program_id(0), R, BLOCK_R)
    offs_r = tile_r * BLOCK_R + tl.arange(0, BLOCK_R)
    offs_c = tile_c * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_r = offs_r < R
    mask_c = offs_c < C
    live = mask_c[:, None] & mask_r[None, :]
    connection = offs_r.to(tl.int64)[None, :] * C + offs_c[:, None]
    back = tl.load(back_ptr + connection, mask=live, other=0)
    shift = (first - back).to(tl.int64) * unit
    begin = part * share
    end = tl.minimum(begin + share, J)
    acc = tl.zeros([BLOCK_C, BLOCK_R, BLOCK], ACC)
    for start in range(begin, end, BLOCK):
        offs_j = start + tl.arange(0, BLOCK).to(tl.int64)
        mask_j = offs_j < end
        dy_at = offs_r.to(tl.int64)[:, None] * stride_dy_r + offs_j[None, :] * stride_dy_j
        dy = tl.load(dy_ptr + dy_at, mask=mask_r[:, None] & mask_j[None, :], other=0.0).to(ACC)
        place = offs_j[None, None, :] + shift[:, :, None]
        src_at = offs_c.to(tl.int64)[:, None, None] * stride_src_c + place * stride_src_j
        inside = live[:, :, None] & mask_j[None, None, :]
        acc += tl.load(src_ptr + src_at, mask=inside, other=0.0).to(ACC) * dy[None, :, :]
    total = tl.sum(acc, axis=2)
    tl.store(partial_ptr + part * R * C + connection, total, mask=live)


@triton.jit
def temporal_gemm_kernel(
    src_ptr, out_ptr, weight_ptr, back_ptr,
    first, slots, R, C, J, L, unit, stride_w_r, stride_w_c,
    ADJOINT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``out[j, r] = sum_k sum_c (back[r, c] == k) weight[r, c] * src[j + (first - k) * unit, c]``.

    ``src [L, C]`` and ``out [J, R]`` have rows of time and batch. There is one matrix product for
    each of the ``slots`` delays: ``slots`` times the operations of a dense layer, on tensor cores
    in the stated precision (``ieee``, ``tf32x3``, ``tf32``). ``ADJOINT`` turns the sign of the
    offset. No streams: tiles in shared memory are used in many products.
    """
    offs_j = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    offs_r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    mask_j = offs_j < J
    mask_r = offs_r < R
    ACC: tl.constexpr = weight_ptr.dtype.element_ty
    acc = tl.zeros([BLOCK, BLOCK_R], ACC)
    for k in range(slots):
        shift = first - k
        if ADJOINT:
            shift = -shift
        row = offs_j + tl.zeros_like(offs_j) + shift * unit
        mask_row = mask_j & (row >= 0) & (row < L)
        for start in range(0, C, BLOCK_C):
            offs_c = start + tl.arange(0, BLOCK_C)
            mask_c = offs_c < C
            a_ptrs = src_ptr + row[:, None] * C + offs_c[None, :]
            a = tl.load(a_ptrs, mask=mask_row[:, None] & mask_c[None, :], other=0.0)
            row_places = offs_r.to(tl.int64)[None, :] * stride_w_r
            connection = row_places + offs_c.to(tl.int64)[:, None] * stride_w_c
            live = mask_c[:, None] & mask_r[None, :]
            back = tl.load(back_ptr + connection, mask=live, other=-1)
            weight = tl.load(weight_ptr + connection, mask=live, other=0.0)
            b = tl.where(back == k, weight, tl.zeros_like(weight))
            acc = tl.dot(a.to(ACC), b, acc, input_precision=PRECISION, out_dtype=ACC)
    out_ptrs = out_ptr + offs_j[:, None] * R + offs_r[None, :]
    store_as(out_ptrs, acc, mask_j[:, None] & mask_r[None, :])


@triton.jit
def temporal_gemm_dot_kernel(
    dy_ptr, src_ptr, back_ptr, dweight_ptr,
    first, R, C, J, unit,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``dweight[r, c] = sum_j dy[j, r] * src[j + (first - k) * unit, c]`` with ``k = back[r, c]``.

    A program computes the matrix product of one delay ``k`` and writes where the mask selects it:
    each connection has one delay, so each is written once. No streams: tiles in shared memory are
    used in many products.
    """
    tile_r, others = tile_of(tl.program_id(0), R, BLOCK_R)
    tile_c, k = tile_of(others, C, BLOCK_C)
    offs_r = tile_r * BLOCK_R + tl.arange(0, BLOCK_R)
    offs_c = tile_c * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_r = offs_r < R
    mask_c = offs_c < C
    ACC: tl.constexpr = dweight_ptr.dtype.element_ty
    acc = tl.zeros([BLOCK_R, BLOCK_C], ACC)
    for start in range(0, tl.cast(J, tl.int64), BLOCK):
        offs_j = start + tl.arange(0, BLOCK)
        mask_j = offs_j < J
        dy_ptrs = dy_ptr + offs_j[None, :] * R + offs_r[:, None]
        dy = tl.load(dy_ptrs, mask=mask_r[:, None] & mask_j[None, :], other=0.0)
        row = offs_j + tl.cast(unit, tl.int64) * (first - k)
        src_ptrs = src_ptr + row[:, None] * C + offs_c[None, :]
        src = tl.load(src_ptrs, mask=mask_j[:, None] & mask_c[None, :], other=0.0)
        acc = tl.dot(dy.to(ACC), src.to(ACC), acc, input_precision=PRECISION, out_dtype=ACC)
    live = mask_r[:, None] & mask_c[None, :]
    connection = offs_r.to(tl.int64)[:, None] * C + offs_c[None, :]
    back = tl.load(back_ptr + connection, mask=live, other=-1)
    tl.store(dweight_ptr + connection, acc, mask=live & (back == k))


@triton.jit
def _lowest_bit(word):
    """Index of the lowest bit that is set: the exponent of that bit as a float."""
    exponent = (word & -word).to(tl.float32).to(tl.int32, bitcast=True)
    return ((exponent >> 23) & 0xFF) - 127


@triton.jit
def spike_sum_kernel(
    words_ptr, weight_ptr, back_ptr, out_ptr,
    T, share, slots, B, W, N,
    BLOCK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """``out[t, b, o] += sum_i weight[i, o] * x[t - back[i, o], b, i]``, one spike at a time.

    ``words [T, B, W]`` the spikes, 32 inputs a word; ``weight, back [I, O]``, ``back < slots``;
    ``out [T, B, O]`` zeros. A program owns ``share`` steps of one row of the batch and ``BLOCK``
    outputs, so that it adds without atomics and in the order of time; it handles the spikes of its
    steps and of the ``slots - 1`` before them. It prefetches the next word; the connections of
    ``UNROLL`` spikes are in flight at once. Moves 1/8 byte per input and step, and 16
    bytes per spike and output. No streams: what is read depends on the spikes.
    """
    tile_o, row = tile_of(tl.program_id(0), N, BLOCK)
    b = row.to(tl.int64)
    offs_o = tile_o * BLOCK + tl.arange(0, BLOCK)
    mask_o = offs_o < N
    first = tl.program_id(1) * share
    end = first + tl.minimum(share, T - first)
    start = tl.maximum(first - slots + 1, 0)
    width = tl.cast(W, tl.int64)
    row_ptr = words_ptr + (start * tl.cast(B, tl.int64) + b) * width
    ahead = tl.load(row_ptr, mask=start < end, other=0)
    for t in range(start, end):
        next_row_ptr = row_ptr + B * width
        for w in range(W):
            word = ahead
            within = w + 1 < W
            next_ptr = tl.where(within, row_ptr + w + 1, next_row_ptr)
            ahead = tl.load(next_ptr, mask=within | (t + 1 < end), other=0)
            while word != 0:
                weights = ()
                rows = ()
                for _ in tl.static_range(UNROLL):
                    live = mask_o & (tl.zeros_like(offs_o) + word != 0)
                    connection = (w * 32 + _lowest_bit(word)).to(tl.int64) * N + offs_o
                    weights += (tl.load(weight_ptr + connection, mask=live, other=0.0),)
                    rows += (t + tl.load(back_ptr + connection, mask=live, other=T),)
                    word = word & (word - 1)
                for i in tl.static_range(UNROLL):
                    live = (rows[i] >= first) & (rows[i] < end)
                    out_ptrs = out_ptr + (rows[i].to(tl.int64) * B + b) * N + offs_o
                    total = tl.load(out_ptrs, mask=live, other=0.0) + weights[i]
                    tl.store(out_ptrs, total, mask=live)
                    # May be loaded next by a different thread from the one that stored it.
                    tl.debug_barrier()
        row_ptr = next_row_ptr


@triton.jit
def spike_dot_kernel(
    words_ptr, dy_ptr, back_ptr, partial_ptr,
    V, share, J, unit, C, N,
    ACC: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """``sum_j x[j, i] * dy[j + back[i, o] * unit, o]``, partials over parts of the words.

    ``words [C, V]`` the spikes, 32 of ``j = t * B + b`` a word, ``unit = B``; ``dy [J, N]``;
    ``partial [parts, C, N]``, to be summed; a part is ``share`` of the ``V`` words. It prefetches
    the next word; the rows of ``UNROLL`` spikes are in flight at once. Moves 1/8 byte per input and
    step, and 4 bytes per spike and output. No streams: what is read depends on the spikes.
    """
    tile_o, source = tile_of(tl.program_id(0), N, BLOCK)
    i = source.to(tl.int64)
    offs_o = tile_o * BLOCK + tl.arange(0, BLOCK)
    part = tl.program_id(1).to(tl.int64)
    mask_o = offs_o < N
    delay = tl.load(back_ptr + i * N + offs_o, mask=mask_o, other=0).to(tl.int64) * unit
    acc = tl.zeros([BLOCK], ACC)
    begin = part * share
    end = tl.minimum(begin + share, V)
    ahead = tl.load(words_ptr + i * V + begin, mask=begin < end, other=0)
    for v in range(begin, end):
        word = ahead
        ahead = tl.load(words_ptr + i * V + v + 1, mask=v + 1 < end, other=0)
        while word != 0:
            values = ()
            for _ in tl.static_range(UNROLL):
                row = v * 32 + _lowest_bit(word) + delay
                live = mask_o & (row < J) & (tl.zeros_like(offs_o) + word != 0)
                values += (tl.load(dy_ptr + row * N + offs_o, mask=live, other=0.0).to(ACC),)
                word = word & (word - 1)
            for k in tl.static_range(UNROLL):
                acc += values[k]
    tl.store(partial_ptr + (part * C + i) * N + offs_o, acc, mask=mask_o)


STREAMS = {
    # In a record, neighbours in a row are apart by the number of inputs.
    "shift_sum_kernel": streams("BLOCK_R", "BLOCK", "UNROLL", src=READ.where(RING=False)),
    "shift_dot_kernel": streams("BLOCK_R", "BLOCK_C", "BLOCK", src=READ),
    "temporal_gemm_kernel": streams("BLOCK"),
    "temporal_gemm_dot_kernel": streams("BLOCK"),
    "spike_sum_kernel": streams("BLOCK"),
    "spike_dot_kernel": streams("BLOCK"),
}
