"""Measures how the cost of an operation grows with the size of its structure.

Every case builds its structure at several sizes and returns for each a function that does a number
of operations. The sizes are timed in turns, so that whatever slows the machine down slows all of
them; a time is the median CPU time of the rounds. A power law c * n ** e is fitted to the times.
"""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from llmds_nb import HNSW, CountMinSketch, IndexedHeap, InvertedIndex, KVCache, PagedAllocator
from llmds_nb._core.typing import ArrayLike, Float32s

from ..progress import Done, nothing

ROUNDS = 9
MIN_SIZE = 1000
# The largest exponent for each bound. Larger structures miss the processor's caches more often,
# which a bound on operations does not count: a constant cost may look like n ** .15.
LIMITS = {"O(1)": 0.15, "O(log n)": 0.35, "O(n)": 1.1}
PAGE = 16


class Growth(NamedTuple):
    """One operation's cost over its sizes."""

    name: str
    bound: str  # as in LIMITS
    size: str  # what n counts
    sizes: list
    us: list  # microseconds of one operation
    exponent: float

    @property
    def passed(self) -> bool:
        """Whether the exponent is within the limit of its bound."""
        return self.exponent <= LIMITS[self.bound]


def measure(name: str, seed: int, done: Done = nothing, *, smaller: int = 1) -> Growth:
    """Measure one of `CASES`, with sizes divided by `smaller`, but at least `MIN_SIZE`."""
    bound, size, sizes, build = CASES[name]
    sizes = sorted({max(n // smaller, MIN_SIZE) for n in sizes})
    calls = []
    for n in sizes:
        call, operations = build(n, np.random.default_rng(seed))
        call()  # compiles, and brings the data into memory
        calls.append((call, operations))
        done(1)
    times: list[list[float]] = [[] for _ in sizes]
    for _ in range(ROUNDS):
        for taken, (call, operations) in zip(times, calls, strict=True):
            start = time.thread_time_ns()
            call()
            taken.append((time.thread_time_ns() - start) / operations / 1e3)
        done(1)
    us = [statistics.median(taken) for taken in times]
    return Growth(name, bound, size, sizes, us, fit(sizes, us))


def fit(sizes: ArrayLike, times: ArrayLike) -> float:
    """The exponent e of the best c * n ** e by least squares of the logarithms; 0 for one size.

    >>> round(fit([1, 10, 100], [2.0, 20.0, 200.0]), 6)
    1.0
    """
    if np.size(sizes) < 2:
        return 0.0
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(times, 1e-9)), 1)[0])


def _allocator(n, rng):
    allocator = PagedAllocator(n, PAGE)
    pages = allocator.alloc(n)
    allocator.free(rng.permutation(pages)[: n // 2])

    def call():
        for _ in range(40):
            allocator.free(allocator.alloc(256))

    return call, 40 * 256


def _full_cache(n, rng, **options):
    """A cache whose n pages are all cached, and 64 of the cached prompts, of 32 pages each."""
    cache = KVCache(n, PAGE, key=b"claims", **options)
    kept = []
    for i in range(n // 32):
        tokens = rng.integers(0, 2**31, 32 * PAGE, np.int32)
        cache.attach(i, tokens)
        cache.commit(i, tokens.size)
        cache.detach(i)
        kept.append(tokens)
    return cache, [kept[i] for i in rng.integers(0, len(kept), 64)]


def _attach(n, rng):
    cache, prompts = _full_cache(n, rng)

    def call():
        for i, tokens in enumerate(prompts):
            cache.attach(10**9 + i, tokens)
            cache.detach(10**9 + i)

    return call, len(prompts) * 32


def _get(n, rng):
    cache, prompts = _full_cache(n, rng, kv_shape=(16,))
    for i, tokens in enumerate(prompts):
        cache.attach(10**9 + i, tokens)

    def call():
        for i in range(len(prompts)):
            cache.get(10**9 + i)

    return call, len(prompts) * 32


def _heap(n, rng):
    heap = IndexedHeap(n)
    heap.push_many(np.arange(n), rng.random(n))
    changes = [(rng.choice(n, min(n, 1000), replace=False), rng.random(min(n, 1000)))
               for _ in range(10)]  # fmt: skip

    def call():
        for items, priorities in changes:
            heap.update_many(items, priorities)

    return call, 10 * min(n, 1000)


def vectors(n: int, rng: np.random.Generator, dim: int = 128) -> Float32s:
    """float32[n, dim] along 16 directions, with a tenth of noise in all: like embeddings of text.

    The directions do not depend on `rng`, so that queries can be drawn from another generator.
    """
    directions = np.random.default_rng(0).standard_normal((16, dim), np.float32)
    drawn = rng.standard_normal((n, 16), np.float32) @ directions
    return drawn + rng.standard_normal((n, dim), np.float32) * np.float32(0.4)


def _hnsw(n, rng):
    index = HNSW(128, M=16, ef_search=50)
    index.add(vectors(n, rng))
    queries = vectors(100, rng)
    return lambda: index.search(queries), 100


def texts(n: int, rng: np.random.Generator, words: int = 50, vocabulary: int = 20_000) -> list[str]:
    """n documents of words drawn by Zipf popularity."""
    weights = 1 / np.arange(1, vocabulary + 1)
    names = np.array([f"w{i}" for i in range(vocabulary)])
    drawn = rng.choice(vocabulary, size=(n, words), p=weights / weights.sum())
    return [" ".join(row) for row in names[drawn]]


def _bm25(n, rng):
    index = InvertedIndex()
    index.add(None, texts(n, rng))
    queries = [f"w{a} w{b} w{c}" for a, b, c in rng.integers(5, 500, (50, 3))]
    return lambda: index.search(queries), 50


def _sketch(n, rng):
    sketch = CountMinSketch(2**16, 4, seed=1)
    sketch.add(rng.integers(0, 2**62, n))
    asked = rng.integers(0, 2**62, 1000)

    def call():
        for _ in range(10):
            sketch.estimate(asked)

    return call, 10_000


# Of each operation: bound, what n counts, sizes, function that builds the structure.
CASES: dict[str, tuple[str, str, list[int], Callable]] = {
    "allocate and free a page": ("O(1)", "pages", [1_000, 10_000, 100_000, 1_000_000], _allocator),
    "attach and detach, a page": ("O(1)", "cached pages", [3_200, 32_000, 160_000], _attach),
    "get the K/V of a page": ("O(1)", "cached pages", [3_200, 32_000, 160_000], _get),
    "change a heap's priority": ("O(log n)", "items", [1_000, 10_000, 100_000, 1_000_000], _heap),
    "search HNSW": ("O(log n)", "vectors", [2_000, 8_000, 32_000], _hnsw),
    "search BM25": ("O(n)", "documents", [1_000, 4_000, 16_000, 64_000], _bm25),
    "estimate by sketch": ("O(1)", "items counted", [10_000, 100_000, 1_000_000], _sketch),
}
