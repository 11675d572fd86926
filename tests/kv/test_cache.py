"""KVCache by example: page life, digests, capacity, pending copies, savings, threads."""

import hashlib
import threading

import numpy as np
import pytest

from llmds_nb import CapacityError, KVCache

T = 4
PROMPT = list(range(100, 112))  # three pages


def pages_of(cache, seq_id):
    return cache.page_table([seq_id]).indices.tolist()


# ---- page life -------------------------------------------------------------------------------


def duplicates(tensors=False):
    """Sequences 1 and 2 with one prompt, attached before either committed, then both committed."""
    cache = KVCache(32, T, kv_shape=(1,) if tensors else None, dtype=np.float32)
    assert cache.attach(1, PROMPT) == cache.attach(2, PROMPT) == 0
    tables = pages_of(cache, 1), pages_of(cache, 2)
    assert not set(tables[0]) & set(tables[1])
    cache.commit(1, 12)
    cache.commit(2, 12)
    assert (pages_of(cache, 1), pages_of(cache, 2)) == tables  # commit changes no page table
    return cache


def test_a_duplicate_stays_private_and_the_first_is_shared():
    cache = duplicates(tensors=True)
    assert cache.stats().n_cached == 3
    cache.attach(3, PROMPT)
    assert pages_of(cache, 3) == pages_of(cache, 1)
    row = np.ones((1, 1), np.float32)
    cache.write(2, 0, row)  # its own copy is writable still
    with pytest.raises(ValueError, match="shared by prefix"):
        cache.write(1, 0, row)
    assert cache.get(1)[0] == 0 and cache.get(2)[0] == 1
    cache.check()


def test_children_of_a_duplicate_hang_under_the_canonical_parent():
    cache = duplicates()
    cache.append(2, [7, 8, 9, 10])
    cache.commit(2, 16)
    longer = [*PROMPT, 7, 8, 9, 10]
    assert cache.attach(3, longer) == 16
    assert pages_of(cache, 3) == [*pages_of(cache, 1), pages_of(cache, 2)[3]]
    cache.detach([1, 3])
    # Sequence 2 holds none of the canonical pages, but a child of theirs: none may be evicted.
    assert cache.stats().n_evictable == 0 and cache.evict(99) == 0
    cache.check()
    cache.detach(2)
    assert cache.stats().n_free == 32 - 4  # the duplicates are free, one copy of each stays
    assert cache.evict(1) == 1 and cache.match(longer) == 12
    assert cache.evict(99) == 3 and cache.match(longer) == 0
    assert cache.stats().n_free == 32
    cache.check()


def test_a_duplicate_becomes_the_cached_one_when_the_first_was_evicted():
    cache = duplicates()
    cache.detach(1)
    assert cache.evict(99) == 3 and cache.match(PROMPT) == 0
    kept = pages_of(cache, 2)
    cache.detach(2)  # its full committed pages stay cached
    assert cache.match(PROMPT) == 12
    cache.attach(3, PROMPT)
    assert pages_of(cache, 3) == kept
    cache.check()


def test_only_full_committed_pages_are_found():
    cache = KVCache(16, T)
    cache.attach(1, [*PROMPT, 1, 2])
    found = []
    for n in (0, 3, 4, 7, 11, 12, 14):
        cache.commit(1, n)
        found.append(cache.match([*PROMPT, 1, 2]))
    assert found == [0, 0, 4, 4, 8, 12, 12]
    cache.commit(1, 2)  # less than is committed already: nothing to do
    assert cache.match(PROMPT) == 12
    assert cache.match([*PROMPT[:8], 0, 0, 0, 0]) == 8
    assert cache.match([0, *PROMPT[1:]]) == 0
    assert cache.match(PROMPT, salt=1) == 0
    cache.detach(1)
    assert cache.stats().n_free == 13 and cache.match(PROMPT) == 12
    cache.check()


def test_appending_nothing_commits_nothing():
    cache = KVCache(16, T, kv_shape=(1,))
    cache.attach(1, PROMPT)
    cache.append(1, [])
    cache.append(1, [], np.zeros((0, 1), np.float16))
    assert cache.match(PROMPT) == 0
    cache.append(1, [5])
    assert cache.match(PROMPT) == 12


