"""Splitting ASCII text into words, and the hash table of strings that numbers words and terms.

A string table numbers strings in the order of arrival, and a number never changes. The first
n = count[0] are in use: they are distinct and none is empty; ptr[0] = 0; every slot between a
string's home `hashes[i] & (C - 1)` and the slot that holds i (cyclically) is taken; 2 * n <= C. The
owner grows the arrays before it adds.

Text to split is `data uint8[n]` in which every byte that belongs to no word is 0; text i is
data[text_ptr[i]:text_ptr[i + 1]], and a word never reaches over a text's end.

Kernels that Python calls take either state as a handle (_core/state.py).
"""

import numpy as np

from ..._core.intrinsics import array_at
from ..._core.jit import kernel
from ..._core.state import ANY, INT, State, array, viewer
from ...primitives.hashing import hash_bytes
from ...primitives.status import ABSENT

DROPPED = -2
UNSET = -3
_FIRST_SLOTS = 1 << 12


class StringTableState(State):
    """At most S strings, and a hash table that finds them."""

    blob = array(np.uint8, ANY)  # the strings end to end
    ptr = array(np.int64, ANY)  # [S + 1]: string i is blob[ptr[i]:ptr[i + 1]]
    hashes = array(np.uint64, ANY)  # [S]: its hash_bytes under `secret`
    slots = array(np.int32, ANY)  # [C], a power of two: from hash to i, ABSENT where empty
    count = array(np.int64, 1)  # how many strings there are
    secret = INT  # of these hashes alone: primitives/hashing.py


class WordCacheState(State):
    """What became of the words met so far."""

    words = StringTableState
    # [S]: the term id of each, ABSENT for an unknown term, DROPPED for a word that is no term (a
    # stop word, say), UNSET while it is looked up
    term_ids = array(np.int32, ANY)


_strings_at = viewer(StringTableState)
_word_cache_at = viewer(WordCacheState)


@kernel(noinline=True, borrow=True)
def _same_bytes(a, start_a, b, start_b, n):
    left, right = a[start_a : start_a + n], b[start_b : start_b + n]
    for i in range(n):
        if left[i] != right[i]:
            return False
    return True


@kernel(noinline=True, borrow=True)
def _slots_fill(hashes, n, slots):
    """Enter the strings 0..n-1 into empty slots. O(n) expected."""
    mask = np.uint64(slots.size - 1)
    for i in range(n):
        slot = hashes[i] & mask
        while slots[slot] != ABSENT:
            slot = (slot + np.uint64(1)) & mask
        slots[slot] = i


@kernel(borrow=True)
def strings_rebuild(handle):
    """Hash the strings and fill `slots`, all ABSENT before. O(n + bytes)."""
    s = _strings_at(handle)
    n = s.count[0]
    for i in range(n):
        s.hashes[i] = hash_bytes(s.blob, s.ptr[i], s.ptr[i + 1], np.uint64(s.secret))
    _slots_fill(s.hashes, n, s.slots)


@kernel(noinline=True, borrow=True)
def _strings_slot(s, data, start, stop, hash_):
    """The slot that holds the string data[start:stop], or the empty slot where its search ends."""
    mask = np.uint64(s.slots.size - 1)
    slot = hash_ & mask
    while s.slots[slot] != ABSENT:
        i = s.slots[slot]
        if (
            s.hashes[i] == hash_
            and s.ptr[i + 1] - s.ptr[i] == stop - start
            and _same_bytes(s.blob, s.ptr[i], data, start, stop - start)
        ):
            break
        slot = (slot + np.uint64(1)) & mask
    return slot


@kernel(borrow=True)
def strings_number_many(handle, add, data, data_ptr, out):
    """out[j] = the number of string j of `data`. O(bytes) expected.

    Unknown strings are added if `add`, and otherwise get ABSENT.
    """
    s = _strings_at(handle)
    n = s.count[0]
    for j in range(out.size):
        start, stop = data_ptr[j], data_ptr[j + 1]
        hash_ = hash_bytes(data, start, stop, np.uint64(s.secret))
        slot = _strings_slot(s, data, start, stop, hash_)
        if add and s.slots[slot] == ABSENT:
            begin = s.ptr[n]
            for i in range(stop - start):
                s.blob[begin + i] = data[start + i]
            s.ptr[n + 1] = begin + stop - start
            s.hashes[n] = hash_
            s.slots[slot] = n
            n += 1
        out[j] = s.slots[slot]
    s.count[0] = n


@kernel(noinline=True)
def _grown_slots(hashes, n, size):
    slots = np.full(size, np.int32(ABSENT), np.int32)
    _slots_fill(hashes, n, slots)
    return slots


@kernel(internal=True, borrow=True)
def _word_at(data, position, end):
    """(start, stop) of the first word in data[position:end], (end, end) if none. O(bytes)."""
    while position < end and data[position] == 0:
        position += 1
    start = position
    while position < end and data[position] != 0:
        position += 1
    return start, position


