"""WordCache: the term id of each word met so far, so that encoding a text is one kernel call."""

import threading
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from .._core.jit import EntryPoints
from .._core.state import Handle
from .._core.typing import Int32s, Int64s, UInt8s
from .kernels import tokenize as k
from .vocabulary import StringTable

LookUp: TypeAlias = Callable[[list[str]], Int32s]

_MAX_WORDS = 1 << 16
_MISSING = 64  # unknown words of a batch that are collected in one pass

_entries = EntryPoints(encode_one=k.words_encode_one)
_EMPTY = Handle(k.WordCacheState(StringTable().state, np.empty(0, np.int32)))


class WordCache:
    """The term id of each word that was looked up in one vocabulary.

    `look_up` gives ids for a list of words: ABSENT for an unknown term, DROPPED for a word that is
    no term. Its answers are kept: after a change of the vocabulary a new cache is needed.
    """

    def __init__(self):
        self._by_word = {}
        self._table = None
        self._handle = _EMPTY  # until the first word: every change of a vocabulary makes a cache
        self._lock = threading.Lock()

    def find(self, words: list[str], look_up: LookUp) -> list[int]:
        """The ids of words that Python has split, without those that are dropped."""
        known = self._by_word
        try:
            ids = [known[word] for word in words]
        except KeyError:
            new = list({word: None for word in words if word not in known})
            found = dict(zip(new, look_up(new).tolist(), strict=True))
            ids = [found[word] if word in found else known[word] for word in words]
            if len(known) < _MAX_WORDS:
                known.update(found)
        return [id_ for id_ in ids if id_ != k.DROPPED]

    def encode(
        self, data: UInt8s, text_ptr: Int64s, shortest: int, look_up: LookUp
    ) -> tuple[Int32s, Int64s]:
        """(ids, indptr) of texts in the form that `kernels.tokenize` takes. O(bytes)."""
        out = np.empty(data.size // shortest, np.int32)
        out_ptr = np.empty(text_ptr.size, np.int64)
        missing = np.empty((_MISSING, 2), np.int64)
        while True:
            with self._lock:
                n_missing = k.words_encode(
                    self._handle.address, data, text_ptr, shortest, out, out_ptr, missing
                )
            if n_missing == 0:
                return out[: out_ptr[-1]], out_ptr
            if n_missing > len(missing):
                missing = np.empty((n_missing, 2), np.int64)
                continue
            spans = missing[:n_missing].tolist()
            self._learn(list({bytes(data[start:stop]): None for start, stop in spans}), look_up)

    def encode_one(self, text: int, n: int, shortest: int, tokens: int) -> int:
        """Write the ids of the n bytes at address `text` as int32 to address `tokens`.

        Return how many, at most n / shortest; or ABSENT if a word was never looked up. Takes no
        lock: the kernel keeps the GIL, and `_learn` keeps what it reads consistent.
        """
        handle = self._handle  # kept alive meanwhile
        return _entries.encode_one(handle.address, text, n, shortest, tokens)

    def _learn(self, new, look_up):
        words = [word.decode() for word in new]
        ids = look_up(words)
        with self._lock:
            known = self._handle.state.term_ids
            if self._table is None or len(self._table) > _MAX_WORDS:
                self._table, known = StringTable(), known[:0]
            # First the arrays of the cache are replaced, all at once, by some that suffice; only
            # then words are added in place. A word without an id is UNSET.
            self._table.reserve(len(words), sum(map(len, new)))
            capacity = len(self._table.state.hashes)
            if len(known) < capacity:
                known = np.concatenate([known, np.full(capacity - len(known), k.UNSET, np.int32)])
            state = k.WordCacheState(self._table.state, known)
            if self._handle is _EMPTY:
                self._handle = Handle(state)
            else:
                self._handle.replace(state)
            known[self._table.add(words)] = ids
