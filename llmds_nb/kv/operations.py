"""Operations of a KVCache that take more than one kernel call."""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from .._core import validation
from .._core.typing import ArrayLike, Int32s, Int64s, UInt8s
from .._core.validation import INT32, INT32_MAX, INT64, shown
from ..primitives.hash_table import table_find
from ..primitives.status import ABSENT
from . import page_tables
from .allocator import Moves
from .events import KVEvent, decode
from .extra import check_extra, parts_by_page, parts_bytes
from .kernels import operations as k, state as s
from .kernels.append import kv_append, kv_append_many
from .kernels.attach import kv_attach_many, kv_match
from .kernels.events import N_EVENTS, N_LOST
from .kernels.reorder import kv_reorder
from .kernels.unknown_tokens import kv_reserve, kv_set_tokens
from .pins import Pins
from .salts import Salt, check_salt, check_salts, salt_bytes
from .state import CacheState, pages_lack
from .tensors import DueRows


def match(state: CacheState, tokens: ArrayLike, salt: Any, extra: Any) -> Int32s:
    """The cached pages that hold the longest cached prefix of `tokens`. O(tokens)."""
    tokens = validation.for_kernel(tokens, "tokens", INT32)
    salt, ranges = check_salt(salt), check_extra(extra)
    with state.lock:
        state.ready()
        keys = None
        if ranges:
            tokens = state.extras.put_known(validation.token_ids(tokens), ranges)
            keys = np.zeros((1, 2), np.int64)
        pages = np.empty(len(tokens) // state.settings.page_size, np.int32)
        # An unknown salt has no domain: the kernel then only checks the tokens.
        domain = state.domains.get(salt, ABSENT)
        return pages[: state.call(kv_match, domain, tokens, pages, extra=keys)]


def prefix_digests(tokens: ArrayLike, page_size: int, salt: Salt, extra: Any) -> UInt8s:
    """See `KVCache.prefix_digests`."""
    tokens = validation.token_ids(tokens)
    n, step = len(tokens) // page_size, 4 * page_size
    parts = parts_by_page(check_extra(extra), page_size, 0, n)
    data = tokens[: n * page_size].astype("<i4").tobytes()
    chained = b"llmds_nb prefix 1\0" + page_size.to_bytes(4, "little")
    chained += salt_bytes(check_salt(salt))
    out = np.empty((n, 32), np.uint8)
    for i in range(n):
        page = data[step * i : step * (i + 1)] + parts_bytes(parts.get(i, ()))
        chained = hashlib.sha256(chained + page).digest()
        out[i] = np.frombuffer(chained, np.uint8)
    return out


def attach(state: CacheState, seq_id, tokens, kv, salt, priority, extra) -> int:
    """See `KVCache.attach`, which calls this where there are K/V or extra keys."""
    n = len(tokens)
    rows = None if kv is None else state.needed_tensors().checked(kv, n)
    ids, priorities, indptr = np.array([seq_id]), np.array([priority]), np.array([0, n])
    ranges, hits = [check_extra(extra)], np.empty(1, np.int64)
    with state.lock:
        state.ready()
        domains = np.array([state.domain(salt)])
        if rows is not None and table_find(state.arrays.ids, seq_id) == ABSENT:
            state.needed_tensors().due = DueRows(seq_id, n, None, rows)
        args = ids, tokens, indptr, domains, priorities, hits
        _attach_keyed(state, ranges, *args)
        if rows is not None:
            state.write_due()
        state.notify()
    return int(hits[0])


def attach_many(
    state: CacheState, seq_ids, tokens, indptr, salts: Any, priorities: Any, extras: Any
) -> Int64s:
    """See `KVCache.attach_many`."""
    seq_ids = validation.for_kernel(seq_ids, "seq_ids", INT64)
    tokens = validation.for_kernel(tokens, "tokens", INT32)
    indptr = validation.indptr(indptr, len(tokens))
    n = len(seq_ids)
    validation.same_length("indptr[1:]", indptr[1:], "seq_ids", seq_ids)
    if salts is not None:
        salts = check_salts(salts, seq_ids)
    if priorities is None:
        priorities = np.zeros(n, np.int64)
    else:
        priorities = validation.integers(priorities, "priorities", low=-INT32_MAX, high=INT32_MAX)
        validation.same_length("priorities", priorities, "seq_ids", seq_ids)
    ranges = []
    if extras is not None:
        if isinstance(extras, str | bytes | memoryview) or not hasattr(extras, "__len__"):
            raise TypeError(f"extras must be one list per sequence, not {shown(extras)}")
        each = validation.one_each(extras, "extras", seq_ids)
        ranges = [check_extra(extra) for extra in each]
    hits = np.empty(n, np.int64)
    with state.lock:
        state.ready()
        if salts is None:
            domains = np.full(n, state.domain(0), np.int64)
        else:
            state.reserve_domains(len(set(salts)))
            domains = np.array([state.domain(salt) for salt in salts], np.int64)
        args = seq_ids, tokens, indptr, domains, priorities, hits
        if any(ranges):
            _attach_keyed(state, ranges, *args)
        else:
            state.call(kv_attach_many, *args)
        state.notify()
    return hits


def _attach_keyed(state, ranges, seq_ids, tokens, indptr, *others):
    """Attach sequences whose prompts have these ranges of `extra`."""
    if not any(ranges):
        state.call(kv_attach_many, seq_ids, tokens, indptr, *others)
        return
    keyed = validation.token_ids(tokens).copy()
    state.forget_keys()
    extra = np.zeros((len(ranges), 2), np.int64)
    for i, own in enumerate(ranges):
        if own:
            extra[i] = state.extras.ranges.number(own), max(stop for _, stop, _ in own)
            state.extras.put(keyed[indptr[i] : indptr[i + 1]], own)
    state.call(kv_attach_many, seq_ids, keyed, indptr, *others, extra=extra)


def append(state: CacheState, seq_id, tokens, kv) -> Int64s:
    """See `KVCache.append`."""
    seq_id = validation.natural(seq_id, "seq_id")
    tokens = validation.for_kernel(tokens, "tokens", INT32)
    tensors = None if kv is None else state.needed_tensors()
    rows = None if tensors is None else tensors.checked(kv, len(tokens))
    slots = np.empty(len(tokens), np.int64)
    with state.lock:
        if tensors is None or rows is None or not len(rows):
            state.run(kv_append, seq_id, tokens, slots)
            return slots
        state.ready()
        tensors.due = DueRows(seq_id, state.length(seq_id) + len(rows), None, rows)
        state.call(kv_append, seq_id, tokens, slots)
        state.write_due()
        state.notify()
    return slots


def reserve(state: CacheState, seq_id, n) -> Int64s:
    """See `KVCache.reserve`."""
    seq_id = validation.natural(seq_id, "seq_id")
    n = validation.natural(n, "n")
    with state.lock:
        state.ready()
        length, meta, size = state.length(seq_id), state.arrays.meta, state.settings.page_size
        pages = -(-(length + n) // size) - -(-length // size)
        if pages > state.settings.n_pages:  # before `slots` of such a length are made
            raise pages_lack(pages - int(meta[s.N_FREE] + meta[s.N_EVICTABLE]))
        slots = np.empty(n, np.int64)
        state.run(kv_reserve, seq_id, slots)
    return slots


def set_tokens(state: CacheState, seq_id, start, tokens) -> None:
    """See `KVCache.set_tokens`."""
    seq_id = validation.natural(seq_id, "seq_id")
    start = validation.natural(start, "start")
    tokens = validation.token_ids(tokens)
    stop = start + len(tokens)
    with state.lock:
        state.ready()
        row, length = state.find(seq_id), state.length(seq_id)
        if stop > length:
            raise ValueError(f"tokens {start} to {stop} of a sequence of {length} tokens")
        known = page_tables.stored_tokens(state, row, start, stop)
        other = np.flatnonzero((known >= 0) & (known != tokens))
        if len(other):
            i = other[0]
            raise ValueError(
                f"token {start + i} of sequence {seq_id} is {known[i]} already, not {tokens[i]}"
            )
        state.run(kv_set_tokens, seq_id, tokens, start)


def append_many(state: CacheState, seq_ids, tokens) -> Int64s:
    """See `KVCache.append_many`, which calls this for what is not the usual case."""
    seq_ids = validation.for_kernel(seq_ids, "seq_ids", INT64)
    tokens = validation.for_kernel(tokens, "tokens", INT32)
    slots = np.empty(len(tokens), INT64)
    with state.lock:
        state.run(kv_append_many, seq_ids, tokens, slots)
    return slots


def write(state: CacheState, seq_id, start, kv) -> None:
    """See `KVCache.write`."""
    seq_id = validation.natural(seq_id, "seq_id")
    tensors = state.needed_tensors()
    rows = tensors.checked(kv)
    start = validation.natural(start, "start")
    with state.lock:
        state.ready()
        length, stop = state.length(seq_id), start + len(rows)
        if stop > length:
            raise ValueError(f"write to tokens {start} to {stop} of a sequence of {length}")
        tensors.due = DueRows(seq_id, length, start, rows)
        state.write_due()
        state.notify()


def fork(state: CacheState, seq_id, new_seq_id) -> None:
    """See `KVCache.fork`."""
    seq_id = validation.natural(seq_id, "seq_id")
    new_seq_id = validation.natural(new_seq_id, "new_seq_id")
    with state.lock:
        state.run(k.kv_fork, seq_id, new_seq_id)


def reorder(state: CacheState, seq_ids, parents) -> None:
    """See `KVCache.reorder`."""
    seq_ids = validation.for_kernel(seq_ids, "seq_ids", INT64)
    parents = validation.for_kernel(parents, "parents", INT64)
    validation.same_length("parents", parents, "seq_ids", seq_ids)
    with state.lock:
        state.run(kv_reorder, seq_ids, parents)


def evict(state: CacheState, n_pages) -> int:
    """See `KVCache.evict`."""
    n_pages = validation.natural(n_pages, "n_pages")
    with state.lock:
        return state.run(k.kv_evict, n_pages)


def set_quota(state: CacheState, salt, n_pages) -> None:
    """See `KVCache.set_quota`."""
    n = -1 if n_pages is None else validation.integer(n_pages, "n_pages", low=0, high=INT32_MAX)
    with state.lock:
        state.run(k.kv_quota, state.domain(salt), min(n, state.settings.n_pages))


def pin(state: CacheState, pins: Pins, tokens, salt, extra) -> int:
    """See `KVCache.pin`."""
    with state.lock:
        return pins.add(state, match(state, tokens, salt, extra))


def unpin(state: CacheState, pins: Pins, handle) -> None:
    """See `KVCache.unpin`."""
    with state.lock:
        pins.remove(state, handle)


def pending_copies(state: CacheState) -> Moves:
    """See `KVCache.pending_copies`."""
    with state.lock:
        state.ready()
        return Moves(*state.take_copies())


def get(state: CacheState, seq_id) -> npt.NDArray:
    """See `KVCache.get`."""
    rows = state.needed_tensors().slots
    with state.lock:
        state.ready()
        length = state.length(seq_id)
        return rows[page_tables.slot_mapping(state, [seq_id], 0, length, None)]


def compact(state: CacheState, pins: Pins) -> Moves:
    """See `KVCache.compact`."""
    with state.lock:
        state.ready()
        pending = int(state.arrays.meta[s.N_PENDING])
        if pending:
            raise RuntimeError(f"{pending} pending copies must be fetched before compact()")
        used = state.arrays.page[:, s.STATE] != s.FREE
        n = int(used.sum())
        src = (np.flatnonzero(used[n:]) + n).astype(np.int32)
        dst = np.flatnonzero(~used[:n]).astype(np.int32)
        if state.tensors is not None:  # before the pages move: until then dst are free
            state.tensors.kv[dst] = state.tensors.kv[src]
        k.kv_compact(state.handle.address, src, dst, pins.array)
        return Moves(src, dst)


def take_events(state: CacheState) -> list[KVEvent]:
    """See `KVCache.events`."""
    if not state.settings.max_events:
        raise ValueError("this cache logs no events: give max_events to KVCache")
    with state.lock:
        state.ready()
        log = state.arrays.events
        salts = {domain: salt for salt, domain in state.domains.items()}
        found = decode(log, salts, state.extras)
        log[0, N_EVENTS : N_LOST + 1] = 0
        return found
