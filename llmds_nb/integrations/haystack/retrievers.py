"""Components of Haystack that ask an LlmdsDocumentStore.

Haystack loads a pipeline with them from YAML only if it is told to trust them:
`Pipeline.loads(text, allowed_modules=["llmds_nb.integrations.haystack.*"])`.
"""

import asyncio
from typing import Any

from haystack import Document, component, default_from_dict, default_to_dict
from haystack.document_stores.types import FilterPolicy, apply_filter_policy

from .store import LlmdsDocumentStore


class _Retriever:
    """What the components below have in common."""

    def __init__(
        self,
        document_store: LlmdsDocumentStore,
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        filter_policy: FilterPolicy | str = FilterPolicy.REPLACE,
    ) -> None:
        if not isinstance(document_store, LlmdsDocumentStore):
            kind = type(document_store).__name__
            raise TypeError(f"document_store must be an LlmdsDocumentStore, not {kind}")
        if top_k <= 0:
            raise ValueError(f"top_k must be greater than 0, not {top_k}")
        self.document_store, self.filters, self.top_k = document_store, filters, top_k
        policy = filter_policy
        self.filter_policy = FilterPolicy.from_str(policy) if isinstance(policy, str) else policy

    def to_dict(self) -> dict[str, Any]:
        """The component and its store, without documents, for `from_dict` and pipelines in YAML."""
        return default_to_dict(self, **self._parameters())

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Any:
        """The component that `to_dict` described."""
        parameters = dict(data["init_parameters"])
        if isinstance(parameters["document_store"], dict):
            store = LlmdsDocumentStore.from_dict(parameters["document_store"])
            parameters["document_store"] = store
        return default_from_dict(cls, {**data, "init_parameters": parameters})

    def _parameters(self):
        return {
            "document_store": self.document_store.to_dict(), "filters": self.filters,
            "top_k": self.top_k, "filter_policy": self.filter_policy.value,
        }  # fmt: skip

    def _options(self, filters, top_k):
        filters = apply_filter_policy(self.filter_policy, self.filters, filters)
        return {"filters": filters, "top_k": self.top_k if top_k is None else top_k}


@component
class LlmdsBM25Retriever(_Retriever):
    """Retrieves the documents whose words match a query.

    `filter_policy`: whether the filters of a run replace those of the component, or both must hold.
    """

    @component.output_types(documents=list[Document])
    def run(
        self, query: str, filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """{"documents": the best, best first}; `filters` and `top_k` as those of the component."""
        found = self.document_store.bm25_retrieval(query, **self._options(filters, top_k))
        return {"documents": found}

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """As `run`, in a thread."""
        return await asyncio.to_thread(self.run, query, filters, top_k)


@component
class LlmdsEmbeddingRetriever(_Retriever):
    """Retrieves the documents whose embeddings are nearest to that of a query."""

    @component.output_types(documents=list[Document])
    def run(
        self,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
    ) -> dict[str, list[Document]]:
        """{"documents": the best, best first}; `filters` and `top_k` as those of the component."""
        options = self._options(filters, top_k)
        return {"documents": self.document_store.embedding_retrieval(query_embedding, **options)}

    @component.output_types(documents=list[Document])
    async def run_async(
        self,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
    ) -> dict[str, list[Document]]:
        """As `run`, in a thread."""
        return await asyncio.to_thread(self.run, query_embedding, filters, top_k)


@component
class LlmdsHybridRetriever(_Retriever):
    """Retrieves by words and embeddings, fused in one ranking.

    `weight` is the share of the embeddings, default .7.
    """

    def __init__(
        self,
        document_store: LlmdsDocumentStore,
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        filter_policy: FilterPolicy | str = FilterPolicy.REPLACE,
        weight: float | None = None,
    ) -> None:
        _Retriever.__init__(self, document_store, filters, top_k, filter_policy)
        self.weight = weight

    def _parameters(self):
        return {**_Retriever._parameters(self), "weight": self.weight}

    @component.output_types(documents=list[Document])
    def run(
        self,
        query: str,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
    ) -> dict[str, list[Document]]:
        """{"documents": the best, best first}; `filters` and `top_k` as those of the component."""
        options = {**self._options(filters, top_k), "weight": self.weight}
        found = self.document_store.hybrid_retrieval(query, query_embedding, **options)
        return {"documents": found}

    @component.output_types(documents=list[Document])
    async def run_async(
        self,
        query: str,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
    ) -> dict[str, list[Document]]:
        """As `run`, in a thread."""
        return await asyncio.to_thread(self.run, query, query_embedding, filters, top_k)
