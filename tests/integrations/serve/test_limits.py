"""Limits of rates: refused requests say when to come again, and only what was used is taken."""

import logging

import pytest

from llmds_nb import AdmissionController
from llmds_nb.integrations.serve import Settings, create_app
from llmds_nb.integrations.serve.limits import admit, estimated_tokens

from .samples import small


class Clock:
    ns = 0

    def __call__(self):
        return self.ns


def limited(app, *limits, **options):
    """Give an app a controller whose time stands still; returns its clock."""
    clock = Clock()
    app.state.server.admission = AdmissionController(*limits, clock=clock, **options)
    return clock


async def test_requests_beyond_the_rate_get_429(calling):
    app = create_app(small(), settings=Settings(qps_limit=2))
    assert app.state.server.admission.stats().available_requests == 2
    clock = limited(app, 2)
    async with calling(app) as client:
        ask = {"json": {"query": "red"}}
        answers = [await client.post("/search", **ask) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        error = answers[2].json()["error"]
        assert error["type"] == "rate_limit_error" and error["code"] == "qps"
        assert answers[2].headers["retry-after"] == "1"
        assert (await client.post("/search", json={"query": 3})).status_code == 400
        assert (await client.get("/health")).status_code == 200
        clock.ns += 1_000_000_000
        assert (await client.post("/search", **ask)).status_code == 200


async def test_a_search_pays_for_the_hits_that_it_got(calling):
    app = create_app(small(), settings=Settings(token_rate_limit=1000))
    limited(app, None, 1000)
    asked = estimated_tokens(["red sky"])
    async with calling(app) as client:
        control = app.state.server.admission

        def left():
            return control.stats().available_tokens

        answer = await client.post("/search", json={"query": "red sky", "k": 900})
        n_hits = len(answer.json()["hits"])
        assert left() == 1000 - asked - n_hits  # and not - 900
        before = left()
        answer = await client.post("/search", json={"query": "red", "vector": [1, 2, 3]})
        assert answer.status_code == 400 and left() == before  # nothing was done
        body = {"documents": [{"id": "n", "text": "x" * 400, "vector": [1, 1]}]}
        assert (await client.post("/documents", json=body)).status_code == 200
        assert left() == before - 101
        answer = await client.post("/search", json={"queries": ["x"] * 200, "k": 1000})
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "too_many_tokens"


async def test_each_key_has_limits_of_its_own(calling):
    settings = Settings(api_keys=("a", "b"), key_qps_limit=1, key_token_rate_limit=100)
    app = create_app(small(), settings=settings)
    limited(app, key_limit=(1, 100))
    async with calling(app) as client:
        statuses = []
        for key in ("a", "b", "a", "b"):
            headers = {"Authorization": f"Bearer {key}"}
            answer = await client.post("/search", json={"query": "x"}, headers=headers)
            statuses.append(answer.status_code)
        assert statuses == [200, 200, 429, 429]
        assert answer.json()["error"]["code"] == "key_qps"


def test_a_reservation_is_settled_once():
    control = AdmissionController(None, 100, clock=Clock())
    settings = Settings(token_rate_limit=100)
    reservation = admit(control, 60, "address:x", settings)
    reservation.used = 10
    for _ in range(2):
        reservation.close()
    assert control.stats().available_tokens == 90
    reservation = admit(control, 50, "address:x", settings)
    reservation.used = 70
    reservation.close()
    assert control.stats().available_tokens == 20


async def test_too_many_requests_under_way_get_503(calling):
    app = create_app(small(), settings=Settings(max_requests=1))
    async with calling(app) as client:
        assert (await client.post("/search", json={"query": "x"})).status_code == 200
        app.state.server.under_way.add(object())  # another one
        answer = await client.post("/search", json={"query": "x"})
        assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
        assert (await client.get("/health")).status_code == 200
        app.state.server.under_way.clear()


async def test_access_log_and_request_ids(calling, caplog):
    caplog.set_level(logging.INFO, "llmds_nb.serve.access")
    app = create_app(small(), settings=Settings(access_log=True, api_keys=("secret",)))
    async with calling(app) as client:
        for given, kept in (("abc-1.2:3", True), ("x" * 65, False), ("a b", False), ("", False)):
            headers = {"X-Request-Id": given, "X-API-Key": "secret"}
            answer = await client.post("/search", json={"query": "my words"}, headers=headers)
            assert (answer.headers["x-request-id"] == given) is kept
    assert caplog.text.count('"path": "/search", "status": 200') == 4
    assert "secret" not in caplog.text and "my words" not in caplog.text


@pytest.mark.parametrize(("name", "value", "error"), [
    ("max_k", 0, ValueError), ("max_k", True, TypeError), ("max_k", 1.0, TypeError),
    ("request_timeout_s", 0, ValueError), ("request_timeout_s", float("nan"), ValueError),
    ("qps_limit", -1, ValueError), ("qps_limit", "1", TypeError), ("read_only", 1, TypeError),
    ("api_keys", "abc", TypeError), ("api_keys", ("",), ValueError), ("burst_ms", None, TypeError),
    ("allowed_hosts", (1,), TypeError), ("workers", 0, ValueError),
])  # fmt: skip
def test_wrong_settings_are_named(name, value, error):
    with pytest.raises(error, match=name):
        Settings(**{name: value})
    assert "secret" not in repr(Settings(api_keys=("secret",)))


@pytest.mark.parametrize("key", ["k", "\u00e9", "\u4e2d"])
async def test_keys_beyond_ascii(calling, key):
    app = create_app(small(), settings=Settings(api_keys=(key,)))
    async with calling(app) as client:
        given = key.encode()
        answer = await client.get("/metrics", headers={"X-API-Key": given})
        assert answer.status_code == 200
        answer = await client.get("/metrics", headers={b"Authorization": b"bearer " + given})
        assert answer.status_code == 200
        assert (await client.get("/metrics", headers={"X-API-Key": b"\xff"})).status_code == 401
