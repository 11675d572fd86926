"""Tokenizer beside that of bm25s and a bare `re.findall` (the control: no code of ours)."""

import re

from . import ours, peer
from ._support.corpora import PATTERN, PLAIN_WORDS, STEMMED_WORDS, msdocs


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
            options = STEMMED_WORDS if stem else PLAIN_WORDS
            self.run = lambda: made(**options).fit(self.texts)
        elif impl == "bm25s":
            made = peer("bm25s.tokenization").Tokenizer
            stemmer = stemmers.Stemmer("english") if stem else None
            self.run = lambda: made(stemmer=stemmer, stopwords="en").tokenize(
                self.texts, show_progress=False, return_as="tuple"
            )
        elif stem:
            raise NotImplementedError
        else:
            split = re.compile(PATTERN).findall
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


# A sentence or two in each; the texts of a language differ by a number.
SENTENCES = {
    "English": "The quick brown fox jumps over the lazy dog, and doesn't look back at 3.5 km. ",
    "Chinese": "\u5e8a\u524d\u660e\u6708\u5149\uff0c\u7591\u662f\u5730\u4e0a\u971c\u3002 ",
    "Russian": (
        "\u0448\u0438\u0440\u043e\u043a\u0430\u044f \u0420\u0435\u043a\u0430 \u0438 "
        "\u043b\u0435\u0441. "
    ),
    "Hindi": (
        "\u0939\u093f\u0928\u094d\u0926\u0940 \u092d\u093e\u0930\u0924 \u0915\u0940 "
        "\u092d\u093e\u0937\u093e. "
    ),
    "French": "Voix ambigu\u00eb d'un c\u0153ur qui pr\u00e9f\u00e8re les kiwis go\u00fbt\u00e9s. ",
    "French NFD": (
        "Voix ambigue\u0308 d'un coeur qui pre\u0301fe\u0300re les kiwis gou\u0302te\u0301s. "
    ),
    "Thai": (
        "\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22\u0e17\u0e33\u0e07\u0e32"
        "\u0e19\u0e19\u0e49\u0e33. "
    ),
}


class Scripts:
    """2 MB of text in one language to ids, by a tokenizer that knows its terms; one at a time."""

    params = (list(SENTENCES),)
    param_names = ("language",)
    version = "1"

    def setup(self, language):
        sentence = SENTENCES[language]
        text = sentence * (1000 // len(sentence.encode()))
        self.texts = [f"n{i % 50} {text}" for i in range(2000)]
        self.tokenizer = ours("Tokenizer")().fit(self.texts)
        self.tokenizer.encode(self.texts)
        self.tokenizer.encode(sentence)
        self.sentence = sentence

    def time_encode(self, language):
        self.tokenizer.encode(self.texts)

    def time_encode_one_100_times(self, language):
        for _ in range(100):
            self.tokenizer.encode(self.sentence)
