"""HNSW against its reference, in any order of calls."""

import numpy as np
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import llmds_nb.hnsw.search
from llmds_nb import HNSW

from .oracle import DictIndex
from .samples import METRICS


class HNSWMachine(RuleBasedStateMachine):
    @initialize(
        metric=st.sampled_from(METRICS), quantize=st.sampled_from([None, "sq8"]),
        M=st.integers(2, 4), seed=st.integers(0, 3),
    )  # fmt: skip
    def start(self, metric, quantize, M, seed):
        self.index = HNSW(4, metric=metric, quantize=quantize, M=M, ef_construction=8, seed=seed)
        self.oracle = DictIndex(4, metric)
        self.rng = np.random.default_rng(seed)

    def vectors(self, n):
        return self.rng.integers(-3, 4, (n, 4)).astype(np.float32) + np.float32(0.25)

    @rule(n=st.integers(1, 40))
    def add(self, n):
        vectors = self.vectors(n)
        ids = self.index.add(vectors)
        self.oracle.add(vectors, ids)

    @rule(ids=st.lists(st.integers(0, 60), unique=True, max_size=20))
    def upsert(self, ids):
        vectors = self.vectors(len(ids))
        self.index.add(vectors, ids)
        self.oracle.add(vectors, ids)

    @rule(start=st.integers(0, 60), n=st.integers(1, 30))
    def add_run(self, start, n):
        vectors = self.vectors(n)
        self.index.add(vectors, np.arange(start, start + n))
        self.oracle.add(vectors, range(start, start + n))

    @rule(share=st.sampled_from([0.1, 0.6, 1.0]))
    def remove(self, share):
        ids = [i for i in self.oracle.vectors if self.rng.random() < share]
        self.index.remove(ids)
        self.oracle.remove(ids)

    @rule()
    def compact(self):
        self.index.compact()

    @rule(k=st.integers(1, 12), divisor=st.integers(1, 4))
    def search(self, k, divisor):
        query = self.vectors(1)[0]
        mask = np.arange(200) % divisor == 0
        expected = self.oracle.search(query, k, lambda i: i < 200 and mask[i])
        for exact, factor in ((True, 9), (False, 9), (False, 0)):
            llmds_nb.hnsw.search.SCAN_FACTOR = factor
            try:
                found = self.index.search(query, k, ef=500, filter=mask, exact=exact)
            finally:
                llmds_nb.hnsw.search.SCAN_FACTOR = 9
            # An ef beyond n visits every reachable vector, and every vector is reachable.
            n = len(expected)
            assert (found.ids[n:] == -1).all() and (found.ids[:n] >= 0).all()
            np.testing.assert_allclose(
                found.distances[:n], [d for d, _ in expected], rtol=1e-4, atol=1e-5
            )

    @invariant()
    def holds(self):
        if hasattr(self, "index"):
            self.index.check()
            assert len(self.index) == len(self.oracle.vectors)
            for id_ in list(self.oracle.vectors)[:5]:
                assert id_ in self.index
                np.testing.assert_array_equal(self.index.get(id_), self.oracle.vectors[id_])
            for id_ in self.rng.integers(0, 100, 5).tolist():
                assert (id_ in self.index) == (id_ in self.oracle.vectors)


TestHNSWMachine = HNSWMachine.TestCase
TestHNSWMachine.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)
