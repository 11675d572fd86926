"""The size and quality of an HNSW index in numbers."""

from typing import NamedTuple

import numpy as np

from .._core.state import Handle, n_words
from .._core.typing import Int64s
from .kernels.spanning_tree import tree_count
from .kernels.state import Index, Links
from .quantization import NONE
from .snapshot import Snapshot, logical_rows


class HNSWStats(NamedTuple):
    """The state of an index in numbers."""

    n: int
    deleted: int
    deleted_share: float  # of the slots
    levels: Int64s  # int64[top + 1]: slots by their top level
    mean_degree: float  # on level 0
    max_degree: int
    reachable_share: float  # of the slots, from the entry on level 0
    coding: str
    code_bytes: int  # per vector; with quantize=None only used to reject vectors unread
    ef_search: int
    rerank: int  # candidates that a search for 10 measures on the stored vectors
    n_bytes: int


def n_bytes(snapshot: Snapshot) -> int:
    """Bytes of the snapshot's arrays, its handle included."""
    fields = [getattr(snapshot, name) for name in Snapshot.__slots__ if name != "__weakref__"]
    arrays = {id(array): array for array in fields if isinstance(array, np.ndarray)}
    coding = snapshot.coding
    codes = 0 if coding is None else coding.basis.nbytes + coding.offset.nbytes
    handle = 8 * n_words(Index) if snapshot.n else 0
    return codes + handle + sum(array.nbytes for array in arrays.values())


def stats(snapshot: Snapshot, ef_search: int, rerank: int, total_bytes: int) -> HNSWStats:
    """See HNSW.stats."""
    n = snapshot.n
    degrees = logical_rows(snapshot.links0, snapshot.blocks0, n)[:, 0]
    reached = reachable(snapshot)
    coding = snapshot.coding
    walked = NONE if coding is None or coding.walks_vectors else coding.kind
    return HNSWStats(
        n=snapshot.n_live,
        deleted=n - snapshot.n_live,
        deleted_share=(n - snapshot.n_live) / max(1, n),
        levels=np.bincount(snapshot.levels[:n], minlength=snapshot.top + 1),
        mean_degree=float(degrees.mean()) if n else 0.0,
        max_degree=int(degrees.max(initial=0)),
        reachable_share=reached / max(1, n),
        coding=walked,
        code_bytes=0 if coding is None or coding.kind == NONE else coding.width,
        ef_search=ef_search,
        rerank=rerank,
        n_bytes=total_bytes,
    )


def reachable(snapshot: Snapshot) -> int:
    """How many slots a walk on level 0 can reach from the entry. O(n M)."""
    if not snapshot.n:
        return 0
    links = Handle(Links(snapshot.links0, snapshot.blocks0))
    parent = np.empty(snapshot.n, np.int32)
    return tree_count(links.address, snapshot.entry, snapshot.n, parent)
