"""InvertedIndex beside bm25s (its Numba backend) and rank_bm25, on the same tokens."""

import os
import re
from functools import cache
from typing import NamedTuple

import numpy as np

from . import ours, peer
from ._support.corpora import PLAIN_WORDS, STEMMED_WORDS, msdocs, msdocs_set, ndcg10, vaswani


@cache
def _tokenizer():
    return ours("Tokenizer")(**PLAIN_WORDS)


def split(text):
    """The words of our tokenizer, for every peer."""
    tokenizer = _tokenizer()
    words = re.findall(tokenizer.pattern, text.lower())
    return [word for word in words if word not in tokenizer.stopwords]


def empty_index():
    """An index of those words, whatever its default is."""
    return ours("InvertedIndex")(tokenizer=ours("Tokenizer")(**PLAIN_WORDS))


class Built(NamedTuple):
    """An index, and what it needs to search for texts."""

    split: object  # from texts to what `search` takes; timed
    number: object  # from texts to term ids, in the form that is fastest to search; not timed
    search: object  # from either and k to scores [n, k]


def build(impl, texts):
    """The index of an implementation over `texts`."""
    if impl == "llmds_nb":
        index = empty_index()
        index.add(None, texts)
        return Built(list, index.tokenizer.encode, lambda q, k: index.search(q, k).scores)

    def words(queries):
        return [split(query) for query in queries]

    tokens = words(texts)
    if impl == "bm25s":
        bm25s = peer("bm25s").BM25(k1=1.2, b=0.75, method="lucene", backend="numba")
        bm25s.index(tokens, show_progress=False)

        def number(queries):
            known = bm25s.vocab_dict  # there is no id for unknown words
            return [[known[word] for word in query if word in known] for query in words(queries)]

        return Built(words, number, lambda q, k: bm25s.retrieve(q, k=k, show_progress=False).scores)
    okapi = peer("rank_bm25").BM25Okapi(tokens, k1=1.2, b=0.75)

    def search(queries, k):
        scores = [okapi.get_scores(query) for query in queries]
        return np.stack([-np.sort(-s)[:k] for s in scores])

    return Built(words, words, search)


@cache
def built(impl, size="5k"):
    return build(impl, msdocs_set(size)[0])


class Search:
    """100 queries of `corpora.msdocs_set`: as texts, with tokenisation, or as term ids."""

    params = (
        ["llmds_nb", "bm25s", "rank_bm25"], ["short", "long"], [10, 1000], ["5k", "100k", "1M"],
        ["texts", "ids"],
    )  # fmt: skip
    param_names = ("impl", "queries", "k", "size", "form")
    version = "3"
    timeout = 900

    def setup(self, impl, queries, k, size, form):
        if impl == "rank_bm25" and (k > 10 or size != "5k" or form != "texts"):
            raise NotImplementedError
        if size == "1M" and "BM25_1M" not in os.environ:  # minutes, and gigabytes for bm25s
            raise NotImplementedError
        _, short, long = msdocs_set(size)
        n = 10 if impl == "rank_bm25" else 100  # rank_bm25 takes milliseconds a query
        queries = (short if queries == "short" else long)[:n]
        index = built(impl, size)
        self.search = index.search
        self.split = index.split if form == "texts" else lambda queries: queries
        self.queries = queries if form == "texts" else index.number(queries)
        self.one_by_one = [
            [query] if form == "texts" else index.number([query]) for query in queries
        ]
        self.search(self.split(self.queries), k)

    def time_batch(self, impl, queries, k, size, form):
        self.search(self.split(self.queries), k)

    def time_one_by_one(self, impl, queries, k, size, form):
        for query in self.one_by_one:
            self.search(self.split(query), k)


class Build:
    """Tokenising and indexing 5,016 passages."""

    params = (["llmds_nb", "bm25s", "rank_bm25"],)
    param_names = ("impl",)
    version = "1"

    def setup(self, impl):
        self.texts, _, _ = msdocs(step=10)
        build(impl, self.texts[:50])

    def time_build(self, impl):
        build(impl, self.texts)


class Change:
    """One document added and one removed, in an index of 5,016."""

    version = "1"
    number = 1

    def setup(self):
        texts, _, _ = msdocs(step=10)
        self.index = empty_index()
        self.index.add(None, texts)
        self.texts = texts[:100]

    def time_add_and_remove_100(self):
        for n, text in enumerate(self.texts):
            self.index.add(10_000 + n, text)
            self.index.remove(n)


class Size:
    """Bytes a posting: encoded lists; all arrays of a file but the vocabulary; in memory."""

    params = (["5k", "100k", "1M"],)
    param_names = ("size",)
    version = "2"
    timeout = 900

    def setup(self, size):
        if size == "1M" and "BM25_1M" not in os.environ:
            raise NotImplementedError
        self.index = empty_index()
        self.index.add(None, msdocs_set(size)[0])
        self.index.compact()
        self.index.search("any", 1)  # decodes the longest lists
        (segment,) = self.index._snapshot.segments
        self.postings = int(segment.entries.sum(dtype=np.int64))

    def track_payload(self, size):
        return self.index.stats().postings_bytes / self.postings

    def track_file(self, size):
        arrays, _ = self.index._state()
        kept = [a.nbytes for name, a in arrays.items() if not name.startswith("tokenizer")]
        return sum(kept) / self.postings

    def track_memory(self, size):
        return (self.index.nbytes - self.index.tokenizer.nbytes) / self.postings

    track_payload.unit = track_file.unit = track_memory.unit = "B"


class Quality:
    """nDCG@10 on vaswani with Snowball English; .436 is the reference."""

    params = (["lucene", "robertson", "atire", "bm25+", "bm25l"],)
    param_names = ("variant",)
    version = "1"

    def setup(self, variant):
        peer("Stemmer")
        tokenizer = ours("Tokenizer")(**STEMMED_WORDS)
        ids, texts, self.queries, self.gains = vaswani()
        self.index = ours("InvertedIndex")(variant=variant, tokenizer=tokenizer)
        self.index.add(ids, texts)

    def track_ndcg10(self, variant):
        return ndcg10(self.index.search(self.queries, 10).ids, self.gains)

    track_ndcg10.unit = "nDCG@10"


class Stream:
    """Indexing passages from a generator; 100,000 texts have four million tokens (42 MB).

    0 texts measure the process by itself; peaks beyond that are to stay below three times the index
    and 200 MB.
    """

    params = ([0, 100_000, 400_000, 1_600_000],)
    param_names = ("texts",)
    version = "1"
    timeout = 600

    def setup(self, n):
        if n > 400_000 and "BM25_1M" not in os.environ:  # a minute
            raise NotImplementedError
        self.passages, _, _ = msdocs(step=10)
        self.add(20_000)  # compiles all that is used below
        self.index.add(None, "another segment")
        self.index.compact()

    def add(self, n):
        passages = self.passages
        self.index = empty_index()
        self.index.add(None, (f"page{i % 1000} {passages[i % len(passages)]}" for i in range(n)))

    def peakmem_add(self, n):
        self.add(n)

    def track_index(self, n):
        self.add(n)
        return self.index.nbytes

    track_index.unit = "B"
