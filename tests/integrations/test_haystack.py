"""LlmdsDocumentStore in Haystack's own tests of document stores, and beside its in-memory store."""

import copy
import io
import json
import os
import pickle
import subprocess
import sys
import threading
import zipfile
from datetime import datetime

import numpy as np
import pytest

pytest.importorskip("haystack")

from haystack import Document, Pipeline
from haystack.dataclasses import ByteStream, SparseEmbedding
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.document_stores.types import DuplicatePolicy
from haystack.testing import document_store as suite, document_store_async as suite_async

from llmds_nb import CorruptFileError, InvertedIndex, RetrievalPipeline, Tokenizer
from llmds_nb.integrations.haystack import (
    LlmdsBM25Retriever,
    LlmdsDocumentStore,
    LlmdsEmbeddingRetriever,
    LlmdsHybridRetriever,
)


class TestStandard(
    suite.DocumentStoreBaseExtendedTests,
    suite.CountDocumentsByFilterTest,
    suite.CountUniqueMetadataByFilterTest,
    suite.GetMetadataFieldsInfoTest,
    suite.GetMetadataFieldMinMaxTest,
    suite.GetMetadataFieldUniqueValuesTest,
):
    @pytest.fixture
    def document_store(self):
        return LlmdsDocumentStore()

    def test_write_documents(self, document_store):
        """Without a policy a duplicate is refused: the suite leaves this to each store."""
        document = Document(content="test doc")
        assert document_store.write_documents([document]) == 1
        with pytest.raises(DuplicateDocumentError):
            document_store.write_documents([document], policy=DuplicatePolicy.NONE)
        assert document_store.filter_documents() == [document]


class TestStandardAsync(
    suite_async.CountDocumentsAsyncTest,
    suite_async.CountDocumentsByFilterAsyncTest,
    suite_async.CountUniqueMetadataByFilterAsyncTest,
    suite_async.DeleteAllAsyncTest,
    suite_async.DeleteByFilterAsyncTest,
    suite_async.DeleteDocumentsAsyncTest,
    suite_async.FilterDocumentsAsyncTest,
    suite_async.GetMetadataFieldMinMaxAsyncTest,
    suite_async.GetMetadataFieldUniqueValuesAsyncTest,
    suite_async.GetMetadataFieldsInfoAsyncTest,
    suite_async.UpdateByFilterAsyncTest,
    suite_async.WriteDocumentsAsyncTest,
):
    @pytest.fixture
    def document_store(self):
        return LlmdsDocumentStore()

    async def test_write_documents_async(self, document_store):
        document = Document(content="test doc")
        assert await document_store.write_documents_async([document]) == 1
        with pytest.raises(DuplicateDocumentError):
            await document_store.write_documents_async([document], policy=DuplicatePolicy.NONE)
        assert await document_store.filter_documents_async() == [document]


def documents():
    rng = np.random.default_rng(0)
    words = ["salt", "water", "boils", "stars", "shine", "night", "cars", "fuel"]
    return [
        Document(
            id=f"d{i}",
            content=" ".join(rng.choice(words, 6)),
            meta={"n": i, "half": "ab"[i % 2]},
            embedding=rng.standard_normal(8).tolist() if i % 3 else None,
        )
        for i in range(40)
    ]


ODD = {"field": "meta.half", "operator": "==", "value": "b"}


@pytest.mark.parametrize("similarity", ["cosine", "dot_product"])
@pytest.mark.parametrize("scale_score", [False, True])
def test_embedding_retrieval_is_that_of_the_in_memory_store(similarity, scale_score):
    ours = LlmdsDocumentStore(embedding_similarity_function=similarity)
    theirs = InMemoryDocumentStore(embedding_similarity_function=similarity)
    for store in (ours, theirs):
        store.write_documents(documents())
    query = np.random.default_rng(1).standard_normal(8).tolist()
    for filters in (None, ODD):
        options = {"filters": filters, "top_k": 5, "scale_score": scale_score}
        found, expected = (s.embedding_retrieval(query, **options) for s in (ours, theirs))
        assert [d.id for d in found] == [d.id for d in expected]
        scores = [d.score for d in expected]
        assert [d.score for d in found] == pytest.approx(scores, rel=1e-5, abs=1e-6)
        assert [d.embedding for d in found] == [None] * 5
        (with_embedding, *_) = ours.embedding_retrieval(query, return_embedding=True)
        assert with_embedding.embedding == documents()[int(with_embedding.id[1:])].embedding


