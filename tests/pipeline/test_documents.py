"""Documents with metadata: filters on it, groups, diversity, least scores, and what comes back."""

import math

import numpy as np
import pytest

import llmds_nb
from llmds_nb import Document, RetrievalPipeline
from llmds_nb.bm25.index import Hits
from llmds_nb.pipeline.search import Searcher
from llmds_nb.pipeline.where import parsed_where

from .samples import DOCUMENTS, MATRIX, letters, small

METADATA = [
    {"year": 2020, "doc": "x"}, {"year": 2021, "doc": "y"}, {"doc": "x"}, None,
    {"year": 2022.5, "doc": ["x"], "deep": {"a": [1, None, {"b": "\\ud800"}]}},
]  # fmt: skip
ASKED = {"vectors": [1, 0.2]}


def described(**options):
    pipeline = RetrievalPipeline(**options)
    pipeline.add(np.arange(5), DOCUMENTS, MATRIX, metadata=METADATA)
    return pipeline


def test_documents_of_hits():
    pipeline = described()
    hits = pipeline.search("red sky", 7, **ASKED)
    documents = pipeline.documents(hits)
    assert documents[0] == Document(2, DOCUMENTS[2], METADATA[2], hits.scores[0])
    assert [document.id for document in documents] == hits.ids[:5].tolist()
    assert type(documents[0].id) is int and documents[0].metadata is not METADATA[2]
    batch = pipeline.search(["red sky", "sea"], 7, vectors=[[1, 0.2], [1, 0]], where={"doc": "x"})
    found = pipeline.documents(batch)
    assert [len(each) for each in found] == [3, 3]
    assert found[0] == [document for document in documents if document.id in (0, 2, 4)] or found[0]
    assert pipeline.documents(pipeline.search([], 3)) == []
    assert llmds_nb.Document is Document


def test_documents_of_ids():
    pipeline = described()
    found = pipeline.documents([4, None, 0, -1, 4])
    assert [document.id for document in found] == [4, 0, 4]
    assert found[0].metadata == METADATA[4] and all(math.isnan(each.score) for each in found)
    assert pipeline.documents(3)[0].metadata == {} and pipeline.documents([]) == []
    with pytest.raises(KeyError, match="77"):
        pipeline.documents([0, 77])


def test_documents_that_changed_since_the_search():
    pipeline = described()
    hits = pipeline.search("red", 5, **ASKED)
    pipeline.remove([0, 3])
    pipeline.add([2], ["new"], [[1, 1]])
    found = {document.id: document for document in pipeline.documents(hits)}
    assert set(found) == {1, 2, 4}
    assert found[2].text == "new" and found[2].metadata == {}
    with pytest.raises(KeyError):
        pipeline.documents([0])


def test_hits_of_a_time_without_documents():
    pipeline = RetrievalPipeline(dim=2)
    hits = pipeline.search("red", 2, **ASKED)
    pipeline.add(["a"], ["red"], MATRIX[:1])
    assert pipeline.documents(hits) == []


def test_where_is_one_for_all_or_one_for_each():
    pipeline = described()
    hits = pipeline.search(["red", "sky"], 5, vectors=[[1, 0], [0, 1]], where={"doc": "x"})
    assert [sorted(row[:3]) for row in hits.ids.tolist()] == [[0, 2, 4]] * 2
    each = [{"doc": "y"}, None]
    hits = pipeline.search(["red", "sky"], 5, vectors=[[1, 0], [0, 1]], where=each)
    assert hits.ids[0].tolist() == [1, -1, -1, -1, -1] and sorted(hits.ids[1]) == [0, 1, 2, 3, 4]
    for where in ([{}], [{}] * 3, [None, None, {}]):
        with pytest.raises(ValueError, match=f"where has {len(where)} entries for 2 queries"):
            pipeline.search(["red", "sky"], vectors=[[1, 0], [0, 1]], where=where)
    for where in ("doc", 3, [{"doc": 1}, 5]):
        with pytest.raises(TypeError, match="where"):
            pipeline.search(["red", "sky"], vectors=[[1, 0], [0, 1]], where=where)
    with pytest.raises(ValueError, match="unknown operator"):
        pipeline.search("red", **ASKED, where={"year": {"$near": 3}})


