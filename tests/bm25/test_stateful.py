"""InvertedIndex against a slow reference and an index built anew, in any order of calls."""

import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from llmds_nb import InvertedIndex

from .oracle import VARIANTS, PlainBm25, assert_hits

small_texts = st.lists(
    st.sampled_from(["aa", "bb", "cc", "dd", "ee", "ff", "the", "\u00e9t\u00e9"]), max_size=8
).map(" ".join)


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
        assert_hits(hits, self.plain.search(query, 10**6), k)
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
