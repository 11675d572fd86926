"""Eviction policies by name, and the call of a custom policy; keys: kernels/eviction_policy.py."""

from typing import Any, NamedTuple

import numpy as np

from .._core import validation
from .._core.state import Handle
from .._core.typing import Bools, Float64s, Int32s, Int64s
from ..primitives.bits import float64_keys, keys_float64
from .kernels import eviction_policy as ev, state as s
from .kernels.operations import kv_rekey

POLICIES = {
    "lru": ev.LRU,
    "fifo": ev.FIFO,
    "lfu": ev.LFU,
    "priority": ev.PRIORITY,
    "path-lrfu": ev.PATH_LRFU,
}


class PageEvents(NamedTuple):
    """What a custom eviction policy is called with: n cached pages and what happened to them."""

    pages: Int64s  # int64[n]
    inserted: Bools  # bool[n]: became cached
    touched: Bools  # bool[n]: found by a request
    released: Bools  # bool[n]: lost a holder
    keys: Float64s  # float64[n]: present keys, 0 when new
    turns: Int32s  # int32[n]: turn of the conversation that made the page
    uses: Int32s  # int32[n]: requests that touched it
    depths: Int32s  # int32[n]: pages above it
    requests: int  # attaches so far
    clock: int  # attaches and detaches so far


def call_policy(policy: Any, handle: Handle) -> None:
    """Call a custom policy for new keys of the pages that have had events since the last call.

    If it raises, it is called with the same pages again after the next call.
    """
    page, meta = handle.state.page, handle.state.meta
    pages = np.flatnonzero((page[:, s.EVENTS] != 0) & (page[:, s.STATE] == s.CACHED))
    if not len(pages):
        return
    events = page[pages, s.EVENTS]
    hooks = [(events & 1 << hook) != 0 for hook in (ev.INSERTED, ev.TOUCHED, ev.RELEASED)]
    keys = keys_float64(page[pages, s.KEY : s.KEY + 2].copy().view("<i8")[:, 0])
    counts = [page[pages, column] for column in (s.TURN, s.USES, s.DEPTH)]
    clocks = int(meta[s.REQUESTS]), int(meta[s.CLOCK])
    keys = policy.keys(PageEvents._make([pages.copy(), *hooks, keys, *counts, *clocks]))
    keys = validation.reals(keys, "keys of the eviction policy")
    validation.same_length("keys of the eviction policy", keys, "pages", pages)
    page = handle.state.page
    cached = page[pages, s.STATE] == s.CACHED  # the policy may have called the cache
    kv_rekey(handle.address, pages[cached], float64_keys(keys[cached]))
    page[:, s.EVENTS] = 0
