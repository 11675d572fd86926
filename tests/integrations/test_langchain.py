"""LlmdsVectorStore and LlmdsRetriever in LangChain's standard suites, and what they leave open."""

import subprocess
import sys
import uuid
from datetime import datetime

import numpy as np
import pytest

pytest.importorskip("langchain_core")
pytest.importorskip("langchain_tests")

from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.indexing import InMemoryRecordManager, index
from langchain_tests.integration_tests import (
    RetrieversIntegrationTests,
    VectorStoreIntegrationTests,
)

from llmds_nb import RetrievalPipeline
from llmds_nb.integrations.langchain import LlmdsRetriever, LlmdsVectorStore


class TestVectorStore(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self):
        return LlmdsVectorStore(self.get_embeddings())


class TestVectorStoreByItsOwnEncoder(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self):
        return LlmdsVectorStore()


class TestRetriever(RetrieversIntegrationTests):
    @property
    def retriever_constructor(self):
        return LlmdsRetriever

    @property
    def retriever_constructor_params(self):
        texts = ["salt water", "fresh water", "water boils", "the sea", "a lake"]
        return {"vectorstore": LlmdsVectorStore.from_texts(texts)}

    @property
    def retriever_query_example(self):
        return "water"


TEXTS = ["red foxes hunt at night", "blue skies in the morning", "red skies at night"]
METADATAS = [{"n": 1, "tags": ["animal"]}, {"n": 2, "place": {"up": True}}, {"n": 3}]


@pytest.fixture
def store():
    embedding = DeterministicFakeEmbedding(size=8)
    return LlmdsVectorStore.from_texts(TEXTS, embedding, METADATAS, ids=["a", "b", "c"])


def ids_of(documents):
    return [document.id for document in documents]


def test_missing_ids_are_new_uuids():
    store = LlmdsVectorStore(DeterministicFakeEmbedding(size=8))
    given = [Document(page_content="x", id="own"), Document(page_content="y"), Document("z", id="")]
    ids = store.add_documents(given)
    assert ids[0] == "own" and len(set(ids)) == 3
    assert [str(uuid.UUID(one)) for one in ids[1:]] == ids[1:]
    assert store.add_documents(given[:1], ids=["other"]) == ["other"]  # goes before the own one
    assert len(store) == 4
    assert store.add_texts([]) == store.add_documents([]) == []
    assert store.add_texts(iter(["p", "q"]), ids=["p", None])[0] == "p"


def test_what_is_given_is_not_changed(store):
    metadata = {"n": 1, "within": {"list": [1, 2]}}
    documents = [Document(page_content="x", metadata=metadata)]
    (id_,) = store.add_documents(documents)
    assert documents == [Document(page_content="x", metadata=metadata)]
    (found,) = store.get_by_ids([id_])
    assert found.metadata == metadata
    found.metadata["within"]["list"].append(3)
    assert metadata == {"n": 1, "within": {"list": [1, 2]}}
    assert store.get_by_ids([id_])[0].metadata == metadata


def test_an_existing_id_is_replaced(store):
    store.add_texts(["green fields"], [{"n": 9}], ids=["b"])
    assert len(store) == 3
    assert store.get_by_ids(["b"]) == [Document("green fields", id="b", metadata={"n": 9})]
    assert ids_of(store.similarity_search("blue skies", k=9, filter={"n": 2})) == []


def test_unknown_ids_are_left_out(store):
    assert ids_of(store.get_by_ids(["c", "none", "a", "c"])) == ["c", "a", "c"]
    assert store.delete(["none", "a", "a"]) is True
    assert ids_of(store.get_by_ids(["a", "b"])) == ["b"]
    assert store.delete([]) is True and len(store) == 2
    assert store.delete() is True and len(store) == 0  # all, as LangChain defines it
    assert store.delete() is True
    assert store.similarity_search("red") == []
    assert store.max_marginal_relevance_search("red") == []
    store.add_texts(["red"], ids=["a"])
    assert ids_of(store.similarity_search("red")) == ["a"]


@pytest.mark.parametrize(
    ("filter", "ids"),
    [
        ({"n": 2}, "b"),
        ({"n": {"$gte": 2}}, "bc"),
        ({"tags": "animal"}, "a"),
        ({"place.up": True}, "b"),
        ({"$or": [{"n": 1}, {"n": {"$in": [3, 4]}}]}, "ac"),
        ({"place": {"$exists": False}}, "ac"),
        ({}, "abc"),
        ({"no": "such"}, ""),
    ],
)
def test_filters(store, filter, ids):
    vector = store.embeddings.embed_query("red")
    for found in (
        store.similarity_search("red night", k=5, filter=filter),
        store.similarity_search_by_vector(vector, k=5, filter=filter),
        store.max_marginal_relevance_search("red night", k=5, filter=filter),
        store.max_marginal_relevance_search_by_vector(vector, k=5, filter=filter),
        store.as_retriever(search_kwargs={"k": 5, "filter": filter}).invoke("red night"),
        LlmdsRetriever(vectorstore=store, filter=filter).invoke("red night"),
        LlmdsRetriever(vectorstore=store).invoke("red night", filter=filter),
    ):
        assert sorted(ids_of(found)) == list(ids)


