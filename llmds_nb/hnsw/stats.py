"""An HNSW index inspected: its size and quality in numbers, and the check of its invariants."""

from typing import Any, NamedTuple

import numpy as np

from .._core.state import Handle, n_words
from .._core.typing import Int64s
from ..primitives.status import ABSENT
from .graph_writer import GraphWriter
from .kernels.id_table import table_used
from .kernels.spanning_tree import tree_count
from .kernels.state import GROUP, LIVE, Index, Links
from .quantization import NONE, restore, signs_of
from .snapshot import (
    BLOCK,
    LINKS,
    Snapshot,
    duplicate_rows,
    duplicates_of,
    ids_of,
    is_packed,
    logical_rows,
    slots_of,
    with_groups,
)


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
    duplicates: int  # slots that share the place of an equal one in the graph


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
    others = duplicates_of(snapshot.node_of, 0, n)
    degrees = np.delete(degrees, others)
    coding, dead = snapshot.coding, n - snapshot.n_live
    levels = np.bincount(snapshot.levels[:n], minlength=snapshot.top + 1)
    degree = float(degrees.mean()) if n else 0.0, int(degrees.max(initial=0))
    reached = (_reachable(snapshot) + len(others)) / max(1, n)
    walked = NONE if coding is None or coding.walks_vectors else coding.kind
    width = 0 if coding is None or coding.kind == NONE else coding.width
    sizes = snapshot.n_live, dead, dead / max(1, n), levels, *degree, reached
    return HNSWStats(*sizes, walked, width, ef_search, rerank, total_bytes, len(others))


def _reachable(snapshot):
    """How many slots a walk on level 0 can reach from the entry. O(n M)."""
    if not snapshot.n:
        return 0
    links = Handle(Links(snapshot.links0, snapshot.blocks0))
    parent = np.empty(snapshot.n, np.int32)
    return tree_count(links.address, snapshot.entry, snapshot.n, parent)


def check(snapshot: Snapshot, writer: GraphWriter, M: int, next_id: int) -> None:
    """Assert the invariants of `kernels.state`, and that the writer knows every block once."""
    s, n = snapshot, snapshot.n
    assert len(s.live) == 0 or len(s.live) >= n
    live = s.mask
    assert s.n_live == live.sum()
    assert n == 0 or is_packed(s.ids) or len(s.ids) >= n
    ids = ids_of(s.ids, np.flatnonzero(live))
    assert len(np.unique(ids)) == len(ids) and (ids >= 0).all() and (ids < next_id).all()
    assert (slots_of(s, ids) == np.flatnonzero(live)).all()
    assert len(s.table) == 0 if n == 0 or is_packed(s.ids) else table_used(s.table) >= s.n_live
    _check_duplicates(s)
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
    n_lists = n if len(s.node_of) else 0
    for name, n_rows, pool in zip(LINKS, (n, s.n_upper, n_lists), writer.pools, strict=True):
        links, blocks = s.links_of(name)
        assert len(blocks) == -(-n_rows // BLOCK)
        known: list[Any] = [blocks, pool.free, *(retired for _, retired in pool.retired)]
        taken: Int64s = np.sort(np.concatenate(known))
        assert (taken == np.arange(len(links) // BLOCK)).all(), "blocks lost or used twice"
    if n == 0:
        assert s.entry == ABSENT and s.top == -1
        return
    levels = s.levels[:n].astype(np.int64)
    upper = s.upper[:n]
    tall = levels > 0
    assert (upper[~tall] == ABSENT).all() and s.n_upper == levels.sum()
    assert (upper[tall] == (np.cumsum(levels) - levels)[tall]).all()
    others = duplicates_of(s.node_of, 0, n)
    at_most = levels.copy()
    at_most[others] = -1  # so that no link may lead there
    assert s.top == at_most.max() == at_most[s.entry]
    rows0 = logical_rows(s.links0, s.blocks0, n)
    assert (rows0[others, 0] == 0).all(), "a duplicate has links"
    _check_links(rows0, np.arange(n), np.zeros(n, np.int64), at_most, 2 * M)
    owners = np.repeat(np.arange(n), levels)
    at = 1 + np.arange(s.n_upper) - upper[owners]
    rows1 = logical_rows(s.links1, s.blocks1, s.n_upper)
    assert (rows1[np.isin(owners, others), 0] == 0).all(), "a duplicate has links"
    _check_links(rows1, owners, at, at_most, M)
    assert _reachable(s) == n - len(others), "unreachable nodes"
    parent = writer.parent[:n]
    assert (parent[others] == s.node_of[others] >> 1).all()
    _check_tree(rows0, parent, s.entry, np.setdiff1d(np.arange(n), [*others, s.entry]))


def _check_duplicates(s):
    """Each duplicate is in the list of its node, which tells whether any is live."""
    n, live, node_of = s.n, s.live[: s.n], s.node_of[: s.n]
    assert len(node_of) in (0, n) and (live <= LIVE | GROUP).all()
    if len(live):
        passing = with_groups(live & LIVE, node_of) != 0
        assert (passing == (live != 0)).all(), "what is live in a group is not known"
    if not len(node_of):
        return
    others = duplicates_of(node_of, 0, n)
    nodes = node_of[others] >> 1
    assert (node_of >= ABSENT).all() and (nodes < others).all()
    assert (node_of[nodes] == ABSENT).all(), "a duplicate of a duplicate"
    lists = logical_rows(s.duplicates, s.blocks2, n)
    assert (lists == duplicate_rows(node_of)[:n]).all(), "a list lacks a duplicate"
    differ = (s.vectors[others] != s.vectors[nodes]).any(axis=1)
    assert (differ == node_of[others] & 1).all()


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


def _check_tree(rows, parent, entry, others):
    """`others` are all nodes but the entry."""
    n = len(parent)
    assert parent[entry] == entry and (parent >= 0).all() and (parent < n).all()
    used = np.arange(1, rows.shape[1])[None, :] <= rows[parent[others], 0][:, None]
    linked = (rows[parent[others], 1:] == others[:, None]) & used
    assert linked.any(axis=1).all(), "a slot is no neighbour of its parent"
    top = parent.copy()
    for _ in range(n.bit_length()):
        top = top[top]
    assert (top == entry).all(), "the spanning tree has a cycle"
