"""Batches of rows over shuffled pages."""

import numpy as np

from llmds_nb.attention import write_pages

from .oracle import Batch

DTYPES = (np.float32, np.float16, np.uint16)


def batch_of(
    rows, *, n_heads=4, n_kv_heads=2, d=16, dv=None, page_size=4, dtype=np.float32, seed=0,
    spread=1.0, foreign=np.nan,
):  # fmt: skip
    """A batch of rows (kv_len, queries) over random pages; what belongs to no row is `foreign`."""
    rng = np.random.default_rng(seed)
    dv = d if dv is None else dv
    kv_len = np.array([length for length, _ in rows], np.int32)
    cu_q = np.cumsum([0] + [n for _, n in rows]).astype(np.int32)
    n_used = -(-kv_len // page_size)
    width, n_pages = int(max(n_used.max(initial=0), 1)) + 1, int(n_used.sum()) + 3
    free = rng.permutation(n_pages).astype(np.int32)
    table = np.full((len(rows), width), 2**31 - 1, np.int32)
    k_pages, v_pages = (np.zeros((n_pages, n_kv_heads, page_size, w), dtype) for w in (d, dv))
    for pages in (k_pages, v_pages):
        pages[:] = 0x7FC0 if dtype == np.uint16 else foreign
    at = 0
    for b, length in enumerate(kv_len):
        table[b, : n_used[b]] = free[at : at + n_used[b]]
        at += n_used[b]
        places = np.arange(length)
        slots = table[b, places // page_size] * page_size + places % page_size
        k, v = (
            rng.standard_normal((length, n_kv_heads, w), np.float32) * np.float32(spread)
            for w in (d, dv)
        )
        write_pages(k_pages, v_pages, k, v, slots)
    q = rng.standard_normal((int(cu_q[-1]), n_heads, d), np.float32)
    return Batch(q, k_pages, v_pages, table, kv_len, cu_q)
