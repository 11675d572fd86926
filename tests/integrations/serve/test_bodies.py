"""Bodies of requests: whatever comes, a clear status, and never one of 5xx."""

import asyncio
import json
import math

from hypothesis import given, strategies as st

from llmds_nb.integrations.serve import Settings, create_app

from .conftest import httpx
from .samples import JSON, json_values, small

CASES = [
    (b"", 400), (b"{", 400), (b"nope", 400), (b'{"query": "x"} x', 400), (b"\xff", 400),
    (b'{"query": "\xe9"}', 400), ('{"query": "\ufeffx"}'.encode(), 200),
    ('\ufeff{"query": "x"}'.encode(), 200), ('{"query": "x"}'.encode("utf-16"), 400),
    (b'{"query": "x", "min_score": NaN}', 400), (b'{"query": "x", "min_score": Infinity}', 400),
    (b'{"query": "x", "min_score": 1e999}', 400),
    (b'{"query": "x", "k": ' + b"9" * 5000 + b"}", 400), (b"[" * 200_000, 400),
    (b"[" * 101 + b"]" * 101, 400), (b'{"a":' * 5000 + b"1" + b"}" * 5000, 400),
    (b'{"query": "x", "where": ' + b'{"$not":' * 60 + b'{"a": 1}' + b"}" * 60 + b"}", 200),
    (b'{"query": "\\u0000\\ud800"}', 200), (b'{"query": "x", "query": "y"}', 400),
    (b'{"query": "' + b"[" * 500 + b'"}', 200), (b"null", 400), (b"1", 400), (b'"x"', 400),
]  # fmt: skip


async def test_what_is_no_request_gets_400(calling):
    async with calling(create_app(small())) as client:
        for content, status in CASES:
            answer = await client.post("/search", content=content, headers=JSON)
            assert answer.status_code == status, (content[:50], answer.text)
            if status == 400:
                assert len(answer.text) < 500 and answer.json()["error"]["message"]


async def test_a_field_that_is_there_twice_is_named(calling):
    pipeline = small()
    document = '{"id": "new", "text": "x", "vector": [1, 2], "metadata": {"a": 1, "b": 2, "a": 1}}'
    many = ", ".join(f'"f{i}": 1' for i in range(100_000))  # named in time linear in their number
    async with calling(create_app(pipeline)) as client:
        for path, content, name in (
            ("/search", '{"query": "x", "k": 1, "k": 2}', "k"),
            ("/search", '{"query": "x", "where": {"$and": [{"a": 1, "a": 2}]}}', "a"),
            ("/documents", f'{{"documents": [{document}]}}', "a"),
            ("/search", f'{{"query": "x", {many}, "f99999": null}}', "f99999"),
            ("/search", f'{{"{"x" * 1000}": 1, "{"x" * 1000}": 2}}', "x" * 60),
        ):
            answer = await client.post(path, content=content, headers=JSON)
            error = answer.json()["error"]
            got = answer.status_code, error["code"], error["param"]
            assert got == (400, "duplicate_field", name) and name[:20] in error["message"]
            assert len(answer.text) < 500
        assert len(pipeline) == 5
        twice = '{"id": "new", "text": "a", "vector": [1, 2], "metadata": {"n": {"a": 1}, "a": 1}}'
        content = f'{{"documents": [{twice}]}}'  # of one name, in different objects
        answer = await client.post("/documents", content=content, headers=JSON)
        assert answer.status_code in (200, 400) and "twice" not in answer.text


async def test_other_content_types_are_refused(calling):
    content = b'{"query": "x"}'
    async with calling(create_app(small())) as client:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "", "application/jsonp"):
            answer = await client.post("/search", content=content, headers={"Content-Type": kind})
            assert answer.status_code == 415, kind
        for kind in ("application/json", "Application/JSON; charset=utf-8"):
            answer = await client.post("/search", content=content, headers={"Content-Type": kind})
            assert answer.status_code == 200, kind
        headers = {**JSON, "Content-Encoding": "gzip"}
        answer = await client.post("/search", content=content, headers=headers)
        assert answer.status_code == 415


async def test_methods_and_heads(calling):
    async with calling(create_app(small())) as client:
        for path, allowed in (
            ("/search", {"POST"}), ("/documents", {"GET", "HEAD", "POST", "DELETE"}),
            ("/documents/d0", {"GET", "HEAD", "DELETE"}), ("/health", {"GET", "HEAD"}),
            ("/metrics", {"GET", "HEAD"}), ("/openapi.json", {"GET", "HEAD"}),
        ):  # fmt: skip
            for method in ("PUT", "PATCH", "OPTIONS", "GET" if path == "/search" else "TRACE"):
                answer = await client.request(method, path)
                assert answer.status_code == 405, (method, path)
                assert set(answer.headers["allow"].split(", ")) == allowed
                assert "access-control-allow-origin" not in answer.headers
        assert (await client.head("/documents/d0")).status_code == 200
        for path in ("/search/", "/", "/nowhere", "/documents%00", "/..//etc/passwd"):
            answer = await client.post(path, json={})
            assert answer.status_code in (404, 405), path
            assert answer.json()["error"]["type"]


