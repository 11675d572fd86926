"""Reads a whole KVCache: its sizes and counts, and the assertion of its invariants."""

from typing import Any, NamedTuple

import numpy as np

from .._core.typing import Int32s
from ..primitives.hash_table import table_find_many, table_pairs
from ..primitives.status import ABSENT
from .kernels import events, state as s
from .kernels.attach import kv_chain_fault
from .kernels.eviction_heap import ENTRY
from .kernels.ghost_entries import TAGS, WAYS
from .pins import Pins
from .salts import check_salt
from .state import CacheState

# The fields of KVCacheStats that are in `meta`, by the same names.
_NOW = ("n_free", "n_cached", "n_evictable", "n_sequences")
_SO_FAR = ("lookups", "hits", "shares", "copies", "evictions")


class KVCacheStats(NamedTuple):
    """Sizes and counts of a KVCache; pages unless said otherwise."""

    n_pages: int
    n_free: int
    n_used: int  # held by sequences, pins or pending copies
    n_cached: int  # findable by prefix, held or not
    n_evictable: int
    n_pinned: int
    n_shared: int  # with more than one reference
    n_sequences: int
    n_tokens: int  # tokens of all live sequences
    lookups: int  # prompt tokens attached so far
    hits: int  # of them found cached: prefill saved
    hit_ratio: float  # hits / lookups
    shares: int  # cached pages taken instead of filled ones, so far
    copies: int  # pages copied on write, so far
    evictions: int  # so far
    saved: int  # pages that the live sequences would need beyond those they hold, without sharing
    fragmentation: float  # share of the token places in the sequences' own pages that is unused


class SaltStats(NamedTuple):
    """Sizes of one salt in a KVCache; pages unless said otherwise.

    They depend on the calls for this salt, and on what others evict of it, alone: a tenant may see
    its own. What a prompt saved, `attach` returns.
    """

    quota: int | None  # most pages it may own
    n_owned: int  # held or cached
    n_used: int  # held by its sequences, pins or pending copies
    n_cached: int  # findable by prefix, held or not
    n_evictable: int
    n_pinned: int
    n_shared: int  # with more than one reference
    n_sequences: int
    n_tokens: int  # tokens of its live sequences


def stats(state: CacheState, pins: Pins, salt: Any) -> KVCacheStats | SaltStats:
    """See `KVCache.stats`. O(n_pages)."""
    salt = None if salt is None else check_salt(salt)
    with state.lock:
        state.ready()
        return _of_all(state, pins) if salt is None else _of_salt(state, pins, salt)


def _of_salt(state, pins, salt):
    domain = state.domains.get(salt)
    if domain is None:
        return SaltStats(None, *[0] * (len(SaltStats._fields) - 1))
    kv, row = state.arrays, state.arrays.domain[domain]
    own = (kv.page[:, s.STATE] != s.FREE) & (kv.page[:, s.DOMAIN] == domain)
    page, pinned = kv.page[own], np.unique(pins.all_pages())
    hot, cold, _ = _live_sequences(kv)
    quota = int(row[s.QUOTA])
    return SaltStats(
        quota=None if quota < 0 else quota,
        n_owned=int(row[s.OWNED]),
        n_used=int(((page[:, s.REF] > 0) | (page[:, s.PENDING] < 0)).sum()),
        n_cached=int((page[:, s.STATE] == s.CACHED).sum()),
        n_evictable=int(row[s.EVICTABLE]),
        n_pinned=int(own[pinned].sum()),
        n_shared=int((page[:, s.REF] > 1).sum()),
        n_sequences=int(row[s.SEQUENCES]),
        n_tokens=int(hot[cold[:, s.SEQ_DOMAIN] == domain, s.LENGTH].sum()),
    )


def _of_all(state, pins):
    kv = state.arrays
    ref, page_size = kv.page[:, s.REF], state.settings.page_size
    used = (kv.page[:, s.STATE] != s.FREE) & ((ref > 0) | (kv.page[:, s.PENDING] < 0))
    hot, cold, blocks = _live_sequences(kv)
    occurrences = int(cold[:, s.N_PAGES].sum())
    own = len(np.unique(np.concatenate([np.zeros(0, np.int32), *blocks])))
    # Only last pages can be part-filled, and a part-filled page is never cached.
    places, n_tokens = occurrences * page_size, int(hot[:, s.LENGTH].sum())
    counts = {name: int(kv.meta[getattr(s, name.upper())]) for name in _NOW + _SO_FAR}
    return KVCacheStats(
        n_pages=len(kv.page),
        n_used=int(used.sum()),
        n_pinned=len(np.unique(pins.all_pages())),
        n_shared=int((ref > 1).sum()),
        n_tokens=n_tokens,
        hit_ratio=counts["hits"] / counts["lookups"] if counts["lookups"] else 0.0,
        saved=occurrences - own,
        fragmentation=1 - n_tokens / places if places else 0.0,
        **counts,
    )


