"""Which queries are asked again and again, and their answers."""

import hashlib
import threading
from collections import Counter
from typing import NamedTuple

import numpy as np

from .inverted_index import Hits
from .lru import TokenLRU
from .sketch import CountMinSketch

_PENDING = 256  # texts counted in one batch: a tenth of the cost of one at a time


class Request(NamedTuple):
    """One query with everything its caller chose."""

    text: str
    k: int
    fusion: str
    weight: float
    vector: np.ndarray | None = None  # float32[d]; None: from the encoder
    filter: np.ndarray | None = None  # as `_checks.id_filters` gives it


def key_of(request, version, settings) -> tuple:
    """All that the answer to a request depends on."""
    text, k, fusion, weight, vector, one_filter = request
    if vector is not None:
        vector = vector.tobytes()
    if one_filter is not None:
        digest = hashlib.blake2b(one_filter, digest_size=16).digest()
        one_filter = (one_filter.dtype.char, one_filter.size, digest)
    return text, k, fusion, weight, vector, one_filter, version, settings


class HotQueries:
    """Counts queries in a sketch and keeps the answers of the frequent ones.

    An answer is found only under the key (`key_of`) that it was kept under. Its size in tokens is
    the words of its query plus its places. `version` is that of the documents, `settings` those of
    the search; `compute(requests)` answers requests of one k, fusion and weight.
    """

    def __init__(self, cache_tokens, threshold, sketch):
        self.threshold = threshold
        self.cache = TokenLRU(cache_tokens) if cache_tokens else None
        self._sketch = sketch
        self._pending: dict[str, int] = {}  # texts not yet in the sketch: how often each
        self._lock = threading.Lock()

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
            if len(texts) == 1:
                return [self._sketch.estimate(texts[0]) + pending.get(texts[0], 0)]
            counts = self._sketch.estimate(texts).tolist()
            return [n + pending.get(text, 0) for n, text in zip(counts, texts, strict=True)]

    def kept_answer(self, text, k, fusion, weight, version, settings) -> Hits | None:
        """The answer kept for a query without vector or filter, which counts as asked again."""
        if self.cache is None:
            return None
        entry = self.cache.get((text, k, fusion, weight, None, None, version, settings))
        if entry is None:
            return None
        self._seen((text,))
        ids, scores = entry[0]
        return Hits(ids.copy(), scores.copy())

    def answer_one(self, request, version, settings, compute) -> Hits:
        """The answer [k] to a request that `kept_answer` has none for: `answer` of it alone."""
        text = request.text
        if self.cache is None:
            hits = compute(request)
            self._seen((text,))
            return hits
        count = self._counts([text])[0]
        if request.vector is not None and count >= self.threshold:
            entry = self.cache.get(key_of(request, version, settings))
            if entry is not None:
                self._seen((text,))
                return Hits(*(part.copy() for part in entry[0]))
        hits = compute(request)
        self._seen((text,))
        if count + 1 >= self.threshold:
            self._keep(key_of(request, version, settings), request, *hits)
        return hits

    def answer(self, requests, version, settings, compute) -> Hits:
        """Answers [n, k]: from the cache or computed, counted, and kept if hot."""
        texts = [request.text for request in requests]
        if self.cache is None:
            hits = compute(requests)
            self._seen(texts)
            return hits
        counts = self._counts(texts)
        found, missing = {}, []
        for i, request in enumerate(requests):
            entry = None
            # The key of a vector or a filter costs time, and only hot ones are ever kept.
            if counts[i] >= self.threshold or request.vector is request.filter is None:
                entry = self.cache.get(key_of(request, version, settings))
            if entry is None:
                missing.append(i)
            else:
                found[i] = entry[0]
        if not found:
            hits = compute(requests)
        else:
            shape = len(texts), requests[0].k
            hits = Hits(np.empty(shape, np.int64), np.empty(shape))
            if missing:
                computed = compute([requests[i] for i in missing])
                hits.ids[missing], hits.scores[missing] = computed
            for i, (ids, scores) in found.items():
                hits.ids[i], hits.scores[i] = ids, scores
        self._seen(texts)
        times = Counter(texts)
        for i in missing:
            if counts[i] + times[texts[i]] >= self.threshold:
                key = key_of(requests[i], version, settings)
                self._keep(key, requests[i], hits.ids[i], hits.scores[i])
        return hits

    def _keep(self, key, request, ids, scores):
        tokens = request.text.count(" ") + 1 + len(ids)
        # Copies: the caller may change its own arrays later.
        vector, one_filter = (None if part is None else part.copy() for part in request[4:])
        request = request._replace(vector=vector, filter=one_filter)
        self.cache.put(key, (Hits(ids.copy(), scores.copy()), request), tokens)

    def hottest(self, k) -> list[tuple[str, int]]:
        """The k most frequent queries and their counts."""
        items, counts = self.sketch.top(k)
        return list(zip(items, counts.tolist(), strict=True)) if len(items) else []

    def prime(self, k, plain, version, settings, compute) -> int:
        """Answer the k hottest anew; return how many of them are then in the cache.

        Those whose answers were kept are answered as they were asked, others as `plain(text)`
        unless that is None.
        """
        if self.cache is None:
            return 0
        kept: dict[str, list] = {}
        for key in self.cache:
            entry = self.cache.peek(key)
            if entry is not None:
                kept.setdefault(entry[1].text, []).append((key, entry[1]))
        ready = 0
        for text, _ in self.hottest(k):
            fallback = plain(text)
            entries = kept.get(text, [] if fallback is None else [(None, fallback)])
            keys = set()
            for old_key, request in entries:
                key = key_of(request, version, settings)
                if key not in self.cache:
                    answer = compute([request])
                    self.cache.pop(old_key, None)
                    self._keep(key, request, answer.ids[0], answer.scores[0])
                keys.add(key)
            ready += any(key in self.cache for key in keys)
        return ready
