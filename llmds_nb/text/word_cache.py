"""KnownWords: what the words of texts become, remembered so that a query is one kernel call."""

import threading

import numpy as np

from .._core.arrays import address_of
from .._core.jit import EntryPoints
from .kernels import tokenize as k
from .vocabulary import DROPPED, StringTable

_MOST = 1 << 16  # words that are remembered
_SOME = 64  # words that a query may bring and that are looked up at once


_entries = EntryPoints(find_one=k.words_find_one)


class KnownWords:
    """The term id of each word that was looked up, ABSENT or DROPPED; of one vocabulary.

    `look_up` gives int32 ids for a list of words. As it says when a word is first met, so it stays:
    whoever changes the vocabulary begins anew.
    """

    def __init__(self):
        self._by_word = {}
        self._words = StringTable()
        self._ids = np.empty(0, np.int32)
        self._state = (), np.empty(0, np.int64)  # arrays, and where they are
        self._lock = threading.Lock()

    def find(self, words, look_up) -> list[int]:
        """The ids of words, those left out left out."""
        known = self._by_word
        try:
            ids = [known[word] for word in words]
        except KeyError:
            new = list({word: None for word in words if word not in known})
            fresh = dict(zip(new, look_up(new).tolist(), strict=True))
            ids = [fresh[word] if word in fresh else known[word] for word in words]
            if len(known) < _MOST:
                known.update(fresh)
        return [id_ for id_ in ids if id_ != DROPPED]

    def encode(self, data, text_ptr, shortest, look_up) -> tuple[np.ndarray, np.ndarray]:
        """(ids, indptr) of texts as `kernels.tokenize` takes them. O(bytes)."""
        out = np.empty(data.size // shortest, np.int32)
        out_ptr = np.empty(text_ptr.size, np.int64)
        missing = np.empty((_SOME, 2), np.int64)
        while True:
            with self._lock:
                n_missing = k.words_find(
                    data, text_ptr, shortest, *self._words.lookup(), self._ids, DROPPED, out,
                    out_ptr, missing,
                )  # fmt: skip
            if n_missing == 0:
                return out[: out_ptr[-1]], out_ptr
            if n_missing > len(missing):
                missing = np.empty((n_missing, 2), np.int64)
                continue
            spans = missing[:n_missing].tolist()
            self._learn(list({bytes(data[start:stop]): None for start, stop in spans}), look_up)

    def encode_one(self, n, text, tokens, shortest) -> int:
        """Write the ids of the n <= TEXT bytes at address `text` to `tokens`; return how many, or
        -1 if a word was never looked up. While this runs, no other thread adds words.
        """
        arrays, known = self._state
        if not arrays:
            return -1
        return _entries.find_one(known, text, n, tokens, DROPPED, shortest)

    def _learn(self, new, look_up):
        words = [word.decode() for word in new]
        ids = look_up(words)
        with self._lock:
            if len(self._words) > _MOST:
                self._words, self._ids = StringTable(), np.empty(0, np.int32)
            numbers = self._words.add(words)
            blob, ptr, hashes, slots = self._words.lookup()
            if len(self._ids) < len(hashes):
                ids_of = np.full(len(hashes), k.UNSET, np.int32)
                ids_of[: len(self._ids)] = self._ids
                self._ids = ids_of
            self._ids[numbers] = ids
            arrays = blob, ptr, hashes, slots, self._ids
            sizes = len(blob), len(hashes), len(slots)
            self._state = arrays, np.array([*map(address_of, arrays), *sizes])
