"""KVCache: what every method refuses, and the page tables it hands out."""

import hashlib

import numpy as np
import pytest

from llmds_nb import KVCache
from llmds_nb.kv import PageTable

T = 4
BIG = 2**63
TOKENS = [
    ([1, -1], ValueError, "-1"),
    ([1, 2**31], ValueError, "2147483648"),
    ([2**70], ValueError, str(2**70)),
    ([0.5], TypeError, "0.5"),
    ([True], TypeError, "True"),
    ("12", TypeError, "12"),
    (b"12", TypeError, "12"),
    ({7}, TypeError, "7"),
    (None, TypeError, "None"),
    ([[1, 2]], ValueError, "[1, 2]"),
    ([[1], [1, 2]], ValueError, "one-dimensional"),
]
ONE_ID = [
    (-1, ValueError, "-1"),
    (BIG, ValueError, str(BIG)),
    (1.0, TypeError, "1.0"),
    (True, TypeError, "True"),
    ("1", TypeError, "1"),
    (None, TypeError, "None"),
    ([1], TypeError, "[1]"),
]
MANY_IDS = [
    ([1, -1], ValueError, "-1"),
    ([BIG, BIG], ValueError, str(BIG)),
    ([1.0, 2.0], TypeError, "1.0"),
    ([True], TypeError, "True"),
    ("1", TypeError, "1"),
    (None, TypeError, "None"),
    ([[1, 2]], ValueError, "[1, 2]"),
]
UNKNOWN = [(99, KeyError, "99"), (BIG - 1, KeyError, str(BIG - 1))]
SOME_UNKNOWN = [([1, 99], KeyError, "99"), ([99, 1], KeyError, "99")]
SALTS = [(salt, TypeError, repr(salt)) for salt in (True, None, 1.5, [1], (1, 2), bytearray(b"x"))]
COUNTS = [
    (-1, ValueError, "-1"),
    (BIG, ValueError, str(BIG)),
    (2.0, TypeError, "2.0"),
    (True, TypeError, "True"),
    (None, TypeError, "None"),
    ([1], TypeError, "[1]"),
]
PRIORITIES = [
    (2**31, ValueError, "2147483648"),
    (-(2**31), ValueError, "-2147483648"),
    (0.5, TypeError, "0.5"),
    ("1", TypeError, "1"),
]
ROWS = [
    (np.zeros((2, 3), np.float32), ValueError, "[2, 3]"),
    (np.zeros((3, 2), np.float32), ValueError, "[3, 2]"),
    (np.zeros(2, np.float32), ValueError, "[2]"),
    (np.zeros((2, 2), np.float64), TypeError, "float64"),
    (np.zeros((2, 2), np.int32), TypeError, "int32"),
    (np.float32(1), ValueError, "[]"),
    ([[0.0, 0.0], [0.0, 0.0]], TypeError, "float64"),
]
NO_TENSORS = [(np.zeros((2, 2), np.float32), ValueError, "kv_shape")]


def int32(n):
    return np.zeros(n, np.int32)


def frozen(array):
    array.flags.writeable = False
    return array


CSR = [  # for sequences 1 and 2: five pages
    (5, TypeError, "int"),
    ([int32(9)] * 3, TypeError, "list"),
    ((int32(9), int32(9)), TypeError, "tuple"),
    ((int32(2), int32(9), int32(9)), ValueError, "out.indptr"),
    ((int32(9), int32(4), int32(9)), ValueError, "5 or more entries, not 4"),
    ((int32(9), int32(9), int32(1)), ValueError, "out.last_page_len"),
    ((int32(9), np.zeros(9, np.int64), int32(9)), TypeError, "out.indices"),
    ((int32(9), int32((3, 3)), int32(9)), TypeError, "out.indices"),
    ((int32(9), [0] * 9, int32(9)), TypeError, "out.indices"),
    ((int32(9), frozen(int32(9)), int32(9)), ValueError, "writable"),
    ((int32(9), int32(18)[::2], int32(9)), ValueError, "contiguous"),
]
DENSE = [  # for sequences 1 and 2: 2 by 3
    (5, TypeError, "int32"),
    (int32(9), TypeError, "two dimensions"),
    (np.zeros((2, 3), np.int64), TypeError, "int32"),
    (int32((1, 3)), ValueError, "[1, 3]"),
    (int32((2, 2)), ValueError, "[2, 2]"),
    (frozen(int32((2, 3))), ValueError, "writable"),
    (int32((3, 2)).T, ValueError, "[2, 3]"),
]
SLOTS = [  # for sequences 1 and 2: 4 slots
    (5, TypeError, "int64"),
    (int32(9), TypeError, "int64"),
    (np.zeros(3, np.int64), ValueError, "4 or more entries, not 3"),
    (np.zeros((2, 2), np.int64), TypeError, "one-dimensional"),
    (frozen(np.zeros(9, np.int64)), ValueError, "writable"),
    (np.zeros(18, np.int64)[::2], ValueError, "contiguous"),
]
HERE = object()  # where the bad value goes


