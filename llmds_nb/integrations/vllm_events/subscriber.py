"""Subscriber: the events that an engine publishes, into a PrefixRouter.

What the router knows must never be more than what the engine holds, so that every message counts:

- A gap in the numbers is asked for at the replay socket; what is not there any more is "lost", and
  the router forgets all it knows of the replica.
- A connection that ended may be that of an engine that has since started anew, with numbers from 0
  and nothing cached, and whose first numbers can look like those expected. So the router forgets,
  the socket and what waits in it are thrown away, and all that is kept is asked for from 0.
- The number before a gap is asked for too: if its payload is not the one that was applied, the
  engine is another one (behind a proxy, which hides that a connection ended). So is it where a
  number comes that is not larger than the one before.
- A message that cannot be read may have removed a page: it is counted, and the router forgets.
- So does it after a `poll` that was interrupted, between a message and what it tells the router.
"""

import hashlib
import logging
import os
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import zmq
from zmq.utils.monitor import recv_monitor_message

from llmds_nb._core import validation
from llmds_nb._core.forking import new_lock
from llmds_nb.kv import KVEvent

from .publisher import END
from .schema import BlockStored, kv_events, read_batch

_LOG = logging.getLogger(__name__)
_LOG.addHandler(logging.NullHandler())
_MOST = 10_000  # messages taken by one call of `poll`
_SLICE_MS = 50  # how long it waits for a message before it looks whether to stop


class SubscriberStats(NamedTuple):
    """Counts since the start, and where it is."""

    batches: int  # messages applied, replayed ones among them
    events: int  # pages stored and removed, and clearances, given to the router
    left_out: int  # events of other media, groups or sizes of blocks
    gaps: int  # in the numbers of messages
    replayed: int  # messages applied from a replay
    lost: int  # messages that could be had from nowhere
    restarts: int  # of the publisher, or of the connection to it
    bad_frames: int  # messages that could not be read
    failed_replays: int  # not answered, or not to the end
    next_number: int  # of the message expected next; -1 before the first


