"""Sequences of a KV cache that come and go: match, attach, detach (kernels/sequences.py)."""

import numpy as np

from ..._core.jit import kernel
from ...primitives.hash_table import table_find
from ...primitives.status import (
    ABSENT,
    BAD_ID,
    BAD_TOKEN,
    FULL,
    GROW,
    GROW_SEQUENCES,
    INVALID,
    OK,
    PRESENT,
)
from . import state as s
from .arena import arena_lacks, chunk_class
from .eviction_policy import PATH_LRFU, RELEASED, TOUCHED, key_update
from .ghost_entries import ghost_find
from .pages import (
    chain_start,
    chain_step,
    last_child_set,
    page_acquire,
    page_take,
    pages_missing,
    pages_reserve,
)
from .prefix_table import hash_get, prefix_find
from .sequences import (
    block_table_get,
    duplicates_cache,
    sequence_drop_pages,
    sequence_find,
    sequence_give,
    sequence_take,
    sequences_lack,
)


@kernel(internal=True)
def tokens_check(kv, tokens):
    """Whether all tokens are >= 0; leaves the first other one in meta[MISSING]. O(n)."""
    signs = np.int32(0)
    for i in range(tokens.size):
        signs |= tokens[i]
    if signs >= 0:
        return True
    for i in range(tokens.size):
        if tokens[i] < 0:
            kv.meta[s.MISSING] = tokens[i]
            break
    return False


@kernel(internal=True)
def _last_children_follow(page, tok, guess, parent, tokens, pages):
    """Fill `pages` from the front while each guess holds the next tokens; return how many. O(n).

    Such a hit needs no hash: with equal tokens and an equal parent the hash is equal too.
    """
    size = tok.shape[1]
    n = 0
    while n < pages.size and guess >= 0:
        seq, held, asked = page[guess], tok[guess], tokens[n * size : (n + 1) * size]
        different = np.int32((seq[s.STATE] != s.CACHED) | (seq[s.PARENT] != parent))
        for i in range(size):
            different |= held[i] ^ asked[i]
        if different != 0:
            break
        pages[n] = guess
        parent = guess
        guess = np.int64(seq[s.LAST_CHILD])
        n += 1
    return n


@kernel(internal=True)
def chain_match(kv, domain, tokens, pages):
    """Fill `pages` with the longest cached prefix of full pages; return how many. O(n_tokens)."""
    size = kv.tokens.shape[1]
    parent, guess = -2 - domain, kv.domain[domain, s.LAST_ROOT_CHILD]
    n = 0
    while True:
        n += _last_children_follow(kv.page, kv.tokens, guess, parent, tokens[n * size :], pages[n:])
        if n == pages.size:
            break
        h0, h1, parent = chain_start(kv, domain)
        if n > 0:
            parent = np.int64(pages[n - 1])
            h0, h1 = hash_get(kv, parent)
        part = tokens[n * size : (n + 1) * size]
        h0, h1 = chain_step(kv, h0, h1, part)
        found = prefix_find(kv, h0, h1, parent, part)
        if found == ABSENT:
            break
        pages[n] = found
        parent, guess = found, np.int64(kv.page[found, s.LAST_CHILD])
        n += 1
    return n


