"""The invariants of kernels/state.py, asserted over a whole KVCache."""

import numpy as np

from ..primitives.hash_table import table_find
from ..primitives.status import ABSENT
from .kernels import state as c
from .kernels.eviction_heap import ENTRY
from .kernels.ghost_entries import TAGS, WAYS
from .kernels.prefix_table import prefix_find, prefix_hash


def check(state, pinned) -> None:
    """Assert every invariant; `pinned` are the pages of all pins. O(P + pages in use)."""
    used = state.hot[:, c.ID] != ABSENT
    hot, live = state.hot[used], state.seq[used]
    blocks = [
        state.pool[start:][:n] for start, n in zip(hot[:, c.BLOCKS], live[:, c.NPAGES], strict=True)
    ]
    _check_counts(state, live, blocks, pinned)
    _check_cached(state)
    _check_heaps(state)
    _check_sequences(state, hot, live, blocks)
    _check_history(state)


def _check_counts(s, live, blocks, pinned):
    n_pages = len(s.page)
    ref, move, state = s.page[:, c.REF], s.page[:, c.MOVE], s.page[:, c.STATE]
    moves = s.pool[s.meta[c.MOVES] :][: 2 * s.meta[c.N_MOVES]].reshape(-1, 2)
    held_by = np.concatenate([np.zeros(0, np.int32), *blocks, pinned])
    assert ((held_by >= 0) & (held_by < n_pages)).all(), "a page number is out of range"
    assert np.array_equal(np.bincount(held_by, minlength=n_pages), ref), "REF"
    wanted = -np.bincount(moves[:, 0], minlength=n_pages)
    assert not wanted[moves[:, 1]].any(), "a source waits for a copy itself"
    wanted[moves[:, 1]] = np.arange(1, len(moves) + 1)
    assert len(set(moves[:, 1])) == len(moves), "a page is filled by two copies"
    assert np.array_equal(wanted, move), "MOVE"
    free, page = [], s.meta[c.FREE_PAGE]
    while page != ABSENT and len(free) <= n_pages:
        free.append(page)
        page = s.page[page, c.PARENT]
    assert len(free) == s.meta[c.N_FREE], "N_FREE"
    assert np.array_equal(np.sort(free), np.flatnonzero(state == c.FREE)), "chain of free pages"
    assert not (ref[free].any() or move[free].any()), "a free page is referred to"
    private = state == c.PRIVATE
    assert ((ref > 0) | (move < 0))[private].all(), "a private page without a holder"
    owned = np.bincount(s.page[state != c.FREE, c.DOMAIN], minlength=len(s.dom))
    assert np.array_equal(owned, s.dom[:, c.OWNED]), "OWNED"
    seqs = np.bincount(live[:, c.SEQ_DOMAIN], minlength=len(s.dom))
    assert np.array_equal(seqs, s.dom[:, c.SEQS]), "SEQS"
    assert len(live) == s.meta[c.N_SEQS], "N_SEQS"


def _held(s):
    held = (s.page[:, c.REF] > 0) | (s.page[:, c.MOVE] < 0) | (s.page[:, c.NHELD] > 0)
    return held & (s.page[:, c.STATE] == c.CACHED)


def _check_cached(s):
    cached = np.flatnonzero(s.page[:, c.STATE] == c.CACHED)
    parent = s.page[cached, c.PARENT]
    assert len(cached) == s.meta[c.N_CACHED], "N_CACHED"
    roots = parent < 0
    assert np.array_equal(parent[roots], -2 - s.page[cached[roots], c.DOMAIN]), "root of a domain"
    inner, above = cached[~roots], parent[~roots]
    assert (s.page[above, c.STATE] == c.CACHED).all(), "a cached page has lost its parent"
    assert np.array_equal(s.page[above, c.DOMAIN], s.page[inner, c.DOMAIN]), "DOMAIN"
    assert np.array_equal(s.page[above, c.DEPTH] + 1, s.page[inner, c.DEPTH]), "DEPTH"
    n_pages = len(s.page)
    children = np.bincount(above, minlength=n_pages)
    assert np.array_equal(children[cached], s.page[cached, c.NCHILD]), "NCHILD"
    held = _held(s)
    held_children = np.bincount(above[held[inner]], minlength=n_pages)
    assert np.array_equal(held_children[cached], s.page[cached, c.NHELD]), "NHELD"
    table = s.pool[s.meta[c.TABLE] :][: s.meta[c.TABLE_MASK] + 1]
    assert np.array_equal(np.sort(table[table > 0]) - 1, cached), "prefix table"
    guesses = np.append(s.page[:, c.CHILD], s.dom[:, c.FIRST])
    assert ((guesses >= ABSENT) & (guesses < n_pages)).all(), "CHILD or FIRST"
    hashes = s.page[:, c.HASH : c.HASH + 4].copy().view("<u8")
    roots = s.dom[:, [c.ROOT0, c.ROOT1]].view("<u8")
    mask = s.meta[c.HASH_MASK : c.HASH_MASK + 1].view("<u8")[0]
    for page in cached:
        above = s.page[page, c.PARENT]
        start = hashes[above] if above >= 0 else roots[-2 - above]
        hash_ = [half & mask for half in prefix_hash(*start, s.tok[page])]
        assert hash_ == list(hashes[page]), f"hash of page {page}"
        found = prefix_find(s, *hashes[page], int(above), s.tok[page])
        assert found == page, f"page {page} is not found, or page {found} equals it"


