"""Page tables and slot mappings of a KVCache, in the layouts that attention kernels read."""

from typing import Any, NamedTuple

import numpy as np

from .._core import validation
from .._core.typing import Int32s
from ..primitives.status import ABSENT
from .kernels import page_tables as k
from .kernels.state import FIRST_UNKNOWN, LENGTH, UNKNOWN_TOKEN
from .state import CacheState


class PageTable(NamedTuple):
    """Page table of a batch in FlashInfer's CSR layout."""

    indptr: Int32s  # int32[B + 1]
    indices: Int32s  # int32[nnz]: of sequence i indices[indptr[i]:indptr[i + 1]]
    last_page_len: Int32s  # int32[B]: tokens in the last page, 0 if there is none


def page_table(state: CacheState, seq_ids, out) -> PageTable:
    """See `KVCache.page_table`."""
    with state.lock:
        rows, sizes = _find_many(state, seq_ids)
        n, nnz = len(rows), sizes[1]
        if nnz > validation.INT32_MAX:
            raise ValueError(f"a page table of {nnz} entries has more than 2**31 - 1")
        if out is None:
            indptr, indices = np.empty(n + 1, np.int32), np.empty(nnz, np.int32)
            out = PageTable(indptr, indices, np.empty(n, np.int32))
        elif not isinstance(out, tuple) or len(out) != 3:
            raise TypeError(f"out must be a PageTable, not {type(out).__name__}")
        else:
            out = PageTable(
                _buffer(out[0], "out.indptr", n + 1, np.int32),
                _buffer(out[1], "out.indices", nnz, np.int32),
                _buffer(out[2], "out.last_page_len", n, np.int32),
            )
        k.table_csr(state.handle.address, rows, *out)
    return out


def block_table(state: CacheState, seq_ids, pad, out) -> Int32s:
    """See `KVCache.block_table`."""
    pad = validation.integer(pad, "pad", low=-(2**31), high=validation.INT32_MAX)
    with state.lock:
        rows, sizes = _find_many(state, seq_ids)
        n, width = len(rows), sizes[0]
        if out is None:
            out = np.empty((n, width), np.int32)
        else:
            if not isinstance(out, np.ndarray) or out.ndim != 2 or out.dtype != np.int32:
                raise TypeError("out must be an int32 array with two dimensions")
            if out.shape[0] < n or out.shape[1] < width or not out.flags.carray:
                least = f"at least [{n}, {width}], not {list(out.shape)}"
                raise ValueError(f"out must be C-contiguous, writable and {least}")
        k.table_dense(state.handle.address, rows, pad, out)
    return out[:n]


def slot_mapping(state: CacheState, seq_ids, start, stop, out) -> Any:
    """See `KVCache.slot_mapping`."""
    with state.lock:
        rows, _ = _find_many(state, seq_ids)
        start = _per_sequence(start, "start", len(rows))
        stop = _per_sequence(stop, "stop", len(rows))
        n = k.slots_count(state.handle.address, rows, start, stop)
        if n < 0:
            i = -1 - n
            length = state.arrays.seq_hot[rows[i], LENGTH]
            raise ValueError(f"tokens {start[i]} to {stop[i]} of a sequence of {length} tokens")
        out = np.empty(n, np.int64) if out is None else _buffer(out, "out", n, np.int64, np.int32)
        if out.dtype == np.int32 and state.arrays.tokens.size > validation.INT32_MAX + 1:
            raise ValueError(f"out must be int64: there are {state.arrays.tokens.size} slots")
        k.table_slots(state.handle.address, rows, start, stop, out)
    return out


def tokens(state: CacheState, seq_id) -> Int32s:
    """See `KVCache.tokens`."""
    with state.lock:
        row = state.find(seq_id)
        return stored_tokens(state, row, 0, int(state.arrays.seq_hot[row, LENGTH]))


def stored_tokens(state: CacheState, row: int, start: int, stop: int) -> Int32s:
    """The tokens start .. stop of a sequence, -1 where they are unknown. O(stop - start)."""
    out = np.empty(stop - start, np.int32)
    k.table_tokens(state.handle.address, row, start, out)
    page_size = state.settings.page_size
    state.extras.take_out(out[-start % page_size :], page_size)
    if state.arrays.seq_cold[row, FIRST_UNKNOWN]:
        out[out == UNKNOWN_TOKEN] = -1
    return out


def _find_many(state, seq_ids):
    """Rows int64[n] of the sequences, and [most pages of one, pages of all]."""
    seq_ids = validation.for_kernel(seq_ids, "seq_ids", validation.INT64)
    rows = np.empty(len(seq_ids), np.int64)
    position = k.sequences_find(state.handle.address, seq_ids, rows, state.sizes)
    if position != ABSENT:
        raise KeyError(f"no sequence has id {seq_ids[position]}")
    return rows, state.sizes.tolist()


def _buffer(array, name, size, *dtypes):
    if not isinstance(array, np.ndarray) or array.dtype not in dtypes or array.ndim != 1:
        kinds = " or ".join(np.dtype(dtype).name for dtype in dtypes)
        raise TypeError(f"{name} must be a one-dimensional {kinds} array")
    if len(array) < size or not array.flags.c_contiguous or not array.flags.writeable:
        least = f"{size} or more entries, not {len(array)}"
        raise ValueError(f"{name} must be contiguous, writable and of {least}")
    return array[:size]


def _per_sequence(value, name, n):
    if isinstance(value, int | np.integer):
        return np.full(n, validation.natural(value, name))
    array = validation.for_kernel(value, name, validation.INT64)
    validation.same_length(name, array, "seq_ids", range(n))
    return array
