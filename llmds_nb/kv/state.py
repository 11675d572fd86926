"""CacheState: the arrays of a KVCache behind one handle, their growth, and calls of kernels."""

import contextlib
import hashlib
from typing import Any

import numpy as np

from .._core import validation
from .._core.arrays import aligned_zeros, grown_size
from .._core.forking import new_lock
from .._core.state import Handle
from .._core.typing import Int32s, Int64s
from ..errors import CapacityError
from ..primitives import status as st
from ..primitives.hash_table import (
    empty_table,
    table_capacity,
    table_find,
    table_rehash,
    table_set_many,
)
from ..primitives.status import ABSENT
from .eviction import POLICIES, call_policy
from .extra import ExtraKeys
from .kernels import events, eviction_policy as ev, operations as k, state as s
from .kernels.append import kv_append, kv_commit
from .kernels.eviction_heap import ENTRY
from .kernels.ghost_entries import WAYS
from .kernels.pages import kv_pending_clear
from .kernels.reorder import kv_reorder
from .kernels.unknown_tokens import kv_set_tokens
from .salts import Salt, check_salt, salt_root
from .settings import CacheSettings
from .tensors import Tensors

KVState: Any = s.KVState  # a named tuple class: see _core/state.py
_FIRST_SEQUENCES = 64
_FIRST_DOMAINS = 16
_SALT_TYPES = frozenset({int, str, bytes})  # exact types, since True == 1
_KEYED = np.zeros((1, 2), np.int64)  # `extra` of a call with keyed tokens that makes no sequence


