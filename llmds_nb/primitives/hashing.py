"""Fast hashing under a secret key. No structure's correctness rests on any of these functions.

Ids, words and tokens come from clients. Whoever knew the hash function could choose many of them
for one place of a table, so every table has a key of its own from `os.urandom`, and a new one when
it grows. For input that was chosen without knowing the key:

- `key_hash` of any two int64 agrees in the low n bits with probability 2 / 2**n at most. Proof: the
  sum is the upper half of (a1 a0) * x, plus b. The difference of two sums is any given word with
  probability 2 / 2**64 at most (multiply-shift by 128 bits, Dietzfelbinger 1996), and b makes the
  first one uniform, whatever that difference is; then n bits of a bijection are taken. It breaks up
  arithmetic progressions, on which linear probing is slow after multiply-shift alone (Patrascu and
  Thorup 2010).
- `hash_bytes` and `prefix_hash` of kv multiply nothing that a client knows: each word is first
  added to a secret by xor. A product forgets one operand where the other is 0, which a word then
  meets with probability 2**-64, and no set of inputs is known that collides under most keys.

With a known key all of them are easily made to collide: a CountMinSketch of strangers' items needs
`seed=None`, and a PrefixRouter of strangers' prompts a `key`. The key is also in any file that
holds hashes, and leaks, slowly, to one who can time single calls: this is no cryptography.

No answer depends on a key, since a table is an exact map whose order is not visible. Two structures
are not exact, and forget or over-count differently under another key: the ghost entries of a
KVCache's path-lrfu, and CountMinSketch.

`uint64 + 1` is int64 in a kernel, so every constant here is an np.uint64.
"""

import os

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


def secret_words(n: int) -> np.ndarray:
    """A new key, int64[n] of uniform bits (plain Python)."""
    return np.frombuffer(bytearray(os.urandom(8 * n)), np.int64)


def secret_word() -> int:
    """A new key of 64 bits, as an int64 (plain Python)."""
    return int.from_bytes(os.urandom(8), "little", signed=True)


@kernel(internal=True)
def mix64(x):
    """A bijection of 64 bits; every input bit affects every output bit (splitmix64). O(1)."""
    x = np.uint64(x)
    x = (x ^ (x >> _S30)) * _MIX1
    x = (x ^ (x >> _S27)) * _MIX2
    return x ^ (x >> _S31)


@kernel(internal=True)
def key_hash(x, a0, a1, b):
    """Hash of an int64 under the secret words a0, a1 and b: a uint64 below 2**32. O(1)."""
    x = np.uint64(x)
    x = mul_hi(x, np.uint64(a0)) + (x * np.uint64(a1) + np.uint64(b))
    return ((x ^ (x >> _S32)) * _MIX2) >> _S32


@kernel(internal=True)
def key_words(seed):
    """Words (a0, a1, b) for `key_hash`, of one secret int64. O(1)."""
    seed = np.uint64(seed)
    return mix64(seed ^ _A), mix64(seed ^ _B), mix64(seed ^ _C)


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