def test_uncommitted_pages_are_not_kept_and_sharing_can_be_off():
    cache = KVCache(16, T)
    cache.attach(1, PROMPT)
    cache.commit(1, 6)
    cache.detach(1)
    assert cache.stats().n_free == 15 and cache.match(PROMPT) == 4
    alone = KVCache(16, T, prefix_sharing=False)
    alone.attach(1, PROMPT)
    alone.commit(1, 12)
    assert alone.match(PROMPT) == 0 and alone.attach(2, PROMPT) == 0
    alone.detach([1, 2])
    assert alone.stats().n_free == 16
    alone.check()


def test_truncate_into_a_shared_page_copies_it_at_the_next_append():
    cache = KVCache(16, T, kv_shape=(1,), dtype=np.float32)
    rows = np.arange(12, dtype=np.float32)[:, None]
    cache.attach(1, PROMPT, rows)
    cache.fork(1, 2)
    cache.truncate(2, 10)
    assert pages_of(cache, 2) == pages_of(cache, 1) and cache.stats().copies == 0
    cache.append(2, [55], np.array([[-5]], np.float32))
    assert cache.stats().copies == 1
    assert pages_of(cache, 2)[:2] == pages_of(cache, 1)[:2]
    assert pages_of(cache, 2)[2] != pages_of(cache, 1)[2]
    assert cache.get(2)[:, 0].tolist() == [*range(10), -5]
    assert np.array_equal(cache.get(1), rows)
    assert cache.match(PROMPT) == 12
    cache.check()


def test_decode_steps_in_any_order_and_across_pages():
    rng = np.random.default_rng(0)
    cache = KVCache(200, 8)
    with pytest.raises(KeyError, match="7"):
        cache.append_many([7], [1])  # no sequence was ever attached
    whole = {seq_id: rng.integers(0, 9, 5 + seq_id).tolist() for seq_id in range(12)}
    for seq_id, tokens in whole.items():
        cache.attach(seq_id, tokens)
    for step in range(40):
        if step == 20:  # rows change owners
            for seq_id in (3, 4, 5):
                cache.detach(seq_id)
                whole[seq_id + 100] = whole.pop(seq_id)
            for seq_id in (105, 104, 103):
                cache.attach(seq_id, whole[seq_id])
        ids = rng.permutation(list(whole))[: rng.integers(1, len(whole) + 1)]
        tokens = rng.integers(0, 9, len(ids))
        slots = cache.append_many(ids, tokens)
        for seq_id, token, slot in zip(ids.tolist(), tokens.tolist(), slots, strict=True):
            whole[seq_id].append(token)
            n = len(whole[seq_id])
            assert slot == cache.slot_mapping([seq_id], n - 1, n)[0]
        cache.check()
        for bad in ([ids[0], -1], [ids[0], 999], [ids[0], ids[0]]):
            with pytest.raises((KeyError, ValueError)):
                cache.append_many(bad, [1, 1])
    for seq_id, tokens in whole.items():
        assert cache.tokens(seq_id).tolist() == tokens


