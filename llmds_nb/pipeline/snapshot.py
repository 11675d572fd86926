"""What a pipeline holds after one write, and the settings of its halves."""

from typing import Any, NamedTuple

import numpy as np

from .._core.publishing import Changes
from .._core.storage import share
from .._core.typing import Int64s
from .._core.validation import shown
from ..bm25 import segments as segs
from ..bm25.index import InvertedIndex
from ..hnsw.index import HNSW
from ..primitives.status import ABSENT
from .embedder import Embedder
from .keys import KeyStore, PlainIds
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

    def live_ids(self) -> Int64s:
        """The numbers of all documents, distinct, in no order; also of a snapshot of the past."""
        segments = self.sparse._contents.snapshot.segments
        parts = [segs.ids_at(segment, segs.docs_alive(segment)) for segment in segments]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def numbers(self, ids: PlainIds, name: str = "ids") -> Int64s:
        """The numbers int64[n] by which the halves know ids, UNKNOWN where they do not.

        Ids of type int are their own numbers, known or not; None and -1 are ABSENT. Raises
        TypeError for ids of the other kind than those of the pipeline.
        """
        if not isinstance(ids, list):
            given = ids[ids != ABSENT]
            if self.keys is not None and given.size:
                self.check_kind(None, name, given[0])
            return ids
        numbers = np.full(len(ids), ABSENT)
        places = [place for place, key in enumerate(ids) if key is not None]
        keys = [key for key in ids if key is not None]
        if self.keys is None:
            self.check_kind(keys, name)
            numbers[places] = UNKNOWN
        else:
            found = self.keys.find(keys)
            numbers[places] = np.where(found == ABSENT, UNKNOWN, found)
        return numbers

    def check_kind(self, keys: list[str] | None, name: str = "ids", number: Any = None) -> None:
        """Refuse str ids where those of the pipeline are int, and int ones (None) for str."""
        if keys is None and self.keys is not None:
            but = "" if number is None else f", not {number}"
            raise TypeError(f"{name} must be str, as those of this pipeline are{but}")
        if keys and self.keys is None and self.next_id:
            raise TypeError(
                f"{name} must be int, as those of this pipeline are, not {shown(keys[0])}"
            )


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
