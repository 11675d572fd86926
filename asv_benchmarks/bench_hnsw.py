"""HNSW against hnswlib on generated clustered vectors, in cluster order, and a scan."""

from functools import cache

import numpy as np

from . import ours, peer

N, DIM, QUERIES, K = 8_000, 64, 200, 10
M, EF_CONSTRUCTION, EF = 16, 100, 50
IMPLS = ["llmds_nb", "llmds_nb-float32", "hnswlib", "numpy-scan"]


def clustered(n, seed):
    """Overlapping clusters in their order, as documents arrive."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((100, DIM), np.float32)
    rng = np.random.default_rng(seed)
    labels = np.sort(rng.integers(0, 100, n))
    return centres[labels] + rng.standard_normal((n, DIM), np.float32)


def truth(vectors, queries):
    """Squared distance of the K-th nearest, of each query."""
    squares = (vectors**2).sum(axis=1) - 2 * queries @ vectors.T
    return np.partition(squares, K - 1, axis=1)[:, K - 1] + (queries**2).sum(axis=1)


def made(impl):
    """(add, search) of an empty index; search(queries, ef) gives ids and squared distances."""
    if impl.startswith("llmds_nb"):
        quantize = None if impl.endswith("float32") else "auto"
        index = ours("HNSW")(DIM, M=M, ef_construction=EF_CONSTRUCTION, quantize=quantize)
        return index.add, lambda queries, ef: index.search(queries, K, ef=ef)
    if impl == "hnswlib":
        index = peer("hnswlib").Index("l2", DIM)
        index.init_index(N, M=M, ef_construction=EF_CONSTRUCTION)
        index.set_num_threads(1)

        def search(queries, ef):
            index.set_ef(ef)
            return index.knn_query(queries, K, num_threads=1)

        return lambda vectors: index.add_items(vectors, num_threads=1), search
    held = []

    def scan(queries, ef):
        squares = (held[0] ** 2).sum(axis=1) - 2 * queries @ held[0].T
        ids = np.argpartition(squares, K - 1, axis=1)[:, :K]
        distances = np.take_along_axis(squares, ids, axis=1) + (queries**2).sum(axis=1)[:, None]
        return ids, distances

    return held.append, scan


class Build:
    params = (IMPLS[:3],)
    param_names = ("impl",)
    version = "1"
    number = 1
    repeat, warmup_time = (1, 3, 30), 0
    timeout = 180

    def setup(self, impl):
        self.vectors = clustered(N, 1)
        made(impl)[0](self.vectors[:300])  # compiles
        self.add = made(impl)[0]

    def time_add(self, impl):
        self.add(self.vectors)


class Search:
    """200 queries in one call, or one by one."""

    params = (IMPLS,)
    param_names = ("impl",)
    version = "1"
    timeout = 180

    def setup(self, impl):
        self.vectors, self.queries, self.search = self.built(impl)

    @staticmethod
    @cache
    def built(impl):
        vectors, queries = clustered(N, 1), clustered(QUERIES, 2)
        add, search = made(impl)
        add(vectors)
        search(queries, EF)
        return vectors, queries, search

    def time_batch(self, impl):
        self.search(self.queries, EF)

    def time_one_by_one(self, impl):
        search, queries = self.search, self.queries
        for i in range(QUERIES):
            search(queries[i : i + 1], EF)

    def track_recall(self, impl):
        distances = np.asarray(self.search(self.queries, EF)[1])
        limit = truth(self.vectors, self.queries)[:, None] * (1 + 1e-5)
        return float((distances <= limit).mean())

    track_recall.unit = "share of the true 10 nearest"


class Own:
    """Operations that peers do not have, or not in a comparable form."""

    version = "1"
    timeout = 180

    def setup(self):
        self.index, self.vectors, self.queries, self.half, self.radius = self.built()

    @staticmethod
    @cache
    def built():
        vectors, queries = clustered(N, 1), clustered(QUERIES, 2)
        index = ours("HNSW")(DIM, M=M, ef_construction=EF_CONSTRUCTION)
        index.add(vectors)
        half = np.arange(N) % 2 == 0
        for filter_ in (None, half):
            index.search(queries, K, filter=filter_)
        index.search(queries, K, exact=True)
        index.add(vectors[:1], [0])
        radius = float(np.median(index.search(queries, 10 * K)[1][:, -1]))
        index.search_radius(queries, radius)
        return index, vectors, queries, half, radius

    def time_exact(self):
        self.index.search(self.queries, K, exact=True)

    def time_filter_half(self):
        self.index.search(self.queries, K, filter=self.half)

    def time_radius(self):
        self.index.search_radius(self.queries, self.radius)

    def time_upsert_20_one_by_one(self):
        for i in range(20):
            self.index.add(self.vectors[i], [i])

    def track_bytes_per_vector(self):
        return self.index.nbytes / N

    track_bytes_per_vector.unit = "bytes"

    def track_reachable(self):
        return self.index.stats().reachable_share

    track_reachable.unit = "share"
