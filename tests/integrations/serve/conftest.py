"""Apps called in their event loop, without a socket."""

import contextlib

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
