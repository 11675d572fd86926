"""What a pipeline holds after one write, and the settings of its halves."""

from collections.abc import Sized
from typing import Any, NamedTuple

import numpy as np

from .._core import validation
from .._core.publishing import Changes
from .._core.storage import share
from .._core.typing import Int64s
from .._core.validation import shown
from ..bm25.index import InvertedIndex
from ..hnsw.index import HNSW
from ..primitives.status import ABSENT
from .embedder import Embedder
from .keys import KeyStore, as_keys, distinct_keys
from .metadata import MetadataStore
from .text_store import TextStore

UNKNOWN = -2  # the number of an id that the pipeline never had
_MIN_COMPONENT = 1e-18  # of a vector with a direction: HNSW refuses shorter ones with cosine


class Snapshot(NamedTuple):
    """The documents after one write: never changed, only replaced as a whole."""

    dense: HNSW | None
    sparse: InvertedIndex
    embedder: Embedder  # as it encoded the documents: for queries
    texts: TextStore
    metadata: MetadataStore | None  # by the rows of `texts`; None: no document ever had any
    keys: KeyStore | None  # of str ids; None: the ids are int, or there never was one
    dim: int | None
    next_id: int  # one more than the largest number ever used; 0: there never was a document
    version: int

    @property
    def described(self) -> MetadataStore:
        """The metadata of every row."""
        return MetadataStore.empty(self.texts.n) if self.metadata is None else self.metadata

    def numbers(self, ids: Any, name: str = "ids", *, unique: bool = True) -> Int64s:
        """The numbers int64[n] by which the halves know ids, UNKNOWN where they do not.

        Ids of type int are their own numbers, known or not.

        Raises
        ------
        TypeError
            Ids of the other kind than those of the pipeline.
        ValueError
            An id is repeated, unless `unique` is False.
        """
        keys = as_keys(ids, name)
        if keys is None and self.keys is None:
            return validation.ids(ids, name, unique=unique)
        if keys is None:
            if isinstance(ids, Sized) and not len(ids):
                return np.zeros(0, np.int64)
            raise TypeError(f"{name} must be str, as those of this pipeline are, not {shown(ids)}")
        if unique:
            distinct_keys(keys, name)
        if self.keys is None:
            self.check_kind(keys, name)
            return np.full(len(keys), UNKNOWN)
        numbers = self.keys.find(keys)
        numbers[numbers == ABSENT] = UNKNOWN
        return numbers

    def check_kind(self, keys: list[str] | None, name: str = "ids") -> None:
        """Refuse str ids where those of the pipeline are int, and int ones (None) for str."""
        if keys is None and self.keys is not None:
            raise TypeError(f"{name} must be str, as those of this pipeline are")
        if keys is not None and self.keys is None and self.next_id:
            raise TypeError(
                f"{name} must be int, as those of this pipeline are, not {shown(keys[0])}"
            )

    def asked(self, ids: Any) -> Int64s:
        """`numbers` of ids that may repeat, be None, or be the int -1: ABSENT for both."""
        if ids is None:
            return np.array([ABSENT])
        if isinstance(ids, list | tuple) or getattr(ids, "dtype", None) == np.dtype("O"):
            ids = list(ids)
            given = [id_ for id_ in ids if id_ is not None]
            if len(given) < len(ids):
                numbers = np.full(len(ids), ABSENT)
                if given:
                    numbers[[id_ is not None for id_ in ids]] = self.asked(given)
                return numbers
        if self.keys is None and as_keys(ids) is None:
            return validation.integers(ids, "ids", low=ABSENT)
        return self.numbers(ids, unique=False)


class Settings(NamedTuple):
    """What is set at the halves, at any time, and changes answers."""

    ef: int
    depth: Any  # HNSW's, see `hnsw.search.rerank_depth`
    formula: Any  # InvertedIndex's


def has_direction(dense, vectors) -> np.ndarray:
    """Which vectors [n, d] can be compared: with l2 all, otherwise those that are not zero."""
    if dense.metric == "l2":
        return np.ones(len(vectors), np.bool_)
    return np.abs(vectors).max(axis=1, initial=0) > _MIN_COMPONENT


def changed(part: Any, changes: Changes) -> Any:
    """A part for reading, as it will be after the changes; later ones leave it as it is."""
    other = share(part)
    for owner, name, value in changes:
        if owner is part:
            setattr(other, name, value)
    return other
