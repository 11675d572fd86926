"""Rows of a KV cache's sequences: taking and giving them, block tables, caching what is committed.

What a kernel of the KV cache returns when it refuses, having changed nothing, with the number or id
it is about in meta[MISSING]:

    FULL        so many pages lack
    ABSENT      no sequence has this id
    PRESENT     a sequence has this id already
    INVALID     as the kernel says
    GROW        the pool needs so many more entries: the object makes them and calls again
    GROW_SEQUENCES   `hot`, `seq` and `ids` need room for so many more sequences, likewise
    BAD_ID      an id below 0
    BAD_TOKEN   a token below 0
    UNEVEN      arrays that go together differ in length
"""

import numpy as np

from ..._core.jit import kernel
from ...primitives.hash_table import table_find, table_remove, table_set
from ...primitives.status import ABSENT, INVALID
from .arena import chunk_class, chunk_give, chunk_regrow, chunk_take
from .eviction_heap import leaf_rekey
from .eviction_policy import key_get
from .pages import chain_start, chain_step, page_cache, page_drop
from .prefix_table import hash_get, prefix_find
from .state import (
    BLOCKS,
    CACHED,
    CANON,
    CGEN,
    CLASS,
    COMMITTED,
    FREE_SEQ,
    GEN,
    ID,
    LAST,
    LENGTH,
    MISSING,
    N_SEQS,
    NHASH,
    NPAGES,
    PAST,
    PAST_PAGES,
    PRIORITY,
    PRIVATE,
    REF,
    ROOM,
    SEQ_DOMAIN,
    SEQ_PRIORITY,
    SEQ_TURN,
    SEQS,
    SHARING,
    STATE,
    TAIL,
    TWINS,
)


@kernel(internal=True)
def blocks_get(s, row):
    """The block table of a sequence, as far as its chunk reaches."""
    offset = s.hot[row, BLOCKS]
    return s.pool[offset : offset + (1 << s.seq[row, CLASS])]


@kernel(internal=True)
def blocks_lack(s, row, n_pages):
    """Pool entries that a block table of `n_pages` takes beyond what the row has. O(1)."""
    if n_pages <= (1 << s.seq[row, CLASS]):
        return 0
    return 1 << chunk_class(n_pages)


@kernel(internal=True)
def blocks_grow(s, row, n_pages):
    """Let the block table hold `n_pages`. O(n_pages), amortised O(1) per page."""
    size_class = s.seq[row, CLASS]
    if n_pages > (1 << size_class):
        used = s.seq[row, NPAGES]
        s.hot[row, BLOCKS] = chunk_regrow(s, s.hot[row, BLOCKS], size_class, used, n_pages)
        s.seq[row, CLASS] = chunk_class(n_pages)


@kernel(internal=True)
def rows_lack(s, n):
    """Whether rows or `ids` must grow before n more sequences; leaves n in meta[MISSING]. O(1)."""
    wanted = s.meta[N_SEQS] + n
    if (wanted > s.seq.shape[0]) | (2 * wanted > s.ids.shape[0]):
        s.meta[MISSING] = n
        return True
    return False


@kernel(internal=True)
def row_take(s, seq_id, domain, priority, n_pages):
    """A fresh row with a block table for n_pages, findable by its id. O(1)."""
    row = s.meta[FREE_SEQ]
    s.meta[FREE_SEQ] = s.hot[row, LENGTH]
    size_class = chunk_class(n_pages)
    for column in range(s.seq.shape[1]):
        s.seq[row, column] = 0
    for column in range(LAST):
        s.hot[row, column] = 0
    s.hot[row, ID] = seq_id
    s.hot[row, BLOCKS] = chunk_take(s, size_class)
    s.seq[row, CLASS] = size_class
    s.hot[row, TAIL] = ABSENT
    s.seq[row, SEQ_DOMAIN] = domain
    s.seq[row, SEQ_PRIORITY] = priority
    s.seq[row, CANON] = ABSENT
    s.seq[row, CGEN] = ABSENT
    s.dom[domain, SEQS] += 1
    s.meta[N_SEQS] += 1
    table_set(s.ids, seq_id, row)
    return row


