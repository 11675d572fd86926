"""The encoders of a pipeline: by name, stored, fitted anew, and what is said of them."""

import copy
import logging
import pickle
import sys
import threading
import types

import numpy as np
import pytest

import llmds_nb
from llmds_nb import (
    HNSW,
    CorruptFileError,
    InvertedIndex,
    LsaEncoder,
    RetrievalPipeline,
    StaticEncoder,
    Tokenizer,
)
from llmds_nb.text import static_model

from ..forged_files import forged
from .samples import letters

TEXTS = [f"red fox {i} on the hill of tree{i}" for i in range(4)]
MORE = [f"page {i} about a quick brown dog and queue{i % 5}" for i in range(20)]


def answers(pipeline, queries=("brown dog", "a fox", "queue3")):
    found = pipeline.search(list(queries), 5)
    return found.ids.tolist(), found.scores.tolist()


# ---- by name -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("lsa", LsaEncoder()),
        ("static", StaticEncoder()),
        ("wordllama-256", StaticEncoder()),
        ("wordllama-64", StaticEncoder("wordllama-64")),
    ],
)
def test_a_name_is_an_encoder(name, made):
    pipeline, other = RetrievalPipeline(encoder=name), RetrievalPipeline(encoder=made)
    for each in (pipeline, other):
        each.add(None, TEXTS + MORE)
    assert type(pipeline.encoder) is type(made) and pipeline.encoder.fitted
    assert answers(pipeline) == answers(other)
    loaded = llmds_nb.RetrievalPipeline.from_bytes(pipeline.to_bytes())
    assert repr(loaded.encoder) == repr(pipeline.encoder)
    assert answers(loaded) == answers(pipeline)
    assert len(pipeline.to_bytes()) < 2_000_000  # the model is not in it


@pytest.mark.parametrize("name", ["", "LSA", "wordllama", "bert", "sentence-transformers/", "x\0"])
def test_a_name_that_does_not_exist_is_refused_with_those_that_do(name):
    with pytest.raises(ValueError, match=r"lsa|sentence-transformers") as caught:
        RetrievalPipeline(encoder=name)
    if not name.startswith("sentence"):
        for known in ("lsa", "static", "wordllama-256", "sentence-transformers/<name or path>"):
            assert known in str(caught.value)


@pytest.mark.parametrize("encoder", [5, b"lsa", ["lsa"], object()])
def test_what_is_no_encoder_is_refused(encoder):
    with pytest.raises(TypeError, match="encoder must be a name"):
        RetrievalPipeline(encoder=encoder)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "wordllama", None)
    with pytest.raises(ImportError, match=r"llmds_nb\[static\]"):
        RetrievalPipeline(encoder="static")


class FakeModel:
    """What is used of SentenceTransformer."""

    made: list = []  # noqa: RUF012  # names

    def __init__(self, name):
        self.made.append(name)

    def encode(self, texts, *, convert_to_numpy, show_progress_bar):
        assert convert_to_numpy and not show_progress_bar and type(texts) is list
        return np.array([[len(t), t.count("o"), t.count("e") + 1] for t in texts], np.float32)


class FakeModelWithPrompts(FakeModel):
    def encode_query(self, texts, **options):
        return self.encode([text[::-1] for text in texts], **options) * [1, -1, 1]

    def encode_document(self, texts, **options):
        return self.encode(texts, **options)


@pytest.fixture(params=[FakeModel, FakeModelWithPrompts])
def fake(request, monkeypatch):
    module = types.ModuleType("sentence_transformers")
    module.SentenceTransformer = request.param
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    monkeypatch.setattr(FakeModel, "made", [])
    return request.param


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", "org/model", "/a/folder", "./here"])
def test_a_model_of_sentence_transformers_is_loaded_at_its_first_use(fake, name):
    pipeline = RetrievalPipeline(encoder=f"sentence-transformers/{name}")
    assert fake.made == []
    pipeline.add(None, TEXTS)
    first = answers(pipeline)
    assert fake.made == [name]
    data = pipeline.to_bytes()
    loaded = RetrievalPipeline.from_bytes(data)
    assert fake.made == [name] and len(loaded) == len(TEXTS)
    assert answers(loaded) == first and fake.made == [name, name]
    for other in (copy.copy(pipeline), copy.deepcopy(pipeline)):
        assert answers(other) == first
    again = pickle.loads(pickle.dumps(pipeline))
    assert again.encoder.name == pipeline.encoder.name and answers(again) == first
    replaced = RetrievalPipeline.from_bytes(data, encoder=lambda texts: fake("x").encode(
        texts, convert_to_numpy=True, show_progress_bar=False
    ))  # fmt: skip
    assert len(answers(replaced)[0]) == 3


