"""Analyzer: texts to words and words to terms, by case, pattern, stop words and stemmer."""

import copy
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np

from .._core import validation
from .._core.forking import new_lock
from .._core.typing import Int32s, Int64s
from .._core.validation import shown
from ..primitives.hashing import secret_word
from .kernels import tokenize as k
from .vocabulary import offsets

Texts: TypeAlias = str | Iterable[str]
StopWords: TypeAlias = str | Iterable[str] | None
Stem: TypeAlias = Callable[[str], str]
Split: TypeAlias = Callable[[str], Iterable[str]]
Stemmer: TypeAlias = str | Stem | None
Pattern: TypeAlias = str | Split

# The 33 words of Lucene's EnglishAnalyzer.ENGLISH_STOP_WORDS_SET (Apache 2.0), which bm25s calls
# "english" too. Short on purpose: BM25's idf already makes frequent words weigh little.
STOPWORDS = {
    "english": frozenset(
        [
            "a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is",
            "it", "no", "not", "of", "on", "or", "such", "that", "the", "their", "then", "there",
            "these", "they", "this", "to", "was", "will", "with",
        ]
    )
}  # fmt: skip

# Words of two or more word characters, the default of scikit-learn and bm25s as well: single
# characters are mostly what is left of "it's", "e.g." and formulae, and make the longest lists.
PATTERN = r"\b\w\w+\b"

# Patterns that match whole runs of word characters, and the shortest run they match: ASCII text is
# split by a kernel, exactly as `re` would.
_RUNS = {PATTERN: 2, r"(?u)\b\w\w+\b": 2, r"\w\w+": 2, r"\b\w+\b": 1, r"\w+": 1}
# One class of characters, once or in runs, of a length with two digits at most: `re` takes a time
# that grows with the text, as for the patterns above. Others may take one that doubles with every
# character.
_LONGEST = 1000  # characters of a pattern that is run from a file
_ONE_CLASS = re.compile(
    r"(\\[wWdDsS]|\[\^?([^\[\]\\]|\\.)+\])(\+|\{[0-9]{1,2}(,[0-9]{0,2})?\})?", re.DOTALL
)
_KERNEL_CHARS = 1 << 10  # below this, `re` is faster than setting up the kernel


def is_quick(pattern: str) -> bool:
    """Whether no text makes a regular expression take long, whoever wrote it."""
    if len(pattern) > _LONGEST:  # a second to compile for each 100,000 characters
        return False
    return pattern in _RUNS or _ONE_CLASS.fullmatch(pattern) is not None


