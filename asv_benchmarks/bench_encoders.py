"""LsaEncoder beside SciPy's sparse SVD of the same matrix, StaticEncoder beside wordllama."""

import os
from functools import cache
from pathlib import Path

import numpy as np

from . import ours, peer
from ._support.corpora import PLAIN_WORDS, STEMMED_WORDS, msdocs, ndcg10, vaswani


def lsa_encoder():
    """One of 64 directions that splits words as all of history does."""
    return ours("LsaEncoder")(64, tokenizer=ours("Tokenizer")(**PLAIN_WORDS))


class Fit:
    """5,016 passages of msdocs to 64 directions."""

    params = (["llmds_nb", "scipy svds"],)
    param_names = ("impl",)
    version = "1"

    def setup(self, impl):
        self.texts, _, _ = msdocs(step=10)
        if impl == "llmds_nb":
            self.run = lambda: lsa_encoder().fit(self.texts)
        else:
            made, tf_idf = ours("Tokenizer"), peer("llmds_nb.text.lsa")._tf_idf
            svds = peer("scipy.sparse.linalg").svds

            def run():
                tokenizer = made(**PLAIN_WORDS).fit(self.texts)
                matrix, _ = tf_idf(tokenizer.encode(self.texts), len(tokenizer))
                return svds(matrix, k=64, random_state=0)

            self.run = run

    def time_fit(self, impl):
        self.run()


class Encode:
    """Vectors of the same passages, and of queries; the fit is not timed."""

    version = "1"

    def setup(self):
        self.texts, self.queries, _ = msdocs(step=10)
        self.encoder = self.fitted()

    @staticmethod
    @cache
    def fitted():
        return lsa_encoder().fit(msdocs(step=10)[0])

    def time_encode_passages(self):
        self.encoder.encode(self.texts)

    def time_encode_100_queries_one_by_one(self):
        for query in self.queries[:100]:
            self.encoder.encode(query)


class Quality:
    """nDCG@10 of the vectors alone on vaswani, where LSA is known to be weak (0.27)."""

    version = "1"

    def setup(self):
        peer("Stemmer")
        tokenizer = ours("Tokenizer")(**STEMMED_WORDS)
        self.ids, texts, queries, self.gains = vaswani()
        encoder = ours("LsaEncoder")(256, tokenizer=tokenizer).fit(texts)
        self.similar = encoder.encode(queries) @ encoder.encode(texts).T

    def track_ndcg10(self):
        best = np.argsort(-self.similar, axis=1, kind="stable")[:, :10]
        return ndcg10(np.array(self.ids)[best], self.gains)

    track_ndcg10.unit = "nDCG@10"


class Static:
    """Static vectors of 5,016 passages of msdocs, and of 100 queries one by one.

    "wordllama" is its own `embed`, on the same two files, in one thread.
    """

    params = (["llmds_nb", "wordllama"],)
    param_names = ("impl",)
    version = "1"

    def setup(self, impl):
        self.texts, self.queries, _ = msdocs(step=10)
        self.encode = static(impl)

    def time_encode_passages(self, impl):
        self.encode(self.texts)

    def time_encode_100_queries_one_by_one(self, impl):
        for query in self.queries[:100]:
            self.encode(query)


@cache
def static(impl):
    """The function from texts to unit vectors."""
    peer("wordllama.inference")  # which has the files of both
    encoder = ours("StaticEncoder")(idf=impl == "llmds_nb")
    if impl == "llmds_nb":
        return encoder.fit(msdocs(step=10)[0]).encode
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    (path,) = files_of_tokenizer()
    tokenizer = peer("tokenizers").Tokenizer.from_file(str(path))
    rows = encoder._model.handle.state.rows
    model = peer("wordllama.inference").WordLlamaInference(rows, tokenizer)
    return lambda texts: model.embed(texts, norm=True)


def files_of_tokenizer():
    """Where the wheel keeps it."""
    folder = Path(peer("wordllama").__file__).parent
    return folder.rglob("l2_supercat_tokenizer_config.json")


class StaticQuality:
    """nDCG@10 of static vectors alone on vaswani, and fused with stemmed BM25 (0.376, 0.457)."""

    version = "1"

    def setup(self):
        peer("Stemmer")
        peer("wordllama")
        self.ids, texts, self.queries, self.gains = vaswani()
        tokenizer = ours("Tokenizer")(stemmer="english")
        sparse = ours("InvertedIndex")(tokenizer=tokenizer)
        self.pipeline = ours("RetrievalPipeline")(encoder="static", sparse=sparse)
        self.pipeline.add(self.ids, texts)

    def track_ndcg10(self):
        vectors = self.pipeline.encoder.encode(self.queries)
        found = self.pipeline.dense.search(vectors, 10, exact=True).ids
        return ndcg10(found, self.gains)

    def track_ndcg10_fused(self):
        return ndcg10(self.pipeline.search(self.queries, 10).ids, self.gains)

    track_ndcg10.unit = track_ndcg10_fused.unit = "nDCG@10"
