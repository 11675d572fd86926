"""Files of an HNSW index: a snapshot as arrays and a header, and back, with every check."""

import mmap
from typing import Any

import numpy as np

from .._core import validation
from .._core.arrays import taken
from ..errors import CorruptFileError
from ..primitives.status import ABSENT
from .graph_writer import GraphWriter
from .kernels.state import LIVE
from .quantization import NONE, PCA, SQ8, Coding
from .snapshot import (
    BLOCK,
    NO_TABLE,
    Snapshot,
    duplicate_rows,
    is_packed,
    logical_rows,
    marked_live,
    with_groups,
    with_table,
)


def pack(snapshot: Snapshot, writer: GraphWriter) -> tuple[dict, dict]:
    """(arrays, header) for a file: only what is in use, links in logical order."""
    s, n = snapshot, snapshot.n
    arrays = {name: getattr(s, name)[:n] for name in ("vectors", "levels", "upper", "ids")}
    arrays |= {"parent": writer.parent[:n].copy(), "factors": s.factors[:n]}
    arrays["live"] = marked_live(s.live[:n])
    if len(s.node_of):
        arrays["node_of"] = s.node_of[:n]
    for name, n_rows in (("0", n), ("1", s.n_upper)):
        n_blocks = -(-n_rows // BLOCK)
        links, blocks = getattr(s, "links" + name), getattr(s, "blocks" + name)
        arrays["links" + name] = logical_rows(links, blocks[:n_blocks], n_blocks * BLOCK)
    header: dict[str, Any] = {
        "n": n, "n_upper": s.n_upper, "entry": s.entry, "top": s.top, "coding": None,
        "drawn": s.drawn, "coarsest": writer.coarsest, "mended": writer.repaired,
    }  # fmt: skip
    if s.coding is not None:
        c = s.coding
        kind, arrays["basis"], arrays["offset"], *numbers = c
        header["coding"] = [kind, *numbers]
        if s.rows is not s.vectors:
            arrays["rows"] = s.rows[:n]
        if c.walks_vectors and c.kind != NONE:
            arrays["sieve"], arrays["wild"] = s.prefilter[:n], s.outlier[:n]
        elif c.error_bound:
            arrays["sieve"] = s.prefilter[:n]
    return arrays, header


def unpack(arrays: dict, header: dict, empty: Snapshot) -> tuple[Snapshot, dict]:
    """What `pack` packed: a snapshot of dtypes and widths as `empty`, and its writer's history."""
    n, n_upper, entry, top = (header[name] for name in ("n", "n_upper", "entry", "top"))
    coding = _coding_of(arrays, header["coding"], empty)
    if n and coding is None:
        raise CorruptFileError("there are vectors but no codes")
    dim = width = empty.dim
    rows = arrays.setdefault("rows", arrays["vectors"])
    prefilter, outlier = empty.prefilter, empty.outlier
    if n and coding is not None and coding.kind != NONE:
        if empty.vectors.dtype == np.uint8:  # codes alone are stored
            width = coding.width
        p, is_pca = len(coding.offset), coding.kind == PCA
        _expect(arrays, np.float32, basis=(dim, p) if is_pca else (0, 0))
        _expect(arrays, np.float32, offset=(p if is_pca else dim,))
        if coding.walks_vectors:
            prefilter, outlier = arrays["sieve"], arrays["wild"]
            _expect(arrays, np.bool_, wild=(n if len(outlier) else 0,))
            _expect(arrays, np.uint8, sieve=(n, coding.width))
        else:
            _expect(arrays, np.uint8, rows=(n, coding.width))
            if coding.error_bound:
                prefilter = arrays["sieve"]
                _expect(arrays, np.uint8, sieve=(n, coding.signs_width))
    ids, live, levels, factors = (arrays[name] for name in ("ids", "live", "levels", "factors"))
    _expect(arrays, empty.vectors.dtype, vectors=(n, width))
    _expect(arrays, np.bool_, live=(n if len(live) else 0,))
    node_of = arrays.get("node_of", empty.node_of)
    if len(node_of):
        _expect(arrays, np.int32, node_of=(n,))
    _expect(arrays, np.uint8, levels=(n,))
    _expect(arrays, np.int32, upper=(n,), parent=(n,))
    _expect(arrays, np.int64, ids=(1 if n and is_packed(ids) else n,))
    _expect(arrays, np.float32, factors=(n if len(factors) else 0,))
    blocks = []
    for name, n_rows in (("links0", n), ("links1", n_upper)):
        n_blocks = -(-n_rows // BLOCK)
        shape = (n_blocks * BLOCK, getattr(empty, name).shape[1])
        _expect(arrays, np.int32, **{name: shape})
        blocks.append(np.arange(n_blocks, dtype=np.int32))
    if n and is_packed(ids) and not 0 <= ids[0] <= validation.INT64_MAX - n + 1:
        raise CorruptFileError(f"{n} ids cannot count up from {ids[0]}")
    heights = np.cumsum(levels, dtype=np.int64)
    upper = np.where(levels > 0, heights - levels, ABSENT)
    if int(levels.sum()) != n_upper or (arrays["upper"] != upper).any():
        raise CorruptFileError("levels and upper rows disagree")
    at = levels
    if len(node_of):
        _check_nodes(node_of)
        at = np.where(node_of == ABSENT, levels.astype(np.int64), -1)
    if n and not (0 <= entry < n and at[entry] == top == at.max()):
        raise CorruptFileError(f"entry {entry} of level {top} is not the top of {n} slots")
    if not _is_mapped(rows):
        same = rows is arrays["vectors"]
        rows = taken(rows, np.arange(n))
        if same:
            arrays["vectors"] = rows
        prefilter = taken(prefilter, np.arange(len(prefilter)))
    history = {
        "parent": arrays["parent"],
        "coarsest": validation.real(header["coarsest"], "coarsest", low=0),
        "repaired": validation.choice(header["mended"], "mended", (True, False)),
    }
    n_live = int(live.sum()) if len(live) else n
    live = live.view(np.uint8)
    if len(node_of) and len(live):
        live = with_groups(live & LIVE, node_of)
    duplicates = duplicate_rows(node_of) if len(node_of) else empty.duplicates
    kept = ("vectors", "ids", "levels", "upper", "factors", "links0", "links1")
    snapshot = Snapshot(
        metric=empty.metric, dim=dim, rows=rows, prefilter=prefilter, outlier=outlier,
        blocks0=blocks[0], blocks1=blocks[1], coding=coding, n=n, n_upper=n_upper, entry=entry,
        n_live=n_live, live=live, top=top, node_of=node_of, duplicates=duplicates,
        blocks2=np.arange(len(duplicates) // BLOCK, dtype=np.int32), table=NO_TABLE,
        drawn=validation.integer(header["drawn"], "drawn", low=0),
        **{name: arrays[name] for name in kept},
    )  # fmt: skip
    return with_table(empty, snapshot), history


def _check_nodes(node_of):
    """Refuse duplicates of what is no earlier node."""
    slots = np.flatnonzero(node_of != ABSENT)
    nodes = node_of[slots] >> 1
    if not ((node_of >= ABSENT).all() and (nodes < slots).all() and (node_of[nodes] == -1).all()):
        raise CorruptFileError("node_of names duplicates of what is no node before them")


def _coding_of(arrays, settings, empty):
    """The coding of a header, checked against what the index must have."""
    if settings is None:
        return None
    kind, *numbers = settings
    coding = Coding(kind, arrays["basis"], arrays["offset"], *numbers)
    walks_vectors = empty.rows is empty.vectors
    fits = (SQ8,) if walks_vectors else (SQ8, PCA)  # a prefilter has no basis
    if empty.coding is not None:
        fits = (NONE,)
    whole = len(settings) == len(Coding._fields) - 2
    if not whole or kind not in fits or coding.walks_vectors is not walks_vectors:
        raise CorruptFileError(f"codes of kind {kind!r} do not fit the settings")
    return coding._replace(
        step=validation.real(coding.step, "step", above=0),
        longest=validation.real(coding.longest, "longest", low=0),
        centre=validation.integer(coding.centre, "centre", low=0, high=255),
        error_bound=validation.real(coding.error_bound, "margin", low=0),
    )


def _is_mapped(array):
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(array, mmap.mmap)


def _expect(arrays, dtype, **shapes):
    for name, shape in shapes.items():
        array = arrays[name]
        if array.dtype != dtype or array.shape != shape:
            found, wanted = f"{array.dtype}{list(array.shape)}", f"{np.dtype(dtype)}{list(shape)}"
            raise CorruptFileError(f"{name} is {found}, not {wanted}")
