"""RetrievalPipeline against its oracle, in any order of calls."""

import numpy as np
import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llmds_nb import RetrievalPipeline

from .oracle import OraclePipeline

WORDS = ["alpha", "beta", "gamma", "delta", "omega"]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=5).map(" ".join)
# Few directions of well separated angles: distances tie exactly or clearly differ.
VECTORS = st.sampled_from([(1, 0, 0), (0, 1, 0), (1, 1, 0), (1, 2, 2), (0, 0, -1), (0, 0, 0)])
IDS = st.integers(0, 12)


class PipelineMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.pipeline = RetrievalPipeline(dim=3, hot_threshold=2)
        self.oracle = OraclePipeline()

    @rule(documents=st.dictionaries(IDS, st.tuples(TEXTS, VECTORS), max_size=5))
    def add(self, documents):
        ids = list(documents)
        texts = [text for text, _ in documents.values()]
        vectors = np.array([v for _, v in documents.values()], float).reshape(-1, 3)
        assert self.pipeline.add(ids, texts, vectors).tolist() == ids
        self.oracle.add(ids, texts, vectors)

    @precondition(lambda self: self.oracle.documents)
    @rule(data=st.data())
    def remove(self, data):
        ids = data.draw(st.lists(st.sampled_from(sorted(self.oracle.documents)), unique=True))
        self.pipeline.remove(ids)
        self.oracle.remove(ids)

    @rule(id_=IDS)
    def remove_unknown(self, id_):
        if id_ not in self.oracle.documents:
            known = next(iter(self.oracle.documents), None)
            with pytest.raises(KeyError):
                self.pipeline.remove([id_] if known is None else [known, id_])

    @rule(
        query=TEXTS,
        vector=VECTORS,
        k=st.sampled_from([1, 3, 20]),
        fusion=st.sampled_from([None, "convex", "minmax", "rrf", "dbsf"]),
        weight=st.sampled_from([None, 0.0, 0.5, 1.0]),
        filter=st.none() | st.lists(IDS, unique=True) | st.lists(st.booleans(), max_size=14),
        threads=st.sampled_from([1, 2]),
    )
    def search(self, query, vector, k, fusion, weight, filter, threads):
        mask = None
        if filter is not None:
            mask = np.array(filter, bool if filter and isinstance(filter[0], bool) else np.int64)
        options = {"fusion": fusion, "weight": weight, "filter": mask, "threads": threads}
        found = self.pipeline.search(query, k, vectors=vector, **options)
        expected = self.oracle.search(
            query,
            vector,
            100,
            fusion or "convex",
            0.7 if weight is None else weight,
            None if mask is None else lambda i: passes(mask, i),
        )
        n = min(k, len(expected))
        np.testing.assert_allclose(found.scores[:n], [s for _, s in expected[:n]], atol=1e-5)
        assert (found.ids[n:] == -1).all() and (found.scores[n:] == -np.inf).all()
        by_id = dict(expected)
        assert [by_id[i] for i in found.ids[:n].tolist()] == pytest.approx(
            found.scores[:n].tolist(), abs=1e-5
        )
        again = self.pipeline.search([query], k, vectors=[vector], **options)
        np.testing.assert_array_equal(again.ids[0], found.ids)
        np.testing.assert_array_equal(again.scores[0], found.scores)

    @rule()
    def save_and_load(self):
        self.pipeline = RetrievalPipeline._from_state(*self.pipeline._state())

    @invariant()
    def agrees(self):
        self.pipeline.check()
        assert len(self.pipeline) == len(self.oracle.documents)
        ids = sorted(self.oracle.documents)
        assert self.pipeline.get(ids) == [self.oracle.documents[i][0] for i in ids]


def passes(mask, id_):
    if mask.dtype == bool:
        return id_ < len(mask) and mask[id_]
    return id_ in mask


TestPipeline = PipelineMachine.TestCase
TestPipeline.settings = settings(max_examples=25, stateful_step_count=12, deadline=None)
