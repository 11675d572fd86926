"""Exponentials, tanh and products of the kernels, beside float64."""

import numba
import numpy as np
import pytest

from llmds_nb.attention.kernels import simd


@numba.njit
def exp_rows(a, shift):
    for i in range(a.shape[0]):
        simd.exp_sum(a, i, shift)


@numba.njit
def exp_sum(a, row, shift):
    return simd.exp_sum(a, row, shift)


@numba.njit
def exp_one(x):
    return simd.exp_one(x)


@numba.njit
def cap_rows(a, cap):
    for i in range(a.shape[0]):
        simd.soft_cap(a, i, cap)


@numba.njit
def largest(a, row, least):
    return simd.largest(a, row, least)


@numba.njit
def products(a, b, c, add):
    for i in range(0, c.shape[0], simd.ROWS):
        for j in range(0, c.shape[1], simd.BLOCK):
            if add:
                simd.product_add(a, i, b, j, b.shape[0], c)
            else:
                simd.product(a, i, b, j, b.shape[0], c)


def ulps(found, exact):
    """How many units in the last place of float32 each is off."""
    return np.abs(found - exact) / np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)


def test_exp(figures):
    rng = np.random.default_rng(0)
    x = np.concatenate([-rng.random(200_000) * 87, rng.random(20_000) * 88, -rng.random(99_968)])
    x = x.astype(np.float32).reshape(-1, simd.BLOCK)
    found = x.copy()
    exp_rows(found, np.float32(0))
    worst = ulps(found, np.exp(x.astype(np.float64))).max()
    figures(ulp=worst)
    assert worst < 1.5
    for value in x.ravel()[:1000]:
        assert abs(exp_one(value) - np.exp(np.float64(value))) <= 2e-7 * np.exp(np.float64(value))


def test_exp_at_its_ends():
    special = np.float32([0.0, -0.0, -86.99, -87.01, -1e30, -np.inf, np.nan, 88.0])
    a = np.resize(special, (1, simd.BLOCK))
    exp_rows(a, np.float32(0))
    found = a[0, : special.size]
    assert found[0] == found[1] == 1
    assert found[2] > 0 and (found[3:6] == 0).all()
    assert np.isnan(found[6]) and np.isclose(found[7], np.exp(88.0))


def test_exp_sum_is_that_of_what_it_writes():
    a = np.random.default_rng(1).standard_normal((3, 64), np.float32)
    before = a.copy()
    total = exp_sum(a, 1, np.float32(0.5))
    assert np.isclose(total, a[1].sum(), rtol=1e-6)
    assert np.allclose(a[1], np.exp(before[1] - np.float32(0.5)), rtol=1e-6)
    assert (a[[0, 2]] == before[[0, 2]]).all()


@pytest.mark.parametrize("cap", [0.5, 30.0, 50.0])
def test_soft_cap(cap):
    rng = np.random.default_rng(2)
    x = np.concatenate([rng.standard_normal(10_000) * scale for scale in (1e-6, 0.01, 1, 30, 1e4)])
    x = np.concatenate([x, [0.0, np.inf, -np.inf, np.nan], np.zeros(12)]).astype(np.float32)
    a = x.reshape(-1, simd.BLOCK).copy()
    cap_rows(a, np.float32(cap))
    exact = cap * np.tanh(x.astype(np.float64) / cap)
    found = a.ravel()
    assert np.isnan(found[np.isnan(x)]).all()
    known = ~np.isnan(x)
    assert np.allclose(found[known], exact[known], rtol=1e-6, atol=1e-12)
    assert (np.abs(found[known]) <= np.float32(cap)).all()


def test_largest_passes_over_nan():
    a = np.random.default_rng(3).standard_normal((2, 64), np.float32)
    a[1, 5] = np.nan
    assert largest(a, 0, np.float32(-9)) == a[0].max()
    assert largest(a, 1, np.float32(-9)) == np.nanmax(a[1])
    assert largest(a, 1, np.float32(9)) == 9


@pytest.mark.parametrize("n", [1, 2, 7, 64])
@pytest.mark.parametrize("add", [False, True])
def test_products(n, add):
    rng = np.random.default_rng(4)
    a, b = (rng.standard_normal(shape, np.float32) for shape in ((8, n + 3), (n, 96)))
    c = rng.standard_normal((8, 96), np.float32)
    wanted = a[:, :n].astype(np.float64) @ b + (c if add else 0)
    products(a, b, c, add)
    assert np.allclose(c, wanted, rtol=0, atol=(n + 2) * 2.0**-22)
