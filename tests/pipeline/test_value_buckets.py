"""Buckets of the values of a column: the same answers as without, and when they are made."""

import numpy as np
import pytest

from llmds_nb.pipeline import value_buckets
from llmds_nb.pipeline.kernels import where as k
from llmds_nb.pipeline.matching import Column
from llmds_nb.pipeline.metadata import MetadataStore, checked_metadata, parsed_where
from llmds_nb.pipeline.value_buckets import Buckets, BucketsByName

INT64 = np.iinfo(np.int64)
N = 2 * k.BLOCK + 77
RNG = np.random.default_rng(5)
SPREADS = {
    "all equal": np.full(N, 7),
    "years": RNG.integers(1925, 2025, N),
    "just all buckets": np.append(RNG.integers(0, k.N_BUCKETS, N - 2), [0, k.N_BUCKETS - 1]),
    "two to a bucket": np.append(RNG.integers(0, k.N_BUCKETS, N - 2), [0, k.N_BUCKETS]),
    "whole range": np.append(RNG.integers(INT64.min, INT64.max, N - 2), [INT64.min, INT64.max]),
    "mostly in one": np.append(RNG.integers(0, 9, N - 1), INT64.max),
    "negative": RNG.integers(-(10**9), -(10**6), N),
}


def column_of(values, gaps=False, kinds=k.INT):
    rows = np.arange(len(values), dtype=np.int32) * (2 if gaps else 1)
    kinds = np.full(len(values), kinds, np.uint8)
    return Column(rows, kinds, np.asarray(values, np.int64), len(values))


def interval(pairs, kind=k.INT):
    ptr = np.zeros(k.N_KINDS + 1, np.int64)
    ptr[kind + 1 :] = len(pairs)
    lows, highs = np.array(pairs, np.int64).reshape(-1, 2).T.copy()
    return ptr, lows, highs


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("spread", list(SPREADS))
def test_every_interval_holds_what_it_holds_of_the_values(spread, gaps):
    values = SPREADS[spread]
    column = column_of(values, gaps)
    buckets = Buckets.of(column)
    bounds = np.unique(np.concatenate([RNG.choice(values, 12), [INT64.min, -1, 0, INT64.max]]))
    bounds = [int(b) + off for b in bounds for off in (-1, 0, 1)]
    bounds = [b for b in bounds if INT64.min <= b <= INT64.max]
    for low in bounds:
        for high in RNG.choice(bounds, 6):
            pairs = [(low, high)] if low <= high else [(INT64.min, high), (low, INT64.max)]
            out = np.zeros(2 * N, np.bool_)
            assert buckets.match(column, True, interval(pairs), out) == N
            wanted = np.zeros(2 * N, np.bool_)
            wanted[column.rows] = [any(a <= v <= b for a, b in pairs) for v in values.tolist()]
            np.testing.assert_array_equal(out, wanted)


def test_intervals_of_another_kind_and_too_many():
    column = column_of(range(100))
    buckets, out = Buckets.of(column), np.zeros(100, np.bool_)
    assert buckets.match(column, True, interval([(0, 50)], k.FLOAT), out) == 100
    assert not out.any()
    many = interval([(2 * i, 2 * i) for i in range(k.FEW + 1)])
    assert buckets.match(column, True, many, out) == 0 and not out.any()
    kinds = column.kinds.copy()
    kinds[99] = k.FLOAT
    assert Buckets.of(column._replace(kinds=kinds)) is None


def test_they_are_made_when_a_column_is_asked_again(monkeypatch):
    monkeypatch.setattr(value_buckets, "LEAST", 8)
    known, column = BucketsByName(), column_of(range(100))
    assert known.get("a", column.first(7)) is None and known.get("a", column.first(7)) is None
    assert known.get("a", column.first(80)) is None and known.nbytes == 0
    made = known.get("a", column.first(80))
    assert made.buckets.size == 80 and known.nbytes == 2 * 80 + 16
    assert known.get("a", column) is made  # most of it has some
    assert known.get("a", column.first(20)) is made  # of an older store
    assert known.get("a", column_of(range(200))).buckets.size == 200
    known.check("a", column)
    with pytest.raises(AssertionError):
        known.check("a", column_of(range(1, 101)))
    mixed = column_of(range(100))
    mixed.kinds[5] = k.FLOAT
    assert known.get("b", mixed) is None and known.get("b", mixed) is None
    calls = []
    monkeypatch.setattr(k, "buckets_fill", lambda *_: calls.append(1) or -1)
    assert known.get("b", mixed) is None and not calls


def test_a_store_that_grows_and_is_compacted(monkeypatch):
    monkeypatch.setattr(value_buckets, "LEAST", 8)
    store, values = MetadataStore.empty(), []
    for step in range(12):
        new = RNG.integers(0, 10**12, 11).tolist()
        old = store
        store = store.added(checked_metadata([{"x": value} for value in new], len(new)))
        values += new
        if step == 6:
            rows = np.arange(0, len(values), 2)
            store, values = store.compacted(rows), values[::2]
        if step == 9:  # a second store that grows from an older one
            other = old.added(checked_metadata([{"x": 5}] * 3, 3))
            assert other.mask(parsed_where({"x": {"$lte": 5}})).sum() == 3
            other.check()
        for bound in [*RNG.choice(values, 3).tolist(), 5 * 10**11]:
            mask = store.mask(parsed_where({"x": {"$lt": bound}}))
            assert mask.tolist() == [value < bound for value in values]
            assert old.mask(parsed_where({"x": {"$lt": bound}})).shape == (old.n,)
        assert store.grown.buckets.nbytes > 0
        store.check()
    before = store.nbytes
    assert before > MetadataStore.from_state(*store.state()).nbytes
