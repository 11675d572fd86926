"""Pages of a KV cache: taking, dropping, copying, caching, evicting (kernels/state.py)."""

import numpy as np

from ..._core.jit import kernel
from ...primitives.status import ABSENT
from .eviction_heap import became_evictable, became_held, is_held, leaf_add, leaf_drop, leaf_lowest
from .eviction_policy import INSERTED, key_update, leaf_remember
from .prefix_table import hash_set, prefix_hash, prefix_insert, prefix_remove
from .state import (
    CACHED,
    CHILD,
    COPIES,
    DEPTH,
    DOMAIN,
    EVENTS,
    EVICTABLE,
    EVICTIONS,
    FIRST,
    FREE,
    FREE_PAGE,
    GEN,
    HASH_MASK,
    HEAP,
    MOVE,
    MOVES,
    N_CACHED,
    N_EVICTABLE,
    N_FREE,
    N_LEAVES,
    N_MOVES,
    NCHILD,
    NEED,
    NHELD,
    OWNED,
    PARENT,
    POS,
    PRIORITY,
    PRIVATE,
    QPOS,
    QUOTA,
    REF,
    ROOT0,
    ROOT1,
    STATE,
    TURN,
    USES,
)


@kernel(internal=True)
def page_take(s, domain):
    """A free page as a private one with one reference; the caller has made room. O(1)."""
    page = s.meta[FREE_PAGE]
    s.meta[FREE_PAGE] = s.page[page, PARENT]
    s.meta[N_FREE] -= 1
    s.page[page, STATE] = PRIVATE
    s.page[page, REF] = 1
    s.page[page, DOMAIN] = domain
    s.dom[domain, OWNED] += 1
    return page


@kernel(internal=True)
def _push_free(s, page):
    s.page[page, STATE] = FREE
    s.dom[s.page[page, DOMAIN], OWNED] -= 1
    s.page[page, PARENT] = s.meta[FREE_PAGE]
    s.meta[FREE_PAGE] = page
    s.meta[N_FREE] += 1


@kernel(internal=True)
def _move_source(s, i):
    return np.int64(s.pool[s.meta[MOVES] + 2 * i])


@kernel(internal=True)
def _move_cancel(s, page):
    """Forget the pending copy that was to fill `page`; return its source, to be settled. O(1)."""
    i = np.int64(s.page[page, MOVE]) - 1
    s.page[page, MOVE] = 0
    source = _move_source(s, i)
    last = s.meta[N_MOVES] - 1
    s.meta[N_MOVES] = last
    here, there = s.meta[MOVES] + 2 * i, s.meta[MOVES] + 2 * last
    if i != last:
        s.pool[here], s.pool[here + 1] = s.pool[there], s.pool[there + 1]
        s.page[s.pool[here + 1], MOVE] = i + 1
    s.page[source, MOVE] += 1
    return source


@kernel(internal=True)
def _settle_source(s, page):
    """As page_settle, for the source of a copy that is no more: no copy fills it. O(log n)."""
    if s.page[page, STATE] == CACHED:
        if not is_held(s, page):
            became_evictable(s, page)
    elif (s.page[page, REF] == 0) & (s.page[page, MOVE] == 0):
        _push_free(s, page)


@kernel(internal=True)
def page_give_back(s, page):
    """Make a page free that nothing refers to any more. O(log n)."""
    if s.page[page, MOVE] > 0:
        _settle_source(s, _move_cancel(s, page))
    _push_free(s, page)


@kernel(internal=True)
def page_settle(s, page):
    """Free or make evictable a page that just lost a reference, if it was the last. O(log n)."""
    if s.page[page, STATE] == CACHED:
        if not is_held(s, page):
            became_evictable(s, page)
    elif (s.page[page, REF] == 0) & (s.page[page, MOVE] >= 0):
        page_give_back(s, page)


@kernel(internal=True)
def page_acquire(s, page):
    """One more reference to a cached page. O(log n)."""
    was_held = is_held(s, page)
    s.page[page, REF] += 1
    if not was_held:
        became_held(s, page)


@kernel(internal=True)
def page_drop(s, page):
    """One reference less. O(log n)."""
    s.page[page, REF] -= 1
    page_settle(s, page)


@kernel(internal=True)
def moves_clear(s):
    """All pending copies were fetched: release their sources. O(number of copies)."""
    n = s.meta[N_MOVES]
    s.meta[N_MOVES] = 0
    for i in range(n):
        s.page[s.pool[s.meta[MOVES] + 2 * i + 1], MOVE] = 0
    for i in range(n):
        source = _move_source(s, i)
        s.page[source, MOVE] += 1
        _settle_source(s, source)


@kernel(internal=True)
def page_copy(s, page, n_tokens):
    """A private copy of the first `n_tokens` of `page`; the K/V copy is left pending. O(T).

    The caller has made room for the page and the copy, and drops its reference to `page` itself.
    """
    copy = page_take(s, np.int64(s.page[page, DOMAIN]))
    for i in range(n_tokens):
        s.tok[copy, i] = s.tok[page, i]
    source = page
    if s.page[page, MOVE] > 0:  # its own contents are still elsewhere
        source = _move_source(s, np.int64(s.page[page, MOVE]) - 1)
    n = s.meta[N_MOVES]
    s.pool[s.meta[MOVES] + 2 * n] = source
    s.pool[s.meta[MOVES] + 2 * n + 1] = copy
    s.meta[N_MOVES] = n + 1
    s.page[copy, MOVE] = n + 1
    s.page[source, MOVE] -= 1
    s.meta[COPIES] += 1
    return copy


