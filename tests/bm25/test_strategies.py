"""InvertedIndex: whichever way a query is searched, the answer is the same, bit for bit."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from llmds_nb import InvertedIndex
from llmds_nb._core.jit import kernel
from llmds_nb.bm25 import search as searching
from llmds_nb.bm25.index import Hits
from llmds_nb.bm25.kernels import postings, search as kernels, window
from llmds_nb.bm25.kernels.segment_search import MAX_TERMS

from .oracle import VARIANTS, PlainBm25, assert_hits

N_DOCS = 70_000  # more than a window


@pytest.fixture(scope="module")
def corpus():
    """(texts, tf of each of 40 terms in each document, ids)."""
    rng = np.random.default_rng(3)
    tfs = np.zeros((40, N_DOCS), np.int64)
    for term in range(40):  # from every second document down to a few
        n = max(3, int(N_DOCS / 2 / 1.35**term))
        tfs[term, rng.choice(N_DOCS, n, replace=False)] = rng.geometric(0.6, n)
    tfs[5, rng.choice(N_DOCS, 40)] = rng.integers(200, 400, 40)
    names = np.array([f"w{term:02}" for term in range(40)])
    texts = [" ".join(np.repeat(names, column)) for column in tfs.T]
    return texts, tfs, 3 * np.arange(N_DOCS)


def indexed(corpus, monkeypatch, min_budget, bytes_per_posting, min_entries):
    monkeypatch.setattr(searching, "MIN_BUDGET", min_budget)
    monkeypatch.setattr(searching, "BYTES_PER_POSTING", bytes_per_posting)
    monkeypatch.setattr(searching, "MIN_ENTRIES", min_entries)
    texts, _, ids = corpus
    index = InvertedIndex()
    index.add(ids, texts)
    return index


def set_strategy(index, monkeypatch, scan_docs, lookup_cost):
    """When windows are scanned and when postings are looked up, from the next search on."""
    monkeypatch.setattr(kernels, "SCAN_DOCS", scan_docs)
    monkeypatch.setattr(kernels, "LOOKUP_COST", lookup_cost)
    index.k1 = index.k1  # what searches share is prepared anew
    index.search("w00", 1)
    prepared = index._contents.prepared.state.state
    assert (prepared.scan_docs, prepared.lookup_cost) == (scan_docs, lookup_cost)


QUERIES = [
    "w00", "w39", "w05", "w01 w17", "w30 w31 w38", "w05 w05 w20 w25 w02",
    " ".join(f"w{term:02}" for term in range(40)), "w20 w22 w24", "none", "w36 none w37",
]  # fmt: skip


def plain_scores(corpus, index, query):
    _, tfs, _ = corpus
    plain = PlainBm25(index.variant, index.k1, index.b)
    words = query.split()
    lengths = tfs.sum(axis=0)
    norm = 1 - plain.b + plain.b * lengths / lengths.mean()
    scores = np.zeros(N_DOCS)
    plain.docs = range(N_DOCS)
    for word in sorted(set(words) - {"none"}):
        tf = tfs[int(word[1:])]
        part = tf / (tf + plain.k1 * norm)
        scores += words.count(word) * plain.idf(np.count_nonzero(tf)) * part
    return scores


def test_every_strategy_gives_the_same_answer(corpus, monkeypatch):
    mask = np.zeros(3 * N_DOCS, np.bool_)
    mask[: 3 * N_DOCS : 6] = True
    answers = []
    for budget in [(1 << 24, 1.2, 16), (0, 0.0, 16), (0, 0.7, 16), (1 << 24, 0.0, 1)]:
        index = indexed(corpus, monkeypatch, *budget)
        for scan_docs, lookup_cost in ((0, 16), (32, 0), (1 << 40, 1 << 40), (0, 0), (1 << 40, 16)):
            set_strategy(index, monkeypatch, scan_docs, lookup_cost)
            hits = [index.search(QUERIES, k, filter=f) for k in (1, 10, 16, 17, 300, N_DOCS)
                    for f in (None, mask)]  # fmt: skip
            answers.append(hits)
        index.check()
    for hits in answers[1:]:
        for one, other in zip(answers[0], hits, strict=True):
            assert (one.ids == other.ids).all() and (one.scores == other.scores).all()
    everything = answers[0][-2]
    for row, query in enumerate(QUERIES):
        scores = plain_scores(corpus, index, query)
        order = np.lexsort((np.arange(N_DOCS), -scores))
        order = order[scores[order] > 0]
        got = everything.ids[row][: len(order)]
        assert (everything.ids[row][len(order) :] == -1).all()
        np.testing.assert_allclose(everything.scores[row][: len(order)], scores[order], rtol=1e-9)
        same = got == 3 * order  # sums that differ in their last bit may change places
        np.testing.assert_allclose(scores[got[~same] // 3], scores[order[~same]], rtol=1e-12)
        for place, k in enumerate((1, 10, 16, 17, 300)):
            assert (answers[0][2 * place].ids[row] == everything.ids[row][:k]).all()


def test_removed_documents_are_never_hits_in_any_strategy(corpus, monkeypatch):
    texts, _, ids = corpus
    index = indexed(corpus, monkeypatch, 1 << 24, 1.2, 16)
    index.search("w00", 1)
    index.remove(ids[::3])
    fresh = InvertedIndex()
    keep = np.arange(N_DOCS) % 3 != 0
    fresh.add(ids[keep], [text for text, kept in zip(texts, keep, strict=True) if kept])
    for scan_docs, lookup_cost in ((0, 0), (32, 16), (1 << 40, 1 << 40)):
        set_strategy(index, monkeypatch, scan_docs, lookup_cost)
        for k in (5, 100):
            one, other = index.search(QUERIES, k), fresh.search(QUERIES, k)
            assert (one.ids == other.ids).all() and (one.scores == other.scores).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_large_tfs_and_many_lengths_are_exceptions(monkeypatch, variant):
    rng = np.random.default_rng(4)
    counts = rng.integers(1, 700, 300)
    texts = [f"{'aa ' * int(n)} bb {'cc ' * (i % 2)}" for i, n in enumerate(counts)]
    monkeypatch.setattr(searching, "MAX_PAIRS", 600)
    index = InvertedIndex(variant=variant)
    index.add(None, texts)
    index.search("aa", 1)
    monkeypatch.setattr(searching, "MIN_BUDGET", 0)
    monkeypatch.setattr(searching, "BYTES_PER_POSTING", 0.0)
    encoded = InvertedIndex(variant=variant)
    encoded.add(None, texts)
    for k1 in (1.2, 0.0, 3.0):
        index.k1 = encoded.k1 = k1
        one, other = (i.search(["aa", "aa bb cc", "cc"], 300) for i in (index, encoded))
        assert (one.ids == other.ids).all() and (one.scores == other.scores).all()


def test_more_terms_than_bounds_can_tell_apart():
    names = [f"t{i:05}" for i in range(MAX_TERMS + 100)]
    texts = [" ".join(names), " ".join(names[:9]), "other", " ".join(names[::50]), " ".join(names)]
    index = InvertedIndex()
    index.add([5, 3, 2, 4, 1], texts)
    plain = PlainBm25()
    plain.add([5, 3, 2, 4, 1], texts)
    expected = plain.search(texts[0], 5)
    for k in (2, 5, 20):
        assert_hits(index.search(texts[0], k), expected[:k], k)
    assert index.search(texts[0], 5, filter=[3, 2]).ids.tolist() == [3, -1, -1, -1, -1]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_hits_are_those_of_the_reference_whatever_the_documents(data):
    """Many equal scores, several segments, removed documents, filters, any k and variant."""
    text = st.lists(st.sampled_from(["aa", "bb", "cc", "dd"]), max_size=5).map(" ".join)
    index = InvertedIndex(variant=data.draw(st.sampled_from(VARIANTS)))
    plain = PlainBm25(index.variant)
    for _ in range(data.draw(st.integers(1, 3))):
        texts = data.draw(st.lists(text, min_size=1, max_size=40))
        texts *= data.draw(st.sampled_from([1, 1, 4]))  # so many that the threshold rises early
        ids = data.draw(st.permutations(range(200)))[: len(texts)]
        index.add(ids, texts)
        plain.add(ids, texts)
    gone = data.draw(st.lists(st.sampled_from(sorted(plain.docs)), unique=True, max_size=10))
    index.remove(gone)
    plain.remove(gone)
    allowed = data.draw(st.none() | st.lists(st.integers(0, 210), unique=True, max_size=60))
    k = data.draw(st.integers(1, 70))
    queries = data.draw(st.lists(text, min_size=1, max_size=4))
    hits = index.search(queries, k, filter=allowed)
    for row, query in enumerate(queries):
        expected = plain.search(query, 200, lambda id_: allowed is None or id_ in allowed)
        assert_hits(Hits(hits.ids[row], hits.scores[row]), expected, k)


@kernel
def bounds_count(bounds, n, threshold):
    return window.bounds_count(bounds, n, threshold)


@kernel
def docs_select(bounds, n_docs, threshold, found):
    return window.docs_select(bounds, n_docs, threshold, found)


@kernel
def columns_largest(bounds, strips, width, largest):
    window.columns_largest(bounds, strips, width, largest)


@kernel
def columns_select(bounds, strips, width, largest, threshold, found):
    return window.columns_select(bounds, strips, width, largest, threshold, found)


@kernel
def docs_filter(bounds, docs, n, threshold, found):
    return window.docs_filter(bounds, docs, n, threshold, found)


@kernel
def kth_bound(bounds, n, k):
    return window.kth_bound(bounds, n, k)


@kernel
def strips_width(n_docs, strips):
    return window.strips_width(n_docs, strips)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 5000), st.integers(0, 2**32), st.sampled_from([1, 40, 65535]),
    st.integers(1, 65535), st.sampled_from([4, 32, 128]),
)  # fmt: skip
def test_documents_that_reach_a_threshold_are_listed(n, seed, most, threshold, strips):
    rng = np.random.default_rng(seed)
    threshold = np.uint16(min(threshold, most))
    bounds = np.zeros(1 << 16, np.uint16)
    bounds[:n] = rng.integers(0, most + 1, n)
    expected = np.flatnonzero(bounds >= threshold)
    found = np.empty(len(bounds) + 1, np.int32)
    assert docs_select(bounds, n, threshold, found) == len(expected)
    assert (found[: len(expected)] == expected).all()
    width = strips_width(n, strips)
    assert width % window.PAD == 0 and strips * width >= n
    largest = np.full(width + window.PAD, 7, np.uint16)
    columns_largest(bounds, strips, width, largest)
    assert (largest[:width] == bounds[: strips * width].reshape(strips, width).max(axis=0)).all()
    assert (largest[width:] == 7).all()
    listed = columns_select(bounds, strips, width, largest, threshold, found)
    assert (np.sort(found[:listed]) == expected).all()
    docs = rng.permutation(n).astype(np.int32)
    listed = docs_filter(bounds, docs, n, threshold, found)
    assert (np.sort(found[:listed]) == expected).all()
    assert bounds_count(bounds, n, threshold) == len(expected)
    k = int(rng.integers(1, n + 1))
    kth = kth_bound(bounds, n, k)
    assert np.count_nonzero(bounds[:n] >= kth) >= k
    assert np.count_nonzero(bounds[:n] >= kth + window.GRAIN) < k


@kernel
def lower_bound(values, low, high, value):
    return postings.lower_bound(values, low, high, value)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 2**63 - 1)), st.integers(0, 2**63 - 1), st.data())
def test_lower_bound_is_that_of_numpy(values, value, data):
    values = np.array(sorted(values), np.int64)
    low, high = sorted(data.draw(st.integers(0, len(values))) for _ in range(2))
    expected = low + np.searchsorted(values[low:high], value)
    assert lower_bound(values, low, high, value) == expected
