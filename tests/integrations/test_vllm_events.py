"""KV events in vLLM's form: payloads against its schema, and real sockets that lose messages."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

pytest.importorskip("msgpack")
pytest.importorskip("zmq")
pytest.importorskip("msgspec")

import msgpack
import msgspec
import zmq

from llmds_nb import KVCache, PrefixRouter
from llmds_nb.integrations.vllm_events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    EventBatch,
    EventFormatError,
    Publisher,
    Subscriber,
    decode,
    encode,
    lora_salt,
    pack_batch,
    read_batch,
)
from llmds_nb.kv import KVEvent

WAIT_MS = 5_000  # the most that a test waits for a message
END = b"\xff" * 8

# ---- the schema, written down from vLLM 0.32: its fields, their order, what must be there --------


def schema(array_like):
    """The classes of vLLM; `array_like` as before 0.32, when events were arrays."""
    options = {"tag": True, "omit_defaults": True, "array_like": array_like}
    optional: Any = [
        ("extra_keys", list | None, None),
        ("group_idx", int | None, None),
        ("kv_cache_spec_kind", str | None, None),
        ("kv_cache_spec_sliding_window", int | None, None),
        ("locality", str | None, None),
        ("ownership", str | None, None),
        ("session_id", str | None, None),
    ]
    stored = msgspec.defstruct(
        "BlockStored",
        [
            ("block_hashes", list[bytes | int]),
            ("parent_block_hash", bytes | int | None),
            ("token_ids", list[int]),
            ("block_size", int),
            ("lora_id", int | None),
            ("medium", str | None),
            ("lora_name", str | None),
            *optional,
        ],
        **options,
    )
    removed = msgspec.defstruct(
        "BlockRemoved",
        [
            ("block_hashes", list[bytes | int]),
            ("medium", str | None),
            ("group_idx", int | None, None),
            ("locality", str | None, None),
            ("ownership", str | None, None),
        ],
        **options,
    )
    cleared = msgspec.defstruct("AllBlocksCleared", [], **options)
    batch = msgspec.defstruct(
        "KVEventBatch",
        [
            ("ts", float),
            ("events", list[stored | removed | cleared]),
            ("data_parallel_rank", int | None, None),
        ],
        array_like=True,
        omit_defaults=True,
    )
    return batch, stored, removed, cleared


FORMS = {"map": schema(False), "array": schema(True)}
hashes = st.binary(min_size=1, max_size=40) | st.integers(0, 2**64 - 1)
texts = st.none() | st.text(max_size=5)
ints = st.none() | st.integers(0, 2**31 - 1)


@st.composite
def blocks(draw):
    """An event of ours, with all its fields."""
    kind = draw(st.sampled_from(["stored", "removed", "cleared"]))
    if kind == "cleared":
        return AllBlocksCleared()
    ids = draw(st.lists(hashes, max_size=3))
    if kind == "removed":
        return BlockRemoved(ids, draw(texts), draw(ints), draw(texts), draw(texts))
    size = draw(st.integers(1, 4))
    tokens = draw(st.lists(st.integers(0, 2**31 - 1), max_size=12))
    extra = draw(st.none() | st.lists(st.none() | st.just(["image", 3]), max_size=3))
    return BlockStored(
        ids, draw(st.none() | hashes), tokens, size, draw(ints), draw(texts), draw(texts), extra,
        draw(ints), draw(texts), draw(ints), draw(texts), draw(texts), draw(texts),
    )  # fmt: skip


def plain(event):
    """An event of ours, or of msgspec, as its class and fields."""
    fields = event._fields if isinstance(event, tuple) else event.__struct_fields__
    return type(event).__name__, {field: getattr(event, field) for field in fields}


def bare(rows):
    """A batch without the Nones behind it and behind events: msgspec sends some of them."""
    rows = [bare(row) if isinstance(row, list) else row for row in rows]
    while rows and rows[-1] is None:
        rows.pop()
    return rows


@pytest.mark.parametrize("form", ["map", "array"])
@given(events=st.lists(blocks(), max_size=5), rank=ints, ts=st.floats(0, 2e9))
def test_payloads_are_those_of_the_schema(form, events, rank, ts):
    cls, *_ = FORMS[form]
    ours = pack_batch(EventBatch(ts, events, rank), form=form)
    theirs = msgspec.msgpack.decode(ours, type=cls)
    assert (theirs.ts, theirs.data_parallel_rank) == (ts, rank)
    assert [plain(event) for event in theirs.events] == [plain(event) for event in events]
    assert read_batch(msgspec.msgpack.encode(theirs)) == EventBatch(ts, events, rank)
    again = msgspec.msgpack.encode(theirs)
    assert bare(msgpack.unpackb(ours)) == bare(msgpack.unpackb(again))  # no field more, none less


@pytest.fixture(scope="module")
def vllm_python():
    """A Python that has vLLM: this one, or that of LLMDS_VLLM_PYTHON."""
    python = os.environ.get("LLMDS_VLLM_PYTHON") or (sys.executable if find_spec("vllm") else None)
    if python is None or not shutil.which(python):
        pytest.skip("no vllm here: set LLMDS_VLLM_PYTHON to a Python that has it")
    return python


def test_vllm_itself_reads_and_writes_them(vllm_python):
    full = BlockStored(
        [b"a" * 32, 7], b"p" * 32, [1, 2, 3, 4], 2, 1, "GPU", "french", [None, ["image", 3]], 1,
        "full_attention", 9, "LOCAL", "tier", "session",
    )  # fmt: skip
    small = BlockStored([5], None, [1], 1)
    events = [full, small, BlockRemoved([b"x", 3], "CPU", 2, "REMOTE", "t"), BlockRemoved([1])]
    payload = pack_batch(EventBatch(1.5, [*events, AllBlocksCleared()], 3))
    code = (
        "import sys, json, msgspec\n"
        "from vllm.distributed.kv_events import KVEventBatch\n"
        "batch = msgspec.msgpack.decode(bytes.fromhex(sys.argv[1]), type=KVEventBatch)\n"
        "names = [[type(e).__name__, msgspec.structs.asdict(e)] for e in batch.events]\n"
        "encoded = msgspec.msgpack.Encoder().encode(batch)\n"
        "print('OUT', json.dumps([encoded.hex(), repr(names), batch.data_parallel_rank]))\n"
    )
    run = subprocess.run([vllm_python, "-c", code, payload.hex()], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    (line,) = [line for line in run.stdout.splitlines() if line.startswith("OUT ")]
    encoded, names, rank = json.loads(line[4:])
    assert rank == 3 and "french" in names and "full_attention" in names
    assert read_batch(bytes.fromhex(encoded)) == read_batch(payload)
    assert msgpack.unpackb(bytes.fromhex(encoded)) == msgpack.unpackb(payload)


PUBLISH = """
import sys
from vllm.distributed.kv_events import *
pub, replay = sys.argv[1:]
publisher = ZmqEventPublisher(0, endpoint=pub, replay_endpoint=replay, topic="kv")
def stored(hashes, parent, tokens, **more):
    return BlockStored(hashes, parent, tokens, 2, None, "GPU", None, group_idx=0, **more)
