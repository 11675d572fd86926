"""KnownWords: what the words of texts become, remembered so that a query is one kernel call."""

import threading

import numpy as np

from ._strings import DROPPED, StringTable
from .kernels import tokenize as k

_MOST = 1 << 16  # words that are remembered
_SOME = 64  # words that a query may bring and that are looked up at once


class KnownWords:
    """The term id of each word that was looked up, ABSENT or DROPPED; of one vocabulary.

    `look_up` gives int32 ids for a list of words. As it says when a word is first met, so it stays:
    whoever changes the vocabulary begins anew.
    """

    def __init__(self):
        self._by_word = {}
        self._words = StringTable()
        self._ids = np.empty(16, np.int32)
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

    def _learn(self, new, look_up):
        words = [word.decode() for word in new]
        ids = look_up(words)
        with self._lock:
            if len(self._words) > _MOST:
                self._words = StringTable()
            numbers = self._words.add(words)
            room = int(numbers.max()) + 1
            if room > len(self._ids):
                self._ids = np.resize(self._ids, 2 * room)
            self._ids[numbers] = ids
