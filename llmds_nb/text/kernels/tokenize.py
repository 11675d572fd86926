"""Splitting text into words, and the hash table of strings that numbers words and terms.

A string table numbers strings in the order of arrival, and a number never changes. The first
n = count[0] are in use: they are distinct and none is empty; ptr[0] = 0; every slot between a
string's home `hashes[i] & (C - 1)` and the slot that holds i (cyclically) is taken; 2 * n <= C. The
owner grows the arrays before it adds.

Text to split is `data uint8[n]`, UTF-8 in which every byte that belongs to no word is below 48;
text i is data[text_ptr[i]:text_ptr[i + 1]], and a word never reaches over a text's end. In the mode
RUNS all such bytes separate words. By the word rule (`_word_at`) of RULE and RULE_LOWER they are 0,
or tell what stands between words: SPACE, PUNCTUATION (one of ! ? : ;), one of . , ' & / + #, or
LONE after a letter that is a word by itself (kernels/characters.py). Words are those of `data`,
spelled as in `lower` at the same places: by RULE_LOWER a kernel fills it with `data`, ASCII
capitals in lower case; by other modes it is `data` itself.

Kernels that Python calls take either state as a handle (_core/state.py).
"""

import numpy as np

from ..._core.intrinsics import array_at
from ..._core.jit import kernel
from ..._core.state import ANY, INT, State, array, viewer
from ...primitives.hashing import hash_bytes
from ...primitives.status import ABSENT
from .characters import LONE, PUNCTUATION, SPACE

DROPPED = -2
UNSET = -3
STOP = -5  # the id i of a stop word is kept as STOP - i
_FIRST_SLOTS = 1 << 12

RUNS, RULE, RULE_LOWER = 0, 1, 2
_DIGIT, _CAPITAL, _BRACKET = 48, 65, 91  # "0", "A", the one after "Z"
_LONGEST_CHARACTER = 4  # bytes
_SHARP, _AND, _QUOTE, _PLUS, _COMMA, _DOT, _SLASH = 35, 38, 39, 43, 44, 46, 47


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
def _byte_at(data, position, end):
    """data[position], 0 from `end` on."""
    return data[position] if position < end else np.uint8(0)


@kernel(noinline=True, borrow=True)
def _join(data, part, position, end):
    """How many bytes from data[position] belong to the word before it, negative if they end it.

    That byte is below 48 and follows a byte of a word, whose last part, since the last such byte,
    begins at `part`. O(1).
    """
    c, before = data[position], data[position - 1]
    after, next_after = _byte_at(data, position + 1, end), _byte_at(data, position + 2, end)
    if (c == _DOT or c == _COMMA) and after >= _DIGIT:
        if max(before, after) < _CAPITAL:
            return 1
    if before < _CAPITAL:
        return 0
    if c == _QUOTE or c == _AND:
        return 1 if after >= _CAPITAL else 0
    is_initial = part == position - 1 and before < 128
    if c == _DOT or c == _SLASH:  # initials
        is_suffix = next_after == _PLUS or next_after == _SHARP
        is_pair = is_initial and _CAPITAL <= after < 128 and next_after < _DIGIT
        return 1 if is_pair and not is_suffix else 0
    if c == _PLUS:
        return -2 if after == _PLUS and next_after < _CAPITAL else 0
    if c == _SHARP:
        return -1 if is_initial and after < _CAPITAL else 0
    return 0


@kernel(noinline=True, borrow=True)
def _is_word(data, start, stop, begin, end):
    """Whether data[start:stop] of the text data[begin:end] has two characters or is alone. O(1)."""
    c = data[start]
    if stop - start > 1 + np.int64(c >= 0xC0) + np.int64(c >= 0xE0) + np.int64(c >= 0xF0):
        return True
    is_capital = _CAPITAL <= c < _BRACKET
    after = _byte_at(data, stop, end)
    if stop < end and after == LONE:
        return True
    if after == PUNCTUATION or after == _COMMA or after == _DOT:
        stop += 1
        after = _byte_at(data, stop, end)
    first, last = start == begin, stop == end
    return (first and last) or (
        is_capital and (first or data[start - 1] == SPACE) and (last or after == SPACE)
    )


