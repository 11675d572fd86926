"""KVCache by example: what `extra` keeps apart; `reset`; `events`; `reorder`."""

import hashlib

import numpy as np
import pytest

from llmds_nb import KVCache
from llmds_nb.kv import KVEvent
from llmds_nb.kv.kernels import state as s

T = 4
PROMPT = list(range(12))


def cached(tokens, extra=None, **settings):
    cache = KVCache(32, T, **settings)
    cache.attach(1, tokens, extra=extra)
    cache.commit(1, len(tokens))
    return cache


@pytest.mark.parametrize(
    ("extra", "asked", "found"),
    [
        ([(5, 7, "a")], [(5, 7, "a")], 12),
        ([(5, 7, "a")], None, 4),  # the page before the range is shared
        ([(5, 7, "a")], [(5, 7, "b")], 4),
        ([(5, 7, "a")], [(5, 7, b"a")], 4),
        ([(5, 7, 1)], [(5, 7, "1")], 4),
        ([(5, 7, "a")], [(4, 7, "a")], 4),  # the same image elsewhere is other K/V
        ([(8, 9, "a")], [(0, 1, "a")], 0),
        (None, [(11, 12, "a")], 8),
        ([(0, 4, "a")], None, 0),  # what comes after depends on it
        ([(0, 12, "lora")], [(0, 10**9, "lora")], 12),
        ([(0, 12, "lora")], [(0, 8, "lora")], 8),
        ([(0, 12, "l"), (5, 6, "i")], [(5, 6, "i"), (0, 12, "l"), (5, 6, "i")], 12),
        ([(0, 12, "l"), (5, 6, "i")], [(0, 12, "l")], 4),
        ([(0, 5, "b"), (0, 9, "a")], [(0, 7, "b"), (0, 6, "a")], 4),
        ([(12, 13, "a")], None, 12),  # beyond the prompt
        ([], [], 12),
    ],
)
def test_a_page_is_found_under_its_own_extra_only(extra, asked, found):
    cache = cached(PROMPT, extra)
    assert cache.match(PROMPT, extra=asked) == found
    assert cache.attach(2, PROMPT, extra=asked) == found
    assert cache.tokens(1).tolist() == cache.tokens(2).tolist() == PROMPT
    handle = cache.pin(PROMPT, extra=asked)
    cache.detach([1, 2])
    assert cache.stats().n_pinned == found // T
    cache.unpin(handle)
    cache.check()
    digests = [cache.prefix_digests(PROMPT, extra=e) for e in (extra, asked)]
    assert (digests[0] == digests[1]).all(axis=1).sum() == found // T


@pytest.mark.parametrize("at_once", [False, True])
def test_pages_that_appending_begins_are_under_the_extra_too(at_once):
    lora = [(0, 10**6, "lora"), (9, 10, "image")]
    cache = KVCache(32, T)
    for seq_id in (1, 2):
        cache.attach(seq_id, PROMPT[:2], extra=lora if seq_id == 1 else None)
        if at_once:
            cache.append(seq_id, PROMPT[2:])
    if not at_once:
        for token in PROMPT[2:]:
            cache.append_many([1, 2], [token, token])
    cache.commit(1, 12)
    assert cache.match(PROMPT, extra=lora) == 12 and cache.match(PROMPT) < 12
    cache.detach(1)
    cache.commit(2, 12)
    assert cache.match(PROMPT) == 12
    assert cache.match(PROMPT, extra=lora[:1]) == 8
    cache.check()


def test_a_range_holds_for_forks_and_reordered_beams_and_after_a_truncation():
    lora = [(0, 99, "lora")]
    cache = cached(PROMPT, lora)
    cache.fork(1, 2)
    cache.truncate(2, 4)
    cache.attach(3, [5])
    cache.reorder([3], [2])
    for seq_id in (2, 3):
        cache.append(seq_id, [7] * 8)
        cache.commit(seq_id, 12)
        changed = [*PROMPT[:4], *[7] * 8]
        assert cache.tokens(seq_id).tolist() == changed
        assert cache.match(changed, extra=lora) == 12 and cache.match(changed) == 0
        cache.check()


