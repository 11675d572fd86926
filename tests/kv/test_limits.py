"""Counts at the end of their types, and what must not grow with what was ever seen."""

import numpy as np
import pytest

from llmds_nb import KVCache, PagedAllocator
from llmds_nb.kv.kernels import eviction_policy as ev, state as s

from .test_stateful import tighten

MOST = 2**31 - 1


def cached(**settings):
    cache = KVCache(8, 2, **settings)
    cache.attach(1, [1, 2, 3, 4, 5])
    cache.commit(1, 5)
    return cache, cache._cache_state.arrays


def count_of(cache, array):
    """Everything in an array of the state, to see that nothing changed."""
    return getattr(cache._cache_state.arrays, array).copy()


@pytest.mark.parametrize("pages", [[0], [1, 0], [1, 1, 0]])
def test_a_page_of_the_allocator_takes_no_reference_too_many(pages):
    pool = PagedAllocator(4)
    pool.alloc(2)
    pool._arrays.ref[0] = MOST
    with pytest.raises(ValueError, match=r"page 0 has 2\*\*31 - 1 references"):
        pool.share(pages)
    assert pool.refcount([0, 1]).tolist() == [MOST, 1]
    pool.free([0])
    pool.share([0])
    with pytest.raises(ValueError, match="page 0"):
        pool.share(pages)
    pool.check()


def test_shared_twice_in_one_call_at_the_end():
    pool = PagedAllocator(4)
    pool.alloc(1)
    pool._arrays.ref[0] = MOST - 1
    with pytest.raises(ValueError, match="page 0"):
        pool.share([0, 0])
    assert pool.refcount([0]).tolist() == [MOST - 1]


@pytest.mark.parametrize(
    "call",
    [
        lambda cache: cache.fork(1, 2),
        lambda cache: cache.pin([1, 2, 3, 4]),
        lambda cache: cache.reorder([7], [1]),
    ],
)
def test_a_page_of_the_cache_takes_no_reference_too_many(call):
    cache, arrays = cached()
    cache.attach(7, [9])
    page = cache.page_table(1).indices[1]
    arrays.page[page, s.REF] = MOST
    before = count_of(cache, "page"), count_of(cache, "seq_hot")[:, : s.LAST_CALL]
    with pytest.raises(ValueError, match=f"page {page} is referred to so often"):
        call(cache)
    assert np.array_equal(before[0], arrays.page)
    assert np.array_equal(before[1], arrays.seq_hot[:, : s.LAST_CALL])
    assert cache._pins.held() == {}
    arrays.page[page, s.REF] = 1
    call(cache)
    cache.check()


def test_a_page_with_a_full_count_is_shared_with_no_other_prompt():
    cache, arrays = cached()
    page = cache.page_table(1).indices[1]
    arrays.page[page, s.REF] = MOST
    assert cache.attach(2, [1, 2, 3, 4]) == 2
    assert arrays.page[page, s.REF] == MOST
    arrays.page[page, s.REF] = 1
    cache.check()
    assert cache.attach(3, [1, 2, 3, 4]) == 4


def test_generations_start_again_and_no_stale_canonical_page_is_believed():
    cache, arrays = cached()
    cache.attach(2, [1, 2, 9])  # holds the canonical first page
    cache.detach(1)
    page = int(cache.pin([1, 2, 3, 4]) and cache._pins.held()[1][1])
    cache.unpin(1)
    arrays.page[page, s.GENERATION] = MOST
    rows = arrays.seq_hot[:, s.ID] != -1
    assert (arrays.seq_cold[rows, s.CANONICAL_GENERATION] != -1).any()
    cache.evict(1)
    assert arrays.page[page, s.GENERATION] == 0
    assert (arrays.seq_cold[rows, s.CANONICAL_GENERATION] == -1).all()
    cache.append(2, [9, 9])
    cache.commit(2, 5)
    assert cache.match([1, 2, 9, 9]) == 4
    cache.check()


