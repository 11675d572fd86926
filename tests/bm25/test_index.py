"""InvertedIndex: scores, ties, filters, adds and removes, hard texts, threads."""

import pickle
import threading

import numpy as np
import pytest

from llmds_nb import InvertedIndex, Tokenizer
from llmds_nb.text.tokenizer import TokenBatch

from .oracle import VARIANTS, PlainBm25, assert_hits

TEXTS = [
    "a red fox and a red car",
    "the red fox",
    "fox fox fox fox",
    "",
    "blue sky over the quick sea",
    "the of and",
    "\u00dcber den Wolken sea",
    "red " * 300 + "sea",
]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (0.0, 0.0), (2.0, 1.0)])
def test_scores_are_those_of_the_formula(variant, k1, b):
    plain = PlainBm25(variant, k1, b)
    index = InvertedIndex(variant=variant, k1=k1, b=b)
    ids = [7, 3, 1000, 5, 2, 2**62, 11, 0]
    plain.add(ids, TEXTS)
    index.add(ids, TEXTS)
    index.check()
    queries = [
        "red fox",
        "fox red fox fox",
        "sea",
        "wolken \u00fcber",
        "unknown",
        "",
        "the",
        "SEA!",
    ]
    batch = index.search(queries, 10)
    for row, query in enumerate(queries):
        expected = plain.search(query, 10)
        hits = index.search(query, 10)
        assert_hits(hits, expected, 10)
        assert (batch.ids[row] == hits.ids).all() and (batch.scores[row] == hits.scores).all()
        for id_, score in zip(hits.ids[: len(expected)], hits.scores, strict=False):
            explained = index.explain(query, int(id_))
            assert explained.score == score == sum(term.score for term in explained.terms)
    for term in ("red", "fox", "sea", "unknown"):
        postings = index.postings(term)
        assert list(zip(postings.ids, postings.tfs, strict=True)) == plain.postings(term)
        assert index.doc_freq(term) == len(plain.postings(term))


def test_parameters_can_change_at_any_time():
    index = InvertedIndex()
    index.add(range(len(TEXTS)), TEXTS)
    for variant in VARIANTS:
        index.k1, index.b, index.variant = 0.9, 0.4, variant
        plain = PlainBm25(variant, 0.9, 0.4)
        plain.add(range(len(TEXTS)), TEXTS)
        assert_hits(index.search("red fox sea", 5), plain.search("red fox sea", 5), 5)


def test_ties_go_to_the_smaller_id_across_segments():
    index = InvertedIndex()
    for id_ in (5, 3, 9, 1, 7):
        index.add(id_, "same words here")
    hits = index.search("words", 3)
    assert hits.ids.tolist() == [1, 3, 5]
    assert len(set(hits.scores)) == 1


def test_filters():
    index = InvertedIndex()
    index.add([1, 4, 6, 10**12], ["fox"] * 4)
    mask = np.zeros(6, bool)
    mask[[1, 2]] = True
    expected = {
        "mask": (mask, [1]),
        "ids": (np.array([10**12, 6, 5]), [6, 10**12]),
        "list": ([4, 1], [1, 4]),
        "bools": ([False, True], [1]),
        "nothing": (np.zeros(0, np.int64), []),
        "none": (None, [1, 4, 6, 10**12]),
    }
    for value, ids in expected.values():
        assert index.search("fox", 4, filter=value).ids.tolist() == ids + [-1] * (4 - len(ids))
    for threads in (1, 2):
        values = [value for value, _ in expected.values()]
        hits = index.search(["fox"] * 6, 4, filter=values, threads=threads)
        for row, (_, ids) in enumerate(expected.values()):
            assert hits.ids[row].tolist() == ids + [-1] * (4 - len(ids))
    with pytest.raises(ValueError, match="filter has 2 entries for 3 queries"):
        index.search(["fox"] * 3, filter=[mask, mask])


def test_large_tf_long_lists_and_many_lengths():
    rng = np.random.default_rng(1)
    index, plain = InvertedIndex(), PlainBm25()
    texts = ["aa " * int(n) + "bb " * (i % 3) for i, n in enumerate(rng.integers(0, 400, 700))]
    ids = rng.permutation(10_000)[:700].tolist()
    index.add(ids, texts)
    plain.add(ids, texts)
    index.check()
    assert_hits(index.search("bb aa", 700), plain.search("bb aa", 700), 700)


