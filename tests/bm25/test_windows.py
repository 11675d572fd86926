"""Documents at the edges of windows, and scores that their bounds can hardly tell apart."""

import numpy as np
import pytest

from llmds_nb import InvertedIndex
from llmds_nb.bm25.kernels.decoded_lists import WINDOW

from .test_strategies import set_strategy


def indexed(*parts, **parameters):
    """An index of a segment for each part {doc: text} of WINDOW + 200 documents."""
    index = InvertedIndex(**parameters)
    for number, part in enumerate(parts):
        texts = ["other"] * (WINDOW + 200)
        for doc, text in part.items():
            texts[doc] = text
        index.add(np.arange(len(texts)) + number * len(texts), texts)
    assert index.stats().n_segments == len(parts)
    return index


@pytest.mark.parametrize("scan_docs", [0, 1 << 40])
@pytest.mark.parametrize("k", [1, 2, 20])
def test_scores_that_differ_by_less_than_a_unit_of_their_bounds(k, scan_docs, monkeypatch):
    """The best document is in a later window, or in a later segment, than one nearly as good."""
    worse = dict.fromkeys(range(k), "word" + 3 * " other")
    better = {WINDOW + 50 + doc: "word" + 2 * " other" for doc in range(k)}
    for parts in ([worse | better], [worse, better]):
        index = indexed(*parts, b=1e-6)  # lengths change a score by some 1e-6 of it
        monkeypatch.setattr("llmds_nb.bm25.kernels.search.SCAN_DOCS", scan_docs)
        hits = index.search("word", 2 * k)
        best = [doc for doc in hits.ids.tolist() if doc >= WINDOW]
        assert hits.scores[0] > hits.scores[k] > hits.scores[0] * (1 - 2e-6)
        assert hits.ids[:k].tolist() == best
        assert index.search("word", k).ids.tolist() == best


def test_exceptions_at_the_edge_of_a_window():
    large = 300 * "word "  # a tf so large is kept apart from the other postings
    docs = [0, WINDOW - 1, WINDOW, WINDOW + 1]
    for apart in range(4):
        index = indexed({doc: large if i == apart else "word" for i, doc in enumerate(docs)})
        assert sorted(index.search("word", 9).ids.tolist()) == 5 * [-1] + docs
        assert index.search("word", 1).ids.tolist() == [docs[apart]]


@pytest.mark.parametrize("scan_docs", [0, 1 << 40])
def test_any_k_gives_the_first_of_all_hits_among_many_of_like_scores(scan_docs, monkeypatch):
    """A bound exceeds its score by up to a unit a term, and a unit has many documents here."""
    rng = np.random.default_rng(0)
    names = np.array([f"w{i:02}" for i in range(40)])
    held = np.argsort(rng.random((20_000, 40)), axis=1)[:, :20]
    index = InvertedIndex()
    index.add(None, [" ".join(row) for row in names[held]])
    set_strategy(index, monkeypatch, scan_docs, 16)
    queries = [" ".join(rng.choice(names, 30, replace=False)) for _ in range(30)]
    every = index.search(queries, len(held)).ids
    for k in [*range(1, 17), 20, 50, 100, 500]:
        assert (index.search(queries, k).ids == every[:, :k]).all()
