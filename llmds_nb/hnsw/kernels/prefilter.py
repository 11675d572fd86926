"""The prefilter of a walk: it rejects rows that need not be read.

Most neighbours that a walk meets are too far away to matter, and small codes tell so.

A walk on codes has a prefilter of *sign codes*, one bit a component, which estimate a distance and
are seldom wrong: see `sign_codes`. A walk on vectors has a prefilter of their uint8 codes, a
quarter of a vector or less, and its answer stays what it would be without. Codes prove that a row
is too far, since their distance to the vectors that they represent is known:

    |q - x|  >=  |q' - x'| - |q - q'| - |x - x'|            L2, COSINE
    <q, x>   <=  <q', x'> + |q'| |x - x'| + |q - q'| |x|    IP

where q' and x' are what the codes of the query and of the row represent. So a key of the vectors
has a *limit*, a key of the codes: a row whose codes are beyond it has a greater key.

    codes       uint8[C, S]   sign codes, or codes of the rows; uint8[0, 0] if there is no prefilter
    outlier     bool[C]       rows whose codes are off by more than `error`; bool[0] if none are
    error       float         the largest |x - x'| of all others, with the rounding of float32
    longest     float         the largest |x| of all others, 1 with COSINE
    error_bound, centre       of sign codes

`outlier`, `error` and `longest` are those of codes of vectors only.
"""

from typing import NamedTuple

import numpy as np

from ..._core.intrinsics import prefetch
from ..._core.jit import by_type, kernel
from ...primitives.bits import key_float32
from .distance import COSINE, IP, Rows, holds_codes, prefetch_row, rounding, rows_keys
from .scalar_quantizer import QUERY_DOT, codes_query
from .sign_codes import sign_codes_filter, sign_codes_query
from .simd import BIT_PLANES

_INT32_MAX = 2.0**31 - 1


class Query(NamedTuple):
    """A query as a walk compares it, and as its prefilter does."""

    vector: object  # what `rows_keys` takes: int16[p] for codes, else float32[d]
    bit_planes: object  # uint8[BIT_PLANES, S] for sign codes: see `sign_codes`
    numbers: object  # int16[p]: scratch for those; or the query's own codes
    bound: object  # float64[3]: see `sign_codes`; or what a limit adds to the distance, their scale


@by_type()
def prefilter_parts(space, prefilter):
    """The scratch parts of the last three fields of a Query. O(1)."""
    if holds_codes(space):
        return lambda space, prefilter: _parts(prefilter.codes.shape[1], space.rows.shape[1])
    return lambda space, prefilter: _parts(0, prefilter.codes.shape[1])


@kernel(internal=True, borrow=True)
def _parts(plane, p):
    return ((BIT_PLANES, plane), np.uint8), (p, np.int16), (3, np.float64)


@by_type()
def prefilter_query(query, space, prefilter, quantizer):
    """Fill the last three fields of a Query from its vector, of length 1 with COSINE. O(d)."""
    if holds_codes(space):

        def sign_codes(query, space, prefilter, quantizer):
            if prefilter.codes.size > 0:
                sign_codes_query(query, quantizer.offset.size, space.metric, prefilter)

        return sign_codes

    def codes(query, space, prefilter, quantizer):
        if prefilter.codes.size == 0:
            return
        vector, coded, bound = query.vector, query.numbers, query.bound
        offset, step = quantizer.offset, quantizer.step
        own = Rows(prefilter.codes, space.factors, space.metric)
        codes_query(own, quantizer, vector, coded, vector)
        square = off = 0.0
        largest = np.float32(0)
        for j in range(vector.size):
            square += np.float64(vector[j]) * np.float64(vector[j])
            largest = max(largest, abs(vector[j]))
        length, doubt = np.sqrt(square), rounding(vector.size)
        if space.metric == IP:
            # Half a step for each component, and at most `longest` of it counts.
            off = 0.5 * np.sqrt(vector.size) * largest / QUERY_DOT
            bound[0] = (length + off) * prefilter.error + (off + doubt * length) * prefilter.longest
            bound[1] = QUERY_DOT / (largest * step) if largest > 0 else 0.0
        else:
            for j in range(vector.size):
                difference = np.float64(vector[j]) - np.float64(offset[j]) - step * coded[j]
                off += difference * difference
            bound[0] = np.sqrt(off) + prefilter.error + doubt * length
            bound[1] = 1.0 / step

    return codes


@kernel(internal=True, borrow=True)
def _limit(key, d, metric, bound):
    """An upper bound of the code key of any row whose key is at most `key`. O(1)."""
    value = np.float64(key_float32(key))
    if metric == IP:
        limit = (value + bound[0]) * bound[1]
    else:
        square = 2.0 * (value + 1.0 + rounding(d)) if metric == COSINE else value
        far = (np.sqrt(max(square, 0.0) * (1.0 + rounding(d))) + bound[0]) * bound[1]
        limit = far * far
    return np.int32(min(limit + 1.0, _INT32_MAX)) if limit > -_INT32_MAX else -np.int32(_INT32_MAX)


@by_type(inline=True)
def prefilter_prefetch(space, prefilter, slot):
    """Prefetch the sign codes of a slot that `prefilter_slots` will compare. O(1)."""
    if not holds_codes(space):
        return lambda space, prefilter, slot: None
    return lambda space, prefilter, slot: prefetch(prefilter.codes, slot, 0)


@by_type()
def prefilter_slots(query, space, prefilter, key, slots, n, keys):
    """Move those of slots[:n] to the front that may have a key up to `key`; return how many.

    All where there is no prefilter. Prefetches their rows. Scratch: keys int32[n]. O(n S).
    """
    if holds_codes(space):

        def sign_codes(query, space, prefilter, key, slots, n, keys):
            if prefilter.codes.size == 0:
                return n
            return sign_codes_filter(query, prefilter.codes, key, space.rows, slots, n)

        return sign_codes

    def codes(query, space, prefilter, key, slots, n, keys):
        if prefilter.codes.size == 0:
            return n
        outlier = prefilter.outlier
        limit = _limit(key, space.rows.shape[1], space.metric, query.bound)
        own = Rows(prefilter.codes, space.factors, space.metric)
        rows_keys(own, query.numbers, slots, 0, n, False, keys)
        kept = 0
        for i in range(n):
            slot = np.int64(slots[i])
            if keys[i] <= limit or (outlier.size > 0 and outlier[slot]):
                prefetch_row(space.rows, slot)
                slots[kept] = slot
                kept += 1
        return kept

    return codes
