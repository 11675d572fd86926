"""The BM25 formula in its variants, in float64.

The variants (Kamphuis, de Vries, Boytsov and Lin, "Which BM25 Do You Mean?", ECIR 2020) are one
formula. With B = 1 - b + b * length / mean length, a posting contributes

    gain * (tf + p * B) / (tf + q * B) + bonus

    variant    idf                                      p    q       gain / idf   bonus / idf
    lucene     log(1 + (N - df + .5) / (df + .5))       0    k1      1            0
    robertson  log((N - df + .5) / (df + .5)), >= 0     0    k1      1            0
    atire      log(N / df)                              0    k1      k1 + 1       0
    bm25+      log((N + 1) / df)                        0    k1      k1 + 1       1
    bm25l      log((N + 1) / (df + .5))                 .5   k1+.5   k1 + 1       0

where gain and bonus are also multiplied by how often the query has the term. Only terms that the
document holds contribute (Lv and Zhai, 2011, with their deltas 1 and .5).
"""

import math

import numpy as np

from ..._core.jit import kernel
from ..._core.state import FLOAT, State

LUCENE, ROBERTSON, ATIRE, PLUS, L = range(5)
VARIANTS = {"lucene": LUCENE, "robertson": ROBERTSON, "atire": ATIRE, "bm25+": PLUS, "bm25l": L}
DELTA_PLUS, DELTA_L = 1.0, 0.5


class Saturation(State):
    """The part of the formula that all terms share: p and q as above, B = base + slope * length."""

    p = FLOAT
    q = FLOAT
    base = FLOAT
    slope = FLOAT


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
def bm25_contribution(tf, length, gain, bonus, saturation):
    """What one posting contributes to the score of a document of this length. O(1)."""
    norm = saturation.base + saturation.slope * length
    return gain * ((tf + saturation.p * norm) / (tf + saturation.q * norm)) + bonus


@kernel
def bm25_table_fill(table, tfs, lengths, saturation):
    """Fill float64[P] table: what pairs of int32[P] tfs and lengths contribute at gain 1. O(P)."""
    for i in range(table.size):
        table[i] = bm25_contribution(np.float64(tfs[i]), lengths[i], 1.0, 0.0, saturation)
