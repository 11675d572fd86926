"""RetrievalPipeline against its two halves alone and a plain-Python hybrid search."""

import math
import os
import tempfile
from functools import cache

import numpy as np

from . import ours, peer
from ._support.corpora import DATA, STEMMED_WORDS, ndcg10, vaswani

N, DIM, N_QUERIES, K, DEPTH = 5000, 64, 50, 10, 100
FUSIONS = ("convex", "minmax", "rrf", "dbsf")


def _corpus(seed=0):
    """Texts of Zipf words around topics, and vectors around the same topics."""
    rng = np.random.default_rng(seed)
    topics = rng.standard_normal((100, DIM))
    of_text = rng.integers(0, 100, N)
    words = np.minimum(rng.zipf(1.3, (N, 40)), 20_000) + (of_text[:, None] * 7) % 500
    texts = [" ".join(f"w{word}" for word in row) for row in words.tolist()]
    vectors = topics[of_text] + 0.7 * rng.standard_normal((N, DIM))
    asked = rng.permutation(N)[:N_QUERIES]
    queries = [" ".join(texts[i].split()[:5]) for i in asked]
    near = vectors[asked] + 0.3 * rng.standard_normal((N_QUERIES, DIM))
    return texts, vectors.astype(np.float32), queries, near.astype(np.float32)


class _PlainPython:
    """NumPy for the vectors, dicts for BM25 and the fusion, as one writes it by hand."""

    def __init__(self, texts, vectors):
        self.units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        self.postings = {}
        self.lengths = [len(text.split()) for text in texts]
        for doc, text in enumerate(texts):
            for word in text.split():
                counts = self.postings.setdefault(word, {})
                counts[doc] = counts.get(doc, 0) + 1
        self.mean = sum(self.lengths) / len(texts)

    def search(self, query, vector):
        similar = self.units @ (vector / np.linalg.norm(vector))
        dense = {int(doc): float(similar[doc]) for doc in np.argsort(-similar)[:DEPTH]}
        sparse = {}
        for word in query.split():
            counts = self.postings.get(word, {})
            idf = math.log(1 + (N - len(counts) + 0.5) / (len(counts) + 0.5))
            for doc, tf in counts.items():
                norm = 1.2 * (0.25 + 0.75 * self.lengths[doc] / self.mean)
                sparse[doc] = sparse.get(doc, 0.0) + idf * tf / (tf + norm)
        sparse = dict(sorted(sparse.items(), key=lambda entry: -entry[1])[:DEPTH])
        high, top = max(dense.values()) + 1, max(sparse.values(), default=1.0)
        scores = {
            doc: 0.7 * (dense.get(doc, -1) + 1) / high + 0.3 * sparse.get(doc, 0) / top
            for doc in dense.keys() | sparse.keys()
        }
        return sorted(scores, key=lambda doc: (-scores[doc], doc))[:K]


class Search:
    """50 different queries, one at a time, with given vectors and no cached answers.

    "halves" runs the two searches of a hybrid search; the difference is the overhead of the rest.
    """

    params = (["llmds_nb", "halves", "plain Python"],)
    param_names = ("impl",)
    version = "1"

    def setup(self, impl):
        self.asked, self.one = self.built(impl)

    @staticmethod
    @cache
    def built(impl):
        texts, vectors, queries, near = _corpus()
        if impl == "plain Python":
            one = _PlainPython(texts, vectors).search
        else:
            pipeline = ours("RetrievalPipeline")(cache_tokens=0)
            pipeline.add(None, texts, vectors)

            def one(query, vector):
                return pipeline.search(query, K, vectors=vector)

            if impl == "halves":
                dense, sparse, ef = pipeline.dense, pipeline.sparse, DEPTH + DEPTH // 2

                def one(query, vector):
                    return dense.search(vector, DEPTH, ef=ef), sparse.search(query, DEPTH)

        asked = list(zip(queries, near, strict=True))
        one(*asked[0])
        return asked, one

    def time_queries(self, impl):
        for query, vector in self.asked:
            self.one(query, vector)


