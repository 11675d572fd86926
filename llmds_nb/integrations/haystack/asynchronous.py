"""The methods of a document store that end with `_async`: the others, run in a thread."""

import asyncio
from typing import Any

from haystack import Document
from haystack.document_stores.types import DuplicatePolicy

Filters = dict[str, Any]


class Asynchronous:
    """Adds them to a store; each takes and returns what its namesake does."""

    async def _in_thread(self, name: str, *arguments: Any, **options: Any) -> Any:
        return await asyncio.to_thread(getattr(self, name), *arguments, **options)

    async def count_documents_async(self) -> int:
        """As `count_documents`."""
        return await self._in_thread("count_documents")

    async def count_documents_by_filter_async(self, filters: Filters) -> int:
        """As `count_documents_by_filter`."""
        return await self._in_thread("count_documents_by_filter", filters)

    async def count_unique_metadata_by_filter_async(
        self, filters: Filters, metadata_fields: list[str]
    ) -> dict[str, int]:
        """As `count_unique_metadata_by_filter`."""
        return await self._in_thread("count_unique_metadata_by_filter", filters, metadata_fields)

    async def filter_documents_async(self, filters: Filters | None = None) -> list[Document]:
        """As `filter_documents`."""
        return await self._in_thread("filter_documents", filters)

    async def write_documents_async(
        self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE
    ) -> int:
        """As `write_documents`."""
        return await self._in_thread("write_documents", documents, policy)

    async def delete_documents_async(self, document_ids: list[str]) -> None:
        """As `delete_documents`."""
        await self._in_thread("delete_documents", document_ids)

    async def delete_all_documents_async(self, recreate_index: bool = False) -> None:
        """As `delete_all_documents`."""
        await self._in_thread("delete_all_documents", recreate_index)

    async def delete_by_filter_async(self, filters: Filters) -> int:
        """As `delete_by_filter`."""
        return await self._in_thread("delete_by_filter", filters)

    async def update_by_filter_async(self, filters: Filters, meta: dict[str, Any]) -> int:
        """As `update_by_filter`."""
        return await self._in_thread("update_by_filter", filters, meta)

    async def get_metadata_fields_info_async(self) -> dict[str, dict[str, str]]:
        """As `get_metadata_fields_info`."""
        return await self._in_thread("get_metadata_fields_info")

    async def get_metadata_field_min_max_async(self, metadata_field: str) -> dict[str, Any]:
        """As `get_metadata_field_min_max`."""
        return await self._in_thread("get_metadata_field_min_max", metadata_field)

    async def get_metadata_field_unique_values_async(
        self,
        metadata_field: str,
        search_term: str | None = None,
        from_: int = 0,
        size: int = 10,
        filters: Filters | None = None,
    ) -> tuple[list[Any], int]:
        """As `get_metadata_field_unique_values`."""
        arguments = metadata_field, search_term, from_, size, filters
        return await self._in_thread("get_metadata_field_unique_values", *arguments)

    async def bm25_retrieval_async(self, query: str, **options: Any) -> list[Document]:
        """As `bm25_retrieval`."""
        return await self._in_thread("bm25_retrieval", query, **options)

    async def embedding_retrieval_async(
        self, query_embedding: list[float], **options: Any
    ) -> list[Document]:
        """As `embedding_retrieval`."""
        return await self._in_thread("embedding_retrieval", query_embedding, **options)

    async def hybrid_retrieval_async(
        self, query: str, query_embedding: list[float], **options: Any
    ) -> list[Document]:
        """As `hybrid_retrieval`."""
        return await self._in_thread("hybrid_retrieval", query, query_embedding, **options)
