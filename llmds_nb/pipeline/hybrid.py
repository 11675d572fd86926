"""The dense half, the sparse half, the texts and keys of a pipeline, over the same documents."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt

from .._core import validation
from .._core.forking import Workers, is_held, new_lock
from .._core.publishing import publish
from .._core.storage import share
from .._core.typing import ArrayLike, Int64s
from .._core.validation import shown
from ..bm25.index import Hits, InvertedIndex
from ..hnsw.index import HNSW
from ..hnsw.snapshot import slots_of
from ..primitives.status import ABSENT
from .candidates import DEPTH
from .embedder import Embedder, checked_vectors
from .filtering import MaskCache
from .keys import KeyStore, as_keys, new_keys, object_array, plain_ids
from .metadata import checked_metadata, parsed_where
from .refitting import Notices
from .results import Document
from .search import Searcher
from .snapshot import UNKNOWN, Settings, Snapshot, changed, has_direction
from .text_store import TextStore

_new = tuple.__new__


class HybridIndex:
    """HNSW, InvertedIndex and TextStore over the same ids.

    `dense` and `sparse` are the caller's, who may change their settings. A write makes what it will
    replace in them, in their tokenizer and encoder, and `snapshot` aside, and publishes all of it
    at once. A document whose vector has no direction is in `sparse` and in the texts alone.
    """

    dense: HNSW | None
    sparse: InvertedIndex
    embedder: Embedder
    snapshot: Snapshot

    def __init__(self, dense, sparse, dim, embedder, seed, stored=None):
        self.dense, self.sparse, self.embedder = dense, sparse, embedder
        self._seed = seed
        self._workers = Workers("llmds_nb-pipeline")
        self.write_lock = new_lock()  # one writer at a time
        self._writing = new_lock()  # held from reading a snapshot until the next is published
        frozen = None if dense is None else share(dense)
        texts, metadata, keys, next_id = stored or (TextStore.empty(), None, None, 0)
        self.snapshot = Snapshot(
            frozen, share(sparse), embedder.frozen(embedder), texts, metadata, keys, dim, next_id, 0
        )
        self.masks = MaskCache()
        self._notices = Notices()

    @property
    def settings(self) -> Settings:
        """Those at present."""
        dense, formula = self.dense, self.sparse._formula
        if dense is None:
            return Settings(0, None, formula)
        # At half the time that the class itself takes.
        return _new(Settings, (dense._ef_search, dense._depth, formula))

    def searcher(self, threads: int = 1) -> "Searcher":
        """A view of the present documents under the present settings."""
        return Searcher(self, self.snapshot, self.settings, threads)

    @property
    def nbytes(self) -> int:
        """Memory of both halves, the texts and the keys."""
        snapshot = self.snapshot
        parts = (self.dense, self.sparse, snapshot.texts, snapshot.metadata, snapshot.keys)
        return sum(part.nbytes for part in parts if part is not None)

    def __len__(self) -> int:
        return self.snapshot.texts.n_ids

    def __contains__(self, id: object) -> bool:
        if not isinstance(id, str):
            id = validation.id_or_none(id)
        if id is None:
            return False
        try:
            return bool(self._found(plain_ids(id))[2][0] != ABSENT)
        except TypeError:  # of the other kind
            return False

    def _found(self, ids):
        """The snapshot at one moment, and the numbers and rows of ids of its kind in it."""
        while True:
            snapshot = self.snapshot
            numbers = snapshot.numbers(ids)
            rows = snapshot.texts.find(numbers)
            if self.snapshot is snapshot:  # as it mostly is: its table was that of the rows, too
                return snapshot, numbers, rows

    def add(
        self, ids: Any, texts: str | Sequence[str], vectors: ArrayLike | None, metadata: Any
    ) -> npt.NDArray[Any]:
        """See RetrievalPipeline.add."""
        texts = validation.texts(texts)
        keys = as_keys(ids)
        described = None if metadata is None else checked_metadata(metadata, len(texts))
        if keys is not None:
            new_keys(keys, len(texts))
        elif ids is not None or not texts:
            try:
                ids = validation.new_ids(ids, len(texts), "texts", 0)
            except TypeError as error:
                raise TypeError(f"{error}: all are int >= 0, or all str") from None
        with self.write_lock:
            if not texts:
                return ids if self.snapshot.keys is None else ids.astype(object)
            number = ids[0] if keys is None and ids is not None else None
            self.snapshot.check_kind(keys, number=number)
            ids = ids if keys is None else keys
            if vectors is not None:
                return self._add(ids, texts, vectors, described)
            unfitted, dim = self.embedder.unfitted, self.snapshot.dim
            if unfitted is None:
                embedder = self.embedder.frozen(self.snapshot.embedder)
                vectors = embedder.encode(texts, dim)
                return self._add(ids, texts, vectors, described, embedder)
            with unfitted._prepared_fit(texts) as fit:
                embedder = Embedder(changed(unfitted, fit))
                vectors = embedder.encode(texts, dim)
                return self._add(ids, texts, vectors, described, embedder, fit)

    def _add(self, ids, texts, vectors, described, embedder=None, fit=()):
        """Add checked texts with vectors, those of `embedder`, or else the caller's.

        `fit` are changes to the encoder, to be published too. `ids` are numbers, keys in a list, or
        None, `described` checked metadata or None. Nothing is read before the vectors are arrays:
        the encoder, or what makes them, may itself add to this pipeline.
        """
        vectors = checked_vectors(vectors, self.snapshot.dim, texts)
        with self.writing():
            ids, n_without = self._add_vectors(ids, texts, vectors, described, embedder, fit)
        self._notices.after_add(self.snapshot, len(texts), n_without)
        return ids

    def _add_vectors(self, ids, texts, vectors, described, embedder, fit):
        """The ids of the documents, and how many of them have a vector without a direction."""
        snapshot, dense = self.snapshot, self.dense
        if snapshot.dim not in (None, vectors.shape[1]):
            checked_vectors(vectors, snapshot.dim, texts)  # raises an error
        given = ids if isinstance(ids, list) else None
        snapshot.check_kind(given)
        keys, next_id = snapshot.keys, snapshot.next_id
        if given is not None:
            keys = KeyStore.empty() if keys is None else keys
            ids = keys.numbers_for(given, next_id)
        elif ids is None:
            ids = validation.new_ids(None, len(texts), "texts", next_id)
        if dense is None:
            dense = HNSW(vectors.shape[1], metric="cosine", seed=self._seed)
        with self.sparse._lock, dense._write_lock:
            _, of_sparse = self.sparse._prepare_add(ids, texts, earlier=fit)
            of_dense, n_without = _changes_of_vectors(dense, ids, vectors)
            store, calls, kept_rows = snapshot.texts.added(ids, texts)
            if given is not None:
                keys = keys.added(given, next_id)
            metadata = _metadata_after(snapshot, described, len(texts), kept_rows)
            self._publish(
                snapshot._replace(
                    dense=changed(dense, of_dense),
                    sparse=changed(self.sparse, of_sparse),
                    embedder=embedder or self.embedder.frozen(snapshot.embedder),
                    texts=store,
                    metadata=metadata,
                    keys=keys,
                    dim=dense.dim,
                    next_id=max(next_id, int(ids.max()) + 1),
                ),
                [*fit, *of_sparse, *of_dense, (self, "dense", dense)],
                calls,
            )
        return ids if given is None else object_array(given), n_without

    def remove(self, ids: Any) -> None:
        """See RetrievalPipeline.remove."""
        ids = plain_ids(ids)
        with self.writing():
            snapshot, dense = self.snapshot, self.dense
            numbers = snapshot.numbers(ids)
            rows = snapshot.texts.find(numbers)
            check_known(ids, numbers, rows)
            if not numbers.size:
                return
            with self.sparse._lock, _lock_of(dense):
                of_sparse, of_dense = self.sparse._prepare_remove(numbers), []
                if dense is not None:
                    of_dense = dense._prepare_remove(_those_in(dense, numbers))
                store, calls, kept_rows = snapshot.texts.removed(numbers)
                self._publish(
                    snapshot._replace(
                        dense=None if dense is None else changed(dense, of_dense),
                        sparse=changed(self.sparse, of_sparse),
                        texts=store,
                        metadata=_metadata_after(snapshot, None, 0, kept_rows),
                        keys=_keys_after(snapshot, numbers),
                    ),
                    [*of_sparse, *of_dense],
                    calls,
                )

    @contextmanager
    def writing(self) -> Iterator[None]:
        """For a block that makes a snapshot of the present one: no other write is let in.

        RuntimeError within such a block of this thread, which may run code of the caller's: that of
        a tokenizer, or a signal handler.
        """
        with self.write_lock:
            if is_held(self._writing):
                raise RuntimeError("documents cannot be changed within a write to the pipeline")
            with self._writing:
                yield

    def _publish(self, snapshot, changes, calls=()):
        snapshot = snapshot._replace(version=self.snapshot.version + 1)
        publish([*changes, (self, "snapshot", snapshot)], calls)

    def ids(self, where: Any) -> npt.NDArray[Any]:
        """See RetrievalPipeline.ids."""
        where = None if where is None else parsed_where(where)
        while True:
            snapshot = self.snapshot
            ids, rows = snapshot.texts.pairs()
            if self.snapshot is snapshot:  # else the table may be of other rows
                break
        if where is not None:
            ids = ids[snapshot.described.mask(where)[rows]]
        return ids if snapshot.keys is None else snapshot.keys.keys_of(ids)

    def get(self, ids: Any) -> list[str | None]:
        """See RetrievalPipeline.get."""
        ids = plain_ids(ids, unique=False, padded=True)
        snapshot, numbers, rows = self._found(ids)
        check_known(ids, numbers, rows)
        return snapshot.texts.texts(rows)

    def documents(self, ids: Any) -> list[Any]:
        """See RetrievalPipeline.documents."""
        if not validation.is_a(ids, Hits):
            ids = plain_ids(ids, unique=False, padded=True)
            snapshot, numbers, rows = self._found(ids)
            check_known(ids, numbers, rows)
            known = numbers if snapshot.keys is None else snapshot.keys.keys_of(numbers)
            found = documents_of(snapshot, known.tolist(), rows, [math.nan] * len(rows))
            return [document for document in found if document is not None]
        wanted, scores = np.asarray(ids.ids), np.asarray(ids.scores)
        if wanted.shape != scores.shape or wanted.ndim not in (1, 2):
            shapes = f"{list(wanted.shape)} and {list(scores.shape)}"
            raise ValueError(f"hits must have ids and scores [k], or [n, k], not {shapes}")
        flat, n = wanted.ravel(), wanted.shape[-1]
        snapshot, _, rows = self._found(plain_ids(flat, unique=False, padded=True))
        found = documents_of(snapshot, flat.tolist(), rows, scores.ravel().tolist())
        parts = [found[i * n : (i + 1) * n] for i in range(len(wanted) if wanted.ndim > 1 else 1)]
        hits = [[document for document in part if document is not None] for part in parts]
        return hits if wanted.ndim > 1 else hits[0]

    def tuned(self, vectors: ArrayLike, target_recall: float) -> Settings:
        """The settings at which the dense half reaches a recall on query vectors."""
        if self.dense is None:
            raise ValueError("there are no documents to tune on")
        vectors, dense = np.array(vectors), share(self.dense)
        dense.tune(vectors[has_direction(dense, vectors)], k=DEPTH, target_recall=target_recall)
        return Settings(dense._ef_search, dense._depth, self.sparse._formula)

    def check(self) -> None:
        """Assert the invariants of each part, and that all hold the same ids. O(everything)."""
        with self.write_lock:
            snapshot, dense, sparse = self.snapshot, self.dense, self.sparse
            snapshot.texts.check()
            sparse.check()
            ids, _ = snapshot.texts.pairs()
            assert len(sparse) == len(ids) == len(self)
            assert all(id_ in sparse for id_ in ids.tolist())
            assert not len(ids) or ids.max() < snapshot.next_id
            if snapshot.metadata is not None:
                snapshot.metadata.check()
                assert snapshot.metadata.n == snapshot.texts.n
            if snapshot.keys is not None:
                snapshot.keys.check(snapshot.next_id)
                assert snapshot.keys.has_numbers(ids)
            assert snapshot.sparse._contents is sparse._contents
            if dense is None:
                assert snapshot.dense is None
            else:
                dense.check()
                assert dense.dim == snapshot.dim
                assert len(dense) == len(_those_in(dense, ids))
                assert snapshot.dense is not None
                assert snapshot.dense._snapshot is dense._snapshot


def _changes_of_vectors(dense, ids, vectors):
    """The changes that index the vectors that have a direction, and drop the ids of the others.

    Also how many others there are.
    """
    useful = has_direction(dense, vectors)
    changes = []
    if useful.any():
        _, changes = dense._prepare_add(vectors[useful], ids[useful])
    gone = _those_in(dense, ids[~useful])
    if len(gone):
        after = changed(dense, changes)._prepare_remove(gone)
        changes = [(dense, name, value) for _, name, value in after]
    return changes, len(ids) - np.count_nonzero(useful)


def _those_in(dense, ids):
    return ids[slots_of(dense._snapshot, ids) != ABSENT]


def documents_of(
    snapshot: Snapshot, ids: list[Any], rows: Int64s, scores: list[float]
) -> list[Document | None]:
    """The documents of rows; None for ABSENT."""
    there = rows[rows != ABSENT]
    texts: Any = iter(snapshot.texts.texts(there))  # of a row that is there, no None
    described: list[dict] = [{} for _ in there]
    if snapshot.metadata is not None:
        described = snapshot.metadata.documents(there)
    dicts = iter(described)
    return [
        None if row == ABSENT else Document(id_, next(texts), next(dicts), score)
        for id_, row, score in zip(ids, rows.tolist(), scores, strict=True)
    ]


def check_known(ids, numbers, rows):
    """Refuse ids without a row; but the number ABSENT stands for None."""
    unknown = (rows == ABSENT) & (numbers != ABSENT)
    if unknown.any():
        place = int(unknown.argmax())
        id_ = numbers[place] if numbers[place] != UNKNOWN else shown(ids[place])
        raise KeyError(f"id {id_} is not in the pipeline")


def _metadata_after(snapshot, described, n, kept_rows):
    """The metadata after a write that adds `n` rows, and then keeps some alone, or all (None)."""
    metadata = snapshot.metadata
    if metadata is None and described is None:
        return None
    if n:
        checked = checked_metadata(None, n) if described is None else described
        metadata = snapshot.described.added(checked)
    return metadata if kept_rows is None else metadata.compacted(kept_rows)


def _keys_after(snapshot, removed):
    """The keys without those of numbers that are removed, where it is worth it."""
    keys = snapshot.keys
    if keys is None or not keys.is_wasteful(snapshot.texts.n_ids - removed.size):
        return keys
    numbers = keys.numbers[: keys.n]
    kept = snapshot.texts.find(numbers) != ABSENT
    kept[np.searchsorted(numbers, removed)] = False
    return keys.compacted(kept)


def _lock_of(dense):
    return nullcontext() if dense is None else dense._write_lock
