"""Kernels of the delayed projection over a list of connections, where there are not all.

``y[t, b, o] = sum_i weight[o, i] * S[t - back[o, i], b, i]`` over the inputs ``i`` that the output
reads. A list has the connections of an output one after the other, and says for each output where
they start. Sequences are in lines, as for the sums of all connections.
"""

import triton
import triton.language as tl

from .common import position, ring_slot, store_as, tile_of
from .streams import READ, streams


@triton.jit
def _lists(starts_ptr, offs_r, R):
    """Of some outputs where their connections start, and how many they are."""
    first = tl.load(starts_ptr + offs_r, mask=offs_r < R, other=0)
    return first, tl.load(starts_ptr + offs_r + 1, mask=offs_r < R, other=0) - first


@triton.jit
def _listed(weight_ptr, back_ptr, inputs_ptr, offs, live):
    """Weight, steps back and input of the connections at these places of the lists."""
    weight = tl.load(weight_ptr + offs, mask=live, other=0.0)
    back = tl.load(back_ptr + offs, mask=live, other=0)
    return weight, back, tl.load(inputs_ptr + offs, mask=live, other=0)


@triton.jit
def links_sum_kernel(
    src_ptr, out_ptr, weight_ptr, back_ptr, inputs_ptr, starts_ptr,
    R, T, B, lead, end,
    stride_src_c, stride_src_group, stride_out_r, stride_out_t, stride_out_b,
    ADJOINT: tl.constexpr, WIDTH: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``out[r, t] = sum_c weight[r, c] * src[c, lead + t - back[r, c]]``, on lines.

    ``weight``, ``back`` and ``inputs``, the lines ``c``, are lists; ``starts [R + 1]``. ``src`` has
    ``lead`` rows before the first step. ``ADJOINT`` reads ``src[c, t + back[r, c]]``. What would be
    read before the first row, or from row ``end`` on, is zero and read there: a tile of zeros
    stands for any number of rows. Bytes per element in float32: src 4; an element is a connection
    at one output.
    """
    ACC: tl.constexpr = weight_ptr.dtype.element_ty
    STEPS: tl.constexpr = BLOCK // WIDTH
    tile_r, others = tile_of(tl.program_id(0), R, BLOCK_R)
    tile_t, group = tile_of(others, T, STEPS)
    offs_r = tile_r * BLOCK_R + tl.arange(0, BLOCK_R)
    i = tl.arange(0, BLOCK)[None, :]
    row = tile_t * STEPS + lead
    src_ptr += tl.cast(group, tl.int64) * stride_src_group + row * WIDTH
    first, count = _lists(starts_ptr, offs_r, R)
    acc = tl.zeros([BLOCK_R, BLOCK], ACC)
    for k in range(tl.max(count, 0)):
        live = k < count
        weight, back, line = _listed(weight_ptr, back_ptr, inputs_ptr, first + k, live)
        # Before the product, which might leave int32.
        steps = tl.minimum(back, end - row) if ADJOINT else -tl.minimum(back, row)
        offset = tl.multiple_of((steps * WIDTH)[:, None], [WIDTH, WIDTH])
        place = (line * stride_src_c)[:, None] + (i + offset)
        values = tl.load(src_ptr + place, mask=live[:, None], other=0.0)
        acc += weight[:, None] * values.to(ACC)
    t = tile_t * STEPS + i // WIDTH
    b = group * WIDTH + i % WIDTH
    out_ptrs = out_ptr + offs_r.to(tl.int64)[:, None] * stride_out_r
    out_ptrs += t.to(tl.int64) * stride_out_t + b.to(tl.int64) * stride_out_b
    store_as(out_ptrs, acc, (offs_r < R)[:, None] & (t < T) & (b < B))


@triton.jit
def links_dot_kernel(
    dy_ptr, src_ptr, back_ptr, outputs_ptr, inputs_ptr, partial_ptr,
    count, T, share, segments, units, lead_dy, lead,
    stride_dy_r, stride_dy_group, stride_src_c, stride_src_group,
    ACC: tl.constexpr, WIDTH: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``sum over t, b of dy[r, t] * src[c, t - back]`` of each connection, on lines.

    ``partial [parts, count]``, to be summed; ``back``, ``outputs`` and ``inputs``, the lines ``r``
    and ``c``, are lists of ``count`` connections. A unit of work is a group of the batch in one of
    the ``segments`` of time, ``share`` steps; a part takes every ``parts``-th unit. ``lead`` rows
    stand before the first step, of ``dy`` ``lead_dy``; what would be read before the first row is
    zero and read there. Bytes per element in float32: dy 4, src 4; an element is a connection at
    one output.
    """
    STEPS: tl.constexpr = BLOCK // WIDTH
    part = tl.program_id(1)
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    live = offs_n < count
    # Beyond the last connection the last is computed again, and not stored.
    at = tl.minimum(offs_n, count - 1)
    rows, columns = tl.load(outputs_ptr + at), tl.load(inputs_ptr + at)
    # Beyond so many steps all reads are the same, and the product would leave int32.
    offset = tl.minimum(tl.load(back_ptr + at), T + lead) * WIDTH
    i = tl.arange(0, BLOCK)[None, :]
    acc = tl.zeros([BLOCK_C, BLOCK], ACC)
    for unit in range(part, units, tl.num_programs(1)):
        group = tl.cast(unit // segments, tl.int64)
        first = unit % segments * share
        end = tl.minimum(first + share, T)
        dy_ptrs = dy_ptr + (rows * stride_dy_r + group * stride_dy_group + lead_dy * WIDTH)
        src_ptrs = src_ptr + (columns * stride_src_c + group * stride_src_group)
        for t in range(first, end, STEPS):
            inside = t * WIDTH + i < end * WIDTH
            place = tl.multiple_of(tl.maximum((t + lead) * WIDTH - offset, 0), [WIDTH])
            dy = tl.load(dy_ptrs[:, None] + t * WIDTH + i, inside, 0.0)
            values = tl.load(src_ptrs[:, None] + place[:, None] + i, inside, 0.0)
            acc += dy.to(ACC) * values.to(ACC)
    tl.store(partial_ptr + part.to(tl.int64) * count + offs_n, tl.sum(acc, axis=1), mask=live)


@triton.jit(do_not_specialize=["pointer"])
def links_step_kernel(
    record_ptr, out_ptr, weight_ptr, back_ptr, inputs_ptr, starts_ptr,
    pointer, R, C, B, slots,
    BLOCK_R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``out[b, r] = sum_c weight[r, c] * record[(pointer - 1 - back[r, c]) % slots, b, c]``.

    ``weight``, ``back`` and ``inputs``, the synapses ``c``, are lists; ``starts [R + 1]``.
    ``record [slots, B, C]`` writes next at ``pointer``, a number or where the device keeps it.
    No streams: neighbours of a row of the batch may be read at different delays.
    """
    ACC: tl.constexpr = weight_ptr.dtype.element_ty
    tile_b, tile_r = tile_of(tl.program_id(0), B, BLOCK)
    offs_b = tile_b * BLOCK + tl.arange(0, BLOCK)
    offs_r = tile_r * BLOCK_R + tl.arange(0, BLOCK_R)
    mask_b = offs_b < B
    next_slot = position(pointer).to(tl.int32)
    size = tl.cast(B, tl.int64) * C
    first, count = _lists(starts_ptr, offs_r, R)
    acc = tl.zeros([BLOCK_R, BLOCK], ACC)
    for k in range(tl.max(count, 0)):
        live = k < count
        weight, back, c = _listed(weight_ptr, back_ptr, inputs_ptr, first + k, live)
        slot = ring_slot(next_slot, back + 1, slots).to(tl.int64)
        place = (slot * size + c)[:, None] + (offs_b.to(tl.int64) * C)[None, :]
        values = tl.load(record_ptr + place, mask=live[:, None] & mask_b[None, :], other=0.0)
        acc += weight[:, None] * values.to(ACC)
    out_ptrs = out_ptr + offs_b.to(tl.int64)[None, :] * R + offs_r[:, None]
    store_as(out_ptrs, acc, (offs_r < R)[:, None] & mask_b[None, :])


STREAMS = {
    "links_sum_kernel": streams("BLOCK_R", "BLOCK", src=READ),
    "links_dot_kernel": streams("BLOCK_C", "BLOCK", dy=READ, src=READ),
    "links_step_kernel": streams("BLOCK"),
}
