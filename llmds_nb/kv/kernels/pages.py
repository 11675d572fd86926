"""Pages of a KV cache: taken, dropped, copied, cached and evicted (kernels/state.py)."""

import numpy as np
from numba import int64, void

from ..._core.jit import kernel
from ...primitives.status import ABSENT
from . import state as s
from .events import REMOVED, STORED, event_put
from .eviction_heap import became_evictable, became_held, is_held, leaf_add, leaf_drop, leaf_lowest
from .eviction_policy import INSERTED, key_update, leaf_to_ghost
from .prefix_table import hash_set, prefix_hash, prefix_insert, prefix_remove


@kernel(internal=True, borrow=True)
def page_take(kv, domain):
    """Take a free page, private with one reference; pages_reserve has made it free. O(1)."""
    page = kv.meta[s.FREE_PAGE]
    kv.meta[s.FREE_PAGE] = kv.page[page, s.PARENT]
    kv.meta[s.N_FREE] -= 1
    kv.page[page, s.STATE] = s.PRIVATE
    kv.page[page, s.REF] = 1
    kv.page[page, s.DOMAIN] = domain
    kv.domain[domain, s.OWNED] += 1
    return page


@kernel(internal=True, borrow=True)
def _page_free(kv, page):
    kv.page[page, s.STATE] = s.FREE
    kv.domain[kv.page[page, s.DOMAIN], s.OWNED] -= 1
    kv.page[page, s.PARENT] = kv.meta[s.FREE_PAGE]
    kv.meta[s.FREE_PAGE] = page
    kv.meta[s.N_FREE] += 1


@kernel(internal=True, borrow=True)
def _pending_source(kv, i):
    return np.int64(kv.arena[kv.meta[s.PENDING_COPIES] + 2 * i])


@kernel(internal=True, borrow=True)
def _pending_cancel(kv, page):
    """Remove the pending copy that fills `page`; return its source, to be settled. O(1)."""
    i = np.int64(kv.page[page, s.PENDING]) - 1
    kv.page[page, s.PENDING] = 0
    source = _pending_source(kv, i)
    last = kv.meta[s.N_PENDING] - 1
    kv.meta[s.N_PENDING] = last
    here, there = kv.meta[s.PENDING_COPIES] + 2 * i, kv.meta[s.PENDING_COPIES] + 2 * last
    if i != last:
        kv.arena[here], kv.arena[here + 1] = kv.arena[there], kv.arena[there + 1]
        kv.page[kv.arena[here + 1], s.PENDING] = i + 1
    kv.page[source, s.PENDING] += 1
    return source


@kernel(internal=True, borrow=True)
def _settle_source(kv, page):
    """As page_settle, for the source of a removed copy, which no copy fills. O(log n)."""
    if kv.page[page, s.STATE] == s.CACHED:
        if not is_held(kv, page):
            became_evictable(kv, page)
    elif (kv.page[page, s.REF] == 0) & (kv.page[page, s.PENDING] == 0):
        _page_free(kv, page)


@kernel(internal=True, borrow=True)
def page_release(kv, page):
    """Free a page without references, and the pending copy that fills it. O(log n)."""
    if kv.page[page, s.PENDING] > 0:
        _settle_source(kv, _pending_cancel(kv, page))
    _page_free(kv, page)


@kernel(internal=True, borrow=True)
def page_settle(kv, page):
    """Free a page that lost its last reference, or make it evictable if cached. O(log n)."""
    if kv.page[page, s.STATE] == s.CACHED:
        if not is_held(kv, page):
            became_evictable(kv, page)
    elif (kv.page[page, s.REF] == 0) & (kv.page[page, s.PENDING] >= 0):
        page_release(kv, page)


@kernel(internal=True, borrow=True)
def page_acquire(kv, page):
    """Add a reference to a cached page. O(log n)."""
    was_held = is_held(kv, page)
    kv.page[page, s.REF] += 1
    if not was_held:
        became_held(kv, page)


