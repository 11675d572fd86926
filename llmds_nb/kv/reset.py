"""Forgets every cached prefix of a KVCache at once, as when its model gets new weights."""

import numpy as np

from ..primitives.status import ABSENT
from .kernels import events, state as s
from .state import CacheState


def reset(state: CacheState) -> int:
    """See `KVCache.reset`. The arrays are changed aside and then replaced."""
    with state.lock:
        state.ready()
        new = state.arrays
        names = "page", "arena", "seq_cold", "domain", "meta", "events"
        new = new._replace(**{name: getattr(new, name).copy() for name in names})
        n_free = int(new.meta[s.N_FREE])
        _uncache(new)
        _forget(new)
        _clear_log(new.events)
        state.handle.replace(new)
        return int(new.meta[s.N_FREE]) - n_free


def _uncache(kv):
    """Free the cached pages that nothing refers to, and make the others private."""
    page, meta = kv.page, kv.meta
    cached = page[:, s.STATE] == s.CACHED
    freed = cached & (page[:, s.REF] == 0) & (page[:, s.PENDING] >= 0)
    page[cached, s.STATE] = s.PRIVATE
    # Copies that fill a freed page are not needed any more, nor are pages only read by those.
    start, n = int(meta[s.PENDING_COPIES]), int(meta[s.N_PENDING])
    copies = kv.arena[start : start + 2 * n].reshape(n, 2)
    left = copies[~freed[copies[:, 1]]]
    page[copies.ravel(), s.PENDING] = 0
    page[left[:, 1], s.PENDING] = np.arange(1, len(left) + 1)
    np.subtract.at(page[:, s.PENDING], left[:, 0], 1)
    kv.arena[start : start + left.size] = left.ravel()
    meta[s.N_PENDING] = len(left)
    read = np.unique(copies[:, 0])
    unread = (page[read, s.REF] == 0) & (page[read, s.PENDING] == 0)
    freed[read[unread]] = True
    page[freed, s.STATE] = s.FREE
    kv.domain[:, s.OWNED] -= np.bincount(page[freed, s.DOMAIN], minlength=len(kv.domain))
    free = np.flatnonzero(page[:, s.STATE] == s.FREE)
    page[free, s.PARENT] = np.append(free[1:], ABSENT)
    meta[s.FREE_PAGE] = free[0] if len(free) else ABSENT
    meta[s.N_FREE] = len(free)


def _forget(kv):
    """Empty the prefix table and the heaps; let no sequence cache what it has computed."""
    start = kv.meta[s.PREFIX_TABLE]
    kv.arena[start : start + kv.meta[s.PREFIX_MASK] + 1] = 0
    kv.meta[[s.N_LEAVES, s.N_CACHED, s.N_EVICTABLE]] = 0
    kv.domain[:, [s.EVICTABLE, s.N_HEAP]] = 0
    kv.domain[:, s.LAST_ROOT_CHILD] = ABSENT
    kv.page[:, [s.HEAP_POS, s.DOMAIN_HEAP_POS]] = ABSENT
    kv.seq_cold[:, s.OUTDATED] = 1  # a row that is taken later begins with zeros
    kv.seq_cold[:, [s.N_CHAINED, s.HAS_DUPLICATES]] = 0
    kv.seq_cold[:, [s.CANONICAL, s.CANONICAL_GENERATION]] = ABSENT


def _clear_log(log):
    if not len(log):
        return
    n = int(log[0, events.N_EVENTS]) + 1
    if n == len(log):
        log[0, events.N_LOST] = min(int(log[0, events.N_LOST]) + 1, s.INT32_MAX)
        return
    log[n, events.EVENT_KIND] = events.CLEARED
    log[0, events.N_EVENTS] = n
