"""The endpoints of OpenAI's API over one Engine."""

import asyncio
import time
from functools import partial
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from llmds_nb import CapacityError

from ..errors import Problem, json_response, retry_after
from ..routing import Operation, route
from . import chat, completions, descriptions, embeddings, retrieval
from .connection import while_connected
from .fields import about_tokens, check_model
from .generation import LEFT, about_new, respond
from .steps import Steps, closed
from .tokens import TokenTexts


def routes(state: Any) -> list[Route]:
    """The routes of a server with an engine.

    Parameters
    ----------
    state : ServerState
    """
    api = _Api(state)
    return [
        route("/v1/completions", {"POST": Operation(api.complete, descriptions.COMPLETE)}),
        route("/v1/chat/completions", {"POST": Operation(api.chat, descriptions.CHAT)}),
        route("/v1/embeddings", {"POST": Operation(api.embed, descriptions.EMBED)}),
        route("/v1/models", {"GET": Operation(api.models, descriptions.MODELS)}),
        route("/v1/models/{model:path}", {"GET": Operation(api.model, descriptions.MODEL)}),
    ]


class _Api:
    def __init__(self, state):
        self._state, self._engine = state, state.engine
        self._steps, self._texts = Steps(state.engine), TokenTexts(state.engine.tokenizer)
        self._name, self._created = state.model_name, int(time.time())

    async def complete(self, request: Request) -> Response:
        body = await self._body(request)
        prompt, form = completions.read(body, self._name, self._texts)
        n, about = about_tokens(prompt)

        async def prepare():
            return await asyncio.to_thread(completions.tokenised, prompt, self._engine, form)

        about += about_new(form.options, n)
        return await respond(request, self._state, self._steps, form, about, prepare)

    async def chat(self, request: Request) -> Response:
        body = await self._body(request)
        asked = chat.read(body, self._name, self._texts)
        chat.template_of(self._engine.tokenizer)
        wanted = retrieval.wanted_of(asked.retrieval, asked.messages, self._state)

        async def prepare():
            if wanted is None:
                make = partial(chat.prompt_of, asked.messages, self._engine, asked.template_options)
            else:
                found = await retrieval.search(self._state, wanted)
                make = partial(retrieval.prompt_with, asked, self._engine, wanted.query, found)
            return [await asyncio.to_thread(make)]

        _, about = about_tokens([message["content"] for message in asked.messages])
        about += about_new(asked.form.options, 1)
        return await respond(request, self._state, self._steps, asked.form, about, prepare)

    async def embed(self, request: Request) -> Response:
        body = await self._body(request)
        given, encoded = embeddings.read(body, self._engine, self._name)
        _, about = about_tokens(given)
        try:
            async with self._state.guarded(request, about) as reservation:
                tokens = await asyncio.to_thread(embeddings.tokenised, given, self._engine)
                reservation.used = sum(map(len, tokens))
                work = embeddings.vectors_of(self._steps, tokens)
                vectors = await while_connected(request.receive, work)
                answer = await asyncio.to_thread(
                    embeddings.answer, vectors, self._name, reservation.used, encoded=encoded
                )
        except ClientDisconnect:
            return Response(status_code=LEFT)
        except CapacityError as error:
            raise Problem(503, str(error), headers=retry_after(1)) from error
        return json_response(answer)

    async def models(self, request: Request) -> Response:
        self._state.require_key(request)
        return json_response({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        self._state.require_key(request)
        check_model({"model": request.path_params["model"]}, self._name)
        return json_response(self._model())

    def _model(self):
        return {
            "id": self._name, "object": "model", "created": self._created, "owned_by": "llmds_nb",
            "max_model_len": self._engine.max_len,
        }  # fmt: skip

    async def _body(self, request):
        self._state.require_key(request)
        if self._engine.closed:
            raise closed()
        return await self._state.body(request)
