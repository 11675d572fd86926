"""RetrievalPipeline: searches with one half of no use, ids, settings of the halves, threads."""

import threading
import time

import numpy as np
import pytest

from llmds_nb import HNSW, LsaEncoder, RetrievalPipeline

from .samples import letters, small

# ---- queries that one half cannot answer ------------------------------------------------------


def test_zero_vector_is_answered_by_words():
    hits = small().search("fox sky", k=5, vectors=[0, 0], weight=0.7)
    assert sorted(hits.ids[hits.ids >= 0].tolist()) == [0, 1, 2, 3]
    assert hits.scores[0] == pytest.approx(0.3)


def test_unknown_words_are_answered_by_the_vector():
    hits = small().search("zebra", k=2, vectors=[1, 0.1])
    assert hits.ids.tolist() == [0, 2]
    assert small().search("", k=1, vectors=[0, 1]).ids.tolist() == [1]


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_vectors_of_any_length_one_by_one_and_in_batches(metric):
    pipeline = small(dense=HNSW(2, metric=metric))
    for length in (0, 1e-25, 1e-17, 1, 1e17):
        vector = np.array([length, 0.1 * length], np.float32)
        one = pipeline.search("night", k=3, vectors=vector)
        many = pipeline.search(["night"], k=3, vectors=vector)
        np.testing.assert_array_equal(one.ids, many.ids[0])
        np.testing.assert_array_equal(one.scores, many.scores[0])
    for bad in ([np.nan, 0], [0, np.inf], [1e30, 1e30]):
        for any_documents in (pipeline, RetrievalPipeline(dim=2)):
            if bad == [1e30, 1e30] and any_documents is not pipeline:
                continue  # no half checks it
            with pytest.raises(ValueError, match=r"finite|lengths <= 1e\+18"):
                any_documents.search("night", vectors=np.array(bad, np.float32))


def test_a_query_that_neither_half_can_answer():
    hits = small().search(["zebra", "fox"], k=2, vectors=[[0, 0], [0, 0]])
    assert hits.ids[0].tolist() == [-1, -1] and (hits.scores[0] == -np.inf).all()
    assert sorted(hits.ids[1].tolist()) == [0, 3]


def test_document_without_direction_is_found_by_its_words():
    pipeline = small()
    pipeline.add([0, 9], ["red fox", "lonely word"], [[0, 0], [0, 0]])
    pipeline.check()
    assert pipeline.stats().vectors == 4 and len(pipeline) == 6
    assert pipeline.search("lonely", k=1, vectors=[1, 0], weight=0.2).ids.tolist() == [9]
    assert 0 not in pipeline.search("zebra", k=10, vectors=[1, 0]).ids
    pipeline.remove([0, 9])
    pipeline.check()


def test_empty_pipeline():
    for pipeline in (
        RetrievalPipeline(),
        RetrievalPipeline(dim=2),
        RetrievalPipeline(dense=HNSW(2)),
    ):
        assert pipeline.search("fox", k=2, vectors=[1.0, 0.0]).ids.tolist() == [-1, -1]
        assert pipeline.search([], k=2, vectors=np.zeros((0, 2))).ids.shape == (0, 2)
        assert pipeline.add([], [], np.zeros((0, 2))).size == 0
        pipeline.remove([])
        pipeline.check()
    assert RetrievalPipeline(encoder=LsaEncoder(2)).search("fox", k=1).ids.tolist() == [-1]


def test_k_beyond_n_and_filters():
    pipeline = small()
    assert (pipeline.search("fox", k=9, vectors=[1, 0]).ids >= 0).sum() == 5
    nothing = pipeline.search("fox", k=2, vectors=[1, 0], filter=np.zeros(5, bool))
    assert nothing.ids.tolist() == [-1, -1]
    each = pipeline.search(
        ["fox", "fox"], k=2, vectors=[[1, 0], [1, 0]], filter=[None, np.array([1, 4])]
    )
    assert each.ids[0].tolist() == [0, 3] and sorted(each.ids[1].tolist()) == [1, 4]
    huge = 2**62
    pipeline.add(huge, "red fox", [[1, 0]])
    assert pipeline.search("fox", k=1, vectors=[1, 0], filter=[huge]).ids.tolist() == [huge]


def test_ids_continue_from_the_largest():
    pipeline = RetrievalPipeline(encoder=letters)
    assert pipeline.add(None, ["a", "b"]).tolist() == [0, 1]
    pipeline.add(7, "c")
    pipeline.remove(7)
    assert pipeline.add(None, "d").tolist() == [8]


