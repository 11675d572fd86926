"""Stores the texts of documents in one blob of UTF-8 bytes, laid out in files as in memory."""

import mmap
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .._core import validation
from .._core.arrays import grown_size
from .._core.forking import new_lock
from .._core.publishing import Call
from .._core.typing import Int64s, UInt8s
from ..errors import CorruptFileError
from ..primitives.hash_table import (
    empty_table,
    table_capacity,
    table_find_many,
    table_pairs,
    table_rehash,
    table_remove_many,
    table_set_many,
)
from ..primitives.status import ABSENT

_CHECKED_BYTES = 1 << 20  # at once, at least, when a file is read
_SMALL = 1 << 24  # bytes of mapped texts that are read at load
_SPARE_BYTES, _SPARE_ROWS = 1024, 16  # unused ones that are not worth a compaction


class Changed(NamedTuple):
    """A store after a write, and what else makes it so."""

    store: "TextStore"
    calls: list[Call]  # for `publish`
    kept_rows: Int64s | None  # that were rows of it before it was compacted; None: it was not


class RowTable:
    """The hash table of a store, id -> row; of one that was loaded it is made when it is needed.

    Built from `ids` by row, ABSENT for rows without one.
    """

    def __init__(self, ids: Int64s | None = None, table: Int64s | None = None) -> None:
        self._ids, self._table = ids, table
        self._ascend = ids is not None and ids.size > 0 and bool((ids[1:] > ids[:-1]).all())
        self._lock = new_lock()

    @property
    def table(self) -> Int64s:
        """int64[., 2] (primitives/hash_table.py). O(n) the first time."""
        if self._table is not None:
            return self._table
        with self._lock:
            if self._table is None:
                ids, rows = self.pairs()
                table = empty_table(len(ids))
                table_set_many(table, ids, rows)
                if self._table is None:  # else a signal handler was first
                    self._table = table
            self._ids = None
            return self._table

    def find(self, ids: Int64s) -> Int64s:
        """Row of each id int64[n], or ABSENT; needs no table where loaded ids ascend."""
        own, rows = self._loaded_ids() if self._ascend else None, np.empty(ids.size, np.int64)
        if own is None:
            table_find_many(self.table, ids, rows)
            return rows
        rows[:] = np.searchsorted(own, ids)
        rows[rows == own.size] = 0
        rows[own[rows] != ids] = ABSENT
        return rows

    def pairs(self) -> tuple[Int64s, Int64s]:
        """Every id and its row, int64[n_ids] each, by row."""
        ids = self._loaded_ids()
        if ids is not None:
            rows = np.arange(len(ids))
            if ids.min(initial=0) == ABSENT:
                rows = rows[ids != ABSENT]
            return ids[rows], rows
        return _by_row(table_pairs(self.table))

    def _loaded_ids(self):
        """Those that the table is yet to be made of."""
        ids = self._ids
        return ids if self._table is None else None

    @property
    def nbytes(self) -> int:
        """Bytes of the table."""
        return 0 if self._table is None else self._table.nbytes


