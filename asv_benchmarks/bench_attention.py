"""paged_attention beside torch (gather + scaled_dot_product_attention) and NumPy, on one thread.

Sequences of 700 tokens in pages of 16 that are scattered over memory, as a cache in use has them.
"torch" is n/a where it is not installed. Heads are query heads / KV heads.
"""

import os
import time
from functools import cache
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from . import peer

LENGTH, PAGE = 700, 16
IMPLS = ["llmds_nb", "torch", "numpy"]
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}


class Case(NamedTuple):
    """The arguments of one call."""

    q: np.ndarray
    k_pages: np.ndarray
    v_pages: np.ndarray
    block_table: np.ndarray
    kv_len: np.ndarray
    cu_q: np.ndarray


@cache
def case(rows, queries, heads, width, dtype="float32"):
    """`rows` sequences with so many queries each, their pages in random order."""
    rng = np.random.default_rng(0)
    n_heads, n_kv_heads = (int(n) for n in heads.split("/"))
    used = -(-LENGTH // PAGE)
    k_pages, v_pages = (
        rng.standard_normal((rows * used, n_kv_heads, PAGE, width), np.float32) for _ in "kv"
    )
    if dtype == "bfloat16":
        k_pages, v_pages = ((x.view(np.uint32) >> 16).astype(np.uint16) for x in (k_pages, v_pages))
    return Case(
        rng.standard_normal((rows * queries, n_heads, width), np.float32),
        k_pages.astype(DTYPES[dtype]),
        v_pages.astype(DTYPES[dtype]),
        rng.permutation(rows * used).astype(np.int32).reshape(rows, used),
        np.full(rows, LENGTH, np.int32),
        np.arange(rows + 1, dtype=np.int32) * queries,
    )


def ours(of):
    attention = peer("llmds_nb.attention")  # n/a in commits without it
    attention.warmup()
    return lambda: attention.paged_attention(*of, scale=0.1)


def with_torch(of):
    torch = peer("torch")
    torch.set_num_threads(1)
    attend = torch.nn.functional.scaled_dot_product_attention
    k_pages, v_pages, q = (torch.from_numpy(x) for x in (of.k_pages, of.v_pages, of.q))
    tables = torch.from_numpy(of.block_table.astype(np.int64))
    n, n_kv_heads, width = len(of.q) // len(tables), k_pages.shape[1], q.shape[2]
    mask = torch.arange(LENGTH) <= torch.arange(LENGTH - n, LENGTH)[:, None] if n > 1 else None

    def gathered(pages, table):
        rows = pages.index_select(0, table).transpose(0, 1)
        return rows.reshape(1, n_kv_heads, -1, width)[:, :, :LENGTH]

    def run():
        with torch.inference_mode():
            for b, table in enumerate(tables):
                rows = q[b * n : (b + 1) * n].transpose(0, 1)[None]
                k, v = gathered(k_pages, table), gathered(v_pages, table)
                attend(rows, k, v, attn_mask=mask, scale=0.1, enable_gqa=True)

    return run


def with_numpy(of):
    n, group = len(of.q) // len(of.kv_len), of.q.shape[1] // of.k_pages.shape[1]
    hidden = np.arange(LENGTH) > np.arange(LENGTH - n, LENGTH)[:, None]

    def run():
        for b, table in enumerate(of.block_table):
            for h in range(of.k_pages.shape[1]):
                k, v = (x[table, h].reshape(-1, x.shape[3])[:LENGTH] for x in of[1:3])
                q = of.q[b * n : (b + 1) * n, h * group : (h + 1) * group]
                scores = q.reshape(n * group, -1) @ k.T * np.float32(0.1)
                scores.reshape(n, group, -1)[
                    np.broadcast_to(hidden[:, None], (n, group, LENGTH))
                ] = -9e9
                weights = np.exp(scores - scores.max(axis=1, keepdims=True))
                _ = weights @ v / weights.sum(axis=1, keepdims=True)

    return run


MAKERS = {"llmds_nb": ours, "torch": with_torch, "numpy": with_numpy}


class Decode:
    """One step of one token for each sequence, float32 pages."""

    params = ([1, 32, 256], ["8/2", "8/8", "32/8"], [64, 128], IMPLS)
    param_names = ("rows", "heads", "width", "impl")
    version = "1"

    def setup(self, rows, heads, width, impl):
        if rows == 256 and (heads, width) != ("8/2", 64):
            raise NotImplementedError("more than a gigabyte")
        self.run = MAKERS[impl](case(rows, 1, heads, width))

    def time_decode(self, rows, heads, width, impl):
        self.run()


class Prefill:
    """A chunk of the last tokens of one sequence."""

    params = ([16, 64, 256, 700], ["8/2", "32/8"], IMPLS)
    param_names = ("queries", "heads", "impl")
    version = "1"

    def setup(self, queries, heads, impl):
        self.run = MAKERS[impl](case(1, queries, heads, 64))

    def time_prefill(self, queries, heads, impl):
        self.run()


def _read_pages(pages, order, at_once=8):
    """Sum pages in an order, some at a time side by side: what a core can read of them."""
    import numba

    @numba.njit(fastmath=True)
    def total(pages, order):
        found = np.int64(0)
        for i in range(0, order.size - at_once + 1, at_once):
            for j in range(0, pages.shape[1], 32):
                for p in range(at_once):
                    row = pages[order[i + p]]
                    for x in range(j, j + 32):
                        found += row[x]
        return found

    return lambda: total(pages, order)


def _seconds(run):
    start = time.thread_time()
    run()
    return time.thread_time() - start


class ReadRate:
    """Decode of 32 sequences: bytes of K and V a second, and their share of plain reading.

    Plain reading sums the same memory, page by page in the same random order, 8 pages at a time;
    both are timed in turn, in CPU seconds.
    """

    params = (["8/2", "8/8", "32/8"], [64, 128], ["float32", "float16", "bfloat16"])
    param_names = ("heads", "width", "dtype")
    version = "1"
    timeout = 300

    @staticmethod
    @cache
    def rates(heads, width, dtype):
        of = case(32, 1, heads, width, dtype)
        pages = [x.reshape(x.shape[0] * x.shape[1], -1).view(np.int64) for x in of[1:3]]
        order = np.random.default_rng(1).permutation(len(pages[0]))
        calls = [ours(of), *(_read_pages(each, order) for each in pages)]
        for call in calls:
            call()
        attend, *reads = np.median([[_seconds(call) for call in calls] for _ in range(9)], axis=0)
        n_bytes = of.k_pages.nbytes + of.v_pages.nbytes
        return n_bytes / attend / 1e9, n_bytes / sum(reads) / 1e9

    def track_gigabytes_per_second(self, heads, width, dtype):
        return self.rates(heads, width, dtype)[0]

    def track_share_of_reading(self, heads, width, dtype):
        of, ceiling = self.rates(heads, width, dtype)
        return of / ceiling


ReadRate.track_gigabytes_per_second.unit = "GB/s"
