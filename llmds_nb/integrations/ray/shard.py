"""Shard: one part of the documents of a ShardedPipeline, without Ray.

A shard is a RetrievalPipeline without an encoder. The number of a document, by which all shards
rank equal scores, is given by a coordinator, in the order of first add; where documents have str
keys, the shard keeps them beside. Every write gives a new version, and the last few versions stay
readable, so that a search that has read the statistics of all shards finds the same documents with
them.
"""

import secrets
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from llmds_nb import CorruptFileError, LlmdsError, RetrievalPipeline
from llmds_nb.pipeline import Candidates, CollectionStatistics, Document, PipelineView

from ..._core import validation
from ..._core.forking import new_lock
from ..._core.publishing import publish
from ..._core.storage import Stored, checking_parts, nest, unnest
from ..._core.typing import ArrayLike, Float32s, Int64s

KEPT_VERSIONS = 8  # before the present one


class StaleVersionError(LlmdsError, LookupError):
    """A shard was asked for a version of its documents that it does not have, or no longer.

    `version` is its present one.
    """

    def __init__(self, asked: int, version: int) -> None:
        super().__init__(asked, version)
        self.asked, self.version = asked, version

    def __str__(self) -> str:
        return f"the shard has no version {self.asked}: its present one is {self.version}"


class Moved(NamedTuple):
    """Documents on their way from one shard to another: all that a shard knows of each.

    `keys` is None where documents have no keys but their numbers. `removed` are the numbers of keys
    whose documents were removed, by which these are known if they are added again.
    """

    keys: list[str] | None
    texts: list[str]
    vectors: Float32s  # [n, d]
    metadata: list[dict[str, Any]]
    numbers: Int64s  # [n]
    removed: dict[str, int]


