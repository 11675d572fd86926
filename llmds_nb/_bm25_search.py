"""The reader's side of an InvertedIndex: the weights of terms, the walk over segments."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from ._jit import entry_of
from ._unpacked import Unpacked, unpacked
from .kernels import bm25 as k
from .kernels.blocks import BLOCK
from .kernels.bm25_formula import DELTA_L, VARIANTS, bm25_table_fill, bm25_weights
from .kernels.postings import postings_df_add
from .kernels.tokenize import queries_group

_NO_MASK, _NO_IDS = np.zeros(0, np.bool_), np.zeros(0, np.int64)


class Formula(NamedTuple):
    """A variant of BM25 and its parameters."""

    variant: str
    k1: float
    b: float

    def shape(self, snapshot) -> tuple[float, float, float, float]:
        """(p, q, base, slope) of the formula in kernels/bm25_formula.py."""
        delta = DELTA_L if self.variant == "bm25l" else 0.0
        slope = self.b * snapshot.n_docs / snapshot.n_tokens
        return delta, self.k1 + delta, 1.0 - self.b, slope


class Prepared(NamedTuple):
    """What all searches of one snapshot with one formula share."""

    snapshot: object
    formula: Formula
    unpacked: list[Unpacked]  # for each segment
    tables: list[np.ndarray]  # for each segment, as in kernels/bm25.py
    plain: list[bool]  # for each segment, whether all its documents are alive
    shape: tuple[float, float, float, float]  # of the formula


def prepared(snapshot, formula, before) -> Prepared:
    """That of a snapshot and a formula, with what of the one `before` still holds."""
    known = {}
    if before is not None:
        for segment, lists in zip(before.snapshot.segments, before.unpacked, strict=True):
            known[id(segment.data)] = lists  # dead documents change a segment, not its lists
    shape = formula.shape(snapshot)
    all_lists, tables = [], []
    for segment in snapshot.segments:
        lists = known.get(id(segment.data))
        if lists is None:
            lists = unpacked(segment)
        all_lists.append(lists)
        tables.append(np.empty(len(lists.tfs)))
        bm25_table_fill(tables[-1], lists.tfs, lists.lengths, *shape)
    plain = [not segment.dead.any() for segment in snapshot.segments]
    return Prepared(snapshot, formula, all_lists, tables, plain, shape)


class Accumulator(NamedTuple):
    """Room for one thread's searches; the arrays are described in kernels/bm25.py."""

    acc: np.ndarray  # float64[TILE]
    touched: np.ndarray  # int32[TILE + 1]
    values: np.ndarray  # float64[TILE]
    bins: np.ndarray  # int32[BINS]
    lanes: np.ndarray  # float64[LANES]
    edge: np.ndarray  # float64[1]
    cursors: np.ndarray  # int64[m, 7]
    used: np.ndarray  # int64[m]
    blocks: np.ndarray  # uint32[2, m, 128]
    adds: np.ndarray  # float64[m, 128]


class Weighed(NamedTuple):
    """The known terms of some queries, e in all, and what each can add to a score."""

    terms: np.ndarray  # int32[e]
    counts: np.ndarray  # int32[e], times in the query
    term_ptr: np.ndarray  # int64[q + 1]; query i has the terms term_ptr[i]:term_ptr[i + 1]
    places: list[np.ndarray]  # int32[e] for each segment
    gain: np.ndarray  # float64[e]
    bonus: np.ndarray  # float64[e]
    df: np.ndarray  # int64[e]


def weighed(snapshot, formula, tokenizer, tokens) -> Weighed:
    """The terms of queries, a TokenBatch, by their weights in `snapshot`."""
    table = tokenizer._table
    terms, counts = np.empty((2, len(tokens.ids)), np.int32)
    term_ptr = np.empty(len(tokens.indptr), np.int64)
    n = queries_group(table.blob, table.ptr, tokens.ids, tokens.indptr, terms, counts, term_ptr)
    terms, counts = terms[:n], counts[:n]
    df = np.zeros(n, np.int64)
    places = []
    for segment in snapshot.segments:
        places.append(np.empty(n, np.int32))
        postings_df_add(segment, terms, places[-1], df)
    gain, bonus = np.empty((2, n))
    variant = VARIANTS[formula.variant]
    bm25_weights(variant, formula.k1, snapshot.n_docs, df, counts, gain, bonus)
    return Weighed(terms, counts, term_ptr, places, gain, bonus, df)


