"""Kernel that lets sequences of a KV cache continue one another: the survivors of a beam search."""

import numpy as np

from ..._core.jit import kernel
from ...primitives.status import ABSENT, GROW, INVALID, OK, REPEATED
from . import sequences as q, state as s
from .arena import arena_lacks, chunk_class, chunk_give, chunk_take
from .attach import sequence_release_pages
from .operations import references_lack


@kernel(internal=True)
def _reorder_plan(kv, seq_ids, parents, rows):
    """Fill rows int64[2, n] with those of both, and check all that can be refused; a status."""
    entries, n = 0, seq_ids.size
    kv.meta[s.CALLS] += 1
    for i in range(n):
        for j in range(2):
            rows[j, i] = q.sequence_find(kv, seq_ids[i] if j == 0 else parents[i])
            if rows[j, i] == ABSENT:
                return ABSENT
        seq, parent = rows[0, i], rows[1, i]
        if kv.seq_hot[seq, s.LAST_CALL] == kv.meta[s.CALLS]:
            kv.meta[s.MISSING] = seq_ids[i]
            return REPEATED
        kv.seq_hot[seq, s.LAST_CALL] = kv.meta[s.CALLS]
        if seq != parent:
            n_pages = kv.seq_cold[parent, s.N_PAGES]
            if references_lack(kv, q.block_table_get(kv, parent)[:n_pages], n):
                return INVALID
            entries += 1 << chunk_class(n_pages)
    return GROW if arena_lacks(kv, entries, 0) else OK


@kernel
def kv_reorder(handle, seq_ids, parents):
    """Let sequence seq_ids[i] continue parents[i], both int64[n], all or none. O(pages log pages).

    All parents are taken as they are before the call. INVALID: page meta[MISSING] cannot take so
    many references.
    """
    kv = s.state_at(handle)
    n, n_hot = seq_ids.size, s.SEQ_HOT_COLUMNS
    rows = np.empty((2, n), np.int64)
    status = _reorder_plan(kv, seq_ids, parents, rows)
    if status != OK:
        return status
    for i in range(n):
        if rows[0, i] != rows[1, i]:
            q.duplicates_cache(kv, rows[0, i])
    new = np.empty((n, n_hot + s.SEQ_COLD_COLUMNS), np.int64)
    for i in range(n):
        seq, parent = rows[0, i], rows[1, i]
        if seq == parent:
            continue
        for column in range(n_hot):
            new[i, column] = kv.seq_hot[parent, column]
        for column in range(s.SEQ_COLD_COLUMNS):
            new[i, n_hot + column] = kv.seq_cold[parent, column]
        n_pages, source = kv.seq_cold[parent, s.N_PAGES], kv.seq_hot[parent, s.BLOCK_TABLE]
        size_class = chunk_class(n_pages)
        table = chunk_take(kv, size_class)
        new[i, s.BLOCK_TABLE], new[i, n_hot + s.TABLE_CLASS] = table, size_class
        for j in range(n_pages):
            kv.arena[table + j] = kv.arena[source + j]
            kv.page[kv.arena[source + j], s.REF] += 1  # held already, by the parent
    for i in range(n):
        seq = rows[0, i]
        if seq == rows[1, i]:
            continue
        sequence_release_pages(kv, seq, 0)
        chunk_give(kv, kv.seq_hot[seq, s.BLOCK_TABLE], kv.seq_cold[seq, s.TABLE_CLASS])
        kv.domain[kv.seq_cold[seq, s.SEQ_DOMAIN], s.SEQUENCES] -= 1
        for column in (s.LENGTH, s.COMMITTED, s.TAIL_PAGE, s.BLOCK_TABLE):
            kv.seq_hot[seq, column] = new[i, column]
        for column in range(s.SEQ_COLD_COLUMNS):
            kv.seq_cold[seq, column] = new[i, n_hot + column]
        kv.domain[kv.seq_cold[seq, s.SEQ_DOMAIN], s.SEQUENCES] += 1
    for j in range(2):
        for i in range(n):
            q.tail_free_set(kv, rows[j, i])
    return OK
