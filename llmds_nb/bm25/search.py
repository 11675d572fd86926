"""The read side of an InvertedIndex: what searches share, searches, and why a score is as it is."""

import itertools
from collections import Counter, deque
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from .._core.arrays import address_of
from .._core.forking import threads_of_a_call
from .._core.jit import EntryPoints
from .._core.state import Handle
from .._core.typing import Float64s, Int32s, Int64s, UInt8s
from ..primitives.status import ABSENT
from ..primitives.topk import ORDER_SCRATCH
from ..text.tokenizer import TokenBatch, Tokenizer, encode_into
from ..text.vocabulary import StringTable, TextBuffers
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
_MAX_POSTINGS = 1 << 20  # that are decoded for a query in memory that is kept: 24 bytes each
_NO_FILTER = s.NO_FILTER, 0, 0

_entries = EntryPoints(search_many=k.bm25_search_many, order_many=k.hits_order_many)


class Formula(NamedTuple):
    """A variant of BM25 and its parameters."""

    variant: str
    k1: float
    b: float

    def saturation(self, n_docs: int, n_tokens: int) -> scoring.Saturation:
        """The part of the formula that all terms share, for a collection of n_tokens > 0."""
        delta = scoring.DELTA_L if self.variant == "bm25l" else 0.0
        slope = self.b * n_docs / n_tokens
        return scoring.Saturation(p=delta, q=self.k1 + delta, base=1.0 - self.b, slope=slope)


class Prepared(NamedTuple):
    """What all searches of one snapshot with one formula share, as part of one collection."""

    snapshot: Snapshot
    formula: Formula
    collection: tuple[int, int]  # documents and tokens: of the snapshot, or more
    decoded: list[Handle]  # DecodedLists of each segment
    segments: list[Handle]  # SegmentState of each segment
    state: Handle  # IndexState

    def arrays(self) -> list[npt.NDArray[Any]]:
        """The arrays that are kept besides those of the snapshot and the decoded lists."""
        return [a for h in self.segments for a in (h.state.code_scores, h.state.code_bounds)]

    def given(self, terms: Int32s, df: Int64s) -> "Prepared":
        """For searches of these terms alone, ascending, held by df documents of the collection."""
        index = self.state.state._replace(given_terms=terms, given_df=df)
        return self._replace(state=Handle(index))


def prepare(
    snapshot: Snapshot,
    formula: Formula,
    collection: tuple[int, int],
    table: StringTable,
    known: dict[int, Handle],
) -> Prepared:
    """What searches of a snapshot share. O(postings that are not yet decoded).

    `known` has the decoded lists of segments by the id of their `data`; others are added.
    """
    saturation = formula.saturation(*collection)
    all_decoded, segments = [], []
    for segment, handle in zip(snapshot.segments, snapshot.handles, strict=True):
        decoded = known.get(id(segment.data))
        if decoded is None:
            known[id(segment.data)] = decoded = decode(segment, handle)
        all_decoded.append(decoded)
        lists = decoded.state
        alive, tfs = not segment.dead.any(), lists.code_tfs.astype(np.float64)
        scores = scoring.contribution(tfs, lists.code_lengths, 1.0, 0.0, saturation)
        bounds = scores.astype(np.float32)
        state = s.SegmentState(handle.address, decoded.address, scores, bounds, alive)
        segments.append(Handle(state))
    term_text, term_ptr = vocabulary(snapshot, table)
    index = k.IndexState(
        n_docs=collection[0],
        variant=scoring.VARIANTS[formula.variant],
        k1=formula.k1,
        saturation=saturation,
        term_text=term_text,
        term_ptr=term_ptr,
        segments=np.array([handle.address for handle in segments], np.int64),
        given_terms=np.zeros(0, np.int32),
        given_df=np.zeros(0, np.int64),
        scan_docs=k.SCAN_DOCS,
        lookup_cost=k.LOOKUP_COST,
    )
    return Prepared(snapshot, formula, collection, all_decoded, segments, Handle(index))


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
    list_docs, list_tfs, list_codes = np.empty((3, longest), np.int32)
    n_exceptions = decoded_lists.pairs_count(handle.address, ordinals, list_docs, list_tfs, counts)
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
    decoding = Handle(
        decoded_lists.Decoding(
            lists.window_ptr.reshape(-1), lists.postings, exception_docs, exception_tfs,
            list_docs, list_tfs, list_codes,
        )
    )  # fmt: skip
    result = Handle(lists)
    decoded_lists.decoded_fill(handle.address, result.address, decoding.address, ordinals)
    return result


