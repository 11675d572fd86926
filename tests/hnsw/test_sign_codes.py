"""Sign codes: what they estimate, what they reject, and what they leave as it was."""

import numpy as np
import pytest
from numba import njit

import llmds_nb.hnsw.quantization
from llmds_nb import HNSW, CorruptFileError
from llmds_nb._core.state import Handle
from llmds_nb.hnsw.kernels.distance import IP, rows_keys, walked_space
from llmds_nb.hnsw.kernels.prefilter import prefilter_of, prefilter_query, prefilter_slots
from llmds_nb.hnsw.kernels.sign_codes import NUMBERS, sign_codes_encode
from llmds_nb.hnsw.kernels.simd import BIT_PLANES
from llmds_nb.hnsw.kernels.state import Index, Quantizer, index_at
from llmds_nb.hnsw.vector_store import METRICS as METRIC_NUMBERS

from .samples import METRICS, SHAPES, data, graph, logical_state, recall, shape


@pytest.fixture
def sign_rules(monkeypatch):
    """Set rules of the sign codes, by their names in `quantization`."""

    def set_rules(**rules):
        for name, value in rules.items():
            monkeypatch.setattr(llmds_nb.hnsw.quantization, f"_{name.upper()}", value)

    return set_rules


def built(vectors, **settings):
    index = HNSW(vectors.shape[1], **{"quantize": "sq8", "M": 6, "ef_construction": 40} | settings)
    index.add(vectors)
    index.check()
    return index


