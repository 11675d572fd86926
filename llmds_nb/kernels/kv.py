"""Sequences of a KV cache: attach, append, commit, write, fork, truncate, detach (kv_state.py).

Every function here that can be refused first plans (finds the rows, counts pages, copies and table
entries), and changes the cache only when all of it fits. Entry points, called from Python, take
the arrays flat, since a tuple costs more at that door; inside, the state is one KVState.

Statuses: OK; FULL (pages lack, meta[MISSING] says how many); GROW (the pool is too
small for meta[MISSING] more entries: the object grows it and calls again); ABSENT and PRESENT
(the sequence in meta[MISSING]); INVALID as each function says.
"""

import numpy as np

from .._jit import kernel
from .eviction import (
    PATH_LRFU,
    RELEASED,
    TOUCHED,
    domain_heap_fill,
    key_update,
    leaf_raise,
    leaf_rekey,
)
from .hashtable import table_find, table_remove, table_set
from .kv_chunks import chunk_class, chunk_give, chunk_regrow, chunk_take, pool_lacks
from .kv_history import history_find
from .kv_pages import (
    chain_start,
    chain_step,
    evict_many,
    leaf_evict,
    make_room,
    moves_clear,
    page_acquire,
    page_cache,
    page_copy,
    page_drop,
    page_take,
    rooms_missing,
)
from .kv_state import (
    BLOCKS,
    CACHED,
    CALL,
    CANON,
    CGEN,
    CLASS,
    CLOCK,
    COMMITTED,
    DOMAIN,
    EVENTS,
    FREE_SEQ,
    GEN,
    HEAP,
    HEAP_CLASS,
    HITS,
    ID,
    LENGTH,
    LOOKUPS,
    MISSING,
    N_HEAP,
    N_SEQS,
    NHASH,
    NPAGES,
    OWNED,
    PAST,
    PAST_PAGES,
    PLAN,
    POLICY,
    PRIORITY,
    PRIVATE,
    QPOS,
    QUOTA,
    REF,
    REQUESTS,
    SEQ_DOMAIN,
    SEQ_PRIORITY,
    SEQ_TURN,
    SEQS,
    SHARES,
    SHARING,
    STAMP,
    STATE,
    TAIL,
    TURN,
    TWINS,
    KVState,
)
from .prefix import hash_get, prefix_find
from .status import ABSENT, FULL, INVALID, OK, PRESENT

GROW = -5


# ---- rows and block tables ---------------------------------------------------------------------


@kernel(internal=True)
def _blocks(s, row):
    """The block table of a sequence, as far as its chunk reaches."""
    offset = s.seq[row, BLOCKS]
    return s.pool[offset : offset + (1 << s.seq[row, CLASS])]


@kernel(internal=True)
def _chunk_need(s, row, n_pages):
    """Pool entries that a block table of `n_pages` takes beyond what the row has. O(1)."""
    if n_pages <= (1 << s.seq[row, CLASS]):
        return 0
    return 1 << chunk_class(n_pages)


@kernel(internal=True)
def _blocks_grow(s, row, n_pages):
    """Let the block table hold `n_pages`. O(n_pages), amortised O(1) per page."""
    size_class = s.seq[row, CLASS]
    if n_pages > (1 << size_class):
        used = s.seq[row, NPAGES]
        s.seq[row, BLOCKS] = chunk_regrow(s, s.seq[row, BLOCKS], size_class, used, n_pages)
        s.seq[row, CLASS] = chunk_class(n_pages)


@kernel(internal=True)
def _row_take(s, seq_id, domain, priority, n_pages):
    """A fresh row with a block table for n_pages; not yet findable by its id. O(1)."""
    row = s.meta[FREE_SEQ]
    s.meta[FREE_SEQ] = s.seq[row, LENGTH]
    size_class = chunk_class(n_pages)
    for column in range(s.seq.shape[1]):
        s.seq[row, column] = 0
    s.seq[row, ID] = seq_id
    s.seq[row, BLOCKS] = chunk_take(s, size_class)
    s.seq[row, CLASS] = size_class
    s.seq[row, TAIL] = ABSENT
    s.seq[row, SEQ_DOMAIN] = domain
    s.seq[row, SEQ_PRIORITY] = priority
    s.seq[row, CANON] = ABSENT
    s.seq[row, CGEN] = ABSENT
    s.dom[domain, SEQS] += 1
    s.meta[N_SEQS] += 1
    return row


