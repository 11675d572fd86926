"""CountMinSketch against exact counts, and against a plain reference cell by cell."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from llmds_nb import CorruptFileError, CountMinSketch, load
from llmds_nb.structures.item_hashing import hash_items

from .oracle_sketch import PlainSketch

INTS = st.integers(-(2**63), 2**63 - 1)
ITEMS = st.integers(-3, 12) | INTS | st.text(max_size=3) | st.binary(max_size=3)
BATCH = st.lists(st.tuples(ITEMS, st.integers(0, 5)), max_size=30)


def cells(sketch):
    """The counters uint32[depth, width]."""
    return sketch._handle.state.counters


def zipf(n, n_keys, seed=0):
    rng = np.random.default_rng(seed)
    share = np.cumsum(np.arange(1, n_keys + 1) ** -1.05)
    return np.searchsorted(share / share[-1], rng.random(n)).astype(np.int64)


@settings(max_examples=60, deadline=None)
@given(BATCH, st.sampled_from([1, 2, 8]), st.integers(1, 5), st.booleans(), st.sampled_from([0, 3]))
def test_same_cells_and_candidates_as_the_plain_sketch(batch, width, depth, conservative, top):
    sketch = CountMinSketch(width, depth, conservative=conservative, top=top)
    plain = PlainSketch(width, depth, conservative, {0: 0, 3: 2}[top])
    if batch:
        items, counts = map(list, zip(*batch, strict=True))
        sketch.add(items, counts)
    for item, count in batch:
        plain.add(item, count)
    sketch.check()
    assert cells(sketch).tolist() == plain.rows
    for item, _ in batch:
        assert sketch.estimate(item) == plain.estimate(item)
    if top:
        found = sketch.top(100)
        assert dict(zip(found.items, found.counts.tolist(), strict=True)) == plain.top()


@settings(max_examples=40, deadline=None)
@given(BATCH, st.booleans(), st.sampled_from([0, 3]))
def test_a_batch_is_its_items_in_order(batch, conservative, top):
    whole = CountMinSketch(4, 3, conservative=conservative, top=top)
    single = CountMinSketch(4, 3, conservative=conservative, top=top)
    whole.add([item for item, _ in batch], [count for _, count in batch])
    for item, count in batch:
        single.add(item, count)
    assert whole.total == single.total
    for ours, theirs in zip(whole._state()[0].values(), single._state()[0].values(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


class SketchMachine(RuleBasedStateMachine):
    """Never under-counts through add, merge, halve and save/load."""

    @initialize(conservative=st.booleans(), top=st.sampled_from([0, 2, 10]))
    def start(self, conservative, top):
        self.settings = {"conservative": conservative, "top": top, "seed": 5}
        self.sketch = CountMinSketch(8, 3, **self.settings)
        self.true = Counter()

    @rule(batch=BATCH)
    def add(self, batch):
        self.sketch.add([item for item, _ in batch], [count for _, count in batch])
        for item, count in batch:
            self.true[item] += count

    @rule(batch=BATCH)
    def merge(self, batch):
        other = CountMinSketch(8, 3, **self.settings)
        other.add([item for item, _ in batch], [count for _, count in batch])
        self.sketch.merge(other)
        for item, count in batch:
            self.true[item] += count

    @rule()
    def halve(self):
        self.sketch.halve()
        self.true = Counter({item: count // 2 for item, count in self.true.items()})

    @rule()
    def through_arrays(self):
        arrays, header = self.sketch._state()
        self.sketch = CountMinSketch._from_state(arrays, header)

    @invariant()
    def never_under(self):
        self.sketch.check()
        items = list(self.true)
        estimates = self.sketch.estimate(items)
        assert all(e >= self.true[i] for e, i in zip(estimates, items, strict=True))
        assert self.sketch.total >= sum(self.true.values())
        if self.settings["top"]:
            found = self.sketch.top(1000)
            np.testing.assert_array_equal(found.counts, self.sketch.estimate(found.items))


TestSketch = SketchMachine.TestCase
TestSketch.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)


@pytest.mark.parametrize("conservative", [True, False])
def test_zipf_bound_and_top(conservative):
    items = zipf(200_000, 50_000)
    sketch = CountMinSketch(4096, 4, conservative=conservative, top=50)
    sketch.add(items)
    keys, true = np.unique(items, return_counts=True)
    excess = sketch.estimate(keys) - true
    error, probability = sketch.error_bound()
    assert excess.min() >= 0
    assert (error, probability) == (math.e / 4096 * len(items), math.exp(-4))
    assert (excess > error).mean() <= probability
    heaviest = keys[np.lexsort((keys, -true))][:50]
    assert len(set(heaviest.tolist()) & set(sketch.top(50).items.tolist())) >= 49


def test_conservative_is_never_above_standard():
    items = zipf(50_000, 20_000)
    careful, standard = CountMinSketch(512), CountMinSketch(512, conservative=False)
    careful.add(items)
    standard.add(items)
    assert (cells(careful) <= cells(standard)).all()
    keys, true = np.unique(items, return_counts=True)
    excess = [(sketch.estimate(keys) - true).mean() for sketch in (careful, standard)]
    assert excess[0] < 0.7 * excess[1]


def test_standard_merge_is_exact():
    items = zipf(20_000, 5_000)
    parts = [CountMinSketch(256, conservative=False) for _ in range(2)]
    whole = CountMinSketch(256, conservative=False)
    whole.add(items)
    for part, half in zip(parts, np.array_split(items, 2), strict=True):
        part.add(half)
    parts[0].merge(parts[1])
    np.testing.assert_array_equal(cells(parts[0]), cells(whole))
    assert parts[0].total == whole.total == 20_000


def test_merge_with_itself_doubles():
    sketch = CountMinSketch(64, top=4)
    sketch.add(["a", "b", "a"])
    sketch.merge(sketch)
    sketch.check()
    assert sketch.estimate(["a", "b"]).tolist() == [4, 2] and sketch.total == 6


@pytest.mark.parametrize("width", [1, 2, 64])
def test_rows_collide_independently(width):
    """Pairs of items share all of three columns about as often as three independent rows would."""
    sketch = CountMinSketch(width, 3, conservative=False)
    sketch.add(0)
    others = sketch.estimate(np.arange(1, 100_001)) > 0
    expected = width**-3.0
    assert others.mean() == pytest.approx(expected, abs=4 * math.sqrt(expected / 1e5) + 1e-5)


def test_kinds_of_items_are_different_items():
    sketch = CountMinSketch(1 << 16, top=8)
    sketch.add(7, 1)
    sketch.add("7", 2)
    sketch.add(b"7", 3)
    sketch.add([7, "7", b"7", -7, "\ud800", "", b""], [10, 20, 30, 40, 50, 60, 70])
    items = [7, "7", b"7", -7, "\ud800", "", b""]
    assert sketch.estimate(items).tolist() == [11, 22, 33, 40, 50, 60, 70]
    assert [sketch.estimate(item) for item in items] == [11, 22, 33, 40, 50, 60, 70]
    assert sketch.top(3) == ([b"", "", "\ud800"], pytest.approx([70, 60, 50]))


def test_forms_of_the_same_items():
    sketch = CountMinSketch(1 << 12)
    sketch.add(np.array([3, -1], np.int8))
    sketch.add([3, np.int16(-1)])
    sketch.add((3, -1))
    sketch.add(np.array(["x", "y"]))
    sketch.add(np.array([b"x", b"yz"], object))
    sketch.add(np.str_("x"))
    sketch.add(np.int64(3))
    assert sketch.estimate(np.array([3, -1], np.int32)).tolist() == [4, 3]
    assert sketch.estimate(["x", b"x", b"yz"]).tolist() == [2, 1, 1]
    assert isinstance(sketch.estimate(np.int64(3)), int)
    sketch.add([])
    assert sketch.estimate([]).tolist() == [] and sketch.total == 12


def test_long_and_many_strings():
    texts = [f"{i}" * (i % 50) for i in range(10_000)] + ["caf\u00e9 \u4e2d\u6587"] * 3
    sketch = CountMinSketch(1 << 16, 4)
    sketch.add(texts)
    true = Counter(texts)
    estimates = sketch.estimate(list(true))
    assert (estimates >= list(true.values())).all() and (estimates - 1).mean() < 0.2
    assert sketch.estimate("caf\u00e9 \u4e2d\u6587") == 3


def test_saturates():
    sketch = CountMinSketch(4, top=1)
    sketch.add("a", 2**32 - 2)
    assert sketch.estimate("a") == 2**32 - 2
    sketch.add("a", 2**40 + 7)
    assert sketch.estimate("a") == 2**32 - 1 == sketch.top(1).counts[0]
    other = CountMinSketch(4, top=1)
    other.add("a", 2**31)
    sketch.merge(other)
    assert sketch.estimate("a") == 2**32 - 1 == sketch.top(1).counts[0]
    assert sketch.stats().saturated == 4
    sketch.check()


@pytest.mark.parametrize("conservative", [False, True])
def test_no_count_wraps(conservative):
    sketch = CountMinSketch(4, conservative=conservative)
    sketch.add("a", 2**32 + 7)
    assert (cells(sketch).max(axis=1) == 2**32 - 1).all()


def test_an_equal_count_takes_the_slot_of_no_candidate():
    sketch = CountMinSketch(1 << 12, top=1)
    state = sketch._handle.state
    sketch.add(list(range(32 * state.slot_hash.size)), 2)
    assert (state.slot_count == 2).all()  # the buckets are full
    before = state.slot_hash.copy()
    sketch.add([-1 - item for item in range(100)], 2)
    assert (state.slot_hash == before).all()


def test_halving_forgets():
    sketch = CountMinSketch(64, top=2)
    sketch.add(["a", "b"], [9, 1])
    sketch.halve()
    sketch.check()
    assert sketch.estimate(["a", "b"]).tolist() == [4, 0]
    assert sketch.top(5).items == ["a"] and sketch.total == 5


def test_top_orders_ties_by_smaller_item():
    sketch = CountMinSketch(1 << 12, top=6)
    sketch.add([5, 3, 4, 3, 4, 5, 9])
    assert sketch.top(3).items.tolist() == [3, 4, 5]
    assert sketch.top(4).counts.tolist() == [2, 2, 2, 1]
    assert CountMinSketch(4, top=1).top(1).counts.size == 0


def test_from_error():
    sketch = CountMinSketch.from_error(0.001, 0.01, conservative=False, top=3, seed=9)
    assert (sketch.width, sketch.depth) == (4096, 5)
    sketch.add(1, 1000)
    assert sketch.error_bound().error <= 0.001 * 1000 and sketch.error_bound().probability <= 0.01


def test_is_hot():
    sketch = CountMinSketch(64)
    sketch.add(["a", "a", "b"])
    assert sketch.is_hot("a", 2) is True and sketch.is_hot("b", 2) is False
    assert sketch.is_hot(["a", "b"], 2).tolist() == [True, False]


def test_file(tmp_path):
    sketch = CountMinSketch(128, 3, conservative=False, top=5, seed=3)
    sketch.add(["a", "b", b"c", 4, -5, "\ud800\u00e9"], [1, 2, 3, 4, 5, 6])
    sketch.halve()
    path = tmp_path / "sketch"
    sketch.save(path)
    for again in (
        CountMinSketch.load(path),
        CountMinSketch.load(path, mmap=True),
        load(path),
    ):
        again.check()
        assert again.stats() == sketch.stats() and again.top(9)[0] == sketch.top(9)[0]
        again.add("a")  # also when mapped
        assert again.estimate("a") == sketch.estimate("a") + 1
        assert again.error_bound().probability == sketch.error_bound().probability
        again.merge(sketch)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptFileError):
        CountMinSketch.load(path)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda s: s.add(1.5), TypeError, "float"),
        (lambda s: s.add([1.5, "a"]), TypeError, "float"),
        (lambda s: s.add(None), TypeError, "NoneType"),
        (lambda s: s.add([None]), TypeError, "NoneType"),
        (lambda s: s.add(True), TypeError, "bool"),
        (lambda s: s.add([True]), TypeError, "bool"),
        (lambda s: s.add({"a": 1}), TypeError, "dict"),
        (lambda s: s.add(2**63), ValueError, "9223372036854775808"),
        (lambda s: s.add(np.array([2**63], np.uint64)), ValueError, "9223372036854775808"),
        (lambda s: s.add([[1]]), TypeError, "list"),
        (lambda s: s.add(np.ones((2, 2), int)), ValueError, "one-dimensional"),
        (lambda s: s.add(np.array([1.0])), TypeError, "float64"),
        (lambda s: s.add("a", -1), ValueError, "-1"),
        (lambda s: s.add(["a", "b"], [1, -1]), ValueError, "-1"),
        (lambda s: s.add(["a", "b"], [1]), ValueError, "items has 2"),
        (lambda s: s.add("a", 1.0), TypeError, "float"),
        (lambda s: s.estimate(1.5), TypeError, "float"),
        (lambda s: s.top(0), ValueError, "k must be >= 1"),
        (lambda s: CountMinSketch().top(1), ValueError, "no candidates"),
        (lambda s: s.is_hot("a", "b"), TypeError, "threshold"),
        (lambda s: s.merge("a"), TypeError, "str"),
        (lambda s: s.merge(CountMinSketch(32, top=2)), ValueError, "width differs: 64 here, 32"),
        (lambda s: s.merge(CountMinSketch(64, 3)), ValueError, "depth differs"),
        (lambda s: s.merge(CountMinSketch(64, seed=1)), ValueError, "seed differs"),
        (lambda s: s.merge(CountMinSketch(64, conservative=False)), ValueError, "conservative"),
        (lambda s: CountMinSketch(0), ValueError, "width must be >= 1"),
        (lambda s: CountMinSketch(4.0), TypeError, "width"),
        (lambda s: CountMinSketch(4, 0), ValueError, "depth"),
        (lambda s: CountMinSketch(4, top=-1), ValueError, "top"),
        (lambda s: CountMinSketch(4, seed=-1), ValueError, "seed"),
        (lambda s: CountMinSketch(4, conservative="no"), ValueError, "conservative"),
        (lambda s: CountMinSketch.from_error(0, 0.1), ValueError, "epsilon"),
        (lambda s: CountMinSketch.from_error(5e-324, 0.1), ValueError, "epsilon must be >= 2.5"),
        (lambda s: CountMinSketch.from_error(0.1, math.nan), ValueError, "delta"),
        (lambda s: CountMinSketch.from_error(0.1, 1e-14), ValueError, "delta must be >= 1.2"),
    ],
)
def test_bad_input(call, error, message):
    sketch = CountMinSketch(64, top=2)
    sketch.add("a", 3)
    with pytest.raises(error, match=message):
        call(sketch)
    sketch.check()
    assert sketch.total == 3 == sketch.estimate("a")


@given(
    st.lists(st.text(max_size=9) | st.sampled_from(["", "\0", "a\0b", "\0\0", "\ud800", "\udc00é"]))
    | st.lists(st.binary(max_size=9) | st.sampled_from([b"", b"\0", b"a\0b", b"\0\0"]))
)
def test_a_batch_of_strings_hashes_as_its_items_do(items):
    _, hashes, single = hash_items(items, 7)
    assert not single and hashes.tolist() == [int(hash_items(item, 7)[1][0]) for item in items]
    assert len(set(hashes.tolist())) == len(set(items))


class Column:
    """As a column of a table: an array only by `__array__`."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype)


