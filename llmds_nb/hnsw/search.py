"""The reader's side of an HNSW graph: which queries go through the graph and which are scanned."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from .._core.jit import entry_of
from ..primitives.status import ABSENT
from .kernels import search as k
from .kernels.distance import COSINE, IP, L2
from .quantization import PCA

# A walk for the ef nearest among the share p of passing slots measures about 18 ef / p of n slots;
# a scan measures p n, each at about twice the cost.
SCAN_FACTOR = 9
_ALL = np.zeros(0, np.bool_)
# A scan of so many rows for so many queries goes through BLAS, in blocks that stay in the cache,
# if most rows pass.
BLAS_ROWS, BLAS_QUERIES = 64, 16
_BLAS_SHARE, _BLAS_BLOCK, _BLAS_BATCH = 0.5, 1024, 256


class Neighbors(NamedTuple):
    """The nearest vectors, nearest first; missing places are id -1 at distance +inf."""

    ids: np.ndarray
    distances: np.ndarray


def mask_of(snapshot, one_filter, slots) -> tuple[np.ndarray, int]:
    """The slots that pass, as (bool[n], how many); `slots` are those of a filter by ids."""
    n = snapshot.n
    if one_filter is None:
        if snapshot.n_live == n:
            return _ALL, n
        return snapshot.mask, snapshot.n_live
    mask = np.zeros(n, np.bool_)
    if one_filter.dtype == np.bool_:
        return mask, k.slots_allowed(snapshot.ids, snapshot.live, one_filter, n, mask)
    mask[slots] = True
    return mask, len(slots)


def search_one(snapshot, form, query, count, ef, depth):
    """(ids, distances) of one float32[dim] query, of unchecked values, where no slot is dead.

    Or None: where the graph is not the way, or the query deserves a closer look.
    """
    n = snapshot.n
    if ef < count:
        ef = count
    if n <= SCAN_FACTOR * ef or n < ef or snapshot.n_live < n or form.codes_only:
        return None
    ids, distances = np.empty(count, np.int64), np.empty(count, np.float32)
    args = (
        snapshot.handle, *form.samples, form.kernel_metric, query, query, ef, depth, _ALL, True,
        count, ids, distances,
    )  # fmt: skip
    if form.search_entry is None:
        form.search_entry = entry_of(k.hnsw_search_many, *args)
    return (ids, distances) if form.search_entry(*args) < 0 else None


def padded_search(snapshot, form, queries, k, ef, tuned, masks, exact, threads):
    """The k nearest as (ids int64[m, k], distances float32[m, k]), as `search` has it for any k."""
    count = min(k, snapshot.n_live) if len(queries) else 0
    if count:
        depth = rerank_depth(snapshot.coding, count, tuned)
        ef = min(max(ef, count), snapshot.n)
        ids, distances = search(snapshot, form, queries, count, ef, depth, masks, exact, threads)
    else:
        ids = np.zeros((len(queries), 0), np.int64)
        distances = np.zeros((len(queries), 0), np.float32)
    if count < k:
        missing = ((0, 0), (0, k - count))
        ids = np.pad(ids, missing, constant_values=ABSENT)
        distances = np.pad(distances, missing, constant_values=np.inf)
    return ids, distances


def search(snapshot, form, queries, count, ef, depth, masks, exact, threads):
    """The `count` <= n_live nearest as (ids int64[m, count], distances float32[m, count]).

    The best `depth` >= count of the ef found by their codes are measured.
    `masks` holds one pair of `mask_of`, or one for each query.
    """
    ids = np.empty((len(queries), count), np.int64)
    distances = np.empty((len(queries), count), np.float32)
    finals = queries
    if form.codes_only:
        queries, finals = _in_code_space(snapshot, form.metric, queries)

    def answer(start, stop, mask, passing):
        part = slice(start, stop)
        metric = form.kernel_metric
        if passing == 0:
            ids[part], distances[part] = ABSENT, np.inf
        elif exact or passing * passing <= SCAN_FACTOR * ef * snapshot.n:
            dense = passing >= _BLAS_SHARE * snapshot.n and snapshot.n >= BLAS_ROWS
            scan = k.hnsw_scan_many
            if dense and stop - start >= BLAS_QUERIES and snapshot.vectors.dtype == np.float32:
                scan = _scan_by_blas
            scan(
                finals[part], metric, snapshot.vectors, snapshot.factors, snapshot.ids, mask,
                snapshot.n, ids[part], distances[part],
            )  # fmt: skip
        else:
            k.hnsw_search_many(
                snapshot.handle, *form.samples, metric, queries[part].ravel(),
                finals[part].ravel(), ef, depth, mask, False, count,
                ids[part].ravel(), distances[part].ravel(),
            )  # fmt: skip

    if len(masks) == 1:
        parts = 1 if threads == 1 else min(len(queries), 4 * threads)
        cuts = [len(queries) * i // parts for i in range(parts + 1)]
        jobs = [(*pair, *masks[0]) for pair in pairwise(cuts)]
    else:
        jobs = [(i, i + 1, *mask) for i, mask in enumerate(masks)]
    if threads == 1 or len(jobs) == 1:
        for job in jobs:
            answer(*job)
    else:
        with ThreadPoolExecutor(threads) as executor:
            list(executor.map(lambda job: answer(*job), jobs))
    if form.codes_only:
        _from_code_space(snapshot, form.metric, finals, distances)
    return ids, distances


def _scan_by_blas(queries, metric, vectors, factors, ids, mask, n, out_ids, out_distances):
    """As k.hnsw_scan_many: its answers bit for bit, by matrix products."""
    nothing = out_ids[:0], out_distances[:0]
    for begin in range(0, len(queries), _BLAS_BATCH):
        part = slice(begin, begin + _BLAS_BATCH)
        few, outs = queries[part], (out_ids[part], out_distances[part])
        m, count = outs[0].shape
        squares = np.einsum("ij,ij->i", few, few, dtype=np.float64)
        room = (
            np.empty_like(few), np.empty((m, count)), np.empty((m, count), np.int64),
            np.empty(m, np.int64), np.empty(m),
        )  # fmt: skip
        for start in range(0, n, _BLAS_BLOCK):
            stop = min(start + _BLAS_BLOCK, n)
            k.hnsw_scan_block(
                vectors[start:stop] @ few.T, start, few, squares, metric, vectors, factors, ids,
                mask, *room, *(outs if stop == n else nothing),
            )  # fmt: skip


def rerank_depth(coding, count, tuned) -> int:
    """How many of the pool are measured for `count` answers.

    `tuned` is (depth, k) of `HNSW.tune`, or None: then what restored float32's recall on text and
    images.
    """
    if coding is None or coding.strict:
        return count
    if tuned is not None:
        depth, k = tuned
        return max(count, depth, -(-depth * count // k))
    return max(3 * count, count + 20) if coding.kind == PCA else max(3 * count // 2, count + 5)


def _in_code_space(snapshot, metric, queries):
    """(queries, finals): unit vectors with COSINE, and what the codes themselves compare with."""
    coding = snapshot.coding
    if metric == COSINE:
        norms = np.sqrt(np.einsum("ij,ij->i", queries, queries, dtype=np.float64))
        queries = (queries / norms[:, None]).astype(np.float32)
    finals = np.zeros((len(queries), coding.width), np.float32)
    finals[:, : queries.shape[1]] = (
        queries if metric == IP else (queries - coding.offset) / np.float32(coding.step)
    )
    return queries, finals


def _from_code_space(snapshot, metric, finals, distances) -> None:
    """Turn distances between finals and codes into those of what the codes stand for."""
    step = snapshot.coding.step
    if metric == L2:
        distances *= step * step
    elif metric == COSINE:
        distances *= step * step / 2
    else:  # 1 - <q, step * (code - 128)>
        zero = 128.0 * finals.sum(axis=1, dtype=np.float64)[:, None]
        distances[:] = 1 - step * (1 - distances.astype(np.float64) - zero)
