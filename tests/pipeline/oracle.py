"""A slow, obvious RetrievalPipeline: a dict of documents, every search computed from scratch."""

import math

import numpy as np

from .oracle_fusion import fuse

DEPTH = 100


def bm25(documents, query, k1=1.2, b=0.75):
    """{id: score} of Lucene's BM25 for texts of space-separated words."""
    words = {id_: text.split() for id_, text in documents.items()}
    mean = sum(map(len, words.values())) / max(1, len(words))
    scores = {}
    for term in query.split():
        df = sum(term in w for w in words.values())
        idf = math.log(1 + (len(words) - df + 0.5) / (df + 0.5))
        for id_, w in words.items():
            tf = w.count(term)
            if tf:
                gain = tf / (tf + k1 * (1 - b + b * len(w) / mean))
                scores[id_] = scores.get(id_, 0.0) + idf * gain
    return scores


class OraclePipeline:
    def __init__(self):
        self.documents = {}  # id -> (text, vector)

    def add(self, ids, texts, vectors):
        for id_, text, vector in zip(ids, texts, vectors, strict=True):
            self.documents[id_] = (text, np.asarray(vector, np.float64))

    def remove(self, ids):
        for id_ in ids:
            del self.documents[id_]

    def search(self, query, vector, k, fusion="convex", weight=0.7, allowed=None):
        """[(id, score)]; `allowed` is a predicate on ids."""
        vector = np.asarray(vector, np.float64)
        dense = {}
        if vector.any():
            for id_, (_, of_document) in self.documents.items():
                if of_document.any():
                    lengths = np.linalg.norm(vector) * np.linalg.norm(of_document)
                    dense[id_] = 1 - vector @ of_document / lengths
        sparse = bm25({id_: text for id_, (text, _) in self.documents.items()}, query)
        if allowed is not None:
            dense = {id_: d for id_, d in dense.items() if allowed(id_)}
            sparse = {id_: s for id_, s in sparse.items() if allowed(id_)}
        return fuse(dense, sparse, fusion, weight, k)
