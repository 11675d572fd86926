"""LlmdsVectorStore and LlmdsRetriever: hybrid retrieval for LangChain (extra `langchain`)."""

import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from llmds_nb import LsaEncoder, RetrievalPipeline
from llmds_nb.bm25 import Hits

try:
    from langchain_core.callbacks import CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.retrievers import BaseRetriever
    from langchain_core.vectorstores import VectorStore
    from pydantic import model_validator
except ImportError as error:
    text = "llmds_nb.integrations.langchain needs langchain-core: pip install 'llmds_nb[langchain]'"
    raise ImportError(text) from error


class LlmdsVectorStore(VectorStore):
    """A vector store of LangChain over a RetrievalPipeline: vectors and words, fused.

    Parameters
    ----------
    embedding : Embeddings, optional
        Of documents and queries. Without one the pipeline's own encoder is used.
    pipeline : RetrievalPipeline, optional
        Configured, empty or with documents whose ids are str. Default: one without an encoder, or,
        if there is no `embedding` either, with an LsaEncoder, fitted to the first texts added.

    Notes
    -----
    Documents are found by their words, too: `weight=1.0` as an argument of a search ranks by the
    vectors alone, 0.0 by the words; see `RetrievalPipeline.search` for this and `fusion`.

    `filter` is the `where` of a pipeline, as users of Chroma or Pinecone write it:
    `{"year": {"$gte": 2020}, "lang": {"$in": ["de", "en"]}}`.

    Metadata are what JSON can hold: dicts with keys of type str, without dots, of None, bool, int,
    float, str, lists and dicts. Anything else, such as a datetime or NaN, is an error that names
    the field; nothing is added then. Convert a datetime with `isoformat()`: such strings sort.

    Any number of threads may search while one writes. The methods that begin with `a` run the
    others in a thread.

    Examples
    --------
    >>> from llmds_nb.integrations.langchain import LlmdsVectorStore
    >>> store = LlmdsVectorStore()
    >>> store.add_texts(["red fox", "blue sky"], [{"n": 1}, {"n": 2}], ids=["a", "b"])
    ['a', 'b']
    >>> store.similarity_search("sky", k=1)
    [Document(id='b', metadata={'n': 2}, page_content='blue sky')]
    >>> store.similarity_search("sky", k=1, filter={"n": {"$lt": 2}})
    [Document(id='a', metadata={'n': 1}, page_content='red fox')]
    """

    def __init__(
        self, embedding: Embeddings | None = None, *, pipeline: RetrievalPipeline | None = None
    ) -> None:
        if embedding is not None and not isinstance(embedding, Embeddings):
            kind = type(embedding).__name__
            raise TypeError(f"embedding must be an Embeddings of LangChain, not {kind}")
        if pipeline is None:
            pipeline = RetrievalPipeline(encoder=LsaEncoder() if embedding is None else None)
        elif not isinstance(pipeline, RetrievalPipeline):
            kind = type(pipeline).__name__
            raise TypeError(f"pipeline must be a RetrievalPipeline, not {kind}")
        self._embedding, self._pipeline = embedding, pipeline

    @property
    def embeddings(self) -> Embeddings | None:
        """What embeds documents and queries, or None: then the pipeline does."""
        return self._embedding

    @property
    def pipeline(self) -> RetrievalPipeline:
        """The pipeline that holds the documents."""
        return self._pipeline

    def __len__(self) -> int:
        return len(self._pipeline)

    def __repr__(self) -> str:
        return f"LlmdsVectorStore({self._pipeline!r})"

    # ---- writing ------------------------------------------------------------------------------

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Add texts, and replace those whose ids exist; return the ids.

        A missing id is a new uuid. `batch_size` texts are embedded at a time, default all. Raises
        ValueError or TypeError for lengths that differ, an id given twice, or metadata that cannot
        be stored; then, or if the embedding raises, nothing is added.
        """
        _refuse_unknown("add_texts", kwargs)
        texts = [texts] if isinstance(texts, str) else list(texts)
        for name, column in (("metadatas", metadatas), ("ids", ids)):
            if column is not None and len(column) != len(texts):
                raise ValueError(f"{name} has {len(column)} entries, but texts has {len(texts)}")
        given: Sequence[str | None] = [None] * len(texts) if ids is None else ids
        own = [id_ or str(uuid.uuid4()) for id_ in given]
        if texts:
            vectors = None
            if self._embedding is not None:
                step = batch_size or len(texts)
                parts = [texts[i : i + step] for i in range(0, len(texts), step)]
                vectors = [v for part in parts for v in self._embedding.embed_documents(part)]
            self._pipeline.add(own, texts, vectors, metadata=metadatas)
        return own

    def add_documents(self, documents: list[Document], **kwargs: Any) -> list[str]:
        """Add documents, and replace those whose ids exist; return the ids.

        `ids=` takes precedence over the documents' own. Otherwise as `add_texts`.
        """
        ids = kwargs.pop("ids", None)
        texts = [document.page_content for document in documents]
        metadatas = [document.metadata for document in documents]
        if ids is None:
            ids = [document.id for document in documents]
        return self.add_texts(texts, metadatas, ids=ids, **kwargs)

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Remove documents, all if `ids` is None; unknown ids are left out. Returns True."""
        _refuse_unknown("delete", kwargs)
        pipeline = self._pipeline
        ids = list(pipeline.ids()) if ids is None else [ids] if isinstance(ids, str) else ids
        present = [id_ for id_ in dict.fromkeys(ids) if id_ in pipeline]
        if present:
            pipeline.remove(present)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The documents with these ids, in this order; unknown ids are left out."""
        known = [id_ for id_ in ids if id_ in self._pipeline]
        hits = Hits(np.array(known, dtype=object), np.zeros(len(known)))
        return [document for document, _ in self._documents(hits)]

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings | None = None,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> "LlmdsVectorStore":
        """A store that holds these texts; `kwargs` are those of the class."""
        store = cls(embedding, **kwargs)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    # ---- searching ----------------------------------------------------------------------------

    def similarity_search(
        self, query: str, k: int = 4, filter: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Document]:
        """The k best documents for a query, best first.

        `kwargs` are those of `RetrievalPipeline.search`: weight, fusion, min_score, group_by.
        """
        return _alone(self.similarity_search_with_score(query, k, filter, **kwargs))

    def similarity_search_with_score(
        self, query: str, k: int = 4, filter: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """The k best documents and their fused scores, higher is better; as `similarity_search`."""
        return self._search(query, self._embedded(query), k, filter, kwargs)

    def similarity_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        filter: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """The k documents whose vectors are nearest to this one; as `similarity_search`."""
        return _alone(self._search("", embedding, k, filter, kwargs))

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """k documents that are relevant and differ (Carbonell and Goldstein 1998).

        `lambda_mult`: 1 for relevance alone, 0 for difference alone. `fetch_k` is not needed: the
        pipeline chooses among the documents that it fuses, at least 100.
        """
        kwargs["diversity"] = 1 - lambda_mult
        return _alone(self._search(query, self._embedded(query), k, filter, kwargs))

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """As `max_marginal_relevance_search`, for the vector of a query."""
        kwargs["diversity"] = 1 - lambda_mult
        return _alone(self._search("", embedding, k, filter, kwargs))

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        """Fused scores are in [0, 1], relative to the best of each half; "dbsf" is cut to it."""
        return lambda score: min(max(score, 0.0), 1.0)

    def _embedded(self, query):
        return None if self._embedding is None else self._embedding.embed_query(query)

    def _search(self, query, vector, k, where, options):
        if not len(self._pipeline):
            return []
        hits = self._pipeline.search(query, k, vectors=vector, where=where, **options)
        return self._documents(hits)

    def _documents(self, hits):
        return [
            (Document(id=id_, page_content=text, metadata=metadata), score)
            for id_, text, metadata, score in self._pipeline.documents(hits)
        ]

    # ---- files --------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike) -> None:
        """Write the documents, their index and the pipeline's settings to one file."""
        self._pipeline.save(path)

    @classmethod
    def load(
        cls, path: str | os.PathLike, embedding: Embeddings | None = None, **kwargs: Any
    ) -> "LlmdsVectorStore":
        """The store in a file; `embedding` is the one it had, and is not in the file.

        `kwargs` are those of `RetrievalPipeline.load`, such as mmap.
        """
        return cls(embedding, pipeline=RetrievalPipeline.load(path, **kwargs))


