"""Distances between a query and stored rows, by metric and by the dtype of the rows.

A `Space` (see `state`) holds

    metric   L2 (squared), IP (1 - <q, x>), COSINE (1 - <q, x> / (|q| |x|))
    rows     float32[n, d], uint16[n, d] (the bits of float16), or uint8[n, p] codes
    factors  float32[n], 1 / |x|; only with COSINE and rows that are not codes, else float32[0]

There are two measures. `row_value` is the distance itself, float32. A *key* is an int32 that orders
rows as the distance does, for one prepared query: the bits of a float made monotone, or the exact
integer distance between codes. Walks compare keys; answers carry values. A prepared query is memory
at an address: int16[p] for codes, else float32[d].

Only the kernels at the end of this file, and their callees, read rows: they are compiled for each
dtype. All others call them through the space: see `linking.method`.

Code j of x represents offset[j] + step * code (see `scalar_quantizer`). The codes of IP are centred
at 128, so that a dot product needs no correction; those of COSINE are L2 codes of x / |x|.

A row is sliced before its loop: `rows[i, j]` with a signed index runs scalar, 12 times slower.
"""

from functools import cache
from typing import Any

import numpy as np
from numba import boolean, int32, int64, types, void
from numba.np import numpy_support

from ..._core.arrays import LINE
from ..._core.intrinsics import array_at, half_value, prefetch
from ..._core.jit import by_type, kernel
from ..._core.linking import method
from ..._core.state import StateType, member_type
from ...primitives.bits import float32_key
from .simd import CODE_ROWS, CODE_ZERO, code_dot, code_dot_rows, code_l2, code_l2_rows
from .state import SPACE, Space

L2, IP, COSINE = 0, 1, 2

_LINES = 16  # per row; the hardware prefetches what is beyond
_AHEAD, _AHEAD_LONG, _LONG = 8, 4, 512  # rows fetched ahead of their use; of more bytes, fewer
_VECTORS_AHEAD = 3
_ROUNDING = 2.0**-24  # relative, of one float32 operation


@by_type(fastmath=True)
def widen(x):
    """One stored component as float32; uint16 is the bits of a finite float16."""
    return (lambda x: half_value(x)) if x == types.uint16 else (lambda x: np.float32(x))


@kernel(fastmath=True, inline=True)
def float_l2(query, row):
    """Squared Euclidean distance, float32. O(d)."""
    total = np.float32(0)
    for j in range(row.size):
        difference = query[j] - widen(row[j])
        total += difference * difference
    return total


@kernel(fastmath=True, inline=True)
def float_dot(query, row):
    """Inner product, float32. O(d)."""
    total = np.float32(0)
    for j in range(row.size):
        total += query[j] * widen(row[j])
    return total


@kernel(fastmath=True, internal=True, borrow=True)
def row_value(space, query, row):
    """The distance from query float32[d] to rows[row]; of a unit query with COSINE. O(d)."""
    if space.metric == L2:
        return float_l2(query, space.rows[row])
    dot = float_dot(query, space.rows[row])
    if space.metric == IP:
        return np.float32(1) - dot
    return max(np.float32(0), np.float32(1) - dot * space.factors[row])


@kernel(internal=True, borrow=True)
def rounding(d):
    """The error of a sum of d float32 products, relative to the product of the lengths. O(1)."""
    return 4.0 * d * _ROUNDING


@kernel(inline=True)
def prefetch_row(rows, row):
    """Prefetch the cache lines of rows[row]. O(d)."""
    size = min(rows.shape[1] * rows.itemsize, LINE * _LINES)
    for byte in range(0, size, LINE):
        prefetch(rows, row, byte)
    prefetch(rows, row, size - 1)  # the last line, where rows do not begin with a line


def holds_codes(space):
    """Whether the rows of a space, given by its Numba type, are codes."""
    return member_type(space, "rows").dtype == types.uint8


@by_type(fastmath=True, inline=True)
def _key(space, query, row):
    """An int32 that orders rows by their distance to a query of `row_query` or `codes_query`."""
    if holds_codes(space):

        def impl(space, query, row):
            if space.metric == IP:
                key = -code_dot(query, space.rows[row])
            else:
                key = code_l2(query, space.rows[row])
            return key

    else:

        def impl(space, query, row):
            if space.metric == L2:
                value = float_l2(query, space.rows[row])
            else:
                value = -float_dot(query, space.rows[row])
                if space.metric == COSINE:
                    value *= space.factors[row]
            return float32_key(value)

    return impl


@by_type()
def _codes_keys(space, query, slots, begin, end, ahead, keys):
    """As `rows_keys` for codes, CODE_ROWS at a time; return `end`, or `begin` for too few rows."""
    if not holds_codes(space):
        return lambda space, query, slots, begin, end, ahead, keys: begin

    def impl(space, query, slots, begin, end, ahead, keys):
        rows = space.rows
        if end - begin < CODE_ROWS:
            return begin
        i = begin
        while i < end:
            for j in range(i + ahead, min(i + ahead + CODE_ROWS, end)):
                prefetch_row(rows, np.int64(slots[j]))
            i = min(i, end - CODE_ROWS)  # the last may repeat some rows: faster than one by one
            if space.metric == IP:
                code_dot_rows(query, rows, slots, i, keys, i - begin)
                for j in range(i - begin, i - begin + CODE_ROWS):
                    keys[j] = -keys[j]
            else:
                code_l2_rows(query, rows, slots, i, keys, i - begin)
            i += CODE_ROWS
        return i

    return impl