@kernel(separate=void(s.KV, int64), borrow=True)
def page_drop(kv, page):
    """Drop a reference. O(log n)."""
    kv.page[page, s.REF] -= 1
    page_settle(kv, page)


@kernel(borrow=True)
def kv_pending_clear(handle):
    """All pending copies were fetched: release their sources. O(number of copies)."""
    kv = s.state_at(handle)
    n = kv.meta[s.N_PENDING]
    kv.meta[s.N_PENDING] = 0
    for i in range(n):
        kv.page[kv.arena[kv.meta[s.PENDING_COPIES] + 2 * i + 1], s.PENDING] = 0
    for i in range(n):
        source = _pending_source(kv, i)
        kv.page[source, s.PENDING] += 1
        _settle_source(kv, source)


@kernel(internal=True, borrow=True)
def page_copy(kv, page, n_tokens):
    """A private copy of the first `n_tokens` of `page`; the copy of the K/V becomes pending. O(T).

    The caller has reserved the page and called arena_lacks, and drops its reference to `page`.
    """
    copy = page_take(kv, np.int64(kv.page[page, s.DOMAIN]))
    for i in range(n_tokens):
        kv.tokens[copy, i] = kv.tokens[page, i]
    source = page
    if kv.page[page, s.PENDING] > 0:  # its own contents are still those of another page
        source = _pending_source(kv, np.int64(kv.page[page, s.PENDING]) - 1)
    n = kv.meta[s.N_PENDING]
    kv.arena[kv.meta[s.PENDING_COPIES] + 2 * n] = source
    kv.arena[kv.meta[s.PENDING_COPIES] + 2 * n + 1] = copy
    kv.meta[s.N_PENDING] = n + 1
    kv.page[copy, s.PENDING] = n + 1
    kv.page[source, s.PENDING] -= 1
    kv.meta[s.COPIES] += 1
    return copy


@kernel(internal=True, borrow=True)
def generation_advance(kv, page):
    """Count that a page stopped being cached; at the end of the count forget all that was noted."""
    if kv.page[page, s.GENERATION] == s.INT32_MAX:
        for seq in range(kv.seq_cold.shape[0]):
            kv.seq_cold[seq, s.CANONICAL_GENERATION] = ABSENT
        kv.page[page, s.GENERATION] = -1
    kv.page[page, s.GENERATION] += 1


@kernel(separate=void(s.KV, int64), borrow=True)
def leaf_evict(kv, page):
    """Evict one evictable leaf. O(log n)."""
    leaf_drop(kv, page)
    leaf_to_ghost(kv, page)
    kv.meta[s.N_EVICTABLE] -= 1
    kv.domain[kv.page[page, s.DOMAIN], s.EVICTABLE] -= 1
    kv.meta[s.N_CACHED] -= 1
    kv.meta[s.EVICTIONS] += 1
    prefix_remove(kv, page)
    if kv.events.shape[0] > 0:
        event_put(kv, REMOVED, page)
    generation_advance(kv, page)
    parent = np.int64(kv.page[page, s.PARENT])
    page_release(kv, page)
    if parent >= 0:
        kv.page[parent, s.N_CHILDREN] -= 1
        if kv.page[parent, s.N_CHILDREN] == 0 and not is_held(kv, parent):
            leaf_add(kv, parent)


@kernel(internal=True, borrow=True)
def evict_many(kv, n):
    """Evict up to n pages, lowest key first, leaves only; return how many. O(n log P)."""
    done = 0
    while done < n and kv.meta[s.N_LEAVES] > 0:
        leaf_evict(kv, leaf_lowest(kv, 0))
        done += 1
    return done


@kernel(internal=True, borrow=True)
def domain_missing(kv, domain, need):
    """Pages by which `need` more exceed a domain's quota after evicting all that it can. O(1)."""
    quota = kv.domain[domain, s.QUOTA]
    if quota < 0 or need == 0:  # a quota below what is in use refuses new pages only
        return 0
    return max(0, kv.domain[domain, s.OWNED] + need - quota - kv.domain[domain, s.EVICTABLE])


