"""InvertedIndex: exact BM25 over texts that come and go."""

import copy
import threading
from collections import deque
from typing import NamedTuple

import numpy as np

from .._core import validation
from .._core.progress import progress_bar
from .._core.storage import Stored, nest, unnest
from ..errors import CorruptFileError
from ..primitives.status import ABSENT
from ..text.tokenizer import TokenBatch, Tokenizer
from . import (
    documents as _documents,
    search as _bm25_search,
    segment_builder as _building,
    segments as _segments,
)
from .kernels.postings import posting_find, postings_df_add, postings_read
from .kernels.scoring import VARIANTS, bm25_contribution, bm25_idf

__all__ = ["Explanation", "Hits", "InvertedIndex", "InvertedIndexStats", "Postings", "TermScore"]


class Hits(NamedTuple):
    """The best documents, higher scores first; missing places have id -1 and score -inf."""

    ids: np.ndarray  # int64[k] or int64[n, k]
    scores: np.ndarray  # float64, the same shape


class Postings(NamedTuple):
    """The documents that hold a term, ascending by id, and how often each does."""

    ids: np.ndarray  # int64[df]
    tfs: np.ndarray  # int32[df]


class TermScore(NamedTuple):
    """What one term of a query adds to the score of a document."""

    term: str
    count: int  # times in the query
    tf: int  # times in the document
    df: int  # documents that hold it
    idf: float
    score: float


class Explanation(NamedTuple):
    """A document's score for a query: the sum of the terms' scores, in this order."""

    score: float
    terms: list[TermScore]


class InvertedIndexStats(NamedTuple):
    """Sizes of an index; postings of removed documents count until they are merged away."""

    n_docs: int
    n_terms: int  # in the vocabulary
    n_tokens: int  # over all documents, stop words excluded
    mean_length: float
    n_removed: int
    n_segments: int
    postings_bytes: int
    nbytes: int