def test_bm25_retrieval():
    store = LlmdsDocumentStore(
        bm25_parameters={"k1": 1.5}, tokenizer_parameters={"stopwords": None}
    )
    store.write_documents([*documents(), Document(id="no content", embedding=[1.0] * 8)])
    found = store.bm25_retrieval("salt and water", top_k=5)
    assert len(found) == 5
    scores = [document.score for document in found]
    assert scores == sorted(scores, reverse=True) and scores[-1] > 0
    index = InvertedIndex(k1=1.5, tokenizer=Tokenizer(stopwords=None))
    index.add(range(41), [d.content for d in documents()] + [""])
    assert scores == pytest.approx(index.search("salt and water", 5).scores.tolist())
    assert all(
        set(d.content.split()) & {"salt", "water"} for d in store.bm25_retrieval("salt water")
    )
    odd = store.bm25_retrieval("salt", ODD, top_k=100)
    assert odd and all(document.meta["half"] == "b" for document in odd)
    scaled = store.bm25_retrieval("salt and water", top_k=5, scale_score=True)
    assert [d.id for d in scaled] == [d.id for d in found]
    assert all(0.5 < d.score < 1 for d in scaled)
    nothing = {"field": "meta.n", "operator": "<", "value": 0}
    assert store.bm25_retrieval("salt", nothing) == store.bm25_retrieval("zyzzyva") == []
    assert store.bm25_retrieval("salt", top_k=0) == []


def test_hybrid_retrieval_fuses_both():
    store = LlmdsDocumentStore()
    query = [1.0] + [0.0] * 7
    assert store.hybrid_retrieval("salt", query) == []
    store.write_documents([Document(id="w", content="salt")])
    assert [d.id for d in store.hybrid_retrieval("salt", query)] == ["w"]  # no embedding as yet
    store.write_documents([Document(id="v", content="stars", embedding=query)])
    store.write_documents([Document(id="x", content="cars", embedding=query[::-1])])
    by = {w: [d.id for d in store.hybrid_retrieval("salt", query, weight=w)] for w in (0.1, 0.9)}
    assert by[0.1][0] == "w" and by[0.9][0] == "v"
    only = {"field": "id", "operator": "!=", "value": "v"}
    assert store.hybrid_retrieval("salt", query, only, weight=0.9)[0].id != "v"


def test_embeddings_come_back_as_they_were(tmp_path):
    store = LlmdsDocumentStore(return_embedding=True)
    given = [
        Document(id="words", content="salt", blob=ByteStream(b"x"), meta={"page": 1}),
        Document(id="both", content="water", embedding=[0.1, 1e-300]),
        Document(id="zeros", content="stars", embedding=[0.0, 0.0]),
        Document(
            id="vector", embedding=[1 / 3, 2 / 3], sparse_embedding=SparseEmbedding([1], [0.5])
        ),
    ]
    for document in given:  # the dimension becomes known by the second
        store.write_documents([document])
    assert store.filter_documents() == given
    assert [d.id for d in store.embedding_retrieval([1.0, 0.0])] == ["both", "vector"]
    assert LlmdsDocumentStore(return_embedding=False).to_dict() != store.to_dict()
    store.save_to_disk(tmp_path / "store")
    loaded = LlmdsDocumentStore.load_from_disk(tmp_path / "store")
    assert loaded.to_dict() == store.to_dict()
    assert os.listdir(tmp_path) == ["store"]
    for again in (loaded, pickle.loads(pickle.dumps(store)), copy.deepcopy(store)):
        assert again.filter_documents() == given
        again.write_documents([Document(id="more", content="x", embedding=[1.0, 1.0])])
        assert (again.count_documents(), store.count_documents()) == (5, 4)
    store.delete_all_documents()
    with pytest.raises(ValueError, match="has dimension 3, not 2"):
        store.write_documents([Document(content="x", embedding=[1.0] * 3)])
    store.delete_all_documents(recreate_index=True)
    assert store.write_documents([Document(content="x", embedding=[1.0] * 3)]) == 1


