"""Cached prefixes of a KVCache: looked up, pinned, and named by digests."""

import hashlib
from typing import Any

import numpy as np

from .._core import validation
from .._core.typing import ArrayLike, Int32s, UInt8s
from ..primitives.status import ABSENT
from .kernels.attach import kv_match
from .kernels.operations import kv_pin
from .salts import Salt, check_salt, salt_bytes
from .state import CacheState


def match(state: CacheState, tokens: ArrayLike, salt: Any) -> Int32s:
    """The cached pages that hold the longest cached prefix of `tokens`. O(tokens)."""
    tokens = validation.for_kernel(tokens, "tokens", validation.INT32)
    salt = check_salt(salt)
    pages = np.empty(len(tokens) // state.settings.page_size, np.int32)
    with state.lock:
        # An unknown salt has no domain: the kernel then only checks the tokens.
        args = (state.domains.get(salt, ABSENT), tokens, pages)
        n = kv_match(state.handle.address, *args)
        return pages[: n if n >= 0 else state.refused(kv_match, n, args)]


class Pins:
    """The pinned prefixes: the pages of each pin under the number that `unpin` takes."""

    def __init__(self, pages: dict[int, Int32s] | None = None, next_number: int = 1):
        self.pages = {} if pages is None else pages
        self.next_number = next_number

    def add(self, state: CacheState, tokens: ArrayLike, salt: Any) -> int:
        """Pin the cached prefix of `tokens`; return the number of the pin."""
        with state.lock:
            pages = match(state, tokens, salt).copy()
            kv_pin(state.handle.address, pages, 1)
            number = self.next_number
            self.next_number += 1
            self.pages[number] = pages
            return number

    def remove(self, state: CacheState, number: int) -> None:
        """Remove a pin; KeyError if there is none of this number."""
        number = validation.integer(number, "handle")
        with state.lock:
            if number not in self.pages:
                raise KeyError(f"no pin has handle {number}")
            kv_pin(state.handle.address, self.pages.pop(number), -1)

    def rename(self, renamed: Int32s) -> None:
        """Replace every page by renamed[page]."""
        self.pages = {number: renamed[pages] for number, pages in self.pages.items()}

    def all_pages(self) -> Int32s:
        """The pages of all pins, one after the other."""
        return np.concatenate([np.zeros(0, np.int32), *self.pages.values()])


def digests(tokens: ArrayLike, page_size: int, salt: Salt) -> UInt8s:
    """See `KVCache.prefix_digests`."""
    tokens = validation.token_ids(tokens)
    n, step = len(tokens) // page_size, 4 * page_size
    data = tokens[: n * page_size].astype("<i4").tobytes()
    chained = b"llmds_nb prefix 1\0" + page_size.to_bytes(4, "little")
    chained += salt_bytes(check_salt(salt))
    out = np.empty((n, 32), np.uint8)
    for i in range(n):
        chained = hashlib.sha256(chained + data[step * i : step * (i + 1)]).digest()
        out[i] = np.frombuffer(chained, np.uint8)
    return out
