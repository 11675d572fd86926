"""Tokenizer: texts to term ids, and the vocabulary that gives the ids."""

import itertools
from collections.abc import Iterable, Iterator
from itertools import chain, pairwise
from typing import Any, overload

import numpy as np

from .._core import validation
from .._core.forking import is_held, new_lock
from .._core.storage import Stored, checking_parts
from .._core.typing import Int64s, PathLike
from ..primitives.status import ABSENT
from . import analyzer as a
from .kernels import tokenize as k
from .languages import missing_extra
from .token_batch import TokenBatch, joined
from .vocabulary import StringTable, TextBuffers, Vocabulary, offsets, vocabulary_of

_SHORT_CHARS = 1 << 10  # of a text that is encoded into memory that is kept
_CHUNK_CHARS = 1 << 20  # texts are encoded so much at a time: the words stay in the CPU cache
_SPARE_IDS = 1 << 16  # of a tokenizer.json, beyond one for each of its characters


def encode_into(tokenizer: "Tokenizer", text: str, buffers: TextBuffers) -> bool:
    """Encode one short text into memory of the caller's. Internal: for the searches of bm25.

    The ids are buffers.tokens[:buffers.token_ptr[1]]. Return False if there are too many.
    """
    vocabulary = tokenizer._vocabulary
    if tokenizer._encode_known(text, vocabulary, buffers):
        return True
    ids = tokenizer._encode_all([text], vocabulary).ids
    if len(ids) > len(buffers.tokens):
        return False
    buffers.tokens[: len(ids)] = ids
    buffers.token_ptr[1] = len(ids)
    return True


def _mapped(numbers, word_ptr, ids) -> TokenBatch:
    """The ids of words by number, but for negative numbers and DROPPED ids."""
    out, out_ptr = np.empty(len(numbers), np.int32), np.empty(len(word_ptr), np.int64)
    n = k.tokens_map(numbers, word_ptr, ids, out, out_ptr)
    return TokenBatch(out[:n], out_ptr)


