"""Stores the texts of documents in one blob of UTF-8 bytes, laid out in files as in memory."""

import mmap
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .._core import validation
from .._core.arrays import grown_size
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
_SPARE_BYTES, _SPARE_ROWS = 1024, 16  # unused ones that are not worth a compaction


class TextStore(NamedTuple):
    """Texts by id: a value, which each write replaces by another.

        table    int64[., 2]      id -> row (primitives/hash_table.py)
        indptr   int64[>= n + 1]  row r is blob[indptr[r]:indptr[r + 1]]
        blob     uint8[>= indptr[n]]
        n        rows in use, replaced and removed ones included
        n_ids    rows that have an id
        n_bytes  of their texts

    Rows are only ever appended, beyond the `n` of every store that was published. The table alone
    is changed in place: a write returns, besides the new store, the calls that make it the table of
    the new one, for `publish` at the same moment. So whoever finds rows and then sees the store
    still published has the rows of that store.
    """

    table: Int64s
    indptr: Int64s
    blob: UInt8s
    n: int
    n_ids: int
    n_bytes: int

    @classmethod
    def empty(cls) -> "TextStore":
        """A store without texts."""
        indptr, blob = np.zeros(_SPARE_ROWS, np.int64), np.zeros(_SPARE_BYTES, np.uint8)
        return cls(empty_table(4), indptr, blob, 0, 0, 0)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self.table.nbytes + self.indptr.nbytes + self.blob.nbytes

    def find(self, ids: Int64s) -> Int64s:
        """Row of each id int64[n], or ABSENT."""
        rows = np.empty(ids.size, np.int64)
        table_find_many(self.table, ids, rows)
        return rows

    def texts(self, rows: Int64s) -> list[str | None]:
        """The texts of rows that were found; None for ABSENT."""
        return [None if row == ABSENT else self._text(row) for row in rows.tolist()]

    def _text(self, row):
        text = self.blob[self.indptr[row] : self.indptr[row + 1]]
        return text.tobytes().decode("utf-8", "surrogatepass")

    def added(self, ids: Int64s, texts: Sequence[str]) -> tuple["TextStore", list[Call]]:
        """With the texts of ids, new or known. O(bytes of the texts), amortised."""
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        data = np.frombuffer(b"".join(encoded), np.uint8)
        start, n = int(self.indptr[self.n]), self.n + len(texts)
        blob, indptr = self.blob, self.indptr
        if start + data.size > blob.size:
            blob = _grown(blob, start + data.size)
        if n >= indptr.size:
            indptr = _grown(indptr, n + 1)
        blob[start : start + data.size] = data
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        indptr[self.n + 1 : n + 1] = start + np.cumsum(lengths)
        known = self.find(ids)
        known = known[known != ABSENT]
        n_ids = self.n_ids + ids.size - known.size
        n_bytes = self.n_bytes + data.size - self._n_bytes_of(known)
        store = TextStore(self.table, indptr, blob, n, n_ids, n_bytes)
        return store._changed(table_set_many, ids, np.arange(self.n, n))

    def removed(self, ids: Int64s) -> tuple["TextStore", list[Call]]:
        """Without known ids. O(n), amortised."""
        n_bytes = self.n_bytes - self._n_bytes_of(self.find(ids))
        store = self._replace(n_ids=self.n_ids - ids.size, n_bytes=n_bytes)
        return store._changed(table_remove_many, ids)

    def _n_bytes_of(self, rows):
        return int((self.indptr[rows + 1] - self.indptr[rows]).sum())

    def _changed(self, change, ids, *values):
        """(the store, calls) whose table is to be changed by a kernel."""
        crowded = self.n_ids > table_capacity(self.table)
        wasteful = 2 * self.n_ids + _SPARE_ROWS < self.n
        wasteful |= 2 * self.n_bytes + _SPARE_BYTES < self.indptr[self.n]
        if not (crowded or wasteful):
            change(self.table, ids[:0], *(value[:0] for value in values))  # is compiled now
            return self, [(change, self.table, ids, *values)]
        table = empty_table(2 * self.n_ids + ids.size)
        table_rehash(self.table, table)
        change(table, ids, *values)
        store = self._replace(table=table)
        return (store._compacted() if wasteful else store), []

    def _compacted(self):
        """A copy without unused rows, its texts in the same order."""
        ids, rows = self.pairs()
        lengths = self.indptr[rows + 1] - self.indptr[rows]
        indptr = np.zeros(len(ids) + _SPARE_ROWS, np.int64)
        np.cumsum(lengths, out=indptr[1 : len(ids) + 1])
        blob = np.zeros(self.n_bytes + _SPARE_BYTES, np.uint8)
        for begin, length, to in zip(self.indptr[rows], lengths, indptr, strict=False):
            blob[to : to + length] = self.blob[begin : begin + length]
        table = empty_table(2 * len(ids))
        table_set_many(table, ids, np.arange(len(ids)))
        return TextStore(table, indptr, blob, len(ids), len(ids), self.n_bytes)

    def pairs(self) -> tuple[Int64s, Int64s]:
        """Every id and its row, int64[n_ids] each, by row."""
        return _by_row(table_pairs(self.table))

    def check(self) -> None:
        """Assert the invariants of the table and the rows. O(C + n)."""
        ids, rows = self.pairs()
        assert self.n_ids == len(ids) <= table_capacity(self.table)
        assert not len(rows) or (rows[0] >= 0 and rows[-1] < self.n)
        assert (np.diff(rows) > 0).all(), "two ids have one row"
        assert (self.find(ids) == rows).all()
        used = self.indptr[: self.n + 1]
        assert used[0] == 0 and (np.diff(used) >= 0).all() and used[-1] <= self.blob.size
        assert self.n_bytes == self._n_bytes_of(rows)

    def state(self) -> tuple[dict, dict]:
        """Arrays and header to store."""
        arrays = {
            "table": np.column_stack(self.pairs()),
            "indptr": self.indptr[: self.n + 1].copy(),
            "blob": self.blob[: int(self.indptr[self.n])],
        }
        return arrays, {"n_ids": self.n_ids}

    @classmethod
    def from_state(cls, arrays: dict, header: dict) -> "TextStore":
        """The store whose `state` this is. O(bytes).

        Older files hold the unused rows of the table as well, their value ABSENT.
        """
        pairs, blob = arrays["table"], arrays["blob"]
        if pairs.dtype != np.int64 or pairs.ndim != 2 or pairs.shape[1] != 2:
            raise CorruptFileError(f"the text table is {pairs.dtype}{pairs.shape}")
        if blob.dtype != np.uint8 or blob.ndim != 1:
            raise CorruptFileError(f"the text blob is {blob.dtype}{blob.shape}")
        indptr = validation.indptr(arrays["indptr"], blob.size)
        n_ids = validation.integer(header["n_ids"], "n_ids", low=0)
        check_utf8(blob, indptr, "the texts")
        ids, rows = _by_row(pairs[pairs[:, 1] != ABSENT])
        if ids.min(initial=0) < 0:
            raise CorruptFileError(f"the text table has the id {ids.min()}")
        if len(rows) and (rows[0] < 0 or rows[-1] >= indptr.size - 1):
            raise CorruptFileError("the text table has rows that are not there")
        table = empty_table(len(ids))
        table_set_many(table, ids, rows)
        n_bytes = int((indptr[rows + 1] - indptr[rows]).sum())
        store = cls(table, indptr, blob, indptr.size - 1, n_ids, n_bytes)
        try:
            store.check()
        except AssertionError:
            raise CorruptFileError("the text table does not fit the texts") from None
        return store


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
