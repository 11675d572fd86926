"""Publisher and Subscriber that are closed, interrupted, or found in a child of `os.fork`."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("msgpack")
pytest.importorskip("zmq")

from tests.forks import in_child
from tests.interrupts import Interrupt, _Tracer

from .test_vllm_sockets import WAIT_MS, Pair, context, until

__all__ = ["context"]  # a fixture


@pytest.mark.parametrize("replay", [True, False])
def test_an_interrupted_poll_leaves_no_page_that_is_gone(context, replay):
    with Pair(context, replay=replay) as pair:
        pair.connect()
        for _ in range(40):
            pair.store()
        at, places = 0, set()
        while True:
            pair.store()  # the last ones evict the first
            tracer = _Tracer(at, ("vllm_events/subscriber",))
            try:
                with tracer:
                    end = time.monotonic() + WAIT_MS / 1000
                    while pair.subscriber._expected != pair.publisher._next:
                        assert time.monotonic() < end
                        pair.subscriber.poll(100)
            except Interrupt:
                places.add(tracer.place)
            if not tracer.place:
                break
            if replay:
                until(
                    pair.subscriber,
                    lambda: pair.router.held_pages.get(1, 0) == pair.cache.stats().n_cached,
                )
            else:  # it knows what is stored from now on, once it has joined anew
                for _ in range(1000):
                    pair.store()
                    pair.subscriber.poll(20)
                    cached = pair.router.held_pages.get(1, 0)
                    assert cached <= pair.cache.stats().n_cached
                    if cached:
                        break
            at += 1
        if replay:
            pair.agree()
        assert len(places) > 15 and pair.cache.stats().evictions > 0


def test_a_poll_that_waits_ends_with_its_subscriber(context):
    with Pair(context) as pair:
        pair.connect()
        until(pair.subscriber, lambda: pair.subscriber.stats().next_number == pair.publisher._next)
        failures = []

        def wait():
            try:
                pair.subscriber.poll(1e9)
            except ValueError as error:
                failures.append(str(error))

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        begun = time.monotonic()
        pair.subscriber.close()
        thread.join(WAIT_MS / 1000)
        assert not thread.is_alive() and time.monotonic() - begun < WAIT_MS / 1000
        assert failures == ["the subscriber is closed"]
        with pytest.raises(ValueError, match="closed"):
            pair.subscriber.start()
        assert pair.subscriber._thread is None


def test_several_threads_may_close(context):
    for _ in range(10):
        pair = Pair(context)
        pair.subscriber.start()
        with ThreadPoolExecutor(4) as threads:
            ends = [threads.submit(one.close) for one in (pair.publisher, pair.subscriber) * 4]
            for end in ends:
                end.result(WAIT_MS / 1000)
        with pytest.raises(ValueError, match="closed"):
            pair.publisher.publish()
        pair.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_child_leaves_the_sockets_of_its_parent_alone(context):
    with Pair(context) as pair:
        pair.connect()

        def use():
            refused = []
            for call in (pair.publisher.publish, pair.subscriber.poll, pair.subscriber.start):
                with pytest.raises(ValueError, match="fork") as error:
                    call()
                refused.append(str(error.value))
            assert pair.subscriber.stats().next_number > 0
            pair.close()
            return len(refused)

        assert in_child(use) == 3
        for _ in range(3):
            pair.store()
        pair.agree()
