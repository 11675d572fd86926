"""Reading a KV cache out: page tables in the engines' layouts, slots and tokens.

State as in kernels/state.py. A batch names its sequences by their rows: see `sequences_find`.
"""

import numpy as np

from ..._core.jit import kernel
from ...primitives.hash_table import table_find
from ...primitives.status import ABSENT
from . import state as s


@kernel
def sequences_find(handle, seq_ids, seqs, sizes):
    """Fill rows int64[n] and sizes int64[2]: most pages, pages in all. O(n).

    Returns the position of the first unknown sequence, or ABSENT.
    """
    kv = s.state_at(handle)
    width, pages = 0, 0
    for i in range(seq_ids.size):
        seq = table_find(kv.ids, seq_ids[i])
        if seq == ABSENT:
            return i
        seqs[i] = seq
        width = max(width, kv.seq_cold[seq, s.N_PAGES])
        pages += kv.seq_cold[seq, s.N_PAGES]
    sizes[0], sizes[1] = width, pages
    return ABSENT


@kernel
def table_csr(handle, seqs, indptr, indices, last_page_len):
    """FlashInfer's: indptr int32[n + 1], indices int32[nnz], last_page_len int32[n]. O(nnz)."""
    kv = s.state_at(handle)
    page_size = kv.tokens.shape[1]
    end = 0
    indptr[0] = 0
    for i in range(seqs.size):
        n_pages, offset = kv.seq_cold[seqs[i], s.N_PAGES], kv.seq_hot[seqs[i], s.BLOCK_TABLE]
        for j in range(n_pages):
            indices[end + j] = kv.arena[offset + j]
        end += n_pages
        indptr[i + 1] = end
        length = kv.seq_hot[seqs[i], s.LENGTH]
        last_page_len[i] = length - (n_pages - 1) * page_size if n_pages > 0 else 0


@kernel
def table_dense(handle, seqs, pad, out):
    """vLLM's block table: out int32[n, width], unused places `pad`. O(n * width)."""
    kv = s.state_at(handle)
    for i in range(seqs.size):
        n_pages, offset = kv.seq_cold[seqs[i], s.N_PAGES], kv.seq_hot[seqs[i], s.BLOCK_TABLE]
        for j in range(out.shape[1]):
            out[i, j] = kv.arena[offset + j] if j < n_pages else pad


@kernel
def slots_count(handle, seqs, start, stop):
    """Sum of stop - start, or -1 - i for the first i where they are no range of tokens. O(n)."""
    kv = s.state_at(handle)
    total = 0
    for i in range(seqs.size):
        if start[i] < 0 or start[i] > stop[i] or stop[i] > kv.seq_hot[seqs[i], s.LENGTH]:
            return -1 - i
        total += stop[i] - start[i]
    return total


@kernel
def table_slots(handle, seqs, start, stop, out):
    """Slots page * page_size + offset of tokens start[i] .. stop[i], row after row. O(n)."""
    kv = s.state_at(handle)
    page_size = kv.tokens.shape[1]
    end = 0
    for i in range(seqs.size):
        offset = kv.seq_hot[seqs[i], s.BLOCK_TABLE]
        for position in range(start[i], stop[i]):
            page = np.int64(kv.arena[offset + position // page_size])
            out[end] = page * page_size + position % page_size
            end += 1


@kernel
def table_tokens(handle, seq, out):
    """The tokens of one sequence, out int32[LENGTH]. O(LENGTH)."""
    kv = s.state_at(handle)
    size, offset = kv.tokens.shape[1], kv.seq_hot[seq, s.BLOCK_TABLE]
    for j in range(kv.seq_cold[seq, s.N_PAGES]):
        page = kv.tokens[kv.arena[offset + j]]
        for i in range(j * size, min((j + 1) * size, out.size)):
            out[i] = page[i - j * size]
