"""Measures our HNSW and its peers on one set of vectors, alternately in one process, by medians.

All graphs have M = 16 and ef_construction = 200 and measure squared Euclidean distance. One thread
is measured in CPU time of the process, two in wall time. The time of a search of ours includes
encoding, projection and re-ranking.
"""

import contextlib
import os
import statistics
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .. import ours, peer
from . import dense_sets
from .dense_sets import K

M, EF_CONSTRUCTION, EF = 16, 200, 50
GRID = [10, 12, 16, 20, 25, 32, 40, 50, 64, 80, 100, 128, 160, 200, 256, 320, 400, 512, 640, 800]
EQUAL_EFS = (10, 20, 40, 50, 80, 160)
TARGETS = (0.9, 0.95, 0.99)
OURS = {
    "auto": {},
    "sq8": {"quantize": "sq8"},
    "float32": {"quantize": None},
    "float16": {"store": "float16"},
    "codes": {"store": None},
}
KEPT = {"float32": "auto", "float16": "float16", "codes only": "codes"}  # label: impl, for bytes
MODES = ("auto", "sq8", "float32")
PEERS = ("hnswlib", "faiss SQ8", "faiss flat", "usearch")
KEPT |= {impl: impl for impl in PEERS}
SIZES = [1000, 3162, 10_000, 31_623, 100_000, 316_228, 1_000_000]
_CALLS = 500


class Side(NamedTuple):
    """An empty index: add(vectors, threads), search(queries, ef, threads) -> ids, save(path).

    Ours also has nbytes() in memory, and met(queries, ef), the vectors met on level 0 by a query.
    """

    add: object
    search: object
    save: object
    nbytes: object = None
    met: object = None


def made(impl, dim, n):
    """The empty index of an implementation for n vectors."""
    if impl in OURS:
        return _ours(impl, dim)
    return {"hnswlib": _hnswlib, "usearch": _usearch}.get(impl, _faiss)(impl, dim, n)


def _ours(impl, dim):
    index = ours("HNSW")(dim, M=M, ef_construction=EF_CONSTRUCTION, **OURS[impl])
    return Side(
        lambda vectors, threads=1: index.add(vectors, threads=threads),
        lambda queries, ef, threads=1: index.search(queries, K, ef=ef, threads=threads).ids,
        index.save,
        lambda: index.nbytes,
        lambda queries, ef: _met(index, queries, ef),
    )


def _met(index, queries, ef):
    """How many vectors a walk on level 0 compares with a query, on average."""
    snapshot = index._snapshot
    handle, walk = snapshot.handle, _counting_walk()
    return walk(handle.address, queries, ef) / len(queries)


@cache
def _counting_walk():
    """The walk of a search, which counts what it has visited."""
    from numba import njit

    try:
        from llmds_nb._core.intrinsics import array_address
        from llmds_nb._core.scratch import cut, keep_alive, scratch
        from llmds_nb.hnsw.kernels.graph import WalkScratch, graph_explore
        from llmds_nb.hnsw.kernels.prefilter import Query, prefilter_query, query_parts
        from llmds_nb.hnsw.kernels.scalar_quantizer import codes_query
        from llmds_nb.hnsw.kernels.state import index_at
    except ImportError:
        raise NotImplementedError("this commit walks otherwise") from None

    @njit
    def walk(index, queries, ef):
        s = index_at(index)
        graph, allowed = s.graph, np.empty(0, np.bool_)
        _, codes_part, bound_part, numbers_part = query_parts(s.space, s.prefilter)
        parts = (
            ((s.n + 63) >> 6, np.int64),
            (ef + 1, np.int64),
            (graph.level0.rows.shape[1], np.int32),
            (graph.level0.rows.shape[1], np.int32),
            (s.space.rows.shape[1], np.int16),
            (s.quantizer.basis.shape[1], np.float32),
            codes_part,
            bound_part,
            numbers_part,
        )
        memory = scratch(parts)
        visited, candidates, fresh, keys, coded, projected, codes, bound, numbers = cut(
            memory, parts
        )
        walk_scratch = WalkScratch(visited, candidates, fresh, keys)
        met = 0
        for i in range(len(queries)):
            vector = array_address(queries[i])
            if s.quantizer.walked:
                codes_query(s.quantizer, s.space.metric, queries[i], coded, projected)
                vector = array_address(coded)
            if s.prefilter.codes.rows.size:
                prefilter_query(s.prefilter, s.space, s.quantizer, vector, codes, bound, numbers)
            query = Query(vector, codes, bound)
            graph_explore(
                query, s.space, s.prefilter, graph, graph.entry, graph.top, 0, ef, allowed,
                walk_scratch,
            )  # fmt: skip
            for word in visited:
                while word:
                    word &= word - 1
                    met += 1
        keep_alive(memory)
        return met

    return walk


