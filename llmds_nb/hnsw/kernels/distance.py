"""Distances between a query and stored rows, by metric and by the dtype of the rows.

    metric   L2 (squared), IP (1 - <q, x>), COSINE (1 - <q, x> / (|q| |x|))
    rows     float32[n, d], uint16[n, d] (the bits of float16), or uint8[n, p] codes
    factors  float32[n], 1 / |x|; only with COSINE and rows that are not codes, else float32[0]

Two forms. `row_value` is the distance itself, float32. A *key* is an int32 that orders rows as the
distance does, for one prepared query: float bits made monotone, or the exact integer distance
between codes. Traversal compares keys; answers carry values.

Codes: code j of x stands for offset[j] + step * code (see `codes`). The codes of IP are centred at
128, so that a dot product needs no correction; those of COSINE are L2 codes of x / |x|.

A row is sliced before its loop: `rows[i, j]` with a signed index runs scalar, 12 times slower.
"""

import numpy as np
from numba import types

from ..._core.arrays import LINE
from ..._core.intrinsics import array_at, half_value, prefetch
from ..._core.jit import kernel, kernel_by_type
from ...primitives.bits import float32_key
from .simd import CODE_ROWS, CODE_ZERO, code_dot, code_dot_rows, code_l2, code_l2_rows

L2, IP, COSINE = 0, 1, 2

_LINES = 16  # per row; the hardware streams what lies beyond
_AHEAD, _AHEAD_LONG, _LONG = 8, 4, 512  # rows fetched ahead of their use; of more bytes, fewer
_ROUNDING = 2.0**-24  # relative, of one float32 operation


def widen(x):
    """One stored component as float32; uint16 is the bits of a finite float16."""
    raise NotImplementedError


@kernel_by_type(widen, fastmath=True)
def _widen(x):
    if x == types.uint16:

        def impl(x):
            return half_value(x)

    else:

        def impl(x):
            return np.float32(x)

    return impl


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


@kernel(fastmath=True, internal=True)
def row_value(query, rows, factors, row, metric):
    """The distance from query float32[d] to rows[row]; of a unit query with COSINE. O(d)."""
    if metric == L2:
        return float_l2(query, rows[row])
    dot = float_dot(query, rows[row])
    if metric == IP:
        return np.float32(1) - dot
    return max(np.float32(0), np.float32(1) - dot * factors[row])


@kernel(internal=True)
def rounding(d):
    """What a sum of d products of float32 may be off by, relative to the lengths' product. O(1)."""
    return 4.0 * d * _ROUNDING


@kernel(inline=True)
def prefetch_row(rows, row):
    """Ask for the lines of rows[row] that will be read soon. O(d)."""
    size = min(rows.shape[1] * rows.itemsize, LINE * _LINES)
    for byte in range(0, size, LINE):
        prefetch(rows, row, byte)
    prefetch(rows, row, size - 1)  # one line more where rows do not begin with a line


def _key(query, rows, factors, row, metric):
    """An int32 that orders rows by their distance to a query of `row_query` or `codes_query`."""
    raise NotImplementedError


@kernel_by_type(_key, fastmath=True, inline=True)
def _key_by_type(query, rows, factors, row, metric):
    if rows.dtype == types.uint8:

        def impl(query, rows, factors, row, metric):
            if metric == IP:
                key = -code_dot(query, rows[row])
            else:
                key = code_l2(query, rows[row])
            return key

    else:

        def impl(query, rows, factors, row, metric):
            if metric == L2:
                value = float_l2(query, rows[row])
            else:
                value = -float_dot(query, rows[row])
                if metric == COSINE:
                    value *= factors[row]
            return float32_key(value)

    return impl


def _codes_keys(query, rows, metric, slots, begin, end, ahead, keys):
    """As `rows_keys` for rows that are done side by side, all or none; return where they end."""
    raise NotImplementedError


@kernel_by_type(_codes_keys)
def _codes_keys_by_type(query, rows, metric, slots, begin, end, ahead, keys):
    if rows.dtype != types.uint8:
        return lambda query, rows, metric, slots, begin, end, ahead, keys: begin

    def impl(query, rows, metric, slots, begin, end, ahead, keys):
        if end - begin < CODE_ROWS:
            return begin
        i = begin
        while i < end:
            for j in range(i + ahead, min(i + ahead + CODE_ROWS, end)):
                prefetch_row(rows, np.int64(slots[j]))
            i = min(i, end - CODE_ROWS)  # the last may do again what was done, sooner than apart
            if metric == IP:
                code_dot_rows(query, rows, slots, i, keys, i - begin)
                for j in range(i - begin, i - begin + CODE_ROWS):
                    keys[j] = -keys[j]
            else:
                code_l2_rows(query, rows, slots, i, keys, i - begin)
            i += CODE_ROWS
        return i

    return impl


@kernel(fastmath=True, internal=True)
def rows_keys(query, rows, factors, metric, slots, begin, end, fetched, keys):
    """keys[i] = key of the row slots[begin + i], an int32 that orders as the distance does.

    For a query of `row_query` or `codes_query`. One call for many rows, since a call costs as much
    as a short distance, and so that rows to come are fetched meanwhile, if not `fetched` before.
    O((end - begin) d).
    """
    ahead = _AHEAD if rows.shape[1] * rows.itemsize <= _LONG else _AHEAD_LONG
    if fetched:
        ahead = end - begin
    for i in range(begin, begin if fetched else min(begin + ahead, end)):
        prefetch_row(rows, np.int64(slots[i]))
    first = _codes_keys(query, rows, metric, slots, begin, end, ahead, keys)
    for i in range(first, end):
        if i + ahead < end:
            prefetch_row(rows, np.int64(slots[i + ahead]))
        keys[i - begin] = _key(query, rows, factors, np.int64(slots[i]), metric)


@kernel(fastmath=True, internal=True)
def rows_any_below(query, rows, factors, metric, slots, begin, end, key):
    """Whether a row of slots[begin:end] has a key below `key`. O((end - begin) d)."""
    for i in range(begin, end):
        if _key(query, rows, factors, np.int64(slots[i]), metric) < key:
            return True
    return False


def query_room(rows, address):
    """Scratch at `address` for one query against `rows`: int16[p] for codes, else float32[d]."""
    raise NotImplementedError


@kernel_by_type(query_room, inline=True)
def _query_room(rows, address):
    dtype = np.int16 if rows.dtype == types.uint8 else np.float32

    def impl(rows, address):
        return array_at(address, rows.shape[1], dtype)

    return impl


def row_query(rows, factors, row, metric, room):
    """rows[row] as a query whose keys compare with those of any other row; may use `room`."""
    raise NotImplementedError


@kernel_by_type(row_query)
def _row_query(rows, factors, row, metric, room):
    if rows.dtype == types.uint8:

        def impl(rows, factors, row, metric, room):
            source = rows[row]
            zero = np.int16(CODE_ZERO if metric == IP else 0)
            for j in range(source.size):
                room[j] = np.int16(source[j]) - zero
            return room

    else:

        def impl(rows, factors, row, metric, room):
            source = rows[row]
            factor = factors[row] if metric == COSINE else np.float32(1)
            for j in range(source.size):
                room[j] = widen(source[j]) * factor
            return room

    return impl
