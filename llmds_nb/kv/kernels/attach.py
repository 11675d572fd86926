"""Kernels that match a prompt, attach and detach sequences; statuses: kernels/sequences.py."""

import numpy as np
from numba import int64, void

from ..._core.jit import kernel
from ...primitives import status as st
from ...primitives.hash_table import table_find, table_row
from ...primitives.status import ABSENT, OK
from . import pages as p, sequences as q, state as s
from .arena import arena_lacks, chunk_class
from .eviction_heap import MOST_REQUESTS, weights_lower
from .eviction_policy import PATH_LRFU, RELEASED, TOUCHED, key_update
from .ghost_entries import ghost_find
from .prefix_table import hash_get, prefix_find


@kernel(internal=True, borrow=True)
def tokens_check(kv, tokens):
    """Whether all tokens are >= 0, or keyed; if not, meta[MISSING] is the first below 0. O(n)."""
    signs = np.int32(0)
    for i in range(tokens.size):
        signs |= tokens[i]
    if signs >= 0 or kv.extra.shape[0] > 0:
        return True
    for i in range(tokens.size):
        if tokens[i] < 0:
            kv.meta[s.MISSING] = tokens[i]
            break
    return False


@kernel(internal=True, borrow=True)
def _last_children_follow(kv, guess, parent, tokens, pages):
    """Follow the guessed children while they hold the next tokens; return how many. O(n).

    Fills `pages` with them. Such a hit needs no hash: pages with equal tokens and an equal parent
    have equal hashes.
    """
    size = kv.tokens.shape[1]
    n = 0
    while n < pages.size and guess >= 0:
        row, held = kv.page[guess], kv.tokens[guess]
        wanted = tokens[n * size : (n + 1) * size]
        different = np.int32((row[s.STATE] != s.CACHED) | (row[s.PARENT] != parent))
        for i in range(size):
            different |= held[i] ^ wanted[i]
        if different != 0:
            break
        pages[n] = guess
        parent = guess
        guess = np.int64(row[s.LAST_CHILD])
        n += 1
    return n


@kernel(separate=int64(s.KV, int64, s.INT32S, s.INT32S), borrow=True)
def chain_match(kv, domain, tokens, pages):
    """Fill `pages` with the longest cached prefix of full pages; return how many. O(n_tokens)."""
    size = kv.tokens.shape[1]
    parent, guess = -2 - domain, kv.domain[domain, s.LAST_ROOT_CHILD]
    n = 0
    while True:
        n += _last_children_follow(kv, guess, parent, tokens[n * size :], pages[n:])
        if n == pages.size:
            break
        h0, h1, parent = p.chain_start(kv, domain)
        if n > 0:
            parent = np.int64(pages[n - 1])
            h0, h1 = hash_get(kv, parent)
        part = tokens[n * size : (n + 1) * size]
        h0, h1 = p.chain_step(kv, h0, h1, part)
        found = prefix_find(kv, h0, h1, parent, part)
        if found == ABSENT:
            break
        pages[n] = found
        parent, guess = found, np.int64(kv.page[found, s.LAST_CHILD])
        n += 1
    return n


@kernel(borrow=True)
def kv_chain_fault(handle):
    """The first cached page that is not found as what follows its parent, or ABSENT. O(P * T)."""
    kv = s.state_at(handle)
    for page in range(kv.page.shape[0]):
        if kv.page[page, s.STATE] != s.CACHED:
            continue
        parent = np.int64(kv.page[page, s.PARENT])
        h0, h1, _ = p.chain_start(kv, np.int64(kv.page[page, s.DOMAIN]))
        if parent >= 0:
            h0, h1 = hash_get(kv, parent)
        h0, h1 = p.chain_step(kv, h0, h1, kv.tokens[page])
        own0, own1 = hash_get(kv, page)
        if h0 != own0 or h1 != own1 or prefix_find(kv, h0, h1, parent, kv.tokens[page]) != page:
            return np.int64(page)
    return np.int64(ABSENT)


