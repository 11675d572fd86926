"""The store of metadata: what it takes, gives back, and shares with the stores before it."""

import collections
import copy
import datetime
import enum
import threading
import time

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from numba.core import config

from llmds_nb.pipeline.kernels import where as k
from llmds_nb.pipeline.metadata import MetadataStore, checked_metadata, parsed_where

from ..interrupts import interrupt_every_line
from .agreement import assert_agrees
from .oracle_where import MISSING, _value as value_of, matches
from .samples_metadata import DOCUMENTS, FIELDS, SAMPLE, WHERES


def stored(documents, before=None):
    store = MetadataStore.empty() if before is None else before
    return store.added(checked_metadata(documents, len(documents)))


def same(found, expected):
    """Whether two values are equal and of the same types throughout."""
    return found == expected and repr(found) == repr(expected)


def test_documents_come_back_as_they_were_given():
    store = stored(SAMPLE)
    found = store.documents([3, 0, 0, 1, 2])
    assert same(found, [SAMPLE[3], SAMPLE[0], SAMPLE[0], SAMPLE[1], {}])
    found[1]["a"]["b"] = "changed"
    assert same(store.documents(np.array([0])), [SAMPLE[0]])


@given(st.lists(DOCUMENTS, max_size=6))
def test_random_documents(documents):
    store = stored(documents)
    assert_agrees(store)
    assert same(store.documents(range(len(documents))), documents)


def test_forms_of_metadata():
    for metadata, n, expected in [
        (None, 2, [{}, {}]),
        ({"a": 1}, 1, [{"a": 1}]),
        ([{"a": 1}, None], 2, [{"a": 1}, {}]),
        (({"a": 1},), 1, [{"a": 1}]),
        ([], 0, []),
        (iter([{"a": 1}]), 1, [{"a": 1}]),
        (np.array([{"a": 1}], object), 1, [{"a": 1}]),
    ]:
        store = MetadataStore.empty().added(checked_metadata(metadata, n))
        assert_agrees(store)
        assert store.n == n and same(store.documents(range(n)), expected)


class Name(str):
    def __hash__(self):
        return 7

    def __eq__(self, other):
        return self is other


class Kind(enum.StrEnum):
    BOOK = "book"


class Size(enum.IntEnum):
    LARGE = 3


class Half(float):
    def __float__(self):
        return 7.0


def test_values_of_other_types_become_plain_ones():
    pair = collections.namedtuple("pair", "a b")
    given = {
        "int": np.int64(1), "uint": np.uint64(2), "float": np.float32(0.5), "str": np.str_("x"),
        "bool": np.bool_(True), "list": (1, pair(2, np.int8(3))), "enum": Kind.BOOK,
        "size": Size.LARGE, Name("name"): Name("value"), "half": Half(0.5),
        "dict": collections.OrderedDict(x=1), np.str_("key"): -0.0,
        "many": collections.defaultdict(list, y=[np.float64(2)]),
    }  # fmt: skip
    expected = {
        "int": 1, "uint": 2, "float": 0.5, "str": "x", "bool": True, "list": [1, [2, 3]],
        "enum": "book", "size": 3, "name": "value", "half": 0.5, "dict": {"x": 1},
        "key": -0.0, "many": {"y": [2.0]},
    }  # fmt: skip
    store = stored([given])
    assert same(store.documents([0]), [expected])
    assert store.mask(parsed_where({"name": "value", "half": 0.5, "enum": "book"})).all()


def nested(levels):
    value = 1
    for turn in range(levels):
        value = {"a": value} if turn % 2 else [value]
    return {"a": value}


def holding_itself():
    document = {"a": 1}
    document["b"] = [document]
    return document


def listing_itself():
    values = []
    values += [values, values]
    return {"a": values}


def wide():
    value = 1
    for _ in range(50):
        value = [value, value]
    return {"a": value}


