"""The page's files and its two sources of data, without a browser."""

import re

import numpy as np
import pytest

from llmds_nb import RetrievalPipeline

from .conftest import httpx  # noqa: F401  (skips without the extra)

jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema")

from llmds_nb.integrations.serve import Settings, create_app  # noqa: E402
from llmds_nb.integrations.serve.page import files  # noqa: E402
from llmds_nb.integrations.serve.state import ServerState  # noqa: E402

TEXTS = ["red fox", "blue sky", "red sky at night", "grey fox", "the red red sea"]


def letters(texts):
    return np.array([[t.count("r") + 1, t.count("s") + 0.5] for t in texts], np.float32)


def small(**options):
    pipeline = RetrievalPipeline(**options)
    vectors = None if "encoder" in options else np.eye(5, 2) + 0.5
    described = [{"n": i} for i in range(5)]
    pipeline.add([f"d{i}" for i in range(5)], TEXTS, vectors, metadata=described)
    return pipeline


def as_json(whys):
    return [{**why._asdict(), "terms": [term._asdict() for term in why.terms]} for why in whys]


async def test_the_page_is_all_there_and_asks_nobody_else(calling):
    app = create_app(small(encoder=letters), settings=Settings(api_keys=("k",), max_k=77))
    async with calling(app) as client:
        answer = await client.get("/")
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
        text = answer.text
        assert "{{" not in text and 'data-key="yes"' in text and 'max="77"' in text
        assert not re.search(r"\son\w+=|\sstyle=|<style|<script>|javascript:", text)
        used = set(re.findall(r'(?:src|href)="([^"#]+)"', text))
        assert {"page.css", "page.js", "favicon.svg"} <= used
        everything = text
        for name in used | {"favicon.ico"}:
            one = await client.get(f"/{name}", headers={"X-API-Key": "k"})
            assert one.status_code == 200, name
            if name in ("page.css", "page.js", "favicon.svg"):
                assert (await client.get(f"/{name}")).content == one.content
                assert one.headers["content-security-policy"]
                everything += one.text.replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//\w|@import|url\(", everything.replace("// ", ""))
        assert (await client.head("/")).status_code == 200
        assert (await client.post("/")).status_code == 405


async def test_the_policy_lets_nothing_in(calling):
    async with calling(create_app(small(encoder=letters))) as client:
        headers = (await client.get("/")).headers
        rules = dict(
            rule.strip().split(" ", 1) for rule in headers["content-security-policy"].split(";")
        )
        assert rules["default-src"] == "'none'" and rules["frame-ancestors"] == "'none'"
        assert "unsafe" not in headers["content-security-policy"]
        assert all(value in ("'self'", "'none'", "'script'") for value in rules.values())
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


def test_the_page_of_a_server_without_documents_says_so():
    state = ServerState(None, engine=object(), settings=Settings())
    values = files._values(state)
    assert values["documents"] == "no" and values["key"] == "no"
    state.close()


async def test_data_need_the_key(calling):
    app = create_app(small(encoder=letters), settings=Settings(api_keys=("k",)))
    async with calling(app) as client:
        assert (await client.get("/stats")).status_code == 401
        assert (await client.post("/explain", json={"query": "fox"})).status_code == 401
        assert (await client.get("/stats", headers={"X-API-Key": "k"})).status_code == 200


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"k": 3},
        {"where": {"n": {"$gte": 2}}},
        {"fusion": "rrf", "weight": 0.25},
        {"vector": [0.5, 2.0], "k": 2},
        {"ids": ["d4", "d0", "d4"]},
        {"ids": []},
    ],
)
async def test_explanations_are_those_of_the_pipeline(calling, chosen):
    pipeline = small(encoder=letters)
    app = create_app(pipeline)
    options = {name: value for name, value in chosen.items() if name != "ids"}
    if "vector" in options:
        options["vectors"] = options.pop("vector")
    async with calling(app) as client:
        answer = await client.post("/explain", json={"query": "red fox red", **chosen})
        assert answer.status_code == 200
        searched = {name: value for name, value in chosen.items() if name != "ids"}
        hits = (await client.post("/search", json={"query": "red fox red", **searched})).json()
        described = (await client.get("/openapi.json")).json()
    ids = chosen.get("ids", pipeline.search("red fox red", **{"k": 10, **options}).ids)
    body = answer.json()
    assert body["explanations"] == as_json(pipeline.explain("red fox red", ids, **options))
    assert body["metric"] == "cosine" and body["fusion"] == chosen.get("fusion", "convex")
    if "ids" not in chosen:
        pairs = [(why["id"], why["score"]) for why in body["explanations"]]
        assert pairs == [(hit["id"], hit["score"]) for hit in hits["hits"]]
    responses = described["paths"]["/explain"]["post"]["responses"]
    jsonschema.validate(body, responses["200"]["content"]["application/json"]["schema"])


