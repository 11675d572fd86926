"""RetrievalPipeline: tune_weight and tune, on synthetic and on judged queries."""

import numpy as np
import pytest

from llmds_nb import LsaEncoder, RetrievalPipeline

from .samples import small


def judged(rng, n=300, n_queries=40):
    """Documents with a unique word each; random vectors."""
    texts = [f"word{i} common" for i in range(n)]
    vectors = rng.standard_normal((n, 8)).astype(np.float32)
    asked = rng.permutation(n)[:n_queries]
    return texts, vectors, asked


def test_tune_weight_finds_the_half_with_the_information():
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
    # The other way round: the vectors are right, the words mislead.
    wrong = [f"word{i}" for i in rng.permutation(300)[:40]]
    assert pipeline.tune_weight(wrong, [{int(i): 2.0} for i in asked], vectors=vectors[asked]) > 0.5
    assert pipeline.tuning.dense_alone > 0.99


def test_tune_weight_keeps_a_weight_as_good_as_the_best():
    rng = np.random.default_rng(1)
    texts, vectors, asked = judged(rng)
    pipeline = RetrievalPipeline(weight=0.35)
    pipeline.add(np.arange(300), texts, vectors)
    relevant = [{int(i)} for i in asked]
    queries = [texts[i] for i in asked]
    assert pipeline.tune_weight(queries, relevant, vectors=vectors[asked]) == 0.35
    assert pipeline.search(queries[0], vectors=vectors[asked[0]]).ids[0] == asked[0]


def test_tune_chooses_ef_and_weight():
    rng = np.random.default_rng(2)
    texts, vectors, asked = judged(rng, 3000, 60)
    vectors = rng.standard_normal((3000, 24)).astype(np.float32)
    pipeline = RetrievalPipeline(hot_threshold=1)
    pipeline.add(np.arange(3000), texts, vectors)
    queries = [texts[i] for i in asked]
    near = np.concatenate([rng.standard_normal((59, 24)), np.zeros((1, 24))]).astype(np.float32)
    relevant = [[int(i)] for i in asked]
    pipeline.search(queries[0], vectors=near[0])
    tuned = pipeline.tune(queries, relevant, vectors=near, target_recall=0.9)
    assert tuned == (pipeline.dense.ef_search, pipeline.weight)
    assert tuned.ef >= 100 and tuned.weight < 0.7 and pipeline.tuning.sparse_alone > 0.9
    truth = pipeline.dense.search(near[:59], 100, exact=True).distances[:, -1:]
    found = pipeline.dense.search(near[:59], 100)
    assert (found.distances <= truth + 1e-5).mean() >= 0.9
    for query, vector in zip(queries, near, strict=True):  # answers cached before are not used
        one, many = (pipeline.search(q, 5, vectors=vector) for q in (query, [query]))
        np.testing.assert_array_equal(one.scores, many.scores[0])
    wider = pipeline.tune(queries, vectors=near, target_recall=0.99)
    assert wider.ef > tuned.ef and wider.weight == tuned.weight
    again = RetrievalPipeline._from_state(*pipeline._state())
    assert again.dense.ef_search == wider.ef


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ((["a", "b"], [[0], [1]]), {"vectors": [[1, 0], [0, 1]], "target_recall": 2}, "target"),
        ((["a", "b"], [[0], []]), {"vectors": [[1, 0], [0, 1]]}, "at least 2"),
        ((["a"],), {"vectors": [[0, 0]]}, "at least one"),
        (([],), {"vectors": np.zeros((0, 2))}, "at least one"),
        ((["a"],), {}, "no encoder"),
        ((["a"],), {"vectors": [[1, 0, 0]]}, r"\[n, 2\]"),
    ],
)
def test_tune_that_is_refused_changes_nothing(arguments, options, message):
    pipeline = small()
    with pytest.raises(ValueError, match=message):
        pipeline.tune(*arguments, **options)
    assert (pipeline.dense.ef_search, pipeline.weight, pipeline.tuning) == (50, 0.7, None)
    with pytest.raises(ValueError, match="no documents"):
        RetrievalPipeline(dim=2).tune(["a"], vectors=[[1, 0]])


def test_vaswani_with_lsa(vaswani, caplog):
    """With bad vectors fusion hurts; tune_weight logs it and chooses almost only words."""
    pipeline = RetrievalPipeline(encoder=LsaEncoder(256))
    pipeline.add(vaswani.ids, vaswani.texts)
    with caplog.at_level("WARNING"):
        weight = pipeline.tune_weight(vaswani.queries, vaswani.gains)
    tuning = pipeline.tuning
    assert tuning.dense_alone == pytest.approx(0.27, abs=0.02)
    assert tuning.sparse_alone == pytest.approx(0.437, abs=0.001)
    assert tuning.before < 0.41 and tuning.fusion_hurt and "fusion hurt" in caplog.text
    assert weight <= 0.2 and tuning.ndcg >= tuning.sparse_alone


def test_vaswani_with_minilm(vaswani, shared_data):
    """Fusion beats either half by the published margin, also at the ef that tune chose."""
    vectors, query_vectors = (
        np.load(shared_data / "vaswani" / f"minilm_{name}.f16.npy").astype(np.float32)
        for name in ("docs", "queries")
    )
    pipeline = RetrievalPipeline()
    pipeline.add(vaswani.ids, vaswani.texts, vectors)
    tuned = pipeline.tune(
        vaswani.queries, vaswani.gains, vectors=query_vectors, target_recall=0.999
    )
    tuning = pipeline.tuning
    assert tuned == (pipeline.dense.ef_search, pipeline.weight) and not tuning.fusion_hurt
    assert tuning.sparse_alone == pytest.approx(0.437, abs=0.001)
    assert tuning.dense_alone == pytest.approx(0.434, abs=0.001)
    assert tuning.before >= 0.495 - 0.003