def error_bound_of(index):
    return index._snapshot.coding.error_bound


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("p", "width"), [(20, 32), (128, 128), (397, 416)])
def test_sign_codes_of_a_row_are_those_of_its_codes(metric, p, width):
    codes = np.zeros((50, width), np.uint8)
    codes[:, :p] = np.random.default_rng(p).integers(0, 256, (50, p))
    codes[3, :p], codes[4, :p] = 255, 100
    signs = np.full((50, -(-(width // 8 + NUMBERS) // 32) * 32), 77, np.uint8)
    sign_codes_encode(codes, p, 100, METRIC_NUMBERS[metric], signs)
    apart = codes[:, :p].astype(np.int64) - 100
    bits = np.unpackbits(signs[:, :-NUMBERS], axis=1, bitorder="little")
    assert (bits[:, :p] == (apart >= 0)).all() and not bits[:, p:].any()
    squares = (apart**2).sum(axis=1)
    stored = signs[:, -NUMBERS:-4].copy().view(np.int32)[:, 0]
    assert (stored == (0 if metric == "ip" else squares)).all()
    gains = squares / np.maximum(np.abs(apart).sum(axis=1), 1)
    np.testing.assert_allclose(signs[:, -4:].copy().view(np.float32)[:, 0], gains, rtol=1e-6)


@njit
def filtered(index, vector, keys, limits, left):
    index = index_at(index)
    space, prefilter = index.space, index.prefilter
    slots, numbers = np.arange(keys.size).astype(np.int32), np.empty(vector.size, np.int16)
    rows_keys(space, vector, slots, 0, slots.size, False, keys)
    codes, bound = np.empty((BIT_PLANES, prefilter.codes.rows.shape[1]), np.uint8), np.empty(3)
    prefilter_query(prefilter, space, index.quantizer, vector, codes, bound, numbers)
    for i in range(limits.size):
        slots = np.arange(keys.size).astype(np.int32)
        n = prefilter_slots(
            prefilter, space, codes, bound, limits[i], slots, slots.size, np.empty_like(slots)
        )
        for j in range(n):
            left[i, slots[j]] = True


def filtered_by(metric, error_bound, codes, query, p, centre):
    """(keys, some of them, which rows are left under each of these)."""
    n, width = codes.shape
    signs = np.empty((n, -(-(width // 8 + NUMBERS) // 32) * 32), np.uint8)
    sign_codes_encode(codes, p, centre, metric, signs)
    keys, left = np.empty(n, np.int32), np.zeros((3, n), np.bool_)
    none = np.zeros(0, np.float32)
    space = walked_space(codes, none, metric)
    prefilter = prefilter_of(
        signs, none, metric, np.zeros(0, np.bool_), 0.0, 0.0, error_bound or 1e-30, centre
    )
    quantizer = Quantizer(np.zeros((0, 0), np.float32), np.zeros(p, np.float32), 1.0, True)
    graph = HNSW(1)._snapshot.graph
    ids = np.zeros(1, np.int64)
    index = Handle(Index(space, space, ids, graph, prefilter, quantizer, n, p))
    filtered(index.address, query, keys, keys[:0], left)
    limits = np.sort(keys)[[5, n // 10, n // 2]]
    filtered(index.address, query, keys, limits, left)
    return keys, limits, left


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("p", "width", "centre"), [(128, 128, 128), (200, 224, 90)])
def test_sign_codes_reject_by_an_estimate_of_known_error(metric, p, width, centre):
    number, rng = METRIC_NUMBERS[metric], np.random.default_rng(p)
    centre = 128 if number == IP else centre
    codes = np.zeros((2000, width), np.uint8)
    codes[:, :p] = np.clip(np.rint(centre + 25 * rng.standard_normal((2000, p))), 0, 255)
    query = np.zeros(width, np.int16)
    query[:p] = np.rint(25 * rng.standard_normal(p)) + (0 if number == IP else centre)
    for error_bound, wrong, right in ((0.0, 0.55, 0.45), (0.7, 0.2, 0.12), (1.5, 0.02, 0.0)):
        keys, limits, left = filtered_by(number, error_bound, codes, query, p, centre)
        for limit, kept in zip(limits, left, strict=True):
            near = keys <= limit
            assert (~kept[near]).mean() <= wrong
        assert (~left[0][keys > limits[0]]).mean() >= right
    _, _, left = filtered_by(number, 1e6, codes, query, p, centre)
    assert left.all()
    # The estimate itself: its error is that of one bit a component, .6 of gain |q|, unbiased.
    _, limits, left = filtered_by(number, 0.0, codes, query, p, centre)
    assert abs(left[2].mean() - 0.5) < 0.06


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("dim", "quantize"), [(200, "sq8"), (256, "pca-sq8")])
def test_sign_codes_with_an_error_bound_beyond_all_errors_change_nothing(
    metric, dim, quantize, sign_rules
):
    vectors = shape("clustered", 1600, dim) + data(1600, dim) * 3
    queries = shape("clustered", 40, dim, 9)
    found = []
    for least in (1e6, 0.0):
        sign_rules(min_error_bound=least, signs_rejected=0.0 if least else 2.0)
        index = HNSW(dim, M=4, ef_construction=20, quantize=quantize, metric=metric)
        index.add(vectors[:1100])
        index.add(vectors[1100:])
        before = [index.search(queries, 5, ef=ef) for ef in (5, 20, 80)]
        index.remove(np.arange(0, 1600, 3))  # the graph is repaired
        index.add(vectors[:50])
        index.check()
        assert (error_bound_of(index) > 0) == (least > 0)
        found.append((logical_state(index), before, index.search(queries, 5, ef=30)))
    (state, before, after), (plain_state, plain_before, plain_after) = found
    assert state == plain_state
    for one, other in zip([*before, after], [*plain_before, plain_after], strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", SHAPES)
def test_recall_is_that_without_sign_codes(metric, name, sign_rules):
    vectors = shape(name, 3000, 192)
    queries = vectors[::10] + data(300, 192, 4) * 0.3
    signed = built(vectors, metric=metric)
    assert error_bound_of(signed) or name != "low rank"
    sign_rules(min_rows_signs=1 << 30)
    plain = built(vectors, metric=metric)
    assert error_bound_of(plain) == 0 and not len(plain._snapshot.prefilter)
    for ef in (20, 60):
        assert recall(signed, queries, ef=ef) > recall(plain, queries, ef=ef) - 0.01


def topics(n, dim, seed=0):
    """float32[n, dim] around 100 centres: their components are alike, and most are far apart."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((100, dim))
    return (centres[rng.integers(0, 100, n)] + rng.standard_normal((n, dim)) / 2).astype(np.float32)


def test_codes_have_sign_codes_where_these_reject_enough(sign_rules):
    for dim, width in ((192, 32), (384, 64), (500, 96)):
        index = built(topics(1500, dim))
        assert 0.75 <= error_bound_of(index) < 1 and index._snapshot.prefilter.shape[1] == width
    one = topics(1500, 192)
    one[:, 0] *= 50  # the signs of the others would outweigh the only one that counts
    alike = data(1500, 192)  # and none is near
    for vectors in (one, alike, topics(900, 192), topics(1500, 150)):
        index = built(vectors)
        assert error_bound_of(index) == 0 and not len(index._snapshot.prefilter)


def test_a_projection_makes_components_alike(sign_rules):
    sign_rules(min_width_signs=64)
    scales = np.linspace(1, 0.4, 320, dtype=np.float32)
    vectors, queries = topics(3000, 320) * scales, topics(300, 320, 1) * scales
    projected = built(vectors, quantize="pca-sq8")
    assert 0.75 <= error_bound_of(projected) < 1
    assert recall(projected, queries, ef=100) > 0.9


@pytest.mark.parametrize("quantize", ["sq8", "pca-sq8"])
def test_the_graph_is_the_same_for_any_number_of_threads(quantize, sign_rules):
    sign_rules(min_width_signs=64)
    vectors = topics(3000, 384)
    vectors = vectors[np.argsort(vectors[:, 0])]
    one, three = HNSW(384, M=6, quantize=quantize), HNSW(384, M=6, quantize=quantize)
    for index, threads in ((one, 1), (three, 3)):
        index.add(vectors[:1500], threads=threads)
        index.add(vectors[1500:], threads=threads)
        assert error_bound_of(index) > 0
    assert graph(one) == graph(three)


def test_sign_codes_follow_codes_that_are_fitted_again(sign_rules):
    index = built(topics(1200, 192))
    first = error_bound_of(index)
    index.add(topics(4000, 192, 1))  # four times as many
    index.check()
    assert first and error_bound_of(index)
    index.remove(np.arange(3000))
    index.check()
    codes_only = built(topics(1500, 192), store=None)
    codes_only.add(topics(6000, 192, 1))
    codes_only.check()
    assert error_bound_of(codes_only)


def test_a_file_keeps_sign_codes(tmp_path):
    index = built(topics(1500, 192))
    index.save(tmp_path / "index")
    for mmap in (False, True):
        loaded = HNSW.load(tmp_path / "index", mmap=mmap)
        loaded.check()
        queries = data(20, 192, 1)
        np.testing.assert_array_equal(loaded.search(queries).ids, index.search(queries).ids)
        loaded.add(queries)
        loaded.check()
        assert error_bound_of(loaded) == error_bound_of(index)


def with_narrow_signs(arrays, coding):
    arrays["sieve"] = arrays["sieve"][:, :-1]


def with_few_signs(arrays, coding):
    arrays["sieve"] = arrays["sieve"][:-1]


def with_the_centre_outside(arrays, coding):
    coding[7] = 256


def with_an_error_bound_below_zero(arrays, coding):
    coding[8] = -0.5


@pytest.mark.parametrize(
    "change",
    [with_narrow_signs, with_few_signs, with_the_centre_outside, with_an_error_bound_below_zero],
)
def test_a_file_whose_sign_codes_do_not_fit_is_refused(change):
    arrays, header = built(topics(1500, 192))._state()
    HNSW._from_state(dict(arrays), header).check()
    change(arrays, header["graph"]["coding"])
    with pytest.raises((CorruptFileError, ValueError)):
        HNSW._from_state(arrays, header)
