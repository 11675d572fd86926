"""Snapshots of an HNSW index: all that a search reads, replaced as a whole by each write.

Ids map to slots by the table of `kernels.id_table`. Consecutive ids, as they are unless the user
names others, take no memory and are found without it: it is empty then.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from .._core.arrays import appended, are_consecutive, taken
from .._core.state import Handle
from .._core.typing import Bools, Int32s, Int64s, UInt8s
from ..primitives.status import ABSENT
from .kernels import id_table
from .kernels.distance import measured_space, walked_space
from .kernels.graph import BLOCK_BITS
from .kernels.search import groups_mark
from .kernels.state import LIVE, Graph, Index, Links
from .quantization import Coding

BLOCK = 1 << BLOCK_BITS  # logical rows of links that are copied together
LINKS = {"links0": "blocks0", "links1": "blocks1", "duplicates": "blocks2"}  # rows and blocks
NO_TABLE: Int64s = np.zeros(0, np.int64)
MAX_LEVEL = 31
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
    duplicates: np.ndarray
    blocks2: np.ndarray
    node_of: np.ndarray
    table: np.ndarray
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
        links = [Links(*self.links_of(name)) for name in LINKS]
        return Graph(*links, self.upper, self.entry, self.top)

    def links_of(self, name: str) -> tuple[Int32s, Int32s]:
        """(rows, blocks) of one of the LINKS."""
        return getattr(self, name), getattr(self, LINKS[name])

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
        return marked_live(self.live[: self.n]) if len(self.live) else np.ones(self.n, np.bool_)

    def live_without(self, slots: Int64s) -> UInt8s:
        """The `live` of a snapshot of these slots without some of them."""
        if not len(slots):
            return self.live
        live = self.mask.astype(np.uint8)
        live[slots] = 0
        return with_groups(live, self.node_of)


def marked_live(live: UInt8s) -> Bools:
    """Which slots are LIVE, bool[n]."""
    return (live & LIVE).view(np.bool_)


def with_groups(live: UInt8s, node_of: Int32s) -> UInt8s:
    """`live`, of which only LIVE is set, with GROUP as well, in place."""
    if len(node_of):
        groups_mark(node_of, live)
    return live


def nodes_of(node_of: Int32s, slots: Int64s) -> Int64s:
    """The node of each of these slots, itself or another, from its entry in `node_of`."""
    return np.where(node_of == ABSENT, slots, node_of >> 1)


def duplicate_rows(node_of: Int32s) -> Int32s:
    """The logical rows of `duplicates` of all slots, and of the rest of their last block. O(n)."""
    n = len(node_of)
    rows = np.zeros((-(-n // BLOCK) * BLOCK, 1), np.int32)
    slots = duplicates_of(node_of, 0, n)
    nodes = node_of[slots] >> 1
    order = np.argsort(nodes, kind="stable")
    slots, nodes = slots[order], nodes[order]
    entries = 2 * slots + (node_of[slots] & 1)
    same = nodes[1:] == nodes[:-1]
    rows[slots[1:][same], 0] = entries[:-1][same]
    last = np.append(~same, True)[: len(slots)]
    rows[nodes[last], 0] = entries[last]
    return rows


def duplicates_of(node_of: Int32s, start: int, stop: int) -> Int64s:
    """The slots in [start, stop) that are duplicates."""
    return start + np.flatnonzero(node_of[start:stop] != ABSENT)


def drawn_levels(base: Snapshot, n: int, M: int, seed: int) -> dict:
    """The levels of `n` slots after base.n and their upper rows, as fields of a snapshot.

    The level is floor(-ln(U) / ln(M)), each U from the seed and the count of those drawn before.
    """
    bits = np.random.PCG64(seed).advance(base.drawn).random_raw(n)
    uniform = ((bits >> np.uint64(11)) + 1.0) * 2.0**-53
    levels = np.minimum(-np.log(uniform) / np.log(M), MAX_LEVEL).astype(np.uint8)
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
    fields: dict = {"coding": base.coding, "live": np.zeros(0, np.uint8), "n_live": len(slots)}
    fields["node_of"] = np.zeros(0, np.int32)
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


def slots_of(snapshot: Snapshot, ids: Int64s) -> Int64s:
    """The slots of ids int64[n], ABSENT for those that are not there. O(n)."""
    if not snapshot.n:
        return np.full(len(ids), ABSENT)
    if not is_packed(snapshot.ids):
        slots = np.empty(len(ids), np.int64)
        found_in = snapshot.table, snapshot.ids, snapshot.live, snapshot.n
        id_table.slots_find_many(*found_in, ids, slots)
        return slots
    slots = ids - snapshot.ids[0]
    there = (slots >= 0) & (slots < snapshot.n)
    if len(snapshot.live):
        there &= snapshot.live[np.where(there, slots, 0)] & LIVE != 0
    return np.where(there, slots, ABSENT)


def with_table(base: Snapshot, snapshot: Snapshot) -> Snapshot:
    """`snapshot`, which has slots after those of `base`, with a table of its ids.

    That of `base` if it can hold them: `base` itself does not see what is entered.
    """
    if is_packed(snapshot.ids) or not snapshot.n:
        return replace(snapshot, table=NO_TABLE)
    new = snapshot.ids, base.n, snapshot.n
    if len(base.table) and id_table.slots_enter_many(base.table, *new):
        return replace(snapshot, table=base.table)
    table = new_table(snapshot)
    assert table is not None
    return replace(snapshot, table=table)


def new_table(snapshot: Snapshot) -> Int64s | None:
    """A table of the ids of live slots; None where two of them have the same."""
    table = id_table.table_for(snapshot.n)
    live = snapshot.live if len(snapshot.live) else np.ones(snapshot.n, np.uint8)
    distinct = id_table.slots_enter_live(table, snapshot.ids, live[: snapshot.n])
    return table if distinct else None


def block_rows(blocks: Int32s, n: int) -> Int64s:
    """The physical rows of logical rows 0 to n - 1."""
    rows = np.arange(n)
    return (blocks[rows >> BLOCK_BITS].astype(np.int64) << BLOCK_BITS) | (rows & (BLOCK - 1))


def logical_rows(links: Int32s, blocks: Int32s, n: int) -> Int32s:
    """Logical rows 0 to n - 1 of links. O(n M)."""
    return links[block_rows(blocks, n)]