def _hnswlib(impl, dim, n):
    index = peer("hnswlib").Index("l2", dim)
    index.init_index(n, M=M, ef_construction=EF_CONSTRUCTION)

    def search(queries, ef, threads=1):
        index.set_ef(ef)
        return index.knn_query(queries, K, num_threads=threads)[0]

    return Side(
        lambda vectors, threads=1: index.add_items(vectors, num_threads=threads),
        search,
        index.save_index,
    )


def _faiss(impl, dim, n):
    faiss = peer("faiss")
    if impl == "faiss SQ8":
        index = faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_8bit, M)
    else:
        index = faiss.IndexHNSWFlat(dim, M)
    index.hnsw.efConstruction = EF_CONSTRUCTION

    def add(vectors, threads=1):
        faiss.omp_set_num_threads(threads)
        index.train(vectors)
        index.add(vectors)

    def search(queries, ef, threads=1):
        faiss.omp_set_num_threads(threads)
        index.hnsw.efSearch = ef
        return index.search(queries, K)[1]

    return Side(add, search, lambda path: faiss.write_index(index, path))


def _usearch(impl, dim, n):
    index = peer("usearch.index").Index(
        ndim=dim, metric="l2sq", dtype="f32", connectivity=M, expansion_add=EF_CONSTRUCTION
    )

    def search(queries, ef, threads=1):
        index.expansion_search = ef
        return index.search(queries, K, threads=threads).keys.astype(np.int64)

    return Side(
        lambda vectors, threads=1: index.add(np.arange(len(vectors)), vectors, threads=threads),
        search,
        index.save,
    )


class Built(NamedTuple):
    """A filled index and the seconds that its filling took."""

    side: Side
    cpu: float
    wall: float


