"""Ids, words and prompts chosen to collide: they do where the key is known, and only there.

Costs are compared by counting the steps of searches, not by time.
"""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import llmds_nb
from llmds_nb import (
    HNSW,
    CountMinSketch,
    IndexedHeap,
    KVCache,
    PrefixRouter,
    RetrievalPipeline,
    Scheduler,
    Tokenizer,
)
from llmds_nb._core.jit import kernel
from llmds_nb.hnsw.kernels import id_table
from llmds_nb.kv.events import KVEvent
from llmds_nb.kv.kernels import state as kv
from llmds_nb.kv.kernels.prefix_table import prefix_hash
from llmds_nb.pipeline.text_store import TextStore
from llmds_nb.primitives import hash_table
from llmds_nb.primitives.hashing import hash_bytes, hash_many, secret_word
from llmds_nb.primitives.status import ABSENT
from llmds_nb.structures.item_hashing import hash_items
from llmds_nb.text.kernels import static_encoder
from llmds_nb.text.kernels.tokenize import words_number
from llmds_nb.text.static_model import table_of
from llmds_nb.text.vocabulary import StringTable

from ._core.examples import MAKERS, answers
from .primitives.test_hashing import plain_mix

ALL = 2**64 - 1
N = 500  # ids, words or prompts that are chosen
MANY = N / 4  # steps of a search on average, where all have one home; half as many again is usual
FEW = 2.0  # at a load of one half or less 0.5 is expected


@kernel
def homes_of(table, keys, out):
    for i in range(keys.size):
        out[i] = hash_table.table_home(table, keys[i])


def homes(table, keys):
    keys, out = np.ascontiguousarray(keys), np.empty(len(keys), np.int64)
    homes_of(table, keys, out)
    return out


def steps(table):
    """The mean distance of a key of a hash table of ids from its home."""
    n_rows = len(table) - 2
    rows = np.flatnonzero(table[:n_rows, 1] != ABSENT)
    assert len(rows) >= N
    return ((rows - homes(table, table[rows, 0])) % n_rows).mean()


def string_steps(strings):
    """The same of a StringTable."""
    _, _, hashes, slots, *_ = strings.state
    taken = np.flatnonzero(slots != ABSENT)
    assert len(taken) >= N
    home = hashes[slots[taken]] & np.uint64(len(slots) - 1)
    return ((taken - home.astype(np.int64)) % len(slots)).mean()


def ids_of_one_home(table):
    """N ids that share the home of the first, for one who knows the key of a table."""
    found = np.zeros(0, np.int64)
    rng = np.random.default_rng(0)
    while len(found) < N:
        some = rng.integers(0, 2**63, 2**20)
        found = np.append(found, some[homes(table, some) == 0])
    return found[:N]


def undo_xorshift(x, shift):
    return x ^ (x >> shift) ^ (x >> 2 * shift)  # for shifts of 22 and more


def ids_of_the_unkeyed_hash():
    """Ids >= 0 whose splitmix64, the hash of before, ends in 40 zeros."""
    found: list[int] = []
    for number in range(4 * N):
        x = undo_xorshift(number << 40, 31) * pow(0x94D049BB133111EB, -1, 2**64) & ALL
        x = undo_xorshift(x, 27) * pow(0xBF58476D1CE4E5B9, -1, 2**64) & ALL
        x = undo_xorshift(x, 30)
        if x < 2**63:
            found.append(x)
    return np.array(found[:N])


def in_heap(ids):
    heap = IndexedHeap(1)
    heap.push_many(ids, np.zeros(N))
    return heap._handle.state.table


def in_cache(ids):
    cache = KVCache(N, 1)
    cache.attach_many(ids, np.arange(N), np.arange(N + 1))
    return cache._cache_state.arrays.ids


def in_loaded_cache(ids):
    cache = KVCache(N, 1)
    cache.attach_many(ids, np.arange(N), np.arange(N + 1))
    return KVCache.from_bytes(cache.to_bytes())._cache_state.arrays.ids


