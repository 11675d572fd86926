"""Checks the arrays of a KVCache's file before any kernel or other check reads them.

A file may have been changed by an attacker, its checksums too. Here every number that is used as an
index, offset, size or link is checked to be one, in time linear in the file; `inspection.check`
asserts after that that they agree. What only helps to be fast is made anew.
"""

from typing import Any

import numpy as np

from .._core.typing import Int64s
from ..errors import CorruptFileError
from ..primitives.status import ABSENT
from .kernels import events, eviction_policy as ev, state as s
from .kernels.eviction_heap import ENTRY
from .kernels.ghost_entries import WAYS
from .salts import Salt, salt_root
from .settings import CacheSettings

_ANY = 2**62
_MOST_REQUESTS = 2**34  # beyond it the weights of path-lrfu leave their ghost entries
_CLASSES = 2, 30  # of chunks
_FIXED = {  # places in `meta` that the settings decide
    name: getattr(s, name)
    for name in ("POLICY", "SHARING", "PREFIX_TABLE", "PREFIX_MASK", "GHOSTS", "GHOST_BUCKETS")
}
_COUNTERS = (
    "CLOCK", "REQUESTS", "CALLS", "LOOKUPS", "HITS", "EVICTIONS", "COPIES", "SHARES",
)  # fmt: skip


def check_sizes(settings: CacheSettings, page: Any, tokens: Any) -> None:
    """Refuse a number of pages that the file does not hold, before anything of that size is made.

    Beyond what a file holds, an empty cache has at most 32 bytes a page, and the log that
    `max_events` asks for, which takes no memory until it is filled.
    """
    n, size = settings.n_pages, settings.page_size
    for name, array, shape in (("page", page, (n, s.PAGE_COLUMNS)), ("tok", tokens, (n, size))):
        if array.shape != shape:
            raise CorruptFileError(f"array {name!r} is {array.dtype}{list(array.shape)}")


def check_domains(domains: list[tuple[Salt, Any]], key: bytes, array: Int64s) -> None:
    """Refuse salts that stand twice, share a row of the domains, or start with others' hashes."""
    rows = [row for _, row in domains]
    for salt, row in domains:
        if type(row) is not int or not 0 <= row < len(array):
            raise CorruptFileError(f"header field 'domains' has row {row!r} of {len(array)}")
        if not np.array_equal(array[row, [s.ROOT0, s.ROOT1]], salt_root(key, salt)):
            raise CorruptFileError(f"the root of row {row} in array 'dom' is not that of its salt")
    if len(set(rows)) < len(rows) or len(dict(domains)) < len(rows):
        raise CorruptFileError("header field 'domains' names a salt or a row twice")


def check_arrays(kv: Any, empty: Any, domains: list[int]) -> None:
    """CorruptFileError for a number that no kernel can take; `empty`: those of an empty cache."""
    _check_meta(kv, empty)
    live = kv.seq_hot[:, s.ID] != ABSENT
    _check_pages(kv, domains)
    _check_domain_rows(kv, domains)
    _check_sequences(kv, live, domains)
    _check_chunks(kv, live)
    _check_events(kv.events, len(kv.page), len(kv.domain))
    kv.meta[[s.MISSING, s.CALLS]] = 0
    kv.seq_hot[:, s.LAST_CALL] = 0
    kv.domain[:, s.NEEDED] = 0
    # What a sequence notes of its canonical page is looked up anew.
    kv.seq_cold[:, [s.CANONICAL, s.CANONICAL_GENERATION]] = ABSENT


def _within(values, low, high, name):
    """Refuse values outside of low .. high."""
    if values.size:
        for value in (values.min(), values.max()):
            if not low <= value <= high:
                raise CorruptFileError(f"{name} is {value}, not {low} to {high}")


