"""An HNSW snapshot as a whole: packed for a file, measured, checked against its invariants."""

import mmap
from typing import NamedTuple

import numpy as np

from .._core import validation
from .._core.arrays import taken
from ..errors import CorruptFileError
from ..primitives.status import ABSENT
from .graph_writer import Snapshot, block_rows
from .id_map import count_up, ids_of, slots_of
from .kernels import insert as k
from .kernels.graph import BLOCK_BITS
from .quantization import NONE, PCA, SQ8, Coding, restore, signs_of

_BLOCK = 1 << BLOCK_BITS
_PER_SLOT = ("vectors", "levels", "upper")


class HNSWStats(NamedTuple):
    """The state of an index in numbers."""

    n: int
    deleted: int
    deleted_share: float  # of the slots
    levels: np.ndarray  # int64[top + 1]: slots by their top level
    mean_degree: float  # on level 0
    max_degree: int
    reachable_share: float  # of the slots, from the entry on level 0
    coding: str
    code_bytes: int  # per vector; with quantize=None only used to rule vectors out
    ef_search: int
    rerank: int  # candidates that a search for 10 measures on the stored vectors
    n_bytes: int


def n_bytes(snapshot) -> int:
    """Bytes of the snapshot's arrays."""
    arrays = [getattr(snapshot, name) for name in Snapshot.__slots__ if name != "__weakref__"]
    arrays = {id(array): array for array in arrays if isinstance(array, np.ndarray)}
    coding = snapshot.coding
    codes = 0 if coding is None else coding.basis.nbytes + coding.offset.nbytes
    return codes + sum(array.nbytes for array in arrays.values())


def stats(snapshot, ef_search, rerank, total_bytes) -> HNSWStats:
    """See HNSW.stats."""
    n = snapshot.n
    degrees = _rows(snapshot.links0, snapshot.blocks0, n)[:, 0]
    reached = n
    if n:
        parent = np.empty(n, np.int32)
        reached = k.tree_count(snapshot.entry, n, snapshot.links0, snapshot.blocks0, parent)
    coding = snapshot.coding
    walked = NONE if coding is None or coding.strict else coding.kind
    coded = coding is not None and coding.kind != NONE
    return HNSWStats(
        n=snapshot.n_live,
        deleted=n - snapshot.n_live,
        deleted_share=(n - snapshot.n_live) / max(1, n),
        levels=np.bincount(snapshot.levels[:n], minlength=snapshot.top + 1),
        mean_degree=float(degrees.mean()) if n else 0.0,
        max_degree=int(degrees.max(initial=0)),
        reachable_share=reached / max(1, n),
        coding=walked,
        code_bytes=coding.width if coded else 0,
        ef_search=ef_search,
        rerank=rerank,
        n_bytes=total_bytes,
    )


def _rows(links, blocks, n):
    return links[block_rows(blocks, n)]


