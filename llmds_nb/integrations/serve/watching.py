"""Ends what is done for a client that has gone away."""

import asyncio

from starlette.requests import ClientDisconnect, Request

_PATIENCE_S = 0.25  # a request that takes less is done anyway: a watcher costs more than that


class Watch:
    """`with Watch(request):` raises ClientDisconnect within it if the client goes away.

    Only once it takes longer than a quarter of a second, and after the body was read.
    """

    def __init__(self, request: Request) -> None:
        self._request, self._gone = request, False
        self._watcher: asyncio.Task | None = None

    def __enter__(self) -> "Watch":
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_PATIENCE_S, self._begin, asyncio.current_task())
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        if self._gone and kind is asyncio.CancelledError:
            raise ClientDisconnect

    def _begin(self, task):
        self._watcher = asyncio.ensure_future(self._watch(task))

    async def _watch(self, task):
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        task.cancel()
