"""Documents and queries for the tests of a ShardedPipeline, and how two pipelines are compared."""

import numpy as np

WORDS = ["red", "blue", "fox", "sky", "night", "dog", "cat", "green", "sun", "moon", "stone"]


class Samples:
    """Documents of a random corpus: texts, vectors [n, 8] and metadata, by the number of each."""

    def __init__(self, n, seed=0, dim=8):
        rng = np.random.default_rng(seed)
        self.texts = [" ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(n)]
        # Few distinct values, so that many distances and scores are equal.
        self.vectors = rng.integers(-2, 3, (n, dim)).astype(np.float32)
        self.metadata = [
            {"year": int(rng.integers(2000, 2006))} | ({"lang": WORDS[i % 3]} if i % 4 else {})
            for i in range(n)
        ]
        self.queries = [" ".join(rng.choice(WORDS, rng.integers(1, 4))) for _ in range(12)]
        self.query_vectors = rng.integers(-2, 3, (12, dim)).astype(np.float32)
        self.query_vectors[0] = 0

    def add(self, pipeline, places, ids=None):
        """Add those at some places, under other ids if they are given."""
        return pipeline.add(
            list(places) if ids is None else ids,
            [self.texts[i] for i in places],
            self.vectors[list(places)],
            metadata=[self.metadata[i] for i in places],
        )


def assert_same_ranking(sharded, one, queries, *, vectors=None, **options):
    """Both rank alike, bit for bit."""
    found = sharded.search(queries, vectors=vectors, exact=True, **options)
    wanted = one.search(queries, vectors=vectors, exact=True, **options)
    assert found.missing == ()
    assert found.ids.dtype == wanted.ids.dtype and found.ids.tolist() == wanted.ids.tolist()
    assert found.scores.tobytes() == wanted.scores.tobytes(), options


def rankings(ids):
    """The options of searches whose rankings are to be equal."""
    return [
        {},
        {"k": 1},
        {"k": 130},
        {"where": {"year": {"$gte": 2003}}},
        {"where": [{"lang": "red"}, None, *[{"year": 2001}] * 10]},
        {"filter": ids[::3]},
        {"filter": [None, *[ids[:9]] * 11]},
        {"min_score": 0.4},
        {"diversity": 0.5},
        {"group_by": "year", "k": 7},
        {"group_by": "lang", "where": {"year": 2002}},
        {"fusion": "rrf", "weight": 0.3},
        {"fusion": "dbsf"},
    ]
