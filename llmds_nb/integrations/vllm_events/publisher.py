"""Publisher: the events of a KVCache over ZeroMQ, as vLLM publishes its own."""

import itertools
import os
import threading
from collections import deque
from typing import Any, NamedTuple

import zmq

from llmds_nb._core import validation
from llmds_nb._core.forking import new_lock
from llmds_nb.kv import KVEvent

from .schema import encode

END = (-1).to_bytes(8, "big", signed=True)  # sequence number behind the last of a replay
_names = itertools.count()


class PublisherStats(NamedTuple):
    """Counts since the start."""

    batches: int  # messages sent
    events: int  # in them
    buffered: int  # messages kept for replay now
    replays: int  # requests answered
    bad_requests: int  # that were none


class Publisher:
    """Sends the events of a cache to all that subscribe, and again to those that missed some.

    A message has three frames: the topic, its number as 8 bytes (big-endian, from 0), and a payload
    (`encode`). Who missed some sends the number of the first to the ROUTER at `replay_endpoint` and
    gets all that are kept from there on, and a last one of number -1. ZeroMQ drops messages for a
    subscriber that is more than `hwm` behind; the numbers tell it.

    Parameters
    ----------
    cache : KVCache
        With `max_events`; nobody else may call its `events`.
    endpoint : str
        Where the PUB socket binds, such as "tcp://*:5557"; port 0 takes a free one: see the
        attribute `endpoint`.
    replay_endpoint : str, optional
        Where the ROUTER socket binds, served by a thread. Without it, whoever missed a message
        forgets all it knows.
    topic : str
        The first frame.
    buffer_steps : int
        Messages kept for replay.
    hwm : int
        Messages waiting for one subscriber.
    medium, data_parallel_rank, form, int_hashes
        See `encode`.
    context : zmq.Context, optional
        Of the sockets; the process's by default.

    Notes
    -----
    Call `publish` after each step. Thread-safe by one lock. `close` it, or use it in a `with`. A
    child of `os.fork` makes its own.

    >>> from llmds_nb import KVCache
    >>> cache = KVCache(8, 2, max_events=100)
    >>> with Publisher(cache, "tcp://127.0.0.1:0") as publisher:
    ...     _ = cache.attach(0, [1, 2, 3, 4])
    ...     cache.commit(0, 4)
    ...     publisher.publish()
    2
    """

    def __init__(
        self,
        cache: Any,
        endpoint: str,
        *,
        replay_endpoint: str | None = None,
        topic: str = "",
        buffer_steps: int = 10_000,
        hwm: int = 100_000,
        medium: str | None = "GPU",
        data_parallel_rank: int | None = None,
        form: str = "map",
        int_hashes: bool = False,
        context: zmq.Context | None = None,
    ) -> None:
        self.cache = cache
        self._topic = validation.text(topic, "topic").encode()
        buffer_steps = validation.integer(buffer_steps, "buffer_steps", low=0)
        hwm = validation.integer(hwm, "hwm", low=0, high=2**31 - 1)
        self._options: dict[str, Any] = {
            "medium": medium, "data_parallel_rank": data_parallel_rank, "form": form,
            "int_hashes": validation.flag(int_hashes, "int_hashes"),
        }  # fmt: skip
        encode([], **self._options)
        self._unsent: list[KVEvent] = cache.events()  # a ValueError where it logs none
        self._lock, self._buffer = new_lock(), deque[tuple[int, bytes]](maxlen=buffer_steps)
        self._next = self._n_events = self._n_replays = self._n_bad = 0
        self._context = context or zmq.Context.instance()
        self._thread: threading.Thread | None = None
        self._was_told = False  # the thread, to stop
        self._sockets: list[zmq.Socket] = []
        self._pid = os.getpid()
        try:
            self._pub, self.endpoint = self._bound(zmq.PUB, endpoint, hwm)
            self.replay_endpoint = None
            if replay_endpoint is not None:
                self._serve(replay_endpoint)
        except BaseException:
            self.close()
            raise

    def _bound(self, kind, endpoint, hwm):
        socket = self._context.socket(kind)
        self._sockets.append(socket)
        socket.linger = 0
        socket.set_hwm(hwm)
        try:
            socket.bind(validation.text(endpoint, "endpoint"))
        except zmq.ZMQError as error:
            raise OSError(error.errno, f"{error.strerror}: {endpoint}") from None
        return socket, socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def publish(self) -> int:
        """Send what the cache has logged since the last call, if anything; return how many events.

        Never waits for a subscriber. What could not be sent is sent with the next call.
        """
        with self._lock:
            if self._pid != os.getpid():
                raise ValueError("the publisher is of the process before a fork: make a new one")
            if not self._sockets:
                raise ValueError("the publisher is closed")
            self._unsent += self.cache.events()
            events = self._unsent
            if not events:
                return 0
            payload, number = encode(events, **self._options), self._next
            self._pub.send_multipart([self._topic, number.to_bytes(8, "big"), payload])
            self._buffer.append((number, payload))
            n = len(events)
            self._unsent, self._next, self._n_events = [], number + 1, self._n_events + n
            return n

    def _serve(self, endpoint):
        router, self.replay_endpoint = self._bound(zmq.ROUTER, endpoint, 0)
        name = f"inproc://llmds_nb-publisher-{id(self)}-{next(_names)}"
        stop, self._stop = self._context.socket(zmq.PAIR), self._context.socket(zmq.PAIR)
        self._sockets += [stop, self._stop]
        stop.bind(name)
        self._stop.connect(name)
        run = threading.Thread(target=self._answer, args=(router, stop), daemon=True)
        run.name = "llmds_nb-events-replay"
        run.start()
        self._thread = run

    def _answer(self, router, stop):
        """Answer requests for replay until `stop` gets a message."""
        poller = zmq.Poller()
        poller.register(router, zmq.POLLIN)
        poller.register(stop, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if stop in ready:
                return
            frames = router.recv_multipart()
            with self._lock:
                is_request = len(frames) == 3 and frames[1] == b"" and len(frames[2]) == 8
                self._n_bad += not is_request
                self._n_replays += is_request
                kept = list(self._buffer)
            if not is_request:
                continue
            client, first = frames[0], int.from_bytes(frames[2], "big")
            for number, payload in kept:
                if number >= first:
                    own = number.to_bytes(8, "big")
                    router.send_multipart([client, b"", self._topic, own, payload])
            router.send_multipart([client, b"", b"", END, b""])

    def stats(self) -> PublisherStats:
        """Return counts since the start."""
        with self._lock:
            return PublisherStats(
                self._next, self._n_events, len(self._buffer), self._n_replays, self._n_bad
            )

    def close(self) -> None:
        """Stop; the cache is left as it is. A second call has no effect, nor one in a child."""
        if self._pid != os.getpid():  # the sockets are the parent's
            return
        with self._lock:
            thread = self._thread
            if thread is not None and not self._was_told:
                self._stop.send(b"")
                self._was_told = True
        if thread is not None:
            thread.join()  # it takes the lock
        with self._lock:
            while self._sockets:
                self._sockets[-1].close(linger=0)
                self._sockets.pop()

    def __enter__(self) -> "Publisher":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Publisher at {self.endpoint}: {self._next} batches>"