def _live_sequences(kv):
    """The rows of the sequences, in `seq_hot` and in `seq_cold`, and the block table of each."""
    live = kv.seq_hot[:, s.ID] != ABSENT
    hot, cold = kv.seq_hot[live], kv.seq_cold[live]
    starts, sizes = hot[:, s.BLOCK_TABLE], cold[:, s.N_PAGES]
    return hot, cold, [kv.arena[i:][:n] for i, n in zip(starts, sizes, strict=True)]


def check(state: CacheState, pinned: Int32s) -> None:
    """Assert the invariants of kernels/state.py; `pinned`: the pages of all pins. O(P + in use)."""
    kv = state.arrays
    assert kv.meta[s.ARENA_TOP] <= len(kv.arena), "ARENA_TOP"
    hot, live, blocks = _live_sequences(kv)
    _check_counts(kv, live, blocks, pinned)
    _check_cached(kv, state.handle.address)
    _check_heaps(kv)
    _check_sequences(kv, hot, live, blocks)
    _check_ghosts(kv)
    _check_keys(state, live)
    _check_log(state)


def _check_counts(kv, live, blocks, pinned):
    n_pages = len(kv.page)
    ref, move, state = kv.page[:, s.REF], kv.page[:, s.PENDING], kv.page[:, s.STATE]
    moves = kv.arena[kv.meta[s.PENDING_COPIES] :][: 2 * kv.meta[s.N_PENDING]].reshape(-1, 2)
    held_by = np.concatenate([np.zeros(0, np.int32), *blocks, pinned])
    assert ((held_by >= 0) & (held_by < n_pages)).all(), "a page number is out of range"
    assert np.array_equal(np.bincount(held_by, minlength=n_pages), ref), "REF"
    wanted = -np.bincount(moves[:, 0], minlength=n_pages)
    assert not wanted[moves[:, 1]].any(), "a source waits for a copy itself"
    wanted[moves[:, 1]] = np.arange(1, len(moves) + 1)
    assert len(set(moves[:, 1])) == len(moves), "a page is filled by two copies"
    assert np.array_equal(wanted, move), "PENDING"
    free, page = [], kv.meta[s.FREE_PAGE]
    while page != ABSENT and len(free) <= n_pages:
        free.append(page)
        page = kv.page[page, s.PARENT]
    assert len(free) == kv.meta[s.N_FREE], "N_FREE"
    assert np.array_equal(np.sort(free), np.flatnonzero(state == s.FREE)), "chain of free pages"
    assert not (ref[free].any() or move[free].any()), "a free page is referred to"
    private = state == s.PRIVATE
    assert ((ref > 0) | (move < 0))[private].all(), "a private page without a holder"
    owned = np.bincount(kv.page[state != s.FREE, s.DOMAIN], minlength=len(kv.domain))
    assert np.array_equal(owned, kv.domain[:, s.OWNED]), "OWNED"
    seqs = np.bincount(live[:, s.SEQ_DOMAIN], minlength=len(kv.domain))
    assert np.array_equal(seqs, kv.domain[:, s.SEQUENCES]), "SEQUENCES"
    assert len(live) == kv.meta[s.N_SEQUENCES], "N_SEQUENCES"


def _held(kv):
    page = kv.page
    held = (page[:, s.REF] > 0) | (page[:, s.PENDING] < 0) | (page[:, s.N_HELD_CHILDREN] > 0)
    return held & (page[:, s.STATE] == s.CACHED)


