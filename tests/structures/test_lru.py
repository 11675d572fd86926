"""TokenLRU against an OrderedDict that recomputes everything."""

import copy
import io
import pickle
import threading
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from llmds_nb import CorruptFileError, TokenLRU
from llmds_nb._core import storage

KEYS = st.integers(0, 7)
SIZES = st.integers(0, 12)
BUDGET = 20


class PlainLRU:
    """A plain reference: sums the sizes anew each time."""

    def __init__(self):
        self.entries = OrderedDict()
        self.evicted = []

    def total(self):
        return sum(tokens for _, tokens in self.entries.values())

    def shrink(self, budget):
        gone = []
        while self.total() > budget:
            key, (value, _) = self.entries.popitem(last=False)
            gone.append((key, value))
        self.evicted += gone
        return gone

    def put(self, key, value, tokens):
        self.entries.pop(key, None)
        if tokens > BUDGET:
            return False
        self.shrink(BUDGET - tokens)
        self.entries[key] = (value, tokens)
        return True


class LRUMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.evicted = []
        self.cache = TokenLRU(BUDGET, on_evict=lambda k, v: self.evicted.append((k, v)))
        self.plain = PlainLRU()
        self.clock = 0

    @rule(key=KEYS, tokens=SIZES | st.just(BUDGET) | st.just(BUDGET + 1))
    def put(self, key, tokens):
        self.clock += 1
        expected = self.plain.put(key, self.clock, tokens)
        assert self.cache.put(key, self.clock, tokens) is expected

    @rule(key=KEYS)
    def get(self, key):
        if key in self.plain.entries:
            self.plain.entries.move_to_end(key)
        expected = self.plain.entries.get(key, ("none", 0))[0]
        assert self.cache.get(key, "none") == expected

    @rule(key=KEYS)
    def peek(self, key):
        assert self.cache.peek(key) == self.plain.entries.get(key, (None, 0))[0]

    @rule(key=KEYS)
    def pop(self, key):
        if key in self.plain.entries:
            assert self.cache.pop(key) == self.plain.entries.pop(key)[0]
        else:
            assert self.cache.pop(key, "none") == "none"
            with pytest.raises(KeyError):
                self.cache.pop(key)

    @rule(budget=st.integers(0, BUDGET + 5))
    def evict_until(self, budget):
        assert self.cache.evict_until(budget) == self.plain.shrink(budget)

    @rule()
    def clear(self):
        self.cache.clear()
        self.plain.entries.clear()

    @invariant()
    def same(self):
        self.cache.check()
        assert list(self.cache) == list(self.plain.entries)
        assert self.cache.total_tokens == self.plain.total()
        assert len(self.cache) == len(self.plain.entries)
        assert self.evicted == self.plain.evicted


TestLRU = LRUMachine.TestCase
TestLRU.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_oversize_evicts_nothing():
    evicted = []
    cache = TokenLRU(10, on_evict=lambda *entry: evicted.append(entry))
    cache.put("a", 1, 5)
    cache.put("b", 2, 5)
    assert cache.put("c", 3, 11) is False
    assert (list(cache), cache.total_tokens) == (["a", "b"], 10)
    assert cache.put("a", 4, 11) is False
    assert (list(cache), cache.total_tokens, evicted) == (["b"], 5, [])


def test_token_of_and_explicit_size():
    cache = TokenLRU(10, len)
    assert cache.put("a", "xyz") and cache.total_tokens == 3
    assert cache.put("a", "xyz", tokens=7) and cache.total_tokens == 7


def test_stored_none_is_a_value():
    cache = TokenLRU(3)
    cache.put("a", None, 1)
    assert "a" in cache and cache.get("a", "absent") is None and cache.pop("a") is None


def test_callback_may_use_the_cache():
    def keep_small(key, value):
        if key < 100:
            cache.put(100 + key, value, 1)

    cache = TokenLRU(4, on_evict=keep_small)
    for key in range(4):
        cache.put(key, key, 2)
        cache.check()
    assert list(cache) == [101, 3, 102] or list(cache) == [3, 101]


def test_callback_that_raises_leaves_the_cache_whole():
    seen = []

    def refuse(key, value):
        seen.append(key)
        raise RuntimeError(f"cannot release {key}")

    cache = TokenLRU(4, on_evict=refuse)
    cache.put("a", 1, 2)
    cache.put("b", 2, 2)
    with pytest.raises(RuntimeError, match="cannot release a"):
        cache.put("c", 3, 4)
    cache.check()
    assert seen == ["a", "b"] and list(cache) == ["c"]


def test_failed_put_changes_nothing():
    cache = TokenLRU(10, lambda value: value)
    cache.put("a", 3)
    for bad, error in (
        (lambda: cache.put("a", -1), ValueError),
        (lambda: cache.put("a", "text"), TypeError),
        (lambda: cache.put("a", 1, tokens=-1), ValueError),
        (lambda: cache.put("a", 1, tokens=1.5), TypeError),
        (lambda: cache.put("a", 1, tokens=True), TypeError),
        (lambda: cache.put([], 1), TypeError),
        (lambda: cache.evict_until(-1), ValueError),
    ):
        with pytest.raises(error):
            bad()
        cache.check()
        assert cache.peek("a") == 3 and cache.total_tokens == 3


def test_bad_construction():
    with pytest.raises(ValueError, match="token_budget must be >= 1, not 0"):
        TokenLRU(0)
    with pytest.raises(TypeError):
        TokenLRU(1.5)
    with pytest.raises(TypeError, match="token_of must be callable"):
        TokenLRU(1, 3)
    with pytest.raises(TypeError, match="on_evict must be callable"):
        TokenLRU(1, on_evict="no")
    with pytest.raises(ValueError, match="put needs tokens"):
        TokenLRU(5).put("a", 1)