class SingleAdds:
    """500 documents, one an `add`, with a str id and metadata, into 5,000.

    "halves" adds their vectors and texts to an HNSW and an InvertedIndex.
    """

    params = (["llmds_nb", "halves"],)
    param_names = ("impl",)
    version = "1"
    number, repeat, warmup_time = 1, 5, 0.0

    def setup(self, impl):
        texts, vectors, _, _ = _corpus()
        metadata = [{"year": 2000 + i % 20, "source": f"file {i // 9}"} for i in range(N)]
        keys, start = [f"document {i}" for i in range(N)], N - 500
        if impl == "halves":
            dense, sparse = ours("HNSW")(DIM, metric="cosine"), ours("InvertedIndex")()
            dense.add(vectors[:start])
            sparse.add(None, texts[:start])

            def one(i):
                dense.add(vectors[i])
                sparse.add(None, texts[i])

        else:
            pipeline = ours("RetrievalPipeline")()
            described = {"metadata": metadata[:start]}
            pipeline.add(keys[:start], texts[:start], vectors[:start], **described)

            def one(i):
                pipeline.add(keys[i], texts[i], vectors[i], metadata=metadata[i])

        self.one, self.left = one, range(start, N)

    def time_adds(self, impl):
        for i in self.left:
            self.one(i)


class HotQuery:
    """1,000 times the same query with a cached answer; the control is a dict."""

    params = (["llmds_nb", "dict"],)
    param_names = ("impl",)
    version = "1"

    def setup(self, impl):
        if impl == "dict":
            answers = {("red fox", 10): (np.zeros(10), np.zeros(10))}
            self.one = lambda query: tuple(array.copy() for array in answers[query, 10])
            return
        pipeline = ours("RetrievalPipeline")(
            encoder=lambda texts: np.ones((len(texts), 2), np.float32), hot_threshold=1
        )
        pipeline.add([0, 1], ["red fox", "blue sky"])
        pipeline.search("red fox")
        self.one = pipeline.search

    def time_query(self, impl):
        for _ in range(1000):
            self.one("red fox")


class File:
    """Opening 5,000 documents."""

    params = ([True, False],)
    param_names = ("mmap",)
    version = "1"

    def setup(self, mmap):
        self.load = ours("RetrievalPipeline").load
        self.path = os.path.join(self.saved().name, "pipeline")
        self.load(self.path, mmap=mmap)

    @staticmethod
    @cache
    def saved():
        texts, vectors, _, _ = _corpus()
        pipeline = ours("RetrievalPipeline")()
        pipeline.add(None, texts, vectors)
        folder = tempfile.TemporaryDirectory()
        pipeline.save(os.path.join(folder.name, "pipeline"))
        return folder

    def time_open(self, mmap):
        self.load(self.path, mmap=mmap)

    def track_bytes_per_document(self, mmap):
        return os.path.getsize(self.path) / N

    track_bytes_per_document.unit = "bytes"


class Quality:
    """nDCG@10 on vaswani with MiniLM vectors; each half alone is the control. n/a without data."""

    params = ([*FUSIONS, "dense", "sparse"],)
    param_names = ("fusion",)
    version = "1"
    timeout = 300

    def setup_cache(self):
        try:
            return self.measured()
        except NotImplementedError:  # here it would be a failure, in setup it is n/a
            return {}

    @staticmethod
    def measured():
        peer("Stemmer")
        ids, texts, queries, gains = vaswani()
        vectors, near = (
            np.load(DATA / f"vaswani/minilm_{name}.f16.npy").astype(np.float32)
            for name in ("docs", "queries")
        )
        tokenizer = ours("Tokenizer")(**STEMMED_WORDS)
        sparse = ours("InvertedIndex")(tokenizer=tokenizer)
        pipeline = ours("RetrievalPipeline")(sparse=sparse)
        pipeline.add(ids, texts, vectors)

        def ndcg(fusion, weight):
            hits = pipeline.search(queries, 10, vectors=near, fusion=fusion, weight=weight)
            return ndcg10(hits.ids, gains)

        found = {fusion: ndcg(fusion, 0.7 if fusion == "convex" else 0.5) for fusion in FUSIONS}
        return found | {"dense": ndcg("rrf", 1.0), "sparse": ndcg("rrf", 0.0)}

    def setup(self, found, fusion):
        if not found:
            raise NotImplementedError("no data, or no PyStemmer")

    def track_ndcg_at_10(self, found, fusion):
        return found[fusion]

    track_ndcg_at_10.unit = "nDCG@10"
