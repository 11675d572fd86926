"""KVCache: reserve and set_tokens, beside what test_stateful.py does with them."""

import io

import numpy as np
import pytest

from llmds_nb import CapacityError, CorruptFileError, KVCache
from llmds_nb._core.file_format import read
from llmds_nb._core.jit import kernel
from llmds_nb.kv.kernels import state as s, unknown_tokens as k
from llmds_nb.primitives import status as st

from ..forged_files import forged

T = 4


@kernel
def reserve_many(handle, seq_ids, slots):
    return k.sequences_reserve(handle, seq_ids, slots)


@kernel
def name_many(handle, seq_ids, tokens):
    return k.sequences_name(handle, seq_ids, tokens)


def counted(cache, seq_id, n):
    """Reserve n tokens and commit all."""
    slots = cache.reserve(seq_id, n)
    cache.commit(seq_id, cache.length(seq_id))
    return slots


def test_pages_become_shareable_in_the_order_of_their_names():
    cache = KVCache(16, T, max_events=9)
    cache.attach(1, [1, 2, 3])
    assert counted(cache, 1, 10).tolist() == [*range(3, 13)]
    ids = [1, 2, 3, *range(50, 60)]
    for start, n, cached in ((8, 5, 0), (4, 4, 0), (3, 1, 12)):
        assert cache.match(ids) == 0 and cache.events() == []
        cache.set_tokens(1, start, ids[start : start + n])
        cache.check()
        assert cache.match(ids) == cached
    assert [event.tokens.tolist() for event in cache.events()] == [ids[0:4], ids[4:8], ids[8:12]]
    assert cache.tokens(1).tolist() == ids
    cache.set_tokens(1, 0, ids)  # what it knows already
    assert cache.attach(2, ids) == 12


def test_reserve_commits_nothing():
    cache = KVCache(16, T)
    cache.attach(1, range(4))
    cache.reserve(1, 3)
    assert cache.match(range(4)) == 0
    cache.set_tokens(1, 4, [4, 5, 6])
    assert cache.match(range(4)) == 0
    cache.append(1, [7])  # this does
    assert cache.match(range(8)) == 4
    cache.commit(1, 8)
    assert cache.match(range(8)) == 8


def test_a_naming_is_seen_by_no_fork():
    for kv_shape in (None, (1,)):
        cache = KVCache(16, T, kv_shape=kv_shape, dtype=np.float32)
        cache.attach(1, [9])
        counted(cache, 1, 6)
        if kv_shape:
            cache.write(1, 0, np.arange(7, dtype=np.float32)[:, None])
        for new in (2, 3):
            cache.fork(1, new)
        tables = cache.block_table([1, 2, 3])
        for seq_id in (2, 3, 1):
            cache.set_tokens(seq_id, 1, [seq_id] * 6)
            cache.check()
        for seq_id in (1, 2, 3):
            assert cache.tokens(seq_id).tolist() == [9] + [seq_id] * 6
            assert cache.match([9] + [seq_id] * 3) == 4
            if kv_shape:
                assert cache.get(seq_id)[:, 0].tolist() == [*range(7)]
        assert cache.block_table(1).tolist() == tables[:1].tolist()  # the last one needs no copies
        assert cache.stats().copies == 4
        if not kv_shape:
            assert cache.pending_copies().src.tolist() == [0, 1] * 2


def test_a_fork_whose_naming_lacks_pages_stays_as_it_is():
    cache = KVCache(3, T)
    cache.attach(1, [])
    counted(cache, 1, 8)
    cache.fork(1, 2)
    before = cache.to_bytes()
    with pytest.raises(CapacityError, match="pages lack") as error:
        cache.set_tokens(2, 0, range(8))
    assert error.value.missing == 1 and cache.to_bytes() == before
    cache.set_tokens(2, 0, range(4))
    assert cache.tokens(1).tolist() == [-1] * 8 and cache.match(range(8)) == 4


