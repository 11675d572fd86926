"""InvertedIndex beside bm25s (its Numba backend) and rank_bm25, on the same tokens."""

from llmds_nb import InvertedIndex, Tokenizer

from .corpora import msdocs, ndcg10, vaswani


def split(text, _tokenizer=Tokenizer()):  # noqa: B008  one splitter for every peer
    return [word for word in _tokenizer._split(text.lower()) if word not in _tokenizer.stopwords]


def build(impl, texts):
    """A function from (list of queries, k) to scores [n, k]."""
    if impl == "llmds_nb":
        index = InvertedIndex()
        index.add(None, texts)
        return lambda queries, k: index.search(queries, k).scores
    tokens = [split(text) for text in texts]
    try:
        if impl == "bm25s":
            import bm25s

            peer = bm25s.BM25(k1=1.2, b=0.75, method="lucene", backend="numba")
            peer.index(tokens, show_progress=False)
            return lambda queries, k: (
                peer.retrieve([split(query) for query in queries], k=k, show_progress=False).scores
            )
        import numpy as np
        from rank_bm25 import BM25Okapi
    except ImportError:
        raise NotImplementedError from None
    peer = BM25Okapi(tokens, k1=1.2, b=0.75)

    def search(queries, k):
        scores = [peer.get_scores(split(query)) for query in queries]
        return np.stack([-np.sort(-s)[:k] for s in scores])

    return search


class Search:
    """100 queries, tokenising included, over every tenth passage of msdocs (5,016)."""

    params = (["llmds_nb", "bm25s", "rank_bm25"], ["short", "long"], [10, 1000])
    param_names = ("impl", "queries", "k")

    def setup(self, impl, queries, k):
        texts, short, long = msdocs(step=10)
        if impl == "rank_bm25" and k > 10:
            raise NotImplementedError
        n = 10 if impl == "rank_bm25" else 100  # it needs milliseconds for each
        self.queries = (short if queries == "short" else long)[:n]
        self.search = build(impl, texts)
        self.search(self.queries, k)

    def time_batch(self, impl, queries, k):
        self.search(self.queries, k)

    def time_one_by_one(self, impl, queries, k):
        for query in self.queries:
            self.search([query], k)


class Build:
    """Tokenising and indexing 5,016 passages."""

    params = (["llmds_nb", "bm25s", "rank_bm25"],)
    param_names = ("impl",)

    def setup(self, impl):
        self.texts, _, _ = msdocs(step=10)
        build(impl, self.texts[:50])

    def time_build(self, impl):
        build(impl, self.texts)


class Change:
    """One document added and one removed, in an index of 5,016."""

    number = 1
    rounds = 3

    def setup(self):
        texts, _, _ = msdocs(step=10)
        self.index = InvertedIndex()
        self.index.add(None, texts)
        self.texts = texts[:100]
        InvertedIndex._warmup()

    def time_add_and_remove_100(self):
        for n, text in enumerate(self.texts):
            self.index.add(10_000 + n, text)
            self.index.remove(n)


class Size:
    def setup(self):
        self.index = InvertedIndex()
        self.index.add(None, msdocs(step=10)[0])

    def track_bytes_per_posting(self):
        (segment,) = self.index._snapshot.segments
        return self.index.stats().postings_bytes / int(segment.live.sum())

    track_bytes_per_posting.unit = "B"


class Quality:
    """nDCG@10 on vaswani with Snowball English; .436 is the reference."""

    params = (["lucene", "robertson", "atire", "bm25+", "bm25l"],)
    param_names = ("variant",)

    def setup(self, variant):
        try:
            tokenizer = Tokenizer(stemmer="english")
        except ImportError:
            raise NotImplementedError from None
        ids, texts, self.queries, self.gains = vaswani()
        self.index = InvertedIndex(variant=variant, tokenizer=tokenizer)
        self.index.add(ids, texts)

    def track_ndcg10(self, variant):
        return ndcg10(self.index.search(self.queries, 10).ids, self.gains)

    track_ndcg10.unit = "nDCG@10"