def sums(*parts):
    return [item for part in parts for item in part]


def cases(method, values, *args, tensors=False, **kwargs):
    """One case per bad value, put in the place of HERE."""
    for value, error, text in values:
        put = [value if arg is HERE else arg for arg in args]
        put_kw = {name: value if arg is HERE else arg for name, arg in kwargs.items()}
        yield pytest.param(
            method, put, put_kw, tensors, error, text, id=f"{method}-{len(args)}-{value!r:.40}"
        )


KV = np.zeros((2, 2), np.float32)
BAD = sums(
    cases("attach", ONE_ID, HERE, [1, 2]),
    cases("attach", [(1, ValueError, "1"), (2, ValueError, "2")], HERE, [1, 2]),
    cases("attach", TOKENS, 7, HERE),
    cases("attach", SALTS, 7, [1], salt=HERE),
    cases("attach", PRIORITIES, 7, [1], priority=HERE),
    cases("attach", ROWS, 7, [1, 2], HERE, tensors=True),
    cases("attach", NO_TENSORS, 7, [1, 2], HERE),
    cases("attach_many", MANY_IDS, HERE, [1, 2], [0, 1, 2]),
    cases("attach_many", [([7, 7], ValueError, "7")], HERE, [1, 2], [0, 1, 2]),
    cases("attach_many", [([7, 1], ValueError, "1"), ([2, 7], ValueError, "2")],
          HERE, [1, 2], [0, 1, 2]),
    cases("attach_many", [([7], ValueError, "1"), ([7, 8, 9], ValueError, "3")],
          HERE, [1, 2], [0, 1, 2]),
    cases("attach_many", TOKENS, [7, 8], HERE, [0, 1, 2]),
    cases("attach_many", [
        ([0, 1], ValueError, "[1]"), ([1, 2], ValueError, "[1]"), ([], ValueError, "2"),
        ([0, 2, 1, 2], ValueError, "fall"), ([0, -1, 2], ValueError, "-1"),
        ([0.0, 1.0, 2.0], TypeError, "0.0"), (None, TypeError, "None"),
    ], [7, 8], [1, 2], HERE),
    cases("attach_many", [([s, 0], e, t) for s, e, t in SALTS], [7, 8], [1, 2], [0, 1, 2],
          salts=HERE),
    cases("attach_many", [([0], ValueError, "1"), (5, TypeError, "5"), ("ab", TypeError, "ab")],
          [7, 8], [1, 2], [0, 1, 2], salts=HERE),
    cases("attach_many", [([p, p], e, t) for p, e, t in PRIORITIES], [7, 8], [1, 2], [0, 1, 2],
          priorities=HERE),
    cases("attach_many", [([0], ValueError, "1")], [7, 8], [1, 2], [0, 1, 2], priorities=HERE),
    cases("append", ONE_ID + UNKNOWN, HERE, [1]),
    cases("append", TOKENS, 1, HERE),
    cases("append", ROWS, 1, [1, 2], HERE, tensors=True),
    cases("append", NO_TENSORS, 1, [1, 2], HERE),
    cases("append_many", MANY_IDS + SOME_UNKNOWN, HERE, [1, 2]),
    cases("append_many", [([1, 1], ValueError, "1"), ([2, 1, 2], ValueError, "2")], HERE, [1, 2]),
    cases("append_many", TOKENS, [1, 2], HERE),
    cases("append_many", [([1], ValueError, "1"), ([1, 2, 3], ValueError, "3")], [1, 2], HERE),
    cases("commit", ONE_ID + UNKNOWN, HERE, 0),
    cases("commit", [*COUNTS, (13, ValueError, "13")], 1, HERE),
    cases("truncate", ONE_ID + UNKNOWN, HERE, 0),
    cases("truncate", [*COUNTS, (13, ValueError, "13")], 1, HERE),
    cases("detach", [*MANY_IDS, *SOME_UNKNOWN, *UNKNOWN, ([2, 2], ValueError, "2")], HERE),
    cases("fork", ONE_ID + UNKNOWN, HERE, 7),
    cases("fork", [*ONE_ID, (1, ValueError, "1"), (2, ValueError, "2")], 1, HERE),
    cases("write", ONE_ID + UNKNOWN, HERE, 8, KV, tensors=True),
    cases("write", COUNTS, 1, HERE, KV, tensors=True),
    cases("write", [(9, ValueError, "9 to 11"), (4, ValueError, "4"), (0, ValueError, "0"),
                    (7, ValueError, "before 8")], 1, HERE, KV, tensors=True),
    cases("write", [row for row in ROWS if "[3" not in row[2]], 1, 8, HERE, tensors=True),
    cases("write", [(np.zeros((3, 2), np.float32), ValueError, "8 to 11")], 1, 8, HERE,
          tensors=True),
    cases("write", NO_TENSORS, 1, 8, HERE),
    cases("get", ONE_ID + UNKNOWN, HERE, tensors=True),
    cases("get", [(1, ValueError, "kv_shape")], HERE),
    cases("tokens", ONE_ID + UNKNOWN, HERE),
    cases("length", ONE_ID + UNKNOWN, HERE),
    cases("match", TOKENS, HERE),
    cases("match", SALTS, [1], salt=HERE),
    cases("pin", TOKENS, HERE),
    cases("pin", SALTS, [1], salt=HERE),
    cases("prefix_digests", TOKENS, HERE),
    cases("prefix_digests", SALTS, [1], salt=HERE),
    cases("unpin", [(99, KeyError, "99"), (-1, KeyError, "-1"), ("1", TypeError, "1"),
                    (None, TypeError, "None"), (1.0, TypeError, "1.0")], HERE),
    cases("evict", COUNTS, HERE),
    cases("set_quota", SALTS, HERE, 3),
    cases("set_quota", [(-1, ValueError, "-1"), (2**31, ValueError, "2147483648"),
                        (1.5, TypeError, "1.5"), (True, TypeError, "True")], 0, HERE),
    cases("page_table", MANY_IDS + SOME_UNKNOWN + UNKNOWN, HERE),
    cases("page_table", CSR, [1, 2], out=HERE),
    cases("block_table", MANY_IDS + SOME_UNKNOWN + UNKNOWN, HERE),
    cases("block_table", DENSE, [1, 2], out=HERE),
    cases("block_table", [(2**31, ValueError, "2147483648"), (0.5, TypeError, "0.5"),
                          (None, TypeError, "None")], [1], pad=HERE),
    cases("slot_mapping", MANY_IDS + SOME_UNKNOWN + UNKNOWN, HERE, 0, 1),
    cases("slot_mapping", [([0, -1], ValueError, "-1"), ([0.5, 1], TypeError, "0.5"),
                           ([0], ValueError, "1"), ([0, 0, 0], ValueError, "3"),
                           ([0, 3], ValueError, "3 to 2"), (None, TypeError, "None")],
          [1, 2], HERE, 2),
    cases("slot_mapping", [(11, ValueError, "0 to 11"), ([10, 8], ValueError, "0 to 8"),
                           (BIG, ValueError, str(BIG))], [1, 2], 0, HERE),
    cases("slot_mapping", SLOTS, [1, 2], 0, 2, out=HERE),
    cases("__contains__", ONE_ID, HERE),
)  # fmt: skip


