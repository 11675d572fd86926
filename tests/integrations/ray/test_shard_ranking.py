"""Shards rank as one pipeline over all documents, bit for bit, after any adds and removes."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from llmds_nb import HNSW, InvertedIndex, LsaEncoder, RetrievalPipeline, StaticEncoder
from llmds_nb.integrations.ray.shard import Shard

from .collection import Collection, assert_same

WORDS = ["red", "fox", "sky", "night", "sea", "of"]
FUSIONS = "convex", "minmax", "rrf", "dbsf"
# Few of each, so that documents tie in one half or in both; a zero vector has no direction.
TEXTS = st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join)
VECTORS = st.sampled_from([(1, 0), (0, 1), (1, 1), (-1, 1), (3, 4), (0, 0)])
VALUES = st.sampled_from([1, 1.0, 1.5, True, "1", "a", None, [1, 2], [1.0, 2], {"b": 1}])
METADATA = st.one_of(st.none(), st.fixed_dictionaries({}, optional={"g": VALUES, "y": VALUES}))
DOCUMENT = st.tuples(st.integers(0, 30), TEXTS, VECTORS, METADATA)
BATCH = st.lists(DOCUMENT, min_size=1, max_size=15, unique_by=lambda document: document[0])


def filled(writes, kind, n_shards, variant):
    """(one pipeline, the shards) after writes: lists of documents to add, and sets to remove."""
    options = {"dim": 2, "seed": 3}
    one = RetrievalPipeline(
        **options, sparse=InvertedIndex(variant=variant, k1=0.9), cache_tokens=0
    )
    parts = Collection(n_shards, **options)
    for shard in parts.shards.values():
        shard.pipeline.sparse.variant, shard.pipeline.sparse.k1 = variant, 0.9
    for write in writes:
        if isinstance(write, list):
            numbers, texts, vectors, metadata = zip(*write, strict=True)
            keys = [kind(number) for number in numbers]
            one.add(keys, list(texts), vectors, metadata=list(metadata))
            parts.add(keys, list(texts), vectors, list(metadata))
        else:
            keys = [kind(number) for number in sorted(write) if kind(number) in one]
            if keys:
                one.remove(keys)
                parts.remove(keys)
    return one, parts


@given(
    st.lists(st.one_of(BATCH, st.sets(st.integers(0, 30), max_size=25)), min_size=1, max_size=7),
    st.sampled_from([int, "key {}".format]),
    st.integers(1, 4),
    st.sampled_from(["lucene", "robertson", "atire", "bm25+", "bm25l"]),
    st.data(),
)
def test_any_writes_and_searches(writes, kind, n_shards, variant, data):
    one, parts = filled(writes, kind, n_shards, variant)
    assert len(parts) == len(one)
    for shard in parts.shards.values():
        shard.check()
    if not len(one):
        return
    for _ in range(4):
        texts = data.draw(st.lists(TEXTS, min_size=1, max_size=3))
        asked = {
            "vectors": [data.draw(VECTORS) for _ in texts],
            "fusion": data.draw(st.sampled_from(FUSIONS)),
            "weight": data.draw(st.sampled_from([0.0, 0.3, 0.7, 1.0])),
            "where": data.draw(
                st.sampled_from([None, {"g": {"$in": [1, "a"]}}, {"y": {"$exists": False}}])
            ),
            "min_score": data.draw(st.sampled_from([None, 0.2, 0.5])),
            "diversity": data.draw(st.sampled_from([None, 0.3, 1.0])),
            "group_by": data.draw(st.sampled_from([None, "g", "y"])),
        }
        numbers = data.draw(st.one_of(st.none(), st.sets(st.integers(0, 30), max_size=20)))
        if numbers is not None:
            asked["filter"] = [kind(number) for number in sorted(numbers)]
        k = data.draw(st.sampled_from([1, 3, 10, 40]))
        assert_same(parts.search(texts, k, **asked), one.search(texts, k, exact=True, **asked))


@pytest.mark.parametrize("kind", [int, "key {}".format])
def test_shards_come_and_go(kind):
    rng = np.random.default_rng(5)
    one, parts = RetrievalPipeline(dim=8), Collection(1, dim=8)
    keys = [kind(i) for i in rng.permutation(400)]
    texts = [" ".join(rng.choice(WORDS, 3)) for _ in keys]
    vectors = rng.integers(-2, 3, (400, 8))
    metadata = [{"g": int(i)} if i % 3 else None for i in rng.integers(0, 20, 400)]
    for structure in (one, parts):
        structure.add(keys, texts, vectors, metadata=metadata)
    queries = ["red", "sky night", "sea of", "", "unknown fox"]
    asked = {"vectors": rng.integers(-2, 3, (5, 8)), "group_by": "g", "diversity": 0.2}
    for ids in ([0, 1], [0, 1, 2, 3], [1, 3], [3, 7, 8], [8]):
        parts.move(ids)
        assert sorted(parts.shards) == ids and len(parts) == 400
        gone, again = keys[: 30 * len(ids)], keys[: 9 * len(ids)]
        for structure in (one, parts):
            structure.remove(gone)
            structure.add(again, texts[: len(again)], vectors[: len(again)])
            own = texts[: len(gone)], vectors[: len(gone)]
            structure.add(gone, *own, metadata=metadata[: len(gone)])
        found = parts.search(queries, 30, **asked)
        assert_same(found, one.search(queries, 30, exact=True, **asked))


def test_too_few_groups_are_looked_for_as_deep():
    """Where the best 1600 candidates have too few groups, all groups are counted."""
    n, rng = 4000, np.random.default_rng(2)
    texts = [" ".join(rng.choice(WORDS, 3)) for _ in range(n)]
    vectors = rng.standard_normal((n, 4)).astype(np.float32)
    metadata = [{"g": int(i % 7 if i < n - 2 else i), "h": i % 2} for i in range(n)]
    one, parts = RetrievalPipeline(dim=4), Collection(3, dim=4)
    for structure in (one, parts):
        structure.add(range(n), texts, vectors, metadata=metadata)
        structure.remove([n - 2])  # the one pipeline still has its row
    for where in (None, {"h": 1}):
        asked = {"vectors": rng.standard_normal((2, 4)), "group_by": "g", "where": where}
        for fusion in FUSIONS:
            found = parts.search(["red sky", "fox"], 12, fusion=fusion, **asked)
            assert_same(
                found, one.search(["red sky", "fox"], 12, fusion=fusion, exact=True, **asked)
            )


@pytest.mark.parametrize("encoder", [LsaEncoder, StaticEncoder])
def test_encoders_are_fitted_on_the_first_texts(encoder):
    if encoder is StaticEncoder:
        pytest.importorskip("wordllama")
    rng = np.random.default_rng(1)
    words = ["memory", "index", "graph", "vector", "word", "search", "page", "cache", "queue"]
    texts = [" ".join(rng.choice(words, 6)) for _ in range(120)]
    options = {"dim": 6} if encoder is LsaEncoder else {}
    for n_shards in (1, 3):
        one = RetrievalPipeline(encoder=encoder(**options), cache_tokens=0)
        parts = Collection(n_shards, encoder=encoder(**options))
        for structure in (one, parts):
            structure.add(range(50), texts[:50])
            structure.add(range(40, 120), texts[40:])
            structure.remove(range(30, 60))
        queries = ["memory graph", "page of a cache", "nothing"]
        assert_same(parts.search(queries, 20), one.search(queries, 20, exact=True))
        stored = {n: v for s in parts.shards.values() for n, v in zip(*_vectors(s), strict=True)}
        assert (
            np.array([stored[n] for n in sorted(stored)]) == one.dense.get(sorted(stored))
        ).all()


def _vectors(shard):
    numbers, vectors = shard.vectors(shard.pipeline.view().numbers())
    return numbers.tolist(), vectors


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_other_metrics_and_stores(metric):
    rng = np.random.default_rng(4)
    texts = [" ".join(rng.choice(WORDS, 3)) for _ in range(300)]
    vectors = rng.standard_normal((300, 16)).astype(np.float32)
    dense = {"metric": metric, "store": "float16"}
    one = RetrievalPipeline(dense=HNSW(16, **dense), cache_tokens=0)
    parts = Collection(0)
    for i in range(3):
        parts.shards[i] = Shard(RetrievalPipeline(dense=HNSW(16, **dense)))
    for structure in (one, parts):
        structure.add(range(300), texts, vectors)
        structure.remove(range(50, 90))
    asked = {"vectors": vectors[:4] + np.float32(0.01), "diversity": 0.5}
    for fusion in FUSIONS[1:]:
        found = parts.search(["red", "fox sky", "sea", ""], 15, fusion=fusion, **asked)
        wanted = one.search(["red", "fox sky", "sea", ""], 15, fusion=fusion, exact=True, **asked)
        assert_same(found, wanted)
