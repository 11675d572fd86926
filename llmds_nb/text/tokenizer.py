"""Tokenizer: texts to term ids, and the vocabulary that gives the ids."""

from collections.abc import Iterable, Iterator
from itertools import chain, pairwise
from typing import Any, NamedTuple, overload

import numpy as np

from .._core import validation
from .._core.forking import is_held, new_lock
from .._core.storage import Stored, checking_parts
from .._core.typing import Int32s, Int64s, PathLike
from ..errors import CorruptFileError
from ..primitives.status import ABSENT
from . import analyzer as a
from .kernels import tokenize as k
from .vocabulary import StringTable, TextBuffers, Vocabulary, offsets, vocabulary_of

_SHORT_CHARS = 1 << 10  # of a text that is encoded into memory that is kept
_CHUNK_CHARS = 1 << 20  # texts are encoded so much at a time: the words stay in the CPU cache


class _Tokens(NamedTuple):
    ids: Int32s  # int32[n_tokens]
    indptr: Int64s  # int64[n + 1]


class TokenBatch(_Tokens):
    """Tokens of n texts: text i has ids[indptr[i]:indptr[i + 1]]; -1 is an unknown term.

    ids int32[n_tokens], indptr int64[n + 1].
    """

    # It tells an index that has another tokenizer, or has dropped terms since, what the ids mean.
    # None for those that a caller has made or unpickled: they are ids of the index.
    tokenizer: "Tokenizer | None" = None

    def __reduce__(self):
        return TokenBatch, tuple(self)

    def __copy__(self) -> "TokenBatch":
        batch = TokenBatch(*self)
        batch.tokenizer = self.tokenizer
        return batch

    def __deepcopy__(self, memo: dict) -> "TokenBatch":
        batch = TokenBatch(self.ids.copy(), self.indptr.copy())
        batch.tokenizer = self.tokenizer
        return batch


def joined(parts: list[TokenBatch]) -> TokenBatch:
    """Several batches as one."""
    if len(parts) == 1:
        return parts[0]
    ids = [part.ids for part in parts] or [np.zeros(0, np.int32)]
    counts = [np.diff(part.indptr) for part in parts] or [np.zeros(0, np.int64)]
    return TokenBatch(np.concatenate(ids), offsets(np.concatenate(counts)))


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


def _some_at_a_time(texts):
    some, size = [], 0
    for text in texts:
        some.append(text)
        size += len(text)
        if size + len(some) >= _CHUNK_CHARS:  # empty texts take memory as well
            yield some
            some, size = [], 0
    if some:
        yield some


