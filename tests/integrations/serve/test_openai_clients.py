"""Clients that leave midway, servers that end, models that fail: nothing stays held."""

import asyncio
import contextlib
import json
import socket
import struct
import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs llmds_nb[hf]")
pytest.importorskip("transformers", reason="needs llmds_nb[hf]")
pytest.importorskip("starlette", reason="needs llmds_nb[serve]")
httpx = pytest.importorskip("httpx", reason="needs httpx")

from llmds_nb import CapacityError, RetrievalPipeline  # noqa: E402
from llmds_nb.integrations.serve import Settings, create_app  # noqa: E402

from . import models  # noqa: E402
from .running import running, serving, until  # noqa: E402

PATHS = "/v1/completions", "/v1/chat/completions"
NEVER = 400  # tokens of an answer that nobody waits for


@pytest.fixture(scope="module")
def engine():
    with models.engine() as engine:
        yield engine


@pytest.fixture(scope="module")
def app(engine):
    return create_app(engine=engine)


@pytest.fixture(scope="module")
def address(app):
    with running(app) as address:
        yield address


@pytest.fixture(autouse=True)
def _nothing_is_left(engine):
    yield
    until(lambda: len(engine.batcher) == 0)
    models.nothing_is_held(engine)


def body_of(path, text, **options):
    given = {"max_tokens": NEVER, "temperature": 0, **options}
    if path == PATHS[0]:
        return {"prompt": text, **given}
    return {"messages": [{"role": "user", "content": text}], **given}


def head_of(path, body):
    data = json.dumps(body).encode()
    lines = f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"
    return "\r\n".join((*lines, f"Content-Length: {len(data)}", "", "")).encode() + data


async def leave_midway(address, rng, number):
    """A client that leaves: before anything came, or after some of it, with or without a word."""
    host, port = address.removeprefix("http://").split(":")
    path, streamed = PATHS[rng.integers(2)], bool(rng.random() < 0.7)
    shared = "You are a model that answers. " if rng.random() < 0.6 else ""
    body = body_of(path, f"{shared}{number}", stream=streamed, n=int(rng.integers(1, 3)))
    reader, writer = await asyncio.open_connection(host, int(port))
    data = head_of(path, body)
    if rng.random() < 0.1:
        data = data[: rng.integers(1, len(data))]
        streamed = False
    writer.write(data)
    await writer.drain()
    if streamed:
        for _ in range(rng.integers(8)):
            await reader.readuntil(b"data: ")
    elif rng.random() < 0.5:
        await asyncio.sleep(0)
    if rng.random() < 0.5:  # a reset in place of an end
        option = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@pytest.mark.nightly
def test_clients_that_leave_midway(address, app, engine, amount, figures):
    n, rng, before = amount(200, 2000), np.random.default_rng(4), engine.stats()

    async def all_of_them():
        gate = asyncio.Semaphore(64)

        async def one(i):
            async with gate:
                await leave_midway(address, rng, i)

        await asyncio.gather(*map(one, range(n)))

    asyncio.run(all_of_them())
    until(lambda: not app.state.server.under_way)
    until(lambda: len(engine.batcher) == 0)
    models.nothing_is_held(engine)
    after = engine.stats()
    cancelled = after.cancelled - before.cancelled
    assert cancelled == after.submitted - before.submitted > n / 2  # none ran to its end
    figures(clients=n, cancelled=cancelled, tokens=after.generated_tokens - before.generated_tokens)
    answer = httpx.post(address + PATHS[0], json=body_of(PATHS[0], "A", max_tokens=3))
    assert answer.json()["usage"]["completion_tokens"] == 3


def test_those_who_stay_get_all_while_others_leave(address, engine):
    (expected,) = engine.generate(["stay"], max_new_tokens=80, progress=False)
    found = {}

    def stay():
        body = body_of(PATHS[0], "stay", max_tokens=80)
        found["text"] = httpx.post(address + PATHS[0], json=body).json()["choices"][0]["text"]

    async def leave():
        rng = np.random.default_rng(5)
        await asyncio.gather(*(leave_midway(address, rng, i) for i in range(20)))

    thread = threading.Thread(target=stay)
    thread.start()
    asyncio.run(leave())
    thread.join()
    assert found["text"] == expected.text


