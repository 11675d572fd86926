"""Views of a pipeline: of one moment, whatever is written later; candidates, merged and fused."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from llmds_nb import HNSW, LsaEncoder, RetrievalPipeline
from llmds_nb.pipeline import (
    Candidates,
    fuse_candidates,
    merge_candidates,
    merge_statistics,
    rank_candidates,
)

from .samples import DOCUMENTS, MATRIX, letters, small


def answers(view, numbers):
    """All that a view says, in plain values."""
    found = view.candidates(
        ["red fox", "sky"], 3, vectors=[[1, 0], [0, 1]], where={"n": {"$lt": 4}}
    )
    return [
        len(view), view.version, view.numbers().tolist(), view.statistics("red sky"),
        [part.tolist() for part in found], view.groups("n", numbers), view.all_groups("n"),
        view.vectors(numbers).tolist(), repr(view.documents(numbers)),
        view.has([-1, *numbers, 99]).tolist(),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", [int, "k{}".format])
def test_later_writes_do_not_change_a_view(kind):
    pipeline = RetrievalPipeline(dim=2)
    keys = [kind(i) for i in range(5)]
    metadata = [{"n": i} for i in range(5)]
    pipeline.add(keys, DOCUMENTS, MATRIX, metadata=metadata)
    views = []
    for write in range(12):
        view = pipeline.view()
        numbers = view.numbers()
        views.append((view, numbers, answers(view, numbers)))
        if write % 3 == 0:
            pipeline.remove(keys[write % 5])
        elif write % 3 == 1:  # replaced, or again
            pipeline.add(keys[:2], [f"red night {write}", "fox"], MATRIX[3:], metadata=metadata[3:])
        else:
            more = [kind(100 + 40 * write + i) for i in range(40)]  # tables grow, segments merge
            pipeline.add(more, ["other words"] * 40, np.ones((40, 2)))
            pipeline.remove(more)
        pipeline.sparse.b, pipeline.sparse.variant = 0.1 * (write % 9), "bm25l"
        for earlier, own, expected in views:
            assert answers(earlier, own) == expected
    assert pipeline.view().version > views[-1][0].version - 1 > views[0][0].version


def test_a_view_ranks_as_its_pipeline():
    pipeline = small(encoder=letters)
    queries = ["red sky", "fox", "", "sea night"]
    found = pipeline.view().candidates(queries, 3)
    assert found.dense_ids.shape == found.sparse_scores.shape == (4, 100)
    for fusion in ("convex", "minmax", "rrf", "dbsf"):
        hits = fuse_candidates(found, 3, fusion=fusion, weight=0.4)
        wanted = pipeline.search(queries, 3, fusion=fusion, weight=0.4)
        assert hits.ids.tolist() == wanted.ids.tolist()
        assert hits.scores.tobytes() == wanted.scores.tobytes()
    assert pipeline.view().candidates("fox", 150).dense_ids.shape == (1, 150)
    assert pipeline.view().candidates("fox", 3, depth=2).dense_ids.shape == (1, 2)
    assert pipeline.view().candidates([], 3).sparse_scores.shape == (0, 100)
    none = RetrievalPipeline(encoder=LsaEncoder()).view()
    assert (none.candidates(["fox"]).sparse_ids == -1).all()
    assert none.statistics("fox") == merge_statistics([])


IDS = st.lists(st.integers(0, 40), unique=True, max_size=12)


@given(st.lists(st.dictionaries(st.integers(0, 40), st.integers(0, 3)), min_size=1, max_size=5))
def test_merged_as_one_sorted_list(parts):
    depth, seen, given = 6, set(), []
    for part in parts:
        part = {id_: float(score) for id_, score in part.items() if id_ not in seen}
        seen |= part.keys()
        given.append(sorted((-score, id_) for id_, score in part.items())[:depth])

    def candidates(pairs):
        missing = depth - len(pairs)
        ids = np.array([[id_ for _, id_ in pairs] + [-1] * missing])
        scores = [score for score, _ in pairs]
        near = np.array([scores + [np.inf] * missing], np.float32)
        return Candidates(ids, near, ids.copy(), -near.astype(np.float64))

    merged = merge_candidates([candidates(pairs) for pairs in given])
    wanted = candidates(sorted(pair for pairs in given for pair in pairs)[:depth])
    for own, expected in zip(merged, wanted, strict=True):
        assert own.tobytes() == expected.tobytes() and own.dtype == expected.dtype


def test_bad_candidates():
    one = small().view().candidates("fox", 3, vectors=[1, 0], depth=3)
    with pytest.raises(ValueError, match="at least one part"):
        merge_candidates([])
    with pytest.raises(TypeError, match=r"parts\[1\] must be Candidates"):
        merge_candidates([one, tuple(one)])
    with pytest.raises(TypeError, match=r"dense_distances must be an array float32\[n, depth\]"):
        merge_candidates([one._replace(dense_distances=one.sparse_scores)])
    with pytest.raises(ValueError, match="one shape"):
        fuse_candidates(one._replace(sparse_ids=one.sparse_ids[:, :2]), 2, fusion="rrf", weight=1)
    with pytest.raises(ValueError, match=r"parts\[1\] \[1, 2\]"):
        merge_candidates([one, small().view().candidates("fox", 3, vectors=[1, 0], depth=2)])
    with pytest.raises(ValueError, match="two of the parts have the document"):
        merge_candidates([one, one])
    for wrong in ({"fusion": "max", "weight": 1}, {"fusion": "rrf", "weight": 2}):
        with pytest.raises(ValueError, match=r"fusion|weight"):
            fuse_candidates(one, 2, **wrong)
        with pytest.raises(ValueError, match=r"fusion|weight"):
            rank_candidates(None, 1, 2, **wrong)


def test_bad_questions_to_a_view():
    view = small().view()
    with pytest.raises(KeyError, match="no document of number 7"):
        view.documents([1, 7])
    with pytest.raises(KeyError, match="no document of number 9"):
        view.vectors(9)
    with pytest.raises(ValueError, match="depth"):
        view.candidates("fox", vectors=[1, 0], depth=0)
    with pytest.raises(ValueError, match="no encoder"):
        view.candidates("fox")
    with pytest.raises(TypeError, match="exact"):
        view.candidates("fox", vectors=[1, 0], exact=1)
    with pytest.raises(ValueError, match="field"):
        view.groups("a..b", [1])
    with pytest.raises(ValueError, match="documents hold 'fox'"):
        view.candidates(
            "fox", vectors=[1, 0], statistics=merge_statistics([view.statistics("sky")])
        )


def test_exact_neighbours(monkeypatch):
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((3000, 24)).astype(np.float32)
    pipeline = RetrievalPipeline(
        dense=HNSW(24, metric="cosine", M=4, ef_construction=10), hot_threshold=1
    )
    pipeline.add(range(3000), ["word"] * 3000, vectors)
    queries, asked = [f"word {i}" for i in range(20)], rng.standard_normal((20, 24))
    asked = asked.astype(np.float32)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    true = np.argsort(-(asked @ units.T), axis=1)[:, :50]
    options = {"vectors": asked, "weight": 1.0}
    graph, exact = (pipeline.search(queries, 50, exact=e, **options) for e in (False, True))
    assert (exact.ids == true).mean() > 0.999  # but for rounding
    assert (graph.ids != true).any()
    # Both are hot now, and neither is taken for the other; alone as in a batch.
    for i in range(3):
        one = {"vectors": asked[i], "weight": 1.0}
        assert (
            pipeline.search(queries[i], 50, exact=True, **one).ids.tolist() == exact.ids[i].tolist()
        )
        assert pipeline.search(queries[i], 50, **one).ids.tolist() == graph.ids[i].tolist()
        assert (
            pipeline.search(queries[i], 50, exact=True, **one).ids.tolist() == exact.ids[i].tolist()
        )
    assert pipeline.stats().cache_hits > 0
    with pytest.raises(TypeError, match="exact must be True or False"):
        pipeline.search("word", vectors=asked[0], exact="yes")