async def test_origins_are_allowed_where_asked_for(calling):
    headers = {"Origin": "http://a.test", "Access-Control-Request-Method": "POST"}
    settings = Settings(cors_origins=("http://a.test",), api_keys=("k",))
    async with calling(create_app(small(), settings=settings)) as client:
        answer = await client.options("/search", headers=headers)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "http://a.test"
        other = await client.options("/search", headers={**headers, "Origin": "http://b.test"})
        assert other.status_code == 400
        plain = await client.post("/search", json={"query": "x"}, headers=headers)
        assert plain.status_code == 401


async def test_hosts_are_checked_where_asked_for(calling):
    settings = Settings(allowed_hosts=("localhost", "[::1]"))
    async with calling(create_app(small(), settings=settings)) as client:
        for host, status in (
            ("localhost", 200), ("LOCALHOST:80", 200), ("[::1]:8000", 200), ("evil.test", 421),
            ("localhost.evil.test", 421), ("", 421),
        ):  # fmt: skip
            answer = await client.get("/metrics", headers={"Host": host})
            assert answer.status_code == status, host


async def test_a_body_beyond_the_limit_gets_413(calling):
    settings = Settings(max_body_bytes=1000)
    read = 0

    async def chunks(n):
        nonlocal read
        for _ in range(n):
            read += 1
            yield b" " * 500

    async with calling(create_app(small(), settings=settings)) as client:
        content = json.dumps({"query": "x"}).encode().ljust(1000)
        answer = await client.post("/search", content=content, headers=JSON)
        assert answer.status_code == 200
        answer = await client.post("/search", content=content + b" ", headers=JSON)
        assert answer.status_code == 413 and answer.headers["connection"] == "close"
        answer = await client.post("/search", content=chunks(100), headers=JSON)
        assert answer.status_code == 413 and read == 100  # read on, but not kept
        huge = {**JSON, "Content-Length": str(10**12)}
        answer = await client.post("/search", content=chunks(3), headers=huge)
        assert answer.status_code == 413 and read == 100  # not even read


async def test_a_body_that_does_not_come_gets_408(calling):
    async def never():
        yield b"{"
        await asyncio.Event().wait()

    settings = Settings(body_timeout_s=0.05)
    async with calling(create_app(small(), settings=settings)) as client:
        answer = await client.post("/search", content=never(), headers=JSON)
        assert answer.status_code == 408 and answer.json()["error"]["code"] == "slow_body"


NAMES = [
    "query", "queries", "k", "where", "filter", "min_score", "documents", "vector", "vectors",
    "fusion", "weight", "diversity", "group_by", "ids", "id", "text", "metadata", "overwrite",
]  # fmt: skip
FIELDS = st.dictionaries(st.sampled_from(NAMES), json_values(), max_size=5)
LIKELY = st.fixed_dictionaries(
    {"query": st.text(max_size=5)},
    optional={
        "k": st.integers(-1, 1002) | st.booleans(),
        "where": st.dictionaries(
            st.sampled_from(["year", "$and", "$or", "$not"]),
            json_values()
            | st.dictionaries(st.sampled_from(["$gt", "$in", "$eq", "$not"]), json_values()),
            max_size=3,
        ),
        "filter": st.lists(st.sampled_from(["d0", "d1", "x", 3, -1]), max_size=3),
        "vector": st.lists(st.floats(width=32), min_size=1, max_size=3),
        "weight": st.floats(0, 1), "diversity": st.floats(0, 1),
        "min_score": st.floats(allow_nan=False),
        "fusion": st.sampled_from(["convex", "rrf", "minmax", "dbsf"]),
        "group_by": st.sampled_from(["year", "lang", "", "\ud800"]),
    },
)  # fmt: skip
ADDED = st.fixed_dictionaries({
    "documents": st.lists(
        st.fixed_dictionaries(
            {"id": st.sampled_from(["a", "b", "d0", 1]), "text": st.text(max_size=5)},
            optional={"metadata": st.dictionaries(st.text(max_size=3), json_values(), max_size=3),
                      "vector": st.lists(st.floats(width=32), min_size=2, max_size=2)},
        ),
        max_size=3,
    )
})  # fmt: skip
BODIES = json_values() | FIELDS | LIKELY | ADDED
TARGETS = st.sampled_from(
    [("POST", "/search"), ("POST", "/documents"), ("DELETE", "/documents"), ("POST", "/save")]
)


def is_json(value):
    if isinstance(value, dict):
        return all(map(is_json, value.values()))
    if isinstance(value, list):
        return all(map(is_json, value))
    return not isinstance(value, float) or math.isfinite(value)


@given(st.lists(st.tuples(TARGETS, BODIES), min_size=1, max_size=20))
def test_no_body_gets_an_error_of_the_server(requests):
    pipeline = small()
    app = create_app(pipeline)

    async def send():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for (method, path), body in requests:
                content = json.dumps(body).encode()
                answer = await client.request(method, path, content=content, headers=JSON)
                assert answer.status_code < 500, (method, path, body, answer.text)
                answer.json()
                if not is_json(body):
                    assert answer.status_code >= 400
        app.state.server.close()

    asyncio.run(send())
    pipeline.check()
