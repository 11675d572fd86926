"""ServerState: what the routes of a server share.

A handler that computes is written as::

    async def answer(request):
        body = await state.body(request)
        ...                                       # state.problem(400, "...", "field")
        async with state.guarded(request, tokens) as reservation:
            hits, documents = await state.search("red fox", 10)
            reservation.used = ...                # tokens; otherwise all that were reserved
        return state.json({...})

Whoever adds routes may also open paths to everyone (`open_paths`), and describes each route for
`/openapi.json`: an attribute `operations` of its endpoint, a dict from the method in lower case to
an OpenAPI operation.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NoReturn

from starlette.requests import Request
from starlette.responses import Response

from . import body, errors, limits
from .batching import MicroBatcher, Query
from .keys import Keys
from .metrics import Metrics
from .settings import Settings
from .watching import Watch
from .writing import Writer


class ServerState:
    """What the routes of one server share.

    Attributes
    ----------
    pipeline : RetrievalPipeline or None
    engine : Engine or None
    model_name : str
        What the engine's model is called.
    settings : Settings
    admission : AdmissionController or None
        None without a limit of rates.
    metrics : Metrics
    batcher : MicroBatcher
        Which runs the searches.
    writer : Writer
        Which adds, removes and saves, one after the other, and knows the file.
    open_paths : set of str
        Paths that need no API key.
    routes : dict
        The path of each endpoint.
    draining : bool
        Whether the server is about to end: requests get 503.
    ending : bool
        Whether requests under way are being cancelled.
    finished : bool
        Whether `lifecycle.finish` was called.
    under_way : set of asyncio.Task
        Requests, but those for `/health`.
    """

    def __init__(
        self, pipeline: Any, *, path: Any = None, engine: Any = None, model_name: str = "model",
        settings: Settings,
    ) -> None:  # fmt: skip
        self.pipeline, self.engine, self.model_name = pipeline, engine, model_name
        self.settings = settings
        self.keys = Keys(settings.api_keys)
        self.admission = limits.new_controller(settings)
        self.metrics = Metrics()
        self.open_paths: set[str] = set()
        self.routes: dict[Any, str] = {}
        self.draining = self.ending = self.finished = False
        self.under_way: set[asyncio.Task] = set()
        self.batcher = MicroBatcher(pipeline, settings)
        self.writer = Writer(pipeline, path, settings)
        watched = [("searches", self.batcher.scheduler), ("limits", self.admission)]
        watched += [("documents", pipeline), (model_name, engine)]  # of any name: by pairs
        for name, structure in watched:
            if callable(getattr(structure, "stats", None)):
                self.metrics.watch(structure, name)

    def require_key(self, request: Request) -> str:
        """Who a request is from; a Problem of status 401 without a key where keys are needed."""
        return self.keys.caller(request)

    async def body(self, request: Request) -> Any:
        """The JSON value of a request's body; a Problem of status 400, 408, 413 or 415."""
        return await body.read_json(request, self.settings)

    def problem(
        self, status: int, message: str, param: str | None = None, *, code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> NoReturn:  # fmt: skip
        """Raise the error that the client gets."""
        errors.problem(status, message, param, code=code, headers=headers)

    def json(self, value: Any, status: int = 200) -> Response:
        """An answer of JSON."""
        return errors.json_response(value, status)

    @contextlib.asynccontextmanager
    async def guarded(self, request: Request, tokens: int) -> AsyncIterator[limits.Reservation]:
        """Reserve tokens for a request, and end what is done with them in time, or unheard.

        A Problem of status 429 or 413 if they are not admitted, 504 after `request_timeout_s`. At
        the end what was not used is given back: all of it where a Problem below 500 is raised.
        """
        settings, caller = self.settings, self.require_key(request)
        reservation = limits.admit(self.admission, tokens, caller, settings)
        scope = asyncio.timeout(settings.request_timeout_s)
        try:
            async with scope:
                with Watch(request):
                    yield reservation
        except errors.Problem as error:
            if error.status < 500:
                reservation.used = 0
            reservation.detached = False
            raise
        except BaseException as error:
            reservation.detached = False
            if isinstance(error, TimeoutError) and scope.expired():
                text = f"there is no answer within {settings.request_timeout_s:g} s"
                errors.problem(504, text, code="timeout")
            raise
        finally:
            if not reservation.detached:
                reservation.close()

    async def search(
        self, queries: str | Sequence[str], k: int = 10, *, documents: bool = True, tenant: int = 0,
        **options: Any,
    ) -> tuple[Any, Any]:  # fmt: skip
        """Search in a worker thread, together with the searches of others that have equal options.

        Parameters
        ----------
        queries : str or list of str
        k : int
        documents : bool
            Whether the documents are wanted.
        tenant : int
            Whose search it is: of equal numbers of queries waiting each gets its turn.
        **options
            As for RetrievalPipeline.search: vectors, where, filter (one for each query, or one for
            all), min_score, fusion, weight, diversity, group_by, exact.

        Returns
        -------
        (Hits, documents)
            As `search` and `documents` of the pipeline return them; None without `documents`.
            Without an encoder and vectors, words alone are searched.

        Raises
        ------
        Problem
            400 for what the pipeline refuses, 503 where too many searches wait.
        """
        if self.pipeline is None:
            errors.problem(404, "this server has no documents", code="no_pipeline")
        one = isinstance(queries, str)
        texts = [queries] if isinstance(queries, str) else list(queries)
        query = Query.of(texts, k, documents, one, options)
        hits, found = await self.batcher.run(query, tenant)
        if not one:
            return hits, found
        return type(hits)(hits.ids[0], hits.scores[0]), None if found is None else found[0]

    def close(self) -> None:
        """End the worker threads, once what they do is done."""
        self.batcher.close()
        self.writer.close()
