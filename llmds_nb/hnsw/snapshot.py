"""Snapshots of an HNSW index: all that a search reads, replaced as a whole by each write.

Ids map to slots by a `table` of `primitives.hash_table` over the live slots. Consecutive ids, as
they are unless the user names others, take no memory and are found without it: it is empty then.
"""

from dataclasses import dataclass, field

import numpy as np

from .._core.arrays import appended, are_consecutive, taken
from .._core.state import Handle
from .._core.typing import Bools, Int32s, Int64s, UInt8s
from ..primitives import hash_table
from ..primitives.status import ABSENT
from .kernels.distance import measured_space, walked_space
from .kernels.graph import BLOCK_BITS
from .kernels.state import Graph, Index, Links
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
        """The handle of these arrays as an Index; there is at least one slot. Made at first use.

        Two threads may each make one, so a caller keeps the one it got during a kernel's call.
        """
        handle = self._handle
        if handle is None:
            assert self.coding is not None  # as it is once there are vectors
            measure = self.factors, self.metric
            spaces = walked_space(self.rows, *measure), measured_space(self.vectors, *measure)
            codes = self.coding.for_kernels(self.prefilter, self.outlier, *measure)
            parts = *spaces, self.ids, self.graph, *codes, self.n, self.dim
            handle = Handle(Index(*parts))
            object.__setattr__(self, "_handle", handle)
        return handle

    @property
    def graph(self) -> Graph:
        """The links and the entry, as kernels take them."""
        links = Links(self.links0, self.blocks0), Links(self.links1, self.blocks1)
        return Graph(*links, self.upper, self.entry, self.top)

    @property
    def needs_repair(self) -> bool:
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


def select_slots(base: Snapshot, slots: Int64s) -> dict:
    """The vectors in `slots` alone, all of them live, as fields of a snapshot."""
    fields: dict = {"coding": base.coding, "live": np.zeros(0, np.bool_), "n_live": len(slots)}
    for name in ("rows", "prefilter", "outlier", "factors"):
        array = getattr(base, name)
        fields[name] = taken(array, slots) if len(array) else array
    same = base.rows is base.vectors
    fields["vectors"] = fields["rows"] if same else taken(base.vectors, slots)
    fields["ids"] = packed_ids(ids_of(base.ids, slots))
    return fields


def is_packed(ids: Int64s) -> bool:
    """Whether `ids` of a snapshot that is not empty are consecutive: only the first is kept."""
    return len(ids) == 1


def ids_of(ids: Int64s, slots: Int64s) -> Int64s:
    """The ids of these slots, int64[n]."""
    return ids[0] + slots if is_packed(ids) else ids[slots]


def packed_ids(ids: Int64s) -> Int64s:
    """The ids; only the first, in an array of its own, where they are consecutive."""
    return ids[:1].copy() if are_consecutive(ids) else ids


def appended_ids(ids: Int64s, n: int, new: Int64s) -> Int64s:
    """`ids` of n slots, and `new` ones for the slots that follow."""
    if n == 0:
        ids = packed_ids(new)
        return ids if is_packed(ids) else ids.copy()
    if is_packed(ids):
        if new[0] == ids[0] + n and are_consecutive(new):
            return ids
        ids = ids[0] + np.arange(n)
    return appended(ids, n, new)


def slots_of(snapshot: Snapshot, table: Int64s, ids: Int64s) -> Int64s:
    """The slots of ids int64[n], ABSENT for those that are not there. O(n)."""
    if not snapshot.n:
        return np.full(len(ids), ABSENT)
    if not is_packed(snapshot.ids):
        slots = np.empty(len(ids), np.int64)
        hash_table.table_find_many(table, ids, slots)
        return slots
    slots = ids - snapshot.ids[0]
    there = (slots >= 0) & (slots < snapshot.n)
    if snapshot.n_live < snapshot.n:
        there &= snapshot.live[np.where(there, slots, 0)]
    return np.where(there, slots, ABSENT)


def slot_of(snapshot: Snapshot, table: Int64s, id: int) -> int:
    """The slot of one id, or ABSENT. O(1)."""
    if not is_packed(snapshot.ids):
        return hash_table.table_find(table, np.int64(id))
    slot = id - int(snapshot.ids[0])
    there = 0 <= slot < snapshot.n and (not len(snapshot.live) or snapshot.live[slot])
    return slot if there else ABSENT


def table_after(table: Int64s, base: Snapshot | None, snapshot: Snapshot) -> tuple[Int64s, Int64s]:
    """(table, slots to enter) for the ids of `snapshot`; `table` is that of `base`, if it grew."""
    if is_packed(snapshot.ids):
        return hash_table.empty_table(0), np.zeros(0, np.int64)
    if base is None or is_packed(base.ids):
        return hash_table.empty_table(snapshot.n_live), snapshot.live_slots()
    if snapshot.n_live > hash_table.table_capacity(table):
        table, smaller = hash_table.empty_table(snapshot.n_live), table
        hash_table.table_rehash(smaller, table)
    return table, np.arange(base.n, snapshot.n)


def block_rows(blocks: Int32s, n: int) -> Int64s:
    """The physical rows of logical rows 0 to n - 1."""
    rows = np.arange(n)
    return (blocks[rows >> BLOCK_BITS].astype(np.int64) << BLOCK_BITS) | (rows & (BLOCK - 1))


def logical_rows(links: Int32s, blocks: Int32s, n: int) -> Int32s:
    """Logical rows 0 to n - 1 of links. O(n M)."""
    return links[block_rows(blocks, n)]
