"""Apps called in their event loop, without a socket."""

import contextlib
import socket
import threading

import pytest

pytest.importorskip("starlette", reason="needs llmds_nb[serve]")
pytest.importorskip("uvicorn", reason="needs llmds_nb[serve]")
httpx = pytest.importorskip("httpx", reason="needs httpx")


@pytest.fixture
def calling():
    """`async with calling(app) as client`: an httpx client; the app is started, and ended after."""

    @contextlib.asynccontextmanager
    async def call(app, **options):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test", **options) as client,
        ):
            yield client

    return call


class Running:
    """A server of uvicorn in a thread, on a free port of 127.0.0.1."""

    def __init__(self, app):
        from llmds_nb.integrations.serve import run_server

        self.app, self.failure = app, None
        listener = socket.create_server(("127.0.0.1", 0))
        self.address = listener.getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}"
        ready = threading.Event()

        def on_ready(stop):
            self.stop = stop
            ready.set()

        def run():
            try:
                run_server(app, listener, on_ready=on_ready)
            except Exception as error:
                self.failure = error

        self.thread = threading.Thread(target=run)
        self.thread.start()
        assert ready.wait(60)

    def connect(self):
        """A plain socket to it."""
        return socket.create_connection(self.address, timeout=30)

    def end(self):
        """End it as a signal does."""
        self.stop()
        self.thread.join(60)
        assert not self.thread.is_alive()


@pytest.fixture
def running():
    """running(app) is a server; it is ended after the test."""
    servers = []

    def run(app):
        servers.append(Running(app))
        return servers[-1]

    yield run
    for server in servers:
        server.end()
