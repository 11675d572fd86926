"""The read side of an InvertedIndex: what searches share, searches, and why a score is as it is."""

import itertools
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from .._core.arrays import address_of
from .._core.jit import EntryPoints
from .._core.state import Handle
from .._core.typing import Float64s, Int32s, Int64s, UInt8s
from ..primitives.status import ABSENT
from ..text.kernels.tokenize import queries_group
from ..text.tokenizer import TokenBatch, Tokenizer, encode_into
from ..text.vocabulary import StringTable
from .kernels import decoded_lists, postings, scoring, search as k, segment_search as s
from .kernels.decoded_lists import MAX_CODES, WINDOW
from .kernels.window import N_BINS
from .results import Explanation, TermScore
from .segments import Snapshot, find_terms, lengths_at

MIN_ENTRIES = 4  # shorter lists are decoded as fast as they are read
MIN_BUDGET = 12 << 20  # bytes that decoded lists may take in any case
BYTES_PER_POSTING = 1.0  # of the segment, that they may take
MAX_PAIRS = 1 << 21  # of tf and length class that are counted
_MAX_TEXT = 1 << 12  # bytes of a query that `search_one` takes
_TASKS_PER_THREAD = 4  # of a batch, since queries take different times

_entries = EntryPoints(search_many=k.bm25_search_many)


class Formula(NamedTuple):
    """A variant of BM25 and its parameters."""

    variant: str
    k1: float
    b: float

    def saturation(self, snapshot: Snapshot) -> scoring.Saturation:
        """The part of the formula that all terms share, for the documents of a snapshot."""
        delta = scoring.DELTA_L if self.variant == "bm25l" else 0.0
        slope = self.b * snapshot.n_docs / snapshot.n_tokens
        return scoring.Saturation(p=delta, q=self.k1 + delta, base=1.0 - self.b, slope=slope)


class Prepared(NamedTuple):
    """What all searches of one snapshot with one formula share."""

    snapshot: Snapshot
    formula: Formula
    decoded: list[Handle]  # DecodedLists of each segment
    segments: list[Handle]  # SegmentState of each segment
    state: Handle  # IndexState

    def arrays(self) -> list[npt.NDArray[Any]]:
        """The arrays that are kept besides those of the snapshot."""
        tables = [a for h in self.segments for a in (h.state.code_scores, h.state.code_bounds)]
        return [*tables, *(array for handle in self.decoded for array in handle.state)]


def prepare(
    snapshot: Snapshot, formula: Formula, table: StringTable, before: Prepared | None
) -> Prepared:
    """What searches of a snapshot share. O(postings), without lists that `before` has decoded."""
    known = {}  # by their data: `dead` changes a segment, but not its lists
    if before is not None:
        own = zip(before.snapshot.segments, before.decoded, strict=True)
        known = {id(segment.data): handle for segment, handle in own}
    saturation = formula.saturation(snapshot)
    all_decoded, segments = [], []
    for segment, handle in zip(snapshot.segments, snapshot.handles, strict=True):
        decoded = known.get(id(segment.data)) or decode(segment, handle)
        all_decoded.append(decoded)
        lists = decoded.state
        scores, alive = np.empty(len(lists.code_tfs)), not segment.dead.any()
        scoring.bm25_table_fill(scores, lists.code_tfs, lists.code_lengths, saturation)
        bounds = scores.astype(np.float32)
        state = s.SegmentState(handle.address, decoded.address, scores, bounds, alive)
        segments.append(Handle(state))
    term_text, term_ptr = vocabulary(snapshot, table)
    index = k.IndexState(
        n_docs=snapshot.n_docs,
        variant=scoring.VARIANTS[formula.variant],
        k1=formula.k1,
        saturation=saturation,
        term_text=term_text,
        term_ptr=term_ptr,
        segments=np.array([handle.address for handle in segments], np.int64),
        scan_docs=k.SCAN_DOCS,
        lookup_cost=k.LOOKUP_COST,
    )
    return Prepared(snapshot, formula, all_decoded, segments, Handle(index))


