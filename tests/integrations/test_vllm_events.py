"""KV events in vLLM's form: payloads against its schema, and real sockets that lose messages."""

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

pytest.importorskip("msgpack")
pytest.importorskip("zmq")
pytest.importorskip("msgspec")

import msgpack
import msgspec

from llmds_nb import KVCache, PrefixRouter
from llmds_nb.integrations.vllm_events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    EventBatch,
    EventFormatError,
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
