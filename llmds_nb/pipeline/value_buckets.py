"""Ranges of values in 2 bytes beside the 13 of an entry: a condition on a column reads less.

As column imprints (Sidirourgos and Kersten, SIGMOD 2013) and the first bytes of ByteSlice (Feng et
al., SIGMOD 2015) do, but that a bucket is one range of the same width for the whole column.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .._core.typing import Bools, Int64s
from ..primitives.status import ABSENT
from .kernels import where as k
from .matching import Column, Intervals

LEAST = 1 << 15  # entries of a column that are worth it
_NEW_SHARE = 4  # of a column: more entries that have no bucket yet are worth new ones


class Buckets(NamedTuple):
    """The buckets of the first entries of a column, which all are of one kind."""

    buckets: npt.NDArray[np.uint16]
    limits: Int64s
    shift: int
    kind: int

    @classmethod
    def of(cls, column: Column) -> "Buckets | None":
        """Those of a column that is not empty; None if its values are of several kinds. O(m)."""
        limits, buckets = np.empty(2, np.int64), np.empty(column.m, np.uint16)
        shift = k.buckets_fill(column.kinds, column.values, limits, buckets)
        return None if shift == ABSENT else cls(buckets, limits, int(shift), int(column.kinds[0]))

    def match(self, column: Column, distinct: bool, intervals: Intervals, out: Bools) -> int:
        """`column_match` for those entries of a column that have buckets; return how many. O(m).

        0: there are too many intervals.
        """
        ptr, lows, highs = intervals
        own = slice(int(ptr[self.kind]), int(ptr[self.kind + 1]))
        if own.stop - own.start > k.FEW:
            return 0
        m = min(column.m, self.buckets.size)
        hits = np.empty(k.BLOCK, np.bool_)
        given = column.rows[:m], self.buckets[:m], column.values[:m], distinct, self.limits
        k.buckets_match(*given, self.shift, lows[own], highs[own], hits, out)
        return m


class BucketsByName:
    """The buckets of columns that only ever grow at their ends, made when one is asked again."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, Buckets | None]] = {}  # of so many entries

    def get(self, name: str, column: Column) -> Buckets | None:
        """Buckets of at least most of the entries of a column, or None. O(m) now and then."""
        if column.m < LEAST:
            return None
        m, found = self._known.get(name, (None, None))
        if m is None:
            self._known[name] = 0, None  # whether it will be asked again, nobody knows
        elif column.m - m > column.m // _NEW_SHARE:
            found = Buckets.of(column)
            self._known[name] = column.m, found
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        known = [found for _, found in list(self._known.values()) if found is not None]
        return sum(each.buckets.nbytes + each.limits.nbytes for each in known)

    def check(self, name: str, column: Column) -> None:
        """Assert that those of a column are what `Buckets.of` makes of its first entries."""
        _, found = self._known.get(name, (0, None))
        if found is not None:
            m = min(found.buckets.size, column.m)
            assert (column.kinds[:m] == found.kind).all()
            offsets = column.values[:m].view(np.uint64) - found.limits.view(np.uint64)[0]
            assert ((offsets >> np.uint64(found.shift)) == found.buckets[:m]).all()
