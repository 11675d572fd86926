"""Evaluates a filter on the columns of a metadata store."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from .._core.typing import Bools, Int32s, Int64s, UInt8s
from ..text.vocabulary import offsets
from .kernels import where as k
from .plain_metadata import ELEMENTS, float_key
from .where import AND, COMPARE, EXISTS, IN, NOT, OR, Node

_INT64 = -(2**63), 2**63 - 1
_FLOATS = float_key(-np.finfo(float).max), float_key(np.finfo(float).max)


Intervals: TypeAlias = tuple[Int64s, Int64s, Int64s]  # (ptr, lows, highs) as `kernels.where` has


class Column(NamedTuple):
    """The first m entries of a field: see `kernels.where`."""

    rows: Int32s
    kinds: UInt8s
    values: Int64s
    m: int

    def first(self, m: int) -> "Column":
        """The first m entries alone, without spare space."""
        return Column(self.rows[:m], self.kinds[:m], self.values[:m], m)


NO_ENTRIES = Column(np.empty(0, np.int32), np.empty(0, np.uint8), np.empty(0, np.int64), 0)


class Columns(NamedTuple):
    """What conditions look at: a store's columns by name, its n rows, and its strings."""

    n: int
    column: Callable[[str], Column]  # of exactly its entries
    codes: Callable[[list[str]], list[int]]  # of strings; -1 if unknown
    strings: Callable[[], tuple[UInt8s, Int64s]]  # (blob, ptr) of all
    buckets: Callable[[str, Column], Any]  # the `Buckets` of a column, or None


def matching(columns: Columns, node: Node) -> Bools:
    """Which rows the conditions of a `Where.tree` hold for, bool[n]. O(n) for each."""
    kind = node[0]
    if kind == NOT:
        result = matching(columns, node[1])
        return np.logical_not(result, out=result)
    if kind in (AND, OR):
        if len(node) == 1:
            return np.full(columns.n, kind == AND)
        result = matching(columns, node[1])
        combine = np.logical_and if kind == AND else np.logical_or
        for part in node[2:]:
            combine(result, matching(columns, part), out=result)
        return result
    if kind == IN:
        return _equal(columns, node[1], node[2])
    if kind == COMPARE:
        return _compared(columns, node[1], node[2])
    assert kind == EXISTS
    return _existing(columns, node[1])


def _existing(columns, field):
    rows = columns.column(field).rows
    result = np.zeros(columns.n, np.bool_)
    if rows.size and rows[-1] == rows.size - 1:  # the first rows, all of them
        result[: rows.size] = True
    else:
        result[rows] = True
    return result


def _equal(columns, field, values):
    """Which rows have one of these values, or a list that has."""
    intervals = _Intervals()
    strings = [value for value in values if isinstance(value, str)]
    for code in columns.codes(strings) if strings else ():
        if code >= 0:
            intervals.add(k.STR, code, code)
    for value in values:
        if value is None:
            intervals.add(k.NULL, 0, 0)
        elif isinstance(value, bool):
            intervals.add(k.BOOL, int(value), int(value))
        elif not isinstance(value, str):
            intervals.add_numbers([("$gte", value), ("$lte", value)])
    result = np.zeros(columns.n, np.bool_)
    arrays = intervals.arrays()
    _match(columns, field, True, arrays, result)
    _match(columns, field + ELEMENTS, False, arrays, result)
    if None in values:
        result |= ~_existing(columns, field)
    return result


def _compared(columns, field, comparisons):
    """Which rows have a value for which all comparisons hold."""
    result = np.zeros(columns.n, np.bool_)
    n_strings = sum(isinstance(bound, str) for _, bound in comparisons)
    if n_strings == 0:
        intervals = _Intervals()
        intervals.add_numbers(comparisons)
        _match(columns, field, True, intervals.arrays(), result)
    elif n_strings == len(comparisons):
        _compare_strings(columns, columns.column(field), comparisons, result)
    return result  # nothing is less than a number and a string