class CacheState:
    """The arrays of a KVCache, and all that a call of a kernel needs beside its arguments.

    The `handle` is over the KVState of kernels/state.py; the `lock` is held around every call of a
    kernel and every look at the arrays. `domains` are the rows of the domain array by salt. With
    neither `tensors` nor a custom policy a cache is `plain`: there is nothing to do after a kernel
    that succeeded.

    A kernel changes all or nothing, but an interrupt may come before what Python has to do after
    it. What is left then, copies of pages and `due` rows, is done by `ready` before anything else.
    """

    def __init__(self, settings: CacheSettings, saved: tuple[Any, ...] | None = None):
        """An empty state, or that of the KVState, domains, extra keys and K/V of a saved one."""
        extras = ExtraKeys(settings.page_size)
        arrays, domains, extras, kv = saved or (empty_arrays(settings), {}, extras, None)
        if kv is None and settings.tensor_shape is not None:
            kv = np.zeros(settings.tensor_shape, settings.dtype)
        self.settings = settings
        self.lock = new_lock()
        self.handle = Handle(arrays)
        self.domains: dict[Salt, int] = domains
        taken = set(domains.values())
        self._free_domains = [d for d in reversed(range(len(arrays.domain))) if d not in taken]
        self.extras: ExtraKeys = extras
        self.tensors = None if kv is None else Tensors(kv)
        self._custom_policy = settings.custom_policy
        self.plain = kv is None and self._custom_policy is None
        self.sizes = np.zeros(2, np.int64)  # scratch of page_tables.py, under the lock

    @property
    def arrays(self) -> Any:
        """The KVState of NumPy arrays."""
        return self.handle.state

    # ---- calls of kernels ------------------------------------------------------------------

    def run(self, kernel: Any, *args: Any) -> int:
        """Call a kernel, growing the arrays as needed; raise an error if it refuses the call."""
        if self.plain:
            status = kernel(self.handle.address, *args)
            return status if status >= 0 else self.refused(kernel, status, args)
        self.ready()
        status = self.call(kernel, *args)
        self.notify()
        return status

    def ready(self) -> None:
        """Finish what an interrupted call has left to do."""
        tensors = self.tensors
        if tensors is not None:
            self._copy_pages()
            if tensors.due is not None:
                with contextlib.suppress(CapacityError, ValueError):  # the call was refused
                    self.write_due()

    def call(self, kernel: Any, *args: Any, extra: Any = None) -> int:
        """`run` without what comes before and after; `extra` as in kernels/state.py."""
        handle = self.handle if extra is None else Handle(self.arrays._replace(extra=extra))
        status = kernel(handle.address, *args)
        if status < 0:
            status = self.refused(kernel, status, args, extra)
        if self.tensors is not None:
            self._copy_pages()
        return status

    def settle(self) -> None:
        """What is to be done after a kernel of another object has changed the cache."""
        if self.tensors is not None:
            self._copy_pages()
        self.notify()

    def notify(self) -> None:
        """Call a custom policy for the pages of the last call."""
        if self._custom_policy is not None:
            call_policy(self._custom_policy, self.handle)

    def refused(self, kernel: Any, status: int, args: tuple, extra: Any = None) -> int:
        """Do what a kernel asks for and call it again, or raise (kernels/sequences.py)."""
        while status in (st.GROW, st.GROW_SEQUENCES, st.UNKEYED):
            if status == st.UNKEYED:
                args, extra = (args[0], self._with_keys(kernel, args), *args[2:]), _KEYED
            else:
                self.grow(status)
            handle = self.handle if extra is None else Handle(self.arrays._replace(extra=extra))
            status = kernel(handle.address, *args)
        if status >= 0:
            return status
        value = int(self.arrays.meta[s.MISSING])
        if status == st.FULL:
            raise pages_lack(value)
        if status == ABSENT:
            raise KeyError(f"no sequence has id {value}")
        if status == st.PRESENT:
            raise ValueError(f"sequence {value} is attached already")
        if status == st.REPEATED:
            raise ValueError(f"seq_ids must be distinct, but {value} stands twice")
        if status == st.INVALID:
            raise ValueError(_INVALID[kernel].format(value, *args))
        if status == st.UNEVEN:
            validation.same_length("tokens", args[1], "seq_ids", args[0])
        name = "seq_ids" if status == st.BAD_ID else "tokens"
        raise ValueError(f"{name} must be >= 0, not {value}")

    # ---- keyed pages -----------------------------------------------------------------------

    def forget_keys(self) -> None:
        """Forget the numbers of keys that nothing uses, if there are many. O(n_pages)."""
        if self.extras.is_crowded:
            arrays = self.arrays
            used = arrays.page[:, s.STATE] != s.FREE
            log = self.logged()
            logged = log[log[:, events.EVENT_KIND] == events.STORED, events.EVENT_TOKENS]
            firsts = np.append(arrays.tokens[used, 0], logged)
            live = arrays.seq_hot[:, s.ID] != ABSENT
            self.extras.keep(firsts, arrays.seq_cold[live, s.EXTRA])

    def _with_keys(self, kernel, args) -> Int32s:
        """The tokens of an append or a naming, with the keys of the pages that they begin."""
        self.forget_keys()
        tokens = args[1].copy()
        if kernel is kv_append:
            self._put_keys(args[0], tokens)
        elif kernel is kv_set_tokens:
            self._put_keys(args[0], tokens, args[2])
        else:
            for i, seq_id in enumerate(args[0].tolist()):
                self._put_keys(seq_id, tokens[i : i + 1])
        return tokens

    def _put_keys(self, seq_id, tokens, start=None):
        """Put the keys into tokens that are at `start` of a sequence, or at its end."""
        row, arrays = self.find(seq_id), self.arrays
        number = int(arrays.seq_cold[row, s.EXTRA])
        if number:
            ranges = self.extras.ranges.values[number]
            start = int(arrays.seq_hot[row, s.LENGTH]) if start is None else start
            self.extras.put(tokens, ranges, start)

    def logged(self) -> Int32s:
        """The rows of the events in the log."""
        log = self.arrays.events
        return log[1 : 1 + log[0, events.N_EVENTS]] if len(log) else log

    # ---- tensors ---------------------------------------------------------------------------

    def needed_tensors(self) -> Tensors:
        """The tensors; ValueError for a cache without."""
        if self.tensors is None:
            raise ValueError("this cache holds no tensors: give kv_shape to KVCache")
        return self.tensors

    def write_due(self) -> None:
        """Write the due rows, copying pages that others hold; none are due any more. O(n)."""
        tensors = self.needed_tensors()
        due, hot = tensors.due, self.arrays.seq_hot
        row = ABSENT if due is None else table_find(self.arrays.ids, due.seq_id)
        if due is not None and row != ABSENT and hot[row, s.LENGTH] == due.length:
            start = int(hot[row, s.COMMITTED]) if due.start is None else due.start
            rows = due.rows
            if due.start is None:
                rows = rows[len(rows) - (due.length - start) :]
            slots = np.empty(len(rows), np.int64)
            try:
                self.call(k.kv_write, due.seq_id, start, slots)
            except (CapacityError, ValueError):
                tensors.due = None
                raise
            tensors.slots[slots] = rows
            if due.start is None:
                self.call(kv_commit, due.seq_id, due.length)
        tensors.due = None

    def _copy_pages(self):
        """Do the pending copies; they stay pending until they are done."""
        n = self.arrays.meta[s.N_PENDING]
        if n:
            src, dst = self._pending()
            self.tensors.kv[dst] = self.tensors.kv[src]
            kv_pending_clear(self.handle.address)

    def _pending(self):
        start, n = self.arrays.meta[s.PENDING_COPIES], self.arrays.meta[s.N_PENDING]
        moves = self.arrays.arena[start : start + 2 * n].reshape(n, 2)
        return moves[:, 0].copy(), moves[:, 1].copy()

    def take_copies(self) -> tuple[Int32s, Int32s]:
        """Take the pending copies as (src, dst)."""
        moves = self._pending()
        kv_pending_clear(self.handle.address)
        return moves

    # ---- looking up ------------------------------------------------------------------------

    def find(self, seq_id: int) -> int:
        """Row of a sequence; KeyError if there is none. O(1)."""
        row = table_find(self.arrays.ids, validation.natural(seq_id, "seq_id"))
        if row == ABSENT:
            raise KeyError(f"no sequence has id {seq_id}")
        return row

    def holds(self, seq_id: object) -> bool:
        """Whether there is such a sequence. O(1)."""
        seq_id = validation.id_or_none(seq_id)
        with self.lock:
            return seq_id is not None and table_find(self.arrays.ids, seq_id) != ABSENT

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, tensors included."""
        with self.lock:
            kv = 0 if self.tensors is None else self.tensors.kv.nbytes
            return kv + sum(array.nbytes for array in self.arrays)

    def length(self, seq_id: int) -> int:
        """Number of tokens of a sequence; KeyError if there is none. O(1)."""
        with self.lock:
            return int(self.handle.state.seq_hot[self.find(seq_id), s.LENGTH])

    # ---- growth ----------------------------------------------------------------------------

    def grow(self, status: int) -> None:
        """Grow the arrays that a kernel lacked which returned GROW or GROW_SEQUENCES."""
        grow = self._grow_arena if status == st.GROW else self._grow_sequences
        grow(int(self.arrays.meta[s.MISSING]))

    def _grow_arena(self, n):
        old = self.arrays.arena
        size = grown_size(len(old), len(old) + n, 4)
        if size >= 2**31:
            raise CapacityError(f"{size} entries of block tables are more than 2**31 - 1")
        arena = np.zeros(size, np.int32)
        arena[: len(old)] = old
        self.handle.replace(self.arrays._replace(arena=arena))

    def _grow_sequences(self, n):
        """Let `seq_hot`, `seq_cold` and `ids` hold n more sequences."""
        arrays = self.arrays
        wanted = int(arrays.meta[s.N_SEQUENCES]) + n
        if wanted > table_capacity(arrays.ids):
            ids = empty_table(wanted)  # twice as many or more, as any power of two
            table_rehash(arrays.ids, ids)
            arrays = arrays._replace(ids=ids)
        old = len(arrays.seq_cold)
        if wanted > old:
            size = max(_FIRST_SEQUENCES, grown_size(old, wanted, 2))
            hot = aligned_zeros((size, s.SEQ_HOT_COLUMNS), np.int64)
            hot[:old] = arrays.seq_hot
            hot[old:, s.ID] = ABSENT
            hot[old:, s.LENGTH] = np.arange(old + 1, size + 1)  # chain of free rows
            meta = arrays.meta.copy()
            hot[-1, s.LENGTH] = meta[s.FREE_SEQUENCE]
            meta[s.FREE_SEQUENCE] = old
            cold = np.zeros((size, s.SEQ_COLD_COLUMNS), np.int64)
            cold[:old] = arrays.seq_cold
            arrays = arrays._replace(seq_hot=hot, seq_cold=cold, meta=meta)
        self.handle.replace(arrays)

    # ---- domains ---------------------------------------------------------------------------

    def domain(self, salt: Salt) -> int:
        """Row of the domain array for a salt, made if there is none. O(1) amortised."""
        if type(salt) not in _SALT_TYPES:
            salt = check_salt(salt)
        domain = self.domains.get(salt)
        if domain is not None:
            return domain
        root = salt_root(self.settings.key, salt)
        self.reserve_domains(1)
        row = np.zeros(s.DOMAIN_COLUMNS, np.int64)
        row[s.DOMAIN_UNSET], row[[s.ROOT0, s.ROOT1]] = ABSENT, root
        domain = self._free_domains.pop()  # after an interrupt from here on, the row is idle
        self.arrays.domain[domain] = row
        self.domains[salt] = domain
        return domain

    def reserve_domains(self, n: int) -> None:
        """Have rows for n more salts, dropping those of salts in no use first.

        A batch reserves for all its salts at once: a row that it was just given looks unused too.
        """
        if n <= len(self._free_domains):
            return
        arrays = self.arrays
        dom = arrays.domain
        idle = (dom[:, s.OWNED] == 0) & (dom[:, s.SEQUENCES] == 0) & (dom[:, s.QUOTA] < 0)
        idle[self.logged()[:, events.EVENT_DOMAIN]] = False
        domains = {salt: d for salt, d in self.domains.items() if not idle[d]}
        size = len(dom)
        while size < 2 * (len(domains) + n):
            size *= 2
        free = [*range(size - 1, len(dom) - 1, -1), *np.flatnonzero(idle)[::-1].tolist()]
        more = np.zeros((size - len(dom), s.DOMAIN_COLUMNS), np.int64)
        more[:, s.DOMAIN_UNSET] = ABSENT
        self.handle.replace(arrays._replace(domain=np.concatenate([dom, more])))
        self.domains, self._free_domains = domains, free


def pages_lack(missing: int) -> CapacityError:
    """The error of a call for which so many pages are missing."""
    error = CapacityError(
        "pages lack for this call, in the cache or in the quota of its salt (`missing` of "
        "this error says how many)"
    )
    error.missing = missing
    return error


def empty_arrays(settings: CacheSettings) -> Any:
    """The KVState of a cache without sequences, all pages free."""
    n_pages = settings.n_pages
    table = 1 << max(3, (3 * n_pages // 2).bit_length())
    policy = ev.CUSTOM if settings.custom_policy is not None else POLICIES[settings.eviction]
    buckets = -(-3 * n_pages // (2 * WAYS)) if policy == ev.PATH_LRFU else 0
    ghosts = ENTRY * n_pages + table
    pending = ghosts + 2 * WAYS * buckets
    first_pending_class = 7
    top = pending + (1 << first_pending_class)
    page = np.zeros((n_pages, s.PAGE_COLUMNS), np.int32)
    page[:-1, s.PARENT] = np.arange(1, n_pages)  # all are free, the lowest first
    page[-1, s.PARENT] = ABSENT
    page[:, [s.LAST_CHILD, s.HEAP_POS, s.DOMAIN_HEAP_POS]] = ABSENT
    domain = np.zeros((_FIRST_DOMAINS, s.DOMAIN_COLUMNS), np.int64)
    domain[:, s.DOMAIN_UNSET] = ABSENT
    meta = np.zeros(s.META_SIZE, np.int64)
    meta[s.N_FREE] = n_pages
    meta[s.FREE_SEQUENCE] = ABSENT
    meta[s.FREE_CHUNKS :] = ABSENT
    meta[s.PREFIX_TABLE], meta[s.PREFIX_MASK] = ENTRY * n_pages, table - 1
    meta[s.GHOSTS], meta[s.GHOST_BUCKETS] = ghosts, buckets
    meta[s.PENDING_COPIES], meta[s.PENDING_CLASS] = pending, first_pending_class
    meta[s.ARENA_TOP] = top
    meta[s.HASH_MASK] = -1
    meta[s.SHARING] = settings.prefix_sharing
    meta[s.POLICY] = policy
    words = hashlib.blake2b(digest_size=32, key=settings.key, person=b"llmds_nb lanes").digest()
    meta[s.SECRET : s.SECRET + 4] = np.frombuffer(words, "<i8")
    return KVState(
        page=page,
        tokens=np.zeros((n_pages, settings.page_size), np.int32),
        arena=np.zeros(top + 1024, np.int32),
        seq_hot=aligned_zeros((0, s.SEQ_HOT_COLUMNS), np.int64),
        seq_cold=np.zeros((0, s.SEQ_COLD_COLUMNS), np.int64),
        ids=empty_table(_FIRST_SEQUENCES),
        domain=domain,
        meta=meta,
        events=empty_log(settings),
        extra=np.zeros((0, 2), np.int64),
    )


def ids_of(seq_hot: Int64s) -> Int64s:
    """The table `ids` for the rows of `seq_hot`."""
    rows = np.flatnonzero(seq_hot[:, s.ID] != ABSENT)
    ids = empty_table(max(_FIRST_SEQUENCES, len(rows)))
    table_set_many(ids, seq_hot[rows, s.ID], rows)
    return ids


def empty_log(settings: CacheSettings) -> Int32s:
    """A log of no events, for as many as the settings say."""
    rows = settings.max_events + 1 if settings.max_events else 0
    return np.zeros((rows, events.EVENT_TOKENS + settings.page_size), np.int32)


_TOO_MANY = "page {0} is referred to so often that its count can take no more"
# What INVALID means to each kernel: {0} is meta[MISSING], the rest are the kernel's arguments.
_INVALID = {
    kv_commit: "n_tokens is more than the {0} tokens of the sequence: {2}",
    k.kv_truncate: "n_tokens is more than the {0} tokens of the sequence: {2}",
    k.kv_fork: _TOO_MANY,
    k.kv_pin: _TOO_MANY,
    kv_reorder: _TOO_MANY,
    k.kv_write: "write from token {2}, but those before {0} lie in pages shared by prefix",
}
