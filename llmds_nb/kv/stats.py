"""Sizes and counts of a KVCache."""

from typing import NamedTuple

import numpy as np

from ..primitives.status import ABSENT
from .kernels import state as c
from .prefixes import Pins
from .state import CacheState


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


def collect_stats(state: CacheState, pins: Pins) -> KVCacheStats:
    """The present sizes and counts. O(n_pages)."""
    arrays, n_pages, page_size = state.arrays, state.settings.n_pages, state.settings.page_size
    page, meta = arrays.page, arrays.meta
    used = page[:, c.STATE] != c.FREE
    held = used & ((page[:, c.REF] > 0) | (page[:, c.MOVE] < 0))
    live = arrays.hot[:, c.ID] != ABSENT
    hot, seq = arrays.hot[live], arrays.seq[live]
    occurrences = int(seq[:, c.NPAGES].sum())
    starts, sizes = hot[:, c.BLOCKS], seq[:, c.NPAGES]
    tables = [arrays.pool[i:][:n] for i, n in zip(starts, sizes, strict=True)]
    own = len(np.unique(np.concatenate([np.zeros(0, np.int32), *tables])))
    # Only last pages can be part-filled, and a part-filled page is never cached.
    places = occurrences * page_size
    n_tokens = int(hot[:, c.LENGTH].sum())
    lookups, hits = int(meta[c.LOOKUPS]), int(meta[c.HITS])
    return KVCacheStats(
        n_pages=n_pages,
        n_free=int(meta[c.N_FREE]),
        n_used=int(held.sum()),
        n_cached=int(meta[c.N_CACHED]),
        n_evictable=int(meta[c.N_EVICTABLE]),
        n_pinned=len(np.unique(pins.all_pages())),
        n_shared=int((page[:, c.REF] > 1).sum()),
        n_sequences=len(hot),
        n_tokens=n_tokens,
        lookups=lookups,
        hits=hits,
        hit_ratio=hits / lookups if lookups else 0.0,
        shares=int(meta[c.SHARES]),
        copies=int(meta[c.COPIES]),
        evictions=int(meta[c.EVICTIONS]),
        saved=occurrences - own,
        fragmentation=1 - n_tokens / places if places else 0.0,
    )
