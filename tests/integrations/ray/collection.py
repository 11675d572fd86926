"""A collection in shards of one process, beside which one RetrievalPipeline is the oracle."""

import numpy as np

from llmds_nb import RetrievalPipeline
from llmds_nb.bm25 import Hits
from llmds_nb.integrations.ray.placement import placed
from llmds_nb.integrations.ray.shard import Shard
from llmds_nb.pipeline import merge_candidates, merge_statistics, rank_candidates


class Source:
    """Some queries to shards, each at one version: a CandidateSource."""

    def __init__(self, shards, texts, vectors, where=None, filter=None, exact=True):
        self.shards = [(shard, shard.version) for shard in shards]
        self.texts, self.vectors_of, self.exact = texts, vectors, exact
        self.where, self.filter = where, filter
        self.statistics = merge_statistics(s.statistics(texts, v) for s, v in self.shards)

    def ask(self, method, *args, **options):
        return [getattr(s, method)(*args, version=v, **options) for s, v in self.shards]

    def candidates(self, queries, depth):
        options = {
            "vectors": self.vectors_of[queries], "where": self.where, "filter": self.filter,
            "statistics": self.statistics, "exact": self.exact, "depth": depth,
        }  # fmt: skip
        return merge_candidates(self.ask("candidates", [self.texts[i] for i in queries], **options))

    def groups(self, field, ids):
        found = {}
        for part in self.ask("groups", field, ids):
            assert not found.keys() & part.keys()
            found |= part
        numbers = {None: -1}
        return np.array([numbers.setdefault(found[i], len(numbers)) for i in ids.tolist()])

    def vectors(self, ids):
        vectors = np.zeros((len(ids), self.vectors_of.shape[1]), np.float32)
        for own, part in self.ask("vectors", ids):
            vectors[np.searchsorted(ids, own)] = part
        return vectors

    def n_groups(self, query, field):
        parts = self.ask("all_groups", field, where=self.where, filter=self.filter)
        return len(set().union(*(groups for groups, _ in parts))) + sum(n for _, n in parts)


class Collection:
    """Shards, and which number each document has: as one pipeline numbers them."""

    def __init__(self, n_shards, *, encoder=None, **options):
        self.encoder, self.options = encoder, {"cache_tokens": 0, **options}
        self.shards = {i: Shard(RetrievalPipeline(**self.options)) for i in range(n_shards)}
        self.next_number, self.has_keys = 0, False

    def add(self, keys, texts, vectors=None, metadata=None):
        if vectors is None:
            if not self.encoder.fitted:
                self.encoder.fit(texts)
            vectors = self.encoder.encode(texts)
        vectors = np.asarray(vectors, np.float32)
        self.has_keys = isinstance(keys[0], str)
        numbers = self.next_number + np.arange(len(keys)) if self.has_keys else np.array(keys)
        where = placed(keys, list(self.shards))
        for i, shard in self.shards.items():
            own = np.flatnonzero(where == i)
            shard.add(
                [keys[j] for j in own] if self.has_keys else None,
                [texts[j] for j in own],
                vectors[own],
                None if metadata is None else [metadata[j] for j in own],
                numbers=numbers[own],
            )
        self.next_number = max(self.next_number, int(numbers.max()) + 1)

    def remove(self, keys):
        where = placed(keys, list(self.shards))
        for i, shard in self.shards.items():
            shard.remove([keys[j] for j in np.flatnonzero(where == i)])
        if sum(s.n_keys for s in self.shards.values()) > 2 * len(self) + 16:
            for shard in self.shards.values():
                shard.forget_removed()

    def move(self, ids):
        """Have shards of these ids, and no others; documents move that must."""
        for i in set(ids) - set(self.shards):
            self.shards[i] = Shard(RetrievalPipeline(**self.options))
        for i, shard in list(self.shards.items()):
            numbers = shard.pipeline.view().numbers()
            keys = shard.keys_of(numbers) if self.has_keys else numbers.tolist()
            where = placed(keys, ids)
            for other in set(ids) - {i}:
                moving = [keys[j] for j in np.flatnonzero(where == other)]
                self.shards[other].imports(shard.export(moving))
                shard.remove(moving, forget=True)
            if i not in ids:
                assert not len(self.shards.pop(i))

    def __len__(self):
        return sum(map(len, self.shards.values()))

    def search(
        self, texts, k, *, vectors=None, fusion="convex", weight=0.7, where=None, filter=None,
        exact=True, **options,
    ):  # fmt: skip
        vectors = self.encoder.encode(texts) if vectors is None else vectors
        if filter is not None and self.has_keys:
            found = [shard.numbers_of(filter) for shard in self.shards.values()]
            filter = np.max(found, axis=0)
            filter = filter[filter >= 0]
        vectors = np.asarray(vectors, np.float32)
        source = Source(self.shards.values(), texts, vectors, where, filter, exact)
        hits = rank_candidates(source, len(texts), k, fusion=fusion, weight=weight, **options)
        return Hits(self.keys_of(hits.ids), hits.scores) if self.has_keys else hits

    def keys_of(self, numbers):
        keys = np.full(numbers.size, None, object)
        for shard in self.shards.values():
            for place, key in enumerate(shard.keys_of(numbers.ravel())):
                keys[place] = key if key is not None else keys[place]
        return keys.reshape(numbers.shape)


def assert_same(found, wanted):
    """Ids and scores, bit for bit."""
    assert found.ids.tolist() == wanted.ids.tolist()
    assert found.scores.tobytes() == wanted.scores.tobytes()