@pytest.mark.parametrize(
    ("document", "error", "message"),
    [
        ("text", TypeError, r"metadata must be dicts, not str \(position 1\)"),
        ([1], TypeError, "metadata must be dicts, not list"),
        ({1: 2}, TypeError, "a key of metadata must be a str, not 1"),
        ({None: 2}, TypeError, "a key of metadata must be a str"),
        ({"a": {b"k": 2}}, TypeError, r"must be a str, not b'k' \(in a\)"),
        ({"": 1}, ValueError, "a key of metadata must not be empty"),
        ({"a.b": 1}, ValueError, "a key of metadata .*'a.b'"),
        ({"$a": 1}, ValueError, r"a key of metadata .*'\$a'"),
        ({"a": [{"x.y": 1}]}, ValueError, r"'x.y' \(in a\)"),
        ({"a": {"b": float("nan")}}, ValueError, "a.b must be finite, not nan"),
        ({"a": [1, float("-inf")]}, ValueError, "a must be finite, not -inf"),
        ({"a": np.float32("inf")}, ValueError, "a must be finite"),
        ({"a": 2**63}, ValueError, "a must be within int64"),
        ({"a": [[-(2**63) - 1]]}, ValueError, "a must be within int64"),
        ({"a": 10**5000}, ValueError, "a must be within int64"),
        ({"a": np.uint64(2**63)}, ValueError, "a must be within int64"),
        ({"a": b"x"}, TypeError, "a must be None, a bool, .* not bytes"),
        ({"a": {1, 2}}, TypeError, "a must be None, a bool, .* not set"),
        ({"a": np.ones(2)}, TypeError, "a must be None, .* not ndarray: pass its tolist"),
        ({"a": np.datetime64("2020-01-01")}, TypeError, "a must be None, .* not datetime64"),
        ({"a": datetime.date(2020, 1, 31)}, TypeError, "a must be .* not date: pass its isoformat"),
        ({"a": np.longdouble(1)}, TypeError, "a must be None, .* not longdouble"),
        ({"a": 1j}, TypeError, "a must be None, .* not complex"),
        ({"a": {"b": object()}}, TypeError, "a.b must be None, .* not object"),
        ({Name("a"): 1, Name("a"): 2}, ValueError, "the key 'a' twice"),
        (nested(64), ValueError, "at most 64 levels"),
        (nested(100_000), ValueError, "at most 64 levels"),
        (holding_itself(), ValueError, "at most 64 levels"),
        (listing_itself(), ValueError, "at most"),
        (wide(), ValueError, "at most 1048576 values"),
    ],
)
def test_bad_documents(document, error, message):
    with pytest.raises(error, match=message):
        checked_metadata([{"a": 1}, document], 2)


@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    [
        ({"a": 1}, ValueError, "metadata has 1 entries but texts has 2"),
        ([{}], ValueError, "metadata has 1 entries but texts has 2"),
        ([{}, {}, {}], ValueError, "metadata has 3 entries but texts has 2"),
        ("ab", TypeError, "metadata must be a list of dicts"),
        (5, TypeError, "metadata must be a list of dicts"),
        (b"ab", TypeError, "metadata must be a list of dicts"),
    ],
)
def test_other_than_one_dict_for_each(metadata, error, message):
    with pytest.raises(error, match=message):
        checked_metadata(metadata, 2)


def test_the_deepest_document():
    store = stored([nested(63)])
    assert_agrees(store)
    assert same(store.documents([0]), [nested(63)])


def test_stores_of_one_origin_do_not_see_one_another():
    first = stored(SAMPLE)
    wheres = [{"lang": "de"}, {"lang": "fr"}, {"z": {"$exists": True}}, {"lang": {"$gt": ""}}]

    def seen(store):
        assert_agrees(store)
        masks = [store.mask(parsed_where(where)).tolist() for where in wheres]
        arrays, header = store.state()
        kept = {name: values.tolist() for name, values in arrays.items()}
        return store.documents(range(store.n)), masks, kept, header

    before = seen(first)
    left = stored([{"lang": "fr", "z": 1}], first)
    of_left = seen(left)
    right = stored([{"z": "other"}, {"lang": "de", "y": [1, "new"]}], first)
    assert seen(first) == before and seen(left) == of_left
    assert seen(stored([{"lang": "it"}], left))[0][:5] == of_left[0]
    assert seen(right)[0][4:] == [{"z": "other"}, {"lang": "de", "y": [1, "new"]}]
    assert seen(first) == before and seen(left) == of_left


def test_stores_of_one_origin_with_many_strings():
    """The tables of strings grow at different times: their numbers, hashes and bytes."""
    for size in (1, 3, 10, 40):
        for n in range(20, 80, 7):
            first = stored([{"x": f"{i}" * size} for i in range(n)])
            every = []
            for turn in range(4):
                others = [{"x": f"{turn}-{i}", f"y{turn}{i}": i} for i in range(3 + 5 * turn)]
                every.append((stored(others, first), others))
            assert_agrees(first)
            for grown, others in every:
                assert_agrees(grown)
                where = parsed_where({"x": others[1]["x"]})
                assert np.flatnonzero(grown.mask(where)).tolist() == [n + 1]


