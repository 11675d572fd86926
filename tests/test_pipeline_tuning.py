"""RetrievalPipeline: tune_weight, on made and on judged queries."""

import numpy as np
import pytest

from llmds_nb import InvertedIndex, RetrievalPipeline, Tokenizer


def judged(rng, n=300, n_queries=40):
    """Documents of one own word each; vectors that say nothing."""
    texts = [f"word{i} common" for i in range(n)]
    vectors = rng.standard_normal((n, 8)).astype(np.float32)
    asked = rng.permutation(n)[:n_queries]
    return texts, vectors, asked


def test_tune_weight_finds_the_half_that_knows():
    rng = np.random.default_rng(0)
    texts, vectors, asked = judged(rng)
    pipeline = RetrievalPipeline()
    pipeline.add(np.arange(300), texts, vectors)
    queries = [f"word{i} common" for i in asked]
    noise = rng.standard_normal((40, 8)).astype(np.float32)
    relevant = [[int(i)] for i in asked]
    assert pipeline.tune_weight(queries, relevant, vectors=noise) < 0.7
    assert pipeline.weight == pipeline.tuning.weight < 0.7
    assert pipeline.tuning.sparse_alone > 0.99 > pipeline.tuning.dense_alone
    assert pipeline.tuning.held_out > pipeline.tuning.before
    # The other way round: the vectors know, the words mislead.
    wrong = [f"word{i}" for i in rng.permutation(300)[:40]]
    assert pipeline.tune_weight(wrong, [{int(i): 2.0} for i in asked], vectors=vectors[asked]) > 0.5
    assert pipeline.tuning.dense_alone > 0.99


def test_tune_weight_keeps_what_is_as_good():
    rng = np.random.default_rng(1)
    texts, vectors, asked = judged(rng)
    pipeline = RetrievalPipeline(weight=0.35)
    pipeline.add(np.arange(300), texts, vectors)
    relevant = [{int(i)} for i in asked]
    queries = [texts[i] for i in asked]
    assert pipeline.tune_weight(queries, relevant, vectors=vectors[asked]) == 0.35
    assert pipeline.search(queries[0], vectors=vectors[asked[0]]).ids[0] == asked[0]


def test_vaswani_with_minilm(vaswani, shared_data):
    """Fusion beats either half by the published margin, and finds that LSA hurts here."""
    pytest.importorskip("Stemmer")
    vectors, query_vectors = (
        np.load(shared_data / "vaswani" / f"minilm_{name}.f16.npy").astype(np.float32)
        for name in ("docs", "queries")
    )
    pipeline = RetrievalPipeline(sparse=InvertedIndex(tokenizer=Tokenizer(stemmer="english")))
    pipeline.add(vaswani.ids, vaswani.texts, vectors)
    pipeline.tune_weight(vaswani.queries, vaswani.gains, vectors=query_vectors)
    tuning = pipeline.tuning
    assert tuning.sparse_alone == pytest.approx(0.436, abs=0.001)
    assert tuning.dense_alone == pytest.approx(0.434, abs=0.001)
    assert tuning.before >= 0.495 - 0.003
