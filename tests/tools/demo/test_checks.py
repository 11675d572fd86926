"""Every check of the demo passes on right values and fails on wrong ones."""

from typing import NamedTuple

import numpy as np
import pytest

from llmds_nb.tools.demo import checks
from llmds_nb.tools.replay.sharing import (
    PrefixTree,
    SharingAudit,
    pages_needed,
    pages_shared_ideally,
    saved_percent,
)


class Hits(NamedTuple):
    ids: np.ndarray
    scores: np.ndarray


class Table(NamedTuple):
    indptr: np.ndarray
    indices: np.ndarray


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(0)
    base = rng.normal(size=(200, 8)).astype(np.float32)
    base[150:] = base[:50]  # exact duplicates
    base[7] = 0
    return base


def brute_force(vectors, queries, k):
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    return np.argsort(-(queries @ unit.T), axis=1, kind="stable")[:, :k]


def test_neighbour_recall_counts_ties_once(vectors):
    queries = vectors[20:40]
    exact = brute_force(vectors, queries, 10)
    assert checks.neighbour_recall(exact, vectors, queries) == 1.0
    swapped = np.where(exact >= 150, exact - 150, exact)  # the twin of a duplicate, perhaps twice
    assert checks.neighbour_recall(swapped, vectors, queries) < 1.0
    one_wrong = exact.copy()
    one_wrong[:, 9] = -1
    assert checks.neighbour_recall(one_wrong, vectors, queries) == pytest.approx(0.9)
    assert checks.neighbour_recall(exact[:, ::-1], vectors, queries) == 1.0
    all_three = np.tile([2, 0, 1, -1], (20, 1))
    assert checks.neighbour_recall(all_three, vectors[:3], queries) == 1.0


def test_hnsw_recall():
    assert checks.hnsw_recall(0.95).passed
    assert not checks.hnsw_recall(0.9499).passed


def test_fusion():
    assert checks.fusion(0.4, 0.6, 0.595).passed
    assert not checks.fusion(0.4, 0.6, 0.58).passed
    assert not checks.fusion(0.6, 0.4, 0.58).passed


def test_pages_saved():
    assert checks.pages_saved(10, 10, 0).passed
    assert not checks.pages_saved(10, 11, 0).passed
    assert not checks.pages_saved(11, 10, 0).passed
    assert not checks.pages_saved(10, 10, 1).passed


def test_ended_once():
    assert checks.ended_once([1, 1, 1], {"pages": 0}).passed
    never = checks.ended_once([1, 0, 1], {})
    assert not never.passed
    assert "request 1 ended 0 times" in never.detail
    assert not checks.ended_once([1, 2, 1], {}).passed
    left = checks.ended_once([1, 1], {"sequences in the cache": 3})
    assert not left.passed
    assert "3 sequences in the cache" in left.detail


def test_same_answers():
    one = Hits(np.array([[1, 2], [3, -1]]), np.array([[2.0, 1.0], [1.0, -np.inf]]))
    assert checks.same_answers(one, one).passed
    assert not checks.same_answers(one, one._replace(ids=np.array([[1, 2], [4, -1]]))).passed
    nearly = one.scores.copy()
    nearly[0, 0] = np.nextafter(2.0, 3.0)
    assert not checks.same_answers(one, one._replace(scores=nearly)).passed


def test_formula_against_a_slow_twin():
    rng = np.random.default_rng(1)
    for _ in range(20):
        size = int(rng.integers(1, 5))
        sequences = [rng.integers(0, 2, rng.integers(1, 12)).astype(np.int32) for _ in range(8)]
        full = {tuple(s[:stop]) for s in sequences for stop in range(size, len(s) + 1, size)}
        partial = sum(len(s) % size != 0 for s in sequences)
        assert pages_shared_ideally(sequences, size) == len(full) + partial
        assert pages_needed([len(s) for s in sequences], size) == sum(
            len(s) // size + (len(s) % size != 0) for s in sequences
        )
    assert pages_needed([], 4) == 0
    assert saved_percent(60, 100) == pytest.approx(40)
    assert saved_percent(0, 0) == 0


def test_prefix_tree_tells_the_same_page_after_another_prefix_apart():
    tree = PrefixTree(1)
    assert tree.nodes([5, 6]) == [0, 1]
    assert tree.nodes([6, 6]) == [2, 3]


def test_audit_finds_pages_shared_wrongly():
    def audited(rows):
        audit = SharingAudit(2, every=1)
        audit.submit(0, [1, 2, 3, 4, 5])
        audit.submit(1, [1, 2, 9, 9, 5])
        indptr = np.cumsum([0, *map(len, rows)])
        audit.check(np.array([0, 1]), Table(indptr, np.concatenate(rows)))
        return audit

    right = audited([[7, 3, 4], [7, 5, 6]])
    assert (right.n_wrongly_shared, right.used, right.ideal, right.needed) == (0, 5, 5, 6)
    duplicate = audited(
        [[7, 3, 4], [8, 5, 6]]
    )  # both computed the first page: right, but not ideal
    assert (duplicate.n_wrongly_shared, duplicate.used, duplicate.ideal) == (0, 6, 5)
    assert audited([[7, 3, 4], [7, 3, 6]]).n_wrongly_shared == 1  # [3, 4] and [9, 9] in one page
    assert audited([[7, 3, 4], [7, 5, 4]]).n_wrongly_shared == 1  # a page beyond both prompts