def example(tensors):
    """Sequences 1 (10 tokens, 2 full pages cached) and 2 (7 tokens), a pin and a quota."""
    cache = KVCache(16, T, kv_shape=(2,) if tensors else None, dtype=np.float32)
    for seq_id, n in ((1, 10), (2, 7)):
        rows = np.full((n, 2), seq_id, np.float32) if tensors else None
        cache.attach(seq_id, np.arange(seq_id, seq_id + n), rows)
        cache.commit(seq_id, n)
    cache.pin(np.arange(1, 11))
    cache.set_quota("tenant", 5)
    return cache


def seen(cache):
    """All that the public methods show of an `example`."""
    parts = [cache.stats(), len(cache), repr(cache), cache.match(np.arange(1, 11))]
    for seq_id in (1, 2):
        parts += [cache.tokens(seq_id).tolist(), cache.page_table(seq_id).indices.tolist()]
    return parts if cache.kv is None else [*parts, cache.kv.tobytes()]


@pytest.mark.parametrize(("method", "args", "kwargs", "tensors", "error", "text"), BAD)
def test_bad_input_is_refused_by_name_and_changes_nothing(
    method, args, kwargs, tensors, error, text
):
    cache = example(tensors)
    before = seen(cache)
    with pytest.raises(error) as caught:
        getattr(cache, method)(*args, **kwargs)
    assert caught.type is error
    assert text in str(caught.value)
    cache.check()
    assert seen(cache) == before
    assert 7 not in cache and 8 not in cache


