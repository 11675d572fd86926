"""Files of an HNSW index: a snapshot as arrays and a header, and back, with every check."""

import mmap
from dataclasses import replace
from typing import Any

import numpy as np

from .._core import validation
from .._core.arrays import taken
from .._core.forking import threads_of_a_call
from ..errors import CorruptFileError
from ..primitives.status import ABSENT
from .graph_writer import GraphWriter
from .kernels.distance import COSINE
from .kernels.graph_fault import (
    COUNT,
    CYCLE,
    DUPLICATE,
    LEVEL,
    PARENT,
    ROWS,
    SEEN,
    TARGET,
    links_fault,
    tree_fault,
)
from .kernels.state import LIVE
from .quantization import NONE, PCA, SQ8, Coding, restore, signs_of, uncoded
from .snapshot import (
    BLOCK,
    MAX_LEVEL,
    NO_TABLE,
    Snapshot,
    duplicate_rows,
    ids_of,
    is_packed,
    logical_rows,
    marked_live,
    new_table,
    with_groups,
)

MAX_SLOTS = 2**30
_MAX_NORM = 1e18  # of a vector, as in `vector_store`
_MAX_LONGEST = 1.001 * _MAX_NORM  # with the rounding of what is measured
_CHUNK = 1024  # rows at once
_LINKS_PER_THREAD = 1 << 17  # slots whose links are checked by one thread, at least
_SMALL = 1 << 24  # bytes of mapped vectors that are read at load
_SMALL_SQUARE = 1e-24  # below, squares of components may lose digits
_UNIT_ERROR = 1e-3  # of the length of a unit vector
_FAULTS = {
    COUNT: "the number of links is",
    TARGET: "no other slot, or twice in its row, is",
    LEVEL: "too low for the level is slot",
    DUPLICATE: "a duplicate has links, or is linked to:",
    PARENT: "no slot, or one without a link to it, is its parent",
    CYCLE: "the entry is not reached by way of",
    ROWS: "levels give another row than",
}


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
    """What `pack` packed: a snapshot of dtypes and widths as `empty`, and its writer's history.

    Whatever is read here is checked before a kernel sees it, in time linear in the file. Of many
    mapped vectors the components, and their codes, are not read: nothing is found by them but how
    far a vector is.
    """
    n = validation.integer(header["n"], "n", low=0, high=MAX_SLOTS)
    n_upper = validation.integer(header["n_upper"], "n_upper", low=0, high=MAX_LEVEL * n)
    entry = validation.integer(header["entry"], "entry", low=ABSENT)
    top = validation.integer(header["top"], "top", low=-1, high=MAX_LEVEL)
    coding = _coding_of(arrays, header["coding"], empty) if n else empty.coding
    if n and coding is None:
        raise CorruptFileError("there are vectors but no codes")
    dim = width = empty.dim
    codes_only = empty.vectors.dtype == np.uint8
    prefilter, outlier = empty.prefilter, empty.outlier
    walks_vectors = codes_only or coding is None or coding.walks_vectors
    rows = arrays["vectors"] if walks_vectors else arrays["rows"]
    if n and coding is not None and coding.kind != NONE:
        if codes_only:
            width = coding.width
        if coding.walks_vectors:
            prefilter, outlier = arrays["sieve"], arrays["wild"]
            _expect(arrays, np.bool_, wild=(n if len(outlier) else 0,))
            _expect(arrays, np.uint8, sieve=(n, coding.width))
        else:
            _expect({"rows": rows}, np.uint8, rows=(n, coding.width))
            if coding.error_bound:
                prefilter = arrays["sieve"]
                _expect(arrays, np.uint8, sieve=(n, coding.signs_width))
    ids, live, levels, factors = (arrays[name] for name in ("ids", "live", "levels", "factors"))
    _expect(arrays, empty.vectors.dtype, vectors=(n, width))
    _expect(arrays, np.bool_, live=(n if len(live) else 0,))
    node_of = arrays.get("node_of", empty.node_of)
    _expect({"node_of": node_of}, np.int32, node_of=(n if len(node_of) else 0,))
    _expect(arrays, np.uint8, levels=(n,))
    _expect(arrays, np.int32, upper=(n,), parent=(n,))
    _expect(arrays, np.int64, ids=(1 if n and is_packed(ids) else n,))
    _expect(arrays, np.float32, factors=(n if empty.metric == COSINE else 0,))
    blocks = []
    for name, n_rows in (("links0", n), ("links1", n_upper)):
        n_blocks = -(-n_rows // BLOCK)
        shape = (n_blocks * BLOCK, getattr(empty, name).shape[1])
        _expect(arrays, np.int32, **{name: shape})
        blocks.append(np.arange(n_blocks, dtype=np.int32))
    for name, marks in (("live", live), ("wild", outlier)):
        if marks.view(np.uint8).max(initial=0) > 1:
            raise CorruptFileError(f"{name} has other bytes than 0 and 1")
    if n and len(live) and not live.any():
        raise CorruptFileError(f"live has none of {n} slots")
    _check_ids(ids, n)
    _check_values(factors, "factors", above=0.0)
    if levels.max(initial=0) > MAX_LEVEL:
        raise CorruptFileError(f"levels has {levels.max()}, more than {MAX_LEVEL}")
    if int(levels.sum()) != n_upper:
        raise CorruptFileError(f"levels has {levels.sum()} upper rows, not {n_upper}")
    at = levels
    if len(node_of):
        _check_nodes(node_of, arrays["vectors"])
        at = np.where(node_of == ABSENT, levels.astype(np.int64), -1)
    if n and not (0 <= entry < n and at[entry] == top == at.max()):
        raise CorruptFileError(f"entry {entry} of level {top} is not the top of {n} slots")
    if not n and not entry == top == ABSENT:
        raise CorruptFileError(f"entry {entry} of level {top}, but there are no slots")
    if n:
        _check_links(arrays, node_of, entry)
    if not _is_mapped(rows) or arrays["vectors"].nbytes <= _SMALL:
        codes = prefilter if coding is not None and coding.walks_vectors else rows
        _check_contents(coding, empty, arrays["vectors"], factors, codes, prefilter, outlier)
    if not _is_mapped(rows):
        same = rows is arrays["vectors"]
        rows = taken(rows, np.arange(n)) if n else rows
        if same:
            arrays["vectors"] = rows
        prefilter = taken(prefilter, np.arange(len(prefilter)))
    history = {
        "parent": arrays["parent"],
        "coarsest": validation.real(header["coarsest"], "coarsest", low=0),
        "repaired": validation.flag(header["mended"], "mended"),
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
        drawn=validation.natural(header["drawn"], "drawn"),
        **{name: arrays[name] for name in kept},
    )  # fmt: skip
    if n and not is_packed(ids):
        table = new_table(snapshot)
        if table is None:
            raise CorruptFileError("ids has an id of two live slots")
        snapshot = replace(snapshot, table=table)
    return snapshot, history


def unpack_counters(counters: dict, snapshot: Snapshot) -> tuple[int, tuple[int, int] | None]:
    """(next_id, depth) of an index of this snapshot."""
    next_id = validation.integer(counters["next_id"], "next_id", low=0, high=2**63)
    if snapshot.n:
        used = ids_of(snapshot.ids, np.arange(snapshot.n))
        if not used.max() < next_id:
            raise CorruptFileError(f"next_id {next_id} is not above the id {used.max()}")
    depth = counters["depth"]
    if depth is None:
        return next_id, None
    if not isinstance(depth, list) or len(depth) != 2:
        raise CorruptFileError(f"depth is {depth!r}")
    measured = validation.integer(depth[0], "depth", low=1, high=MAX_SLOTS)
    return next_id, (measured, validation.integer(depth[1], "depth", low=1, high=validation.MAX_K))


def _check_ids(ids, n):
    """Refuse negative ids."""
    if n and is_packed(ids):
        if not 0 <= ids[0] <= validation.INT64_MAX - n + 1:
            raise CorruptFileError(f"{n} ids cannot count up from {ids[0]}")
        return
    if ids.min(initial=0) < 0:
        raise CorruptFileError(f"ids has {ids.min()}")


def _check_values(values, name, above=-np.inf):
    """Refuse what is not finite, or too large to be measured; uint16 are the bits of float16."""
    step = _CHUNK if values.ndim > 1 else _CHUNK**2
    for start in range(0, len(values), step):
        part = values[start : start + step]
        if part.dtype == np.uint16:
            if (part & 0x7FFF).max(initial=0) >= 0x7C00:
                raise CorruptFileError(f"{name} has what is not finite")
            continue
        low, high = part.min(initial=np.inf), part.max(initial=-np.inf)
        if not (low > above and low >= -_MAX_NORM and high <= _MAX_NORM):
            raise CorruptFileError(f"{name} has {low} to {high}")


def _check_contents(coding, empty, vectors, factors, codes, prefilter, outlier):
    """Refuse vectors that cannot be measured, and codes that are not theirs. O(n d)."""
    codes_only = vectors.dtype == np.uint8
    coded = coding is not None and coding.kind != NONE
    has_signs = coded and coding.error_bound
    for start in range(0, len(vectors), _CHUNK):
        at = slice(start, start + _CHUNK)
        if has_signs and (prefilter[at] != signs_of(coding, codes[at], empty.metric)).any():
            raise CorruptFileError("sieve has other sign codes than the rows")
        if codes_only:
            continue
        part = vectors[at]
        _check_values(part, "vectors")
        if part.dtype == np.uint16:
            part = part.view(np.float16).astype(np.float32)
        lengths = _norms(part)
        if lengths.max() > _MAX_LONGEST:
            raise CorruptFileError(f"vectors has one of length {lengths.max()}")
        if len(factors):
            if (abs(lengths * factors[at] - 1) > _UNIT_ERROR).any():
                raise CorruptFileError("factors has others than those of the vectors")
            part = part * factors[at, None]
        if coded and coding.walks_vectors:
            _check_codes(coding, codes[at], part, outlier[at])


def _norms(part):
    """Lengths of float32 rows; exact, at three times the cost, where squares may be subnormal."""
    with np.errstate(over="ignore"):
        squares = np.einsum("ij,ij->i", part, part)
    if squares.min() < _SMALL_SQUARE:
        squares = np.einsum("ij,ij->i", part, part, dtype=np.float64)
    return np.sqrt(squares)


def _check_codes(coding, codes, units, outlier):
    """Refuse codes of a prefilter that are further off than `check` allows, and no outliers."""
    limit = coding.error(coding.longest)
    off = restore(coding, codes)
    off -= units
    far = ~(np.einsum("ij,ij->i", off, off) < (0.999 * limit) ** 2)
    rows = np.flatnonzero(far & ~outlier if len(outlier) else far)
    exact = np.linalg.norm(restore(coding, codes[rows]) - units[rows].astype(np.float64), axis=1)
    if (exact > (1 + 1e-5) * limit).any():
        raise CorruptFileError("sieve has codes of other vectors")


def _check_nodes(node_of, vectors):
    """Refuse duplicates of what is no earlier node, or that do not differ from it as they say."""
    slots = np.flatnonzero(node_of != ABSENT)
    nodes = node_of[slots] >> 1
    if not ((node_of >= ABSENT).all() and (nodes < slots).all() and (node_of[nodes] == -1).all()):
        raise CorruptFileError("node_of names duplicates of what is no node before them")
    for start in range(0, len(slots), _CHUNK):
        some, of = slots[start : start + _CHUNK], nodes[start : start + _CHUNK]
        if ((vectors[some] != vectors[of]).any(axis=1) != node_of[some] & 1).any():
            raise CorruptFileError("node_of does not tell which duplicates differ")


def _check_links(arrays, node_of, entry):
    """Refuse links, or a spanning tree, that break an invariant of `kernels.state`.

    On all cores where there are many: they are most of what is read of a large mapped file.
    """
    given = [arrays[name].view() for name in ("links0", "links1", "levels", "upper")]
    given += [node_of.view(), arrays["parent"].view()]
    for array in given:  # for Numba, arrays that may be written to are of another type
        array.flags.writeable = False
    *links, node_of, parent = given
    levels = arrays["levels"]
    n = len(parent)
    starts, children = np.empty(n + 1, np.int32), np.empty(n, np.int32)
    found = np.zeros(3, np.int64)
    fault = tree_fault(parent, node_of, entry, starts, children, found)
    if fault:
        _refuse_links(fault, found)
    threads = min(validation.threads(-1), -(-n // _LINKS_PER_THREAD))
    cuts = np.linspace(0, n, threads + 1).astype(np.int64)
    heights = np.add.reduceat(levels, cuts[:-1], dtype=np.int64)
    uppers = np.cumsum(heights) - heights

    def check_part(i):
        span = np.array([cuts[i], cuts[i + 1], uppers[i]])
        seen, found = np.empty(SEEN, np.uint16), np.zeros(3, np.int64)
        return links_fault(*links, node_of, span, starts, children, seen, found), found

    if threads == 1:
        parts = [check_part(0)]
    else:
        with threads_of_a_call(threads) as executor:
            parts = list(executor.map(check_part, range(threads)))
    for fault, found in parts:
        if fault:
            _refuse_links(fault, found)


def _refuse_links(fault, found):
    slot, level, value = found.tolist()
    of_links = "links1" if level else "links0"
    array = {PARENT: "parent", CYCLE: "parent", ROWS: "upper"}.get(fault, of_links)
    raise CorruptFileError(f"{array} of slot {slot} on level {level}: {_FAULTS[fault]} {value}")


def _coding_of(arrays, settings, empty):
    """The coding of a header, checked against what the index must have."""
    if settings is None:
        return None
    if not isinstance(settings, list) or len(settings) != len(Coding._fields) - 2:
        raise CorruptFileError(f"coding is {settings!r}")
    kind, *numbers = settings
    coding = Coding(kind, arrays["basis"], arrays["offset"], *numbers)
    walks_vectors = empty.rows is empty.vectors
    fits: tuple[str, ...] = (SQ8,) if walks_vectors else (SQ8, PCA)  # a prefilter has no basis
    if empty.vectors.dtype == np.uint8:
        fits = (SQ8,)
    if empty.coding is not None:
        fits = (NONE,)
    if kind not in fits or coding.walks_vectors is not walks_vectors:
        raise CorruptFileError(f"codes of kind {kind!r} do not fit the settings")
    dim, p = empty.dim, len(coding.offset)
    if kind == NONE and (p or coding[3:] != uncoded()[3:]):
        raise CorruptFileError(f"coding is {settings!r}, though there are no codes")
    if kind == PCA and not 1 <= p <= dim:
        raise CorruptFileError(f"offset has {p} components, not 1 to {dim}")
    is_pca = kind == PCA
    _expect(arrays, np.float32, basis=(dim, p) if is_pca else (0, 0))
    _expect(arrays, np.float32, offset=(p if is_pca else 0 if kind == NONE else dim,))
    _check_values(coding.basis, "basis")
    _check_values(coding.offset, "offset")
    return coding._replace(
        step=validation.real(coding.step, "step", above=0, high=_MAX_NORM),
        fitted_on=validation.natural(coding.fitted_on, "fitted_on"),
        clipped=validation.natural(coding.clipped, "clipped"),
        coded=validation.natural(coding.coded, "coded"),
        longest=validation.real(coding.longest, "longest", low=0, high=_MAX_LONGEST),
        centre=validation.integer(coding.centre, "centre", low=0, high=255),
        error_bound=validation.real(
            coding.error_bound, "margin", low=0, high=0 if walks_vectors else _MAX_NORM
        ),
    )


def _is_mapped(array):
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(array, mmap.mmap)


def _expect(arrays, dtype, **shapes):
    for name, shape in shapes.items():
        array = arrays[name]
        if not array.flags.aligned:
            raise CorruptFileError(f"{name} is not aligned")
        if array.dtype != dtype or array.shape != shape:
            found, wanted = f"{array.dtype}{list(array.shape)}", f"{np.dtype(dtype)}{list(shape)}"
            raise CorruptFileError(f"{name} is {found}, not {wanted}")
