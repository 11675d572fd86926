"""`POST /search` answers as the pipeline does, alone and joined with others."""

import asyncio
import threading

import numpy as np
import pytest

from llmds_nb import LsaEncoder, RetrievalPipeline
from llmds_nb.integrations.serve import Settings, create_app

from .samples import METADATA, TEXTS, small


def hits_of(pipeline, query, **options):
    documents = pipeline.documents(pipeline.search(query, **options))
    return [
        {"id": d.id, "score": d.score, "text": d.text, "metadata": d.metadata} for d in documents
    ]


ONE = [
    {"k": 2},
    {"k": 9, "where": {"year": {"$gte": 2021}}},
    {"filter": ["d0", "d2"]},
    {"filter": []},
    {"filter": ["d0", "d1", "d2"], "where": {"lang": {"$exists": True}}},
    {"min_score": 0.5},
    {"fusion": "rrf", "weight": 0.25},
    {"fusion": "dbsf"},
    {"diversity": 0.4},
    {"group_by": "lang", "k": 4},
    {"exact": True},
]


@pytest.mark.parametrize("options", ONE, ids=str)
async def test_one_query_is_answered_as_by_the_pipeline(calling, options):
    pipeline = small()
    vector = [1.0, 0.25]
    async with calling(create_app(pipeline)) as client:
        body = {"query": "red sky", "vector": vector, **options}
        answer = await client.post("/search", json=body)
    assert answer.status_code == 200, answer.text
    expected = hits_of(pipeline, "red sky", vectors=vector, **options)
    assert answer.json() == {"hits": expected, "by_words": False}


@pytest.mark.parametrize("options", [{}, {"k": 3, "weight": 0.1}], ids=str)
async def test_many_queries_are_answered_one_by_one(calling, options):
    pipeline, queries = small(named=False), ["red", "sky at night", "shared pages"]
    vectors = [[1, 0], [0, 1], [0.5, 0.5]]
    where = [None, {"year": {"$gt": 2020}}, None]
    async with calling(create_app(pipeline)) as client:
        body = {"queries": queries, "vectors": vectors, "where": where, **options}
        answer = (await client.post("/search", json=body)).json()
    for i, result in enumerate(answer["results"]):
        of_one = {} if where[i] is None else {"where": where[i]}
        assert result["hits"] == hits_of(
            pipeline, queries[i], vectors=vectors[i], **of_one, **options
        )


async def test_ids_alone(calling):
    pipeline = small()
    async with calling(create_app(pipeline)) as client:
        body = {"query": "red sky", "vector": [1, 1], "documents": False, "k": 50}
        hits = (await client.post("/search", json=body)).json()["hits"]
    expected = hits_of(pipeline, "red sky", vectors=[1, 1], k=50)
    assert hits == [{"id": hit["id"], "score": hit["score"]} for hit in expected]
    assert len(hits) == 5


async def test_without_encoder_and_vector_words_alone_answer(calling):
    async with calling(create_app(small())) as client:
        answer = (await client.post("/search", json={"query": "night"})).json()
        assert answer["by_words"] and [hit["id"] for hit in answer["hits"]] == ["d2"]
        answer = (await client.post("/search", json={"queries": ["fox", "nothing"]})).json()
        assert [[hit["id"] for hit in one["hits"]] for one in answer["results"]] == [["d0"], []]


async def test_an_encoder_is_used(calling):
    pipeline = RetrievalPipeline(encoder=LsaEncoder(dim=2))
    pipeline.add(None, TEXTS, metadata=METADATA)
    async with calling(create_app(pipeline)) as client:
        answer = (await client.post("/search", json={"query": "pages"})).json()
    assert answer == {"hits": hits_of(pipeline, "pages"), "by_words": False}


async def test_a_pipeline_without_documents_answers(calling):
    async with calling(create_app(RetrievalPipeline(encoder=LsaEncoder(dim=2)))) as client:
        for body in ({"query": "x"}, {"queries": ["x", "y"]}, {"queries": []}, {"query": ""}):
            answer = await client.post("/search", json=body)
            assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("path", ["/search", "/explain"])