def test_groups():
    documents = [
        {"x": 1}, {"x": 1.0}, {"x": True}, {"x": None}, {}, {"x": "1"}, {"x": [1, 2]},
        {"x": [1.0, 2]}, {"x": {"a": 1, "b": 2}}, {"x": {"b": 2, "a": 1}}, {"x": [2, 1]},
        {"x": "1"}, {"x": [True, 2]}, {"x": 0}, {"x": False}, {"x": ""},
    ]  # fmt: skip
    store = stored(documents)
    rows = np.array([*range(16), -1, 0])
    groups = store.groups("x", rows).tolist()
    assert [i for i, group in enumerate(groups) if group == -1] == [4, 16]
    sets = collections.defaultdict(list)
    for i, group in enumerate(groups):
        sets[group].append(i)
    del sets[-1]
    together = [[0, 1, 17], [2], [3], [5, 11], [6, 7], [8, 9], [10], [12], [13], [14], [15]]
    assert sorted(sets.values()) == together
    assert store.groups("none", rows).tolist() == [-1] * 18
    assert store.groups("x", np.empty(0, np.int64)).tolist() == []


@given(st.lists(DOCUMENTS, max_size=6), st.sampled_from(FIELDS))
def test_random_groups(documents, field):
    groups = stored(documents).groups(field, np.arange(len(documents)))
    for i, one in enumerate(documents):
        for j, other in enumerate(documents):
            values = value_of(one, field), value_of(other, field)
            if MISSING in values:
                assert (groups[[i, j]] == -1).any()
            else:
                assert (groups[i] == groups[j]) == equal(*values)


def equal(a, b):
    numbers = {int, float}
    if {type(a), type(b)} <= numbers:
        return a == b
    if type(a) is not type(b):
        return False
    if type(a) is list:
        return len(a) == len(b) and all(map(equal, a, b))
    if type(a) is dict:
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return a == b


class MetadataMachine(RuleBasedStateMachine):
    """Several values of one history: what becomes of one leaves the others as they are."""

    def __init__(self):
        super().__init__()
        self.stores = [(MetadataStore.empty(), [])]

    @rule(documents=st.lists(DOCUMENTS, max_size=4), data=st.data())
    def add(self, documents, data):
        store, before = self.stores[data.draw(st.integers(0, len(self.stores) - 1))]
        given = copy.deepcopy(documents)
        self.stores.append((stored(given, store), before + documents))

    @precondition(lambda self: len(self.stores) > 1)
    @rule(data=st.data())
    def forget(self, data):
        del self.stores[data.draw(st.integers(0, len(self.stores) - 1))]

    @rule(data=st.data())
    def compact(self, data):
        store, documents = self.stores[-1]
        rows = data.draw(st.lists(st.integers(0, max(store.n - 1, 0)), unique=True))
        rows = [row for row in rows if row < store.n]
        rows = sorted(rows) if data.draw(st.booleans()) else rows
        kept = store.compacted(np.array(rows, np.int64))
        self.stores.append((kept, [documents[row] for row in rows]))

    @rule()
    def write_and_read(self):
        store, documents = self.stores[-1]
        self.stores.append((MetadataStore.from_state(*store.state()), documents))

    @rule(where=WHERES)
    def search(self, where):
        parsed = parsed_where(where)
        for store, documents in self.stores:
            expected = [matches(where, document) for document in documents]
            assert store.mask(parsed).tolist() == expected

    @invariant()
    def agrees(self):
        for store, documents in self.stores[-4:]:
            assert_agrees(store)
            assert store.n == len(documents)
            assert same(store.documents(range(store.n)), documents)


TestMetadata = MetadataMachine.TestCase


def test_an_add_that_fails_leaves_the_store_as_it_was(monkeypatch):
    store = stored(SAMPLE)
    before = store.documents(range(4)), store.mask(parsed_where({"lang": "x"})).tolist()

    def fail(*args):
        raise KeyboardInterrupt

    for name in ("_entries", "appended"):
        with monkeypatch.context() as patch:
            patch.setattr(f"llmds_nb.pipeline.metadata.{name}", fail)
            with pytest.raises(KeyboardInterrupt):
                stored([{"lang": "x", "new": "y"}], store)
        assert_agrees(store)
        assert before == (
            store.documents(range(4)),
            store.mask(parsed_where({"lang": "x"})).tolist(),
        )
        after = stored([{"lang": "y"}], store)
        assert_agrees(after)
        assert after.mask(parsed_where({"lang": {"$in": ["x", "y"]}})).tolist() == [False] * 4 + [
            True
        ]


class Holder:
    """Of a store, which a write replaces."""

    def __init__(self):
        self.store = stored(SAMPLE)

    def add(self):
        self.store = stored([{"lang": "x", "new": "y", "a": {"b": 2}}, {"new": ["z"]}], self.store)

    def compact(self):
        self.store = self.store.compacted(np.array([3, 0]))

    def check(self):
        assert_agrees(self.store)

    def observe(self):
        masks = [
            self.store.mask(parsed_where(where)).tolist()
            for where in (
                {"lang": "x"},
                {"new": {"$exists": True}},
                {"new": {"$gt": ""}},
                {"a.b": 2},
            )
        ]
        return self.store.documents(range(self.store.n)), masks


