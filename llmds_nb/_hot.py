"""Which queries are asked again and again, and their answers."""

import hashlib
import threading
from typing import NamedTuple

import numpy as np

from .inverted_index import Hits
from .lru import TokenLRU
from .sketch import CountMinSketch

_PENDING = 256  # queries counted in one batch: a tenth of the cost of one at a time


class Request(NamedTuple):
    """One query with everything its caller chose."""

    text: str
    k: int
    fusion: str
    weight: float
    vector: np.ndarray | None  # float32[d]; None: from the encoder
    filter: np.ndarray | None  # as `_checks.id_filters` gives it


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
    the words of its query plus its places.
    """

    def __init__(self, cache_tokens, threshold, sketch):
        self.threshold = threshold
        self.cache = TokenLRU(cache_tokens) if cache_tokens else None
        self._sketch = sketch
        self._pending: list[str] = []
        self._lock = threading.Lock()

    @staticmethod
    def new_sketch(seed) -> CountMinSketch:
        """The sketch a new pipeline starts with: 1 MiB, candidates for the 1,000 hottest."""
        return CountMinSketch(1 << 16, 4, top=1000, seed=seed)

    @property
    def sketch(self) -> CountMinSketch:
        """The sketch, with every query counted."""
        self._flush()
        return self._sketch

    def _flush(self):
        with self._lock:
            pending, self._pending = self._pending, []
            if pending:
                self._sketch.add(pending)

    def seen(self, texts) -> None:
        """Count queries."""
        self._pending.extend(texts)
        if len(self._pending) >= _PENDING:
            self._flush()

    def counts(self, texts) -> list[int]:
        """How often each was seen, at least its true count."""
        return self.sketch.estimate(texts).tolist()

    def find(self, key) -> Hits | None:
        """The answer kept under a key; the caller must not change its arrays."""
        entry = self.cache.get(key)
        return None if entry is None else entry[0]

    def keep(self, key, request, ids, scores) -> bool:
        """Keep an answer, whatever its query's count; False if it is larger than the budget."""
        tokens = request.text.count(" ") + 1 + len(ids)
        # Copies: the caller may change its own arrays later.
        vector, one_filter = (None if part is None else part.copy() for part in request[4:])
        request = request._replace(vector=vector, filter=one_filter)
        return self.cache.put(key, (Hits(ids.copy(), scores.copy()), request), tokens)

    def kept(self) -> dict[str, list]:
        """Text -> [(key, request)] of every answer held, also those that no key finds any more."""
        found: dict[str, list] = {}
        for key in self.cache or ():
            entry = self.cache.peek(key)
            if entry is not None:
                found.setdefault(entry[1].text, []).append((key, entry[1]))
        return found