def as_tenants(ids):
    scheduler = Scheduler(policy="fair")
    scheduler.submit_many(np.ones(N, np.int64), tenant=ids)
    return scheduler._queue.handle.state.fair.table


def text_store(ids):
    store, calls, _ = TextStore.empty().added(ids, [""] * N)
    for function, *arguments in calls:
        function(*arguments)
    return store


def in_text_store(ids):
    return text_store(ids).table


def in_loaded_text_store(ids):
    return TextStore.from_state(*text_store(ids).state()).table


def in_static_model(ids):
    return table_of(ids, np.arange(N))


def in_router(ids):
    router = PrefixRouter(1, page_size=1)
    hashes = [int(id_).to_bytes(16, "little") for id_ in ids]
    router.observe(0, [KVEvent("stored", hash_, None, [i]) for i, hash_ in enumerate(hashes)])
    return router._held.handle.state.by_key


TABLES = [
    in_heap, in_cache, in_loaded_cache, as_tenants, in_text_store, in_loaded_text_store,
    in_static_model, in_router,
]  # fmt: skip


def test_every_module_with_a_hash_table_is_tested_here():
    package = Path(llmds_nb.__file__).parent
    makes = re.compile(r"\b(empty_table|table_start|key_hash|hash_bytes|hash_many)\(")
    found = {path.stem for path in package.rglob("*.py") if makes.search(path.read_text())}
    ids = {"heap", "state", "request_queue", "text_store", "id_table", "fusion", "static_model"}
    ids |= {"held_pages"}
    words = {"tokenize", "static_encoder", "item_hashing", "sketch"}
    assert found == ids | words | {"hash_table", "hashing"}


def test_the_attack_on_the_unkeyed_hash_is_one():
    assert not any(plain_mix(int(x)) & (2**40 - 1) for x in ids_of_the_unkeyed_hash())


@pytest.mark.parametrize("fill", TABLES)
def test_ids_collide_under_the_key_of_another_table_only(fill):
    known = fill(np.random.default_rng(1).integers(0, 2**63, N))
    chosen = ids_of_one_home(known)
    hash_table.table_remove_many(known, np.ascontiguousarray(hash_table.table_pairs(known)[:, 0]))
    hash_table.table_set_many(known, chosen, np.arange(N))
    assert steps(known) > MANY
    assert steps(fill(chosen)) < FEW
    assert steps(fill(ids_of_the_unkeyed_hash())) < FEW


@kernel
def slot_homes_of(table, ids, out):
    for i in range(ids.size):
        out[i] = id_table._home(table, ids[i])


def index_of(ids):
    index = HNSW(4, M=2, ef_construction=4)
    index.add(np.random.default_rng(0).standard_normal((N, 4)), ids)
    return index


def slot_steps(index):
    """The mean distance of the slot of an id from its home, in the table of an HNSW."""
    table, ids = index._snapshot.table, index._snapshot.ids
    size = len(table) - id_table._TAIL
    places = np.flatnonzero(table[:size] != ABSENT)
    assert len(places) == N
    out = np.empty(N, np.int64)
    slot_homes_of(table, ids[table[places]], out)
    return ((places - out) % size).mean()


def test_ids_of_vectors_collide_under_the_key_of_another_index_only():
    known = index_of(np.random.default_rng(1).integers(0, 2**63, N))
    table, chosen = known._snapshot.table, np.zeros(0, np.int64)
    rng, out = np.random.default_rng(0), np.empty(2**20, np.int64)
    while len(chosen) < N:
        some = rng.integers(0, 2**63, len(out))
        slot_homes_of(table, some, out)
        chosen = np.append(chosen, some[out == 0])[:N]
    table[: -id_table._TAIL], table[-id_table._TAIL] = ABSENT, 0
    assert id_table.slots_enter_many(table, chosen, 0, N)
    known._snapshot.ids[:N] = chosen
    assert slot_steps(known) > MANY
    index = index_of(chosen)
    for one in (index, index_of(ids_of_the_unkeyed_hash()), HNSW.from_bytes(index.to_bytes())):
        assert slot_steps(one) < FEW


