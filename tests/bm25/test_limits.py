"""Where a count of the index reaches the end of its type: it holds, or is refused.

Of int32: the documents of a segment, the terms of a document, a term's count in it, and the terms
of a vocabulary. Of 16 bits: the class of a length (`test_documents.py`) and the codes of decoded
lists. Ids and offsets are int64 (`test_streaming.py` has the last id).
"""

import numpy as np
import pytest

from llmds_nb import InvertedIndex, Tokenizer
from llmds_nb._core import validation
from llmds_nb.bm25 import segments

from .oracle import PlainBm25, assert_hits


def test_counts_and_lengths_beyond_16_bits():
    sizes = [65_534, 65_535, 65_536, 70_000, 200_000]
    texts = ["red " * n + "fox" for n in sizes] + ["red fox", "fox"]
    index, plain = InvertedIndex(), PlainBm25()
    index.add(None, texts)
    plain.add(range(len(texts)), texts)
    for query in ("red", "fox", "red fox"):
        assert_hits(index.search(query, 9), plain.search(query, 9), 9)
    assert index.postings("red").tfs.tolist() == [*sizes, 1]
    index.add(None, "fox red")
    for changed in (index, InvertedIndex.from_bytes(index.to_bytes())):
        changed.compact()
        changed.check()
        assert changed.explain("red", 3).terms[0].tf == 70_000
        assert changed.stats().n_tokens == sum(sizes) + len(sizes) + 5


def test_more_distinct_counts_than_decoded_lists_have_codes():
    rng = np.random.default_rng(0)
    counts = rng.permutation(np.repeat(np.arange(1, 401), 3))
    texts = [" ".join(["red"] * n + ["fox"] * (i % 9)) for i, n in enumerate(counts)]
    index, plain = InvertedIndex(), PlainBm25()
    index.add(None, texts)
    plain.add(range(len(texts)), texts)
    for query in ("red", "red fox"):
        assert_hits(index.search(query, 30), plain.search(query, 30), 30)


def test_a_text_of_too_many_terms_is_refused(monkeypatch):
    monkeypatch.setattr(segments, "MAX_LENGTH", 5)
    index = InvertedIndex()
    index.add([1], "one two three four five")
    with pytest.raises(ValueError, match="a text may have at most 5 terms, not 6"):
        index.add([2, 3], ["new", "one two three four five six"])
    assert len(index) == 1 and len(index.tokenizer) == 5
    index.check()


def test_too_many_documents_are_refused(monkeypatch):
    monkeypatch.setattr(segments, "MAX_DOCS", 10)
    index = InvertedIndex()
    for start in range(0, 7):
        index.add([start], f"doc{start}")
    index.add(range(10, 14), ["more"] * 4)
    with pytest.raises(ValueError, match="at most 10 documents, not 11"):
        index.compact()
    assert len(index) == 11 and index.search("doc3", 1).ids.tolist() == [3]
    index.remove([0, 1])
    index.compact()
    index.check()
    assert len(index) == 9


def test_a_vocabulary_of_too_many_terms_is_refused(monkeypatch):
    monkeypatch.setattr(validation, "INT32_MAX", 40)
    tokenizer = Tokenizer().fit(" ".join(f"w{i}" for i in range(30)))
    with pytest.raises(ValueError, match="a vocabulary holds at most 40 terms"):
        tokenizer.fit(" ".join(f"x{i}" for i in range(20)))
    assert len(tokenizer) == 30 and "x1" not in tokenizer
    tokenizer.check()
    assert len(tokenizer.fit("x1 x2")) == 32
