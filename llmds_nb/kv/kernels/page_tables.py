"""Kernels that read sequences of a KV cache: page tables in the engines' layouts, slots, tokens.

`seqs` int64[n] are the rows of a batch of sequences, as `sequences_find` gives them.
"""

import numpy as np

from ..._core.jit import kernel
from ...primitives.hash_table import table_find
from ...primitives.status import ABSENT
from . import state as s


@kernel(borrow=True)
def sequences_find(handle, seq_ids, seqs, sizes):
    """Fill seqs int64[n], and sizes int64[2]: the most pages of one, the pages of all. O(n).

    Returns the position of the first unknown id, or ABSENT.
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


@kernel(borrow=True)
def table_csr(handle, seqs, indptr, indices, last_page_len):
    """FlashInfer's page table: indptr int32[n + 1], indices [nnz], last_page_len [n]. O(nnz)."""
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


@kernel(borrow=True)
def table_dense(handle, seqs, pad, out):
    """vLLM's block table: out int32[>= n, width], filled up with `pad`. O(rows * width)."""
    kv = s.state_at(handle)
    for i in range(out.shape[0]):
        n_pages, offset = 0, 0
        if i < seqs.size:
            n_pages, offset = kv.seq_cold[seqs[i], s.N_PAGES], kv.seq_hot[seqs[i], s.BLOCK_TABLE]
        for j in range(out.shape[1]):
            out[i, j] = kv.arena[offset + j] if j < n_pages else pad


@kernel(borrow=True)
def slots_count(handle, seqs, start, stop):
    """Sum of stop - start; -1 - i if sequence i has no tokens start[i] .. stop[i]. O(n)."""
    kv = s.state_at(handle)
    total = 0
    for i in range(seqs.size):
        if start[i] < 0 or start[i] > stop[i] or stop[i] > kv.seq_hot[seqs[i], s.LENGTH]:
            return -1 - i
        total += stop[i] - start[i]
    return total


@kernel(internal=True, borrow=True)
def slots_fill(kv, seq, start, stop, out, end):
    """Write slots page * T + offset of tokens start .. stop behind out[:end]; the new end. O(n)."""
    page_size, offset = kv.tokens.shape[1], kv.seq_hot[seq, s.BLOCK_TABLE]
    for position in range(start, stop):
        page = np.int64(kv.arena[offset + position // page_size])
        out[end] = page * page_size + position % page_size
        end += 1
    return end


@kernel(borrow=True)
def table_slots(handle, seqs, start, stop, out):
    """Slots of tokens start[i] .. stop[i] of each sequence, end to end: int32 or int64. O(n)."""
    kv = s.state_at(handle)
    end = 0
    for i in range(seqs.size):
        end = slots_fill(kv, seqs[i], start[i], stop[i], out, end)


@kernel(borrow=True)
def table_tokens(handle, seq, start, out):
    """The tokens from `start` on of one sequence, as they are stored, out int32[n]. O(n)."""
    kv = s.state_at(handle)
    size, offset, stop = kv.tokens.shape[1], kv.seq_hot[seq, s.BLOCK_TABLE], start + out.size
    for j in range(start // size, (stop + size - 1) // size):
        page = kv.tokens[kv.arena[offset + j]]
        for i in range(max(start, j * size), min(stop, (j + 1) * size)):
            out[i - start] = page[i - j * size]
