"""PagedAllocator: fixed-size pages with reference counts."""

import threading
from typing import NamedTuple

import numpy as np

from .._core import validation
from ..errors import CapacityError
from ..primitives.status import ABSENT, FULL
from .kernels import allocator as k


class Moves(NamedTuple):
    """Page copies: gather all of `src`, then scatter to `dst` (``kv[dst] = kv[src]``)."""

    src: np.ndarray  # int32[n]
    dst: np.ndarray  # int32[n], distinct


class AllocatorStats(NamedTuple):
    """Sizes of a PagedAllocator, in pages unless said otherwise."""

    n_pages: int
    page_size: int  # tokens
    n_free: int
    n_used: int
    n_shared: int  # pages with more than one reference
    holes: int  # free pages below the highest used one: what compact() would close


class PagedAllocator:
    """Hands out fixed-size pages by number and counts their holders.

    Parameters
    ----------
    n_pages : int
        Pages in the pool, 1 to 2**31 - 1.
    page_size : int
        Tokens per page, a power of two from 1 to 4096. The allocator only reports it.

    Notes
    -----
    Every operation is O(1) per page and one kernel call per batch; compaction is O(n_pages). The
    idea of paging the KV cache is PagedAttention's (Kwon et al., SOSP 2023). Thread-safe by one
    lock per object.

    >>> pool = PagedAllocator(4, page_size=16)
    >>> pages = pool.alloc(3)
    >>> pages
    array([0, 1, 2], dtype=int32)
    >>> pool.share(pages[:1])
    >>> pool.free(pages)
    >>> pool.n_free, pool.refcount([0, 1])
    (3, array([1, 0], dtype=int32))
    """

    def __init__(self, n_pages, page_size=512):
        self.n_pages = validation.integer(n_pages, "n_pages", low=1, high=validation.INT32_MAX)
        self.page_size = validation.power_of_two(page_size, "page_size", low=1, high=4096)
        self._ref = np.zeros(self.n_pages, np.int32)
        self._stack = np.empty(self.n_pages, np.int32)
        self._meta = np.array([k.page_stack_free(self._ref, self._stack)])
        self._lock = threading.Lock()

    def alloc(self, n=1) -> np.ndarray:
        """Take `n` free pages, each with one reference. O(n).

        Returns
        -------
        int32[n]

        Raises
        ------
        CapacityError
            Fewer than `n` pages are free; none was taken.
        """
        out = np.empty(validation.integer(n, "n", low=0, high=validation.INT32_MAX), np.int32)
        with self._lock:
            if k.page_alloc_many(self._ref, self._stack, self._meta, out) == FULL:
                raise CapacityError(f"{n} pages wanted, {self.n_free} of {self.n_pages} free")
        return out

    def share(self, pages) -> None:
        """Add one reference to each page. O(n).

        Raises
        ------
        ValueError
            A page is unknown or free; nothing was changed.
        """
        pages = self._pages(pages)
        with self._lock:
            position = k.page_share_many(self._ref, pages)
        if position != ABSENT:
            raise ValueError(f"page {pages[position]} is free and cannot be shared")

    def free(self, pages) -> None:
        """Drop one reference from each page; pages without any become free. O(n).

        Raises
        ------
        ValueError
            A page is unknown, or is dropped more often than it has references; nothing was changed.
        """
        pages = self._pages(pages)
        with self._lock:
            position = k.page_free_many(self._ref, self._stack, self._meta, pages)
        if position != ABSENT:
            raise ValueError(f"page {pages[position]} is free already (double free)")

    def refcount(self, pages) -> np.ndarray:
        """Return the number of references of each page as int32[n]; 0 means free. O(n)."""
        return self._ref[self._pages(pages)]

    def compact(self) -> Moves:
        """Move the live pages to the lowest ids. O(n_pages).

        The pool is renumbered at once; the caller copies the contents and renames the pages it
        holds: page ``src[i]`` is now ``dst[i]``.
        """
        src, dst = np.empty(self.n_pages, np.int32), np.empty(self.n_pages, np.int32)
        with self._lock:
            n = k.page_compact(self._ref, self._stack, self._meta, src, dst)
        return Moves(src[:n].copy(), dst[:n].copy())

    @property
    def n_free(self) -> int:
        """Pages without a holder."""
        return int(self._meta[0])

    @property
    def n_used(self) -> int:
        """Pages with at least one holder."""
        return self.n_pages - self.n_free

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self._ref.nbytes + self._stack.nbytes + self._meta.nbytes

    def stats(self) -> AllocatorStats:
        """Return the sizes. O(n_pages)."""
        with self._lock:
            used = np.flatnonzero(self._ref)
            holes = int(used[-1]) + 1 - used.size if used.size else 0
            return AllocatorStats(
                self.n_pages, self.page_size, self.n_free, self.n_used,
                int((self._ref > 1).sum()), holes,
            )  # fmt: skip

    def check(self) -> None:
        """Assert the invariants of kernels/allocator.py. O(n_pages)."""
        free = self._stack[: self.n_free]
        assert (self._ref >= 0).all()
        assert np.array_equal(np.sort(free), np.flatnonzero(self._ref == 0))

    def __len__(self) -> int:
        return self.n_used

    def __repr__(self) -> str:
        return f"PagedAllocator({self.n_used} of {self.n_pages} pages used, {self.page_size} tokens each)"  # noqa: E501

    def _pages(self, pages):
        return validation.integers(pages, "pages", dtype=np.int32, high=self.n_pages - 1)

    @staticmethod
    def _warmup():
        pool = PagedAllocator(4)
        pages = pool.alloc(3)
        pool.share(pages)
        pool.free(pages)
        pool.free(pages[:1])
        pool.compact()
