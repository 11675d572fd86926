"""LsaEncoder beside SciPy's own sparse SVD of the same TF-IDF matrix."""

from functools import cache

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
