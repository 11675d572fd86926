"""LsaEncoder beside SciPy's own sparse SVD of the same TF-IDF matrix."""

import numpy as np

from llmds_nb import LsaEncoder, Tokenizer
from llmds_nb.encoders import _tf_idf

from .corpora import msdocs, ndcg10, vaswani


class Fit:
    """5,016 passages of msdocs to 64 directions."""

    params = (["llmds_nb", "scipy svds"],)
    param_names = ("impl",)
    timeout = 120

    def setup(self, impl):
        self.texts, _, _ = msdocs(step=10)
        if impl == "llmds_nb":
            self.run = lambda: LsaEncoder(64).fit(self.texts)
        else:
            from scipy.sparse.linalg import svds

            def run():
                tokenizer = Tokenizer().fit(self.texts)
                matrix, _ = _tf_idf(tokenizer.encode(self.texts), len(tokenizer))
                return svds(matrix, k=64, random_state=0)

            self.run = run
        LsaEncoder._warmup()

    def time_fit(self, impl):
        self.run()


class Encode:
    def setup(self):
        self.texts, self.queries, _ = msdocs(step=10)
        self.encoder = LsaEncoder(64).fit(self.texts)
        self.encoder.encode(self.texts)

    def time_encode_passages(self):
        self.encoder.encode(self.texts)

    def time_encode_100_queries_one_by_one(self):
        for query in self.queries[:100]:
            self.encoder.encode(query)


class Quality:
    """nDCG@10 of the vectors alone on vaswani, where LSA is known to be weak (.27)."""

    def setup(self):
        try:
            tokenizer = Tokenizer(stemmer="english")
        except ImportError:
            raise NotImplementedError from None
        self.ids, texts, queries, self.gains = vaswani()
        encoder = LsaEncoder(256, tokenizer=tokenizer).fit(texts)
        self.similar = encoder.encode(queries) @ encoder.encode(texts).T

    def track_ndcg10(self):
        best = np.argsort(-self.similar, axis=1, kind="stable")[:, :10]
        return ndcg10(np.array(self.ids)[best], self.gains)

    track_ndcg10.unit = "nDCG@10"
