"""TokenLRU against an OrderedDict that recomputes everything."""

import threading
from collections import OrderedDict

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from llmds_nb import TokenLRU

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
    assert cache.stats() == (1, 3, 4, 1, 1, 1)
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
