"""Which documents a search may find: `filter` and `where` as one filter of the halves."""

from collections import OrderedDict
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from .._core import validation
from .._core.arrays import are_consecutive
from .._core.forking import new_lock
from .._core.typing import Int64s
from ..primitives.status import ABSENT
from .kernels.documents import mask_by_id
from .keys import key_filters
from .metadata import Where, parsed_where
from .snapshot import Snapshot

Allowed: TypeAlias = npt.NDArray[Any]  # a mask by number, or sorted numbers

_MAX_BYTES = 1 << 26  # of the masks that are kept
_MAX_ASKED = 1024  # filters asked once that are remembered
_SPARSE = 8  # numbers a document above which a mask of all numbers takes more than a list


class _Kept(NamedTuple):
    """What a cache has of an array: masks as bits, since memory never used before takes long."""

    array: npt.NDArray[Any]
    n_bits: int | None

    @classmethod
    def of(cls, array: npt.NDArray[Any]) -> "_Kept":
        if array.dtype == np.bool_:
            return cls(np.packbits(array), array.size)
        return cls(array, None)

    def unpacked(self) -> npt.NDArray[Any]:
        array, n_bits = self
        return array if n_bits is None else np.unpackbits(array, count=n_bits).view(np.bool_)


class MaskCache:
    """Keeps what a `where` allows in the present documents, the latest used, of 64 MiB at most.

    From the second time on that it is asked: the pages of memory that nobody has used take longer
    than a condition, and some filters are never asked again, such as those of a user or a moment.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple, _Kept] = OrderedDict()
        self._asked: OrderedDict[int, None] = OrderedDict()  # hashes of keys, the latest
        self._version, self._size = -1, 0  # of the documents, and of what is kept of them
        self._ids_are_rows = (-1, False)  # of a version: whether a mask by row is one by id
        self._lock = new_lock()

    def allowed(self, snapshot: Snapshot, where: Where) -> Allowed:
        """The documents that a `where` allows. O(rows) for each condition, once if it is kept."""
        key, new = (snapshot.version, where.key), False
        with self._lock:
            if key not in self._kept:
                new = hash(key) not in self._asked
                self._asked[hash(key)] = None
                while len(self._asked) > _MAX_ASKED:
                    self._asked.popitem(last=False)
        if new:
            return self._allowed(snapshot, where)
        return self._kept_or_made(key, snapshot, lambda: self._allowed(snapshot, where))

    def _allowed(self, snapshot, where):
        passes, (version, same) = snapshot.described.mask(where), self._ids_are_rows
        if version != snapshot.version:  # asked once for all filters: it takes the time of three
            row_ids = snapshot.texts.ids[: snapshot.texts.n]
            same = bool(row_ids.size and row_ids[0] == 0 and are_consecutive(row_ids))
            self._ids_are_rows = snapshot.version, same
        return passes if same else _by_id(snapshot, passes)

    def n_groups(
        self, snapshot: Snapshot, where: Where | None, allowed: Allowed | None, field: str
    ) -> int:
        """How many groups by a field `allowed` has, those without it one each. O(n log n).

        where: what alone has made `allowed`; or None, and then the count is not kept.
        """
        key = snapshot.version, None if where is None else where.key, field

        def count():
            rows = snapshot.texts.find_slowly(chosen_ids(snapshot.live_ids(), allowed))
            groups = snapshot.described.groups(field, rows)
            there = groups[groups != ABSENT]
            return np.array([np.unique(there).size + groups.size - there.size])

        if where is None and allowed is not None:
            return int(count()[0])
        return int(self._kept_or_made(key, snapshot, count)[0])

    def _kept_or_made(self, key, snapshot, make):
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
        if kept is not None:
            return kept.unpacked()
        made = make()
        new = _Kept.of(made)
        with self._lock:
            if self._version < snapshot.version:
                self._kept.clear()
                self._version, self._size = snapshot.version, 0
            if self._version == snapshot.version and key not in self._kept:
                self._size += new.array.nbytes  # an interrupt leaves it too large, never too small
                self._kept[key] = new
            while self._size > _MAX_BYTES and self._kept:
                self._size -= self._kept.popitem(last=False)[1].array.nbytes
        return made


def _by_id(snapshot, passes):
    texts = snapshot.texts
    row_ids = texts.ids[: texts.n]
    if snapshot.next_id <= _SPARSE * texts.n_ids:
        mask = np.zeros(snapshot.next_id, np.bool_)
        mask_by_id(row_ids, passes, mask)
        return mask
    if texts.n_ids < texts.n:
        order = np.argsort(row_ids, kind="stable")
        ordered = row_ids[order]
        order = order[np.append(ordered[1:] != ordered[:-1], True)]  # the last row of each id
        return ordered_ids(row_ids[order][passes[order]])
    return ordered_ids(row_ids[passes])


def chosen_ids(ids: Int64s, allowed: Allowed | None) -> Int64s:
    """Those of ids, distinct, that are allowed."""
    if allowed is None:
        return ids
    if allowed.dtype != np.bool_:
        return ids[np.isin(ids, allowed)]
    ids = ids[ids < allowed.size]
    return ids[allowed[ids]]


def ordered_ids(ids: npt.NDArray[Any]) -> Allowed:
    """Those that are ids, sorted."""
    return np.sort(ids[ids >= 0])


def both(a: Allowed | None, b: Allowed | None) -> Allowed | None:
    """The documents that two filters allow; None allows all."""
    if a is None or b is None:
        return b if a is None else a
    if a.dtype != np.bool_:
        a, b = b, a
    if a.dtype != np.bool_:
        return np.intersect1d(a, b, assume_unique=True)
    if b.dtype == np.bool_:
        n = min(a.size, b.size)
        return a[:n] & b[:n]
    b = b[b < a.size]
    return b[a[b]]


def filters_of(snapshot: Snapshot, value: Any, n_queries: int) -> list[Any]:
    """The `filter` of a search as `Request` takes it: a list of one for all, or one per query."""
    if value is None:
        return [None]
    if snapshot.keys is None:
        try:
            return validation.id_filters(value, n_queries)
        except TypeError:
            if snapshot.next_id:
                raise
    return key_filters(value, n_queries)


def wheres_of(value: Any, n_queries: int) -> list[Where | None]:
    """The `where` of a search: a list of one for all, or one per query."""
    if isinstance(value, list | tuple):
        found = list(value)
        if len(found) != n_queries:
            raise ValueError(f"where has {len(found)} entries for {n_queries} queries")
        return [None if each is None else parsed_where(each) for each in found]
    return [None if value is None else parsed_where(value)]
