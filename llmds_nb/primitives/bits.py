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

_WORD = ir.IntType(64)
_MAGNITUDE = np.int64(0x7FFFFFFFFFFFFFFF)
_MAGNITUDE_32 = np.int32(0x7FFFFFFF)


@kernel(borrow=True)
def float64_key(x):
    """int64 that sorts as the float64 `x`. O(1)."""
    bits = np.float64(x + 0.0).view(np.int64)
    return bits ^ ((bits >> np.int64(63)) & _MAGNITUDE)


@kernel(borrow=True)
def key_float64(key):
    """The float64 of a `float64_key`. O(1)."""
    return np.int64(key ^ ((key >> np.int64(63)) & _MAGNITUDE)).view(np.float64)


def float64_keys(values: np.ndarray) -> np.ndarray:
    """`float64_key` of each of float64[n], int64[n] (plain Python)."""
    bits = (values + 0.0).view(np.int64)
    return bits ^ ((bits >> 63) & _MAGNITUDE)


def keys_float64(keys: np.ndarray) -> np.ndarray:
    """`key_float64` of each of int64[n], float64[n] (plain Python)."""
    return (keys ^ ((keys >> 63) & _MAGNITUDE)).view(np.float64)


@kernel(inline=True)
def float32_key(x):
    """int32 that sorts as the float32 `x`, which must not be -0.0. O(1)."""
    bits = np.float32(x).view(np.int32)
    return bits if bits >= 0 else bits ^ _MAGNITUDE_32


@kernel(inline=True)
def key_float32(key):
    """The float32 of a `float32_key`. O(1)."""
    return np.int32(key if key >= 0 else key ^ _MAGNITUDE_32).view(np.float32)


def _call(name, *more):
    """A code generator that calls an LLVM intrinsic with one int64 and the constants `more`."""

    def codegen(context, builder, signature, args):
        kinds = [_WORD, *(constant.type for constant in more)]
        called = builder.module.declare_intrinsic(name, [_WORD], ir.FunctionType(_WORD, kinds))
        return builder.call(called, [*args, *more])

    return codegen


@intrinsic
def count_bits(typingctx, bits):
    """How many bits of a uint64 are 1, as int64."""
    return types.int64(types.uint64), _call("llvm.ctpop")


@intrinsic
def lowest_bit(typingctx, bits):
    """The number of the lowest bit of a uint64 that is 1, as int64; 64 if none is."""
    return types.int64(types.uint64), _call("llvm.cttz", ir.IntType(1)(0))
