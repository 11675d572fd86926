"""Parts of a collection, searched under its statistics, rank as one index over all of it."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from llmds_nb import InvertedIndex, Tokenizer
from llmds_nb.bm25 import CollectionStatistics, merge_statistics

from .oracle import VARIANTS

WORDS = ["red", "fox", "sky", "night", "running", "caches", "x1", "of"]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join)


def best_of(parts, queries, k, statistics, **options):
    """The k best hits of all parts: lists of (-score, id), one for each query."""
    found = [part.search(queries, k, statistics=statistics, **options) for part in parts]
    merged = []
    for i in range(len(queries)):
        pairs = [
            (-score, id_)
            for hits in found
            for id_, score in zip(hits.ids[i].tolist(), hits.scores[i].tolist(), strict=True)
            if id_ != -1
        ]
        merged.append(sorted(pairs)[:k])
    return merged


def assert_as_one(parts, one, queries, k, **options):
    statistics = merge_statistics(part.statistics(queries) for part in parts)
    assert statistics == one.statistics(queries)
    merged = best_of(parts, queries, k, statistics, **options)
    hits = one.search(queries, k, **options)
    for pairs, ids, scores in zip(merged, hits.ids.tolist(), hits.scores.tolist(), strict=True):
        wanted = [(-score, id_) for id_, score in zip(ids, scores, strict=True) if id_ != -1]
        assert pairs == wanted  # equal floats: bit for bit, but for the sign of 0, which no hit has


@given(
    st.lists(TEXTS, min_size=1, max_size=40),
    st.integers(1, 4),
    st.sampled_from(VARIANTS),
    st.sampled_from([(1.2, 0.75), (0.0, 0.5), (2.0, 0.0), (0.7, 1.0)]),
    st.lists(st.one_of(TEXTS, st.just("unknown red red")), min_size=1, max_size=4),
    st.randoms(use_true_random=False),
)
def test_any_parts(texts, n_parts, variant, parameters, queries, random):
    k1, b = parameters
    one, *parts = (InvertedIndex(variant=variant, k1=k1, b=b) for _ in range(n_parts + 1))
    home = [random.randrange(n_parts) for _ in texts]
    for start in range(0, len(texts), 9):  # some segments
        ids = range(start, min(start + 9, len(texts)))
        one.add(ids, [texts[i] for i in ids])
        for p, part in enumerate(parts):
            own = [i for i in ids if home[i] == p]
            part.add(own, [texts[i] for i in own])
    for _ in range(2):
        assert_as_one(parts, one, queries, 5)
        assert_as_one(parts, one, queries, 50, filter=range(0, 40, 2))
        gone = [i for i in range(len(texts)) if i in one and random.random() < 0.4]
        one.remove(gone)
        for p, part in enumerate(parts):
            part.remove([i for i in gone if home[i] == p])
    for index in (one, *parts):
        index.compact()  # numbers terms anew, and forgets those without a document
    assert_as_one(parts, one, queries, 5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_lists_of_every_kind(variant):
    """Lists that are kept decoded, encoded ones, exceptions, several windows and segments."""
    rng = np.random.default_rng(7)
    one, *parts = (InvertedIndex(variant=variant) for _ in range(4))
    words = np.array([f"w{i}" for i in range(3000)])
    shares = 1 / np.arange(1, 3001)
    n = 30_000
    sizes = rng.geometric(0.1, n) % 300
    drawn = words[rng.choice(3000, sizes.sum(), p=shares / shares.sum())]
    texts = [" ".join(part) for part in np.split(drawn, np.cumsum(sizes)[:-1])]
    home = rng.integers(0, 3, n)
    for ids in (np.arange(10_000), np.arange(10_000, n)):
        one.add(ids, [texts[i] for i in ids])
        for p, part in enumerate(parts):
            own = ids[home[ids] == p]
            part.add(own, [texts[i] for i in own])
    gone = rng.choice(n, 4000, replace=False)
    one.remove(gone)
    for p, part in enumerate(parts):
        part.remove(gone[home[gone] == p])
    queries = [" ".join(rng.choice(words, 6, p=shares / shares.sum())) for _ in range(40)]
    for k in (10, 100):
        assert_as_one(parts, one, queries, k, threads=2)


def test_a_term_that_parts_do_not_have():
    one, left, right = (InvertedIndex() for _ in range(3))
    one.add([1, 2, 3], ["red fox", "red", "sky"])
    left.add([1, 2], ["red fox", "red"])
    right.add([3], ["sky"])
    empty = InvertedIndex()
    for query in ("red sky", "fox", "nothing", ""):
        assert_as_one([left, right, empty], one, [query], 3)
    assert empty.statistics("red") == CollectionStatistics(0, 0, {})
    assert left.statistics("red nothing sky").doc_freq == {"red": 2}


def test_terms_are_compared_as_texts():
    """Each part has a vocabulary of its own, and queries may come as the tokens of one."""
    tokenizer = Tokenizer(stopwords=None)
    parts = InvertedIndex(tokenizer=tokenizer), InvertedIndex(tokenizer=Tokenizer(stopwords=None))
    one = InvertedIndex(tokenizer=Tokenizer(stopwords=None))
    one.add([0, 1, 2], ["the red fox", "fox the fox", "a"])
    parts[0].add([0], ["the red fox"])
    parts[1].add([1, 2], ["fox the fox", "a"])
    statistics = merge_statistics(part.statistics("fox the the") for part in parts)
    tokens = tokenizer.encode(["fox the the"])
    for part in parts:
        hits = part.search(tokens, 3, statistics=statistics)
        wanted = one.search("fox the the", 3, filter=[i for i in range(3) if i in part])
        assert hits.scores[0].tobytes() == wanted.scores.tobytes()


def test_settings_may_change_between_searches():
    one, left, right = (InvertedIndex() for _ in range(3))
    one.add(range(6), ["red fox"] * 3 + ["red"] * 3)
    left.add(range(3), ["red fox"] * 3)
    right.add(range(3, 6), ["red"] * 3)
    for variant in (*VARIANTS, "lucene"):
        for index in (one, left, right):
            index.variant, index.b = variant, 0.3
        assert_as_one([left, right], one, ["red fox", "fox"], 6)
    before = one.search("red", 6).scores.tobytes()
    one.search(["red"], 6, statistics=CollectionStatistics(100, 900, {"red": 50}))
    assert one.search("red", 6).scores.tobytes() == before


@pytest.mark.parametrize(
    ("statistics", "error", "message"),
    [
        ((3, 6, {"red": 3}), TypeError, "must be CollectionStatistics"),
        (CollectionStatistics(2, 6, {"red": 2}), ValueError, "n_docs is 2.*alone has 3"),
        (CollectionStatistics(3, 5, {"red": 3}), ValueError, "n_tokens is 5.*alone has 6"),
        (CollectionStatistics(3, 6.5, {"red": 3}), TypeError, "n_tokens"),
        (CollectionStatistics(3, 6, {"red": 2}), ValueError, "2 documents hold 'red', which 3"),
        (CollectionStatistics(3, 6, {}), ValueError, "0 documents hold 'red', which 3"),
        (CollectionStatistics(3, 6, {"red": 4}), ValueError, "doc_freq"),
        (CollectionStatistics(3, 6, {"red": "3"}), TypeError, "doc_freq"),
        (CollectionStatistics(3, 6, {1: 3}), TypeError, "doc_freq"),
        (CollectionStatistics(3, 6, [("red", 3)]), TypeError, "doc_freq"),
    ],
)  # fmt: skip
def test_statistics_of_no_such_collection(statistics, error, message):
    index = InvertedIndex()
    index.add(range(3), ["red fox", "red sky", "red red"])
    for queries in ("red", ["red", "fox"], "red fox"):
        with pytest.raises(error, match=message):
            index.search(queries, 2, statistics=statistics)
    with pytest.raises(TypeError, match="CollectionStatistics"):
        merge_statistics([index.statistics("red"), None])


def test_statistics_without_a_dict_of_frequencies_are_not_merged():
    with pytest.raises(TypeError, match="doc_freq must be a dict"):
        merge_statistics([CollectionStatistics(1, 2, None)])