def _check_cached(kv, handle):
    cached = np.flatnonzero(kv.page[:, s.STATE] == s.CACHED)
    parent = kv.page[cached, s.PARENT]
    assert len(cached) == kv.meta[s.N_CACHED], "N_CACHED"
    roots = parent < 0
    assert np.array_equal(parent[roots], -2 - kv.page[cached[roots], s.DOMAIN]), "root of a domain"
    inner, above = cached[~roots], parent[~roots]
    assert (kv.page[above, s.STATE] == s.CACHED).all(), "a cached page has lost its parent"
    assert np.array_equal(kv.page[above, s.DOMAIN], kv.page[inner, s.DOMAIN]), "DOMAIN"
    assert np.array_equal(kv.page[above, s.DEPTH] + 1, kv.page[inner, s.DEPTH]), "DEPTH"
    n_pages = len(kv.page)
    children = np.bincount(above, minlength=n_pages)
    assert np.array_equal(children[cached], kv.page[cached, s.N_CHILDREN]), "N_CHILDREN"
    held = _held(kv)
    held_children = np.bincount(above[held[inner]], minlength=n_pages)
    same = np.array_equal(held_children[cached], kv.page[cached, s.N_HELD_CHILDREN])
    assert same, "N_HELD_CHILDREN"
    table = kv.arena[kv.meta[s.PREFIX_TABLE] :][: kv.meta[s.PREFIX_MASK] + 1]
    assert np.array_equal(np.sort(table[table > 0]) - 1, cached), "prefix table"
    guesses = np.append(kv.page[:, s.LAST_CHILD], kv.domain[:, s.LAST_ROOT_CHILD])
    assert ((guesses >= ABSENT) & (guesses < n_pages)).all(), "LAST_CHILD or LAST_ROOT_CHILD"
    page = kv_chain_fault(handle)
    assert page == ABSENT, f"the hash of page {page} is wrong, or the page is not found by it"


def _check_heaps(kv):
    held = _held(kv)
    evictable = (kv.page[:, s.STATE] == s.CACHED) & ~held
    assert evictable.sum() == kv.meta[s.N_EVICTABLE], "N_EVICTABLE"
    by_domain = np.bincount(kv.page[evictable, s.DOMAIN], minlength=len(kv.domain))
    assert np.array_equal(by_domain, kv.domain[:, s.EVICTABLE]), "EVICTABLE"
    leaves = evictable & (kv.page[:, s.N_CHILDREN] == 0)
    _check_heap(kv, 0, kv.meta[s.N_LEAVES], s.HEAP_POS, leaves)
    limited = kv.domain[:, s.QUOTA] >= 0
    assert (kv.domain[~limited, s.N_HEAP] == 0).all(), "N_HEAP"
    for domain in np.flatnonzero(limited):
        row, own = kv.domain[domain], leaves & (kv.page[:, s.DOMAIN] == domain)
        _check_heap(kv, row[s.HEAP], row[s.N_HEAP], s.DOMAIN_HEAP_POS, own)


def _check_heap(kv, start, n, column, wanted):
    entries = kv.arena[start : start + ENTRY * n].reshape(n, ENTRY)
    heap = entries[:, 3]
    assert np.array_equal(np.sort(heap), np.flatnonzero(wanted)), "a heap lacks or has a leaf"
    assert np.array_equal(kv.page[heap, column], np.arange(n)), "place in a heap"
    assert np.array_equal(entries[:, :2], kv.page[heap, s.KEY : s.KEY + 2]), "key in a heap"
    assert np.array_equal(entries[:, 2], kv.page[heap, s.PRIORITY]), "priority in a heap"
    rank = entries[:, 2], entries[:, :2].copy().view("<i8")[:, 0], heap
    place = np.empty(n, np.int64)
    place[np.lexsort(rank[::-1])] = np.arange(n)
    later = np.arange(1, n)
    assert (place[(later - 1) >> 2] < place[later]).all(), "order of a heap"