def test_a_table_has_a_new_key_when_it_grows():
    heap = IndexedHeap(1)
    secrets, capacities = set(), set()
    for item in range(200):
        heap.push(item, 0.0)
        secrets.add(heap._handle.state.table[-2:].tobytes())
        capacities.add(heap.stats().capacity)
    assert len(secrets) == len(capacities) >= 9


def words_of_one_home(n_slots, secret):
    """N words that share a home in a table of strings, for one who knows its key."""
    mask, found, seen = np.uint64(n_slots - 1), [], 0
    while len(found) < N:
        words = [f"word{number}" for number in range(seen, seen + 2**18)]
        seen += len(words)
        data = np.frombuffer(bytearray("".join(words).encode()), np.uint8)
        ptr, hashes = np.cumsum([0, *map(len, words)]), np.empty(len(words), np.uint64)
        hash_many(data, ptr, 0, np.uint64(secret & ALL), hashes)
        found += [words[i] for i in np.flatnonzero((hashes & mask) == 0)]
    return found[:N]


def test_words_collide_under_the_key_of_another_table_only():
    known = StringTable()
    known.reserve(N, 1 << 16)
    words = words_of_one_home(len(known.state.slots), known.state.secret)
    known.add(words)
    assert string_steps(known) > MANY
    tokenizer = Tokenizer(pattern=r"\w+").fit([" ".join(words)])
    assert string_steps(tokenizer._vocabulary.table) < FEW
    tokenizer.encode([" ".join(words)])
    assert string_steps(tokenizer._vocabulary.cache._table) < FEW
    assert string_steps(Tokenizer.from_bytes(tokenizer.to_bytes())._vocabulary.table) < FEW


@kernel
def words_steps(data, ptr, secret, hashes, spans, slots):
    """The steps of all searches, as `texts_tokens` of kernels/static_encoder enters words."""
    total = 0
    for n in range(ptr.size - 1):
        start, stop = ptr[n], ptr[n + 1]
        hash_ = hash_bytes(data, start, stop, np.uint64(secret))
        slot = static_encoder._word_find(data, start, stop, hash_, hashes, spans, slots)
        total += (slot - hash_) & np.uint64(slots.size - 1)
        slots[slot], hashes[n], spans[n, 0], spans[n, 1] = n, hash_, start, stop
    return total


def word_steps(words, secret):
    data = np.frombuffer(bytearray("".join(words).encode()), np.uint8)
    ptr, slots = np.cumsum([0, *map(len, words)]), np.full(2 * 512, ABSENT, np.int32)
    hashes, spans = np.empty(len(words), np.uint64), np.empty((len(words), 2), np.int64)
    return words_steps(data, ptr, secret, hashes, spans, slots) / len(words)


def test_words_of_static_vectors_collide_under_a_known_key_only():
    known = secret_word()
    words = words_of_one_home(2 * 512, known)
    assert word_steps(words, known) > MANY
    assert word_steps(words, secret_word()) < FEW


def test_the_key_of_static_vectors_is_drawn_for_each_process():
    code = "from llmds_nb.text.static_encoder import _SECRET; print(_SECRET)"
    drawn = {subprocess.check_output([sys.executable, "-c", code]) for _ in range(2)}
    assert len(drawn) == 2


def test_the_numbers_of_words_do_not_depend_on_the_key():
    data = np.frombuffer(bytearray(b"one\0two\0three\0two\0one\0four"), np.uint8)
    for secret in (0, 1, -5):
        numbers, ptr, spans = np.zeros(13, np.int32), np.zeros(3, int), np.zeros((13, 2), int)
        assert words_number(data, data, np.array([0, 8, 26]), 2, secret, numbers, ptr, spans) == 4
        assert numbers[:6].tolist() == [0, 1, 2, 1, 0, 3] and ptr.tolist() == [0, 2, 6]
        assert spans[:4].tolist() == [[0, 3], [4, 7], [8, 13], [22, 26]]


