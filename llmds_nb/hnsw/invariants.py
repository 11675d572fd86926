"""Checks that an HNSW index is whole: the invariants of `kernels.state`, as assertions."""

import numpy as np

from .._core.typing import Int64s
from ..primitives.status import ABSENT
from .graph_writer import GraphWriter
from .id_map import ids_of, is_packed, slots_of
from .quantization import NONE, restore, signs_of
from .snapshot import BLOCK, Snapshot, logical_rows
from .stats import reachable


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
    assert (table[:, 1] != ABSENT).sum() == (0 if is_packed(s.ids) else s.n_live)
    if s.coding is not None and s.coding.kind != NONE:
        coded = s.prefilter if s.coding.walks_vectors else s.rows
        assert coded.shape[1] == s.coding.width and len(coded) >= n
        assert len(s.outlier) == 0 or len(s.outlier) >= n
        if s.coding.walks_vectors:
            units = s.vectors[:n] * s.factors[:n, None] if len(s.factors) else s.vectors[:n]
            off = np.linalg.norm(
                restore(s.coding, s.prefilter[:n]) - units.astype(np.float64), axis=1
            )
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
    _check_links(
        logical_rows(s.links0, s.blocks0, n), np.arange(n), np.zeros(n, np.int64), levels, 2 * M
    )
    owners = np.repeat(np.arange(n), levels)
    at = 1 + np.arange(s.n_upper) - upper[owners]
    _check_links(logical_rows(s.links1, s.blocks1, s.n_upper), owners, at, levels, M)
    assert reachable(s) == n, "unreachable slots"
    _check_tree(logical_rows(s.links0, s.blocks0, n), writer.parent[:n], s.entry)


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
