"""Fast non-cryptographic hashing. No structure's correctness rests on any of these functions.

`uint64 + 1` is int64 in a kernel, so every constant here is an np.uint64.
"""

import numpy as np

from .._core.intrinsics import mul_hi
from .._core.jit import kernel

_A = np.uint64(0xA0761D6478BD642F)
_B = np.uint64(0xE7037ED1A0B428DB)
_C = np.uint64(0x8EBC6AF09C88C6E3)
_D = np.uint64(0x589965CC75374CC3)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31, _S32 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(32)


@kernel(internal=True)
def mix64(x):
    """A bijection of 64 bits; every input bit affects every output bit (splitmix64). O(1)."""
    x = np.uint64(x)
    x = (x ^ (x >> _S30)) * _MIX1
    x = (x ^ (x >> _S27)) * _MIX2
    return x ^ (x >> _S31)


@kernel(internal=True)
def fold64(a, b):
    """Both halves of the 128-bit product a * b, folded by xor (the step of wyhash). O(1)."""
    return (a * b) ^ mul_hi(a, b)


@kernel(noinline=True, borrow=True)
def hash_bytes(data, start, stop, seed):
    """uint64 hash of data[start:stop], data uint8[n]; of content and length. O(stop - start)."""
    view = data[start:stop]
    n = view.size
    h = seed ^ _A
    full = n // 8
    for i in range(full):
        word = np.uint64(0)
        chunk = view[8 * i : 8 * i + 8]
        for j in range(8):
            word |= np.uint64(chunk[j]) << np.uint64(8 * j)
        h = fold64(h ^ word ^ _B, _C)
    word = np.uint64(0)
    for j in range(n - 8 * full):
        word |= np.uint64(view[8 * full + j]) << np.uint64(8 * j)
    h = fold64(h ^ word ^ _B, _C)
    return fold64(h ^ np.uint64(n), _D)


@kernel(borrow=True)
def hash_many(data, indptr, gap, seed, out):
    """out uint64[n]: out[i] = hash_bytes(data[indptr[i] : indptr[i + 1] - gap]). O(bytes).

    `gap` bytes that are not hashed follow each string (they may be missing after the last).
    """
    for i in range(out.size):
        out[i] = hash_bytes(data, indptr[i], indptr[i + 1] - gap, seed)


@kernel(borrow=True)
def hash_ints(values, seed, out):
    """out[i] = a bijection of values[i] that depends on the seed; values int64[n]. O(n)."""
    for i in range(out.size):
        out[i] = mix64(np.uint64(values[i]) ^ seed)