def test_names_that_contradict_what_is_known():
    cache = KVCache(8, T)
    cache.attach(1, [1, 2])
    cache.reserve(1, 3)
    before = cache.to_bytes()
    for start, tokens, message in (
        (1, [3, 4], "token 1 of sequence 1 is 2 already, not 3"),
        (3, [1, 2, 3], "tokens 3 to 6 of a sequence of 5 tokens"),
        (6, [], "tokens 6 to 6 of a sequence of 5 tokens"),
        (2**62, [1], "of a sequence of 5 tokens"),
        (2, [-1], "-1"),
        (2, [2**31], "2147483648"),
        (-1, [1], "start"),
    ):
        with pytest.raises(ValueError, match=message):
            cache.set_tokens(1, start, tokens)
        assert cache.to_bytes() == before
    for call in (lambda: cache.set_tokens(9, 0, []), lambda: cache.reserve(9, 0)):
        with pytest.raises(KeyError, match="9"):
            call()
    with pytest.raises(ValueError, match="tokens must be >= 0, not -2147483648"):
        cache.append(1, np.array([s.UNKNOWN_TOKEN], np.int32))
    with pytest.raises(ValueError, match="tokens must be >= 0, not -2147483648"):
        cache.append_many(np.array([1]), np.array([s.UNKNOWN_TOKEN], np.int32))
    with pytest.raises(ValueError, match="2147483648"):
        cache.set_tokens(1, 2, np.array([s.UNKNOWN_TOKEN], np.int32))
    assert cache.to_bytes() == before


@pytest.mark.parametrize("n", [33, 2**40, 2**63 - 1])
def test_room_for_more_than_there_is(n):
    cache = KVCache(8, T)
    cache.attach(1, [1])
    before = cache.to_bytes()
    with pytest.raises(CapacityError, match="pages lack") as error:
        cache.reserve(1, n)
    assert error.value.missing == (1 + n + 3) // T - 8
    assert cache.to_bytes() == before
    assert len(cache.reserve(1, 31)) == 31


def test_keyed_pages_are_found_once_they_are_named():
    cache, extra = KVCache(16, 2), [(1, 3, "image"), (5, 99, 7)]
    cache.attach(1, [1], extra=extra)
    counted(cache, 1, 8)
    assert cache.tokens(1).tolist() == [1] + [-1] * 8
    cache.set_tokens(1, 3, [4, 5, 6, 7, 8])
    cache.check()
    assert cache.tokens(1).tolist() == [1, -1, -1, 4, 5, 6, 7, 8, -1]
    with pytest.raises(ValueError, match="token 4 of sequence 1 is 5 already, not 4"):
        cache.set_tokens(1, 4, [4])
    cache.set_tokens(1, 4, [5])
    cache.set_tokens(1, 1, [2, 3])
    cache.set_tokens(1, 8, [9])
    cache.append(1, [10, 11])
    cache.check()
    ids = [*range(1, 12)]
    assert cache.tokens(1).tolist() == ids
    assert cache.match(ids) == 0 and cache.match(ids, extra=extra) == 8
    again = KVCache.from_bytes(cache.to_bytes())
    assert again.match(ids, extra=extra) == 8


def test_a_naming_that_repeats_what_is_known_keeps_the_keys_of_pages():
    cache, extra, ids = KVCache(16, 4), [(0, 3, "image")], [1, 2, 3, 4]
    cache.attach(1, [1, 2], extra=extra)
    cache.reserve(1, 2)
    cache.set_tokens(1, 0, ids)
    cache.commit(1, 4)
    cache.check()
    assert cache.match(ids) == 0 and cache.match(ids, extra=extra) == 4


def test_what_a_reset_forgets_is_not_shared_by_its_names():
    cache = KVCache(8, T)
    cache.attach(1, [])
    counted(cache, 1, 4)
    cache.reset()
    cache.set_tokens(1, 0, range(4))
    cache.check()
    assert cache.match(range(4)) == 0 and cache.tokens(1).tolist() == [*range(4)]


def test_old_tokens_of_a_page_are_not_unknown_ones_of_its_next_holder():
    cache = KVCache(2, T)
    cache.attach(1, [])
    cache.reserve(1, 8)
    cache.truncate(1, 1)
    cache.append(1, [5])
    assert cache.tokens(1).tolist() == [-1, 5]
    cache.truncate(1, 0)
    cache.append(1, [6])
    cache.check()
    assert cache.tokens(1).tolist() == [6]
    cache.detach(1)
    cache.attach(2, [1, 2])
    again = KVCache.from_bytes(cache.to_bytes())
    assert again.tokens(2).tolist() == [1, 2]


