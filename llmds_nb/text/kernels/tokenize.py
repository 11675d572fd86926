"""Words of ASCII text, and the table of distinct strings that numbers them.

State of a string table, which a vocabulary keeps:

    blob    uint8[B]      the strings end to end
    ptr     int64[S + 1]  string i is blob[ptr[i]:ptr[i + 1]]; ptr[0] = 0
    hashes  uint64[S]     its hash_bytes
    slots   int32[C]      open addressing from hash to i, ABSENT where empty; C a power of two

The first n strings are in use; ids are given in the order of arrival and never change. Invariants:
the strings are distinct; every slot between a string's home `hashes[i] & (C - 1)` and the slot it
stands in (cyclically) is taken; 2 * n <= C. The owner makes room before it adds.

Text to split is `data uint8[n]` in which every byte that belongs to no word is 0; text i is
data[text_ptr[i]:text_ptr[i + 1]], and a word never reaches over a text's end.
"""

import numpy as np

from ..._core.intrinsics import array_at
from ..._core.jit import kernel
from ...primitives.hashing import hash_bytes
from ...primitives.status import ABSENT

UNSET = -3  # the id of a word that is just being added
_SEED = np.uint64(0)
_FIRST_SLOTS = 1 << 12


@kernel(noinline=True)
def _same_bytes(a, start_a, b, start_b, n):
    left, right = a[start_a : start_a + n], b[start_b : start_b + n]
    for i in range(n):
        if left[i] != right[i]:
            return False
    return True


@kernel(noinline=True)
def _slots_fill(hashes, n, slots):
    """Enter the strings 0..n-1 into empty slots. O(n) expected."""
    mask = np.uint64(slots.size - 1)
    for i in range(n):
        slot = hashes[i] & mask
        while slots[slot] != ABSENT:
            slot = (slot + np.uint64(1)) & mask
        slots[slot] = i


@kernel
def strings_rebuild(blob, ptr, n, hashes, slots):
    """Hash the first n strings and fill `slots`, all ABSENT before. O(n + bytes)."""
    for i in range(n):
        hashes[i] = hash_bytes(blob, ptr[i], ptr[i + 1], _SEED)
    _slots_fill(hashes, n, slots)


@kernel(noinline=True)
def _strings_slot(blob, ptr, hashes, slots, data, start, stop, hash_):
    """The slot where data[start:stop] stands, or the empty slot where its search ends."""
    mask = np.uint64(slots.size - 1)
    slot = hash_ & mask
    while slots[slot] != ABSENT:
        i = slots[slot]
        if (
            hashes[i] == hash_
            and ptr[i + 1] - ptr[i] == stop - start
            and _same_bytes(blob, ptr[i], data, start, stop - start)
        ):
            break
        slot = (slot + np.uint64(1)) & mask
    return slot


@kernel
def strings_find_many(blob, ptr, hashes, slots, data, data_ptr, out):
    """out[j] = the number of string j of `data`, or ABSENT. O(bytes) expected."""
    for j in range(out.size):
        start, stop = data_ptr[j], data_ptr[j + 1]
        hash_ = hash_bytes(data, start, stop, _SEED)
        out[j] = slots[_strings_slot(blob, ptr, hashes, slots, data, start, stop, hash_)]


@kernel
def strings_add_many(blob, ptr, n, hashes, slots, data, data_ptr, out):
    """out[j] = the number of string j of `data`, new ones added; return the new n. O(bytes)."""
    for j in range(out.size):
        start, stop = data_ptr[j], data_ptr[j + 1]
        hash_ = hash_bytes(data, start, stop, _SEED)
        slot = _strings_slot(blob, ptr, hashes, slots, data, start, stop, hash_)
        if slots[slot] == ABSENT:
            begin = ptr[n]
            for i in range(stop - start):
                blob[begin + i] = data[start + i]
            ptr[n + 1] = begin + stop - start
            hashes[n] = hash_
            slots[slot] = n
            n += 1
        out[j] = slots[slot]
    return n


