"""`/documents` and `/save`: what was answered is what the pipeline and its file hold."""

import asyncio
import errno
import gc
import os
import threading
import weakref
from urllib.parse import quote

import pytest

from llmds_nb import LsaEncoder, RetrievalPipeline
from llmds_nb.integrations.serve import ChangedFileError, Settings, create_app
from llmds_nb.integrations.serve.lifecycle import finish
from llmds_nb.integrations.serve.writing import Writer

from .samples import METADATA, TEXTS, small


def document(i, **changed):
    return {"id": f"n{i}", "text": f"new text {i}", "vector": [i, 1], **changed}


async def test_documents_are_added_replaced_read_and_removed(calling):
    pipeline = small()
    async with calling(create_app(pipeline)) as client:
        given = [document(1, metadata={"a": [1, None]}), document(2, id="d0", metadata=None)]
        answer = await client.post("/documents", json={"documents": given})
        assert answer.json() == {"ids": ["n1", "d0"], "documents": 6, "saved": True}
        found = await client.get("/documents", params={"id": ["d0", "n1", "d0"]})
        texts = [one["text"] for one in found.json()["documents"]]
        assert texts == ["new text 2", "new text 1", "new text 2"]
        one = await client.get("/documents/n1")
        assert one.json() == {"id": "n1", "text": "new text 1", "metadata": {"a": [1, None]}}
        hits = (await client.post("/search", json={"query": "new text"})).json()["hits"]
        assert {hit["id"] for hit in hits} == {"n1", "d0"}
        answer = await client.request("DELETE", "/documents", json={"ids": ["n1", "d1"]})
        assert answer.json()["removed"] == 2
        answer = await client.request("DELETE", "/documents", json={"where": {"year": 2022}})
        assert answer.json() == {"removed": 1, "documents": 3, "saved": True}
        assert (await client.delete("/documents/d0")).json()["removed"] == 1
        assert (await client.get("/documents/d0")).status_code == 404
    assert pipeline.ids().tolist() == ["d3", "d4"]
    pipeline.check()


async def test_ids_are_given_by_the_pipeline_if_by_nobody(calling):
    pipeline = RetrievalPipeline(encoder=LsaEncoder(dim=2))
    async with calling(create_app(pipeline)) as client:
        given = [
            {"text": text, "metadata": about} for text, about in zip(TEXTS, METADATA, strict=True)
        ]
        answer = await client.post("/documents", json={"documents": given})
        assert answer.json()["ids"] == [0, 1, 2, 3, 4]
        assert (await client.get("/documents/3")).json()["text"] == TEXTS[3]
        for wrong in ("x", "-1", "3.0", "9" * 30, "\u0663", "7"):
            answer = await client.get(f"/documents/{wrong}")
            assert answer.status_code == 404, wrong
            assert answer.json()["error"]["code"] == "unknown_id"
        answer = await client.post("/documents", json={"documents": []})
        assert answer.json() == {"ids": [], "documents": 5, "saved": True}


@pytest.mark.parametrize("name", ["a/b.md#0", "a b", "\u00e9\u4e2d", "100%", "?id=1", ".."])
async def test_any_id_can_be_asked_for(calling, name):
    pipeline = small()
    async with calling(create_app(pipeline)) as client:
        await client.post("/documents", json={"documents": [document(1, id=name)]})
        answer = await client.get("/documents", params={"id": name})
        assert answer.json()["documents"][0]["id"] == name
        if name != "..":
            assert (await client.get("/documents/" + quote(name, safe=""))).json()["id"] == name


async def test_lone_surrogates_come_back_as_they_were(calling):
    async with calling(create_app(small())) as client:
        body = rb'{"documents": [{"id": "\ud800", "text": "odd \udfff", "vector": [1, 2]}]}'
        headers = {"Content-Type": "application/json"}
        answer = await client.post("/documents", content=body, headers=headers)
        assert answer.status_code == 200 and answer.json()["ids"] == ["\ud800"]
        hits = (await client.post("/search", json={"query": "odd"})).json()["hits"]
        assert hits[0]["id"] == "\ud800" and hits[0]["text"] == "odd \udfff"


