"""Kernels of a KV cache that write, fork, truncate, pin, evict, set quotas, and compact.

Statuses are in kernels/sequences.py.
"""

import numpy as np

from ..._core.jit import kernel
from ...primitives.hash_table import table_find
from ...primitives.status import ABSENT, FULL, GROW, GROW_SEQUENCES, INVALID, OK, PRESENT
from . import pages as p, sequences as q, state as s
from .arena import arena_lacks, chunk_class, chunk_give, chunk_take
from .attach import sequence_release_pages
from .eviction_heap import ENTRY, domain_heap_fill, leaf_heaps_rename, leaf_lowest, leaf_rekey
from .page_tables import slots_fill
from .prefix_table import prefix_insert

HELD, NOT_HELD = -1, -2  # marks of a pin; below 0, unlike pages


@kernel
def kv_write(handle, seq_id, start, out):
    """Slots int64[n] of tokens start .. start + n to write to, copying pages that others hold.

    INVALID: some are in a cached page, the last of which ends at token meta[MISSING]. O(n).
    """
    kv = s.state_at(handle)
    seq = q.sequence_find(kv, seq_id)
    if seq == ABSENT:
        return ABSENT
    if out.size == 0:
        return OK
    size = kv.tokens.shape[1]
    blocks = q.block_table_get(kv, seq)
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
    missing = p.batch_pages_missing(kv, domains, np.array([copies]))
    if missing > 0:
        kv.meta[s.MISSING] = missing
        return FULL
    p.pages_reserve(kv, domains[0], copies)
    for j in range(first, last + 1):
        if kv.page[blocks[j], s.REF] > 1:
            shared = np.int64(blocks[j])
            blocks[j] = p.page_copy(kv, shared, min(size, kv.seq_hot[seq, s.LENGTH] - j * size))
            p.page_drop(kv, shared)
    kv.seq_hot[seq, s.TAIL_PAGE] = blocks[kv.seq_cold[seq, s.N_PAGES] - 1]
    slots_fill(kv, seq, start, start + out.size, out, 0)
    return OK


@kernel(internal=True, borrow=True)
def references_lack(kv, pages, n):
    """Whether some of the pages cannot take n more references; meta[MISSING] is the first. O(n)."""
    for i in range(pages.size):
        if kv.page[pages[i], s.REF] > s.INT32_MAX - n:
            kv.meta[s.MISSING] = pages[i]
            return True
    return False


@kernel(borrow=True)
def kv_fork(handle, seq_id, new_id):
    """A new sequence that shares all pages of another. O(pages).

    INVALID: page meta[MISSING] cannot take another reference.
    """
    kv = s.state_at(handle)
    seq = q.sequence_find(kv, seq_id)
    if seq == ABSENT:
        return ABSENT
    if table_find(kv.ids, new_id) != ABSENT:
        kv.meta[s.MISSING] = new_id
        return PRESENT
    n = kv.seq_cold[seq, s.N_PAGES]
    if references_lack(kv, q.block_table_get(kv, seq)[:n], 1):
        return INVALID
    if q.sequences_lack(kv, 1):
        return GROW_SEQUENCES
    if arena_lacks(kv, 1 << chunk_class(n), 0):
        return GROW
    domain, priority = kv.seq_cold[seq, s.SEQ_DOMAIN], kv.seq_cold[seq, s.SEQ_PRIORITY]
    new = q.sequence_take(kv, new_id, domain, priority, n)
    kv.seq_hot[seq, s.TAIL_FREE] = 0
    for column in (s.LENGTH, s.COMMITTED, s.TAIL_PAGE):
        kv.seq_hot[new, column] = kv.seq_hot[seq, column]
    for column in range(kv.seq_cold.shape[1]):
        if column != s.TABLE_CLASS:
            kv.seq_cold[new, column] = kv.seq_cold[seq, column]
    source, target = q.block_table_get(kv, seq), q.block_table_get(kv, new)
    for j in range(n):
        target[j] = source[j]
        kv.page[source[j], s.REF] += 1  # held already, by the first sequence
    return OK


