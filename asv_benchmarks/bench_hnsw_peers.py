"""HNSW against hnswlib, faiss and usearch: speed, recall and bytes; bench_cold has compile times.

`asv run -b bench_hnsw_peers` measures all; `-b bench_hnsw_peers.Msdocs` one set. A set is measured
once, by its `setup_cache`, with both sides in one process (see `_support/hnsw_peers.py`). The
benchmarks only report its figures, and are n/a where the data, a peer or a second core is missing,
or where the smallest ef exceeds the recall. The full clustered set takes about a quarter of an
hour; with LLMDS_DENSE_N=5000 all sets take minutes, at ratios that are lower. LLMDS_DENSE_GROWTH is
the largest size of `Growth`.
"""

from ._support.hnsw_peers import (
    EQUAL_EFS,
    KEPT,
    MODES,
    PEERS,
    SIZES,
    TARGETS,
    growth,
    measured,
    qps_label,
)

_TIMEOUT = 7200
_WITH_CODES = MODES[:2]
_SIDES = (*_WITH_CODES, "hnswlib")


FITS = [
    f"growth {what} {fit}" for what in ("us", "met") for fit in ("per doubling", "r2", "exponent")
]


def _over(labels, unit):
    """A benchmark of its own for each of the labels."""

    def mark(track):
        track.params, track.param_names, track.unit = (list(labels),), ("figure",), unit
        return track

    return mark


class _Figures:
    """Figures that `setup_cache` measured, one per benchmark."""

    version = "1"

    def setup(self, figures, figure):
        if figure not in figures:
            raise NotImplementedError(f"no {figure!r}")


class _Promise(_Figures):
    """M = 16, ef = 50: recall@10, and the 95th percentile of one query per call."""

    @_over(["promise recall"], "recall@10")
    def track_recall(self, figures, figure):
        return figures[figure]

    @_over(["promise p95, us"], "us")
    def track_latency(self, figures, figure):
        return figures[figure]


class _Against(_Promise):
    """The table of one set."""

    @_over(
        [qps_label(mode, peer, at) for mode in MODES for peer in PEERS for at in TARGETS],
        "times the peer's",
    )
    def track_qps(self, figures, figure):
        return figures[figure]

    @_over([f"build {mode} / hnswlib" for mode in _WITH_CODES], "times faster")
    def track_build(self, figures, figure):
        return figures[figure]

    @_over(
        [f"single {mode} / hnswlib p{share}" for mode in _WITH_CODES for share in (50, 95)],
        "times faster",
    )
    def track_single(self, figures, figure):
        return figures[figure]

    @_over(
        [f"single {side} {what}, us" for side in _SIDES for what in ("p50", "p95", "beyond batch")],
        "us",
    )
    def track_single_us(self, figures, figure):
        return figures[figure]

    @_over(
        [f"scaling {what} {side}" for what in ("build", "search") for side in ("auto", "hnswlib")],
        "times one thread",
    )
    def track_scaling(self, figures, figure):
        return figures[figure]

    @_over([f"2 threads {what} auto / hnswlib" for what in ("build", "search")], "times faster")
    def track_two_threads(self, figures, figure):
        return figures[figure]

    @_over(
        [f"bytes {kept}" for kept in KEPT if kept not in PEERS]
        + [f"bytes {kept}, file" for kept in KEPT],
        "bytes per vector",
    )
    def track_bytes(self, figures, figure):
        return figures[figure]

    @_over([f"gap {mode} ef {ef}" for mode in MODES for ef in EQUAL_EFS], "recall@10")
    def track_recall_gap(self, figures, figure):
        return figures[figure]


# asv tells one `setup_cache` from another by its line, so each class has its own.


class Clustered(_Against):
    """Generated, 100,000 x 128."""

    def setup_cache(self):
        return measured("clustered")

    setup_cache.timeout = _TIMEOUT


class Msdocs(_Against):
    """Documentation passages in file order, 50,156 x 384; real queries."""

    def setup_cache(self):
        return measured("msdocs")

    setup_cache.timeout = _TIMEOUT


class Images(_Against):
    """Generated with a decaying spectrum, 60,000 x 784."""

    def setup_cache(self):
        return measured("images")

    setup_cache.timeout = _TIMEOUT


class Uniform(_Promise):
    """The hardest, 100,000 x 128: the promise here is to lose little against hnswlib."""

    def setup_cache(self):
        return measured("uniform", ["promise", "gap"])

    setup_cache.timeout = _TIMEOUT

    track_recall_gap = _Against.track_recall_gap


class LowRank(_Promise):
    """Generated with 16 of 128 dimensions, 100,000 x 128."""

    def setup_cache(self):
        return measured("lowrank", ["promise"])

    setup_cache.timeout = _TIMEOUT


class Vaswani(_Promise):
    """Abstracts in file order, 11,429 x 384; 93 real queries."""

    def setup_cache(self):
        return measured("vaswani", ["promise"])

    setup_cache.timeout = _TIMEOUT


class Growth(_Figures):
    """Time and recall with ef = 50 by the number of vectors."""

    def setup_cache(self):
        return growth()

    setup_cache.timeout = _TIMEOUT

    @_over([f"growth us, n {n}" for n in SIZES], "us per query")
    def track_time(self, figures, figure):
        return figures[figure]

    @_over([f"growth met, n {n}" for n in SIZES], "vectors per query")
    def track_met(self, figures, figure):
        return figures[figure]

    @_over([f"growth recall, n {n}" for n in SIZES], "recall@10")
    def track_recall(self, figures, figure):
        return figures[figure]

    @_over(FITS, "see hnsw_peers.growth")
    def track_fit(self, figures, figure):
        return figures[figure]
