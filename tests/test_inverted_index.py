import gzip
import json
import math
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from oracles_inverted_index import PlainBm25, words

import llmds_nb
from llmds_nb import CorruptFileError, InvertedIndex, Tokenizer
from llmds_nb.kernels import varint

DATA = Path(os.environ.get("LLMDS_DATA", Path(__file__).parents[1] / "../shared/data"))
VARIANTS = ["lucene", "robertson", "atire", "bm25+", "bm25l"]
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
small_texts = st.lists(
    st.sampled_from(["aa", "bb", "cc", "dd", "ee", "ff", "the", "\u00e9t\u00e9"]), max_size=8
).map(" ".join)


def beir(name):
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    corpus = folder / "corpus.jsonl"
    opened = open(corpus) if corpus.exists() else gzip.open(f"{corpus}.gz", "rt")  # noqa: SIM115
    with opened as file:
        docs = [json.loads(line) for line in file]
    with open(folder / "queries.jsonl") as file:
        queries = [json.loads(line) for line in file]
    return docs, queries


def assert_hits(hits, expected, k):
    assert hits.ids.shape == hits.scores.shape == (k,)
    n = len(expected)
    np.testing.assert_allclose(hits.scores[:n], [s for _, s in expected], rtol=1e-9)
    # Twins that differ in the last bit only may rank either way against the plain reference.
    for got, (want, score) in zip(hits.ids.tolist(), expected, strict=False):
        if got != want:
            assert any(got == i and math.isclose(s, score, rel_tol=1e-12) for i, s in expected)
    assert hits.ids[n:].tolist() == [-1] * (k - n)
    assert np.isneginf(hits.scores[n:]).all()


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


def test_threads_give_the_same_answer():
    rng = np.random.default_rng(2)
    texts = [" ".join(f"w{n}" for n in rng.zipf(1.4, 20) % 200) for _ in range(500)]
    index = InvertedIndex()
    index.add(None, texts[:400])
    index.add(None, texts[400:])
    alone = index.search(texts[:50], 7)
    together = index.search(texts[:50], 7, threads=3)
    assert (alone.ids == together.ids).all() and (alone.scores == together.scores).all()


@given(st.lists(small_texts, max_size=12), small_texts, st.sampled_from(VARIANTS), st.data())
@settings(max_examples=60, deadline=None)
def test_any_split_into_segments_ranks_the_same(texts, query, variant, data):
    ids = data.draw(st.permutations(range(len(texts))))
    whole, parts = InvertedIndex(variant=variant), InvertedIndex(variant=variant)
    whole.add(range(len(texts)), [texts[i] for i in range(len(texts))])
    for i in ids:
        parts.add(i, texts[i])
    a, b = whole.search(query, 20), parts.search(query, 20)
    assert (a.ids == b.ids).all() and (a.scores == b.scores).all()
    parts.check()


class AddsAndRemoves(RuleBasedStateMachine):
    ids = st.integers(0, 40)

    @initialize(variant=st.sampled_from(VARIANTS))
    def start(self, variant):
        self.index, self.plain = InvertedIndex(variant=variant), PlainBm25(variant)

    @rule(docs=st.dictionaries(ids, small_texts, min_size=1, max_size=12))
    def add(self, docs):
        self.index.add(list(docs), list(docs.values()))
        self.plain.add(docs, docs.values())

    @precondition(lambda self: self.plain.docs)
    @rule(data=st.data())
    def remove(self, data):
        some = data.draw(st.lists(st.sampled_from(sorted(self.plain.docs)), unique=True))
        self.index.remove(some)
        self.plain.remove(some)

    @rule(absent=st.integers(41, 50))
    def remove_absent(self, absent):
        with pytest.raises(KeyError, match=str(absent)):
            self.index.remove([*self.plain.docs, absent])

    @rule()
    def compact(self):
        self.index.compact()

    @rule()
    def save_and_load(self):
        self.index = InvertedIndex._from_state(*self.index._state())

    @rule(query=small_texts, k=st.integers(1, 50))
    def search(self, query, k):
        hits = self.index.search(query, k)
        assert_hits(hits, self.plain.search(query, k), k)
        # Bit for bit what an index built from scratch answers.
        fresh = InvertedIndex(variant=self.index.variant)
        fresh.add(list(self.plain.docs), [" ".join(d.elements()) for d in self.plain.docs.values()])
        again = fresh.search(query, k)
        assert (again.ids == hits.ids).all() and (again.scores == hits.scores).all()

    @invariant()
    def sound(self):
        self.index.check()
        assert len(self.index) == len(self.plain.docs)
        assert self.index.doc_freq("aa") == len(self.plain.postings("aa"))
        postings = self.index.postings("bb")
        assert list(zip(postings.ids, postings.tfs, strict=True)) == self.plain.postings("bb")
        assert all((i in self.index) == (i in self.plain.docs) for i in (0, 20, 40))