@kernel(internal=True, borrow=True)
def _word_at(data, position, begin, end, shortest, mode):
    """(start, stop) of the first word in data[position:end] of the text data[begin:end]; O(bytes).

    (end, end) if there is none. A word has `shortest` bytes at least. By the rule it is a run of
    letters, digits and marks, with what `_join` says, of two characters at least, or one that
    stands alone; so there are at most half as many words as bytes, and one more.
    """
    while True:
        while position < end and data[position] < _DIGIT:
            position += 1
        start = part = position
        if start == end:
            return end, end
        while position < end:
            c = data[position]
            if c >= _DIGIT:
                position += 1
            elif c <= SPACE:
                break
            else:
                n = _join(data, part, position, end)
                position += abs(n)
                part = position
                if n <= 0:
                    break
        n = position - start
        if mode == RUNS:
            if n >= shortest:
                return start, position
        elif n > _LONGEST_CHARACTER or _is_word(data, start, position, begin, end):
            return start, position


def lowers(rule: int) -> bool:
    """Whether `lower` is not `data` (plain Python)."""
    return rule & 3 == RULE_LOWER


@kernel(noinline=True, borrow=True)
def _lower(data, lower):
    """Fill `lower` with `data`, ASCII capitals in lower case. O(bytes)."""
    for i in range(data.size):
        c = data[i]
        lower[i] = c + 32 if _CAPITAL <= c < _BRACKET else c


