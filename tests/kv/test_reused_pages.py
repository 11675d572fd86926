"""Pages and memory that are used again: what is still known of their last use is not believed."""

import numpy as np

from llmds_nb import KVCache


def pages_of(cache, seq_id):
    return cache.page_table([seq_id]).indices.tolist()


def test_a_page_that_was_the_last_child_of_another_is_no_hit():
    cache = KVCache(8, 2)
    cache.attach(1, [1, 1, 7, 7])
    cache.commit(1, 4)
    child = pages_of(cache, 1)[1]
    cache.attach(2, [2, 2])
    cache.commit(2, 2)
    cache.detach(1)
    assert cache.evict(1) == 1
    cache.append(2, [7, 7])
    cache.commit(2, 4)
    assert pages_of(cache, 2)[1] == child  # which the page of [1, 1] had
    assert cache.match([1, 1, 7, 7]) == 2
    assert cache.match([2, 2, 7, 7]) == 4
    cache.check()


def test_a_canonical_page_is_known_under_its_new_number_after_compaction():
    cache = KVCache(8, 2)
    cache.attach(0, [9, 9])
    cache.attach(1, [1, 1])
    cache.commit(1, 2)
    before = pages_of(cache, 1)
    cache.detach(0)
    assert cache.compact().src.tolist() == before
    cache.attach(2, [2, 2])
    cache.commit(2, 2)
    assert pages_of(cache, 2) == before
    cache.append(1, [3, 3])
    cache.commit(1, 4)
    assert cache.match([1, 1, 3, 3]) == 4
    assert cache.match([2, 2, 3, 3]) == 2
    cache.check()


def test_the_memory_of_many_block_tables_is_used_again():
    cache, ids, sizes = KVCache(64, 1), np.arange(16), set()
    for length in (1, 2, 4) * 100:
        cache.attach_many(ids, np.arange(16 * length), length * np.arange(17))
        cache.detach(ids)
        sizes.add(cache.nbytes)
    cache.check()
    assert len(sizes) <= 2  # it may grow once, while the first ones come