@kernel(noinline=True)
def _grown_slots(hashes, n, size):
    slots = np.full(size, np.int32(ABSENT), np.int32)
    _slots_fill(hashes, n, slots)
    return slots


@kernel(internal=True)
def _word_at(data, position, end):
    """(start, stop) of the first word in data[position:end], (end, end) if none. O(bytes)."""
    while position < end and data[position] == 0:
        position += 1
    start = position
    while position < end and data[position] != 0:
        position += 1
    return start, position


@kernel(nogil=True)
def words_number(data, text_ptr, shortest):
    """Number the distinct words of each text, words shorter than `shortest` left out.

    Return (numbers int32[w] of all words in order, word_ptr int64[n_texts + 1] into them,
    starts int64[d] and stops int64[d], the place in `data` of each number's first appearance).
    O(bytes) expected; all memory is the caller's from then on.
    """
    n_texts = text_ptr.size - 1
    most = data.size // shortest + 1
    numbers = np.empty(most, np.int32)
    word_ptr = np.zeros(n_texts + 1, np.int64)
    starts = np.empty(most, np.int64)
    stops = np.empty(most, np.int64)
    hashes = np.empty(most, np.uint64)
    slots = _grown_slots(hashes, 0, _FIRST_SLOTS)
    mask = np.uint64(slots.size - 1)
    n_words = 0
    n = 0
    for text in range(n_texts):
        position, end = text_ptr[text], text_ptr[text + 1]
        while position < end:
            start, position = _word_at(data, position, end)
            if position - start < shortest:
                continue
            hash_ = hash_bytes(data, start, position, _SEED)
            slot = hash_ & mask
            while slots[slot] != ABSENT:
                i = slots[slot]
                length = position - start
                if (
                    hashes[i] == hash_
                    and stops[i] - starts[i] == length
                    and _same_bytes(data, starts[i], data, start, length)
                ):
                    break
                slot = (slot + np.uint64(1)) & mask
            i = slots[slot]
            if i == ABSENT:
                i = np.int32(n)
                slots[slot] = i
                starts[n], stops[n], hashes[n] = start, position, hash_
                n += 1
                if 2 * n > slots.size:
                    slots = _grown_slots(hashes, n, 4 * slots.size)
                    mask = np.uint64(slots.size - 1)
            numbers[n_words] = i
            n_words += 1
        word_ptr[text + 1] = n_words
    return numbers[:n_words].copy(), word_ptr, starts[:n].copy(), stops[:n].copy()


@kernel
def words_find(
    data, text_ptr, shortest, blob, ptr, hashes, slots, ids_of, dropped, out, out_ptr, missing
):  # fmt: skip
    """The ids of the words of each text, by a table of words and ids_of int32[>= S] its strings.

    out int32[bytes / shortest] and out_ptr int64[n_texts + 1] are filled, words whose id is
    `dropped` left out. Return how many words are not in the table, or UNSET; of so many as missing
    int64[m, 2] has room for it takes where in `data` they start and stop. O(bytes) expected.
    """
    n, n_missing = 0, 0
    out_ptr[0] = 0
    for text in range(text_ptr.size - 1):
        position, end = text_ptr[text], text_ptr[text + 1]
        while position < end:
            start, position = _word_at(data, position, end)
            if position - start < shortest:
                continue
            hash_ = hash_bytes(data, start, position, _SEED)
            slot = _strings_slot(blob, ptr, hashes, slots, data, start, position, hash_)
            word = slots[slot]
            if word == ABSENT or ids_of[word] == UNSET:
                if n_missing < missing.shape[0]:
                    missing[n_missing, 0], missing[n_missing, 1] = start, position
                n_missing += 1
            elif ids_of[word] != dropped:
                out[n] = ids_of[word]
                n += 1
        out_ptr[text + 1] = n
    return n_missing


