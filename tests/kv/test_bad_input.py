"""KVCache: what every method refuses, by which name, and what it takes."""

import numpy as np
import pytest

from llmds_nb import KVCache

T = 4
BIG = 2**63
SELF_REFERRING: list = []
SELF_REFERRING.append(SELF_REFERRING)
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
    ([[1], [1, 2]], ValueError, "one length"),
    (frozenset([7]), TypeError, "7"),
    ((n for n in (1, 2)), TypeError, "list(...)"),
    (np.array([1, "a"], object), TypeError, "object"),
    (np.array([1.5, 2], object), TypeError, "1.5"),
    (np.ma.array([1, 2], mask=[False, True]), ValueError, "masked"),
    (np.array([True, 2], object), TypeError, "object"),
    (SELF_REFERRING, ValueError, "tokens"),
    ([SELF_REFERRING, 1], ValueError, "tokens"),
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
EXTRAS = [
    (5, TypeError, "5"),
    ("ab", TypeError, "'ab'"),
    ({0: 1}, TypeError, "{0: 1}"),
    ([(0, 1)], TypeError, "(0, 1)"),
    (["abc"], TypeError, "'abc'"),
    ([(0, 1, 1.5)], TypeError, "1.5"),
    ([(0, 1, True)], TypeError, "key of extra"),
    ([(-1, 1, 0)], ValueError, "start of extra"),
    ([(0.0, 1, 0)], TypeError, "start of extra"),
    ([(0, 2**63, 0)], ValueError, "stop of extra"),
    ([(2, 2, 0)], ValueError, "2 to 2"),
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
    ([[0.0, 0.0], [0.0]], ValueError, "kv must have shape [n, 2]"),
    (SELF_REFERRING, ValueError, "kv must have shape [n, 2]"),
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
    (np.zeros(9), TypeError, "int64 or int32"),
    (int32(3), ValueError, "4 or more entries, not 3"),
    (np.zeros(3, np.int64), ValueError, "4 or more entries, not 3"),
    (np.zeros((2, 2), np.int64), TypeError, "one-dimensional"),
    (frozen(np.zeros(9, np.int64)), ValueError, "writable"),
    (np.zeros(18, np.int64)[::2], ValueError, "contiguous"),
]
HERE = object()  # where the bad value goes


def sums(*parts):
    return [item for part in parts for item in part]


def _shown(value):
    """The start of its repr, without an address: workers of pytest-xdist compare names."""
    return repr(value).partition(" at 0x")[0][:40]