class Analyzer:
    """What a Tokenizer does to a text before terms become ids; see there for the parameters."""

    # The shortest run of word characters that matches, where the pattern matches whole runs only.
    # `fold` has for each byte of ASCII text the character of a term (lower case where that is set),
    # or 0 if it is in no word.
    shortest: int | None
    _stem: Callable[[list[str]], list[str]] | None

    def __init__(self, lowercase: bool, stopwords: StopWords, stemmer: Stemmer, pattern: Pattern):
        self.lowercase = validation.flag(lowercase, "lowercase")
        if isinstance(stopwords, str):
            stopwords = STOPWORDS[validation.choice(stopwords, "stopwords", tuple(STOPWORDS))]
        elif stopwords is not None:
            own = list(stopwords) if isinstance(stopwords, set | frozenset) else stopwords
            stopwords = validation.texts(own, "stopwords")
        self.stopwords = frozenset(stopwords or ())
        self.missing: tuple[str, ...] = ()  # what is not taken from a file
        self.withheld: str | None = None  # the pattern of a file, while it is missing
        self.set_stemmer(stemmer)
        self.set_pattern(pattern)

    def set_stemmer(self, stemmer: Stemmer) -> None:
        """Stem by a Snowball language or a function, or not at all."""
        self.stemmer = stemmer
        if stemmer is None:
            self._stem = None
        elif callable(stemmer):
            self._stem = lambda words: [stemmer(word) for word in words]
        elif isinstance(stemmer, str):
            self.stemmer = validation.exact(stemmer)
            self._stem = _snowball(self.stemmer)
        else:
            raise TypeError(f"stemmer must be a language, a callable or None, not {shown(stemmer)}")

    def set_pattern(self, pattern: Pattern) -> None:
        """Split by a regular expression or a function."""
        self.pattern = pattern
        self.shortest = None
        if callable(pattern):
            self._split = pattern
            return
        if not isinstance(pattern, str):
            kinds = "a regular expression or callable"
            raise TypeError(f"pattern must be {kinds}, not {shown(pattern)}")
        text: str = validation.exact(pattern)
        self.pattern = text
        try:
            compiled = re.compile(text)
        except re.error as error:
            raise ValueError(f"pattern {text!r} is no regular expression: {error}") from None
        if compiled.groups > 1:
            raise ValueError(f"pattern may have at most one group, not {compiled.groups}")
        self._split = compiled.findall
        self.shortest = _RUNS.get(text)
        fold = "".join(c if c.isalnum() or c == "_" else "\0" for c in map(chr, range(128)))
        self.fold = (fold.lower() if self.lowercase else fold).encode() + bytes(128)

    def supplied(self, stemmer: Stem | None, pattern: Pattern | None) -> "Analyzer":
        """One that also has what was not taken from a file."""
        other = copy.copy(self)
        setters: dict[str, Any] = {
            "stemmer": (stemmer, other.set_stemmer),
            "pattern": (pattern, other.set_pattern),
        }
        for name, (function, set_function) in setters.items():
            if function is None:
                continue
            if name not in self.missing:
                raise ValueError(f"this tokenizer lacks no {name}")
            if name == "pattern" and self.withheld is not None:
                if function != self.withheld:
                    raise ValueError(f"pattern must be {self.withheld!r}, not {shown(function)}")
                other.withheld = None
            elif not callable(function):
                raise TypeError(f"{name} must be callable, not {shown(function)}")
            set_function(function)
            other.missing = tuple(missing for missing in other.missing if missing != name)
        return other

    def check_complete(self) -> None:
        """Raise ValueError while something is missing."""
        if self.withheld is not None:
            raise ValueError(
                f"this tokenizer was saved with the pattern {self.withheld!r}, which no file is "
                "trusted to run: give it back with supply(pattern=...)"
            )
        if self.missing:
            raise ValueError(
                f"this tokenizer was saved with a callable {' and '.join(self.missing)}; "
                "give it back with supply()"
            )

    def words(self, text: str) -> list[str]:
        """The words of a text, by `re` or the caller's function."""
        words: Any = self._split(text.lower() if self.lowercase else text)
        return _checked(words, "pattern") if callable(self.pattern) else words

    def folded(self, text: str) -> bytearray:
        """ASCII text in the form that the kernels split."""
        return bytearray(text, "ascii").translate(self.fold)

    def terms(self, words: list[str]) -> list[str]:
        """The term of each word: stemmed, "" for those left out."""
        if self.stopwords:
            stop = self.stopwords
            words = ["" if word in stop else word for word in words]
        if self._stem is not None:
            stems = iter(self._stem([word for word in words if word]))
            words = [next(stems) if word else "" for word in words]
        return _checked(words, "stemmer") if callable(self.stemmer) else words

    def word_stream(self, texts: list[str]) -> tuple[Int32s, Int64s, list[str]]:
        """(numbers int32[w] of the words of n texts, offsets int64[n + 1], the words by number)."""
        plain = []
        if self.shortest is not None and sum(map(len, texts)) >= _KERNEL_CHARS:
            plain = [text for text in texts if text.isascii()]
        if not plain:
            return self._words_by_python(texts)
        numbers, word_ptr, words = self._words_by_kernel(plain)
        if len(plain) == len(texts):
            return numbers, word_ptr, words
        # The other texts are split by Python: merge both streams in the order of the texts.
        others = [text for text in texts if not text.isascii()]
        other_numbers, other_ptr, other_words = self._words_by_python(others)
        is_plain = np.array([text.isascii() for text in texts])
        counts = np.empty(len(texts), np.int64)
        counts[is_plain] = np.diff(word_ptr)
        counts[~is_plain] = np.diff(other_ptr)
        from_plain = np.repeat(is_plain, counts)
        merged = np.empty(len(from_plain), np.int32)
        merged[from_plain] = numbers
        merged[~from_plain] = other_numbers + len(words)
        return merged, offsets(counts), words + other_words

    def _words_by_kernel(self, texts):
        folded = self.folded("".join(texts))
        data, ptr = np.frombuffer(folded, np.uint8), offsets([len(text) for text in texts])
        most = len(data) // self.shortest
        numbers, spans = np.empty(most, np.int32), np.empty((most, 2), np.int64)
        word_ptr, secret = np.empty(len(ptr), np.int64), secret_word()
        n = k.words_number(data, ptr, self.shortest, secret, numbers, word_ptr, spans)
        plain, (starts, stops) = folded.decode(), spans[:n].T.tolist()
        words = [plain[start:stop] for start, stop in zip(starts, stops, strict=True)]
        return numbers[: word_ptr[-1]].copy(), word_ptr, words

    def _words_by_python(self, texts):
        seen, numbers, ptr = {}, [], [0]
        for text in texts:
            numbers += [seen.setdefault(word, len(seen)) for word in self.words(text)]
            ptr.append(len(numbers))
        return np.array(numbers, np.int32), np.array(ptr, np.int64), list(seen)


def without_surrogates(text: str) -> str:
    """The text with lone surrogates, which UTF-8 cannot hold, replaced."""
    return text.encode("utf-8", "replace").decode()


def missing_extra(what: str, package: str) -> ImportError:
    """The error for an optional dependency that is not installed."""
    return ImportError(f"{what} needs {package}: pip install 'llmds_nb[text]'")


def _snowball(language):
    """A function that stems a list of words by PyStemmer."""
    try:
        import Stemmer
    except ImportError:
        raise missing_extra(f"stemmer={language!r}", "PyStemmer") from None
    language = validation.choice(language, "stemmer", Stemmer.algorithms())
    # Without the stemmer's own cache: every call has distinct words, so it would only cost time.
    compiled = Stemmer.Stemmer(language, 0)
    lock = new_lock()  # a Stemmer serves one thread at a time

    def stem(words):
        with lock:
            try:
                return compiled.stemWords(words)
            except UnicodeEncodeError:  # a lone surrogate, which a caller's pattern may keep
                clean = [without_surrogates(word) for word in words]
                stemmed = compiled.stemWords(clean)
                return [w if w != c else s for w, c, s in zip(words, clean, stemmed, strict=True)]

    return stem


def _checked(values, name):
    values = list(values)
    for place, value in enumerate(values):
        if type(value) is not str:
            if not isinstance(value, str):
                raise TypeError(f"{name} must give str, not {type(value).__name__}")
            values[place] = validation.exact(value)
    return values
