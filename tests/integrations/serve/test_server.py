"""A real uvicorn on a socket: slow and broken clients, and the end."""

import importlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from llmds_nb import RetrievalPipeline
from llmds_nb.integrations.serve import ChangedFileError, Settings, connections, create_app

from .conftest import httpx
from .samples import small

PROTOCOLS = {"h11": "h11_impl.H11Protocol", "httptools": "httptools_impl.HttpToolsProtocol"}
HEAD = b"POST /search HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


def received(connection):
    """All that comes until the other side ends the connection."""
    parts = []
    while True:
        try:
            part = connection.recv(65536)
        except ConnectionResetError:
            break
        if not part:
            break
        parts.append(part)
    return b"".join(parts)


def request(body, head=HEAD):
    return head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


def status_of(answer):
    return int(answer.split(b" ", 2)[1]) if answer else None


@pytest.fixture(params=PROTOCOLS)
def protocol(request, monkeypatch):
    """Each of uvicorn's parsers of HTTP, of which the extra `serve` brings h11."""
    pytest.importorskip(request.param)
    module, name = PROTOCOLS[request.param].split(".")
    module = importlib.import_module(f"uvicorn.protocols.http.{module}")
    monkeypatch.setattr(connections, "AutoHTTPProtocol", getattr(module, name))


@pytest.mark.usefixtures("protocol")
def test_slow_heads_and_bodies_get_408_and_silence_ends(running):
    settings = Settings(client_timeout_s=0.3, body_timeout_s=0.3)
    server = running(create_app(small(), settings=settings))
    with server.connect() as silent, server.connect() as head, server.connect() as body:
        head.sendall(b"POST /sea")
        body.sendall(HEAD + b"Content-Length: 10\r\n\r\n{")
        answers = [received(one) for one in (silent, head, body)]
    assert [status_of(answer) for answer in answers] == [None, 408, 408]
    assert json.loads(answers[1].partition(b"\r\n\r\n")[2])["error"]["type"] == "timeout_error"
    with server.connect() as kept:  # a connection that has had an answer may be silent for longer
        for _ in range(2):
            kept.sendall(request(b'{"query": "red"}'))
            answer = kept.recv(65536)
            assert status_of(answer) == 200
            time.sleep(0.5)


@pytest.mark.usefixtures("protocol")
@pytest.mark.parametrize(("sent", "status"), [
    (b"GARBAGE\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", 400),
    (b"GET /" + b"a" * 100_000, 431),
    (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000, 431),
    (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
])  # fmt: skip
def test_what_is_no_http_is_refused_in_json(running, sent, status):
    server = running(create_app(small()))
    with server.connect() as connection:
        connection.sendall(sent)
        answer = received(connection)
    assert status_of(answer) == status, answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]


@pytest.mark.usefixtures("protocol")
def test_a_hundred_megabytes_get_413_with_and_without_a_length(running):
    server = running(create_app(small()))
    block = b" " * 2**20

    def chunks():
        for _ in range(100):
            yield block

    headers = {"Content-Type": "application/json"}
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for content, more in ((chunks(), {}), (chunks(), {"Content-Length": str(100 * 2**20)})):
            answer = client.post("/search", content=content, headers={**headers, **more})
            assert answer.status_code == 413
        assert client.post("/search", json={"query": "red"}).status_code == 200


@pytest.mark.usefixtures("protocol")
def test_a_client_that_reads_nothing_is_cut_off(running):
    pipeline = RetrievalPipeline(dim=1)
    pipeline.add(None, ["page " * 2000] * 1000, [[1]] * 1000)
    server = running(create_app(pipeline, settings=Settings(client_timeout_s=0.5)))
    registry = state_of(server).metrics.registry
    with server.connect() as connection:
        connection.sendall(request(b'{"query": "page", "k": 1000}'))
        labels = {"route": "/search", "method": "POST", "status": "200"}
        until(lambda: registry.get_sample_value("llmds_nb_http_requests_total", labels))
        until(lambda: not registry.get_sample_value("llmds_nb_http_connections"))
        n = len(received(connection))
    assert n < 10_000_000  # of an answer of that many bytes


def until(is_so):
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def state_of(server):
    return server.app.state.server


@pytest.fixture
def held(running, monkeypatch):
    """held(pipeline): two events; its searches set the first, and wait for the second."""
    go = threading.Event()

    def hold(pipeline):
        begun, search = threading.Event(), pipeline.search

        def slow(queries, *args, **options):
            if queries != []:
                begun.set()
                assert go.wait(30)
            return search(queries, *args, **options)

        monkeypatch.setattr(pipeline, "search", slow)
        return begun, go

    yield hold
    go.set()