@pytest.mark.parametrize("seed", range(4))
def test_the_kernels_of_a_step_do_what_the_methods_do(seed):
    """sequences_reserve and sequences_name beside reserve, commit and set_tokens."""
    rng = np.random.default_rng(seed)
    one, many, seqs = KVCache(64, T, key=b"k"), KVCache(64, T, key=b"k"), np.arange(6)
    handle = many._cache_state.handle

    def run(kernel, *args):
        while (status := kernel(handle.address, *args)) == st.GROW:
            many._cache_state.grow(status)
        return status

    truth = {seq_id: rng.integers(0, 3, seq_id).tolist() for seq_id in range(6)}
    unknown = {seq_id: [] for seq_id in range(6)}
    for cache in (one, many):
        for seq_id in range(6):
            cache.attach(seq_id, truth[seq_id])
    for _ in range(40):
        ids = np.array([i for i in rng.permutation(seqs) if len(truth[i]) < 30], np.int64)
        if not len(ids):
            break
        slots = np.empty(len(ids), np.int64)
        assert run(reserve_many, ids, slots) == st.OK
        for i in ids.tolist():
            one.commit(i, len(truth[i]))
            assert one.reserve(i, 1).tolist() == slots[ids == i].tolist()
            unknown[i].append(len(truth[i]))
            truth[i].append(int(rng.integers(3)))
        due = np.array([i for i in ids if len(unknown[i]) > rng.integers(3)], np.int64)
        tokens = np.array([truth[i][unknown[i][0]] for i in due], np.int32)
        assert run(name_many, due, tokens) == st.OK
        for i, token in zip(due.tolist(), tokens, strict=True):
            one.set_tokens(i, unknown[i].pop(0), [token])
        for i in range(6):
            assert one.tokens(i).tolist() == many.tokens(i).tolist()
            assert one.match(truth[i]) == many.match(truth[i])
        one.check()
        many.check()


def test_what_the_kernels_of_a_step_refuse():
    cache = KVCache(2, T)
    cache.attach_many([1, 2], range(7), [0, 4, 7])
    cache.check()
    handle = cache._cache_state.handle
    slots, tokens = np.empty(2, np.int64), np.array([1, 2], np.int32)

    def refused(kernel, ids, *args):
        before = cache.stats(), [cache.tokens(i).tolist() for i in (1, 2)]
        status = kernel(handle.address, np.array(ids), *args)
        cache.check()
        assert before == (cache.stats(), [cache.tokens(i).tolist() for i in (1, 2)])
        return status, int(cache._cache_state.arrays.meta[s.MISSING])

    assert refused(reserve_many, [2, 1], slots) == (st.FULL, 1)
    assert refused(reserve_many, [2, 7], slots) == (st.ABSENT, 7)
    assert refused(reserve_many, [2, 2], slots) == (st.REPEATED, 2)
    assert refused(reserve_many, [2], slots)[0] == st.UNEVEN
    cache.reserve(2, 1)
    assert refused(name_many, [2, 1], tokens) == (st.INVALID, 1)
    assert refused(name_many, [2, 7], tokens) == (st.ABSENT, 7)
    assert refused(name_many, [2, 2], tokens) == (st.REPEATED, 2)
    assert refused(name_many, [2], tokens)[0] == st.UNEVEN
    assert refused(name_many, [2, 2], -tokens)[0] == st.BAD_TOKEN


def test_a_file_cannot_say_what_is_unknown_otherwise_than_its_pages():
    cache = KVCache(8, T)
    cache.attach(1, [1, 2, 3, 4, 5])
    cache.commit(1, 5)
    cache.reserve(1, 2)
    file = io.BytesIO()
    cache.save(file)
    file.seek(0)
    saved = read(file)
    for place in (0, 1, 5, 7, 8, 33, 2**40, -1):

        def edit(arrays, header, place=place):
            arrays["seq"][0, s.FIRST_UNKNOWN] = place

        with pytest.raises(CorruptFileError, match=r"FIRST_UNKNOWN|COMMITTED"):
            KVCache.from_bytes(forged(*saved, edit))
    for page, column in ((0, 0), (0, 2), (1, 0)):

        def edit(arrays, header, page=page, column=column):
            arrays["tok"][page, column] = s.UNKNOWN_TOKEN

        with pytest.raises(CorruptFileError):
            KVCache.from_bytes(forged(*saved, edit))
