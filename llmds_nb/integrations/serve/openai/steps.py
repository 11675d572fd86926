"""Steps: computes the steps of an Engine in its worker thread; Call: the requests of one client.

A call's requests begin together and end together: when the client leaves, all are cancelled. The
event loop only reads what steps have left in the requests. Requests of all calls are in one batch.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from llmds_nb import CapacityError
from llmds_nb._core.forking import new_lock
from llmds_nb.integrations.transformers import Request, SamplingParams

from ..errors import Problem, retry_after

Job = tuple[Any, SamplingParams]  # int32[n] tokens of a prompt, and how to go on from there


class Steps:
    """Computes steps of an engine, one at a time, as long as calls have requests in it.

    Between two steps the worker thread does what else was given to it, such as embeddings. What
    other threads compute by iterating over requests of their own is noticed, too.

    Parameters
    ----------
    engine : Engine
    """

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self._calls: set[Call] = set()
        self._running = False
        self._lock = new_lock()

    def __len__(self) -> int:
        """How many calls have requests that go on."""
        return len(self._calls)

    def follow(self, call: "Call") -> None:
        """Compute steps until the requests of a call have ended, and tell it when they go on."""
        with self._lock:
            self._calls.add(call)
            if not self._running:
                self._running = True
                self._next()

    def in_worker(self, function: Callable[..., Any], *args: Any) -> "asyncio.Future[Any]":
        """Call a function between two steps, in the thread that computes them."""
        return asyncio.wrap_future(self.engine.in_worker(function, *args))

    def _next(self):
        try:
            self.engine.in_worker(self._step)
        except RuntimeError:  # the engine is closed, or the interpreter ends
            calls, self._calls, self._running = self._calls, set(), False
            for call in calls:
                call.fail(closed())
            _tell(calls)

    def _step(self):
        failed: Exception | None = None
        try:
            self.engine.step()
        except CapacityError as error:
            failed = Problem(503, str(error), code="overloaded", headers=retry_after(1))
        except Exception as error:  # of the model, or of torch: whatever it is, all calls end
            failed = closed() if self.engine.closed else error
        with self._lock:
            calls = list(self._calls)
        if failed is not None:
            for call in calls:
                call.fail(failed)
        _tell(call for call in calls if call.has_news())
        with self._lock:
            self._calls.difference_update(call for call in calls if call.ended)
            self._running = bool(self._calls)
            if self._running:
                self._next()


def closed() -> Problem:
    """What clients hear when the engine is closed."""
    return Problem(503, "the model of this server has ended", code="draining")


def _tell(calls):
    """Wake the tasks that wait for calls; one of the event loops may be closed."""
    loops: dict[Any, list[Call]] = {}
    for call in calls:
        loops.setdefault(call.loop, []).append(call)
    for loop, own in loops.items():
        try:
            loop.call_soon_threadsafe(_wake, own)
        except RuntimeError:  # nobody reads any more
            for call in own:
                call.close()


def _wake(calls):
    for call in calls:
        call.news.set()


class Call:
    """The requests of one client's call, made in its event loop.

    Parameters
    ----------
    steps : Steps
    streamed : bool
        Whether every token is news; otherwise only the end.
    """

    def __init__(self, steps: Steps, *, streamed: bool) -> None:
        self.loop, self.news = asyncio.get_running_loop(), asyncio.Event()
        self.requests: list[Request] = []
        self.error: Exception | None = None  # why no step can be computed
        self._steps, self._streamed = steps, streamed
        self._closed, self._n_seen = False, -1
        self._lock = new_lock()

    async def begin(self, jobs: Iterable[Job], salt: str) -> None:
        """Submit requests, in another thread.

        Raises
        ------
        ValueError, TypeError
            As `Engine.submit` does; then the caller closes the call.
        """
        await asyncio.to_thread(self._begin, jobs, salt)

    def _begin(self, jobs, salt):
        for tokens, params in jobs:
            request = self._steps.engine.submit(tokens, params, salt=salt or 0)
            with self._lock:
                self.requests.append(request)
                if self._closed:  # the client left meanwhile
                    request.cancel()
                    return
        self._steps.follow(self)

    @property
    def ended(self) -> bool:
        """Whether all requests have ended."""
        return all(request.finished for request in self.requests)

    def has_news(self) -> bool:
        """Whether something happened since this was asked last. For the thread of the steps."""
        if not self._streamed:
            return self.ended
        n_ended = sum(request.finished for request in self.requests)
        n_seen = sum(request.n_tokens for request in self.requests) + n_ended
        changed, self._n_seen = n_seen != self._n_seen, n_seen
        return changed

    async def wait(self) -> None:
        """Until a request has another token, or all have ended."""
        await self.news.wait()
        self.news.clear()

    def fail(self, error: Exception) -> None:
        """End the call because the engine cannot go on."""
        self.error = error
        self.close()

    def close(self) -> None:
        """Cancel what goes on. Again: nothing."""
        with self._lock:
            self._closed = True
            for request in self.requests:
                request.cancel()
