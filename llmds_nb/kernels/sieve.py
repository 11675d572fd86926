"""Ruling out by codes the vectors that a walk need not read; its answer stays what it was.

A row of codes is a quarter of its vector or less, and most neighbours that a walk meets are too far
away to matter. Codes prove that, since they lie within a known distance of what they stand for:

    |q - x|  >=  |q' - x'| - |q - q'| - |x - x'|            L2, COSINE
    <q, x>   <=  <q', x'> + |q'| |x - x'| + |q - q'| |x|    IP

with what the codes of the query and of the row stand for, q' and x'. So a key of the vectors has a
*limit*, a key of the codes, and a row beyond it has a greater key.

    sieve    uint8[C, P]   codes of the rows, without a basis; uint8[0, 0] where there is no sieve
    wild     bool[C]       rows whose codes are off by more than the error; bool[0] if none are
    error    float         |x - x'| of all others, what float32 may round away included
    longest  float         |x| of all others, 1 with COSINE
    reach    float64[2]    of a query: what its limit adds to the distance, and the codes' scale
"""

import numpy as np
from numba import types

from .._jit import kernel, kernel_by_type
from .codes import QUERY_DOT, codes_query
from .distance import COSINE, IP, key_value, prefetch_row, rounding, rows_keys

_MOST = 2.0**31 - 1


def sieve_query(rows, query, sieve, basis, offset, step, error, longest, metric, coded, reach):
    """The query float32[d], of length 1 with COSINE, as codes int16[P] in `coded`; fills `reach`.

    Does nothing where there is no sieve. O(d).
    """
    raise NotImplementedError


@kernel_by_type(sieve_query)
def _sieve_query(rows, query, sieve, basis, offset, step, error, longest, metric, coded, reach):
    if rows.dtype == types.uint8:  # the walk itself is on codes

        def nothing(
            rows, query, sieve, basis, offset, step, error, longest, metric, coded, reach
        ):  # fmt: skip
            return None

        return nothing

    def impl(rows, query, sieve, basis, offset, step, error, longest, metric, coded, reach):
        if sieve.size == 0:
            return
        codes_query(query, sieve, basis, offset, step, metric, coded, query)
        square = off = 0.0
        largest = np.float32(0)
        for j in range(query.size):
            square += np.float64(query[j]) * np.float64(query[j])
            largest = max(largest, abs(query[j]))
        length, doubt = np.sqrt(square), rounding(query.size)
        if metric == IP:
            # Half a step for each component, and at most `longest` of it counts.
            off = 0.5 * np.sqrt(query.size) * largest / QUERY_DOT
            reach[0] = (length + off) * error + (off + doubt * length) * longest
            reach[1] = QUERY_DOT / (largest * step) if largest > 0 else 0.0
        else:
            for j in range(query.size):
                apart = np.float64(query[j]) - np.float64(offset[j]) - step * coded[j]
                off += apart * apart
            reach[0] = np.sqrt(off) + error + doubt * length
            reach[1] = 1.0 / step

    return impl


@kernel(internal=True)
def _limit(key, d, metric, reach):
    """The key of the codes that only rows with a greater `key` exceed. O(1)."""
    value = np.float64(key_value(key))
    if metric == IP:
        limit = (value + reach[0]) * reach[1]
    else:
        square = 2.0 * (value + 1.0 + rounding(d)) if metric == COSINE else value
        far = (np.sqrt(max(square, 0.0) * (1.0 + rounding(d))) + reach[0]) * reach[1]
        limit = far * far
    return np.int32(min(limit + 1.0, _MOST)) if limit > -_MOST else -np.int32(_MOST)


def slots_sieved(
    rows, coded, sieve, wild, factors, metric, reach, key, slots, n, keys
):  # fmt: skip
    """Move those of slots[:n] to the front that may have a key up to `key`; return how many.

    All of them where there is no sieve. O(n P).
    """
    raise NotImplementedError


@kernel_by_type(slots_sieved)
def _slots_sieved(rows, coded, sieve, wild, factors, metric, reach, key, slots, n, keys):
    if rows.dtype == types.uint8:
        return lambda rows, coded, sieve, wild, factors, metric, reach, key, slots, n, keys: n

    def impl(rows, coded, sieve, wild, factors, metric, reach, key, slots, n, keys):
        if sieve.size == 0:
            return n
        limit = _limit(key, rows.shape[1], metric, reach)
        rows_keys(coded, sieve, factors, metric, slots, 0, n, keys)
        kept = 0
        for i in range(n):
            slot = np.int64(slots[i])
            if keys[i] <= limit or (wild.size > 0 and wild[slot]):
                prefetch_row(rows, slot)
                slots[kept] = slot
                kept += 1
        return kept

    return impl
