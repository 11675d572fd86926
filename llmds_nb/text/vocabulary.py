"""StringTable, the store of a vocabulary, and WordCache, the term id of each word met so far."""

from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import NamedTuple, TypeAlias

import numpy as np

from .._core import validation
from .._core.arrays import address_of, grown_size
from .._core.forking import new_lock
from .._core.jit import EntryPoints
from .._core.state import Handle
from .._core.typing import Bools, Int32s, Int64s, UInt8s
from ..errors import CorruptFileError
from ..primitives.hashing import secret_word
from ..primitives.status import ABSENT
from .kernels import tokenize as k
from .kernels.characters import MOST_BYTES

LookUp: TypeAlias = Callable[[list[str]], Int32s]

_FIRST_STRINGS, _FIRST_BYTES = 32, 256
_MAX_WORDS = 1 << 16
_MANY = 64  # counts of which NumPy has the sums faster
_MISSING = 64  # unknown words of a batch that are collected in one pass


class StringTable:
    """Distinct strings by number, as UTF-8, a lone surrogate as its three bytes.

    Any number of threads may read beside one that writes: a string never changes, and only the
    kernels, which keep the GIL, change what they can read.
    """

    def __init__(self):
        blob, ptr = np.zeros(_FIRST_BYTES, np.uint8), np.zeros(_FIRST_STRINGS + 1, np.int64)
        self._handle = Handle(_indexed(blob, ptr, 0, _FIRST_STRINGS))

    def __len__(self) -> int:
        return int(self.state.count[0])

    @property
    def state(self):
        """The StringTableState: it changes in place, or is replaced when the table grows."""
        return self._handle.state

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        state = self.state
        return sum(a.nbytes for a in (state.blob, state.ptr, state.hashes, state.slots))

    def first(self, n: int) -> tuple[UInt8s, Int64s]:
        """(blob, ptr) of the first n strings, which nothing changes."""
        state = self.state
        return state.blob, state.ptr[: n + 1]

    def find(self, strings: list[str]) -> Int32s:
        """The number of each string, int32[n]: ABSENT if unknown, DROPPED for ""."""
        data, data_ptr = _packed(strings)
        out = np.empty(len(strings), np.int32)
        handle = self._handle  # kept alive meanwhile
        k.strings_number_many(handle.address, False, data, data_ptr, out)
        if "" in strings:
            out[np.diff(data_ptr) == 0] = k.DROPPED
        return out

    def add(self, strings: Iterable[str]) -> Int32s:
        """Add the unknown strings, and return the number of each as `find` does."""
        strings = list(strings)
        out = np.full(len(strings), k.DROPPED, np.int32)
        places = [place for place, string in enumerate(strings) if string]
        data, data_ptr = _packed([strings[place] for place in places])
        found = np.empty(len(places), np.int32)
        self.reserve(len(places), int(data_ptr[-1]))
        k.strings_number_many(self._handle.address, True, data, data_ptr, found)
        out[places] = found
        return out

    def reserve(self, n_strings: int, n_bytes: int) -> None:
        """Grow now, so that `add` of so many strings and bytes replaces no array."""
        n, state = len(self), self.state
        blob, ptr = state.blob, state.ptr
        used = int(ptr[n])
        if n + n_strings > validation.INT32_MAX:
            raise ValueError(f"a vocabulary holds at most {validation.INT32_MAX} terms")
        new_blob, new_ptr = blob, ptr
        if used + n_bytes > len(blob):
            new_blob = _enlarged(blob, used, used + n_bytes)
        if n + n_strings >= len(ptr):
            new_ptr = _enlarged(ptr, n + 1, n + 1 + n_strings)
            if new_blob is blob:  # whose end another successor may write to, which counts anew
                new_blob = blob.copy()
            self._handle = Handle(_indexed(new_blob, new_ptr, n, len(new_ptr) - 1))
        elif new_blob is not blob:
            self._handle = Handle(state._replace(blob=new_blob))

    def successor(self, n: int) -> "StringTable":
        """A table of the first n strings that grows without a change to these in this one.

        It adds to the arrays of this one while they have space, in O(1); or to copies, in O(bytes),
        if another successor has done so, whose strings stay whole.
        """
        other = StringTable.__new__(StringTable)
        other._handle = self._handle
        if len(self) > n:
            state = self.state
            other._handle = Handle(
                _indexed(state.blob.copy(), state.ptr.copy(), n, len(state.hashes))
            )
        return other

    def texts(self, numbers: Iterable[int]) -> list[str]:
        """The strings of these numbers."""
        state = self.state
        blob, ptr = state.blob, state.ptr
        spans = (blob[ptr[i] : ptr[i + 1]] for i in numbers)
        return [span.tobytes().decode("utf-8", "surrogatepass") for span in spans]

    def arrays(self, n: int, kept: Bools | None = None) -> dict[str, np.ndarray]:
        """The first n strings, or those of them that are kept by bool[n], as `from_arrays` takes.

        The hash table is built anew from these.
        """
        blob, ptr = self.first(n)
        blob = blob[: ptr[-1]]
        if kept is not None:
            lengths = np.diff(ptr)
            blob, ptr = blob[np.repeat(kept, lengths)], offsets(lengths[kept])
        return {"blob": blob, "ptr": ptr}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "StringTable":
        """Open what `arrays` gave; CorruptFileError or ValueError for what it cannot have given."""
        blob, ptr = arrays["blob"], arrays["ptr"]
        if blob.dtype != np.uint8 or ptr.dtype != np.int64 or blob.ndim != 1:
            raise CorruptFileError("the vocabulary has arrays of the wrong kind")
        validation.indptr(ptr, len(blob), "ptr")
        if (ptr[1:] == ptr[:-1]).any():
            raise CorruptFileError("the vocabulary has an empty term")
        blob.tobytes().decode("utf-8", "surrogatepass")
        if (blob[ptr[:-1]] & 0xC0 == 0x80).any():
            raise CorruptFileError("the vocabulary has a term that begins within a character")
        table = cls()
        table._handle = Handle(_indexed(blob, ptr, len(ptr) - 1, len(ptr) - 1))
        numbers = np.empty(len(table), np.int32)
        k.strings_number_many(table._handle.address, False, blob, ptr, numbers)
        if (numbers != np.arange(len(table))).any():
            raise CorruptFileError("the vocabulary has a term twice")
        return table

    def check(self) -> None:
        """Assert the invariants of `kernels.tokenize`. O(bytes)."""
        n, state = len(self), self.state
        ptr, slots = state.ptr, state.slots
        assert ptr[0] == 0
        assert (np.diff(ptr[: n + 1]) > 0).all(), "an empty string has a number"
        assert 2 * n <= len(slots) and len(slots) & (len(slots) - 1) == 0
        assert (np.sort(slots[slots != ABSENT]) == np.arange(n)).all()
        strings = self.texts(range(n))
        assert len(set(strings)) == n, "a string occurs twice"
        assert (self.find(strings) == np.arange(n)).all(), "a string is not found"


