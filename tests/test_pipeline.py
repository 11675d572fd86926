"""RetrievalPipeline against its twin, its cache, its file, and everything that can go wrong."""

import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from oracles_pipeline import TwinPipeline

from llmds_nb import (
    HNSW,
    CorruptFileError,
    InvertedIndex,
    LsaEncoder,
    RetrievalPipeline,
    Tokenizer,
    load,
)

WORDS = ["alpha", "beta", "gamma", "delta", "omega"]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=5).map(" ".join)
# Few directions of well separated angles: distances tie exactly or clearly differ.
VECTORS = st.sampled_from([(1, 0, 0), (0, 1, 0), (1, 1, 0), (1, 2, 2), (0, 0, -1), (0, 0, 0)])
IDS = st.integers(0, 12)


class PipelineMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.pipeline = RetrievalPipeline(dim=3, hot_threshold=2)
        self.twin = TwinPipeline()

    @rule(documents=st.dictionaries(IDS, st.tuples(TEXTS, VECTORS), max_size=5))
    def add(self, documents):
        ids = list(documents)
        texts = [text for text, _ in documents.values()]
        vectors = np.array([v for _, v in documents.values()], float).reshape(-1, 3)
        assert self.pipeline.add(ids, texts, vectors).tolist() == ids
        self.twin.add(ids, texts, vectors)

    @precondition(lambda self: self.twin.documents)
    @rule(data=st.data())
    def remove(self, data):
        ids = data.draw(st.lists(st.sampled_from(sorted(self.twin.documents)), unique=True))
        self.pipeline.remove(ids)
        self.twin.remove(ids)

    @rule(id_=IDS)
    def remove_unknown(self, id_):
        if id_ not in self.twin.documents:
            known = next(iter(self.twin.documents), None)
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
        expected = self.twin.search(
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
    def through_arrays(self):
        self.pipeline = RetrievalPipeline._from_state(*self.pipeline._state())

    @invariant()
    def whole(self):
        self.pipeline.check()
        assert len(self.pipeline) == len(self.twin.documents)
        ids = sorted(self.twin.documents)
        assert self.pipeline.get(ids) == [self.twin.documents[i][0] for i in ids]


def passes(mask, id_):
    if mask.dtype == bool:
        return id_ < len(mask) and mask[id_]
    return id_ in mask


TestPipeline = PipelineMachine.TestCase
TestPipeline.settings = settings(max_examples=25, stateful_step_count=12, deadline=None)

DOCUMENTS = ["red fox", "blue sky", "red sky at night", "grey fox", "the sea"]
MATRIX = np.array([[1, 0], [0, 1], [1, 1], [1, -1], [-1, 1]], np.float32)


def letters(texts):
    """An encoder: how many of two letters, plus a constant direction."""
    return np.array([[t.count("r") + 1, t.count("s") + 0.5] for t in texts], np.float32)


def small(**options):
    pipeline = RetrievalPipeline(**options)
    pipeline.add(np.arange(5), DOCUMENTS, None if "encoder" in options else MATRIX)
    return pipeline


# ---- what a query without one half gets -------------------------------------------------------


def test_zero_vector_is_answered_by_words():
    hits = small().search("fox sky", k=5, vectors=[0, 0], weight=0.7)
    assert sorted(hits.ids[hits.ids >= 0].tolist()) == [0, 1, 2, 3]
    assert hits.scores[0] == pytest.approx(0.3)


def test_unknown_words_are_answered_by_the_vector():
    hits = small().search("zebra", k=2, vectors=[1, 0.1])
    assert hits.ids.tolist() == [0, 2]
    assert small().search("", k=1, vectors=[0, 1]).ids.tolist() == [1]


def test_neither_half_knows_the_query():
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


def test_ids_number_on():
    pipeline = RetrievalPipeline(encoder=letters)
    assert pipeline.add(None, ["a", "b"]).tolist() == [0, 1]
    pipeline.add(7, "c")
    pipeline.remove(7)
    assert pipeline.add(None, "d").tolist() == [8]


def test_metric_that_is_not_bounded():
    pipeline = small(dense=HNSW(2, metric="l2"))
    assert pipeline.fusion == "minmax"
    hits = pipeline.search("zebra", k=2, vectors=[0, 0])  # with l2, zero is a place like any other
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


# ---- all or nothing ---------------------------------------------------------------------------


def everything(pipeline):
    arrays, header = pipeline._index.state()
    return {name: array.tobytes() for name, array in arrays.items()}, json.dumps(header)


@pytest.mark.parametrize(
    "encoder, error",
    [
        (lambda texts: 1 / 0, ZeroDivisionError),
        (lambda texts: np.ones((len(texts) + 1, 2)), ValueError),
        (lambda texts: np.ones((len(texts), 3)), ValueError),
        (lambda texts: np.ones(len(texts)), ValueError),
        (lambda texts: np.full((len(texts), 2), np.nan), ValueError),
        (lambda texts: ["text"] * len(texts), ValueError),
        (lambda texts: None, ValueError),
    ],
)
def test_encoder_that_fails_leaves_nothing(encoder, error):
    pipeline = RetrievalPipeline(encoder=encoder, dim=2)
    pipeline.add([1, 2], ["red fox", "sea"], [[1, 0], [0, 1]])
    before = everything(pipeline)
    with pytest.raises(error):
        pipeline.add([2, 3], ["new words here", "more"])
    with pytest.raises(error):
        pipeline.search("red")
    assert everything(pipeline) == before
    assert pipeline.stats().queries == 0
    pipeline.check()


@pytest.mark.parametrize("method", ["add", "remove"])
def test_half_that_fails_leaves_nothing(monkeypatch, method):
    pipeline = small()
    before = everything(pipeline)

    def fail(*args, **kwargs):
        raise MemoryError("no room")

    monkeypatch.setattr(pipeline.dense, method, fail)
    with pytest.raises(MemoryError):
        if method == "add":
            pipeline.add([0, 9], ["changed", "new"], [[1, 1], [1, 2]])
        else:
            pipeline.remove([0, 1])
    monkeypatch.undo()
    pipeline.check()
    assert everything(pipeline)[1] == before[1]
    assert pipeline.get([0, 1]) == DOCUMENTS[:2]
    assert pipeline.search("fox", k=2, vectors=[1, 0]).ids.tolist() == [0, 3]
    pipeline.add([0, 9], ["changed", "new"], [[1, 1], [1, 2]])
    pipeline.remove([0, 1])
    pipeline.check()


BAD = [
    (lambda p: p.add([1, 1], ["a", "b"], MATRIX[:2]), ValueError, "distinct"),
    (lambda p: p.add([1], ["a", "b"], MATRIX[:2]), ValueError, "1 entries"),
    (lambda p: p.add([1, 2], ["a", "b"], MATRIX[:1]), ValueError, "1 entries"),
    (lambda p: p.add([-1], ["a"], MATRIX[:1]), ValueError, "-1"),
    (lambda p: p.add([1], [3], MATRIX[:1]), TypeError, "texts must be str"),
    (lambda p: p.add([1], ["a"], [[1, 2, 3]]), ValueError, r"\[n, 2\]"),
    (lambda p: p.add([1], ["a"], [[1, np.nan]]), ValueError, "finite"),
    (lambda p: p.add([1], ["a"]), ValueError, "no encoder"),
    (lambda p: p.add([1.5], ["a"], MATRIX[:1]), TypeError, "integers"),
    (lambda p: p.remove([0, 0]), ValueError, "distinct"),
    (lambda p: p.remove([0, 77]), KeyError, "77"),
    (lambda p: p.get(77), KeyError, "77"),
    (lambda p: p.get("a"), TypeError, "ids"),
    (lambda p: "a" in p, TypeError, "id"),
    (lambda p: p.search("fox"), ValueError, "no encoder"),
    (lambda p: p.search("fox", 0, vectors=[1, 0]), ValueError, "k must be >= 1"),
    (lambda p: p.search("fox", 1.5, vectors=[1, 0]), TypeError, "k must be"),
    (lambda p: p.search(3, vectors=[1, 0]), TypeError, "queries"),
    (lambda p: p.search("fox", vectors=[1, 0, 0]), ValueError, r"\[n, 2\]"),
    (lambda p: p.search("fox", vectors=[np.inf, 0]), ValueError, "finite"),
    (lambda p: p.search(["fox", "sky"], vectors=[1, 0]), ValueError, "1 entries"),
    (lambda p: p.search("fox", vectors=[1, 0], fusion="sum"), ValueError, "fusion"),
    (lambda p: p.search("fox", vectors=[1, 0], weight=1.5), ValueError, "weight"),
    (lambda p: p.search("fox", vectors=[1, 0], weight=np.nan), ValueError, "weight"),
    (lambda p: p.search("fox", vectors=[1, 0], threads=0), ValueError, "threads"),
    (lambda p: p.search("fox", vectors=[1, 0], filter=[-1]), ValueError, "filter"),
    (lambda p: p.search("fox", vectors=[1, 0], filter=[None, None]), ValueError, "filter"),
    (lambda p: p.hot_queries(0), ValueError, "k must be"),
    (lambda p: p.prime(0), ValueError, "k must be"),
    (lambda p: p.tune_weight(["fox"], []), ValueError, "relevant"),
    (lambda p: p.tune_weight(["fox"], 3, vectors=[1, 0]), TypeError, "relevant"),
    (lambda p: p.tune_weight([], []), ValueError, "at least 2"),
    (lambda p: p.tune_weight(["fox"], [[0]], vectors=[1, 0]), ValueError, "at least 2"),
    (lambda p: p.tune_weight(["fox"], [{0: -1}], vectors=[1, 0]), ValueError, "gains"),
    (lambda p: RetrievalPipeline(dim=0), ValueError, "dim"),
    (lambda p: RetrievalPipeline(dim=3, dense=HNSW(2)), ValueError, "dimension 2"),
    (lambda p: RetrievalPipeline(dense=p.dense), ValueError, "holds 5 documents"),
    (lambda p: RetrievalPipeline(sparse=HNSW(2)), TypeError, "InvertedIndex"),
    (lambda p: RetrievalPipeline(encoder=3), TypeError, "encoder"),
    (lambda p: RetrievalPipeline(fusion="best"), ValueError, "fusion"),
    (lambda p: RetrievalPipeline(weight=-0.1), ValueError, "weight"),
    (lambda p: RetrievalPipeline(cache_tokens=-1), ValueError, "cache_tokens"),
    (lambda p: RetrievalPipeline(hot_threshold=0), ValueError, "hot_threshold"),
    (lambda p: RetrievalPipeline(seed=-1), ValueError, "seed"),
]


@pytest.mark.parametrize("call, error, message", BAD)
def test_bad_input(call, error, message):
    pipeline = small()
    before = everything(pipeline)
    with pytest.raises(error, match=message):
        call(pipeline)
    assert everything(pipeline) == before


# ---- hot queries ------------------------------------------------------------------------------


class Counting:
    def __init__(self):
        self.calls = 0

    def __call__(self, texts):
        self.calls += 1
        return letters(texts)


def test_hot_query_is_kept_at_the_threshold():
    encoder = Counting()
    pipeline = small(encoder=encoder, hot_threshold=3)
    encoder.calls = 0
    answers = [pipeline.search("red fox", k=3) for _ in range(6)]
    assert encoder.calls == 3
    for answer in answers[1:]:
        np.testing.assert_array_equal(answer.ids, answers[0].ids)
        np.testing.assert_array_equal(answer.scores, answers[0].scores)
    assert pipeline.hot_queries(2) == [("red fox", 6)]
    assert pipeline.stats().cached == 1


def test_an_answer_is_the_caller_s_own():
    pipeline = small(encoder=letters, hot_threshold=1)
    for _ in range(4):
        answer = pipeline.search("red fox", k=3)
        assert answer.ids[0] == 0
        answer.ids[:], answer.scores[:] = 99, 99.0
    batch = pipeline.search(["red fox"], k=3)
    batch.ids[:] = 99
    assert pipeline.search("red fox", k=3).ids[0] == 0


def test_every_change_of_what_an_answer_depends_on():
    """A hot pipeline answers like a cold one, whatever was asked before."""
    hot = small(encoder=letters, hot_threshold=1)
    steps = [
        lambda p: p.add(5, "red red fox"),
        lambda p: p.add(0, "nothing left"),
        lambda p: p.remove(5),
        lambda p: setattr(p.sparse, "b", 0.0),
        lambda p: setattr(p.sparse, "variant", "robertson"),
    ]
    mask = np.ones(9, bool)
    requests = [
        {},
        {"k": 2},
        {"weight": 0.1},
        {"fusion": "rrf"},
        {"vectors": [0.0, 1.0]},
        {"vectors": [1.0, 0.0]},
        {"filter": [1, 2]},
        {"filter": mask},
    ]
    for n in range(len(steps) + 1):
        cold = small(encoder=letters, cache_tokens=0)
        for step in steps[:n]:
            step(cold)
        if n:
            steps[n - 1](hot)
        for _ in range(3):
            for request in requests:
                expected = cold.search("red fox", **request)
                found = hot.search("red fox", **request)
                np.testing.assert_array_equal(found.ids, expected.ids)
                np.testing.assert_array_equal(found.scores, expected.scores)
        mask[n] = False  # the same array, other contents
    assert hot.stats().cache_hits > 20 and cold.stats().cached == 0


def test_batches_use_and_fill_the_cache():
    encoder = Counting()
    pipeline = small(encoder=encoder, hot_threshold=2)
    first = pipeline.search(["red", "sky", "red"], k=2)
    encoder.calls = 0
    second = pipeline.search(["sky", "red"], k=2)
    assert encoder.calls == 1  # for "sky" alone: "red" was asked twice
    np.testing.assert_array_equal(second.ids, first.ids[[1, 0]])
    assert pipeline.hot_queries(3) == [("red", 3), ("sky", 2)]


def test_budget_of_the_cache():
    pipeline = small(encoder=letters, hot_threshold=1, cache_tokens=8)
    for query in ("red", "sky", "sea"):  # 1 word + 2 places each
        pipeline.search(query, k=2)
    assert (pipeline.stats().cached, pipeline.stats().cached_tokens) == (2, 6)
    pipeline.search("red", k=50)
    assert pipeline.stats().cached == 2


def test_prime_answers_as_it_was_asked():
    encoder = Counting()
    pipeline = small(encoder=encoder, hot_threshold=2)
    mask = np.array([True, True, False, False, True])
    for _ in range(3):
        pipeline.search("red fox", k=3)
        pipeline.search("sky", k=2, vectors=[0, 1], filter=mask)
    pipeline.search("rare")
    pipeline.add(7, "red fox again")
    mask[:] = False  # what was asked stays what was asked
    assert pipeline.prime(2) == 2
    encoder.calls, hits = 0, pipeline.stats().cache_hits
    assert 7 in pipeline.search("red fox", k=3).ids
    filtered = pipeline.search(
        "sky", k=2, vectors=[0, 1], filter=np.array([True, True, False, False, True])
    )
    assert filtered.ids.tolist() == [1, 0] or set(filtered.ids.tolist()) <= {0, 1, 4}
    assert encoder.calls == 0 and pipeline.stats().cache_hits == hits + 2
    assert pipeline.prime(3) == 3  # "rare" too, as a plain search
    encoder.calls = 0
    pipeline.search("rare")
    assert encoder.calls == 0
    assert small(encoder=letters, cache_tokens=0).prime() == 0
    assert pipeline.hot_queries(1)[0] == ("red fox", 4)  # priming asks nothing


# ---- tuning -----------------------------------------------------------------------------------


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


# ---- files ------------------------------------------------------------------------------------


def test_file_with_lsa(tmp_path):
    path = tmp_path / "pipeline"
    encoder = LsaEncoder(3)
    pipeline = RetrievalPipeline(encoder=encoder, hot_threshold=2, weight=0.4, seed=3)
    pipeline.add(np.arange(5), DOCUMENTS)
    assert encoder.fitted
    pipeline.add([5, 0], ["a red car", "caf\u00e9 \ud800"])
    for _ in range(3):
        pipeline.search("red fox")
    pipeline.save(path)
    for again in (
        RetrievalPipeline.load(path),
        RetrievalPipeline.load(path, mmap=True),
        load(path, mmap=True, verify=True),
    ):
        again.check()
        assert again.get(np.arange(6)) == pipeline.get(np.arange(6))
        assert again.hot_queries(5) == [("red fox", 3)]
        assert (again.weight, again.fusion, len(again)) == (0.4, "convex", 6)
        for query in ("red sky", "caf\u00e9", "zebra"):
            expected, found = pipeline.search(query), again.search(query)
            np.testing.assert_array_equal(found.ids, expected.ids)
            np.testing.assert_array_equal(found.scores, expected.scores)
        again.add(None, "written after loading")
        assert again.get(6) == ["written after loading"]
        again.remove([6, 1])
        again.check()
        assert again.prime(1) == 1
    assert RetrievalPipeline.load(path).get(1) == ["blue sky"]  # the file did not change


def test_file_with_a_function(tmp_path):
    path = tmp_path / "pipeline"
    pipeline = small(encoder=letters)
    pipeline.save(path)
    without = RetrievalPipeline.load(path)
    with pytest.raises(ValueError, match="give it to load"):
        without.search("red fox")
    expected = pipeline.search("red fox")
    vectors = letters(["red fox"])
    np.testing.assert_array_equal(without.search("red fox", vectors=vectors[0]).ids, expected.ids)
    without.save(path)
    with pytest.raises(ValueError, match="give it to load"):
        RetrievalPipeline.load(path).add(9, "more")
    again = RetrievalPipeline.load(path, encoder=letters)
    np.testing.assert_array_equal(again.search("red fox").ids, expected.ids)
    with pytest.raises(TypeError, match="encoder"):
        RetrievalPipeline.load(path, encoder=3)


def test_empty_file(tmp_path):
    RetrievalPipeline(dim=4).save(tmp_path / "empty")
    pipeline = RetrievalPipeline.load(tmp_path / "empty")
    assert len(pipeline) == 0 and pipeline.stats().dim == 4
    pipeline.add(None, "text", np.ones((1, 4)))


def test_altered_file(tmp_path):
    path = tmp_path / "pipeline"
    small().save(path)
    data = path.read_bytes()
    for damaged in (data[:-5], data[:1000], data[:-40] + b"\0" + data[-39:]):
        path.write_bytes(damaged)
        with pytest.raises(CorruptFileError):
            RetrievalPipeline.load(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda a, h: a["index/texts/table"].fill(1),
        lambda a, h: a["index/texts/indptr"].fill(9),
        lambda a, h: h["index"].update(dim=7),
        lambda a, h: h["index"]["parts"].update(dense=99),
        lambda a, h: h["index"]["parts"].pop("sparse"),
        lambda a, h: h["settings"].update(fusion="none"),
        lambda a, h: h.pop("sketch"),
    ],
)
def test_state_that_does_not_fit(change):
    arrays, header = small()._state()
    header = {"version": 1, **header}
    arrays = {name: array.copy() for name, array in arrays.items()}
    change(arrays, header)
    with pytest.raises(CorruptFileError):
        RetrievalPipeline._opened("path", "RetrievalPipeline", arrays, header)


