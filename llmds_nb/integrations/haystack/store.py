"""LlmdsDocumentStore: a document store of Haystack over a RetrievalPipeline."""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from haystack import Document, default_from_dict, default_to_dict
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy
from haystack.errors import FilterError
from haystack.utils.filters import document_matches_filter

from llmds_nb import HNSW, CorruptFileError, InvertedIndex, RetrievalPipeline, Tokenizer
from llmds_nb._core.forking import new_lock
from llmds_nb.bm25 import Hits

from .asynchronous import Asynchronous
from .fields import MetadataFields
from .files import Contents, Rest, read, write
from .filters import ALL, dates_in, where_of

METRICS = {"cosine": "cosine", "dot_product": "ip"}
_BM25_SCALE = 8.0  # as Haystack scales scores: 1 / (1 + exp(-score / scale))
_DOT_SCALE = 100.0


class _Current(NamedTuple):
    """Replaced as a whole: any number of threads read it."""

    pipeline: RetrievalPipeline  # ids are rows of the store, metadata as `filters` says
    dim: int | None  # of the embeddings; None: there was none, and the pipeline's vectors are [0]


class LlmdsDocumentStore(Asynchronous, MetadataFields):
    """Documents of Haystack, found by their words (BM25), embeddings (HNSW), or both.

    Parameters
    ----------
    embedding_similarity_function : {"cosine", "dot_product"}
    tokenizer_parameters, bm25_parameters, hnsw_parameters : dict, optional
        Of `Tokenizer`, `InvertedIndex` and `HNSW`, such as {"language": "german"}, {"k1": 1.5} and
        {"ef_search": 100}.
    return_embedding : bool
        Whether documents come with their embeddings, unless a retrieval says otherwise.

    Notes
    -----
    Filters are those of Haystack. True is not 1, a list in `meta` is equal to each of its elements,
    and only dates in ISO 8601 (`datetime.fromisoformat`) and numbers have an order; what cannot be
    compared does not match.

    `meta` holds what JSON can hold: keys of type str without dots, None, bool, int, float, str,
    lists and dicts. Anything else, such as NaN or a datetime, is an error that names the field.
    Embeddings are returned as they were written and searched as float32; all of a store have one
    dimension. Documents without an embedding, or with one of zeros, are found by their words.

    `to_dict` describes the store, not its documents; `save_to_disk` and `pickle` keep both. Any
    number of threads may search while one writes. Methods that end with `_async` run the others in
    a thread.

    Examples
    --------
    >>> from haystack import Document
    >>> from llmds_nb.integrations.haystack import LlmdsDocumentStore
    >>> store = LlmdsDocumentStore()
    >>> red = Document(content="red fox", meta={"n": 1}, embedding=[1.0, 0.0])
    >>> store.write_documents([red, Document(content="blue sky", meta={"n": 2})])
    2
    >>> [document.content for document in store.bm25_retrieval("sky")]
    ['blue sky']
    >>> store.filter_documents({"field": "meta.n", "operator": "<", "value": 2})[0].content
    'red fox'
    """

    def __init__(
        self,
        *,
        embedding_similarity_function: str = "cosine",
        tokenizer_parameters: dict[str, Any] | None = None,
        bm25_parameters: dict[str, Any] | None = None,
        hnsw_parameters: dict[str, Any] | None = None,
        return_embedding: bool = True,
    ) -> None:
        if embedding_similarity_function not in METRICS:
            known = ", ".join(METRICS)
            given = embedding_similarity_function
            raise ValueError(f"embedding_similarity_function must be one of {known}, not {given!r}")
        self.embedding_similarity_function = embedding_similarity_function
        self.tokenizer_parameters = dict(tokenizer_parameters or {})
        self.bm25_parameters = dict(bm25_parameters or {})
        self.hnsw_parameters = dict(hnsw_parameters or {})
        self.return_embedding = return_embedding
        self._new_pipeline(2)  # refuses parameters now
        self._lock = new_lock()  # one writer
        self._clear(None)

    def _clear(self, dim):
        self._current = _Current(self._new_pipeline(dim), dim)
        self._rows: dict[str, int] = {}  # the pipeline's id of each document
        self._rest: dict[int, Rest] = {}
        self._next_row = 0

    def _new_pipeline(self, dim) -> RetrievalPipeline:
        sparse = InvertedIndex(
            tokenizer=Tokenizer(**self.tokenizer_parameters), **self.bm25_parameters
        )
        if dim is None:  # until there is an embedding
            return RetrievalPipeline(dim=1, sparse=sparse)
        metric = METRICS[self.embedding_similarity_function]
        dense = HNSW(dim, metric=metric, **self.hnsw_parameters)
        return RetrievalPipeline(dense=dense, sparse=sparse)

    def to_dict(self) -> dict[str, Any]:
        """The parameters of the store, without its documents."""
        return default_to_dict(self, **self._parameters())

    def _parameters(self):
        return {
            "embedding_similarity_function": self.embedding_similarity_function,
            "tokenizer_parameters": self.tokenizer_parameters,
            "bm25_parameters": self.bm25_parameters,
            "hnsw_parameters": self.hnsw_parameters,
            "return_embedding": self.return_embedding,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "LlmdsDocumentStore":
        """An empty store with the parameters of `to_dict`."""
        return default_from_dict(cls, data)

    def save_to_disk(self, path: str | os.PathLike) -> None:
        """Write the store with its documents to one file, which it replaces whole."""
        with self._lock:
            rows, rest = dict(self._rows), dict(self._rest)
            pipeline, dim = self._current
            contents = Contents(pipeline, dim, rows, rest, self._next_row)
            write(path, self._parameters(), contents)

    @classmethod
    def load_from_disk(cls, path: str | os.PathLike) -> "LlmdsDocumentStore":
        """The store in a file; CorruptFileError for a file that somebody has damaged or changed."""
        parameters, contents = read(path)
        try:
            store = cls(**parameters)
        except (TypeError, ValueError) as error:
            raise CorruptFileError(f"{path}: its parameters are wrong: {error}") from error
        dense = contents.pipeline.dense
        if contents.dim and (
            dense is None or dense.metric != METRICS[store.embedding_similarity_function]
        ):
            raise CorruptFileError(f"{path}: its pipeline is of another similarity")
        store._current = _Current(contents.pipeline, contents.dim)
        store._rows, store._rest = contents.rows, contents.rest
        store._next_row = contents.next_row
        return store

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            state = vars(self) | {"_rows": dict(self._rows), "_rest": dict(self._rest)}
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=new_lock())

    @property
    def pipeline(self) -> RetrievalPipeline:
        """The pipeline that holds the documents, by ids of its own."""
        return self._current.pipeline

    # ---- writing ------------------------------------------------------------------------------

    def write_documents(
        self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE
    ) -> int:
        """Write documents; return how many were written.

        `policy` for a document whose id exists, also among those given: FAIL, which NONE means, is
        a DuplicateDocumentError; SKIP leaves it out, OVERWRITE replaces the other. Raises
        ValueError for what is no list of documents, an embedding of another dimension, or meta that
        cannot be stored. Whatever is raised, nothing is written.
        """
        if isinstance(documents, str) or not isinstance(documents, Iterable):
            raise ValueError(f"documents must be a list of them, not {type(documents).__name__}")
        documents = list(documents)
        for document in documents:
            if not isinstance(document, Document):
                raise ValueError(f"documents must hold Documents, not {type(document).__name__}")
        with self._lock:
            chosen: dict[str, Document] = {}
            written = 0
            for document in documents:
                exists = document.id in self._rows or document.id in chosen
                if exists and policy == DuplicatePolicy.SKIP:
                    continue
                if exists and policy != DuplicatePolicy.OVERWRITE:
                    raise DuplicateDocumentError(f"ID {document.id!r} already exists.")
                chosen[document.id] = document
                written += 1
            if chosen:
                self._write(list(chosen.values()))
        return written

    def _write(self, documents):
        """Write documents with distinct ids, under the lock."""
        rest = [_rest(document) for document in documents]
        present, dim = self._current
        for document, (embedding, *_) in zip(documents, rest, strict=True):
            if embedding is not None:
                dim = embedding.size if dim is None else dim
                if embedding.size != dim:
                    sizes = f"has dimension {embedding.size}, not {dim}"
                    raise ValueError(f"the embedding of {document.id!r} {sizes}")
        pipeline = present if dim == self._current.dim else self._rebuilt(dim)
        vectors = np.zeros((len(documents), dim or 1), np.float32)
        for vector, (embedding, *_) in zip(vectors, rest, strict=True):
            if embedding is not None:
                vector[:] = embedding
        rows, next_row = [], self._next_row
        for document in documents:
            rows.append(self._rows.get(document.id, next_row))
            next_row += rows[-1] == next_row
        texts = [document.content or "" for document in documents]
        metadata = [_metadata(document) for document in documents]
        before = [
            (self._rows.get(d.id), self._rest.get(r)) for d, r in zip(documents, rows, strict=True)
        ]
        try:
            for document, row, one in zip(documents, rows, rest, strict=True):
                self._rows[document.id], self._rest[row] = row, one
            pipeline.add(rows, texts, vectors, metadata=metadata)
        except BaseException:
            for document, row, (old_row, old_rest) in zip(documents, rows, before, strict=True):
                if old_row is None:
                    self._rows.pop(document.id, None)
                    self._rest.pop(row, None)
                else:
                    self._rest[row] = old_rest
            raise
        self._current, self._next_row = _Current(pipeline, dim), next_row

    def _rebuilt(self, dim):
        """A pipeline for embeddings of a dimension, with the documents that have none so far."""
        old, new = self.pipeline, self._new_pipeline(dim)
        rows = old.ids()
        if len(rows):
            found = old.documents(Hits(rows, np.zeros(len(rows))))
            texts, metadata = [one.text for one in found], [one.metadata for one in found]
            new.add(rows, texts, np.zeros((len(rows), dim), np.float32), metadata=metadata)
        return new

    def delete_documents(self, document_ids: list[str]) -> None:
        """Delete the documents with these ids; unknown ids are left out."""
        with self._lock:
            self._delete(document_ids)

    def _delete(self, ids):
        present = [id_ for id_ in dict.fromkeys(ids) if id_ in self._rows]
        if present:
            self.pipeline.remove([self._rows[id_] for id_ in present])
            for id_ in present:
                del self._rest[self._rows.pop(id_)]

    def delete_all_documents(self, recreate_index: bool = False) -> None:
        """Delete all documents; with `recreate_index` embeddings may then have any dimension."""
        with self._lock:
            self._clear(None if recreate_index else self._current.dim)

    def delete_by_filter(self, filters: dict[str, Any]) -> int:
        """Delete the documents that match; return how many there were."""
        with self._lock:
            ids = [document.id for document in self.filter_documents(filters)]
            self._delete(ids)
        return len(ids)

    def update_by_filter(self, filters: dict[str, Any], meta: dict[str, Any]) -> int:
        """Set fields of `meta` in the documents that match; return how many there are."""
        with self._lock:
            found = self._documents(self._matching(filters), with_embedding=True)
            if found:
                self._write([replace(one, meta={**one.meta, **meta}) for one in found])
        return len(found)

    # ---- reading ------------------------------------------------------------------------------

    def count_documents(self) -> int:
        """How many documents there are."""
        return len(self.pipeline)

    def count_documents_by_filter(self, filters: dict[str, Any]) -> int:
        """How many documents match."""
        return len(self._matching(filters))

    def filter_documents(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """The documents that match, all without a filter, in the order of writing.

        Raises FilterError for a filter that is malformed.
        """
        return self._documents(self._matching(filters))

    def _matching(self, filters):
        """The pipeline's ids of the documents that match, int64[n]."""
        try:
            return self.pipeline.ids(self._where(filters))
        except (TypeError, ValueError) as error:
            raise FilterError(str(error)) from error

    def _where(self, filters):
        if not filters:
            return ALL

        def matching(condition):
            everything = self._documents(self.pipeline.ids(), with_embedding=True)
            try:
                return [one.id for one in everything if document_matches_filter(condition, one)]
            except TypeError as error:  # values without an order
                raise FilterError(str(error)) from error

        return where_of(filters, matching)

    def _documents(self, rows, scores=None, with_embedding=None) -> list[Document]:
        """Documents by the pipeline's ids."""
        if not len(rows):
            return []
        with_embedding = self.return_embedding if with_embedding is None else with_embedding
        hits = Hits(rows, np.zeros(len(rows)) if scores is None else scores)
        found: Any = self.pipeline.documents(hits)
        documents = []
        for row, text, metadata, score in found:
            rest = self._rest.get(row, Rest(None, None, None))
            embedding = rest.embedding if with_embedding else None
            documents.append(
                Document(
                    id=metadata["id"],
                    content=None if metadata.get("no_content") else text,
                    meta=metadata["meta"],
                    score=None if scores is None else score,
                    embedding=None if embedding is None else embedding.tolist(),
                    blob=rest.blob,
                    sparse_embedding=rest.sparse_embedding,
                )
            )
        return documents

    def _metas(self, filters: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
        rows = self._matching(filters)
        if len(rows):
            found: Any = self.pipeline.documents(Hits(rows, np.zeros(len(rows))))
            for one in found:
                yield one.metadata["meta"]

    # ---- retrieval ----------------------------------------------------------------------------

    def bm25_retrieval(
        self,
        query: str,
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        scale_score: bool = False,
    ) -> list[Document]:
        """The documents whose words match a query best, with their BM25 scores.

        `scale_score` maps scores to (0.5, 1). Raises ValueError for an empty query.
        """
        if not query:
            raise ValueError("the query must not be empty")
        pipeline, dim = self._current
        nothing = np.zeros(dim or 1, np.float32)  # is answered by words alone
        ids, _ = self._best(pipeline, query, nothing, filters, top_k)
        if not len(ids):
            return []
        hits = pipeline.sparse.search(query, top_k, filter=ids)
        found = hits.scores > 0
        scores = hits.scores[found]
        if scale_score:
            scores = 1 / (1 + np.exp(-scores / _BM25_SCALE))
        return self._documents(hits.ids[found], scores)

    def embedding_retrieval(
        self,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        scale_score: bool = False,
        return_embedding: bool | None = False,
    ) -> list[Document]:
        """The documents whose embeddings are nearest to one, with their similarity.

        `scale_score` maps scores to [0, 1]. Raises ValueError for an embedding that does not fit.
        """
        pipeline, dim = self._current
        vector = _query_vector(query_embedding, dim)
        ids, _ = self._best(pipeline, "", vector, filters, top_k, weight=1.0)
        if not len(ids):
            return []
        assert pipeline.dense is not None
        near = pipeline.dense.search(vector, top_k, filter=ids)
        found = near.ids >= 0
        scores = 1 - near.distances[found].astype(np.float64)
        if scale_score and self.embedding_similarity_function == "cosine":
            scores = (scores + 1) / 2
        elif scale_score:
            scores = 1 / (1 + np.exp(-scores / _DOT_SCALE))
        return self._documents(near.ids[found], scores, with_embedding=return_embedding)

    def hybrid_retrieval(
        self,
        query: str,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        weight: float | None = None,
        return_embedding: bool | None = False,
    ) -> list[Document]:
        """The best documents by words and embeddings, with their fused scores.

        `weight` is the share of the embeddings, default .7.
        """
        pipeline, dim = self._current
        vector = _query_vector(query_embedding, dim)
        ids, scores = self._best(pipeline, query, vector, filters, top_k, weight)
        return self._documents(ids, scores, with_embedding=return_embedding)

    def _best(self, pipeline, query, vector, filters, top_k, weight=None):
        """(the pipeline's ids of the best, their fused scores)."""
        if top_k < 0:
            raise ValueError(f"top_k must be at least 0, not {top_k}")
        where = self._where(filters)
        if top_k == 0:
            return np.empty(0, np.int64), np.empty(0)
        try:
            hits = pipeline.search(query, top_k, vectors=vector, weight=weight, where=where or None)
        except (TypeError, ValueError) as error:
            if not where:
                raise
            raise FilterError(str(error)) from error
        found = hits.ids >= 0
        return hits.ids[found], hits.scores[found]


def _metadata(document):
    if not isinstance(document.meta, dict):
        raise ValueError(f"meta of {document.id!r} must be a dict")
    kept = {"id": document.id, "meta": document.meta, "dates": dates_in(document.meta)}
    return kept if document.content is not None else {**kept, "no_content": True}


def _rest(document):
    embedding = document.embedding
    if embedding is not None:
        embedding = _numbers(embedding, f"the embedding of {document.id!r}")
    return Rest(embedding, document.blob, document.sparse_embedding)


def _query_vector(embedding, dim):
    """An embedding as a pipeline takes it; zeros for one without embeddings."""
    vector = _numbers(embedding, "query_embedding")
    if dim is None:
        return np.zeros(1, np.float32)
    if vector.size != dim:
        raise ValueError(f"query_embedding has dimension {vector.size}, not {dim}")
    return vector.astype(np.float32)


def _numbers(values: Sequence[float], name: str) -> npt.NDArray[np.float64]:
    try:
        numbers = np.array(values, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a list of floats") from None
    if numbers.ndim != 1 or not numbers.size or not math.isfinite(numbers.sum()):
        raise ValueError(f"{name} must be a list of finite floats that is not empty")
    return numbers