class InvertedIndex(Stored):
    """Sparse retrieval: documents ranked by BM25, exactly, while they are added and removed.

    Scores are those of the formula in float64 (see `kernels.bm25` for the variants); an index
    after any adds and removes ranks exactly as one built anew from the same documents. Stored are
    counts and lengths, not scores: `k1`, `b` and `variant` are attributes that may be changed at
    any time. A document of score 0, or that holds no term of the query, is never a hit.

    The first search after a write unpacks the longest lists of a new segment, 1 byte a posting (or
    up to 12 MB, if that is more), which makes later ones faster and changes no answer.

    Any number of threads may search while one writes; a search sees the state before or after a
    write. Writes from several threads take turns.

    Parameters
    ----------
    k1 : float in [0, 1e6]
        How slowly repetitions of a term saturate.
    b : float in [0, 1]
        How much long documents are marked down.
    variant : "lucene", "robertson", "atire", "bm25+" or "bm25l"
    tokenizer : Tokenizer or callable, optional
        Splits texts and queries; its vocabulary grows with `add`. A callable takes a text and gives
        its terms. Default: ``Tokenizer()``.

    Examples
    --------
    >>> index = InvertedIndex()
    >>> index.add([10, 20, 30], ["a red fox", "a red red car", "blue sky"])
    array([10, 20, 30])
    >>> hits = index.search("red", k=2)
    >>> hits.ids
    array([20, 10])
    >>> bool(index.explain("red", 20).score == hits.scores[0])
    True
    >>> index.remove(20)
    >>> index.search("red car", k=2).ids
    array([10, -1])
    """

    def __init__(self, *, k1=1.2, b=0.75, variant="lucene", tokenizer=None):
        self._formula = _bm25_search.Formula(variant, k1, b)
        self.k1, self.b, self.variant = k1, b, variant
        if tokenizer is None:
            tokenizer = Tokenizer()
        elif not isinstance(tokenizer, Tokenizer):
            if not callable(tokenizer):
                raise TypeError(f"tokenizer must be a Tokenizer or callable, not {tokenizer!r}")
            tokenizer = Tokenizer(lowercase=False, stopwords=None, pattern=tokenizer)
        self.tokenizer = tokenizer
        self._snapshot = _segments.snapshot([])
        self._next_id = 0
        self._lock = threading.RLock()
        self._prepared = None  # of the latest search
        self._scratch = deque()  # accumulators that no search is using

    @property
    def k1(self) -> float:
        return self._formula.k1

    @k1.setter
    def k1(self, value):
        self._formula = self._formula._replace(k1=validation.real(value, "k1", low=0, high=1e6))

    @property
    def b(self) -> float:
        return self._formula.b

    @b.setter
    def b(self, value):
        self._formula = self._formula._replace(b=validation.real(value, "b", low=0, high=1))

    @property
    def variant(self) -> str:
        return self._formula.variant

    @variant.setter
    def variant(self, value):
        variant = validation.choice(value, "variant", tuple(VARIANTS))
        self._formula = self._formula._replace(variant=variant)

    def __len__(self):
        return self._snapshot.n_docs

    def __contains__(self, id):
        return _segments.find(self._snapshot.segments, validation.one_id(id))[1] != ABSENT

    def __repr__(self):
        return (
            f"InvertedIndex({len(self):,} documents, {len(self.tokenizer):,} terms, "
            f"{len(self._snapshot.segments)} segments, {self.nbytes / 1e6:.1f} MB)"
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, the vocabulary and what searches keep unpacked included."""
        segments, ready = self._snapshot.segments, self._prepared
        arrays = {id(a): a for s in segments for a in s}
        if ready is not None:
            arrays |= {id(a): a for parts in (*ready.unpacked, *ready.arrays) for a in parts}
        return self.tokenizer.nbytes + sum(array.nbytes for array in arrays.values())

    def stats(self) -> InvertedIndexStats:
        """Sizes, counted when called."""
        segments, n_docs, n_tokens = self._snapshot
        return InvertedIndexStats(
            n_docs,
            len(self.tokenizer),
            n_tokens,
            n_tokens / n_docs if n_docs else 0.0,
            sum(int(s.dead.sum()) for s in segments),
            len(segments),
            sum(len(s.data) - 1 for s in segments),
            self.nbytes,
        )

    def add(self, ids, texts, *, progress=False) -> np.ndarray:
        """Add documents, or replace those whose id exists; searchable on return.

        Parameters
        ----------
        ids : int, int64[n] or iterable of int, or None
            Distinct, >= 0. None numbers on from the largest id ever used. An iterable that is no
            sequence, such as a generator, is taken in step with the texts.
        texts : str or iterable of str, n of them
            A generator is taken a million characters at a time and never held as a whole.
        progress : bool
            Show a progress bar, without an end where neither `texts` nor `ids` has a length.

        Returns
        -------
        int64[n]
            The ids.

        Raises
        ------
        TypeError, ValueError
            A text that is no str, an id twice, fewer or more ids than texts. Whatever is raised, at
            any place of a stream, by a stream itself, the tokenizer or a key (KeyboardInterrupt),
            nothing was added, to the vocabulary neither.
        RuntimeError
            A stream adds texts itself, to this index or another with its tokenizer.

        Notes
        -----
        O(characters). Searches see the state before until all is added; other writers wait.

        Every call makes a segment; segments of like size are merged by eights, so each posting is
        rewritten O(log n) times and one large call is faster than many small ones. A long call
        makes segments of four million tokens and merges them likewise: its peak of memory is at
        most three times the finished index and 200 MB.

        Examples
        --------
        >>> index = InvertedIndex()
        >>> index.add(None, (f"page {n} of a long story" for n in range(100, 103)))
        array([0, 1, 2])
        >>> index.search("page 101", k=1).ids
        array([1])
        """
        stream, n_texts = validation.text_stream(texts)
        tokenizer = self.tokenizer
        with self._lock:
            ids = _building.Ids(ids, n_texts, self._next_id)
            with (
                progress_bar(progress, ids.total, "index", "text") as report,
                tokenizer._growing(),
            ):
                new = _building.segment_of(ids, tokenizer, stream, report)
                if new is not None:
                    ids_new = _documents.ids_of(new)
                    kept, _ = _segments.without_ids(self._snapshot.segments, ids_new)
                    del ids_new
                    snapshot = _segments.snapshot(_segments.tidy([*kept, new]))
            if new is not None:  # only now do searches know all terms
                self._next_id = max(self._next_id, _documents.last_id(new) + 1)
                self._snapshot = snapshot
        return ids.taken()

    def remove(self, ids) -> None:
        """Take documents out, at once and for every later search.

        Raises
        ------
        KeyError
            An id is not in the index; then nothing is removed.
        """
        ids = validation.ids(ids)
        with self._lock:
            kept, found = _segments.without_ids(self._snapshot.segments, ids)
            if not found.all():
                raise KeyError(f"id {ids[~found][0]} is not in the index")
            if len(ids):
                self._snapshot = _segments.snapshot(_segments.tidy(kept))

    def compact(self) -> None:
        """Merge everything into one segment: the smallest and fastest form. O(postings)."""
        with self._lock:
            segments = self._snapshot.segments
            if len(segments) > 1 or any(s.dead.any() for s in segments):
                self._snapshot = _segments.snapshot([_segments.merge(segments)])

    def search(self, queries, k=10, *, filter=None, threads=1) -> Hits:
        """The k documents of highest score for each query.

        Parameters
        ----------
        queries : str, list of str, or TokenBatch
            Terms that stand more than once weigh by their count; unknown terms add nothing. A
            TokenBatch is what ``tokenizer.encode(texts)`` gives, one row for each query.
        k : int >= 1
        filter : bool mask by id, ids, or a list of either (one per query), optional
            Only these documents may be hits; df and lengths stay those of all documents.
        threads : int
            Threads that share the queries of a batch.

        Returns
        -------
        Hits
            ids int64 and scores float64, ``[k]`` for a str and otherwise ``[n, k]``; equal scores
            by smaller id. O(postings of the query's terms + candidates log k) per query.
        """
        snapshot = self._snapshot  # before the terms, so that every term of it is known
        text = queries[0] if type(queries) is list and len(queries) == 1 else queries
        usual = type(text) is str and filter is None and type(k) is type(threads) is int
        if usual and 1 <= k <= snapshot.n_docs and threads >= 1 and snapshot.n_tokens:
            ready = self._ready(snapshot)
            found = _bm25_search.search_one(ready, self.tokenizer, text, k, self._scratch)
            if found is not None:
                ids, scores = found
                return Hits(ids, scores) if text is queries else Hits(ids[None], scores[None])
        if isinstance(queries, TokenBatch):
            tokens = _checked(queries, len(self.tokenizer))
            n = len(tokens.indptr) - 1
        else:
            texts, tokens = validation.texts(queries, "queries"), None
            n = len(texts)
        k, filters, threads = validation.search_options(k, filter, threads, n)
        depth = min(k, snapshot.n_docs) if snapshot.n_tokens else 0
        if depth:
            if tokens is None:
                tokens = self.tokenizer._encode(texts)
            ids, scores = _bm25_search.search(
                self._ready(snapshot), tokens, depth, filters, threads, self._scratch
            )
        else:
            ids, scores = np.empty((n, 0), np.int64), np.empty((n, 0))
        if depth < k:
            missing = ((0, 0), (0, k - depth))
            ids = np.pad(ids, missing, constant_values=ABSENT)
            scores = np.pad(scores, missing, constant_values=-np.inf)
        if isinstance(queries, str):
            return Hits(ids[0], scores[0])
        return Hits(ids, scores)

    def _ready(self, snapshot):
        """What searches of the snapshot with the present formula share."""
        ready, formula = self._prepared, self._formula
        if ready is None or ready.snapshot is not snapshot or ready.formula is not formula:
            table = self.tokenizer._table
            self._prepared = ready = _bm25_search.prepared(snapshot, formula, table, ready)
        return ready

    def _frozen(self) -> "InvertedIndex":
        """An index with the present documents and parameters that no later write to this one
        changes. O(1): it shares the snapshot, the vocabulary and the scratch memory.
        """
        return copy.copy(self)

    def postings(self, term) -> Postings:
        """The documents that hold a term.

        `term` is looked up as it stands in the vocabulary (that is, stemmed), and otherwise as the
        word it is in a text. Unknown: empty arrays. O(segments log terms + df).
        """
        snapshot = self._snapshot
        wanted = np.array([self.tokenizer._find_term(term)], np.int32)
        ids, tfs = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
        for segment in snapshot.segments:
            place, df = np.empty(1, np.int32), np.zeros(1, np.int64)
            postings_df_add(segment, wanted, place, df)
            if df[0]:
                rows, here = np.empty((2, segment.entries[place[0]]), np.int32)
                n = postings_read(segment, int(place[0]), rows, here)
                ids.append(_documents.ids_at(segment, rows[:n]))
                tfs.append(here[:n])
        ids, tfs = np.concatenate(ids), np.concatenate(tfs)
        order = np.argsort(ids, kind="stable")
        return Postings(ids[order], tfs[order])

    def doc_freq(self, term) -> int:
        """How many documents hold a term, looked up as by `postings`. O(segments log terms)."""
        snapshot = self._snapshot
        wanted = np.array([self.tokenizer._find_term(term)], np.int32)
        df = np.zeros(1, np.int64)
        for segment in snapshot.segments:
            postings_df_add(segment, wanted, np.empty(1, np.int32), df)
        return int(df[0])

    def explain(self, query, id) -> Explanation:
        """Why a document has its score: every known term of the query, ascending.

        Raises
        ------
        KeyError
            The id is not in the index.
        """
        if not isinstance(query, str):
            raise TypeError(f"query must be a str, not {type(query).__name__}")
        snapshot = self._snapshot
        number, row = _segments.find(snapshot.segments, validation.one_id(id))
        if row == ABSENT:
            raise KeyError(f"id {id} is not in the index")
        segment = snapshot.segments[number]
        formula = self._formula
        tokens, table = self.tokenizer._encode([query]), self.tokenizer._table
        terms, counts, places, gain, bonus, df = _bm25_search.weighed(
            snapshot, formula, table, tokens
        )
        (length,) = _documents.lengths_at(segment, np.array([row]))
        variant = VARIANTS[formula.variant]
        total, rows_out = 0.0, []
        for e, term in enumerate(table.texts(terms)):
            if not df[e]:
                continue
            place = places[number][e]
            tf = posting_find(segment, int(place), row) if place != ABSENT else 0
            score = 0.0
            if tf and gain[e] > 0:
                shape = formula.shape(snapshot)
                score = bm25_contribution(tf, length, gain[e], bonus[e], *shape)
            total += score
            idf = bm25_idf(variant, snapshot.n_docs, df[e])
            rows_out.append(TermScore(term, int(counts[e]), int(tf), int(df[e]), idf, score))
        return Explanation(total, rows_out)

    def check(self) -> None:
        """Assert every invariant of the index, its segments and its vocabulary. O(everything)."""
        segments, n_docs, n_tokens = self._snapshot
        self.tokenizer.check()
        alive = [_documents.ids_at(s, _documents.rows_alive(s)) for s in segments]
        for segment in segments:
            _segments.check(segment)
            assert not len(segment.terms) or segment.terms[-1] < len(self.tokenizer)
        alive = np.concatenate([np.zeros(0, np.int64), *alive])
        assert len(np.unique(alive)) == len(alive) == n_docs, "an id stands twice"
        assert not len(alive) or alive.max() < self._next_id
        lengths = [_documents.lengths_at(s, _documents.rows_alive(s)) for s in segments]
        assert n_tokens == sum(int(own.sum(dtype=np.int64)) for own in lengths)
        assert all(not (r.arrays.acc.any() or r.arrays.marks.any()) for r in self._scratch)

    def _state(self):
        with self._lock:
            snapshot, next_id = self._snapshot, self._next_id
        segments = snapshot.segments
        if len(segments) != 1 or segments[0].dead.any():
            segments = [_segments.merge(segments)] if segments else []
        arrays, header = nest("tokenizer", self.tokenizer._state())
        if segments:
            arrays |= _segments.to_arrays(segments[0])
        header |= {
            **self._formula._asdict(), "next_id": next_id,
            "n_docs": snapshot.n_docs, "n_tokens": snapshot.n_tokens,
            "n_lists": len(segments[0].terms) if segments else 0,
        }  # fmt: skip
        return arrays, header

    @classmethod
    def _from_state(cls, arrays, header):
        tokenizer = Tokenizer._from_state(*unnest("tokenizer", arrays, header))
        index = cls(k1=header["k1"], b=header["b"], variant=header["variant"], tokenizer=tokenizer)
        n_docs = validation.integer(header["n_docs"], "n_docs", low=0, high=validation.INT32_MAX)
        n_tokens = validation.integer(header["n_tokens"], "n_tokens", low=0)
        index._next_id = validation.integer(header["next_id"], "next_id", low=0)
        if n_docs:
            n_lists = validation.integer(header["n_lists"], "n_lists", low=0, high=len(tokenizer))
            segment = _segments.from_arrays(arrays, n_docs, n_tokens, n_lists, len(tokenizer))
            last = _documents.last_id(segment)
            if last >= index._next_id:
                raise CorruptFileError(f"id {last} is beyond those ever used")
            index._snapshot = _segments.snapshot([segment])
        return index

    @staticmethod
    def _warmup():
        Tokenizer._warmup()
        index = InvertedIndex()
        index.add([0, 1], ["warm up", "the kernels up"])
        for _ in range(2):  # the second time the words are known
            index.search("warm up", 1)
        index.add([2, 1], ["warm", "up up up"])
        for filter in (None, np.ones(3, bool), [0, 1]):
            index.search(["warm up", "kernels"], 1, filter=filter)
        index.explain("warm up", 1)
        index.postings("up")
        index.remove([2])
        InvertedIndex._from_state(*index._state()).check()


def _checked(tokens, n_terms) -> TokenBatch:
    """The terms of queries as kernels take them, or a clear error."""
    ids = validation.integers(
        tokens.ids, "queries.ids", dtype=np.int32, low=ABSENT, high=n_terms - 1
    )
    return TokenBatch(ids, validation.indptr(tokens.indptr, len(ids), "queries.indptr"))