@kernel
def words_find_one(known, text, n, tokens, dropped, shortest):
    """`words_find` of the one text in the n bytes at address `text`, into int32 at `tokens`.

    known int64[8]: the addresses of blob, ptr, hashes, slots and ids_of, and the sizes of the
    first, the third and the fourth. Return how many tokens, or -1 if a word is not known.
    """
    size, n_strings, n_slots = known[5], known[6], known[7]
    out_ptr, missing = np.zeros(2, np.int64), np.empty((0, 2), np.int64)
    text_ptr = np.zeros(2, np.int64)
    text_ptr[1] = n
    n_missing = words_find(
        array_at(text, n, np.uint8), text_ptr, shortest,
        array_at(known[0], size, np.uint8),
        array_at(known[1], n_strings + 1, np.int64),
        array_at(known[2], n_strings, np.uint64),
        array_at(known[3], n_slots, np.int32),
        array_at(known[4], n_strings, np.int32), dropped,
        array_at(tokens, n // shortest, np.int32), out_ptr, missing,
    )  # fmt: skip
    return out_ptr[1] if n_missing == 0 else -1


@kernel(nogil=True)
def tokens_map(numbers, word_ptr, ids_of, dropped, out, out_ptr):
    """Turn word numbers into the ids of their terms, leaving out those whose id is `dropped`.

    out int32[w] takes ids_of[numbers], out_ptr int64[n + 1] the offsets per text; return how many
    were written. O(w).
    """
    n = 0
    out_ptr[0] = 0
    for text in range(word_ptr.size - 1):
        for w in range(word_ptr[text], word_ptr[text + 1]):
            id_ = ids_of[numbers[w]]
            if id_ != dropped:
                out[n] = id_
                n += 1
        out_ptr[text + 1] = n
    return n


@kernel(internal=True)
def _text_key(blob, ptr, i):
    """The first eight bytes of a string as a number that sorts like them; a 0 where it ends."""
    start = ptr[i]
    part = blob[start : min(start + 8, ptr[i + 1])]
    key = np.uint64(0)
    for j in range(part.size):
        key |= np.uint64(part[j]) << np.uint64(56 - 8 * j)
    return key


@kernel(noinline=True)
def _text_less(blob, ptr, a, b):
    """Whether string a comes before string b in byte order, which is code point order."""
    start_a, start_b = ptr[a], ptr[b]
    length_a, length_b = ptr[a + 1] - start_a, ptr[b + 1] - start_b
    for i in range(min(length_a, length_b)):
        byte_a, byte_b = blob[start_a + i], blob[start_b + i]
        if byte_a != byte_b:
            return byte_a < byte_b
    return length_a < length_b


@kernel(noinline=True)
def _text_sort(blob, ptr, ids, n):
    """Sort ids[:n] by the text of their strings: shell sort, gaps growing by 9/4. O(n^1.3).

    Their first bytes tell most of them apart; only where those are equal the strings are compared.
    """
    keys = np.empty(n, np.uint64)
    for i in range(n):
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


@kernel
def queries_group(blob, ptr, ids, query_ptr, terms, counts, term_ptr):
    """The distinct known terms of each query in ascending order of their text, and their counts.

    ids int32[n] per query_ptr, of which those that are no number of the table are left out; terms
    int32[n] and counts int32[n] are filled per term_ptr int64[q + 1]. O(n^1.3) comparisons.
    """
    end = 0
    term_ptr[0] = 0
    for query in range(query_ptr.size - 1):
        n = 0
        for j in range(query_ptr[query], query_ptr[query + 1]):
            if 0 <= ids[j] < ptr.size - 1:
                terms[end + n] = ids[j]
                n += 1
        found = terms[end : end + n]
        _text_sort(blob, ptr, found, n)
        for j in range(n):
            term = found[j]
            if end > term_ptr[query] and terms[end - 1] == term:
                counts[end - 1] += 1
            else:
                terms[end] = term
                counts[end] = 1
                end += 1
        term_ptr[query + 1] = end
    return end
