"""Publisher and Subscriber over real sockets, which lose, drop and damage messages."""

import threading
import time

import pytest

pytest.importorskip("msgpack")
pytest.importorskip("zmq")

import zmq

from llmds_nb import KVCache, PrefixRouter
from llmds_nb.integrations.vllm_events import (
    BlockStored,
    EventBatch,
    Publisher,
    Subscriber,
    pack_batch,
)
from llmds_nb.kv import KVEvent

WAIT_MS = 20_000  # the most that a test waits for a message
END = b"\xff" * 8


@pytest.fixture
def context():
    """A context whose sockets are all closed at the end, or the test fails."""
    with zmq.Context() as made:
        yield made


TCP = "tcp://127.0.0.1:0"


def until(subscriber, holds):
    """Poll until something holds."""
    end = time.monotonic() + WAIT_MS / 1000
    while not holds():
        assert time.monotonic() < end, subscriber.stats()
        subscriber.poll(100)


class Pair:
    """A cache that publishes, and a router that follows it."""

    def __init__(self, context, *, replay=True, **options):
        self.context, self.options = context, options
        self.cache = KVCache(64, 2, max_events=1000)
        kept = {"replay_endpoint": TCP} if replay else {}
        self.publisher = Publisher(self.cache, TCP, context=context, **kept, **options)
        self.router = PrefixRouter(2, page_size=2)
        self.subscriber = self.subscribe(self.router)
        self.n = 0

    def subscribe(self, router, **options):
        return Subscriber(
            self.publisher.endpoint, router, 1, context=self.context,
            replay_endpoint=self.publisher.replay_endpoint, **options,
        )  # fmt: skip

    def store(self):
        """Store two pages of their own, and publish them."""
        self.n += 1
        self.cache.attach(self.n, [self.n, 5, self.n, 6])
        self.cache.commit(self.n, 4)
        self.cache.detach(self.n)
        assert self.publisher.publish() >= 2

    def connect(self):
        """Publish until the subscriber gets the messages themselves."""
        end = time.monotonic() + WAIT_MS / 1000
        while self.subscriber._last is None:
            assert time.monotonic() < end
            self.store()
            self.subscriber.poll(100)

    def agree(self):
        until(self.subscriber, lambda: self.subscriber.stats().next_number == self.publisher._next)
        assert self.router.held_pages == {1: self.cache.stats().n_cached}
        for n in range(1, self.n + 1):
            text = [n, 5, n, 6]
            assert self.cache.match(text) in (0, 4)
            if self.cache.match(text):
                fresh = PrefixRouter.from_bytes(self.router.to_bytes())
                assert fresh.route(text) == 1
        self.router.check()

    def close(self):
        self.subscriber.close()
        self.publisher.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


@pytest.mark.parametrize("form", ["map", "array"])
def test_a_router_knows_what_the_cache_holds(context, form):
    with Pair(context, form=form, topic="kv@0") as pair:
        for _ in range(60):  # the last ones evict the first
            pair.store()
            pair.subscriber.poll()
        pair.agree()
        assert pair.cache.stats().evictions > 0
        stats = pair.subscriber.stats()
        assert stats.batches == 60 and stats.lost == stats.bad_frames == stats.restarts == 0
        assert pair.publisher.stats()[:2] == (60, stats.events)
        pair.cache.reset()
        assert pair.publisher.publish() == 1 and pair.publisher.publish() == 0
        pair.agree()
        assert pair.router.held_pages == {1: 0}


def test_who_joins_late_gets_all_that_is_kept(context):
    with Pair(context) as pair:
        for _ in range(10):
            pair.store()
        router = PrefixRouter(2, page_size=2)
        with pair.subscribe(router) as late:
            until(late, lambda: late.stats().next_number == 10)
            assert router.held_pages == {1: 20} and late.stats().replayed == 10
        pair.agree()


def test_who_joins_late_without_a_replay_knows_little_and_nothing_wrong(context):
    with Pair(context, replay=False) as pair:
        pair.connect()
        pair.cache.attach(1000, [1, 5, 1, 6, 7, 8, 9])  # after a page that was stored before
        pair.cache.commit(1000, 7)
        pair.publisher.publish()
        router = PrefixRouter(2, page_size=2)
        with pair.subscribe(router) as late:
            while late._last is None:
                pair.publisher._unsent.append(KVEvent("removed", b"nothing"))
                pair.publisher.publish()
                late.poll(50)
            assert router.held_pages == {1: 0}
            pair.cache.append(1000, [3, 4, 5, 6])
            pair.cache.commit(1000, 11)
            pair.publisher.publish()
            pair.store()
            until(late, lambda: late.stats().next_number == pair.publisher._next)
            assert router.held_pages == {1: 2} and router.stats().unknown_parents >= 1
            assert late.stats().lost == 0