def _check_meta(kv, empty):
    meta, n_pages = kv.meta, len(kv.page)
    for name, place in _FIXED.items():
        if meta[place] != empty.meta[place]:
            raise CorruptFileError(f"{name} in array 'meta' is {meta[place]}")
    first = _first_chunk(kv)
    rows = len(kv.seq_hot)
    if len(kv.seq_cold) != rows:
        raise CorruptFileError(f"array 'seq' has {len(kv.seq_cold)} rows, not {rows}")
    if len(kv.arena) >= 2**31 or len(kv.domain) == 0:
        raise CorruptFileError("array 'pool' or 'dom' has a length that it cannot have")
    most = _MOST_REQUESTS if meta[s.POLICY] == ev.PATH_LRFU else _ANY
    limits = dict.fromkeys(_COUNTERS, (0, _ANY)) | {
        "N_FREE": (0, n_pages),
        "N_LEAVES": (0, n_pages),
        "N_CACHED": (0, n_pages),
        "N_EVICTABLE": (0, n_pages),
        "N_PENDING": (0, n_pages),
        "N_SEQUENCES": (0, rows),
        "FREE_SEQUENCE": (ABSENT, rows - 1),
        "FREE_PAGE": (ABSENT, n_pages - 1),
        "ARENA_TOP": (first, len(kv.arena)),
        "REQUESTS": (0, most),
    }
    for name, (low, high) in limits.items():
        _within(meta[getattr(s, name) :][:1], low, high, f"{name} in array 'meta'")


def _first_chunk(kv):
    """Where the chunks of the arena begin, behind its other regions."""
    return int(kv.meta[s.GHOSTS] + 2 * WAYS * kv.meta[s.GHOST_BUCKETS])


def _check_pages(kv, domains):
    page, n_pages = kv.page, len(kv.page)
    _within(page[:, s.STATE], s.FREE, s.CACHED, "STATE in array 'page'")
    free, cached = page[:, s.STATE] == s.FREE, page[:, s.STATE] == s.CACHED
    _within(page[free, s.PARENT], ABSENT, n_pages - 1, "PARENT of a free page")
    _in_use(page[~free, s.DOMAIN], domains, len(kv.domain), "DOMAIN in array 'page'")
    _within(page[:, s.GENERATION], 0, s.INT32_MAX, "GENERATION in array 'page'")
    own = page[cached]
    _within(own[:, s.PARENT], -1 - len(kv.domain), n_pages - 1, "PARENT of a cached page")
    if (own[:, s.PARENT] == ABSENT).any():
        raise CorruptFileError("PARENT of a cached page is -1")
    _within(own[own[:, s.PARENT] < 0, s.DEPTH], 0, 0, "DEPTH of a first page")
    limits = {"DEPTH": n_pages, "TURN": s.INT32_MAX, "USES": s.INT32_MAX, "EVENTS": 15}
    for name, high in limits.items():
        _within(own[:, getattr(s, name)], 0, high, f"{name} in array 'page'")
    leaf = kv.arena[3 : ENTRY * int(kv.meta[s.N_LEAVES]) : ENTRY]
    _within(leaf, 0, n_pages - 1, "a page in the heap of array 'pool'")
    in_heap = np.zeros(n_pages, bool)
    in_heap[leaf] = True
    for column in ("HEAP_POS", "DOMAIN_HEAP_POS"):
        places = page[:, getattr(s, column)]
        _within(places[cached], ABSENT, n_pages - 1, f"{column} in array 'page'")
        _within(places[cached & ~in_heap], ABSENT, ABSENT, f"{column} of a page in no heap")
    unlimited = cached.copy()
    unlimited[cached] = kv.domain[own[:, s.DOMAIN], s.QUOTA] < 0
    _within(page[unlimited, s.DOMAIN_HEAP_POS], ABSENT, ABSENT, "DOMAIN_HEAP_POS without quota")
    start = int(kv.meta[s.PREFIX_TABLE])
    table = kv.arena[start : start + int(kv.meta[s.PREFIX_MASK]) + 1]
    _within(table, 0, n_pages, "an entry of the prefix table in array 'pool'")
    inner = kv.tokens[:, 1:]
    if ((inner < 0) & (inner != s.UNKNOWN_TOKEN)).any():
        raise CorruptFileError("a token in array 'tok' is below 0")
    if kv.meta[s.POLICY] == ev.PATH_LRFU:
        key = own[:, s.KEY : s.KEY + 2].copy().view("<i8")[:, 0]
        # A weight is a logarithm: of so many requests, each of less than 2**32, it is no more.
        most = int((np.log(2.0) / ev.HALF_LIFE * int(kv.meta[s.REQUESTS]) + 64) * ev.UNIT)
        low = key < -_ANY
        weight = np.where(low, key, key + ev.DEPTH_STEP * own[:, s.DEPTH].astype(np.int64))
        _within(weight, 1, most, "the weight of a page in array 'page'")