@kernel(nogil=True)
def words_number(data, lower, text_ptr, rule, secret, numbers, word_ptr, spans):
    """Number the distinct words of each text; `rule` is shortest << 2 | mode.

    lower uint8[bytes] is filled, or is `data`, by the mode. Fills numbers int32[most] of all words
    in order, word_ptr int64[n_texts + 1] into them, and
    spans int64[most, 2] of where in `lower` each number first starts and stops, where most is
    bytes // shortest + n_texts; returns how many numbers there are. O(bytes) expected. No result
    depends on the int64 `secret`, which no client knows.
    """
    n_texts, shortest, mode = text_ptr.size - 1, rule >> 2, rule & 3
    if mode == RULE_LOWER:
        _lower(data, lower)
    hashes = np.empty(numbers.size, np.uint64)
    slots = _grown_slots(hashes, 0, _FIRST_SLOTS)
    mask = np.uint64(slots.size - 1)
    word_ptr[0] = n_words = n = 0
    for text in range(n_texts):
        begin, end = text_ptr[text], text_ptr[text + 1]
        position = begin
        while True:
            start, position = _word_at(data, position, begin, end, shortest, mode)
            if start == position:
                break
            hash_ = hash_bytes(lower, start, position, np.uint64(secret))
            slot = hash_ & mask
            while slots[slot] != ABSENT:
                i = slots[slot]
                length = position - start
                if (
                    hashes[i] == hash_
                    and spans[i, 1] - spans[i, 0] == length
                    and _same_bytes(lower, spans[i, 0], lower, start, length)
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
def words_encode(handle, text, text_ptr, n_texts, rule, out, out_ptr, missing, most):
    """The term ids of the words of each text, by a word cache; return how many it does not have.

    All but the numbers n_texts, `rule` and `most` are addresses: of text uint8[bytes], behind which
    RULE_LOWER fills `lower`, and text_ptr int64[n_texts + 1]; of what is filled, out int32[bytes //
    shortest + n_texts] and out_ptr int64[n_texts + 1], without dropped words, and missing
    int64[most, 2] with where in the text the first unknown words start and stop. Stop words are
    left out, but for those of a text that has no other words. `rule` is shortest << 2 | mode.
    O(bytes).
    """
    shortest, mode = rule >> 2, rule & 3
    cache = _word_cache_at(handle)
    text_ptr, out_ptr = (
        array_at(text_ptr, n_texts + 1, np.int64),
        array_at(out_ptr, n_texts + 1, np.int64),
    )
    data = array_at(text, text_ptr[n_texts], np.uint8)
    lower = array_at(text + data.size * (mode == RULE_LOWER), data.size, np.uint8)
    if mode == RULE_LOWER:
        _lower(data, lower)
    out = array_at(out, data.size // shortest + n_texts, np.int32)
    missing = array_at(missing, (most, 2), np.int64)
    n, n_missing = 0, 0
    out_ptr[0] = 0
    for i in range(n_texts):
        begin, stop = text_ptr[i], text_ptr[i + 1]
        first, n_stop, position = n, 0, begin
        while True:
            start, position = _word_at(data, position, begin, stop, shortest, mode)
            if start == position:
                break
            hash_ = hash_bytes(lower, start, position, np.uint64(cache.words.secret))
            word = cache.words.slots[_strings_slot(cache.words, lower, start, position, hash_)]
            if word == ABSENT or cache.term_ids[word] == UNSET:
                if n_missing < most:
                    missing[n_missing, 0], missing[n_missing, 1] = start, position
                n_missing += 1
            elif cache.term_ids[word] != DROPPED:
                out[n] = cache.term_ids[word]
                n_stop += out[n] < UNSET
                n += 1
        if n_stop > 0:
            n = _stop_words_drop(out, first, n, n_stop)
        out_ptr[i + 1] = n
    return n_missing


@kernel(noinline=True, borrow=True)
def _stop_words_drop(out, first, n, n_stop):
    """Leave n_stop stop words out of the ids out[first:n], unless all are; return the end. O(n)."""
    if n_stop == n - first:
        for j in range(first, n):
            out[j] = STOP - out[j]
        return n
    end = first
    for j in range(first, n):  # without a branch: a third of the words of a text are stop words
        id_ = out[j]
        out[end] = id_
        end += id_ >= UNSET
    return end


@kernel(nogil=True)
def stop_words_drop(numbers, word_ptr, kinds, shortest, kept):
    """Make the numbers of stop words negative, but in runs and where a text has no other words.

    Of words by number, kinds uint8[n] are 1 for a stop word, 2 for a word that is no term, and 0
    for others. A run is `shortest` stop words or more with no other between them. Sets kept bool[n]
    for the stop words of which one is left. O(w).
    """
    for text in range(word_ptr.size - 1):
        start, stop = word_ptr[text], word_ptr[text + 1]
        n_terms = n_run = 0
        for w in range(start, stop):
            number = numbers[w]
            kind = kinds[number]
            n_terms += kind == 0
            numbers[w] = ABSENT - 1 - number if kind == 1 else number
        if n_terms == 0:
            for w in range(start, stop):
                numbers[w] = max(numbers[w], ABSENT - 1 - numbers[w])
                kept[numbers[w]] = True
            continue
        if stop - start < shortest:
            continue
        for w in range(start, stop):
            kind = kinds[max(numbers[w], ABSENT - 1 - numbers[w])]
            n_run = (n_run + (kind == 1)) * (kind != 0)
            if kind == 1 and n_run >= shortest:
                n, j = n_run if n_run == shortest else 1, w  # those of the run that are negative
                while n > 0:
                    if numbers[j] < 0:
                        numbers[j] = ABSENT - 1 - numbers[j]
                        kept[numbers[j]] = True
                        n -= 1
                    j -= 1


@kernel(nogil=True)
def tokens_map(numbers, word_ptr, ids_of, out, out_ptr):
    """Replace word numbers by the ids of their terms, but for negative ones and DROPPED terms.

    Fills out int32[w] and the offsets out_ptr int64[n + 1]; returns how many were written. O(w).
    """
    n = 0
    out_ptr[0] = 0
    for text in range(word_ptr.size - 1):
        for w in range(word_ptr[text], word_ptr[text + 1]):
            number = numbers[w]
            id_ = ids_of[max(number, 0)]
            out[n] = id_  # without a branch
            n += (number >= 0) & (id_ != DROPPED)
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