@kernel(internal=True)
def row_give(s, row):
    """Return a row whose pages were dropped. O(1)."""
    table_remove(s.ids, s.hot[row, ID])
    chunk_give(s, s.hot[row, BLOCKS], s.seq[row, CLASS])
    s.dom[s.seq[row, SEQ_DOMAIN], SEQS] -= 1
    s.hot[row, ID] = ABSENT
    s.hot[row, ROOM] = 0
    s.hot[row, LENGTH] = s.meta[FREE_SEQ]
    s.meta[FREE_SEQ] = row
    s.meta[N_SEQS] -= 1


@kernel(internal=True)
def row_find(s, seq_id):
    """Row of a sequence, or ABSENT with its id in meta[MISSING]. O(1) expected."""
    row = table_find(s.ids, seq_id)
    if row == ABSENT:
        s.meta[MISSING] = seq_id
    return row


@kernel(internal=True)
def row_find_long(s, seq_id, n_tokens):
    """As row_find; INVALID, with its length, for a sequence of fewer than n_tokens."""
    row = row_find(s, seq_id)
    if row >= 0 and s.hot[row, LENGTH] < n_tokens:
        s.meta[MISSING] = s.hot[row, LENGTH]
        return INVALID
    return row


@kernel(internal=True)
def pages_drop(s, row, keep):
    """Drop all pages of a sequence but the first `keep`, last first. O(pages log pages)."""
    blocks = blocks_get(s, row)
    for j in range(s.seq[row, NPAGES] - 1, keep - 1, -1):
        page_drop(s, np.int64(blocks[j]))
    s.seq[row, NPAGES] = keep


@kernel(internal=True)
def pages_cache(s, row, full):
    """Enter the first `full` pages, all committed, or find their twins. O(T) per new page."""
    if s.meta[SHARING] == 0 or s.seq[row, NHASH] >= full:
        return
    start, canon = s.seq[row, NHASH], s.seq[row, CANON]
    if start > 0 and (
        s.seq[row, CGEN] == ABSENT
        or s.page[canon, STATE] != CACHED
        or s.page[canon, GEN] != s.seq[row, CGEN]
    ):
        start = 0  # the twin was evicted or is unknown: look all up again
    blocks = blocks_get(s, row)
    h0, h1, parent = chain_start(s, s.seq[row, SEQ_DOMAIN])
    if start > 0:
        h0, h1 = hash_get(s, canon)
        parent = canon
    for j in range(start, full):
        page = np.int64(blocks[j])
        if s.page[page, STATE] == CACHED:
            h0, h1 = hash_get(s, page)
            parent = page
            continue
        h0, h1 = chain_step(s, h0, h1, s.tok[page])
        twin = prefix_find(s, h0, h1, parent, s.tok[page])
        priority = s.seq[row, SEQ_PRIORITY]
        if twin == ABSENT:
            past = s.seq[row, PAST] if j < s.seq[row, PAST_PAGES] else 0
            page_cache(s, page, h0, h1, parent, s.seq[row, SEQ_TURN], priority, past)
            parent = page
        else:
            s.seq[row, TWINS] = 1
            if s.page[twin, PRIORITY] < priority:  # it stays in place of this copy
                leaf_rekey(s, twin, priority, key_get(s, twin))
            parent = twin
    s.seq[row, NHASH] = full
    s.seq[row, CANON] = parent
    s.seq[row, CGEN] = s.page[parent, GEN]


@kernel(internal=True)
def twins_cache(s, row):
    """Before pages are dropped: enter those whose cached twin was evicted since. O(tokens)."""
    if s.seq[row, TWINS] != 0:
        s.seq[row, NHASH] = 0
        pages_cache(s, row, s.hot[row, COMMITTED] // s.tok.shape[1])


@kernel(internal=True)
def row_commit(s, row, n_tokens):
    """The K/V of the first n_tokens is computed: full pages up to there become shareable."""
    if n_tokens > s.hot[row, COMMITTED]:
        s.hot[row, COMMITTED] = n_tokens
        pages_cache(s, row, n_tokens // s.tok.shape[1])


@kernel(internal=True)
def room_set(s, row):
    """Set ROOM, whose meaning is in kernels/state.py. O(1)."""
    size = s.tok.shape[1]
    used, tail = s.hot[row, LENGTH] % size, s.hot[row, TAIL]
    entered = (s.meta[SHARING] == 0) | (s.seq[row, NHASH] == s.hot[row, LENGTH] // size)
    s.hot[row, ROOM] = 0
    if used > 0 and entered and s.page[tail, STATE] == PRIVATE and s.page[tail, REF] == 1:
        s.hot[row, ROOM] = size - used
