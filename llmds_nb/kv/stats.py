"""Sizes and counts of a KVCache."""

from typing import NamedTuple

import numpy as np

from ..primitives.status import ABSENT
from .kernels import state as s
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
    used = page[:, s.STATE] != s.FREE
    held = used & ((page[:, s.REF] > 0) | (page[:, s.PENDING] < 0))
    live = arrays.seq_hot[:, s.ID] != ABSENT
    hot, seq = arrays.seq_hot[live], arrays.seq_cold[live]
    occurrences = int(seq[:, s.N_PAGES].sum())
    starts, sizes = hot[:, s.BLOCK_TABLE], seq[:, s.N_PAGES]
    tables = [arrays.arena[i:][:n] for i, n in zip(starts, sizes, strict=True)]
    own = len(np.unique(np.concatenate([np.zeros(0, np.int32), *tables])))
    # Only last pages can be part-filled, and a part-filled page is never cached.
    places = occurrences * page_size
    n_tokens = int(hot[:, s.LENGTH].sum())
    lookups, hits = int(meta[s.LOOKUPS]), int(meta[s.HITS])
    return KVCacheStats(
        n_pages=n_pages,
        n_free=int(meta[s.N_FREE]),
        n_used=int(held.sum()),
        n_cached=int(meta[s.N_CACHED]),
        n_evictable=int(meta[s.N_EVICTABLE]),
        n_pinned=len(np.unique(pins.all_pages())),
        n_shared=int((page[:, s.REF] > 1).sum()),
        n_sequences=len(hot),
        n_tokens=n_tokens,
        lookups=lookups,
        hits=hits,
        hit_ratio=hits / lookups if lookups else 0.0,
        shares=int(meta[s.SHARES]),
        copies=int(meta[s.COPIES]),
        evictions=int(meta[s.EVICTIONS]),
        saved=occurrences - own,
        fragmentation=1 - n_tokens / places if places else 0.0,
    )