def test_queries_may_come_as_term_ids():
    index = InvertedIndex()
    index.add(range(len(TEXTS)), TEXTS)
    queries = ["red fox", "", "sea unknown sea", "the", "quick over red red"]
    mask = np.arange(len(TEXTS)) % 2 == 0
    tokens = index.tokenizer.encode(queries)
    wide = TokenBatch(tokens.ids.astype(np.int64), tokens.indptr.astype(np.int32).tolist())
    frozen = TokenBatch(*(array.copy() for array in tokens))
    for array in frozen:
        array.flags.writeable = False
    for given in (tokens, wide, frozen):
        for k in (1, 3, 20):
            for options in ({}, {"filter": mask}, {"filter": [mask, None] * 2 + [[1]]}):
                one, other = index.search(given, k, **options), index.search(queries, k, **options)
                assert (one.ids == other.ids).all() and (one.scores == other.scores).all()
    one, other = (index.search(batch, 4, threads=2) for batch in (tokens, queries))
    assert (one.ids == other.ids).all() and (one.scores == other.scores).all()
    assert index.search(index.tokenizer.encode("sea"), 2).ids.shape == (1, 2)
    assert index.search(index.tokenizer.encode([]), 2).ids.shape == (0, 2)
    with pytest.raises(ValueError, match=r"queries\.ids"):
        InvertedIndex().search(TokenBatch(*tokens), 1)
    assert (InvertedIndex().search(tokens, 1).ids == -1).all()


def test_the_ids_of_another_tokenizer_mean_its_terms():
    other = Tokenizer().fit("sea cat unknown fox red quick")
    index = InvertedIndex()
    index.add(range(len(TEXTS)), TEXTS)
    queries = ["red fox", "", "sea unknown sea", "nowhere quick"]
    a, b = index.search(other.encode(queries), 4), index.search(queries, 4)
    assert (a.ids == b.ids).all() and (a.scores == b.scores).all()
    index.remove(range(2))
    before = index.tokenizer.encode(queries)
    index.compact()
    assert index.tokenizer.encode(queries).ids.tolist() != before.ids.tolist()
    a, b = index.search(before, 4), index.search(queries, 4)
    assert (a.ids == b.ids).all() and (a.scores == b.scores).all()
    copied = pickle.loads(pickle.dumps(before))
    assert copied.ids.tolist() == before.ids.tolist() and copied.tokenizer is None
    with pytest.raises(ValueError, match=r"queries\.indptr"):
        index.search(before._replace(indptr=[0]), 4)


def test_threads_give_the_same_answer():
    rng = np.random.default_rng(2)
    texts = [" ".join(f"w{n}" for n in rng.zipf(1.4, 20) % 200) for _ in range(500)]
    index = InvertedIndex()
    index.add(None, texts[:400])
    index.add(None, texts[400:])
    alone = index.search(texts[:50], 7)
    together = index.search(texts[:50], 7, threads=3)
    assert (alone.ids == together.ids).all() and (alone.scores == together.scores).all()


def test_a_frozen_index_does_not_follow_later_writes():
    index = InvertedIndex()
    index.add(range(3), ["red fox", "red sea", "blue fox"])
    frozen = index._frozen()
    before = frozen.search("red fox", 3)
    index.add(3, "red red fox")
    index.remove(0)
    index.k1 = 0.5
    after = frozen.search("red fox", 3)
    assert (before.ids == after.ids).all() and (before.scores == after.scores).all()
    assert len(frozen) == 3 and frozen.k1 == 1.2
    assert index.search("red fox", 3).ids.tolist() == [3, 1, 2]


def test_small_adds_are_merged():
    index = InvertedIndex()
    for id_ in range(300):
        index.add(id_, f"word{id_ % 7} common")
        if id_ % 3 == 0:
            index.remove(id_)
    index.check()
    assert len(index) == 200
    assert index.stats().n_segments < 40
    index.compact()
    index.check()
    assert (index.stats().n_segments, index.stats().n_removed) == (1, 0)
    assert index.doc_freq("common") == 200