def test_the_end_finishes_what_is_under_way_and_refuses_the_rest(running, held, tmp_path):
    path = tmp_path / "kb.llmds"
    pipeline = small()
    begun, go = held(pipeline)
    server = running(create_app(pipeline, path=path))
    with (
        httpx.Client(base_url=server.url, timeout=30) as client,
        ThreadPoolExecutor(9) as threads,
    ):
        one = {"id": "x", "text": "green", "vector": [1, 1]}
        assert client.post("/documents", json={"documents": [one]}).json()["saved"] is False
        asked = [threads.submit(client.post, "/search", json={"query": "red"}) for _ in range(8)]
        begun.wait(30)
        until(lambda: len(state_of(server).under_way) == 8)
        ending = threads.submit(server.end)
        until(lambda: state_of(server).draining)
        for answer in (httpx.post(f"{server.url}/search", json={"query": "red"}),
                       httpx.get(f"{server.url}/health/ready")):  # fmt: skip
            assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0
            assert answer.json()["error"]["code"] == "draining"
        assert httpx.get(f"{server.url}/health/live").status_code == 200
        go.set()
        assert [one.result().status_code for one in asked] == [200] * 8
        ending.result()
    assert server.failure is None
    assert RetrievalPipeline.load(path).get("x") == ["green"]


def test_who_is_not_done_in_time_is_told(running, held):
    pipeline = small()
    begun, go = held(pipeline)
    server = running(create_app(pipeline, settings=Settings(drain_timeout_s=0.2)))
    with ThreadPoolExecutor(5) as threads:
        body = {"query": "red"}
        post = httpx.post
        asked = [threads.submit(post, f"{server.url}/search", json=body) for _ in range(4)]
        begun.wait(30)
        until(lambda: len(state_of(server).under_way) == 4)
        ending = threads.submit(server.end)
        answers = [one.result() for one in asked]
        go.set()
        ending.result()
    assert [answer.status_code for answer in answers] == [503] * 4
    assert all(answer.json()["error"]["code"] == "draining" for answer in answers)


def test_the_end_keeps_a_file_of_others(running, tmp_path):
    path = tmp_path / "kb.llmds"
    pipeline = small()
    pipeline.save(path)
    server = running(create_app(pipeline, path=path))
    small(named=False).save(path)
    assert httpx.delete(f"{server.url}/documents/d0").status_code == 200
    server.end()
    assert isinstance(server.failure, ChangedFileError)
    assert len(RetrievalPipeline.load(path)) == 5


def test_clients_that_go_away_leave_nothing_behind(running, held):
    pipeline = small()
    begun, go = held(pipeline)
    server = running(create_app(pipeline))
    state = state_of(server)
    with server.connect() as first:
        first.sendall(request(b'{"query": "red"}'))
        begun.wait(30)
        others = [server.connect() for _ in range(30)]
        for i, one in enumerate(others):
            whole = request(b'{"query": "sky"}')
            one.sendall(whole if i % 2 else whole[: 3 * i])
        until(lambda: len(state.batcher.scheduler) == 15)
        for one in others:
            one.close()
        until(lambda: len(state.batcher.scheduler) == 0)  # nothing is searched for nobody
        go.set()
        assert status_of(first.recv(65536)) == 200
    until(lambda: not state.under_way)
    assert not state.batcher._waiting
    assert 'status="499"' in httpx.get(f"{server.url}/metrics").text


def test_many_clients_at_once_all_get_the_right_answer(running):
    pipeline = small()
    expected = {
        text: [
            document.id for document in pipeline.documents(pipeline.search(text, vectors=[1, 0]))
        ]
        for text in ("red fox", "blue sky", "pages")
    }
    server = running(create_app(pipeline, settings=Settings(workers=2)))

    def ask(i):
        text = list(expected)[i % 3]
        with httpx.Client(base_url=server.url, timeout=60) as client:
            for _ in range(10):
                answer = client.post("/search", json={"query": text, "vector": [1, 0]})
                assert [hit["id"] for hit in answer.json()["hits"]] == expected[text]

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(ask, range(8)))
    stats = state_of(server).batcher.scheduler.stats()
    assert stats.completed == 80 and stats.waiting == stats.running == 0


@pytest.mark.usefixtures("protocol")
def test_upgrades_lose_no_body(request, running):
    server, body = running(create_app(small())), b'{"query":"red"}'
    upgrade = b"Connection: Upgrade, close\r\nUpgrade: h2c\r\n"  # as Java's HttpClient sends it
    with server.connect() as connection:
        connection.sendall(HEAD + upgrade + b"Content-Length: 15\r\n\r\n" + body)
        answer = received(connection)
    if "httptools" in request.node.name:  # its parser reads no body after Upgrade
        assert status_of(answer) == 400 and b"header Upgrade" in answer
    else:
        assert status_of(answer) == 200
    with server.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n" + upgrade + b"\r\n")
        assert status_of(received(connection)) == 200