@pytest.mark.parametrize("spread", [1, 10**15])
def test_where_and_filter_hold_both(spread):
    """Numbers far apart make a list of ids, others a mask."""
    pipeline = RetrievalPipeline()
    pipeline.add(np.arange(5) * spread, DOCUMENTS, MATRIX, metadata=METADATA)
    filters = [([0, spread], [0]), ([4 * spread, 0, 3 * spread], [0, 4])]
    filters.append((np.array([True, True, True]), [0, 2] if spread == 1 else [0]))
    for filter, expected in filters:
        hits = pipeline.search("red", 5, **ASKED, where={"doc": "x"}, filter=filter)
        assert sorted(hits.ids[hits.ids >= 0] // spread) == expected


@pytest.mark.parametrize("spread", [1, 10**15])
def test_where_looks_at_the_present_metadata(spread):
    pipeline = RetrievalPipeline(cache_tokens=0)
    pipeline.add(np.arange(5) * spread, DOCUMENTS, MATRIX, metadata=METADATA)

    def found(where):
        hits = pipeline.search("red", 9, **ASKED, where=where)
        return sorted(hits.ids[hits.ids >= 0] // spread)

    assert found({"doc": "y"}) == found({"doc": "y"}) == [1]
    pipeline.add([spread, 0], ["a", "b"], MATRIX[:2], metadata=[{"doc": "z"}, {"doc": "y"}])
    assert (
        found({"doc": "y"}) == [0] and found({"doc": "z"}) == [1] and found({"doc": "x"}) == [2, 4]
    )
    pipeline.remove([0])
    assert found({"doc": "y"}) == []
    pipeline.add([0], ["c"], MATRIX[:1])
    assert found({"doc": {"$exists": False}}) == [0, 3]
    pipeline.check()


def test_where_without_any_metadata():
    pipeline = small()
    assert pipeline.search("red", 2, **ASKED, where={"a": 1}).ids.tolist() == [-1, -1]
    all_ids = pipeline.search("red", 5, **ASKED, where={"a": {"$ne": 1}}).ids
    assert sorted(all_ids) == [0, 1, 2, 3, 4]
    pipeline.add([9], ["red"], [[1, 1]], metadata=[{"a": 1}])
    assert pipeline.search("red", 2, **ASKED, where={"a": 1}).ids.tolist() == [9, -1]
    pipeline.check()


def test_an_earlier_snapshot_keeps_its_metadata_and_rows():
    pipeline = described()
    searcher = pipeline._index.searcher()
    pipeline.add([1, 6], ["a", "b"], MATRIX[:2], metadata=[{"doc": "w"}, {"doc": "y"}])
    assert searcher.snapshot.texts.find_slowly(np.array([4, 1])).tolist() == [4, 1]
    assert searcher.rows_of(np.array([1, 0])).tolist() == [1, 0]
    assert pipeline._index.searcher().rows_of(np.array([1, 0])).tolist() == [5, 0]
    assert searcher.snapshot.metadata.documents([1]) == [METADATA[1]]


def test_compaction_moves_metadata_with_its_texts():
    pipeline = RetrievalPipeline(dim=2)
    for turn in range(60):
        ids = np.arange(3) + turn % 5
        metadata = [{"turn": turn, "id": int(id_)} for id_ in ids]
        pipeline.add(ids, ["some text"] * 3, MATRIX[:3], metadata=metadata)
        if turn % 3 == 0:
            pipeline.remove(ids[:1])
    pipeline.check()
    assert pipeline._index.snapshot.texts.n < 60
    for document in pipeline.documents(pipeline.search("text", 9, **ASKED)):
        assert document.metadata["id"] == document.id


def test_min_score():
    pipeline = described()
    every = pipeline.search("red sky", 5, **ASKED)
    least = float(every.scores[2])
    hits = pipeline.search("red sky", 5, **ASKED, min_score=least)
    assert hits.ids.tolist() == [*every.ids[:3].tolist(), -1, -1]
    assert hits.scores.tolist() == [*every.scores[:3].tolist(), -math.inf, -math.inf]
    assert (pipeline.search("red sky", **ASKED, min_score=2).ids == -1).all()
    assert (pipeline.search("red sky", 5, **ASKED, min_score=-math.inf).ids == every.ids).all()
    for value in ("a", True, math.nan):
        with pytest.raises((TypeError, ValueError), match="min_score"):
            pipeline.search("red", **ASKED, min_score=value)


def test_group_by_takes_the_best_of_each():
    pipeline = described()
    every = pipeline.search("red sky", 5, **ASKED).ids.tolist()
    hits = pipeline.search("red sky", 5, **ASKED, group_by="doc")
    best = next(id_ for id_ in every if id_ in (0, 2))
    assert hits.ids.tolist() == [*(i for i in every if i not in (0, 2) or i == best), -1]
    assert pipeline.search("red sky", 5, **ASKED, group_by="none").ids.tolist() == every
    for value in (3, ["doc"], b"doc"):
        with pytest.raises(TypeError, match="group_by"):
            pipeline.search("red", **ASKED, group_by=value)


@pytest.mark.parametrize("keys", [False, True])
def test_group_by_looks_deeper_until_it_has_k_groups(keys):
    """The best 300 are of one group."""
    n = 400
    rng = np.random.default_rng(0)
    vectors = np.column_stack([np.ones(n), np.linspace(0, 2, n)]) + 1e-4 * rng.random((n, 2))
    metadata = [{"doc": max(0, i - 300) // 10} for i in range(n)]
    ids = [f"k{i}" for i in range(n)] if keys else range(n)
    pipeline = RetrievalPipeline()
    pipeline.add(ids, ["word"] * n, vectors, metadata=metadata)
    for queries, asked in ("other", [1, 0]), (["other", "other"], [[1, 0], [1, 0]]):
        hits = pipeline.search(queries, 12, vectors=asked, weight=1.0, group_by="doc")
        for documents in (
            pipeline.documents(hits) if isinstance(queries, list) else [pipeline.documents(hits)]
        ):
            assert sorted(document.metadata["doc"] for document in documents) == list(range(10))
    hits = pipeline.search("other", 2, vectors=[1, 0], group_by="doc", where={"doc": {"$lt": 3}})
    assert [document.metadata["doc"] for document in pipeline.documents(hits)] == [0, 1]


@pytest.mark.parametrize("spread", [1, 10**15])
def test_a_search_for_more_groups_than_there_are_ends_early(spread, monkeypatch):
    monkeypatch.setattr("llmds_nb.pipeline.reranking.DEPTH", 2)
    pipeline = RetrievalPipeline(cache_tokens=0)
    n = 400
    angles = np.linspace(0, 1, n)
    vectors = np.column_stack([np.cos(angles), np.sin(angles)])
    metadata = [{"kind": "abc"[i % 3], "half": i // 200} for i in range(n)]
    ids = np.arange(n) * spread
    pipeline.add(ids, ["word"] * n, vectors, metadata=metadata)
    depths = []
    candidates = Searcher.candidates

    def noted(self, requests, depth=0):
        depths.append(depth)
        return candidates(self, requests, depth)

    monkeypatch.setattr(Searcher, "candidates", noted)
    for options, n_groups in [
        ({"group_by": "kind"}, 3),
        ({"group_by": "kind", "where": {"half": 1}}, 3),
        ({"group_by": "kind", "filter": ids[[5, 6, *range(8, 200, 3)]]}, 2),
        ({"group_by": "half", "filter": ids[:200], "where": {"kind": {"$in": ["a", "b"]}}}, 1),
    ]:
        for _ in range(2):
            hits = pipeline.search("other", 8, vectors=[1, 0], **options)
            assert np.count_nonzero(hits.ids >= 0) == n_groups
            assert depths[-1] == 32
    every = pipeline.search("other", 8, vectors=[1, 0], group_by="none")
    assert every.ids.tolist() == ids[:8].tolist()


def test_a_search_for_more_groups_of_a_least_score_ends_early(monkeypatch):
    pipeline = RetrievalPipeline(cache_tokens=0)
    n = 1000
    angles = np.linspace(0, 3, n)
    vectors = np.column_stack([np.cos(angles), np.sin(angles)])
    metadata = [{"group": i // 40} for i in range(n)]
    pipeline.add(None, ["word"] * n, vectors, metadata=metadata)
    depths = []
    candidates = Searcher.candidates

    def noted(self, requests, depth=0):
        depths.append(depth)
        return candidates(self, requests, depth)

    monkeypatch.setattr(Searcher, "candidates", noted)
    for weight, least, words in [(1.0, 0.99, "other"), (0.5, 0.98, "word"), (0.5, 0.4, "word")]:
        every = pipeline.search(words, n, vectors=[1, 0], weight=weight)
        expected = list(dict.fromkeys((every.ids[every.scores >= least] // 40).tolist()))
        options = {"weight": weight, "min_score": least, "group_by": "group"}
        hits = pipeline.search(words, 30, vectors=[1, 0], **options)
        assert (hits.ids[hits.ids >= 0] // 40).tolist() == expected
        if weight == 1:  # equal scores for words bound nothing
            assert depths[-1] <= 400


def test_diversity_prefers_what_is_unlike():
    pipeline = RetrievalPipeline()
    vectors = [[1, 0.01], [1, 0.02], [1, 0.03], [0.5, 1], [0, 0]]
    pipeline.add(range(5), ["word"] * 5, vectors)
    plain = pipeline.search("word", 3, vectors=[1, 0])
    assert plain.ids.tolist() == [0, 1, 2]
    none = pipeline.search("word", 3, vectors=[1, 0], diversity=0)
    assert none.ids.tolist() == [0, 1, 2] and none.scores.tolist() == plain.scores.tolist()
    most = pipeline.search("word", 3, vectors=[1, 0], diversity=1)
    assert most.ids.tolist() == [0, 4, 3]
    scores = dict(zip(range(5), pipeline.search("word", 5, vectors=[1, 0]).scores, strict=False))
    assert most.scores[0] == scores[0]
    half = pipeline.search("word", 2, vectors=[1, 0], diversity=0.6)
    assert half.ids.tolist() in ([0, 3], [0, 4])
    for value in (-0.1, 1.1, math.nan, "a"):
        with pytest.raises((TypeError, ValueError), match="diversity"):
            pipeline.search("word", vectors=[1, 0], diversity=value)


@pytest.mark.parametrize("store", ["float32", "float16", None])
def test_diversity_of_every_store_of_vectors(store):
    dense = llmds_nb.HNSW(32, metric="cosine", store=store)
    pipeline = RetrievalPipeline(dense=dense)
    vectors = np.random.default_rng(1).standard_normal((50, 32)).astype(np.float32)
    vectors[1] = vectors[0]
    pipeline.add(range(50), ["word"] * 50, vectors)
    hits = pipeline.search("word", 5, vectors=vectors[0], diversity=0.5)
    assert hits.ids[0] == 0 and 1 not in hits.ids


def test_diversity_without_vectors_and_without_hits():
    pipeline = RetrievalPipeline(dim=2)
    assert (pipeline.search("word", 3, vectors=[1, 0], diversity=0.5).ids == -1).all()
    pipeline.add([1, 2], ["word", "word word"], [[0, 0], [0, 0]])
    plain = pipeline.search("word", 2, vectors=[1, 0])
    assert (
        pipeline.search("word", 2, vectors=[1, 0], diversity=0.9).ids.tolist() == plain.ids.tolist()
    )


def test_every_option_is_in_the_key_of_a_cached_answer():
    pipeline = described(hot_threshold=1, encoder=letters)
    options = [
        {}, {"where": {"doc": "x"}}, {"where": {"doc": "y"}}, {"min_score": 0.9},
        {"min_score": 0.5}, {"diversity": 0.9}, {"diversity": 0.8}, {"group_by": "doc"},
        {"group_by": "year"}, {"filter": [0]}, {"filter": [0], "where": {"doc": "y"}},
    ]  # fmt: skip
    for queries in ("red sky", ["red sky", "sea"]):
        fresh = described(cache_tokens=0, encoder=letters)
        for _turn in range(2):
            for each in options:
                found = pipeline.search(queries, 4, **each)
                expected = fresh.search(queries, 4, **each)
                assert found.ids.tolist() == expected.ids.tolist(), each
                assert found.scores.tolist() == expected.scores.tolist(), each
    assert pipeline.stats().cache_hits >= 2 * len(options)
    pipeline.add([7], ["red sky red sky"], [[1, 1]], metadata=[{"doc": "x"}])
    assert pipeline.prime(5) == 2
    before = pipeline.stats().cache_hits
    hits = pipeline.search("red sky", 4, where={"doc": "x"})
    assert 7 in hits.ids and pipeline.stats().cache_hits == before + 1


@pytest.mark.parametrize(
    ("metadata", "error"),
    [
        ([{}], ValueError), ({"a": 1}, ValueError), ("ab", TypeError), ([{}, 3], TypeError),
        ([{}, {"a": math.nan}], ValueError), ([{}, {"a.b": 1}], ValueError),
        ([{}, {"a": {1}}], TypeError), ([{}, {1: 2}], TypeError), (3, TypeError),
    ],
)  # fmt: skip
def test_bad_metadata_changes_nothing(metadata, error):
    pipeline = described()
    with pytest.raises(error):
        pipeline.add([0, 9], ["x", "y"], MATRIX[:2], metadata=metadata)
    assert 9 not in pipeline and pipeline.documents([0])[0].metadata == METADATA[0]
    pipeline.check()


@pytest.mark.parametrize("mmap", [False, True])
def test_files_keep_metadata(tmp_path, mmap):
    pipeline = described()
    pipeline.add([1], ["replaced"], MATRIX[:1], metadata=[{"doc": "q"}])
    pipeline.save(tmp_path / "p")
    other = RetrievalPipeline.load(tmp_path / "p", mmap=mmap)
    assert other.documents(range(5))[4].metadata == METADATA[4]
    for each in (pipeline, other):
        each.add([3], ["x"], MATRIX[:1], metadata=[{"doc": "q", "new": True}])
        hits = each.search("red", 5, **ASKED, where={"doc": "q"})
        assert sorted(hits.ids) == [-1, -1, -1, 1, 3]
        each.check()


def test_masks_are_kept_within_their_bytes(monkeypatch):
    monkeypatch.setattr("llmds_nb.pipeline.filtering._MAX_BYTES", 2)
    pipeline = described(cache_tokens=0)
    masks = pipeline._index.masks
    for year in range(2000, 2040):
        for n_kept in (min(year - 2000, 2), min(year - 1999, 2)):  # at the second time
            pipeline.search("red", **ASKED, where={"year": {"$gt": year}})
            assert len(masks._kept) == n_kept
    assert [(each.array.nbytes, each.n_bits) for each in masks._kept.values()] == [(1, 5), (1, 5)]
    kept = masks._kept[next(reversed(masks._kept))]
    pipeline.search("red", **ASKED, where={"year": {"$gt": 2039}})
    assert masks._kept[next(reversed(masks._kept))] is kept
    for year in range(2000, 2040):  # again from the bits, and anew
        where = {"year": {"$gt": year}}
        found = [pipeline.search("red", 5, **ASKED, where=where) for _ in range(3)]
        assert len({tuple(each.ids.tolist()) for each in found}) == 1
        wanted = {i for i, one in enumerate(METADATA) if one and one.get("year", 0) > year}
        assert set(found[0].ids.tolist()) - {-1} == wanted
    older = pipeline._index.snapshot
    pipeline.remove([0])
    for _ in range(2):
        pipeline.search("red", **ASKED, where={"doc": "x"})
    assert len(masks._kept) == 1 and masks._size == 1
    for _ in range(3):
        assert masks.allowed(older, parsed_where({"doc": "x"})).tolist() == [1, 0, 1, 0, 1]
    assert [version for version, _ in masks._kept] == [older.version + 1]
    monkeypatch.setattr("llmds_nb.pipeline.filtering._MAX_ASKED", 3)
    for _ in range(2):
        for doc in "abcde":  # forgotten before they are asked again
            pipeline.search("red", **ASKED, where={"doc": doc})
    assert len(masks._kept) == 1 and len(masks._asked) == 3


@pytest.mark.parametrize(
    ("ids", "scores"), [("a", 1.0), ([1], [1, 2]), ([[[1]]], [[[1]]]), ([1, 2], [[1, 2]])]
)
def test_hits_of_a_wrong_shape(ids, scores):
    with pytest.raises(ValueError, match="hits must have ids and scores"):
        described().documents(Hits(ids, scores))


def test_hits_made_by_hand():
    pipeline = described()
    found = pipeline.documents(Hits(np.array([3, -1, 99]), np.array([0.5, -math.inf, 0.1])))
    assert [tuple(document) for document in found] == [(3, DOCUMENTS[3], {}, 0.5)]
