"""Kernels of a KV cache that write, fork, truncate, pin, evict, and set quotas.

They take the state as a handle and unpack it once. Statuses are in kernels/sequences.py.
"""

import numpy as np

from ..._core.jit import kernel
from ...primitives.hash_table import table_find
from ...primitives.status import ABSENT, FULL, GROW, GROW_SEQUENCES, INVALID, OK, PRESENT
from . import state as s
from .arena import arena_lacks, chunk_class, chunk_give, chunk_take
from .attach import sequence_release_pages
from .eviction_heap import ENTRY, domain_heap_fill, leaf_lowest, leaf_rekey
from .page_tables import slots_fill
from .pages import (
    batch_pages_missing,
    evict_many,
    leaf_evict,
    page_acquire,
    page_copy,
    page_drop,
    pages_reserve,
    pending_clear,
)
from .sequences import (
    block_table_get,
    duplicates_cache,
    sequence_find,
    sequence_find_long,
    sequence_take,
    sequences_lack,
)


@kernel
def kv_write(handle, seq_id, start, out):
    """Slots int64[n] of tokens start .. start + n to write to, copying pages that others hold.

    INVALID: some are in a cached page, the last of which ends at token meta[MISSING]. O(n).
    """
    kv = s.state_at(handle)
    seq = sequence_find(kv, seq_id)
    if seq == ABSENT:
        return ABSENT
    if out.size == 0:
        return OK
    size = kv.tokens.shape[1]
    blocks = block_table_get(kv, seq)
    first, last = start // size, (start + out.size - 1) // size
    copies = 0
    for j in range(last, first - 1, -1):
        if kv.page[blocks[j], s.STATE] == s.CACHED:
            kv.meta[s.MISSING] = (j + 1) * size
            return INVALID
        copies += kv.page[blocks[j], s.REF] > 1
    if arena_lacks(kv, 0, copies):
        return GROW
    domains = np.array([kv.seq_cold[seq, s.SEQ_DOMAIN]])
    missing = batch_pages_missing(kv, domains, np.array([copies]))
    if missing > 0:
        kv.meta[s.MISSING] = missing
        return FULL
    pages_reserve(kv, domains[0], copies)
    for j in range(first, last + 1):
        if kv.page[blocks[j], s.REF] > 1:
            shared = np.int64(blocks[j])
            blocks[j] = page_copy(kv, shared, min(size, kv.seq_hot[seq, s.LENGTH] - j * size))
            page_drop(kv, shared)
    kv.seq_hot[seq, s.TAIL_PAGE] = blocks[kv.seq_cold[seq, s.N_PAGES] - 1]
    slots_fill(kv, seq, start, start + out.size, out, 0)
    return OK


@kernel(borrow=True)
def kv_fork(handle, seq_id, new_id):
    """A new sequence that shares all pages of another. O(pages)."""
    kv = s.state_at(handle)
    seq = sequence_find(kv, seq_id)
    if seq == ABSENT:
        return ABSENT
    if table_find(kv.ids, new_id) != ABSENT:
        kv.meta[s.MISSING] = new_id
        return PRESENT
    n = kv.seq_cold[seq, s.N_PAGES]
    if sequences_lack(kv, 1):
        return GROW_SEQUENCES
    if arena_lacks(kv, 1 << chunk_class(n), 0):
        return GROW
    new = sequence_take(
        kv, new_id, kv.seq_cold[seq, s.SEQ_DOMAIN], kv.seq_cold[seq, s.SEQ_PRIORITY], n
    )
    kv.seq_hot[seq, s.TAIL_FREE] = 0
    for column in (s.LENGTH, s.COMMITTED, s.TAIL_PAGE):
        kv.seq_hot[new, column] = kv.seq_hot[seq, column]
    for column in range(kv.seq_cold.shape[1]):
        if column != s.TABLE_CLASS:
            kv.seq_cold[new, column] = kv.seq_cold[seq, column]
    source, target = block_table_get(kv, seq), block_table_get(kv, new)
    for j in range(n):
        target[j] = source[j]
        kv.page[source[j], s.REF] += 1  # held already, by the first sequence
    return OK


