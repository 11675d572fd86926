"""Tokens of a request as an asynchronous iterator."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any


class TokenStream:
    """The tokens of a request; steps run in the one thread of the engine.

    Where the iteration is left before its end, by `aclose`, a cancelled task or an error, the
    request is cancelled.

    Parameters
    ----------
    engine : Engine
    request : Request
    """

    def __init__(self, engine: Any, request: Any) -> None:
        self._request, self._tokens = request, _tokens(engine, request)

    def __aiter__(self) -> "TokenStream":
        return self

    async def __anext__(self) -> int:
        return await anext(self._tokens)

    async def aclose(self) -> None:
        """Leave the iteration; also one that has not begun."""
        await self._tokens.aclose()
        self._request.cancel()


async def _tokens(engine, request) -> AsyncGenerator[int, None]:
    at = 0
    try:
        while True:
            if len(request._tokens) <= at and not request.finished:
                step = engine.in_worker(engine._run_until, request, at)
                await asyncio.wrap_future(step)
            while at < len(request._tokens):
                at += 1
                yield request._tokens[at - 1]
            if request.finished:
                break
        if request.error is not None:
            raise request.error
    finally:
        request.cancel()
