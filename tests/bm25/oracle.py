"""Slow, obvious references for the inverted index and the tokenizer."""

import math
from collections import Counter

import numpy as np

from ..text.oracle import document_terms, query_terms

VARIANTS = ["lucene", "robertson", "atire", "bm25+", "bm25l"]


class PlainBm25:
    """BM25 over a dict of texts, by the formulas of Kamphuis et al., ECIR 2020."""

    def __init__(self, variant="lucene", k1=1.2, b=0.75, split=document_terms):
        self.variant, self.k1, self.b, self.split = variant, k1, b, split
        self.split_query = query_terms if split is document_terms else split
        self.docs, self.lengths = {}, {}

    def add(self, ids, texts):
        for id_, text in zip(ids, texts, strict=True):
            self.docs[id_] = Counter(self.split(text))
            self.lengths[id_] = self.docs[id_].total()

    def remove(self, ids):
        for id_ in ids:
            del self.docs[id_], self.lengths[id_]

    def postings(self, term):
        return sorted((id_, doc[term]) for id_, doc in self.docs.items() if doc[term])

    def idf(self, df):
        n = len(self.docs)
        return {
            "lucene": lambda: math.log(1 + (n - df + 0.5) / (df + 0.5)),
            "robertson": lambda: max(0.0, math.log((n - df + 0.5) / (df + 0.5))),
            "atire": lambda: math.log(n / df),
            "bm25+": lambda: math.log((n + 1) / df),
            "bm25l": lambda: math.log((n + 1) / (df + 0.5)),
        }[self.variant]()

    def part(self, tf, length):
        mean = sum(self.lengths.values()) / len(self.lengths)
        norm = 1 - self.b + self.b * length / mean
        k1 = self.k1
        if self.variant in ("lucene", "robertson"):
            return tf / (tf + k1 * norm)
        if self.variant == "atire":
            return tf * (k1 + 1) / (tf + k1 * norm)
        if self.variant == "bm25+":
            return tf * (k1 + 1) / (tf + k1 * norm) + 1.0
        c = tf / norm
        return (k1 + 1) * (c + 0.5) / (k1 + c + 0.5)

    def score(self, query, id_):
        doc = self.docs[id_]
        score = 0.0
        for term, count in sorted(Counter(self.split_query(query)).items()):
            if doc[term]:
                df = len(self.postings(term))
                score += count * self.idf(df) * self.part(doc[term], self.lengths[id_])
        return score

    def search(self, query, k, passes=lambda id_: True):
        """[(id, score)], best first, those of score 0 left out."""
        scored = [(id_, self.score(query, id_)) for id_ in self.docs if passes(id_)]
        return sorted(((i, s) for i, s in scored if s > 0), key=lambda x: (-x[1], x[0]))[:k]


def assert_hits(hits, expected, k):
    assert hits.ids.shape == hits.scores.shape == (k,)
    n = min(k, len(expected))
    np.testing.assert_allclose(hits.scores[:n], [s for _, s in expected[:n]], rtol=1e-9)
    # Scores that differ in their last bit only may rank either way against this reference, also
    # across the k-th place.
    for got, (want, score) in zip(hits.ids.tolist(), expected[:n], strict=False):
        if got != want:
            assert any(got == i and math.isclose(s, score, rel_tol=1e-12) for i, s in expected)
    assert hits.ids[n:].tolist() == [-1] * (k - n)
    assert np.isneginf(hits.scores[n:]).all()