def test_items_of_any_iterable():
    sketch = CountMinSketch(1 << 12, top=4)
    for items in (
        {"a", 7}, frozenset([7]), (item for item in ("a", b"c")), {"a": 1}.keys(), range(7, 9),
        Column([7, 9]), Column(np.array(["a", 7], object)), np.array(["a", b"c"], object),
    ):  # fmt: skip
        sketch.add(items)
        sketch.check()
    assert sketch.estimate(["a", 7, b"c", 8, 9]).tolist() == [5, 5, 2, 1, 1]
    assert sketch.estimate(Column([9, 7])).tolist() == [1, 5]
    sketch.add(["a", 7], Column([2, 3]))
    assert sketch.total == 19


@pytest.mark.parametrize("counts", [-1, [1, -3], np.array([0, -1])])
def test_it_says_that_it_cannot_decrement(counts):
    sketch = CountMinSketch(64)
    with pytest.raises(ValueError, match=r"counts must be >= 0.*cannot decrement"):
        sketch.add(["a", "b"], counts)
    with pytest.raises(TypeError, match="Counter: add"):
        sketch.add(Counter("aa"))
    assert sketch.total == 0 and sketch.estimate("a") == 0


def test_the_total_saturates():
    sketch = CountMinSketch(4, top=1)
    sketch._handle.state.total[0] = 2**63 - 5
    sketch.add(["a", "b"], [3, 2**40])
    assert sketch.total == 2**63 - 1
    sketch.merge(CountMinSketch.from_bytes(sketch.to_bytes()))
    assert sketch.total == 2**63 - 1 and sketch.estimate("b") == 2**32 - 1
    sketch.halve()
    assert sketch.total == 2**62 - 1
    sketch.check()
