"""Keys and values of tokens to and from pages.

pages   [n, Hkv, page_size, D], of one of three dtypes: float32; int16, the bits of float16;
        uint16, those of bfloat16
rows    float32[T, Hkv, D], or float32[Hkv, T, D] where `heads_first`
slots   int[T]: page * page_size + the place in the page, each in [0, n * page_size)
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..._core.intrinsics import half_value
from ..._core.jit import by_type, kernel

_INT = ir.IntType(32)
_INFINITE = 0x7F800000


@kernel(internal=True, borrow=True)
def _half_value(bits):
    """The float32 of a float16's bits, infinity and NaN among them. O(1)."""
    value = half_value(bits).view(np.uint32)
    special = (bits & np.uint16(0x7C00)) == 0x7C00
    return np.uint32(value | np.uint32(_INFINITE) if special else value).view(np.float32)


@by_type()
def widened(x):
    """One stored number as float32. O(1)."""
    if x == types.int16:
        return lambda x: _half_value(np.uint16(x))
    if x == types.uint16:
        return lambda x: np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32)
    return lambda x: x


def _half_bits(context, builder, x):
    """The bits of the nearest float16, of two as near the even one; beyond 65,504 infinity."""
    if "+f16c" in getattr(context.codegen(), "_tm_features", ""):
        return builder.bitcast(builder.fptrunc(x, ir.HalfType()), ir.IntType(16))
    bits = builder.bitcast(x, _INT)
    sign = builder.and_(bits, _INT(0x80000000))
    size = builder.xor(bits, sign)
    odd = builder.and_(builder.lshr(size, _INT(13)), _INT(1))
    made = builder.add(builder.add(size, _INT(0xC8000FFF)), odd)  # moves the exponent's bias
    made = builder.lshr(made, _INT(13))
    # The last bit of this sum stands for 2**-24, that of a subnormal float16.
    small = builder.fadd(builder.bitcast(size, x.type), x.type(0.5))
    small = builder.sub(builder.bitcast(small, _INT), _INT(0x3F000000))
    made = builder.select(builder.icmp_unsigned("<", size, _INT(0x38800000)), small, made)
    is_nan = builder.icmp_unsigned(">", size, _INT(_INFINITE))
    large = builder.select(is_nan, _INT(0x7E00), _INT(0x7C00))
    made = builder.select(builder.icmp_unsigned(">=", size, _INT(0x47800000)), large, made)
    return builder.trunc(builder.or_(made, builder.lshr(sign, _INT(16))), ir.IntType(16))


def _bfloat_bits(context, builder, x):
    """The bits of the nearest bfloat16, of two as near the even one."""
    bits = builder.bitcast(x, _INT)
    high = builder.lshr(bits, _INT(16))
    odd = builder.and_(high, _INT(1))
    made = builder.lshr(builder.add(builder.add(bits, _INT(0x7FFF)), odd), _INT(16))
    is_nan = builder.icmp_unsigned(">", builder.and_(bits, _INT(0x7FFFFFFF)), _INT(_INFINITE))
    made = builder.select(is_nan, builder.or_(high, _INT(0x40)), made)
    return builder.trunc(made, ir.IntType(16))


def _rounder(bits_of, result):
    """The intrinsic of a function above: of a float32, a 16-bit integer. LLVM vectorises it."""

    def codegen(context, builder, signature, args):
        return bits_of(context, builder, args[0])

    return intrinsic(lambda typingctx, x: (result(types.float32), codegen))


_half, _bfloat = _rounder(_half_bits, types.int16), _rounder(_bfloat_bits, types.uint16)


@by_type()
def put(out, j, x):
    """Round a float32 to the stored dtype. O(1)."""
    if out.dtype == types.int16:

        def impl(out, j, x):
            out[j] = _half(x)

    elif out.dtype == types.uint16:

        def impl(out, j, x):
            out[j] = _bfloat(x)

    else:

        def impl(out, j, x):
            out[j] = x

    return impl


@kernel(nogil=True)
def pages_write(pages, rows, heads_first, slots):
    """Store the rows of T tokens in their slots. O(T Hkv D)."""
    page_size = pages.shape[2]
    for t in range(slots.size):
        page, place = slots[t] // page_size, slots[t] % page_size
        for h in range(pages.shape[1]):
            source = rows[h, t] if heads_first else rows[t, h]
            out = pages[page, h, place]
            for j in range(source.size):
                put(out, j, source[j])


@kernel(nogil=True)
def pages_gather(pages, table, length, out):
    """Copy the rows of `length` tokens, by the pages of int32[.], to float32[Hkv, length, D]."""
    page_size = pages.shape[2]
    for h in range(pages.shape[1]):
        for t in range(length):
            source = pages[np.int64(table[t // page_size]), h, t % page_size]
            target = out[h, t]
            for j in range(source.size):
                target[j] = widened(source[j])