class Lossy:
    """A publisher of vLLM's form whose messages a test drops, damages and counts."""

    def __init__(self, context, replay=True):
        self.context = context
        self.pub = context.socket(zmq.PUB)
        self.pub.linger = 0
        self.port = self.pub.bind_to_random_port("tcp://127.0.0.1")
        self.kept, self.requests = {}, []
        self.router = None
        if replay:
            self.router = context.socket(zmq.ROUTER)
            self.router.linger = 0
            self.replay_port = self.router.bind_to_random_port("tcp://127.0.0.1")
            self.thread = threading.Thread(target=self._answer, daemon=True)
            self.stop = threading.Event()
            self.with_topic = True
            self.thread.start()

    def _answer(self):
        while not self.stop.is_set():
            if not self.router.poll(20):
                continue
            client, _, first = self.router.recv_multipart()
            self.requests.append(int.from_bytes(first, "big"))
            topic = [b""] * self.with_topic
            for number in sorted(self.kept):
                if number >= self.requests[-1]:
                    own = number.to_bytes(8, "big")
                    self.router.send_multipart([client, b"", *topic, own, self.kept[number]])
            self.router.send_multipart([client, b"", *topic, END, b""])

    def send(self, number, payload, *, keep=True, frames=None):
        if keep:
            self.kept[number] = payload
        self.pub.send_multipart(frames or [b"", number.to_bytes(8, "big"), payload])

    def subscribe(self, router, **options):
        replay = {"replay_endpoint": f"tcp://127.0.0.1:{self.replay_port}"} if self.router else {}
        return Subscriber(
            f"tcp://127.0.0.1:{self.port}", router, 0, context=self.context, **replay, **options
        )

    def connect(self, subscriber):
        """Send message 0 until it comes, from the socket itself."""
        end = time.monotonic() + WAIT_MS / 1000
        while subscriber._last is None:
            assert time.monotonic() < end
            self.send(0, page(0), keep=self.router is not None)
            subscriber.poll(100)
        while subscriber.poll(50):
            pass

    def close(self):
        if self.router:
            self.stop.set()
            self.thread.join()
            self.router.close()
        self.pub.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def page(n, ts=0.0):
    """The payload that stores one page, of its number."""
    return pack_batch(EventBatch(ts, [BlockStored([n], None, [n, n], 2)]))


@pytest.mark.parametrize("with_topic", [True, False])  # frames of a replay, now and before 2026
def test_a_gap_is_asked_for(context, with_topic):
    router = PrefixRouter(1, page_size=2)
    with Lossy(context) as engine, engine.subscribe(router) as subscriber:
        engine.with_topic = with_topic
        engine.connect(subscriber)
        restarts = subscriber.stats().restarts  # message 0 may have come twice
        engine.send(1, page(1))
        engine.kept |= {2: page(2), 3: page(3)}  # lost on the way
        engine.send(4, page(4))
        until(subscriber, lambda: subscriber.stats().next_number == 5)
        stats = subscriber.stats()
        assert router.held_pages == {0: 5}
        assert (stats.gaps, stats.lost, stats.restarts) == (1, 0, restarts)
        assert engine.requests[-1] == 1  # the one before the gap, to compare


@pytest.mark.parametrize("replay", [True, False])
def test_a_gap_that_nobody_can_fill_clears(context, replay):
    router = PrefixRouter(1, page_size=2)
    with Lossy(context, replay) as engine, engine.subscribe(router) as subscriber:
        engine.connect(subscriber)
        engine.send(1, page(1))
        until(subscriber, lambda: subscriber.stats().next_number == 2)
        assert router.held_pages == {0: 2}
        if replay:
            engine.kept = {4: page(4)}  # the buffer is small: 2 and 3 are gone
        engine.send(5, page(5))
        until(subscriber, lambda: subscriber.stats().next_number == 6)
        assert router.held_pages == {0: 2 if replay else 1}
        stats = subscriber.stats()
        assert (stats.gaps, stats.lost) == (1, 2 if replay else 3)


def test_a_replay_that_nobody_answers_ends(context):
    router = PrefixRouter(1, page_size=2)
    with Lossy(context, replay=False) as engine:
        dead = "inproc://nobody"
        with engine.subscribe(router, replay_timeout_ms=10.0) as subscriber:
            engine.connect(subscriber)
            subscriber.replay_endpoint = dead
            engine.send(2, page(2))
            until(subscriber, lambda: subscriber.stats().next_number == 3)
            stats = subscriber.stats()
            assert (stats.failed_replays, stats.lost) == (1, 1)
            assert router.held_pages == {0: 1}


