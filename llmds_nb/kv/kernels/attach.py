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
from .arena import chunk_class, pool_lacks
from .eviction_policy import PATH_LRFU, RELEASED, TOUCHED, key_update
from .ghost_entries import history_find
from .pages import (
    chain_start,
    chain_step,
    child_guess,
    make_room,
    page_acquire,
    page_take,
    rooms_missing,
)
from .prefix_table import hash_get, prefix_find
from .sequences import blocks_get, pages_drop, row_find, row_give, row_take, rows_lack, twins_cache
from .state import (
    CACHED,
    CALL,
    CANON,
    CGEN,
    CHILD,
    CLOCK,
    COMMITTED,
    FIRST,
    GEN,
    HITS,
    LENGTH,
    LOOKUPS,
    MISSING,
    NHASH,
    NPAGES,
    PARENT,
    PAST,
    PAST_PAGES,
    POLICY,
    PRIORITY,
    REQUESTS,
    SEQ_DOMAIN,
    SEQ_PRIORITY,
    SEQ_TURN,
    SHARES,
    SHARING,
    STAMP,
    STATE,
    TAIL,
    TURN,
    state_at,
)


@kernel(internal=True)
def tokens_check(s, tokens):
    """Whether all tokens are >= 0; leaves the first other one in meta[MISSING]. O(n)."""
    signs = np.int32(0)
    for i in range(tokens.size):
        signs |= tokens[i]
    if signs >= 0:
        return True
    for i in range(tokens.size):
        if tokens[i] < 0:
            s.meta[MISSING] = tokens[i]
            break
    return False


@kernel(internal=True)
def _guesses_follow(page, tok, guess, parent, tokens, pages):
    """Fill `pages` from the front while each guess holds the next tokens; return how many. O(n).

    Such a hit needs no hash: with equal tokens and an equal parent the hash is equal too.
    """
    size = tok.shape[1]
    n = 0
    while n < pages.size and guess >= 0:
        row, held, asked = page[guess], tok[guess], tokens[n * size : (n + 1) * size]
        different = np.int32((row[STATE] != CACHED) | (row[PARENT] != parent))
        for i in range(size):
            different |= held[i] ^ asked[i]
        if different != 0:
            break
        pages[n] = guess
        parent = guess
        guess = np.int64(row[CHILD])
        n += 1
    return n


@kernel(internal=True)
def chain_match(s, domain, tokens, pages):
    """Fill `pages` with the longest cached prefix of full pages; return how many. O(n_tokens)."""
    size = s.tok.shape[1]
    parent, guess = -2 - domain, s.dom[domain, FIRST]
    n = 0
    while True:
        n += _guesses_follow(s.page, s.tok, guess, parent, tokens[n * size :], pages[n:])
        if n == pages.size:
            break
        h0, h1, parent = chain_start(s, domain)
        if n > 0:
            parent = np.int64(pages[n - 1])
            h0, h1 = hash_get(s, parent)
        part = tokens[n * size : (n + 1) * size]
        h0, h1 = chain_step(s, h0, h1, part)
        found = prefix_find(s, h0, h1, parent, part)
        if found == ABSENT:
            break
        pages[n] = found
        parent, guess = found, np.int64(s.page[found, CHILD])
        n += 1
    return n


