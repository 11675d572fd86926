"""Walks and the choice of links against their algorithms in plain Python, slot by slot."""

import bisect

import numpy as np
import pytest

from llmds_nb import HNSW
from llmds_nb.hnsw.snapshot import logical_rows

DIM, M = 4, 4


def vectors_of(n, seed):
    """Distinct vectors of small integers, whose distances float32 has exactly; many are equal."""
    rng = np.random.default_rng(seed)
    return rng.permutation(np.unique(rng.integers(-9, 10, (2 * n, DIM)), axis=0))[:n]


class PlainGraph:
    """The links of an index as lists, and the algorithms of Malkov & Yashunin on them."""

    def __init__(self, index):
        s = index._snapshot
        self.vectors, self.entry, self.top, self.upper = s.vectors, s.entry, s.top, s.upper
        self.rows0 = logical_rows(s.links0, s.blocks0, s.n).tolist()
        self.rows1 = logical_rows(s.links1, s.blocks1, s.n_upper).tolist()

    def neighbours(self, slot, level=0):
        row = self.rows0[slot] if level == 0 else self.rows1[self.upper[slot] + level - 1]
        return row[1 : 1 + row[0]]

    def distance(self, query, slot):
        return float(((query - self.vectors[slot]) ** 2).sum())

    def walk(self, query, ef, passes=lambda slot: True):
        """The ef nearest that pass of those met, as (distance, slot): algorithms 2 and 5.

        With a filter ef + 1 may be kept: when the ef-th is found, others that do not pass are last.
        """
        first = best = self.distance(query, self.entry), self.entry
        for level in range(self.top, 0, -1):
            at = None
            while at != best:
                at = best
                near = self.neighbours(best[1], level)
                best = min([best, *((self.distance(query, slot), slot) for slot in near)])
        found = [best]
        if first != best and passes(best[1]) < ef:
            found = sorted([best, first])
        met, expanded = {slot for _, slot in found}, set()
        while left := [entry for entry in found if entry not in expanded]:
            expanded.add(left[0])
            for slot in self.neighbours(left[0][1]):
                entry = self.distance(query, slot), slot
                passing = sum(passes(other) for _, other in found)
                if slot in met or (passing >= ef and entry > found[-1]):
                    met.add(slot)
                    continue
                met.add(slot)
                bisect.insort(found, entry)
                if passes(slot) and passing >= ef:
                    found.pop()
                    while not passes(found[-1][1]):
                        found.pop()
        return [entry for entry in found if passes(entry[1])][:ef]

    def diverse(self, candidates, limit):
        """Those nearer to the new slot than to any chosen before: algorithm 4."""
        chosen = []
        for distance, slot in candidates:
            nearer = (self.distance(self.vectors[slot], other) < distance for other in chosen)
            if len(chosen) < limit and not any(nearer):
                chosen.append(slot)
        return chosen


@pytest.fixture(scope="module")
def index():
    built = HNSW(DIM, M=M, ef_construction=12, quantize=None)
    built.add(vectors_of(600, 0))
    return built


@pytest.mark.parametrize("ef", [1, 2, 3, 10, 30])
@pytest.mark.parametrize("share", [1, 2, 5])
def test_a_walk_finds_what_the_algorithm_finds(index, ef, share, graph_only):
    graph, queries = PlainGraph(index), vectors_of(30, 1) + 0.5
    mask = np.arange(600) % share == 0
    hits = index.search(queries, ef, ef=ef, filter=None if share == 1 else mask)
    for query, ids, distances in zip(queries, *hits, strict=True):
        expected = graph.walk(query, ef, mask.__getitem__)
        expected += [(np.inf, -1)] * (ef - len(expected))
        assert ids.tolist() == [slot for _, slot in expected]
        assert distances.tolist() == [distance for distance, _ in expected]


def test_a_new_slot_links_to_the_diverse_ones_of_those_that_its_walk_finds():
    index, vectors = HNSW(DIM, M=M, ef_construction=12, quantize=None), vectors_of(400, 2)
    index.add(vectors[:200])
    checked = fewer = 0
    for slot in range(200, 400):
        before = PlainGraph(index)
        index.add(vectors[slot : slot + 1])
        if index._snapshot.levels[slot] == 0:
            found = before.walk(vectors[slot].astype(np.float32), 12)
            after = PlainGraph(index)
            chosen = after.diverse(found, M)
            assert after.neighbours(slot)[: len(chosen)] == chosen
            checked, fewer = checked + 1, fewer + (chosen != [other for _, other in found[:M]])
    assert checked > 100 and fewer > 50