def test_ranking_by_words_and_by_vectors(store):
    by_words = store.similarity_search_with_score("skies morning", k=3, weight=0.0)
    assert ids_of(document for document, _ in by_words)[:2] == ["b", "c"]
    scores = [score for _, score in by_words]
    assert scores == sorted(scores, reverse=True)
    for text, id_ in zip(TEXTS, "abc", strict=True):  # the embedding of a text is its own alone
        vector = store.embeddings.embed_query(text)
        assert ids_of(store.similarity_search_by_vector(vector, k=1)) == [id_]
        assert ids_of(store.similarity_search(text, k=1, weight=1.0)) == [id_]
    assert len(store.similarity_search("red", k=100)) == 3


def test_relevance_scores_are_between_0_and_1(store):
    for fusion in ("convex", "minmax", "rrf", "dbsf"):
        found = store.similarity_search_with_relevance_scores("red skies", k=3, fusion=fusion)
        assert len(found) == 3 and all(0 <= score <= 1 for _, score in found)
    best, other, _ = store.similarity_search_with_relevance_scores("red skies", k=3)
    limit = (best[1] + other[1]) / 2
    kwargs = {"score_threshold": limit, "k": 3}
    retriever = store.as_retriever(search_type="similarity_score_threshold", search_kwargs=kwargs)
    assert ids_of(retriever.invoke("red skies")) == [best[0].id]


class Axes(Embeddings):
    """Words have directions of their own."""

    def embed_query(self, text):
        return [1.0 + text.count("x"), text.count("y"), text.count("z")]

    def embed_documents(self, texts):
        return [self.embed_query(text) for text in texts]


def test_marginal_relevance_prefers_what_differs():
    texts = ["x x", "x x x", "x y", "z z z z"]
    store = LlmdsVectorStore.from_texts(texts, Axes(), ids=["1", "2", "3", "4"])
    plain = store.max_marginal_relevance_search("x x", k=2, lambda_mult=1.0, weight=1.0)
    assert ids_of(plain) == ids_of(store.similarity_search("x x", k=2, weight=1.0)) == ["1", "2"]
    diverse = store.max_marginal_relevance_search("x x", k=2, lambda_mult=0.3, weight=1.0)
    assert ids_of(diverse)[0] == "1" and ids_of(diverse)[1] in ("3", "4")
    retriever = store.as_retriever(
        search_type="mmr", search_kwargs={"k": 2, "lambda_mult": 0.3, "weight": 1.0}
    )
    assert ids_of(retriever.invoke("x x")) == ids_of(diverse)
    vector = Axes().embed_query("x x")
    found = store.max_marginal_relevance_search_by_vector(vector, k=2, lambda_mult=0.3)
    assert ids_of(found) == ids_of(diverse)


def test_retriever_fields(store):
    retriever = LlmdsRetriever(vectorstore=store, k=2, weight=0.0)
    assert ids_of(retriever.invoke("morning skies")) == ["b", "c"]
    assert ids_of(retriever.invoke("morning skies", k=1)) == ["b"]
    assert len(retriever.invoke("red", weight=1.0, k=3)) == 3
    assert len(retriever.batch(["red", "blue"])) == 2
    store.add_texts(["red skies again"], [{"n": 3}], ids=["d"])
    grouped = LlmdsRetriever(vectorstore=store, k=4, group_by="n").invoke("red skies")
    assert sorted(document.metadata["n"] for document in grouped) == [1, 2, 3]
    every = store.similarity_search_with_score("morning skies", k=4)
    limit = every[0][1] * 0.99
    strict = LlmdsRetriever(vectorstore=store, k=4, min_score=limit)
    assert ids_of(strict.invoke("morning skies")) == [d.id for d, s in every if s >= limit]


def test_files(store, tmp_path):
    store.save(tmp_path / "store")
    for options in ({}, {"mmap": True}):
        loaded = LlmdsVectorStore.load(tmp_path / "store", store.embeddings, **options)
        assert loaded.get_by_ids(["a", "b", "c"]) == store.get_by_ids(["a", "b", "c"])
        assert loaded.similarity_search("red") == store.similarity_search("red")
        loaded.add_texts(["more"], ids=["d"])
        assert len(loaded) == 4
    own = LlmdsVectorStore.from_texts(TEXTS, ids=["a", "b", "c"])
    own.save(tmp_path / "own")
    loaded = LlmdsVectorStore.load(tmp_path / "own")
    assert loaded.similarity_search("skies", k=2) == own.similarity_search("skies", k=2)
    assert "3 documents" in repr(loaded)


def test_a_pipeline_of_the_users_own():
    pipeline = RetrievalPipeline(encoder=lambda texts: np.ones((len(texts), 2)), weight=0.0)
    pipeline.add(["k"], ["salt water"], metadata=[{"n": 1}])
    store = LlmdsVectorStore(pipeline=pipeline)
    assert store.pipeline is pipeline and store.embeddings is None
    assert store.similarity_search("water") == [Document("salt water", id="k", metadata={"n": 1})]


