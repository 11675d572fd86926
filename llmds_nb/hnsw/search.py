"""Searching an HNSW snapshot: which queries walk the graph and which scan, and the ef to use."""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .._core.forking import threads_of_a_call
from .._core.jit import EntryPoints
from .._core.state import Handle
from .._core.typing import Float32s, Int64s, UInt8s
from ..primitives.status import ABSENT
from .kernels.distance import COSINE, IP, L2
from .kernels.search import hnsw_scan_block, hnsw_scan_many, hnsw_search_many, slots_allowed
from .kernels.state import LIVE, Scan
from .quantization import PCA, Coding
from .snapshot import Snapshot, is_packed, slots_of, with_groups
from .vector_store import VectorForm

# A walk for the ef nearest among the share p of passing slots measures about 18 ef / p of n slots;
# a scan measures p n, each at about twice the cost.
SCAN_FACTOR = 9
_ALL = np.zeros(0, np.uint8)
_NO_IDS, _NO_DISTANCES = np.zeros(0, np.int64), np.zeros(0, np.float32)
_FIRST_ASKED, _ASKED_AT_ONCE = 32, 1 << 20  # neighbours of a query, and of all, by search_radius
# A scan of so many rows for so many queries goes through BLAS, in blocks that stay in the cache,
# if most rows pass.
BLAS_ROWS, BLAS_QUERIES = 64, 16
_BLAS_SHARE, _BLAS_BLOCK, _BLAS_BATCH = 0.5, 1024, 256
_ROWS_PER_EF = 18  # rows that a walk compares for each candidate kept
_EF_SHARES = (1.0, 1.1, 1.25)
_KERNELS = EntryPoints(search_many=hnsw_search_many)

Found = tuple[Int64s, Float32s]
Tuned = tuple[int, int] | None  # as in `rerank_depth`


class Neighbors(NamedTuple):
    """The nearest vectors, nearest first; missing places are id -1 at distance +inf."""

    ids: Int64s
    distances: Float32s


class RadiusNeighbors(NamedTuple):
    """The vectors within a radius of queries, of query i at indptr[i]:indptr[i + 1]."""

    indptr: Int64s
    ids: Int64s
    distances: Float32s


def mask_of(snapshot: Snapshot, passing: npt.NDArray | None) -> tuple[UInt8s, int]:
    """The slots that pass a filter, a bool mask by id or int64 ids, as (`live` uint8[n], how many).

    uint8[0] for all of them.
    """
    n, live = snapshot.n, snapshot.live
    if passing is None:
        return (_ALL, n) if snapshot.n_live == n else (live[:n], snapshot.n_live)
    mask = np.zeros(n, np.uint8)
    if passing.dtype == np.bool_:
        if is_packed(snapshot.ids) and not len(live) and not len(snapshot.node_of):
            part = passing[snapshot.ids[0] :][:n]
            mask[: len(part)] = part  # a tenth of the time of the kernel
            return mask, int(np.count_nonzero(mask.view(np.bool_)))
        return mask, slots_allowed(snapshot.ids, live, passing, snapshot.node_of, mask)
    slots = slots_of(snapshot, passing)
    slots = slots[slots != ABSENT]
    mask[slots] = LIVE
    return with_groups(mask, snapshot.node_of), len(slots)


def _walk(*args):
    """`hnsw_search_many` without its dispatcher: it is always given the same types."""
    return _KERNELS.search_many(*args)


def search_one(
    snapshot: Snapshot, form: VectorForm, query: Float32s, count: int, ef: int, depth: int
) -> Found | None:
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
    given = query, query, ef, depth, _ALL, False, ids, distances
    return (ids, distances) if _walk(handle.address, *given) < 0 else None


def search(
    snapshot: Snapshot, form: VectorForm, queries: Float32s, k: int, ef: int, tuned: Tuned,
    masks: list[tuple[UInt8s, int]], exact: bool, threads: int,
) -> Found:  # fmt: skip
    """The k nearest as (ids, distances) [m, k]; `masks` are one of `mask_of`, or one a query."""
    m, count = len(queries), min(k, snapshot.n_live) if len(queries) else 0
    ids, distances = np.empty((m, count), np.int64), np.empty((m, count), np.float32)
    if count:
        ef = min(max(ef, count), snapshot.n)
        _search(snapshot, form, queries, ef, tuned, masks, exact, threads, ids, distances)
    if count < k:
        missing = ((0, 0), (0, k - count))
        ids = np.pad(ids, missing, constant_values=ABSENT)
        distances = np.pad(distances, missing, constant_values=np.inf)
    return ids, distances


def _search(snapshot, form, queries, ef, tuned, masks, exact, threads, ids, distances):
    """Fill as many columns, at least one, as there are live slots or more; ef is at least that."""
    depth = rerank_depth(snapshot.coding, ids.shape[1], tuned)
    handle, finals, n = snapshot.handle, queries, snapshot.n
    if form.codes_only:
        queries, finals = _in_code_space(snapshot, form.metric, queries)

    def answer(start, stop, mask, passing):
        part = slice(start, stop)
        if passing == 0:
            ids[part], distances[part] = ABSENT, np.inf
        elif exact or passing * passing <= SCAN_FACTOR * ef * n:
            scan, dense = _scan_rows, passing >= _BLAS_SHARE * n and n >= BLAS_ROWS
            if dense and stop - start >= BLAS_QUERIES and snapshot.vectors.dtype == np.float32:
                scan = _scan_by_blas
            scan(snapshot, finals[part], mask, ids[part], distances[part])
        else:
            asked, measured = queries[part].ravel(), finals[part].ravel()
            out = ids[part].ravel(), distances[part].ravel()
            _walk(handle.address, asked, measured, ef, depth, mask, True, *out)

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
        with threads_of_a_call(threads) as executor:
            list(executor.map(lambda job: answer(*job), jobs))
    if form.codes_only:
        _from_code_space(snapshot, form.metric, finals, distances)


