"""The reader's side of an InvertedIndex: what searches share, the weights of terms, the threads."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from .._core.arrays import address_of
from .._core.jit import EntryPoints
from ..text.kernels.tokenize import queries_group
from .decoded_lists import Unpacked, unpacked
from .kernels import search as k
from .kernels.postings import postings_df_add
from .kernels.scoring import DELTA_L, VARIANTS, bm25_table_fill, bm25_weights
from .kernels.segment_search import LISTED, MASK, NO_FILTER
from .kernels.state import Room, SegmentState, index_of, room_made

_TEXT = 1 << 12  # bytes of a query that goes the short way
_PARTS = 4  # of a batch for each thread, since queries take unlike times

_entries = EntryPoints(search_many=k.bm25_search_many)
_TERMS = 32
_KEPT_WORK = 1 << 17


class Formula(NamedTuple):
    """A variant of BM25 and its parameters."""

    variant: str
    k1: float
    b: float

    def shape(self, snapshot) -> tuple[float, float, float, float]:
        """(p, q, base, slope) of the formula in kernels/scoring.py."""
        delta = DELTA_L if self.variant == "bm25l" else 0.0
        slope = self.b * snapshot.n_docs / snapshot.n_tokens
        return delta, self.k1 + delta, 1.0 - self.b, slope


class Prepared(NamedTuple):
    """What all searches of one snapshot with one formula share."""

    snapshot: object
    formula: Formula
    unpacked: list[Unpacked]  # for each segment
    arrays: list[SegmentState]  # for each segment
    vocabulary: tuple[np.ndarray, np.ndarray]  # blob and ptr
    index: np.ndarray  # all of it, as in kernels/state.py
    address: int  # of index


def prepared(snapshot, formula, table, before) -> Prepared:
    """That of a snapshot, a formula and a vocabulary, with what of `before` still holds."""
    known = {}
    if before is not None:
        for segment, lists in zip(before.snapshot.segments, before.unpacked, strict=True):
            known[id(segment.data)] = lists  # dead documents change a segment, not its lists
    shape = formula.shape(snapshot)
    all_lists, states = [], []
    for segment in snapshot.segments:
        lists = known.get(id(segment.data))
        if lists is None:
            lists = unpacked(segment)
        all_lists.append(lists)
        pairs = np.empty(len(lists.tfs))
        bm25_table_fill(pairs, lists.tfs, lists.lengths, *shape)
        read = {**segment._asdict(), **lists._asdict()}
        read |= {"table": pairs, "bounds": pairs.astype(np.float32)}
        states.append(SegmentState(*(read[name] for name in SegmentState._fields)))
    plain = [not segment.dead.any() for segment in snapshot.segments]
    vocabulary = _vocabulary(snapshot, table)
    variant = VARIANTS[formula.variant]
    index = index_of(snapshot, variant, formula.k1, shape, *vocabulary, states, plain)
    return Prepared(snapshot, formula, all_lists, states, vocabulary, index, address_of(index))


def _vocabulary(snapshot, table):
    """blob and ptr of the terms up to the last in a snapshot: later ones may be taken back."""
    ends = [int(s.terms[-1]) + 1 for s in snapshot.segments if len(s.terms)]
    return table.first(max(ends, default=0))


class Scratch:
    """What one thread's searches work with, and where it is, for the kernel."""

    __slots__ = (
        "address", "addresses", "arrays", "fits", "query_ptr", "query_ptr_at", "text", "text_at",
        "tokens", "tokens_at", "work", "work_at",
    )  # fmt: skip

    def __init__(self):
        self.arrays: Room = room_made()
        self.addresses = np.array([*map(address_of, self.arrays)])
        self.address = address_of(self.addresses)
        text, self.tokens = np.empty(_TEXT, np.uint8), np.empty(_TEXT, np.int32)
        self.text, self.text_at = memoryview(text), address_of(text)
        self.tokens_at = address_of(self.tokens)
        query_ptr = np.zeros(2, np.int64)
        self.query_ptr, self.query_ptr_at = memoryview(query_ptr), address_of(query_ptr)
        self.work, self.fits = np.empty(0, np.int64), None

    def work_for(self, n_segments, m, depth) -> int:
        """The address of memory for queries of up to m terms."""
        wanted = n_segments, m, depth
        if wanted != self.fits:  # usually it is for what it was made for
            size = k.work_size(n_segments, m, depth)
            if size > len(self.work):
                self.work = np.empty(size, np.int64)
                self.work_at = address_of(self.work)
            self.fits = wanted
        return self.work_at


