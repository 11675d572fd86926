"""PagedAllocator beside a deque of free pages with a list of reference counts."""

from collections import deque
from functools import cache

import numpy as np

from . import ours

POOL = 100_000


class PlainPool:
    """Baseline: a deque and a list; a double free is refused before anything changes."""

    def __init__(self, n_pages):
        self.free_pages, self.refs = deque(range(n_pages)), [0] * n_pages

    def alloc(self, n):
        if n > len(self.free_pages):
            raise MemoryError(f"{n} pages wanted")
        pages = [self.free_pages.popleft() for _ in range(n)]
        for page in pages:
            self.refs[page] = 1
        return pages

    def share(self, pages):
        for page in pages:
            if not self.refs[page]:
                raise ValueError(f"page {page} is free")
        for page in pages:
            self.refs[page] += 1

    def free(self, pages):
        for page in pages:
            if not self.refs[page]:
                raise ValueError(f"page {page} is free")
        for page in pages:
            self.refs[page] -= 1
            if not self.refs[page]:
                self.free_pages.append(page)

    def compact(self):
        """Moves (src, dst) of the live pages to the lowest ids."""
        live = [page for page, ref in enumerate(self.refs) if ref]
        moved = [page for page in live if page >= len(live)]
        holes = [page for page in range(len(live)) if not self.refs[page]]
        for src, dst in zip(moved, holes, strict=True):
            self.refs[dst], self.refs[src] = self.refs[src], 0
        self.free_pages = deque(range(len(live), len(self.refs)))
        return moved, holes


def _pool(impl, n_pages):
    return PlainPool(n_pages) if impl == "plain Python" else ours("PagedAllocator")(n_pages)


class Cycle:
    """Pages come n at a time, are shared, and freed twice; 50 rounds in a pool of 100,000."""

    params = ([1, 64, 1024], ["llmds_nb", "plain Python"])
    param_names = ("n", "impl")
    version = "1"

    def setup(self, n, impl):
        self.pool = self.built(impl)

    @staticmethod
    @cache
    def built(impl):
        return _pool(impl, POOL)

    def time_50_rounds(self, n, impl):
        pool = self.pool
        for _ in range(50):
            pages = pool.alloc(n)
            pool.share(pages)
            pool.free(pages)
            pool.free(pages)


class Compact:
    """Compaction of a pool of which every other page is in use."""

    params = (["llmds_nb", "plain Python"],)
    param_names = ("impl",)
    version = "1"
    number = 1

    def setup(self, impl):
        self.pool = _pool(impl, POOL)
        pages = self.pool.alloc(POOL)
        self.pool.free(pages[::2])

    def time_compact(self, impl):
        self.pool.compact()

    def track_bytes_per_page(self, impl):
        if impl == "llmds_nb":
            return self.pool.nbytes / POOL
        return 8 + 32 + 8  # place in the deque, int, place in the list of counts

    track_bytes_per_page.unit = "bytes"


class Growth:
    """64 pages allocated and freed, 50 times, in pools of different sizes."""

    params = ([1_000, 1_000_000], ["llmds_nb", "plain Python"])
    param_names = ("pool", "impl")
    version = "1"

    def setup(self, pool, impl):
        self.pool = self.built(pool, impl)

    @staticmethod
    @cache
    def built(pool, impl):
        made = _pool(impl, pool)
        held = np.random.default_rng(0).permutation(pool)[: pool // 2].tolist()
        made.alloc(pool)
        made.free(held)  # free pages in random order, as after hours of use
        return made

    def time_50_rounds(self, pool, impl):
        for _ in range(50):
            self.pool.free(self.pool.alloc(64))
