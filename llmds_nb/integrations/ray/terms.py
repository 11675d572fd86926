"""Which document frequencies of a collection are known: shards are asked for others only."""

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from llmds_nb import Tokenizer
from llmds_nb.pipeline import CollectionStatistics

from ..._core.forking import new_lock

_MAX_TERMS = 1 << 16  # that are remembered


class TermCache:
    """Document frequencies of the terms that queries had, under one version of every shard.

    tokenizer: that of the shards; its terms are not used.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._given, self._lock = tokenizer, new_lock()
        self._forget()

    def _forget(self):
        self._tokenizer, self._terms = copy.copy(self._given), []
        self._known: tuple[Any, int, int, dict[str, int]] = (None, 0, 0, {})

    def statistics(
        self,
        key: Any,
        texts: Sequence[str],
        ask_for: Callable[[list[str]], CollectionStatistics],
    ) -> CollectionStatistics:
        """The statistics for queries, under the versions `key`.

        `ask_for` gives them for the texts that have a term which is not known.
        """
        terms = self._terms_of(texts)
        known_key, n_docs, n_tokens, df = self._known
        if known_key != key:
            df = {}
        unknown = [
            text
            for text, own in zip(texts, terms, strict=True)
            if any(term is None or term not in df for term in own)
        ]
        asked: dict[str, int] = {}
        if unknown or known_key != key:
            n_docs, n_tokens, asked = ask_for(unknown or list(texts[:1]))
            every = {term for own in terms for term in own if term is not None}
            df.update((term, asked.get(term, 0)) for term in every if term not in df)
            self._known = key, n_docs, n_tokens, df
        wanted = {term: df[term] for own in terms for term in own if term is not None}
        held = {term: n for term, n in wanted.items() if n}
        return CollectionStatistics(n_docs, n_tokens, held | asked)

    def _terms_of(self, texts) -> list[list[str | None]]:
        """The terms of each text; None for one that only the shards know."""
        with self._lock:
            if len(self._terms) > _MAX_TERMS:
                self._forget()
            tokens = self._tokenizer.encode(texts)
            if (tokens.ids < 0).any():
                tokens = self._tokenizer.fit(texts).encode(texts)
            top = max(tokens.ids.tolist(), default=-1)
            if top >= len(self._terms):
                self._terms = self._tokenizer.terms
            found = [self._terms[i] if i >= 0 else None for i in tokens.ids.tolist()]
            ptr = tokens.indptr.tolist()
        return [found[begin:end] for begin, end in itertools.pairwise(ptr)]