async def test_a_weight_that_no_vector_can_have_is_refused(calling, path):
    async with calling(create_app(small())) as client:

        async def asked(**options):
            return await client.post(path, json={"query": "red sky", **options})

        answer = await asked(weight=0.5)
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert error["param"] == "weight" and "no encoder" in error["message"]
        assert (await asked(weight=0)).json() == (await asked()).json()
        assert (await asked(weight=0.5, vector=[1, 0])).status_code == 200


LONG = "x" * 20_001
BAD = [
    ({}, "query"),
    ({"query": "x", "queries": ["x"]}, "query"),
    ({"query": 1}, "query"),
    ({"query": ["x"]}, "query"),
    ({"query": LONG}, "query"),
    ({"queries": "x"}, "queries"),
    ({"queries": ["x", 3]}, "queries[1]"),
    ({"queries": ["x"] * 257}, "queries"),
    ({"query": "x", "k": True}, "k"),
    ({"query": "x", "k": 0}, "k"),
    ({"query": "x", "k": 1001}, "k"),
    ({"query": "x", "k": 2.0}, "k"),
    ({"query": "x", "k": 10**30}, "k"),
    ({"query": "x", "K": 3}, "K"),
    ({"query": "x", "where": []}, "where"),
    ({"queries": ["x"], "where": [{}, {}]}, "where"),
    ({"queries": ["x"], "where": [3]}, "where[0]"),
    ({"query": "x", "where": {"year": {"$near": 1}}}, None),
    ({"query": "x", "filter": [1]}, None),
    ({"query": "x", "filter": ["d0", -1]}, "filter[1]"),
    ({"query": "x", "filter": [True]}, "filter[0]"),
    ({"query": "x", "filter": [""]}, "filter[0]"),
    ({"query": "x", "vector": []}, "vector"),
    ({"query": "x", "vector": [1, "2"]}, "vector[1]"),
    ({"query": "x", "vector": [1, True]}, "vector[1]"),
    ({"query": "x", "vector": [1, 1e39]}, "vector[1]"),
    ({"query": "x", "vector": [1, 2, 3]}, None),
    ({"query": "x", "vectors": [[1, 2]]}, "vectors"),
    ({"queries": ["x", "y"], "vectors": [[1, 2]]}, "vectors"),
    ({"queries": ["x", "y"], "vectors": [[1, 2], [1]]}, None),
    ({"query": "x", "fusion": "sum"}, "fusion"),
    ({"query": "x", "weight": 1.5}, "weight"),
    ({"query": "x", "weight": False}, "weight"),
    ({"query": "x", "diversity": -1}, "diversity"),
    ({"query": "x", "group_by": 3}, "group_by"),
    ({"query": "x", "documents": 1}, "documents"),
    ({"query": "x", "exact": "yes"}, "exact"),
    ({"query": "x", "min_score": "high"}, "min_score"),
    ([], None),
    ("x", None),
]


async def test_bad_fields_are_named(calling):
    async with calling(create_app(small())) as client:
        for body, param in BAD:
            answer = await client.post("/search", json=body)
            assert answer.status_code == 400, (body, answer.text)
            error = answer.json()["error"]
            assert error["param"] == param, (body, error)
            assert len(error["message"]) < 400


class Held:
    """A pipeline whose searches wait until `go` is set, and that counts its calls."""

    def __init__(self, monkeypatch, pipeline):
        self.calls, self.go, self.begun = [], threading.Event(), threading.Event()
        search = pipeline.search

        def held(queries, *args, **options):
            if isinstance(queries, list) and not queries:
                return search(queries, *args, **options)
            self.calls.append(queries)
            self.begun.set()
            assert self.go.wait(30)
            return search(queries, *args, **options)

        monkeypatch.setattr(pipeline, "search", held)