def search(ready, tokenizer, tokens, depth, filters, threads, scratch):
    """The `depth` <= n_docs best as (ids int64[q, depth], scores float64[q, depth]).

    `tokens` are the terms of q queries; `filters` holds one filter of `_checks.id_filters`, or one
    for each query; `scratch` is a deque of accumulators that no search is using.
    """
    snapshot = ready.snapshot
    query = weighed(snapshot, ready.formula, tokenizer, tokens)
    shape = ready.shape
    n = len(tokens.indptr) - 1
    room = depth if depth <= k.HEAP else 2 * depth
    scores, ids = np.empty((n, room)), np.empty((n, room), np.int64)
    kept, least = np.zeros(n, np.int64), np.full(n, -np.inf)

    def run(start, stop, one_filter):
        kind, mask, listed = _filter_arrays(one_filter)
        here = query.term_ptr[start : stop + 1]
        best = scores[start:stop], ids[start:stop], kept[start:stop]
        room = _borrow(scratch, np.diff(here).max(initial=1))
        for segment, lists, table, plain, place in zip(
            snapshot.segments, ready.unpacked, ready.tables, ready.plain, query.places, strict=True
        ):
            k.bm25_search_many(
                segment, lists, table, plain, place, here, query.gain, query.bonus, shape, kind,
                mask, listed, depth, k.DENSE, room, *best, least[start:stop],
            )  # fmt: skip
        k.bm25_finish_many(*best, depth)
        scratch.append(room)

    if len(filters) > 1:
        jobs = [(i, i + 1, one_filter) for i, one_filter in enumerate(filters)]
    else:
        n_parts = max(1, min(threads, n))
        edges = [n * i // n_parts for i in range(n_parts + 1)]
        jobs = [(start, stop, filters[0]) for start, stop in itertools.pairwise(edges)]
    if threads == 1 or len(jobs) == 1:
        for job in jobs:
            run(*job)
    else:
        with ThreadPoolExecutor(min(threads, len(jobs))) as pool:
            for done in [pool.submit(run, *job) for job in jobs]:
                done.result()
    return ids[:, :depth], scores[:, :depth]


_entries = []  # the machine code of bm25_search_one


def _one(args):
    """bm25_search_one without the dispatcher, which looks at the types of 40 arrays: they differ
    between no two calls."""
    if not _entries:
        _entries.append(entry_of(k.bm25_search_one, *args))
    return _entries[0]


def search_one(ready, tokenizer, text, depth, scratch):
    """`search` for one query over the only segment and without a filter: (ids, scores) [depth]."""
    snapshot, formula = ready.snapshot, ready.formula
    tokens = np.array(tokenizer._encode_one(text), np.int32)
    table = tokenizer._table
    scores, ids = np.empty(depth), np.empty(depth, np.int64)
    room = _borrow(scratch, len(tokens))
    args = (
        snapshot.segments[0], ready.unpacked[0], ready.tables[0], ready.plain[0], table.blob,
        table.ptr, tokens, snapshot.n_docs, VARIANTS[formula.variant], formula.k1, ready.shape,
        depth, k.DENSE, room, scores, ids,
    )  # fmt: skip
    _one(args)(*args)
    scratch.append(room)
    return ids, scores


def _borrow(scratch, widest):
    """An accumulator for one thread and queries of up to `widest` terms, all zero."""
    try:
        room = scratch.pop()
        if len(room.used) >= widest:
            return room
    except IndexError:
        pass
    m = 1 << max(4, (int(widest) - 1).bit_length())
    return Accumulator(
        np.zeros(k.TILE), np.empty(k.TILE + 1, np.int32), np.empty(k.TILE),
        np.zeros(k.BINS, np.int32), np.empty(k.LANES), np.empty(1), np.empty((m, 7), np.int64),
        np.empty(m, np.int64), np.empty((2, m, BLOCK), np.uint32), np.empty((m, BLOCK)),
    )  # fmt: skip


def _filter_arrays(one_filter):
    """(kind, mask, listed) for the kernel."""
    if one_filter is None:
        return k.NO_FILTER, _NO_MASK, _NO_IDS
    if one_filter.dtype == np.bool_:
        return k.MASK, one_filter, _NO_IDS
    return k.LISTED, _NO_MASK, one_filter