def test_events_come_before_the_end(address, engine):
    body = body_of(PATHS[0], "A", stream=True)
    with httpx.stream("POST", address + PATHS[0], json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        assert len(engine.batcher) == 1


def test_embeddings_are_computed_between_the_steps_of_answers(address, engine, monkeypatch):
    called = []
    for name in ("step", "encode"):
        own = getattr(engine, name)

        def noting(*args, _own=own, _name=name, **options):
            called.append(_name)
            return _own(*args, **options)

        monkeypatch.setattr(engine, name, noting)
    body = body_of(PATHS[0], "A", stream=True, n=32)  # for seconds, if it went on to its end
    with httpx.stream("POST", address + PATHS[0], json=body) as answer:
        lines = answer.iter_lines()  # whose end would be that of the stream
        next(lines)
        given = {"input": ["x" * 200] * 4}  # the tokens of four steps
        assert httpx.post(f"{address}/v1/embeddings", json=given).status_code == 200
        assert len(engine.batcher) == 32
    places = [i for i, name in enumerate(called) if name == "encode"]
    assert len(places) == 4 and min(np.diff(places)) > 1


def test_the_event_loop_computes_nothing(address, engine, monkeypatch):
    threads = {}
    for name in ("step", "submit", "encode"):
        own = getattr(engine, name)

        def noting(*args, _own=own, _name=name, **options):
            threads.setdefault(_name, set()).add(threading.current_thread().name.split("_0")[0])
            return _own(*args, **options)

        monkeypatch.setattr(engine, name, noting)
    assert httpx.post(address + PATHS[0], json=body_of(PATHS[0], "A", max_tokens=4)).is_success
    assert httpx.post(f"{address}/v1/embeddings", json={"input": "A"}).is_success
    assert threads["step"] == threads["encode"] == {"llmds_nb engine"}
    assert not threads["submit"] & {"MainThread", *threads["step"]}


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (CapacityError("pages are held by others"), 503, "overloaded"),
        (RuntimeError("of /a/secret/path"), 500, "internal_error"),
    ],
)
def test_a_model_that_fails(address, engine, monkeypatch, caplog, error, status, code):
    own, n_steps = engine.step, []

    def step():
        n_steps.append(1)
        if len(n_steps) == 5:
            raise error
        return own()

    for streamed in (False, True):
        n_steps.clear()
        with monkeypatch.context() as patched:
            patched.setattr(engine, "step", step)
            body = body_of(PATHS[1], "A", stream=streamed)
            answer = httpx.post(address + PATHS[1], json=body)
        if streamed:
            assert answer.status_code == 200
            *events, last, end = answer.text.strip().split("\n\n")
            assert end == "data: [DONE]" and events  # the role, and what came before it was told
            told = json.loads(last.removeprefix("data: "))
        else:
            assert answer.status_code == status
            told = answer.json()
        assert told["error"]["code"] == code and "secret" not in answer.text
    assert ("of /a/secret/path" in caplog.text) == (status == 500)
    answer = httpx.post(address + PATHS[0], json=body_of(PATHS[0], "A", max_tokens=3))
    assert answer.status_code == 200


def test_logits_that_are_no_numbers_fail_one_request(address, engine):
    head = engine.model.get_output_embeddings().weight
    kept = head.detach().clone()
    try:
        with torch.no_grad():  # not of `head.data`, whose changes nobody can see
            head.fill_(float("nan"))
        answer = httpx.post(address + PATHS[0], json=body_of(PATHS[0], "A"))
    finally:
        with torch.no_grad():
            head.copy_(kept)
    assert answer.status_code == 500 and "NaN" in answer.json()["error"]["message"]


def test_a_request_that_takes_too_long(engine):
    with running(create_app(engine=engine, settings=Settings(request_timeout_s=0.2))) as address:
        answer = httpx.post(address + PATHS[0], json=body_of(PATHS[0], "A"))
    assert answer.status_code == 504 and answer.json()["error"]["code"] == "timeout"


def test_a_server_that_ends_tells_its_streams(engine):
    app = create_app(engine=engine, settings=Settings(drain_timeout_s=0.1))
    with serving(app) as (address, stop):
        body = body_of(PATHS[0], "A", stream=True)
        with httpx.stream("POST", address + PATHS[0], json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            stop()
            *_, last, _, done, _ = list(lines)
    assert done == "data: [DONE]"
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "draining"


def test_a_server_that_ends_waits_for_its_requests(engine):
    app = create_app(engine=engine)
    with serving(app) as (address, stop):
        body = body_of(PATHS[0], "A", stream=True, max_tokens=60)
        with httpx.stream("POST", address + PATHS[0], json=body) as answer:
            lines = answer.iter_lines()
            first = next(lines)
            stop()
            events = [line for line in [first, *lines] if line]
    assert events[-1] == "data: [DONE]" and not any('"error"' in event for event in events)


def test_an_engine_that_is_closed():
    with models.engine() as engine:
        app = create_app(engine=engine)
        with running(app) as address:
            body = body_of(PATHS[0], "A", stream=True)
            with httpx.stream("POST", address + PATHS[0], json=body) as answer:
                lines = answer.iter_lines()
                next(lines)
                engine.close()
                assert [line for line in lines if line][-1] == "data: [DONE]"
            answer = httpx.post(address + PATHS[0], json=body_of(PATHS[0], "A"))
            assert answer.status_code == 503
            answer = httpx.post(f"{address}/v1/embeddings", json={"input": "A"})
            assert answer.status_code == 503


def test_a_model_called_as_documents_hides_no_figures(engine):
    pipeline = RetrievalPipeline(dim=2)
    for name in ("documents", "searches"):
        state = create_app(pipeline, engine=engine, model_name=name).state.server
        text = state.metrics.text().decode()
        assert "llmds_nb_retrieval_pipeline" in text and "llmds_nb_scheduler" in text
        state.close()
