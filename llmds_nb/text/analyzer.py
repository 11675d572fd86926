"""Analyzer: texts to words and words to terms, by case, pattern, stop words and stemmer."""

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np

from .._core import validation
from .._core.forking import new_lock
from .._core.typing import Int32s, Int64s, UInt8s
from .._core.validation import shown
from ..errors import CorruptFileError
from ..primitives.hashing import secret_word
from .characters import CharacterTable, character_table
from .kernels import tokenize as k
from .languages import ELIDED, FOLDED, STOPWORDS as STOPWORDS, language_or_none, stop_words
from .vocabulary import TextBuffers, offsets

Texts: TypeAlias = str | Iterable[str]
StopWords: TypeAlias = str | Iterable[str] | None
Stem: TypeAlias = Callable[[str], str]
Split: TypeAlias = Callable[[str], Iterable[str]]
Stemmer: TypeAlias = str | Stem | None
Pattern: TypeAlias = str | Split | None

# What sets stop words and stemmer where they are not given.
FROM_LANGUAGE = "language"

WORD_RULE = 1  # the version of the rule, in files

# Words of two or more word characters, as scikit-learn and bm25s take them.
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
_MOST_RUN = 1 << 20  # in a file
_SHORT_RUN = 3  # stop words in succession that stay in documents: most phrases have as many


def is_quick(pattern: str) -> bool:
    """Whether no text makes a regular expression take long, whoever wrote it."""
    if len(pattern) > _LONGEST:  # a second to compile for each 100,000 characters
        return False
    return pattern in _RUNS or _ONE_CLASS.fullmatch(pattern) is not None