@kernel(internal=True)
def _row_give(s, row):
    """Return a row whose pages were dropped. O(1)."""
    chunk_give(s, s.seq[row, BLOCKS], s.seq[row, CLASS])
    s.dom[s.seq[row, SEQ_DOMAIN], SEQS] -= 1
    s.seq[row, ID] = ABSENT
    s.seq[row, LENGTH] = s.meta[FREE_SEQ]
    s.meta[FREE_SEQ] = row
    s.meta[N_SEQS] -= 1


@kernel(internal=True)
def seq_row(s, seq_id):
    """Row of a sequence, or ABSENT with its id in meta[MISSING]. O(1) expected."""
    row = table_find(s.ids, seq_id)
    if row == ABSENT:
        s.meta[MISSING] = seq_id
    return row


# ---- caching committed pages -------------------------------------------------------------------


@kernel(internal=True)
def _cache_pages(s, row, full):
    """Enter the first `full` pages, all committed, or find their twins. O(T) per new page."""
    if s.meta[SHARING] == 0 or full == 0:
        return
    start, canon = s.seq[row, NHASH], s.seq[row, CANON]
    if start >= full:
        return
    if start > 0 and (
        s.seq[row, CGEN] == ABSENT
        or s.page[canon, STATE] != CACHED
        or s.page[canon, GEN] != s.seq[row, CGEN]
    ):
        start = 0  # the twin was evicted or is unknown: look all up again
    domain = s.seq[row, SEQ_DOMAIN]
    blocks = _blocks(s, row)
    h0, h1, parent = chain_start(s, domain)
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
        if twin == ABSENT:
            past = s.seq[row, PAST] if j < s.seq[row, PAST_PAGES] else 0
            turn, priority = s.seq[row, SEQ_TURN], s.seq[row, SEQ_PRIORITY]
            page_cache(s, page, h0, h1, parent, turn, priority, past)
            parent = page
        else:
            s.seq[row, TWINS] = 1
            leaf_raise(s, twin, s.seq[row, SEQ_PRIORITY])  # it stays in place of this copy
            parent = twin
    s.seq[row, NHASH] = full
    s.seq[row, CANON] = parent
    s.seq[row, CGEN] = s.page[parent, GEN]


