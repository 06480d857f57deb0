"""Kernels of the record: one slot written, one slot's gradient taken out."""

import triton
import triton.language as tl

from .common import position, tile_of
from .streams import READ, UPDATE, WRITE, streams


@triton.jit(do_not_specialize=["slot"])
def ring_push_kernel(value_ptr, record_ptr, slot, size, BLOCK: tl.constexpr):
    """``record[slot] = value``, converted to the record's dtype.

    ``value [size]``, ``record [K, size]``. Bytes per element in float32: value 4, record 4.
    """
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < size
    row_ptr = record_ptr + position(slot).to(tl.int64) * size
    value = tl.load(value_ptr + offs, mask=mask)
    element: tl.constexpr = record_ptr.dtype.element_ty
    if element == tl.int1:
        value = value != 0
    elif element != tl.float64:
        value = value.to(tl.float32)  # half precision via float32, as PyTorch rounds
    tl.store(row_ptr + offs, value.to(element), mask=mask)


@triton.jit(do_not_specialize=["slot"])
def ring_take_kernel(drecord_ptr, dvalue_ptr, slot, size, BLOCK: tl.constexpr):
    """Adjoint of a push: ``dvalue = drecord[slot]; drecord[slot] = 0``.

    ``drecord [K, size]``, ``dvalue [size]``. Bytes per element in float32: drecord 8, dvalue 4.
    """
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < size
    row_ptr = drecord_ptr + position(slot).to(tl.int64) * size
    taken = tl.load(row_ptr + offs, mask=mask)
    tl.store(dvalue_ptr + offs, taken.to(dvalue_ptr.dtype.element_ty), mask=mask)
    # The element may be cleared by a different thread from the one that loaded it.
    tl.debug_barrier()
    tl.store(row_ptr + offs, tl.zeros([BLOCK], drecord_ptr.dtype.element_ty), mask=mask)


@triton.jit
def pack_bits_kernel(x_ptr, words_ptr, rows, N, W, BLOCK: tl.constexpr):
    """Bit ``n % 32`` of ``words[row, n // 32]`` is ``x[row, n] != 0``.

    ``x [rows, N]``, ``words [rows, W]`` int32 with ``W = cdiv(N, 32)``. Bytes per element in
    float32: x 4 (bool 1); and 1/8 of the words.
    """
    offs_w = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = offs_w < tl.cast(rows, tl.int64) * W
    row = offs_w // W
    bits = tl.arange(0, 32)
    offs_n = (offs_w % W)[:, None] * 32 + bits[None, :]
    mask = live[:, None] & (offs_n < N)
    x = tl.load(x_ptr + row[:, None] * N + offs_n, mask=mask, other=0)
    words = tl.sum((x != 0).to(tl.int32) << bits[None, :], axis=1)
    tl.store(words_ptr + offs_w, words, mask=live)


@triton.jit
def transpose_bits_kernel(words_ptr, out_ptr, rows, N, W, V, BLOCK: tl.constexpr):
    """Bit ``r % 32`` of ``out[n, r // 32]`` is bit ``n % 32`` of ``words[r, n // 32]``.

    ``words [rows, W]``, ``out [N, V]`` int32 with ``W = cdiv(N, 32)`` and ``V = cdiv(rows, 32)``.
    Moves each bit twice. No streams: the 32 words of a square lie a row apart.
    """
    tile_v, column = tile_of(tl.program_id(0), V, BLOCK)
    w = column.to(tl.int64)
    offs_v = tile_v.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    bits = tl.arange(0, 32)
    row = offs_v[:, None] * 32 + bits[None, :]
    words = tl.load(words_ptr + row * W + w, mask=row < rows, other=0)
    for bit in range(32):
        n = tl.zeros_like(offs_v) + w * 32 + bit
        turned = tl.sum(((words >> bit) & 1) << bits[None, :], axis=1)
        tl.store(out_ptr + n * V + offs_v, turned, mask=(offs_v < V) & (n < N))


STREAMS = {
    "ring_push_kernel": streams("BLOCK", value=READ, record=WRITE),
    "ring_take_kernel": streams("BLOCK", drecord=UPDATE, dvalue=WRITE),
    "pack_bits_kernel": streams("BLOCK", 32, x=READ),
    "transpose_bits_kernel": streams("BLOCK", 32),
}
