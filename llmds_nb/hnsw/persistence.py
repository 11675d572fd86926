"""Files of an HNSW index: a snapshot as arrays and a header, and back, with every check."""

import mmap
from typing import Any

import numpy as np

from .._core import validation
from .._core.arrays import taken
from ..errors import CorruptFileError
from ..primitives.status import ABSENT
from .graph_writer import GraphWriter
from .id_map import is_packed
from .quantization import NONE, PCA, SQ8, Coding
from .snapshot import BLOCK, Snapshot, logical_rows

_PER_SLOT = ("vectors", "levels", "upper")


def pack(snapshot: Snapshot, writer: GraphWriter) -> tuple[dict, dict]:
    """(arrays, header) for a file: only what is in use, links in logical order."""
    s, n = snapshot, snapshot.n
    arrays = {name: getattr(s, name)[:n] for name in _PER_SLOT}
    arrays["ids"], arrays["parent"] = s.ids[:n], writer.parent[:n]
    arrays["live"] = s.live[: min(n, len(s.live))]
    arrays["factors"] = s.factors[: min(n, len(s.factors))]
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
        header["coding"] = [
            c.kind, c.step, c.fitted_on, c.clipped, c.coded, c.walks_vectors, c.longest, c.centre,
            c.error_bound,
        ]  # fmt: skip
        arrays["basis"], arrays["offset"] = c.basis, c.offset
        if s.rows is not s.vectors:
            arrays["rows"] = s.rows[:n]
        if c.walks_vectors and c.kind != NONE:
            arrays["sieve"] = s.prefilter[:n]
            arrays["wild"] = s.outlier[: min(n, len(s.outlier))]
        elif c.error_bound:
            arrays["sieve"] = s.prefilter[:n]
    return arrays, header


def unpack(arrays: dict, header: dict, empty: Snapshot) -> tuple[Snapshot, dict]:
    """The snapshot that `pack` packed, and what its writer needs of its history.

    `empty` has the dtypes and widths that the arrays must have.
    """
    n, n_upper, entry, top = (header[name] for name in ("n", "n_upper", "entry", "top"))
    coding = _coding_of(arrays, header["coding"], empty)
    codes_only = empty.vectors.dtype == np.uint8
    rows = arrays.get("rows", arrays["vectors"])
    prefilter, outlier = empty.prefilter, empty.outlier
    width = empty.vectors.shape[1]
    if n and coding is not None and coding.kind != NONE:
        if codes_only:
            width = coding.width
        _expect("basis", coding.basis, np.float32, _basis_shape(coding, empty.vectors.shape[1]))
        n_parts = len(coding.offset) if coding.kind == PCA else empty.vectors.shape[1]
        _expect("offset", coding.offset, np.float32, (n_parts,))
        if coding.walks_vectors:
            prefilter, outlier = arrays["sieve"], arrays["wild"]
            _expect("wild", outlier, np.bool_, (n if len(outlier) else 0,))
        elif coding.error_bound:
            prefilter = arrays["sieve"]
            _expect("sieve", prefilter, np.uint8, (n, coding.signs_width))
        name, codes = ("sieve", prefilter) if coding.walks_vectors else ("rows", rows)
        _expect(name, codes, np.uint8, (n, coding.width))
    elif n and coding is None:
        raise CorruptFileError("there are vectors but no codes")
    _expect("vectors", arrays["vectors"], empty.vectors.dtype, (n, width))
    live = arrays["live"]
    _expect("live", live, np.bool_, (n if len(live) else 0,))
    for name in ("levels", "upper"):
        _expect(name, arrays[name], getattr(empty, name).dtype, (n,))
    ids = arrays["ids"]
    _expect("ids", ids, np.int64, (1 if n and is_packed(ids) else n,))
    if n and is_packed(ids) and not 0 <= ids[0] <= validation.INT64_MAX - n:
        raise CorruptFileError(f"{n} ids cannot count up from {ids[0]}")
    _expect("parent", arrays["parent"], np.int32, (n,))
    factors = arrays["factors"]
    _expect("factors", factors, np.float32, (n if len(factors) else 0,))
    if not _is_mapped(rows):
        same = rows is arrays["vectors"]
        rows = taken(rows, np.arange(n))
        if same:
            arrays["vectors"] = rows
        prefilter = taken(prefilter, np.arange(len(prefilter)))
    blocks = []
    for name, n_rows in (("links0", n), ("links1", n_upper)):
        n_blocks = -(-n_rows // BLOCK)
        shape = (n_blocks * BLOCK, getattr(empty, name).shape[1])
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
        "repaired": validation.choice(header["mended"], "mended", (True, False)),
    }
    return Snapshot(
        metric=empty.metric, dim=empty.dim, vectors=arrays["vectors"], rows=rows,
        prefilter=prefilter, outlier=outlier, factors=factors, ids=ids, live=live, levels=levels,
        upper=arrays["upper"],
        links0=arrays["links0"], blocks0=blocks[0], links1=arrays["links1"], blocks1=blocks[1],
        coding=coding, n=n, n_live=int(live.sum()) if len(live) else n, n_upper=n_upper,
        entry=entry, top=top, drawn=validation.integer(header["drawn"], "drawn", low=0),
    ), history  # fmt: skip


def _coding_of(arrays, settings, empty) -> Coding | None:
    """The coding of a header, checked against what the index must have."""
    if settings is None:
        return None
    (
        kind, step, fitted_on, clipped, coded, walks_vectors, longest, centre, error_bound
    ) = settings  # fmt: skip
    expected = empty.rows is empty.vectors
    fits: tuple[str, ...] = (SQ8,) if expected else (SQ8, PCA)  # a prefilter has no basis
    if empty.coding is not None:
        fits = (NONE,)
    if kind not in fits or walks_vectors is not expected:
        raise CorruptFileError(f"codes of kind {kind!r} do not fit the settings")
    return Coding(
        kind, arrays["basis"], arrays["offset"], validation.real(step, "step", above=0),
        fitted_on, clipped, coded, walks_vectors, validation.real(longest, "longest", low=0),
        validation.integer(centre, "centre", low=0, high=255),
        validation.real(error_bound, "margin", low=0),
    )  # fmt: skip


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
