"""The reference that HNSW is tested against: a dict of vectors, measured one by one in float64."""

import numpy as np


def distances(metric, query, vectors):
    query, vectors = np.asarray(query, np.float64), np.asarray(vectors, np.float64)
    if metric == "l2":
        return ((vectors - query) ** 2).sum(axis=1)
    dots = vectors @ query
    if metric == "cosine":
        dots = dots / (np.linalg.norm(vectors, axis=1) * np.linalg.norm(query))
    return 1 - dots


class DictIndex:
    def __init__(self, dim, metric):
        self.dim, self.metric, self.vectors, self.next_id = dim, metric, {}, 0

    def add(self, vectors, ids=None):
        ids = range(self.next_id, self.next_id + len(vectors)) if ids is None else ids
        for id_, vector in zip(ids, vectors, strict=True):
            self.vectors[int(id_)] = np.array(vector, np.float32)
            self.next_id = max(self.next_id, int(id_) + 1)

    def remove(self, ids):
        for id_ in ids:
            del self.vectors[int(id_)]

    def search(self, query, k, passes=lambda id_: True):
        """[(distance, id)], nearest first, ties by smaller id; at most k."""
        ids = [id_ for id_ in sorted(self.vectors) if passes(id_)]
        if not ids:
            return []
        found = distances(self.metric, query, [self.vectors[id_] for id_ in ids])
        return sorted(zip(found.tolist(), ids, strict=True))[:k]