BAD = [
    ({"documents": [{}]}, 400, "documents[0].text"),
    ({"documents": [document(1), {"text": "x"}]}, 400, "documents[1].id"),
    ({"documents": [document(1), document(2, vector=None)]}, 400, "documents[1].vector"),
    ({"documents": [document(1), document(1)]}, 400, "documents"),
    ({"documents": [document(1, id=7)]}, 400, "documents"),
    ({"documents": [document(1, id="")]}, 400, "documents[0].id"),
    ({"documents": [document(1, id=True)]}, 400, "documents[0].id"),
    ({"documents": [document(1, text=3)]}, 400, "documents[0].text"),
    ({"documents": [document(1, metadata=[])]}, 400, "documents[0].metadata"),
    ({"documents": [document(1, vector=[1, 2, 3])]}, 400, "documents"),
    ({"documents": [document(1), document(2, vector=[1])]}, 400, "documents"),
    ({"documents": [{"id": "x", "text": "y"}]}, 400, "documents"),
    ({"documents": [document(1, title="x")]}, 400, "documents[0].title"),
    ({"documents": [3]}, 400, "documents[0]"),
    ({"documents": {}}, 400, "documents"),
    ({}, 400, "documents"),
    ({"documents": [document(i) for i in range(4)]}, 400, "documents"),
]


async def test_refused_documents_change_nothing(calling):
    pipeline = small()
    version = pipeline.stats().version
    async with calling(create_app(pipeline, settings=Settings(max_documents=3))) as client:
        for body, status, param in BAD:
            answer = await client.post("/documents", json=body)
            assert answer.status_code == status, (body, answer.text)
            assert answer.json()["error"]["param"] == param, (body, answer.text)
    assert pipeline.stats().version == version


async def test_removing_an_unknown_id_removes_nothing(calling):
    pipeline = small()
    async with calling(create_app(pipeline)) as client:
        for body, status in (
            ({"ids": ["d0", "nobody"]}, 404), ({"ids": [0]}, 400), ({}, 400), ({"where": {}}, 200),
            ({"ids": ["d0"], "where": {}}, 400), ({"ids": ["d0", "d0"]}, 400),
        ):  # fmt: skip
            if status == 200:
                continue
            answer = await client.request("DELETE", "/documents", json=body)
            assert answer.status_code == status, (body, answer.text)
            if status == 404:
                assert "nobody" in answer.json()["error"]["message"]
        assert (await client.delete("/documents/nobody")).status_code == 404
        for url in ("/documents", "/documents?limit=3", "/documents?id=nobody"):
            assert (await client.get(url)).status_code in (400, 404)
    assert len(pipeline) == 5


async def test_a_read_only_server_refuses_to_write(calling, tmp_path):
    pipeline = small()
    app = create_app(pipeline, path=tmp_path / "kb", settings=Settings(read_only=True))
    async with calling(app) as client:
        answers = [
            await client.post("/documents", json={"documents": [document(1)]}),
            await client.request("DELETE", "/documents", json={"ids": ["d0"]}),
            await client.delete("/documents/d0"),
            await client.post("/save"),
        ]
        assert [answer.status_code for answer in answers] == [403] * 4
        assert (await client.get("/documents/d0")).status_code == 200
    assert len(pipeline) == 5 and not list(tmp_path.iterdir())


async def test_save_writes_the_file_and_so_does_the_end(calling, tmp_path):
    path = tmp_path / "kb.llmds"
    pipeline = small()
    pipeline.save(path)
    async with calling(create_app(pipeline, path=path)) as client:
        answer = await client.post("/documents", json={"documents": [document(1)]})
        assert answer.json()["saved"] is False and len(RetrievalPipeline.load(path)) == 5
        answer = await client.post("/save")
        assert answer.json() == {"bytes": path.stat().st_size, "documents": 6, "saved": True}
        assert RetrievalPipeline.load(path).get("n1") == ["new text 1"]
        before = path.stat().st_mtime_ns
        assert (await client.post("/save", json={})).status_code == 200
        assert path.stat().st_mtime_ns == before  # nothing had changed
        await client.post("/documents", json={"documents": [document(2)]})
    assert len(RetrievalPipeline.load(path)) == 7


