"""A search over shards: statistics of all, candidates of each under these, one ranking.

All of a search is of one version of every shard. Where a shard has that version no longer, or its
last replica dies meanwhile, the search begins anew; it never mixes statistics of two versions.

A shard that has a share p of the documents has about p of the best `depth`, so it is asked for that
many and four standard deviations more. Where all of these are among the best of all shards it may
have more, and is asked again for these queries, for `depth`: the answer is that of asking for
`depth` at once.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import ray

from llmds_nb.pipeline import (
    Candidates,
    CollectionStatistics,
    merge_candidates,
    merge_statistics,
)

from ..._core.typing import Float32s, Int64s
from .replicas import ask
from .state import ShardState, State
from .terms import TermCache

_LARGE = 1 << 16  # bytes of an argument that is sent once for all shards
_DEVIATIONS = 4


class ShardDied(Exception):
    """The last replica of a shard died during a search, which begins anew without it."""


class Queries(NamedTuple):
    """What is searched for, checked: as many texts as vectors, and as filters where they differ."""

    texts: list[str]
    vectors: Float32s  # [n, d]
    where: Any  # one for all or None, or a list of one each
    filter: Any  # likewise, of numbers
    exact: bool
    threads: int

    def some(self, places: Sequence[int]) -> "Queries":
        """Those at some places."""
        if len(places) == len(self.texts):
            return self
        where, filters = (
            [values[i] for i in places] if isinstance(values, list) else values
            for values in (self.where, self.filter)
        )
        texts = [self.texts[i] for i in places]
        return self._replace(
            texts=texts, vectors=self.vectors[list(places)], where=where, filter=filters
        )


class ShardedSource:
    """One version of the shards that answer: the CandidateSource of `rank_candidates`.

    Every method raises ShardDied if a shard answers no more, and what shards raise, such as
    StaleVersionError.
    """

    def __init__(self, state: State, queries: Queries, terms: TermCache) -> None:
        self._queries, self._ef_factor = queries, state.pipeline.view().ef_factor
        self.missing = [shard.id for shard in state.shards if not shard.group.live]
        live = [shard for shard in state.shards if shard.group.live and shard.documents]
        self._shards = {shard.id: shard for shard in live}
        self._n = sum(shard.documents for shard in live)
        versions = tuple((shard.id, shard.version) for shard in live)
        self._statistics = CollectionStatistics(0, 0, {})
        if live and queries.texts:
            self._statistics = terms.statistics(versions, queries.texts, self._ask_statistics)

    def candidates(self, queries: list[int], depth: int) -> Candidates:
        """The best of all shards for some of the queries, [m, depth]."""
        asked = self._queries.some(queries)
        if not self._shards:
            return _no_candidates(len(queries), depth)
        depths = {i: self._depth_of(shard, depth) for i, shard in self._shards.items()}
        every = np.arange(len(queries))
        found = self._ask_candidates(asked, dict.fromkeys(depths, every), depths)
        parts = {i: _padded(part, depth) for i, part in found.items()}
        merged = merge_candidates(list(parts.values()))
        short = {
            i: rows
            for i, part in found.items()
            if depths[i] < depth and len(rows := _rows_of_more(part, merged))
        }
        if not short:
            return merged
        for i, more in self._ask_candidates(asked, short, dict.fromkeys(short, depth)).items():
            for whole, own in zip(parts[i], more, strict=True):
                np.asarray(whole)[short[i]] = own
        return merge_candidates(list(parts.values()))

    def groups(self, field: str, ids: Int64s) -> Int64s:
        """A number for each document, equal for equal values of a field; -1 without it."""
        value_of: dict[int, str | None] = {}
        for part in self._ask("groups", field, ids).values():
            value_of.update(part)
        numbers: dict[str | None, int] = {None: -1}
        values = [value_of[id_] for id_ in ids.tolist()]
        return np.array([numbers.setdefault(value, len(numbers)) for value in values], np.int64)

    def vectors(self, ids: Int64s) -> Float32s:
        """The vectors of documents, zeros for one without."""
        vectors = np.zeros((len(ids), self._queries.vectors.shape[1]), np.float32)
        for own, part in self._ask("vectors", ids).values():
            if len(own):
                vectors[np.searchsorted(ids, own)] = part
        return vectors

    def n_groups(self, query: int, field: str) -> int:
        """How many groups there are of all documents that a query may find."""
        one = self._queries.some([query])
        where, filters = (v[0] if isinstance(v, list) else v for v in (one.where, one.filter))
        groups, n_without = set(), 0
        for own, without in self._ask("all_groups", field, where=where, filter=filters).values():
            groups |= own
            n_without += without
        return len(groups) + n_without

    def keys_of(self, numbers: Int64s) -> np.ndarray:
        """The str ids of numbers [n, k], None for -1."""
        keys = np.full(numbers.shape, None, object)
        distinct = np.unique(numbers[numbers >= 0])
        if len(distinct):
            found = np.full(len(distinct), None, object)
            for own in self._ask("keys_of", distinct, versioned=False).values():
                for place, key in enumerate(own):
                    if key is not None:
                        found[place] = key
            there = numbers >= 0
            keys[there] = found[np.searchsorted(distinct, numbers[there])]
        return keys

    def _depth_of(self, shard: ShardState, depth: int) -> int:
        share = shard.documents / self._n
        spread = math.sqrt(depth * share * (1 - share))
        return min(depth, math.ceil(depth * share + _DEVIATIONS * spread))

    def _ask_statistics(self, texts):
        return merge_statistics(self._ask("statistics", texts).values())

    def _ask_candidates(self, asked, rows, depths) -> dict[int, Candidates]:
        """The candidates of shards, of each for some rows of the queries."""
        arguments: dict[int, tuple] = {}
        made: dict[bytes, tuple] = {}
        for shard_id, places in rows.items():
            key = places.tobytes()
            if key not in made:
                own = asked.some(places.tolist())
                made[key] = own.texts, {
                    "vectors": carried(own.vectors), "where": own.where,
                    "filter": carried(own.filter), "statistics": self._statistics,
                    "exact": own.exact, "threads": own.threads, "ef_factor": self._ef_factor,
                }  # fmt: skip
            arguments[shard_id] = made[key]

        def send(shard_id, handle):
            texts, options = arguments[shard_id]
            depth, version = depths[shard_id], self._shards[shard_id].version
            return handle.read.remote("candidates", texts, depth=depth, version=version, **options)

        return self._answers(rows, send)

    def _ask(self, method, *args, versioned=True, **options) -> dict[int, Any]:
        """What every shard answers."""

        def send(shard_id, handle):
            if versioned:
                options["version"] = self._shards[shard_id].version
            return handle.read.remote(method, *args, **options)

        return self._answers(self._shards, send)

    def _answers(self, shard_ids, send):
        answers, missing = ask({i: self._shards[i].group for i in shard_ids}, send)
        if missing:
            raise ShardDied(missing)
        return answers


def carried(value: Any) -> Any:
    """An argument for several actors: a reference to it where it is large."""
    return ray.put(value) if getattr(value, "nbytes", 0) > _LARGE else value


def _no_candidates(n, depth) -> Candidates:
    ids = np.full((n, depth), -1)
    return Candidates(
        ids, np.full((n, depth), np.inf, np.float32), ids.copy(), np.full((n, depth), -np.inf)
    )


def _padded(part: Candidates, depth: int) -> Candidates:
    """Candidates to a larger depth, in arrays of their own."""
    whole = _no_candidates(len(part.dense_ids), depth)
    for wide, narrow in zip(whole, part, strict=True):
        np.asarray(wide)[:, : part.dense_ids.shape[1]] = narrow
    return whole


def _rows_of_more(part: Candidates, merged: Candidates) -> Int64s:
    """The queries of which a shard may have more documents among the best of all than it gave."""
    near, far = part.dense_distances[:, -1], merged.dense_distances[:, -1]
    high, low = part.sparse_scores[:, -1], merged.sparse_scores[:, -1]
    in_dense = (near < far) | (near == far) & (part.dense_ids[:, -1] <= merged.dense_ids[:, -1])
    in_sparse = (high > low) | (high == low) & (part.sparse_ids[:, -1] <= merged.sparse_ids[:, -1])
    in_dense &= part.dense_ids[:, -1] >= 0
    in_sparse &= part.sparse_ids[:, -1] >= 0
    return np.flatnonzero(in_dense | in_sparse)
