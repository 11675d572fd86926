"""The read side of an InvertedIndex: state that searches share, buffers of a search, threads."""

import itertools
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .._core.arrays import address_of
from .._core.jit import EntryPoints
from .._core.state import Handle
from .._core.typing import Float64s, Int64s
from ..text.token_batch import TokenBatch
from ..text.tokenizer import Tokenizer, encode_into
from ..text.vocabulary import StringTable
from .decoded_lists import decoded_lists
from .kernels import scoring, search as k, state as s
from .kernels.segment_search import LISTED, MASK, NO_FILTER
from .segments import Snapshot

Saturation: Any = scoring.Saturation  # named tuple classes: see _core/state.py
IndexState: Any = s.IndexState
SegmentState: Any = s.SegmentState

_MAX_TEXT = 1 << 12  # bytes of a query that `search_one` takes
_TASKS_PER_THREAD = 4  # of a batch, since queries take different times

_entries = EntryPoints(search_many=k.bm25_search_many)


class Formula(NamedTuple):
    """A variant of BM25 and its parameters."""

    variant: str
    k1: float
    b: float

    def saturation(self, snapshot: Snapshot) -> Any:
        """The Saturation of kernels/scoring.py, for the documents of a snapshot."""
        delta = scoring.DELTA_L if self.variant == "bm25l" else 0.0
        slope = self.b * snapshot.n_docs / snapshot.n_tokens
        return Saturation(p=delta, q=self.k1 + delta, base=1.0 - self.b, slope=slope)


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
    """What searches of a snapshot by a formula and a vocabulary share.

    Decoded lists of segments that `before` has as well are taken over. O(postings) otherwise.
    """
    known = {}
    if before is not None:
        for segment, handle in zip(before.snapshot.segments, before.decoded, strict=True):
            known[id(segment.data)] = handle  # `dead` changes a segment, but not its lists
    saturation = formula.saturation(snapshot)
    all_decoded, segments = [], []
    for segment, handle in zip(snapshot.segments, snapshot.handles, strict=True):
        decoded = known.get(id(segment.data)) or decoded_lists(segment, handle)
        all_decoded.append(decoded)
        lists = decoded.state
        code_scores = np.empty(len(lists.code_tfs))
        scoring.bm25_table_fill(code_scores, lists.code_tfs, lists.code_lengths, saturation)
        state = SegmentState(
            segment=handle.address,
            decoded=decoded.address,
            code_scores=code_scores,
            code_bounds=code_scores.astype(np.float32),
            all_alive=not segment.dead.any(),
        )
        segments.append(Handle(state))
    term_text, term_ptr = vocabulary(snapshot, table)
    index = IndexState(
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


def vocabulary(snapshot: Snapshot, table: StringTable) -> tuple[np.ndarray, np.ndarray]:
    """(blob, ptr) of the terms up to the last in a snapshot: later ones may be taken back."""
    ends = [int(part.terms[-1]) + 1 for part in snapshot.segments if len(part.terms)]
    return table.first(max(ends, default=0))


class SearchBuffers:
    """What one search works with: scratch for the kernel, and the text and terms of a query."""

    __slots__ = (
        "handle", "query_ptr", "query_ptr_at", "text", "text_at", "tokens", "tokens_at"
    )  # fmt: skip

    def __init__(self) -> None:
        self.handle = Handle(s.empty_scratch())
        text, self.tokens = np.empty(_MAX_TEXT, np.uint8), np.empty(_MAX_TEXT, np.int32)
        self.text, self.text_at = text.data, address_of(text)
        self.tokens_at = address_of(self.tokens)
        query_ptr = np.zeros(2, np.int64)
        self.query_ptr, self.query_ptr_at = query_ptr.data, address_of(query_ptr)

    def is_clean(self) -> bool:
        """Whether bounds and scores are 0, as they must be between searches."""
        return not (self.handle.state.bounds.any() or self.handle.state.scores.any())


Pool = deque[SearchBuffers]  # those that no search is using
Found = tuple[Int64s, Float64s]  # ids and scores


def search(
    ready: Prepared,
    tokens: TokenBatch,
    depth: int,
    filters: list[npt.NDArray[Any] | None],
    threads: int,
    pool: Pool,
) -> Found:
    """The `depth` <= n_docs best as (ids int64[q, depth], scores float64[q, depth]).

    `tokens` are the terms of q queries; `filters` holds one filter of `validation.id_filters`, or
    one for each query.
    """
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
        NO_FILTER, 0, 0, depth, scores, ids,
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
        return NO_FILTER, 0, 0
    kind = MASK if one_filter.dtype == np.bool_ else LISTED
    return kind, address_of(one_filter), len(one_filter)
