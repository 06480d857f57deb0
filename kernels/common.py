"""Device functions that several kernels share: slots, time arithmetic, coefficients.

A run-time integer that is 1 reaches a kernel as a plain Python number: ``tl.cast`` takes both.
"""

import triton
import triton.language as tl


@triton.jit
def position(pointer):
    """A slot given as a number, or as the address where the device keeps it."""
    if pointer.dtype.is_ptr():
        return tl.load(pointer).to(tl.int32)
    else:
        return pointer


@triton.jit
def tile_of(program, size, BLOCK: tl.constexpr):
    """A program's tile along an axis, and its index along the remaining axes.

    All axes share the grid's first one, because a GPU limits the others to 65,535 programs.
    """
    count = (size - 1) // BLOCK + 1  # tl.cdiv overflows for sizes just below 2**31
    return program % count, program // count


@triton.jit
def store_as(ptrs, value, mask):
    """Stores a value in the dtype of its destination."""
    element: tl.constexpr = ptrs.dtype.scalar.element_ty
    if value.dtype == tl.float64 and element == tl.bfloat16:
        # Via float32, because the interpreter gets the direct conversion wrong.
        value = value.to(tl.float32)
    tl.store(ptrs, value.to(element), mask=mask)


@triton.jit
def ring_slot(pointer, offset, K):
    """Slot ``(pointer - offset) mod K`` for ``0 <= offset <= K``."""
    slot = pointer - offset
    return tl.where(slot < 0, slot + K, slot)


@triton.jit
def coefficient(ptr, offs_n, mask, PER_SYNAPSE: tl.constexpr):
    """A constant of the model: one value for the group, or one for each synapse."""
    if PER_SYNAPSE:
        return tl.load(ptr + offs_n, mask=mask, other=0.0)
    else:
        return tl.load(ptr)


@triton.jit
def gradient(ptr, offs, mask, ACC: tl.constexpr):
    """A gradient, kept in the arithmetic's dtype; none counts as 0."""
    if ptr is not None:
        return tl.load(ptr + offs, mask=mask, other=0.0)
    else:
        return tl.zeros(offs.shape, ACC)


@triton.jit
def divide(x, y):
    """IEEE division in either precision; ``/`` is approximate for float32 in Triton."""
    if x.dtype == tl.float64:
        return x / y
    else:
        return tl.div_rn(x, y)


@triton.jit
def round_half_even(x):
    """Nearest integer, ties to even, for ``|x| < 2**22``: adding 1.5 * 2**p drops the fraction."""
    if x.dtype == tl.float64:
        magic = tl.full(x.shape, 6755399441055744.0, tl.float64)
    else:
        magic = tl.full(x.shape, 12582912.0, tl.float32)
    return (x + magic) - magic


@triton.jit
def power_of_two_below(x):
    """Largest power of two that is at most ``x``: the exponent bits alone (0 for subnormals)."""
    if x.dtype == tl.float64:
        bits = x.to(tl.int64, bitcast=True) & 0x7FF0000000000000
        return bits.to(tl.float64, bitcast=True)
    else:
        bits = x.to(tl.int32, bitcast=True) & 0x7F800000
        return bits.to(tl.float32, bitcast=True)


@triton.jit
def locate(
    time, K, step, inverse, limit, tolerance, DIVIDE: tl.constexpr, EPSILON: tl.constexpr
):  # fmt: skip
    """Where a time before the present lies among the observations.

    Returns ``(older, fraction, inside, within)``: the older neighbour in steps, the fraction in
    [0, 1) of a step from it to the time, whether the time is within tolerance of the bounds, and
    whether it lies between them, bounds included. The first two have the dtype of ``time``.

    ``step, inverse, limit, tolerance`` are float64 numbers of run time, which are rounded to the
    dtype of ``time``. Without ``DIVIDE`` the step is a power of two, and times its ``inverse`` is
    as exact. ``EPSILON`` is that of the dtype in which the times are kept.

    Multiplications and additions must not be fused here (``enable_fp_fusion=False``), so that
    every backend reads the same slot.
    """
    step = tl.full(time.shape, step, time.dtype)
    limit = tl.full(time.shape, limit, time.dtype)
    zero = tl.zeros(time.shape, time.dtype)
    bounded = tl.minimum(tl.maximum(time, zero), limit)
    unit = power_of_two_below(tl.maximum(bounded, step))
    distance = tl.maximum(unit * (4.0 * EPSILON), tl.full(time.shape, tolerance, time.dtype))
    if DIVIDE:
        steps = divide(bounded, step)
    else:
        steps = bounded * tl.full(time.shape, inverse, time.dtype)
    nearest = round_half_even(steps)
    hit = tl.abs(nearest * step - bounded) <= distance
    steps = tl.minimum(tl.where(hit, nearest, steps), tl.cast(K - 1, time.dtype))
    older = tl.ceil(steps)
    return older, older - steps, tl.abs(time - bounded) <= distance, time == bounded
