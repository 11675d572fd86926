"""Which queries are asked again and again, and their answers."""

import hashlib
import threading
from collections import Counter, deque
from typing import Any, NamedTuple

import numpy as np

from ..bm25.index import Hits
from ..structures.lru import TokenLRU
from ..structures.sketch import CountMinSketch

_PENDING = 256  # texts counted in one batch: a tenth of the cost of one at a time


class Request(NamedTuple):
    """One query with everything its caller chose."""

    text: str
    k: int
    fusion: str
    weight: float
    vector: np.ndarray | None = None  # float32[d]; None: not encoded yet
    filter: np.ndarray | None = None  # as `_checks.id_filters` gives it
    encoded: bool = False  # the vector is the encoder's, not the caller's


class Kept(NamedTuple):
    """An answer that is kept, right for one version of the documents under some settings."""

    version: int
    settings: tuple
    hits: Hits
    request: Request
    lease: Any  # what `on_hot` returned


def key_of(request) -> tuple:
    """What tells requests apart."""
    text, k, fusion, weight, vector, one_filter, encoded = request
    if vector is not None:
        vector = None if encoded else vector.tobytes()
    if one_filter is not None:
        digest = hashlib.blake2b(one_filter, digest_size=16).digest()
        one_filter = (one_filter.dtype.char, one_filter.size, digest)
    return text, k, fusion, weight, vector, one_filter