@kernel(borrow=True)
def kv_truncate(handle, seq_id, n_tokens):
    """Keep the first n_tokens. INVALID: n_tokens > LENGTH, in meta[MISSING]. O(pages dropped)."""
    kv = s.state_at(handle)
    seq = q.sequence_find_long(kv, seq_id, n_tokens)
    if seq < 0:
        return seq
    size = kv.tokens.shape[1]
    keep = (n_tokens + size - 1) // size
    q.duplicates_cache(kv, seq)
    sequence_release_pages(kv, seq, keep)
    kv.seq_hot[seq, s.TAIL_FREE] = 0
    kv.seq_hot[seq, s.LENGTH] = n_tokens
    kv.seq_hot[seq, s.COMMITTED] = min(kv.seq_hot[seq, s.COMMITTED], n_tokens)
    kv.seq_cold[seq, s.PRIOR_PAGES] = min(kv.seq_cold[seq, s.PRIOR_PAGES], n_tokens // size)
    if kv.seq_cold[seq, s.FIRST_UNKNOWN] > n_tokens:
        kv.seq_cold[seq, s.FIRST_UNKNOWN] = 0
    blocks = q.block_table_get(kv, seq)
    kv.seq_hot[seq, s.TAIL_PAGE] = blocks[keep - 1] if keep > 0 else ABSENT
    q.chain_cut(kv, seq, n_tokens // size)
    return OK


@kernel(borrow=True)
def kv_pin(handle, pin, mark):
    """Take or let go a pin int32[1 + n]: a mark and cached pages, parents first. O(n log P).

    mark: HELD acquires the pages, NOT_HELD drops them. INVALID: page meta[MISSING] cannot take
    another reference.
    """
    kv = s.state_at(handle)
    pages = pin[1:]
    if mark == NOT_HELD:
        for i in range(pages.size - 1, -1, -1):
            p.page_drop(kv, np.int64(pages[i]))
    elif references_lack(kv, pages, 1):
        return INVALID
    else:
        for i in range(pages.size):
            p.page_acquire(kv, np.int64(pages[i]))
    pin[0] = mark
    return OK


@kernel(borrow=True)
def kv_evict(handle, n):
    """evict_many. O(n log P)."""
    return p.evict_many(s.state_at(handle), n)


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
            p.leaf_evict(kv, leaf_lowest(kv, kv.domain[domain, s.HEAP]))
    return OK


@kernel(internal=True, borrow=True)
def _move_pages(kv, src, dst):
    for i in range(src.size):
        a, b = src[i], dst[i]
        for column in range(kv.page.shape[1]):
            kv.page[a, column], kv.page[b, column] = kv.page[b, column], kv.page[a, column]
        for j in range(kv.tokens.shape[1]):
            kv.tokens[b, j] = kv.tokens[a, j]


@kernel(internal=True, borrow=True)
def _rename_in_sequences(kv, renamed):
    for seq in range(kv.seq_cold.shape[0]):
        if kv.seq_hot[seq, s.ID] == ABSENT:
            continue
        if kv.seq_hot[seq, s.TAIL_PAGE] != ABSENT:
            kv.seq_hot[seq, s.TAIL_PAGE] = renamed[kv.seq_hot[seq, s.TAIL_PAGE]]
        if kv.seq_cold[seq, s.CANONICAL] != ABSENT:
            kv.seq_cold[seq, s.CANONICAL] = renamed[kv.seq_cold[seq, s.CANONICAL]]
        offset = kv.seq_hot[seq, s.BLOCK_TABLE]
        for j in range(offset, offset + kv.seq_cold[seq, s.N_PAGES]):
            kv.arena[j] = renamed[kv.arena[j]]


@kernel
def kv_compact(handle, src, dst, pins):
    """Move pages src int32[n] to the free pages dst; no copy may be pending. O(P).

    pins int32[m]: pages that get their new ids as well, and marks below 0.
    """
    kv = s.state_at(handle)
    page, arena, domain, meta = kv.page, kv.arena, kv.domain, kv.meta
    renamed = np.empty(page.shape[0], np.int32)
    for i in range(renamed.size):
        renamed[i] = i
    for i in range(src.size):
        renamed[src[i]] = dst[i]
    for i in range(pins.size):
        if pins[i] >= 0:
            pins[i] = renamed[pins[i]]
    # GENERATION moves with its page, so an evicted CANONICAL could come to look valid again.
    for seq in range(kv.seq_cold.shape[0]):
        if kv.seq_hot[seq, s.ID] != ABSENT and not q.canonical_is_valid(kv, seq):
            kv.seq_cold[seq, s.CANONICAL_GENERATION] = ABSENT
    _move_pages(kv, src, dst)
    for i in range(meta[s.PREFIX_TABLE], meta[s.PREFIX_TABLE] + meta[s.PREFIX_MASK] + 1):
        arena[i] = 0
    for i in range(page.shape[0]):
        if page[i, s.STATE] == s.CACHED:
            prefix_insert(kv, i)
            for column in (s.PARENT, s.LAST_CHILD):
                if page[i, column] >= 0:
                    page[i, column] = renamed[page[i, column]]
    for d in range(domain.shape[0]):
        if domain[d, s.LAST_ROOT_CHILD] >= 0:
            domain[d, s.LAST_ROOT_CHILD] = renamed[domain[d, s.LAST_ROOT_CHILD]]
    _rename_in_sequences(kv, renamed)
    leaf_heaps_rename(kv, renamed)
    meta[s.FREE_PAGE] = ABSENT
    for i in range(page.shape[0] - 1, -1, -1):
        if page[i, s.STATE] == s.FREE:
            page[i, s.PARENT] = meta[s.FREE_PAGE]
            meta[s.FREE_PAGE] = i