async def test_searches_that_wait_are_joined_by_their_options(calling, monkeypatch):
    pipeline = small()
    expected = {k: hits_of(pipeline, "red sky", vectors=[1, 0], k=k) for k in (2, 3)}
    held = Held(monkeypatch, pipeline)
    async with calling(create_app(pipeline)) as client:

        def ask(**options):
            body = {"query": "red sky", "vector": [1, 0], **options}
            return asyncio.ensure_future(client.post("/search", json=body))

        first = ask(k=2)
        await asyncio.to_thread(held.begun.wait)
        joined = [ask(k=k) for k in (2, 3) * 8] + [ask(k=2, vector=[1, 2, 3])]
        while len(state_of(client).batcher.scheduler) < len(joined):
            await asyncio.sleep(0)
        health = await client.get("/health")  # the loop is free while a search runs
        assert health.status_code == 200
        held.go.set()
        answers = await asyncio.gather(first, *joined)
    *right, wrong = answers
    for answer, k in zip(right, (2, *(2, 3) * 8), strict=True):
        assert answer.status_code == 200 and answer.json()["hits"] == expected[k]
    assert wrong.status_code == 400  # and harmed nobody else
    sizes = [len(call) if isinstance(call, list) else 1 for call in held.calls]
    assert sizes[:1] == [1] and 8 in sizes  # those of k = 3 in one call


def state_of(client):
    return client._transport.app.state.server


async def test_beyond_max_waiting_is_refused_at_once(calling, monkeypatch):
    pipeline = small()
    held = Held(monkeypatch, pipeline)
    async with calling(create_app(pipeline, settings=Settings(max_waiting=2))) as client:

        def ask():
            return asyncio.ensure_future(client.post("/search", json={"query": "red"}))

        first = ask()
        await asyncio.to_thread(held.begun.wait)
        waiting = [ask(), ask()]
        while len(state_of(client).batcher.scheduler) < 2:
            await asyncio.sleep(0)
        answer = await ask()
        assert answer.status_code == 503 and int(answer.headers["retry-after"]) >= 1
        held.go.set()
        done = await asyncio.gather(first, *waiting)
        assert [one.status_code for one in done] == [200] * 3
        assert (await ask()).status_code == 200


async def test_a_search_that_takes_too_long_gets_504_and_those_behind_it_leave(
    calling, monkeypatch
):
    pipeline = small()
    held = Held(monkeypatch, pipeline)
    settings = Settings(request_timeout_s=0.2)
    async with calling(create_app(pipeline, settings=settings)) as client:
        asked = [client.post("/search", json={"query": f"red {i}"}) for i in range(3)]
        answers = await asyncio.gather(*asked)
        assert [one.status_code for one in answers] == [504] * 3
        scheduler = state_of(client).batcher.scheduler
        assert len(scheduler) == 0
        held.go.set()
        while scheduler.n_running:
            await asyncio.sleep(0.001)
        assert (await client.post("/search", json={"query": "red"})).status_code == 200
    assert "red 0" in (held.calls[0], *held.calls[0])


async def test_an_error_of_the_encoder_is_logged_and_not_told(calling, caplog):
    def encoder(texts):
        if "secret" in texts:
            raise OSError("/home/someone/model is gone")
        return np.ones((len(texts), 2), np.float32)

    pipeline = RetrievalPipeline(encoder=encoder)
    pipeline.add(None, TEXTS)
    async with calling(create_app(pipeline)) as client:
        answer = await client.post("/search", json={"query": "secret"})
        assert answer.status_code == 500
        assert "/home" not in answer.text and "Traceback" not in answer.text
        request_id = answer.headers["x-request-id"]
        assert request_id in answer.json()["error"]["message"] and request_id in caplog.text
        assert "/home/someone" in caplog.text
        many = client.post("/search", json={"queries": ["red", "sky"]})
        assert (await many).status_code == 200
