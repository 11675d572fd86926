"""What a segment keeps of its documents: ids, lengths and which are dead, in few bytes each."""

import numpy as np

from .._core.arrays import are_consecutive
from .kernels.postings import NO_CLASS

_SLICE = 1 << 18


class IdsJoined:
    """The ids of `n` documents, which come part by part, as a Segment keeps them.

    As long as they count up by one there is no array of them.
    """

    def __init__(self, n):
        self._n, self._done = n, 0
        self._first = self._all = None

    def add(self, part):
        """Put int64[m] behind those that came before."""
        stop = self._done + len(part)
        if self._first is None and len(part):
            self._first = part[0]
        if self._all is None and not self._follow(part):
            self._all = np.empty(self._n, np.int64)
            self._all[: self._done] = self._first + np.arange(self._done)
        if self._all is not None:
            self._all[self._done : stop] = part
        self._done = stop

    def _follow(self, part):
        return not len(part) or (part[0] - self._first == self._done and are_consecutive(part))

    def made(self) -> np.ndarray:
        """int64[n], or [1] if they count up by one; n must have come."""
        if self._all is None:
            return np.array([] if self._first is None else [self._first], np.int64)
        return self._all


def short_ids(ids) -> np.ndarray:
    """int64[n] as a Segment keeps them, in memory of their own."""
    joined = IdsJoined(len(ids))
    for start in range(0, len(ids), _SLICE):
        joined.add(ids[start : start + _SLICE])
    return joined.made()


def ids_at(segment, rows):
    """The ids of rows."""
    return segment.ids[rows] if len(segment.ids) > 1 else segment.ids[0] + rows


def ids_of(segment) -> np.ndarray:
    """int64[n], all ids."""
    return ids_at(segment, np.arange(len(segment.classes)))


def last_id(segment) -> int:
    """The largest id."""
    return int(ids_at(segment, len(segment.classes) - 1))


def rows_below(segment, ids, *, side="left"):
    """For each of the ids how many rows have a smaller one, or, with "right", no larger one."""
    if len(segment.ids) > 1:
        return np.searchsorted(segment.ids, ids, side=side)
    one = int(side == "right")
    return np.clip(ids - segment.ids[0], -one, len(segment.classes) - one) + one


def rows_alive(segment, low=0, high=None) -> np.ndarray:
    """The rows from `low` to `high` whose document is not dead, int64."""
    if len(segment.dead):
        return low + np.flatnonzero(~segment.dead[low:high])
    return np.arange(low, len(segment.classes) if high is None else high)


def numbered(lengths) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(classes uint16[n], sizes int32[C], long int32[2, L]) of int32[n] lengths."""
    if lengths.max(initial=0) <= 4 * len(lengths) + 65536:
        present = np.zeros(int(lengths.max(initial=0)) + 1, np.bool_)
        present[lengths] = True
        sizes = np.flatnonzero(present)
        numbers = np.minimum(np.cumsum(present) - 1, NO_CLASS).astype(np.uint16)
        classes = numbers[lengths]
    else:
        sizes, classes = np.unique(lengths, return_inverse=True)
        classes = np.minimum(classes, NO_CLASS).astype(np.uint16)
    rows = np.flatnonzero(classes == NO_CLASS)
    long = np.array([rows, lengths[rows]], np.int32)
    return classes, sizes[:NO_CLASS].astype(np.int32), long


def lengths_at(segment, rows) -> np.ndarray:
    """The lengths of int64[m] rows, int32."""
    classes = segment.classes[rows]
    lengths = segment.sizes[np.minimum(classes, max(0, len(segment.sizes) - 1))]
    (odd,) = np.nonzero(classes == NO_CLASS)
    lengths[odd] = segment.long[1, np.searchsorted(segment.long[0], rows[odd])]
    return lengths


def lengths_of(segment) -> np.ndarray:
    """int32[n], all lengths."""
    return lengths_at(segment, np.arange(len(segment.classes)))