def test_replaced_texts_are_given_back():
    pipeline = RetrievalPipeline(encoder=letters)
    for turn in range(40):
        pipeline.add(np.arange(20), [f"{turn} {i} " + "text " * 20 for i in range(20)])
    store = pipeline._index._texts
    assert len(store._blob) < 6 * 20 * 110 and pipeline.get(7)[0].startswith("39 7 ")
    pipeline.check()


# ---- threads ----------------------------------------------------------------------------------


def test_searches_see_before_or_after():
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
        searches.append(count)

    workers = [threading.Thread(target=search, args=(number,)) for number in range(8)]
    for worker in workers:
        worker.start()
    deadline, turn = time.monotonic() + 3, 0
    while time.monotonic() < deadline and not wrong:
        turn += 1
        order = [turn % 2, 1 - turn % 2]
        pipeline.add(order, texts, vectors)
        if turn % 7 == 0:
            pipeline.add(99, "filler", [[-1, -1]])
            pipeline.remove(99)
    stop.set()
    for worker in workers:
        worker.join()
    assert not wrong
    assert turn > 5 and sum(searches) > 50
    pipeline.check()


# ---- quality ----------------------------------------------------------------------------------

DATA = Path(os.environ.get("LLMDS_DATA", Path(__file__).parents[2] / "shared" / "data")) / "vaswani"


