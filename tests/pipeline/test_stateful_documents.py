"""Documents with str keys and metadata against their oracle, in any order of calls."""

import numpy as np
import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llmds_nb import RetrievalPipeline

from .agreement import assert_agrees
from .oracle_documents import OracleDocuments
from .samples_metadata import DOCUMENTS, WHERES
from .test_stateful import TEXTS, VECTORS

KEYS = st.sampled_from(["a", "b", "bb", "é", "\ud800", "名前", "k" * 40, "0", "1", "x y"])
FIELDS = st.none() | st.sampled_from(["a", "lang", "year"])


class DocumentsMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.pipeline = RetrievalPipeline(dim=3, hot_threshold=2)
        self.oracle = OracleDocuments()
        self.hits = None

    @rule(
        documents=st.dictionaries(
            KEYS, st.tuples(TEXTS, VECTORS, st.none() | DOCUMENTS), max_size=5
        ),
        described=st.booleans(),
    )
    def add(self, documents, described):
        keys = list(documents)
        texts = [text for text, _, _ in documents.values()]
        vectors = np.array([v for _, v, _ in documents.values()], float).reshape(-1, 3)
        metadata = [given if described else None for _, _, given in documents.values()]
        given = metadata if described else None
        assert self.pipeline.add(keys, texts, vectors, metadata=given).tolist() == keys
        self.oracle.add(keys, texts, vectors)
        self.oracle.describe(keys, metadata)

    @precondition(lambda self: self.oracle.documents)
    @rule(data=st.data())
    def remove(self, data):
        keys = data.draw(st.lists(st.sampled_from(sorted(self.oracle.documents)), unique=True))
        self.pipeline.remove(keys)
        self.oracle.remove(keys)

    @rule(key=KEYS)
    def remove_unknown(self, key):
        if key not in self.oracle.documents:
            with pytest.raises((KeyError, TypeError)):
                self.pipeline.remove([key])

    @precondition(lambda self: self.pipeline.dense is not None)
    @rule(
        query=TEXTS,
        vector=VECTORS,
        k=st.sampled_from([1, 3, 20]),
        filter=st.none() | st.lists(KEYS, unique=True),
        where=st.none() | WHERES,
        min_score=st.none() | st.sampled_from([0.05, 0.31]),
        diversity=st.sampled_from([None, 0.0, 0.3, 1.0]),
        group_by=FIELDS,
    )
    def search(self, query, vector, k, filter, where, min_score, diversity, group_by):
        options = {
            "filter": filter, "where": where, "min_score": min_score, "diversity": diversity,
            "group_by": group_by,
        }  # fmt: skip
        found = self.pipeline.search(query, k, vectors=vector, **options)
        allowed = set(self.oracle.documents) if where is None else self.oracle.matching(where)
        if filter is not None:
            allowed &= set(filter)
        ranked = self.oracle.search(query, vector, 100, allowed=allowed.__contains__)
        expected = self.oracle.reranked(ranked, 20, min_score, diversity or None, group_by)
        n = min(k, len(expected))
        scores = dict(ranked)
        keys = [key for key in found.ids.tolist() if key is not None]
        assert len(keys) == n and len(set(keys)) == n
        assert [scores[key] for key in keys] == pytest.approx(found.scores[:n].tolist(), abs=1e-5)
        if not diversity:
            np.testing.assert_allclose(found.scores[:n], [s for _, s in expected[:n]], atol=1e-5)
        for again in (
            self.pipeline.search([query] * 2, k, vectors=[vector] * 2, **options),
            self.pipeline.search(
                [query] * 2, k, vectors=[vector] * 2,
                **{**options, "filter": [filter] * 2, "where": [where] * 2},
            ),
        ):  # fmt: skip
            assert again.ids.tolist() == [found.ids.tolist()] * 2
            assert again.scores.tolist() == [found.scores.tolist()] * 2
        documents = self.pipeline.documents(found)
        assert [list(document[:3]) for document in documents] == [
            [key, self.oracle.documents[key][0], self.oracle.metadata[key]] for key in keys
        ]
        self.hits = found

    @rule(where=WHERES)
    def ids_of_those_that_fit(self, where):
        found = self.pipeline.ids(where).tolist()
        assert sorted(found) == sorted(self.oracle.matching(where))

    @precondition(lambda self: self.hits is not None)
    @rule()
    def documents_of_earlier_hits(self):
        left = [key for key in self.hits.ids.tolist() if key in self.oracle.documents]
        documents = self.pipeline.documents(self.hits)
        assert [document.id for document in documents] == left
        assert [document.text for document in documents] == [
            self.oracle.documents[key][0] for key in left
        ]

    @rule()
    def save_and_load(self):
        self.pipeline = RetrievalPipeline.from_bytes(self.pipeline.to_bytes())

    @invariant()
    def agrees(self):
        self.pipeline.check()
        assert_agrees(self.pipeline._index.snapshot.described)
        assert len(self.pipeline) == len(self.oracle.documents)
        keys = sorted(self.oracle.documents)
        assert sorted(self.pipeline.ids().tolist()) == keys
        assert self.pipeline.get(keys) == [self.oracle.documents[key][0] for key in keys]
        assert [list(document[:3]) for document in self.pipeline.documents(keys)] == [
            [key, self.oracle.documents[key][0], self.oracle.metadata[key]] for key in keys
        ]
        assert all(key in self.pipeline for key in keys) and "no such" not in self.pipeline


TestDocuments = DocumentsMachine.TestCase
TestDocuments.settings = settings(max_examples=25, stateful_step_count=12, deadline=None)