@kernel(internal=True)
def _recall(s, row, tokens, hits):
    """Set SEQ_TURN, and PAST of path-lrfu, as eviction_policy.py says. O(n_tokens missed)."""
    size = s.tok.shape[1]
    h0, h1, _ = chain_start(s, s.seq[row, SEQ_DOMAIN])
    if hits > 0:
        last = np.int64(blocks_get(s, row)[hits - 1])
        h0, h1 = hash_get(s, last)
        s.seq[row, SEQ_TURN] = s.page[last, TURN] + 1
    if s.meta[POLICY] != PATH_LRFU:
        return
    for j in range(hits, tokens.size // size):
        h0, h1 = chain_step(s, h0, h1, tokens[j * size : (j + 1) * size])
        weight, turn = history_find(s, h1)
        if weight > 0:
            s.seq[row, PAST] = weight
            s.seq[row, PAST_PAGES] = j + 1
            s.seq[row, SEQ_TURN] = turn + 1


@kernel(internal=True)
def _attach_match(s, row, tokens):
    """Take the cached prefix into the block table; return the number of pages still to take."""
    size = s.tok.shape[1]
    blocks = blocks_get(s, row)
    hits = 0
    if s.meta[SHARING] != 0:
        hits = chain_match(s, s.seq[row, SEQ_DOMAIN], tokens, blocks[: tokens.size // size])
        _recall(s, row, tokens, hits)
    for j in range(hits):
        page_acquire(s, np.int64(blocks[j]))
    s.seq[row, NPAGES] = hits
    return (tokens.size + size - 1) // size - hits


@kernel(internal=True)
def _attach_fill(s, row, tokens):
    """Second half of an attach: touch the hits, take the other pages, store the tokens."""
    size = s.tok.shape[1]
    domain = s.seq[row, SEQ_DOMAIN]
    blocks = blocks_get(s, row)
    hits = s.seq[row, NPAGES]
    s.meta[CLOCK] += 1
    s.meta[REQUESTS] += 1
    parent = -2 - domain
    for j in range(hits):
        page = np.int64(blocks[j])
        s.page[page, PRIORITY] = max(s.page[page, PRIORITY], s.seq[row, SEQ_PRIORITY])
        key_update(s, page, TOUCHED, s.seq[row, SEQ_TURN], 0)
        child_guess(s, parent, page)
        parent = page
    n_pages = (tokens.size + size - 1) // size
    make_room(s, domain, n_pages - hits)
    for j in range(hits, n_pages):
        page = page_take(s, domain)
        blocks[j] = page
        part = tokens[j * size : min((j + 1) * size, tokens.size)]
        for i in range(part.size):
            s.tok[page, i] = part[i]
    s.hot[row, LENGTH] = tokens.size
    s.hot[row, COMMITTED] = hits * size
    s.seq[row, NPAGES] = n_pages
    s.seq[row, NHASH] = hits
    if n_pages > 0:
        s.hot[row, TAIL] = blocks[n_pages - 1]
    if hits > 0:
        s.seq[row, CANON] = parent
        s.seq[row, CGEN] = s.page[parent, GEN]
    s.meta[LOOKUPS] += tokens.size
    s.meta[HITS] += hits * size
    s.meta[SHARES] += hits
    return hits * size


@kernel(internal=True)
def _attach_plan(s, seq_ids, tokens, indptr):
    """Why the sequences cannot be attached, before pages are looked at; OK else. O(tokens)."""
    n, size = seq_ids.size, s.tok.shape[1]
    entries = 0
    for i in range(n):
        s.meta[MISSING] = seq_ids[i]
        if seq_ids[i] < 0:
            return BAD_ID
        if table_find(s.ids, seq_ids[i]) != ABSENT:
            return PRESENT
        entries += 1 << chunk_class((indptr[i + 1] - indptr[i] + size - 1) // size)
    if not tokens_check(s, tokens):
        return BAD_TOKEN
    if rows_lack(s, n):
        return GROW_SEQUENCES
    return GROW if pool_lacks(s, entries, 0) else OK


@kernel
def kv_attach_many(handle, seq_ids, tokens, indptr, domains, priorities, hits):
    """Attach n sequences, all or none; hits int64[n] = tokens found cached. O(tokens).

    Sequence i has tokens[indptr[i]:indptr[i + 1]] in domain domains[i]. No two of one call share
    pages that neither has committed. INVALID: an id stands twice.
    """
    s = state_at(handle)
    n, size = seq_ids.size, s.tok.shape[1]
    status = _attach_plan(s, seq_ids, tokens, indptr)
    if status != OK:
        return status
    rows = np.empty(n, np.int64)
    need = np.empty(n, np.int64)
    taken = 0
    for i in range(n):
        if table_find(s.ids, seq_ids[i]) != ABSENT:
            s.meta[MISSING] = seq_ids[i]
            status = INVALID
            break
        part = tokens[indptr[i] : indptr[i + 1]]
        n_pages = (part.size + size - 1) // size
        rows[i] = row_take(s, seq_ids[i], domains[i], priorities[i], n_pages)
        need[i] = _attach_match(s, rows[i], part)
        taken += 1
    if status == OK:
        missing = rooms_missing(s, domains, need)
        if missing > 0:
            s.meta[MISSING] = missing
            status = FULL
    if status != OK:
        for i in range(taken - 1, -1, -1):
            pages_drop(s, rows[i], 0)
            row_give(s, rows[i])
        return status
    for i in range(n):
        hits[i] = _attach_fill(s, rows[i], tokens[indptr[i] : indptr[i + 1]])
    return OK


@kernel(internal=True)
def pages_release(s, row, keep):
    """pages_drop with the policy's hook. O(pages log pages)."""
    blocks = blocks_get(s, row)
    for j in range(keep, s.seq[row, NPAGES]):
        if s.page[blocks[j], STATE] == CACHED:
            key_update(s, np.int64(blocks[j]), RELEASED, 0, 0)
    pages_drop(s, row, keep)


@kernel
def kv_detach_many(handle, seq_ids):
    """Detach sequences, all or none. INVALID: an id stands twice. O(pages log pages)."""
    s = state_at(handle)
    s.meta[CALL] += 1
    for i in range(seq_ids.size):
        row = row_find(s, seq_ids[i])
        if row == ABSENT:
            return ABSENT
        if s.hot[row, STAMP] == s.meta[CALL]:
            s.meta[MISSING] = seq_ids[i]
            return INVALID
        s.hot[row, STAMP] = s.meta[CALL]
    for i in range(seq_ids.size):
        row = table_find(s.ids, seq_ids[i])
        s.meta[CLOCK] += 1
        twins_cache(s, row)
        pages_release(s, row, 0)
        row_give(s, row)
    return OK


@kernel
def kv_match(handle, domain, tokens, pages):
    """chain_match on the state, 0 for an ABSENT domain, or BAD_TOKEN. O(n_tokens)."""
    s = state_at(handle)
    if not tokens_check(s, tokens):
        return BAD_TOKEN
    if s.meta[SHARING] == 0 or domain == ABSENT:
        return 0
    return chain_match(s, domain, tokens, pages)