def _in_use(values, domains, n, name):
    """Refuse rows of the domain array that no salt has."""
    _within(values, 0, n - 1, name)
    used = np.zeros(n, bool)
    used[domains] = True
    if not used[values].all():
        raise CorruptFileError(f"{name} is {values[~used[values]][0]}, which no salt has")


def _check_domain_rows(kv, domains):
    rows, n_pages = kv.domain, len(kv.page)
    limits = {
        "OWNED": (0, n_pages),
        "EVICTABLE": (0, n_pages),
        "QUOTA": (ABSENT, n_pages),
        "SEQUENCES": (0, len(kv.seq_hot)),
        "N_HEAP": (0, n_pages),
        "LAST_ROOT_CHILD": (ABSENT, n_pages - 1),
    }
    for name, (low, high) in limits.items():
        _within(rows[:, getattr(s, name)], low, high, f"{name} in array 'dom'")
    limited = np.flatnonzero(rows[:, s.QUOTA] >= 0)
    _in_use(limited, domains, len(rows), "a row with a quota in array 'dom'")
    classes = rows[limited, s.HEAP_CLASS]
    _within(classes, *_CLASSES, "HEAP_CLASS in array 'dom'")
    wanted = ENTRY * rows[limited][:, [s.QUOTA, s.OWNED]].max(axis=1, initial=0)
    if (wanted > np.int64(1) << classes).any():
        raise CorruptFileError("HEAP_CLASS in array 'dom' is less than the quota needs")


def _check_sequences(kv, live, domains):
    hot, cold = kv.seq_hot, kv.seq_cold
    rows, n_pages = len(hot), len(kv.page)
    _within(hot[:, s.ID], ABSENT, 2**63 - 1, "ID in array 'hot'")
    if np.unique(hot[live, s.ID]).size < np.count_nonzero(live):
        raise CorruptFileError("array 'hot' names a sequence twice")
    _within(hot[~live, s.TAIL_FREE], 0, 0, "TAIL_FREE of a free row")
    _within(hot[:, s.STEP_ORDER], 0, rows - 1, "STEP_ORDER in array 'hot'")
    limits = {
        "LENGTH": (0, kv.tokens.size),
        "COMMITTED": (0, kv.tokens.size),
        "TAIL_PAGE": (ABSENT, n_pages - 1),
        "TAIL_FREE": (0, kv.tokens.shape[1]),
    }
    for name, (low, high) in limits.items():
        _within(hot[live, getattr(s, name)], low, high, f"{name} in array 'hot'")
    int32 = -(2**31), s.INT32_MAX
    limits = {
        "N_PAGES": (0, n_pages),
        "TABLE_CLASS": _CLASSES,
        "SEQ_PRIORITY": int32,
        "N_CHAINED": (0, n_pages),
        "HAS_DUPLICATES": (0, 1),
        "SEQ_TURN": (0, 2**31),
        "PRIOR_WEIGHT": (0, 2**57),
        "PRIOR_PAGES": (0, n_pages),
        "OUTDATED": (0, 1),
        "EXTRA": (0, s.INT32_MAX),
        "EXTRA_STOP": (0, 2**63 - 1),
        "FIRST_UNKNOWN": (0, kv.tokens.size),
    }
    for name, (low, high) in limits.items():
        _within(cold[live, getattr(s, name)], low, high, f"{name} in array 'seq'")
    _in_use(cold[live, s.SEQ_DOMAIN], domains, len(kv.domain), "SEQ_DOMAIN in array 'seq'")
    _check_free_rows(kv, live)


