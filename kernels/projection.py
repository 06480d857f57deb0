"""Kernels of the delayed projection: each connection reads its input some whole steps back.

``y[t, b, o] = sum_i weight[o, i] * S[t - back[o, i], b, i]`` is computed in one of two ways: as a
sum of shifted rows, whose cost does not depend on the longest delay; or as a masked matrix product
for each delay, on tensor cores.
"""

import triton
import triton.language as tl

from .common import position, ring_slot, store_as, tile_of
from .streams import READ, WRITE, streams

# -- shifted sums, on lines ----------------------------------------------------------------------
#
# Lines ``[N, groups, rows, WIDTH]`` hold, of each synapse, WIDTH samples of the batch step after
# step, with rows of zeros before or after: so a delay is an offset along a line that keeps loads
# aligned, and nothing in a loop needs a mask. WIDTH is 32, or less if the batch is.


@triton.jit
def lines_kernel(
    src_ptr, lines_ptr,
    T, B, N, lead, count, rows, groups, total,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``lines[n, b // WIDTH, lead + t, b % WIDTH] = src[t, b, n]``, and zeros elsewhere.

    ``src [T, B, N]``; ``lines [N, groups, rows, WIDTH]``, of which the first ``count`` rows are
    written, and what follows up to row ``total`` of all, where the last tile of a line may reach.
    Bytes per element in float32: src 4, lines 4.
    """
    tile_g, tile_n = tile_of(tl.program_id(0), groups * count, 1)
    group = tile_g % groups
    row = tile_g // groups
    offs_n = tile_n * BLOCK + tl.arange(0, BLOCK)
    lane = tl.arange(0, WIDTH)
    offs_b = group * WIDTH + lane
    t = tl.zeros_like(lane) + (row - lead)
    mask_b = (offs_b < B) & (t >= 0) & (t < T)
    place = (t.to(tl.int64) * B + offs_b) * N
    src_ptrs = src_ptr + place[None, :] + offs_n[:, None]
    values = tl.load(src_ptrs, mask=(offs_n < N)[:, None] & mask_b[None, :], other=0.0)
    line = (offs_n.to(tl.int64) * groups + group) * rows + row
    lines_ptrs = lines_ptr + line[:, None] * WIDTH + lane[None, :]
    tl.store(lines_ptrs, values, mask=(line < total)[:, None])


@triton.jit(do_not_specialize=["most"])
def shift_table_kernel(
    weight_ptr, back_ptr, weights_ptr, offsets_ptr,
    R, C, width, most, stride_w_r, stride_w_c, stride_back_r, stride_back_c, stride,
    UNIT: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``weights[c, r] = weight[r, c]`` and ``offsets[c, r] = min(back[r, c], most) * UNIT``.

    Beyond ``most`` steps all reads are the same, and products would leave int32. ``[C, width]``,
    zeros from ``R`` on, so that readers need no masks; between tiles of ``TILE`` outputs, if that
    is not 0, is room for a tile of the other. No streams: of the size of the weight.
    """
    tile_r, tile_c = tile_of(tl.program_id(0), width, BLOCK)
    offs_r = tile_r * BLOCK + tl.arange(0, BLOCK)
    offs_c = tile_c * BLOCK + tl.arange(0, BLOCK)
    live = (offs_r < R)[None, :] & (offs_c < C)[:, None]
    rows, columns = offs_r.to(tl.int64)[None, :], offs_c.to(tl.int64)[:, None]
    weight = tl.load(weight_ptr + rows * stride_w_r + columns * stride_w_c, mask=live, other=0.0)
    back = tl.load(back_ptr + rows * stride_back_r + columns * stride_back_c, mask=live, other=0)
    offset = tl.minimum(back, most).to(offsets_ptr.dtype.element_ty) * UNIT
    place = columns * stride + rows
    if TILE:
        place += rows // TILE * TILE
    inside = (offs_r < width)[None, :] & (offs_c < C)[:, None]
    tl.store(weights_ptr + place, weight, mask=inside)
    tl.store(offsets_ptr + place, offset, mask=inside)


@triton.jit
def shift_sum_kernel(
    src_ptr, out_ptr, table_ptr,
    R, C, T, B, lead, end,
    stride_src_c, stride_src_group, stride_table, stride_out_r, stride_out_t, stride_out_b,
    ADJOINT: tl.constexpr, WIDTH: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``out[r, t] = sum_c weight[r, c] * src[c, lead + t - back[r, c]]``, on lines.

    ``table [C, .., 2, BLOCK_R]`` holds of each tile of outputs the weights and, as integers of the
    same size, the offsets ``-back * WIDTH``, by :func:`shift_table_kernel`; ``src`` has ``lead``
    rows before the first step. ``ADJOINT`` reads ``src[c, t + back[r, c]]``, and the offsets are
    positive. What would be read before the first row, or from ``end`` on, is zero and read there: a
    tile of zeros stands for any number of rows.
    Bytes per element in float32: src 4; an element is a connection at one output.
    """
    ACC: tl.constexpr = table_ptr.dtype.element_ty
    INTEGER: tl.constexpr = tl.int64 if ACC == tl.float64 else tl.int32
    STEPS: tl.constexpr = BLOCK // WIDTH
    # A warp takes 128 bits of a thread at once of an output, and up to eight outputs: so it loads
    # little of the table, but several warps read the same lines, which come from L2 once.
    WIDEST: tl.constexpr = 4096 // src_ptr.dtype.element_ty.primitive_bitwidth
    LANES: tl.constexpr = BLOCK if BLOCK < WIDEST else WIDEST
    EACH: tl.constexpr = BLOCK_R if BLOCK_R < 8 else 8
    # Neighbours share lines: programs of one tile of time and batch, then the next tile of time.
    tile_r, others = tile_of(tl.program_id(0), R, BLOCK_R)
    tile_t, group = tile_of(others, T, STEPS)
    # Axes: outputs of a warp, its loads of each, warps, places of a load.
    in_tile = tl.arange(0, EACH)[:, None] + EACH * tl.arange(0, BLOCK_R // EACH)[None, :]
    in_tile = in_tile[:, None, :, None]
    i = LANES * tl.arange(0, BLOCK // LANES)[:, None] + tl.arange(0, LANES)[None, :]
    i = i[None, :, None, :]
    start = (tile_t * STEPS + lead) * WIDTH
    src_ptr += tl.cast(group, tl.int64) * stride_src_group + start
    table_ptr += 2 * BLOCK_R * tile_r
    acc = tl.zeros([EACH, BLOCK // LANES, BLOCK_R // EACH, LANES], ACC)
    for _ in range(C):
        weight = tl.load(table_ptr + in_tile)
        offset = tl.load(table_ptr + BLOCK_R + in_tile).to(INTEGER, bitcast=True)
        if ADJOINT:
            offset = tl.minimum(offset, end - start)
        else:
            offset = tl.maximum(offset, -start)
        offset = tl.multiple_of(offset, [WIDTH, WIDTH, WIDTH, WIDTH])
        values = tl.load(src_ptr + i + offset)
        src_ptr += stride_src_c
        table_ptr += stride_table
        acc += weight * values.to(ACC)
    r = tile_r * BLOCK_R + in_tile
    t = tile_t * STEPS + i // WIDTH
    b = group * WIDTH + i % WIDTH
    out_ptrs = out_ptr + r.to(tl.int64) * stride_out_r
    out_ptrs += t.to(tl.int64) * stride_out_t + b.to(tl.int64) * stride_out_b
    store_as(out_ptrs, acc, (r < R) & (t < T) & (b < B))


@triton.jit
def shift_dot_kernel(
    dy_ptr, src_ptr, back_ptr, partial_ptr,
    R, C, T, share, segments, units, lead_dy, lead,
    stride_dy_r, stride_dy_group, stride_src_c, stride_src_group,
    ACC: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``sum over t, b of dy[r, t] * src[c, t - back[r, c]]``, on lines, partials over parts.

    ``partial [parts, R, C]``, to be summed. A unit of work is a group of the batch in one of the
    ``segments`` of time, ``share`` steps; a part takes every ``parts``-th unit. ``lead`` rows stand
    before the first step, of ``dy`` ``lead_dy``; offsets before the first row as in
    :func:`shift_sum_kernel`. One reduction serves the gradients of weight and delay. Bytes per
    element in float32: src 4; an element is a connection at one output, and those of ``dy`` are
    shared by ``BLOCK_C`` connections.
    """
    STEPS: tl.constexpr = BLOCK // WIDTH
    part = tl.program_id(1)
    tile_r, tile_c = tile_of(tl.program_id(0), R, BLOCK_R)
    offs_r = tile_r * BLOCK_R + tl.arange(0, BLOCK_R)
    offs_c = tile_c * BLOCK_C + tl.arange(0, BLOCK_C)
    # Beyond the last output or input the last is computed again, and not stored.
    rows = tl.minimum(offs_r, R - 1).to(tl.int64)
    columns = tl.minimum(offs_c, C - 1).to(tl.int64)
    back = tl.load(back_ptr + rows[None, :] * C + columns[:, None])
    # Beyond so many steps all reads are the same, and the product would leave int32.
    offset = tl.minimum(back, T + lead) * WIDTH
    i = tl.arange(0, BLOCK)
    acc = tl.zeros([BLOCK_C, BLOCK_R, BLOCK], ACC)
    for unit in range(part, units, tl.num_programs(1)):
        group = tl.cast(unit // segments, tl.int64)
        first = unit % segments * share
        end = tl.minimum(first + share, T)
        dy_ptrs = dy_ptr + (rows * stride_dy_r + group * stride_dy_group + lead_dy * WIDTH)
        src_ptrs = src_ptr + (columns * stride_src_c + group * stride_src_group)
        whole = first + (end - first) // STEPS * STEPS
        for t in range(first, whole, STEPS):
            dy = tl.load(dy_ptrs[:, None] + t * WIDTH + i[None, :])
            at = tl.multiple_of(tl.maximum((t + lead) * WIDTH - offset, 0), [WIDTH, WIDTH])
            values = tl.load(src_ptrs[:, None, None] + at[:, :, None] + i[None, None, :])
            acc += values.to(ACC) * dy.to(ACC)[None, :, :]
        if whole < end:
            live = whole * WIDTH + i < end * WIDTH
            dy = tl.load(dy_ptrs[:, None] + whole * WIDTH + i[None, :], live[None, :], 0.0)
            at = tl.maximum((whole + lead) * WIDTH - offset, 0)
            src_at = src_ptrs[:, None, None] + at[:, :, None] + i[None, None, :]
            acc += tl.load(src_at, live[None, None, :], 0.0).to(ACC) * dy.to(ACC)[None, :, :]
    total = tl.sum(acc, axis=2)
    live = (offs_c < C)[:, None] & (offs_r < R)[None, :]
    at = (part.to(tl.int64) * R + rows[None, :]) * C + columns[:, None]
    tl.store(partial_ptr + at, total, mask=live)


@triton.jit(do_not_specialize=["pointer"])
def shift_step_kernel(
    record_ptr, out_ptr, weight_ptr, back_ptr,
    pointer, R, C, B, slots, stride_w_r, stride_w_c,
    BLOCK_R: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """``out[b, r] = sum_c weight[r, c] * record[(pointer - 1 - back[r, c]) % slots, b, c]``.

    ``record [slots, B, C]`` writes next at ``pointer``, a number or where the device keeps it.
    No streams: neighbours of a row of the batch may be read at different delays.
    """
    ACC: tl.constexpr = weight_ptr.dtype.element_ty
    tile_b, tile_r = tile_of(tl.program_id(0), B, BLOCK)
    offs_b = tile_b * BLOCK + tl.arange(0, BLOCK)
    offs_r = tile_r * BLOCK_R + tl.arange(0, BLOCK_R)
    mask_b = offs_b < B
    mask_r = offs_r < R
    next_slot = position(pointer).to(tl.int32)
    size = tl.cast(B, tl.int64) * C
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
            slot = ring_slot(next_slot, back + 1, slots).to(tl.int64)
            at = (slot * size + c)[:, None] + (offs_b.to(tl.int64) * C)[None, :]
            inside = live[:, None] & mask_b[None, :]
            values += (tl.load(record_ptr + at, mask=inside, other=0.0).to(ACC),)
        for i in tl.static_range(UNROLL):
            acc += weights[i][:, None] * values[i]
    out_ptrs = out_ptr + offs_b.to(tl.int64)[None, :] * R + offs_r[:, None]
    store_as(out_ptrs, acc, mask_r[:, None] & mask_b[None, :])


# -- products of matrices ------------------------------------------------------------------------


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
    offset. A tile of connections is loaded once for all delays. No streams: tiles in shared memory
    are used in many products.
    """
    offs_j = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    offs_r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    mask_j = offs_j < J
    mask_r = offs_r < R
    ACC: tl.constexpr = weight_ptr.dtype.element_ty
    acc = tl.zeros([BLOCK, BLOCK_R], ACC)
    for start in range(0, C, BLOCK_C):
        offs_c = start + tl.arange(0, BLOCK_C)
        mask_c = offs_c < C
        row_places = offs_r.to(tl.int64)[None, :] * stride_w_r
        connection = row_places + offs_c.to(tl.int64)[:, None] * stride_w_c
        live = mask_c[:, None] & mask_r[None, :]
        back = tl.load(back_ptr + connection, mask=live, other=-1)
        weight = tl.load(weight_ptr + connection, mask=live, other=0.0)
        for k in range(slots):
            shift = first - k
            if ADJOINT:
                shift = -shift
            row = offs_j + tl.zeros_like(offs_j) + shift * unit
            mask_row = mask_j & (row >= 0) & (row < L)
            a_ptrs = src_ptr + row[:, None] * C + offs_c[None, :]
            a = tl.load(a_ptrs, mask=mask_row[:, None] & mask_c[None, :], other=0.0)
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
        mask_row = mask_j & (row >= 0)
        src = tl.load(src_ptrs, mask=mask_row[:, None] & mask_c[None, :], other=0.0)
        acc = tl.dot(dy.to(ACC), src.to(ACC), acc, input_precision=PRECISION, out_dtype=ACC)
    live = mask_r[:, None] & mask_c[None, :]
    connection = offs_r.to(tl.int64)[:, None] * C + offs_c[None, :]
    back = tl.load(back_ptr + connection, mask=live, other=-1)
    tl.store(dweight_ptr + connection, acc, mask=live & (back == k))


STREAMS = {
    "lines_kernel": streams("BLOCK", "WIDTH", src=READ, lines=WRITE),
    "shift_table_kernel": streams("BLOCK"),
    "shift_sum_kernel": streams("BLOCK_R", "BLOCK", src=READ),
    "shift_dot_kernel": streams("BLOCK_R", "BLOCK_C", "BLOCK", src=READ),
    "shift_step_kernel": streams("BLOCK"),
    "temporal_gemm_kernel": streams("BLOCK"),
    "temporal_gemm_dot_kernel": streams("BLOCK"),
}