class Contest:
    """The measurements on one set, each a dict of figures; a set's indices are built once.

    `builds` and `rounds` say how often either side builds, and searches.
    """

    def __init__(self, name, n=None, *, builds=2, rounds=5):
        self.set = dense_sets.load(name, n)
        self.n, self.dim = self.set.docs.shape
        self.builds, self.rounds = builds, rounds
        # "auto" is "sq8" below 256 dimensions
        self.modes = MODES if self.dim >= 256 else ("auto", "float32")
        self._built, self._recalls = {}, {}

    # ---- one side ---------------------------------------------------------------------------

    def build_once(self, impl, threads=1) -> Built:
        """A new index of all vectors."""
        if impl in OURS:
            self._compile(impl)
        side = made(impl, self.dim, self.n)
        cpu, wall = time.process_time(), time.perf_counter()
        side.add(self.set.docs, threads)
        return Built(side, time.process_time() - cpu, time.perf_counter() - wall)

    def _compile(self, impl):
        if impl not in self._built:
            side = _ours(impl, self.dim)
            side.add(self.set.docs[: 4 * self.dim])  # so many fit principal components
            side.search(self.set.queries[:2], K)

    def built(self, impl) -> Built:
        """The index that is searched."""
        if impl not in self._built:
            self._built[impl] = self.build_once(impl)
        return self._built[impl]

    def recall(self, impl, ef):
        """recall@10 of all queries."""
        if (impl, ef) not in self._recalls:
            ids = self.built(impl).side.search(self.set.queries, ef)
            self._recalls[impl, ef] = dense_sets.recall(self.set, ids)
        return self._recalls[impl, ef]

    def bracket(self, impl, target):
        """The neighbours in GRID between which the recall passes the target, or ()."""
        for i, ef in enumerate(GRID):
            if self.recall(impl, ef) >= target:
                return (GRID[i - 1], ef) if i else ()
        return ()

    def seconds_at(self, impl, target, seconds):
        """Log time on log missed share, between the bracket's two ef; `seconds` by (impl, ef)."""
        low, high = self.bracket(impl, target)
        least = 0.5 / (K * len(self.set.queries))
        missed = [max(least, 1 - self.recall(impl, ef)) for ef in (low, high)]
        part = np.log((1 - target) / missed[0]) / np.log(missed[1] / missed[0])
        return float(seconds[impl, low] * (seconds[impl, high] / seconds[impl, low]) ** part)

    # ---- the table's rows -------------------------------------------------------------------

    def build(self):
        """CPU time of hnswlib's build over that of ours, one thread."""
        impls = [mode for mode in self.modes if mode != "float32"] + ["hnswlib"]
        cpu = {impl: [self.built(impl).cpu] for impl in impls}
        for _ in range(self.builds - 1):
            for impl in impls:
                cpu[impl].append(self.build_once(impl).cpu)
        cpu = {impl: statistics.median(seconds) for impl, seconds in cpu.items()}
        figures = {f"build {impl}, us per vector": cpu[impl] / self.n * 1e6 for impl in impls}
        return figures | {
            f"build {impl} / hnswlib": cpu["hnswlib"] / cpu[impl] for impl in impls[:-1]
        }

    def qps(self):
        """Queries per CPU second at equal recall, ours over the peer's; queries in one batch.

        Absent where GRID's smallest ef exceeds the recall on a side, or none reaches it.
        """
        impls = list(self.modes)
        for impl in PEERS:
            with contextlib.suppress(NotImplementedError):
                self.built(impl)
                impls.append(impl)
        taken = {}
        for _ in range(self.rounds):
            for target in TARGETS:
                for impl in impls:
                    for ef in self.bracket(impl, target):
                        start = time.process_time()
                        self.built(impl).side.search(self.set.queries, ef)
                        taken.setdefault((impl, ef), []).append(time.process_time() - start)
        seconds = {key: statistics.median(values) for key, values in taken.items()}
        figures = {}
        for target in TARGETS:
            rates = {
                impl: len(self.set.queries) / self.seconds_at(impl, target, seconds)
                for impl in impls
                if self.bracket(impl, target)
            }
            figures |= {f"qps {impl} @{target}": rate for impl, rate in rates.items()}
            for mode in self.modes:
                for other in PEERS:
                    if mode in rates and other in rates:
                        figures[qps_label(mode, other, target)] = rates[mode] / rates[other]
        return figures

    def single(self):
        """Wall time of one query per call with ef = 50, of 500 queries.

        Percentiles are over queries, of each query's median over the rounds. "beyond batch": CPU
        time of a call, clock and benchmark included, less its share of one call with all 500.
        """
        impls = [mode for mode in self.modes if mode != "float32"] + ["hnswlib"]
        calls, beyond = {impl: [] for impl in impls}, {impl: [] for impl in impls}
        for impl in impls:
            self.recall(impl, EF)  # builds, and has run once
        for _ in range(self.rounds):
            for impl in impls:
                start = time.process_time()
                self.built(impl).side.search(self.set.queries[:_CALLS], EF)
                middle = time.process_time()
                calls[impl].append(self._call_walls(impl))
                beyond[impl].append(time.process_time() - 2 * middle + start)
        figures, at = {}, {}
        for impl in impls:
            walls = np.median(calls[impl], axis=0)
            at[impl] = np.percentile(walls, [50, 95])
            extra = statistics.median(beyond[impl]) / len(walls)
            figures |= {
                f"single {impl} p50, us": at[impl][0] * 1e6,
                f"single {impl} p95, us": at[impl][1] * 1e6,
                f"single {impl} beyond batch, us": extra * 1e6,
            }
        for impl in impls[:-1]:
            for share, ratio in zip((50, 95), at["hnswlib"] / at[impl], strict=True):
                figures[f"single {impl} / hnswlib p{share}"] = ratio
        return {label: float(figure) for label, figure in figures.items()}

    def _call_walls(self, impl):
        """Seconds of each call, the first 500 queries one by one."""
        search, clock = self.built(impl).side.search, time.perf_counter
        queries = list(self.set.queries[:_CALLS])
        walls = np.empty(len(queries))
        for i, query in enumerate(queries):
            start = clock()
            search(query, EF)
            walls[i] = clock() - start
        return walls

    def threads(self):
        """Wall time of one thread over that of two: build, and 4,000 queries with ef = 50."""
        if len(os.sched_getaffinity(0)) < 2:
            raise NotImplementedError("two threads need two cores")
        builds, searches = {}, {}
        queries = np.resize(self.set.queries, (4000, self.dim))
        for impl in ("auto", "hnswlib"):
            self.recall(impl, EF)  # builds, and has run once
        for _ in range(max(1, self.builds // 2)):
            for impl in ("auto", "hnswlib"):
                for n in (1, 2):
                    builds.setdefault((impl, n), []).append(self.build_once(impl, n).wall)
        for _ in range(self.rounds):
            for impl in ("auto", "hnswlib"):
                for n in (1, 2):
                    start = time.perf_counter()
                    self.built(impl).side.search(queries, EF, n)
                    wall = time.perf_counter() - start
                    searches.setdefault((impl, n), []).append(wall)
        figures = {}
        for what, walls in (("build", builds), ("search", searches)):
            wall = {key: statistics.median(values) for key, values in walls.items()}
            for impl in ("auto", "hnswlib"):
                figures[f"scaling {what} {impl}"] = wall[impl, 1] / wall[impl, 2]
            figures[f"2 threads {what} auto / hnswlib"] = wall["hnswlib", 2] / wall["auto", 2]
        return figures

    def bytes(self):
        """Bytes per vector: the size of the saved file, and of ours also `nbytes` in memory."""
        figures = {}
        for label, impl in KEPT.items():
            with contextlib.suppress(NotImplementedError):
                side = (self._built.get(impl) or self.build_once(impl)).side
                if side.nbytes:
                    figures[f"bytes {label}"] = side.nbytes() / self.n
                with tempfile.TemporaryDirectory() as folder:
                    side.save(f"{folder}/index")
                    size = Path(folder, "index").stat().st_size
                figures[f"bytes {label}, file"] = size / self.n
        return figures

    def gap(self):
        """recall@10 of ours less that of hnswlib at equal ef."""
        return {
            f"gap {mode} ef {ef}": self.recall(mode, ef) - self.recall("hnswlib", ef)
            for mode in self.modes
            for ef in EQUAL_EFS
        }

    def promise(self):
        """recall@10 with ef = 50, and the 95th percentile of all calls with one query each."""
        self.recall("auto", EF)  # builds, and has run once
        walls = np.concatenate([self._call_walls("auto") for _ in range(self.rounds)])
        return {
            "promise recall": self.recall("auto", EF),
            "promise p95, us": float(np.percentile(walls, 95)) * 1e6,
        }


ROWS = ("build", "qps", "single", "threads", "bytes", "gap", "promise")


def qps_label(mode, other, target):
    """What `Contest.qps` calls a ratio."""
    return f"qps {mode} / {other} @{target}"


@cache
def contest(name, n=None):
    """The contest on a set; its indices stay for the process."""
    return Contest(name, n)


def measured(name, rows=ROWS, n=None):
    """The figures of the rows; those whose data or peer is missing are left out."""
    figures = {}
    for row in rows:
        with contextlib.suppress(NotImplementedError):
            figures |= getattr(contest(name, n), row)()
    return figures


def growth(name="clustered", largest=None, rounds=5):
    """CPU time per query, vectors met by it and recall@10 with ef = 50, by the number of vectors.

    Each size is a set of its own with the same structure. Times and vectors met are fitted as
    a + b log2 n (b: per doubling; r2: share of their variance explained), and as c n ** exponent.
    `largest` is LLMDS_DENSE_GROWTH by default, or 31,623; 1,000,000 takes ten minutes.
    """
    largest = largest or int(os.environ.get("LLMDS_DENSE_GROWTH", 31_623))
    sizes = [n for n in SIZES if n <= largest]
    figures, times, met = {}, [], []
    for n in sizes:
        one = Contest(name, n)
        figures[f"growth recall, n {n}"] = one.recall("auto", EF)
        search = one.built("auto").side.search
        met.append(one.built("auto").side.met(one.set.queries, EF))
        taken = []
        for _ in range(rounds):
            start = time.process_time()
            search(one.set.queries, EF)
            taken.append(time.process_time() - start)
        times.append(statistics.median(taken) / len(one.set.queries) * 1e6)
        figures[f"growth us, n {n}"] = times[-1]
        figures[f"growth met, n {n}"] = met[-1]
    for what, values in (("us", times), ("met", met)):
        slope, offset = np.polyfit(np.log2(sizes), values, 1)
        rest = np.var(values - slope * np.log2(sizes) - offset) / np.var(values)
        figures[f"growth {what} per doubling"] = float(slope)
        figures[f"growth {what} r2"] = float(1 - rest)
        exponent = np.polyfit(np.log(sizes), np.log(values), 1)[0]
        figures[f"growth {what} exponent"] = float(exponent)
    return figures