class Shard(Stored):
    """One part of a collection.

    Parameters
    ----------
    pipeline : RetrievalPipeline
        Empty and configured, without an encoder; the shard alone writes to it from now on. All
        shards of a collection have the same settings.
    version : int, optional
        The first version; each write adds one. Replicas that are given the same first version and
        the same writes have the same versions. Default: a random one, so that no two shards, nor
        one before and after a restart, have one version of different documents.

    Examples
    --------
    >>> import numpy as np
    >>> from llmds_nb.pipeline import fuse_candidates, merge_candidates, merge_statistics
    >>> shards = [Shard(RetrievalPipeline(dim=2), version=10) for _ in range(2)]
    >>> shards[0].add(["x", "z"], ["red fox", "blue sky"], [[1, 0], [0, 1]], numbers=[0, 2])
    11
    >>> shards[1].add(["y"], ["red sky at night"], [[1, 1]], numbers=[1])
    11
    >>> whole = merge_statistics(shard.statistics("red sky") for shard in shards)
    >>> asked = {"vectors": [1, 0.9], "statistics": whole, "version": 11, "exact": True}
    >>> found = merge_candidates([shard.candidates("red sky", 2, **asked) for shard in shards])
    >>> hits = fuse_candidates(found, 2, fusion="convex", weight=0.7)
    >>> hits.ids, [shard.keys_of(hits.ids[0]) for shard in shards]
    (array([[1, 0]]), [[None, 'x'], ['y', None]])
    """

    def __init__(self, pipeline: RetrievalPipeline, *, version: int | None = None) -> None:
        if not isinstance(pipeline, RetrievalPipeline):
            raise TypeError(f"pipeline must be a RetrievalPipeline, not {type(pipeline).__name__}")
        if len(pipeline):
            raise ValueError(f"pipeline must be empty, but holds {len(pipeline)} documents")
        if pipeline.encoder is not None:
            raise ValueError("pipeline must have no encoder: a shard is given vectors")
        self._start(pipeline, {}, version)

    def _start(self, pipeline, key_of, version):
        if version is None:
            version = secrets.randbits(50) << 10
        self._pipeline = pipeline
        self._lock = new_lock()  # of writers
        self._offset = validation.natural(version, "version") - pipeline.view().version
        # The key of every number in a version that is kept, and of some that are in none.
        self._key_of: dict[int, str] = key_of
        # The number of every key, and of those removed since the last `forget_removed`.
        self._number_of: dict[str, int] = {key: number for number, key in key_of.items()}
        # The same of a write under way, or that has failed: then the pipeline has no such number.
        self._new: dict[str, int] = {}
        self._earlier: OrderedDict[int, PipelineView] = OrderedDict()  # by version
        self._to_tune: tuple[int, Any] | None = None  # see `tuned`; while there is no graph

    @property
    def pipeline(self) -> RetrievalPipeline:
        """The pipeline, for its settings and `stats`; only the shard writes to it."""
        return self._pipeline

    @property
    def version(self) -> int:
        """The present version of the documents."""
        return self._offset + self._pipeline.view().version

    @property
    def n_keys(self) -> int:
        """How many keys have a number: also those removed since the last `forget_removed`."""
        return len(self._number_of)

    @property
    def nbytes(self) -> int:
        """Bytes of the pipeline, and of the keys about."""
        keys = sum(2 * len(key) + 200 for key in list(self._number_of))
        return self._pipeline.nbytes + keys

    def __len__(self) -> int:
        return len(self._pipeline)

    def __contains__(self, key: object) -> bool:
        return key in self._pipeline if not isinstance(key, str) else self._number(key) is not None

    def __repr__(self) -> str:
        return f"Shard({len(self):,} documents, version={self.version})"

    # ---- writing ------------------------------------------------------------------------------

    def add(
        self, keys: Sequence[str] | None, texts: Sequence[str], vectors: ArrayLike,
        metadata: Sequence[dict[str, Any] | None] | None = None, *, numbers: ArrayLike,
    ) -> int:  # fmt: skip
        """Add documents, or replace those whose key exists; return the new version.

        Parameters
        ----------
        keys : list of str, or None
            None: documents are known by their numbers. One or the other, for good.
        texts, vectors, metadata
            As for `RetrievalPipeline.add`.
        numbers : int64[n]
            Distinct, >= 0. A key that the shard has keeps its number, whatever is given for it.

        Raises
        ------
        TypeError, ValueError
            As `RetrievalPipeline.add`; or a new key has the number of another document. Nothing is
            changed.
        """
        return self._add(keys, texts, vectors, metadata, numbers, self._number_of.get)

    def _add(self, keys, texts, vectors, metadata, numbers, known):
        """`add`; known(key) is the number that a key has already, or None."""
        texts = validation.texts(texts)
        numbers = validation.new_ids(numbers, len(texts), "texts", 0)
        with self._lock:
            self._settle()
            if keys is not None:
                keys = self._checked_keys(keys, numbers, known)
            elif self._number_of and texts:
                raise TypeError("documents of this shard have keys: numbers alone do not name them")
            if not texts:
                return self.version
            self._keep_present()
            for number in numbers.tolist() if keys is None else ():
                self._key_of.pop(number, None)  # of a write that has failed
            if keys is not None:
                self._new = dict(zip(keys, numbers.tolist(), strict=True))
                self._key_of.update(zip(self._new.values(), keys, strict=True))
            self._pipeline.add(numbers, texts, vectors, metadata=metadata)
            self._settle()
            self._tune()
            return self.version

    def _settle(self):
        """Take the keys of the last write to those that there are, or drop them if it failed."""
        for key, number in self._new.items():
            if number in self._pipeline:
                self._number_of[key] = number
            elif self._number_of.get(key) != number:
                self._key_of.pop(number, None)
        self._new = {}

    def _checked_keys(self, keys, numbers, known_number):
        """The keys in a list; those of documents that are there get their numbers."""
        keys = [validation.exact(validation.text(key, "keys")) for key in keys]
        validation.same_length("keys", keys, "texts", numbers)
        if "" in keys:
            raise ValueError(f"keys must not be empty (position {keys.index('')})")
        if len(set(keys)) < len(keys):
            raise ValueError("keys must be distinct")
        if len(self) and not self._number_of:
            raise TypeError("documents of this shard are known by numbers, not by keys")
        known = [known_number(key) for key in keys]
        for place, number in enumerate(known):
            if number is not None:
                numbers[place] = number
        validation.distinct(np.sort(numbers), "numbers")
        for place, number in enumerate(numbers.tolist()):
            if known[place] is None and number in self._pipeline:
                other = self._key_of[number]
                raise ValueError(f"key {keys[place]!r} has the number {number} of {other!r}")
        return keys

    def _number(self, key) -> int | None:
        """The number of a document that is there, by its key."""
        for number in (self._new.get(key), self._number_of.get(key)):
            if number is not None and self._key_of.get(number) == key and number in self._pipeline:
                return number
        return None

    def remove(self, keys: str | Sequence[str] | ArrayLike, *, forget: bool = False) -> int:
        """Remove documents, by their keys, or by numbers where they have none.

        Return the new version. KeyError for one that is not there: then nothing is removed. A key
        that is added again has its number again, unless it is to `forget` these, as of documents
        that another shard has now, or `forget_removed` was called meanwhile.
        """
        with self._lock:
            self._settle()
            numbers = self._numbers(keys)
            if not len(numbers):
                return self.version
            self._keep_present()
            self._pipeline.remove(numbers)
            if forget:
                for number in numbers.tolist():
                    self._number_of.pop(self._key_of.get(number, ""), None)
            return self.version

    def removed_keys(self) -> list[str]:
        """The keys of removed documents that have a number still, see `forget_removed`. O(keys)."""
        with self._lock:
            self._settle()
            return [key for key, n in self._number_of.items() if n not in self._pipeline]

    def forget(self, keys: Sequence[str]) -> None:
        """Forget which numbers the keys of removed documents had, as of those that have moved."""
        with self._lock:
            self._settle()
            left = dict(self._number_of)
            for key in keys:
                if left.get(key) not in self._pipeline:
                    left.pop(key, None)
            self._number_of = left

    def _numbers(self, keys):
        """The numbers of documents that are there; KeyError for another."""
        if not self._number_of and not isinstance(keys, str):
            numbers = validation.ids(keys)
            absent = [number for number in numbers.tolist() if number not in self._pipeline]
        else:
            keys = [keys] if isinstance(keys, str) else list(keys)
            if len(set(keys)) < len(keys):
                raise ValueError("keys must be distinct")
            found = [self._number(key) for key in keys]
            absent = [key for key, number in zip(keys, found, strict=True) if number is None]
            numbers = np.array([number for number in found if number is not None], np.int64)
        if absent:
            raise KeyError(f"{absent[0]!r} is not in the shard")
        return numbers

    def _keep_present(self):
        """Keep the present version readable after a write."""
        view = self._pipeline.view()
        self._earlier[self._offset + view.version] = view
        while len(self._earlier) > KEPT_VERSIONS:
            self._earlier.popitem(last=False)

    def forget_removed(self) -> None:
        """Forget which numbers the keys of removed documents had. O(keys).

        One RetrievalPipeline does so with a `remove` after which it remembers more keys than twice
        its documents and 16; a coordinator that does it for all shards when their `n_keys` are more
        in sum keeps documents that are added again in the same order among equal scores.
        """
        with self._lock:
            self._settle()
            live = set(self._pipeline.view().numbers().tolist())
            kept = live.union(*(view.numbers().tolist() for view in self._earlier.values()))
            key_of = {number: key for number, key in self._key_of.items() if number in kept}
            number_of = {key: number for key, number in self._number_of.items() if number in live}
            publish([(self, "_key_of", key_of), (self, "_number_of", number_of)])

    def export(
        self, keys: Sequence[str] | ArrayLike, removed: Sequence[str] = ()
    ) -> Moved:  # fmt: skip
        """Documents as they are now, for `imports` of another shard. KeyError for an unknown one.

        With the numbers of keys that were `removed`, of `removed_keys`.

        Vectors are bit for bit those that were added, unless the dense half stores them rounded.
        """
        with self._lock:
            self._settle()
            numbers, view = self._numbers(keys), self._pipeline.view()
            documents = view.documents(numbers)
            own = [self._key_of[n] for n in numbers.tolist()] if self._number_of else None
            known = {key: self._number_of[key] for key in removed}
        texts = [document.text for document in documents]
        metadata = [document.metadata for document in documents]
        return Moved(own, texts, view.vectors(numbers), metadata, numbers, known)

    def imports(self, moved: Moved) -> int:
        """Add documents that another shard has exported; return the new version."""
        keys, texts, vectors, metadata, numbers, removed = moved
        described = metadata if any(metadata) else None
        self._add(keys, texts, vectors, described, numbers, self._number)
        with self._lock:
            self._number_of = removed | self._number_of
            return self.version

    @property
    def tuned(self) -> tuple[int, Any] | None:
        """`ef_search`, and how many codes are ranked anew, as `tune` chose them; None: no graph."""
        dense = self._pipeline.dense
        return self._to_tune if dense is None else (dense.ef_search, dense._depth)

    @tuned.setter
    def tuned(self, value: tuple[int, Any] | None) -> None:
        with self._lock:
            self._to_tune = value
            self._tune()

    def _tune(self):
        """Set what was to be set, as soon as there is a graph."""
        value, dense = self._to_tune, self._pipeline.dense
        if value is not None and dense is not None:
            changes = (dense, "_ef_search", value[0]), (dense, "_depth", value[1])
            publish([*changes, (self, "_to_tune", None)])

    # ---- reading ------------------------------------------------------------------------------

    def _view(self, version) -> PipelineView:
        view = self._pipeline.view()
        present = self._offset + view.version
        if version is None or version == present:
            return view
        earlier = self._earlier.get(version)  # a write keeps it before it makes the next one
        if earlier is None:
            raise StaleVersionError(version, present)
        return earlier

    def statistics(
        self, queries: str | Sequence[str], version: int | None = None
    ) -> CollectionStatistics:
        """See `PipelineView.statistics`; StaleVersionError if the version is not kept."""
        return self._view(version).statistics(queries)

    def candidates(
        self, queries: str | Sequence[str], k: int = 10, *, vectors: ArrayLike,
        statistics: CollectionStatistics, version: int | None = None, **options: Any,
    ) -> Candidates:  # fmt: skip
        """See `PipelineView.candidates`: ids are numbers, also those in `filter`.

        StaleVersionError if the version is not kept.
        """
        view = self._view(version)
        return view.candidates(queries, k, vectors=vectors, statistics=statistics, **options)

    def keys_of(self, numbers: ArrayLike) -> list[str | None]:
        """The key of each number; None for one of no document, or of none in a version kept."""
        given = validation.integers(numbers, "numbers", low=-1)
        return [self._key_of.get(number) for number in given.tolist()]

    def numbers_of(self, keys: Sequence[str]) -> Int64s:
        """The number of each key int64[n]; -1 for one of no document that is here."""
        found = [self._number(key) for key in ([keys] if isinstance(keys, str) else keys)]
        return np.array([-1 if number is None else number for number in found], np.int64)

    def documents(self, numbers: ArrayLike, version: int | None = None) -> dict[int, Document]:
        """The documents that are here, by number; the id of each is its key, if it has one."""
        view, own = self._own(numbers, version)
        found = view.documents(own)
        if self._number_of or self._new:
            keys: list[Any] = self.keys_of(own)
            found = [d._replace(id=key) for d, key in zip(found, keys, strict=True)]
        return dict(zip(own.tolist(), found, strict=True))

    def groups(
        self, field: str, numbers: ArrayLike, version: int | None = None
    ) -> dict[int, str | None]:
        """`PipelineView.groups` of those of the numbers that are here."""
        view, own = self._own(numbers, version)
        return dict(zip(own.tolist(), view.groups(field, own), strict=True))

    def vectors(self, numbers: ArrayLike, version: int | None = None) -> tuple[Int64s, Float32s]:
        """Those of the numbers that are here, int64[m], and their vectors float32[m, d]."""
        view, own = self._own(numbers, version)
        return own, view.vectors(own)

    def all_groups(
        self, field: str, version: int | None = None, **options: Any
    ) -> tuple[set[str], int]:
        """See `PipelineView.all_groups`: distinct values, and how many have none."""
        return self._view(version).all_groups(field, **options)

    def _own(self, numbers: ArrayLike, version: int | None) -> tuple[PipelineView, Int64s]:
        """The view of a version, and those of the numbers that it has."""
        view = self._view(version)
        given = validation.integers(numbers, "numbers", low=-1)
        return view, given[view.has(given)]

    # ---- files --------------------------------------------------------------------------------

    def _state(self):
        with self._lock:
            self._settle()
            arrays, header = nest("pipeline", self._pipeline._state())
            if self._number_of:
                pairs = sorted((number, key) for key, number in self._number_of.items())
                keys = [key.encode("utf-8", "surrogatepass") for _, key in pairs]
                arrays |= {
                    "numbers": np.array([number for number, _ in pairs], np.int64),
                    "key_ptr": np.cumsum([0, *map(len, keys)], dtype=np.int64),
                    "keys": np.frombuffer(b"".join(keys), np.uint8),
                }
        return arrays, header | {"pipeline_format": self._pipeline._stored_version}

    def _parts(self):
        parts = self._pipeline._parts()
        return {name: parts[name] for name in ("stemmer", "pattern") if name in parts}

    @classmethod
    def _from_state(cls, arrays, header, *, version=None, stemmer=None, pattern=None):
        form = header["pipeline_format"]
        if type(form) is not int or not 1 <= form <= RetrievalPipeline._stored_version:
            raise CorruptFileError(f"the pipeline has format {form}, newer than this version's")
        callables = {"stemmer": stemmer, "pattern": pattern}
        inner = unnest("pipeline", arrays, header)
        pipeline = RetrievalPipeline._from_state(*inner, **callables)
        if pipeline.encoder is not None:
            raise CorruptFileError("the pipeline of a shard has an encoder")
        key_of = {}
        if "numbers" in arrays:
            numbers, blob = arrays["numbers"], arrays["keys"].tobytes()
            if numbers.dtype != np.int64 or numbers.ndim != 1 or (np.diff(numbers) <= 0).any():
                raise CorruptFileError("the numbers of the keys do not ascend")
            if not np.isin(pipeline.view().numbers(), numbers).all():
                raise CorruptFileError("a document has no key")
            ends = validation.indptr(arrays["key_ptr"], len(blob), "key_ptr").tolist()
            keys = [blob[a:b].decode("utf-8", "surrogatepass") for a, b in pairwise(ends)]
            if len(set(keys)) < len(keys) or "" in keys:
                raise CorruptFileError("a key is empty, or is there twice")
            key_of = dict(zip(numbers.tolist(), keys, strict=True))
        shard = cls.__new__(cls)
        with checking_parts():
            shard._start(pipeline, key_of, version)
        return shard

    def check(self) -> None:
        """Assert the invariants of the pipeline, and that every document has its key."""
        self._pipeline.check()
        with self._lock:
            self._settle()
            if self._number_of:
                for number in self._pipeline.view().numbers().tolist():
                    assert self._number_of[self._key_of[number]] == number
