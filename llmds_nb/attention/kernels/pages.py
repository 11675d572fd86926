"""Keys and values of tokens to and from pages.

pages   [n, Hkv, page_size, D], of one of three dtypes: float32; int16, the bits of float16;
        uint16, those of bfloat16
rows    float32[T, Hkv, D], or float32[Hkv, T, D] where `heads_first`
slots   int[T]: page * page_size + the place in the page, each in [0, n * page_size)
"""

import numpy as np
from numba import types

from ..._core.intrinsics import half_value
from ..._core.jit import by_type, kernel

_HALF_TOP = np.uint32(0x47800000)  # 65,536 as float32: above the largest float16
_HALF_LEAST = np.uint32(0x38800000)  # 2**-14: the least that is not subnormal as float16
_INFINITE = np.uint32(0x7F800000)


@kernel(internal=True, borrow=True)
def _half_value(bits):
    """The float32 of a float16's bits, infinity and NaN among them. O(1)."""
    value = half_value(bits).view(np.uint32)
    special = (bits & np.uint16(0x7C00)) == 0x7C00
    return np.uint32(value | _INFINITE if special else value).view(np.float32)


@by_type()
def widened(x):
    """One stored number as float32. O(1)."""
    if x == types.int16:
        return lambda x: _half_value(np.uint16(x))
    if x == types.uint16:
        return lambda x: np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32)
    return lambda x: x


@kernel(internal=True, borrow=True)
def _half(x):
    """The bits of the nearest float16, of two as near the even one, or infinity. O(1)."""
    bits = np.float32(x).view(np.uint32)
    sign = bits & np.uint32(0x80000000)
    size = np.uint32(bits ^ sign)
    if size >= _HALF_TOP:
        made = np.uint32(0x7E00) if size > _INFINITE else np.uint32(0x7C00)
    elif size < _HALF_LEAST:
        # The sum's last bit stands for 2**-24, that of a subnormal float16.
        made = (size.view(np.float32) + np.float32(0.5)).view(np.uint32) - np.uint32(0x3F000000)
    else:
        odd = (size >> np.uint32(13)) & np.uint32(1)
        made = np.uint32(size + np.uint32(0xC8000FFF) + odd) >> np.uint32(13)
    return np.uint16(made | (sign >> np.uint32(16)))


@kernel(internal=True, borrow=True)
def _bfloat(x):
    """The bits of the nearest bfloat16, of two as near the even one. O(1)."""
    bits = np.float32(x).view(np.uint32)
    if bits & np.uint32(0x7FFFFFFF) > _INFINITE:
        return np.uint16((bits >> np.uint32(16)) | np.uint32(0x40))
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return np.uint16(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))


@by_type()
def _put(out, j, x):
    """Round a float32 to the stored dtype. O(1)."""
    if out.dtype == types.int16:

        def impl(out, j, x):
            out[j] = np.int16(_half(x))

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
                _put(out, j, source[j])


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