async def test_without_an_encoder_words_alone_are_explained(calling):
    pipeline = small(dim=2)
    async with calling(create_app(pipeline)) as client:
        hits = (await client.post("/search", json={"query": "red"})).json()
        whys = (await client.post("/explain", json={"query": "red"})).json()["explanations"]
    assert hits["by_words"] and len(whys) == 3
    assert [why["score"] for why in whys] == [hit["score"] for hit in hits["hits"]]
    assert all(why["weight"] == 0 and why["dense_rank"] is None for why in whys)


async def test_an_empty_pipeline_has_nothing_to_explain(calling):
    async with calling(create_app(RetrievalPipeline(encoder=letters))) as client:
        answer = await client.post("/explain", json={"query": "red"})
        assert answer.json() == {"fusion": "convex", "metric": None, "explanations": []}
        assert (await client.get("/stats")).json()["documents"] == 0


@pytest.mark.parametrize(
    ("body", "status", "param", "message"),
    [
        ({}, 400, "query", "missing"),
        ({"query": 3}, 400, "query", "string"),
        ({"query": "fox", "ids": ["d9"]}, 404, "ids", "d9"),
        ({"query": "fox", "ids": [1.5]}, 400, "ids[0]", "id"),
        ({"query": "fox", "ids": [1]}, 400, None, "str"),
        ({"query": "fox", "k": 0}, 400, "k", "k must be"),
        ({"query": "fox", "where": {"$near": 1}}, 400, None, r"\$near"),
        ({"query": "fox", "where": [1]}, 400, "where", "object"),
        ({"query": "fox", "vector": [1.0]}, 400, None, "vectors"),
        ({"query": "fox", "fusion": "best"}, 400, "fusion", "best"),
        ({"query": "fox", "weight": 2}, 400, "weight", "weight"),
        ({"query": "fox", "q": 2}, 400, "q", "unknown"),
        ([], 400, None, "object"),
    ],
)
async def test_bad_requests_are_told_what_is_wrong(calling, body, status, param, message):
    async with calling(create_app(small(encoder=letters))) as client:
        answer = await client.post("/explain", json=body)
    error = answer.json()["error"]
    assert answer.status_code == status and error["param"] == param
    assert re.search(message, error["message"])


class Losing(RetrievalPipeline):
    """Its best hit is removed right after each search, `times` times."""

    times = 0

    def search(self, *arguments, **options):
        hits = super().search(*arguments, **options)
        if self.times:
            self.times -= 1
            self.remove(hits.ids[0])
        return hits


@pytest.mark.parametrize(("times", "status"), [(1, 200), (3, 200), (4, 404)])
async def test_documents_removed_after_the_search(calling, times, status):
    pipeline = Losing(encoder=letters)
    pipeline.add(list(range(9)), ["red fox"] * 9)
    pipeline.times = times
    async with calling(create_app(pipeline)) as client:
        answer = await client.post("/explain", json={"query": "red"})
    assert answer.status_code == status
    if status == 200:
        assert [why["id"] for why in answer.json()["explanations"]] == list(range(times, 9))


async def test_figures_only_grow_by_what_was_asked(calling):
    pipeline = small(encoder=letters)
    async with calling(create_app(pipeline)) as client:
        before = (await client.get("/stats")).json()
        assert before["search_seconds"] == {"bounds": [], "counts": []}
        for _ in range(7):
            await client.post("/search", json={"query": "fox"})
        await client.post("/explain", json={"query": "fox"})
        after = (await client.get("/stats")).json()
        described = (await client.get("/openapi.json")).json()
    bounds, counts = after["search_seconds"].values()
    assert bounds[-1] is None and bounds[:-1] == sorted(bounds[:-1])
    assert counts == sorted(counts) and counts[-1] == 7
    assert after["documents"] == after["vectors"] == 5 and after["requests_under_way"] == 0
    assert after["cache_hits"] + after["cache_misses"] >= 7
    assert after["started"] == before["started"]
    responses = described["paths"]["/stats"]["get"]["responses"]
    jsonschema.validate(after, responses["200"]["content"]["application/json"]["schema"])