@kernel(nogil=True)
def words_number(data, text_ptr, shortest, secret, numbers, word_ptr, spans):
    """Number the distinct words of each text, words shorter than `shortest` left out.

    Fills numbers int32[bytes // shortest] of all words in order, word_ptr int64[n_texts + 1] into
    them, and spans int64[bytes // shortest, 2] of where in `data` each number first starts and
    stops; returns how many numbers there are. O(bytes) expected. No result depends on the int64
    `secret`, which no client knows.
    """
    n_texts = text_ptr.size - 1
    hashes = np.empty(numbers.size, np.uint64)
    slots = _grown_slots(hashes, 0, _FIRST_SLOTS)
    mask = np.uint64(slots.size - 1)
    word_ptr[0] = n_words = n = 0
    for text in range(n_texts):
        position, end = text_ptr[text], text_ptr[text + 1]
        while position < end:
            start, position = _word_at(data, position, end)
            if position - start < shortest:
                continue
            hash_ = hash_bytes(data, start, position, np.uint64(secret))
            slot = hash_ & mask
            while slots[slot] != ABSENT:
                i = slots[slot]
                length = position - start
                if (
                    hashes[i] == hash_
                    and spans[i, 1] - spans[i, 0] == length
                    and _same_bytes(data, spans[i, 0], data, start, length)
                ):
                    break
                slot = (slot + np.uint64(1)) & mask
            i = slots[slot]
            if i == ABSENT:
                i = np.int32(n)
                slots[slot] = i
                spans[n, 0], spans[n, 1], hashes[n] = start, position, hash_
                n += 1
                if 2 * n > slots.size:
                    slots = _grown_slots(hashes, n, 4 * slots.size)
                    mask = np.uint64(slots.size - 1)
            numbers[n_words] = i
            n_words += 1
        word_ptr[text + 1] = n_words
    return n


@kernel(borrow=True)
def words_encode(handle, text, text_ptr, n_texts, shortest, out, out_ptr, missing, most):
    """The term ids of the words of each text, by a word cache; return how many it does not have.

    All but the numbers n_texts, shortest and `most` are addresses: of text uint8[bytes] and
    text_ptr int64[n_texts + 1]; of what is filled, out int32[bytes // shortest] and out_ptr
    int64[n_texts + 1], without dropped words, and missing int64[most, 2] with where in the text
    the first unknown words start and stop. O(bytes).
    """
    cache = _word_cache_at(handle)
    text_ptr, out_ptr = (
        array_at(text_ptr, n_texts + 1, np.int64),
        array_at(out_ptr, n_texts + 1, np.int64),
    )
    data = array_at(text, text_ptr[n_texts], np.uint8)
    out = array_at(out, data.size // shortest, np.int32)
    missing = array_at(missing, (most, 2), np.int64)
    n, n_missing = 0, 0
    out_ptr[0] = 0
    for i in range(n_texts):
        position, stop = text_ptr[i], text_ptr[i + 1]
        while position < stop:
            begin, position = _word_at(data, position, stop)
            if position - begin < shortest:
                continue
            hash_ = hash_bytes(data, begin, position, np.uint64(cache.words.secret))
            word = cache.words.slots[_strings_slot(cache.words, data, begin, position, hash_)]
            if word == ABSENT or cache.term_ids[word] == UNSET:
                if n_missing < most:
                    missing[n_missing, 0], missing[n_missing, 1] = begin, position
                n_missing += 1
            elif cache.term_ids[word] != DROPPED:
                out[n] = cache.term_ids[word]
                n += 1
        out_ptr[i + 1] = n
    return n_missing


@kernel(nogil=True)
def tokens_map(numbers, word_ptr, ids_of, out, out_ptr):
    """Replace word numbers by the ids of their terms, leaving out those whose id is DROPPED.

    Fills out int32[w] and the offsets out_ptr int64[n + 1]; returns how many were written. O(w).
    """
    n = 0
    out_ptr[0] = 0
    for text in range(word_ptr.size - 1):
        for w in range(word_ptr[text], word_ptr[text + 1]):
            id_ = ids_of[numbers[w]]
            if id_ != DROPPED:
                out[n] = id_
                n += 1
        out_ptr[text + 1] = n
    return n


@kernel(internal=True, borrow=True)
def _text_key(blob, ptr, i):
    """The first eight bytes of a string as a number that sorts like them; a 0 where it ends."""
    start = ptr[i]
    part = blob[start : min(start + 8, ptr[i + 1])]
    key = np.uint64(0)
    for j in range(part.size):
        key |= np.uint64(part[j]) << np.uint64(56 - 8 * j)
    return key


@kernel(noinline=True, borrow=True)
def _text_less(blob, ptr, a, b):
    """Whether string a comes before string b in byte order, which is code point order."""
    start_a, start_b = ptr[a], ptr[b]
    length_a, length_b = ptr[a + 1] - start_a, ptr[b + 1] - start_b
    for i in range(min(length_a, length_b)):
        byte_a, byte_b = blob[start_a + i], blob[start_b + i]
        if byte_a != byte_b:
            return byte_a < byte_b
    return length_a < length_b


@kernel(noinline=True, borrow=True)
def terms_sort(blob, ptr, ids, n, keys):
    """Sort ids[:n] by the text of their strings; keys uint64[>= n] is scratch. O(n^1.3).

    Shell sort, its gaps growing by 9/4.
    """
    for i in range(n):  # most differ in these; whole strings are compared only if not
        keys[i] = _text_key(blob, ptr, ids[i])
    gap = 1
    while gap * 9 < n * 4:
        gap = gap * 9 // 4 + 1
    while gap > 0:
        for i in range(gap, n):
            id_, key = ids[i], keys[i]
            j = i
            while j >= gap and (
                key < keys[j - gap]
                or (key == keys[j - gap] and _text_less(blob, ptr, id_, ids[j - gap]))
            ):
                ids[j], keys[j] = ids[j - gap], keys[j - gap]
                j -= gap
            ids[j], keys[j] = id_, key
        gap = gap * 4 // 9