def test_queries_get_the_prompt_of_queries(fake):
    pipeline = RetrievalPipeline(encoder="sentence-transformers/m", weight=1.0)
    pipeline.add(None, ["oooo eeee", "e"])
    query = pipeline._index.snapshot.embedder.encode_queries(["good"], 3)
    assert (query[0, 1] < 0) == (fake is FakeModelWithPrompts)


def test_without_sentence_transformers_the_command_is_named_at_the_first_use(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    pipeline = RetrievalPipeline(encoder="sentence-transformers/m")
    with pytest.raises(ImportError, match=r"pip install 'llmds_nb\[st\]'"):
        pipeline.add(None, TEXTS)
    assert len(pipeline) == 0
    pipeline.add(None, TEXTS, np.eye(4))
    loaded = RetrievalPipeline.from_bytes(pipeline.to_bytes())
    assert loaded.search("fox", 1, vectors=[1, 0, 0, 0]).ids.tolist() == [0]


@pytest.mark.parametrize(
    "edit",
    [
        lambda h: h.update(encoder_name=5),
        lambda h: h.update(encoder_name="no prefix"),
        lambda h: h.update(encoder_name="sentence-transformers/"),
        lambda h: h.update(encoder_name="sentence-transformers/" + "x" * 5000),
        lambda h: h.update(needs_encoder=True),
    ],
)
def test_a_changed_name_in_a_file_is_refused(edit):
    pipeline = RetrievalPipeline(encoder="sentence-transformers/m")
    pipeline.add(None, TEXTS, np.eye(4))
    arrays, header = pipeline._state()
    data = forged(
        "RetrievalPipeline", arrays, {"version": 2, **header}, lambda a, h: edit(h["index"])
    )
    with pytest.raises(CorruptFileError):
        RetrievalPipeline.from_bytes(data)


@pytest.mark.parametrize(
    "edit",
    [
        lambda h: h.update(encoder_class="HNSW"),
        lambda h: h.update(encoder_class="LsaEncoder"),
        lambda h: h.pop("encoder_class"),
        lambda h: h.update(encoder_name="sentence-transformers/m"),
        lambda h: h["encoder"].update(n_texts=-1),
    ],
)
def test_a_changed_kind_of_encoder_in_a_file_is_refused(edit):
    pipeline = RetrievalPipeline(encoder="wordllama-64")
    pipeline.add(None, TEXTS)
    arrays, header = pipeline._state()
    data = forged(
        "RetrievalPipeline", arrays, {"version": 2, **header}, lambda a, h: edit(h["index"])
    )
    with pytest.raises(CorruptFileError):
        RetrievalPipeline.from_bytes(data)


def test_an_encoder_of_another_dimension_is_named():
    with pytest.raises(ValueError, match=r"the encoder gave shape \[4, 64\].*\[n, 32\]"):
        RetrievalPipeline(encoder="wordllama-64", dim=32).add(None, TEXTS)
    pipeline = RetrievalPipeline(encoder="wordllama-64")
    pipeline.add(None, TEXTS)
    other = RetrievalPipeline.from_bytes(pipeline.to_bytes(), encoder="wordllama-128")
    for call in (lambda: other.search("fox"), lambda: other.add(None, "fox"), other.refit):
        with pytest.raises(ValueError, match=r"the encoder gave shape.*128\].*\[n, 64\]"):
            call()
    assert len(other) == 4


def test_files_whose_model_is_gone_or_another_are_refused(monkeypatch):
    pipeline = RetrievalPipeline(encoder="wordllama-64")
    pipeline.add(None, TEXTS)
    data = pipeline.to_bytes()
    changed = copy.copy(static_model.model_of("wordllama-64"))
    changed.digests = {**changed.digests, "weights": "0" * 64}
    monkeypatch.setattr("llmds_nb.text.static_encoder.model_of", lambda name: changed)
    with pytest.raises(CorruptFileError, match="are others than those it was saved with"):
        RetrievalPipeline.from_bytes(data)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "wordllama", None)
    with pytest.raises(ImportError, match=r"llmds_nb\[static\]"):
        RetrievalPipeline.from_bytes(data)