def _check_heaps(s):
    held = _held(s)
    evictable = (s.page[:, c.STATE] == c.CACHED) & ~held
    assert evictable.sum() == s.meta[c.N_EVICTABLE], "N_EVICTABLE"
    by_domain = np.bincount(s.page[evictable, c.DOMAIN], minlength=len(s.dom))
    assert np.array_equal(by_domain, s.dom[:, c.EVICTABLE]), "EVICTABLE"
    leaves = evictable & (s.page[:, c.NCHILD] == 0)
    _check_heap(s, 0, s.meta[c.N_LEAVES], c.POS, leaves)
    limited = s.dom[:, c.QUOTA] >= 0
    assert (s.dom[~limited, c.N_HEAP] == 0).all(), "N_HEAP"
    for domain in np.flatnonzero(limited):
        own = leaves & (s.page[:, c.DOMAIN] == domain)
        _check_heap(s, s.dom[domain, c.HEAP], s.dom[domain, c.N_HEAP], c.QPOS, own)


def _check_heap(s, start, n, column, wanted):
    entries = s.pool[start : start + ENTRY * n].reshape(n, ENTRY)
    heap = entries[:, 3]
    assert np.array_equal(np.sort(heap), np.flatnonzero(wanted)), "a heap lacks or has a leaf"
    assert np.array_equal(s.page[heap, column], np.arange(n)), "place in a heap"
    assert np.array_equal(entries[:, :2], s.page[heap, c.KEY : c.KEY + 2]), "key in a heap"
    assert np.array_equal(entries[:, 2], s.page[heap, c.PRIORITY]), "priority in a heap"
    keys = entries[:, :2].copy().view("<i8")[:, 0]
    order = list(zip(entries[:, 2], keys, heap, strict=True))
    for i in range(1, n):
        assert order[(i - 1) >> 2] < order[i], "order of a heap"


def _check_sequences(s, hot, live, blocks):
    size = s.tok.shape[1]
    assert np.count_nonzero(s.ids[:, 1] != ABSENT) == len(live), "ids"
    assert ((s.hot[:, c.LAST] >= 0) & (s.hot[:, c.LAST] < len(s.seq))).all(), "LAST"
    assert len(s.hot) == len(s.seq), "rows"
    for first, row, pages in zip(hot, live, blocks, strict=True):
        name, length = f"sequence {first[c.ID]}", first[c.LENGTH]
        assert s.hot[table_find(s.ids, first[c.ID]), c.ID] == first[c.ID], name
        assert row[c.NPAGES] == -(-length // size) <= 1 << row[c.CLASS], name
        assert 0 <= row[c.NHASH] * size <= first[c.COMMITTED] <= length, name
        assert first[c.TAIL] == (pages[-1] if len(pages) else ABSENT), name
        assert len(set(pages)) == len(pages), f"{name} names a page twice"
        used = length % size
        assert first[c.ROOM] in (0, size - used), name
        if first[c.ROOM]:
            tail = s.page[first[c.TAIL]]
            assert used and tail[c.STATE] == c.PRIVATE and tail[c.REF] == 1, f"ROOM of {name}"
            entered = row[c.NHASH] == length // size
            assert entered or not s.meta[c.SHARING], f"ROOM of {name}"
        assert (s.page[pages, c.STATE] != c.FREE).all(), f"{name} names a free page"
        assert (s.page[pages, c.DOMAIN] == row[c.SEQ_DOMAIN]).all(), name


def _check_history(s):
    start, n = s.meta[c.HISTORY], s.meta[c.BUCKETS]
    records = s.pool[start : start + 2 * WAYS * n].copy().view("<i8").reshape(n, WAYS)
    filled = records != 0
    assert (records >= 0).all(), "a record of the history is negative"
    assert (filled[:, 1:] <= filled[:, :-1]).all(), "a bucket of the history has a gap"
    for tags, full in zip(records & TAGS, filled, strict=True):
        assert len(set(tags[full])) == full.sum(), "a tag stands twice in a bucket of the history"