def test_the_bad_calls_name_every_method():
    takes_nothing_of_its_own = {"check", "stats", "compact", "pending_copies", "load", "save"}
    public = {
        name
        for name in dir(KVCache)
        if not name.startswith("_") and callable(getattr(KVCache, name))
    }
    assert public - takes_nothing_of_its_own == {case.values[0] for case in BAD} - {"__contains__"}


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        *(({"n_pages": n}, e, t) for n, e, t in [*COUNTS, (0, ValueError, "0")]),
        ({"n_pages": 2**30 + 1}, ValueError, "1073741825"),
        *(({"page_size": n}, e, t) for n, e, t in COUNTS),
        ({"page_size": 0}, ValueError, "0"),
        ({"page_size": 3}, ValueError, "3"),
        ({"page_size": 8192}, ValueError, "8192"),
        ({"kv_shape": 3}, TypeError, "3"),
        ({"kv_shape": "23"}, TypeError, "23"),
        ({"kv_shape": b"23"}, TypeError, "23"),
        ({"kv_shape": (2, 0)}, ValueError, "0"),
        ({"kv_shape": (-1,)}, ValueError, "-1"),
        ({"kv_shape": (2.0,)}, TypeError, "2.0"),
        ({"dtype": "nope"}, TypeError, "nope"),
        ({"kv_shape": (2,), "dtype": object}, TypeError, "object"),
        ({"kv_shape": (2,), "dtype": "U"}, TypeError, "U"),
        ({"eviction": "LRU"}, ValueError, "LRU"),
        ({"eviction": None}, ValueError, "None"),
        ({"eviction": 5}, TypeError, "5"),
        ({"key": "text"}, TypeError, "str"),
        ({"key": 5}, TypeError, "int"),
        ({"key": b""}, ValueError, "0"),
        ({"key": bytes(65)}, ValueError, "65"),
    ],
)
def test_bad_settings_are_refused_by_name(arguments, error, text):
    with pytest.raises(error) as caught:
        KVCache(**{"n_pages": 4, "page_size": 4, **arguments})
    assert caught.type is error
    assert text in str(caught.value)


def test_good_input_of_every_kind_is_taken():
    cache = KVCache(np.int64(8), np.int32(4), kv_shape=[2], dtype="float32", key=bytes(64))
    tokens = np.arange(20, dtype=np.uint64)[::2]
    assert cache.attach(np.int64(0), tokens, salt=np.int8(3)) == 0
    cache.commit(np.uint8(0), np.int64(10))
    assert cache.match(tuple(range(0, 20, 2)), salt=3) == 8
    assert cache.match(frozen(tokens.astype(np.int32)), salt=3) == 8
    assert cache.attach(1, 5) == 0 and cache.tokens(1).tolist() == [5]  # one token counts as [1]
    rows = np.asfortranarray(np.arange(4, dtype=np.float32).reshape(2, 2))
    cache.append(1, [1, 2], frozen(rows))
    assert np.array_equal(cache.get(1)[1:], rows)
    assert cache.page_table(1).indptr.tolist() == [0, 1]
    cache.detach(np.array([0, 1], np.uint16))
    cache.check()


