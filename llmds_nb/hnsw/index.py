"""HNSW: an index for approximate, or exact, nearest neighbours of dense vectors."""

import numbers
from collections.abc import Sequence

import numpy as np

from .._core import validation
from .._core.forking import new_lock
from .._core.publishing import Changes, publish
from .._core.storage import Stored, share
from .._core.typing import ArrayLike, Float32s, Int64s
from ..errors import CapacityError, CorruptFileError
from ..primitives.status import ABSENT
from . import persistence, quantization, search as searching, snapshot as snapshots, stats
from .graph_writer import GraphWriter
from .search import Neighbors, RadiusNeighbors
from .stats import HNSWStats
from .vector_store import METRICS, STORES, VectorForm
from .warmup import drive_kernels

__all__ = ["HNSW", "HNSWStats", "Neighbors", "RadiusNeighbors"]

MAX_DIM, MAX_M, MAX_SLOTS = 4096, 256, persistence.MAX_SLOTS
_SETTINGS = "dim", "metric", "M", "ef_construction", "ef_search", "quantize", "store", "seed"


class HNSW(Stored):
    """A graph index for nearest-neighbour search in float32 vectors.

    Searches walk a hierarchical navigable small world graph on compact codes and measure the final
    candidates on the stored vectors, so the distances returned are exact (`store="float32"`).

    Parameters
    ----------
    dim : int
        Components of a vector, 1 to 4096.
    metric : {"l2", "ip", "cosine"}
        Squared Euclidean distance, 1 - <q, x>, or 1 - <q, x> / (|q| |x|).
    M : int
        Links that a new vector gets on each level; level 0 holds up to 2 M. More links give better
        recall and take more memory.
    ef_construction : int
        Candidates considered for the links of a new vector.
    ef_search : int
        Candidates kept by a search that names no `ef`; may be set at any time, and `tune` sets it.
    quantize : {"auto", None, "sq8", "pca-sq8"}
        What the walk compares: the stored vectors themselves (None), their uint8 codes under one
        scale ("sq8"), or the codes of their principal components that keep .90 of the variance
        ("pca-sq8"; plain codes until 4 * dim vectors are there to fit them). "auto": None below
        32 dimensions; "pca-sq8" from 256 to 2048 where half the components suffice; else "sq8".
        With None, float32 and 64 dimensions or more, a prefilter of codes proves which vectors need
        not be read. Codes of 192 bytes or more get a prefilter of sign codes, one bit a component,
        if a sample shows that it rejects at least half of the codes unread; it wrongly rejects a
        few that seldom matter.
    store : {"float32", "float16", None}
        How vectors are stored. "float16": distances are those of the vectors rounded to float16.
        None stores the codes alone (a quarter of the memory): distances are those to what the codes
        represent. That is within half a code step per component, except for the 0.04 % that are
        clipped as farthest out, and half a step more for each new fit as the index grows; with
        "cosine" the lengths are lost.
    seed : int
        Of the random levels. The same seed and calls give the same graph for any number of threads.

    Notes
    -----
    Vectors that the walk cannot tell apart (copies, with "cosine" those of one direction, and those
    of one code) share one place and its links: they hide no other, and are measured and returned
    one by one. Where there are any, every vector takes 8 more bytes.

    Any number of threads may search while one writes; other writers wait for that one. A search
    sees the index as it was before or after a whole call. A call that raises changes nothing.
    Every stored vector is reachable from the entry point. While the contents turn over, `nbytes` is
    1.0 to 1.5 times that of a fresh build, at most 2.5 times; `compact` returns to it.

    References
    ----------
    Malkov, Yashunin: Efficient and robust approximate nearest neighbor search using Hierarchical
    Navigable Small World graphs, 2018, arXiv:1603.09320.

    Examples
    --------
    >>> import numpy as np
    >>> from llmds_nb import HNSW
    >>> index = HNSW(2)
    >>> index.add([[0, 0], [1, 0], [5, 5]])
    array([0, 1, 2])
    >>> index.search([1, 1], k=2)
    Neighbors(ids=array([1, 0]), distances=array([1., 2.], dtype=float32))
    """

    _stored_version = 2

    def __init__(
        self,
        dim: int,
        *,
        metric: str = "l2",
        M: int = 16,
        ef_construction: int = 200,
        ef_search: int = 50,
        quantize: str | None = "auto",
        store: str | None = "float32",
        seed: int = 0,
    ):
        self._dim = validation.integer(dim, "dim", low=1, high=MAX_DIM)
        self._metric = validation.choice(metric, "metric", tuple(METRICS))
        self._M = validation.integer(M, "M", low=2, high=MAX_M)
        self._ef_construction = validation.positive(ef_construction, "ef_construction")
        self.ef_search = ef_search
        kinds = ("auto", None, quantization.SQ8, quantization.PCA)
        self._quantize = validation.choice(quantize, "quantize", kinds)
        self._store = validation.choice(store, "store", tuple(STORES))
        if self._store is None and self._quantize in (None, quantization.PCA):
            raise ValueError(f"store=None keeps only sq8 codes, not quantize={self._quantize!r}")
        self._form = VectorForm(self._dim, self._metric, self._quantize, self._store)
        self._seed = validation.natural(seed, "seed")
        # (candidates measured on the stored vectors, for k answers), once tuned
        self._depth: tuple[int, int] | None = None
        self._next_id = 0  # one more than the largest id ever used
        self._writer = GraphWriter(self._form, self._M, self._ef_construction, self._seed)
        self._snapshot = self._writer.base
        self._write_lock = new_lock()  # one writer

    def add(
        self,
        vectors: ArrayLike,
        ids: ArrayLike | None = None,
        *,
        threads: int = 1,
        progress: bool = False,
        copy: bool = True,
    ) -> Int64s:
        """Insert vectors; one whose id exists replaces it.

        Parameters
        ----------
        vectors : array_like, float32[n, dim] or float32[dim]
            Finite; other number types are converted. Lengths up to 1e18, not zero with "cosine".
        ids : array_like, int64[n], optional
            Distinct, >= 0. Default: numbered on from the largest id ever used.
        threads : int
            Threads that build, -1 for all cores; the graph does not depend on it.
        progress : bool
            Show a progress bar when it takes longer than a second.
        copy : bool
            False: keep the array itself, which then must not change. Only for an empty index with
            store="float32", and a writable C-contiguous float32[n, dim]; a later `add` copies it.

        Returns
        -------
        int64[n]
            The ids. Raises ValueError for a wrong shape, NaN or infinity, a duplicate or negative
            id, a zero vector with "cosine"; CapacityError for more than 2**30 vectors.

        Notes
        -----
        About ef_construction * M distances each. A replaced vector is taken out as `remove` does.
        """
        with self._write_lock:
            added, changes = self._prepare_add(vectors, ids, threads, progress, copy)
            publish(changes)
        return added

    def _prepare_add(
        self,
        vectors: ArrayLike,
        ids: ArrayLike | None = None,
        threads: int = 1,
        progress: bool = False,
        copy: bool = True,
    ) -> tuple[Int64s, Changes]:
        """(what `add` returns, what it publishes), under the lock of writers."""
        given, vectors = vectors, validation.vectors(vectors, self._dim)
        progress = validation.flag(progress, "progress")
        if not validation.flag(copy, "copy") and (vectors is not given or self._store != "float32"):
            needs = 'store="float32" and writable C-contiguous float32[n, dim]'
            raise ValueError(f"copy=False needs {needs}")
        lengths = self._form.lengths(vectors, "vectors")
        threads = validation.threads(threads)
        ids = validation.new_ids(ids, len(vectors), "vectors", self._next_id)
        if not len(ids):
            return ids, []
        writer = self._writer
        if not copy and writer.base.n:
            raise ValueError(f"copy=False needs an empty index, not one of {len(self)} vectors")
        if writer.base.n + len(ids) > MAX_SLOTS:
            raise CapacityError(f"an HNSW holds {MAX_SLOTS} vectors; compact() or use two")
        writer = writer.add(vectors, lengths, ids, threads, progress, copy)
        return ids, self._changes(writer, int(ids.max()) + 1)

    def _changes(self, writer, next_id=0):
        """What publishes the graph of a writer, with ids below `next_id` or used before."""
        return [
            (self, "_writer", writer),
            (self, "_snapshot", writer.base),
            (self, "_next_id", max(self._next_id, next_id)),
        ]

    def remove(self, ids: ArrayLike) -> None:
        """Remove the vectors of one id or int64[n] distinct ids. O(n) bytes copied.

        Their slots stay in the graph, which walks pass through. Once a fifth of all slots are dead,
        these are freed and the graph is repaired around them, in a small part of a rebuild's time.
        Raises KeyError for an id that is unknown, ValueError for one that is given twice or is
        negative; nothing was removed then.
        """
        with self._write_lock:
            publish(self._prepare_remove(ids))

    def _prepare_remove(self, ids: ArrayLike) -> Changes:
        """What `remove` publishes, under the lock of writers."""
        ids, writer = validation.ids(ids), self._writer
        slots = _present(writer.base, ids)
        if not len(ids):
            return []
        return self._changes(writer.remove(slots))

    def _frozen(self) -> "HNSW":
        """An index for reading, with the present contents, that no later write of this one changes.

        O(1): what a snapshot has is replaced by a write, never changed.
        """
        return share(self)

    def compact(self, *, threads: int = 1) -> None:
        """Rebuild the graph as a fresh build of the live vectors; seldom needed after `remove`."""
        threads = validation.threads(threads)
        with self._write_lock:
            writer = self._writer
            if writer.base.n_live < writer.base.n or writer.repaired:
                publish(self._changes(writer.rebuild(writer.base, threads)))

    def search(
        self,
        queries: ArrayLike,
        k: int = 10,
        *,
        ef: int | None = None,
        filter: ArrayLike | Sequence[ArrayLike | None] | None = None,
        exact: bool = False,
        threads: int = 1,
        max_distance: float | None = None,
    ) -> Neighbors:
        """The k nearest vectors of each query.

        Parameters
        ----------
        queries : array_like, float32[dim] or float32[n, dim]
        k : int
            1 to 2**24; may be more than there are vectors.
        ef : int, optional
            Candidates kept, at least k: more candidates give better recall and take longer.
            Default: `ef_search`.
        filter : array_like of bool or int, or a list of them, optional
            A mask indexed by id, or ids (an array, list or set); a list of such has one for each
            query.
        exact : bool
            Measure every vector. Also done by itself where that is faster: in a small index, or
            when few vectors pass the filter.
        threads : int
            Threads among which a batch is split; -1 for all cores.
        max_distance : float, optional
            Leave out what is farther. `search_radius` returns all that is not.

        Returns
        -------
        Neighbors
            ids int64 and distances float32, [k] for one query, [n, k] for a batch; nearest first,
            equal distances by smaller id; missing places hold -1 and +inf.
        """
        if (
            type(queries) is np.ndarray
            and queries.dtype is validation.FLOAT32
            and queries.shape == (self._dim,)
            and queries.flags.carray
            and type(k) is type(threads) is int
            and k > 0
            and filter is None
            and exact is False
            and threads == 1
            and max_distance is None
        ):  # the common call; the kernel checks the values
            wide = self._ef_search if ef is None else validation.positive(ef, "ef")
            snapshot = self._snapshot
            depth = searching.rerank_depth(snapshot.coding, k, self._depth)
            found = searching.search_one(snapshot, self._form, queries, k, wide, depth)
            if found is not None:
                return Neighbors(*found)
        queries, single = self._form.queries(queries)
        exact = validation.flag(exact, "exact")
        k, filters, threads = validation.search_options(k, filter, threads, len(queries))
        ef = self._ef_search if ef is None else validation.positive(ef, "ef")
        found = self._searched(queries, k, ef, self._depth, filters, exact, threads)
        if max_distance is not None:
            farthest = validation.real(max_distance, "max_distance", infinite=True)
            found = searching.within(found, farthest)
        return Neighbors(*(part[0] for part in found) if single else found)

    def search_radius(
        self,
        queries: ArrayLike,
        radius: float,
        *,
        limit: int | None = None,
        ef: int | None = None,
        filter: ArrayLike | Sequence[ArrayLike | None] | None = None,
        exact: bool = False,
        threads: int = 1,
    ) -> RadiusNeighbors:
        """All vectors within a distance of each query.

        The walk keeps more candidates, twice as many each time, until the farthest that it found is
        beyond the radius: what is missed is what a search with such a large ef misses.

        Parameters
        ----------
        queries : array_like, float32[dim] or float32[n, dim]
        radius : float
            The largest distance, as the metric measures it: with "l2" it is squared.
        limit : int, optional
            Return only so many of each query, the nearest.
        ef : int, optional
            Candidates kept at least, as in `search`.
        filter, exact, threads
            As in `search`.

        Returns
        -------
        RadiusNeighbors
            indptr int64[n + 1], ids int64 and distances float32: the neighbours of query i are at
            indptr[i]:indptr[i + 1], nearest first, equal distances by smaller id. One query counts
            as n = 1.

        Examples
        --------
        >>> index = HNSW(1)
        >>> _ = index.add([[0.0], [1.0], [3.0]])
        >>> index.search_radius([[0.0], [9.0], [2.0]], 1.0)
        RadiusNeighbors(indptr=array([0, 2, 2, 4]), ids=array([0, 1, 1, 2]), \
distances=array([0., 1., 1., 1.], dtype=float32))
        """
        queries, _ = self._form.queries(queries)
        exact = validation.flag(exact, "exact")
        radius = validation.real(radius, "radius", infinite=True)
        _, filters, threads = validation.search_options(1, filter, threads, len(queries))
        ef = self._ef_search if ef is None else validation.positive(ef, "ef")
        snapshot, form, tuned = self._snapshot, self._form, self._depth
        most = max(1, snapshot.n_live)
        if limit is not None:
            most = min(most, validation.integer(limit, "limit", low=1))
        masks = [searching.mask_of(snapshot, one) for one in filters]

        def ask(rows, k):
            wide, own = max(ef, 2 * k), masks if len(masks) == 1 else [masks[i] for i in rows]
            asked = queries[rows]
            return searching.search(snapshot, form, asked, k, wide, tuned, own, exact, threads)

        return searching.search_radius(ask, len(queries), radius, most)

    def _searched(self, queries, k, ef, tuned, filters, exact, threads):
        """(ids, distances) [n, k] of checked arguments; `tuned` as in `rerank_depth`."""
        snapshot = self._snapshot
        masks = [searching.mask_of(snapshot, one) for one in filters]
        return searching.search(snapshot, self._form, queries, k, ef, tuned, masks, exact, threads)

    def tune(self, queries: ArrayLike, *, k: int = 10, target_recall: float = 0.95) -> int:
        """Find and set the smallest `ef_search` that reaches a recall on these queries.

        Where the walk compares codes, also sets how many candidates are measured on the stored
        vectors (`stats().rerank`): as few as reach the recall. The ef may then be up to 1.25 times
        the smallest, where that saves more reads. Ground truth is exact search; a neighbour counts
        if it is no farther than the k-th true one.

        Parameters
        ----------
        queries : array_like, float32[n, dim]
            Held-out queries: like those to come, not vectors of the index.
        k : int
        target_recall : float
            Share of the exact k nearest to be found, in (0, 1].

        Returns
        -------
        int
            The new `ef_search`; without codes within 5 % of the smallest that does. Raises
            ValueError for no query, or a recall out of reach (codes that are too coarse).
        """
        queries = validation.vectors(queries, self._dim, "queries")
        k = validation.answers(k)
        target_recall = validation.real(target_recall, "target_recall", above=0.0, high=1.0)
        if not len(queries):
            raise ValueError("queries must hold at least one vector")
        with self._write_lock:
            truth = self.search(queries, k, exact=True).distances

            def distances(ef, depth):
                return self._searched(queries, k, ef, (depth, k), [None], False, 1)[1]

            ef, depth = searching.tune(self._snapshot, truth, target_recall, distances)
            tuned = None if depth is None else (depth, k)
            self._ef_search, self._depth = ef, tuned
        return ef

    def get(self, ids: ArrayLike) -> Float32s:
        """The stored vectors: float32[dim] for one id, float32[n, dim] for many.

        As they were given; rounded with store="float16", and with store=None what the codes
        represent. Raises KeyError for an id that is not in the index.
        """
        single = isinstance(ids, numbers.Integral)
        ids = validation.ids(ids, unique=False)
        snapshot = self._snapshot
        vectors = self._form.as_given(snapshot, _present(snapshot, ids))
        return vectors[0] if single else vectors

    def __contains__(self, id: object) -> bool:
        id = validation.id_or_none(id)
        if id is None:
            return False
        return bool(snapshots.slots_of(self._snapshot, np.array([id]))[0] != ABSENT)

    def __len__(self) -> int:
        return self._snapshot.n_live

    def __repr__(self) -> str:
        snapshot = self._snapshot
        codes = snapshot.coding.kind if snapshot.coding else self._quantize
        return (
            f"HNSW({len(self)} vectors, dim={self._dim}, metric={self._metric!r}, M={self._M}, "
            f"ef_search={self._ef_search}, codes={codes!r}, store={self._store!r}, "
            f"{snapshot.n - snapshot.n_live} dead)"
        )

    @property
    def dim(self) -> int:
        """Components of a vector."""
        return self._dim

    @property
    def metric(self) -> str:
        """The metric's name."""
        return self._metric

    @property
    def ef_search(self) -> int:
        """Candidates kept by a search that names no `ef`, at least 1; may be set at any time.

        How many of them are measured on the stored vectors stays as `tune` has set it.
        """
        return self._ef_search

    @ef_search.setter
    def ef_search(self, value: int) -> None:
        self._ef_search = validation.positive(value, "ef_search")

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, including their capacity for growth."""
        writer = self._writer
        return writer.parent.nbytes + stats.n_bytes(writer.base)

    def stats(self) -> HNSWStats:
        """Sizes, degrees and reachability; O(n M)."""
        depth = searching.rerank_depth(self._snapshot.coding, 10, self._depth)
        return stats.stats(self._snapshot, self._ef_search, depth, self.nbytes)

    def check(self) -> None:
        """Assert every invariant of `kernels.state`; O(n M log M)."""
        with self._write_lock:
            stats.check(self._snapshot, self._writer, self._M, self._next_id)

    def _state(self):
        with self._write_lock:
            arrays, header = persistence.pack(self._snapshot, self._writer)
            settings = {name: getattr(self, f"_{name}") for name in _SETTINGS}
            counters = {"next_id": self._next_id, "depth": self._depth}
        return arrays, {"settings": settings, "counters": counters, "graph": header}

    @classmethod
    def _from_state(cls, arrays, header):
        if set(header["settings"]) != set(_SETTINGS):
            raise CorruptFileError(f"settings has {sorted(header['settings'])}")
        index = cls(**header["settings"])
        snapshot, history = persistence.unpack(arrays, header["graph"], index._snapshot)
        index._snapshot, index._writer = snapshot, index._writer.anew(snapshot, **history)
        index._next_id, index._depth = persistence.unpack_counters(header["counters"], snapshot)
        return index

    @staticmethod
    def _warmup():
        drive_kernels(HNSW)


def _present(snapshot, ids):
    """The slots of ids; KeyError for one that is not there."""
    slots = snapshots.slots_of(snapshot, ids)
    if (slots == ABSENT).any():
        raise KeyError(f"id {ids[slots == ABSENT][0]} is not in the index")
    return slots
