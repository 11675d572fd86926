"""BM25 over the packed postings of a segment: exact scores in float64, term after term.

The variants (Kamphuis, de Vries, Boytsov and Lin, "Which BM25 Do You Mean?", ECIR 2020) are one
formula. With B = 1 - b + b * length / mean length, a posting adds

    gain * (tf + p * B) / (tf + q * B) + bonus

    variant    idf                                      p    q       gain / idf   bonus / idf
    lucene     log(1 + (N - df + .5) / (df + .5))       0    k1      1            0
    robertson  log((N - df + .5) / (df + .5)), >= 0     0    k1      1            0
    atire      log(N / df)                              0    k1      k1 + 1       0
    bm25+      log((N + 1) / df)                        0    k1      k1 + 1       1
    bm25l      log((N + 1) / (df + .5))                 .5   k1+.5   k1 + 1       0

and gain and bonus are multiplied by the times the term stands in the query. Only terms that the
document holds count (Lv and Zhai, 2011, with their deltas 1 and .5).

State of a search, one per thread:

    acc      float64[>= n]    all 0 between calls
    touched  int32[> n]       rows whose acc is not 0
    scores   float64[q, k]    a heap per query (`topk`), shared by all segments
    ids      int64[q, k]
    kept     int64[q]         entries in each heap

A query's terms are added in ascending order of their text, so a score depends on nothing but the
documents, the query and the parameters; equal scores rank by smaller id.
"""

import math

import numpy as np

from .._jit import kernel
from .status import ABSENT
from .topk import topk_push, topk_sort
from .varint import varint_read

LUCENE, ROBERTSON, ATIRE, PLUS, L = range(5)
VARIANTS = {"lucene": LUCENE, "robertson": ROBERTSON, "atire": ATIRE, "bm25+": PLUS, "bm25l": L}
DELTA_PLUS = 1.0
DELTA_L = 0.5

_1 = np.uint64(1)
_N_ONES = 512  # documents longer than this are scored by the formula itself

NO_FILTER, MASK, LISTED = range(3)


@kernel
def bm25_idf(variant, n_docs, df):
    """The idf of a term in df >= 1 of n_docs documents; never negative. O(1)."""
    if variant == LUCENE:
        return math.log(1.0 + (n_docs - df + 0.5) / (df + 0.5))
    if variant == ROBERTSON:
        return math.log(max(1.0, (n_docs - df + 0.5) / (df + 0.5)))
    if variant == ATIRE:
        return math.log(n_docs / df)
    if variant == PLUS:
        return math.log((n_docs + 1.0) / df)
    return math.log((n_docs + 1.0) / (df + 0.5))


@kernel
def bm25_weights(variant, k1, n_docs, df, counts, gain, bonus):
    """Fill gain and bonus float64[e] from df int64[e] and counts int32[e]; 0 for df 0. O(e)."""
    for e in range(df.size):
        weight = bm25_idf(variant, n_docs, df[e]) * counts[e] if df[e] > 0 else 0.0
        gain[e] = weight * (k1 + 1.0) if variant >= ATIRE else weight
        bonus[e] = weight * DELTA_PLUS if variant == PLUS else 0.0


@kernel
def bm25_contribution(tf, length, gain, bonus, p, q, base, slope):
    """What one posting adds; B = base + slope * length. O(1)."""
    norm = base + slope * length
    return gain * ((tf + p * norm) / (tf + q * norm)) + bonus


@kernel
def _passes(kind, mask, listed, id_):
    if kind == MASK:
        return id_ < mask.size and mask[id_]
    if kind == LISTED:
        low, high = 0, listed.size
        while low < high:
            middle = (low + high) >> 1
            if listed[middle] < id_:
                low = middle + 1
            else:
                high = middle
        return low < listed.size and listed[low] == id_
    return True


@kernel
def _ones_fill(ones, p, q, base, slope):
    """ones[length] = what tf 1 adds before gain and bonus: most postings need no division. O(n)."""
    for length in range(ones.size):
        ones[length] = bm25_contribution(1, length, 1.0, 0.0, p, q, base, slope)


@kernel
def _list_add(segment, place, gain, bonus, p, q, base, slope, ones, acc, touched, n_touched):
    """Add one list to acc; return the rows touched so far. O(length of the list).

    Unsigned positions and rows, since a signed one is tested for being negative at every access.
    Every contribution is positive, so a row is touched exactly once: at acc 0.
    """
    data, lengths = segment.data, segment.lengths
    position, end = np.uint64(segment.starts[place]), np.uint64(segment.starts[place + 1])
    n_rows, n_ones = np.uint64(lengths.size), np.uint64(ones.size)
    row = np.uint64(0)
    while position < end:
        value, position = varint_read(data, position)
        row += value >> _1
        if row >= n_rows:
            break
        length = np.uint64(lengths[row])
        if value & _1 and length < n_ones:
            added = gain * ones[length] + bonus
        else:
            tf = 1.0
            if not value & _1:
                more, position = varint_read(data, position)
                tf = 2.0 + np.float64(more)
            added = bm25_contribution(tf, lengths[row], gain, bonus, p, q, base, slope)
        before = acc[row]
        touched[n_touched] = row
        n_touched += before == 0.0
        acc[row] = before + added
        row += _1
    return n_touched


@kernel(nogil=True)
def bm25_search_many(
    segment, places, term_ptr, gain, bonus, shape, kind, mask, listed, acc, touched,
    scores, ids, kept
):  # fmt: skip
    """Offer the documents of one segment to the heaps of q queries.

    Query i has the entries term_ptr[i]..term_ptr[i + 1] - 1 of places int32[e], gain and bonus
    float64[e]; shape = (p, q, base, slope). O(postings of its terms + candidates * log k) each.
    """
    p, q, base, slope = shape
    ones = np.empty(_N_ONES)
    _ones_fill(ones, p, q, base, slope)
    for query in range(term_ptr.size - 1):
        n_touched = 0
        for e in range(term_ptr[query], term_ptr[query + 1]):
            if places[e] != ABSENT and gain[e] > 0.0:
                n_touched = _list_add(
                    segment, places[e], gain[e], bonus[e], p, q, base, slope,
                    ones, acc, touched, n_touched,
                )  # fmt: skip
        heap, heap_ids, n = scores[query], ids[query], kept[query]
        for j in range(n_touched):
            row = touched[j]
            score = acc[row]
            acc[row] = 0.0
            if n == heap.size and score < heap[0]:
                continue
            id_ = segment.ids[row]
            if not segment.dead[row] and _passes(kind, mask, listed, id_):
                n = topk_push(heap, heap_ids, n, score, id_)
        kept[query] = n


@kernel(nogil=True)
def bm25_finish_many(scores, ids, kept):
    """Sort every heap, best first, and pad it with (-inf, -1). O(q k log k)."""
    for query in range(kept.size):
        n = kept[query]
        topk_sort(scores[query], ids[query], n)
        for j in range(n, scores.shape[1]):
            scores[query, j] = -np.inf
            ids[query, j] = ABSENT