class TextStore(NamedTuple):
    """Texts by id: a value, which each write replaces by another.

        row_table  id -> row
        ids        int64[>= n]      the id that row r was added with; ABSENT: it has none any more
        indptr     int64[>= n + 1]  row r is blob[indptr[r]:indptr[r + 1]]
        blob       uint8[>= indptr[n]]
        n          rows in use, replaced and removed ones included
        n_ids      rows that have an id: of an id's rows the last, if it was not removed
        n_bytes    of their texts

    Rows are only ever appended, beyond the `n` of every store that was published. The table alone
    is changed in place: a write returns, besides the new store, the calls that make it the table of
    the new one, for `publish` at the same moment. So whoever finds rows and then sees the store
    still published has the rows of that store.
    """

    row_table: RowTable
    ids: Int64s
    indptr: Int64s
    blob: UInt8s
    n: int
    n_ids: int
    n_bytes: int

    @classmethod
    def empty(cls) -> "TextStore":
        """A store without texts."""
        ids, indptr = np.zeros(_SPARE_ROWS, np.int64), np.zeros(_SPARE_ROWS, np.int64)
        blob = np.zeros(_SPARE_BYTES, np.uint8)
        return cls(RowTable(table=empty_table(4)), ids, indptr, blob, 0, 0, 0)

    @property
    def table(self) -> Int64s:
        """The hash table."""
        return self.row_table.table

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays = self.ids.nbytes + self.indptr.nbytes + self.blob.nbytes
        return self.row_table.nbytes + arrays

    def find(self, ids: Int64s) -> Int64s:
        """Row of each id int64[n], or ABSENT."""
        return self.row_table.find(ids)

    def find_slowly(self, ids: Int64s) -> Int64s:
        """`find` for ids that this store has, whatever the table has become since. O(n)."""
        places = np.flatnonzero(np.isin(self.ids[: self.n], ids))
        rows = np.full(ids.size, ABSENT)
        order = np.argsort(ids)
        rows[order[np.searchsorted(ids, self.ids[places], sorter=order)]] = places
        return rows

    def texts(self, rows: Int64s) -> list[str | None]:
        """The texts of rows that were found; None for ABSENT.

        CorruptFileError: one is of a mapped file, and not UTF-8.
        """
        return [None if row == ABSENT else self._text(row) for row in rows.tolist()]

    def _text(self, row):
        text = self.blob[self.indptr[row] : self.indptr[row + 1]]
        try:
            return text.tobytes().decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise CorruptFileError(f"a text is not UTF-8: {error.reason}") from None

    def added(self, ids: Int64s, texts: Sequence[str]) -> Changed:
        """With the texts of ids, new or known. O(bytes of the texts), amortised."""
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        data = np.frombuffer(b"".join(encoded), np.uint8)
        start, n = int(self.indptr[self.n]), self.n + len(texts)
        blob, indptr, row_ids = self.blob, self.indptr, self.ids
        if start + data.size > blob.size:
            blob = _grown(blob, start + data.size)
        if n >= indptr.size:
            indptr = _grown(indptr, n + 1)
        if n > row_ids.size:
            row_ids = _grown(row_ids, n)
        blob[start : start + data.size] = data
        row_ids[self.n : n] = ids
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        indptr[self.n + 1 : n + 1] = start + np.cumsum(lengths)
        known = self.find(ids)
        known = known[known != ABSENT]
        n_ids = self.n_ids + ids.size - known.size
        n_bytes = self.n_bytes + data.size - self._n_bytes_of(known)
        store = TextStore(self.row_table, row_ids, indptr, blob, n, n_ids, n_bytes)
        return store._changed(table_set_many, ids, np.arange(self.n, n))

    def removed(self, ids: Int64s) -> Changed:
        """Without known ids. O(n), amortised."""
        n_bytes = self.n_bytes - self._n_bytes_of(self.find(ids))
        store = self._replace(n_ids=self.n_ids - ids.size, n_bytes=n_bytes)
        return store._changed(table_remove_many, ids)

    def _n_bytes_of(self, rows):
        return int((self.indptr[rows + 1] - self.indptr[rows]).sum())

    def _changed(self, change, ids, *values):
        """The store, whose table is to be changed by a kernel."""
        table = self.table
        crowded = self.n_ids > table_capacity(table)
        wasteful = 2 * self.n_ids + _SPARE_ROWS < self.n
        wasteful |= 2 * self.n_bytes + _SPARE_BYTES < self.indptr[self.n]
        if not (crowded or wasteful):
            change(table, ids[:0], *(value[:0] for value in values))  # is compiled now
            return Changed(self, [(change, table, ids, *values)], None)
        new = empty_table(2 * self.n_ids + ids.size)
        table_rehash(table, new)
        change(new, ids, *values)
        store = self._replace(row_table=RowTable(table=new))
        if not wasteful:
            return Changed(store, [], None)
        own_ids, rows = store.pairs()
        return Changed(store._compacted(own_ids, rows), [], rows)

    def _compacted(self, ids, rows):
        """A copy without unused rows, its texts in the same order."""
        lengths = self.indptr[rows + 1] - self.indptr[rows]
        indptr = np.zeros(len(ids) + _SPARE_ROWS, np.int64)
        np.cumsum(lengths, out=indptr[1 : len(ids) + 1])
        row_ids = np.zeros(len(ids) + _SPARE_ROWS, np.int64)
        row_ids[: len(ids)] = ids
        blob = np.zeros(self.n_bytes + _SPARE_BYTES, np.uint8)
        for begin, length, to in zip(self.indptr[rows], lengths, indptr, strict=False):
            blob[to : to + length] = self.blob[begin : begin + length]
        table = empty_table(2 * len(ids))
        table_set_many(table, ids, np.arange(len(ids)))
        row_table = RowTable(table=table)
        return TextStore(row_table, row_ids, indptr, blob, len(ids), len(ids), self.n_bytes)

    def pairs(self) -> tuple[Int64s, Int64s]:
        """Every id and its row, int64[n_ids] each, by row."""
        return self.row_table.pairs()

    def check(self) -> None:
        """Assert the invariants of the table and the rows. O(C + n)."""
        ids, rows = self.pairs()
        assert self.n_ids == len(ids) <= table_capacity(self.table)
        assert not len(rows) or (rows[0] >= 0 and rows[-1] < self.n)
        assert (np.diff(rows) > 0).all(), "two ids have one row"
        assert (self.find(ids) == rows).all()
        assert (self.ids[rows] == ids).all()
        assert (self.find_slowly(ids) == rows).all(), "an id's last row is not its own"
        used = self.indptr[: self.n + 1]
        assert used[0] == 0 and (np.diff(used) >= 0).all() and used[-1] <= self.blob.size
        assert self.n_bytes == self._n_bytes_of(rows)

    def state(self) -> tuple[dict, dict]:
        """Arrays and header to store."""
        ids = self.ids[: self.n]
        if self.n_ids < self.n:
            live, rows = self.pairs()
            ids = np.full(self.n, ABSENT)
            ids[rows] = live
        indptr = self.indptr[: self.n + 1]
        arrays = {"ids": ids, "indptr": indptr, "blob": self.blob[: int(indptr[-1])]}
        return arrays, {"n_ids": self.n_ids}

    @classmethod
    def from_state(cls, arrays: dict, header: dict) -> "TextStore":
        """The store whose `state` this is. O(bytes), of a mapped file O(n).

        The texts of a large mapped file are checked to be UTF-8 when they are read. The hash table
        is made at the first write, or look-up of an id if the ids do not ascend.

        Older files hold pairs of an id and its row, and some the unused rows of the table as well,
        their value ABSENT.
        """
        blob = arrays["blob"]
        if blob.dtype != np.uint8 or blob.ndim != 1:
            raise CorruptFileError(f"the text blob is {blob.dtype}{blob.shape}")
        indptr = validation.indptr(arrays["indptr"], blob.size)
        n, n_ids = indptr.size - 1, validation.integer(header["n_ids"], "n_ids", low=0)
        if not is_mapped(blob) or blob.nbytes <= _SMALL:
            check_utf8(blob, indptr, "the texts")
        ids = arrays["ids"] if "ids" in arrays else _ids_of_pairs(arrays["table"], n)
        if ids.dtype != np.int64 or ids.shape != (n,):
            raise CorruptFileError(f"{n} texts have ids {ids.dtype}{ids.shape}")
        if ids.min(initial=0) < ABSENT:
            raise CorruptFileError(f"the texts have the id {ids.min()}")
        live = ids
        n_bytes = blob.size
        if n_ids < n:
            rows = np.flatnonzero(ids != ABSENT)
            live = ids[rows]
            n_bytes = int((indptr[rows + 1] - indptr[rows]).sum())
        if live.size != n_ids or live.min(initial=0) < 0:
            raise CorruptFileError(f"{n_ids} texts do not have as many ids")
        if (live[1:] <= live[:-1]).any():
            validation.distinct(np.sort(live), "the ids of the texts")
        return cls(RowTable(ids), ids, indptr, blob, n, n_ids, n_bytes)