# ---- page tables -----------------------------------------------------------------------------


def grown():
    """A cache of sequences grown token by token, and the slot of every token of each."""
    rng = np.random.default_rng(5)
    cache, slots = KVCache(64, T), {seq_id: [] for seq_id in (3, 0, 2**63 - 1, 12, 5)}
    for seq_id in slots:
        cache.attach(seq_id, [])
    for _ in range(60):
        ids = [seq_id for seq_id in slots if seq_id != 12 and rng.random() < 0.6]
        new = cache.append_many(ids, rng.integers(0, 9, len(ids)))
        for seq_id, slot in zip(ids, new.tolist(), strict=True):
            slots[seq_id].append(slot)
    return cache, slots


BATCHES = [[], [12], [3], [2**63 - 1, 0], [5, 12, 3, 12, 0], [3, 3, 3]]


@pytest.mark.parametrize("ids", BATCHES, ids=str)
@pytest.mark.parametrize("buffers", [False, True])
def test_page_tables_are_what_plain_python_makes_of_the_slots(ids, buffers):
    cache, slots = grown()
    pages = [[slot // T for slot in slots[i][::T]] for i in ids]
    out = (int32(9), int32(70), int32(9)) if buffers else None
    csr = cache.page_table(ids, out=out and PageTable(*out))
    assert csr.indptr.tolist() == np.cumsum([0] + [len(p) for p in pages]).tolist()
    assert csr.indices.tolist() == sums(*pages)
    assert csr.last_page_len.tolist() == [
        len(slots[i]) - T * (len(p) - 1) if p else 0 for i, p in zip(ids, pages, strict=True)
    ]
    assert all(array.dtype == np.int32 for array in csr)
    width = max(map(len, pages), default=0)
    dense_out = np.full((9, 20), 77, np.int32) if buffers else None
    dense = cache.block_table(ids, pad=-7, out=dense_out)
    full = 20 if buffers else width
    assert dense.shape == (len(ids), full) and dense.dtype == np.int32
    assert dense.tolist() == [p + [-7] * (full - len(p)) for p in pages]
    slot_out = np.full(500, 77, np.int64) if buffers else None
    stops = [len(slots[i]) for i in ids]
    starts = [n // 3 for n in stops]
    mapped = cache.slot_mapping(ids, starts, stops, out=slot_out)
    assert mapped.dtype == np.int64
    wanted = [slots[i][a:b] for i, a, b in zip(ids, starts, stops, strict=True)]
    assert mapped.tolist() == sums(*wanted)
    if buffers:
        assert all(np.shares_memory(a, b) for a, b in zip(csr, out, strict=True) if a.size)
        assert not len(ids) or np.shares_memory(dense, dense_out)
        assert (dense_out[len(ids) :] == 77).all() and (slot_out[len(mapped) :] == 77).all()
    assert cache.block_table(ids).tolist() == [p + [-1] * (width - len(p)) for p in pages]


def test_buffers_keep_their_addresses_from_step_to_step():
    cache = KVCache(64, 2)
    ids = [1, 2, 3]
    cache.attach_many(ids, np.arange(6), [0, 2, 4, 6])
    out = PageTable(int32(4), int32(64), int32(3))
    dense, slots = int32((3, 16)), np.zeros(3, np.int64)
    addresses = set()
    for step in range(12):
        appended = cache.append_many(ids, [step] * 3)
        csr = cache.page_table(ids, out=out)
        table = cache.block_table(ids, out=dense)
        length = cache.length(1)
        mapped = cache.slot_mapping(ids, length - 1, length, out=slots)
        assert mapped.tolist() == appended.tolist()
        assert csr.indices.tolist() == table[table >= 0].tolist()
        addresses.add(tuple(array.ctypes.data for array in (*csr, table, mapped)))
    assert len(addresses) == 1


def test_answers_are_the_callers_own():
    cache, slots = grown()
    before = cache.tokens(3).tolist()
    for array in (*cache.page_table([3]), cache.block_table([3]), cache.tokens(3)):
        array[:] = 99
    assert cache.tokens(3).tolist() == before
    assert cache.slot_mapping(3, 0, len(slots[3])).tolist() == slots[3]
    cache.check()


# ---- attention -------------------------------------------------------------------------------


def kv_rows(tokens):
    """K and V of two heads of four, float32[n, 2, 2, 4], a function of the whole prefix."""
    digest, rows = hashlib.sha256(), []
    for token in tokens:
        digest.update(bytes([token]))
        rows.append(np.frombuffer(digest.digest()[:16], np.uint8))
    return (np.array(rows, np.float32).reshape(-1, 2, 2, 4) - 128) / 64


def attention(query, rows):
    scores = np.einsum("hd,nhd->hn", query, rows[:, 0].astype(np.float64))
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.einsum("hn,nhd->hd", weights, rows[:, 1]) / weights.sum(axis=1)[:, None]


def paged_attention(query, paged, table, i):
    """The same, page by page with a running softmax, as a kernel does it."""
    pages = table.indices[table.indptr[i] : table.indptr[i + 1]]
    top, total, mixed = np.full(2, -np.inf), np.zeros(2), np.zeros((2, 4))
    for page in pages:
        n = table.last_page_len[i] if page == pages[-1] else paged.shape[1]
        keys, values = paged[page, :n, 0].astype(np.float64), paged[page, :n, 1]
        scores = np.einsum("hd,nhd->hn", query, keys)
        new_top = np.maximum(top, scores.max(axis=1))
        weights, fade = np.exp(scores - new_top[:, None]), np.exp(top - new_top)
        total = total * fade + weights.sum(axis=1)
        mixed = mixed * fade[:, None] + np.einsum("hn,nhd->hd", weights, values)
        top = new_top
    return mixed / total[:, None]


def share_at_random(pattern, inside):
    """Run one random pattern and compare every sequence; returns the cache's stats."""
    rng = np.random.default_rng([pattern, inside])
    page_size = int(rng.choice([1, 2, 4, 8]))
    shape = (2, 2, 4)
    cache = KVCache(96, page_size, kv_shape=shape if inside else None, dtype=np.float32)
    paged = cache.kv if inside else np.zeros((96, page_size, *shape), np.float32)
    sequences, shared = {}, rng.integers(0, 9, 20).tolist()

    def compute(seq_id, start, tokens):
        """The engine outside: copies first, then the new rows."""
        if not inside:
            src, dst = cache.pending_copies()
            paged[dst] = paged[src]
            slots = cache.slot_mapping(seq_id, start, len(tokens))
            paged.reshape(-1, *shape)[slots] = kv_rows(tokens)[start:]

    for new_id in range(14):
        kind = rng.choice(["attach", "attach", "fork", "append", "append", "truncate"])
        old = int(rng.choice(list(sequences))) if sequences else None
        own = rng.integers(0, 9, rng.integers(1, 10)).tolist()
        if kind == "attach" or old is None:
            tokens = shared[: rng.integers(0, 21)] + own
            hits = cache.attach(new_id, tokens, kv_rows(tokens) if inside else None)
            compute(new_id, hits, tokens)
            cache.commit(new_id, len(tokens))
            sequences[new_id] = tokens
        elif kind == "fork":
            cache.fork(old, new_id)
            sequences[new_id] = list(sequences[old])
        elif kind == "append":
            start = len(sequences[old])
            sequences[old] = sequences[old] + own
            cache.append(old, own, kv_rows(sequences[old])[start:] if inside else None)
            compute(old, start, sequences[old])
        else:
            n = int(rng.integers(1, len(sequences[old]) + 1))
            cache.truncate(old, n)
            sequences[old] = sequences[old][:n]
    table = cache.page_table(list(sequences))
    for i, tokens in enumerate(sequences.values()):
        query = rng.normal(size=(2, 4))
        np.testing.assert_allclose(
            paged_attention(query, paged, table, i),
            attention(query, kv_rows(tokens)),
            rtol=1e-10, atol=1e-12,
        )  # fmt: skip
    cache.check()
    return cache.stats()


@pytest.mark.parametrize("inside", [True, False])
def test_attention_over_pages_equals_attention_over_whole_sequences(inside):
    stats = [share_at_random(pattern, inside) for pattern in range(100)]
    assert sum(s.shares for s in stats) > 200 and sum(s.copies for s in stats) > 50
    assert sum(s.n_shared > 0 for s in stats) > 80