def test_ids_number_on_from_the_largest_ever_used():
    index = InvertedIndex()
    assert index.add(None, ["aa", "bb"]).tolist() == [0, 1]
    index.add(50, "cc")
    index.remove(50)
    assert index.add(None, "dd").tolist() == [51]
    index.add(2**63 - 1, "ee")
    with pytest.raises(ValueError, match="no ids are left for 1 more"):
        index.add(None, "ff")
    assert index.add(None, []).tolist() == []
    assert index.add([], []).tolist() == []


def test_an_empty_index():
    index = InvertedIndex()
    for _ in range(2):
        assert index.search("fox", 2).ids.tolist() == [-1, -1]
        assert index.search([], 3).ids.shape == (0, 3)
        assert index.search(["a", "b"], 3, threads=4).ids.shape == (2, 3)
        assert index.postings("fox").ids.tolist() == [] and index.doc_freq("fox") == 0
        index.compact()
        index.check()
        index.add(1, "the")
        index.remove(1)
    index.add(1, "")
    assert index.search("fox", 1).ids.tolist() == [-1] and len(index) == 1 and 1 in index


def test_postings_look_a_word_up_as_it_is_in_a_text():
    pytest.importorskip("Stemmer")
    index = InvertedIndex(tokenizer=Tokenizer(stemmer="english"))
    index.add([1, 2], ["Running far", "he runs"])
    assert index.doc_freq("running") == index.doc_freq("run") == index.doc_freq("RUNS") == 2
    assert index.doc_freq("running far") == 0
    assert [t.term for t in index.explain("the far runner run", 1).terms] == ["far", "run"]


def test_two_indexes_may_share_a_tokenizer():
    tokenizer = Tokenizer()
    one, two = InvertedIndex(tokenizer=tokenizer), InvertedIndex(tokenizer=tokenizer)
    one.add(1, "red fox")
    two.add(1, "blue fox")
    one.add(2, "green fox")
    assert one.search("blue green", 2).ids.tolist() == [2, -1]
    assert two.search("blue green", 2).ids.tolist() == [1, -1]
    for index in (one, two):
        index.check()


def test_hard_texts():
    index = InvertedIndex()
    texts = ["\ud800 lone\udfff surrogate", "nul\0byte", "x" * 2_000_000, "ab " * 400_000]
    index.add(None, texts)
    index.check()
    assert index.search("lone \ud800", 1).ids.tolist() == [0]
    assert index.search("byte", 1).ids.tolist() == [1]
    assert index.search("x" * 2_000_000, 1).ids.tolist() == [2]
    assert index.postings("ab").tfs.tolist() == [400_000]


def test_searches_beside_a_writer_see_whole_states():
    index = InvertedIndex()
    index.add(range(50), [f"stable word{i}" for i in range(50)])
    fresh, wrong, done = [], [], threading.Event()
    # Every state is 50 documents of two tokens and, at most, ten more: df tells which.
    for n in (50, 60):
        one = InvertedIndex()
        one.add(range(n), [f"stable word{i}" for i in range(n)])
        fresh.append(one.search("stable word7", 60))

    def search():
        while not done.is_set():
            hits = index.search("stable word7", 60)
            if not any(
                (hits.ids == f.ids).all() and (hits.scores == f.scores).all() for f in fresh
            ):
                wrong.append(hits)

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(60):
        index.add(range(50, 60), [f"stable word{i}" for i in range(50, 60)])
        index.remove(range(50, 60))
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong
    index.check()


def test_sizes():
    index = InvertedIndex()
    index.add(range(1000), ["common words of every document"] * 1000)
    stats = index.stats()
    assert (stats.n_docs, stats.n_terms, stats.n_tokens, stats.n_segments) == (1000, 4, 4000, 1)
    assert 400 < stats.postings_bytes < 1000 and stats.mean_length == 4.0
    assert index.nbytes == stats.nbytes > 0
    assert "1,000 documents, 4 terms, 1 segments" in repr(index)