@kernel(internal=True)
def seq_commit(s, row, n_tokens):
    """The K/V of the first n_tokens is computed: full pages up to there become shareable."""
    if n_tokens > s.seq[row, COMMITTED]:
        s.seq[row, COMMITTED] = n_tokens
        _cache_pages(s, row, n_tokens // s.tok.shape[1])


# ---- attach and detach -------------------------------------------------------------------------


@kernel(internal=True)
def chain_match(s, domain, tokens, pages):
    """Fill `pages` with the longest cached prefix of full pages; return how many. O(n_tokens)."""
    size = s.tok.shape[1]
    h0, h1, parent = chain_start(s, domain)
    n = 0
    while n < pages.size:
        part = tokens[n * size : (n + 1) * size]
        h0, h1 = chain_step(s, h0, h1, part)
        page = prefix_find(s, h0, h1, parent, part)
        if page == ABSENT:
            break
        pages[n] = page
        parent = page
        n += 1
    return n


@kernel(internal=True)
def _recall(s, row, tokens, hits):
    """Set SEQ_TURN, and PAST of path-lrfu, as kernels/eviction.py says. O(n_tokens missed)."""
    size = s.tok.shape[1]
    h0, h1, _ = chain_start(s, s.seq[row, SEQ_DOMAIN])
    if hits > 0:
        last = np.int64(_blocks(s, row)[hits - 1])
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
    blocks = _blocks(s, row)
    hits = 0
    if s.meta[SHARING] != 0:
        full = tokens.size // s.tok.shape[1]
        hits = chain_match(s, s.seq[row, SEQ_DOMAIN], tokens, blocks[:full])
        _recall(s, row, tokens, hits)
    for j in range(hits):
        page_acquire(s, np.int64(blocks[j]))
    s.seq[row, NPAGES] = hits
    return (tokens.size + s.tok.shape[1] - 1) // s.tok.shape[1] - hits


@kernel(internal=True)
def _attach_fill(s, row, tokens):
    """Second half of an attach: touch the hits, take the other pages, store the tokens."""
    size = s.tok.shape[1]
    blocks = _blocks(s, row)
    hits = s.seq[row, NPAGES]
    s.meta[CLOCK] += 1
    s.meta[REQUESTS] += 1
    for j in range(hits):
        page = np.int64(blocks[j])
        s.page[page, PRIORITY] = max(s.page[page, PRIORITY], s.seq[row, SEQ_PRIORITY])
        key_update(s, page, TOUCHED, s.seq[row, SEQ_TURN], 0)
    n_pages = (tokens.size + size - 1) // size
    make_room(s, s.seq[row, SEQ_DOMAIN], n_pages - hits)
    for j in range(hits, n_pages):
        page = page_take(s, s.seq[row, SEQ_DOMAIN])
        blocks[j] = page
        part = tokens[j * size : min((j + 1) * size, tokens.size)]
        for i in range(part.size):
            s.tok[page, i] = part[i]
    s.seq[row, LENGTH] = tokens.size
    s.seq[row, COMMITTED] = hits * size
    s.seq[row, NPAGES] = n_pages
    s.seq[row, NHASH] = hits
    if n_pages > 0:
        s.seq[row, TAIL] = blocks[n_pages - 1]
    if hits > 0:
        s.seq[row, CANON] = blocks[hits - 1]
        s.seq[row, CGEN] = s.page[blocks[hits - 1], GEN]
    s.meta[LOOKUPS] += tokens.size
    s.meta[HITS] += hits * size
    s.meta[SHARES] += hits
    table_set(s.ids, s.seq[row, ID], row)
    return hits * size


@kernel
def kv_attach_many(
    page, tok, pool, seq, ids, dom, meta,
    seq_ids, tokens, indptr, domains, priorities, hits,
):  # fmt: skip
    """Attach n sequences, all or none; hits int64[n] = tokens found cached. O(tokens).

    Sequence i has tokens[indptr[i]:indptr[i + 1]] in domain domains[i]. No two of one call share
    pages that neither has committed. The object keeps n rows of `seq` and of `ids` free.
    """
    s = KVState(page, tok, pool, seq, ids, dom, meta)
    n, size = seq_ids.size, tok.shape[1]
    entries = 0
    for i in range(n):
        if table_find(s.ids, seq_ids[i]) != ABSENT:
            s.meta[MISSING] = seq_ids[i]
            return PRESENT
        entries += 1 << chunk_class((indptr[i + 1] - indptr[i] + size - 1) // size)
    if pool_lacks(s, entries, 0):
        return GROW
    rows = np.empty(n, np.int64)
    need = np.empty(n, np.int64)
    for i in range(n):
        part = tokens[indptr[i] : indptr[i + 1]]
        rows[i] = _row_take(
            s, seq_ids[i], domains[i], priorities[i], (part.size + size - 1) // size
        )
        need[i] = _attach_match(s, rows[i], part)
    missing = rooms_missing(s, domains, need)
    if missing > 0:
        for i in range(n - 1, -1, -1):
            _drop_pages(s, rows[i], 0, False)
            _row_give(s, rows[i])
        s.meta[MISSING] = missing
        return FULL
    for i in range(n):
        hits[i] = _attach_fill(s, rows[i], tokens[indptr[i] : indptr[i + 1]])
    return OK


@kernel(internal=True)
def _drop_pages(s, row, keep, used):
    """Drop all pages but the first `keep`, last first; `used` unless the attach is taken back."""
    blocks = _blocks(s, row)
    for j in range(s.seq[row, NPAGES] - 1, keep - 1, -1):
        page = np.int64(blocks[j])
        if used and s.page[page, STATE] == CACHED:
            key_update(s, page, RELEASED, 0, 0)
        page_drop(s, page)
    s.seq[row, NPAGES] = keep


@kernel
def kv_detach_many(
    page, tok, pool, seq, ids, dom, meta, seq_ids
):  # fmt: skip
    """Detach sequences, all or none (ABSENT); distinct ids. O(pages log pages)."""
    s = KVState(page, tok, pool, seq, ids, dom, meta)
    for i in range(seq_ids.size):
        if seq_row(s, seq_ids[i]) == ABSENT:
            return ABSENT
    for i in range(seq_ids.size):
        row = table_remove(s.ids, seq_ids[i])
        s.meta[CLOCK] += 1
        if s.seq[row, TWINS] != 0:  # keep what is cached nowhere else by now
            s.seq[row, NHASH] = 0
            _cache_pages(s, row, s.seq[row, COMMITTED] // tok.shape[1])
        _drop_pages(s, row, 0, True)
        _row_give(s, row)
    return OK


# ---- append ------------------------------------------------------------------------------------


@kernel(internal=True)
def _tail_plan(s, row):
    """1 if the next token needs a copy of the tail page first; lets go of a private one."""
    if s.seq[row, LENGTH] % s.tok.shape[1] == 0:
        return 0
    tail = s.seq[row, TAIL]
    if s.page[tail, STATE] == CACHED:
        return 1
    if s.page[tail, REF] > 1:
        # Let go now, so that the last of several sharers in one batch keeps the page.
        s.page[tail, REF] -= 1
        return 1
    return 0


@kernel(internal=True)
def _tail_unplan(s, row):
    """Take a planned copy back."""
    tail = s.seq[row, TAIL]
    if s.page[tail, STATE] == PRIVATE:
        s.page[tail, REF] += 1


@kernel(internal=True)
def _tail_copy(s, row):
    """Replace the tail page by a private copy of its used part. O(T)."""
    tail = s.seq[row, TAIL]
    copy = page_copy(s, tail, s.seq[row, LENGTH] % s.tok.shape[1])
    if s.page[tail, STATE] == CACHED:
        page_drop(s, tail)  # a private tail was let go by the plan
    _blocks(s, row)[s.seq[row, NPAGES] - 1] = copy
    s.seq[row, TAIL] = copy


@kernel(internal=True)
def _append_fill(s, row, tokens, slots_out):
    """Store tokens behind the last one and give their slots; pages were made room for. O(n)."""
    size = s.tok.shape[1]
    length = s.seq[row, LENGTH]
    for i in range(tokens.size):
        offset = (length + i) % size
        if offset == 0:
            n_pages = s.seq[row, NPAGES]
            page = page_take(s, s.seq[row, SEQ_DOMAIN])
            _blocks(s, row)[n_pages] = page
            s.seq[row, NPAGES] = n_pages + 1
            s.seq[row, TAIL] = page
        tail = s.seq[row, TAIL]
        s.tok[tail, offset] = tokens[i]
        slots_out[i] = tail * size + offset
    s.seq[row, LENGTH] = length + tokens.size


@kernel
def kv_append_csr(
    page, tok, pool, seq, ids, dom, meta,
    seq_ids, tokens, indptr, slots_out,
):  # fmt: skip
    """Append tokens[indptr[i]:indptr[i + 1]] to sequence i, all or none; slots int64[n_tokens].

    What stood before counts as committed. INVALID: a sequence stands twice. O(1) per token.
    """
    s = KVState(page, tok, pool, seq, ids, dom, meta)
    n, size = seq_ids.size, tok.shape[1]
    rows = np.empty(n, np.int64)
    domains = np.empty(n, np.int64)
    need = np.empty(n, np.int64)
    s.meta[CALL] += 1
    total, copies, entries, status, planned = 0, 0, 0, OK, 0
    for i in range(n):
        row = seq_row(s, seq_ids[i])
        if row == ABSENT:
            status = ABSENT
            break
        if s.seq[row, STAMP] == s.meta[CALL]:
            s.meta[MISSING] = seq_ids[i]
            status = INVALID
            break
        s.seq[row, STAMP] = s.meta[CALL]
        rows[i] = row
        domains[i] = s.seq[row, SEQ_DOMAIN]
        n_tokens = indptr[i + 1] - indptr[i]
        n_pages = (s.seq[row, LENGTH] + n_tokens + size - 1) // size
        copy = _tail_plan(s, row) if n_tokens > 0 else 0
        planned = i + 1
        s.seq[row, PLAN] = copy
        need[i] = copy + n_pages - s.seq[row, NPAGES]
        total += need[i]
        copies += copy
        entries += _chunk_need(s, row, n_pages)
    if status == OK and (entries > 0 or copies > 0) and pool_lacks(s, entries, copies):
        status = GROW
    if status == OK and total > 0:
        missing = rooms_missing(s, domains, need)
        if missing > 0:
            s.meta[MISSING] = missing
            status = FULL
    if status != OK:
        for i in range(planned):
            if s.seq[rows[i], PLAN] != 0:
                _tail_unplan(s, rows[i])
        return status
    # Room first, then commits: a commit can hold a cached twin that the plan counted as evictable.
    if total > 0:
        for i in range(n):
            row = rows[i]
            if need[i] > 0:
                make_room(s, domains[i], need[i])
                _blocks_grow(s, row, s.seq[row, NPAGES] + need[i])
                if s.seq[row, PLAN] != 0:
                    _tail_copy(s, row)
            _append_fill(
                s, row, tokens[indptr[i] : indptr[i + 1]], slots_out[indptr[i] : indptr[i + 1]]
            )
    else:
        for i in range(n):
            _append_fill(
                s, rows[i], tokens[indptr[i] : indptr[i + 1]], slots_out[indptr[i] : indptr[i + 1]]
            )
    for i in range(n):
        if indptr[i + 1] > indptr[i]:
            seq_commit(s, rows[i], s.seq[rows[i], LENGTH] - (indptr[i + 1] - indptr[i]))
    return OK


@kernel
def kv_commit(
    page, tok, pool, seq, ids, dom, meta, seq_id, n_tokens
):  # fmt: skip
    """seq_commit by id. ABSENT, or INVALID if longer than the sequence. O(n_tokens new)."""
    s = KVState(page, tok, pool, seq, ids, dom, meta)
    row = seq_row(s, seq_id)
    if row == ABSENT:
        return ABSENT
    if n_tokens > s.seq[row, LENGTH]:
        s.meta[MISSING] = s.seq[row, LENGTH]
        return INVALID
    seq_commit(s, row, n_tokens)
    return OK


# ---- write, fork, truncate ---------------------------------------------------------------------


@kernel
def kv_write(
    page, tok, pool, seq, ids, dom, meta, seq_id, start, out
):  # fmt: skip
    """Slots int64[n] of tokens start .. start + n to write to, copying pages that others hold.

    INVALID if one lies in a cached page; meta[MISSING] is then the last such position + 1. O(n).
    """
    s = KVState(page, tok, pool, seq, ids, dom, meta)
    row = seq_row(s, seq_id)
    if row == ABSENT:
        return ABSENT
    if out.size == 0:
        return OK
    size = tok.shape[1]
    blocks = _blocks(s, row)
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
            blocks[j] = page_copy(s, shared, min(size, s.seq[row, LENGTH] - j * size))
            page_drop(s, shared)
    s.seq[row, TAIL] = blocks[s.seq[row, NPAGES] - 1]
    _fill_slots(s, row, start, out)
    return OK


@kernel(internal=True)
def _fill_slots(s, row, start, out):
    size = s.tok.shape[1]
    blocks = _blocks(s, row)
    for i in range(out.size):
        out[i] = np.int64(blocks[(start + i) // size]) * size + (start + i) % size


@kernel
def kv_fork(
    page, tok, pool, seq, ids, dom, meta, seq_id, new_id
):  # fmt: skip
    """A second sequence on the same pages. ABSENT, PRESENT or GROW. O(pages)."""
    s = KVState(page, tok, pool, seq, ids, dom, meta)
    row = seq_row(s, seq_id)
    if row == ABSENT:
        return ABSENT
    if table_find(s.ids, new_id) != ABSENT:
        s.meta[MISSING] = new_id
        return PRESENT
    n = s.seq[row, NPAGES]
    if pool_lacks(s, 1 << chunk_class(n), 0):
        return GROW
    new = _row_take(s, new_id, s.seq[row, SEQ_DOMAIN], s.seq[row, SEQ_PRIORITY], n)
    blocks, new_blocks = s.seq[new, BLOCKS], s.seq[new, CLASS]
    for column in range(s.seq.shape[1]):
        s.seq[new, column] = s.seq[row, column]
    s.seq[new, ID], s.seq[new, BLOCKS], s.seq[new, CLASS] = new_id, blocks, new_blocks
    source, target = _blocks(s, row), _blocks(s, new)
    for j in range(n):
        target[j] = source[j]
        s.page[source[j], REF] += 1  # held already: by the parent sequence
    table_set(s.ids, new_id, new)
    return OK


@kernel
def kv_truncate(
    page, tok, pool, seq, ids, dom, meta, seq_id, n_tokens
):  # fmt: skip
    """Keep the first n_tokens. ABSENT, or INVALID if longer than the sequence. O(pages dropped)."""
    s = KVState(page, tok, pool, seq, ids, dom, meta)
    row = seq_row(s, seq_id)
    if row == ABSENT:
        return ABSENT
    if n_tokens > s.seq[row, LENGTH]:
        s.meta[MISSING] = s.seq[row, LENGTH]
        return INVALID
    size = tok.shape[1]
    keep = (n_tokens + size - 1) // size
    if s.seq[row, TWINS] != 0:  # as at detach: what is cached nowhere else stays cached
        s.seq[row, NHASH] = 0
        _cache_pages(s, row, s.seq[row, COMMITTED] // size)
    _drop_pages(s, row, keep, True)
    s.seq[row, LENGTH] = n_tokens
    s.seq[row, COMMITTED] = min(s.seq[row, COMMITTED], n_tokens)
    s.seq[row, PAST_PAGES] = min(s.seq[row, PAST_PAGES], n_tokens // size)
    blocks = _blocks(s, row)
    s.seq[row, TAIL] = blocks[keep - 1] if keep > 0 else ABSENT
    n_hash = min(s.seq[row, NHASH], n_tokens // size)
    if n_hash < s.seq[row, NHASH]:
        s.seq[row, NHASH] = n_hash
        s.seq[row, CGEN] = ABSENT
        if n_hash > 0 and s.page[blocks[n_hash - 1], STATE] == CACHED:
            s.seq[row, CANON] = blocks[n_hash - 1]
            s.seq[row, CGEN] = s.page[blocks[n_hash - 1], GEN]
    return OK


# ---- the rest ----------------------------------------------------------------------------------


@kernel
def kv_match(
    page, tok, pool, seq, ids, dom, meta, domain, tokens, pages
):  # fmt: skip
    """chain_match on the state. O(n_tokens)."""
    s = KVState(page, tok, pool, seq, ids, dom, meta)
    if s.meta[SHARING] == 0:
        return 0
    return chain_match(s, domain, tokens, pages)


@kernel
def kv_pin(
    page, tok, pool, seq, ids, dom, meta, pages, by
):  # fmt: skip
    """Hold (by = 1) or let go (by = -1) cached pages int32[n], parents first. O(n log P)."""
    s = KVState(page, tok, pool, seq, ids, dom, meta)
    if by > 0:
        for i in range(pages.size):
            page_acquire(s, np.int64(pages[i]))
    else:
        for i in range(pages.size - 1, -1, -1):
            page_drop(s, np.int64(pages[i]))


@kernel
def kv_evict(
    page, tok, pool, seq, ids, dom, meta, n
):  # fmt: skip
    """evict_many on the state. O(n log P)."""
    s = KVState(page, tok, pool, seq, ids, dom, meta)
    return evict_many(s, n)


@kernel
def kv_moves_clear(
    page, tok, pool, seq, ids, dom, meta
):  # fmt: skip
    """moves_clear on the state. O(number of copies)."""
    s = KVState(page, tok, pool, seq, ids, dom, meta)
    moves_clear(s)


@kernel
def kv_rekey(
    page, tok, pool, seq, ids, dom, meta, pages, keys
):  # fmt: skip
    """leaf_rekey for pages int64[n] with keys int64[n]; clears their EVENTS. O(n log P)."""
    s = KVState(page, tok, pool, seq, ids, dom, meta)
    for i in range(pages.size):
        s.page[pages[i], EVENTS] = 0
        if s.page[pages[i], STATE] == CACHED:
            leaf_rekey(s, pages[i], keys[i])


@kernel
def kv_quota(
    page, tok, pool, seq, ids, dom, meta, domain, quota
):  # fmt: skip
    """Set the quota of a domain (-1 = none) and evict its own pages above it. GROW. O(P)."""
    s = KVState(page, tok, pool, seq, ids, dom, meta)
    entries = max(quota, s.dom[domain, OWNED])  # its evictable leaves can never be more
    size_class = chunk_class(entries)
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
            leaf_evict(s, np.int64(s.pool[s.dom[domain, HEAP]]))
    return OK