TestAddsAndRemoves = AddsAndRemoves.TestCase
TestAddsAndRemoves.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


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


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda i: InvertedIndex(k1=-1), ValueError, "k1 must be >= 0, not -1"),
        (lambda i: InvertedIndex(k1=float("nan")), ValueError, "k1"),
        (lambda i: InvertedIndex(b=1.5), ValueError, "b must be <= 1, not 1.5"),
        (lambda i: InvertedIndex(b="x"), TypeError, "b must be a number"),
        (lambda i: InvertedIndex(variant="bm26"), ValueError, "not 'bm26'"),
        (lambda i: InvertedIndex(tokenizer=5), TypeError, "tokenizer"),
        (lambda i: setattr(i, "variant", None), ValueError, "not None"),
        (lambda i: i.add([1, 1], ["a", "b"]), ValueError, "1 stands twice"),
        (lambda i: i.add([1], ["a", "b"]), ValueError, "ids has 1 entries but texts has 2"),
        (lambda i: i.add([-1], ["a"]), ValueError, "not -1"),
        (lambda i: i.add([2**63], ["a"]), ValueError, str(2**63)),
        (lambda i: i.add([1.5], ["a"]), TypeError, "integers"),
        (lambda i: i.add([1], [None]), TypeError, "position 0"),
        (lambda i: i.add([1], b"a"), TypeError, "bytes"),
        (lambda i: i.remove([1, 99]), KeyError, "99"),
        (lambda i: i.remove([1, 1]), ValueError, "twice"),
        (lambda i: i.remove("1"), TypeError, "numbers"),
        (lambda i: i.search("a", 0), ValueError, "k must be >= 1, not 0"),
        (lambda i: i.search("a", 1.0), TypeError, "integer"),
        (lambda i: i.search(5), TypeError, "int"),
        (lambda i: i.search("a", threads=0), ValueError, "threads must be >= 1"),
        (lambda i: i.search("a", filter=[-1]), ValueError, "filter"),
        (lambda i: i.search("a", filter=1.5), TypeError, "filter"),
        (lambda i: i.postings(5), TypeError, "term"),
        (lambda i: i.doc_freq(None), TypeError, "term"),
        (lambda i: i.explain("fox", 99), KeyError, "99"),
        (lambda i: i.explain("fox", -1), ValueError, "-1"),
        (lambda i: i.explain(["fox"], 1), TypeError, "query"),
        (lambda i: -1 in i, ValueError, "-1"),
    ],
)
def test_bad_input_changes_nothing(call, error, message):
    index = InvertedIndex()
    index.add([1, 2], ["red fox", "fox"])
    before = index.search("fox red", 2)
    with pytest.raises(error, match=message):
        call(index)
    after = index.search("fox red", 2)
    assert (before.ids == after.ids).all() and (before.scores == after.scores).all()
    assert len(index) == 2 and len(index.tokenizer) == 2
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


@pytest.fixture
def saved(tmp_path):
    index = InvertedIndex(k1=0.9, b=0.4, variant="bm25+")
    index.add([2**40, 7, 3], ["red fox", "blue fox fox", "gone"])
    index.add([9, 3], ["red \u00fcber sea", "red red"])
    index.remove(9)
    path = tmp_path / "index.safetensors"
    index.save(path)
    return index, path


@pytest.mark.parametrize("mmap", [False, True])
def test_save_and_load(saved, mmap):
    index, path = saved
    for loaded in (InvertedIndex.load(path, mmap=mmap), llmds_nb.load(path, mmap=mmap)):
        loaded.check()
        for query in ("red fox", "blue", "sea", "gone"):
            a, b = index.search(query, 5), loaded.search(query, 5)
            assert (a.ids == b.ids).all() and (a.scores == b.scores).all()
        loaded.add(None, "a new red whale")
        assert loaded.search("whale", 1).ids.tolist() == [2**40 + 1]
        loaded.check()
    assert len(InvertedIndex.load(path)) == 3


def test_an_empty_index_is_saved_and_loaded(tmp_path):
    InvertedIndex().save(tmp_path / "empty")
    loaded = InvertedIndex.load(tmp_path / "empty", mmap=True)
    loaded.check()
    loaded.add(None, "fox")
    assert loaded.search("fox", 1).ids.tolist() == [0]


