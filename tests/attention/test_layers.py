"""What lies around the attention of a layer, against NumPy in float64."""

import numpy as np
import pytest

from llmds_nb.attention.layers import (
    linear_unchecked,
    pack_weights,
    rms_norm_unchecked,
    rotate_write_unchecked,
    silu_product_unchecked,
)
from llmds_nb.attention.pages import gather_pages


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def floats(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("n_rows", [0, 1, 3, 4, 7, 8, 13, 95, 96, 97, 205])
@pytest.mark.parametrize(
    ("depth", "sizes"), [(1, [1]), (33, [32]), (64, [40, 24]), (7, [3, 61, 1])]
)
def test_linear(rng, n_rows, depth, sizes):
    x, weights = floats(rng, n_rows, depth), [floats(rng, n, depth) for n in sizes]
    bias, whole = floats(rng, sum(sizes)), np.concatenate(weights)
    panels = pack_weights(weights)
    for own in (None, bias):
        found = linear_unchecked(x, panels, own, len(whole))
        wanted = x.astype(float) @ whole.T.astype(float) + (0 if own is None else own)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_row_does_not_depend_on_the_others_nor_on_threads(rng):
    x, weight = floats(rng, 203, 96), floats(rng, 1300, 96)
    panels = pack_weights([weight])
    whole = linear_unchecked(x, panels, None, 1300)
    for rows in (slice(5, 6), slice(90, 104), slice(200, 203)):
        assert np.array_equal(linear_unchecked(x[rows], panels, None, 1300), whole[rows])
    assert 203 * 1300 * 96 > 2**24  # so that there is more than one thread
    assert np.array_equal(linear_unchecked(x, panels, None, 1300, threads=3), whole)


def test_a_long_sum_rounds_no_worse_than_numpy(rng):
    x, weight = np.abs(floats(rng, 8, 16384)), np.abs(floats(rng, 32, 16384))
    wanted = x.astype(float) @ weight.T.astype(float)
    found = linear_unchecked(x, pack_weights([weight]), None, 32)
    assert np.abs(found / wanted - 1).max() < 8 * np.abs((x @ weight.T) / wanted - 1).max() + 1e-6
    assert np.abs(found / wanted - 1).max() < 3e-6


def test_nan_and_infinity_stay_in_their_rows(rng):
    x, weight = floats(rng, 9, 40), floats(rng, 33, 40)
    x[2, 5], x[7, 0] = np.nan, np.inf
    found = linear_unchecked(x, pack_weights([weight]), None, 33)
    assert np.isnan(found[2]).all()
    assert np.isinf(found[7]).all()
    assert np.isfinite(np.delete(found, [2, 7], axis=0)).all()


@pytest.mark.parametrize("scale", [1e-18, 1.0, 1e15])
def test_rms_norm(rng, scale):
    x, weight = scale * floats(rng, 5, 96), floats(rng, 96)
    found, wide = rms_norm_unchecked(x, weight, 1e-6), x.astype(float)
    wanted = weight * wide / np.sqrt((wide**2).mean(1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-25)


def test_silu_product(rng):
    x = 4 * floats(rng, 6, 192)
    x[0, :8] = 0, -0.0, 87, -87, 1000, -1000, 3e38, -3e38
    found, wide = silu_product_unchecked(x), x.astype(float)
    with np.errstate(over="ignore"):
        wanted = wide[:, :96] / (1 + np.exp(-wide[:, :96])) * wide[:, 96:]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-20)
    x[1, 3], x[2, 100] = np.nan, np.nan
    found = silu_product_unchecked(x)
    assert np.argwhere(np.isnan(found)).tolist() == [[1, 3], [2, 4]]


def rotated(rows, cos, sin, norm, eps):
    """Rows [T, H, D] in float64."""
    rows = rows.astype(float)
    if norm is not None:
        rows = norm * rows / np.sqrt((rows**2).mean(-1, keepdims=True) + eps)
    a, b = np.split(rows, 2, axis=-1)
    return rows * cos[:, None] + np.concatenate((-b, a), axis=-1) * sin[:, None]


@pytest.mark.parametrize("stored", [np.float32, np.float16])
@pytest.mark.parametrize(("n_heads", "n_kv", "width", "v_width"), [(8, 2, 32, 32), (3, 3, 6, 10)])
@pytest.mark.parametrize("with_norms", [False, True])
def test_rotate_write(rng, stored, n_heads, n_kv, width, v_width, with_norms):
    n, page_size = 11, 4
    k_pages = np.zeros((5, n_kv, page_size, width), stored)
    v_pages = np.zeros((5, n_kv, page_size, v_width), stored)
    q, k, v = (
        floats(rng, n, *shape) for shape in ((n_heads, width), (n_kv, width), (n_kv, v_width))
    )
    cos, sin = floats(rng, n, width), floats(rng, n, width)
    norms = (floats(rng, width), floats(rng, width)) if with_norms else (None, None)
    table = np.array([3, 0, 4], np.int32)
    slots = (table[np.arange(n) // page_size] * page_size + np.arange(n) % page_size).astype(
        np.int32
    )
    qkv = np.concatenate([part.reshape(n, -1) for part in (q, k, v)], axis=1)
    taken = [p.view(np.int16) if stored == np.float16 else p for p in (k_pages, v_pages)]
    queries = rotate_write_unchecked(qkv, (cos, sin, *norms, 1e-5), *taken, slots, n_heads)
    close = {"rtol": 1e-5, "atol": 1e-5} if stored == np.float32 else {"rtol": 2e-3, "atol": 2e-3}
    np.testing.assert_allclose(queries, rotated(q, cos, sin, norms[0], 1e-5), rtol=1e-5, atol=1e-5)
    keys = gather_pages(k_pages, table, n).transpose(1, 0, 2)
    np.testing.assert_allclose(keys, rotated(k, cos, sin, norms[1], 1e-5), **close)
    np.testing.assert_allclose(gather_pages(v_pages, table, n).transpose(1, 0, 2), v, **close)
    assert not k_pages[[1, 2]].any()
    assert not k_pages[4, :, 3].any()
