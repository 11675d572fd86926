"""`/openapi.json` is valid, and what it says is so."""

import re

import jsonschema
import pytest

from llmds_nb.integrations.serve import Settings, create_app

from .samples import JSON, small

validate = pytest.importorskip("openapi_spec_validator").validate

LARGE = {"documents": [{"id": f"n{i}", "text": "x", "vector": [1, i]} for i in range(3)]}
ASKED = [
    ("POST", "/search", {"query": "red"}),
    ("POST", "/search", {"queries": ["red", "sky"], "documents": False, "k": 2}),
    ("POST", "/search", {"query": "red", "k": "x"}),
    ("POST", "/documents", LARGE),
    ("POST", "/documents", {"documents": []}),
    ("GET", "/documents?id=d0&id=d1", None),
    ("GET", "/documents?id=nobody", None),
    ("GET", "/documents", None),
    ("GET", "/documents/d0", None),
    ("DELETE", "/documents/nobody", None),
    ("DELETE", "/documents/n1", None),
    ("DELETE", "/documents", {"ids": ["n2"]}),
    ("DELETE", "/documents", {"ids": "n2"}),
    ("POST", "/save", {"overwrite": True}),
    ("POST", "/save", None),
    ("POST", "/save", {"overwrite": 1}),
    ("GET", "/health", None),
    ("GET", "/health/live", None),
    ("GET", "/openapi.json", None),
]


async def test_every_answer_is_as_described(calling, tmp_path):
    app = create_app(small(), path=tmp_path / "kb.llmds", settings=Settings(api_keys=("k",)))
    headers = {"X-API-Key": "k"}
    async with calling(app) as client:
        described = (await client.get("/openapi.json", headers=headers)).json()
        validate(described)
        paths = described["paths"]
        # Every route is described, with all its methods.
        for route in app.routes:
            own = paths[re.sub(r":\w+}", "}", route.path)]
            methods = {method.lower() for method in route.methods if method != "HEAD"}
            assert set(own) == methods, route.path
        for method, path, body in ASKED:
            for given in (headers, {}, {**headers, "Content-Type": "text/plain"}):
                more = {"content": b"x"} if "Content-Type" in given else {"json": body}
                answer = await client.request(method, path, headers=given, **more)
                name = re.sub(r"^/documents/.+", "/documents/{id}", path.partition("?")[0])
                responses = paths[name][method.lower()]["responses"]
                assert str(answer.status_code) in responses, (method, path, answer.text)
                one = responses[str(answer.status_code)]
                if "$ref" in one:
                    name = one["$ref"].removeprefix("#/components/responses/")
                    one = described["components"]["responses"][name]
                schema = one["content"]["application/json"]["schema"]
                jsonschema.validate(answer.json(), schema, jsonschema.Draft202012Validator)


async def test_what_the_schema_of_a_body_refuses_is_refused(calling):
    async with calling(create_app(small())) as client:
        described = (await client.get("/openapi.json")).json()
        assert "security" not in described
        content = described["paths"]["/search"]["post"]["requestBody"]["content"]
        checker = jsonschema.Draft202012Validator(content["application/json"]["schema"])
        for body in (
            {"query": "x", "k": 0}, {"query": "x", "queries": ["y"]}, {}, {"query": 1}, [],
            {"query": "x", "weight": 2}, {"query": "x", "other": 1}, {"query": "x", "where": 3},
            {"query": "x", "filter": [-1]}, {"queries": [1]}, {"query": "x", "fusion": "no"},
        ):  # fmt: skip
            assert not checker.is_valid(body), body
            assert (await client.post("/search", json=body)).status_code == 400, body
        for body in (
            {"query": "x", "k": None}, {"queries": []}, {"query": "x", "fusion": None},
            {"query": "x", "where": {"a": 1}, "filter": ["d0"], "vector": [1, 2]},
            {"queries": ["x"], "where": [None], "vectors": [[1, 2]], "diversity": 1},
        ):  # fmt: skip
            assert checker.is_valid(body), body
            assert (await client.post("/search", json=body)).status_code == 200, body


async def test_paths_are_those_that_there_are(calling):
    async with calling(create_app(small())) as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
        assert "/save" not in paths  # without a file
        assert (await client.post("/save", headers=JSON)).status_code == 404
