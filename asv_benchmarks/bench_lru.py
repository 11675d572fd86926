"""TokenLRU beside cachetools.LRUCache and a bare OrderedDict (the control: no code of ours)."""

from collections import OrderedDict

import numpy as np

from . import ours, peer

N_KEYS, N_OPS = 4000, 20_000


class _BareOrderedDict:
    """Evicts by size like the others, without checks, lock or counters."""

    def __init__(self, budget):
        self.entries, self.tokens, self.budget = OrderedDict(), 0, budget

    def get(self, key):
        if key in self.entries:
            self.entries.move_to_end(key)
            return self.entries[key]
        return None

    def put(self, key, value, tokens):
        self.entries[key] = tokens
        self.tokens += tokens
        while self.tokens > self.budget:
            self.tokens -= self.entries.popitem(last=False)[1]


def _make(impl, budget):
    if impl == "llmds_nb":
        cache = ours("TokenLRU")(budget)
        return cache.get, cache.put
    if impl == "OrderedDict":
        cache = _BareOrderedDict(budget)
        return cache.get, cache.put
    cache = peer("cachetools").LRUCache(budget, getsizeof=lambda tokens: tokens)

    def put(key, value, tokens):
        cache[key] = tokens

    return cache.get, put


class ReadThrough:
    """`N_OPS` look-ups of a Zipf stream, where a miss stores the entry: hits and evictions."""

    params = (["llmds_nb", "cachetools", "OrderedDict"], [0.1, 0.9])
    param_names = ("impl", "budget_share")
    version = "1"

    def setup(self, impl, budget_share):
        rng = np.random.default_rng(0)
        sizes = rng.integers(20, 800, N_KEYS)
        self.keys = (rng.zipf(1.2, N_OPS) % N_KEYS).tolist()
        self.sizes = sizes.tolist()
        self.budget = int(sizes.sum() * budget_share)
        _make(impl, self.budget)

    def time_stream(self, impl, budget_share):
        get, put = _make(impl, self.budget)
        sizes = self.sizes
        for key in self.keys:
            if get(key) is None:
                put(key, key, sizes[key])
