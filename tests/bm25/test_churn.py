"""InvertedIndex: however long documents come and go, its bytes stay near those of a fresh build."""

import copy
import threading

import numpy as np
import pytest

from llmds_nb import InvertedIndex, Tokenizer

N = 1000


def texts_of(n, generation, rng):
    """Documents of common words, and of some that no other generation has."""
    for i in range(n):
        common = " ".join(f"w{word}" for word in rng.zipf(1.3, 30) % 5000)
        yield f"{common} g{generation}x{i} g{generation}y{i % 100}"


def same_answers(one, other, *words):
    for query in (*words, "w1 w7 w30", "w2 g5x3 g5y7"):
        a, b = one.search(query, 20), other.search(query, 20)
        assert (a.ids == b.ids).all() and (a.scores == b.scores).all()


@pytest.mark.nightly
@pytest.mark.parametrize("step", [1, 50, N])
def test_bytes_are_bounded_through_many_turnovers(step, amount, figures):
    """However many: after `compact` the index is equal to a fresh one, in answers and bytes."""
    n, turnovers = amount(N, 10 * N), amount(5, 10)
    rng, index, largest = np.random.default_rng(step), InvertedIndex(), 0
    for generation in range(turnovers + 1):
        texts = list(texts_of(n, generation, rng))
        for start in range(0, n, step):
            index.add(range(start, start + step), texts[start : start + step])
        index.search("w1 w2", 10)
        largest = max(largest, index.nbytes) if generation else 0
    index.check()
    fresh = InvertedIndex()
    fresh.add(range(n), texts)
    same_answers(index, fresh)
    assert index.stats().n_terms < 3 * fresh.stats().n_terms
    assert largest < 4 * fresh.nbytes
    index.compact()
    same_answers(index, fresh)
    index.check()
    assert index.nbytes <= 1.01 * fresh.nbytes
    assert index.tokenizer.terms != fresh.tokenizer.terms  # in their old order
    assert sorted(index.tokenizer.terms) == sorted(fresh.tokenizer.terms)
    figures(times_the_bytes=round(index.nbytes / fresh.nbytes, 4))


def test_an_index_without_documents_keeps_nothing():
    index, empty = InvertedIndex(), InvertedIndex().nbytes
    index.add(None, (f"w{i} x{i}" for i in range(20_000)))
    index.search("w5", 1)
    full = index.nbytes
    index.remove(range(20_000))
    assert index.nbytes < full
    index.compact()
    index.check()
    assert index.stats().n_terms == len(index.tokenizer) == 0 and index.nbytes <= empty
    assert index.search("w5", 1).ids.tolist() == [-1]
    assert index.add(None, "w5 again").tolist() == [20_000]
    assert index.search("w5", 1).ids.tolist() == [20_000]


def test_bytes_after_compact_are_those_of_what_is_left():
    index = InvertedIndex()
    for i in range(5):
        index.add([i], "red fox " * 500)
    index.search("fox", 1)  # decoded lists
    index.compact()
    loaded = InvertedIndex.from_bytes(index.to_bytes())
    sizes = [one.nbytes - one.tokenizer.nbytes for one in (index, loaded)]
    assert sizes[0] == sizes[1]
    index.search("fox", 1)
    assert index.nbytes - index.tokenizer.nbytes > sizes[0]


def test_compact_takes_no_terms_from_a_tokenizer_that_others_use():
    tokenizer = Tokenizer()
    index, other = InvertedIndex(tokenizer=tokenizer), InvertedIndex(tokenizer=tokenizer)
    index.add([1, 2], ["red fox", "blue fox"])
    other.add([5], ["red sea"])
    index.remove(1)
    index.compact()
    assert tokenizer.terms == ["red", "fox", "blue", "sea"] and other.tokenizer is tokenizer
    assert index.tokenizer.terms == ["fox", "blue"] and index.tokenizer is not tokenizer
    assert index.search("blue", 1).ids.tolist() == [2]
    # The ids of either tokenizer are understood by both.
    for one, found in ((index, [2, -1]), (other, [-1, 5])):
        for encoder in (tokenizer, index.tokenizer):
            batch = encoder.encode(["blue fox", "sea"])
            expected = [-1, -1] if encoder is index.tokenizer and one is other else found
            assert one.search(batch, 1).ids.ravel().tolist() == expected
    index.add([3], ["red whale"])
    other.add([6], ["whale"])
    assert tokenizer.terms[-1] == "whale" and index.tokenizer.terms == [
        "fox",
        "blue",
        "red",
        "whale",
    ]
    for one in (index, other):
        assert one.doc_freq("whale") == 1
        one.check()


def test_compact_changes_no_tokenizer_without_unused_terms():
    index = InvertedIndex()
    index.add([1, 2, 3], ["red fox", "blue fox", "fox"])
    index.remove(3)
    tokenizer = index.tokenizer
    index.compact()
    assert index.tokenizer is tokenizer and index.stats().n_removed == 0


def test_searches_beside_compact_keep_the_old_contents():
    index = InvertedIndex()
    index.add(range(400), [f"w{i} w{i % 7} red" for i in range(400)])
    index.remove(range(0, 400, 2))
    frozen, expected = index._frozen(), index.search("w3 red w11", 10)
    wrong, stop = [], threading.Event()

    def search():
        while not stop.is_set():
            for batch in (["w3 red w11"], index.tokenizer.encode(["w3 red w11"])):
                hits = index.search(batch, 10)
                if not (hits.ids[0] == expected.ids).all():
                    wrong.append(hits)

    readers = [threading.Thread(target=search) for _ in range(3)]
    for reader in readers:
        reader.start()
    for i in range(30):
        index.add([1000 + i], [f"other{i}"])
        index.remove([1000 + i])
        index.compact()
    stop.set()
    for reader in readers:
        reader.join()
    assert not wrong
    hits = frozen.search("w3 red w11", 10)
    assert (hits.ids == expected.ids).all() and frozen.doc_freq("w3") == index.doc_freq("w3")
    assert len(frozen.tokenizer) == 400 + 1 + 1 and len(index.tokenizer) == 200 + 4 + 1
    index.check()


def test_a_copy_has_a_vocabulary_of_its_own():
    index = InvertedIndex()
    index.add([1, 2], ["red fox", "blue sea"])
    copied = copy.copy(index)
    index.remove(1)
    index.compact()
    copied.add([3], ["green"])
    assert index.tokenizer.terms == ["blue", "sea"]
    assert copied.tokenizer.terms == ["red", "fox", "blue", "sea", "green"]
    assert copied.search("red", 1).ids.tolist() == [1]


def test_the_terms_of_a_stream_cannot_be_dropped_while_it_is_read():
    index = InvertedIndex()
    index.add([1], "red")

    def texts():
        yield "blue"
        index.compact()

    with pytest.raises(RuntimeError, match="while texts are being added"):
        index.add(None, texts())
    assert index.tokenizer.terms == ["red"]
    index.compact()


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy])
def test_a_copy_of_a_batch_means_the_same_terms(how):
    index = InvertedIndex()
    index.add([1, 2, 3], ["old words", "red", "blue"])
    batch = how(index.tokenizer.encode(["red", "blue"]))
    index.remove(1)
    index.compact()  # terms are numbered anew
    assert index.search(batch, 1).ids.tolist() == [[2], [3]]