def _indexed(blob, ptr, n, capacity):
    """The state of n strings with space for `capacity`; its hash table is new, under a new key."""
    hashes = np.empty(capacity, np.uint64)
    slots = np.full(1 << (2 * capacity - 1).bit_length(), ABSENT, np.int32)
    count = np.array([n], np.int64)
    state = k.StringTableState(blob, ptr, hashes, slots, count, secret_word())
    if n:
        handle = Handle(state)  # kept alive during the call
        k.strings_rebuild(handle.address)
    return state


def _packed(strings):
    """Strings as (uint8 bytes, int64 offsets)."""
    together = "".join(strings)
    if together.isascii():
        blob, lengths = together.encode(), [len(string) for string in strings]
    else:
        encoded = [string.encode("utf-8", "surrogatepass") for string in strings]
        blob, lengths = b"".join(encoded), [len(string) for string in encoded]
    return np.frombuffer(bytearray(blob), np.uint8), offsets(lengths)


def offsets(counts: list[int] | Int64s) -> Int64s:
    """CSR offsets int64[n + 1] of n counts."""
    if isinstance(counts, list):
        if len(counts) < _MANY:
            return np.fromiter(accumulate(counts, initial=0), np.int64, len(counts) + 1)
        counts = np.fromiter(counts, np.int64, len(counts))
    result = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=result[1:])
    return result


def _enlarged(array, used, needed):
    larger = np.zeros(grown_size(len(array), needed), array.dtype)
    larger[:used] = array[:used]
    return larger


_entries = EntryPoints(encode=k.words_encode)
_EMPTY = Handle(k.WordCacheState(StringTable().state, np.empty(0, np.int32)))


