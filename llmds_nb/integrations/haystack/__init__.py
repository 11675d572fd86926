"""A document store of Haystack over a RetrievalPipeline, and its retrievers (extra `haystack`)."""

try:
    import haystack  # noqa: F401
except ImportError as error:
    text = "llmds_nb.integrations.haystack needs haystack-ai: pip install 'llmds_nb[haystack]'"
    raise ImportError(text) from error

from .retrievers import LlmdsBM25Retriever, LlmdsEmbeddingRetriever, LlmdsHybridRetriever
from .store import LlmdsDocumentStore

__all__ = [
    "LlmdsBM25Retriever",
    "LlmdsDocumentStore",
    "LlmdsEmbeddingRetriever",
    "LlmdsHybridRetriever",
]
