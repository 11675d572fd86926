"""The page tables of a KVCache in the layouts that attention kernels read."""

from typing import NamedTuple

import numpy as np

from .._core import validation
from .kernels import page_tables as kv_tables
from .kernels.state import LENGTH
from .state import KVBase


class PageTable(NamedTuple):
    """Page table of a batch in FlashInfer's CSR layout."""

    indptr: np.ndarray  # int32[B + 1]
    indices: np.ndarray  # int32[nnz]: pages of sequence i are indices[indptr[i]:indptr[i + 1]]
    last_page_len: np.ndarray  # int32[B]: tokens in the last page, 0 for an empty sequence


class PageTables(KVBase):
    """The part of KVCache that reads sequences out; see there."""

    def tokens(self, seq_id) -> np.ndarray:
        """Return a sequence's tokens as int32[length]. O(length)."""
        with self._lock:
            row = self._find_row(seq_id)
            out = np.empty(self._s.hot[row, LENGTH], np.int32)
            kv_tables.table_tokens(self._handle, row, out)
        return out

    def length(self, seq_id) -> int:
        """Return the number of tokens of a sequence. O(1)."""
        with self._lock:
            return int(self._s.hot[self._find_row(seq_id), LENGTH])

    def page_table(self, seq_ids, *, out=None) -> PageTable:
        """Page table of B sequences in FlashInfer's CSR layout. O(pages).

        Parameters
        ----------
        out : PageTable, optional
            Buffers to fill: C-contiguous int32 of at least B + 1, nnz and B entries. The result
            then holds views of them, so their addresses stay the same from step to step.
        """
        with self._lock:
            rows = self._find_rows(seq_ids)
            n, nnz = len(rows), int(self._sizes[1])
            if out is None:
                out = PageTable(*(np.empty(size, np.int32) for size in (n + 1, nnz, n)))
            elif not isinstance(out, tuple) or len(out) != 3:
                raise TypeError(f"out must be a PageTable, not {type(out).__name__}")
            else:
                out = PageTable(
                    _buffer(out[0], "out.indptr", n + 1, np.int32),
                    _buffer(out[1], "out.indices", nnz, np.int32),
                    _buffer(out[2], "out.last_page_len", n, np.int32),
                )
            kv_tables.table_csr(self._handle, rows, *out)
        return out

    def block_table(self, seq_ids, *, pad=-1, out=None) -> np.ndarray:
        """Page table of B sequences as a rectangle, vLLM's layout. O(B * width).

        Parameters
        ----------
        pad : int
            Fills the places behind each sequence's pages.
        out : int32[>= B, >= max_pages], optional
            Buffer to fill; the result is a view of its first B rows, at its full width.

        Returns
        -------
        int32[B, max_pages]
        """
        pad = validation.integer(pad, "pad", low=-(2**31), high=validation.INT32_MAX)
        with self._lock:
            rows = self._find_rows(seq_ids)
            n, width = len(rows), int(self._sizes[0])
            if out is None:
                out = np.empty((n, width), np.int32)
            else:
                if not isinstance(out, np.ndarray) or out.ndim != 2 or out.dtype != np.int32:
                    raise TypeError("out must be an int32 array with two dimensions")
                if out.shape[0] < n or out.shape[1] < width or not out.flags.carray:
                    raise ValueError(
                        f"out must be C-contiguous, writable and at least [{n}, {width}], "
                        f"not {list(out.shape)}"
                    )
                out = out[:n]
            kv_tables.table_dense(self._handle, rows, pad, out)
        return out

    def slot_mapping(self, seq_ids, start, stop, *, out=None) -> np.ndarray:
        """Slots of tokens ``start .. stop`` of each sequence, end to end, vLLM's layout. O(n).

        Parameters
        ----------
        start, stop : int or int64[B]
            Token positions, one pair for all or one per sequence.
        out : int64[>= n], optional
            Buffer to fill; the result is a view of its beginning.

        Returns
        -------
        int64[n]
            page * page_size + offset.
        """
        with self._lock:
            rows = self._find_rows(seq_ids)
            start = _per_sequence(start, "start", len(rows))
            stop = _per_sequence(stop, "stop", len(rows))
            n = kv_tables.slots_count(self._handle, rows, start, stop)
            if n < 0:
                i = -1 - n
                length = self._s.hot[rows[i], LENGTH]
                raise ValueError(f"tokens {start[i]} to {stop[i]} of a sequence of {length} tokens")
            out = np.empty(n, np.int64) if out is None else _buffer(out, "out", n, np.int64)
            kv_tables.table_slots(self._handle, rows, start, stop, out)
        return out


def _buffer(array, name, size, dtype) -> np.ndarray:
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != 1:
        raise TypeError(f"{name} must be a one-dimensional {np.dtype(dtype)} array")
    if len(array) < size or not array.flags.c_contiguous or not array.flags.writeable:
        raise ValueError(
            f"{name} must be contiguous, writable and of {size} or more entries, not {len(array)}"
        )
    return array[:size]


def _per_sequence(value, name, n) -> np.ndarray:
    if np.ndim(value) == 0:
        return np.full(n, validation.natural(value, name))
    array = validation.for_kernel(value, name, validation.INT64)
    validation.same_length(name, array, "seq_ids", range(n))
    return array