def lines(name):
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


@pytest.mark.skipif(not DATA.exists(), reason="vaswani is not there")
def test_vaswani_with_minilm():
    """Fusion beats either half by the published margin, and finds that LSA hurts here."""
    pytest.importorskip("Stemmer")
    documents, asked = lines("corpus.jsonl"), lines("queries.jsonl")
    gains = {query["_id"]: {} for query in asked}
    for row in (DATA / "qrels" / "test.tsv").read_text().splitlines()[1:]:
        query, document, gain = row.split("\t")
        gains[query][int(document)] = float(gain)
    gains = list(gains.values())
    vectors, query_vectors = (
        np.load(DATA / f"minilm_{name}.f16.npy").astype(np.float32) for name in ("docs", "queries")
    )
    pipeline = RetrievalPipeline(sparse=InvertedIndex(tokenizer=Tokenizer(stemmer="english")))
    ids = [int(document["_id"]) for document in documents]
    pipeline.add(ids, [document["text"] for document in documents], vectors)
    queries = [query["text"] for query in asked]
    pipeline.tune_weight(queries, gains, vectors=query_vectors)
    tuning = pipeline.tuning
    assert tuning.sparse_alone == pytest.approx(0.436, abs=0.001)
    assert tuning.dense_alone == pytest.approx(0.434, abs=0.001)
    assert tuning.before >= 0.495 - 0.003