@by_type()
def query_at(space, query):
    """The prepared query at an address."""
    if holds_codes(space):
        return lambda space, query: array_at(query, space.rows.shape[1], np.int16)
    return lambda space, query: array_at(query, space.rows.shape[1], np.float32)


@by_type()
def _row_query(space, row, out):
    """Write rows[row] to `out`, an array, as `row_query` does. O(d)."""
    if holds_codes(space):

        def impl(space, row, out):
            source = space.rows[row]
            zero = np.int16(CODE_ZERO if space.metric == IP else 0)
            for j in range(source.size):
                out[j] = np.int16(source[j]) - zero

    else:

        def impl(space, row, out):
            source = space.rows[row]
            factor = space.factors[row] if space.metric == COSINE else np.float32(1)
            for j in range(source.size):
                out[j] = widen(source[j]) * factor

    return impl


@kernel(borrow=True, by_address=True)
def _space_row_query(space, row, out):
    _row_query(space, row, query_at(space, out))


@kernel(fastmath=True, borrow=True, by_address=True)
def _space_rows_keys(space, query, slots, begin, end, fetched, keys):
    rows, query = space.rows, query_at(space, query)
    slots, keys = array_at(slots, end, np.int32), array_at(keys, end - begin, np.int32)
    ahead = _AHEAD if rows.shape[1] * rows.itemsize <= _LONG else _AHEAD_LONG
    if fetched:
        ahead = end - begin
    for i in range(begin, begin if fetched else min(begin + ahead, end)):
        prefetch_row(rows, np.int64(slots[i]))
    first = _codes_keys(space, query, slots, begin, end, ahead, keys)
    for i in range(first, end):
        if i + ahead < end:
            prefetch_row(rows, np.int64(slots[i + ahead]))
        keys[i - begin] = _key(space, query, np.int64(slots[i]))


@kernel(fastmath=True, borrow=True, by_address=True)
def _space_any_nearer(space, row, key, slots, begin, end, query):
    query, slots = query_at(space, query), array_at(slots, end, np.int32)
    _row_query(space, row, query)
    for i in range(begin, end):
        if _key(space, query, np.int64(slots[i])) < key:
            return True
    return False


@kernel(fastmath=True, borrow=True, by_address=True)
def _space_rows_distances(space, query, slots, n, fetched, distances):
    rows, query = space.rows, array_at(query, space.rows.shape[1], np.float32)
    slots, distances = array_at(slots, n, np.int64), array_at(distances, n, np.float32)
    for i in range(0 if fetched else min(_VECTORS_AHEAD, n)):
        prefetch_row(rows, slots[i])
    for i in range(n):
        if not fetched and i + _VECTORS_AHEAD < n:
            prefetch_row(rows, slots[i + _VECTORS_AHEAD])
        distances[i] = row_value(space, query, slots[i])


# row_query(space, row, out): rows[row] as a query, at the address `out`, whose keys compare with
# those of any other row. O(d).
row_query = method("query_code", void(SPACE, int64, int64))

# rows_keys(space, query, slots, begin, end, fetched, keys): keys int32[i] = key of slots
# int32[begin + i]. One call for many rows, since a call costs as much as a short distance, and so
# that later rows are prefetched meanwhile, unless they already were (`fetched`).
# O((end - begin) d).
rows_keys = method("keys_code", void(SPACE, int64, int64, int64, int64, boolean, int64))

# any_nearer(space, row, key, slots, begin, end, query): whether a row of slots int32[begin:end] has
# a distance to rows[row] with a key below `key`. Scratch: query. O((end - begin) d).
any_nearer = method("any_nearer_code", boolean(SPACE, int64, int32, int64, int64, int64, int64))

# rows_distances(space, query, slots, n, fetched, distances): distances float32[n] = `row_value` of
# slots int64[n], of a query float32[d], of length 1 with COSINE. O(n d).
rows_distances = method("distances_code", void(SPACE, int64, int64, int64, boolean, int64))


_WALK = (
    (row_query, _space_row_query),
    (rows_keys, _space_rows_keys),
    (any_nearer, _space_any_nearer),
)
_MEASURE = ((rows_distances, _space_rows_distances),)


@cache
def _codes(methods, dtype):
    space = StateType(Space, (numpy_support.from_dtype(dtype),))
    return tuple(method.code(kernel, space) for method, kernel in methods)


def walked_space(rows: np.ndarray, factors: np.ndarray, metric: int) -> Any:
    """The Space of rows that walks compare. Compiles the kernels for their dtype."""
    return Space(rows, factors, metric, *_codes(_WALK, rows.dtype), 0)


def measured_space(vectors: np.ndarray, factors: np.ndarray, metric: int) -> Any:
    """The Space of the vectors that answers are measured on, likewise."""
    return Space(vectors, factors, metric, 0, 0, 0, *_codes(_MEASURE, vectors.dtype))
