"""RetrievalPipeline beside its two halves alone and the usual plain-Python hybrid search."""

import json
import math
import os
import tempfile
from pathlib import Path

import numpy as np

from llmds_nb import InvertedIndex, RetrievalPipeline, Tokenizer

N, DIM, N_QUERIES, K, DEPTH = 5000, 64, 50, 10, 100
FUSIONS = ("convex", "minmax", "rrf", "dbsf")
DATA = Path(os.environ.get("LLMDS_DATA", Path(__file__).parents[2] / "shared" / "data")) / "vaswani"


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
    """NumPy for the vectors, dicts for BM25 and for the fusion: what people write by hand."""

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
    """50 different queries, one at a time, vectors supplied, no answer cached.

    "halves" is the two searches of which a hybrid search is made: the difference is the overhead.
    """

    params = (["RetrievalPipeline", "halves", "plain Python"],)
    param_names = ("impl",)

    def setup(self, impl):
        texts, vectors, queries, near = _corpus()
        self.asked = list(zip(queries, near, strict=True))
        if impl == "plain Python":
            self.one = _PlainPython(texts, vectors).search
        else:
            pipeline = RetrievalPipeline(cache_tokens=0)
            pipeline.add(None, texts, vectors)
            self.one = lambda query, vector: pipeline.search(query, K, vectors=vector)
            if impl == "halves":
                dense, sparse, ef = pipeline.dense, pipeline.sparse, DEPTH + DEPTH // 2
                self.one = lambda query, vector: (
                    dense.search(vector, DEPTH, ef=ef),
                    sparse.search(query, DEPTH),
                )
        self.one(*self.asked[0])

    def time_queries(self, impl):
        for query, vector in self.asked:
            self.one(query, vector)


class HotQuery:
    """1,000 times the same query, its answer kept; a dict is what it cannot beat."""

    params = (["RetrievalPipeline", "dict"],)
    param_names = ("impl",)

    def setup(self, impl):
        if impl == "dict":
            answers = {("red fox", 10): (np.zeros(10), np.zeros(10))}
            self.one = lambda query: tuple(array.copy() for array in answers[query, 10])
            return
        pipeline = RetrievalPipeline(
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

    def setup(self, mmap):
        texts, vectors, _, _ = _corpus()
        pipeline = RetrievalPipeline()
        pipeline.add(None, texts, vectors)
        self.folder = tempfile.TemporaryDirectory()
        self.path = os.path.join(self.folder.name, "pipeline")
        pipeline.save(self.path)
        RetrievalPipeline.load(self.path, mmap=mmap)

    def teardown(self, mmap):
        self.folder.cleanup()

    def time_open(self, mmap):
        RetrievalPipeline.load(self.path, mmap=mmap)

    def track_bytes_per_document(self, mmap):
        return os.path.getsize(self.path) / N


class Quality:
    """nDCG@10 on vaswani with MiniLM vectors; each half alone is the control. n/a without data."""

    params = (["convex", "minmax", "rrf", "dbsf", "dense", "sparse"],)
    param_names = ("fusion",)

    def setup_cache(self):
        try:
            tokenizer = Tokenizer(stemmer="english")
            documents, asked = (
                [json.loads(line) for line in (DATA / name).read_text().splitlines()]
                for name in ("corpus.jsonl", "queries.jsonl")
            )
        except (ImportError, FileNotFoundError):
            return {}
        gains = {query["_id"]: {} for query in asked}
        for row in (DATA / "qrels" / "test.tsv").read_text().splitlines()[1:]:
            query, document, gain = row.split("\t")
            gains[query][int(document)] = float(gain)
        vectors, near = (
            np.load(DATA / f"minilm_{name}.f16.npy").astype(np.float32)
            for name in ("docs", "queries")
        )
        first = RetrievalPipeline(sparse=InvertedIndex(tokenizer=tokenizer))
        ids = [int(document["_id"]) for document in documents]
        first.add(ids, [document["text"] for document in documents], vectors)
        queries = [query["text"] for query in asked]

        def ndcg(fusion, weight):
            found = first.search(queries, 10, vectors=near, fusion=fusion, weight=weight).ids
            discounts = 1 / np.log2(np.arange(10) + 2)
            shares = []
            for ranked, judged in zip(found.tolist(), gains.values(), strict=True):
                ideal = sorted(judged.values(), reverse=True)[:10]
                got = np.array([judged.get(id_, 0.0) for id_ in ranked]) @ discounts
                shares.append(got / (np.array(ideal) @ discounts[: len(ideal)]))
            return float(np.mean(shares))

        found = {fusion: ndcg(fusion, 0.7 if fusion == "convex" else 0.5) for fusion in FUSIONS}
        return found | {"dense": ndcg("rrf", 1.0), "sparse": ndcg("rrf", 0.0)}

    def setup(self, found, fusion):
        if not found:
            raise NotImplementedError

    def track_ndcg_at_10(self, found, fusion):
        return found[fusion]
