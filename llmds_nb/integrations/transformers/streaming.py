"""Tokens of a request as an asynchronous iterator."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any


async def stream(engine: Any, request: Any) -> AsyncIterator[int]:
    """Yield the tokens of a request; steps run in the one thread of the engine's executor.

    Where the iteration is left before its end, by `aclose`, a cancelled task or an error, the
    request is cancelled.
    """
    loop, at = asyncio.get_running_loop(), 0
    try:
        while True:
            if len(request._tokens) <= at and not request.finished:
                await loop.run_in_executor(engine._executor(), engine._run_until, request, at)
            while at < len(request._tokens):
                at += 1
                yield request._tokens[at - 1]
            if request.finished:
                break
        if request.error is not None:
            raise request.error
    finally:
        request.cancel()
