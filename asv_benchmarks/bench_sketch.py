"""CountMinSketch beside bounter (C, conservative), datasketches, an exact Counter (the control)."""

from collections import Counter

import numpy as np

from . import ours, peer

N = 200_000
IMPLS = ["llmds_nb", "bounter", "datasketches", "Counter"]


def _zipf(n, n_keys=100_000):
    share = np.cumsum(np.arange(1, n_keys + 1) ** -1.05)
    return np.searchsorted(share / share[-1], np.random.default_rng(0).random(n)).astype(np.int64)


def _adder(impl, width, top):
    """A function that adds a whole batch to a new counter."""
    if impl == "llmds_nb":
        return ours("CountMinSketch")(width, 4, top=top).add
    if impl == "Counter":
        return Counter().update
    if impl == "bounter":
        return peer("bounter.count_min_sketch").CountMinSketch(width=width, depth=4).update
    datasketches = peer("datasketches")
    if top:
        sketch = datasketches.frequent_strings_sketch(12)
        return lambda items: [sketch.update(item) for item in items]
    sketch = datasketches.count_min_sketch(4, width)
    return lambda items: [sketch.update(item) for item in items]


class Add:
    """One batch; bounter counts strings only."""

    params = (IMPLS, ["int", "str"], [2048, 65536])
    param_names = ("impl", "items", "width")
    version = "1"
    number = 1

    def setup(self, impl, items, width):
        if impl == "bounter" and items == "int":
            raise NotImplementedError
        keys = _zipf(N)
        self.items = keys if (impl, items) == ("llmds_nb", "int") else keys.tolist()
        if items == "str":
            self.items = [f"query {key}" for key in self.items]
        _adder(impl, width, 0)(self.items[:10])
        self.add = _adder(impl, width, 0)

    def time_add(self, impl, items, width):
        self.add(self.items)


class AddWithTop:
    """Counting and the 100 heaviest in one pass."""

    params = (["llmds_nb", "datasketches", "Counter"],)
    param_names = ("impl",)
    version = "1"
    number = 1

    def setup(self, impl):
        self.items = [f"query {key}" for key in _zipf(N).tolist()]
        _adder(impl, 65536, 100)(self.items[:10])
        self.add = _adder(impl, 65536, 100)

    def time_add(self, impl):
        self.add(self.items)


class Quality:
    """Mean over-count per distinct key, and recall of the 100 heaviest."""

    params = ([2048, 65536],)
    param_names = ("width",)
    version = "1"

    def setup(self, width):
        items = _zipf(N)
        self.keys, self.true = np.unique(items, return_counts=True)
        self.sketch = ours("CountMinSketch")(width, 4, top=100)
        self.sketch.add(items)

    def track_mean_over_count(self, width):
        return float((self.sketch.estimate(self.keys) - self.true).mean())

    def track_under_counts(self, width):
        return int((self.sketch.estimate(self.keys) < self.true).sum())

    def track_top_100_recall(self, width):
        heaviest = self.keys[np.lexsort((self.keys, -self.true))][:100]
        return len(set(heaviest.tolist()) & set(self.sketch.top(100).items.tolist())) / 100