def test_an_engine_behind_a_proxy_that_starts_anew(context):
    """The connection lives on: numbers from 0, or the payload before a gap, tell of it."""
    router = PrefixRouter(1, page_size=2)
    with Lossy(context) as engine, engine.subscribe(router) as subscriber:
        engine.connect(subscriber)
        for n in (1, 2, 3):
            engine.send(n, page(n))
        until(subscriber, lambda: subscriber.stats().next_number == 4)
        assert router.held_pages == {0: 4}
        before = subscriber.stats().restarts
        engine.kept = {}
        engine.send(0, page(9, ts=1.0))
        until(subscriber, lambda: subscriber.stats().next_number == 1)
        assert router.held_pages == {0: 1} and subscriber.stats().restarts == before + 1
        engine.kept = {n: page(20 + n, ts=2.0) for n in range(5)}  # anew, 0 to 4 not seen
        engine.send(5, page(25, ts=2.0))
        until(subscriber, lambda: subscriber.stats().next_number == 6)
        assert router.held_pages == {0: 6} and subscriber.stats().restarts == before + 2


@pytest.mark.parametrize("replay", [True, False])
def test_an_engine_that_starts_anew_at_the_same_port(context, replay):
    """Its numbers go on where the old one's ended, as it happens: the connection tells."""
    router = PrefixRouter(1, page_size=2)
    old = Lossy(context, replay)
    with old.subscribe(router) as subscriber:
        old.connect(subscriber)
        for n in (1, 2, 3):
            old.send(n, page(n))
        until(subscriber, lambda: subscriber.stats().next_number == 4)
        old.close()
        until(subscriber, lambda: router.held_pages == {0: 0})  # nothing is known of it now
        restarts = subscriber.stats().restarts
        with Lossy(context, replay) as new:
            if replay:
                subscriber.replay_endpoint = f"tcp://127.0.0.1:{new.replay_port}"
                new.kept = {n: page(40 + n) for n in range(4)}
            new.pub.bind(f"tcp://127.0.0.1:{old.port}")
            n, end = 4, time.monotonic() + WAIT_MS / 1000
            while subscriber._last is None:
                assert time.monotonic() < end
                new.send(n, page(40 + n))
                n += 1
                subscriber.poll(100)
            until(subscriber, lambda: subscriber.stats().next_number == n)
            known = router.held_pages[0]
            assert known == n if replay else 0 < known <= n - 4
            assert subscriber.stats().restarts == restarts
            for number in (1, 2, 3):
                fresh = PrefixRouter.from_bytes(router.to_bytes())
                fresh.route([number] * 2)
                assert fresh.stats().followed == router.stats().followed


FRAMES = {
    "one frame": [b"x"],
    "two frames": [b"", bytes(8)],
    "four frames": [b"", (1).to_bytes(8, "big"), page(1), b""],
    "a short number": [b"", b"\x01", page(1)],
    "the end of a replay": [b"", END, b""],
    "a payload that is none": [b"", (1).to_bytes(8, "big"), b"\xc1"],
    "pages of another size": None,
}


@pytest.mark.parametrize("name", FRAMES)
def test_bad_frames_are_counted_and_clear(context, name):
    router = PrefixRouter(1, page_size=2)
    with Lossy(context) as engine, engine.subscribe(router) as subscriber:
        engine.connect(subscriber)
        assert router.held_pages == {0: 1}
        frames = FRAMES[name]
        if frames is None:
            removed = BlockStored([7], 0, [1, 2], 2), BlockStored([8], None, [2**31 - 1] * 2, 2)
            payload = bytearray(pack_batch(EventBatch(0.0, list(removed))))
            payload[payload.index(b"BlockStored")] ^= 1
            frames = [b"", (1).to_bytes(8, "big"), bytes(payload)]
        engine.send(1, b"", keep=False, frames=frames)
        until(subscriber, lambda: subscriber.stats().bad_frames == 1)
        assert router.held_pages == {0: 0}
        number = subscriber.stats().next_number
        for n in range(number, number + 2):  # it goes on
            engine.send(n, page(n))
        until(subscriber, lambda: subscriber.stats().next_number == number + 2)
        assert router.held_pages == {0: 2} and subscriber.stats().bad_frames == 1


