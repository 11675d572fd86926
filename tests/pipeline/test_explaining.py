"""RetrievalPipeline.explain: its parts make the score of a search, and are what they say."""

import numpy as np
import pytest

from llmds_nb import RetrievalPipeline

from .oracle import bm25
from .oracle_fusion import normalised
from .samples import MATRIX, letters, small

WORDS = ["red", "fox", "sky", "night", "grey", "sea", "blue", "stone", "river", "amber"]


def many(n=300, keys=False, seed=0, **options):
    """Documents of a few words, some more than once, among them some without a vector."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 12))) for _ in range(n)]
    vectors = rng.standard_normal((n, 8)).astype(np.float32)
    vectors[:3] = 0
    ids = [f"d{i}" for i in range(n)] if keys else list(range(10, 10 + n))
    pipeline = RetrievalPipeline(dim=8, **options)
    pipeline.add(ids, texts, vectors, metadata=[{"even": i % 2 == 0} for i in range(n)])
    return pipeline, dict(zip(ids, texts, strict=True)), dict(zip(ids, vectors, strict=True))


@pytest.mark.parametrize("fusion", ["convex", "minmax", "rrf", "dbsf"])
@pytest.mark.parametrize("keys", [False, True])
@pytest.mark.parametrize("where", [None, {"even": True}])
def test_the_parts_make_the_score_of_the_search(fusion, keys, where):
    pipeline, *_ = many(keys=keys)
    vector = np.random.default_rng(1).standard_normal(8).astype(np.float32)
    for query in ("red fox red", "amber grey sea", "nothing known"):
        chosen = {"vectors": vector, "fusion": fusion, "weight": 0.3, "where": where}
        hits = pipeline.search(query, 150, **chosen)
        found = hits.ids != (None if keys else -1)
        whys = pipeline.explain(query, hits.ids, k=150, **chosen)
        assert [why.id for why in whys] == hits.ids[found].tolist()
        assert [why.score for why in whys] == hits.scores[found].tolist()  # bit for bit
        for why in whys:
            made = why.weight * why.dense_score + (1 - why.weight) * why.sparse_score
            assert made == pytest.approx(why.score, abs=1e-15)
            assert why.bm25 == pytest.approx(sum(term.score for term in why.terms), abs=1e-12)
            assert (why.dense_score == 0.0) or why.dense_rank is not None
        assert any(why.dense_rank == 1 for why in whys)


def test_each_half_is_that_of_its_definition():
    pipeline, texts, vectors = many(60)
    vector = np.random.default_rng(2).standard_normal(8).astype(np.float32)
    whys = pipeline.explain("fox sky fox", list(texts), vectors=vector)
    near = {
        id_: 1 - own @ vector / np.linalg.norm(own) / np.linalg.norm(vector)
        for id_, own in vectors.items()
        if own.any()
    }
    words = bm25(texts, "fox sky fox")
    of_dense = normalised({id_: -d for id_, d in near.items()}, "convex", -2.0)
    of_sparse = normalised(words, "convex", 0.0)
    ranks = {id_: i for i, id_ in enumerate(sorted(near, key=near.__getitem__), 1)}
    for why in whys:
        assert why.distance == (pytest.approx(near[why.id], abs=1e-5) if why.id in near else None)
        assert why.dense_rank == ranks.get(why.id)
        assert why.dense_score == pytest.approx(of_dense.get(why.id, 0.0), abs=1e-5)
        assert why.bm25 == pytest.approx(words.get(why.id, 0.0), abs=1e-9)
        assert why.sparse_score == pytest.approx(of_sparse.get(why.id, 0.0), abs=1e-9)
        assert (why.sparse_rank is None) == (why.id not in words)
        counts = {term.term: (term.count, term.tf) for term in why.terms}
        assert counts["fox"] == (2, texts[why.id].split().count("fox"))


def test_a_document_beyond_the_candidates_has_distance_and_words_but_no_rank():
    pipeline, texts, _ = many(400)
    vector = np.ones(8, np.float32)
    whys = pipeline.explain("fox", list(texts), vectors=vector)
    assert sum(why.dense_rank is not None for why in whys) == 100
    beyond = [why for why in whys if why.dense_rank is None and why.distance is not None]
    assert len(beyond) == 400 - 3 - 100
    nearest = max(why.distance for why in whys if why.dense_rank is not None)
    assert all(why.dense_score == 0.0 and why.distance >= nearest - 1e-6 for why in beyond)
    unlisted = [why for why in beyond if why.sparse_rank is None and why.bm25 > 0]
    assert unlisted and all(why.score == 0.0 for why in unlisted)


def test_queries_and_documents_without_vectors():
    pipeline, _, _ = many(20)
    (why,) = pipeline.explain("fox", 10, vectors=np.ones(8))  # the document's vector is zero
    assert (why.distance, why.dense_rank, why.dense_score) == (None, None, 0.0)
    (why,) = pipeline.explain("fox", [15], vectors=np.zeros(8))
    assert (why.distance, why.dense_rank) == (None, None)
    assert small(encoder=letters).explain("red fox", [0, 0])[1].dense_rank == 1
    assert small(encoder=letters).explain("red fox", []) == []
    assert small(encoder=letters).explain("red fox", [-1, None]) == []


def test_settings_changed_later_count_as_for_a_search():
    pipeline = small()
    pipeline.sparse.k1 = 3.0
    hits = pipeline.search("red sky", vectors=MATRIX[2])
    whys = pipeline.explain("red sky", hits.ids, vectors=MATRIX[2])
    assert [why.score for why in whys] == hits.scores[: len(whys)].tolist()


@pytest.mark.parametrize(
    ("arguments", "chosen", "error", "message"),
    [
        (("fox", 9), {}, KeyError, "id 9 is not in the pipeline"),
        (("fox", [0, "a"]), {}, TypeError, "ids"),
        (("fox", ["a"]), {}, TypeError, "must be int"),
        (("fox", -2), {}, ValueError, "-2"),
        ((["fox"], 0), {}, TypeError, "query"),
        (("fox", 0), {"k": 0}, ValueError, "k must be"),
        (("fox", 0), {"fusion": "best"}, ValueError, "fusion"),
        (("fox", 0), {"weight": 2}, ValueError, "weight"),
        (("fox", 0), {"where": {"$no": 1}}, ValueError, r"\$no"),
        (("fox", 0), {"vectors": None}, ValueError, "no encoder"),
        (("fox", 0), {"vectors": [1.0]}, ValueError, "vectors"),
        (("fox", 0), {"vectors": [[1.0, 0.0]]}, ValueError, "vectors"),
    ],
)
def test_bad_input(arguments, chosen, error, message):
    with pytest.raises(error, match=message):
        small().explain(*arguments, **{"vectors": MATRIX[0], **chosen})