def vocabulary(snapshot: Snapshot, table: StringTable) -> tuple[UInt8s, Int64s]:
    """(blob, ptr) of the terms up to the last in a snapshot: later ones may be taken back."""
    ends = [int(part.terms[-1]) + 1 for part in snapshot.segments if len(part.terms)]
    return table.first(max(ends, default=0))


class SearchBuffers(TextBuffers):
    """What one search works with: scratch for the kernels, and the text and terms of a query."""

    def __init__(self) -> None:
        super().__init__(_MAX_TEXT)
        self.handle = Handle(
            s.Scratch(
                bounds=np.zeros(WINDOW, np.uint16),
                scores=np.zeros(WINDOW),
                touched=np.empty(WINDOW + 1, np.int32),
                candidates=np.empty(WINDOW + 1, np.int32),
                sample=np.empty(WINDOW + 64, np.uint16),
                histogram=np.empty(N_BINS, np.int32),
                chunk_ids=np.empty(s.CHUNK, np.int64),
                chunk_scores=np.empty(s.CHUNK),
                **_for_hits(s.SMALL_K),
                **_for_terms(64, 8),
                decoding=_decoding(256, 1024),
                lacks=np.zeros(3, np.int64),
            )
        )

    def grow(self, n_segments: int, depth: int) -> None:
        """Make space for what the last search lacked, and for the `depth` best documents."""
        state = self.handle.state
        n_terms, n_postings, n_offsets = state.lacks.tolist()
        if 2 * depth > len(state.best_scores):
            state = state._replace(**_for_hits(2 * depth))
        if n_terms > len(state.terms) or n_terms * n_segments > len(state.ordinals):
            state = state._replace(**_for_terms(max(2 * n_terms, len(state.terms)), n_segments))
        space = len(state.decoding.postings), len(state.decoding.window_ptr)
        if n_postings > space[0] or n_offsets > space[1]:  # neither shrinks: queries differ
            larger = max(2 * n_postings, space[0]), max(2 * n_offsets, space[1])
            state = state._replace(decoding=_decoding(*larger))
        self.handle.replace(state)

    def is_clean(self) -> bool:
        """Whether bounds and scores are 0, as they must be between searches."""
        return not (self.handle.state.bounds.any() or self.handle.state.scores.any())

    def is_small(self) -> bool:
        """Whether they are worth keeping."""
        return len(self.handle.state.decoding.postings) <= _MAX_POSTINGS


def _for_hits(n):
    return {"best_scores": np.empty(n), "best_ids": np.empty(n + ORDER_SCRATCH, np.int64)}


def _for_terms(n, n_segments):
    terms, counts, ordinals = (np.empty(size, np.int32) for size in (n, n, n * n_segments))
    df, list_terms = np.empty((2, n), np.int64)
    gain, bonus = np.empty((2, n))
    lists = np.empty((n, s.LIST_COLUMNS), np.int64)
    return {
        "terms": terms, "keys": np.empty(n, np.uint64), "counts": counts, "df": df, "gain": gain,
        "bonus": bonus, "ordinals": ordinals, "lists": lists, "list_terms": list_terms,
    }  # fmt: skip


