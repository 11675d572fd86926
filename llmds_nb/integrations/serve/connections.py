"""Connections of slow clients: uvicorn's protocol with limits for heads and for unread answers."""

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from .errors import Problem
from .state import ServerState

MAX_HEAD = 64 * 1024  # bytes of the first line and the headers of a request
_REASONS = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}


def protocol_class(state: ServerState) -> type[asyncio.Protocol]:
    """The protocol of a server's connections: httptools' if it is installed, else h11's.

    A request with a body and the header Upgrade gets 400 from httptools', instead of a lost body.
    A client gets 408 if the head of its request has not come after `client_timeout_s`, 431 if it
    has more than 64 KiB, and 400 if it is no HTTP. A connection whose client reads nothing of its
    answer for that time ends.
    """
    base: Any = AutoHTTPProtocol
    client_timeout_s, opened = state.settings.client_timeout_s, state.metrics.connections

    class Connection(base):
        """One connection."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            opened.inc()
            self._head_bytes = 0
            self._running: Any = None  # the request that is being answered
            self._unread: asyncio.TimerHandle | None = None
            self._head: asyncio.TimerHandle | None = None
            self._wait_for_head()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            opened.dec()
            # uvicorn keeps the timer, and with it the connection, where a client has reset it, and
            # tells the last of pipelined requests alone, which is not the one being answered.
            self._unset_keepalive_if_required()
            if self._running is not None and not self._running.response_complete:
                self._running.disconnected = True
                self._running.message_event.set()
            self._stop("_head")
            self._stop("_unread")

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop("_head")
                self._head_bytes = 0
                return
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD:
                self._refuse(431, f"the head must have at most {MAX_HEAD} bytes")
            else:
                self._wait_for_head()

        def _start_asgi_task(self, cycle: Any, app: Any) -> None:
            self._running = cycle
            super()._start_asgi_task(cycle, app)

        def on_headers_complete(self) -> None:  # of httptools', which reads no body after Upgrade
            body = {b"content-length", b"transfer-encoding"}.intersection(dict(self.headers))
            self._loses_body = bool(body) and self.parser.should_upgrade()
            if self._loses_body:
                text = "a request with a body must not have the header Upgrade: this is HTTP/1.1"
                self._refuse(400, text)
            else:
                super().on_headers_complete()

        def on_message_complete(self) -> None:
            if not self._loses_body:
                super().on_message_complete()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stop("_unread")
            self._unread = self.loop.call_later(client_timeout_s, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._stop("_unread")

        def send_400_response(self, msg: str) -> None:
            self._refuse(400, "the request is not HTTP")

        def _stop(self, timer):
            running = getattr(self, timer)
            if running is not None:
                running.cancel()
                setattr(self, timer, None)

        def _wait_for_head(self):
            if self._head is None and not self.transport.is_closing():
                self._head = self.loop.call_later(client_timeout_s, self._no_head)

        def _no_head(self):
            self._head = None
            if self.cycle is not None and not self.cycle.response_complete:
                return
            if self._head_bytes:
                text = f"the head of the request did not arrive within {client_timeout_s:g} s"
                self._refuse(408, text)
            else:
                self.transport.close()

        def _refuse(self, status, text):
            if self.transport.is_closing():
                return
            body = Problem(status, text).response().body
            lines = f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: application/json\r\n"
            lines += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            self.transport.write(lines.encode() + bytes(body))
            self.transport.close()

    return Connection
