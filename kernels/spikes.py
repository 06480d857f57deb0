"""Kernels of the delayed projection of spikes, which are one bit each.

``y[t, b, o] = sum_i weight[i, o] * x[t - back[i, o], b, i]`` is computed densely from bits over
time, where a delay is a shift of a word, or in a walk over the spikes alone.
"""

import triton
import triton.language as tl
from triton import knobs

from .common import tile_of
from .streams import streams

# The interpreter has no inline assembly.
INTERPRETED = tl.constexpr(knobs.runtime.interpret)


@triton.jit
def pack_trains_kernel(
    x_ptr, words_ptr, T, B, N, W, V, lead, PACKED: tl.constexpr, BLOCK: tl.constexpr
):
    """Bit ``t % 32`` of ``words[b, n, lead + t // 32]`` is ``x[t, b, n] != 0``.

    ``x [T, B, N]``, or as words ``[T, B, W]`` of 32 synapses; ``words [B, N, V]`` int32 and two
    more, zero before the first step and after the last. Moves each value of ``x`` once and
    ``V / T`` words for it. No streams: the 32 steps of a word lie a row apart.
    """
    tile, others = tile_of(tl.program_id(0), N, BLOCK)
    v, row = tile_of(others, V, 1)
    b = row.to(tl.int64)
    offs_n = tile * BLOCK + tl.arange(0, BLOCK)
    mask = offs_n < N
    first = (v - lead) * 32
    word = tl.zeros([BLOCK], tl.int32)
    if first >= 0:
        values = ()
        for i in tl.static_range(32):
            # The last step again stands for those beyond it, whose bits are cleared below.
            at = tl.minimum(first + i, T - 1).to(tl.int64) * B + b
            if PACKED:
                bits = tl.load(x_ptr + at * W + offs_n // 32, mask=mask, other=0)
                values += ((bits >> (offs_n % 32)) & 1,)
            else:
                value = tl.load(x_ptr + at * N + offs_n, mask=mask, other=0)
                values += ((value != 0).to(tl.int32),)
        for i in tl.static_range(32):
            word |= values[i] << i
        word &= tl.where(first + 32 <= T, -1, (1 << ((T - first) & 31)) - 1)
    tl.store(words_ptr + (b * N + offs_n) * V + v, word, mask=mask)
    if tl.program_id(0) == 0:
        beyond = words_ptr + tl.cast(B, tl.int64) * N * V + tl.arange(0, 2)
        tl.store(beyond, tl.zeros([2], tl.int32))


@triton.jit
def _zeros(BLOCK: tl.constexpr, dtype: tl.constexpr, count: tl.constexpr):
    """So many zeros of a tile."""
    zeros = ()
    for _ in tl.static_range(count):
        zeros += (tl.zeros([BLOCK], dtype),)
    return zeros


@triton.jit
def _window(row_ptrs, place, STEPS: tl.constexpr):
    """The words that hold so many bits from ``place`` on."""
    words = ()
    for k in tl.static_range((STEPS + 62) // 32):
        words += (tl.load(row_ptrs + (place >> 5) + k),)
    return words


@triton.jit
def _from_place(window, place, k: tl.constexpr):
    """The 32 bits of a window from ``32 * k`` after ``place`` on, as far as it reaches."""
    both = window[k].to(tl.int64) & 0xFFFFFFFF
    if k + 1 < len(window):
        both |= window[k + 1].to(tl.int64) << 32
    return (both >> (place & 31)).to(tl.int32)


# Seven tests in a row become one instruction, which fills all seven predicate registers of a
# thread; in any other order each is an instruction of its own, at half the rate of an addition.
_TESTS = f"{{ .reg .pred {', '.join(f'%p900{i}' for i in range(7))}; .reg .b32 %r9000;" + "".join(
    f" and.b32 %r9000, WORD, {1 << i}; setp.ne.b32 %p900{i}, %r9000, 0;" for i in range(7)
)
_TO_SEVEN = tl.constexpr(
    _TESTS.replace("WORD", "$14")
    + "".join(f" mov.b32 ${i}, ${i + 7}; @%p900{i} add.f32 ${i}, ${i}, $15;" for i in range(7))
    + " }"
)
_OF_SEVEN = tl.constexpr(
    _TESTS.replace("WORD", "$9")
    + " mov.b32 $0, $1;"
    + "".join(f" @%p900{i} add.f32 $0, $0, ${i + 2};" for i in range(7))
    + " }"
)
_TO_SEVEN_TYPES = tl.constexpr("=&f," * 7 + "f," * 7 + "r,f")
_OF_SEVEN_TYPES = tl.constexpr("=&f," + "f," * 8 + "r")


@triton.jit
def _add_where(sums, bits, weight, FIRST: tl.constexpr, END: tl.constexpr):
    """Adds a weight to those sums, of steps ``FIRST`` to ``END``, whose bit is set."""
    new = ()
    if INTERPRETED or weight.dtype == tl.float64:
        for t in tl.static_range(FIRST, END):
            new += (tl.where(((bits >> (t - FIRST)) & 1) != 0, sums[t] + weight, sums[t]),)
    else:
        for t in tl.static_range(FIRST, END, 7):
            # Beyond the end stands the last sum again; what is added to it there is not used.
            added = tl.inline_asm_elementwise(
                _TO_SEVEN,
                _TO_SEVEN_TYPES,
                [
                    sums[t], sums[min(t + 1, END - 1)], sums[min(t + 2, END - 1)],
                    sums[min(t + 3, END - 1)], sums[min(t + 4, END - 1)],
                    sums[min(t + 5, END - 1)], sums[min(t + 6, END - 1)], bits >> (t - FIRST),
                    weight,
                ],
                dtype=(
                    tl.float32, tl.float32, tl.float32, tl.float32, tl.float32, tl.float32,
                    tl.float32,
                ),
                is_pure=True,
                pack=1,
            )  # fmt: skip
            for i in tl.static_range(min(7, END - t)):
                new += (added[i],)
    return new


@triton.jit
def _add_inputs(
    sums, row_ptrs, weight_ptrs, back_ptrs, first, V, width, INPUTS: tl.constexpr
):  # fmt: skip
    """Adds the weights of the next inputs to the sums of each row at the steps of their spikes."""
    STEPS: tl.constexpr = len(sums[0])
    weights = ()
    places = ()
    for i in tl.static_range(INPUTS):
        weights += (tl.load(weight_ptrs + i * width),)
        # Longer ago than the zeros before the first step there are only more of them.
        place = tl.maximum(first - tl.load(back_ptrs + i * width), 0)
        places += (place + i * 32 * V,)
    windows = ()
    for i in tl.static_range(INPUTS):
        for j in tl.static_range(len(row_ptrs)):
            windows += (_window(row_ptrs[j], places[i], STEPS),)
    for i in tl.static_range(INPUTS):
        added = ()
        for j in tl.static_range(len(row_ptrs)):
            new = ()
            for k in tl.static_range((STEPS + 31) // 32):
                bits = _from_place(windows[i * len(row_ptrs) + j], places[i], k)
                new += _add_where(sums[j], bits, weights[i], 32 * k, min(32 * k + 32, STEPS))
            added += (new,)
        sums = added
    return sums


@triton.jit
def _sum_where(total, bits, values, STEPS: tl.constexpr):
    """Adds the values of those steps whose bit is set."""
    SEVENS: tl.constexpr = 0 if INTERPRETED or total.dtype == tl.float64 else STEPS // 7
    for k in tl.static_range(SEVENS):
        total = tl.inline_asm_elementwise(
            _OF_SEVEN,
            _OF_SEVEN_TYPES,
            [
                total, values[7 * k], values[7 * k + 1], values[7 * k + 2], values[7 * k + 3],
                values[7 * k + 4], values[7 * k + 5], values[7 * k + 6], bits >> (7 * k),
            ],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )  # fmt: skip
    for t in tl.static_range(7 * SEVENS, STEPS):
        total = tl.where(((bits >> t) & 1) != 0, total + values[t], total)
    return total


@triton.jit
def _moved(pointers, distance):
    """Each of the pointers so far on."""
    moved = ()
    for j in tl.static_range(len(pointers)):
        moved += (pointers[j] + distance,)
    return moved


@triton.jit(do_not_specialize=["T", "start"])
def bit_sum_kernel(
    words_ptr, weight_ptr, back_ptr, out_ptr,
    T, start, B, V, C, N, width,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """``out[t, b, o] = sum_i weight[i, o] * x[t - back[i, o], b, i]`` of bits ``x``.

    ``words [B, C, V]`` and two more: step ``t`` of input ``i`` is bit ``start + t`` of its row, all
    counted from the lowest of the first word; before it are zeros, ``UNROLL`` at least or as many
    as the longest delay. ``weight, back [C, width]``; ``out [T, B, N]``. A thread sums ``UNROLL``
    steps (at most 64) of ``BLOCK_R`` rows of the batch for one output, with the words of
    ``BLOCK_C`` inputs in flight at once: two shifts for each row, and for each step one addition
    and a seventh of a test. Moves 8 bytes for each connection and ``BLOCK_R`` times the words of
    its steps. No streams: connections and words are read again by other programs.
    """
    tl.static_assert(UNROLL <= 64)
    groups = tl.cast(tl.cdiv(B, BLOCK_R), tl.int64)
    tile, part = tile_of(tl.program_id(0), groups * N, BLOCK)
    offs = tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = offs < groups * N
    # Threads beyond the end compute what others do, so that the loop needs no masks.
    inside = tl.minimum(offs, groups * N - 1)
    offs_o = (inside % N).to(tl.int32)
    b0 = inside // N * BLOCK_R
    t0 = part.to(tl.int32) * UNROLL
    weight_ptrs = weight_ptr + offs_o
    back_ptrs = back_ptr + offs_o
    row_ptrs = ()
    sums = ()
    for j in tl.static_range(BLOCK_R):
        row_ptrs += (words_ptr + tl.minimum(b0 + j, B - 1) * C * V,)
        sums += (_zeros(BLOCK, weight_ptr.dtype.element_ty, UNROLL),)
    whole = C // BLOCK_C * BLOCK_C
    for _ in range(0, whole, BLOCK_C):
        sums = _add_inputs(
            sums, row_ptrs, weight_ptrs, back_ptrs, start + t0, V, width, BLOCK_C
        )  # fmt: skip
        row_ptrs = _moved(row_ptrs, BLOCK_C * V)
        weight_ptrs += BLOCK_C * width
        back_ptrs += BLOCK_C * width
    for _ in range(whole, C):
        sums = _add_inputs(sums, row_ptrs, weight_ptrs, back_ptrs, start + t0, V, width, 1)
        row_ptrs = _moved(row_ptrs, V)
        weight_ptrs += width
        back_ptrs += width
    stride = tl.cast(B, tl.int64) * N
    for j in tl.static_range(BLOCK_R):
        mask = live & (b0 + j < B)
        out_ptrs = out_ptr + t0 * stride + (b0 + j) * N + offs_o
        for t in tl.static_range(UNROLL):
            tl.store(out_ptrs, sums[j][t], mask=mask & (tl.zeros_like(offs_o) + (t0 + t) < T))
            out_ptrs += stride


@triton.jit(do_not_specialize=["T", "start", "share"])
def bit_dot_kernel(
    words_ptr, dy_ptr, back_ptr, partial_ptr,
    T, start, share, B, V, C, N,
    BLOCK_C: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """``sum_{t, b} x[t, b, i] * dy[t + back[i, o], b, o]`` of bits, partials over parts of the sum.

    ``words`` as for the sum; ``dy [T, B, N]``, ``T >= UNROLL``; ``back [N, C]``; ``partial [parts,
    N, C]``, to be added up. The sum is cut into pieces of ``UNROLL`` steps (at most 32) of one row
    of the batch, a part is ``share`` of these. A thread holds a piece of ``dy`` for one output, and
    adds the steps at which each of ``BLOCK_C`` inputs arrives. Moves 4 bytes in float32 for
    ``BLOCK_C`` connections and a step, and two words for each ``UNROLL`` steps. No streams: words
    and ``dy`` are read again by other programs.
    """
    tl.static_assert(UNROLL <= 32)
    ACC: tl.constexpr = partial_ptr.dtype.element_ty
    groups = tl.cast(tl.cdiv(C, BLOCK_C), tl.int64)
    part = tl.program_id(1)
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = offs < groups * N
    # Threads beyond the end compute what others do, so that the loop needs no masks.
    inside = tl.minimum(offs, groups * N - 1)
    offs_o = (inside % N).to(tl.int32)
    i0 = inside // N * BLOCK_C
    # Where each input's bits begin, counted from the first input of the thread.
    row = offs_o.to(tl.int64) * C
    begins = ()
    places = ()
    for j in tl.static_range(BLOCK_C):
        i = tl.minimum(i0 + j, C - 1)
        begins += ((i - i0).to(tl.int32) * V * 32,)
        places += (begins[j] + start - tl.load(back_ptr + row + i),)
    totals = _zeros(BLOCK, ACC, BLOCK_C)
    pieces = tl.cdiv(T, UNROLL)
    begin = part * share
    for piece in range(begin, tl.minimum(begin + share, pieces * B)):
        b = (piece // pieces).to(tl.int64)
        wanted = piece % pieces * UNROLL
        # The last piece begins earlier, and leaves out the steps that the one before has counted.
        t0 = tl.minimum(wanted, T - UNROLL)
        mask = -1 << (wanted - t0)
        dy_ptrs = dy_ptr + (t0.to(tl.int64) * B + b) * N + offs_o
        values = ()
        for t in tl.static_range(UNROLL):
            values += (tl.load(dy_ptrs + t * (tl.cast(B, tl.int64) * N)).to(ACC),)
        row_ptrs = words_ptr + (b * C + i0) * V
        new = ()
        for j in tl.static_range(BLOCK_C):
            place = tl.maximum(places[j] + t0, begins[j])
            bits = _from_place(_window(row_ptrs, place, UNROLL), place, 0) & mask
            new += (_sum_where(totals[j], bits, values, UNROLL),)
        totals = new
    for j in tl.static_range(BLOCK_C):
        i = i0 + j
        partial_ptrs = partial_ptr + part.to(tl.int64) * N * C + row + i
        tl.store(partial_ptrs, totals[j], mask=live & (i < C))


@triton.jit
def _lowest_bit(word):
    """Index of the lowest bit that is set: the exponent of that bit as a float."""
    exponent = (word & -word).to(tl.float32).to(tl.int32, bitcast=True)
    return ((exponent >> 23) & 0xFF) - 127


@triton.jit
def spike_sum_kernel(
    words_ptr, weight_ptr, back_ptr, out_ptr,
    T, share, slots, B, W, N, width,
    BLOCK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """``out[t, b, o] = sum_i weight[i, o] * x[t - back[i, o], b, i]``, one spike at a time.

    ``words [T, B, W]`` the spikes, 32 inputs a word; ``weight, back [I, width]``, ``back < slots``;
    ``out [T, B, N]``. A program owns ``share`` steps of one row of the batch and ``BLOCK``
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
    out_ptrs = out_ptr + (tl.cast(first, tl.int64) * B + b) * N + offs_o
    for t in range(first, end):
        tl.store(out_ptrs, tl.zeros([BLOCK], out_ptr.dtype.element_ty), mask=mask_o)
        out_ptrs += tl.cast(B, tl.int64) * N
    tl.debug_barrier()
    words = tl.cast(W, tl.int64)
    row_ptr = words_ptr + (start * tl.cast(B, tl.int64) + b) * words
    ahead = tl.load(row_ptr, mask=start < end, other=0)
    for t in range(start, end):
        next_row_ptr = row_ptr + B * words
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
                    connection = (w * 32 + _lowest_bit(word)).to(tl.int64) * width + offs_o
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
    ``back [N, C]``; ``partial [parts, N, C]``, to be summed; a part is ``share`` of the ``V``
    words. It prefetches the next word; the rows of ``UNROLL`` spikes are in flight at once. Moves
    1/8 byte per input and step, and 4 bytes per spike and output. No streams: what is read depends
    on the spikes.
    """
    tile_o, source = tile_of(tl.program_id(0), N, BLOCK)
    i = source.to(tl.int64)
    offs_o = tile_o * BLOCK + tl.arange(0, BLOCK)
    part = tl.program_id(1).to(tl.int64)
    mask_o = offs_o < N
    connection = offs_o.to(tl.int64) * C + i
    delay = tl.load(back_ptr + connection, mask=mask_o, other=0).to(tl.int64) * unit
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
    tl.store(partial_ptr + part * N * C + connection, acc, mask=mask_o)


STREAMS = {
    "pack_trains_kernel": streams("BLOCK", 32),
    "bit_sum_kernel": streams("BLOCK", "UNROLL"),
    "bit_dot_kernel": streams("BLOCK", "UNROLL"),
    "spike_sum_kernel": streams("BLOCK"),
    "spike_dot_kernel": streams("BLOCK"),
}