def test_callables_are_given_back_after_loading(tmp_path):
    index = InvertedIndex(tokenizer=str.split)
    index.add(1, "Red,fox the")
    index.save(tmp_path / "index")
    loaded = InvertedIndex.load(tmp_path / "index")
    with pytest.raises(ValueError, match=r"callable pattern.*supply"):
        loaded.search("the")
    loaded.tokenizer.supply(pattern=str.split)
    assert loaded.search("the", 1).ids.tolist() == [1]
    loaded.save(tmp_path / "index")


def test_truncated_and_flipped_files_are_refused(saved):
    _, path = saved
    whole = path.read_bytes()
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptFileError):
            InvertedIndex.load(path)
    for place in range(0, len(whole), 11):
        flipped = bytearray(whole)
        flipped[place] ^= 64
        path.write_bytes(flipped)
        with pytest.raises(CorruptFileError):
            InvertedIndex.load(path)


def test_flipped_bytes_never_reach_foreign_memory_when_unverified(saved):
    _, path = saved
    whole = path.read_bytes()
    for place in range(8 + int.from_bytes(whole[:8], "little"), len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 0x55
        path.write_bytes(flipped)
        try:
            index = InvertedIndex.load(path, mmap=True)
        except CorruptFileError:
            continue
        try:
            index.search("red fox sea", 3)
            index.postings("red")
            index.compact()
            index.remove(3)
            index.search("red fox", 3)
        except (UnicodeDecodeError, KeyError):
            pass


def test_a_newer_version_is_refused(saved, monkeypatch):
    index, path = saved
    monkeypatch.setattr(InvertedIndex, "_stored_version", 7)
    index.save(path)
    monkeypatch.undo()
    with pytest.raises(CorruptFileError, match="format 7"):
        InvertedIndex.load(path)


@given(st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_varints_hold_any_integer(values):
    values = np.array(values, np.int64)
    data = np.empty(varint.varints_size(values), np.uint8)
    varint.varints_pack(values, data)
    back = np.empty_like(values)
    assert varint.varints_unpack(data, back) and (back == values).all()
    assert not varint.varints_unpack(data, np.empty(len(values) + 1, np.int64))
    assert not len(values) or not varint.varints_unpack(data, back[:-1].copy())
    assert len(data) >= len(values) and (not len(data) or data[-1] < 128)


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


def test_quality_on_vaswani():
    pytest.importorskip("Stemmer")
    docs, queries = beir("vaswani")
    index = InvertedIndex(tokenizer=Tokenizer(stemmer="english"))
    index.add([int(doc["_id"]) for doc in docs], [doc["text"] for doc in docs])
    relevant = {query["_id"]: {} for query in queries}
    with open(DATA / "vaswani/qrels/test.tsv") as file:
        for line in list(file)[1:]:
            query, doc, gain = line.split()
            relevant[query][int(doc)] = int(gain)
    hits = index.search([query["text"] for query in queries], 100)
    ndcg, recall = [], []
    for query, ids in zip(queries, hits.ids.tolist(), strict=True):
        gains = relevant[query["_id"]]
        ideal = sorted(gains.values(), reverse=True)[:10]
        found = [gains.get(id_, 0) for id_ in ids[:10]]
        ndcg.append(
            sum(g / math.log2(i + 2) for i, g in enumerate(found))
            / sum(g / math.log2(i + 2) for i, g in enumerate(ideal))
        )
        recall.append(sum(id_ in gains for id_ in ids) / len(gains))
    assert np.mean(ndcg) == pytest.approx(0.436, abs=0.003)
    assert np.mean(recall) == pytest.approx(0.603, abs=0.003)


@pytest.mark.peer
def test_scores_agree_with_bm25s():
    bm25s = pytest.importorskip("bm25s")
    docs, queries = beir("vaswani")
    texts, queries = [d["text"] for d in docs[:2000]], [q["text"] for q in queries]
    index = InvertedIndex()
    index.add(None, texts)
    hits = index.search(queries, 10)
    peer = bm25s.BM25(k1=1.2, b=0.75, method="lucene", backend="numpy")
    peer.index([words(text) for text in texts], show_progress=False)
    _, scores = peer.retrieve([words(q) for q in queries], k=10, show_progress=False)
    np.testing.assert_allclose(np.maximum(hits.scores, 0), scores, rtol=2e-5, atol=1e-6)


def test_sizes():
    index = InvertedIndex()
    index.add(range(1000), ["common words of every document"] * 1000)
    stats = index.stats()
    assert (stats.n_docs, stats.n_terms, stats.n_tokens, stats.n_segments) == (1000, 4, 4000, 1)
    assert stats.postings_bytes == 4000 and stats.mean_length == 4.0
    assert index.nbytes == stats.nbytes > 0
    assert "1,000 documents, 4 terms, 1 segments" in repr(index)
