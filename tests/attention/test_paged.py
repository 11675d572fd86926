"""`paged_attention` beside attention in float64."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from llmds_nb.attention import paged_attention, paged_attention_unchecked

from .oracle import attention
from .samples import DTYPES, batch_of

ROWS = [(1, 1), (70, 1), (130, 1), (9, 9), (100, 37), (0, 0)]


def check(batch, **options):
    found = paged_attention(*batch, **options)
    wanted, error = attention(batch, **options)
    assert found.dtype == np.float32 and found.shape == wanted.shape
    assert (np.abs(found - wanted) <= error).all()
    return found


@given(st.data())
def test_it_is_attention(data):
    draw = data.draw
    rows = draw(
        st.lists(
            st.integers(0, 150).flatmap(
                lambda n: st.tuples(st.just(n), st.sampled_from(sorted({min(n, 1), n, n // 2})))
            ),
            max_size=4,
        )
    )
    n_kv_heads, group = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3, 4, 8, 13]))
    batch = batch_of(
        rows,
        n_heads=n_kv_heads * group,
        n_kv_heads=n_kv_heads,
        d=draw(st.integers(1, 70)),
        dv=draw(st.integers(1, 70)),
        page_size=draw(st.sampled_from([1, 3, 8, 16, 64, 100])),
        dtype=draw(st.sampled_from(DTYPES)),
        spread=draw(st.sampled_from([0.1, 1.0, 10.0])),
        seed=draw(st.integers(0, 1000)),
    )
    sinks = np.random.default_rng(0).standard_normal(n_kv_heads * group).astype(np.float32) * 3
    check(
        batch,
        scale=draw(st.sampled_from([0.1, 0.25, 1.0, -0.5])),
        window=draw(st.sampled_from([0, 1, 2, 5, 64, 100])),
        softcap=draw(st.sampled_from([0.0, 0.5, 30.0])),
        sinks=draw(st.sampled_from([None, sinks])),
    )


@pytest.mark.parametrize("d", [64, 80, 96, 128, 192, 256])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_widths_of_models(d, dtype):
    check(batch_of(ROWS, d=d, page_size=16, dtype=dtype), scale=d**-0.5)


@pytest.mark.parametrize("heads", [(8, 1), (8, 8), (71, 1), (12, 4)])
def test_the_groups_of_models(heads):
    batch = batch_of(ROWS, n_heads=heads[0], n_kv_heads=heads[1], d=32, dv=24, page_size=16)
    check(batch, scale=0.2)


def test_long_rows():
    check(batch_of([(5000, 1), (2100, 3)], d=32, page_size=16), scale=0.2)


def test_threads_change_no_bit():
    for rows in (ROWS, [(5000, 1)], [(3000, 200)]):
        batch = batch_of(rows, page_size=16)
        one = paged_attention(*batch, scale=0.3)
        for threads in (2, 3, 7):
            assert (one == paged_attention(*batch, scale=0.3, threads=threads)).all()


def test_an_answer_depends_on_its_row_alone():
    batch = batch_of(ROWS, page_size=16)
    whole = paged_attention(*batch, scale=0.3)
    for b, (_, n) in enumerate(ROWS):
        queries = slice(batch.cu_q[b], batch.cu_q[b + 1])
        alone = paged_attention(
            batch.q[queries], batch.k_pages, batch.v_pages, batch.block_table[b : b + 1],
            batch.kv_len[b : b + 1], [0, n], scale=0.3,
        )  # fmt: skip
        assert (alone == whole[queries]).all()


def test_nan_stays_in_its_row_and_head():
    batch = batch_of(ROWS, page_size=16)
    clean = paged_attention(*batch, scale=0.3)
    page = batch.block_table[1, 2]
    for pages in (batch.k_pages, batch.v_pages):
        kept = pages[page, 1, 3, 2]
        pages[page, 1, 3, 2] = np.nan
        found = paged_attention(*batch, scale=0.3)
        assert np.isnan(found[1, 2:]).any()
        found[1, 2:] = clean[1, 2:]
        assert (found == clean).all()
        pages[page, 1, 3, 2] = kept


def test_what_a_window_hides_is_not_read():
    batch = batch_of([(100, 1), (100, 5)], page_size=4)
    clean = paged_attention(*batch, scale=0.3, window=10)
    for b, first in ((0, 90), (1, 86)):
        hidden = batch.block_table[b, : first // 4]
        batch.k_pages[hidden], batch.v_pages[hidden] = np.nan, np.inf
    assert (paged_attention(*batch, scale=0.3, window=10) == clean).all()


def test_scores_beyond_the_range_of_exp():
    for spread in (30.0, 1e4):
        batch = batch_of([(200, 1), (150, 20)], spread=spread)
        found = paged_attention(*batch, scale=1.0)
        wanted, error = attention(batch, scale=1.0)
        assert np.isfinite(found).all()
        sharp = error < 0.01 * spread
        assert sharp.any() and (np.abs(found - wanted) <= error)[sharp].all()


def test_sinks_of_any_size():
    batch = batch_of(ROWS)
    for sink in (-200.0, 0.0, 200.0):
        check(batch, scale=0.3, sinks=np.full(4, sink, np.float32))
    none = paged_attention(*batch, scale=0.3, sinks=np.full(4, -np.inf, np.float32))
    assert np.allclose(none, paged_attention(*batch, scale=0.3), rtol=1e-6, atol=0)


def test_strides_of_q():
    batch = batch_of(ROWS)
    plain = paged_attention(*batch, scale=0.3)
    turned = np.ascontiguousarray(batch.q.transpose(1, 0, 2)).transpose(1, 0, 2)
    spaced = np.zeros((*batch.q.shape[:2], 32), np.float32)[:, :, ::2]
    spaced[:] = batch.q
    read_only = batch.q.copy()
    read_only.flags.writeable = False
    for q in (turned, spaced, read_only):
        assert (paged_attention(q, *batch[1:], scale=0.3) == plain).all()


def test_arrays_of_a_file_and_unaligned_ones(tmp_path):
    batch = batch_of(ROWS)
    plain = paged_attention(*batch, scale=0.3)
    mapped = []
    for i, array in enumerate((*batch[:3], np.zeros_like(plain))):
        file = np.memmap(tmp_path / str(i), array.dtype, "w+", shape=array.shape)
        file[:] = array
        mapped.append(file)
    found = paged_attention(*mapped[:3], *batch[3:], scale=0.3, out=mapped[3])
    assert found is mapped[3] and (found == plain).all()
    memory = np.zeros(batch.q.nbytes + 1, np.uint8)[1:]
    unaligned = memory.view(np.float32).reshape(batch.q.shape)
    unaligned[:] = batch.q
    assert (paged_attention(unaligned, *batch[1:], scale=0.3) == plain).all()
    with pytest.raises(TypeError, match="masked"):
        paged_attention(np.ma.masked_array(batch.q), *batch[1:], scale=0.3)


def test_out_and_the_unchecked_entry():
    batch = batch_of(ROWS)
    plain, out = paged_attention(*batch, scale=0.3), np.full(batch.q.shape, 7, np.float32)
    assert paged_attention(*batch, scale=0.3, out=out) is out
    assert (out == plain).all()
    out[:] = 7
    terms = (0.3, 0.0, 0, np.empty(0, np.float32))
    paged_attention_unchecked(*batch[:3], batch[3:], terms, 2, out)
    assert (out == plain).all()


def test_batches_of_nothing():
    batch = batch_of([])
    assert paged_attention(*batch, scale=1.0).shape == (0, 4, 16)
    batch = batch_of([(5, 0), (0, 0)])
    assert paged_attention(*batch, scale=1.0, threads=2).shape == (0, 4, 16)


REFUSED = {
    "q": [
        (lambda b: b.q.astype(np.float64), TypeError, "float64"),
        (lambda b: b.q.tolist(), TypeError, "q must be an array"),
        (lambda b: b.q[:, 0], ValueError, r"\[tokens, heads, width\]"),
        (lambda b: b.q[:, :3], ValueError, "multiple of 2 KV heads, not 3"),
        (lambda b: b.q[:, :, :8], ValueError, "width 8, but k_pages 16"),
        (lambda b: b.q[1:], ValueError, r"must be in \[0, 48\]|from 0 to 48"),
    ],
    "k_pages": [
        (lambda b: b.k_pages.astype(np.float64), TypeError, "float64"),
        (lambda b: b.k_pages.astype(np.float16), TypeError, "v_pages must be float16"),
        (lambda b: b.k_pages[:, :, ::2], ValueError, "C-contiguous"),
        (lambda b: b.k_pages[0], ValueError, "must have shape"),
        (lambda b: b.k_pages[1:], ValueError, "must agree"),
        (lambda b: b.k_pages[:0], ValueError, "must agree"),
    ],
    "block_table": [
        (lambda b: b.block_table.astype(np.float32), TypeError, "float32"),
        (lambda b: b.block_table[0], ValueError, r"\[6, W\]"),
        (lambda b: b.block_table[:, :3], ValueError, "kv_len must be <= 12"),
        (lambda b: np.where(b.block_table == b.block_table[2, 3], -1, b.block_table), ValueError,
         r"\[0, \d+\), not -1"),
        (lambda b: np.where(b.block_table == b.block_table[2, 3], 10**6, b.block_table), ValueError,
         "not 1000000"),
    ],
    "kv_len": [
        (lambda b: b.kv_len * 1.0, TypeError, "float64"),
        (lambda b: b.kv_len - 1, ValueError, "not -1"),
        (lambda b: b.kv_len[:-1], ValueError, r"\[5, W\]"),
        (lambda b: np.r_[b.kv_len[:-1], 10**6], ValueError, "not 1000000"),
        (lambda b: np.r_[b.kv_len[:3], 8, b.kv_len[4:]], ValueError,
         "row 3 has 9 queries but kv_len 8"),
    ],
    "cu_q": [
        (lambda b: b.cu_q[:-1], ValueError, "must have 7 entries, not 6"),
        (lambda b: np.r_[1, b.cu_q[1:]], ValueError, "from 1"),
        (lambda b: np.r_[0, 3, 2, b.cu_q[3:]], ValueError, "2 follows 3"),
        (lambda b: np.r_[b.cu_q[:-1], 47], ValueError, "to 47"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_arrays(name):
    batch = batch_of(ROWS)
    for change, error, message in REFUSED[name]:
        with pytest.raises(error, match=message):
            paged_attention(*batch._replace(**{name: change(batch)}), scale=0.3)


def test_refused_options():
    batch = batch_of(ROWS)
    out = np.full(batch.q.shape, 7, np.float32)
    for error, message, options in [
        (ValueError, "scale", {"scale": np.nan}),
        (TypeError, "scale", {"scale": "1"}),
        (ValueError, r"scale must be <= 3.4\d+e\+38, not 1e\+39", {"scale": 1e39}),
        (ValueError, r"scale must be >= -3.4\d+e\+38, not -1e\+39", {"scale": -1e39}),
        (ValueError, r"softcap must be <= 3.4\d+e\+38, not 1e\+300", {"softcap": 1e300}),
        (ValueError, "window must be >= 0, not -1", {"window": -1}),
        (TypeError, "window", {"window": 2.5}),
        (ValueError, "softcap must be >= 0", {"softcap": -1.0}),
        (ValueError, "threads", {"threads": 0}),
        (TypeError, "sinks", {"sinks": np.zeros(4)}),
        (ValueError, r"sinks must have shape \[4\], not \[3\]", {"sinks": np.zeros(3, np.float32)}),
        (ValueError, "sinks", {"sinks": np.full(4, np.nan, np.float32)}),
        (TypeError, "out", {"out": np.zeros(batch.q.shape)}),
        (ValueError, "out must have shape", {"out": out[1:]}),
        (ValueError, "overlap", {"out": batch.q}),
    ]:
        with pytest.raises(error, match=message):
            paged_attention(*batch, **{"scale": 0.3, "out": out, **options})
    assert (out == 7).all()


@pytest.mark.parametrize("page_size", [4, 16, 64, 128])
@pytest.mark.parametrize("group", [1, 2, 3, 8])
def test_rows_that_share_pages_get_what_each_gets_alone(page_size, group):
    rng = np.random.default_rng(page_size + group)
    n_kv, width, n_pages = 2, 20, 600
    pages = rng.standard_normal((2, n_pages, n_kv, page_size, width)).astype(np.float32)
    shared = rng.permutation(n_pages)
    table = np.empty((9, -(-900 // page_size)), np.int32)
    # Some share 500 tokens, some 300, one nothing, one all.
    for b, n in enumerate((500, 500, 300, 300, 0, 500, 500, 900, 140)):
        n = n // page_size
        table[b, :n], table[b, n:] = shared[:n], rng.integers(0, n_pages, table.shape[1] - n)
    kv_len = np.array([520, 501, 310, 840, 400, 700, 500, 900, 139], np.int32)
    q = rng.standard_normal((9, n_kv * group, width)).astype(np.float32)
    sinks = rng.standard_normal(n_kv * group).astype(np.float32)
    for terms in ({}, {"softcap": 5.0, "sinks": sinks}, {"window": 200}):
        terms["scale"] = 0.3

        def alone(b, terms=terms):
            one = table[b : b + 1], kv_len[b : b + 1], [0, 1]
            return paged_attention(q[b : b + 1], *pages, *one, **terms)

        wanted = np.concatenate([alone(b) for b in range(9)])
        for threads in (1, 2):
            found = paged_attention(
                q, *pages, table, kv_len, np.arange(10), threads=threads, **terms
            )
            assert np.array_equal(found, wanted)
