"""What a write to an index replaces, all at once, and what searches of it share."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .._core.state import Handle
from ..text.tokenizer import Tokenizer
from ..text.vocabulary import StringTable, Vocabulary, vocabulary_of
from . import search as searching, segments as segs
from .collection import Collection

_FEW_TERMS = 1024  # a vocabulary of fewer is not searched for unused terms at a write


class Contents:
    """The documents and terms of an index: never changed, only replaced as a whole.

    What searches decode is kept with them, as long as its segment is in use.
    """

    __slots__ = ("as_part", "decoded", "next_id", "own_terms", "prepared", "snapshot", "tokenizer")

    def __init__(
        self,
        segments: Iterable[Any],
        next_id: int,
        tokenizer: Tokenizer,
        own_terms: int | None,
        before: "Contents | None" = None,
    ):
        earlier = None if before is None else before.snapshot
        self.snapshot: segs.Snapshot = segs.snapshot(segments, earlier)
        self.next_id = next_id
        self.tokenizer = tokenizer
        # None: others may use the tokenizer. Otherwise how many terms it had when those that are
        # unused were last looked for.
        self.own_terms = own_terms
        self.prepared: searching.Prepared | None = None  # of the latest search
        self.as_part: searching.Prepared | None = None  # the same in a larger collection
        # By the id of the `data` of a segment: removals replace a segment, but not its lists.
        known = {} if before is None else before.decoded
        kept = (id(segment.data) for segment in self.snapshot.segments)
        self.decoded: dict[int, Handle] = {key: known[key] for key in kept if key in known}

    def with_segments(self, segments: Iterable[Any]) -> "Contents":
        """The contents after a write that adds nothing."""
        return Contents(segments, self.next_id, self.tokenizer, self.own_terms, self)

    def with_added(self, segments: Sequence[Any], last_id: int, vocabulary: Vocabulary):
        """The contents after a write that adds documents whose terms are in `vocabulary`.

        They have another tokenizer if unused terms were dropped, which costs O(terms) and is done
        when their number has doubled.
        """
        tokenizer, own_terms = self.tokenizer, self.own_terms
        if own_terms is not None and vocabulary.n >= 2 * max(own_terms, _FEW_TERMS):
            segments, tokenizer = without_unused_terms(segments, tokenizer, vocabulary)
            own_terms = vocabulary.n if tokenizer is self.tokenizer else len(tokenizer)
        next_id = max(self.next_id, last_id + 1)
        return Contents(segments, next_id, tokenizer, own_terms, self)

    def with_used_terms(self, segments: Sequence[Any]) -> "Contents":
        """These segments, and no term that is not in them."""
        vocabulary = self.tokenizer._vocabulary
        segments, tokenizer = without_unused_terms(segments, self.tokenizer, vocabulary)
        own_terms = self.own_terms if tokenizer is self.tokenizer else len(tokenizer)
        return Contents(segments, self.next_id, tokenizer, own_terms, self)

    def ready(
        self, formula: searching.Formula, collection: Collection | None = None
    ) -> searching.Prepared:
        """What searches with a formula share, made at the first; as part of a collection or not."""
        if collection is None:
            ready = self.prepared
            if ready is None or ready.formula is not formula:
                own = self.snapshot.n_docs, self.snapshot.n_tokens
                self.prepared = ready = self._prepare(formula, own)
            return ready
        ready, size = self.as_part, (collection.n_docs, collection.n_tokens)
        if ready is None or ready.formula is not formula or ready.collection != size:
            self.as_part = ready = self._prepare(formula, size)
        return ready.given(collection.terms, collection.df)

    def _prepare(self, formula, collection):
        table = self.tokenizer._vocabulary.table
        return searching.prepare(self.snapshot, formula, collection, table, self.decoded)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays = [array for s in self.snapshot.segments for array in s]
        arrays += [array for handle in self.decoded.copy().values() for array in handle.state]
        for ready in (self.prepared, self.as_part):
            arrays += [] if ready is None else ready.arrays()
        distinct = {id(array): array.nbytes for array in arrays}
        return self.tokenizer.nbytes + sum(distinct.values())


def without_unused_terms(
    segments: Sequence[Any], tokenizer: Tokenizer, vocabulary: Vocabulary
) -> tuple[Sequence[Any], Tokenizer]:
    """The segments with terms numbered anew, and a tokenizer that knows no other terms.

    Both as they are if no term is unused, or if the terms are those of a model.
    """
    used: npt.NDArray[np.bool_] = np.zeros(vocabulary.n, np.bool_)
    for segment in segments:
        used[segment.terms] = True
    if used.all() or tokenizer._model is not None:
        return segments, tokenizer
    number = np.cumsum(used, dtype=np.int32) - np.int32(1)
    table = StringTable.from_arrays(vocabulary.table.arrays(vocabulary.n, used))
    numbered = [segment._replace(terms=number[segment.terms]) for segment in segments]
    return numbered, tokenizer._with_vocabulary(vocabulary_of(table))
