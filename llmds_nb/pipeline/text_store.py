"""Stores the texts of documents in one blob of UTF-8 bytes, laid out in files as in memory."""

from collections.abc import Callable, Sequence

import numpy as np

from .._core import validation
from .._core.typing import Int64s
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


class TextStore:
    """Texts by id. Rows are only ever appended, so a reader's arrays are never changed.

    State:

        table   int64[., 2]      id -> row (primitives/hash_table.py)
        indptr  int64[>= n + 1]  row r is blob[indptr[r]:indptr[r + 1]]
        blob    uint8[>= indptr[n]]
        n       rows in use, replaced and removed ones included

    A write has two steps: `append` writes texts after all rows that readers can see, `point` maps
    ids to them. `point`, `drop` and `find` must not run at the same time: the owner holds a lock.
    """

    def __init__(self) -> None:
        self._table = empty_table(4)
        self._indptr = np.zeros(16, np.int64)
        self._blob = np.zeros(1024, np.uint8)
        self._n = 0
        self._n_ids = 0

    def __len__(self) -> int:
        return self._n_ids

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self._table.nbytes + self._indptr.nbytes + self._blob.nbytes

    def find(self, ids: Int64s) -> Int64s:
        """Row of each id int64[n], or ABSENT."""
        rows = np.empty(ids.size, np.int64)
        table_find_many(self._table, ids, rows)
        return rows

    def reader(self) -> Callable[[Int64s], list[str]]:
        """A function from found rows to texts: take it under the same lock as the rows."""
        indptr, blob = self._indptr, self._blob
        return lambda rows: [
            blob[indptr[row] : indptr[row + 1]].tobytes().decode("utf-8", "surrogatepass")
            for row in rows.tolist()
        ]

    def append(self, texts: Sequence[str]) -> Int64s:
        """Write texts after the visible rows; return their rows int64[n]. O(bytes), amortised."""
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        data = np.frombuffer(b"".join(encoded), np.uint8)
        start, n = int(self._indptr[self._n]), self._n + len(texts)
        if start + data.size > self._blob.size:
            self._blob = _grown(self._blob, start + data.size)
        if n >= self._indptr.size:
            self._indptr = _grown(self._indptr, n + 1)
        self._blob[start : start + data.size] = data
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        self._indptr[self._n + 1 : n + 1] = start + np.cumsum(lengths)
        rows = np.arange(self._n, n)
        self._n = n
        return rows

    def point(self, ids: Int64s, rows: Int64s) -> None:
        """Map ids, new or known, to rows. O(n), amortised."""
        added = int((self.find(ids) == ABSENT).sum())
        if self._n_ids + added > table_capacity(self._table):
            table = empty_table(2 * (self._n_ids + added))
            table_rehash(self._table, table)
            self._table = table
        table_set_many(self._table, ids, rows)
        self._n_ids += added

    def drop(self, ids: Int64s) -> None:
        """Remove known ids. O(n)."""
        table_remove_many(self._table, ids)
        self._n_ids -= ids.size

    def compacted(self) -> "TextStore":
        """The store itself, or a copy without unused rows if those take more than half."""
        live = self._pairs()
        lengths = np.diff(self._indptr[: self._n + 1])[live[:, 1]]
        if 2 * lengths.sum() + 1024 >= self._indptr[self._n] and 2 * len(live) + 16 >= self._n:
            return self
        new = TextStore()
        starts = self._indptr[live[:, 1]]
        new._indptr = np.concatenate(([0], np.cumsum(lengths)))
        new._blob = np.empty(int(new._indptr[-1]), np.uint8)
        for start, length, to in zip(starts, lengths, new._indptr, strict=False):
            new._blob[to : to + length] = self._blob[start : start + length]
        new._n = len(live)
        new.point(np.ascontiguousarray(live[:, 0]), np.arange(len(live)))
        return new

    def ids(self) -> Int64s:
        """Every id int64[n], ascending."""
        return np.sort(table_pairs(self._table)[:, 0])

    def _pairs(self) -> Int64s:
        """(id, row) of every text int64[n, 2], by row."""
        pairs = table_pairs(self._table)
        return pairs[np.argsort(pairs[:, 1])]

    def check(self) -> None:
        """Assert the invariants of the table and the rows. O(C + n)."""
        ids, rows = self._pairs().T.copy()
        assert self._n_ids == len(ids) <= table_capacity(self._table)
        assert ((rows >= 0) & (rows < self._n)).all()
        assert (np.diff(rows) > 0).all(), "two ids have one row"
        assert (self.find(ids) == rows).all()
        used = self._indptr[: self._n + 1]
        assert used[0] == 0 and (np.diff(used) >= 0).all() and used[-1] <= self._blob.size

    def state(self) -> tuple[dict, dict]:
        """Arrays and header to store."""
        end = int(self._indptr[self._n])
        arrays = {
            "table": self._pairs(),
            "indptr": self._indptr[: self._n + 1].copy(),
            "blob": self._blob[:end],
        }
        return arrays, {"n_ids": self._n_ids}

    @classmethod
    def from_state(cls, arrays: dict, header: dict) -> "TextStore":
        """The store whose `state` this is. Reads the table, not the texts.

        Older files hold the unused rows of the table as well, their value ABSENT.
        """
        store = cls()
        pairs, blob = arrays["table"], arrays["blob"]
        if pairs.dtype != np.int64 or pairs.ndim != 2 or pairs.shape[1] != 2:
            raise CorruptFileError(f"the text table is {pairs.dtype}{pairs.shape}")
        if blob.dtype != np.uint8 or blob.ndim != 1:
            raise CorruptFileError(f"the text blob is {blob.dtype}{blob.shape}")
        ids, rows = pairs[pairs[:, 1] != ABSENT].T.copy()
        store._table, store._blob = empty_table(len(ids)), blob
        table_set_many(store._table, ids, rows)
        store._indptr = validation.indptr(arrays["indptr"], blob.size)
        store._n = store._indptr.size - 1
        store._n_ids = validation.integer(header["n_ids"], "n_ids", low=0)
        try:
            store.check()
        except AssertionError:
            raise CorruptFileError("the text table does not fit the texts") from None
        return store


def _grown(array, size) -> np.ndarray:
    """A copy with capacity for `size` entries and half as many again; readers keep the old one."""
    new = np.zeros(size + size // 2, array.dtype)
    new[: array.size] = array
    return new