def test_digests_of_extra_follow_the_documented_bytes():
    found = KVCache(4, 2).prefix_digests([1, 2, 3, 4], extra=[(1, 9, "k"), (3, 4, -7)])
    head = b"llmds_nb prefix 1" + b"\0" + (2).to_bytes(4, "little") + b"i" + b"\1" + bytes(7) + b"0"
    key = (1).to_bytes(8, "little") + (2).to_bytes(8, "little") + b"s" + b"\1" + bytes(7) + b"k"
    first = hashlib.sha256(head + b"\1\0\0\0\2\0\0\0" + key).digest()
    key = (1).to_bytes(8, "little") + (4).to_bytes(8, "little") + b"s" + b"\1" + bytes(7) + b"k"
    key += (3).to_bytes(8, "little") + (4).to_bytes(8, "little") + b"i" + b"\2" + bytes(7) + b"-7"
    second = hashlib.sha256(first + b"\3\0\0\0\4\0\0\0" + key).digest()
    assert [row.tobytes() for row in found] == [first, second]


def test_negative_tokens_are_refused_where_keyed_pages_are():
    cache = cached(PROMPT, [(0, 12, "a")])
    inside = cache._cache_state.arrays.tokens[cache.page_table(1).indices[0]].tolist()
    assert inside[0] < 0  # what stands for the first token and the key
    for call in (
        lambda: cache.match(inside),
        lambda: cache.match(np.array(inside, np.int32)),
        lambda: cache.match(np.array(inside, np.int32), extra=[(0, 1, "a")]),
        lambda: cache.attach(2, np.array(inside, np.int32)),
        lambda: cache.append(1, np.array(inside, np.int32)),
        lambda: cache.append_many(np.array([1]), np.array(inside[:1], np.int32)),
    ):
        with pytest.raises(ValueError, match="tokens must be"):
            call()


# ---- reset -----------------------------------------------------------------------------------


def test_reset_frees_what_is_not_held_and_hides_the_rest():
    cache = cached(PROMPT, kv_shape=(1,), dtype=np.float32)
    cache.attach(2, [*PROMPT[:8], 50], np.zeros((9, 1), np.float32))
    handle = cache.pin(PROMPT)
    cache.detach(1)
    cache.unpin(handle)
    cache.attach(3, [60] * 8)
    cache.commit(3, 8)
    cache.detach(3)
    pinned = cache.pin([60] * 4)
    assert cache.stats().n_used == 4
    assert cache.reset() == 2  # one page of 1 and one of 3
    assert cache.stats()[:6] == (32, 28, 4, 0, 0, 1)
    assert cache.match(PROMPT) == cache.match([60] * 8) == 0
    cache.append(2, [51] * 9, np.ones((9, 1), np.float32))  # it goes on, unseen
    cache.commit(2, 18)
    cache.fork(2, 4)
    cache.append(4, [1] * 8)
    cache.truncate(4, 9)
    cache.detach([2, 4])
    assert cache.stats().n_cached == 0 and cache.match([*PROMPT[:8], 50, *[51] * 9]) == 0
    cache.unpin(pinned)
    assert cache.stats().n_free == 32
    assert cache.attach(5, PROMPT) == 0
    cache.commit(5, 12)
    assert cache.match(PROMPT) == 12
    cache.check()


def test_reset_forgets_copies_that_nobody_needs():
    cache = KVCache(16, T)
    cache.attach(1, PROMPT[:10])
    cache.fork(1, 2)
    cache.append(2, [1, 2])  # a copy of the last page is pending
    cache.commit(2, 12)
    cache.fork(1, 3)
    cache.append(3, [3])
    cache.detach(2)
    kept = cache.page_table(3).indices[-1]
    assert len(cache._cache_state._pending()[0]) == 2
    cache.reset()
    cache.check()
    assert cache.pending_copies().dst.tolist() == [kept]
    cache.detach([1, 3])
    assert cache.stats().n_free == 16
    cache.check()


def test_old_sequences_decode_on_the_fast_path_after_a_reset():
    cache = cached(PROMPT)
    cache.reset()
    cache.append_many([1], [5])
    hot = cache._cache_state.arrays.seq_hot
    assert hot[cache._cache_state.find(1), s.TAIL_FREE] == T - 1


