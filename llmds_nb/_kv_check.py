"""The invariants of kernels/kv_state.py, asserted over a whole KVCache."""

import numpy as np

from .kernels import kv_state as c
from .kernels.hashtable import table_find
from .kernels.kv_history import TAGS, WAYS
from .kernels.prefix import prefix_find
from .kernels.status import ABSENT


def check(state, pins) -> None:
    """Assert every invariant; `pins` are the arrays of pinned pages. O(P + pages in use)."""
    live = state.seq[state.seq[:, c.ID] != ABSENT]
    blocks = [state.pool[row[c.BLOCKS] : row[c.BLOCKS] + row[c.NPAGES]] for row in live]
    _check_counts(state, live, blocks, pins)
    _check_cached(state)
    _check_heaps(state)
    _check_sequences(state, live, blocks)
    _check_history(state)


def _check_counts(s, live, blocks, pins):
    n_pages = len(s.page)
    ref, hold, state = s.page[:, c.REF], s.page[:, c.HOLD], s.page[:, c.STATE]
    moves = s.pool[s.meta[c.MOVES] :][: 2 * s.meta[c.N_MOVES]].reshape(-1, 2)
    held_by = np.concatenate([np.zeros(0, np.int32), *blocks, *pins])
    assert ((held_by >= 0) & (held_by < n_pages)).all(), "a page number is out of range"
    assert np.array_equal(np.bincount(held_by, minlength=n_pages), ref), "REF"
    assert np.array_equal(np.bincount(moves[:, 0], minlength=n_pages), hold), "HOLD"
    free = s.pool[s.meta[c.STACK] :][: s.meta[c.N_FREE]]
    assert np.array_equal(np.sort(free), np.flatnonzero(state == c.FREE)), "stack of free pages"
    assert not (ref[free].any() or hold[free].any()), "a free page is referred to"
    private = state == c.PRIVATE
    assert ((ref > 0) | (hold > 0))[private].all(), "a private page without a holder"
    owned = np.bincount(s.page[state != c.FREE, c.DOMAIN], minlength=len(s.dom))
    assert np.array_equal(owned, s.dom[:, c.OWNED]), "OWNED"
    filled = moves[:, 1]
    assert len(set(filled)) == len(filled), "a page is filled by two copies"
    assert not set(filled) & set(moves[:, 0]), "a source waits for a copy itself"
    assert np.array_equal(np.flatnonzero(s.page[:, c.COPY]), np.sort(filled)), "COPY"
    assert np.array_equal(s.page[filled, c.COPY], np.arange(1, len(filled) + 1)), "COPY"
    seqs = np.bincount(live[:, c.SEQ_DOMAIN], minlength=len(s.dom))
    assert np.array_equal(seqs, s.dom[:, c.SEQS]), "SEQS"
    assert len(live) == s.meta[c.N_SEQS], "N_SEQS"


def _held(s):
    held = (s.page[:, c.REF] > 0) | (s.page[:, c.HOLD] > 0) | (s.page[:, c.NHELD] > 0)
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
    hashes = s.page[:, c.HASH : c.HASH + 4].copy().view("<u8")
    for page in cached:
        found = prefix_find(s, *hashes[page], s.page[page, c.PARENT], s.tok[page])
        assert found == page, f"page {page} is not found, or page {found} equals it"


def _check_heaps(s):
    held = _held(s)
    evictable = (s.page[:, c.STATE] == c.CACHED) & ~held
    assert evictable.sum() == s.meta[c.N_EVICTABLE], "N_EVICTABLE"
    by_domain = np.bincount(s.page[evictable, c.DOMAIN], minlength=len(s.dom))
    assert np.array_equal(by_domain, s.dom[:, c.EVICTABLE]), "EVICTABLE"
    leaves = evictable & (s.page[:, c.NCHILD] == 0)
    _check_heap(s, s.pool[: s.meta[c.N_LEAVES]], c.POS, leaves)
    limited = s.dom[:, c.QUOTA] >= 0
    assert (s.dom[~limited, c.N_HEAP] == 0).all(), "N_HEAP"
    for domain in np.flatnonzero(limited):
        start = s.dom[domain, c.HEAP]
        heap = s.pool[start : start + s.dom[domain, c.N_HEAP]]
        _check_heap(s, heap, c.QPOS, leaves & (s.page[:, c.DOMAIN] == domain))


def _check_heap(s, heap, column, wanted):
    assert np.array_equal(np.sort(heap), np.flatnonzero(wanted)), "a heap lacks or has a leaf"
    assert np.array_equal(s.page[heap, column], np.arange(len(heap))), "place in a heap"
    keys = s.page[heap, c.KEY : c.KEY + 2].view("<i8")[:, 0]
    order = list(zip(s.page[heap, c.PRIORITY], keys, heap, strict=True))
    for i in range(1, len(heap)):
        assert order[(i - 1) >> 2] < order[i], "order of a heap"


def _check_sequences(s, live, blocks):
    size = s.tok.shape[1]
    assert np.count_nonzero(s.ids[:, 1] != ABSENT) == len(live), "ids"
    for row, pages in zip(live, blocks, strict=True):
        name = f"sequence {row[c.ID]}"
        assert s.seq[table_find(s.ids, row[c.ID]), c.ID] == row[c.ID], name
        assert row[c.NPAGES] == -(-row[c.LENGTH] // size) <= 1 << row[c.CLASS], name
        assert 0 <= row[c.NHASH] * size <= row[c.COMMITTED] <= row[c.LENGTH], name
        assert row[c.TAIL] == (pages[-1] if len(pages) else ABSENT), name
        assert len(set(pages)) == len(pages), f"{name} names a page twice"
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