class Tokenizer(Stored):
    """Split texts into words and number them: Unicode words, case, stop words, stemming.

    A tokenizer owns a vocabulary, empty at first. `fit` grows it, and so do `InvertedIndex.add` and
    `LsaEncoder.fit` with the tokenizer they were given; `encode` never does and gives unknown terms
    the id -1. Ids count up as terms are met and never change, so several structures may share one
    tokenizer. ASCII text with a plain-word pattern takes a compiled path, every other text Python's
    `re`, with the same result. Thread-safe.

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

    A file holds no callables: give them to `load`, as `stemmer` and `pattern`, or to `supply`. Nor
    is a file trusted with a regular expression that could run for ever: give back, in the same way,
    a pattern that is neither runs of word characters nor one class of characters and a `+`.

    Raises TypeError or ValueError for an argument of the wrong kind, an unknown language or a bad
    pattern, and ImportError for a Snowball language without PyStemmer.

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

    def __init__(
        self,
        *,
        lowercase: bool = True,
        stopwords: a.StopWords = "english",
        stemmer: a.Stemmer = None,
        pattern: a.Pattern = a.PATTERN,
    ):
        self._analyzer = a.Analyzer(lowercase, stopwords, stemmer, pattern)
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
            raise a.missing_extra("Tokenizer.from_file", "tokenizers") from None
        try:
            compiled = Model.from_str(model)
        except Exception as error:  # the package raises a bare Exception
            raise ValueError(f"not a tokenizer.json: {error}") from None

        def tokens(text):
            return compiled.encode(a.without_surrogates(text), add_special_tokens=False).tokens

        tokenizer = cls(lowercase=False, stopwords=None, pattern=tokens)
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
    def lowercase(self) -> bool:
        """Whether texts are lower-cased."""
        return self._analyzer.lowercase

    @property
    def stopwords(self) -> frozenset[str]:
        """The words that are left out."""
        return self._analyzer.stopwords

    @property
    def stemmer(self) -> a.Stemmer:
        """The stemmer's language or function."""
        return self._analyzer.stemmer

    @property
    def pattern(self) -> a.Pattern:
        """The regular expression or function that gives the words."""
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
        how = f"stemmer={self.stemmer!r}" if self._model is None else "from a tokenizer.json"
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
                for _ in growth.batches(stream):
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
        ids = buffers.tokens[: indptr[1]].copy()
        self._buffers.append(buffers)
        return tuple.__new__(TokenBatch, (ids, indptr))  # 4 % of the call faster than by name

    def _encode_known(self, text, vocabulary, buffers) -> bool:
        """Encode an ASCII text that fits into buffers, if the cache has its words."""
        analyzer = self._analyzer
        n, shortest = len(text), analyzer.shortest
        if shortest is None or n > len(buffers.text) or not text.isascii():
            return False
        if analyzer.missing:
            analyzer.check_complete()
        buffers.text[:n] = text.encode().translate(analyzer.fold)
        buffers.text_ptr[1] = n
        return vocabulary.cache.encode_one(buffers, shortest)

    def _encode_all(self, texts, vocabulary) -> TokenBatch:
        """`_encode` by the word cache, which learns new words; ASCII texts in one kernel call."""
        analyzer = self._analyzer
        analyzer.check_complete()
        together = texts[0] if len(texts) == 1 else "".join(texts)
        if len(together) > _CHUNK_CHARS:
            return joined(list(self._batches(texts, vocabulary.find)))
        cache = vocabulary.cache

        def look_up(words):
            return vocabulary.find(analyzer.terms(words))

        if analyzer.shortest is None:
            lists = [cache.find(analyzer.words(text), look_up) for text in texts]
        elif together.isascii():
            return self._encode_ascii(cache, together, texts, look_up)
        else:
            plain = [text for text in texts if text.isascii()]
            ids, indptr = self._encode_ascii(cache, "".join(plain), plain, look_up)
            by_kernel = (ids[start:stop].tolist() for start, stop in pairwise(indptr.tolist()))
            lists = [
                next(by_kernel) if t.isascii() else cache.find(analyzer.words(t), look_up)
                for t in texts
            ]
        ids = np.array(list(chain.from_iterable(lists)), np.int32)
        return TokenBatch(ids, offsets(list(map(len, lists))))

    def _encode_ascii(self, cache, together, texts, look_up) -> TokenBatch:
        data = np.frombuffer(self._analyzer.folded(together), np.uint8)
        text_ptr = offsets(list(map(len, texts)))
        return TokenBatch(*cache.encode(data, text_ptr, self._analyzer.shortest, look_up))

    def _batches(self, texts, ids_of) -> Iterator[TokenBatch]:
        """Yield the tokens of some texts at a time; `ids_of` gives the ids of terms or ""."""
        self._analyzer.check_complete()
        for some in _some_at_a_time(texts):
            numbers, word_ptr, words = self._analyzer.word_stream(some)
            ids = ids_of(self._analyzer.terms(words))
            out, out_ptr = np.empty(len(numbers), np.int32), np.empty(len(word_ptr), np.int64)
            n = k.tokens_map(numbers, word_ptr, ids, out, out_ptr)
            yield TokenBatch(out[:n], out_ptr)

    def _state(self):
        analyzer = self._analyzer
        pattern = self.pattern if analyzer.withheld is None else analyzer.withheld
        settings = {"stemmer": self.stemmer, "pattern": None if self._model else pattern}
        missing = [n for n in analyzer.missing if n != "pattern" or analyzer.withheld is None]
        callables = missing + [name for name, part in self._parts().items() if callable(part)]
        header = {name: None if name in callables else v for name, v in settings.items()}
        header |= {"lowercase": self.lowercase, "stopwords": sorted(self.stopwords)}
        header["callables"] = callables
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
            if callable(value) or (name == "pattern" and not a.is_quick(value))
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
        settings = {name: header[name] for name in ("lowercase", "stopwords", "stemmer")}
        pattern, missing = header["pattern"], header["callables"]
        if not (isinstance(missing, list) and set(missing) <= {"stemmer", "pattern"}):
            raise CorruptFileError(f"a tokenizer has no callables {missing}")
        if not (pattern is None or isinstance(pattern, str)):
            raise CorruptFileError(f"the pattern is {pattern!r}")
        is_quick = pattern is not None and a.is_quick(pattern)
        tokenizer = cls(**settings, pattern=pattern if is_quick else a.PATTERN)
        if pattern is not None and not is_quick:
            tokenizer._analyzer.withheld = pattern
            missing = [*missing, "pattern"]
        tokenizer._analyzer.missing = tuple(dict.fromkeys(missing))
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

    def batches(self, texts: Iterable[str]) -> Iterator[TokenBatch]:
        """Yield the tokens of some texts at a time; no term is unknown."""
        return self._tokenizer._batches(texts, self.table.add)

    def vocabulary(self) -> Vocabulary:
        """What it has grown to."""
        n, before = len(self.table), self._before
        return before if n == before.n == len(before.table) else vocabulary_of(self.table)
