"""Drives every kernel of a KVCache once, so that all of them are compiled."""

from typing import Any

import numpy as np


class _SameKeys:
    """A custom policy that changes nothing."""

    def keys(self, events):
        return events.keys


def warm_up(cache_class: Any) -> None:
    """Call every kernel with the dtypes of real use."""
    for kv_shape in (None, (1,)):
        cache = cache_class(4, 2, kv_shape=kv_shape)
        tokens = np.arange(3, dtype=np.int32)
        rows = None if kv_shape is None else np.zeros((3, 1), np.float16)
        cache.attach(0, tokens, rows)
        cache.commit(0, 3)
        cache.fork(0, 1)
        cache.append_many([0, 1], [1, 1])
        cache.append(1, [])
        cache.pending_copies()
        cache.unpin(cache.pin(tokens))
        if kv_shape is not None:
            cache.write(0, 2, np.zeros((1, 1), np.float16))
        cache.truncate(1, 2)
        cache.tokens(1)
        cache.page_table([0, 1])
        cache.block_table([0, 1])
        cache.slot_mapping([0, 1], 0, 1)
        cache.detach([0, 1])
        cache.set_quota(0, 4)
        cache.evict(1)
        cache.compact()
    cache = cache_class(4, 2, eviction=_SameKeys())
    cache.attach(0, tokens)
    cache.commit(0, 3)