def test_a_retriever_over_a_pipeline():
    pipeline = RetrievalPipeline(dim=3, weight=0.0)
    texts = ["salt water", "fresh water"]
    pipeline.add([7, 8], texts, Axes().embed_documents(texts), metadata=[{"n": 1}, {"n": 2}])
    retriever = LlmdsRetriever(pipeline=pipeline, embedding=Axes(), k=1)
    assert retriever.invoke("fresh") == [Document("fresh water", id="8", metadata={"n": 2})]
    assert retriever.vectorstore.pipeline is pipeline
    with pytest.raises(ValueError, match="vectorstore"):
        LlmdsRetriever(k=1)
    with pytest.raises(ValueError, match="not both"):
        LlmdsRetriever(pipeline=pipeline, vectorstore=retriever.vectorstore)
    with pytest.raises(TypeError, match="must be a RetrievalPipeline"):
        LlmdsRetriever(pipeline="salt")


def test_the_indexing_api_of_langchain(store):
    store.delete()
    manager = InMemoryRecordManager(namespace="test")
    manager.create_schema()
    documents = [Document(text, metadata={"source": f"s{i % 2}"}) for i, text in enumerate(TEXTS)]
    options = {"cleanup": "full", "source_id_key": "source", "key_encoder": "sha256"}
    first = index(documents, manager, store, **options)
    assert (first["num_added"], len(store)) == (3, 3)
    second = index(documents[:2], manager, store, **options)
    assert (second["num_skipped"], second["num_deleted"], len(store)) == (2, 1, 2)


class Counting(Axes):
    def embed_documents(self, texts):
        self.sizes = [*getattr(self, "sizes", []), len(texts)]
        return super().embed_documents(texts)


def test_texts_are_embedded_in_batches():
    embedding = Counting()
    store = LlmdsVectorStore(embedding)
    store.add_documents([Document("x" * i) for i in range(5)], batch_size=2)
    store.add_texts(["y"] * 3)
    assert embedding.sizes == [2, 2, 1, 3] and len(store) == 8


class Failing(Axes):
    def embed_documents(self, texts):
        raise RuntimeError("no embeddings today")


@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    [
        ({"when": datetime(2026, 1, 1)}, TypeError, "when must be None, a bool, int"),
        ({"a": {"x": float("nan")}}, ValueError, r"a\.x must be finite, not nan"),
        ({"a.b": 1}, ValueError, r"'a\.b'"),
        ({1: 2}, TypeError, "a key of metadata must be a str, not 1"),
    ],
)
def test_metadata_that_cannot_be_stored(store, metadata, error, message):
    with pytest.raises(error, match=message):
        store.add_texts(["x", "y"], [{}, metadata], ids=["x", "a"])
    assert len(store) == 3 and ids_of(store.get_by_ids(["x"])) == []
    assert store.get_by_ids(["a"])[0].page_content == TEXTS[0]


def test_refusals(store):
    for call, error, message in (
        (
            lambda: store.add_texts(["x"], [{}, {}]),
            ValueError,
            "metadatas has 2 entries, but texts",
        ),
        (
            lambda: store.add_texts(["x"], ids=["a", "b"]),
            ValueError,
            "ids has 2 entries, but texts",
        ),
        (lambda: store.add_texts(["x", "y"], ids=["p", "p"]), ValueError, "p"),
        (lambda: store.add_texts(["x"], ids=[7]), TypeError, "id"),
        (
            lambda: store.add_texts(["x"], soft=True),
            TypeError,
            "unexpected argument 'soft'",
        ),
        (lambda: store.delete(["a"], soft=True), TypeError, "unexpected argument 'soft'"),
        (lambda: store.similarity_search("x", k=0), ValueError, "k must be"),
        (lambda: store.similarity_search("x", filter={"n": {"$near": 1}}), ValueError, "near"),
        (lambda: store.similarity_search("x", filter=len), TypeError, "where must be a dict"),
        (lambda: store.similarity_search_by_vector([1.0]), ValueError, "8"),
        (lambda: LlmdsVectorStore(len), TypeError, "must be an Embeddings of LangChain"),
        (lambda: LlmdsVectorStore(pipeline=[]), TypeError, "must be a RetrievalPipeline, not list"),
        (lambda: LlmdsVectorStore(Failing()).add_texts(["x"]), RuntimeError, "no embeddings today"),
    ):
        with pytest.raises(error, match=message):
            call()
    assert len(store) == 3


def test_a_pipeline_with_numbers_for_ids_is_refused():
    pipeline = RetrievalPipeline(dim=2)
    pipeline.add([1], ["x"], [[1.0, 0.0]])
    with pytest.raises(TypeError, match="ids must be int, as those of this pipeline are"):
        LlmdsVectorStore(Axes(), pipeline=pipeline).add_texts(["y"])


def test_the_extra_is_named_where_it_is_missing():
    code = (
        "import sys; sys.modules['langchain_core.documents'] = None\n"
        "import llmds_nb.integrations.langchain"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert "needs langchain-core: pip install 'llmds_nb[langchain]'" in result.stderr
