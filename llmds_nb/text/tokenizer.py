"""Tokenizer: texts to term ids, and the vocabulary that gives the ids."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import overload

import numpy as np

from .._core import validation
from .._core.typing import Int64s, PathLike
from ..primitives.status import ABSENT
from .analyzer import PATTERN, STOPWORDS, Analyzer, missing_extra, without_surrogates
from .token_batch import TokenBatch, joined, joined_lists, kept_or_dropped, lists_of, mapped
from .vocabulary import StringTable, offsets
from .word_cache import WordCache

__all__ = ["STOPWORDS", "TokenBatch", "Tokenizer", "encode_into"]

_CHUNK_CHARS = 1 << 20  # texts are encoded so much at a time: the words stay in the CPU cache


def encode_into(tokenizer: "Tokenizer", text: str, scratch) -> int:
    """Encode one short text into memory of the caller's. Internal: for the searches of bm25.

    Parameters
    ----------
    tokenizer : Tokenizer
    text : str
    scratch : object
        With `text`, a memoryview of uint8, at address `text_at`; and `tokens`, an int32 array no
        shorter than `text`, at address `tokens_at`. No other thread may use them meanwhile.

    Returns
    -------
    int
        How many ids were written to `scratch.tokens`, or ABSENT if it cannot hold all.
    """
    analyzer = tokenizer._analyzer
    n, shortest = len(text), analyzer.shortest
    if shortest is not None and n <= len(scratch.text) and text.isascii():
        analyzer.check_complete()
        scratch.text[:n] = text.encode().translate(analyzer.fold)
        n_ids = tokenizer._cache.encode_one(scratch.text_at, n, shortest, scratch.tokens_at)
        if n_ids != ABSENT:
            return n_ids
    ids = tokenizer._encode([text]).ids
    if len(ids) > len(scratch.tokens):
        return ABSENT
    scratch.tokens[: len(ids)] = ids
    return len(ids)


class Tokenizer:
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

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong kind, an unknown language or a bad pattern.
    ImportError
        A Snowball language without PyStemmer.

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
        stopwords: str | Iterable[str] | None = "english",
        stemmer: str | Callable[[str], str] | None = None,
        pattern: str | Callable[[str], Iterable[str]] = PATTERN,
    ):
        self._analyzer = Analyzer(lowercase, stopwords, stemmer, pattern)
        self._table = StringTable()
        self._cache = WordCache()
        self._lock = threading.RLock()  # of writers
        self._is_growing = False
        self._model: str | None = None  # the text of a tokenizer.json

    @classmethod
    def from_file(cls, path: PathLike) -> "Tokenizer":
        """Open a Hugging Face ``tokenizer.json``: the ids and counts of the model itself.

        The vocabulary is the file's, without special tokens being added to texts; it needs
        ``pip install 'llmds_nb[text]'``.

        Raises
        ------
        ValueError
            The file is no tokenizer.json.
        ImportError
            The package tokenizers is not installed.
        """
        with open(path, encoding="utf-8") as file:
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
            return compiled.encode(without_surrogates(text), add_special_tokens=False).tokens

        tokenizer = cls(lowercase=False, stopwords=None, pattern=tokens)
        tokenizer._model = model
        vocabulary = compiled.get_vocab(with_added_tokens=True)
        # A gap in the ids is filled with a string that no token can be, to keep every id in place.
        terms = [f"\0unused {i}" for i in range(max(vocabulary.values(), default=-1) + 1)]
        for term, id_ in vocabulary.items():
            terms[id_] = term
        tokenizer._table.add(terms)
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
    def stemmer(self) -> str | Callable[[str], str] | None:
        """The stemmer's language or function."""
        return self._analyzer.stemmer

    @property
    def pattern(self) -> str | Callable[[str], Iterable[str]]:
        """The regular expression or function that gives the words."""
        return self._analyzer.pattern

    def supply(
        self,
        *,
        stemmer: Callable[[str], str] | None = None,
        pattern: Callable[[str], Iterable[str]] | None = None,
    ) -> None:
        """Set the callables that a file could not hold, after loading what used them.

        Raises
        ------
        ValueError
            The tokenizer has one already.
        """
        # The cache is empty, since nothing is encoded while a callable is missing.
        self._analyzer.supply("stemmer", stemmer)
        self._analyzer.supply("pattern", pattern)

    @property
    def terms(self) -> list[str]:
        """Every term of the vocabulary, at the position that is its id. A new list."""
        return self._table.texts(range(len(self._table)))

    @property
    def nbytes(self) -> int:
        """Bytes of the vocabulary's arrays."""
        return self._table.nbytes

    def __len__(self) -> int:
        return len(self._table)

    def __repr__(self) -> str:
        if self._model is not None:
            return f"Tokenizer({len(self):,} terms, from a tokenizer.json)"
        return f"Tokenizer({len(self):,} terms, stemmer={self.stemmer!r})"

    def __contains__(self, term: object) -> bool:
        return isinstance(term, str) and bool(self._table.find([term])[0] != ABSENT)

    def fit(self, texts: str | Iterable[str]) -> "Tokenizer":
        """Add every term of `texts` to the vocabulary, or none if it fails; return self.

        Parameters
        ----------
        texts : str or iterable of str
            One text counts as a list of one. About a million characters are held at a time.

        Raises
        ------
        TypeError
            A text is no str.
        """
        stream, _ = validation.text_stream(texts)
        with self._growing():
            for _ in self._grown(stream):
                pass
        return self

    def encode(self, texts: str | Iterable[str]) -> TokenBatch:
        """Return the ids of the terms of each text, stop words left out, unknown terms -1.

        Parameters
        ----------
        texts : str or iterable of str
            One text counts as a list of one.

        Returns
        -------
        TokenBatch
            ids int32[n_tokens] and indptr int64[n + 1]. O(characters).

        Raises
        ------
        TypeError
            A text is no str.
        ValueError
            The tokenizer was loaded and lacks a callable, see `supply`.
        """
        return self._encode(validation.texts(texts))

    @overload
    def count_tokens(self, text: str) -> int: ...  # type: ignore[overload-overlap]

    @overload
    def count_tokens(self, text: Iterable[str]) -> Int64s: ...

    def count_tokens(self, text: str | Iterable[str]) -> int | Int64s:
        """Return how many ids `encode` gives: an int for one text, int64[n] for a list of texts."""
        texts = validation.texts(text, "text")
        parts = [mapped(*chunk, kept_or_dropped) for chunk in self._chunks(texts)]
        counts = np.diff(joined(parts).indptr)
        return int(counts[0]) if isinstance(text, str) else counts

    # What follows, down to `_find_term`, is also for the structures that own a tokenizer.

    def _encode(self, texts, grow=False) -> TokenBatch:
        """`encode` of a checked list; with `grow`, unknown terms are added (all or none)."""
        if grow:
            with self._growing():
                return joined(list(self._grown(texts)))
        return self._encode_cached(texts)

    @contextmanager
    def _growing(self) -> Iterator[None]:
        """Let the vocabulary grow: a block that fails has added nothing. Other writers wait.

        Within the block texts may come from the caller's own code: if that writes to this
        tokenizer, it is refused.
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
                self._cache = WordCache()  # another one, since readers may be using the old one
                self._is_growing = False

    def _grown(self, texts) -> Iterator[TokenBatch]:
        """Yield the tokens of some texts at a time, adding unknown terms; within `_growing`."""
        for chunk in self._chunks(texts):
            yield mapped(*chunk, self._table.add)

    def _find_term(self, term) -> int:
        """The id of `term`, as it is or as the one term that it is analyzed to; or ABSENT."""
        if not isinstance(term, str):
            raise TypeError(f"term must be a str, not {type(term).__name__}")
        id_ = int(self._table.find([term])[0])
        if id_ == ABSENT and not self._analyzer.missing:
            ids = self._encode([term]).ids
            id_ = int(ids[0]) if len(ids) == 1 else ABSENT
        return id_

    def _encode_cached(self, texts) -> TokenBatch:
        """`_encode` by the word cache: in one kernel call where all texts are ASCII."""
        analyzer = self._analyzer
        analyzer.check_complete()
        together = texts[0] if len(texts) == 1 else "".join(texts)
        if len(together) > _CHUNK_CHARS:
            return joined([mapped(*chunk, self._table.find) for chunk in self._chunks(texts)])
        cache = self._cache  # the same for all texts, whatever is added meanwhile
        if analyzer.shortest is None:
            return joined_lists([cache.find(analyzer.words(t), self._look_up) for t in texts])
        if together.isascii():
            return self._encode_ascii(cache, together, texts)
        plain = [text for text in texts if text.isascii()]
        by_kernel = lists_of(self._encode_ascii(cache, "".join(plain), plain))
        ids = [
            next(by_kernel) if t.isascii() else cache.find(analyzer.words(t), self._look_up)
            for t in texts
        ]
        return joined_lists(ids)

    def _encode_ascii(self, cache, together, texts) -> TokenBatch:
        data = np.frombuffer(self._analyzer.folded(together), np.uint8)
        text_ptr = offsets(list(map(len, texts)))
        return TokenBatch(*cache.encode(data, text_ptr, self._analyzer.shortest, self._look_up))

    def _look_up(self, words):
        return self._table.find(self._analyzer.terms(words))

    def _chunks(self, texts) -> Iterator[tuple[np.ndarray, np.ndarray, list[str]]]:
        """Yield (word numbers, word_ptr, term of each number or "") for some texts at a time."""
        self._analyzer.check_complete()
        chunk: list[str] = []
        size = 0
        for text in texts:
            chunk.append(text)
            size += len(text)
            if size + len(chunk) >= _CHUNK_CHARS:  # empty texts take memory as well
                yield self._chunk(chunk)
                chunk, size = [], 0
        if chunk:
            yield self._chunk(chunk)

    def _chunk(self, texts):
        numbers, word_ptr, words = self._analyzer.word_stream(texts)
        return numbers, word_ptr, self._analyzer.terms(words)

    def _state(self):
        callables = [] if self._model else self._analyzer.callables()
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
        tokenizer._analyzer.missing = tuple(header["callables"])
        tokenizer._table = StringTable.from_arrays(arrays)
        return tokenizer

    def check(self) -> None:
        """Assert the invariants of the vocabulary's table (`kernels.tokenize`)."""
        self._table.check()

    @staticmethod
    def _warmup() -> None:
        texts = ["warm up the kernels " * 60, "warm \u00fcp"]
        tokenizer = Tokenizer().fit(texts)
        tokenizer.encode(texts)
        StringTable.from_arrays(tokenizer._table.arrays())
