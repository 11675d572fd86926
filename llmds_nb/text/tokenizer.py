"""Tokenizer: texts to term ids, and the vocabulary that gives the ids."""

import re
import threading
from contextlib import contextmanager

import numpy as np

from .._core import validation
from ..primitives.status import ABSENT
from .kernels import tokenize as k
from .token_batch import TokenBatch, joined, joined_lists, kept_or_dropped, mapped, split_up
from .vocabulary import StringTable, offsets
from .word_cache import KnownWords

__all__ = ["STOPWORDS", "TokenBatch", "Tokenizer"]

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

# Patterns that take whole runs of word characters, and the shortest run they take: the kernel
# splits ASCII text exactly as `re` would.
_RUNS = {PATTERN: 2, r"(?u)\b\w\w+\b": 2, r"\w\w+": 2, r"\b\w+\b": 1, r"\w+": 1}
_CHUNK_CHARS = 1 << 20  # a chunk's words stay in the cache
_KERNEL_CHARS = 1 << 10  # below this, `re` is faster than setting up the kernel


class Tokenizer:
    """Split texts into words and number them: Unicode words, case, stop words, stemming.

    A tokenizer owns a vocabulary, empty at first. `fit` grows it, and so do `InvertedIndex.add` and
    `LsaEncoder.fit` with the tokenizer they were given; `encode` never does and gives unknown terms
    the id -1. Ids count up as terms are met and never change, so several structures may share one
    tokenizer. ASCII text with a plain-word pattern takes a compiled path, every other
    text Python's `re`, with the same result.

    Parameters
    ----------
    lowercase : bool
        Lower-case the text (`str.lower`) before splitting.
    stopwords : "english", iterable of str, or None
        Words left out, compared after lower-casing and before stemming.
    stemmer : str or callable, optional
        A Snowball language such as "english" (needs ``pip install 'llmds_nb[text]'``), or a
        function from word to term; an empty term drops the word.
    pattern : str or callable
        A regular expression whose matches are the words, with at most one group; or a function from
        text to an iterable of words. Default: runs of two or more word characters.

    Examples
    --------
    >>> tokenizer = Tokenizer()
    >>> tokenizer.fit(["The quick brown fox", "a lazy dog"])
    Tokenizer(5 terms, stemmer=None)
    >>> tokenizer.encode(["the brown dog", "quick cats"])
    TokenBatch(ids=array([ 1,  4,  0, -1], dtype=int32), indptr=array([0, 2, 4]))
    >>> tokenizer.terms
    ['quick', 'brown', 'fox', 'lazy', 'dog']
    >>> tokenizer.count_tokens("The quick brown fox and others")
    4
    """

    def __init__(self, *, lowercase=True, stopwords="english", stemmer=None, pattern=PATTERN):
        if not isinstance(lowercase, bool):
            raise TypeError(f"lowercase must be True or False, not {lowercase!r}")
        self.lowercase = lowercase
        self.stopwords = _stopwords(stopwords)
        self._table = StringTable()
        self._lock = threading.RLock()  # of writers
        self._is_growing = False
        self._missing = ()  # callables that a file could not hold
        self._model = None  # the text of a tokenizer.json
        self._set_stemmer(stemmer)
        self._set_pattern(pattern)

    @classmethod
    def from_file(cls, path) -> "Tokenizer":
        """Open a Hugging Face ``tokenizer.json``: the ids and counts of the model itself.

        The vocabulary is the file's, without special tokens being added to texts; it needs
        ``pip install 'llmds_nb[text]'``.
        """
        with open(path, encoding="utf-8") as file:
            return cls._from_model(file.read())

    @classmethod
    def _from_model(cls, model):
        try:
            from tokenizers import Tokenizer as Model
        except ImportError:
            raise _missing_extra("Tokenizer.from_file", "tokenizers") from None
        try:
            compiled = Model.from_str(model)
        except Exception as error:  # the package raises a bare Exception
            raise ValueError(f"not a tokenizer.json: {error}") from None
        tokenizer = cls(
            lowercase=False,
            stopwords=None,
            pattern=lambda text: compiled.encode(_clean(text), add_special_tokens=False).tokens,
        )
        tokenizer._model = model
        vocabulary = compiled.get_vocab(with_added_tokens=True)
        # A gap in the ids is filled with a string that no token can be, to keep every id in place.
        terms = [f"\0unused {i}" for i in range(max(vocabulary.values(), default=-1) + 1)]
        for term, id_ in vocabulary.items():
            terms[id_] = term
        tokenizer._table.add(terms)
        return tokenizer

    def _set_stemmer(self, stemmer):
        self.stemmer = stemmer
        self._forget()
        if stemmer is None or callable(stemmer):
            self._stem = stemmer and (lambda words: [stemmer(word) for word in words])
            return
        if not isinstance(stemmer, str):
            raise TypeError(f"stemmer must be a language, a callable or None, not {stemmer!r}")
        try:
            import Stemmer
        except ImportError:
            raise _missing_extra(f"stemmer={stemmer!r}", "PyStemmer") from None
        validation.choice(stemmer, "stemmer", Stemmer.algorithms())
        # Every call brings distinct words, so the stemmer's own cache would only cost time.
        compiled = Stemmer.Stemmer(stemmer, 0)
        lock = threading.Lock()  # one Stemmer serves one thread at a time

        def stem(words):
            with lock:
                try:
                    return compiled.stemWords(words)
                except (
                    UnicodeEncodeError
                ):  # a lone surrogate, which a pattern of one's own may keep
                    return [
                        w if _clean(w) != w else stemmed
                        for w, stemmed in zip(
                            words, compiled.stemWords([_clean(w) for w in words]), strict=True
                        )
                    ]

        self._stem = stem

    def _forget(self):
        """Look every word up anew, since the vocabulary or what becomes of words has changed."""
        self._known = KnownWords()

    def _look_up(self, words):
        return self._table.find(self._terms_of(words))

    def _set_pattern(self, pattern):
        self.pattern = pattern
        self._shortest = None
        if callable(pattern):
            self._split = pattern
            return
        if not isinstance(pattern, str):
            raise TypeError(f"pattern must be a regular expression or callable, not {pattern!r}")
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"pattern {pattern!r} is no regular expression: {error}") from None
        if compiled.groups > 1:
            raise ValueError(f"pattern may have at most one group, not {compiled.groups}")
        self._split = compiled.findall
        self._shortest = _RUNS.get(pattern)
        self._fold = bytes(
            ord(chr(b).lower() if self.lowercase else chr(b))
            if b < 128 and (chr(b).isalnum() or b == ord("_"))
            else 0
            for b in range(256)
        )

    def supply(self, *, stemmer=None, pattern=None) -> None:
        """Give back the callables that a file could not hold, after loading what used them."""
        for name, function in (("stemmer", stemmer), ("pattern", pattern)):
            if function is None:
                continue
            if name not in self._missing:
                raise ValueError(f"this tokenizer lacks no {name}")
            if not callable(function):
                raise TypeError(f"{name} must be callable, not {function!r}")
            getattr(self, f"_set_{name}")(function)
            self._missing = tuple(m for m in self._missing if m != name)

    @property
    def terms(self) -> list[str]:
        """Every term of the vocabulary; the position is its id. A new list."""
        return self._table.texts(range(len(self._table)))

    @property
    def nbytes(self) -> int:
        """Bytes of the vocabulary's arrays."""
        return self._table.nbytes

    def __len__(self):
        return len(self._table)

    def __repr__(self):
        if self._model is not None:
            return f"Tokenizer({len(self):,} terms, from a tokenizer.json)"
        return f"Tokenizer({len(self):,} terms, stemmer={self.stemmer!r})"

    def __contains__(self, term):
        return isinstance(term, str) and self._table.find([term])[0] != ABSENT

    def fit(self, texts) -> "Tokenizer":
        """Add every term of `texts` to the vocabulary, or none if it fails; return self.

        `texts` is a str or any iterable of str, of which about a million characters are held.
        """
        stream, _ = validation.text_stream(texts)
        with self._growing():
            for _ in self._grown(stream):
                pass
        return self

    def encode(self, texts) -> TokenBatch:
        """Ids of the terms of each text, stop words left out, unknown terms -1.

        Parameters
        ----------
        texts : str or iterable of str
            One text counts as a list of one.

        Returns
        -------
        TokenBatch
            ids int32[n_tokens] and indptr int64[n + 1]. Time grows with the characters.
        """
        return self._encode(validation.texts(texts))

    def count_tokens(self, text):
        """Tokens that `encode` would return: an int for one text, int64[n] for a list of texts."""
        texts = validation.texts(text, "text")
        parts = [mapped(*chunk, kept_or_dropped) for chunk in self._chunks(texts)]
        counts = np.diff(joined(parts).indptr)
        return int(counts[0]) if isinstance(text, str) else counts

    def _encode(self, texts, grow=False) -> TokenBatch:
        """`encode` of a checked list; with `grow`, unknown terms are added (all or none)."""
        if grow:
            with self._growing():
                return joined(list(self._grown(texts)))
        return self._encode_known(texts)

    @contextmanager
    def _growing(self):
        """Let the vocabulary grow: what failed has added nothing. Other writers wait.

        Texts may come from code of the caller's, which could write here itself: it is refused.
        """
        with self._lock:
            if self._is_growing:
                raise RuntimeError("the vocabulary cannot grow while texts are being added to it")
            self._is_growing = True
            before = len(self._table)
            try:
                yield
            except BaseException:
                self._table.truncate(before)
                raise
            finally:
                self._forget()
                self._is_growing = False

    def _grown(self, texts):
        """Yield the tokens of some texts at a time, unknown terms being added: in `_growing`."""
        for chunk in self._chunks(texts):
            yield mapped(*chunk, self._table.add)

    def _encode_known(self, texts) -> TokenBatch:
        """`_encode` by the words that are known: in one kernel call where the texts are plain."""
        self._check_whole()
        together = texts[0] if len(texts) == 1 else "".join(texts)
        if len(together) > _CHUNK_CHARS:
            return joined([mapped(*chunk, self._table.find) for chunk in self._chunks(texts)])
        known = self._known  # replaced, not emptied, when the vocabulary changes
        if self._shortest is None:
            return joined_lists([known.find(self._words(t), self._look_up) for t in texts])
        if together.isascii():
            return self._encode_plain(known, together, texts)
        plain = [text for text in texts if text.isascii()]
        parts = split_up(self._encode_plain(known, "".join(plain), plain))
        found = [
            next(parts) if text.isascii() else known.find(self._words(text), self._look_up)
            for text in texts
        ]
        return joined_lists(found)

    def _encode_plain(self, known, together, texts) -> TokenBatch:
        data = np.frombuffer(bytearray(together, "ascii").translate(self._fold), np.uint8)
        text_ptr = offsets(list(map(len, texts)))
        return TokenBatch(*known.encode(data, text_ptr, self._shortest, self._look_up))

    def _encode_short(self, text, scratch) -> int:
        """Write the ids of one text to scratch.tokens; return how many, or -1 if that cannot hold
        them."""
        n = len(text)
        if self._shortest is not None and n <= len(scratch.text) and text.isascii():
            self._check_whole()
            scratch.text[:n] = text.encode().translate(self._fold)
            n = self._known.encode_one(n, scratch.text_at, scratch.tokens_at, self._shortest)
            if n >= 0:
                return n
        ids = self._encode([text]).ids
        if len(ids) > len(scratch.tokens):
            return -1
        scratch.tokens[: len(ids)] = ids
        return len(ids)

    def _check_whole(self):
        if self._missing:
            raise ValueError(
                f"this tokenizer was saved with a callable {' and '.join(self._missing)}; "
                "give it back with supply()"
            )

    def _chunks(self, texts):
        """Yield (word numbers, word_ptr, term of each number or "") for some texts at a time."""
        self._check_whole()
        some, size = [], 0
        for text in texts:
            some.append(text)
            size += len(text)
            if size + len(some) >= _CHUNK_CHARS:  # empty texts take room as well
                yield self._chunk(some, size)
                some, size = [], 0
        if some:
            yield self._chunk(some, size)

    def _chunk(self, texts, size):
        numbers, word_ptr, words = self._number(texts, size)
        return numbers, word_ptr, self._terms_of(words)

    def _number(self, texts, size):
        """Number the words of some texts: (numbers int32[w], word_ptr int64[n + 1], words)."""
        if self._shortest is None or size < _KERNEL_CHARS:
            return self._number_slowly(texts)
        plain = [text for text in texts if text.isascii()]
        if not plain:
            return self._number_slowly(texts)
        folded = bytearray("".join(plain).encode()).translate(self._fold)
        ptr = offsets([len(text) for text in plain])
        data = np.frombuffer(folded, np.uint8)
        numbers, word_ptr, starts, stops = k.words_number(data, ptr, self._shortest)
        words = [
            folded[start:stop].decode()
            for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)
        ]
        if len(plain) == len(texts):
            return numbers, word_ptr, words
        # Some texts went the other way: put both streams together in the order of the texts.
        other, other_ptr, other_words = self._number_slowly([t for t in texts if not t.isascii()])
        is_plain = np.array([text.isascii() for text in texts])
        counts = np.empty(len(texts), np.int64)
        counts[is_plain] = np.diff(word_ptr)
        counts[~is_plain] = np.diff(other_ptr)
        from_plain = np.repeat(is_plain, counts)
        merged = np.empty(len(from_plain), np.int32)
        merged[from_plain] = numbers
        merged[~from_plain] = other + len(words)
        return merged, offsets(counts), words + other_words

    def _number_slowly(self, texts):
        seen: dict[str, int] = {}
        numbers, counts = [], []
        for text in texts:
            before = len(numbers)
            numbers += [seen.setdefault(word, len(seen)) for word in self._words(text)]
            counts.append(len(numbers) - before)
        return np.array(numbers, np.int32), offsets(counts), list(seen)

    def _words(self, text) -> list[str]:
        words = self._split(text.lower() if self.lowercase else text)
        if callable(self.pattern):
            words = list(words)
            _check_strings(words, "pattern")
        return words

    def _terms_of(self, words) -> list[str]:
        """The term of each word: stemmed, "" for those left out."""
        if self.stopwords:
            stop = self.stopwords
            words = ["" if word in stop else word for word in words]
        if self._stem is not None:
            stems = iter(self._stem([word for word in words if word]))
            words = [next(stems) if word else "" for word in words]
            if callable(self.stemmer):
                _check_strings(words, "stemmer")
        return words

    def _find_term(self, term) -> int:
        """Id of a term as it stands in the vocabulary, or of the one term a word becomes; or -1."""
        if not isinstance(term, str):
            raise TypeError(f"term must be a str, not {type(term).__name__}")
        id_ = int(self._table.find([term])[0])
        if id_ == ABSENT and not self._missing:
            ids = self._encode([term]).ids
            id_ = int(ids[0]) if len(ids) == 1 else ABSENT
        return id_

    def _state(self):
        callables = [] if self._model else [n for n in ("stemmer", "pattern") if self._callable(n)]
        header = {
            "lowercase": self.lowercase,
            "stopwords": sorted(self.stopwords),
            "stemmer": None if "stemmer" in callables else self.stemmer,
            "pattern": None if self._model or "pattern" in callables else self.pattern,
            "callables": callables,
        }
        arrays = self._table.arrays()
        if self._model is not None:
            arrays["model"] = np.frombuffer(self._model.encode(), np.uint8)
        return arrays, header

    def _callable(self, name):
        return name in self._missing or callable(getattr(self, name))

    @classmethod
    def _from_state(cls, arrays, header):
        if "model" in arrays:
            return cls._from_model(arrays["model"].tobytes().decode())
        tokenizer = cls(
            lowercase=header["lowercase"],
            stopwords=header["stopwords"],
            stemmer=header["stemmer"],
            pattern=PATTERN if header["pattern"] is None else header["pattern"],
        )
        tokenizer._missing = tuple(header["callables"])
        tokenizer._table = StringTable.from_arrays(arrays)
        return tokenizer

    def check(self) -> None:
        """Assert the invariants of the vocabulary's table (`kernels.tokenize`)."""
        self._table.check()

    @staticmethod
    def _warmup():
        texts = ["warm up the kernels " * 60, "warm \u00fcp"]
        tokenizer = Tokenizer().fit(texts)
        tokenizer.encode(texts)
        StringTable.from_arrays(tokenizer._table.arrays())


def _clean(text) -> str:
    """The text with lone surrogates, which UTF-8 cannot hold, replaced."""
    return text.encode("utf-8", "replace").decode()


def _check_strings(values, name):
    for value in values:
        if not isinstance(value, str):
            raise TypeError(f"{name} must give str, not {type(value).__name__}")


def _stopwords(value) -> frozenset:
    if value is None:
        return frozenset()
    if isinstance(value, str):
        return STOPWORDS[validation.choice(value, "stopwords", tuple(STOPWORDS))]
    return frozenset(validation.texts(value, "stopwords"))


def _missing_extra(what, package):
    return ImportError(f"{what} needs {package}: pip install 'llmds_nb[text]'")