def test_a_metric_without_bounds():
    pipeline = small(dense=HNSW(2, metric="l2"))
    assert pipeline.fusion == "minmax"
    hits = pipeline.search("zebra", k=2, vectors=[0, 0])  # with l2, zero is a point like any other
    assert hits.ids.tolist() == [0, 1]
    with pytest.raises(ValueError, match='"convex" needs the metric "cosine", not "l2"'):
        pipeline.search("fox", vectors=[1, 0], fusion="convex")


def test_settings_of_the_halves_take_effect():
    pipeline = small(hot_threshold=1)
    before = pipeline.search("red night", vectors=[1, 0], fusion="dbsf", weight=0.0)
    pipeline.sparse.k1, pipeline.sparse.b = 0.0, 0.0
    after = pipeline.search("red night", vectors=[1, 0], fusion="dbsf", weight=0.0)
    assert before.scores.tolist() != after.scores.tolist()
    pipeline.sparse.k1, pipeline.sparse.b = 1.2, 0.75
    again = pipeline.search("red night", vectors=[1, 0], fusion="dbsf", weight=0.0)
    assert again.scores.tolist() == before.scores.tolist()


def test_ef_search_may_be_changed_at_any_time():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((3000, 24)).astype(np.float32)
    pipeline = RetrievalPipeline(dense=HNSW(24, metric="cosine", M=4), hot_threshold=1)
    pipeline.add(None, [""] * 3000, vectors)
    asked = rng.standard_normal((20, 24)).astype(np.float32)
    texts = [f"query {i}" for i in range(20)]

    def answers():
        """Of one query at a time and of a batch, which agree."""
        one = [pipeline.search(texts[i], 100, vectors=asked[i]) for i in range(20)]
        many = pipeline.search(texts, 100, vectors=asked)
        np.testing.assert_array_equal(many.ids, [hits.ids for hits in one])
        return many.ids

    low = answers()
    pipeline.dense.ef_search = 3000
    high = answers()  # not those that were cached
    exact = pipeline.dense.search(asked, 100, exact=True).ids
    assert (low != exact).any() and (high == exact).all()
    pipeline.dense.ef_search = 50  # below 100: counts as 150
    assert (answers() == low).all()
    with pytest.raises(ValueError, match="ef_search"):
        pipeline.dense.ef_search = 0


def test_memory_of_replaced_texts_is_freed():
    pipeline = RetrievalPipeline(encoder=letters)
    for turn in range(40):
        pipeline.add(np.arange(20), [f"{turn} {i} " + "text " * 20 for i in range(20)])
    store = pipeline._index.snapshot.texts
    assert len(store.blob) < 6 * 20 * 110 and pipeline.get(7)[0].startswith("39 7 ")
    pipeline.check()


# ---- threads ----------------------------------------------------------------------------------


def test_searches_see_before_or_after(seconds):
    """Two documents swap text and vector in one write: every search must see them agree."""
    pipeline = RetrievalPipeline(hot_threshold=1)
    texts, vectors = ["even words", "odd words"], np.eye(2, dtype=np.float32)
    pipeline.add([0, 1], texts, vectors)
    for extra in range(2, 40):  # so that there is a graph to change
        pipeline.add(extra, "filler", [[-1, -1 - extra / 99]])
    stop, wrong, searches = threading.Event(), [], []
    only = [np.array([0, 1, 10**9]), np.array([True, True]), None]

    def search(number):
        count = 0
        while not stop.is_set():
            one_filter = only[count % 3]
            threads = 1 + count % 2
            hits = pipeline.search(
                "even", k=2, vectors=[1, 0], weight=0.5, filter=one_filter, threads=threads
            )
            if not (hits.scores[0] > 0.999 and abs(hits.scores[1] - 0.25) < 1e-3):
                wrong.append((number, hits))
            found = pipeline.get([0, 1])
            if sorted(found) != sorted(texts):
                wrong.append((number, found))
            count += 1
            searches.append(number)

    def write(turn):
        pipeline.add([turn % 2, 1 - turn % 2], texts, vectors)
        if turn % 7 == 0:
            pipeline.add(99, "filler", [[-1, -1]])
            pipeline.remove(99)

    for turn in range(70):  # compiles all, also the repair: beside eight readers it takes minutes
        write(turn)
    workers = [threading.Thread(target=search, args=(number,)) for number in range(8)]
    for worker in workers:
        worker.start()
    deadline, turn = time.monotonic() + seconds, 0
    # On a busy machine until there is something to be seen.
    while (time.monotonic() < deadline or turn <= 5 or len(searches) <= 50) and not wrong:
        turn += 1
        write(turn)
    stop.set()
    for worker in workers:
        worker.join()
    assert not wrong
    pipeline.check()