def test_static_vectors_fused_with_words_reach_the_target(vaswani):
    sparse = InvertedIndex(tokenizer=Tokenizer(stemmer="english"))
    pipeline = RetrievalPipeline(encoder="static", sparse=sparse)
    pipeline.add(vaswani.ids, vaswani.texts)
    pipeline.tune_weight(vaswani.queries, vaswani.gains)
    assert pipeline.tuning.dense_alone >= 0.36
    assert pipeline.tuning.ndcg >= 0.453


# ---- refit -------------------------------------------------------------------------------------


def outgrown(encoder="lsa", **options):
    pipeline = RetrievalPipeline(encoder=encoder, **options)
    pipeline.add(range(4), TEXTS)
    pipeline.add(range(10, 30), MORE)
    return pipeline


@pytest.mark.parametrize("encoder", ["lsa", "static"])
def test_a_refit_gives_the_pipeline_of_all_texts_at_once(encoder):
    pipeline, fresh = outgrown(encoder), RetrievalPipeline(encoder=encoder)
    fresh.add([*range(4), *range(10, 30)], TEXTS + MORE)
    given = pipeline.encoder
    assert pipeline.stats().fitted_on == 4 and pipeline.refit_due and pipeline.stats().refit_due
    assert answers(pipeline) != answers(fresh)
    pipeline.refit()
    pipeline.check()
    assert pipeline.encoder is given and given.n_texts == 24
    assert answers(pipeline) == answers(fresh)
    np.testing.assert_array_equal(given.encode(TEXTS), fresh.encoder.encode(TEXTS))
    assert not pipeline.refit_due
    assert pipeline.stats()[:3] == fresh.stats()[:3] and pipeline.stats().fitted_on == 24
    loaded = RetrievalPipeline.from_bytes(pipeline.to_bytes())
    assert answers(loaded) == answers(fresh) and loaded.stats().fitted_on == 24


def test_a_refit_gives_vectors_to_documents_that_had_none():
    pipeline = outgrown()
    stats = pipeline.stats()
    assert stats.documents == 24 and stats.vectors == 4
    pipeline.refit()
    assert pipeline.stats().vectors == 24


@pytest.mark.parametrize("n", [3, 4, 8, 9])
def test_a_refit_is_due_beyond_twice_the_documents(n):
    pipeline = RetrievalPipeline(encoder="lsa")
    assert not pipeline.refit_due
    pipeline.add(range(min(n, 4)), TEXTS[:n])
    pipeline.add(range(4, max(n, 4)), MORE[: max(n - 4, 0)])
    assert pipeline.refit_due == (n == 9)
    if n == 9:
        pipeline.remove(0)
        assert not pipeline.refit_due


def test_the_settings_of_the_halves_are_kept():
    dense = HNSW(64, metric="cosine", M=7, ef_search=33, seed=3)
    pipeline = outgrown("wordllama-64", dense=dense)
    pipeline.refit()
    assert pipeline.dense is dense and len(dense) == 24 and (dense._M, dense.ef_search) == (7, 33)
    ids = pipeline.add(None, ["another"])
    assert ids.tolist() == [30]
    pipeline.check()


def test_documents_without_words_stay_without_vectors():
    pipeline = outgrown()
    pipeline.add([2, 50], ["", "..."])
    pipeline.refit()
    pipeline.check()
    assert pipeline.stats().vectors == 23 and len(pipeline) == 25
    pipeline.remove([id_ for id_ in range(60) if id_ in pipeline and id_ not in (2, 50)])
    with pytest.raises(ValueError, match="none of the 2 texts holds a word"):
        pipeline.refit()
    pipeline.check()