@kernel(internal=True, borrow=True)
def _prior_find(kv, seq, tokens, hits):
    """Set SEQ_TURN, PRIOR_WEIGHT and PRIOR_PAGES (eviction_policy.py). O(tokens not hit)."""
    size = kv.tokens.shape[1]
    h0, h1, _ = p.chain_start(kv, kv.seq_cold[seq, s.SEQ_DOMAIN])
    if hits > 0:
        last = np.int64(q.block_table_get(kv, seq)[hits - 1])
        h0, h1 = hash_get(kv, last)
        kv.seq_cold[seq, s.SEQ_TURN] = kv.page[last, s.TURN] + 1
    if kv.meta[s.POLICY] != PATH_LRFU:
        return
    for j in range(hits, tokens.size // size):
        h0, h1 = p.chain_step(kv, h0, h1, tokens[j * size : (j + 1) * size])
        weight, turn = ghost_find(kv, h1)
        if weight > 0:
            kv.seq_cold[seq, s.PRIOR_WEIGHT] = weight
            kv.seq_cold[seq, s.PRIOR_PAGES] = j + 1
            kv.seq_cold[seq, s.SEQ_TURN] = turn + 1


@kernel(internal=True, borrow=True)
def _attach_match(kv, seq, tokens):
    """Put the cached prefix into the block table; return how many pages are left to take.

    A page whose count of references is at its end is not shared any more.
    """
    size = kv.tokens.shape[1]
    blocks = q.block_table_get(kv, seq)
    hits = 0
    if kv.meta[s.SHARING] != 0:
        domain = kv.seq_cold[seq, s.SEQ_DOMAIN]
        found = chain_match(kv, domain, tokens, blocks[: tokens.size // size])
        for j in range(found):
            page = np.int64(blocks[j])
            if kv.page[page, s.REF] == s.INT32_MAX:
                break
            p.page_acquire(kv, page)
            hits += 1
        _prior_find(kv, seq, tokens, hits)
    kv.seq_cold[seq, s.N_PAGES] = hits
    return (tokens.size + size - 1) // size - hits


@kernel(internal=True, borrow=True)
def _attach_fill(kv, seq, tokens):
    """Touch the pages that were hit, take the others, store the tokens; return the tokens hit."""
    size = kv.tokens.shape[1]
    domain = kv.seq_cold[seq, s.SEQ_DOMAIN]
    blocks = q.block_table_get(kv, seq)
    hits = kv.seq_cold[seq, s.N_PAGES]
    kv.meta[s.CLOCK] += 1
    kv.meta[s.REQUESTS] += 1
    if kv.meta[s.REQUESTS] >= MOST_REQUESTS and kv.meta[s.POLICY] == PATH_LRFU:
        weights_lower(kv)
    parent = -2 - domain
    for j in range(hits):
        page = np.int64(blocks[j])
        kv.page[page, s.PRIORITY] = max(kv.page[page, s.PRIORITY], kv.seq_cold[seq, s.SEQ_PRIORITY])
        key_update(kv, page, TOUCHED, kv.seq_cold[seq, s.SEQ_TURN], 0)
        p.last_child_set(kv, parent, page)
        parent = page
    n_pages = (tokens.size + size - 1) // size
    p.pages_reserve(kv, domain, n_pages - hits)
    for j in range(hits, n_pages):
        page = p.page_take(kv, domain)
        blocks[j] = page
        part = tokens[j * size : min((j + 1) * size, tokens.size)]
        for i in range(part.size):
            kv.tokens[page, i] = part[i]
    kv.seq_hot[seq, s.LENGTH] = tokens.size
    kv.seq_hot[seq, s.COMMITTED] = hits * size
    kv.seq_cold[seq, s.N_PAGES] = n_pages
    kv.seq_cold[seq, s.N_CHAINED] = hits
    if n_pages > 0:
        kv.seq_hot[seq, s.TAIL_PAGE] = blocks[n_pages - 1]
    if hits > 0:
        kv.seq_cold[seq, s.CANONICAL] = parent
        kv.seq_cold[seq, s.CANONICAL_GENERATION] = kv.page[parent, s.GENERATION]
    kv.meta[s.LOOKUPS] += tokens.size
    kv.meta[s.HITS] += hits * size
    kv.meta[s.SHARES] += hits
    return hits * size


@kernel(internal=True, borrow=True)
def _attach_plan(kv, seq_ids, tokens, indptr):
    """Check ids and tokens, and the size of the arrays; a status. O(tokens)."""
    n, size = seq_ids.size, kv.tokens.shape[1]
    entries = 0
    for i in range(n):
        kv.meta[s.MISSING] = seq_ids[i]
        if seq_ids[i] < 0:
            return st.BAD_ID
        entries += 1 << chunk_class((indptr[i + 1] - indptr[i] + size - 1) // size)
    if not tokens_check(kv, tokens):
        return st.BAD_TOKEN
    if q.sequences_lack(kv, n):
        return st.GROW_SEQUENCES
    return st.GROW if arena_lacks(kv, entries, 0) else OK


@kernel(separate=int64(s.KV, s.INT64S, s.INT32S, s.INT64S, s.INT64S, s.INT64S, s.INT64S))
def sequences_attach(kv, seq_ids, tokens, indptr, domains, priorities, hits):
    """Attach n sequences, all or none; hits int64[n] = tokens found cached. O(tokens).

    Sequence i has tokens[indptr[i]:indptr[i + 1]] in domain domains[i]. Sequences of one call share
    pages that were cached before, but not their new ones, since none is committed yet.
    """
    n, size = seq_ids.size, kv.tokens.shape[1]
    status = _attach_plan(kv, seq_ids, tokens, indptr)
    if status != OK:
        return status
    seqs = np.empty(n, np.int64)
    need = np.empty(n, np.int64)
    taken = 0
    for i in range(n):
        found = table_find(kv.ids, seq_ids[i])
        if found != ABSENT:
            kv.meta[s.MISSING] = seq_ids[i]
            status = st.PRESENT
            for j in range(i):
                if seqs[j] == found:
                    status = st.REPEATED
            break
        part = tokens[indptr[i] : indptr[i + 1]]
        n_pages = (part.size + size - 1) // size
        seqs[i] = q.sequence_take(kv, seq_ids[i], domains[i], priorities[i], n_pages)
        if kv.extra.shape[0] > 0:
            kv.seq_cold[seqs[i], s.EXTRA] = kv.extra[i, 0]
            kv.seq_cold[seqs[i], s.EXTRA_STOP] = kv.extra[i, 1]
        need[i] = _attach_match(kv, seqs[i], part)
        taken += 1
    if status == OK:
        missing = p.batch_pages_missing(kv, domains, need)
        if missing > 0:
            kv.meta[s.MISSING] = missing
            status = st.FULL
    if status != OK:
        for i in range(taken - 1, -1, -1):
            q.sequence_drop_pages(kv, seqs[i], 0)
            q.sequence_give(kv, seqs[i], table_row(kv.ids, seq_ids[i]))
        return status
    for i in range(n):
        hits[i] = _attach_fill(kv, seqs[i], tokens[indptr[i] : indptr[i + 1]])
    return OK


@kernel(borrow=True)
def kv_attach_many(handle, seq_ids, tokens, indptr, domains, priorities, hits):
    """sequences_attach of the cache at a handle."""
    kv = s.state_at(handle)
    return sequences_attach(kv, seq_ids, tokens, indptr, domains, priorities, hits)


@kernel(separate=void(s.KV, int64, int64), borrow=True)
def sequence_release_pages(kv, seq, keep):
    """sequence_drop_pages after the policy's hook for each page. O(pages log pages)."""
    blocks = q.block_table_get(kv, seq)
    for j in range(keep, kv.seq_cold[seq, s.N_PAGES]):
        if kv.page[blocks[j], s.STATE] == s.CACHED:
            key_update(kv, np.int64(blocks[j]), RELEASED, 0, 0)
    q.sequence_drop_pages(kv, seq, keep)


@kernel(separate=int64(s.KV, s.INT64S), borrow=True)
def sequences_detach(kv, seq_ids):
    """Detach sequences, all or none. O(pages log pages)."""
    kv.meta[s.CALLS] += 1
    for i in range(seq_ids.size):
        seq = q.sequence_find(kv, seq_ids[i])
        if seq == ABSENT:
            return ABSENT
        if kv.seq_hot[seq, s.LAST_CALL] == kv.meta[s.CALLS]:
            kv.meta[s.MISSING] = seq_ids[i]
            return st.REPEATED
        kv.seq_hot[seq, s.LAST_CALL] = kv.meta[s.CALLS]
    for i in range(seq_ids.size):
        row = table_row(kv.ids, seq_ids[i])
        seq = kv.ids[row, 1]
        kv.meta[s.CLOCK] += 1
        q.duplicates_cache(kv, seq)
        sequence_release_pages(kv, seq, 0)
        q.sequence_give(kv, seq, row)
    return OK


@kernel(borrow=True)
def kv_detach_many(handle, seq_ids):
    """sequences_detach of the cache at a handle."""
    return sequences_detach(s.state_at(handle), seq_ids)


@kernel(borrow=True)
def kv_match(handle, domain, tokens, pages):
    """chain_match; 0 if the domain is ABSENT. BAD_TOKEN. O(n_tokens)."""
    kv = s.state_at(handle)
    if not tokens_check(kv, tokens):
        return st.BAD_TOKEN
    if kv.meta[s.SHARING] == 0 or domain == ABSENT:
        return 0
    return chain_match(kv, domain, tokens, pages)
