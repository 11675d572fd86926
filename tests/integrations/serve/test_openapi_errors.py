"""Every error that a server gives at a route is described there."""

import jsonschema
import pytest

from llmds_nb.integrations.serve import Settings, create_app

from .samples import JSON, small

KEY = {"X-API-Key": "k"}
BODIES = {
    "/search": {"query": "red"}, "/documents": {"ids": ["d0"]}, "/save": {},
    "/explain": {"query": "red"},
}  # fmt: skip


def described_in(document, method, path, status):
    """The description of an answer; a failure where there is none."""
    operation = document["paths"][path][method.lower()]["responses"]
    assert str(status) in operation, (method, path, status, sorted(operation))
    found = operation[str(status)]
    if "$ref" in found:
        found = document["components"]["responses"][found["$ref"].rpartition("/")[2]]
    return found


async def ask_all(calling, app, prepare=None, **options):
    """Ask every route by every method; the statuses, each of which is described."""
    seen = set()
    async with calling(app) as client:
        document = (await client.get("/openapi.json", headers={**KEY, "Host": "a.test"})).json()
        if prepare is not None:
            prepare(app.state.server)
        for path, methods in document["paths"].items():
            for method in methods:
                more = dict(options)
                if method in ("post", "delete") and not {"content", "json"} & more.keys():
                    more["json"] = BODIES.get(path, {})
                url = more.pop("urls", {}).get(path, path.replace("{id}", "d0"))
                answer = await client.request(method.upper(), url, **{"headers": KEY, **more})
                found = described_in(document, method, path, answer.status_code)
                seen.add(answer.status_code)
                if answer.status_code >= 400 and path != "/health/ready":
                    schema = found["content"]["application/json"]["schema"]
                    jsonschema.validate(answer.json(), schema)
                for name in found.get("headers", ()):
                    assert path.startswith("/health") or name in answer.headers, (path, name)
        state = app.state.server
        state.draining = False
    return seen


def refusing(state):
    state.draining = True


def full(state):
    state.settings.__dict__["max_requests"] = 0


MANY = {"/documents": "/documents?" + "&".join(f"id=d{i % 5}" for i in range(2000))}
UNKNOWN = {"/documents/{id}": "/documents/x", "/documents": "/documents?id=x"}
CASES = [
    ({}, {"headers": {}}, None, 401),
    ({"allowed_hosts": ("a.test",)}, {"headers": {**KEY, "Host": "b.test"}}, None, 421),
    ({}, {}, refusing, 503),
    ({}, {}, full, 503),
    ({"read_only": True}, {}, None, 403),
    ({}, {"content": b"{", "headers": {**KEY, **JSON}}, None, 400),
    ({}, {"content": b"x", "headers": {**KEY, "Content-Type": "text/plain"}}, None, 415),
    ({"max_body_bytes": 10}, {"content": b" " * 50, "headers": {**KEY, **JSON}}, None, 413),
    ({}, {"urls": UNKNOWN}, None, 404),
    ({}, {"urls": {"/documents": "/documents?other=1"}}, None, 400),
    ({"qps_limit": 0.001, "burst_ms": 1001.0}, {}, None, 429),
    ({"token_rate_limit": 1.0, "burst_ms": 2000.0}, {"urls": MANY}, None, 413),
    ({"key_token_rate_limit": 0.1, "burst_ms": 1000.0}, {}, None, 413),
    ({"request_timeout_s": 1e-9}, {}, None, 504),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "options", "prepare", "status"), CASES)
async def test_errors_are_described(calling, tmp_path, settings, options, prepare, status):
    settings = Settings(api_keys=("k",), **settings)
    app = create_app(small(), path=tmp_path / "kb.llmds", settings=settings)
    assert status in await ask_all(calling, app, prepare, **options)