class TextBuffers:
    """Memory of one text of at most `size` ASCII characters and its tokens, one for each.

    Of a text that is not ASCII there is space for the code points of a ninth as many. The text and
    its offsets are memoryviews, which are quicker to write than arrays; `..._at` are addresses. One
    thread uses them at a time.
    """

    def __init__(self, size: int):
        text, text_ptr = np.empty(2 * size, np.uint8), np.zeros(2, np.int64)
        codes, code_ptr = np.empty(4 * (size // MOST_BYTES), np.uint8), np.zeros(2, np.int64)
        flag = np.zeros(1, np.uint8)  # of kernels.characters
        self.codes, self.codes_at = codes.data, address_of(codes)
        self.code_ptr, self.code_ptr_at = code_ptr.data, address_of(code_ptr)
        self.flag, self.flag_at = flag.data, address_of(flag)
        self.text, self.text_at = text[:size].data, address_of(text)  # and space for it in lower
        self.text_ptr, self.text_ptr_at = text_ptr.data, address_of(text_ptr)
        self.tokens, self.token_ptr = np.empty(size, np.int32), np.zeros(2, np.int64)
        self.token_ends = (
            self.token_ptr.data
        )  # the same memory: a Python int is read from it sooner
        self.tokens_at, self.token_ptr_at = address_of(self.tokens), address_of(self.token_ptr)


class WordCache:
    """The term id of each word that was looked up in one vocabulary.

    `look_up` gives ids for a list of words: ABSENT for an unknown term, DROPPED for a word that is
    no term, and STOP - id for a stop word. Its answers are kept: after a change of the vocabulary
    a new cache is needed.
    """

    def __init__(self):
        self._by_word, self._table = {}, None
        # Shared until the first word: each change of a vocabulary makes a new cache.
        self._handle = _EMPTY
        self._lock = new_lock()  # of `_learn`

    def find(self, words: list[str], look_up: LookUp) -> list[int]:
        """The ids of words that Python has split, as the kernel `words_encode` gives them."""
        ids = [id_ for id_ in self._looked_up(words, look_up) if id_ != k.DROPPED]
        return [id_ for id_ in ids if id_ > k.UNSET] or [k.STOP - id_ for id_ in ids]

    def ids(self, words: list[str], look_up: LookUp) -> Int32s:
        """What `look_up` gives for words, int32[n]."""
        return np.array(self._looked_up(words, look_up), np.int32)

    def _looked_up(self, words, look_up):
        known = self._by_word
        try:
            return list(map(known.__getitem__, words))
        except KeyError:
            new = list({word: None for word in words if word not in known})
            found = dict(zip(new, look_up(new).tolist(), strict=True))
            ids = [found[word] if word in found else known[word] for word in words]
            if len(known) < _MAX_WORDS:
                known.update(found)
            return ids

    def encode(
        self, data: UInt8s, text_ptr: Int64s, rule: int, look_up: LookUp
    ) -> tuple[Int32s, Int64s]:
        """(ids, indptr) of texts in the form that `kernels.tokenize` takes. O(bytes).

        `rule` is what these take as such.
        """
        out = np.empty(data.size // (rule >> 2) + len(text_ptr), np.int32)
        out_ptr = np.empty(text_ptr.size, np.int64)
        missing = np.empty((_MISSING, 2), np.int64)
        text = lower = data
        if k.lowers(rule):
            text = np.empty(2 * data.size, np.uint8)
            text[: data.size], lower = data, text[data.size :]
        while True:
            handle = self._handle  # kept alive meanwhile
            n_missing = _entries.encode(
                handle.address, address_of(text), address_of(text_ptr), len(out_ptr) - 1, rule,
                address_of(out), address_of(out_ptr), address_of(missing), len(missing),
            )  # fmt: skip
            if n_missing == 0:
                return out[: out_ptr[-1]], out_ptr
            if n_missing > len(missing):
                missing = np.empty((n_missing, 2), np.int64)
                continue
            spans = missing[:n_missing].tolist()
            self._learn(list({bytes(lower[start:stop]): None for start, stop in spans}), look_up)

    def encode_one(self, buffers: TextBuffers, rule: int) -> bool:
        """Encode the text in `buffers` into its tokens, if all words are known; return whether."""
        handle, b = self._handle, buffers  # kept alive meanwhile
        return not _entries.encode(
            handle.address, b.text_at, b.text_ptr_at, 1, rule, b.tokens_at, b.token_ptr_at, 0, 0
        )

    def _learn(self, new, look_up):
        """Add words to the cache. Readers take no lock: the kernels that they call keep the GIL."""
        words = [word.decode() for word in new]
        ids = look_up(words)
        with self._lock:
            table, known = self._table, self._handle.state.term_ids
            if table is None or len(table) > _MAX_WORDS:
                table, known = StringTable(), known[:0]
            # First the arrays of the cache are replaced, all at once, by some that suffice; only
            # then words are added in place. A word without an id is UNSET.
            table.reserve(len(words), sum(map(len, new)))
            capacity = len(table.state.hashes)
            if len(known) < capacity:
                known = np.concatenate([known, np.full(capacity - len(known), k.UNSET, np.int32)])
            handle = Handle(k.WordCacheState(table.state, known))
            self._table, self._handle = table, handle
            known[table.add(words)] = ids


class Vocabulary(NamedTuple):
    """The first n terms of a table, and the words looked up among them. Only replaced as a whole.

    The table may hold more: those are being added, or are left of a call that failed.
    """

    table: StringTable
    n: int
    cache: WordCache

    def find(self, terms: list[str]) -> Int32s:
        """The id of each term, int32[n]: ABSENT if unknown, DROPPED for ""."""
        ids = self.table.find(terms)
        ids[ids >= self.n] = ABSENT
        return ids


def vocabulary_of(table: StringTable) -> Vocabulary:
    """The vocabulary of all strings of a table."""
    return Vocabulary(table, len(table), WordCache())
