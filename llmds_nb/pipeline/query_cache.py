"""Counts how often queries are asked and caches the answers of the frequent ones."""

from collections import Counter, deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .._core.forking import new_lock
from ..bm25.index import Hits
from ..structures.lru import TokenLRU
from ..structures.sketch import CountMinSketch
from .search import Request, Searcher

_MIN_CHECKED = 64
_TOKEN_BYTES = 16  # as a hit takes
_BATCH = 256  # texts counted in one batch: a tenth of the cost of one at a time


def _size_of(ids) -> int:
    """Bytes of a mask or ids, of str ids about those of their characters."""
    if isinstance(ids, np.ndarray) and ids.dtype != object:
        return ids.nbytes
    return sum(_TOKEN_BYTES + len(key) for key in ids if key is not None)


class CachedAnswer(NamedTuple):
    """An answer, valid for one version of the documents under some settings."""

    version: int
    settings: tuple
    hits: Hits
    request: Request
    lease: Any  # what `on_hot` returned


class QueryCache:
    """Counts queries in a sketch and caches the answers of the hot ones, with their vectors.

    An answer is found only by the request (`Request.key`), version and settings that it was
    computed for. Its size in tokens bounds its memory, that of its vector apart: the words of its
    query, its hits, and the bytes of its filter. A `Searcher` computes what is not cached.
    """

    def __init__(self, max_tokens: int, threshold: int, sketch: CountMinSketch) -> None:
        self.threshold = threshold
        self._leased: dict[int, CachedAnswer] = {}  # by id: those whose lease is not returned
        self._gone: deque[CachedAnswer] = deque()  # of these, the ones that have left the cache
        self._n_checked = _MIN_CHECKED  # so many are all looked at, in case an interrupt lost one
        self.answers: TokenLRU | None = None
        if max_tokens:
            gone = self._gone.append
            self.answers = TokenLRU(max_tokens, on_evict=lambda key, answer: gone(answer))
        self.hits = self.misses = 0
        self.on_hot: Callable | None = None
        self.on_cold: Callable | None = None
        self._sketch = sketch
        self._pending: dict[str, int] = {}  # texts not yet in the sketch, with their counts
        # Such texts on their way into the sketch, and its total before they are in it.
        self._moving: tuple[dict[str, int], int] | None = None
        self._lock = new_lock()
        self._put_lock = new_lock()  # so that every lease is returned once

    @property
    def sketch(self) -> CountMinSketch:
        """The sketch, with every query counted."""
        with self._lock:
            self._count_pending()
        return self._sketch

    def _count_pending(self):
        self._finish_move()
        if self._pending:
            moving = self._pending, self._sketch.total
            self._pending, self._moving = {}, moving
            self._finish_move()

    def _finish_move(self):
        """Move counts into the sketch, also those of a call that was interrupted meanwhile."""
        if self._moving is not None:
            counts, before = self._moving
            if self._sketch.total == before:
                self._sketch.add(list(counts), np.array(list(counts.values())))
            self._moving = None

    def _count(self, texts, hits=0, misses=0):
        """Count the queries and look-ups of a call that has its answer: one that fails has none."""
        with self._lock:
            self._finish_move()
            counts = {}
            for text in texts:
                counts[text] = counts.get(text, self._pending.get(text, 0)) + 1
            self._pending.update(counts)
            self.hits += hits
            self.misses += misses
            if len(self._pending) >= _BATCH:
                self._count_pending()

    def _count_of(self, text):
        """How often a text was asked."""
        with self._lock:
            self._finish_move()
            return self._sketch.estimate(text) + self._pending.get(text, 0)

    def _counts_of(self, texts):
        """How often each text was asked, a list."""
        with self._lock:
            self._finish_move()
            sketched, pending = self._sketch.estimate(texts).tolist(), self._pending
            return [n + pending.get(text, 0) for n, text in zip(sketched, texts, strict=True)]

    def _find(self, key, version, settings):
        """The valid cached answer under a key, or None."""
        cached = self.answers.get(key)
        if cached is None or cached[0] != version or cached[1] != settings:
            return None
        return cached[2]

    def cached_answer(
        self, text: str, k: int, fusion: str, weight: float, version: int, settings: tuple
    ) -> Hits | None:
        """The cached answer to a query without vector or filter; counts the query if found."""
        if self.answers is None:
            return None
        hits = self._find((text, k, fusion, weight, None, None), version, settings)
        if hits is None:
            return None
        with self._lock:  # `_count((text,), hits=1)`, at half its cost
            if self._moving is not None:
                self._finish_move()
            pending = self._pending
            pending[text] = pending.get(text, 0) + 1
            self.hits += 1
            if len(pending) >= _BATCH:
                self._count_pending()
        ids, scores = hits
        return tuple.__new__(Hits, (ids.copy(), scores.copy()))  # at half the time of the class

    def answer_one(self, request: Request, searcher: Searcher) -> Hits:
        """The answer [k] to one request that `cached_answer` has not found; else as `answer`."""
        text = request.text
        count = misses = 0
        if self.answers is not None:
            count = self._count_of(text)
            misses = int(request.vector is None)  # `cached_answer` has looked
            if request.vector is not None and count >= self.threshold:
                hits = self._find(request.key(), searcher.snapshot.version, searcher.settings)
                misses = 1
                if hits is not None:
                    self._count((text,), hits=1)
                    return Hits(hits.ids.copy(), hits.scores.copy())
        if request.vector is None:
            (request,) = searcher.encode([request])
        hits = searcher.search_one(request)
        if self.answers is not None and count + 1 >= self.threshold:
            self._put(request, hits, searcher)
        self._count((text,), misses=misses)
        return hits

    def answer(self, requests: list[Request], searcher: Searcher) -> Hits:
        """Answers [n, k], cached or computed; counts the queries and caches what has become hot."""
        texts = [request.text for request in requests]
        if self.answers is None:
            hits = searcher.search(searcher.encode(requests))
            self._count(texts)
            return hits
        counts = self._counts_of(texts)
        found, misses = {}, 0
        for i, request in enumerate(requests):
            # The key of a vector or a filter costs time, and only hot requests are ever cached.
            if counts[i] >= self.threshold or request.vector is request.filter is None:
                cached = self._find(request.key(), searcher.snapshot.version, searcher.settings)
                if cached is None:
                    misses += 1
                else:
                    found[i] = cached
        missing = [i for i in range(len(texts)) if i not in found]
        asked = searcher.encode([requests[i] for i in missing])
        if not found:
            hits = searcher.search(asked)
        else:
            shape = len(texts), requests[0].k
            kind = np.int64 if searcher.snapshot.keys is None else object
            hits = Hits(np.empty(shape, kind), np.empty(shape))
            if missing:
                hits.ids[missing], hits.scores[missing] = searcher.search(asked)
            for i, (ids, scores) in found.items():
                hits.ids[i], hits.scores[i] = ids, scores
        times = Counter(texts)
        for i, request in zip(missing, asked, strict=True):
            if counts[i] + times[texts[i]] >= self.threshold:
                self._put(request, Hits(hits.ids[i], hits.scores[i]), searcher)
        self._count(texts, len(found), misses)
        return hits

    def _put(self, request, hits, searcher):
        text, one_filter = request.text, request.filter
        tokens = max(text.count(" ") + 1, len(text) // _TOKEN_BYTES) + len(hits.ids)
        tokens += 0 if one_filter is None else _size_of(one_filter) // _TOKEN_BYTES
        tokens += 0 if request.where is None else len(request.where.key) // _TOKEN_BYTES
        if hits.ids.dtype == object:
            tokens += _size_of(hits.ids) // _TOKEN_BYTES
        if tokens > self.answers.token_budget:
            return
        # Copies: the caller may change its own arrays later.
        hits = Hits(hits.ids.copy(), hits.scores.copy())
        vector = None if request.vector is None else request.vector.copy()
        if isinstance(one_filter, np.ndarray):
            one_filter = one_filter.copy()
        request = request._replace(vector=vector, filter=one_filter)
        lease, on_hot = None, self.on_hot
        if on_hot is not None:
            lease = on_hot(request.text, Hits(hits.ids.copy(), hits.scores.copy()))
        key = request.key()
        answer = CachedAnswer(searcher.snapshot.version, searcher.settings, hits, request, lease)
        with self._put_lock:
            if lease is not None:
                self._leased[id(answer)] = answer
            before = self.answers.peek(key)
            self.answers.put(key, answer, tokens)
        if before is not None:
            self._gone.append(before)
        self._return_leases()

    def _return_leases(self):
        """Call `on_cold` for the leases of answers that have left the cache."""
        while self._gone:
            try:
                answer = self._gone.popleft()
            except IndexError:  # another thread was first
                break
            self._return_lease(answer)
        if len(self._leased) >= self._n_checked:
            for answer in list(self._leased.values()):
                self._return_lease(answer)
            self._n_checked = max(_MIN_CHECKED, 2 * len(self._leased))

    def _return_lease(self, answer):
        if answer.lease is None:
            return
        with self._put_lock:
            if self.answers.peek(answer.request.key()) is answer:
                return
            leased = self._leased.pop(id(answer), None)
        if leased is not None and self.on_cold is not None:
            self.on_cold(answer.lease)

    def hottest(self, k: int) -> list[tuple[str, int]]:
        """The k most frequent queries and their counts."""
        items, counts = self.sketch.top(k)
        return list(zip(items, counts.tolist(), strict=True)) if len(items) else []

    def prime(self, k: int, plain: Request | None, searcher: Searcher) -> int:
        """Answer the k hottest queries again; return how many of them are then in the cache.

        A query with cached answers is answered for the same requests, with the same vectors; others
        as `plain` with their text, unless that is None.
        """
        if self.answers is None:
            return 0
        cached: dict[str, list[Request]] = {}
        for key in self.answers:
            entry = self.answers.peek(key)
            if entry is not None:
                cached.setdefault(entry.request.text, []).append(entry.request)
        n_cached = 0
        for text, _ in self.hottest(k):
            requests = cached.get(text, [] if plain is None else [plain._replace(text=text)])
            for request in requests:
                if not self._is_cached(request, searcher):
                    (request,) = searcher.encode([request])
                    ids, scores = searcher.search([request])
                    self._put(request, Hits(ids[0], scores[0]), searcher)
            n_cached += any(self._is_cached(request, searcher) for request in requests)
        return n_cached

    def _is_cached(self, request, searcher):
        cached = self.answers.peek(request.key())
        return cached is not None and cached[:2] == (searcher.snapshot.version, searcher.settings)
