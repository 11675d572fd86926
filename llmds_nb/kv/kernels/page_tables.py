"""Reading a KV cache out: page tables in the engines' layouts, slots and tokens.

State as in kernels/state.py. A batch names its sequences by their rows: see `rows_find`.
"""

import numpy as np

from ..._core.jit import kernel
from ...primitives.hash_table import table_find
from ...primitives.status import ABSENT
from .state import BLOCKS, LENGTH, NPAGES, state_at


@kernel
def rows_find(handle, seq_ids, rows, sizes):
    """Fill rows int64[n] and sizes int64[2]: most pages, pages in all. O(n).

    Returns the position of the first unknown sequence, or ABSENT.
    """
    s = state_at(handle)
    width, pages = 0, 0
    for i in range(seq_ids.size):
        row = table_find(s.ids, seq_ids[i])
        if row == ABSENT:
            return i
        rows[i] = row
        width = max(width, s.seq[row, NPAGES])
        pages += s.seq[row, NPAGES]
    sizes[0], sizes[1] = width, pages
    return ABSENT


@kernel
def table_csr(handle, rows, indptr, indices, last_page_len):
    """FlashInfer's: indptr int32[n + 1], indices int32[nnz], last_page_len int32[n]. O(nnz)."""
    s = state_at(handle)
    page_size = s.tok.shape[1]
    end = 0
    indptr[0] = 0
    for i in range(rows.size):
        n_pages, offset = s.seq[rows[i], NPAGES], s.hot[rows[i], BLOCKS]
        for j in range(n_pages):
            indices[end + j] = s.pool[offset + j]
        end += n_pages
        indptr[i + 1] = end
        length = s.hot[rows[i], LENGTH]
        last_page_len[i] = length - (n_pages - 1) * page_size if n_pages > 0 else 0


@kernel
def table_dense(handle, rows, pad, out):
    """vLLM's block table: out int32[n, width], unused places `pad`. O(n * width)."""
    s = state_at(handle)
    for i in range(rows.size):
        n_pages, offset = s.seq[rows[i], NPAGES], s.hot[rows[i], BLOCKS]
        for j in range(out.shape[1]):
            out[i, j] = s.pool[offset + j] if j < n_pages else pad


@kernel
def slots_count(handle, rows, start, stop):
    """Sum of stop - start, or -1 - i for the first i where they are no range of tokens. O(n)."""
    s = state_at(handle)
    total = 0
    for i in range(rows.size):
        if start[i] < 0 or start[i] > stop[i] or stop[i] > s.hot[rows[i], LENGTH]:
            return -1 - i
        total += stop[i] - start[i]
    return total


@kernel
def table_slots(handle, rows, start, stop, out):
    """Slots page * page_size + offset of tokens start[i] .. stop[i], row after row. O(n)."""
    s = state_at(handle)
    page_size = s.tok.shape[1]
    end = 0
    for i in range(rows.size):
        offset = s.hot[rows[i], BLOCKS]
        for position in range(start[i], stop[i]):
            page = np.int64(s.pool[offset + position // page_size])
            out[end] = page * page_size + position % page_size
            end += 1


@kernel
def table_tokens(handle, row, out):
    """The tokens of one sequence, out int32[LENGTH]. O(LENGTH)."""
    s = state_at(handle)
    size, offset = s.tok.shape[1], s.hot[row, BLOCKS]
    for j in range(s.seq[row, NPAGES]):
        page = s.tok[s.pool[offset + j]]
        for i in range(j * size, min((j + 1) * size, out.size)):
            out[i] = page[i - j * size]
