"""PagedAllocator: fixed-size pages of KV memory with reference counts."""

from typing import Any, NamedTuple

import numpy as np

from .._core import validation
from .._core.forking import new_lock
from .._core.state import Handle
from .._core.storage import Stored
from .._core.typing import ArrayLike, Int32s
from ..errors import CapacityError, CorruptFileError
from ..primitives.status import ABSENT, FULL
from .kernels import allocator as k

AllocatorState: Any = k.AllocatorState  # a named tuple class: see _core/state.py


class Moves(NamedTuple):
    """Page copies: gather all of `src`, then scatter to `dst` (``kv[dst] = kv[src]``)."""

    src: Int32s  # int32[n]
    dst: Int32s  # int32[n], distinct


class AllocatorStats(NamedTuple):
    """Sizes of a PagedAllocator, in pages unless said otherwise."""

    n_pages: int
    page_size: int  # tokens
    n_free: int
    n_used: int
    n_shared: int  # pages with more than one reference
    holes: int  # free pages below the highest used one, which compact() closes


class PagedAllocator(Stored):
    """Allocates fixed-size pages by number and counts the references to them.

    Parameters
    ----------
    n_pages : int
        Pages in the pool, 1 to 2**31 - 1.
    page_size : int
        Tokens per page, a power of two from 1 to 4096; only reported by `stats`.

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

    def __init__(self, n_pages: int, page_size: int = 512):
        self.n_pages = validation.integer(n_pages, "n_pages", low=1, high=validation.INT32_MAX)
        self.page_size = validation.power_of_two(page_size, "page_size", low=1, high=4096)
        ref = np.zeros(self.n_pages, np.int32)
        self._assemble(ref, np.arange(self.n_pages - 1, -1, -1, dtype=np.int32), self.n_pages)

    def _assemble(self, ref, free_stack, n_free):
        self._arrays = AllocatorState(ref=ref, free_stack=free_stack, meta=np.array([n_free]))
        self._handle = Handle(self._arrays)
        self._lock = new_lock()

    def alloc(self, n: int = 1) -> Int32s:
        """Take `n` free pages, each with one reference; return them as int32[n]. O(n).

        CapacityError if fewer are free; none is taken then.
        """
        out = np.empty(validation.integer(n, "n", low=0, high=validation.INT32_MAX), np.int32)
        with self._lock:
            if k.page_alloc_many(self._handle.address, out) == FULL:
                raise CapacityError(f"{n} pages wanted, {self.n_free} of {self.n_pages} free")
        return out

    def share(self, pages: ArrayLike) -> None:
        """Add one reference to each page. O(n).

        ValueError if a page is unknown or free, or has 2**31 - 1 references; nothing is changed
        then.
        """
        pages = self._pages(pages)
        with self._lock:
            position = k.page_share_many(self._handle.address, pages)
        if position < ABSENT:
            page = pages[-2 - position]
            raise ValueError(f"page {page} has 2**31 - 1 references, and can take no more")
        if position != ABSENT:
            raise ValueError(f"page {pages[position]} is free and cannot be shared")

    def free(self, pages: ArrayLike) -> None:
        """Drop one reference from each page; pages without any become free. O(n).

        ValueError if a page is unknown, or is dropped more often than it has references; nothing is
        changed then.
        """
        pages = self._pages(pages)
        with self._lock:
            position = k.page_free_many(self._handle.address, pages)
        if position != ABSENT:
            raise ValueError(f"page {pages[position]} is free already (double free)")

    def refcount(self, pages: ArrayLike) -> Int32s:
        """Return the number of references of each page as int32[n]; 0 means free. O(n)."""
        pages = self._pages(pages)
        with self._lock:  # NumPy may let other threads run while it gathers
            return self._arrays.ref[pages]

    def compact(self) -> Moves:
        """Move the pages in use to the lowest ids. O(n_pages).

        They have their new ids at once: page ``src[i]`` is now ``dst[i]``. The caller copies the
        contents and renames the pages it holds.
        """
        src, dst = np.empty(self.n_pages, np.int32), np.empty(self.n_pages, np.int32)
        with self._lock:
            n = k.page_compact(self._handle.address, src, dst)
        return Moves(src[:n].copy(), dst[:n].copy())

    @property
    def n_free(self) -> int:
        """Pages without a reference."""
        return int(self._arrays.meta[0])

    @property
    def n_used(self) -> int:
        """Pages with at least one reference."""
        return self.n_pages - self.n_free

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in self._arrays)

    def stats(self) -> AllocatorStats:
        """Return the sizes. O(n_pages)."""
        with self._lock:
            used = np.flatnonzero(self._arrays.ref)
            holes = int(used[-1]) + 1 - used.size if used.size else 0
            sizes = self.n_pages, self.page_size, self.n_free, self.n_used
            return AllocatorStats(*sizes, int((self._arrays.ref > 1).sum()), holes)

    def check(self) -> None:
        """Assert the invariants of kernels/allocator.py. O(n_pages)."""
        with self._lock:
            free = self._arrays.free_stack[: self.n_free]
            assert (self._arrays.ref >= 0).all()
            assert np.array_equal(np.sort(free), np.flatnonzero(self._arrays.ref == 0))

    def _state(self):
        with self._lock:
            free = self._arrays.free_stack[: self.n_free]
            arrays = {"ref": self._arrays.ref.copy(), "free_stack": free.copy()}
        return arrays, {"n_pages": self.n_pages, "page_size": self.page_size}

    @classmethod
    def _from_state(cls, arrays, header):
        ref, free = arrays["ref"], arrays["free_stack"]
        if type(header["n_pages"]) is not int or header["n_pages"] != len(ref):
            raise CorruptFileError(f"header field 'n_pages' is {header['n_pages']!r}")
        pool = cls(header["n_pages"], header["page_size"])
        n = pool.n_pages
        for name, array, most in (("ref", ref, n), ("free_stack", free, free.size)):
            if array.dtype != np.int32 or array.shape != (most,):
                raise CorruptFileError(f"array {name!r} is {array.dtype}{list(array.shape)}")
        if (ref < 0).any() or not np.array_equal(np.sort(free), np.flatnonzero(ref == 0)):
            raise CorruptFileError("'free_stack' does not hold the pages without references")
        stack = np.zeros(n, np.int32)
        stack[: free.size] = free
        pool._assemble(ref, stack, free.size)
        return pool

    def __len__(self) -> int:
        return self.n_used

    def __repr__(self) -> str:
        used = f"{self.n_used} of {self.n_pages} pages used"
        return f"PagedAllocator({used}, {self.page_size} tokens each)"

    def _pages(self, pages) -> Int32s:
        return validation.integers(pages, "pages", dtype=np.int32, high=self.n_pages - 1)

    @staticmethod
    def _warmup():
        pool = PagedAllocator(4)
        pages = pool.alloc(3)
        pool.share(pages)
        pool.free(pages)
        pool.compact()