def test_a_slow_subscriber_notices_what_was_dropped(context):
    """High-water marks of two messages: most are dropped, the replay has them."""
    cache = KVCache(4096, 2, max_events=10_000)
    router = PrefixRouter(1, page_size=2)
    inproc = {"endpoint": "inproc://slow", "replay_endpoint": "inproc://slow replay"}
    publisher = Publisher(cache, hwm=1, context=context, **inproc)
    subscriber = Subscriber(router=router, replica=0, hwm=1, context=context, **inproc)
    with publisher, subscriber:
        for n in range(300):
            cache.attach(n, [n, n + 1])
            cache.commit(n, 2)
            publisher.publish()
        until(subscriber, lambda: subscriber.stats().next_number == 300)
        cache.attach(999, [7] * 6)
        cache.commit(999, 6)
        publisher.publish()
        until(subscriber, lambda: subscriber.stats().next_number == 301)
        stats = subscriber.stats()
        assert stats.lost == 0 and stats.batches == 301 and stats.replayed > 200
        assert router.held_pages == {0: cache.stats().n_cached}


def test_a_thread_follows_and_ends(context):
    with Pair(context) as pair:
        assert pair.subscriber.start() is pair.subscriber.start()
        for _ in range(20):
            pair.store()
        end = time.monotonic() + WAIT_MS / 1000
        while pair.subscriber.stats().next_number != 20:
            assert time.monotonic() < end and pair.subscriber.failure is None
            pair.publisher.publish()
            threading.Event().wait(0.01)
        assert pair.router.held_pages == {1: pair.cache.stats().n_cached}
        thread = pair.subscriber._thread
        pair.router.remove(1)
        pair.store()
        thread.join(WAIT_MS / 1000)
        assert not thread.is_alive() and isinstance(pair.subscriber.failure, KeyError)


def test_requests_that_are_none_do_not_stop_the_replay(context):
    with Pair(context) as pair:
        dealer = context.socket(zmq.DEALER)
        dealer.linger = 0
        dealer.connect(pair.publisher.replay_endpoint)
        for frames in ([b"x"], [b"", b"\x01"], [b"", bytes(8), b""], [b"y", bytes(8)]):
            dealer.send_multipart(frames)
        dealer.send_multipart([b"", (2**64 - 2).to_bytes(8, "big")])
        assert dealer.poll(WAIT_MS) and dealer.recv_multipart()[-2] == END
        stats = pair.publisher.stats()
        assert (stats.bad_requests, stats.replays >= 1) == (4, True)
        request = context.socket(zmq.REQ)  # as users of vLLM ask, too
        request.linger = 0
        request.connect(pair.publisher.replay_endpoint)
        request.send(bytes(8))
        assert request.poll(WAIT_MS) and request.recv_multipart()[-2] == END
        dealer.close()
        request.close()


def test_what_could_not_be_sent_is_sent_later(context, monkeypatch):
    with Pair(context) as pair:
        pair.store()
        pair.cache.attach(77, [3, 3])
        pair.cache.commit(77, 2)
        send = pair.publisher._pub.send_multipart
        monkeypatch.setattr(pair.publisher, "_pub", None)
        with pytest.raises(AttributeError):
            pair.publisher.publish()
        monkeypatch.undo()
        assert pair.publisher._pub.send_multipart == send
        pair.store()
        pair.agree()


def test_bad_arguments_and_ports_that_are_taken(context):
    cache, router = KVCache(8, 2, max_events=9), PrefixRouter(2)
    with pytest.raises(ValueError, match="max_events"):
        Publisher(KVCache(8, 2), TCP, context=context)
    publisher = Publisher(cache, TCP, context=context)
    with publisher, pytest.raises(OSError, match="in use"):
        Publisher(cache, publisher.endpoint, context=context)
    with pytest.raises(OSError, match="nonsense"):
        Publisher(cache, "nonsense", context=context)
    with pytest.raises(ValueError, match="closed"):
        publisher.publish()
    publisher.close()
    for options, error in (
        ({"hwm": -1}, ValueError), ({"buffer_steps": 1.5}, TypeError), ({"form": "x"}, ValueError),
        ({"topic": b"x"}, TypeError), ({"int_hashes": 1}, TypeError),
    ):  # fmt: skip
        with pytest.raises(error):
            Publisher(cache, TCP, context=context, **options)
    with pytest.raises(KeyError, match="no replica has number 5"):
        Subscriber("inproc://x", router, 5, context=context)
    with pytest.raises(ValueError, match="nonsense"):
        Subscriber("nonsense", router, 0, context=context)
    with pytest.raises(TypeError, match="topic"):
        Subscriber("inproc://x", router, 0, topic=3, context=context)
    subscriber = Subscriber(TCP.replace(":0", ":9"), router, 0, context=context)
    assert subscriber.poll() == 0 and subscriber.stats().next_number == -1
    subscriber.close()
    with pytest.raises(ValueError, match="closed"):
        subscriber.poll()
    subscriber.close()