def heating_strings(sketch, victim):
    """One string for each row of a sketch that shares the victim's cell there."""
    width_bits, multiplier = sketch.width.bit_length() - 1, np.uint64(0xD1342543DE82EF95)
    found, seen = {}, 0
    h_victim = sketch._hashed([victim])[1]
    while len(found) < sketch.depth:
        strings = [f"query {number}" for number in range(seen, seen + 2**18)]
        seen += len(strings)
        h, v = sketch._hashed(strings)[1].copy(), h_victim.copy()
        for row in range(sketch.depth):
            same = np.flatnonzero((h ^ v) >> np.uint64(64 - width_bits) == 0)
            if len(same):
                found.setdefault(row, strings[same[0]])
            h *= multiplier
            v *= multiplier
    return list(found.values())


def sketch_of_pipeline():
    return RetrievalPipeline(dim=2, seed=0)._cache.sketch


@pytest.mark.parametrize("make", [lambda: CountMinSketch(seed=None), sketch_of_pipeline])
def test_four_strings_make_a_query_hot_under_a_known_seed_only(make):
    known, other = make(), make()
    strings = heating_strings(known, "victim")
    for sketch in (known, other):
        sketch.add(strings, 1000)
    assert known.estimate("victim") >= 1000 and other.estimate("victim") == 0
    again = CountMinSketch.from_bytes(other.to_bytes())
    assert again.estimate(strings).tolist() == [1000] * len(strings)


def test_items_of_a_seed_hash_as_in_files_of_before():
    _, hashes, _ = hash_items(["word", b"word", 7], 0)
    assert hashes.tolist() == [12840153396997983217, 9506624262892196882, 1566965138873340377]


def pages_of_one_hash(n):
    """n pages of 32 tokens that have one hash without secret words, after whatever parent.

    The first operand of two products of one lane is 2**63, so that they only rotate the second, and
    what two words of a page add to it cancels.
    """
    first = 0xA0761D6478BD642F ^ 2**63
    pages = np.zeros((n, 32), np.int32)
    for start in (0, 16):
        pages[:, start] = first & 0xFFFFFFFF
        pages[:, start + 1] = first >> 32
    pages[:, 2] = 2 * np.arange(n)
    pages[:, 18] = np.arange(n)
    return pages


def test_pages_do_not_collide_under_secret_words():
    pages, rng = pages_of_one_hash(50), np.random.default_rng(0)
    for _ in range(3):
        parent = rng.integers(0, 2**64, 2, dtype=np.uint64)
        for secret, n in (np.zeros(4, np.int64), 1), (rng.integers(-(2**63), 2**63, 4), 50):
            found = {prefix_hash(secret, *parent, page) for page in pages}
            assert len({h0 for h0, _ in found}) == len({h1 for _, h1 in found}) == n


def test_prompts_do_not_collide_in_a_cache():
    cache = KVCache(N, 32)
    for number, page in enumerate(pages_of_one_hash(N)):
        cache.attach(number, page)
        cache.commit(number, 32)
    state = cache._cache_state.arrays
    hashes = state.page[:, kv.HASH : kv.HASH + 2].copy().view("<u8")[:, 0]
    table = state.arena[state.meta[kv.PREFIX_TABLE] :][: state.meta[kv.PREFIX_MASK] + 1]
    taken = np.flatnonzero(table)
    home = hashes[table[taken] - 1] & np.uint64(len(table) - 1)
    assert len(taken) == N
    assert ((taken - home.astype(np.int64)) % len(table)).mean() < FEW


@pytest.mark.parametrize("name", MAKERS)
def test_no_answer_depends_on_a_key(name):
    first, second = MAKERS[name](), MAKERS[name]()
    assert answers(first) == answers(second)
