"""InvertedIndex: how segments keep ids, lengths and removals in few bytes changes no answer."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from llmds_nb import InvertedIndex
from llmds_nb.bm25 import segments
from llmds_nb.bm25.index import Hits
from llmds_nb.bm25.kernels.postings import NO_CLASS

from .oracle import PlainBm25, assert_hits


class Kept:
    """As much of a segment as holds ids."""

    def __init__(self, ids):
        self.ids, self.classes = segments.short_ids(ids), np.zeros(len(ids), np.uint16)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 2**62), st.lists(st.sampled_from([1, 1, 1, 1, 2, 1000]), max_size=30), st.data()
)
def test_short_ids_represent_the_ids(first, steps, data):
    ids = first + np.cumsum([0, *steps], dtype=np.int64)
    kept = Kept(ids)
    follow = all(step == 1 for step in steps)
    assert len(kept.ids) == (1 if follow else len(ids))
    assert (segments.ids_of(kept) == ids).all() and segments.last_id(kept) == ids[-1]
    docs = np.array(data.draw(st.lists(st.integers(0, len(ids) - 1))), np.int64)
    assert (segments.ids_at(kept, docs) == ids[docs]).all()
    wanted = np.unique(np.concatenate([ids - 1, ids, ids + 1, [0, 2**63 - 1]]))
    wanted = wanted[wanted >= 0]
    for side in ("left", "right"):
        below = segments.docs_below(kept, wanted, side=side)
        assert (below == np.searchsorted(ids, wanted, side=side)).all()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=4)))
    joined = segments.IdsJoined(len(ids))
    for part in np.split(ids, cuts):
        joined.add(part)
    assert (joined.made() == kept.ids).all()


def test_repeated_ids_are_not_taken_as_consecutive():
    assert segments.short_ids(np.array([4, 4, 6])).tolist() == [4, 4, 6]
    with pytest.raises(ValueError, match="4 stands twice"):
        InvertedIndex().add(iter([4, 6, 4]), ["aa", "bb", "cc"])


def test_default_ids_take_no_memory_and_removals_none_before_the_first():
    index = InvertedIndex()
    for n in (5, 3, 4):
        index.add(None, ["red fox"] * n)
    assert [len(s.ids) for s in index._contents.snapshot.segments] == [1, 1, 1]
    index.compact()
    (segment,) = index._contents.snapshot.segments
    assert segment.ids.tolist() == [0] and len(segment.dead) == 0 and len(segment.classes) == 12
    before = index.nbytes
    index.remove([3, 11])
    assert index.nbytes == before + 12 + 4 * 2  # which are dead, and the live ones of each term
    assert index.stats().n_removed == 2
    assert index.search("fox", 12).ids.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, -1, -1]
    assert index.postings("red").ids.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]
    index.compact()
    assert len(index._contents.snapshot.segments[0].ids) == 10
    index.check()


def three_length_classes(lengths):
    """As `segments.length_classes` would with three classes only."""
    distinct, classes = np.unique(lengths, return_inverse=True)
    classes = np.where(classes < 3, classes, NO_CLASS).astype(np.uint16)
    docs = np.flatnonzero(classes == NO_CLASS)
    return classes, distinct[:3].astype(np.int32), np.array([docs, lengths[docs]], np.int32)


def test_more_lengths_than_length_classes(monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    words = ["aa", "bb", "cc", "dd"]
    texts = [" ".join(rng.choice(words, n)) for n in rng.integers(0, 60, 300)]
    usual = InvertedIndex()
    usual.add(None, texts[:200])
    usual.add(range(190, 290), texts[200:])
    monkeypatch.setattr(segments, "length_classes", three_length_classes)
    index, plain = InvertedIndex(), PlainBm25()
    index.add(None, texts[:200])
    index.add(range(190, 290), texts[200:])
    plain.add(range(200), texts[:200])
    plain.add(range(190, 290), texts[200:])
    index.save(tmp_path / "index")
    for one in (index, InvertedIndex.load(tmp_path / "index")):
        one.check()
        assert sum(s.long_docs.shape[1] for s in one._contents.snapshot.segments) > 200
        assert one.stats().n_tokens == usual.stats().n_tokens
        for k in (3, 40):
            got, same = one.search(words, k), usual.search(words, k)
            assert (got.ids == same.ids).all() and (got.scores == same.scores).all()
            for row, word in enumerate(words):
                assert_hits(Hits(got.ids[row], got.scores[row]), plain.search(word, k), k)
        for id_ in (0, 195, 289):
            assert one.explain("aa bb", id_) == usual.explain("aa bb", id_)
    index.compact()
    index.check()