class HotQueries:
    """Counts queries in a sketch and keeps the answers of the frequent ones, with their vectors.

    An answer is found only by the request (`key_of`), version and settings that it was kept for.
    Its size in tokens is the words of its query plus its places. `moment` is the index as a search
    sees it (`_hybrid.Moment`), which computes what is not kept.
    """

    def __init__(self, cache_tokens, threshold, sketch):
        self.threshold = threshold
        self.cache = TokenLRU(cache_tokens, on_evict=self._evicted) if cache_tokens else None
        self.hits = self.misses = 0
        self.on_hot = self.on_cold = None
        self._sketch = sketch
        self._pending: dict[str, int] = {}  # texts not yet in the sketch: how often each
        self._lock = threading.Lock()
        self._keep_lock = threading.Lock()  # so that every answer leaves the cache once
        self._gone: deque[Kept] = deque()  # evicted, `on_cold` not called yet

    @staticmethod
    def new_sketch(seed) -> CountMinSketch:
        """The sketch a new pipeline starts with: 1 MiB, candidates for the 1,000 hottest."""
        return CountMinSketch(1 << 16, 4, top=1000, seed=seed)

    @property
    def sketch(self) -> CountMinSketch:
        """The sketch, with every query counted."""
        with self._lock:
            self._count_pending()
        return self._sketch

    def _count_pending(self):
        pending = self._pending
        if pending:
            self._sketch.add(list(pending), np.array(list(pending.values())))
            pending.clear()

    def _seen(self, texts):
        with self._lock:
            pending = self._pending
            for text in texts:
                pending[text] = pending.get(text, 0) + 1
            if len(pending) >= _PENDING:
                self._count_pending()

    def _counts(self, texts) -> list[int]:
        """How often each was seen, at least its true count."""
        pending = self._pending
        with self._lock:
            counts = self._sketch.estimate(texts).tolist()
            return [n + pending.get(text, 0) for n, text in zip(counts, texts, strict=True)]

    def _find(self, key, version, settings) -> Hits | None:
        """The answer kept for a request, if it is right now."""
        kept = self.cache.get(key)
        if kept is None or kept[0] != version or kept[1] != settings:
            self.misses += 1
            return None
        self.hits += 1
        return kept[2]

    def kept_answer(self, text, k, fusion, weight, version, settings) -> Hits | None:
        """The answer kept for a query without vector or filter, which counts as asked again."""
        if self.cache is None:
            return None
        hits = self._find((text, k, fusion, weight, None, None), version, settings)
        if hits is None:
            return None
        self._seen((text,))
        ids, scores = hits
        return Hits(ids.copy(), scores.copy())

    def answer_one(self, request, moment) -> Hits:
        """The answer [k] to a request that `kept_answer` has none for: `answer` of it alone."""
        text = request.text
        count = 0
        if self.cache is not None:
            with self._lock:
                count = self._sketch.estimate(text) + self._pending.get(text, 0)
            if request.vector is not None and count >= self.threshold:
                hits = self._find(key_of(request), moment.version, moment.settings)
                if hits is not None:
                    self._seen((text,))
                    return Hits(*(part.copy() for part in hits))
        if request.vector is None:
            (request,) = moment.encoded([request])
        hits = moment.search_one(request)
        self._seen((text,))
        if self.cache is not None and count + 1 >= self.threshold:
            self._keep(request, hits, moment)
        return hits

    def answer(self, requests, moment) -> Hits:
        """Answers [n, k]: from the cache or computed, counted, and kept if hot."""
        texts = [request.text for request in requests]
        if self.cache is None:
            hits = moment.search(moment.encoded(requests))
            self._seen(texts)
            return hits
        counts = self._counts(texts)
        found, missing = {}, []
        for i, request in enumerate(requests):
            hits = None
            # The key of a vector or a filter costs time, and only hot ones are ever kept.
            if counts[i] >= self.threshold or request.vector is request.filter is None:
                hits = self._find(key_of(request), moment.version, moment.settings)
            if hits is None:
                missing.append(i)
            else:
                found[i] = hits
        asked = moment.encoded([requests[i] for i in missing])
        if not found:
            hits = moment.search(asked)
        else:
            shape = len(texts), requests[0].k
            hits = Hits(np.empty(shape, np.int64), np.empty(shape))
            if missing:
                hits.ids[missing], hits.scores[missing] = moment.search(asked)
            for i, (ids, scores) in found.items():
                hits.ids[i], hits.scores[i] = ids, scores
        self._seen(texts)
        times = Counter(texts)
        for i, request in zip(missing, asked, strict=True):
            if counts[i] + times[texts[i]] >= self.threshold:
                self._keep(request, Hits(hits.ids[i], hits.scores[i]), moment)
        return hits

    def _keep(self, request, hits, moment):
        tokens = request.text.count(" ") + 1 + len(hits.ids)
        if tokens > self.cache.token_budget:
            return
        # Copies: the caller may change its own arrays later.
        hits = Hits(hits.ids.copy(), hits.scores.copy())
        vector, one_filter = (None if part is None else part.copy() for part in request[4:6])
        request = request._replace(vector=vector, filter=one_filter)
        lease = None
        if self.on_hot is not None:
            lease = self.on_hot(request.text, Hits(hits.ids.copy(), hits.scores.copy()))
        key = key_of(request)
        with self._keep_lock:
            before = self.cache.pop(key, None)
            if before is not None:
                self._gone.append(before)
            self.cache.put(key, Kept(moment.version, moment.settings, hits, request, lease), tokens)
        self._let_go()

    def _evicted(self, key, kept):
        self._gone.append(kept)

    def _let_go(self):
        while self._gone:
            try:
                kept = self._gone.popleft()
            except IndexError:  # another thread was first
                return
            if kept.lease is not None and self.on_cold is not None:
                self.on_cold(kept.lease)

    def hottest(self, k) -> list[tuple[str, int]]:
        """The k most frequent queries and their counts."""
        items, counts = self.sketch.top(k)
        return list(zip(items, counts.tolist(), strict=True)) if len(items) else []

    def prime(self, k, plain, moment) -> int:
        """Answer the k hottest anew; return how many of them are then in the cache.

        Those whose answers were kept are answered as they were asked, by the same vectors; others
        as `plain(text)` unless that is None.
        """
        if self.cache is None:
            return 0
        kept: dict[str, list[Request]] = {}
        for key in self.cache:
            entry = self.cache.peek(key)
            if entry is not None:
                kept.setdefault(entry.request.text, []).append(entry.request)
        ready = 0
        for text, _ in self.hottest(k):
            requests = kept.get(text) or [one for one in [plain(text)] if one is not None]
            for request in requests:
                if not self._is_ready(request, moment):
                    (request,) = moment.encoded([request])
                    ids, scores = moment.search([request])
                    self._keep(request, Hits(ids[0], scores[0]), moment)
            ready += any(self._is_ready(request, moment) for request in requests)
        return ready

    def _is_ready(self, request, moment) -> bool:
        kept = self.cache.peek(key_of(request))
        return kept is not None and kept[:2] == (moment.version, moment.settings)
