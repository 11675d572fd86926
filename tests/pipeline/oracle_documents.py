"""A slow, obvious pipeline of documents with keys and metadata."""

import numpy as np

from .oracle import OraclePipeline
from .oracle_where import matches


class OracleDocuments(OraclePipeline):
    """`documents`: key -> (text, vector); `order`: the numbers of keys, by their first add."""

    def __init__(self):
        super().__init__()
        self.metadata = {}

    def describe(self, ids, metadata):
        for id_, given in zip(ids, metadata, strict=True):
            self.metadata[id_] = given or {}

    def remove(self, ids):
        super().remove(ids)
        for id_ in ids:
            del self.metadata[id_]

    def matching(self, where):
        """The ids that a `where` allows."""
        return {id_ for id_, given in self.metadata.items() if matches(where, given)}

    def reranked(self, ranked, k, min_score=None, diversity=None, group_by=None):
        """[(id, score)] of all candidates, best first, as `search` would have them."""
        if min_score is not None:
            ranked = [entry for entry in ranked if entry[1] >= min_score]
        if group_by is not None:
            ranked = self._best_of_groups(ranked, group_by)
        if diversity is not None:
            ranked = self._diverse(ranked[: max(100, k)], diversity, k)
        return ranked[:k]

    def _best_of_groups(self, ranked, field):
        best = {}
        for id_, score in ranked:
            group = id_, None  # of its own
            if field in self.metadata[id_]:
                group = repr(_comparable(self.metadata[id_][field]))
            best.setdefault(group, (id_, score))
        return list(best.values())

    def _diverse(self, ranked, diversity, k):
        if not ranked:
            return []
        low, high = ranked[-1][1], ranked[0][1]
        units = {}
        for id_, _ in ranked:
            vector = self.documents[id_][1]
            length = np.linalg.norm(vector)
            units[id_] = vector / length if length else vector
        chosen, left = [], list(ranked)
        while left and len(chosen) < k:
            values = []
            for id_, score in left:
                relevance = (score - low) / (high - low) if high > low else 1.0
                similar = max((units[id_] @ units[other] for other, _ in chosen), default=0.0)
                values.append((1 - diversity) * relevance - diversity * similar)
            best = max(values)
            chosen.append(left.pop(next(i for i, v in enumerate(values) if v > best - 1e-7)))
        return chosen


def _comparable(value):
    """A value with equal numbers made the same; a bool is none."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_comparable(item) for item in value]
    if isinstance(value, dict):
        return sorted((name, _comparable(item)) for name, item in value.items())
    return value