def _check_sequences(kv, hot, live, blocks):
    size, ids = kv.tokens.shape[1], hot[:, s.ID].copy()
    assert len(table_pairs(kv.ids)) == len(live), "ids"
    order = kv.seq_hot[:, s.STEP_ORDER]
    assert ((order >= 0) & (order < len(kv.seq_cold))).all(), "STEP_ORDER"
    assert len(kv.seq_hot) == len(kv.seq_cold), "rows"

    def hold(good, what, ids=ids):
        assert good.all(), f"{what} of sequence {ids[~good][0]}"

    rows = np.empty(len(ids), np.int64)
    table_find_many(kv.ids, ids, rows)
    hold((rows >= 0) & (kv.seq_hot[rows, s.ID] == ids), "place in ids")
    length, n_pages = hot[:, s.LENGTH], live[:, s.N_PAGES]
    hold((n_pages == -(-length // size)) & (n_pages <= 1 << live[:, s.TABLE_CLASS]), "N_PAGES")
    chained, committed = live[:, s.N_CHAINED], hot[:, s.COMMITTED]
    unknown = live[:, s.FIRST_UNKNOWN]
    known = np.where(unknown > 0, unknown - 1, length)
    hold(
        (chained >= 0) & (chained * size <= np.minimum(committed, known)) & (committed <= length),
        "COMMITTED",
    )
    tail, used = hot[:, s.TAIL_PAGE], length % size
    last = np.array([pages[-1] if len(pages) else ABSENT for pages in blocks], np.int64)
    hold(tail == last, "TAIL_PAGE")
    free, outdated = hot[:, s.TAIL_FREE], live[:, s.OUTDATED] != 0
    own = (kv.page[tail, s.STATE] == s.PRIVATE) & (kv.page[tail, s.REF] == 1) & (used > 0)
    entered = (chained == known // size) | outdated | (kv.meta[s.SHARING] == 0)
    hold((free == 0) | ((free == size - used) & own & entered), "TAIL_FREE")

    pages: Int32s = np.concatenate([np.zeros(0, np.int32), *blocks])
    owner = np.repeat(np.arange(len(ids)), n_pages)
    place = np.arange(len(pages)) - np.repeat(np.cumsum(n_pages) - n_pages, n_pages)
    state, owners = kv.page[pages, s.STATE], ids[owner]
    assert len(np.unique(owner * len(kv.page) + pages)) == len(pages), "a page twice in a sequence"
    cached = state == s.CACHED
    hold(~(cached & outdated[owner]), "a cached page, though it is older than the reset,", owners)
    hold(state != s.FREE, "a free page", owners)
    hold(kv.page[pages, s.DOMAIN] == live[owner, s.SEQ_DOMAIN], "DOMAIN of a page", owners)
    places = place[:, None] * size + np.arange(size)
    is_unknown = (kv.tokens[pages] == s.UNKNOWN_TOKEN) & (places < length[owner, None])
    hold(~(cached & is_unknown.any(axis=1)), "a cached page with an unknown token", owners)
    first = np.full(len(ids), kv.tokens.size + 1)
    np.minimum.at(first, owner, np.where(is_unknown, places + 1, kv.tokens.size + 1).min(axis=1))
    hold(np.where(first > kv.tokens.size, 0, first) == unknown, "FIRST_UNKNOWN")
    # A cached page stands where the prefix that it is cached under ends.
    hold(~cached | (kv.page[pages, s.DEPTH] == place), "DEPTH of a page", owners)
    inner = np.flatnonzero(cached & (place > 0))
    before, above = pages[inner - 1], kv.page[pages[inner], s.PARENT]
    other = before != above  # a duplicate of it
    same = kv.tokens[before[other]] == kv.tokens[above[other]]
    hold(same.all(axis=1), "prefix", owners[inner[other]])


def _check_ghosts(kv):
    start, n = kv.meta[s.GHOSTS], kv.meta[s.GHOST_BUCKETS]
    records = kv.arena[start : start + 2 * WAYS * n].copy().view("<i8").reshape(n, WAYS)
    filled = records != 0
    assert (records >= 0).all(), "a ghost entry is negative"
    assert (filled[:, 1:] <= filled[:, :-1]).all(), "a bucket of ghost entries has a gap"
    for tags, full in zip(records & TAGS, filled, strict=True):
        assert len(set(tags[full])) == full.sum(), "two ghost entries of a bucket have one tag"


def _check_keys(state, live):
    kv, extras = state.arrays, state.extras
    tokens = kv.tokens[kv.page[:, s.STATE] != s.FREE]
    symbols = tokens[(tokens[:, 0] < 0) & (tokens[:, 0] != s.UNKNOWN_TOKEN), 0]
    assert all(-symbol in extras.symbols.values for symbol in symbols.tolist()), "a key is unknown"
    for number, stop in live[live[:, s.EXTRA] != 0][:, [s.EXTRA, s.EXTRA_STOP]].tolist():
        assert number in extras.ranges.values, "the ranges of a sequence are unknown"
        assert stop == max(end for _, end, _ in extras.ranges.values[number]), "EXTRA_STOP"


def _check_log(state):
    kinds = state.logged()[:, events.EVENT_KIND]
    assert np.isin(kinds, (events.STORED, events.REMOVED, events.CLEARED)).all(), "kind of an event"
    rows = state.logged()[kinds != events.CLEARED]
    assert np.isin(rows[:, events.EVENT_DOMAIN], [*state.domains.values()]).all(), "its salt"
    firsts = rows[rows[:, events.EVENT_KIND] == events.STORED, events.EVENT_TOKENS]
    symbols = firsts[firsts < 0].tolist()
    assert all(-symbol in state.extras.symbols.values for symbol in symbols), "its key"