def test_many_new_salts_in_one_call_stay_apart():
    cache, n = KVCache(200, 2), 50
    salts = [kind(i) for i in range(n // 2) for kind in (int, str)]
    indptr = np.arange(n + 1) * 2
    assert not cache.attach_many(np.arange(n), [1, 2] * n, indptr, salts=salts).any()
    for i in range(n):
        cache.commit(i, 2)
    assert cache.stats().n_cached == n
    hits = cache.attach_many(np.arange(n, 2 * n), [1, 2] * n, indptr, salts=salts)
    assert hits.tolist() == [2] * n
    assert [pages_of(cache, i) for i in range(n)] == [pages_of(cache, n + i) for i in range(n)]
    cache.detach(np.arange(2 * n))
    assert cache.match([1, 2], salt=b"0") == 0
    cache.check()


# ---- digests ---------------------------------------------------------------------------------


def digests(tokens, page_size, salt_bytes):
    """The documented layout, written down a second time."""
    head = b"llmds_nb prefix 1" + b"\0" + page_size.to_bytes(4, "little") + salt_bytes
    chain = []
    for i in range(0, len(tokens) // page_size * page_size, page_size):
        page = b"".join(int(t).to_bytes(4, "little") for t in tokens[i : i + page_size])
        head = hashlib.sha256(head + page).digest()
        chain.append(head.hex())
    return chain


@pytest.mark.parametrize(
    ("salt", "encoded"),
    [
        (0, b"i\x01\0\0\0\0\0\0\0" + b"0"),
        (-17, b"i\x03\0\0\0\0\0\0\0" + b"-17"),
        ("0", b"s\x01\0\0\0\0\0\0\0" + b"0"),
        (b"0", b"b\x01\0\0\0\0\0\0\0" + b"0"),
        ("", b"s" + bytes(8)),
        (b"", b"b" + bytes(8)),
        ("\u00e9", b"s\x02\0\0\0\0\0\0\0" + b"\xc3\xa9"),
        (b"x" * 300, b"b\x2c\x01\0\0\0\0\0\0" + b"x" * 300),
    ],
)
def test_digests_follow_the_documented_bytes(salt, encoded):
    tokens = [0, 2**31 - 1, 5, 6, 7, 8, 9]
    for page_size in (1, 2, 4):
        one, other = KVCache(4, page_size, key=b"one"), KVCache(9, page_size)
        found = one.prefix_digests(tokens, salt=salt)
        assert found.dtype == np.uint8 and found.shape == (7 // page_size, 32)
        assert [row.tobytes().hex() for row in found] == digests(tokens, page_size, encoded)
        assert np.array_equal(found, other.prefix_digests(np.array(tokens), salt=salt))


VECTORS = [
    "e57f83b44cf339efbccbcec355dc2f204357814066eacd62540c65a43aadd184",
    "dcf50acd4696d46a3e4e826225c6f687cb24039f2b98faa837ab051c141d9e23",
]


def test_digests_never_change():
    found = KVCache(4, 2).prefix_digests([1, 2, 3, 4, 5])
    assert [row.tobytes().hex() for row in found] == VECTORS
    assert KVCache(4, 8).prefix_digests([1, 2, 3]).shape == (0, 32)


def test_digests_of_salts_of_all_kinds_differ():
    salts = [0, 1, -1, 10, "0", "1", "10", "", b"0", b"1", b"10", b"", "i", b"i", "\ud800", "s0"]
    firsts = {KVCache(4, 1).prefix_digests([1], salt=salt).tobytes() for salt in salts}
    assert len(firsts) == len(salts)
    assert len({KVCache(4, n).prefix_digests([0] * 8)[0].tobytes() for n in (1, 2, 4, 8)}) == 4


# ---- capacity ----------------------------------------------------------------------------------


def refused(cache, lacking, call):
    """The call is refused for so many missing pages and changes nothing."""
    ids = [i for i in cache._cache_state.arrays.seq_hot[:, 0].tolist() if i >= 0]

    def seen():
        return [cache.stats(), *[(cache.tokens(i).tolist(), pages_of(cache, i)) for i in ids]]

    before = seen()
    with pytest.raises(CapacityError, match="pages lack") as caught:
        call()
    assert caught.value.missing == lacking
    assert seen() == before
    cache.check()


@pytest.mark.parametrize("page_size", [1, 4])
def test_full_to_the_last_page_and_one_over(page_size):
    cache, tokens = KVCache(4, page_size), np.arange(99, dtype=np.int32)
    refused(cache, 1, lambda: cache.attach(1, tokens[: 4 * page_size + 1]))
    refused(cache, 6, lambda: cache.attach(1, tokens[: 10 * page_size]))
    cache.attach(1, tokens[: 4 * page_size])
    assert cache.stats().n_free == 0
    refused(cache, 1, lambda: cache.attach(2, [1]))
    refused(cache, 1, lambda: cache.append(1, [1]))
    refused(cache, 1, lambda: cache.append_many([1], [1]))
    refused(cache, 3, lambda: cache.append(1, tokens[: 3 * page_size]))
    assert 2 not in cache
    cache.detach(1)
    assert cache.stats().n_free == 4


def test_a_batch_fits_whole_or_not_at_all():
    cache = KVCache(5, T)
    refused(cache, 1, lambda: cache.attach_many([1, 2, 3], [9] * 24, [0, 8, 16, 24]))
    cache.attach_many([1, 2], [9] * 16, [0, 8, 16])
    refused(cache, 1, lambda: cache.append_many([1, 2], [1, 1]))
    cache.append_many([1], [1])
    refused(cache, 1, lambda: cache.append_many([1, 2], [1, 1]))
    cache.fork(1, 3)
    refused(cache, 1, lambda: cache.append(3, [1]))  # the copy on write has no page
    refused(cache, 1, lambda: cache.append_many([1, 3], [1, 2]))


def test_cached_pages_are_evicted_for_new_ones_but_hits_and_pins_are_not():
    cache = KVCache(4, T)
    cache.attach(1, PROMPT)
    cache.commit(1, 12)
    cache.detach(1)
    handle = cache.pin(PROMPT)
    assert cache.stats().n_pinned == 3
    refused(cache, 2, lambda: cache.attach(2, [0] * 12))
    assert cache.attach(2, [*PROMPT, 1]) == 12  # three hits and the last free page
    refused(cache, 1, lambda: cache.attach(3, [1]))
    cache.detach(2)
    cache.unpin(handle)
    refused(
        cache, 1, lambda: cache.attach(2, [*PROMPT, *[0] * 8])
    )  # no page of the hit can be evicted
    assert cache.attach(2, [0] * 16) == 0
    assert cache.stats().evictions == 3 and cache.match(PROMPT) == 0
    cache.check()


def test_all_pinned():
    cache = KVCache(3, T)
    cache.attach(1, PROMPT)
    cache.commit(1, 12)
    handles = [cache.pin(PROMPT), cache.pin(PROMPT[:4]), cache.pin([5])]
    cache.detach(1)
    assert cache.evict(3) == 0
    refused(cache, 3, lambda: cache.attach(1, [0] * 12))
    cache.unpin(handles[0])
    assert cache.evict(3) == 2  # the first page is pinned a second time
    refused(cache, 1, lambda: cache.attach(1, [0] * 12))
    cache.unpin(handles[1])
    cache.unpin(handles[2])
    cache.attach(1, [0] * 12)
    cache.check()


def test_writing_to_a_forked_sequence_needs_a_page():
    cache = KVCache(2, T, kv_shape=(1,), dtype=np.float32)
    cache.attach(1, [1] * 8)
    cache.fork(1, 2)
    rows = np.ones((8, 1), np.float32)
    refused(cache, 2, lambda: cache.write(2, 0, rows))
    refused(cache, 1, lambda: cache.write(2, 0, rows[:1]))
    assert not cache.kv.any()
    cache.detach(1)
    cache.write(2, 0, rows)
    assert (cache.get(2) == 1).all()


def test_empty_prompts_extreme_tokens_and_ids():
    cache, last = KVCache(6, 2, kv_shape=(1,)), 2**63 - 1
    assert cache.attach(last, []) == 0 and cache.attach(0, []) == 0
    assert cache.length(last) == 0 and cache.get(last).shape == (0, 1)
    assert cache.append(last, []).shape == (0,)
    cache.fork(last, 5)
    cache.truncate(5, 0)
    cache.commit(5, 0)
    assert last in cache and 5 in cache and 6 not in cache and len(cache) == 3
    assert cache.stats().n_free == 6
    extreme = [0, 2**31 - 1, 2**31 - 1, 0]
    cache.append(last, extreme)
    cache.commit(last, 4)
    assert cache.tokens(last).tolist() == extreme
    assert cache.match(extreme) == 4
    assert cache.match([2**31 - 1, 0]) == cache.match([0, 2**31 - 2]) == cache.match([0, 0]) == 0
    cache.detach(last)
    assert last not in cache
    assert cache.attach(last, [1, 2, 3]) == 0  # the id anew, with nothing of its old life
    assert cache.tokens(last).tolist() == [1, 2, 3] and cache.match(extreme) == 4
    assert cache.match([]) == 0 and cache.evict(0) == 0
    cache.unpin(cache.pin([]))
    cache.detach([])
    cache.append_many([], [])
    assert cache.attach_many([], [], [0]).shape == (0,)
    cache.check()


# ---- pending copies --------------------------------------------------------------------------


def test_copies_are_gathered_then_scattered():
    cache, kv = KVCache(12, T), np.zeros((12, T))
    cache.attach(1, range(6))
    kv.reshape(-1)[cache.slot_mapping(1, 0, 6)] = np.arange(6)
    for new_id in (2, 3):
        cache.fork(1, new_id)
    tail = pages_of(cache, 1)[1]
    slots = cache.append_many([1, 2, 3], [61, 62, 63])
    cache.fork(2, 4)  # a copy not made yet is copied on
    slots4 = cache.append(4, [74])
    src, dst = cache.pending_copies()
    assert src.tolist() == [tail] * 3 and len(set(dst.tolist())) == 3
    assert not set(src.tolist()) & set(dst.tolist())
    assert src.dtype == dst.dtype == np.int32
    kv[dst] = kv[src]
    kv.reshape(-1)[slots] = [61, 62, 63]
    kv.reshape(-1)[cache.slot_mapping(4, 6, 7)] = 62
    kv.reshape(-1)[slots4] = 74
    for seq_id, end in ((1, [61]), (2, [62]), (3, [63]), (4, [62, 74])):
        n = cache.length(seq_id)
        assert kv.reshape(-1)[cache.slot_mapping(seq_id, 0, n)].tolist() == [*range(6), *end]
    assert len(cache.pending_copies().src) == 0
    assert cache.stats().copies == 3
    cache.check()


def test_a_source_is_not_reused_before_it_was_fetched():
    cache = KVCache(4, T)
    cache.attach(1, [1, 2, 3])
    cache.fork(1, 2)
    cache.append(2, [4])
    source = pages_of(cache, 1)[0]
    cache.detach(1)
    assert cache.stats().n_used == 2 and cache.stats().n_free == 2
    refused(cache, 1, lambda: cache.attach(3, [0] * 12))
    cache.attach(3, [0] * 8)
    assert source not in pages_of(cache, 3)
    with pytest.raises(RuntimeError, match="1 pending copies"):
        cache.compact()
    cache.check()
    assert cache.pending_copies().src.tolist() == [source]
    cache.attach(4, [0])
    assert pages_of(cache, 4) == [source]
    cache.compact()
    cache.check()


def test_copies_nobody_needs_any_more_are_forgotten():
    cache = KVCache(8, T)
    cache.attach(1, [1, 2, 3])
    for new_id in (2, 3, 4):
        cache.fork(1, new_id)
        cache.append(new_id, [9])
    kept = pages_of(cache, 3)
    cache.detach([2, 4])
    assert cache.pending_copies().dst.tolist() == kept
    assert cache.stats().n_free == 6
    cache.check()


def test_a_cache_with_tensors_leaves_no_copies():
    cache = KVCache(8, T, kv_shape=(1,))
    cache.attach(1, [1, 2, 3], np.ones((3, 1), np.float16))
    cache.fork(1, 2)
    cache.append(2, [4])
    assert cache.stats().copies == 1 and len(cache.pending_copies().src) == 0
    cache.compact()


# ---- savings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "system", "question", "page_size"),
    [(32, 2048, 4096, 512), (32, 2000, 3500, 512), (100, 100, 150, 16), (7, 5, 9, 1), (3, 3, 2, 4)],
)
def test_sharing_saves_what_the_formula_says(n, system, question, page_size):
    """n sequences of one system prompt and a question each: saved = (n - 1) * (system // page)."""
    usage = []
    for sharing in (True, False):
        cache = KVCache(2000, page_size, prefix_sharing=sharing)
        for i in range(n):
            prompt = np.concatenate([np.arange(system), np.full(question, 10**6 + i)])
            cache.attach(i, prompt)
            cache.commit(i, len(prompt))
        usage.append(cache.stats().n_used)
        saved = cache.stats().saved
        if sharing:
            assert saved == (n - 1) * (system // page_size)
            assert cache.stats().shares == saved and cache.stats().hits == saved * page_size
    shared, alone = usage
    assert alone == n * -(-(system + question) // page_size)
    assert alone - shared == (n - 1) * (system // page_size)
    if page_size == 512:
        assert 0.25 < (alone - shared) / alone < 0.4


# ---- threads ---------------------------------------------------------------------------------


def test_four_threads_on_one_cache():
    cache, failures = KVCache(400, T, kv_shape=(1,), dtype=np.float32), []

    def work(worker):
        rng = np.random.default_rng(worker)
        try:
            for turn in range(60):
                seq_id = 1000 * worker + turn
                n = int(rng.integers(0, 30))
                # K/V = a function of the prefix, so that sharing between the threads shows.
                tokens = np.full(n, rng.integers(0, 2))
                rows = (tokens + np.arange(n)).astype(np.float32)[:, None]
                cache.attach(seq_id, tokens, rows)
                cache.fork(seq_id, seq_id + 500)
                cache.append(seq_id, [5], np.array([[worker]], np.float32))
                slots = cache.append_many([seq_id, seq_id + 500], [turn, 0])
                assert slots[0] != slots[1]
                cache.truncate(seq_id, n + 1)
                assert np.array_equal(cache.get(seq_id), [*rows, [worker]])
                assert np.array_equal(cache.get(seq_id + 500)[:n], rows)
                cache.evict(2)
                cache.stats()
                cache.detach([seq_id + 500] if turn % 10 == 0 else [seq_id, seq_id + 500])
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(cache) == 4 * 6
    cache.check()
