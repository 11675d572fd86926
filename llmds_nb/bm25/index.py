"""InvertedIndex: exact BM25 ranking of texts that are added and removed at any time."""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np

from .._core import validation
from .._core.progress import progress_bar
from .._core.publishing import Changes, publish
from .._core.storage import Stored, share
from .._core.typing import ArrayLike, Int64s
from .._core.validation import shown
from ..primitives.status import ABSENT
from ..text.analyzer import Split, Texts
from ..text.tokenizer import Growth, TokenBatch, Tokenizer
from . import persistence, search as searching, segments as segs
from .collection import CollectionStatistics, checked_statistics, statistics_of
from .contents import Contents
from .kernels.postings import postings_read
from .kernels.scoring import VARIANTS
from .merging import merge, tidy
from .results import Explanation, Hits, InvertedIndexStats, Postings
from .segment_builder import Ids, segment_of

NewIds: TypeAlias = ArrayLike | Iterable[int] | None
Queries: TypeAlias = Texts | TokenBatch
Filter: TypeAlias = ArrayLike | Sequence[ArrayLike | None] | None


_NO_TOKENS = TokenBatch(np.zeros(0, np.int32), np.zeros(1, np.int64))  # of texts not encoded yet


class InvertedIndex(Stored):
    """Sparse retrieval: documents ranked by BM25, exactly, while they are added and removed.

    Scores are those of the formula in float64 (`bm25/kernels/scoring.py` has the variants); an
    index after any adds and removes ranks exactly as one built anew from the same documents. The
    index stores counts and lengths, not scores: `k1`, `b` and `variant` are attributes that may be
    changed at any time. A document of score 0, or that holds no term of the query, is never a hit.

    The first search after a write decodes the longest lists of a new segment, into 1 byte a posting
    (or up to 12 MB, if that is more), which makes later searches faster and changes no answer.
    Any number of threads may search while one writes; a search sees the state before or after a
    write. Writes from several threads take turns.

    After `compact` an index takes the bytes of one built anew from the same documents. While
    documents come and go it takes two to three times as much, at most four: a segment is merged
    before half of it is removed documents, and `add` drops unused terms when the vocabulary has
    doubled. `remove` drops no terms, and a tokenizer that was given keeps all.

    Parameters
    ----------
    k1 : float in [0, 1e6]
        How slowly the weight of a term saturates with its count in a document.
    b : float in [0, 1]
        How much scores are normalised by document length.
    variant : "lucene", "robertson", "atire", "bm25+" or "bm25l"
    tokenizer : Tokenizer or callable, optional
        Splits texts and queries; its vocabulary grows with `add`. It may be shared: `compact` takes
        no terms from it, but gives the index one of its own. A callable takes a text and gives its
        terms. Default: ``Tokenizer()``. A file does not hold its callables: `load` takes them
        again, as `stemmer` and `pattern`.

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

    def __init__(
        self,
        *,
        k1: float = 1.2,
        b: float = 0.75,
        variant: str = "lucene",
        tokenizer: Tokenizer | Split | None = None,
    ):
        self._formula = searching.Formula(variant, k1, b)
        self.k1, self.b, self.variant = k1, b, variant
        is_own = not isinstance(tokenizer, Tokenizer)
        if tokenizer is None:
            tokenizer = Tokenizer()
        elif not isinstance(tokenizer, Tokenizer):
            if not callable(tokenizer):
                kinds = "a Tokenizer or callable"
                raise TypeError(f"tokenizer must be {kinds}, not {shown(tokenizer)}")
            tokenizer = Tokenizer(language=None, lowercase=False, pattern=tokenizer)
        self._contents = Contents([], 0, tokenizer, 0 if is_own else None)
        self._lock = tokenizer._lock  # of writers: what shares a tokenizer takes turns
        self._buffers: searching.Pool = deque()

    @property
    def tokenizer(self) -> Tokenizer:
        """What splits texts, and the terms of the index."""
        return self._contents.tokenizer

    @property
    def k1(self) -> float:
        """How slowly the weight of a term saturates; may be set at any time."""
        return self._formula.k1

    @k1.setter
    def k1(self, value: float) -> None:
        self._formula = self._formula._replace(k1=validation.real(value, "k1", low=0, high=1e6))

    @property
    def b(self) -> float:
        """How much scores are normalised by length; may be set at any time."""
        return self._formula.b

    @b.setter
    def b(self, value: float) -> None:
        self._formula = self._formula._replace(b=validation.real(value, "b", low=0, high=1))

    @property
    def variant(self) -> str:
        """The variant of the formula; may be set at any time."""
        return self._formula.variant

    @variant.setter
    def variant(self, value: str) -> None:
        variant = validation.choice(value, "variant", tuple(VARIANTS))
        self._formula = self._formula._replace(variant=variant)

    def __len__(self) -> int:
        return self._contents.snapshot.n_docs

    def __contains__(self, id: object) -> bool:
        id = validation.id_or_none(id)
        if id is None:
            return False
        return segs.find(self._contents.snapshot.segments, np.array([id]))[1] != ABSENT

    def __repr__(self) -> str:
        return (
            f"InvertedIndex({len(self):,} documents, {len(self.tokenizer):,} terms, "
            f"{len(self._contents.snapshot.segments)} segments, {self.nbytes / 1e6:.1f} MB)"
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, with the vocabulary and the decoded lists that searches keep."""
        return self._contents.nbytes

    def stats(self) -> InvertedIndexStats:
        """Sizes, counted when called."""
        contents = self._contents
        segments, _, n_docs, n_tokens = contents.snapshot
        mean_length = n_tokens / n_docs if n_docs else 0.0
        n_removed = sum(int(s.dead.sum()) for s in segments)
        n_bytes = sum(len(s.data) - 1 for s in segments)
        sizes = n_docs, len(contents.tokenizer), n_tokens, mean_length, n_removed, len(segments)
        return InvertedIndexStats(*sizes, n_bytes, self.nbytes)

    def add(self, ids: NewIds, texts: Texts, *, progress: bool = False) -> Int64s:
        """Add documents, or replace those whose id exists, searchable on return; return the ids.

        Parameters
        ----------
        ids : int, int64[n] or iterable of int, or None
            Distinct, >= 0. None counts up from the largest id ever used. An iterable that is no
            sequence, such as a generator, is read in step with the texts.
        texts : str or iterable of str, n of them
            A generator is read a million characters at a time and never held as a whole.
        progress : bool
            Show a progress bar, without a total where neither `texts` nor `ids` has a length.

        Raises
        ------
        TypeError, ValueError
            A text that is no str, a repeated id, fewer or more ids than texts. Whatever is raised,
            anywhere in a stream, by a stream itself, the tokenizer or the user
            (KeyboardInterrupt), nothing was added, not even to the vocabulary.
        RuntimeError
            A stream itself adds texts to this index or to another with its tokenizer.

        Notes
        -----
        O(characters). Searches see the state before until all is added; other writers wait.
        Every call makes a segment; eight segments of like size are merged into one, so each posting
        is rewritten O(log n) times and one large call is faster than many small ones. A long call
        makes segments of four million tokens and merges them likewise: its peak memory is at most
        three times the finished index and 200 MB.

        Examples
        --------
        >>> index = InvertedIndex()
        >>> index.add(None, (f"page {n} of a long story" for n in range(100, 103)))
        array([0, 1, 2])
        >>> index.search("page 101", k=1).ids
        array([1])
        """
        with self._lock:
            added, changes = self._prepare_add(ids, texts, progress=progress)
            publish(changes)
        return added

    # A write is prepared aside, by a caller that holds `_lock` until its changes are published.

    def _prepare_add(
        self,
        ids: NewIds,
        texts: Texts,
        *,
        progress: bool = False,
        earlier: Iterable[tuple[Any, str, Any]] = (),
    ) -> tuple[Int64s, Changes]:
        """The ids that `add` returns, and what it changes.

        `earlier` are changes of the same write, such as those of an LsaEncoder, that are to be
        published before these.
        """
        stream, n_texts = validation.text_stream(texts)
        progress = validation.flag(progress, "progress")
        tokenizer = self.tokenizer
        tokenizer._check_not_growing()
        with tokenizer._growing:
            growth = Growth(tokenizer, earlier)
            taken = Ids(ids, n_texts, self._contents.next_id)
            with progress_bar(progress, taken.total, "index", "text") as report:
                new = segment_of(taken, growth, stream, report)
            if new is None:
                return taken.taken(), []
            before, vocabulary = self._contents, growth.vocabulary()
            kept, _ = segs.without_ids(before.snapshot.segments, segs.ids_of(new))
            contents = before.with_added(tidy([*kept, new]), segs.last_id(new), vocabulary)
        changes: Changes = [(self, "_contents", contents)]
        if contents.tokenizer is tokenizer:
            changes.append((tokenizer, "_vocabulary", vocabulary))
        return taken.taken(), changes

    def remove(self, ids: ArrayLike) -> None:
        """Remove documents, from every later search, or none: KeyError for an unknown id.

        O(documents of the segments that hold them); the space is reclaimed by later merges.
        """
        with self._lock:
            publish(self._prepare_remove(ids))

    def _prepare_remove(self, ids: ArrayLike) -> Changes:
        """What `remove` changes."""
        wanted, before = validation.ids(ids), self._contents
        if not len(wanted):
            return []
        kept, found = segs.without_ids(before.snapshot.segments, wanted)
        if not found.all():
            raise KeyError(f"id {wanted[~found][0]} is not in the index")
        return [(self, "_contents", before.with_segments(tidy(kept)))]

    def compact(self) -> None:
        """Merge everything into one segment, and drop the terms that no document holds.

        The smallest and fastest form: the bytes of an index built anew from the same documents.
        O(postings + terms). Terms are numbered anew, by a new `tokenizer`: one that was given, or
        that another structure has from this index, keeps all its terms and no longer grows with
        it. A TokenBatch of any of them is understood. Searches may run beside it.
        """
        with self._lock:
            before = self._contents
            before.tokenizer._check_not_growing()
            segments: Sequence[Any] = before.snapshot.segments
            if len(segments) > 1 or any(s.dead.any() for s in segments):
                segments = [merge(segments)]
            self._contents = before.with_used_terms(segments)

    def search(
        self,
        queries: Queries,
        k: int = 10,
        *,
        filter: Filter = None,
        threads: int = 1,
        min_score: float | None = None,
        statistics: CollectionStatistics | None = None,
    ) -> Hits:
        """The k documents of highest score for each query.

        Parameters
        ----------
        queries : str, list of str, or TokenBatch
            Repeated terms are weighted by their count; unknown terms add nothing. A TokenBatch is
            what the `encode` of a tokenizer gives, one row for each query: its ids mean their terms
            whichever tokenizer that was. One that a caller has made holds ids of `self.tokenizer`.
        k : int >= 1
        filter : bool mask by id, ids, a set of ids, or a list of such (one per query), optional
            Only these documents may be hits; df and lengths stay those of all documents.
        threads : int
            Threads among which the queries of a batch are divided; -1: all cores.
        min_score : float, optional
            Documents of a lower score are no hits.
        statistics : CollectionStatistics, optional
            Of a larger collection that this index is a part of, for these queries: scores are then,
            bit for bit, those of one index over the whole collection. Default: its own.

        Returns
        -------
        Hits
            ids int64 and scores float64, ``[k]`` for a str and otherwise ``[n, k]``; equal scores
            by smaller id. O(postings of the query's terms + candidates log k) per query.
        """
        contents = self._contents  # before the terms, so that every term of it is known
        snapshot, tokenizer = contents.snapshot, contents.tokenizer
        text: Any = queries[0] if type(queries) is list and len(queries) == 1 else queries
        usual = type(text) is str and filter is None and type(k) is type(threads) is int
        if (
            usual
            and min_score is statistics is None
            and 1 <= k <= snapshot.n_docs
            and threads >= 1
            and snapshot.n_tokens
        ):
            ready = contents.ready(self._formula)
            found = searching.search_one(ready, tokenizer, text, k, self._buffers)
            if found is not None:
                ids, scores = found
                return Hits(ids, scores) if text is queries else Hits(ids[None], scores[None])
        if isinstance(queries, TokenBatch):
            tokens = _checked(queries, tokenizer)
            n = len(tokens.indptr) - 1
        else:
            texts, tokens = validation.texts(queries, "queries"), _NO_TOKENS
            n = len(texts)
        k, filters, threads = validation.search_options(k, filter, threads, n)
        if min_score is not None:
            min_score = validation.real(min_score, "min_score", infinite=True)
        depth = min(k, snapshot.n_docs) if snapshot.n_tokens else 0
        if tokens is _NO_TOKENS and (depth or statistics is not None):
            tokens = tokenizer._encode(texts, tokenizer._vocabulary)
        collection = None
        if statistics is not None:
            vocabulary = tokenizer._vocabulary
            collection = checked_statistics(statistics, snapshot, vocabulary, tokens)
        if depth:
            ready = contents.ready(self._formula, collection)
            ids, scores = searching.search(ready, tokens, depth, filters, threads, self._buffers)
        else:
            ids, scores = np.empty((n, 0), np.int64), np.empty((n, 0))
        if min_score is not None:
            low = scores < min_score
            ids[low], scores[low] = ABSENT, -np.inf
        if depth < k:
            missing = ((0, 0), (0, k - depth))
            ids = np.pad(ids, missing, constant_values=ABSENT)
            scores = np.pad(scores, missing, constant_values=-np.inf)
        return Hits(ids[0], scores[0]) if isinstance(queries, str) else Hits(ids, scores)

    def statistics(self, queries: Queries) -> CollectionStatistics:
        """What other parts of a collection need to know of this index, to rank as one with it.

        For queries as of `search`: the numbers of documents and tokens, and the document frequency
        of each of their terms that the index has. O(segments * terms of the queries * log terms).

        >>> from llmds_nb.bm25 import merge_statistics
        >>> parts = InvertedIndex(), InvertedIndex()
        >>> parts[0].add([1, 2], ["a red fox", "blue sky"]), parts[1].add([3], ["a red red car"])
        (array([1, 2]), array([3]))
        >>> whole = merge_statistics(part.statistics("red fox") for part in parts)
        >>> sorted(whole.doc_freq.items())
        [('fox', 1), ('red', 2)]
        >>> parts[1].search("red fox", 1, statistics=whole).scores.round(3)
        array([0.272])
        """
        contents = self._contents
        tokens = _tokens_of(queries, contents.tokenizer)
        return statistics_of(contents.snapshot, contents.tokenizer._vocabulary, tokens)

    def _frozen(self) -> "InvertedIndex":
        """These documents and parameters, which later writes do not change. O(1): all is shared."""
        return share(self)

    def postings(self, term: str) -> Postings:
        """The documents that hold a term: a stemmed one, or else a word as it is in texts.

        Unknown: empty arrays. O(segments log terms + df).
        """
        snapshot, ordinals, _ = self._find_term(term)
        all_ids, all_tfs = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
        parts = zip(snapshot.segments, snapshot.handles, ordinals, strict=True)
        for segment, handle, (ordinal,) in parts:
            if ordinal != ABSENT:
                docs, tfs = np.empty((2, segment.entries[ordinal]), np.int32)
                n = postings_read(handle.address, int(ordinal), docs, tfs)
                all_ids.append(segs.ids_at(segment, docs[:n]))
                all_tfs.append(tfs[:n])
        ids = np.concatenate(all_ids)
        order = np.argsort(ids, kind="stable")
        return Postings(ids[order], np.concatenate(all_tfs)[order])

    def doc_freq(self, term: str) -> int:
        """How many documents hold a term, looked up as by `postings`. O(segments log terms)."""
        return int(self._find_term(term)[2][0])

    def _find_term(self, term):
        """The snapshot, and of a term its ordinal int32[1] in each segment and df int64[1]."""
        contents = self._contents
        snapshot = contents.snapshot
        wanted = np.array([contents.tokenizer._find_term(term)], np.int32)
        return snapshot, *segs.find_terms(snapshot, wanted)

    def explain(self, query: str, id: int) -> Explanation:
        """Why a document has its score: every known term, ascending. KeyError for an unknown id."""
        query = validation.text(query, "query")
        contents = self._contents
        snapshot, tokenizer = contents.snapshot, contents.tokenizer
        number, doc = segs.find(snapshot.segments, np.array([validation.natural(id, "id")]))
        if doc == ABSENT:
            raise KeyError(f"id {id} is not in the index")
        vocabulary = tokenizer._vocabulary
        terms = tokenizer._encode([query], vocabulary).ids
        return searching.explain(snapshot, self._formula, vocabulary.table, terms, number, doc)

    def check(self) -> None:
        """Assert every invariant of the index, its segments and its vocabulary. O(everything)."""
        contents = self._contents
        segments, handles, n_docs, n_tokens = contents.snapshot
        contents.tokenizer.check()
        assert all(h.state is s for h, s in zip(handles, segments, strict=True))
        for segment in segments:
            segs.check(segment)
            assert not len(segment.terms) or segment.terms[-1] < len(contents.tokenizer)
        alive = [(s, segs.docs_alive(s)) for s in segments]
        own_ids = (segs.ids_at(s, docs) for s, docs in alive)
        ids = np.concatenate([np.zeros(0, np.int64), *own_ids])
        assert len(np.unique(ids)) == len(ids) == n_docs, "an id occurs twice"
        assert not len(ids) or ids.max() < contents.next_id
        lengths = (segs.lengths_at(s, docs) for s, docs in alive)
        assert n_tokens == sum(int(own.sum(dtype=np.int64)) for own in lengths)
        assert all(buffers.is_clean() for buffers in tuple(self._buffers))

    def _state(self):
        contents = self._contents
        snapshot, next_id, tokenizer = contents.snapshot, contents.next_id, contents.tokenizer
        return persistence.to_state(snapshot, tokenizer, self._formula, next_id)

    def _parts(self):
        return self.tokenizer._parts()

    @classmethod
    def _from_state(cls, arrays, header, *, stemmer=None, pattern=None):
        parts = {"stemmer": stemmer, "pattern": pattern}
        segments, tokenizer, formula, next_id = persistence.from_state(arrays, header, parts)
        index = cls(**formula._asdict(), tokenizer=tokenizer)
        index._contents = Contents(segments, next_id, tokenizer, len(tokenizer))
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
        index.add(range(10, 30), ["up"] * 20)
        index.search("up", 20)  # more hits than are kept in order
        index.explain("warm up", 1)
        index.postings("up")
        index.remove([2])
        InvertedIndex._from_state(*index._state()).check()


def _tokens_of(queries: Queries, tokenizer: Tokenizer) -> TokenBatch:
    """Queries as term ids of this tokenizer."""
    if isinstance(queries, TokenBatch):
        return _checked(queries, tokenizer)
    return tokenizer._encode(validation.texts(queries, "queries"), tokenizer._vocabulary)


def _checked(queries: TokenBatch, tokenizer: Tokenizer) -> TokenBatch:
    """Queries as term ids of this tokenizer, in arrays for kernels."""
    other = tokenizer if queries.tokenizer is None else queries.tokenizer
    limits = {"low": ABSENT, "high": len(other) - 1}
    ids: Any = validation.integers(queries.ids, "queries.ids", dtype=np.int32, **limits)
    if other is not tokenizer:  # as after `compact`: look the terms up by their texts
        distinct, places = np.unique(ids, return_inverse=True)
        texts = other._vocabulary.table.texts(distinct[distinct != ABSENT].tolist())
        unknown = np.full(len(distinct) - len(texts), ABSENT, np.int32)
        ids = np.concatenate([unknown, tokenizer._vocabulary.find(texts)])[places]
    return TokenBatch(ids, validation.indptr(queries.indptr, len(ids), "queries.indptr"))