def test_files_of_stores(tmp_path):
    path = tmp_path / "store"
    store = LlmdsDocumentStore(bm25_parameters={"b": 0.5})
    store.save_to_disk(path)  # without documents
    assert LlmdsDocumentStore.load_from_disk(path).count_documents() == 0
    store.write_documents([Document(content="salt")])  # without embeddings
    store.save_to_disk(path)
    loaded = LlmdsDocumentStore.load_from_disk(path)
    assert loaded.filter_documents() == store.filter_documents()
    store.write_documents(documents())
    store.save_to_disk(path)
    loaded = LlmdsDocumentStore.load_from_disk(path)
    query = documents()[1].embedding
    assert loaded.hybrid_retrieval("salt", query, ODD) == store.hybrid_retrieval("salt", query, ODD)
    with pytest.raises(DuplicateDocumentError):
        loaded.write_documents(documents()[:1])
    loaded.delete_documents(["d0", "d1"])
    loaded.write_documents(documents()[:2])
    assert loaded.count_documents() == 41
    with pytest.raises(FileNotFoundError):
        LlmdsDocumentStore.load_from_disk(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        store.save_to_disk(tmp_path / "none" / "store")


def edited(path, name, edit):
    """A copy of the file of a store with one part changed."""
    copied = path.with_suffix(".edited")
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copied, "w") as other:
        for part in archive.namelist():
            data = archive.read(part)
            if part == name:
                data = edit(data)
            if data is not None:
                other.writestr(part, data)
    return copied


