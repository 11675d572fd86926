"""StringTable: distinct strings numbered in order of arrival, the store of a vocabulary."""

import threading
from itertools import accumulate

import numpy as np

from .._core import validation
from ..errors import CorruptFileError
from ..primitives.status import ABSENT
from .kernels import tokenize as k

DROPPED = -2  # the number of the empty string, which stands for a word that is no term


class StringTable:
    """Distinct strings numbered in order of arrival; the arrays of `kernels.tokenize`.

    Strings are kept as UTF-8, a lone surrogate as its three bytes. `blob` and `ptr` may be read
    without the lock for strings known before: what is there never changes.
    """

    def __init__(self):
        self.blob = np.zeros(256, np.uint8)
        self.ptr = np.zeros(33, np.int64)
        self._lookup = (np.zeros(32, np.uint64), np.full(64, ABSENT, np.int32))  # hashes, slots
        self._n = 0
        self._lock = threading.Lock()

    def __len__(self):
        return self._n

    @property
    def nbytes(self):
        return sum(a.nbytes for a in (self.blob, self.ptr, *self._lookup))

    def first(self, n) -> tuple[np.ndarray, np.ndarray]:
        """(blob, ptr) of the first n strings, which no writer will take back: they never change."""
        return self.blob, self.ptr[: n + 1]

    def lookup(self) -> tuple:
        """(blob, ptr, hashes, slots), for a kernel that looks strings up while none are added."""
        return self.blob, self.ptr, *self._lookup

    def find(self, strings) -> np.ndarray:
        """int32[len(strings)]: the number of each, ABSENT if unknown, DROPPED for ""."""
        data, data_ptr = _packed(strings)
        out = np.empty(len(strings), np.int32)
        with self._lock:
            k.strings_find_many(self.blob, self.ptr, *self._lookup, data, data_ptr, out)
        if "" in strings:
            out[np.diff(data_ptr) == 0] = DROPPED
        return out

    def add(self, strings) -> np.ndarray:
        """Like `find`, but unknown strings are added."""
        strings = list(strings)
        out = np.full(len(strings), DROPPED, np.int32)
        places = [place for place, string in enumerate(strings) if string]
        data, data_ptr = _packed([strings[place] for place in places])
        found = np.empty(len(places), np.int32)
        with self._lock:
            self._make_room(len(places), int(data_ptr[-1]))
            self._n = k.strings_add_many(
                self.blob, self.ptr, self._n, *self._lookup, data, data_ptr, found
            )
        out[places] = found
        return out

    def _make_room(self, n_strings, n_bytes):
        n, used = self._n, int(self.ptr[self._n])
        if n + n_strings > validation.INT32_MAX:
            raise ValueError(f"a vocabulary holds at most {validation.INT32_MAX} terms")
        if used + n_bytes > len(self.blob):
            self.blob = _enlarged(self.blob, used, used + n_bytes)
        if n + n_strings >= len(self.ptr):
            self.ptr = _enlarged(self.ptr, n + 1, n + 1 + n_strings)
            hashes, _ = self._lookup
            hashes = _enlarged(hashes, n, len(self.ptr) - 1)
            self._lookup = (hashes, self._slots(hashes, n))

    def _slots(self, hashes, n):
        slots = np.full(1 << (2 * len(hashes) - 1).bit_length(), ABSENT, np.int32)
        k.strings_rebuild(self.blob, self.ptr, n, hashes, slots)
        return slots

    def truncate(self, n) -> None:
        """Forget every string from number n on."""
        with self._lock:
            hashes, _ = self._lookup
            self._n = n
            self._lookup = (hashes, self._slots(hashes, n))

    def texts(self, numbers) -> list[str]:
        blob, ptr = self.blob, self.ptr
        return [
            blob[ptr[i] : ptr[i + 1]].tobytes().decode("utf-8", "surrogatepass") for i in numbers
        ]

    def arrays(self) -> dict:
        """Copies to store; the hash table is rebuilt on opening."""
        n = self._n
        return {"blob": self.blob[: self.ptr[n]], "ptr": self.ptr[: n + 1]}

    @classmethod
    def from_arrays(cls, arrays):
        table = cls()
        table.blob, table.ptr = arrays["blob"], arrays["ptr"]
        if table.blob.dtype != np.uint8 or table.ptr.dtype != np.int64:
            raise CorruptFileError("the vocabulary has arrays of the wrong kind")
        validation.indptr(table.ptr, len(table.blob))
        table._n = len(table.ptr) - 1
        hashes = np.empty(table._n, np.uint64)
        table._lookup = (hashes, table._slots(hashes, table._n))
        return table

    def check(self):
        n = self._n
        _, slots = self._lookup
        assert self.ptr[0] == 0
        assert (np.diff(self.ptr[: n + 1]) > 0).all(), "an empty string has a number"
        assert 2 * n <= len(slots) and len(slots) & (len(slots) - 1) == 0
        assert sorted(slots[slots != ABSENT].tolist()) == list(range(n))
        strings = self.texts(range(n))
        assert len(set(strings)) == n, "a string stands twice"
        assert (self.find(strings) == np.arange(n)).all(), "a string is not found"


def _packed(strings):
    """Strings as (uint8 bytes, int64 offsets)."""
    together = "".join(strings)
    if together.isascii():
        blob, lengths = together.encode(), [len(string) for string in strings]
    else:
        encoded = [string.encode("utf-8", "surrogatepass") for string in strings]
        blob, lengths = b"".join(encoded), [len(string) for string in encoded]
    return np.frombuffer(bytearray(blob), np.uint8), offsets(lengths)


def offsets(counts) -> np.ndarray:
    """CSR offsets int64[n + 1] of n counts."""
    if isinstance(counts, list):  # shorter than a cumulative sum for the few words of a query
        return np.array([0, *accumulate(counts)], np.int64)
    result = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=result[1:])
    return result


def _enlarged(array, used, needed):
    larger = np.zeros(max(needed, 2 * len(array)), array.dtype)
    larger[:used] = array[:used]
    return larger
