"""InvertedIndex: what every method refuses, changing nothing."""

import pytest

from llmds_nb import InvertedIndex
from llmds_nb.text.tokenizer import TokenBatch


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
        (lambda i: i.search(TokenBatch([0], [0, 1]), 0), ValueError, "k must be >= 1, not 0"),
        (lambda i: i.search(TokenBatch([0, 2], [0, 2])), ValueError, r"ids must be in \[-1, 1\]"),
        (lambda i: i.search(TokenBatch([-2], [0, 1])), ValueError, r"in \[-1, 1\], not -2"),
        (lambda i: i.search(TokenBatch([0.5], [0, 1])), TypeError, "queries.ids must be integers"),
        (lambda i: i.search(TokenBatch([[0]], [0, 1])), ValueError, "ids must be one-dimensional"),
        (lambda i: i.search(TokenBatch(None, [0, 1])), TypeError, "queries.ids"),
        (lambda i: i.search(TokenBatch([0], [0, 2])), ValueError, "indptr must run from 0 to 1"),
        (lambda i: i.search(TokenBatch([0], [1, 1])), ValueError, "indptr must run from 0 to 1"),
        (lambda i: i.search(TokenBatch([0], [])), ValueError, "indptr must run from 0 to 1"),
        (lambda i: i.search(TokenBatch([0, 1], [0, 2, 1, 2])), ValueError, "must never fall"),
        (lambda i: i.search(TokenBatch([0], [0.0, 1.0])), TypeError, "indptr must be integers"),
        (lambda i: i.add([3], ["a"], progress=1), TypeError, "progress must be True or"),
        (lambda i: i.search("a", min_score=10**400), ValueError, "min_score must be within"),
        (lambda i: i.postings(5), TypeError, "term"),
        (lambda i: i.doc_freq(None), TypeError, "term"),
        (lambda i: i.explain("fox", 99), KeyError, "99"),
        (lambda i: i.explain("fox", -1), ValueError, "-1"),
        (lambda i: i.explain(["fox"], 1), TypeError, "query"),
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
