"""Bit operations: integers that sort as floats do, and counting and finding the bits of a word.

The key of a float is the integer of its bits, with all bits but the sign flipped if it is negative:
such integers sort as the floats, and the same flip gives the float back. NaN has no key. In float64
both zeros have the key of 0.0.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .._core.jit import kernel

_MAGNITUDE = np.int64(0x7FFFFFFFFFFFFFFF)
_MAGNITUDE_32 = np.int32(0x7FFFFFFF)


def float64_keys(values: np.ndarray) -> np.ndarray:
    """int64[n] that sort as float64[n] do (plain Python); `float64_key` is the kernel for one."""
    bits = (values + 0.0).view(np.int64)
    return bits ^ ((bits >> np.int64(63)) & _MAGNITUDE)


def keys_float64(keys: np.ndarray) -> np.ndarray:
    """The float64[n] of `float64_keys` (plain Python); `key_float64` is the kernel for one."""
    return np.int64(keys ^ ((keys >> np.int64(63)) & _MAGNITUDE)).view(np.float64)


float64_key, key_float64 = kernel(borrow=True)(float64_keys), kernel(borrow=True)(keys_float64)


@kernel(inline=True)
def float32_key(x):
    """int32 that sorts as the float32 `x`, which must not be -0.0. O(1)."""
    bits = np.float32(x).view(np.int32)
    return bits if bits >= 0 else bits ^ _MAGNITUDE_32


@kernel(inline=True)
def key_float32(key):
    """The float32 of a `float32_key`. O(1)."""
    return np.int32(key if key >= 0 else key ^ _MAGNITUDE_32).view(np.float32)


@intrinsic
def count_bits(typingctx, bits):
    """How many bits of a uint64 are 1, as int64."""
    return types.int64(types.uint64), lambda _, builder, __, args: builder.ctpop(args[0])


@intrinsic
def lowest_bit(typingctx, bits):
    """The number of the lowest bit of a uint64 that is 1, as int64; 64 if none is."""
    of_zero = ir.IntType(1)(0)  # 64, not undefined
    return types.int64(types.uint64), lambda _, builder, __, args: builder.cttz(args[0], of_zero)
