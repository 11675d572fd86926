"""The part of KVCache that is about cached prefixes and the tenants who own them."""

import hashlib

import numpy as np

from .._core import validation
from .._core.validation import INT32
from .kernels import operations as k
from .page_tables import PageTables
from .state import check_salt, salt_bytes


class Prefixes(PageTables):
    """Looking prefixes up, pinning and evicting them, quotas, digests; see KVCache."""

    def match(self, tokens, *, salt=0) -> int:
        """Return how many leading tokens are cached, without touching anything. O(tokens)."""
        tokens = validation.for_kernel(tokens, "tokens", INT32)
        salt = check_salt(salt)
        with self._lock:
            return len(self._matched(tokens, salt)) * self.page_size

    def pin(self, tokens, *, salt=0) -> int:
        """Keep the cached prefix of `tokens` from eviction. O(tokens).

        Returns
        -------
        int
            A handle for `unpin`. It remembers the pages that are cached now, perhaps none.
        """
        tokens = validation.for_kernel(tokens, "tokens", INT32)
        salt = check_salt(salt)
        with self._lock:
            pages = self._matched(tokens, salt).copy()
            k.kv_pin(self._handle, pages, 1)
            handle = self._next_pin
            self._next_pin += 1
            self._pins[handle] = pages
            return handle

    def unpin(self, handle) -> None:
        """Let the pages of a pin be evicted again. O(pages). KeyError for an unknown handle."""
        handle = validation.integer(handle, "handle")
        with self._lock:
            if handle not in self._pins:
                raise KeyError(f"no pin has handle {handle}")
            k.kv_pin(self._handle, self._pins.pop(handle), -1)

    def evict(self, n_pages) -> int:
        """Evict up to `n_pages` cached pages that nobody holds; return how many. O(n log pages)."""
        n_pages = validation.natural(n_pages, "n_pages")
        with self._lock:
            return k.kv_evict(self._handle, n_pages)

    def set_quota(self, salt, n_pages) -> None:
        """Limit the pages that a tenant may own, cached ones included. O(pages in the pool).

        Cached pages of the tenant above the limit are evicted at once; pages in use stay, but no
        more are given. ``None`` lifts the limit.
        """
        salt = check_salt(salt)
        if n_pages is not None:
            n_pages = validation.integer(n_pages, "n_pages", low=0, high=validation.INT32_MAX)
            n_pages = min(n_pages, self.n_pages)
        with self._lock:
            self._run(k.kv_quota, self._domain(salt), -1 if n_pages is None else n_pages)

    def prefix_digests(self, tokens, *, salt=0) -> np.ndarray:
        """Return the chained SHA-256 of every full page: equal on every machine. O(tokens).

        Digest 0 hashes the ASCII bytes ``llmds_nb prefix 1``, a zero byte, the page size as a
        little-endian uint32, the salt, and the first page; every other digest hashes the one before
        it and the next page. A page is its tokens as little-endian int32. A salt is one of the
        bytes ``i``, ``b``, ``s`` for int, bytes, str; the length of the rest as a little-endian
        uint64; and the decimal digits, the bytes, or the UTF-8 text.

        Returns
        -------
        uint8[n_full_pages, 32]
        """
        tokens = validation.token_ids(tokens)
        size = self.page_size
        n = len(tokens) // size
        data = tokens[: n * size].astype("<i4").tobytes()
        before = b"llmds_nb prefix 1\0" + size.to_bytes(4, "little")
        before += salt_bytes(check_salt(salt))
        out = np.empty((n, 32), np.uint8)
        for i in range(n):
            before = hashlib.sha256(before + data[4 * size * i : 4 * size * (i + 1)]).digest()
            out[i] = np.frombuffer(before, np.uint8)
        return out