def decode(segment: Any, handle: Handle) -> Handle:
    """The DecodedLists of a segment: its longest lists, 1 byte a posting or 12 MB, if more."""
    entries = segment.entries
    budget = max(MIN_BUDGET, int(BYTES_PER_POSTING * entries.sum(dtype=np.int64)))
    n_windows = -(-len(segment.classes) // WINDOW)
    candidates = np.flatnonzero(entries >= MIN_ENTRIES)
    candidates = candidates[np.argsort(-entries[candidates], kind="stable")]
    costs = 4 * entries[candidates].astype(np.int64) + 4 * n_windows + 12
    ordinals = np.sort(candidates[np.cumsum(costs) <= min(budget, 2**31)]).astype(np.int32)

    n_classes = len(segment.class_lengths)
    counts = np.zeros((max(2, min(256, MAX_PAIRS // max(1, n_classes))), n_classes), np.int32)
    longest = int(entries[ordinals].max(initial=0))
    n_exceptions = decoded_lists.pairs_count(handle.address, ordinals, longest, counts)
    counts = counts[: int(np.flatnonzero(counts.any(axis=1)).max(initial=0)) + 1]
    flat = counts.ravel()
    pairs = np.flatnonzero(flat)
    pairs = pairs[np.argsort(-flat[pairs], kind="stable")]  # frequent pairs share cache lines
    n_exceptions += int(flat[pairs[MAX_CODES:]].sum(dtype=np.int64))
    pairs = pairs[:MAX_CODES]
    tfs, classes = np.divmod(pairs, max(1, n_classes))
    codes = np.full((len(counts) + 1, n_classes + 1), ABSENT, np.int32)
    codes[tfs, classes] = np.arange(len(pairs), dtype=np.int32)

    list_of = np.full(len(entries), ABSENT, np.int32)
    list_of[ordinals] = np.arange(len(ordinals), dtype=np.int32)
    exception_docs, exception_tfs = np.zeros((2, n_exceptions), np.int32)
    lists = decoded_lists.DecodedLists(
        list_of=list_of,
        window_ptr=np.zeros((len(ordinals), n_windows + 1), np.int32),
        postings=np.zeros(int(entries[ordinals].sum(dtype=np.int64)) - n_exceptions, np.uint32),
        exception_ptr=np.zeros(len(ordinals) + 1, np.int32),
        exception_docs=exception_docs,
        exception_tfs=exception_tfs,
        code_tfs=tfs.astype(np.int32),
        code_lengths=segment.class_lengths[classes],
        codes=codes,
    )
    result = Handle(lists)
    decoded_lists.decoded_fill(handle.address, result.address, ordinals, longest)
    return result


def vocabulary(snapshot: Snapshot, table: StringTable) -> tuple[UInt8s, Int64s]:
    """(blob, ptr) of the terms up to the last in a snapshot: later ones may be taken back."""
    ends = [int(part.terms[-1]) + 1 for part in snapshot.segments if len(part.terms)]
    return table.first(max(ends, default=0))


class SearchBuffers:
    """What one search works with: scratch for the kernel, and the text and terms of a query."""

    def __init__(self) -> None:
        self.handle = Handle(_empty_scratch())
        text, self.tokens = np.empty(_MAX_TEXT, np.uint8), np.empty(_MAX_TEXT, np.int32)
        self.text, self.text_at = text.data, address_of(text)
        self.tokens_at = address_of(self.tokens)
        query_ptr = np.zeros(2, np.int64)
        self.query_ptr, self.query_ptr_at = query_ptr.data, address_of(query_ptr)

    def is_clean(self) -> bool:
        """Whether bounds and scores are 0, as they must be between searches."""
        return not (self.handle.state.bounds.any() or self.handle.state.scores.any())


def _empty_scratch():
    return s.Scratch(
        bounds=np.zeros(WINDOW, np.uint16),
        scores=np.zeros(WINDOW),
        touched=np.empty(WINDOW + 1, np.int32),
        candidates=np.empty(WINDOW + 1, np.int32),
        sample=np.empty(WINDOW + 64, np.uint16),
        histogram=np.empty(N_BINS, np.int32),
        chunk_ids=np.empty(s.CHUNK, np.int64),
        chunk_scores=np.empty(s.CHUNK),
    )


Pool: TypeAlias = deque[SearchBuffers]  # those that no search is using
Filters: TypeAlias = list[npt.NDArray[Any] | None]  # of `id_filters`: one, or one for each query
Found: TypeAlias = tuple[Int64s, Float64s]  # ids and scores


def search(
    ready: Prepared, tokens: TokenBatch, depth: int, filters: Filters, threads: int, pool: Pool
) -> Found:
    """The `depth` <= n_docs best for q queries: (ids int64[q, depth], scores float64[q, depth])."""
    n = len(tokens.indptr) - 1
    scores, ids = np.empty((n, depth)), np.empty((n, depth), np.int64)
    tokens_at = address_of(tokens.ids)

    def run(start, stop, one_filter):
        buffers = _borrow(pool)
        _entries.search_many(
            ready.state.address, buffers.handle.address, tokens_at,
            address_of(tokens.indptr[start : stop + 1]), *_filter_words(one_filter), depth,
            scores[start:stop].reshape(-1), ids[start:stop].reshape(-1),
        )  # fmt: skip
        pool.append(buffers)

    if len(filters) > 1:
        tasks = [(i, i + 1, one_filter) for i, one_filter in enumerate(filters)]
    else:
        n_tasks = 1 if threads == 1 else max(1, min(_TASKS_PER_THREAD * threads, n))
        edges = [n * i // n_tasks for i in range(n_tasks + 1)]
        tasks = [(start, stop, filters[0]) for start, stop in itertools.pairwise(edges)]
    if threads == 1 or len(tasks) == 1:
        for task in tasks:
            run(*task)
    else:
        with ThreadPoolExecutor(min(threads, len(tasks))) as executor:
            for done in [executor.submit(run, *task) for task in tasks]:
                done.result()
    return ids, scores


def search_one(
    ready: Prepared, tokenizer: Tokenizer, text: str, depth: int, pool: Pool
) -> Found | None:
    """`search` for one query without a filter, [depth] each, or None if it is too long."""
    buffers = _borrow(pool)
    n = encode_into(tokenizer, text, buffers)
    if n < 0:
        pool.append(buffers)
        return None
    buffers.query_ptr[1] = n
    scores, ids = np.empty(depth), np.empty(depth, np.int64)
    _entries.search_many(
        ready.state.address, buffers.handle.address, buffers.tokens_at, buffers.query_ptr_at,
        s.NO_FILTER, 0, 0, depth, scores, ids,
    )  # fmt: skip
    pool.append(buffers)
    return ids, scores


def _borrow(pool):
    try:
        return pool.pop()
    except IndexError:
        return SearchBuffers()


def _filter_words(one_filter):
    """(kind, address, size) for the kernel; the filter stays alive with the caller."""
    if one_filter is None:
        return s.NO_FILTER, 0, 0
    kind = s.MASK if one_filter.dtype == np.bool_ else s.LISTED
    return kind, address_of(one_filter), len(one_filter)


def explain(
    snapshot: Snapshot, formula: Formula, table: StringTable, ids: Int32s, number: int, doc: int
) -> Explanation:
    """The score of document `doc` of segment `number` for a query of these term ids."""
    variant = scoring.VARIANTS[formula.variant]
    terms, counts = np.empty((2, len(ids)), np.int32)
    query_ptr, term_ptr = np.array([0, len(ids)]), np.empty(2, np.int64)
    n = queries_group(*vocabulary(snapshot, table), ids, query_ptr, terms, counts, term_ptr)
    terms, counts = terms[:n], counts[:n]
    ordinals, df = find_terms(snapshot, terms)
    gain, bonus = np.empty((2, n))
    scoring.bm25_weights(variant, formula.k1, snapshot.n_docs, df, counts, gain, bonus)
    segment, handle = snapshot.segments[number], snapshot.handles[number]
    (length,) = lengths_at(segment, np.array([doc]))
    total, term_scores = 0.0, []
    for e, term in enumerate(table.texts(terms)):
        if not df[e]:
            continue
        ordinal = int(ordinals[number][e])
        tf = postings.posting_find(handle.address, ordinal, doc) if ordinal != ABSENT else 0
        score = 0.0
        if tf and gain[e] > 0:
            saturation = formula.saturation(snapshot)
            score = scoring.bm25_contribution(float(tf), length, gain[e], bonus[e], saturation)
        total += score
        idf = scoring.bm25_idf(variant, snapshot.n_docs, df[e])
        term_scores.append(TermScore(term, int(counts[e]), int(tf), int(df[e]), idf, score))
    return Explanation(total, term_scores)