class Weighed(NamedTuple):
    """The known terms of a query, e in all, and what each can add to a score."""

    terms: np.ndarray  # int32[e]
    counts: np.ndarray  # int32[e], times in the query
    places: list[np.ndarray]  # int32[e] for each segment
    gain: np.ndarray  # float64[e]
    bonus: np.ndarray  # float64[e]
    df: np.ndarray  # int64[e]


def weighed(snapshot, formula, table, tokens) -> Weighed:
    """The terms of one query, a TokenBatch, by their weights in `snapshot`."""
    terms, counts = np.empty((2, len(tokens.ids)), np.int32)
    blob, ptr = _vocabulary(snapshot, table)
    term_ptr = np.empty(2, np.int64)
    n = queries_group(blob, ptr, tokens.ids, tokens.indptr, terms, counts, term_ptr)
    terms, counts = terms[:n], counts[:n]
    df = np.zeros(n, np.int64)
    places = []
    for segment in snapshot.segments:
        places.append(np.empty(n, np.int32))
        postings_df_add(segment, terms, places[-1], df)
    gain, bonus = np.empty((2, n))
    variant = VARIANTS[formula.variant]
    bm25_weights(variant, formula.k1, snapshot.n_docs, df, counts, gain, bonus)
    return Weighed(terms, counts, places, gain, bonus, df)


def search(ready, tokens, depth, filters, threads, scratch):
    """The `depth` <= n_docs best as (ids int64[q, depth], scores float64[q, depth]).

    `tokens` are the terms of q queries; `filters` holds one filter of `_checks.id_filters`, or one
    for each query; `scratch` is a deque of Scratch that no search is using.
    """
    n = len(tokens.indptr) - 1
    scores, ids = np.empty((n, depth)), np.empty((n, depth), np.int64)

    widest = max(1, int(np.diff(tokens.indptr).max(initial=0)))
    n_segments, tokens_at = len(ready.arrays), address_of(tokens.ids)

    def run(start, stop, one_filter):
        room = _borrow(scratch)
        here = tokens.indptr[start : stop + 1]
        _entries.search_many(
            ready.address, room.address, room.work_for(n_segments, widest, depth), widest,
            tokens_at, address_of(here), stop - start, *_filter_words(one_filter), depth, k.DENSE,
            k.LOOKUP, scores[start:stop].reshape(-1), ids[start:stop].reshape(-1),
        )  # fmt: skip
        _give_back(scratch, room)

    if len(filters) > 1:
        jobs = [(i, i + 1, one_filter) for i, one_filter in enumerate(filters)]
    else:
        n_parts = 1 if threads == 1 else max(1, min(_PARTS * threads, n))
        edges = [n * i // n_parts for i in range(n_parts + 1)]
        jobs = [(start, stop, filters[0]) for start, stop in itertools.pairwise(edges)]
    if threads == 1 or len(jobs) == 1:
        for job in jobs:
            run(*job)
    else:
        with ThreadPoolExecutor(min(threads, len(jobs))) as pool:
            for done in [pool.submit(run, *job) for job in jobs]:
                done.result()
    return ids, scores


def search_one(ready, tokenizer, text, depth, scratch):
    """`search` for one query without a filter, [depth] each, or None if it is too long."""
    room = _borrow(scratch)
    n = tokenizer._encode_short(text, room)
    if n < 0:
        _give_back(scratch, room)
        return None
    room.query_ptr[1] = n
    m = max(n, _TERMS)  # of most queries, so that there is memory for it
    scores, ids = np.empty(depth), np.empty(depth, np.int64)
    _entries.search_many(
        ready.address, room.address, room.work_for(len(ready.arrays), m, depth), m, room.tokens_at,
        room.query_ptr_at, 1, NO_FILTER, 0, 0, depth, k.DENSE, k.LOOKUP, scores, ids,
    )  # fmt: skip
    _give_back(scratch, room)
    return ids, scores


def _borrow(scratch):
    """Room for one thread."""
    try:
        return scratch.pop()
    except IndexError:
        return Scratch()


def _give_back(scratch, room):
    if len(room.work) <= _KEPT_WORK:  # that of a search for very many hits is not kept
        scratch.append(room)


def _filter_words(one_filter):
    """(kind, address, size) for the kernel; the filter stays alive with the caller."""
    if one_filter is None:
        return NO_FILTER, 0, 0
    kind = MASK if one_filter.dtype == np.bool_ else LISTED
    return kind, address_of(one_filter), len(one_filter)
