"""Distances between a query and stored rows, by metric and by the dtype of the rows.

A `Space` (see `state`), or in its place `Rows` made in a kernel, holds

    metric   L2 (squared), IP (1 - <q, x>), COSINE (1 - <q, x> / (|q| |x|))
    rows     float32[n, d], uint16[n, d] (the bits of float16), or uint8[n, p] codes
    factors  float32[n], 1 / |x|; only with COSINE and rows that are not codes, else float32[0]

There are two measures. `row_value` is the distance itself, float32. A *key* is an int32 that orders
rows as the distance does, for one prepared query: the bits of a float made monotone, or the exact
integer distance between codes. Walks compare keys; answers carry values.

Code j of x represents offset[j] + step * code (see `scalar_quantizer`). The codes of IP are centred
at 128, so that a dot product needs no correction; those of COSINE are L2 codes of x / |x|.

A row is sliced before its loop: `rows[i, j]` with a signed index runs scalar, 12 times slower.
"""

from typing import NamedTuple

import numpy as np
from numba import types

from ..._core.arrays import LINE
from ..._core.intrinsics import half_value, prefetch
from ..._core.jit import by_type, kernel
from ..._core.state import member_type
from ...primitives.bits import float32_key
from .simd import CODE_ROWS, CODE_ZERO, code_dot, code_dot_rows, code_l2, code_l2_rows

L2, IP, COSINE = 0, 1, 2

_LINES = 16  # per row; the hardware prefetches what is beyond
_AHEAD, _AHEAD_LONG, _LONG = 8, 4, 512  # rows fetched ahead of their use; of more bytes, fewer
_ROUNDING = 2.0**-24  # relative, of one float32 operation


class Rows(NamedTuple):
    """What a `Space` holds, for other rows."""

    rows: object
    factors: object
    metric: object


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


@kernel(fastmath=True, internal=True, borrow=True)
def rows_keys(space, query, slots, begin, end, fetched, keys):
    """keys[i] = key of slots[begin + i] for a query of `row_query` or `codes_query`.

    One call for many rows, since a call costs as much as a short distance, and so that later rows
    are prefetched meanwhile, unless they already were (`fetched`). O((end - begin) d).
    """
    rows = space.rows
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


@kernel(fastmath=True, internal=True, borrow=True)
def rows_any_below(space, query, slots, begin, end, key):
    """Whether a row of slots[begin:end] has a key below `key`. O((end - begin) d)."""
    for i in range(begin, end):
        if _key(space, query, np.int64(slots[i])) < key:
            return True
    return False


@by_type()
def query_part(space):
    """The scratch part for one prepared query: int16[p] for codes, else float32[d]."""
    dtype = np.int16 if holds_codes(space) else np.float32
    return lambda space: (space.rows.shape[1], dtype)


@by_type()
def row_query(space, row, out):
    """rows[row] as a query whose keys compare with those of any other row, in `out`. O(d)."""
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
