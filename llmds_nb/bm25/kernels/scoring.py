"""The BM25 formula in its variants, in float64: as functions of Python and as kernels.

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


def weights(variant, k1, n_docs, df, count):
    """(idf, gain, bonus) of a term in df of n_docs documents, `count` times in a query. O(1).

    None is ever negative; all are 0 for df 0.
    """
    if df == 0:
        return 0.0, 0.0, 0.0
    if variant == PLUS:
        odds = (n_docs + 1.0) / df
    elif variant == L:
        odds = (n_docs + 1.0) / (df + 0.5)
    elif variant == ATIRE:
        odds = n_docs / df
    else:
        odds = (n_docs - df + 0.5) / (df + 0.5)
        if variant == LUCENE:
            odds += 1.0
        elif odds < 1.0:
            odds = 1.0
    idf = math.log(odds)
    weight = idf * count
    gain = weight * (k1 + 1.0) if variant >= ATIRE else weight
    return idf, gain, weight * DELTA_PLUS if variant == PLUS else 0.0


def contribution(tf, length, gain, bonus, saturation):
    """What one posting contributes to the score of a document of this length. O(1)."""
    norm = saturation.base + saturation.slope * length
    return gain * ((tf + saturation.p * norm) / (tf + saturation.q * norm)) + bonus


bm25_weights = kernel(weights, internal=True, borrow=True)
bm25_contribution = kernel(contribution, internal=True, borrow=True)