def _check_free_rows(kv, live):
    """The list of free rows has each of them once."""
    _within(kv.seq_hot[~live, s.LENGTH], ABSENT, len(live) - 1, "LENGTH of a free row")
    links, n = kv.seq_hot[:, s.LENGTH].tolist(), int(np.count_nonzero(~live))
    row, free = int(kv.meta[s.FREE_SEQUENCE]), (~live).tolist()
    while row != ABSENT and free[row]:
        free[row], n, row = False, n - 1, links[row]
    if row != ABSENT or n:
        raise CorruptFileError("the list from FREE_SEQUENCE has not each free row once")


def _check_chunks(kv, live):
    """Chunks in use and free ones lie in their region of the arena, and do not overlap."""
    meta, domain = kv.meta, kv.domain
    _within(meta[s.PENDING_CLASS :][:1], *_CLASSES, "PENDING_CLASS in array 'meta'")
    limited = domain[:, s.QUOTA] >= 0
    offsets = kv.seq_hot[live, s.BLOCK_TABLE], domain[limited, s.HEAP], meta[[s.PENDING_COPIES]]
    classes = (
        kv.seq_cold[live, s.TABLE_CLASS],
        domain[limited, s.HEAP_CLASS],
        meta[[s.PENDING_CLASS]],
    )
    first, top = _first_chunk(kv), int(meta[s.ARENA_TOP])
    free = _free_chunks(kv, first, top)
    starts = np.concatenate([*offsets, free[0]])
    sizes = np.int64(1) << np.concatenate([*classes, free[1]])
    _within(starts, first, top, "the offset of a chunk in array 'pool'")
    order = np.argsort(starts, kind="stable")
    ends = (starts + sizes)[order]
    if (ends[:-1] > starts[order][1:]).any() or ends[-1] > top:
        raise CorruptFileError("two chunks of array 'pool' overlap, or one ends behind ARENA_TOP")
    n, start = int(meta[s.N_PENDING]), int(meta[s.PENDING_COPIES])
    if 2 * n > 1 << int(meta[s.PENDING_CLASS]):
        raise CorruptFileError(f"N_PENDING in array 'meta' is {n}")
    moves = kv.arena[start : start + 2 * n]
    _within(moves, 0, len(kv.page) - 1, "a pending copy in array 'pool'")
    used = kv.seq_cold[live, s.N_PAGES] > np.int64(1) << kv.seq_cold[live, s.TABLE_CLASS]
    if used.any():
        raise CorruptFileError("TABLE_CLASS in array 'seq' is less than N_PAGES needs")


def _free_chunks(kv, first, top) -> tuple[Int64s, Int64s]:
    """Offsets and classes of the free chunks. O(their number)."""
    offsets, classes, room = [], [], top - first
    for size_class, start in enumerate(kv.meta[s.FREE_CHUNKS :].tolist()):
        offset = start
        while offset != ABSENT:
            room -= 1 << size_class
            if room < 0 or not first <= offset < top:
                raise CorruptFileError(f"FREE_CHUNKS of class {size_class} leads to {offset}")
            offsets.append(offset)
            classes.append(size_class)
            offset = kv.arena.item(offset)
    return np.array(offsets, np.int64), np.array(classes, np.int64)


def _check_events(log, n_pages, n_domains):
    if not len(log):
        return
    rows = log[1 : 1 + int(log[0, events.N_EVENTS])]
    _within(log[0, events.N_LOST :][:1], 0, s.INT32_MAX, "N_LOST in array 'events'")
    _within(rows[:, events.EVENT_PAGE], 0, n_pages - 1, "a page in array 'events'")
    _within(rows[:, events.EVENT_DOMAIN], 0, n_domains - 1, "a domain in array 'events'")
    _within(rows[:, events.EVENT_HAS_PARENT], 0, 1, "HAS_PARENT in array 'events'")
    stored = rows[rows[:, events.EVENT_KIND] == events.STORED, events.EVENT_TOKENS + 1 :]
    _within(stored, 0, s.INT32_MAX, "a token in array 'events'")
