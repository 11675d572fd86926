"""Triton's kernels under its interpreter, against attention in float64."""

import numpy as np
import pytest
from hypothesis import Phase, given, settings, strategies as st

from tests.attention import oracle
from tests.attention.samples import batch_of

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from .triton_interpreter import triton_kernels  # noqa: E402

# The interpreter computes in NumPy, which warns of what a GPU does not: rows that are masked out.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
PHASES = [Phase.explicit, Phase.generate]  # shrinking takes minutes in the interpreter
TORCH = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NUMPY = {"float32": np.float32, "bfloat16": np.uint16, "float16": np.float16}
# Of products and weights that are rounded to the type, relative to the spread of the values.
ROUNDING = {"float32": 0.0, "bfloat16": 2.0**-6, "float16": 2.0**-9}


def token_major(pages, dtype):
    """Pages [n, H, page_size, D] of NumPy as [n, page_size, H, D]."""
    pages = torch.from_numpy(pages)
    if dtype == "bfloat16":
        pages = pages.view(torch.bfloat16)
    return pages.transpose(1, 2).contiguous()


def attend(batch, kv_dtype, dtype, *, splits=1, sinks=None, head_major=False, **options):
    q = torch.from_numpy(batch.q).to(TORCH[dtype])
    if head_major:  # as queries come from some models
        q = q.transpose(0, 1).contiguous().transpose(0, 1)
    table, kv_len, cu_q = map(torch.from_numpy, (batch.block_table, batch.kv_len, batch.cu_q))
    out = torch.full((*q.shape[:2], batch.v_pages.shape[3]), torch.nan, dtype=q.dtype)
    rows = table, torch.tensor([table.shape[1]], dtype=torch.int32), kv_len, cu_q
    triton_kernels.attend_rows(
        q, token_major(batch.k_pages, kv_dtype), token_major(batch.v_pages, kv_dtype), rows, out,
        n_tokens=int(np.diff(batch.cu_q).max()), splits=splits,
        sinks=None if sinks is None else torch.from_numpy(sinks), **options,
    )  # fmt: skip
    return out.double().numpy()


def check(batch, kv_dtype, dtype, **options):
    exact = batch._replace(q=torch.from_numpy(batch.q).to(TORCH[dtype]).float().numpy())
    asked = {k: v for k, v in options.items() if k not in ("splits", "head_major")}
    expected, error = oracle.attention(exact, **asked)
    found = attend(batch, kv_dtype, dtype, **options)
    assert np.isfinite(found).all()
    # The bound of the oracle is for scores that are right to a few units of float32.
    assert (np.abs(found - expected) <= 4 * error + 4 * ROUNDING[dtype] + 1e-6).all()


SHAPES = st.sampled_from(
    [(4, 2, 16, 16), (3, 1, 20, 12), (8, 8, 8, 8), (6, 2, 24, 40), (20, 1, 16, 8)]
)
# Of pages and queries. Not bfloat16 for both: the interpreter's dot takes its bits for numbers.
DTYPES = st.sampled_from([(a, b) for a in TORCH for b in TORCH if (a, b) != ("bfloat16",) * 2])


@settings(max_examples=15, deadline=None, derandomize=True, phases=PHASES)
@given(
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=3), shape=SHAPES,
    dtypes=DTYPES, page_size=st.sampled_from([1, 4, 16]),
    splits=st.sampled_from([1, 2, 8]),
    window=st.sampled_from([0, 0, 1, 70]), softcap=st.sampled_from([0.0, 0.0, 2.5]),
    with_sinks=st.booleans(), head_major=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_rows_of_one_token(
    lengths, shape, dtypes, page_size, splits, window, softcap, with_sinks, head_major,
    seed,
):  # fmt: skip
    (kv_dtype, dtype), (n_heads, n_kv_heads, d, dv) = dtypes, shape
    batch = batch_of(
        [(n, 1) for n in lengths], n_heads=n_heads, n_kv_heads=n_kv_heads, d=d, dv=dv,
        page_size=page_size, dtype=NUMPY[kv_dtype], seed=seed,
    )  # fmt: skip
    sinks = None
    if with_sinks:
        sinks = np.random.default_rng(seed).standard_normal(n_heads).astype(np.float32)
    check(batch, kv_dtype, dtype, scale=0.3, splits=splits, window=window, softcap=softcap,
          sinks=sinks, head_major=head_major)  # fmt: skip


@settings(max_examples=15, deadline=None, derandomize=True, phases=PHASES)
@given(
    rows=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 40)), min_size=1, max_size=3),
    shape=SHAPES, dtypes=DTYPES, page_size=st.sampled_from([1, 16]),
    window=st.sampled_from([0, 0, 1, 40]), softcap=st.sampled_from([0.0, 0.0, 2.5]),
    with_sinks=st.booleans(), head_major=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_rows_of_many_tokens(
    rows, shape, dtypes, page_size, window, softcap, with_sinks, head_major, seed
):
    (kv_dtype, dtype), (n_heads, n_kv_heads, d, dv) = dtypes, shape
    batch = batch_of(
        [(before + n, n) for before, n in rows], n_heads=n_heads, n_kv_heads=n_kv_heads, d=d,
        dv=dv, page_size=page_size, dtype=NUMPY[kv_dtype], seed=seed,
    )  # fmt: skip
    sinks = None
    if with_sinks:
        sinks = np.random.default_rng(seed).standard_normal(n_heads).astype(np.float32)
    check(batch, kv_dtype, dtype, scale=0.3, window=window, softcap=softcap, sinks=sinks,
          head_major=head_major)  # fmt: skip


def test_a_wide_head_and_long_rows():
    batch = batch_of([(700, 1), (3, 1)], d=256, n_heads=2, n_kv_heads=1, page_size=16)
    check(batch, "float32", "float32", scale=1 / 16, splits=4)


def test_a_table_that_is_wider_than_its_rows():
    """A graph's table keeps its memory, and gets another width at every replay."""
    batch = batch_of([(9, 1), (30, 1)], page_size=4)
    wide = np.full((2, 40), 2**31 - 1, np.int32)
    wide[:, : batch.block_table.shape[1]] = batch.block_table
    few = attend(batch, "float32", "float32", scale=0.25)
    many = attend(batch._replace(block_table=wide), "float32", "float32", scale=0.25)
    np.testing.assert_array_equal(few, many)


def test_splits_keep_a_gpu_busy():
    for n_rows, n_kv_heads in ((1, 1), (1, 8), (33, 8), (384, 8)):
        splits = triton_kernels.splits_of(n_rows, n_kv_heads)
        assert splits == triton_kernels.MOST_SPLITS or n_rows * n_kv_heads * splits >= 264
        assert splits == 1 or n_rows * n_kv_heads * splits < 2 * 264