def test_cached_answers_and_their_vectors_become_invalid():
    pipeline = outgrown(hot_threshold=1)
    before = pipeline.search("brown dog", 5)
    pipeline.search("brown dog", 5)
    assert pipeline.stats().cache_hits == 1
    pipeline.refit()
    assert pipeline.prime(5) == 1
    primed, found = pipeline.search("brown dog", 5), copy.copy(pipeline).search("brown dog", 5)
    assert pipeline.stats().cache_hits == 2
    assert primed.ids.tolist() == found.ids.tolist() != before.ids.tolist()
    assert primed.scores.tolist() == found.scores.tolist()


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        (RetrievalPipeline(), "an LsaEncoder or StaticEncoder"),
        (RetrievalPipeline(encoder=letters), "an LsaEncoder or StaticEncoder"),
        (RetrievalPipeline(encoder="sentence-transformers/m"), "an LsaEncoder or StaticEncoder"),
        (RetrievalPipeline(encoder="lsa"), "no documents"),
    ],
)
def test_what_cannot_be_fitted_is_refused(pipeline, message):
    with pytest.raises(ValueError, match=message):
        pipeline.refit()
    assert not pipeline.refit_due and pipeline.stats().fitted_on == 0


def test_a_search_beside_a_refit_sees_one_fit_of_both():
    """Its query is encoded as the documents are: the other way gives scores of neither."""
    pipeline = outgrown(cache_tokens=0)
    before = answers(pipeline)
    other = outgrown()
    other.refit()
    right, seen, done = [before, answers(other)], [], threading.Event()

    def search():
        while not done.is_set():
            seen.append(answers(pipeline))

    thread = threading.Thread(target=search)
    thread.start()
    for _ in range(5):
        pipeline.refit()
    done.set()
    thread.join()
    assert seen and all(found in right for found in seen)


def test_a_searcher_of_before_a_refit_encodes_as_before():
    pipeline = outgrown(cache_tokens=0)
    before = answers(pipeline)
    searcher = pipeline._index.searcher()
    pipeline.refit()
    assert answers(pipeline) != before
    from llmds_nb.pipeline.search import Request

    requests = [
        Request(text, 5, "convex", pipeline.weight) for text in ("brown dog", "a fox", "queue3")
    ]
    found = searcher.search(searcher.encode(requests))
    assert (found.ids.tolist(), found.scores.tolist()) == before


def test_a_fit_of_the_callers_concerns_queries_once_documents_have_it():
    encoder = LsaEncoder(4)
    pipeline = outgrown(encoder)
    before = answers(pipeline)
    encoder.fit(TEXTS + MORE)
    assert answers(pipeline) == before
    pipeline.add([*range(4), *range(10, 30)], TEXTS + MORE)
    fresh = RetrievalPipeline(encoder=LsaEncoder(4).fit(TEXTS + MORE))
    fresh.add([*range(4), *range(10, 30)], TEXTS + MORE)
    assert answers(pipeline) == answers(fresh) and pipeline.stats().fitted_on == 24


# ---- what is logged ----------------------------------------------------------------------------


def test_a_due_refit_is_logged_once_for_each_fit(caplog):
    caplog.set_level(logging.WARNING, "llmds_nb")
    pipeline = RetrievalPipeline(encoder="static")
    pipeline.add(None, TEXTS)
    assert not caplog.messages
    for i in range(10):
        pipeline.add(None, f"document {i}")
    assert len(caplog.messages) == 1
    assert "fitted on 4 texts, and there are 9 documents: refit()" in caplog.messages[0]
    pipeline.refit()
    pipeline.add(None, [f"document {i}" for i in range(30)])
    pipeline.add(None, "one more")
    assert len(caplog.messages) == 2 and "fitted on 14 texts" in caplog.messages[1]


def test_documents_without_a_vector_are_logged_once(caplog):
    caplog.set_level(logging.WARNING, "llmds_nb")
    pipeline = RetrievalPipeline(encoder="lsa")
    pipeline.add(None, TEXTS)
    pipeline.add(None, ["unheard", "a fox", "zebras"])
    pipeline.add(None, "again nothing")
    assert len(caplog.messages) == 1
    assert "2 of 3 added documents have a vector of zeros" in caplog.messages[0]
    assert pipeline.stats().documents - pipeline.stats().vectors == 3


def test_nothing_is_printed_unasked(capfd):
    outgrown()
    assert capfd.readouterr() == ("", "")
