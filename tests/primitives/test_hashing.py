"""The hash functions against the same arithmetic on Python integers."""

import numpy as np
from hypothesis import example, given, strategies as st

from llmds_nb._core.jit import kernel
from llmds_nb.primitives import hashing
from llmds_nb.primitives.hashing import hash_ints, hash_many

WORDS, INTS = st.integers(0, 2**64 - 1), st.integers(-(2**63), 2**63 - 1)
ALL = 2**64 - 1
A, B, C, D = 0xA0761D6478BD642F, 0xE7037ED1A0B428DB, 0x8EBC6AF09C88C6E3, 0x589965CC75374CC3


@kernel
def mix64(x):
    return hashing.mix64(x)


@kernel
def key_hash(x, a0, a1, b):
    return hashing.key_hash(x, a0, a1, b)


@kernel
def hash_bytes(data, start, stop, seed):
    return hashing.hash_bytes(data, start, stop, seed)


def plain_mix(x):
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & ALL
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & ALL
    return x ^ (x >> 31)


def plain_fold(a, b):
    return (a * b & ALL) ^ (a * b >> 64)


def plain_key_hash(x, a0, a1, b):
    x = ((a0 * x >> 64) + a1 * x + b) & ALL
    return ((x ^ (x >> 32)) * 0x94D049BB133111EB & ALL) >> 32


def plain_hash(data, seed):
    h = seed ^ A
    for start in range(0, len(data) // 8 * 8 + 1, 8):
        word = int.from_bytes(data[start : start + 8], "little")
        h = plain_fold(h ^ word ^ B, C)
    return plain_fold(h ^ len(data), D)


@given(WORDS)
@example(0)
def test_mix64_is_splitmix64(x):
    assert int(mix64(np.uint64(x))) == plain_mix(x)


@given(INTS, INTS, INTS, INTS)
def test_key_hash_is_multiply_shift_and_bits_of_a_bijection(x, a0, a1, b):
    words = [np.int64(word) for word in (x, a0, a1, b)]
    assert int(key_hash(*words)) == plain_key_hash(*(word & ALL for word in (x, a0, a1, b)))


@given(st.lists(st.binary(max_size=40), max_size=8), WORDS, st.integers(0, 2))
def test_bytes_hash_by_content_and_length(strings, seed, gap):
    blob = b"".join(string + b"\0" * gap for string in strings)
    data = np.frombuffer(bytearray(blob), np.uint8)
    indptr = np.cumsum([0, *(len(string) + gap for string in strings)])
    out = np.empty(len(strings), np.uint64)
    hash_many(data, indptr, gap, np.uint64(seed), out)
    assert out.tolist() == [plain_hash(string, seed) for string in strings]
    for i, string in enumerate(strings):
        start = int(indptr[i])
        found = hash_bytes(data, start, start + len(string), np.uint64(seed))
        assert int(found) == plain_hash(string, seed)


@given(st.lists(INTS, max_size=20), WORDS)
def test_ints_hash_without_collisions(values, seed):
    out = np.empty(len(values), np.uint64)
    hash_ints(np.array(values, np.int64), np.uint64(seed), out)
    assert out.tolist() == [plain_mix((value & ALL) ^ seed) for value in values]
    assert len(set(out.tolist())) == len(set(values))
