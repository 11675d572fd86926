"""Byte-pair encoding of texts by a fixed model, and the weighted mean of its token vectors.

Texts are `data uint8[n]`, UTF-8; text i is data[text_ptr[i]:text_ptr[i + 1]]. It consists of pieces
that begin with a space, and of special tokens: MARK, which is no byte of UTF-8, and the number of
the token in `specials`. A space stands for the word marker of SentencePiece, U+2581. A text of one
byte is an empty one.

Where no token of the model holds a character behind which a space follows, no merge reaches over
the start of a word, which is the first of a run of spaces: then each distinct word is encoded once.
"""

import math

import numpy as np

from ..._core.intrinsics import array_at, borrowed_part
from ..._core.jit import kernel
from ..._core.scratch import cut, keep_alive, scratch
from ..._core.state import ANY, INT, State, array, viewer
from ...primitives.hash_table import table_find
from ...primitives.hashing import hash_bytes
from ...primitives.status import ABSENT

MARK = 0xFF
SPACE = 0x20
_ID = np.int64(0xFFFFFFFF)  # of the token in a value of `merges`
_SHORT = 24  # symbols of a word of which all pairs are looked at for each merge
_FEW = 64  # tokens of a text among which each is looked for one by one
_SHORTEST = 1e-60  # the square of a length whose reciprocal, and components, are float32


class StaticModelState(State):
    """Tokens 0 .. V - 1 of a model, never changed."""

    # A hash table (primitives/hash_table.py) from `left << 32 | right` to `rank << 32 | merged`.
    merges = array(np.int64, ANY, 2)
    chars = array(np.int64, ANY, 2)  # and one from a code point to its token
    ascii_tokens = array(np.int32, 128)  # the same of ASCII characters, ABSENT for none
    byte_tokens = array(np.int32, 256)  # of the bytes of characters that have none
    specials = array(np.int32, ANY)
    rows = array(np.float32, ANY, ANY)  # [V, d]: the vectors, all finite
    by_word = INT  # 1: no token reaches over the start of a word


class StaticFitState(State):
    """What the tokens of a text count."""

    weights = array(np.float32, ANY)  # [V]
    sublinear = INT  # 1: tf ** .75 where a token occurs tf times in a text; 0: tf


_model_at = viewer(StaticModelState)
_fit_at = viewer(StaticFitState)


@kernel(internal=True, borrow=True)
def _word_end(data, start, end, by_word):
    """Where the word that begins at `start` < end stops. O(bytes)."""
    if data[start] == MARK:
        return start + 2
    position = start + 1
    while position < end and by_word and data[position] == SPACE:
        position += 1
    while position < end and data[position] != MARK and not (by_word and data[position] == SPACE):
        position += 1
    return position


