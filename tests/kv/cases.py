"""Examples of the structures of kv, for the tests that hold for all structures (tests/cases.py)."""

import numpy as np

from llmds_nb import KVCache, PagedAllocator

from ..cases import Case

T = 2
IMAGE = [(1, 3, "image"), (4, 99, b"lora")]


class ByDepth:
    """A custom policy."""

    def keys(self, events):
        return events.clock - events.depths / 100

    def __repr__(self):
        return "ByDepth()"


def _cache(**settings):
    """A little of everything, and all arrays full, so that the next calls make them grow."""
    cache = KVCache(40, T, key=b"key", max_events=30, **settings)
    rows = None if cache.kv is None else np.arange(10, dtype=np.float32)[:, None]
    cache.attach(1, [1, 2, 3, 4, 5], None if rows is None else rows[:5], salt="a")
    cache.commit(1, 5)
    cache.fork(1, 2)
    cache.attach(3, [1, 2, 9], priority=1, extra=IMAGE)
    cache.commit(3, 2)
    cache.attach(4, [7] * 10, rows, salt="a")
    cache.commit(4, 10)
    cache.detach(4)
    for tokens in ([7] * 4, *[[7] * 10] * 10):  # these fill the array of pins
        cache.pin(tokens, salt="a")
    cache.set_quota("q", 5)
    cache.attach(5, [1, 2, 3], salt="q")
    cache.reserve(5, 1)
    cache.fork(5, 6)
    for salt in range(1, 14):  # with those above all rows for salts are taken
        cache.set_quota(salt, 3)
    return cache


def _observe(cache):
    state = cache._cache_state
    seen = [cache.stats(), repr(cache), len(cache)]
    ids = [i for i in [*range(12), *range(100, 180)] if i in cache]
    for seq_id in ids:
        seen += [cache.tokens(seq_id).tolist(), cache.page_table(seq_id).indices.tolist()]
        if cache.kv is not None:
            seen.append(cache.get(seq_id).tolist())
    prompts = [([7] * 10, "a", None), ([1, 2, 3, 4, 5, 6], "a", None), ([1, 2], "q", None)]
    prompts += [([1, 2, 9, 9], 0, IMAGE), ([1, 2, 9, 9], 0, None), ([5, 5], "new", None)]
    seen += [cache.match(tokens, salt=s, extra=extra) for tokens, s, extra in prompts]
    pending = [moves.tolist() for moves in state._pending()]
    return [*seen, pending, sorted(cache._pins.held()), len(state.logged())]


def _rows(cache, n):
    return None if cache.kv is None else np.full((n, 1), 7, np.float32)


def _attach_empty(cache, n, salts=None):
    cache.attach_many(np.arange(100, 100 + n), [], [0] * (n + 1), salts=salts)


MUTATIONS = {
    "attach": lambda c: c.attach(8, [1, 2, 3, 4, 5, 6, 7], _rows(c, 7), salt="a"),
    "attach of a new salt": lambda c: c.attach(8, [5, 5, 5], salt="new"),
    "attach with extra": lambda c: c.attach(8, [1, 2, 9, 8, 7], _rows(c, 5), extra=IMAGE),
    "attach that evicts": lambda c: c.attach(8, [4] * 48),
    "attach_many": lambda c: c.attach_many([8, 9], [1, 2, 3], [0, 1, 3], extras=[IMAGE, None]),
    "attach_many of more sequences than fit": lambda c: _attach_empty(c, 70),
    "attach_many of more salts than fit": lambda c: _attach_empty(c, 3, ["x", "y", 1]),
    "append": lambda c: c.append(1, [7, 8, 9, 10], _rows(c, 4)),
    "append with extra": lambda c: c.append(3, [7, 8, 9, 10], _rows(c, 4)),
    "append_many": lambda c: c.append_many([1, 2, 3, 5], [4, 4, 4, 4]),
    "reserve": lambda c: c.reserve(1, 4),
    "reserve with extra": lambda c: c.reserve(3, 4),
    "set_tokens": lambda c: c.set_tokens(5, 3, [4]),
    "commit": lambda c: c.commit(5, 4),
    "fork": lambda c: c.fork(3, 8),
    "reorder": lambda c: c.reorder([1, 2, 3, 5], [3, 1, 5, 5]),
    "truncate": lambda c: c.truncate(1, 3),
    "detach": lambda c: c.detach([1, 3]),
    "pin": lambda c: c.pin([1, 2, 3, 4], salt="a"),
    "unpin": lambda c: c.unpin(1),
    "evict": lambda c: c.evict(2),
    "set_quota": lambda c: c.set_quota("a", 6),
    "reset": lambda c: c.reset(),
    "events": lambda c: c.events(),
}
COMPACT = {"compact": lambda c: c.compact()}
WRITE = {"write": lambda c: c.write(2, 4, _rows(c, 1))}
TAKE = {"pending_copies": lambda c: c.pending_copies()}
TENSORS = {"kv_shape": (1,), "dtype": np.float32}


def _with_pending_copy():
    cache = _cache()
    cache.append(2, [6])
    return cache


def _allocator():
    pool = PagedAllocator(12, 4)
    pages = pool.alloc(7)
    pool.share(pages[2:5])
    pool.free(pages[[0, 3, 5]])
    return pool


CASES = {
    "KVCache": Case(_with_pending_copy, _observe, MUTATIONS | TAKE),
    "KVCache-tensors": Case(lambda: _cache(**TENSORS), _observe, MUTATIONS | WRITE | COMPACT),
    "KVCache-path-lrfu": Case(
        lambda: _cache(eviction="path-lrfu"),
        _observe,
        {name: call for name, call in MUTATIONS.items() if "evict" in name} | COMPACT | TAKE,
    ),
    "KVCache-custom policy": Case(
        lambda: _cache(eviction=ByDepth(), **TENSORS), _observe, MUTATIONS | WRITE | COMPACT
    ),
    "PagedAllocator": Case(
        _allocator,
        lambda pool: (pool.refcount(range(12)).tolist(), pool.stats(), repr(pool)),
        {
            "alloc": lambda pool: pool.alloc(5),
            "share": lambda pool: pool.share([1, 1, 6]),
            "free": lambda pool: pool.free([1, 2, 2]),
            "compact": lambda pool: pool.compact(),
        },
    ),
}