async def test_a_file_that_another_process_changed_is_kept(calling, tmp_path):
    path = tmp_path / "kb.llmds"
    pipeline = small()
    pipeline.save(path)
    app = create_app(pipeline, path=path)
    state = app.state.server
    with pytest.raises(ChangedFileError):
        async with calling(app) as client:
            small(named=False).save(path)  # the other one
            await client.post("/documents", json={"documents": [document(1)]})
            answer = await client.post("/save")
            assert answer.status_code == 409 and str(tmp_path) not in answer.text
            assert RetrievalPipeline.load(path).ids().tolist() == [0, 1, 2, 3, 4]
            answer = await client.post("/save", json={"overwrite": True})
            assert answer.status_code == 200 and len(RetrievalPipeline.load(path)) == 6
            path.unlink()  # one that has gone is written again
            assert (await client.post("/save")).status_code == 200 and path.exists()
            small().save(path)
            await client.post("/documents", json={"documents": [document(2)]})
    assert len(RetrievalPipeline.load(path)) == 5 and state.finished
    await finish(state)  # a second time: nothing


@pytest.mark.parametrize(("number", "status"), [(errno.ENOSPC, 507), (errno.EACCES, 500)])
async def test_a_disk_that_refuses(calling, tmp_path, monkeypatch, number, status):
    path = tmp_path / "kb.llmds"
    pipeline = small()
    pipeline.save(path)
    async with calling(create_app(pipeline, path=path)) as client:
        await client.post("/documents", json={"documents": [document(1)]})
        with monkeypatch.context() as patch:

            def refuse(handle):
                raise OSError(number, os.strerror(number))

            patch.setattr(os, "fsync", refuse)
            answer = await client.post("/save")
        assert answer.status_code == status and str(tmp_path) not in answer.text
        assert answer.json()["error"]["code"] == "save_failed"
        assert len(RetrievalPipeline.load(path)) == 5 and os.listdir(tmp_path) == [path.name]
        assert (await client.post("/save")).json()["saved"] is True


async def test_searches_go_on_while_a_write_runs(calling, monkeypatch):
    pipeline = small()
    begun, go, add = threading.Event(), threading.Event(), pipeline.add

    def slow(*args, **options):
        begun.set()
        assert go.wait(30)
        return add(*args, **options)

    monkeypatch.setattr(pipeline, "add", slow)
    settings = Settings(max_writes=1)
    async with calling(create_app(pipeline, settings=settings)) as client:
        body = {"documents": [document(1)]}
        writing = asyncio.ensure_future(client.post("/documents", json=body))
        await asyncio.to_thread(begun.wait)
        answer = await client.post("/search", json={"query": "red"})
        assert answer.status_code == 200 and len(answer.json()["hits"]) == 2
        assert (await client.get("/documents/d0")).status_code == 200
        answer = await client.post("/documents", json=body)
        assert answer.status_code == 503 and answer.headers["retry-after"]
        go.set()
        assert (await writing).status_code == 200


async def test_writes_whose_clients_left_hold_no_documents():
    class Documents:
        pass

    writer, go, begun = Writer(None, None, Settings()), threading.Event(), threading.Event()

    def hold():
        begun.set()
        return go.wait(60)

    first = asyncio.ensure_future(writer.run(hold))
    await asyncio.to_thread(begun.wait, 60)
    documents = Documents()
    left = weakref.ref(documents)
    second = asyncio.ensure_future(writer.run(id, documents))
    del documents
    await asyncio.sleep(0)
    assert left() is not None
    second.cancel()
    await asyncio.wait([second])
    del second
    gc.collect()
    assert left() is None  # while the write before it goes on
    go.set()
    assert await first
    writer.close()