def publish(*events):
    publisher.publish(KVEventBatch(ts=1.0, events=list(events)))
publish(stored([b"a" * 32, b"b" * 32], None, [1, 2, 3, 4]))
publish(stored([b"c" * 32], b"b" * 32, [5, 6]), BlockRemoved([b"b" * 32], "GPU", 0))
publish(stored([b"s" * 32], None, [1, 2], extra_keys=[("tenant",)]))
print("READY", flush=True)
for line in sys.stdin:
    publish(stored([b"b" * 32], b"a" * 32, [3, 4]))
publisher.shutdown()
"""


def test_a_router_follows_a_publisher_of_vllm(vllm_python, tmp_path):
    endpoints = [f"ipc://{tmp_path}/{name}" for name in ("pub", "replay")]
    command = [vllm_python, "-c", PUBLISH, *endpoints]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    router = PrefixRouter(2, page_size=2)
    with subprocess.Popen(command, **pipes) as engine, zmq.Context() as context:
        try:
            while engine.stdout.readline() != "READY\n":
                assert engine.poll() is None
            options = {"replay_endpoint": endpoints[1], "context": context}
            with Subscriber(endpoints[0], router, 1, **options) as subscriber:
                until(subscriber, lambda: subscriber.stats().next_number == 3)
                assert router.held_pages == {1: 3} and subscriber.stats().replayed == 3
                for salt, followed in ((0, 1), ("tenant", 2)):
                    router.route([1, 2], salt=salt)
                    assert router.stats().followed == followed
                engine.stdin.write("more\n")
                engine.stdin.flush()
                until(subscriber, lambda: subscriber.stats().next_number == 4)
                assert router.held_pages == {1: 4} and subscriber.stats().lost == 0
                fresh = PrefixRouter.from_bytes(router.to_bytes())
                assert fresh.route([1, 2, 3, 4, 5, 6]) == 1
        finally:
            engine.stdin.close()
            engine.wait(60)


# ---- KVEvents ------------------------------------------------------------------------------------


def filled(salt=0, n_pages=8, extra=None):
    """A cache that stored, removed and cleared, and its events."""
    cache = KVCache(n_pages, 2, key=b"k", max_events=100)
    for seq, tokens in enumerate([[1, 2, 3, 4, 5], [1, 2, 6, 7], [9] * 12, [8] * 8]):
        cache.attach(seq, tokens, salt=salt, extra=extra)
        cache.commit(seq, len(tokens))
        cache.detach(seq)
    return cache


def comparable(event, first_salt_only=True):
    tokens = None if event.tokens is None else event.tokens.tolist()
    salt = event.salt if event.kind == "stored" and event.parent is None else None
    return event.kind, event.hash, event.parent, tokens, salt, event.extra


@pytest.mark.parametrize("form", ["map", "array"])
@pytest.mark.parametrize(
    "salt", [0, 5, -3, "tenant", "", "0", b"tenant", b"", "llmds_nb:i:5", "\ud800", "a\nb"]
)
def test_events_of_a_cache_come_back(form, salt):
    events = filled(salt).events()
    assert {event.kind for event in events} == {"stored", "removed"}
    found = decode(encode(events, form=form))
    assert [comparable(event) for event in found] == [comparable(event) for event in events]


def test_ranges_of_extra_come_back_and_serve_no_prompt():
    extra = [(1, 3, "image"), (2, 9, b"\xff"), (0, 1, 0)]
    events = filled(extra=extra).events()
    found = decode(encode(events))
    assert any(event.extra for event in events)
    assert [sorted(e.extra, key=repr) for e in found] == [sorted(e.extra, key=repr) for e in events]
    router = PrefixRouter(2, page_size=2)
    router.observe(0, found)
    assert router.held_pages == {0: 0}


def test_what_is_lost_and_reset_clears():
    cache = KVCache(8, 2, max_events=2)
    cache.attach(0, [1, 2, 3, 4, 5, 6])
    cache.commit(0, 6)
    events = cache.events()
    assert [event.kind for event in events] == ["stored", "stored", "lost"]
    assert [e.kind for e in decode(encode(events))] == ["stored", "stored", "cleared"]
    cache.reset()
    assert [e.kind for e in decode(encode(cache.events()))] == ["cleared"]


def test_ints_as_hashes_follow_one_another():
    events = filled().events()
    found = decode(encode(events, int_hashes=True))
    assert [e.hash for e in found] == [e.hash[-8:] for e in events]
    router = PrefixRouter(2, page_size=2)
    router.observe(0, found)
    other = PrefixRouter(2, page_size=2)
    other.observe(0, events)
    assert router.held_pages == other.held_pages and router.held_pages[0] > 3
    signed = pack_batch(EventBatch(0.0, [BlockStored([-5], None, [1, 2], 2)]))
    assert decode(signed)[0].hash == (2**64 - 5).to_bytes(8, "big")


def vllm(*events):
    return pack_batch(EventBatch(0.0, list(events)))


def test_lora_adapters_and_salts_of_vllm_are_salts_of_routes():
    stored = BlockStored([b"a", b"b"], None, [1, 2, 3, 4], 2)
    cases = {
        0: stored,
        "tenant": stored._replace(extra_keys=[["tenant"], None]),
        lora_salt("french"): stored._replace(
            lora_name="french", lora_id=3, extra_keys=[["french"], ["french"]]
        ),
        lora_salt("french", "tenant"): stored._replace(
            lora_name="french", extra_keys=[["french", "tenant"], ["french"]]
        ),
        lora_salt("3"): stored._replace(lora_id=3),
    }
    for salt, event in cases.items():
        router = PrefixRouter(3, page_size=2, max_imbalance=9.0)
        router.observe(1, decode(vllm(event)))
        assert router.held_pages == {1: 2}
        for other in cases:
            before = router.stats().followed
            text = [1, 2, 3, 4]
            fresh = PrefixRouter.from_bytes(router.to_bytes())
            home = fresh.route(text, salt=other)
            assert (fresh.stats().followed > before) == (other == salt)
            assert home == 1 or other != salt


@pytest.mark.parametrize(
    "keys", [["image"], [["image", 0]], [["image", -3]], [b"\x01" * 32], ["a", "b"], [7]]
)
def test_images_and_embeddings_of_vllm_serve_no_prompt_of_tokens(keys):
    """One bare text in a first block may also be a salt: no prompt without it is told to be."""
    for at in (0, 1):
        extra = [None, None]
        extra[at] = keys
        router = PrefixRouter(2, page_size=2)
        router.observe(0, decode(vllm(BlockStored([b"a", b"b"], None, [1, 2, 3, 4], 2,
                                                  extra_keys=extra))))  # fmt: skip
        router.route([1, 2, 3, 4])
        assert router.stats().followed == at  # what comes before the image is found


def test_other_media_groups_tiers_and_sizes_are_left_out():
    stored = BlockStored([b"a"], None, [1, 2], 2)
    removed = BlockRemoved([b"a"])
    assert len(decode(vllm(stored, removed))) == 2
    for change in (
        {"medium": "CPU"},
        {"group_idx": 1},
        {"locality": "REMOTE"},
        {"ownership": "disk"},
    ):
        assert decode(vllm(stored._replace(**change), removed._replace(**change))) == []
    cpu = vllm(stored._replace(medium="CPU"))
    assert len(decode(cpu, media=["GPU", "CPU"])) == 1
    assert len(decode(vllm(stored._replace(group_idx=2)), group=2)) == 1
    assert decode(vllm(stored), page_size=16) == []
    assert decode(vllm(stored._replace(token_ids=[1, 2, 3, 4]))) == []  # blocks were skipped
    assert decode(vllm(stored._replace(medium="GPU", locality="LOCAL", group_idx=0)))


# ---- payloads that are none ----------------------------------------------------------------------

STORED = ["BlockStored", [b"a"], None, [1, 2], 2, None, "GPU", None]
BAD = {
    "empty": b"",
    "text": b"hello",
    "cut": encode([], ts=0.0)[:-1],
    "more behind it": encode([], ts=0.0) + b"\x00",
    "deep": b"\x91" * 5000,
    "no batch": msgpack.packb({"ts": 1}),
    "too short": msgpack.packb([1.0]),
    "no time": msgpack.packb(["now", []]),
    "no events": msgpack.packb([1.0, None]),
    "a rank that is none": msgpack.packb([1.0, [], "x"]),
    "a number as event": msgpack.packb([1.0, [3]]),
    "an empty event": msgpack.packb([1.0, [[]]]),
    "an unknown event": msgpack.packb([1.0, [["BlockMoved", [b"a"]]]]),
    "an untagged event": msgpack.packb([1.0, [{"block_hashes": [b"a"]}]]),
    "fields missing": msgpack.packb([1.0, [STORED[:4]]]),
    "fields missing in a map": msgpack.packb([1.0, [{"type": "BlockRemoved"}]]),
    "hashes that are none": msgpack.packb([1.0, [["BlockRemoved", ["a"], None]]]),
    "an empty hash": msgpack.packb([1.0, [["BlockRemoved", [b""], None]]]),
    "no list of hashes": msgpack.packb([1.0, [["BlockRemoved", b"a", None]]]),
    "a negative token": msgpack.packb([1.0, [[*STORED[:3], [1, -2], *STORED[4:]]]]),
    "a large token": msgpack.packb([1.0, [[*STORED[:3], [1, 2**31], *STORED[4:]]]]),
    "tokens that are none": msgpack.packb([1.0, [[*STORED[:3], [1, 2.5], *STORED[4:]]]]),
    "a flag as token": msgpack.packb([1.0, [[*STORED[:3], [1, True], *STORED[4:]]]]),
    "no size": msgpack.packb([1.0, [[*STORED[:4], 0, *STORED[5:]]]]),
    "a medium that is none": msgpack.packb([1.0, [[*STORED[:6], 3, None]]]),
    "extra keys that are none": msgpack.packb([1.0, [[*STORED, "x"]]]),
}


@pytest.mark.parametrize("name", BAD)
def test_a_payload_that_is_none_is_refused(name):
    with pytest.raises(EventFormatError) as error:
        decode(BAD[name])
    assert 5 < len(str(error.value)) < 300


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data):
    with contextlib.suppress(EventFormatError):
        read_batch(data)


def test_damaged_payloads_are_read_or_refused():
    whole, rng = encode(filled().events()), np.random.default_rng(0)
    router, n_refused = PrefixRouter(1, page_size=2, max_prefixes=64), 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(len(data))] = rng.integers(256)
        try:
            router.observe(0, decode(bytes(data)))
        except ValueError:
            n_refused += 1
        router.check()
    assert 0 < n_refused < 300


def test_fields_to_come_are_ignored():
    row = {"type": "BlockRemoved", "block_hashes": [b"a"], "medium": None, "later": {"x": 1}}
    longer = ["BlockRemoved", [b"a"], None, None, None, None, "later"]
    for event in (row, longer):
        payload = msgpack.packb([1.0, [event], None, "later"])
        assert [e.kind for e in decode(payload)] == ["removed"]


def test_bad_arguments_of_encode():
    for events, error in (([3], TypeError), ([KVEvent("removed")], TypeError)):
        with pytest.raises(error, match="event"):
            encode(events)
    with pytest.raises(ValueError, match="form"):
        encode([], form="json")
    with pytest.raises(TypeError, match="no 3"):
        pack_batch(EventBatch(0.0, [3]))


# ---- sockets -------------------------------------------------------------------------------------


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
        router = PrefixRouter(2, page_size=2)
        with pair.subscribe(router) as late:
            while late._last is None:
                pair.publisher._unsent.append(KVEvent("removed", b"nothing"))
                pair.publisher.publish()
                late.poll(50)
            assert router.held_pages == {1: 0}
            pair.cache.append(1000, [3, 4, 5, 6])
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