def test_uses_stay_at_their_end_and_lfu_in_order():
    cache, arrays = cached(eviction="lfu")
    pages = cache.page_table(1).indices.tolist()
    arrays.page[pages[0], s.USES] = MOST
    cache.detach(1)
    cache.attach(1, [1, 2])
    cache.detach(1)
    assert arrays.page[pages[0], s.USES] == MOST
    key = arrays.page[pages[0], s.KEY : s.KEY + 2].copy().view("<i8")[0]
    clock = arrays.meta[s.CLOCK]
    assert key == ev.lfu_keys(np.array([MOST]), clock)[0] > 2**62
    cache.check()


def test_lfu_breaks_ties_by_time_beyond_32_bits_of_it():
    cache = KVCache(8, 1, eviction="lfu")
    cache._cache_state.arrays.meta[s.CLOCK] = 2**32 - 2
    for token in (1, 2, 3):
        cache.attach(1, [token])
        cache.commit(1, 1)
        cache.detach(1)
    cache.evict(1)
    assert [cache.match([token]) for token in (1, 2, 3)] == [0, 1, 1]


def test_lost_events_are_counted_to_the_end():
    cache, _ = cached(max_events=1)
    cache._cache_state.arrays.events[0, 1] = MOST
    cache.detach(1)
    cache.evict(1)
    cache.reset()
    assert cache.events()[-1].lost == MOST


def test_numbers_of_extra_keys_go_round():
    cache, _ = cached()
    extras = cache._cache_state.extras
    for interned in (extras.symbols, extras.ranges):
        interned._last = MOST - 1
    cache.attach(2, [1, 2, 3, 4], extra=[(0, 4, "a")])
    assert sorted(extras.symbols.values) == [1, MOST]
    cache.commit(2, 4)
    assert cache.match([1, 2, 3, 4], extra=[(0, 4, "a")]) == 4
    assert cache.tokens(2).tolist() == [1, 2, 3, 4]
    cache.check()


def test_a_page_table_is_counted_in_int32():
    cache = KVCache(2**15, 1)
    cache.attach(1, np.zeros(2**15, np.int32))
    with pytest.raises(ValueError, match="2147516416 entries"):
        cache.page_table(np.ones(2**16 + 1, np.int64))


def python_bytes(cache):
    """How much of what Python holds for a cache could grow."""
    state, pins = cache._cache_state, cache._pins
    interned = state.extras.symbols, state.extras.ranges
    numbers = sum(len(i.values) + len(i._numbers) for i in interned)
    return len(state.domains) + len(state._free_domains) + numbers + len(pins._places)


@pytest.mark.parametrize("eviction", ["lru", "path-lrfu"])
def test_a_million_salts_extra_keys_and_pins_leave_nothing(many, eviction):
    cache = KVCache(64, 1, eviction=eviction, max_events=64)
    rng, sizes = np.random.default_rng(0), []
    for i in range(many):
        salt = i if i % 2 else f"salt {i}"
        cache.attach(0, [1, 2], salt=salt, extra=[(0, 2, i)] if i % 4 == 0 else None)
        cache.commit(0, 2)
        handle = cache.pin([1], salt=salt)
        cache.detach(0)
        cache.unpin(handle)
        if rng.random() < 0.01:
            cache.set_quota(salt, 3)
            cache.set_quota(salt, None)
        if i % (many // 10) == 0:
            sizes.append((cache.nbytes, python_bytes(cache)))
    cache.check()
    assert sizes[-1][0] == sizes[1][0] <= 2 * sizes[0][0]
    assert max(n for _, n in sizes) < 12_000


@pytest.mark.parametrize("n_pages", [4, 8, 16])
def test_a_copy_of_the_last_page_takes_no_larger_block_table(n_pages):
    """The table of so many pages is full."""
    cache = KVCache(200, 2)
    cache.attach(0, np.arange(2 * n_pages - 1))
    for copy in range(1, 5):
        cache.fork(0, copy)
    tighten(cache)
    top = cache._cache_state.arrays.meta[s.ARENA_TOP]
    cache.append_many(np.arange(5), np.arange(5))
    cache.check()
    assert cache._cache_state.arrays.meta[s.ARENA_TOP] == top
