"""Sequences of a KV cache: their rows, their block tables, and the caching of committed pages.

A kernel of the KV cache that refuses a call returns a status (primitives/status.py), has changed
nothing, and leaves the number or id that it concerns in meta[MISSING]:

    FULL             how many pages are missing
    ABSENT           the id of which there is no sequence
    PRESENT          the id of which there is a sequence already
    REPEATED         the id that the call names twice
    INVALID          as the kernel's docstring says
    GROW             by how many entries the arena must grow before the call is repeated
    GROW_SEQUENCES   for how many sequences `seq_hot`, `seq_cold` and `ids` must grow, likewise
    BAD_ID           an id below 0
    BAD_TOKEN        a token below 0
    UNEVEN           arrays of one call differ in length; meta[MISSING] is not set
    UNKEYED          a new page may be touched by `extra`: the tokens must be given with its keys

A *row* is the index of a sequence in `seq_hot` and `seq_cold`; kernels call it `seq`.
"""

import numpy as np
from numba import int64, void

from ..._core.jit import kernel
from ...primitives.hash_table import table_find, table_row_remove, table_set
from ...primitives.status import ABSENT, INVALID
from . import state as s
from .arena import chunk_class, chunk_give, chunk_regrow, chunk_take
from .eviction_heap import leaf_rekey
from .eviction_policy import key_get
from .pages import chain_start, chain_step, page_cache, page_settle
from .prefix_table import hash_get, prefix_find


@kernel(internal=True)
def block_table_get(kv, seq):
    """The block table of a sequence, as far as its chunk reaches."""
    offset = kv.seq_hot[seq, s.BLOCK_TABLE]
    return kv.arena[offset : offset + (1 << kv.seq_cold[seq, s.TABLE_CLASS])]


@kernel(internal=True, borrow=True)
def block_table_grow(kv, seq, n_pages):
    """Grow the block table to hold `n_pages`. O(n_pages), amortised O(1) per page."""
    size_class = kv.seq_cold[seq, s.TABLE_CLASS]
    if n_pages > (1 << size_class):
        offset, used = kv.seq_hot[seq, s.BLOCK_TABLE], kv.seq_cold[seq, s.N_PAGES]
        kv.seq_hot[seq, s.BLOCK_TABLE] = chunk_regrow(kv, offset, size_class, used, n_pages)
        kv.seq_cold[seq, s.TABLE_CLASS] = chunk_class(n_pages)


@kernel(internal=True, borrow=True)
def sequences_lack(kv, n):
    """Whether arrays must grow for n more sequences; then meta[MISSING] = n. O(1)."""
    wanted = kv.meta[s.N_SEQUENCES] + n
    if (wanted > kv.seq_cold.shape[0]) | (2 * wanted > kv.ids.shape[0]):
        kv.meta[s.MISSING] = n
        return True
    return False


@kernel(internal=True, borrow=True)
def sequence_take(kv, seq_id, domain, priority, n_pages):
    """Row of a new sequence with an empty block table for n_pages. O(1)."""
    seq = kv.meta[s.FREE_SEQUENCE]
    kv.meta[s.FREE_SEQUENCE] = kv.seq_hot[seq, s.LENGTH]
    size_class = chunk_class(n_pages)
    for column in range(kv.seq_cold.shape[1]):
        kv.seq_cold[seq, column] = 0
    for column in range(s.STEP_ORDER):
        kv.seq_hot[seq, column] = 0
    kv.seq_hot[seq, s.ID] = seq_id
    kv.seq_hot[seq, s.BLOCK_TABLE] = chunk_take(kv, size_class)
    kv.seq_cold[seq, s.TABLE_CLASS] = size_class
    kv.seq_hot[seq, s.TAIL_PAGE] = ABSENT
    kv.seq_cold[seq, s.SEQ_DOMAIN] = domain
    kv.seq_cold[seq, s.SEQ_PRIORITY] = priority
    kv.seq_cold[seq, s.CANONICAL] = ABSENT
    kv.seq_cold[seq, s.CANONICAL_GENERATION] = ABSENT
    kv.domain[domain, s.SEQUENCES] += 1
    kv.meta[s.N_SEQUENCES] += 1
    table_set(kv.ids, seq_id, seq)
    return seq