def _decoding(n_postings, n_offsets):
    exception_docs, exception_tfs, docs, tfs, codes = np.empty((5, n_postings), np.int32)
    return decoded_lists.Decoding(
        np.empty(n_offsets, np.int32), np.empty(n_postings, np.uint32), exception_docs,
        exception_tfs, docs, tfs, codes,
    )  # fmt: skip


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
        query_ptr_at = address_of(tokens.indptr[start : stop + 1])
        _run(
            ready, pool, _borrow(pool), tokens_at, query_ptr_at, _filter_words(one_filter), depth,
            scores[start:stop].reshape(-1), ids[start:stop].reshape(-1),
        )  # fmt: skip

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
        with threads_of_a_call(min(threads, len(tasks))) as executor:
            for done in [executor.submit(run, *task) for task in tasks]:
                done.result()
    return ids, scores


def search_one(
    ready: Prepared, tokenizer: Tokenizer, text: str, depth: int, pool: Pool
) -> Found | None:
    """`search` for one query without a filter, [depth] each, or None if it is too long."""
    buffers = _borrow(pool)
    if not encode_into(tokenizer, text, buffers):
        pool.append(buffers)
        return None
    scores, ids = np.empty(depth), np.empty(depth, np.int64)
    _run(
        ready, pool, buffers, buffers.tokens_at, buffers.token_ptr_at, _NO_FILTER, depth, scores,
        ids,
    )  # fmt: skip
    return ids, scores


def _run(ready, pool, buffers, tokens_at, query_ptr_at, filter_words, depth, scores, ids):
    """Search with buffers, and give them back to their pool."""
    index, scratch = ready.state.address, buffers.handle.address
    while not _entries.search_many(
        index, scratch, tokens_at, query_ptr_at, *filter_words, depth, scores, ids
    ):
        buffers.grow(len(ready.segments), depth)
    if depth > s.SMALL_K:
        _entries.order_many(scratch, depth, scores, ids)
    if buffers.is_small():
        pool.append(buffers)


def _borrow(pool):
    try:
        return pool.pop()
    except IndexError:
        return SearchBuffers()


def _filter_words(one_filter):
    """(kind, address, size) for the kernel; the filter stays alive with the caller."""
    if one_filter is None:
        return _NO_FILTER
    kind = s.MASK if one_filter.dtype == np.bool_ else s.LISTED
    return kind, address_of(one_filter), len(one_filter)


def explain(
    snapshot: Snapshot, formula: Formula, table: StringTable, ids: Int32s, number: int, doc: int
) -> Explanation:
    """The score of document `doc` of segment `number` for a query of these term ids."""
    variant = scoring.VARIANTS[formula.variant]
    saturation = formula.saturation(snapshot.n_docs, snapshot.n_tokens)
    n_terms = len(vocabulary(snapshot, table)[1]) - 1
    counts = Counter(id_ for id_ in ids.tolist() if 0 <= id_ < n_terms)
    texts = dict(zip(counts, table.texts(counts), strict=True))
    terms = sorted(counts, key=texts.__getitem__)
    ordinals, df = find_terms(snapshot, np.array(terms, np.int32))
    segment, handle = snapshot.segments[number], snapshot.handles[number]
    length = int(lengths_at(segment, np.array([doc]))[0])
    total, term_scores = 0.0, []
    for term, own_df, ordinal in zip(terms, df.tolist(), ordinals[number].tolist(), strict=True):
        if not own_df:
            continue
        idf, gain, bonus = scoring.weights(
            variant, formula.k1, snapshot.n_docs, own_df, counts[term]
        )
        tf = postings.posting_find(handle.address, ordinal, doc) if ordinal != ABSENT else 0
        score = 0.0
        if tf and gain > 0:
            score = scoring.contribution(float(tf), length, gain, bonus, saturation)
        total += score
        term_scores.append(TermScore(texts[term], counts[term], int(tf), own_df, idf, score))
    return Explanation(total, term_scores)
