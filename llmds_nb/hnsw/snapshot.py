"""Snapshots of an HNSW index: all that a search reads, replaced as a whole by each write."""

from dataclasses import dataclass, field

import numpy as np

from .._core.arrays import appended, taken
from .._core.state import Handle
from .._core.typing import Bools, Int32s, Int64s, UInt8s
from ..primitives.status import ABSENT
from .id_map import ids_of, packed_ids
from .kernels.graph import BLOCK_BITS
from .kernels.state import Graph, Index, Links, Space
from .quantization import Coding

BLOCK = 1 << BLOCK_BITS  # logical rows of links that are copied together
_MAX_LEVEL = 31
_MIN_DEAD, _DEAD_SHARE = 64, 0.2  # slots, and the share of them, that may stay dead


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Snapshot:
    """The arrays of `kernels.state`, never changed below `n` once they are published.

    `metric` is the one that kernels compare with, `dim` the number of components of a vector.
    """

    metric: int
    dim: int
    vectors: np.ndarray
    rows: np.ndarray
    prefilter: np.ndarray  # codes of the prefilter
    outlier: np.ndarray
    factors: np.ndarray
    ids: np.ndarray
    live: np.ndarray
    levels: np.ndarray
    upper: np.ndarray
    links0: np.ndarray
    blocks0: np.ndarray
    links1: np.ndarray
    blocks1: np.ndarray
    coding: Coding | None
    n: int = 0
    n_live: int = 0
    n_upper: int = 0
    drawn: int = 0  # levels drawn for this graph
    entry: int = ABSENT
    top: int = -1
    _handle: Handle | None = field(default=None, init=False, compare=False, repr=False)

    @property
    def handle(self) -> Handle:
        """The handle of these arrays as an Index, made by the first search; they are not empty.

        A caller holds it during a kernel's call: two first searches at once make one each.
        """
        handle = self._handle
        if handle is None:
            assert self.coding is not None  # as it is once there are vectors
            index = Index(
                space=Space(self.rows, self.factors, self.metric),
                vectors=self.vectors,
                ids=self.ids,
                graph=self.graph,
                prefilter=self.coding.prefilter(self.prefilter, self.outlier),
                quantizer=self.coding.quantizer,
                n=self.n,
                dim=self.dim,
            )
            handle = Handle(index)
            object.__setattr__(self, "_handle", handle)
        return handle

    @property
    def graph(self) -> Graph:
        """The links and the entry, as kernels take them."""
        return Graph(
            level0=Links(self.links0, self.blocks0),
            above=Links(self.links1, self.blocks1),
            upper=self.upper,
            entry=self.entry,
            top=self.top,
        )

    @property
    def is_sparse(self) -> bool:
        """Whether so many slots are dead that the graph is to be repaired."""
        return self.n - self.n_live > max(_DEAD_SHARE * self.n, _MIN_DEAD)

    def live_slots(self) -> Int64s:
        """The slots that hold a vector of the index, ascending."""
        return np.flatnonzero(self.mask) if len(self.live) else np.arange(self.n)

    @property
    def mask(self) -> Bools:
        """Which slots hold a vector of the index, bool[n]."""
        return self.live[: self.n] if len(self.live) else np.ones(self.n, np.bool_)

    def live_without(self, slots: Int64s) -> Bools:
        """The `live` of a snapshot of these slots without some of them."""
        if not len(slots):
            return self.live
        live = np.array(self.mask)
        live[slots] = False
        return live


def drawn_levels(base: Snapshot, n: int, M: int, seed: int) -> dict:
    """The levels of `n` slots after base.n and their upper rows, as fields of a snapshot.

    The level is floor(-ln(U) / ln(M)), each U from the seed and the count of those drawn before.
    """
    bits = np.random.PCG64(seed).advance(base.drawn).random_raw(n)
    uniform = ((bits >> np.uint64(11)) + 1.0) * 2.0**-53
    levels = np.minimum(-np.log(uniform) / np.log(M), _MAX_LEVEL).astype(np.uint8)
    return with_levels(base, levels, base.drawn + n)


def with_levels(base: Snapshot, levels: UInt8s, drawn: int) -> dict:
    """Slots of these levels after base.n, as fields of a snapshot."""
    heights = np.cumsum(levels, dtype=np.int64)
    upper = np.where(levels > 0, base.n_upper + heights - levels, ABSENT).astype(np.int32)
    return {
        "levels": appended(base.levels, base.n, levels),
        "upper": appended(base.upper, base.n, upper),
        "n_upper": base.n_upper + int(heights[-1]),
        "drawn": drawn,
    }


def only(base: Snapshot, slots: Int64s) -> dict:
    """The vectors in `slots` alone, all of them live, as fields of a snapshot."""
    rows = taken(base.rows, slots)
    return {
        "vectors": rows if base.rows is base.vectors else taken(base.vectors, slots),
        "rows": rows,
        "prefilter": taken(base.prefilter, slots) if len(base.prefilter) else base.prefilter,
        "outlier": base.outlier[slots] if len(base.outlier) else base.outlier,
        "factors": base.factors[slots] if len(base.factors) else base.factors,
        "ids": packed_ids(ids_of(base.ids, slots)),
        "live": np.zeros(0, np.bool_),
        "coding": base.coding,
        "n_live": len(slots),
    }


def block_rows(blocks: Int32s, n: int) -> Int64s:
    """The physical rows of logical rows 0 to n - 1."""
    rows = np.arange(n)
    return (blocks[rows >> BLOCK_BITS].astype(np.int64) << BLOCK_BITS) | (rows & (BLOCK - 1))


def logical_rows(links: Int32s, blocks: Int32s, n: int) -> Int32s:
    """Logical rows 0 to n - 1 of links. O(n M)."""
    return links[block_rows(blocks, n)]
