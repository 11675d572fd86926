"""What else a KV cache does: write, fork, truncate, pin, evict, quotas (kernels/sequences.py).

Entry points, called from Python, take the arrays flat, since a tuple costs more at that door;
inside, the state is one KVState.
"""

import numpy as np

from ..._core.jit import kernel
from ...primitives.hash_table import table_find
from ...primitives.status import ABSENT, FULL, GROW, GROW_SEQUENCES, INVALID, OK, PRESENT
from .arena import chunk_class, chunk_give, chunk_take, pool_lacks
from .attach import pages_release
from .eviction_heap import ENTRY, domain_heap_fill, leaf_lowest, leaf_rekey
from .pages import (
    evict_many,
    leaf_evict,
    make_room,
    moves_clear,
    page_acquire,
    page_copy,
    page_drop,
    rooms_missing,
)
from .sequences import blocks_get, row_find, row_find_long, row_take, rows_lack, twins_cache
from .state import (
    CACHED,
    CANON,
    CGEN,
    CLASS,
    COMMITTED,
    DOMAIN,
    GEN,
    HEAP,
    HEAP_CLASS,
    LENGTH,
    MISSING,
    N_HEAP,
    NHASH,
    NPAGES,
    OWNED,
    PAST_PAGES,
    PRIORITY,
    QPOS,
    QUOTA,
    REF,
    ROOM,
    SEQ_DOMAIN,
    SEQ_PRIORITY,
    STATE,
    TAIL,
    state_at,
)


@kernel
def kv_write(handle, seq_id, start, out):
    """Slots int64[n] of tokens start .. start + n to write to, copying pages that others hold.

    INVALID if one lies in a cached page; meta[MISSING] is then the last such position + 1. O(n).
    """
    s = state_at(handle)
    row = row_find(s, seq_id)
    if row == ABSENT:
        return ABSENT
    if out.size == 0:
        return OK
    size = s.tok.shape[1]
    blocks = blocks_get(s, row)
    first, last = start // size, (start + out.size - 1) // size
    copies = 0
    for j in range(last, first - 1, -1):
        if s.page[blocks[j], STATE] == CACHED:
            s.meta[MISSING] = (j + 1) * size
            return INVALID
        copies += s.page[blocks[j], REF] > 1
    if pool_lacks(s, 0, copies):
        return GROW
    domains = np.array([s.seq[row, SEQ_DOMAIN]])
    missing = rooms_missing(s, domains, np.array([copies]))
    if missing > 0:
        s.meta[MISSING] = missing
        return FULL
    make_room(s, domains[0], copies)
    for j in range(first, last + 1):
        if s.page[blocks[j], REF] > 1:
            shared = np.int64(blocks[j])
            blocks[j] = page_copy(s, shared, min(size, s.hot[row, LENGTH] - j * size))
            page_drop(s, shared)
    s.hot[row, TAIL] = blocks[s.seq[row, NPAGES] - 1]
    _fill_slots(s, row, start, out)
    return OK


