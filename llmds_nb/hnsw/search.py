"""Searching an HNSW snapshot: which queries walk the graph and which scan all vectors."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .._core.jit import entry_of
from .._core.state import Handle
from .._core.typing import Bools, Float32s, Int64s
from ..primitives.status import ABSENT
from .kernels.distance import COSINE, IP, L2
from .kernels.scan import hnsw_scan_block, hnsw_scan_many, slots_allowed
from .kernels.search import hnsw_search_many
from .kernels.state import Scan
from .quantization import PCA, Coding
from .snapshot import Snapshot
from .vector_store import VectorForm

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

    ids: Int64s
    distances: Float32s


def mask_of(
    snapshot: Snapshot, one_filter: npt.NDArray | None, slots: Int64s | None
) -> tuple[Bools, int]:
    """The slots that pass, as (bool[n], how many); `slots` are those of a filter by ids."""
    n = snapshot.n
    if one_filter is None:
        if snapshot.n_live == n:
            return _ALL, n
        return snapshot.mask, snapshot.n_live
    mask = np.zeros(n, np.bool_)
    if one_filter.dtype == np.bool_:
        return mask, slots_allowed(snapshot.ids, snapshot.live, one_filter, n, mask)
    if slots is None:
        slots = np.zeros(0, np.int64)
    mask[slots] = True
    return mask, len(slots)


def _walk(form, *args):
    """`hnsw_search_many` without its dispatcher: what a form passes always has the same types."""
    if form.search_entry is None:
        form.search_entry = entry_of(hnsw_search_many, *args)
    return form.search_entry(*args)


def search_one(
    snapshot: Snapshot, form: VectorForm, query: Float32s, count: int, ef: int, depth: int
) -> tuple[Int64s, Float32s] | None:
    """(ids, distances) of one float32[dim] query, of unchecked values, where no slot is dead.

    None where the graph is not the best way, or the query needs `search` with all its checks.
    """
    n = snapshot.n
    if ef < count:
        ef = count
    if n <= SCAN_FACTOR * ef or n < ef or snapshot.n_live < n or form.codes_only:
        return None
    handle = snapshot.handle
    ids, distances = np.empty(count, np.int64), np.empty(count, np.float32)
    bad = _walk(
        form, handle.address, form.likes, query, query, ef, depth, _ALL, False, ids,
        distances,
    )  # fmt: skip
    return (ids, distances) if bad < 0 else None


def padded_search(
    snapshot: Snapshot,
    form: VectorForm,
    queries: Float32s,
    k: int,
    ef: int,
    tuned: tuple[int, int] | None,
    masks: list[tuple[Bools, int]],
    exact: bool,
    threads: int,
) -> tuple[Int64s, Float32s]:
    """The k nearest as (ids int64[m, k], distances float32[m, k]), as `search` for any k."""
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


def search(
    snapshot: Snapshot,
    form: VectorForm,
    queries: Float32s,
    count: int,
    ef: int,
    depth: int,
    masks: list[tuple[Bools, int]],
    exact: bool,
    threads: int,
) -> tuple[Int64s, Float32s]:
    """The `count` <= n_live nearest as (ids int64[m, count], distances float32[m, count]).

    The best `depth` >= count of the ef found by their codes are measured.
    `masks` holds one pair of `mask_of`, or one for each query.
    """
    ids = np.empty((len(queries), count), np.int64)
    distances = np.empty((len(queries), count), np.float32)
    finals = queries
    if form.codes_only:
        queries, finals = _in_code_space(snapshot, form.metric, queries)

    handle = snapshot.handle

    def answer(start, stop, mask, passing):
        part = slice(start, stop)
        if passing == 0:
            ids[part], distances[part] = ABSENT, np.inf
        elif exact or passing * passing <= SCAN_FACTOR * ef * snapshot.n:
            dense = passing >= _BLAS_SHARE * snapshot.n and snapshot.n >= BLAS_ROWS
            scan = _scan_rows
            if dense and stop - start >= BLAS_QUERIES and snapshot.vectors.dtype == np.float32:
                scan = _scan_by_blas
            scan(snapshot, form, finals[part], mask, ids[part], distances[part])
        else:
            _walk(
                form, handle.address, form.likes, queries[part].ravel(),
                finals[part].ravel(), ef, depth, mask, True, ids[part].ravel(),
                distances[part].ravel(),
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


def _scan_rows(snapshot, form, queries, mask, out_ids, out_distances):
    """Measure every vector that passes, one by one."""
    handle = snapshot.handle
    hnsw_scan_many(handle.address, form.likes[1], queries, mask, out_ids, out_distances)


def _scan_by_blas(snapshot, form, queries, mask, out_ids, out_distances):
    """As `_scan_rows`, with the same answers bit for bit, by matrix products."""
    handle, nothing = snapshot.handle, (out_ids[:0], out_distances[:0])
    for begin in range(0, len(queries), _BLAS_BATCH):
        part = slice(begin, begin + _BLAS_BATCH)
        few, outs = queries[part], (out_ids[part], out_distances[part])
        m, count = outs[0].shape
        scan = Handle(
            Scan(
                queries=few,
                squares=np.einsum("ij,ij->i", few, few, dtype=np.float64),
                units=np.empty_like(few),
                scores=np.empty((m, count)),
                found=np.empty((m, count), np.int64),
                kept=np.empty(m, np.int64),
                limits=np.empty(m),
            )
        )
        for start in range(0, snapshot.n, _BLAS_BLOCK):
            stop = min(start + _BLAS_BLOCK, snapshot.n)
            hnsw_scan_block(
                handle.address, scan.address, snapshot.vectors[start:stop] @ few.T, start,
                mask, *(outs if stop == snapshot.n else nothing),
            )  # fmt: skip


def rerank_depth(coding: Coding | None, count: int, tuned: tuple[int, int] | None) -> int:
    """How many candidates are measured on the stored vectors for `count` answers.

    `tuned` is (depth, k) of `HNSW.tune`. None: as many as restored the recall of float32 on text
    and images.
    """
    if coding is None or coding.walks_vectors:
        return count
    if tuned is not None:
        depth, k = tuned
        return max(count, depth, -(-depth * count // k))
    return max(3 * count, count + 20) if coding.kind == PCA else max(3 * count // 2, count + 5)


def _in_code_space(snapshot, metric, queries):
    """(queries, finals): unit vectors with COSINE, and what is measured against the codes."""
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
    """Turn distances between finals and codes into those to what the codes represent."""
    step = snapshot.coding.step
    if metric == L2:
        distances *= step * step
    elif metric == COSINE:
        distances *= step * step / 2
    else:  # 1 - <q, step * (code - 128)>
        zero = 128.0 * finals.sum(axis=1, dtype=np.float64)[:, None]
        distances[:] = 1 - step * (1 - distances.astype(np.float64) - zero)