def _ids_of_pairs(pairs, n):
    """The id of each row int64[n], or ABSENT, of pairs (id, row) as older files have them."""
    if pairs.dtype != np.int64 or pairs.ndim != 2 or pairs.shape[1] != 2:
        raise CorruptFileError(f"the text table is {pairs.dtype}{pairs.shape}")
    own, rows = _by_row(pairs[pairs[:, 1] != ABSENT])
    if len(rows) and (rows[0] < 0 or rows[-1] >= n or (rows[1:] == rows[:-1]).any()):
        raise CorruptFileError("the text table has rows that are not there, or twice")
    if own.min(initial=0) < 0:
        raise CorruptFileError(f"the text table has the id {own.min()}")
    ids = np.full(n, ABSENT)
    ids[rows] = own
    return ids


def check_utf8(blob: UInt8s, indptr: Int64s, name: str) -> None:
    """Refuse strings that are not UTF-8, a part of the blob at a time."""
    starts = indptr[:-1][indptr[:-1] < indptr[1:]]
    if ((blob[starts] & 0xC0) == 0x80).any():  # within a character
        raise CorruptFileError(f"{name} begin within characters")
    nearest = np.searchsorted(indptr, np.arange(0, blob.size, _CHECKED_BYTES))
    cuts = [*np.unique(indptr[nearest]).tolist(), blob.size]
    for begin, end in pairwise(cuts):
        try:
            blob[begin:end].tobytes().decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise CorruptFileError(f"{name} are not UTF-8: {error.reason}") from None


def is_mapped(array: npt.NDArray) -> bool:
    """Whether an array lies in a mapped file."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base, mmap.mmap)


def _by_row(pairs) -> tuple[Int64s, Int64s]:
    ids, rows = pairs[np.argsort(pairs[:, 1])].T.copy()
    return ids, rows


def _grown(array, size) -> npt.NDArray:
    """A copy with capacity for `size` entries, or half as many again; readers keep the old one."""
    new = np.zeros(grown_size(size, size, 2), array.dtype)
    new[: array.size] = array
    return new
