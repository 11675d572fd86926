"""A prefilter of codes changes no graph and no answer: it only saves the reading of vectors."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numba import njit

import llmds_nb.hnsw.quantization
from llmds_nb import HNSW, CorruptFileError
from llmds_nb.hnsw.kernels.distance import rows_keys
from llmds_nb.hnsw.kernels.prefilter import prefilter_query, prefilter_slots
from llmds_nb.hnsw.kernels.state import index_at

from .samples import METRICS, SHAPES, data, logical_state, shape


@pytest.fixture
def prefilter_from(monkeypatch):
    """Set the least dimension that has a prefilter."""
    return lambda dim: monkeypatch.setattr(llmds_nb.hnsw.quantization, "_MIN_DIM_PREFILTER", dim)


def with_and_without(prefilter_from, dim, work, **settings):
    """What `work` returns for an index with a prefilter, and for one without."""
    found = []
    for least in (1, 1 << 20):
        prefilter_from(least)
        index = HNSW(dim, M=4, ef_construction=20, quantize=None, **settings)
        found.append(work(index))
        index.check()
        assert bool(len(index._snapshot.prefilter)) == (least == 1)
    return found


def same(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_array_equal(a.distances, b.distances)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dim", [3, 70])
def test_graph_and_answers_are_those_of_the_vectors_alone(prefilter_from, metric, name, dim):
    vectors, queries = shape(name, 1500, dim) + 0.5, shape(name, 40, dim, 9) + 0.5
    mask = np.arange(2000) % 3 > 0

    def work(index):
        index.add(vectors[:100])
        index.add(vectors[100:])  # the codes are fitted again
        index.add(vectors[:200] * 3, np.arange(100, 300))  # they may not reach so far
        before = [index.search(queries, 5, ef=ef) for ef in (5, 20, 80)]
        index.remove(np.arange(0, 1500, 3))  # the graph is repaired
        index.add(vectors[:50])
        after = [index.search(queries, 5, ef=ef, filter=mask) for ef in (5, 20)]
        return logical_state(index), before + after

    (state, answers), (plain_state, plain_answers) = with_and_without(
        prefilter_from, dim, work, metric=metric
    )
    assert state == plain_state
    same(answers, plain_answers)


@settings(max_examples=60, deadline=None)
@given(
    metric=st.sampled_from(METRICS), dim=st.integers(1, 40), seed=st.integers(0, 10**6),
    spread=st.sampled_from([0, 1, 3]), shift=st.sampled_from([0, 1, 1000]),
    whole=st.booleans(),
)  # fmt: skip
def test_no_row_is_rejected_that_counts(metric, dim, seed, spread, shift, whole):
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((300, dim)) * 10.0 ** rng.uniform(-spread, spread, (300, 1))
    vectors = (np.rint(2 * vectors) if whole else vectors) + shift
    if metric == "cosine":
        vectors[~vectors.any(axis=1)] = 1
    least, llmds_nb.hnsw.quantization._MIN_DIM_PREFILTER = (
        llmds_nb.hnsw.quantization._MIN_DIM_PREFILTER,
        1,
    )
    try:
        index = HNSW(dim, M=2, ef_construction=2, quantize=None, metric=metric)
        index.add(vectors)
    finally:
        llmds_nb.hnsw.quantization._MIN_DIM_PREFILTER = least
    snapshot = index._snapshot
    query = index._form.queries(vectors[0] + rng.standard_normal(dim) * 10.0**-spread)[0][0]
    if metric == "cosine":
        query = query / np.float32(np.linalg.norm(query.astype(np.float64)))
    keys, kept = passed(snapshot, query)
    for key, slots in kept.items():
        assert set(np.flatnonzero(keys <= key)) <= set(slots)


def test_most_rows_that_do_not_count_are_rejected():
    for metric in METRICS:
        index = HNSW(128, M=2, ef_construction=2, quantize=None, metric=metric)
        index.add(data(300, 128))
        query = data(1, 128, 5)[0]
        if metric == "cosine":
            query /= np.linalg.norm(query)
        keys, kept = passed(index._snapshot, query)
        for key, slots in kept.items():
            assert len(slots) <= (keys <= key).sum() + 90


def passed(snapshot, query):
    """Keys of all rows, and for some of these the slots that the prefilter lets pass."""
    n = snapshot.n
    keys = np.empty(n, np.int32)
    limits = np.empty(0, np.int32)
    handle = snapshot.handle
    args = handle.address, query, keys
    _filter(*args, limits, np.empty((0, n), np.bool_))
    limits = np.sort(keys)[[0, 5, 30, n // 2]]
    left = np.zeros((4, n), np.bool_)
    _filter(*args, limits, left)
    return keys, {int(key): np.flatnonzero(row) for key, row in zip(limits, left, strict=True)}


@njit
def _filter(index, vector, keys, limits, left):
    s = index_at(index)
    coded, bound = np.zeros(s.prefilter.codes.rows.shape[1], np.int16), np.empty(3)
    prefilter_query(s.prefilter, s.space, s.quantizer, vector, coded, bound, coded)
    slots = np.arange(s.n).astype(np.int32)
    rows_keys(s.space, vector, slots, 0, slots.size, False, keys)
    scratch = np.empty(slots.size, np.int32)
    for i in range(limits.size):
        slots = np.arange(s.n).astype(np.int32)
        key, n = limits[i], slots.size
        n = prefilter_slots(s.prefilter, s.space, coded, bound, key, slots, n, scratch)
        for j in range(n):
            left[i, slots[j]] = True


def test_an_outlier_is_left_out_of_the_bound_of_the_others(prefilter_from):
    prefilter_from(1)
    index = HNSW(16, quantize=None)
    index.add(shape("outlier", 1000, 16))
    snapshot = index._snapshot
    assert snapshot.outlier[500] and snapshot.outlier[:1000].sum() < 100
    assert snapshot.coding.error(snapshot.coding.longest) < 0.1


def test_a_file_keeps_the_prefilter(prefilter_from, tmp_path):
    prefilter_from(1)
    index = HNSW(16, quantize=None)
    index.add(shape("outlier", 1000, 16))
    index.save(tmp_path / "index")
    for mmap in (False, True):
        loaded = HNSW.load(tmp_path / "index", mmap=mmap)
        loaded.check()
        for name in ("prefilter", "outlier"):
            np.testing.assert_array_equal(
                getattr(loaded._snapshot, name)[:1000], getattr(index._snapshot, name)[:1000]
            )
        queries = data(20, 16, 1)
        same([loaded.search(queries, 5)], [index.search(queries, 5)])
        loaded.add(queries)
        loaded.check()


def with_few_outliers(arrays, coding):
    arrays["wild"] = arrays["wild"][:-1]


def with_short_offset(arrays, coding):
    arrays["offset"] = arrays["offset"][:-1]


def with_narrow_codes(arrays, coding):
    arrays["sieve"] = arrays["sieve"][:, :-1]


def with_basis(arrays, coding):
    coding[0], arrays["basis"] = "pca-sq8", np.zeros((16, 16), np.float32)


def of_another_kind(arrays, coding):
    coding[0] = "none"


def of_part_of_a_kind(arrays, coding):
    coding[0] = "q8"


def of_a_walk_on_codes(arrays, coding):
    coding[5] = False


@pytest.mark.parametrize(
    "change",
    [with_few_outliers, with_short_offset, with_narrow_codes, with_basis, of_another_kind,
     of_part_of_a_kind, of_a_walk_on_codes],
)  # fmt: skip
def test_a_file_whose_prefilter_does_not_fit_is_refused(prefilter_from, change):
    prefilter_from(1)
    index = HNSW(16, quantize=None)
    index.add(shape("outlier", 200, 16))
    arrays, header = index._state()
    HNSW._from_state(dict(arrays), header).check()
    change(arrays, header["graph"]["coding"])
    with pytest.raises(CorruptFileError):
        HNSW._from_state(arrays, header)


@pytest.mark.parametrize("kind", ["no", "sq8"])
def test_a_file_without_codes_has_no_kind_of_them(kind):
    index = HNSW(16, quantize=None)
    index.add(data(20, 16))
    arrays, header = index._state()
    header["graph"]["coding"][0] = kind
    with pytest.raises(CorruptFileError):
        HNSW._from_state(arrays, header)


def test_stats_of_a_walk_on_vectors():
    index = HNSW(64, quantize=None)
    index.add(data(200, 64))
    stats = index.stats()
    assert (stats.coding, stats.code_bytes, stats.rerank) == ("none", 64, 10)