class Tokenizer(Stored):
    """Split texts into words and number them: Unicode words, stop words, stemming.

    A tokenizer owns a vocabulary, empty at first. `fit` grows it, and so do `InvertedIndex.add` and
    `LsaEncoder.fit` with the tokenizer they were given; `encode` never does and gives unknown terms
    the id -1. Ids count up as terms are met and never change, so several structures may share one
    tokenizer. Thread-safe.

    Parameters
    ----------
    language : str, optional
        Of the texts: one of Snowball's languages. It sets `stopwords`, `stemmer` and
        `fold_accents` where these are not given, and for Turkish the lower case of "I". The stop
        words of all but English need ``pip install 'llmds_nb[text]'``. None: sets nothing.
    lowercase : bool
        Whether upper and lower case are the same: case folding, with `pattern` `str.lower`.
    fold_accents : bool, optional
        Whether letters are the same with and without accents: of Latin and Greek, also ae for its
        ligature; Arabic and Hebrew without vowel signs. Default: where Lucene's analyzer of the
        language does so, for Arabic, German, Greek and Persian. Not with a `pattern`.
    stopwords : str, iterable of str, or None
        Words that say little, of a language or as they are, compared before stemming in the form
        that words of texts get. None: no word is one.
    stemmer : str, callable or None
        A Snowball language or algorithm ("porter"), or a function from word to term; an empty term
        drops the word. None: words are terms.
    pattern : str or callable, optional
        A regular expression whose matches are the words, with at most one group; or a function from
        text to an iterable of words. It is given the text in lower case, if `lowercase`, and
        otherwise as it is: nothing of the word rule holds. Default: the word rule.

    Notes
    -----
    **Characters.** Text is normalised and case-folded as by Unicode's NFKC_Casefold: however an
    accent is written, it is the same word. Soft hyphens, zero-width joiners and other ignorable
    characters are dropped, decimal digits of all scripts are 0 to 9, a dotted capital I is an i.

    **Words.** By the rule, which starts from UAX #29 with cuts and additions for ranking, a word is
    a run of letters, digits, underscores and the marks that follow them, with

    - an apostrophe or & between letters: don't, O'Reilly, AT&T (an apostrophe separates in Catalan,
      French, Irish and Italian, which write articles so);
    - a point or comma between digits: 3.5, 1,000;
    - a point or slash between single ASCII letters: U.S., I/O;
    - ++ after a letter, where no letter follows, and # after a single one: C++, C#.

    Any other character separates: e-mail and node.js are two words each, found by either, best by
    both. Words have two characters at least, but for an ASCII capital that stands alone between
    spaces or before a comma and the like (R, vitamin C), and a character that is the whole text.

    **Scripts without spaces.** Runs of Chinese, Japanese or Korean letters, of Thai, Lao, Khmer or
    Burmese give overlapping pairs of letters, with the marks of each, so that any two letters of a
    text are found. A letter with no neighbour of its script is a word. One letter so finds texts
    where it stands alone, and not words that it is part of.

    **Stop words** are left out of what is encoded, but for a text that has no other word: "To be or
    not to be" keeps all. Documents of an `InvertedIndex`, and what `fit` learns, have besides
    those in runs of three or more, where such a query finds them (1 % of English text); and
    all of those of another language's list, since those lists are long. BM25 lengths count them.

    A file has all settings; callables are given to `load`, as `stemmer` and `pattern`, or to
    `supply`. Nor is a file trusted with a regular expression that could run for ever: give back, in
    the same way, a pattern that is neither runs of word characters nor one class of characters and
    a `+`. Files of before there was the word rule keep their pattern, and leave out all stop words.

    Raises TypeError or ValueError for an argument of the wrong kind, an unknown language (all are
    listed) or a bad pattern, and ImportError for stop words of a package that is not installed.

    Examples
    --------
    >>> tokenizer = Tokenizer()
    >>> tokenizer.fit(["The quick brown foxes", "a lazy dog"])
    Tokenizer(5 terms, language='english')
    >>> tokenizer.encode(["the brown dogs", "quick cats"])
    TokenBatch(ids=array([ 1,  4,  0, -1], dtype=int32), indptr=array([0, 2, 4]))
    >>> tokenizer.terms
    ['quick', 'brown', 'fox', 'lazi', 'dog']
    >>> tokenizer.count_tokens("C++ or C# for 3.5 %")
    3
    """

    def __init__(
        self,
        *,
        language: str | None = "english",
        lowercase: bool = True,
        fold_accents: bool | None = None,
        stopwords: a.StopWords = a.FROM_LANGUAGE,
        stemmer: a.Stemmer = a.FROM_LANGUAGE,
        pattern: a.Pattern = None,
    ):
        settings = language, lowercase, fold_accents, stopwords, stemmer, pattern
        self._analyzer = a.Analyzer(*settings)
        self._vocabulary = vocabulary_of(StringTable())
        self._model: str | None = None  # the text of a tokenizer.json
        self._lock = new_lock()  # of writers, and of those to whom the tokenizer belongs
        self._growing = new_lock()  # held while the vocabulary grows
        self._buffers: list[TextBuffers] = []  # that no thread is using

    @classmethod
    def from_file(cls, path: PathLike) -> "Tokenizer":
        """Open a Hugging Face ``tokenizer.json``: the ids and counts of the model itself.

        Texts get no special tokens. Raises TypeError for what is no path, ValueError if the file is
        no tokenizer.json, and ImportError without the package tokenizers:
        ``pip install 'llmds_nb[text]'``.
        """
        with open(validation.path(path), encoding="utf-8") as file:
            return cls._from_model(file.read())

    @classmethod
    def _from_model(cls, model):
        try:
            from tokenizers import Tokenizer as Model
        except ImportError:
            raise missing_extra("Tokenizer.from_file", "tokenizers") from None
        try:
            compiled = Model.from_str(model)
        except Exception as error:  # the package raises a bare Exception
            raise ValueError(f"not a tokenizer.json: {error}") from None

        def tokens(text):
            return compiled.encode(a.without_surrogates(text), add_special_tokens=False).tokens

        tokenizer = cls(language=None, lowercase=False, pattern=tokens)
        tokenizer._model = model
        vocabulary = compiled.get_vocab(with_added_tokens=True)
        last = max(vocabulary.values(), default=-1)
        if last >= len(model) + _SPARE_IDS:
            raise ValueError(
                f"not a tokenizer.json: id {last} in a file of {len(model)} characters"
            )
        # A gap in the ids is filled with a string that no token can be, to keep every id in place.
        terms = [f"\0unused {i}" for i in range(last + 1)]
        for term, id_ in vocabulary.items():
            terms[id_] = term
        table = StringTable()
        table.add(terms)
        tokenizer._vocabulary = vocabulary_of(table)
        return tokenizer

    @property
    def language(self) -> str | None:
        """The language that has set what was not given."""
        return self._analyzer.language

    @property
    def lowercase(self) -> bool:
        """Whether upper and lower case are the same."""
        return self._analyzer.lowercase

    @property
    def fold_accents(self) -> bool:
        """Whether letters are the same with and without accents."""
        return self._analyzer.fold_accents

    @property
    def stopwords(self) -> frozenset[str]:
        """The words that are left out of queries that have others."""
        return self._analyzer.stopwords

    @property
    def stemmer(self) -> a.Stemmer:
        """The stemmer's language or function."""
        return self._analyzer.stemmer

    @property
    def pattern(self) -> a.Pattern:
        """The regular expression or function that gives the words; None: the word rule."""
        return self._analyzer.pattern

    def supply(self, *, stemmer: a.Stem | None = None, pattern: a.Pattern | None = None) -> None:
        """Set what a loaded tokenizer lacks; ValueError where it has it, or for another pattern."""
        # The cache is empty, since nothing is encoded while a callable is missing.
        self._analyzer = self._analyzer.supplied(stemmer, pattern)

    @property
    def terms(self) -> list[str]:
        """Every term of the vocabulary, at the position that is its id. A new list."""
        vocabulary = self._vocabulary
        return vocabulary.table.texts(range(vocabulary.n))

    @property
    def nbytes(self) -> int:
        """Bytes of the vocabulary's arrays."""
        return self._vocabulary.table.nbytes

    def __len__(self) -> int:
        return self._vocabulary.n

    def __repr__(self) -> str:
        how = "from a tokenizer.json"
        if self._model is None:
            settings = {"language": self.language, "stemmer": self.stemmer, "pattern": self.pattern}
            differs = settings["stemmer"] != self.language, self.pattern is not None
            shown = ["language", *itertools.compress(["stemmer", "pattern"], differs)]
            how = ", ".join(f"{name}={settings[name]!r}" for name in shown)
        return f"Tokenizer({len(self):,} terms, {how})"

    def __contains__(self, term: object) -> bool:
        if not isinstance(term, str):
            return False
        return bool(self._vocabulary.find([validation.exact(term)])[0] >= 0)

    def fit(self, texts: a.Texts) -> "Tokenizer":
        """Add every term of `texts` to the vocabulary, or none if it fails; return self.

        About a million characters are held at a time. Raises TypeError for a text that is no str.
        """
        stream, _ = validation.text_stream(texts)
        with self._lock:
            self._check_not_growing()
            with self._growing:
                growth = Growth(self)
                for _ in growth.batches(stream, documents=True):
                    pass
                vocabulary = growth.vocabulary()
            self._vocabulary = vocabulary
        return self

    def encode(self, texts: a.Texts) -> TokenBatch:
        """The ids of the terms of each text, stop words left out, unknown terms -1.

        One text counts as a list of one. O(characters). Raises TypeError for a text that is no str,
        and ValueError where the tokenizer was loaded and lacks a callable, see `supply`.
        """
        checked = [texts] if type(texts) is str else validation.texts(texts)
        batch = self._encode(checked, self._vocabulary)
        batch.tokenizer = self
        return batch

    @overload
    def count_tokens(self, text: str) -> int: ...  # type: ignore[overload-overlap]

    @overload
    def count_tokens(self, text: Iterable[str]) -> Int64s: ...

    def count_tokens(self, text: a.Texts) -> int | Int64s:
        """How many ids `encode` gives: an int for one text, int64[n] for a list of texts."""

        def kept(terms):
            return np.array([0 if term else k.DROPPED for term in terms], np.int32)

        parts = list(self._batches(validation.texts(text, "text"), kept))
        counts = np.diff(joined(parts).indptr)
        return int(counts[0]) if isinstance(text, str) else counts

    # What follows, down to `_encode`, is also for those to whom a tokenizer belongs.

    def _check_not_growing(self) -> None:
        """Refuse to write to the vocabulary within a write: texts may come from a caller's code."""
        if is_held(self._growing):
            raise RuntimeError("the vocabulary cannot grow while texts are being added to it")

    def _with_vocabulary(self, vocabulary: Vocabulary) -> "Tokenizer":
        """One that splits alike, for the same owner, with a vocabulary of its own."""
        other = object.__new__(Tokenizer)
        vars(other).update(vars(self), _vocabulary=vocabulary)
        return other

    def _find_term(self, term) -> int:
        """The id of `term`, as it is or as the one term that it is analyzed to; or ABSENT."""
        term = validation.text(term, "term")
        id_ = int(self._vocabulary.find([term])[0])
        if id_ == ABSENT and not self._analyzer.missing:
            ids = self._encode([term], self._vocabulary).ids
            id_ = int(ids[0]) if len(ids) == 1 else ABSENT
        return id_

    def _encode(self, texts, vocabulary) -> TokenBatch:
        """`encode` of a checked list by a vocabulary, the present one or that of a while ago."""
        if len(texts) != 1:
            return self._encode_all(texts, vocabulary)
        try:
            buffers = self._buffers.pop()
        except IndexError:
            buffers = TextBuffers(_SHORT_CHARS)
        if not self._encode_known(texts[0], vocabulary, buffers):
            self._buffers.append(buffers)
            return self._encode_all(texts, vocabulary)
        indptr = buffers.token_ptr.copy()
        ids = buffers.tokens[: buffers.token_ends[1]].copy()
        self._buffers.append(buffers)
        return tuple.__new__(TokenBatch, (ids, indptr))  # 4 % of the call faster than by name

    def _encode_known(self, text, vocabulary, buffers) -> bool:
        """Encode a text that fits into buffers, if the cache has its words; return whether."""
        analyzer, n = self._analyzer, len(text)
        fold = analyzer.quick_fold
        if fold is not None and n <= len(buffers.text) and text.isascii():
            buffers.text[:n] = text.encode().translate(fold)
            buffers.text_ptr[1] = n
        elif not analyzer.spell_one(text, buffers):
            return False
        return vocabulary.cache.encode_one(buffers, analyzer.rule)

    def _encode_all(self, texts, vocabulary) -> TokenBatch:
        """`_encode` by the word cache, which learns new words; in one kernel call where it can."""
        analyzer = self._analyzer
        analyzer.check_complete()
        together = texts[0] if len(texts) == 1 else "".join(texts)
        if len(together) > _CHUNK_CHARS:
            if analyzer.stemmer is None:  # then a term is found as quickly as a word
                return joined(list(self._batches(texts, vocabulary.find)))
            parts = a.some_at_a_time(texts, _CHUNK_CHARS)
            return joined([self._encode_many(part, vocabulary) for part in parts])
        cache = vocabulary.cache

        def look_up(words):
            return analyzer.ids(words, vocabulary.find)

        if not analyzer.rule:
            lists = [cache.find(analyzer.words(text), look_up) for text in texts]
        elif analyzer.takes(together):
            spelled = analyzer.spelled(texts, together)
            return TokenBatch(*cache.encode(*spelled, analyzer.rule, look_up))
        else:
            plain = [text for text in texts if text.isascii()]
            ids, indptr = cache.encode(*analyzer.spelled(plain), analyzer.rule, look_up)
            by_kernel = (ids[start:stop].tolist() for start, stop in pairwise(indptr.tolist()))
            lists = [
                next(by_kernel) if t.isascii() else cache.find(analyzer.words(t), look_up)
                for t in texts
            ]
        ids = np.array(list(chain.from_iterable(lists)), np.int32)
        return TokenBatch(ids, offsets(list(map(len, lists))))

    def _encode_many(self, texts, vocabulary) -> TokenBatch:
        """`_encode_all` of long texts: each distinct word is looked up once, and kept."""
        numbers, word_ptr, words = self._analyzer.word_stream(texts)
        ids = vocabulary.cache.ids(words, lambda new: self._analyzer.ids(new, vocabulary.find))
        is_stop = ids < k.UNSET
        if is_stop.any():
            kinds = np.where(ids == k.DROPPED, 2, is_stop).astype(np.uint8)
            none = len(numbers) + 1
            k.stop_words_drop(numbers, word_ptr, kinds, none, np.empty(len(words), np.bool_))
            ids[is_stop] = k.STOP - ids[is_stop]
        return _mapped(numbers, word_ptr, ids)

    def _batches(self, texts, ids_of, documents=False) -> Iterator[TokenBatch]:
        """Yield the tokens of some texts at a time; `ids_of` gives the ids of terms or "".

        Those of documents, for an index, have stop words in runs as well.
        """
        self._analyzer.check_complete()
        for some in a.some_at_a_time(texts, _CHUNK_CHARS):
            yield self._batch(some, ids_of, documents)  # which keeps nothing until the next

    def _batch(self, texts, ids_of, documents) -> TokenBatch:
        analyzer = self._analyzer
        numbers, word_ptr, words = analyzer.word_stream(texts)
        terms, kinds = analyzer.terms(words)
        if kinds is not None:
            kept = kinds != 1
            run = analyzer.stop_run if documents else len(numbers) + 1
            k.stop_words_drop(numbers, word_ptr, kinds, run, kept)
            terms = [t if is_kept else "" for t, is_kept in zip(terms, kept, strict=True)]
        return _mapped(numbers, word_ptr, ids_of(terms))

    def _state(self):
        callables = {name for name, part in self._parts().items() if callable(part)}
        header = self._analyzer.settings(callables)
        if self._model is not None:
            header["pattern"] = None
        vocabulary = self._vocabulary
        arrays = vocabulary.table.arrays(vocabulary.n)
        if self._model is not None:
            arrays["model"] = np.frombuffer(self._model.encode(), np.uint8)
        return arrays, header

    def _parts(self):
        given = {} if self._model else {"stemmer": self.stemmer, "pattern": self.pattern}
        return {
            name: value
            for name, value in given.items()
            if callable(value) or (name == "pattern" and value and not a.is_quick(value))
        }

    @classmethod
    def _from_state(cls, arrays, header, *, stemmer=None, pattern=None):
        tokenizer = cls._saved(arrays, header)
        with checking_parts():
            tokenizer.supply(stemmer=stemmer, pattern=pattern)
        return tokenizer

    @classmethod
    def _saved(cls, arrays, header):
        """The tokenizer without its callables."""
        if "model" in arrays:
            return cls._from_model(arrays["model"].tobytes().decode())
        tokenizer = cls(language=None)
        tokenizer._analyzer = a.Analyzer.of_settings(header)
        tokenizer._vocabulary = vocabulary_of(StringTable.from_arrays(arrays))
        return tokenizer

    def check(self) -> None:
        """Assert the invariants of the vocabulary's table (`kernels.tokenize`)."""
        with self._growing:  # a table grows in place
            vocabulary = self._vocabulary
            vocabulary.table.check()
            assert vocabulary.n <= len(vocabulary.table)

    @staticmethod
    def _warmup() -> None:
        texts = ["warm up the kernels " * 60, "warm \u00fcp"]
        tokenizer = Tokenizer().fit(texts)
        tokenizer.encode(texts)
        Tokenizer._from_state(*tokenizer._state())


class Growth:
    """Texts whose new terms are added to a vocabulary aside, not visible until published.

    The caller holds the tokenizer's `_lock` until then, and `_growing` while texts are read.
    `earlier` are changes of the same write that are to be published together with those of this.
    """

    def __init__(self, tokenizer: Tokenizer, earlier: Iterable[tuple[Any, str, Any]] = ()):
        self._tokenizer = tokenizer
        self._before = tokenizer._vocabulary
        for owner, name, value in earlier:
            if owner is tokenizer and name == "_vocabulary":
                self._before = value
        self.table = self._before.table.successor(self._before.n)

    def batches(self, texts: Iterable[str], *, documents: bool = False) -> Iterator[TokenBatch]:
        """Yield the tokens of some texts at a time; no term is unknown.

        Those of documents, for an index, have some stop words as well: see `Tokenizer`.
        """
        return self._tokenizer._batches(texts, self.table.add, documents)

    def vocabulary(self) -> Vocabulary:
        """What it has grown to."""
        n, before = len(self.table), self._before
        return before if n == before.n == len(before.table) else vocabulary_of(self.table)
