"""InvertedIndex on judged queries, and beside bm25s."""

import math

import numpy as np
import pytest

from llmds_nb import InvertedIndex

from ..text.oracle import document_terms, query_terms


def test_quality_on_vaswani(vaswani):
    index = InvertedIndex()
    index.add(vaswani.ids, vaswani.texts)
    hits = index.search(vaswani.queries, 100)
    ndcg, recall = [], []
    for gains, ids in zip(vaswani.gains, hits.ids.tolist(), strict=True):
        ideal = sorted(gains.values(), reverse=True)[:10]
        found = [gains.get(id_, 0) for id_ in ids[:10]]
        ndcg.append(
            sum(g / math.log2(i + 2) for i, g in enumerate(found))
            / sum(g / math.log2(i + 2) for i, g in enumerate(ideal))
        )
        recall.append(sum(id_ in gains for id_ in ids) / len(gains))
    assert np.mean(ndcg) == pytest.approx(0.436, abs=0.003)
    assert np.mean(recall) == pytest.approx(0.603, abs=0.003)


@pytest.mark.peer
def test_scores_agree_with_bm25s(vaswani):
    bm25s = pytest.importorskip("bm25s")
    texts, queries = vaswani.texts[:2000], vaswani.queries
    index = InvertedIndex()
    index.add(None, texts)
    hits = index.search(queries, 10)
    peer = bm25s.BM25(k1=1.2, b=0.75, method="lucene", backend="numpy")
    peer.index([document_terms(text) for text in texts], show_progress=False)
    _, scores = peer.retrieve([query_terms(query) for query in queries], k=10, show_progress=False)
    np.testing.assert_allclose(np.maximum(hits.scores, 0), scores, rtol=2e-5, atol=1e-6)