@kernel(noinline=True, borrow=True)
def _heap_push(heap, n, key):
    """Add a key to the binary min-heap heap[:n]. O(log n)."""
    i = n
    while i > 0 and heap[(i - 1) // 2] > key:
        heap[i] = heap[(i - 1) // 2]
        i = (i - 1) // 2
    heap[i] = key


@kernel(noinline=True, borrow=True)
def _heap_pop(heap, n):
    """Remove and return the smallest of heap[:n], n >= 1. O(log n)."""
    smallest, last = heap[0], heap[n - 1]
    n -= 1
    i = 0
    while 2 * i + 1 < n:
        child = 2 * i + 1
        if child + 1 < n and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= last:
            break
        heap[i] = heap[child]
        i = child
    heap[i] = last
    return smallest


@kernel(internal=True, borrow=True)
def _merge_of(model, left, right):
    """`rank << 32 | merged` of two tokens, or ABSENT. O(1) expected."""
    return table_find(model.merges, np.int64(left) << 32 | np.int64(right))


@kernel(noinline=True, borrow=True)
def _symbols(model, data, start, stop, symbols):
    """Fill symbols with a token a character, or one a byte; return how many. O(bytes)."""
    n, position = 0, start
    while position < stop:
        first = np.int64(data[position])
        size = 1 if first < 0x80 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4
        code = first if size == 1 else first & (0x7F >> size)
        for i in range(1, size):
            code = code << 6 | np.int64(data[position + i]) & 0x3F
        token = model.ascii_tokens[code] if size == 1 else table_find(model.chars, code)
        if token != ABSENT:
            symbols[n] = token
            n += 1
        else:
            for i in range(size):
                symbols[n + i] = model.byte_tokens[data[position + i]]
            n += size
        position += size
    return n


@kernel(noinline=True, borrow=True)
def _merge_few(model, symbols, merges, n):
    """As `_merge`: every pair is looked at each time, with few branches. O(n^2).

    merges uint64[>= n] is scratch: what becomes of each symbol and the next.
    """
    none = np.uint64(0xFFFFFFFFFFFFFFFF)  # ABSENT, which no merge is above
    for i in range(n - 1):
        merges[i] = np.uint64(_merge_of(model, symbols[i], symbols[i + 1]))
    while n > 1:
        at, best = 0, merges[0]
        for i in range(1, n - 1):
            if merges[i] < best:
                at, best = i, merges[i]
        if best == none:
            break
        symbols[at] = np.int64(best) & _ID
        n -= 1
        for i in range(at + 1, n):
            symbols[i], merges[i] = symbols[i + 1], merges[i + 1]
        if at + 1 < n:
            merges[at] = np.uint64(_merge_of(model, symbols[at], symbols[at + 1]))
        if at > 0:
            merges[at - 1] = np.uint64(_merge_of(model, symbols[at - 1], symbols[at]))
    return n


@kernel(noinline=True, borrow=True)
def _merge(model, symbols, links, heap, n):
    """Merge the best pair of n symbols, the leftmost of equals, until none is left to merge.

    Returns how many are left, in order. links int32[>= n, 2] and heap int64[>= 2 n] are scratch.
    O(n log n).
    """
    n_heap = 0
    for i in range(n):
        links[i, 0], links[i, 1] = i - 1, i + 1
        if i + 1 < n:
            merge = _merge_of(model, symbols[i], symbols[i + 1])
            if merge != ABSENT:
                _heap_push(heap, n_heap, merge >> 32 << 32 | i)
                n_heap += 1
    while n_heap > 0:
        key = _heap_pop(heap, n_heap)
        n_heap -= 1
        i = key & _ID
        if symbols[i] == ABSENT or links[i, 1] == n:
            continue
        right = np.int64(links[i, 1])
        merge = _merge_of(model, symbols[i], symbols[right])
        if merge == ABSENT or merge >> 32 != key >> 32:
            continue  # the pair is another by now
        symbols[i], symbols[right] = merge & _ID, ABSENT
        after, before = np.int64(links[right, 1]), np.int64(links[i, 0])
        links[i, 1] = after
        if after < n:
            links[after, 0] = i
            merge = _merge_of(model, symbols[i], symbols[after])
            if merge != ABSENT:
                _heap_push(heap, n_heap, merge >> 32 << 32 | i)
                n_heap += 1
        if before >= 0:
            merge = _merge_of(model, symbols[before], symbols[i])
            if merge != ABSENT:
                _heap_push(heap, n_heap, merge >> 32 << 32 | before)
                n_heap += 1
    left = 0
    for i in range(n):
        if symbols[i] != ABSENT:
            symbols[left] = symbols[i]
            left += 1
    return left


@kernel(noinline=True, borrow=True)
def _same_bytes(data, a, b, n):
    left, right = borrowed_part(data, a, n), borrowed_part(data, b, n)
    for i in range(n):
        if left[i] != right[i]:
            return False
    return True


@kernel(noinline=True, borrow=True)
def _word_find(data, start, stop, hash_, hashes, words, slots):
    """The slot that holds the word data[start:stop], or the empty slot where its search ends."""
    mask = np.uint64(slots.size - 1)
    slot = hash_ & mask
    while slots[slot] != ABSENT:
        i = slots[slot]
        if (
            hashes[i] == hash_
            and words[i, 1] - words[i, 0] == stop - start
            and _same_bytes(data, words[i, 0], start, stop - start)
        ):
            break
        slot = (slot + np.uint64(1)) & mask
    return slot


@kernel(noinline=True, borrow=True)
def _words_measure(data, text_ptr, by_word):
    """(how many words the texts have, bytes of the longest). O(bytes)."""
    n = longest = 0
    for text in range(text_ptr.size - 1):
        position, end = text_ptr[text], text_ptr[text + 1]
        while position < end:
            stop = _word_end(data, position, end, by_word)
            longest = max(longest, stop - position)
            position = stop
            n += 1
    return n, longest


@kernel(noinline=True)
def _texts_tokens(model, data, text_ptr, secret, out, out_ptr):
    """Fill `out` and `out_ptr` of `texts_encode`; O(bytes), a distinct word O(its bytes * log)."""
    by_word = model.by_word
    most, longest = _words_measure(data, text_ptr, by_word)
    n_slots = 2
    while n_slots < 2 * most:
        n_slots *= 2
    parts = (
        (n_slots, np.int32),
        (most, np.uint64),
        ((most, 2), np.int64),  # where each distinct word starts and stops
        ((most, 2), np.int64),  # and its tokens in `out`
        (longest, np.int32),
        ((longest, 2), np.int32),
        (2 * longest, np.int64),
    )
    memory = scratch(parts)
    slots, hashes, words, tokens, symbols, links, heap = cut(memory, parts)
    for i in range(n_slots):
        slots[i] = ABSENT
    n = n_words = 0
    out_ptr[0] = 0
    for text in range(text_ptr.size - 1):
        position, end = text_ptr[text], text_ptr[text + 1]
        if end - position == 1:
            position = end
        while position < end:
            stop = _word_end(data, position, end, by_word)
            hash_ = hash_bytes(data, position, stop, np.uint64(secret))
            slot = _word_find(data, position, stop, hash_, hashes, words, slots)
            word = np.int64(slots[slot])
            if word != ABSENT:
                first, size = tokens[word, 0], tokens[word, 1]
                for i in range(size):
                    out[n + i] = out[first + i]
            else:
                if data[position] == MARK:
                    symbols[0], size = model.specials[data[position + 1]], 1
                else:
                    size = _symbols(model, data, position, stop, symbols)
                    if size <= _SHORT:
                        size = _merge_few(model, symbols, heap.view(np.uint64), size)
                    else:
                        size = _merge(model, symbols, links, heap, size)
                for i in range(size):
                    out[n + i] = symbols[i]
                slots[slot] = n_words
                hashes[n_words] = hash_
                words[n_words, 0], words[n_words, 1] = position, stop
                tokens[n_words, 0], tokens[n_words, 1] = n, size
                n_words += 1
            n += size
            position = stop
        out_ptr[text + 1] = n
    keep_alive(memory)


@kernel(noinline=True, borrow=True, fastmath=True)
def _row_add(total, row, weight):
    for i in range(total.size):
        total[i] += weight * row[i]


@kernel(noinline=True, borrow=True)
def _square(vector):
    """The sum of squares, in float64: four sums, which do not wait for one another."""
    a = b = c = d = 0.0
    n = vector.size // 4 * 4
    for i in range(0, n, 4):
        a += np.float64(vector[i]) ** 2
        b += np.float64(vector[i + 1]) ** 2
        c += np.float64(vector[i + 2]) ** 2
        d += np.float64(vector[i + 3]) ** 2
    for i in range(n, vector.size):
        a += np.float64(vector[i]) ** 2
    return (a + b) + (c + d)


@kernel(noinline=True)
def _tokens_pool(rows, fit, ids, indptr, out):
    """Fill `out` of `texts_encode`: O(d * tokens), and O(V) where a text has many."""
    d = rows.shape[1]
    most = np.int64(0)
    for text in range(out.shape[0]):
        most = max(most, indptr[text + 1] - indptr[text])
    n_counts = rows.shape[0] if most > _FEW else 0
    parts = ((n_counts, np.int32), (most, np.int32), (most, np.int32))
    memory = scratch(parts)
    place, distinct, tfs = cut(memory, parts)  # place: 1 + that of each token in `distinct`, or 0
    for token in range(n_counts):
        place[token] = 0
    for text in range(out.shape[0]):
        n = 0
        for i in range(indptr[text], indptr[text + 1]):
            token = ids[i]
            if n_counts:
                j = np.int64(place[token]) - 1 if place[token] else np.int64(n)
            else:
                j = 0
                while j < n and distinct[j] != token:
                    j += 1
            if j == n:
                distinct[n], tfs[n] = token, 0
                n += 1
                if n_counts:
                    place[token] = n
            tfs[j] += 1
        total = out[text]
        for i in range(d):
            total[i] = 0
        for j in range(n):
            token = distinct[j]
            tf = np.float64(tfs[j])
            factor = math.sqrt(tf * math.sqrt(tf)) if fit.sublinear else tf
            _row_add(total, rows[token], np.float32(factor * fit.weights[token]))
            if n_counts:
                place[token] = 0
        square = _square(total)
        scale = np.float32(1.0 / math.sqrt(square)) if square > _SHORTEST else np.float32(0.0)
        for i in range(d):
            total[i] *= scale
    keep_alive(memory)


@kernel(nogil=True)
def texts_encode(handle, fit, data, text_ptr, n_texts, secret, ids, indptr, out):
    """The tokens of texts, and unit vectors: the sum over tokens of f(tf) * weight * vector.

    `handle` is that of a StaticModelState and `fit` of a StaticFitState; all others but n_texts and
    `secret` are addresses: of data uint8[bytes] and text_ptr int64[n_texts + 1]; of what is filled,
    ids int32[bytes], of which text i has indptr[i]:indptr[i + 1], indptr int64[n_texts + 1], and
    out float32[n_texts, d], or 0 for tokens alone, and then `fit` is not looked at. Texts whose sum
    is as good as zero, those without a token among them, get the zero vector. No result depends on
    the int64 `secret`, the key of a hash table of the words that lasts for this call.
    """
    model = _model_at(handle)
    text_ptr = array_at(text_ptr, n_texts + 1, np.int64)
    indptr = array_at(indptr, n_texts + 1, np.int64)
    data = array_at(data, text_ptr[n_texts], np.uint8)
    ids = array_at(ids, data.size, np.int32)
    _texts_tokens(model, data, text_ptr, secret, ids, indptr)
    if out != 0:
        rows = model.rows
        out = array_at(out, (n_texts, rows.shape[1]), np.float32)
        _tokens_pool(rows, _fit_at(fit), ids, indptr, out)