class _Intervals:
    """Closed intervals of stored values, by kind."""

    def __init__(self):
        self._of_kind: list[list[tuple[int, int]]] = [[] for _ in range(k.N_KINDS)]

    def add(self, kind, low, high):
        if low <= high:
            self._of_kind[kind].append((low, high))

    def add_numbers(self, comparisons):
        """The numbers for which all comparisons with ints and finite floats hold."""
        (low, high), (low_key, high_key) = _INT64, _FLOATS
        for operator, bound in comparisons:
            nearest, key = _nearest(bound)
            if operator == "$gte":
                low = max(low, math.ceil(bound))
                low_key = max(low_key, key + (nearest < bound))
            elif operator == "$gt":
                low = max(low, math.floor(bound) + 1)
                low_key = max(low_key, key + (nearest <= bound))
            elif operator == "$lte":
                high = min(high, math.floor(bound))
                high_key = min(high_key, key - (nearest > bound))
            else:
                high = min(high, math.ceil(bound) - 1)
                high_key = min(high_key, key - (nearest >= bound))
        self.add(k.INT, low, high)
        self.add(k.FLOAT, low_key, high_key)

    def arrays(self) -> Intervals:
        """All of them, ascending."""
        ordered = [_joined(sorted(intervals)) for intervals in self._of_kind]
        ptr = offsets([len(intervals) for intervals in ordered])
        flat = np.array([pair for intervals in ordered for pair in intervals], np.int64)
        lows, highs = flat.reshape(-1, 2).T.copy()
        return ptr, lows, highs


def _joined(intervals):
    """Ascending intervals, those that follow one another made one."""
    joined: list[tuple[int, int]] = []
    for low, high in intervals:
        if joined and joined[-1][1] + 1 == low:
            low, _ = joined.pop()
        joined.append((low, high))
    return joined


def _nearest(number) -> tuple[float, int]:
    """The float next to a number, or an infinity beyond all floats, and its key."""
    try:
        nearest = float(number)
    except OverflowError:
        nearest = math.inf if number > 0 else -math.inf
    return nearest, float_key(nearest)


def _match(columns, field, distinct, intervals, out):
    column, begin = columns.column(field), 0
    if column.m and intervals[1].size:
        buckets = columns.buckets(field, column)
        if buckets is not None:
            begin = buckets.match(column, distinct, intervals, out)
    if begin < column.m and intervals[1].size:
        hits = np.empty(k.BLOCK, np.bool_)
        rows, kinds, values = (array[begin:] for array in column[:3])
        k.column_match(rows, kinds, values, distinct, *intervals, hits, out)


def _compare_strings(columns, column, comparisons, out):
    """Compare each distinct string of the column once."""
    low, low_is, high, high_is = _bounds(comparisons)
    blob, ptr = columns.strings()
    rows, kinds, values, _ = column
    passes = np.zeros(ptr.size, np.bool_)  # by code: one more than there are strings in the table
    k.column_codes(kinds, values, passes)
    codes = np.flatnonzero(passes)
    k.strings_between(blob, ptr, codes, low, low_is, high, high_is, passes)
    k.column_gather(rows, kinds, values, passes, out)


def _bounds(comparisons):
    """(low, its kind, high, its kind) of the strings for which all comparisons hold."""
    low = high = (b"", k.NO_BOUND)
    for operator, bound in comparisons:
        data = bound.encode("utf-8", "surrogatepass")
        kind = k.OPEN if operator in ("$gt", "$lt") else k.CLOSED
        # Of equal bounds the open one is the narrower, and OPEN > CLOSED > NO_BOUND.
        if operator in ("$gt", "$gte"):
            low = max(low, (data, kind))
        elif high[1] == k.NO_BOUND or (data, -kind) < (high[0], -high[1]):
            high = data, kind
    return _bytes(low[0]), low[1], _bytes(high[0]), high[1]


def _bytes(data):
    return np.frombuffer(bytearray(data), np.uint8)
