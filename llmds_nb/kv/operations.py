"""Operations of a KVCache that take more than one kernel call, and its pins."""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from .._core import validation
from .._core.typing import ArrayLike, Int32s, Int64s, UInt8s
from .._core.validation import INT32, INT32_MAX, INT64
from ..primitives.status import ABSENT
from . import page_tables
from .allocator import Moves
from .kernels import operations as k, state as s
from .kernels.append import kv_append, kv_commit
from .kernels.attach import kv_attach_many, kv_match
from .salts import Salt, check_salt, check_salts, salt_bytes
from .state import CacheState


def match(state: CacheState, tokens: ArrayLike, salt: Any) -> Int32s:
    """The cached pages that hold the longest cached prefix of `tokens`. O(tokens)."""
    tokens = validation.for_kernel(tokens, "tokens", INT32)
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
            k.kv_pin(state.handle.address, pages, 1)
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
            k.kv_pin(state.handle.address, self.pages.pop(number), -1)

    def rename(self, renamed: Int32s) -> None:
        """Replace every page by renamed[page]."""
        self.pages = {number: renamed[pages] for number, pages in self.pages.items()}

    def all_pages(self) -> Int32s:
        """The pages of all pins, one after the other."""
        return np.concatenate([np.zeros(0, np.int32), *self.pages.values()])


def prefix_digests(tokens: ArrayLike, page_size: int, salt: Salt) -> UInt8s:
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


def attach_many(state: CacheState, seq_ids, tokens, indptr, salts: Any, priorities: Any) -> Int64s:
    """See `KVCache.attach_many`."""
    seq_ids = validation.for_kernel(seq_ids, "seq_ids", INT64)
    tokens = validation.for_kernel(tokens, "tokens", INT32)
    indptr = validation.indptr(indptr, len(tokens))
    n = len(seq_ids)
    validation.same_length("indptr[1:]", indptr[1:], "seq_ids", seq_ids)
    if salts is not None:
        salts = check_salts(salts)
        validation.same_length("salts", salts, "seq_ids", seq_ids)
    if priorities is None:
        priorities = np.zeros(n, np.int64)
    else:
        priorities = validation.integers(priorities, "priorities", low=-INT32_MAX, high=INT32_MAX)
        validation.same_length("priorities", priorities, "seq_ids", seq_ids)
    hits = np.empty(n, np.int64)
    with state.lock:
        if salts is None:
            domains = np.full(n, state.domain(0), np.int64)
        else:
            state.reserve_domains(len(set(salts)))
            domains = np.array([state.domain(salt) for salt in salts], np.int64)
        state.run(kv_attach_many, seq_ids, tokens, indptr, domains, priorities, hits)
    return hits


def append(state: CacheState, seq_id, tokens, kv) -> Int64s:
    """See `KVCache.append`."""
    seq_id = validation.natural(seq_id, "seq_id")
    tokens = validation.for_kernel(tokens, "tokens", INT32)
    tensors = None if kv is None else state.needed_tensors()
    rows = None if tensors is None else tensors.checked(kv, len(tokens))
    slots = np.empty(len(tokens), np.int64)
    with state.lock:
        state.run(kv_append, seq_id, tokens, slots)
        if tensors is not None and len(tokens):
            tensors.slots[slots] = rows
            state.run(kv_commit, seq_id, state.length(seq_id))
    return slots


def write(state: CacheState, seq_id, start, kv) -> None:
    """See `KVCache.write`."""
    seq_id = validation.natural(seq_id, "seq_id")
    rows = state.needed_tensors().checked(kv)
    start = validation.natural(start, "start")
    with state.lock:
        length, stop = state.length(seq_id), start + len(rows)
        if stop > length:
            raise ValueError(f"write to tokens {start} to {stop} of a sequence of {length}")
        write_rows(state, seq_id, start, rows)


def write_rows(state: CacheState, seq_id: int, start: int, rows: npt.NDArray) -> None:
    """Write the K/V rows of tokens from `start` on, copying pages that others hold. O(n)."""
    slots = np.empty(len(rows), np.int64)
    state.run(k.kv_write, seq_id, start, slots)
    state.needed_tensors().slots[slots] = rows


def get(state: CacheState, seq_id) -> npt.NDArray:
    """See `KVCache.get`."""
    rows = state.needed_tensors().slots
    with state.lock:
        length = state.length(seq_id)
        return rows[page_tables.slot_mapping(state, [seq_id], 0, length, None)]


def compact(state: CacheState, pins: Pins) -> Moves:
    """See `KVCache.compact`."""
    src, dst, renamed = (np.empty(state.settings.n_pages, np.int32) for _ in range(3))
    with state.lock:
        pending = int(state.arrays.meta[s.N_PENDING])
        if pending:
            raise RuntimeError(f"{pending} pending copies must be fetched before compact()")
        n = k.kv_compact(state.handle.address, src, dst, renamed)
        moves = Moves(src[:n].copy(), dst[:n].copy())
        pins.rename(renamed)
        if state.tensors is not None:
            state.tensors.kv[moves.dst] = state.tensors.kv[moves.src]
    return moves