def cases(method, values, *args, tensors=False, **kwargs):
    """One case per bad value, put in the place of HERE."""
    for value, error, text in values:
        put = [value if arg is HERE else arg for arg in args]
        put_kw = {name: value if arg is HERE else arg for name, arg in kwargs.items()}
        yield pytest.param(
            method, put, put_kw, tensors, error, text, id=f"{method}-{len(args)}-{_shown(value)}"
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
    cases("attach", EXTRAS, 7, [1, 2], extra=HERE),
    cases("attach", [([-1, 2], ValueError, "-1")], 7, HERE, extra=[(0, 1, "a")]),
    cases("attach_many", [([e, None], *rest) for e, *rest in EXTRAS], [7, 8], [1, 2], [0, 1, 2],
          extras=HERE),
    cases("attach_many", [([None], ValueError, "1"), (5, TypeError, "5")], [7, 8], [1, 2],
          [0, 1, 2], extras=HERE),
    cases("match", EXTRAS, [1], extra=HERE),
    cases("pin", EXTRAS, [1], extra=HERE),
    cases("prefix_digests", EXTRAS, [1], extra=HERE),
    cases("reorder", MANY_IDS + SOME_UNKNOWN, HERE, [1, 2]),
    cases("reorder", MANY_IDS + SOME_UNKNOWN, [1, 2], HERE),
    cases("reorder", [([1], ValueError, "2"), ([1, 1, 2], ValueError, "3")], [1, 2], HERE),
    cases("reorder", [([2, 2], ValueError, "2 stands twice")], HERE, [1, 1]),
    cases("append", ONE_ID + UNKNOWN, HERE, [1]),
    cases("append", TOKENS, 1, HERE),
    cases("append", ROWS, 1, [1, 2], HERE, tensors=True),
    cases("append", NO_TENSORS, 1, [1, 2], HERE),
    cases("append_many", MANY_IDS + SOME_UNKNOWN, HERE, [1, 2]),
    cases("append_many", [([1, 1], ValueError, "1"), ([2, 1, 2], ValueError, "2")], HERE, [1, 2]),
    cases("append_many", TOKENS, [1, 2], HERE),
    cases("append_many", [([1], ValueError, "1"), ([1, 2, 3], ValueError, "3")], [1, 2], HERE),
    cases("reserve", ONE_ID + UNKNOWN, HERE, 0),
    cases("reserve", COUNTS, 1, HERE),
    cases("set_tokens", ONE_ID + UNKNOWN, HERE, 0, []),
    cases("set_tokens", [*COUNTS, (9, ValueError, "9 to 11")], 1, HERE, [1, 2]),
    cases("set_tokens", [*TOKENS, ([8], ValueError, "9 already, not 8")], 1, 8, HERE),
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
                          (np.zeros(2), TypeError, "pad must"), (None, TypeError, "None")],
          [1], pad=HERE),
    cases("slot_mapping", MANY_IDS + SOME_UNKNOWN + UNKNOWN, HERE, 0, 1),
    cases("slot_mapping", [([0, -1], ValueError, "-1"), ([0.5, 1], TypeError, "0.5"),
                           ([0], ValueError, "1"), ([0, 0, 0], ValueError, "3"),
                           ([0, 3], ValueError, "3 to 2"), (None, TypeError, "None"),
                           ([[0], 1], ValueError, "start"), (SELF_REFERRING, ValueError, "start")],
          [1, 2], HERE, 2),
    cases("slot_mapping", [(11, ValueError, "0 to 11"), ([10, 8], ValueError, "0 to 8"),
                           (BIG, ValueError, str(BIG))], [1, 2], 0, HERE),
    cases("slot_mapping", SLOTS, [1, 2], 0, 2, out=HERE),
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
    parts = [cache.stats(), repr(cache), cache.match(np.arange(1, 11))]
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


def test_what_a_refused_call_notes_for_itself_is_in_no_file():
    cache = example(False)
    before = cache.to_bytes()
    for call in (
        lambda: cache.detach([1, 99]),
        lambda: cache.detach([1, 1]),
        lambda: cache.reorder([2, 2], [1, 1]),
        lambda: cache.append_many([99, 1], [1, 1]),
        lambda: cache.commit(1, 11),
    ):
        with pytest.raises((KeyError, ValueError)):
            call()
        assert cache.to_bytes() == before


def test_the_bad_calls_name_every_method():
    takes_nothing_of_its_own = {
        *("check", "stats", "compact", "pending_copies", "reset", "events"),
        *("load", "save", "from_bytes", "to_bytes"),
    }
    public = {
        name
        for name in dir(KVCache)
        if not name.startswith("_") and callable(getattr(KVCache, name))
    }
    assert public - takes_nothing_of_its_own == {case.values[0] for case in BAD}


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
        ({"eviction": {"keys": 1}}, TypeError, "keys"),
        ({"eviction": type("Own", (), {"keys": len})}, TypeError, "Own"),
        ({"prefix_sharing": "no"}, TypeError, "True or False, not 'no'"),
        ({"prefix_sharing": np.zeros(2)}, TypeError, "prefix_sharing must be True or False"),
        ({"max_events": -1}, ValueError, "-1"),
        ({"max_events": 2**24 + 1}, ValueError, "16777217"),
        ({"max_events": 1.5}, TypeError, "1.5"),
        ({"kv_shape": (2,), "dtype": "V2"}, TypeError, "V2"),
        ({"kv_shape": (2,), "dtype": "M8[s]"}, TypeError, "M8"),
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
    cache.append(1, np.array([1, 2], object), frozen(rows))
    assert np.array_equal(cache.get(1)[1:], rows)
    assert cache.page_table(1).indptr.tolist() == [0, 1]
    cache.detach(np.array([0, 1], np.uint16))
    cache.check()
    assert cache.attach(1, Column([7, 8])) == 0 and cache.tokens(1).tolist() == [7, 8]
    assert len(cache.append_many(Column([1]), Column([9]))) == 1
    cache.reorder(Column([1]), (1,))


class Column:
    """What a pandas Series of objects is to NumPy."""

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __iter__(self):
        return iter(self.values)

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, object)
