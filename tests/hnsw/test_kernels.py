"""The arithmetic of HNSW's kernels against NumPy: codes, float16, distance keys."""

import numba
import numpy as np
import pytest
from llvmlite.binding import get_host_cpu_features

from llmds_nb._core.jit import kernel
from llmds_nb._core.state import Handle, viewer
from llmds_nb.hnsw.kernels.distance import COSINE, IP, L2, rows_keys, walked_space, widen
from llmds_nb.hnsw.kernels.graph import candidates_insert
from llmds_nb.hnsw.kernels.scalar_quantizer import codes_quantize, codes_query, codes_restore
from llmds_nb.hnsw.kernels.simd import (
    BIT_PLANES,
    bit_planes_distance,
    bit_planes_pack,
    code_dot,
    code_l2,
)
from llmds_nb.hnsw.kernels.state import Quantizer, Space

space_at, quantizer_at = viewer(Space, numba.uint8), viewer(Quantizer)


@kernel
def l2_of(query, codes):
    return code_l2(query, codes)


@kernel
def dot_of(query, codes):
    return code_dot(query, codes)


@kernel
def widened(bits, out):
    for i in range(bits.size):
        out[i] = widen(bits[i])


@kernel
def prepared(quantizer, metric, query, out, projected):
    codes_query(quantizer_at(quantizer), metric, query, out, projected)


@kernel
def keys_by(space, query, slots, keys):
    rows_keys(space_at(space), query, slots, 0, slots.size, False, keys)


def keys_of(query, rows, factors, metric, slots, keys):
    space = Handle(walked_space(rows, factors, metric))
    keys_by(space.address, query, slots, keys)


@kernel
def sum_of_signs(numbers, signs, row, weight, constant):
    planes = np.zeros((BIT_PLANES, signs.shape[1]), np.uint8)
    bit_planes_pack(numbers, planes)
    return bit_planes_distance(planes, signs, row, weight, constant)


@kernel
def inserted(candidates, count, candidate):
    return candidates_insert(candidates, count, candidate)


@pytest.mark.parametrize("width", [32, 64, 192, 4096])
@pytest.mark.parametrize(("product", "low", "high"), [(l2_of, -255, 510), (dot_of, -2047, 2047)])
def test_integer_products_are_numpys_on_random_and_extreme_codes(product, low, high, width):
    rng = np.random.default_rng(width)
    queries = [np.full(width, low), np.full(width, high), rng.integers(low, high + 1, width)]
    queries += [rng.choice([low, high], width), np.zeros(width)]
    rows = [np.zeros(width), np.full(width, 255), rng.integers(0, 256, width)]
    rows += [rng.choice([0, 127, 128, 255], width), np.full(width, 128)]
    for query in np.array(queries, np.int16):
        for row in np.array(rows, np.uint8):
            q, c = query.astype(np.int64), row.astype(np.int64)
            true = ((q - c) ** 2).sum() if product is l2_of else (q * (c - 128)).sum()
            assert product(query, row) == true


def test_integer_products_read_codes_at_any_address():
    rng = np.random.default_rng(0)
    memory = rng.integers(0, 256, 200, np.uint8)
    query = rng.integers(-255, 511, 160).astype(np.int16)
    for start in (0, 1, 7, 33):
        codes = memory[start : start + 160]
        assert l2_of(query, codes) == ((query.astype(np.int64) - codes) ** 2).sum()


@pytest.mark.parametrize(("p", "width"), [(32, 32), (192, 32), (384, 64), (1024, 160)])
def test_sums_over_sign_codes_are_numpys(p, width):
    rng = np.random.default_rng(p)
    signs = rng.integers(0, 256, (3, width), np.uint8)
    signs[0, :-8], signs[1, :-8] = 255, 0
    low, high = -(1 << (BIT_PLANES - 1)), (1 << (BIT_PLANES - 1)) - 1
    for numbers in (rng.integers(low, high + 1, p), np.full(p, low), np.full(p, high)):
        for row in range(3):
            signs[row, -8:-4] = np.array([2000], np.int32).view(np.uint8)
            signs[row, -4:] = np.array([0.5], np.float32).view(np.uint8)
            bits = np.unpackbits(signs[row], bitorder="little")[:p]
            total = int((bits * numbers).sum())
            far = sum_of_signs(numbers.astype(np.int16), signs, row, np.float32(2), np.float32(-3))
            assert far == 2000 - 0.5 * (2 * total - 3)


def test_every_finite_float16_is_widened_as_numpy_does():
    bits = np.arange(65536).astype(np.uint16)
    true = bits.view(np.float16).astype(np.float32)
    bits, true = bits[np.isfinite(true)], true[np.isfinite(true)]
    out = np.empty(len(bits), np.float32)
    widened(bits, out)
    assert len(bits) == 63488
    np.testing.assert_array_equal(out.view(np.int32), true.view(np.int32))  # signs of zero too