@kernel(internal=True)
def _prior_find(kv, seq, tokens, hits):
    """Set SEQ_TURN, and PRIOR_WEIGHT of path-lrfu, as eviction_policy.py says. O(n_tokens missed)."""
    size = kv.tokens.shape[1]
    h0, h1, _ = chain_start(kv, kv.seq_cold[seq, s.SEQ_DOMAIN])
    if hits > 0:
        last = np.int64(block_table_get(kv, seq)[hits - 1])
        h0, h1 = hash_get(kv, last)
        kv.seq_cold[seq, s.SEQ_TURN] = kv.page[last, s.TURN] + 1
    if kv.meta[s.POLICY] != PATH_LRFU:
        return
    for j in range(hits, tokens.size // size):
        h0, h1 = chain_step(kv, h0, h1, tokens[j * size : (j + 1) * size])
        weight, turn = ghost_find(kv, h1)
        if weight > 0:
            kv.seq_cold[seq, s.PRIOR_WEIGHT] = weight
            kv.seq_cold[seq, s.PRIOR_PAGES] = j + 1
            kv.seq_cold[seq, s.SEQ_TURN] = turn + 1


@kernel(internal=True)
def _attach_match(kv, seq, tokens):
    """Take the cached prefix into the block table; return the number of pages still to take."""
    size = kv.tokens.shape[1]
    blocks = block_table_get(kv, seq)
    hits = 0
    if kv.meta[s.SHARING] != 0:
        hits = chain_match(
            kv, kv.seq_cold[seq, s.SEQ_DOMAIN], tokens, blocks[: tokens.size // size]
        )
        _prior_find(kv, seq, tokens, hits)
    for j in range(hits):
        page_acquire(kv, np.int64(blocks[j]))
    kv.seq_cold[seq, s.N_PAGES] = hits
    return (tokens.size + size - 1) // size - hits


@kernel(internal=True)
def _attach_fill(kv, seq, tokens):
    """Second half of an attach: touch the hits, take the other pages, store the tokens."""
    size = kv.tokens.shape[1]
    domain = kv.seq_cold[seq, s.SEQ_DOMAIN]
    blocks = block_table_get(kv, seq)
    hits = kv.seq_cold[seq, s.N_PAGES]
    kv.meta[s.CLOCK] += 1
    kv.meta[s.REQUESTS] += 1
    parent = -2 - domain
    for j in range(hits):
        page = np.int64(blocks[j])
        kv.page[page, s.PRIORITY] = max(kv.page[page, s.PRIORITY], kv.seq_cold[seq, s.SEQ_PRIORITY])
        key_update(kv, page, TOUCHED, kv.seq_cold[seq, s.SEQ_TURN], 0)
        last_child_set(kv, parent, page)
        parent = page
    n_pages = (tokens.size + size - 1) // size
    pages_reserve(kv, domain, n_pages - hits)
    for j in range(hits, n_pages):
        page = page_take(kv, domain)
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


@kernel(internal=True)
def _attach_plan(kv, seq_ids, tokens, indptr):
    """Why the sequences cannot be attached, before pages are looked at; OK else. O(tokens)."""
    n, size = seq_ids.size, kv.tokens.shape[1]
    entries = 0
    for i in range(n):
        kv.meta[s.MISSING] = seq_ids[i]
        if seq_ids[i] < 0:
            return BAD_ID
        if table_find(kv.ids, seq_ids[i]) != ABSENT:
            return PRESENT
        entries += 1 << chunk_class((indptr[i + 1] - indptr[i] + size - 1) // size)
    if not tokens_check(kv, tokens):
        return BAD_TOKEN
    if sequences_lack(kv, n):
        return GROW_SEQUENCES
    return GROW if arena_lacks(kv, entries, 0) else OK


@kernel
def kv_attach_many(handle, seq_ids, tokens, indptr, domains, priorities, hits):
    """Attach n sequences, all or none; hits int64[n] = tokens found cached. O(tokens).

    Sequence i has tokens[indptr[i]:indptr[i + 1]] in domain domains[i]. No two of one call share
    pages that neither has committed. INVALID: an id stands twice.
    """
    kv = s.state_at(handle)
    n, size = seq_ids.size, kv.tokens.shape[1]
    status = _attach_plan(kv, seq_ids, tokens, indptr)
    if status != OK:
        return status
    seqs = np.empty(n, np.int64)
    need = np.empty(n, np.int64)
    taken = 0
    for i in range(n):
        if table_find(kv.ids, seq_ids[i]) != ABSENT:
            kv.meta[s.MISSING] = seq_ids[i]
            status = INVALID
            break
        part = tokens[indptr[i] : indptr[i + 1]]
        n_pages = (part.size + size - 1) // size
        seqs[i] = sequence_take(kv, seq_ids[i], domains[i], priorities[i], n_pages)
        need[i] = _attach_match(kv, seqs[i], part)
        taken += 1
    if status == OK:
        missing = pages_missing(kv, domains, need)
        if missing > 0:
            kv.meta[s.MISSING] = missing
            status = FULL
    if status != OK:
        for i in range(taken - 1, -1, -1):
            sequence_drop_pages(kv, seqs[i], 0)
            sequence_give(kv, seqs[i])
        return status
    for i in range(n):
        hits[i] = _attach_fill(kv, seqs[i], tokens[indptr[i] : indptr[i + 1]])
    return OK


@kernel(internal=True)
def sequence_release_pages(kv, seq, keep):
    """sequence_drop_pages with the policy's hook. O(pages log pages)."""
    blocks = block_table_get(kv, seq)
    for j in range(keep, kv.seq_cold[seq, s.N_PAGES]):
        if kv.page[blocks[j], s.STATE] == s.CACHED:
            key_update(kv, np.int64(blocks[j]), RELEASED, 0, 0)
    sequence_drop_pages(kv, seq, keep)


@kernel
def kv_detach_many(handle, seq_ids):
    """Detach sequences, all or none. INVALID: an id stands twice. O(pages log pages)."""
    kv = s.state_at(handle)
    kv.meta[s.CALLS] += 1
    for i in range(seq_ids.size):
        seq = sequence_find(kv, seq_ids[i])
        if seq == ABSENT:
            return ABSENT
        if kv.seq_hot[seq, s.LAST_CALL] == kv.meta[s.CALLS]:
            kv.meta[s.MISSING] = seq_ids[i]
            return INVALID
        kv.seq_hot[seq, s.LAST_CALL] = kv.meta[s.CALLS]
    for i in range(seq_ids.size):
        seq = table_find(kv.ids, seq_ids[i])
        kv.meta[s.CLOCK] += 1
        duplicates_cache(kv, seq)
        sequence_release_pages(kv, seq, 0)
        sequence_give(kv, seq)
    return OK


@kernel
def kv_match(handle, domain, tokens, pages):
    """chain_match on the state, 0 for an ABSENT domain, or BAD_TOKEN. O(n_tokens)."""
    kv = s.state_at(handle)
    if not tokens_check(kv, tokens):
        return BAD_TOKEN
    if kv.meta[s.SHARING] == 0 or domain == ABSENT:
        return 0
    return chain_match(kv, domain, tokens, pages)
