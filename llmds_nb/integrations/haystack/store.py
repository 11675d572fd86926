"""LlmdsDocumentStore: a document store of Haystack over a RetrievalPipeline."""

import math
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from haystack import Document, default_from_dict, default_to_dict
from haystack.dataclasses import ByteStream, SparseEmbedding
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy
from haystack.errors import FilterError
from haystack.utils.filters import document_matches_filter

from llmds_nb import HNSW, InvertedIndex, RetrievalPipeline, Tokenizer
from llmds_nb.bm25 import Hits

from .asynchronous import Asynchronous
from .filters import ALL, dates_in, where_of

METRICS = {"cosine": "cosine", "dot_product": "ip"}
_BM25_SCALE = 8.0  # as Haystack scales scores: 1 / (1 + exp(-score / scale))
_DOT_SCALE = 100.0


class _Rest(NamedTuple):
    """What a pipeline does not keep of a document, or only as float32."""

    embedding: npt.NDArray[np.float64] | None
    blob: ByteStream | None
    sparse_embedding: SparseEmbedding | None


class LlmdsDocumentStore(Asynchronous):
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

    `to_dict` describes the store, not its documents; `pickle` keeps both. Any number of threads may
    search while one writes. Methods that end with `_async` run the others in a thread.

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
        self._lock = threading.Lock()  # one writer
        self._clear(None)

    def _clear(self, dim):
        self._dim: int | None = dim  # of the embeddings
        self._pipeline = self._new_pipeline(dim)
        self._rows: dict[str, int] = {}  # the pipeline's id of each document
        self._rest: dict[int, _Rest] = {}
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
        return default_to_dict(
            self,
            embedding_similarity_function=self.embedding_similarity_function,
            tokenizer_parameters=self.tokenizer_parameters,
            bm25_parameters=self.bm25_parameters,
            hnsw_parameters=self.hnsw_parameters,
            return_embedding=self.return_embedding,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "LlmdsDocumentStore":
        """An empty store with the parameters of `to_dict`."""
        return default_from_dict(cls, data)

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            state = vars(self) | {"_rows": dict(self._rows), "_rest": dict(self._rest)}
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    @property
    def pipeline(self) -> RetrievalPipeline:
        """The pipeline that holds the documents, by ids of its own."""
        return self._pipeline

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
        dim = self._dim
        for document, (embedding, *_) in zip(documents, rest, strict=True):
            if embedding is not None:
                dim = embedding.size if dim is None else dim
                if embedding.size != dim:
                    sizes = f"has dimension {embedding.size}, not {dim}"
                    raise ValueError(f"the embedding of {document.id!r} {sizes}")
        pipeline = self._pipeline if dim == self._dim else self._rebuilt(dim)
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
        self._pipeline, self._dim, self._next_row = pipeline, dim, next_row

    def _rebuilt(self, dim):
        """A pipeline for embeddings of a dimension, with the documents that have none so far."""
        old, new = self._pipeline, self._new_pipeline(dim)
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
            self._pipeline.remove([self._rows[id_] for id_ in present])
            for id_ in present:
                del self._rest[self._rows.pop(id_)]

    def delete_all_documents(self, recreate_index: bool = False) -> None:
        """Delete all documents; with `recreate_index` embeddings may then have any dimension."""
        with self._lock:
            self._clear(None if recreate_index else self._dim)

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
        return len(self._pipeline)

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
            return self._pipeline.ids(self._where(filters))
        except (TypeError, ValueError) as error:
            raise FilterError(str(error)) from error

    def _where(self, filters):
        if not filters:
            return ALL

        def matching(condition):
            everything = self._documents(self._pipeline.ids(), with_embedding=True)
            return [one.id for one in everything if document_matches_filter(condition, one)]

        return where_of(filters, matching)

    def _documents(self, rows, scores=None, with_embedding=None) -> list[Document]:
        """Documents by the pipeline's ids."""
        if not len(rows):
            return []
        with_embedding = self.return_embedding if with_embedding is None else with_embedding
        found = self._pipeline.documents(
            Hits(rows, np.zeros(len(rows)) if scores is None else scores)
        )
        documents = []
        for row, text, metadata, score in found:
            rest = self._rest.get(row, _Rest(None, None, None))
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
        only = self._only(filters, top_k)
        if only is not None and not len(only):
            return []
        hits = self._pipeline.sparse.search(query, top_k, filter=only)
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
        vector = self._query_vector(query_embedding)
        only = self._only(filters, top_k)
        dense = self._pipeline.dense
        if dense is None or not len(dense) or (only is not None and not len(only)):
            return []
        near = dense.search(vector, top_k, filter=only)
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
        vector = self._query_vector(query_embedding)
        only = self._only(filters, top_k)
        if self._dim is None:
            return self.bm25_retrieval(query, filters, top_k)
        if only is not None and not len(only):
            return []
        hits = self._pipeline.search(query, top_k, vectors=vector, weight=weight, filter=only)
        found = hits.ids >= 0
        return self._documents(hits.ids[found], hits.scores[found], with_embedding=return_embedding)

    def _only(self, filters, top_k):
        """The pipeline's ids that a retrieval may find; None: all."""
        if top_k < 0:
            raise ValueError(f"top_k must be at least 0, not {top_k}")
        if top_k == 0:
            return np.empty(0, np.int64)
        return self._matching(filters) if filters else None

    def _query_vector(self, embedding):
        vector = _numbers(embedding, "query_embedding")
        if self._dim not in (None, vector.size):
            raise ValueError(f"query_embedding has dimension {vector.size}, not {self._dim}")
        return vector.astype(np.float32)

    # ---- fields of meta -----------------------------------------------------------------------

    def get_metadata_fields_info(self) -> dict[str, dict[str, str]]:
        """For each field of meta {"type": boolean, int, float or keyword}, as its last value is."""
        kinds = {bool: "boolean", int: "int", float: "float"}
        info = {}
        for meta in self._metas(None):
            for key, value in meta.items():
                if value is not None:
                    info[key] = {"type": kinds.get(type(value), "keyword")}
        return info

    def get_metadata_field_min_max(self, metadata_field: str) -> dict[str, Any]:
        """{"min", "max"} of the numbers or strings in a field; None without any, or if mixed."""
        values = [v for v in self._values(metadata_field, None) if isinstance(v, int | float | str)]
        if not values or len({isinstance(value, str) for value in values}) > 1:
            return {"min": None, "max": None}
        return {"min": min(values), "max": max(values)}

    def get_metadata_field_unique_values(
        self,
        metadata_field: str,
        search_term: str | None = None,
        from_: int = 0,
        size: int = 10,
        filters: dict[str, Any] | None = None,
    ) -> tuple[list[Any], int]:
        """(`size` distinct values of a field from number `from_`, sorted as str; how many in all).

        `search_term` is a part of the values wanted, in any case.
        """
        unique = _distinct(self._values(metadata_field, filters))
        if search_term:
            unique = [value for value in unique if search_term.lower() in str(value).lower()]
        unique.sort(key=lambda value: (str(value), type(value).__name__))
        return unique[from_ : from_ + size], len(unique)

    def count_unique_metadata_by_filter(
        self, filters: dict[str, Any], metadata_fields: list[str]
    ) -> dict[str, int]:
        """For each field how many distinct values the documents that match have."""
        names = [field.removeprefix("meta.") for field in metadata_fields]
        metas = list(self._metas(filters))
        return {
            name: len(_distinct(meta[name] for meta in metas if meta.get(name) is not None))
            for name in names
        }

    def _metas(self, filters):
        rows = self._matching(filters)
        if len(rows):
            for one in self._pipeline.documents(Hits(rows, np.zeros(len(rows)))):
                yield one.metadata["meta"]

    def _values(self, field, filters):
        name = field.removeprefix("meta.")
        return [meta[name] for meta in self._metas(filters) if meta.get(name) is not None]


def _metadata(document):
    if not isinstance(document.meta, dict):
        raise ValueError(f"meta of {document.id!r} must be a dict")
    kept = {"id": document.id, "meta": document.meta, "dates": dates_in(document.meta)}
    return kept if document.content is not None else {**kept, "no_content": True}


def _rest(document):
    embedding = document.embedding
    if embedding is not None:
        embedding = _numbers(embedding, f"the embedding of {document.id!r}")
    return _Rest(embedding, document.blob, document.sparse_embedding)


def _numbers(values: Sequence[float], name: str) -> npt.NDArray[np.float64]:
    try:
        numbers = np.array(values, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a list of floats") from None
    if numbers.ndim != 1 or not numbers.size or not math.isfinite(numbers.sum()):
        raise ValueError(f"{name} must be a list of finite floats that is not empty")
    return numbers


def _distinct(values):
    """Values without repetitions, told apart by their types, too."""
    return list({repr(value): value for value in values}.values())