class LlmdsRetriever(BaseRetriever):
    """A retriever of LangChain over an LlmdsVectorStore; every field may be given to `invoke`, too.

    Parameters
    ----------
    vectorstore : LlmdsVectorStore
        Or, in its place, `pipeline`, a RetrievalPipeline, and perhaps `embedding`.
    k : int
        Documents that are returned.
    filter : dict, optional
        The `where` of the search.
    weight : float in [0, 1], optional
        Of the vectors against the words. Default: that of the pipeline, which `tune_weight` sets.
    diversity : float in [0, 1], optional
        More for documents that differ.
    min_score : float, optional
        Leave out what scores less.
    group_by : str, optional
        Only the best document for each value of this field of the metadata, such as "source".

    Examples
    --------
    >>> from llmds_nb.integrations.langchain import LlmdsRetriever, LlmdsVectorStore
    >>> store = LlmdsVectorStore.from_texts(["red fox", "blue sky"], ids=["a", "b"])
    >>> LlmdsRetriever(vectorstore=store, k=1).invoke("a fox")
    [Document(id='a', metadata={}, page_content='red fox')]
    """

    vectorstore: LlmdsVectorStore
    k: int = 4
    filter: dict[str, Any] | None = None
    weight: float | None = None
    diversity: float | None = None
    min_score: float | None = None
    group_by: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_pipeline(cls, values: Any) -> Any:
        if isinstance(values, dict) and "pipeline" in values:
            if "vectorstore" in values:
                raise ValueError("there may be a vectorstore or a pipeline, not both")
            values = dict(values)
            embedding, pipeline = values.pop("embedding", None), values.pop("pipeline")
            values["vectorstore"] = LlmdsVectorStore(embedding, pipeline=pipeline)
        return values

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        options = {
            "k": self.k, "filter": self.filter, "weight": self.weight, "diversity": self.diversity,
            "min_score": self.min_score, "group_by": self.group_by,
        } | kwargs  # fmt: skip
        return self.vectorstore.similarity_search(query, **options)


def _alone(found: list[tuple[Document, float]]) -> list[Document]:
    return [document for document, _ in found]


def _refuse_unknown(method, kwargs):
    if kwargs:
        raise TypeError(f"{method} got an unexpected argument {next(iter(kwargs))!r}")