@kernel(internal=True)
def leaf_evict(s, page):
    """Evict one evictable leaf. O(log n)."""
    leaf_drop(s, page)
    leaf_remember(s, page)
    s.meta[N_EVICTABLE] -= 1
    s.dom[s.page[page, DOMAIN], EVICTABLE] -= 1
    s.meta[N_CACHED] -= 1
    s.meta[EVICTIONS] += 1
    prefix_remove(s, page)
    s.page[page, GEN] += 1
    parent = np.int64(s.page[page, PARENT])
    page_give_back(s, page)
    if parent >= 0:
        s.page[parent, NCHILD] -= 1
        if s.page[parent, NCHILD] == 0 and not is_held(s, parent):
            leaf_add(s, parent)


@kernel(internal=True)
def evict_many(s, n):
    """Evict up to n pages, lowest key first, leaves only; return how many. O(n log P)."""
    done = 0
    while done < n and s.meta[N_LEAVES] > 0:
        leaf_evict(s, leaf_lowest(s, 0))
        done += 1
    return done


@kernel(internal=True)
def domain_missing(s, domain, need):
    """How many pages a domain's quota lacks for `need` more, after evicting all it can. O(1)."""
    quota = s.dom[domain, QUOTA]
    if quota < 0 or need == 0:  # a quota set below what is in use takes nothing away
        return 0
    return max(0, s.dom[domain, OWNED] + need - quota - s.dom[domain, EVICTABLE])


@kernel(internal=True)
def pool_missing(s, need):
    """How many pages the pool lacks for `need` more, after evicting all it can. O(1)."""
    return max(0, need - s.meta[N_FREE] - s.meta[N_EVICTABLE])


@kernel(internal=True)
def make_room(s, domain, need):
    """Evict until `need` pages are free and within quota; it was checked that this works."""
    if s.dom[domain, QUOTA] >= 0 and need > 0:
        while s.dom[domain, OWNED] + need > s.dom[domain, QUOTA]:
            leaf_evict(s, leaf_lowest(s, s.dom[domain, HEAP]))
    evict_many(s, need - s.meta[N_FREE])


@kernel(internal=True)
def rooms_missing(s, rows_domain, rows_need):
    """Pages lacking for a batch; rows_domain[i] wants rows_need[i]. O(n)."""
    total = 0
    n = rows_need.size
    for i in range(n):
        total += rows_need[i]
        s.dom[rows_domain[i], NEED] += rows_need[i]
    missing = pool_missing(s, total)
    for i in range(n):
        missing = max(missing, domain_missing(s, rows_domain[i], s.dom[rows_domain[i], NEED]))
        s.dom[rows_domain[i], NEED] = 0
    return missing


@kernel(internal=True)
def chain_start(s, domain):
    """What precedes the first page of a domain: (hash, hash, parent)."""
    return np.uint64(s.dom[domain, ROOT0]), np.uint64(s.dom[domain, ROOT1]), -2 - domain


@kernel(internal=True)
def chain_step(s, h0, h1, tokens):
    """Hash of the next page. O(T)."""
    mask = np.uint64(s.meta[HASH_MASK])
    h0, h1 = prefix_hash(h0, h1, tokens)
    return h0 & mask, h1 & mask


@kernel(internal=True)
def child_guess(s, parent, page):
    """Let `page` be the child of `parent` that is looked at first. O(1)."""
    if parent >= 0:
        s.page[parent, CHILD] = page
    else:
        s.dom[-2 - parent, FIRST] = page


@kernel(internal=True)
def page_cache(s, page, h0, h1, parent, turn, priority, past):
    """Make a full, committed, private page findable below `parent`. O(1) but for twins.

    turn, past: see key_update.
    """
    s.page[page, STATE] = CACHED
    s.page[page, PARENT] = parent
    s.page[page, CHILD] = ABSENT
    s.page[page, NCHILD] = 0
    s.page[page, NHELD] = 0
    s.page[page, PRIORITY] = priority
    s.page[page, TURN] = turn
    s.page[page, USES] = 0
    s.page[page, EVENTS] = 0
    s.page[page, DEPTH] = 0
    s.page[page, POS] = ABSENT
    s.page[page, QPOS] = ABSENT
    hash_set(s, page, h0, h1)
    prefix_insert(s, page)
    s.meta[N_CACHED] += 1
    child_guess(s, parent, page)
    if parent >= 0:
        s.page[page, DEPTH] = s.page[parent, DEPTH] + 1
        s.page[parent, NCHILD] += 1
        if s.page[parent, POS] != ABSENT:
            leaf_drop(s, parent)
        was_held = is_held(s, parent)
        s.page[parent, NHELD] += 1
        if not was_held:
            became_held(s, parent)
    key_update(s, page, INSERTED, turn, past)