class Subscriber:
    """Follows the events of one engine, and tells a router what its replica holds.

    Parameters
    ----------
    endpoint : str
        The PUB socket of the engine, such as "tcp://10.0.0.7:5557".
    router : PrefixRouter
        Whose `observe` gets the events. It may have several subscribers.
    replica : int
        The number of the engine in the router.
    replay_endpoint : str, optional
        The engine's ROUTER socket. Without it, after each lost message and at the start, the router
        knows only what is stored from then on in front of what it knows.
    topic : str
        Only messages whose topic begins so.
    media, group, page_size
        See `decode`; without `page_size` the first block decides it.
    replay_timeout_ms : float
        How long the next message of a replay may take.
    hwm : int
        Messages that wait here before the publisher drops some.
    context : zmq.Context, optional
        Of the sockets; the process's by default.

    Notes
    -----
    Call `poll` now and then, or `start` a thread that does. Thread-safe by one lock. `close` it, or
    use it in a `with`, which starts no thread. A child of `os.fork` makes its own.

    >>> from llmds_nb import KVCache, PrefixRouter
    >>> from llmds_nb.integrations.vllm_events import Publisher
    >>> cache, router = KVCache(8, 2, max_events=100), PrefixRouter(2, page_size=2)
    >>> endpoints = {"endpoint": "inproc://doc", "replay_endpoint": "inproc://doc replay"}
    >>> with Publisher(cache, **endpoints) as publisher, Subscriber(
    ...     router=router, replica=1, **endpoints
    ... ) as subscriber:
    ...     _ = cache.attach(0, [1, 2, 3, 4])
    ...     cache.commit(0, 4)
    ...     _ = publisher.publish()
    ...     _ = subscriber.poll(1000)
    >>> router.held_pages, router.route([1, 2, 3, 4, 5])
    ({1: 2}, 1)
    """

    def __init__(
        self,
        endpoint: str,
        router: Any,
        replica: int,
        *,
        replay_endpoint: str | None = None,
        topic: str = "",
        media: Sequence[str] = ("GPU",),
        group: int = 0,
        page_size: int | None = None,
        replay_timeout_ms: float = 2000.0,
        hwm: int = 100_000,
        context: zmq.Context | None = None,
    ) -> None:
        self.endpoint, self.replay_endpoint = validation.text(endpoint, "endpoint"), replay_endpoint
        self.router, self.replica = router, replica
        self._topic = validation.text(topic, "topic").encode()
        self._media, self._group = tuple(validation.texts(media, "media")), group
        if page_size is not None:
            page_size = validation.integer(page_size, "page_size", low=1)
        self._given_size = self._size = page_size
        self._timeout_ms = validation.real(
            replay_timeout_ms, "replay_timeout_ms", low=0.0, high=2**31 - 1
        )
        self._hwm = validation.integer(hwm, "hwm", low=0, high=2**31 - 1)
        self._context = context or zmq.Context.instance()
        self._lock = new_lock()
        self._counts = dict.fromkeys(SubscriberStats._fields[:-1], 0)
        self._applied = b""  # digest of the payload applied last
        self._thread: threading.Thread | None = None
        self._stopping = self._is_torn = False
        self._pid = os.getpid()
        self.failure: Exception | None = None  # what ended the thread
        self._sub: zmq.Socket | None = None
        router.observe(replica, [])
        self._connect()

    def _connect(self):
        """A new connection: nothing is known of what is published there."""
        self._expected: int | None = None
        self._last: int | None = None  # number of the last message that was not replayed
        self._size = self._given_size
        # Where ZeroMQ reports no connection, there is one at once.
        self._to_replay = self.endpoint.startswith("inproc:")
        sub = self._sub = self._context.socket(zmq.SUB)
        events = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        self._monitor = sub.get_monitor_socket(events)
        try:
            sub.linger = 0
            sub.set_hwm(self._hwm)
            sub.subscribe(self._topic)
            sub.connect(self.endpoint)
        except zmq.ZMQError as error:
            self._disconnect()
            raise ValueError(f"{error.strerror}: {self.endpoint}") from None

    def _disconnect(self):
        sub = self._sub
        if sub is None:
            return
        if not sub.closed:
            sub.disable_monitor()
            self._monitor.close(linger=0)
            sub.close(linger=0)
        self._sub = None

    # ---- messages --------------------------------------------------------------------------------

    def poll(self, timeout_ms: float = 0.0) -> int:
        """Apply the messages that are there, or the first that comes; return how many.

        Parameters
        ----------
        timeout_ms : float
            How long to wait for the first.

        Raises
        ------
        KeyError
            The router has no such replica any more.
        ValueError
            The subscriber is closed.
        """
        timeout_ms = validation.real(timeout_ms, "timeout_ms", low=0.0, high=2**31 - 1)
        end = time.monotonic() + timeout_ms / 1000
        while True:
            left_ms = max(0.0, 1000 * (end - time.monotonic()))
            with self._lock:
                self._check_open()
                if self._is_torn:
                    self._disconnect()
                    self._forget("restarts")
                    self._connect()
                self._is_torn = True
                n = self._take_all(min(left_ms, _SLICE_MS))
                self._is_torn = False
            if n or left_ms <= _SLICE_MS:
                return n

    def _check_open(self):
        if self._pid != os.getpid():
            raise ValueError("the subscriber is of the process before a fork: make a new one")
        if self._stopping:
            raise ValueError("the subscriber is closed")

    def _take_all(self, timeout_ms):
        """Apply the messages that are there, or the first that comes; return how many."""
        before = self._counts["batches"]
        self._catch_up()
        if self._counts["batches"] == before:
            poller = zmq.Poller()
            poller.register(self._sub, zmq.POLLIN)
            poller.register(self._monitor, zmq.POLLIN)
            poller.poll(int(timeout_ms))
        for _ in range(_MOST):
            self._catch_up()
            try:
                frames = self._sub.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            if self._catch_up():  # else it may be of the connection before
                self._take(frames)
        return self._counts["batches"] - before

    def _is_other_connection(self) -> bool:
        """Whether the connection ended since the last look; then there is a new socket."""
        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)["event"]
            if event == zmq.EVENT_DISCONNECTED:
                self._disconnect()
                self._forget("restarts")
                self._connect()
                return True
            self._to_replay = self._expected is None
        return False

    def _catch_up(self) -> bool:
        """Ask for all that is kept, where a connection is new; False if there is a new socket."""
        if self._is_other_connection():
            return False
        if self._to_replay:
            self._to_replay = False
            self._replay(0)
        return True

    def _take(self, frames):
        """One message of the SUB socket."""
        if len(frames) != 3 or len(frames[1]) != 8 or frames[1] == END:
            sizes = [len(frame) for frame in frames]
            self._bad(f"a message must be [topic, 8 bytes, payload], not frames of {sizes} bytes")
            return
        number = int.from_bytes(frames[1], "big")
        if self._last is not None and number <= self._last:
            self._forget("restarts")
            self._expected, self._size = None, self._given_size
            self._replay(0)
        self._last = number
        if self._expected is not None and number > self._expected:
            self._counts["gaps"] += 1
            self._replay(self._expected)
        self._apply(number, frames[2])

    def _apply(self, number, payload) -> bool:
        """Apply a message, unless it was; those missing before it are lost. Whether it was new."""
        if self._expected is not None and number < self._expected:
            return False
        if self._expected is not None and number > self._expected:
            self._forget("lost", number - self._expected)
        self._expected = number + 1
        self._applied = hashlib.blake2b(payload, digest_size=16).digest()
        try:
            batch = read_batch(payload)
            if self._size is None:
                stored = (e.block_size for e in batch.events if isinstance(e, BlockStored))
                self._size = next(stored, None)
            events, left_out = kv_events(batch, self._media, self._group, self._size)
            self.router.observe(self.replica, events)
        except ValueError as error:  # no batch, or one that the router refuses
            self._bad(f"message {number}: {error}")
            return True
        self._counts["batches"] += 1
        self._counts["events"] += len(events)
        self._counts["left_out"] += left_out
        return True

    def _bad(self, text):
        _LOG.warning("%s: %s", self.endpoint, text)
        self._forget("bad_frames")

    def _forget(self, why, n=1):
        """Count why, and have the router forget what it knows of the replica."""
        self._counts[why] += n
        self.router.observe(self.replica, [KVEvent("lost", lost=n)])

    # ---- replay ----------------------------------------------------------------------------------

    def _replay(self, first):
        """Apply what is kept from a number on, as far as the replay socket gives it."""
        if self.replay_endpoint is None:
            return
        for start in (max(first - 1, 0), 0):
            with self._context.socket(zmq.DEALER) as dealer:
                dealer.linger = 0
                dealer.set_hwm(0)
                dealer.connect(self.replay_endpoint)
                dealer.send_multipart([b"", start.to_bytes(8, "big")])
                if self._read_replay(dealer):
                    return
            self._forget("restarts")  # another engine: all of it, from the start
            self._expected, self._size = None, self._given_size

    def _read_replay(self, dealer) -> bool:
        """Apply the answer to a request; False if it is of another engine than the one followed."""
        while self._comes(dealer):
            frames = dealer.recv_multipart()
            if frames and frames[0] == b"" and len(frames) in (3, 4):
                number_bytes, payload = frames[-2:]  # before them the topic, since vLLM 0.15 or so
                if number_bytes == END:
                    return True
                if len(number_bytes) == 8:
                    number = int.from_bytes(number_bytes, "big")
                    if self._expected is not None and number == self._expected - 1:
                        digest = hashlib.blake2b(payload, digest_size=16).digest()
                        if digest != self._applied:
                            return False
                    self._counts["replayed"] += self._apply(number, payload)
                    continue
            self._bad(f"no message of a replay: frames of {[len(f) for f in frames]} bytes")
        self._counts["failed_replays"] += 1
        return True

    def _comes(self, dealer) -> bool:
        """Whether a message comes within `replay_timeout_ms`, and before `close` is called."""
        end = time.monotonic() + self._timeout_ms / 1000
        while not self._stopping:
            left_ms = max(0.0, 1000 * (end - time.monotonic()))
            if dealer.poll(int(min(left_ms, _SLICE_MS))):
                return True
            if left_ms <= _SLICE_MS:
                return False
        return False

    # ---- a thread, the end -----------------------------------------------------------------------

    def start(self) -> "Subscriber":
        """Have a thread call `poll` until `close`; what it raises ends it, and is in `failure`.

        ValueError after `close`.
        """
        with self._lock:
            self._check_open()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.name = "llmds_nb-events"
                self._thread.start()
        return self

    def _run(self):
        while not self._stopping:
            try:
                self.poll(_SLICE_MS)
            except Exception as error:
                if self._stopping:
                    return
                self.failure = error
                _LOG.error("%s: the subscriber ended: %r", self.endpoint, error)
                return

    def stats(self) -> SubscriberStats:
        """Return counts since the start."""
        with self._lock:
            number = -1 if self._expected is None else self._expected
            return SubscriberStats._make((*self._counts.values(), number))

    def close(self) -> None:
        """Stop; what the router knows stays. A second call has no effect, nor one in a child."""
        self._stopping = True
        if self._pid != os.getpid():  # the sockets are the parent's
            return
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        with self._lock:
            self._disconnect()

    def __enter__(self) -> "Subscriber":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Subscriber to {self.endpoint} for replica {self.replica}>"
