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

    codes       a Space of    sign codes, or codes of the rows; uint8[0, 0] if there is no prefilter
                uint8[C, S]
    outlier     bool[C]       rows whose codes are off by more than `error`; bool[0] if none are
    error       float         the largest |x - x'| of all others, with the rounding of float32
    longest     float         the largest |x| of all others, 1 with COSINE
    error_bound, centre       of sign codes; the bound of codes of vectors is 0

`outlier`, `error` and `longest` are those of codes of vectors only.
"""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import int64, types, void

from ..._core.intrinsics import array_at
from ..._core.jit import kernel
from ..._core.linking import method
from ..._core.state import StateType
from ...primitives.bits import key_float32
from .distance import COSINE, IP, prefetch_row, rounding, rows_keys, walked_space
from .scalar_quantizer import QUERY_DOT, codes_query
from .sign_codes import sign_codes_query, sign_codes_slots
from .simd import BIT_PLANES
from .state import PREFILTER, SPACE, Prefilter, Quantizer, Space

_INT32_MAX = 2.0**31 - 1


class Query(NamedTuple):
    """A query as a walk compares it, and as its prefilter does."""

    vector: object  # the address of what `rows_keys` takes
    codes: object  # uint8[any]: the bit planes of sign codes; or the query's own codes int16[S]
    bound: object  # float64[3]: see `sign_codes`; or what a limit adds to the distance, their scale


# prefilter_query(prefilter, space, quantizer, vector, codes, bound, numbers): fill the last two
# fields of a Query from its vector, of length 1 with COSINE. Scratch: numbers int16[as many]. O(d).
prefilter_query = method(
    "query_code", void(PREFILTER, SPACE, StateType(Quantizer), int64, int64, int64, int64)
)

# prefilter_slots(prefilter, space, codes, bound, key, slots, n, keys): move those of slots int32[n]
# to the front that may have a key up to `key`; returns how many. Prefetches their rows. Scratch:
# keys int32[n]. O(n S).
prefilter_slots = method(
    "slots_code", int64(PREFILTER, SPACE, int64, int64, int64, int64, int64, int64)
)


@kernel(internal=True, borrow=True)
def query_parts(space, prefilter):
    """The scratch parts of a Query, and of `numbers`. O(1)."""
    p, width = space.rows.shape[1], prefilter.codes.rows.shape[1]
    codes = (BIT_PLANES * width, np.uint8)
    return (p, np.float32), codes, (3, np.float64), (p, np.int16)


@kernel(borrow=True, by_address=True)
def _vector_codes_query(prefilter, space, quantizer, vector, codes, bound, numbers):
    offset, step, metric = quantizer.offset, quantizer.step, space.metric
    vector = array_at(vector, space.rows.shape[1], np.float32)
    bound = array_at(bound, 3, np.float64)
    coded = array_at(codes, prefilter.codes.rows.shape[1], np.int16)
    codes_query(quantizer, metric, vector, coded, vector)
    square = off = 0.0
    largest = np.float32(0)
    for j in range(vector.size):
        square += np.float64(vector[j]) * np.float64(vector[j])
        largest = max(largest, abs(vector[j]))
    length, doubt = np.sqrt(square), rounding(vector.size)
    if metric == IP:
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


@kernel(borrow=True, by_address=True)
def _vector_codes_slots(prefilter, space, codes, bound, key, slots, n, keys):
    outlier, bound = prefilter.outlier, array_at(bound, 3, np.float64)
    limit = _limit(key, space.rows.shape[1], space.metric, bound)
    rows_keys(prefilter.codes, codes, slots, 0, n, False, keys)
    slots, keys = array_at(slots, n, np.int32), array_at(keys, n, np.int32)
    kept = 0
    for i in range(n):
        slot = np.int64(slots[i])
        if keys[i] <= limit or (outlier.size > 0 and outlier[slot]):
            prefetch_row(space.rows, slot)
            slots[kept] = slot
            kept += 1
    return kept


@cache
def _codes(kernels, dtype):
    space = StateType(Space, (dtype,))
    methods = zip((prefilter_query, prefilter_slots), kernels, strict=True)
    return tuple(method.code(kernel, PREFILTER, space) for method, kernel in methods)


def prefilter_of(codes: np.ndarray, factors: np.ndarray, metric: int, *fields: Any) -> Prefilter:
    """The Prefilter of these codes. Compiles the kernels for its kind, if there are any codes."""
    *_, error_bound, _ = fields
    if not codes.size:
        return Prefilter(Space(codes, factors, metric, 0, 0, 0, 0), *fields, 0, 0)
    if error_bound:
        kernels, dtype = (sign_codes_query, sign_codes_slots), types.uint8
        space = Space(codes, factors, metric, 0, 0, 0, 0)
    else:
        kernels, dtype = (_vector_codes_query, _vector_codes_slots), types.float32
        space = walked_space(codes, factors, metric)
    return Prefilter(space, *fields, *_codes(kernels, dtype))