def test_float16_is_widened_by_one_instruction_where_the_target_has_it():
    """`test_jit` runs this file for a plain target, too."""
    compiled = numba.njit(widened.py_func)
    compiled(np.zeros(1, np.uint16), np.zeros(1, np.float32))
    (assembly,) = compiled.inspect_asm().values()
    has_it = numba.config.CPU_NAME is None and get_host_cpu_features().get("f16c", False)
    assert ("vcvtph2ps" in assembly) == has_it


def test_quantizing_clips_at_both_ends_and_counts_what_it_clipped():
    offset = np.array([-1, 0, 5], np.float32)
    values = np.array([[-1, 127.5, 260], [-1.6, 128, 4.4], [1e30, -1e30, 5.4]], np.float32)
    codes = np.full((3, 32), 9, np.uint8)
    errors = np.empty(3, np.float32)
    assert codes_quantize(values, offset, 1.0, codes, errors) == 4
    np.testing.assert_allclose(errors[:2], np.hypot([0.5, 0.6], [0, 0.6]), rtol=1e-6)
    assert codes[:, :3].tolist() == [[0, 128, 255], [0, 128, 0], [255, 0, 0]]
    assert (codes[:, 3:] == 0).all()


@pytest.mark.parametrize("step", [1e-6, 0.013, 1e15])
def test_codes_represent_what_they_encode_within_half_a_step(step):
    offset = np.full(40, -100 * step, np.float32)
    values = np.random.default_rng(0).uniform(-100, 155, (500, 40)) * step
    values = values.astype(np.float32)
    codes, out = np.empty((500, 64), np.uint8), np.empty((500, 40), np.float32)
    errors = np.empty(500, np.float32)
    assert codes_quantize(values, offset, step, codes, errors) == 0
    codes_restore(codes, offset, step, out)
    assert np.abs(out - values).max() <= 0.5001 * step
    np.testing.assert_allclose(errors, np.linalg.norm(out - values, axis=1), rtol=1e-3)


@pytest.mark.parametrize("metric", [L2, IP, COSINE])
@pytest.mark.parametrize("dim", [32, 45, 130])
@pytest.mark.parametrize("projection", [None, 32, 41])
def test_keys_of_codes_are_the_integer_distances_of_numpy(metric, dim, projection):
    rng = np.random.default_rng(dim)
    query = rng.standard_normal(dim).astype(np.float32)
    query[:2] *= 100  # beyond the range of codes: a query may be, up to a point
    p = projection or dim
    basis = np.zeros((0, 0), np.float32)
    if projection:
        basis = (rng.standard_normal((dim, p)) / 8).astype(np.float32)
    offset = (-rng.random(p)).astype(np.float32)
    rows = np.zeros((70, -(-p // 32) * 32), np.uint8)
    rows[:, :p] = rng.integers(0, 256, (70, p))
    coded, projected = np.full(rows.shape[1], 99, np.int16), np.empty(p, np.float32)
    quantizer = Handle(Quantizer(basis, offset, 0.02, True))
    prepared(quantizer.address, metric, query, coded, projected)
    exact = query.astype(np.float64) @ basis if projection else query.astype(np.float64)
    if metric == IP:
        true = exact / np.abs(exact).max() * 2047
    else:
        true = np.clip((exact - offset) / 0.02, -255, 510)
    assert np.abs(coded[:p] - true).max() < 0.51 and (coded[p:] == 0).all()
    slots = rng.permutation(70).astype(np.int32)
    keys = np.empty(70, np.int32)
    keys_of(coded, rows, np.zeros(0, np.float32), metric, slots, keys)
    wide, codes = coded.astype(np.int64), rows[slots].astype(np.int64)
    dots, squares = -((codes - 128) @ wide), ((codes - wide) ** 2).sum(axis=1)
    np.testing.assert_array_equal(keys, dots if metric == IP else squares)


@pytest.mark.parametrize("metric", [L2, IP, COSINE])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_keys_of_floats_order_rows_as_the_distance_does(metric, dtype):
    rng = np.random.default_rng(1)
    rows = (rng.standard_normal((200, 37)) * rng.choice([0.01, 1, 100], (200, 1))).astype(dtype)
    query, wide = rng.standard_normal(37).astype(np.float32), rows.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1)
    true = ((wide - query) ** 2).sum(axis=1)
    if metric != L2:
        true = -(wide @ query) / (lengths if metric == COSINE else 1)
    factors = (1 / lengths).astype(np.float32) if metric == COSINE else np.zeros(0, np.float32)
    kept = rows.view(np.uint16) if dtype == np.float16 else rows
    keys = np.empty(200, np.int32)
    keys_of(query, kept, factors, metric, np.arange(200, dtype=np.int32), keys)
    gaps = np.diff(true[np.argsort(keys, kind="stable")])
    assert (true < 0).any() == (metric != L2)
    assert gaps.min() > -1e-5 * np.abs(true).max()


def test_candidates_stay_ascending_and_their_position_is_returned():
    rng = np.random.default_rng(0)
    entries, candidates = rng.permutation(50), np.full(60, -1)
    for count, entry in enumerate(entries.tolist()):
        place = inserted(candidates, count, entry)
        assert candidates[place] == entry
        np.testing.assert_array_equal(candidates[: count + 1], np.sort(entries[: count + 1]))
    assert (candidates[50:] == -1).all()
