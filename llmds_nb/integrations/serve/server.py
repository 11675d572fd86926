"""run_server: an application on a socket, from its start to its graceful end."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.applications import Starlette

from . import lifecycle
from .connections import MAX_HEAD, protocol_class
from .state import ServerState

_IDLE_S = 75  # that a connection without a request is kept


class _Server(uvicorn.Server):
    """uvicorn's server whose first signal drains, saves and ends, and whose second ends at once."""

    def __init__(self, config: uvicorn.Config, state: ServerState, on_ready: Callable) -> None:
        super().__init__(config)
        self._of_app, self._on_ready = state, on_ready
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Task | None = None
        self.failure: Exception | None = None
        self.was_asked = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._on_ready()

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self.was_asked:
            os._exit(128 + sig)
        self.stop()

    def stop(self) -> None:
        """Begin to end; from any thread."""
        self.was_asked = True
        if self._loop is None:
            self.should_exit = True
        else:
            with contextlib.suppress(RuntimeError):  # it has ended already
                self._loop.call_soon_threadsafe(self._begin_to_end)

    def _begin_to_end(self):
        if self._end is None:
            self._end = asyncio.ensure_future(self._finish())

    async def _finish(self):
        try:
            await lifecycle.finish(self._of_app)
        except Exception as error:
            self.failure = error
        finally:
            self.should_exit = True


def run_server(
    app: Starlette, listener: socket.socket, *,
    on_ready: Callable[[Callable[[], None]], object] = lambda stop: None,
) -> None:  # fmt: skip
    """Serve an application of `create_app` on a bound socket until a signal, or `stop`.

    SIGINT or SIGTERM, in the main thread: requests get 503, those under way are finished, at most
    for `drain_timeout_s`, documents are saved, and it returns. A second signal ends the process at
    once, with the exit code 128 + its number.

    Parameters
    ----------
    app : Starlette
    listener : socket.socket
        Bound; it is closed at the end.
    on_ready : callable
        Called once requests are taken, with a function that ends the server as a signal does.

    Raises
    ------
    ChangedFileError, OSError
        The documents could not be saved at the end.
    """
    state: ServerState = app.state.server
    config = uvicorn.Config(
        app, http=protocol_class(state), ws="none", lifespan="on",
        log_config=None, log_level="error", access_log=False, server_header=False,
        proxy_headers=False, timeout_keep_alive=_IDLE_S, timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=16 * MAX_HEAD,  # Connection refuses it before
    )  # fmt: skip
    server = _Server(config, state, lambda: on_ready(server.stop))
    server.run(sockets=[listener])
    if server.failure is not None:
        raise server.failure
