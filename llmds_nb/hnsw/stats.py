"""An HNSW index inspected: its size and quality in numbers, and the check of its invariants."""

from typing import NamedTuple

import numpy as np

from .._core.state import Handle, n_words
from .._core.typing import Int64s
from ..primitives.hash_table import table_pairs
from ..primitives.status import ABSENT
from .graph_writer import GraphWriter
from .kernels.spanning_tree import tree_count
from .kernels.state import Index, Links
from .quantization import NONE, restore, signs_of
from .snapshot import BLOCK, Snapshot, ids_of, is_packed, logical_rows, slots_of


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
    parts = [getattr(snapshot, name) for name in Snapshot.__slots__ if name != "__weakref__"]
    parts += snapshot.coding or ()
    arrays = {id(part): part.nbytes for part in parts if isinstance(part, np.ndarray)}
    return sum(arrays.values()) + (8 * n_words(Index) if snapshot.n else 0)


def stats(snapshot: Snapshot, ef_search: int, rerank: int, total_bytes: int) -> HNSWStats:
    """See HNSW.stats."""
    n = snapshot.n
    degrees = logical_rows(snapshot.links0, snapshot.blocks0, n)[:, 0]
    coding, dead = snapshot.coding, n - snapshot.n_live
    levels = np.bincount(snapshot.levels[:n], minlength=snapshot.top + 1)
    degree = float(degrees.mean()) if n else 0.0, int(degrees.max(initial=0))
    reached = _reachable(snapshot) / max(1, n)
    walked = NONE if coding is None or coding.walks_vectors else coding.kind
    width = 0 if coding is None or coding.kind == NONE else coding.width
    sizes = snapshot.n_live, dead, dead / max(1, n), levels, *degree, reached
    return HNSWStats(*sizes, walked, width, ef_search, rerank, total_bytes)


def _reachable(snapshot):
    """How many slots a walk on level 0 can reach from the entry. O(n M)."""
    if not snapshot.n:
        return 0
    links = Handle(Links(snapshot.links0, snapshot.blocks0))
    parent = np.empty(snapshot.n, np.int32)
    return tree_count(links.address, snapshot.entry, snapshot.n, parent)


def check(snapshot: Snapshot, writer: GraphWriter, table: Int64s, M: int, next_id: int) -> None:
    """Assert the invariants of `kernels.state`, and that the writer knows every block once."""
    s, n = snapshot, snapshot.n
    assert len(s.live) == 0 or len(s.live) >= n
    live = s.mask
    assert s.n_live == live.sum()
    assert n == 0 or is_packed(s.ids) or len(s.ids) >= n
    ids = ids_of(s.ids, np.flatnonzero(live))
    assert len(np.unique(ids)) == len(ids) and (ids >= 0).all() and (ids < next_id).all()
    assert (slots_of(s, table, ids) == np.flatnonzero(live)).all()
    assert len(table_pairs(table)) == (0 if is_packed(s.ids) else s.n_live)
    if s.coding is not None and s.coding.kind != NONE:
        coded = s.prefilter if s.coding.walks_vectors else s.rows
        assert coded.shape[1] == s.coding.width and len(coded) >= n
        assert len(s.outlier) == 0 or len(s.outlier) >= n
        if s.coding.walks_vectors:
            units = s.vectors[:n] * s.factors[:n, None] if len(s.factors) else s.vectors[:n]
            restored = restore(s.coding, s.prefilter[:n])
            off = np.linalg.norm(restored - units.astype(np.float64), axis=1)
            within = ~s.outlier[:n] if len(s.outlier) else np.ones(n, np.bool_)
            assert (off <= (1 + 1e-5) * s.coding.error(s.coding.longest))[within].all()
        else:
            signs = signs_of(s.coding, s.rows[:n], s.metric)
            assert s.prefilter[:n].shape == signs.shape and (s.prefilter[:n] == signs).all()
    for links, blocks, n_rows, pool in (
        (s.links0, s.blocks0, n, writer.pool0),
        (s.links1, s.blocks1, s.n_upper, writer.pool1),
    ):
        assert len(blocks) == -(-n_rows // BLOCK)
        known = [blocks, pool.free, *(retired for _, retired in pool.retired)]
        taken = np.sort(np.concatenate(known))
        assert (taken == np.arange(len(links) // BLOCK)).all(), "blocks lost or used twice"
    if n == 0:
        assert s.entry == ABSENT and s.top == -1
        return
    levels = s.levels[:n].astype(np.int64)
    assert s.top == levels.max() == levels[s.entry]
    upper = s.upper[:n]
    tall = levels > 0
    assert (upper[~tall] == ABSENT).all() and s.n_upper == levels.sum()
    assert (upper[tall] == (np.cumsum(levels) - levels)[tall]).all()
    rows0 = logical_rows(s.links0, s.blocks0, n)
    _check_links(rows0, np.arange(n), np.zeros(n, np.int64), levels, 2 * M)
    owners = np.repeat(np.arange(n), levels)
    at = 1 + np.arange(s.n_upper) - upper[owners]
    _check_links(logical_rows(s.links1, s.blocks1, s.n_upper), owners, at, levels, M)
    assert _reachable(s) == n, "unreachable slots"
    _check_tree(rows0, writer.parent[:n], s.entry)


def _check_links(rows, owners, at, levels, limit):
    assert rows.shape[1] == limit + 1
    degree = rows[:, 0]
    assert (degree >= 0).all() and (degree <= limit).all()
    used = np.arange(limit)[None, :] < degree[:, None]
    slots = rows[:, 1:]
    assert ((slots >= 0) & (slots < len(levels)))[used].all(), "neighbour out of range"
    assert (slots != owners[:, None])[used].all(), "a slot is its own neighbour"
    assert (levels[np.where(used, slots, 0)] >= at[:, None])[used].all(), "neighbour below level"
    ordered = np.sort(np.where(used, slots, -1 - np.arange(limit)[None, :]), axis=1)
    assert (ordered[:, 1:] != ordered[:, :-1]).all(), "a neighbour twice in a row"


def _check_tree(rows, parent, entry):
    n = len(parent)
    assert parent[entry] == entry and (parent >= 0).all() and (parent < n).all()
    others = np.flatnonzero(np.arange(n) != entry)
    used = np.arange(1, rows.shape[1])[None, :] <= rows[parent[others], 0][:, None]
    linked = (rows[parent[others], 1:] == others[:, None]) & used
    assert linked.any(axis=1).all(), "a slot is no neighbour of its parent"
    top = parent.copy()
    for _ in range(n.bit_length()):
        top = top[top]
    assert (top == entry).all(), "the spanning tree has a cycle"