@kernel(internal=True, borrow=True)
def sequence_give(kv, seq, row):
    """Free the row and the block table of a sequence without pages, in `row` of the ids. O(1)."""
    table_row_remove(kv.ids, row)
    chunk_give(kv, kv.seq_hot[seq, s.BLOCK_TABLE], kv.seq_cold[seq, s.TABLE_CLASS])
    kv.domain[kv.seq_cold[seq, s.SEQ_DOMAIN], s.SEQUENCES] -= 1
    kv.seq_hot[seq, s.ID] = ABSENT
    kv.seq_hot[seq, s.TAIL_FREE] = 0
    kv.seq_hot[seq, s.LENGTH] = kv.meta[s.FREE_SEQUENCE]
    kv.meta[s.FREE_SEQUENCE] = seq
    kv.meta[s.N_SEQUENCES] -= 1


@kernel(internal=True, borrow=True)
def sequence_find(kv, seq_id):
    """Row of a sequence, or ABSENT with its id in meta[MISSING]. O(1) expected."""
    seq = table_find(kv.ids, seq_id)
    if seq == ABSENT:
        kv.meta[s.MISSING] = seq_id
    return seq


@kernel(internal=True, borrow=True)
def sequence_find_long(kv, seq_id, n_tokens):
    """As sequence_find; INVALID, and its length, if that is less than n_tokens. O(1) expected."""
    seq = sequence_find(kv, seq_id)
    if seq >= 0 and kv.seq_hot[seq, s.LENGTH] < n_tokens:
        kv.meta[s.MISSING] = kv.seq_hot[seq, s.LENGTH]
        return INVALID
    return seq


@kernel(separate=void(s.KV, int64, int64), borrow=True)
def sequence_drop_pages(kv, seq, keep):
    """Drop all pages of a sequence but the first `keep`, last first. O(pages log pages)."""
    blocks = block_table_get(kv, seq)
    for j in range(kv.seq_cold[seq, s.N_PAGES] - 1, keep - 1, -1):
        page = np.int64(blocks[j])
        kv.page[page, s.REF] -= 1
        page_settle(kv, page)
    kv.seq_cold[seq, s.N_PAGES] = keep


@kernel(internal=True, borrow=True)
def canonical_is_valid(kv, seq):
    """Whether CANONICAL is known and was not evicted since. O(1)."""
    page, generation = kv.seq_cold[seq, s.CANONICAL], kv.seq_cold[seq, s.CANONICAL_GENERATION]
    if generation == ABSENT or kv.page[page, s.STATE] != s.CACHED:
        return False
    return kv.page[page, s.GENERATION] == generation


@kernel(internal=True, borrow=True)
def chain_cut(kv, seq, n_pages):
    """Forget what is known of the pages from `n_pages` on: N_CHAINED and CANONICAL. O(1)."""
    if n_pages >= kv.seq_cold[seq, s.N_CHAINED]:
        return
    kv.seq_cold[seq, s.N_CHAINED] = n_pages
    kv.seq_cold[seq, s.CANONICAL_GENERATION] = ABSENT
    last = np.int64(block_table_get(kv, seq)[max(n_pages - 1, 0)])
    if n_pages > 0 and kv.page[last, s.STATE] == s.CACHED:
        kv.seq_cold[seq, s.CANONICAL] = last
        kv.seq_cold[seq, s.CANONICAL_GENERATION] = kv.page[last, s.GENERATION]


