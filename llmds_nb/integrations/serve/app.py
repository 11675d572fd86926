"""create_app: the routes of a server, and what surrounds them."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute

from llmds_nb import RetrievalPipeline

from . import documents, health, lifecycle, openapi, page, search
from .edge import HEALTH, Edge, on_http_exception, paths_of
from .settings import Settings
from .state import ServerState


def create_app(
    pipeline: RetrievalPipeline | None = None, *, path: str | os.PathLike[str] | None = None,
    engine: Any = None, model_name: str = "model", settings: Settings | None = None,
) -> Starlette:  # fmt: skip
    """An ASGI application that serves documents, a model, or both.

    Parameters
    ----------
    pipeline : RetrievalPipeline, optional
        Adds `/search`, `/documents`, and `/save` where there is a `path`.
    path : path, optional
        The file to save to, at `/save` and when the application ends.
    engine : Engine, optional
        Adds the routes of OpenAI's API.
    model_name : str
        What clients call its model.
    settings : Settings, optional

    Returns
    -------
    starlette.applications.Starlette
        For uvicorn or another ASGI server, one process; `app.state.server` is its ServerState. Its
        lifespan ends as `lifecycle.finish` does.

    Raises
    ------
    TypeError
        `pipeline` is no RetrievalPipeline, or there is neither pipeline nor engine.
    """
    if pipeline is not None and not isinstance(pipeline, RetrievalPipeline):
        raise TypeError(f"pipeline must be a RetrievalPipeline, not {type(pipeline).__name__}")
    if pipeline is None and engine is None:
        raise TypeError("create_app needs a pipeline or an engine")
    settings = Settings() if settings is None else settings
    state = ServerState(
        pipeline, path=path, engine=engine, model_name=model_name, settings=settings
    )
    routes = _routes(state)
    state.routes = paths_of(routes)
    middleware = [Middleware(Edge, state=state)]
    if settings.cors_origins:
        origins = list(settings.cors_origins)
        allowed = ["authorization", "content-type", "x-api-key", "x-request-id"]
        middleware.append(
            Middleware(
                CORSMiddleware, allow_origins=origins, allow_headers=allowed,
                allow_methods=["GET", "POST", "DELETE"],
            )
        )  # fmt: skip

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await asyncio.to_thread(lifecycle.warm_up, pipeline)
        yield
        await lifecycle.finish(state)

    app = Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers={HTTPException: on_http_exception},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.server = state
    return app


def _routes(state: ServerState) -> list[BaseRoute]:
    state.open_paths |= set(HEALTH)
    routes: list[BaseRoute] = [*health.routes(state)]
    if state.pipeline is not None:
        routes += [*search.routes(state), *documents.routes(state)]
    if state.engine is not None:
        from . import openai  # only where there is an engine, whose libraries it needs

        routes += openai.routes(state)
    routes += page.routes(state)
    return [*routes, *openapi.routes(state, routes)]