# ---- events ----------------------------------------------------------------------------------


def test_events_carry_what_a_mirror_needs():
    cache = KVCache(3, 2, max_events=9)
    cache.attach(1, [1, 2, 3, 4], salt="a", extra=[(2, 9, "image")])
    cache.commit(1, 4)
    cache.detach(1)
    cache.evict(1)
    first, second, removed = cache.events()
    tokens = [event.tokens.tolist() for event in (first, second)]
    assert tokens == [[1, 2], [3, 4]] and first.tokens.dtype == np.int32
    assert (first.kind, first.parent, first.salt, first.extra) == ("stored", None, "a", ())
    assert second.parent == first.hash and second.extra == ((2, 4, "image"),)
    assert len(first.hash) == 16 and len({first.hash, second.hash}) == 2
    assert (removed.kind, removed.hash, removed.page) == ("removed", second.hash, second.page)
    assert cache.events() == []
    cache.reset()
    assert cache.events() == [KVEvent("cleared")]


def test_equal_keys_give_equal_hashes_in_two_caches():
    one, other, third = (KVCache(4, 2, max_events=9, key=k) for k in (b"k", b"k", b"other"))
    for cache in (one, other, third):
        cache.attach(1, [1, 2])
        cache.commit(1, 2)
    hashes = [cache.events()[0].hash for cache in (one, other, third)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_full_log_says_how_many_were_lost():
    cache = KVCache(16, 1, max_events=3)
    cache.attach(1, PROMPT)
    cache.commit(1, 12)
    kinds = [event.kind for event in cache.events()]
    assert kinds == ["stored"] * 3 + ["lost"]
    cache.detach(1)
    cache.evict(5)
    assert cache.events()[-1] == KVEvent("lost", lost=2)
    cache.evict(3)
    cache.reset()
    assert cache.events()[-1] == KVEvent("lost", lost=1)


def test_events_are_off_by_default():
    cache = cached(PROMPT)
    with pytest.raises(ValueError, match="max_events"):
        cache.events()
    assert cache._cache_state.arrays.events.size == 0


def test_a_salt_that_is_in_the_log_keeps_its_row():
    cache = KVCache(64, 1, max_events=100)
    for salt in range(60):  # more than the rows, each idle at once but for its events
        cache.attach(1, [salt], salt=salt)
        cache.commit(1, 1)
        cache.detach(1)
        cache.evict(1)
    assert [event.salt for event in cache.events()] == [n // 2 for n in range(100)] + [None]


# ---- reorder -----------------------------------------------------------------------------------


def test_beams_are_permuted_copied_and_dropped():
    cache = KVCache(32, T)
    cache.attach(0, [1, 2, 3])
    for beam in (1, 2, 3):
        cache.fork(0, beam)
    cache.append_many([0, 1, 2, 3], [10, 11, 12, 13])
    cache.pending_copies()
    cache.reorder([0, 1, 2, 3], [2, 0, 2, 1])
    assert [int(cache.tokens(beam)[3]) for beam in range(4)] == [12, 10, 12, 11]
    assert cache.stats().n_used == 3  # that of 3 is free, that of 2 is shared
    cache.reorder([0, 1], [1, 0])  # a swap
    cache.reorder([2, 3], [2, 3])  # nothing
    assert [int(cache.tokens(beam)[3]) for beam in range(4)] == [10, 12, 12, 11]
    slots = cache.append_many([0, 1, 2, 3], [20, 21, 22, 23])
    assert len({slot // T for slot in slots.tolist()}) == 4
    assert [cache.tokens(beam)[4] for beam in range(4)] == [20, 21, 22, 23]
    cache.check()


def test_reorder_across_tenants_counts_their_sequences():
    cache = KVCache(32, T)
    for seq_id, salt in enumerate("abc"):
        cache.attach(seq_id, [*PROMPT, seq_id], salt=salt)
        cache.commit(seq_id, 12)
    cache.reorder([0, 1], [1, 2])
    cache.check()
    assert cache.match(PROMPT, salt="a") == 12  # cached, though nobody continues it
    cache.detach([0, 1, 2])
    cache.evict(99)
    cache.check()
    assert cache.stats().n_free == 32