class Analyzer:
    """What a Tokenizer does to a text before terms become ids; see there for the parameters."""

    # Of kernels.tokenize, where they can split texts: all by the word rule, ASCII ones by a pattern
    # that matches whole runs of word characters. `fold` has for each byte of ASCII text how it is
    # spelled for them; `characters` is for other texts. 0 is none.
    rule: int
    fold: bytes
    characters: CharacterTable | None
    is_turkish: bool  # the lower case of "I" is no ASCII letter
    quick_fold: bytes | None  # `fold`, where it does for all ASCII texts and nothing is missing
    _stem: Callable[[list[str]], list[str]] | None

    def __init__(
        self,
        language: str | None,
        lowercase: bool,
        fold_accents: bool | None,
        stopwords: StopWords,
        stemmer: Stemmer,
        pattern: Pattern,
    ):
        self.language = language_or_none(language)
        self.lowercase = validation.flag(lowercase, "lowercase")
        if fold_accents is None:
            fold_accents = pattern is None and language in FOLDED
        self.fold_accents = validation.flag(fold_accents, "fold_accents")
        if self.fold_accents and pattern is not None:
            raise ValueError("fold_accents is for the word rule: fold the text in your pattern")
        self.missing: tuple[str, ...] = ()  # what is not taken from a file
        self.withheld: str | None = None  # the pattern of a file, while it is missing
        self.set_pattern(pattern)
        self._set_stop_words(stopwords)
        if isinstance(stemmer, str) and stemmer == FROM_LANGUAGE:
            stemmer = self.language
        self.set_stemmer(stemmer)

    def _set_stop_words(self, stopwords):
        # How many stop words must follow one another for a document to keep them. The lists of
        # other languages hold many words that are more than function words.
        self.stop_run = _SHORT_RUN
        if isinstance(stopwords, str):
            if stopwords == FROM_LANGUAGE:
                stopwords = self.language
            if stopwords not in (None, "english"):
                self.stop_run = 1
            stopwords = None if stopwords is None else stop_words(stopwords)
        elif stopwords is not None and not isinstance(stopwords, set | frozenset):
            stopwords = validation.texts(stopwords, "stopwords")
        words = validation.texts(list(stopwords or ()), "stopwords")
        if self.characters is not None:  # as they come out of texts
            words = [found[0] if len(found := self.words(word)) == 1 else word for word in words]
        self.stopwords = frozenset(words)

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
        """Split by the word rule, a regular expression or a function."""
        self.pattern, self.rule, self.fold, self.characters = pattern, 0, b"", None
        self.is_turkish = False
        self._split_by(pattern)
        self.set_missing(self.missing)

    def set_missing(self, names: Iterable[str]) -> None:
        """Have these callables missing, or a pattern that is withheld, and no others."""
        self.missing = tuple(dict.fromkeys(names))
        is_quick = self.rule and not (self.missing or self.is_turkish)
        self.quick_fold = self.fold if is_quick else None

    def _split_by(self, pattern):
        if pattern is None:
            joins = self.language not in ELIDED
            settings = self.lowercase, self.fold_accents, self.language, joins
            self.characters = character_table(*settings)
            self.is_turkish = self.characters.is_turkish
            self.fold, self.rule = self.characters.fold, 2 << 2 | k.RULE + self.lowercase
            return
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
        if text in _RUNS:
            self.rule = _RUNS[text] << 2 | k.RUNS
        fold = "".join(c if c.isalnum() or c == "_" else "\0" for c in map(chr, range(128)))
        self.fold = (fold.lower() if self.lowercase else fold).encode() + bytes(128)

    def settings(self, callables: set[str]) -> dict[str, Any]:
        """What a file has of these settings: all but `callables` and what is missing already."""
        pattern = self.pattern if self.withheld is None else self.withheld
        missing = [n for n in self.missing if n != "pattern" or self.withheld is None]
        missing += [name for name in ("stemmer", "pattern") if name in callables]
        found: dict[str, Any] = {
            "stemmer": None if "stemmer" in missing else self.stemmer,
            "pattern": None if "pattern" in missing else pattern,
            "lowercase": self.lowercase,
            "stopwords": sorted(self.stopwords),
            "callables": missing,
        }
        if self.stop_run:
            found |= {
                "language": self.language,
                "fold_accents": self.fold_accents,
                "stop_run": self.stop_run,
                "word_rule": None if self.characters is None else WORD_RULE,
            }
        return found

    @classmethod
    def of_settings(cls, found: Mapping[str, Any]) -> "Analyzer":
        """What `settings` gave, without its callables; CorruptFileError for what it cannot give.

        Files of before there was the word rule have a pattern, no language, and no `stop_run`:
        their stop words are left out wherever they are.
        """
        pattern, missing = found["pattern"], found["callables"]
        if not (isinstance(missing, list) and set(missing) <= {"stemmer", "pattern"}):
            raise CorruptFileError(f"a tokenizer has no callables {missing}")
        if not (pattern is None or isinstance(pattern, str)):
            raise CorruptFileError(f"the pattern is {pattern!r}")
        language, folds, rule, run = None, False, None, 0
        if "stop_run" in found:
            language, rule = found["language"], found["word_rule"]
            folds = validation.flag(found["fold_accents"], "fold_accents")
            run = validation.integer(found["stop_run"], "stop_run", low=1, high=_MOST_RUN)
        if not (rule is None or (type(rule) is int and rule == WORD_RULE)):
            raise CorruptFileError(f"there is no word rule {rule!r}")
        if (pattern is None and "pattern" not in missing) != (rule is not None):
            raise CorruptFileError(f"the pattern is {pattern!r}, the word rule {rule!r}")
        is_trusted = pattern is not None and is_quick(pattern)
        own_pattern = None if rule else pattern if is_trusted else PATTERN
        stopwords, stemmer = found["stopwords"], found["stemmer"]
        analyzer = cls(language, found["lowercase"], folds, stopwords, stemmer, own_pattern)
        analyzer.stop_run = run
        if pattern is not None and not is_trusted:
            analyzer.withheld = pattern
            missing = [*missing, "pattern"]
        analyzer.set_missing(missing)
        return analyzer

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
            other.set_missing(missing for missing in other.missing if missing != name)
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
        """The words of a text."""
        if self.characters is not None:
            numbers, _, distinct = self._words_by_kernel([text])
            return [distinct[number] for number in numbers.tolist()]
        words: Any = self._split(text.lower() if self.lowercase else text)
        return _checked(words, "pattern") if callable(self.pattern) else words

    def takes(self, text: str) -> bool:
        """Whether `spelled` takes a text."""
        return self.characters is not None or (self.rule != 0 and text.isascii())

    def spelled(self, texts: list[str], together: str | None = None) -> tuple[UInt8s, Int64s]:
        """(data uint8[bytes], offsets int64[n + 1]) of texts, in the form that kernels split.

        `together` are the texts joined, where they are already.
        """
        if together is None:
            together = "".join(texts)
        if self.takes_ascii(together):
            data = bytearray(together, "ascii").translate(self.fold)
            return np.frombuffer(data, np.uint8), offsets(list(map(len, texts)))
        assert self.characters is not None
        takes = str.isascii if not self.is_turkish else self.takes_ascii
        others = [place for place, text in enumerate(texts) if not takes(text)]
        spelled, ptr = self.characters.spell([texts[place] for place in others])
        lengths, parts, first = np.array(list(map(len, texts))), [], 0
        lengths[others] = np.diff(ptr)
        for place, (start, stop) in zip(others, pairwise(ptr.tolist()), strict=True):
            parts.append("".join(texts[first:place]).encode().translate(self.fold))
            parts.append(spelled[start:stop].tobytes())
            first = place + 1
        parts.append("".join(texts[first:]).encode().translate(self.fold))
        return np.frombuffer(bytearray().join(parts), np.uint8), offsets(lengths)

    def spell_one(self, text: str, buffers: TextBuffers) -> bool:
        """Spell one text into `buffers`, where they have space for it; return whether."""
        self.check_complete()
        n = len(text)
        if self.rule and n <= len(buffers.text) and self.takes_ascii(text):
            buffers.text[:n] = text.encode().translate(self.fold)
            buffers.text_ptr[1] = n
            return True
        return self.characters is not None and self.characters.spell_one(text, buffers)

    def takes_ascii(self, text: str) -> bool:
        """Whether a text is spelled by `fold`, where it is spelled at all."""
        return text.isascii() and not (self.is_turkish and "I" in text)

    def terms(self, words: list[str]) -> tuple[list[str], UInt8s | None]:
        """The term of each word, stemmed, "" for none; and uint8[n], 1 for a stop word, if any is.

        2 is for a word that is no term.
        """
        kinds = None
        if self.stopwords and not self.stopwords.isdisjoint(words):
            stop = self.stopwords
            if self.stop_run:
                kinds = np.fromiter(map(stop.__contains__, words), np.uint8, len(words))
            else:
                words = ["" if word in stop else word for word in words]
        if self._stem is not None:
            stems = iter(self._stem([word for word in words if word]))
            words = [next(stems) if word else "" for word in words]
        if callable(self.stemmer):
            words = _checked(words, "stemmer")
        if kinds is not None and "" in words:
            kinds[[place for place, word in enumerate(words) if not word]] = 2
        return words, kinds

    def ids(self, words: list[str], find: Callable[[list[str]], Int32s]) -> Int32s:
        """The id of each word, int32[n], as a word cache keeps it; `find` has those of terms."""
        terms, kinds = self.terms(words)
        ids = find(terms)
        if kinds is not None:
            ids[kinds == 1] = k.STOP - ids[kinds == 1]
        return ids

    def word_stream(self, texts: list[str]) -> tuple[Int32s, Int64s, list[str]]:
        """(numbers int32[w] of the words of n texts, offsets int64[n + 1], the words by number)."""
        if self.characters is not None:
            return self._words_by_kernel(texts)
        plain = []
        if self.rule and sum(map(len, texts)) >= _KERNEL_CHARS:
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
        data, ptr = self.spelled(texts)
        most = len(data) // (self.rule >> 2) + len(texts)
        numbers, spans = np.empty(most, np.int32), np.empty((most, 2), np.int64)
        word_ptr, secret = np.empty(len(ptr), np.int64), secret_word()
        lower = np.empty_like(data) if k.lowers(self.rule) else data
        n = k.words_number(data, lower, ptr, self.rule, secret, numbers, word_ptr, spans)
        spelled, (starts, stops) = lower.tobytes(), spans[:n].T.tolist()
        if spelled.isascii():  # then what is cut out need not be decoded
            plain = spelled.decode()
            words = [plain[start:stop] for start, stop in zip(starts, stops, strict=True)]
        else:
            cut = [spelled[start:stop] for start, stop in zip(starts, stops, strict=True)]
            words = list(map(bytes.decode, cut))
        return numbers[: word_ptr[-1]].copy(), word_ptr, words

    def _words_by_python(self, texts):
        seen, numbers, ptr = {}, [], [0]
        for text in texts:
            numbers += [seen.setdefault(word, len(seen)) for word in self.words(text)]
            ptr.append(len(numbers))
        return np.array(numbers, np.int32), np.array(ptr, np.int64), list(seen)


def some_at_a_time(texts: Iterable[str], n_chars: int) -> Iterator[list[str]]:
    """The texts in lists of about `n_chars` characters, or of one longer text."""
    some, size = list[str](), 0
    for text in texts:
        some.append(text)
        size += len(text)
        if size + len(some) >= n_chars:  # empty texts take memory as well
            yield some
            some, size = [], 0
    if some:
        yield some


def without_surrogates(text: str) -> str:
    """The text with lone surrogates, which UTF-8 cannot hold, replaced."""
    return text.encode("utf-8", "replace").decode()


def _snowball(language):
    """A function that stems a list of words by PyStemmer."""
    import Stemmer

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