def _scan_rows(snapshot, queries, mask, out_ids, out_distances):
    """Measure every vector that passes, one by one."""
    handle = snapshot.handle
    hnsw_scan_many(handle.address, queries, mask, out_ids, out_distances)


def _scan_by_blas(snapshot, queries, mask, out_ids, out_distances):
    """As `_scan_rows`, with the same answers bit for bit, by matrix products."""
    handle, nothing = snapshot.handle, (out_ids[:0], out_distances[:0])
    for begin in range(0, len(queries), _BLAS_BATCH):
        part = slice(begin, begin + _BLAS_BATCH)
        few, outs = queries[part], (out_ids[part], out_distances[part])
        m, shape = len(few), outs[0].shape
        best = np.empty(shape), np.empty(shape, np.int64), np.empty(m, np.int64), np.empty(m)
        squares = np.einsum("ij,ij->i", few, few, dtype=np.float64)
        scan = Handle(Scan(few, squares, np.empty_like(few), *best))
        for start in range(0, snapshot.n, _BLAS_BLOCK):
            stop = min(start + _BLAS_BLOCK, snapshot.n)
            dots = snapshot.vectors[start:stop] @ few.T
            out = outs if stop == snapshot.n else nothing
            hnsw_scan_block(handle.address, scan.address, dots, start, mask, *out)


def within(found: Found, farthest: float) -> Found:
    """What was found, the places beyond a distance made missing ones."""
    ids, distances = found
    beyond = distances > _as_measured(farthest)
    return np.where(beyond, ABSENT, ids), np.where(beyond, np.float32(np.inf), distances)


def _as_measured(distance: float) -> np.float32:
    """A limit as a float32, which distances are: one that a search has returned equals itself."""
    with np.errstate(over="ignore"):
        return np.float32(distance)


def search_radius(
    ask: Callable[[Int64s, int], Found], m: int, radius: float, most: int
) -> RadiusNeighbors:
    """All within a radius of m queries, nearest first, of each the nearest `most` at most.

    ask(queries, k) is a search for some of them, given by number. Each is asked for twice as many
    until the last one is beyond the radius.
    """
    ids, distances, farthest = [_NO_IDS] * m, [_NO_DISTANCES] * m, _as_measured(radius)
    pending, k = np.arange(m), min(_FIRST_ASKED, most)
    while len(pending):
        size, later = max(1, _ASKED_AT_ONCE // k), []
        for queries in (pending[i : i + size] for i in range(0, len(pending), size)):
            near, far = ask(queries, k)
            inside = (far <= farthest) & (near != ABSENT)
            whole = np.full(len(queries), k == most) | ~inside[:, -1]
            for i in np.flatnonzero(whole):
                ids[queries[i]], distances[queries[i]] = near[i, inside[i]], far[i, inside[i]]
            later.append(queries[~whole])
        pending, k = np.concatenate(later), min(2 * k, most)
    indptr = np.cumsum([0, *map(len, ids)], dtype=np.int64)
    return RadiusNeighbors(
        indptr, np.concatenate([_NO_IDS, *ids]), np.concatenate([_NO_DISTANCES, *distances])
    )


def rerank_depth(coding: Coding | None, count: int, tuned: Tuned) -> int:
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


def tune(
    snapshot: Snapshot, truth: Float32s, target: float, distances: Callable[[int, int], Float32s]
) -> tuple[int, int | None]:
    """The (ef, depth) that reach `target`; depth None where there is nothing to re-rank.

    truth float32[m, k] are the exact distances; distances(ef, depth) are those of a search that
    measures the best `depth` of ef candidates.
    """
    k, n = truth.shape[1], max(snapshot.n_live, truth.shape[1])
    present = np.isfinite(truth)
    farthest = np.where(present, truth, 0).max(axis=1, keepdims=True, initial=-np.inf)
    # The same kernel measures both; the slack is for the rounding of another code path.
    farthest += 1e-6 * np.abs(farthest)

    def recall(ef, depth):
        return (present & (distances(ef, depth) <= farthest)).sum() / max(1, present.sum())

    low = high = k
    while snapshot.n and (reached := recall(high, high)) < target:
        if high >= n:
            raise ValueError(f"recall {reached:.4f} is all that these codes reach")
        low, high = high, min(2 * high, n)
    while high - low > max(1, low // 20):
        middle = (low + high) // 2
        low, high = (middle, high) if recall(middle, middle) < target else (low, middle)
    coding = snapshot.coding
    if coding is None or not snapshot.n or coding.walks_vectors:
        return high, None
    found = []  # (bytes read, ef, depth) for the ef that suffices, and somewhat more
    for wide in (max(k, int(high * share)) for share in _EF_SHARES):
        low, depth = k - 1, wide
        while depth - low > 1:
            middle = (low + depth) // 2
            low, depth = (middle, depth) if recall(wide, middle) < target else (low, middle)
        read = wide * _ROWS_PER_EF * coding.width + depth * snapshot.vectors[:1].nbytes
        found.append((read, wide, depth))
    return min(found, key=lambda one: one[0])[1:]


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
