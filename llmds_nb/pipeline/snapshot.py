"""What one search reads: a snapshot of both halves, and the searcher that runs on it."""

from typing import TYPE_CHECKING, NamedTuple

from ..bm25.index import Hits, InvertedIndex
from ..hnsw.index import HNSW
from .requests import Request

if TYPE_CHECKING:
    from .hybrid import HybridIndex


class Snapshot(NamedTuple):
    """Both halves after one write: never changed, only replaced as a whole."""

    dense: HNSW | None
    sparse: InvertedIndex
    formula: tuple  # (k1, b, variant) of `sparse`
    version: int  # of the documents


class Searcher(NamedTuple):
    """A point-in-time view of an index, on which one search runs (as Lucene's IndexSearcher)."""

    hybrid: "HybridIndex"
    snapshot: Snapshot
    settings: tuple
    threads: int = 1

    @property
    def version(self) -> int:
        """The version of the documents."""
        return self.snapshot.version

    def encode(self, requests: list[Request]) -> list[Request]:
        """See HybridIndex.encode."""
        return self.hybrid.encode(self.snapshot, requests)

    def search(self, requests: list[Request]) -> Hits:
        """See HybridIndex.search."""
        return self.hybrid.search(self.snapshot, self.settings, self.threads, requests)

    def search_one(self, request: Request) -> Hits:
        """See HybridIndex.search_one."""
        return self.hybrid.search_one(self.snapshot, self.settings, request)