@pytest.mark.parametrize("change", [Holder.add, Holder.compact])
def test_a_write_that_is_interrupted_changes_nothing(change):
    Holder().observe()  # compiled
    assert (
        interrupt_every_line(Holder, change, Holder.observe, only=("metadata", "vocabulary")) > 20
    )


def test_a_store_of_rows_without_metadata():
    store = stored([{"a": 1}], MetadataStore.empty(3))
    assert_agrees(store)
    assert same(store.documents(range(4)), [{}, {}, {}, {"a": 1}])
    assert store.mask(parsed_where({"a": None})).tolist() == [True, True, True, False]
    assert_agrees(MetadataStore.empty(2))


def test_warmup_calls_every_kernel():
    MetadataStore._warmup()
    kernels = [value for value in vars(k).values() if hasattr(value, "signatures")]
    called = [kernel for kernel in kernels if kernel.signatures]
    assert {kernel.__name__ for kernel in called} >= {
        "column_match", "column_codes", "column_gather", "strings_between", "entries_check",
        "parts_copy", "buckets_fill", "buckets_match",
    }  # fmt: skip
    assert all(len(kernel.signatures) == 1 for kernel in called)


def test_compaction_drops_what_is_no_longer_used():
    store = stored([{"source": f"file {i}", f"field {i}": [i]} for i in range(300)])
    kept = store.compacted(np.arange(0, 300, 100))
    assert_agrees(kept)
    assert kept.nbytes < 5000 < store.nbytes
    assert kept.names.texts() == [
        "source",
        *(f"field {i}{end}" for i in (0, 100, 200) for end in ("", ".")),
    ]
    assert kept.strings.texts() == ["file 0", "file 100", "file 200"]
    assert kept.compacted(np.empty(0, np.int64)).nbytes < 500


def test_many_fields_cost_their_entries():
    store = stored([{f"field {i}": i} for i in range(20_000)])
    loaded = MetadataStore.from_state(*store.state())
    assert loaded.nbytes < 100 * 20_000
    start = time.process_time()
    for i in range(0, 20_000, 1000):
        assert np.flatnonzero(loaded.mask(parsed_where({f"field {i}": i}))).tolist() == [i]
        MetadataStore.from_state(*loaded.state())
    assert time.process_time() - start < 1


@pytest.mark.skipif(bool(config.BOUNDSCHECK), reason="with bounds checks arrays have no spare room")
def test_one_more_document_costs_its_own_values():
    fields = {"year": 2020, "lang": "de", "source": "file", "page": 3, "score": 0.5, "tags": ["a"]}
    store = stored([fields | {"source": f"file {i}"} for i in range(10_000)])
    one, kept = checked_metadata(fields, 1), []
    for _ in range(1000):
        store = store.added(one)
        columns = store.grown.columns.values()
        kept.append(
            [store.indptr, store.blob, *(part for column in columns for part in column[:3])]
        )
    assert len(kept[0]) == 2 + 7 * 3
    for arrays in zip(*kept, strict=True):  # not copied but twice
        assert len({id(array) for array in arrays}) <= 2
    assert store.mask(parsed_where({"source": "file"})).sum() == 1000


def test_each_document_with_a_field_of_its_own():
    store = MetadataStore.empty()
    for i in range(3000):
        store = stored([{f"field {i}": str(i)}], store)
    assert np.flatnonzero(store.mask(parsed_where({"field 77": "77"}))).tolist() == [77]
    assert store.nbytes < 1000 * 3000
    assert_agrees(store)
    kept = store.compacted(np.array([77, 9]))
    assert_agrees(kept)
    assert kept.documents([0, 1]) == [{"field 77": "77"}, {"field 9": "9"}]


def test_readers_beside_a_writer():
    store = stored(SAMPLE)
    published = [(store, 1)]
    where, stop, errors = parsed_where({"lang": "de"}), threading.Event(), []

    def read():
        try:
            while not stop.is_set():
                store, expected = published[-1]
                assert store.mask(where).sum() == expected
                assert len(store.documents([store.n - 1])) >= 0
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for turn in range(500):
        store, expected = published[-1]
        store = stored([{"lang": "de", f"f{turn % 60}": [str(turn)]}], store)
        if turn % 100 == 99:
            store = store.compacted(np.arange(store.n))
        published.append((store, expected + 1))
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors
    for store, expected in published[::50]:
        assert store.mask(where).sum() == expected
