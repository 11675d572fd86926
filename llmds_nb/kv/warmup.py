"""Calls every kernel of a KVCache once, to compile it."""

from types import SimpleNamespace
from typing import Any

import numpy as np


def drive_kernels(cache_class: Any) -> None:
    """Use all methods of tiny caches, with the dtypes of real use."""
    tokens = np.arange(3, dtype=np.int32)
    for kv_shape, rows in ((None, None), ((1,), np.zeros((3, 1), np.float16))):
        cache = cache_class(4, 2, kv_shape=kv_shape)
        cache.attach(0, tokens, rows)
        cache.commit(0, 3)
        cache.fork(0, 1)
        cache.append_many([0, 1], [1, 1])
        cache.append(1, [])
        cache.reorder([0, 1], [1, 1])
        cache.check()
        cache.pending_copies()
        cache.unpin(cache.pin(tokens))
        if rows is not None:
            cache.write(0, 2, rows[:1])
        cache.reserve(0, 1)
        cache.set_tokens(0, cache.length(0) - 1, [1])
        cache.truncate(1, 2)
        cache.tokens(1)
        cache.page_table([0, 1])
        cache.block_table([0, 1])
        for dtype in (np.int32, np.int64):
            cache.slot_mapping([0, 1], 0, 1, out=np.empty(2, dtype))
        cache.detach([0, 1])
        cache.set_quota(0, 4)
        cache.evict(1)
        cache.compact()
    cache = cache_class(4, 2, eviction=SimpleNamespace(keys=lambda events: events.keys))
    cache.attach(0, tokens)
    cache.commit(0, 3)