@kernel(borrow=True)
def kv_truncate(handle, seq_id, n_tokens):
    """Keep the first n_tokens. INVALID: n_tokens > LENGTH, in meta[MISSING]. O(pages dropped)."""
    kv = s.state_at(handle)
    seq = sequence_find_long(kv, seq_id, n_tokens)
    if seq < 0:
        return seq
    size = kv.tokens.shape[1]
    keep = (n_tokens + size - 1) // size
    duplicates_cache(kv, seq)
    sequence_release_pages(kv, seq, keep)
    kv.seq_hot[seq, s.TAIL_FREE] = 0
    kv.seq_hot[seq, s.LENGTH] = n_tokens
    kv.seq_hot[seq, s.COMMITTED] = min(kv.seq_hot[seq, s.COMMITTED], n_tokens)
    kv.seq_cold[seq, s.PRIOR_PAGES] = min(kv.seq_cold[seq, s.PRIOR_PAGES], n_tokens // size)
    blocks = block_table_get(kv, seq)
    kv.seq_hot[seq, s.TAIL_PAGE] = blocks[keep - 1] if keep > 0 else ABSENT
    n_chained = min(kv.seq_cold[seq, s.N_CHAINED], n_tokens // size)
    if n_chained < kv.seq_cold[seq, s.N_CHAINED]:
        kv.seq_cold[seq, s.N_CHAINED] = n_chained
        kv.seq_cold[seq, s.CANONICAL_GENERATION] = ABSENT
        if n_chained > 0 and kv.page[blocks[n_chained - 1], s.STATE] == s.CACHED:
            kv.seq_cold[seq, s.CANONICAL] = blocks[n_chained - 1]
            kv.seq_cold[seq, s.CANONICAL_GENERATION] = kv.page[blocks[n_chained - 1], s.GENERATION]
    return OK


@kernel(borrow=True)
def kv_pin(handle, pages, by):
    """Acquire (by = 1) or drop (by = -1) cached pages int32[n], parents first. O(n log P)."""
    kv = s.state_at(handle)
    if by > 0:
        for i in range(pages.size):
            page_acquire(kv, np.int64(pages[i]))
    else:
        for i in range(pages.size - 1, -1, -1):
            page_drop(kv, np.int64(pages[i]))


@kernel(borrow=True)
def kv_evict(handle, n):
    """evict_many. O(n log P)."""
    kv = s.state_at(handle)
    return evict_many(kv, n)


@kernel(borrow=True)
def kv_pending_clear(handle):
    """pending_clear. O(number of copies)."""
    kv = s.state_at(handle)
    pending_clear(kv)


@kernel(borrow=True)
def kv_rekey(handle, pages, keys):
    """leaf_rekey for cached pages int64[n] with keys int64[n]. O(n log P)."""
    kv = s.state_at(handle)
    for i in range(pages.size):
        leaf_rekey(kv, pages[i], np.int64(kv.page[pages[i], s.PRIORITY]), keys[i])


@kernel(borrow=True)
def kv_quota(handle, domain, quota):
    """Set the quota of a domain (-1 = none) and evict its pages above it. GROW. O(P)."""
    kv = s.state_at(handle)
    entries = max(quota, kv.domain[domain, s.OWNED])  # its evictable leaves can never be more
    size_class = chunk_class(ENTRY * entries)
    if quota >= 0 and arena_lacks(kv, 1 << size_class, 0):
        return GROW
    if kv.domain[domain, s.QUOTA] >= 0:
        chunk_give(kv, kv.domain[domain, s.HEAP], kv.domain[domain, s.HEAP_CLASS])
        kv.domain[domain, s.HEAP] = ABSENT
        kv.domain[domain, s.N_HEAP] = 0
        for i in range(kv.page.shape[0]):
            if kv.page[i, s.STATE] == s.CACHED and kv.page[i, s.DOMAIN] == domain:
                kv.page[i, s.DOMAIN_HEAP_POS] = ABSENT
    kv.domain[domain, s.QUOTA] = quota
    if quota >= 0:
        kv.domain[domain, s.HEAP] = chunk_take(kv, size_class)
        kv.domain[domain, s.HEAP_CLASS] = size_class
        domain_heap_fill(kv, domain)
        while kv.domain[domain, s.OWNED] > quota and kv.domain[domain, s.N_HEAP] > 0:
            leaf_evict(kv, leaf_lowest(kv, kv.domain[domain, s.HEAP]))
    return OK