@kernel(internal=True)
def _fill_slots(s, row, start, out):
    size = s.tok.shape[1]
    blocks = blocks_get(s, row)
    for i in range(out.size):
        out[i] = np.int64(blocks[(start + i) // size]) * size + (start + i) % size


@kernel
def kv_fork(handle, seq_id, new_id):
    """A second sequence on the same pages. O(pages)."""
    s = state_at(handle)
    row = row_find(s, seq_id)
    if row == ABSENT:
        return ABSENT
    if table_find(s.ids, new_id) != ABSENT:
        s.meta[MISSING] = new_id
        return PRESENT
    n = s.seq[row, NPAGES]
    if rows_lack(s, 1):
        return GROW_SEQUENCES
    if pool_lacks(s, 1 << chunk_class(n), 0):
        return GROW
    new = row_take(s, new_id, s.seq[row, SEQ_DOMAIN], s.seq[row, SEQ_PRIORITY], n)
    s.hot[row, ROOM] = 0
    for column in (LENGTH, COMMITTED, TAIL):
        s.hot[new, column] = s.hot[row, column]
    for column in range(s.seq.shape[1]):
        if column != CLASS:
            s.seq[new, column] = s.seq[row, column]
    source, target = blocks_get(s, row), blocks_get(s, new)
    for j in range(n):
        target[j] = source[j]
        s.page[source[j], REF] += 1  # held already: by the parent sequence
    return OK


@kernel
def kv_truncate(handle, seq_id, n_tokens):
    """Keep the first n_tokens. INVALID if longer than the sequence. O(pages dropped)."""
    s = state_at(handle)
    row = row_find_long(s, seq_id, n_tokens)
    if row < 0:
        return row
    size = s.tok.shape[1]
    keep = (n_tokens + size - 1) // size
    twins_cache(s, row)
    pages_release(s, row, keep)
    s.hot[row, ROOM] = 0
    s.hot[row, LENGTH] = n_tokens
    s.hot[row, COMMITTED] = min(s.hot[row, COMMITTED], n_tokens)
    s.seq[row, PAST_PAGES] = min(s.seq[row, PAST_PAGES], n_tokens // size)
    blocks = blocks_get(s, row)
    s.hot[row, TAIL] = blocks[keep - 1] if keep > 0 else ABSENT
    n_hash = min(s.seq[row, NHASH], n_tokens // size)
    if n_hash < s.seq[row, NHASH]:
        s.seq[row, NHASH] = n_hash
        s.seq[row, CGEN] = ABSENT
        if n_hash > 0 and s.page[blocks[n_hash - 1], STATE] == CACHED:
            s.seq[row, CANON] = blocks[n_hash - 1]
            s.seq[row, CGEN] = s.page[blocks[n_hash - 1], GEN]
    return OK


@kernel
def kv_pin(handle, pages, by):
    """Hold (by = 1) or let go (by = -1) cached pages int32[n], parents first. O(n log P)."""
    s = state_at(handle)
    if by > 0:
        for i in range(pages.size):
            page_acquire(s, np.int64(pages[i]))
    else:
        for i in range(pages.size - 1, -1, -1):
            page_drop(s, np.int64(pages[i]))


@kernel
def kv_evict(handle, n):
    """evict_many on the state. O(n log P)."""
    s = state_at(handle)
    return evict_many(s, n)


@kernel
def kv_moves_clear(handle):
    """moves_clear on the state. O(number of copies)."""
    s = state_at(handle)
    moves_clear(s)


@kernel
def kv_rekey(handle, pages, keys):
    """leaf_rekey for cached pages int64[n] with keys int64[n]. O(n log P)."""
    s = state_at(handle)
    for i in range(pages.size):
        leaf_rekey(s, pages[i], np.int64(s.page[pages[i], PRIORITY]), keys[i])


@kernel
def kv_quota(handle, domain, quota):
    """Set the quota of a domain (-1 = none) and evict its own pages above it. GROW. O(P)."""
    s = state_at(handle)
    entries = max(quota, s.dom[domain, OWNED])  # its evictable leaves can never be more
    size_class = chunk_class(ENTRY * entries)
    if quota >= 0 and pool_lacks(s, 1 << size_class, 0):
        return GROW
    if s.dom[domain, QUOTA] >= 0:
        chunk_give(s, s.dom[domain, HEAP], s.dom[domain, HEAP_CLASS])
        s.dom[domain, HEAP] = ABSENT
        s.dom[domain, N_HEAP] = 0
        for i in range(s.page.shape[0]):
            if s.page[i, STATE] == CACHED and s.page[i, DOMAIN] == domain:
                s.page[i, QPOS] = ABSENT
    s.dom[domain, QUOTA] = quota
    if quota >= 0:
        s.dom[domain, HEAP] = chunk_take(s, size_class)
        s.dom[domain, HEAP_CLASS] = size_class
        domain_heap_fill(s, domain)
        while s.dom[domain, OWNED] > quota and s.dom[domain, N_HEAP] > 0:
            leaf_evict(s, leaf_lowest(s, s.dom[domain, HEAP]))
    return OK