def array_bytes(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def header(**changes):
    return lambda data: json.dumps(json.loads(data) | changes)


def foreign(*_):
    pipeline = RetrievalPipeline(dim=8)
    pipeline.add([1, 2], ["a", "b"], np.ones((2, 8)), metadata=[{"id": "x", "meta": {}}, {}])
    return pipeline.to_bytes()


@pytest.mark.parametrize(
    ("part", "edit"),
    [
        ("store.json", lambda data: data[:-1]),
        ("store.json", lambda data: None),
        ("store.json", lambda data: b"[]"),
        ("store.json", lambda data: b"[" * 10**5),
        ("store.json", header(version=2)),
        ("store.json", header(parameters=[])),
        ("store.json", header(parameters={"bm25_parameters": {"k1": -1}})),
        ("store.json", header(parameters={"no_such": 1})),
        ("store.json", header(parameters={"embedding_similarity_function": "dot_product"})),
        ("store.json", header(dim=7)),
        ("store.json", header(dim=None)),
        ("store.json", header(next_row=0)),
        ("store.json", header(next_row="many")),
        ("store.json", header(blobs=7)),
        ("store.json", header(blobs=[[0, {"data": [256], "meta": {}, "mime_type": None}]])),
        ("store.json", header(blobs=[[10**6, {"data": [1], "meta": {}, "mime_type": None}]])),
        ("store.json", header(sparse_embeddings=[[0, {"indices": [1], "values": []}]])),
        ("pipeline", lambda data: data[: len(data) // 2]),
        ("pipeline", lambda data: None),
        ("pipeline", foreign),
        ("rows.npy", lambda data: array_bytes(np.arange(3))),
        ("rows.npy", lambda data: array_bytes(np.arange(26, dtype=np.int64) + 1000)),
        ("rows.npy", lambda data: array_bytes(np.array([None] * 26, object))),
        ("vectors.npy", lambda data: data[:100]),
        ("vectors.npy", lambda data: array_bytes(np.full((26, 8), np.nan))),
        ("vectors.npy", lambda data: array_bytes(np.zeros((26, 8), np.float32))),
    ],
)
def test_files_that_somebody_changed(tmp_path, part, edit):
    store = LlmdsDocumentStore()
    store.write_documents(documents())
    store.save_to_disk(tmp_path / "store")
    same = edited(tmp_path / "store", None, None)
    assert LlmdsDocumentStore.load_from_disk(same).filter_documents() == store.filter_documents()
    with pytest.raises(CorruptFileError):
        LlmdsDocumentStore.load_from_disk(edited(tmp_path / "store", part, edit))


def test_files_of_something_else(tmp_path):
    (tmp_path / "text").write_text("no archive")
    with pytest.raises(CorruptFileError, match="not the file of a document store"):
        LlmdsDocumentStore.load_from_disk(tmp_path / "text")


def test_what_is_raised_changes_nothing():
    store = LlmdsDocumentStore()
    store.write_documents([Document(id="a", content="old", meta={"n": 1}, embedding=[1.0, 2.0])])
    before, fine = store.filter_documents(), Document(id="b", content="fine")
    overwrite = DuplicatePolicy.OVERWRITE
    for bad, policy, error, message in (
        (
            Document(id="a", content="x"),
            DuplicatePolicy.FAIL,
            DuplicateDocumentError,
            "'a' already",
        ),
        (fine, DuplicatePolicy.NONE, DuplicateDocumentError, "'b' already"),
        (
            Document(id="a", embedding=[1.0] * 3),
            overwrite,
            ValueError,
            "'a' has dimension 3, not 2",
        ),
        (Document(id="a", embedding=[1.0, float("nan")]), overwrite, ValueError, "finite"),
        (Document(id="a", embedding=[]), overwrite, ValueError, "not empty"),
        (Document(id="a", embedding=["x"]), overwrite, ValueError, "list of floats"),
        (Document(id="a", meta={"b.c": 1}), overwrite, ValueError, r"'b\.c'"),
        (Document(id="a", meta={"n": float("nan")}), overwrite, ValueError, r"meta\.n"),
        (Document(id="a", meta={"n": datetime(2026, 1, 1)}), overwrite, TypeError, r"meta\.n"),
        ("text", overwrite, ValueError, "must hold Documents, not str"),
    ):
        with pytest.raises(error, match=message):
            store.write_documents([fine, bad], policy=policy)
        assert store.filter_documents() == before
        assert store.bm25_retrieval("fine") == []
        assert store.write_documents([fine, fine], policy=DuplicatePolicy.SKIP) == 1
        store.delete_documents(["b", "unknown"])
    with pytest.raises(ValueError, match="a list of them, not int"):
        store.write_documents(7)
    with pytest.raises(TypeError, match=r"meta\.when"):
        store.update_by_filter({}, {"when": datetime(2026, 1, 1)})
    assert store.filter_documents() == before


def test_documents_and_filters_are_not_changed():
    store = LlmdsDocumentStore()
    document = Document(id="a", content="x", meta={"list": [1, {"k": "v"}]})
    filters = {"operator": "NOT", "conditions": [{"field": "meta.n", "operator": "==", "value": 1}]}
    store.write_documents([document])
    (found,) = store.filter_documents(filters)
    found.meta["list"].append(2)
    assert store.filter_documents() == [
        Document(id="a", content="x", meta={"list": [1, {"k": "v"}]})
    ]
    assert document.meta == {"list": [1, {"k": "v"}]}
    assert filters["conditions"] == [{"field": "meta.n", "operator": "==", "value": 1}]


def test_parameters_are_checked():
    for options, error, message in (
        ({"embedding_similarity_function": "l2"}, ValueError, "cosine, dot_product, not 'l2'"),
        ({"bm25_parameters": {"k1": -1}}, ValueError, "k1"),
        ({"hnsw_parameters": {"M": 1}}, ValueError, "M must be"),
        ({"tokenizer_parameters": {"no_such": 1}}, TypeError, "no_such"),
    ):
        with pytest.raises(error, match=message):
            LlmdsDocumentStore(**options)
    store = LlmdsDocumentStore()
    store.write_documents(documents())
    for call, message in (
        (lambda: store.bm25_retrieval(""), "query must not be empty"),
        (lambda: store.bm25_retrieval("x", top_k=-1), "top_k must be at least 0, not -1"),
        (lambda: store.embedding_retrieval([]), "query_embedding must be a list of finite"),
        (lambda: store.embedding_retrieval("ab"), "query_embedding must be a list of floats"),
        (lambda: store.embedding_retrieval([1.0, 2.0]), "has dimension 2, not 8"),
        (lambda: LlmdsBM25Retriever(store, top_k=0), "top_k must be greater than 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="must be an LlmdsDocumentStore"):
        LlmdsBM25Retriever(InMemoryDocumentStore())


def pipeline_of(store):
    pipeline = Pipeline()
    pipeline.add_component("words", LlmdsBM25Retriever(store, top_k=3))
    vectors = LlmdsEmbeddingRetriever(store, filters=ODD, top_k=4, filter_policy="merge")
    pipeline.add_component("vectors", vectors)
    pipeline.add_component("both", LlmdsHybridRetriever(store, weight=0.5))
    return pipeline


def test_retrievers_in_pipelines(tmp_path):
    store = LlmdsDocumentStore(bm25_parameters={"b": 0.5}, return_embedding=False)
    store.write_documents(documents())
    query, late = [1.0] * 8, {"field": "meta.n", "operator": ">", "value": 20}
    data = {
        "words": {"query": "salt"},
        "vectors": {"query_embedding": query, "filters": late},
        "both": {"query": "salt", "query_embedding": query, "top_k": 2, "filters": late},
    }
    pipeline = pipeline_of(store)
    found = {name: one["documents"] for name, one in pipeline.run(data).items()}
    assert {name: len(one) for name, one in found.items()} == {"words": 3, "vectors": 4, "both": 2}
    assert all(d.meta["half"] == "b" and d.meta["n"] > 20 for d in found["vectors"])
    assert all(d.meta["n"] > 20 for d in found["both"])
    again = Pipeline.loads(pipeline.dumps(), allowed_modules=["llmds_nb.integrations.haystack.*"])
    assert again.to_dict() == pipeline.to_dict()
    assert again.get_component("words").document_store.bm25_parameters == {"b": 0.5}
    assert again.get_component("both").weight == 0.5
    assert again.run(data)["words"]["documents"] == []  # a store without documents


async def test_retrievers_run_asynchronously():
    store = LlmdsDocumentStore()
    await store.write_documents_async(documents())
    query = [1.0] * 8
    words, vectors, both = (
        LlmdsBM25Retriever(store),
        LlmdsEmbeddingRetriever(store),
        LlmdsHybridRetriever(store),
    )
    assert await words.run_async("salt") == words.run("salt")
    assert await vectors.run_async(query, ODD, 3) == vectors.run(query, ODD, 3)
    assert await both.run_async("salt", query) == both.run("salt", query)
    assert await store.bm25_retrieval_async("salt", top_k=2) == store.bm25_retrieval(
        "salt", top_k=2
    )
    found = await store.hybrid_retrieval_async("salt", query, top_k=2)
    assert found == store.hybrid_retrieval("salt", query, top_k=2)
    found = await store.embedding_retrieval_async(query, filters=ODD)
    assert found == store.embedding_retrieval(query, filters=ODD)


def test_searches_beside_a_writer():
    store = LlmdsDocumentStore()
    store.write_documents(documents()[:1])
    errors = []

    def search():
        try:
            for _ in range(60):
                for document in store.filter_documents(ODD):
                    assert document.meta["half"] == "b"
                store.bm25_retrieval("salt", ODD)
                store.embedding_retrieval([1.0] * 8)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    for document in documents()[1:]:
        store.write_documents([document])
    for thread in threads:
        thread.join()
    assert errors == [] and store.count_documents() == 40


def test_the_extra_is_named_where_it_is_missing():
    code = "import sys; sys.modules['haystack'] = None\nimport llmds_nb.integrations.haystack"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert "needs haystack-ai: pip install 'llmds_nb[haystack]'" in result.stderr


def test_documents_without_embeddings_are_no_news(caplog):
    store = LlmdsDocumentStore()
    store.write_documents([Document(content="salt"), Document(content="x", embedding=[1.0, 0.0])])
    store.write_documents([Document(content="water")])
    assert caplog.records == []