@kernel(internal=True, borrow=True)
def pages_reserve(kv, domain, need):
    """Evict until `need` pages are free and within quota; batch_pages_missing was 0 for them."""
    if kv.domain[domain, s.QUOTA] >= 0 and need > 0:
        while kv.domain[domain, s.OWNED] + need > kv.domain[domain, s.QUOTA]:
            leaf_evict(kv, leaf_lowest(kv, kv.domain[domain, s.HEAP]))
    evict_many(kv, need - kv.meta[s.N_FREE])


@kernel(internal=True, borrow=True)
def batch_pages_missing(kv, domains, need):
    """The largest shortage, of the pool or a domain, for need[i] pages in domains[i]. O(n)."""
    total, n = 0, need.size
    for i in range(n):
        total += need[i]
        kv.domain[domains[i], s.NEEDED] += need[i]
    missing = max(0, total - kv.meta[s.N_FREE] - kv.meta[s.N_EVICTABLE])
    for i in range(n):
        missing = max(missing, domain_missing(kv, domains[i], kv.domain[domains[i], s.NEEDED]))
        kv.domain[domains[i], s.NEEDED] = 0
    return missing


@kernel(internal=True, borrow=True)
def chain_start(kv, domain):
    """Hash, as two words, and parent of the first page of a chain. O(1)."""
    row = kv.domain[domain]
    return np.uint64(row[s.ROOT0]), np.uint64(row[s.ROOT1]), -2 - domain


@kernel(internal=True, borrow=True)
def chain_step(kv, h0, h1, tokens):
    """Hash of the next page. O(T)."""
    mask = np.uint64(kv.meta[s.HASH_MASK])
    h0, h1 = prefix_hash(kv.meta[s.SECRET : s.SECRET + 4], h0, h1, tokens)
    return h0 & mask, h1 & mask


@kernel(internal=True, borrow=True)
def last_child_set(kv, parent, page):
    """Guess `page` to be the child of `parent` that a request wants next. O(1)."""
    if parent >= 0:
        kv.page[parent, s.LAST_CHILD] = page
    else:
        kv.domain[-2 - parent, s.LAST_ROOT_CHILD] = page


@kernel(internal=True, borrow=True)
def page_cache(kv, page, h0, h1, parent, turn, priority, prior):
    """Cache a full, committed, private page as child of `parent`. O(log n), O(DEPTH) at worst.

    turn, prior: as for key_update.
    """
    kv.page[page, s.STATE] = s.CACHED
    kv.page[page, s.PARENT] = parent
    kv.page[page, s.LAST_CHILD] = ABSENT
    kv.page[page, s.N_CHILDREN] = 0
    kv.page[page, s.N_HELD_CHILDREN] = 0
    kv.page[page, s.PRIORITY] = priority
    kv.page[page, s.TURN] = turn
    kv.page[page, s.USES] = 0
    kv.page[page, s.EVENTS] = 0
    kv.page[page, s.DEPTH] = 0
    kv.page[page, s.HEAP_POS] = ABSENT
    kv.page[page, s.DOMAIN_HEAP_POS] = ABSENT
    hash_set(kv, page, h0, h1)
    prefix_insert(kv, page)
    kv.meta[s.N_CACHED] += 1
    last_child_set(kv, parent, page)
    if parent >= 0:
        kv.page[page, s.DEPTH] = kv.page[parent, s.DEPTH] + 1
        kv.page[parent, s.N_CHILDREN] += 1
        if kv.page[parent, s.HEAP_POS] != ABSENT:
            leaf_drop(kv, parent)
        was_held = is_held(kv, parent)
        kv.page[parent, s.N_HELD_CHILDREN] += 1
        if not was_held:
            became_held(kv, parent)
    key_update(kv, page, INSERTED, turn, prior)
    if kv.events.shape[0] > 0:
        event_put(kv, STORED, page)
