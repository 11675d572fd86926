"""The ids and lengths of a segment's documents, and which of them are dead, in few bytes each.

The arrays are those of `Segment` in kernels/postings.py; a *doc* is the number of a document there.
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .._core.arrays import are_consecutive
from .._core.typing import Int32s, Int64s
from .kernels.postings import NO_CLASS

_SLICE = 1 << 18


class IdsJoined:
    """The `ids` of a Segment of `n` documents, from parts that come one after the other.

    While the ids count up by one no array of them is made.
    """

    def __init__(self, n: int):
        self._n, self._done = n, 0
        self._first: Any = None
        self._all: Int64s | None = None

    def add(self, part: Int64s) -> None:
        """Append int64[m]."""
        stop = self._done + len(part)
        if self._first is None and len(part):
            self._first = part[0]
        if self._all is None and not self._continues(part):
            self._all = np.empty(self._n, np.int64)
            self._all[: self._done] = self._first + np.arange(self._done)
        if self._all is not None:
            self._all[self._done : stop] = part
        self._done = stop

    def _continues(self, part):
        return not len(part) or (part[0] - self._first == self._done and are_consecutive(part))

    def made(self) -> Int64s:
        """int64[n], or [1] if they count up by one; all n must have been added."""
        if self._all is None:
            return np.array([] if self._first is None else [self._first], np.int64)
        return self._all


def short_ids(ids: Int64s) -> Int64s:
    """The `ids` of a Segment for int64[n], in memory of their own."""
    joined = IdsJoined(len(ids))
    for start in range(0, len(ids), _SLICE):
        joined.add(ids[start : start + _SLICE])
    return joined.made()


def ids_at(segment: Any, docs: Any) -> Any:
    """The ids of docs, an int or an array."""
    return segment.ids[docs] if len(segment.ids) > 1 else segment.ids[0] + docs


def ids_of(segment: Any) -> Int64s:
    """int64[n], all ids."""
    return ids_at(segment, np.arange(len(segment.classes)))


def last_id(segment: Any) -> int:
    """The largest id."""
    return int(ids_at(segment, len(segment.classes) - 1))


def docs_below(segment: Any, ids: Any, *, side: Literal["left", "right"] = "left") -> Any:
    """For each of the ids how many docs have a smaller one, or, with "right", no larger one."""
    if len(segment.ids) > 1:
        return np.searchsorted(segment.ids, ids, side=side)
    one = int(side == "right")
    return np.clip(ids - segment.ids[0], -one, len(segment.classes) - one) + one


def docs_alive(segment: Any, low: int = 0, high: int | None = None) -> Int64s:
    """The docs from `low` to `high` that are not dead, int64."""
    if len(segment.dead):
        return low + np.flatnonzero(~segment.dead[low:high])
    return np.arange(low, len(segment.classes) if high is None else high)


def length_classes(lengths: Int32s) -> tuple[npt.NDArray[np.uint16], Int32s, Int32s]:
    """(classes uint16[n], class_lengths int32[C], long_docs int32[2, L]) of int32[n] lengths."""
    if lengths.max(initial=0) <= 4 * len(lengths) + 65536:
        present = np.zeros(int(lengths.max(initial=0)) + 1, np.bool_)
        present[lengths] = True
        distinct = np.flatnonzero(present)
        class_of = np.minimum(np.cumsum(present) - 1, NO_CLASS).astype(np.uint16)
        classes = class_of[lengths]
    else:
        distinct, inverse = np.unique(lengths, return_inverse=True)
        classes = np.minimum(inverse, NO_CLASS).astype(np.uint16)
    docs = np.flatnonzero(classes == NO_CLASS)
    long_docs = np.array([docs, lengths[docs]], np.int32)
    return classes, distinct[:NO_CLASS].astype(np.int32), long_docs


def lengths_at(segment: Any, docs: Int64s) -> Int32s:
    """The lengths of int64[m] docs, int32."""
    classes = segment.classes[docs]
    lengths = segment.class_lengths[np.minimum(classes, max(0, len(segment.class_lengths) - 1))]
    (long,) = np.nonzero(classes == NO_CLASS)
    lengths[long] = segment.long_docs[1, np.searchsorted(segment.long_docs[0], docs[long])]
    return lengths


def lengths_of(segment: Any) -> Int32s:
    """int32[n], all lengths."""
    return lengths_at(segment, np.arange(len(segment.classes)))