def test_stats_and_repr():
    cache = TokenLRU(4)
    cache.put("a", 1, 3)
    cache.get("a")
    cache.get("b")
    cache.put("c", 1, 3)
    assert cache.stats() == (1, 3, 4, 1, 1, 1, 4)
    assert repr(cache) == "TokenLRU(1 entries, 3 of 4 tokens)"
    assert cache.nbytes > 0


def test_many_threads():
    cache = TokenLRU(50)

    def work(offset):
        for i in range(2000):
            key = (i * 7 + offset) % 40
            if cache.get(key) is None:
                cache.put(key, key, key % 5)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cache.check()


def test_entries_without_tokens_are_bounded():
    cache = TokenLRU(5)
    for key in range(100):
        assert cache.put(key, key, 0)
        cache.check()
    assert list(cache) == [95, 96, 97, 98, 99] and cache.max_entries == 5
    assert cache.stats().evictions == 95


def test_max_entries_evicts_the_oldest():
    evicted = []
    cache = TokenLRU(100, on_evict=lambda *entry: evicted.append(entry), max_entries=3)
    for key in "abcd":
        cache.put(key, key.upper(), 10)
    cache.get("b")
    cache.put("b", 1, 95)  # replaced: only the tokens are too many
    assert evicted == [("a", "A"), ("c", "C"), ("d", "D")] and list(cache) == ["b"]
    for wrong, error in ((0, ValueError), ("3", TypeError)):
        with pytest.raises(error, match="max_entries"):
            TokenLRU(1, max_entries=wrong)


def test_bytes_stay_bounded_when_the_entries_turn_over():
    cache = TokenLRU(200)
    sizes = set()
    for key in range(50_000):
        cache.put(key, None, key % 3)
        sizes.add(cache.nbytes)
    assert max(sizes) < 300 * 200


PLAIN = {
    "none": None, 7: True, -(2**80): 1.5, 2.5: float("inf"), "": "\ud83d\ude00 two \ud83d",
    b"\0\xff": [1, (2, [b"x"], {})], (1, ("a", None)): {"a": [1], 2: (3,), (4, 5): b""},
    True: 0, None: "\0",
}  # fmt: skip


def test_plain_entries_in_files():
    cache = TokenLRU(1000, max_entries=50)
    for tokens, (key, value) in enumerate(PLAIN.items()):
        cache.put(key, value, tokens)
    arrays = np.arange(6, dtype=np.uint8).reshape(2, 3), np.float32(1.5), np.array(3), np.zeros(0)
    cache.put("arrays", arrays, 5)
    cache.get(7)
    for other in (TokenLRU.from_bytes(cache.to_bytes()), copy.copy(cache), pickled(cache)):
        other.check()
        assert list(other) == list(cache) and other.stats() == cache.stats()
        for key, value in PLAIN.items():
            assert other.peek(key) == value and type(other.peek(key)) is type(value)
        assert [type(key) for key in other] == [type(key) for key in cache]
        for found, array in zip(other.peek("arrays"), arrays, strict=True):
            assert type(found) is type(array) and found.dtype == array.dtype
            assert found.shape == array.shape and (found == array).all()
        other.put("new", 1, 1000)
        assert "new" not in cache


def pickled(obj):
    return pickle.loads(pickle.dumps(obj))


class Word(str):
    pass


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, Word("a"), [1, (2, 3j)], np.array(["a"]), np.array([1j])]
)
def test_other_values_are_refused_by_files_and_kept_by_copies(value):
    cache = TokenLRU(9)
    cache.put("the key", value, 1)
    with pytest.raises(TypeError, match="the key"):
        cache.to_bytes()
    assert copy.copy(cache).peek("the key") is value
    assert copy.deepcopy(cache).peek("the key") is value
    assert type(pickled(cache).peek("the key")) is type(value)


def test_callables_are_parts():
    evicted = []
    cache = TokenLRU(4, token_of=len, on_evict=lambda *entry: evicted.append(entry))
    cache.put("a", "aaa")
    other = TokenLRU.from_bytes(cache.to_bytes(), token_of=len)
    other.put("b", "bb")
    with pytest.raises(ValueError, match="token_of"):
        TokenLRU.from_bytes(cache.to_bytes()).put("b", "bb")
    copy.copy(cache).put("b", "bb")
    assert evicted == [("a", "aaa")] and list(cache) == ["a"] and list(other) == ["b"]
    with pytest.raises(TypeError, match="token_of must be callable"):
        TokenLRU.from_bytes(cache.to_bytes(), token_of=3)


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ('[["a",1,1],["a",1,1]]', {}), ('[["a",1,-1]]', {}), ('[["a",1,9]]', {}), ("[", {}),
        ('[["a",1]]', {}), ('[["a",["set",[]],1]]', {}), ('[["a",["array","array0",[1]],1]]', {}),
        ('[["a",{},1]]', {}), ('[[["list",[]],1,1]]', {}), ("[" * 100_000, {}),
        ('[["a",1,0],["b",1,0]]', {"max_entries": 1}), ("[]", {"counts": [1, 2]}),
        ("[]", {"counts": [1, 2, -1]}), ("[]", {"token_budget": 0}), ("[]", {"max_entries": "1"}),
    ],
)  # fmt: skip
def test_forged_entries_are_refused(text, header):
    arrays = {"entries": np.frombuffer(text.encode(), np.uint8)}
    header = {"version": 1, "token_budget": 8, "max_entries": 8, "counts": [0, 0, 0], **header}
    file = io.BytesIO()
    storage.write(file, "TokenLRU", arrays, header)
    with pytest.raises(CorruptFileError):
        TokenLRU.from_bytes(file.getvalue())
