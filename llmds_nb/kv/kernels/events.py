"""The log of what became cached and what stopped being so, for those that mirror the cache.

State: events int32[1 + E, EVENT_TOKENS + T], or of no rows where no log is kept. Row 0 holds how
many events are in the rows behind it, and how many were lost since it was full, at most 2**31 - 1.
An event is (kind, page, domain, 1 if it has a parent, hash, hash of the parent, tokens), each hash
as four int32. Only STORED has a parent and tokens; CLEARED has nothing but its kind.
"""

from numba import int64, void

from ..._core.jit import kernel
from . import state as s

STORED, REMOVED, CLEARED = range(3)
N_EVENTS, N_LOST = 0, 1  # columns of row 0
EVENT_KIND, EVENT_PAGE, EVENT_DOMAIN, EVENT_HAS_PARENT = range(4)
EVENT_HASH, EVENT_PARENT, EVENT_TOKENS = 4, 8, 12


@kernel(separate=void(s.KV, int64, int64), borrow=True)
def event_put(kv, kind, page):
    """Log that a page was stored or is about to be removed. O(T)."""
    log = kv.events
    n = log[0, N_EVENTS] + 1
    if n == log.shape[0]:
        if log[0, N_LOST] < s.INT32_MAX:
            log[0, N_LOST] += 1
        return
    log[0, N_EVENTS] = n
    event, row = log[n], kv.page[page]
    event[EVENT_KIND], event[EVENT_PAGE], event[EVENT_DOMAIN] = kind, page, row[s.DOMAIN]
    event[EVENT_HAS_PARENT] = 0
    for i in range(4):
        event[EVENT_HASH + i] = row[s.HASH + i]
    if kind == STORED:
        if row[s.PARENT] >= 0:
            event[EVENT_HAS_PARENT] = 1
            for i in range(4):
                event[EVENT_PARENT + i] = kv.page[row[s.PARENT], s.HASH + i]
        for i in range(kv.tokens.shape[1]):
            event[EVENT_TOKENS + i] = kv.tokens[page, i]
