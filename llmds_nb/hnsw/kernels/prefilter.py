"""Ruling out the rows that a walk need not read.

A walk on codes has a sieve of their signs, which seldom rules out wrongly: see `signs`; the margin
there is the error here, and the centre the longest. A walk on vectors has a sieve of their codes,
and its answer stays what it was. A row of codes is a quarter of its vector or less, and most
neighbours that a walk meets are too far away to matter. Codes prove that, since they lie within a
known distance of what they stand for:

    |q - x|  >=  |q' - x'| - |q - q'| - |x - x'|            L2, COSINE
    <q, x>   <=  <q', x'> + |q'| |x - x'| + |q - q'| |x|    IP

with what the codes of the query and of the row stand for, q' and x'. So a key of the vectors has a
*limit*, a key of the codes, and a row beyond it has a greater key.

    sieve    uint8[C, P]   codes of the rows, without a basis; uint8[0, 0] where there is no sieve
    wild     bool[C]       rows whose codes are off by more than the error; bool[0] if none are
    error    float         |x - x'| of all others, what float32 may round away included
    longest  float         |x| of all others, 1 with COSINE
    reach    float64[3]    of a query: what its limit adds to the distance, the codes' scale, unused
"""

import numpy as np
from numba import types

from ..._core.intrinsics import array_at
from ..._core.jit import kernel, kernel_by_type
from ...primitives.bits import key_float32
from .distance import COSINE, IP, prefetch_row, query_room, rounding, rows_keys
from .scalar_quantizer import QUERY_DOT, codes_query
from .sign_codes import signs_prefetch, signs_query, signs_sieved
from .simd import PLANES

_MOST = 2.0**31 - 1


def sieve_room(rows, sieve, address):
    """Scratch at `address` for one query: int16[P] for codes of vectors; for signs two, uint8
    planes and int16[P]. At most 4 S + 2 P bytes.
    """
    raise NotImplementedError


@kernel_by_type(sieve_room)
def _sieve_room(rows, sieve, address):
    if rows.dtype != types.uint8:
        return lambda rows, sieve, address: query_room(sieve, address)

    def signs(rows, sieve, address):
        planes = array_at(address, (PLANES, sieve.shape[1]), np.uint8)
        return planes, query_room(rows, address + PLANES * sieve.shape[1])

    return signs


def sieve_query(rows, query, sieve, basis, offset, step, error, longest, metric, coded, reach):
    """The query, of length 1 with COSINE, as the sieve compares it, in `coded` of `sieve_room`;
    fills `reach`. It is what the walk compares: float32[d], or int16[P] of codes.

    Does nothing where there is no sieve. O(d).
    """
    raise NotImplementedError


@kernel_by_type(sieve_query)
def _sieve_query(rows, query, sieve, basis, offset, step, error, longest, metric, coded, reach):
    if rows.dtype == types.uint8:

        def signs(
            rows, query, sieve, basis, offset, step, error, longest, metric, coded, reach
        ):  # fmt: skip
            if sieve.size > 0:
                planes, numbers = coded
                centre = np.int64(longest)
                signs_query(query, offset.size, centre, error, metric, numbers, planes, reach)

        return signs

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
    value = np.float64(key_float32(key))
    if metric == IP:
        limit = (value + reach[0]) * reach[1]
    else:
        square = 2.0 * (value + 1.0 + rounding(d)) if metric == COSINE else value
        far = (np.sqrt(max(square, 0.0) * (1.0 + rounding(d))) + reach[0]) * reach[1]
        limit = far * far
    return np.int32(min(limit + 1.0, _MOST)) if limit > -_MOST else -np.int32(_MOST)


def sieve_prefetch(rows, sieve, slot):
    """Ask for the signs of a row that the sieve will look at soon. O(1)."""
    raise NotImplementedError


@kernel_by_type(sieve_prefetch, inline=True)
def _sieve_prefetch(rows, sieve, slot):
    if rows.dtype != types.uint8:
        return lambda rows, sieve, slot: None

    def signs(rows, sieve, slot):
        signs_prefetch(sieve, slot)

    return signs


def slots_sieved(
    rows, coded, sieve, wild, factors, metric, reach, key, slots, n, keys
):  # fmt: skip
    """Move those of slots[:n] to the front that may have a key up to `key`; return how many.

    Asks for their rows. All of them where there is no sieve. O(n P).
    """
    raise NotImplementedError


@kernel_by_type(slots_sieved)
def _slots_sieved(rows, coded, sieve, wild, factors, metric, reach, key, slots, n, keys):
    if rows.dtype == types.uint8:

        def signs(rows, coded, sieve, wild, factors, metric, reach, key, slots, n, keys):
            if sieve.size == 0:
                return n
            return signs_sieved(coded[0], sieve, reach, key, rows, slots, n)

        return signs

    def impl(rows, coded, sieve, wild, factors, metric, reach, key, slots, n, keys):
        if sieve.size == 0:
            return n
        limit = _limit(key, rows.shape[1], metric, reach)
        rows_keys(coded, sieve, factors, metric, slots, 0, n, False, keys)
        kept = 0
        for i in range(n):
            slot = np.int64(slots[i])
            if keys[i] <= limit or (wild.size > 0 and wild[slot]):
                prefetch_row(rows, slot)
                slots[kept] = slot
                kept += 1
        return kept

    return impl
