"""Tokenizer beside that of bm25s and a bare `re.findall` (the control: no code of ours)."""

import re

from . import ours, peer
from ._support.corpora import msdocs


class Tokenize:
    """5,016 passages (2 MB) to token ids with a new vocabulary, as building an index does."""

    params = (["llmds_nb", "bm25s", "re"], [False, True])
    param_names = ("impl", "stem")
    version = "1"

    def setup(self, impl, stem):
        self.texts, _, _ = msdocs(step=10)
        if stem:
            stemmers = peer("Stemmer")
        if impl == "llmds_nb":
            made = ours("Tokenizer")
            self.run = lambda: made(stemmer="english" if stem else None).fit(self.texts)
        elif impl == "bm25s":
            made = peer("bm25s.tokenization").Tokenizer
            stemmer = stemmers.Stemmer("english") if stem else None
            self.run = lambda: made(stemmer=stemmer, stopwords="en").tokenize(
                self.texts, show_progress=False, return_as="tuple"
            )
        elif stem:
            raise NotImplementedError
        else:
            split = re.compile(r"\b\w\w+\b").findall
            self.run = lambda: [split(text.lower()) for text in self.texts]
        self.run()

    def time_fit(self, impl, stem):
        self.run()

    def track_megabytes_per_second(self, impl, stem):
        from time import process_time

        rounds = []
        for _ in range(3):
            start = process_time()
            self.run()
            rounds.append(process_time() - start)
        return sum(map(len, self.texts)) / 1e6 / min(rounds)

    track_megabytes_per_second.unit = "MB/s"