@kernel(separate=void(s.KV, int64, int64), borrow=True)
def _pages_cache(kv, seq, full):
    """What sequence_cache_pages does if there is something to do."""
    start, last = kv.seq_cold[seq, s.N_CHAINED], kv.seq_cold[seq, s.CANONICAL]
    if start > 0 and not canonical_is_valid(kv, seq):
        start = 0  # look all of them up again
    blocks = block_table_get(kv, seq)
    h0, h1, parent = chain_start(kv, kv.seq_cold[seq, s.SEQ_DOMAIN])
    if start > 0:
        h0, h1 = hash_get(kv, last)
        parent = last
    for j in range(start, full):
        page = np.int64(blocks[j])
        if kv.page[page, s.STATE] == s.CACHED:
            h0, h1 = hash_get(kv, page)
            parent = page
            continue
        h0, h1 = chain_step(kv, h0, h1, kv.tokens[page])
        canonical = prefix_find(kv, h0, h1, parent, kv.tokens[page])
        priority = kv.seq_cold[seq, s.SEQ_PRIORITY]
        if canonical == ABSENT:
            prior = kv.seq_cold[seq, s.PRIOR_WEIGHT] if j < kv.seq_cold[seq, s.PRIOR_PAGES] else 0
            page_cache(kv, page, h0, h1, parent, kv.seq_cold[seq, s.SEQ_TURN], priority, prior)
            parent = page
        else:
            kv.seq_cold[seq, s.HAS_DUPLICATES] = 1
            if kv.page[canonical, s.PRIORITY] < priority:  # it outlives this duplicate
                leaf_rekey(kv, canonical, priority, key_get(kv, canonical))
            parent = canonical
    kv.seq_cold[seq, s.N_CHAINED] = full
    kv.seq_cold[seq, s.CANONICAL] = parent
    kv.seq_cold[seq, s.CANONICAL_GENERATION] = kv.page[parent, s.GENERATION]


@kernel(internal=True, borrow=True)
def sequence_cache_pages(kv, seq, full):
    """Cache the first `full` pages, all committed, or find their canonical pages.

    O(T) for each page beyond N_CHAINED.
    """
    chain = (kv.meta[s.SHARING] != 0) & (kv.seq_cold[seq, s.OUTDATED] == 0)
    if chain and kv.seq_cold[seq, s.N_CHAINED] < full:
        _pages_cache(kv, seq, full)


@kernel(internal=True, borrow=True)
def _known(kv, seq):
    """How many leading tokens of a sequence have known ids. O(1)."""
    first = kv.seq_cold[seq, s.FIRST_UNKNOWN]
    return kv.seq_hot[seq, s.LENGTH] if first == 0 else first - 1


@kernel(internal=True, borrow=True)
def committed_cache(kv, seq):
    """Cache the full pages whose tokens are committed and known. O(T) a page beyond N_CHAINED."""
    n = min(kv.seq_hot[seq, s.COMMITTED], _known(kv, seq))
    sequence_cache_pages(kv, seq, n // kv.tokens.shape[1])


@kernel(internal=True, borrow=True)
def duplicates_cache(kv, seq):
    """Before pages are dropped: cache those whose canonical page was evicted. O(tokens)."""
    if kv.seq_cold[seq, s.HAS_DUPLICATES] != 0:
        kv.seq_cold[seq, s.N_CHAINED] = 0
        committed_cache(kv, seq)


@kernel(internal=True, borrow=True)
def sequence_commit(kv, seq, n_tokens):
    """Note that the K/V of the first n_tokens is computed; cache their full pages, if known."""
    if n_tokens > kv.seq_hot[seq, s.COMMITTED]:
        kv.seq_hot[seq, s.COMMITTED] = n_tokens
        committed_cache(kv, seq)


@kernel(internal=True, borrow=True)
def tail_free_set(kv, seq):
    """Compute TAIL_FREE (kernels/state.py). O(1)."""
    size = kv.tokens.shape[1]
    used, tail = kv.seq_hot[seq, s.LENGTH] % size, kv.seq_hot[seq, s.TAIL_PAGE]
    n_full = _known(kv, seq) // size
    alone = (kv.meta[s.SHARING] == 0) | (kv.seq_cold[seq, s.OUTDATED] != 0)
    chained = alone | (kv.seq_cold[seq, s.N_CHAINED] == n_full)
    kv.seq_hot[seq, s.TAIL_FREE] = 0
    if used > 0 and chained and kv.page[tail, s.STATE] == s.PRIVATE and kv.page[tail, s.REF] == 1:
        kv.seq_hot[seq, s.TAIL_FREE] = size - used