def check(snapshot, writer, table, M, next_id) -> None:
    """Assert the invariants that `kernels.hnsw` states."""
    s, n = snapshot, snapshot.n
    assert len(s.live) == 0 or len(s.live) >= n
    live = s.mask
    assert s.n_live == live.sum()
    assert n == 0 or count_up(s.ids) or len(s.ids) >= n
    ids = ids_of(s.ids, np.flatnonzero(live))
    assert len(np.unique(ids)) == len(ids) and (ids >= 0).all() and (ids < next_id).all()
    assert (slots_of(s, table, ids) == np.flatnonzero(live)).all()
    assert (table[:, 1] != ABSENT).sum() == (0 if count_up(s.ids) else s.n_live)
    if s.coding is not None and s.coding.kind != NONE:
        coded = s.sieve if s.coding.strict else s.rows
        assert coded.shape[1] == s.coding.width and len(coded) >= n
        assert len(s.wild) == 0 or len(s.wild) >= n
        if s.coding.strict:
            units = s.vectors[:n] * s.factors[:n, None] if len(s.factors) else s.vectors[:n]
            off = np.linalg.norm(restore(s.coding, s.sieve[:n]) - units.astype(np.float64), axis=1)
            tame = ~s.wild[:n] if len(s.wild) else np.ones(n, np.bool_)
            assert (off <= (1 + 1e-5) * s.coding.error(s.coding.longest))[tame].all()
        else:
            signs = signs_of(s.coding, s.rows[:n], writer.metric)
            assert s.sieve[:n].shape == signs.shape and (s.sieve[:n] == signs).all()
    for links, blocks, n_rows, home in (
        (s.links0, s.blocks0, n, writer.links0),
        (s.links1, s.blocks1, s.n_upper, writer.links1),
    ):
        assert len(blocks) == -(-n_rows // _BLOCK)
        taken = [blocks, home.free, *(retired for _, retired in home.retired)]
        taken = np.sort(np.concatenate(taken))
        assert (taken == np.arange(len(links) // _BLOCK)).all(), "blocks lost or used twice"
    if n == 0:
        assert s.entry == ABSENT and s.top == -1
        return
    levels = s.levels[:n].astype(np.int64)
    assert s.top == levels.max() == levels[s.entry]
    upper = s.upper[:n]
    tall = levels > 0
    assert (upper[~tall] == ABSENT).all() and s.n_upper == levels.sum()
    assert (upper[tall] == (np.cumsum(levels) - levels)[tall]).all()
    _check_links(_rows(s.links0, s.blocks0, n), np.arange(n), np.zeros(n, np.int64), levels, 2 * M)
    owners = np.repeat(np.arange(n), levels)
    at = 1 + np.arange(s.n_upper) - upper[owners]
    _check_links(_rows(s.links1, s.blocks1, s.n_upper), owners, at, levels, M)
    parent = np.empty(n, np.int32)
    assert k.tree_count(s.entry, n, s.links0, s.blocks0, parent) == n, "unreachable slots"
    _check_tree(_rows(s.links0, s.blocks0, n), writer.parent[:n], s.entry)


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
    assert (ordered[:, 1:] != ordered[:, :-1]).all(), "a neighbour stands twice"


def _check_tree(rows, parent, entry):
    n = len(parent)
    assert parent[entry] == entry and (parent >= 0).all() and (parent < n).all()
    others = np.flatnonzero(np.arange(n) != entry)
    used = np.arange(1, rows.shape[1])[None, :] <= rows[parent[others], 0][:, None]
    stands = (rows[parent[others], 1:] == others[:, None]) & used
    assert stands.any(axis=1).all(), "a slot does not stand in its parent's row"
    top = parent.copy()
    for _ in range(n.bit_length()):
        top = top[top]
    assert (top == entry).all(), "the spanning tree has a cycle"


def pack(snapshot, writer) -> tuple[dict, dict]:
    """(arrays, header) for a file: only what is in use, links in logical order."""
    s, n = snapshot, snapshot.n
    arrays = {name: getattr(s, name)[:n] for name in _PER_SLOT}
    arrays["ids"], arrays["parent"] = s.ids[:n], writer.parent[:n]
    arrays["live"] = s.live[: min(n, len(s.live))]
    arrays["factors"] = s.factors[: min(n, len(s.factors))]
    for name, n_rows in (("0", n), ("1", s.n_upper)):
        n_blocks = -(-n_rows // _BLOCK)
        links, blocks = getattr(s, "links" + name), getattr(s, "blocks" + name)
        arrays["links" + name] = _rows(links, blocks[:n_blocks], n_blocks * _BLOCK)
    header = {
        "n": n, "n_upper": s.n_upper, "entry": s.entry, "top": s.top, "coding": None,
        "drawn": s.drawn, "coarsest": writer.coarsest, "mended": writer.mended,
    }  # fmt: skip
    if s.coding is not None:
        c = s.coding
        header["coding"] = [
            c.kind, c.step, c.fitted_on, c.clipped, c.coded, c.strict, c.longest, c.centre, c.margin
        ]  # fmt: skip
        arrays["basis"], arrays["offset"] = c.basis, c.offset
        if s.rows is not s.vectors:
            arrays["rows"] = s.rows[:n]
        if c.strict and c.kind != NONE:
            arrays["sieve"], arrays["wild"] = s.sieve[:n], s.wild[: min(n, len(s.wild))]
        elif c.margin:
            arrays["sieve"] = s.sieve[:n]
    return arrays, header


def unpack(arrays, header, empty) -> tuple[Snapshot, dict]:
    """The snapshot that `pack` took apart, and the `history` that its writer needs.

    `empty` has the dtypes and widths that the arrays must have.
    """
    n, n_upper, entry, top = (header[name] for name in ("n", "n_upper", "entry", "top"))
    coding = None
    if header["coding"] is not None:
        kind, step, fitted_on, clipped, coded, strict, longest, centre, margin = header["coding"]
        coding = Coding(
            kind, arrays["basis"], arrays["offset"], validation.real(step, "step", above=0),
            fitted_on, clipped, coded, strict, validation.real(longest, "longest", low=0),
            validation.integer(centre, "centre", low=0, high=255),
            validation.real(margin, "margin", low=0),
        )  # fmt: skip
        walks_vectors = empty.rows is empty.vectors
        fits = (SQ8,) if walks_vectors else (SQ8, PCA)  # a sieve has no basis
        if empty.coding is not None:
            fits = (NONE,)
        if kind not in fits or strict is not walks_vectors:
            raise CorruptFileError(f"codes of kind {kind!r} do not fit the settings")
    codes_only = empty.vectors.dtype == np.uint8
    rows = arrays.get("rows", arrays["vectors"])
    sieve, wild = empty.sieve, empty.wild
    width = empty.vectors.shape[1]
    if n and coding is not None and kind != NONE:
        if codes_only:
            width = coding.width
        _expect("basis", coding.basis, np.float32, _basis_shape(coding, empty.vectors.shape[1]))
        n_parts = len(coding.offset) if kind == PCA else empty.vectors.shape[1]
        _expect("offset", coding.offset, np.float32, (n_parts,))
        if coding.strict:
            sieve, wild = arrays["sieve"], arrays["wild"]
            _expect("wild", wild, np.bool_, (n if len(wild) else 0,))
        elif coding.margin:
            sieve = arrays["sieve"]
            _expect("sieve", sieve, np.uint8, (n, coding.signs_width))
        name, codes = ("sieve", sieve) if coding.strict else ("rows", rows)
        _expect(name, codes, np.uint8, (n, coding.width))
    elif n and coding is None:
        raise CorruptFileError("there are vectors but no codes")
    _expect("vectors", arrays["vectors"], empty.vectors.dtype, (n, width))
    live = arrays["live"]
    _expect("live", live, np.bool_, (n if len(live) else 0,))
    for name in ("levels", "upper"):
        _expect(name, arrays[name], getattr(empty, name).dtype, (n,))
    ids = arrays["ids"]
    _expect("ids", ids, np.int64, (1 if n and count_up(ids) else n,))
    if n and count_up(ids) and not 0 <= ids[0] <= validation.INT64_MAX - n:
        raise CorruptFileError(f"{n} ids cannot count up from {ids[0]}")
    _expect("parent", arrays["parent"], np.int32, (n,))
    factors = arrays["factors"]
    _expect("factors", factors, np.float32, (n if len(factors) else 0,))
    if not _is_mapped(rows):
        same = rows is arrays["vectors"]
        rows = taken(rows, np.arange(n))
        if same:
            arrays["vectors"] = rows
        sieve = taken(sieve, np.arange(len(sieve)))
    blocks = []
    for name, n_rows in (("links0", n), ("links1", n_upper)):
        n_blocks = -(-n_rows // _BLOCK)
        shape = (n_blocks * _BLOCK, getattr(empty, name).shape[1])
        _expect(name, arrays[name], np.int32, shape)
        blocks.append(np.arange(n_blocks, dtype=np.int32))
    levels = arrays["levels"]
    heights = np.cumsum(levels, dtype=np.int64)
    upper = np.where(levels > 0, heights - levels, ABSENT)
    if int(levels.sum()) != n_upper or (arrays["upper"] != upper).any():
        raise CorruptFileError("levels and upper rows disagree")
    if n and not (0 <= entry < n and levels[entry] == top == levels.max()):
        raise CorruptFileError(f"entry {entry} of level {top} is not the top of {n} slots")
    history = {
        "parent": arrays["parent"],
        "coarsest": validation.real(header["coarsest"], "coarsest", low=0),
        "mended": validation.choice(header["mended"], "mended", (True, False)),
    }
    return Snapshot(
        vectors=arrays["vectors"], rows=rows, sieve=sieve, wild=wild, factors=factors,
        ids=ids, live=live, levels=levels, upper=arrays["upper"],
        links0=arrays["links0"], blocks0=blocks[0], links1=arrays["links1"], blocks1=blocks[1],
        coding=coding, n=n, n_live=int(live.sum()) if len(live) else n, n_upper=n_upper,
        entry=entry, top=top, drawn=validation.integer(header["drawn"], "drawn", low=0),
    ), history  # fmt: skip


def _is_mapped(array):
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(array, mmap.mmap)


def _basis_shape(coding, dim):
    return (dim, len(coding.offset)) if coding.kind == PCA else (0, 0)


def _expect(name, array, dtype, shape):
    if array.dtype != dtype or array.shape != shape:
        raise CorruptFileError(
            f"{name} is {array.dtype}{list(array.shape)}, not {np.dtype(dtype)}{list(shape)}"
        )
