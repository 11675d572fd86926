"""How an HNSW index stores its vectors: as given, rounded to float16, or as codes alone."""

import numpy as np
import numpy.typing as npt

from .._core import validation
from .._core.arrays import aligned_empty, appended
from .._core.typing import ArrayLike, Bools, Float32s, Float64s, Int64s
from ..errors import CorruptFileError
from . import quantization as codes
from .kernels.distance import COSINE, IP, L2
from .snapshot import NO_TABLE, Snapshot, duplicates_of

METRICS = {"l2": L2, "ip": IP, "cosine": COSINE}
STORES: dict[str | None, type] = {"float32": np.float32, "float16": np.uint16, None: np.uint8}
_MAX_NORM = 1e18  # its square, times four, is a float32


class VectorForm:
    """The arrays that a snapshot gets from vectors, under the settings of an index."""

    def __init__(self, dim: int, metric: str, quantize: str | None, store: str | None):
        self.dim, self.quantize, self.store = dim, quantize, store
        self.metric = METRICS[metric]
        self.codes_only = store is None
        self.coded, self.prefiltered = codes.uses(quantize, store, dim)
        # Codes are those of unit vectors with COSINE, so L2 between them orders as the metric does.
        self.kernel_metric = L2 if self.metric == COSINE and self.codes_only else self.metric

    def empty(self, M: int) -> Snapshot:
        """The snapshot of an index without vectors."""
        vectors: npt.NDArray = np.zeros((0, self.dim), STORES[self.store])
        return Snapshot(
            metric=self.kernel_metric, dim=self.dim, vectors=vectors,
            rows=np.zeros((0, 0), np.uint8) if self.coded else vectors,
            prefilter=np.zeros((0, 0), np.uint8), outlier=np.zeros(0, np.bool_),
            factors=np.zeros(0, np.float32), ids=np.zeros(0, np.int64),
            live=np.zeros(0, np.uint8), levels=np.zeros(0, np.uint8), upper=np.zeros(0, np.int32),
            links0=np.zeros((0, 1 + 2 * M), np.int32), blocks0=np.zeros(0, np.int32),
            links1=np.zeros((0, 1 + M), np.int32), blocks1=np.zeros(0, np.int32),
            duplicates=np.zeros((0, 1), np.int32), blocks2=np.zeros(0, np.int32),
            node_of=np.zeros(0, np.int32), table=NO_TABLE,
            coding=None if self.coded or self.prefiltered else codes.uncoded(),
        )  # fmt: skip

    def added(self, base: Snapshot, vectors: Float32s, lengths: Float64s, copy: bool) -> dict:
        """The arrays of `base` for its vectors, with float32[n, d] `vectors` after its slots.

        Without `copy` the array itself is kept; base is empty then.
        """
        stored = self._stored(vectors)
        units, factors = vectors, base.factors
        if self.metric == COSINE:
            if self.store == "float16":
                lengths = self.lengths(stored.view(np.float16), "vectors")
            units = np.divide(vectors, lengths[:, None].astype(np.float32))
            if not self.codes_only:
                factors = appended(factors, base.n, (1 / lengths).astype(np.float32))
        kept = vectors
        if copy and not self.codes_only:
            kept = appended(base.vectors, base.n, stored)
        fields = self._walked(base, units, kept)
        fields["vectors"] = fields["rows"] if self.codes_only else kept
        return {**fields, "factors": factors}

    def refitted(self, empty: Snapshot, fields: dict) -> dict:
        """`fields` under codes fitted to their vectors alone; as they are where these are codes."""
        if self.codes_only or fields["coding"].kind == codes.NONE:
            return fields
        units = self._as_encoded(fields["vectors"], fields["factors"])
        return {**fields, **self._walked(empty, units, fields["vectors"])}

    def splits(self, base: Snapshot, fields: dict) -> bool:
        """Whether new codes in `fields` tell any duplicate in `base` from its node.

        By more than one in a component, by which those of equal vectors may differ.
        """
        if not len(base.node_of) or not self.coded or self.codes_only:
            return False
        if base.coding is None or fields["coding"].offset is base.coding.offset:
            return False
        slots, rows = duplicates_of(base.node_of, 0, base.n), fields["rows"]
        for start in range(0, len(slots), codes.FIT_ROWS):
            some = slots[start : start + codes.FIT_ROWS]
            off = rows[some].astype(np.int16) - rows[base.node_of[some] >> 1]
            if (np.abs(off) > 1).any():
                return True
        return False

    def queries(self, values: ArrayLike) -> tuple[Float32s, bool]:
        """(float32[n, dim], whether one vector was given); ValueError for lengths out of range."""
        array = validation.array_of(values, "queries")
        single = array.ndim == 1 and array.size > 0
        array = validation.vectors(array, self.dim, "queries")
        self.lengths(array, "queries")
        return array, single

    def lengths(self, vectors: npt.NDArray, name: str) -> Float64s:
        """Euclidean lengths float64[n]; ValueError for those that the metric does not accept."""
        lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
        if len(lengths) and not lengths.max() <= _MAX_NORM:
            given = f"{lengths.max():g} (row {lengths.argmax()})"
            raise ValueError(f"{name} must have lengths <= {_MAX_NORM:g}, not {given}")
        if self.metric == COSINE and len(lengths) and lengths.min() < 1 / _MAX_NORM:
            zero = f"zero (shorter than {1 / _MAX_NORM:g}) with metric 'cosine'"
            raise ValueError(f"{name} must not be {zero}, but row {lengths.argmin()} is")
        return lengths

    def _stored(self, vectors):
        if self.store != "float16":
            return vectors
        with np.errstate(over="ignore"):
            half = vectors.astype(np.float16)
        if not np.isfinite(half).all():
            most = np.abs(vectors).max()
            raise ValueError(f"store='float16' holds components up to 65504, not {most:g}")
        return half.view(np.uint16)

    def _walked(self, base, units, kept) -> dict:
        """The fields that walks read, with `units` after base; `kept` are the stored vectors."""
        coding, prefilter, outlier = base.coding, base.prefilter, base.outlier
        rows = kept
        if coding is None or coding.kind != codes.NONE:
            coding, coded, now_outlier = self._coded(base, units)
            if self.prefiltered:
                prefilter, outlier = coded, now_outlier
            else:
                # Under another basis or scale all codes were written anew, and so are sign codes.
                same = base.coding is not None and coding.offset is base.coding.offset
                start = base.n if same else 0
                new = codes.signs_of(coding, coded[start : base.n + len(units)], self.metric)
                prefilter = appended(prefilter, start, new) if start and len(new) else new
                rows = coded
        return {"coding": coding, "rows": rows, "prefilter": prefilter, "outlier": outlier}

    def _coded(self, base, units):
        """(coding, codes, outlier) of base and `units`, fitted anew if that is due."""
        coding, total = base.coding, base.n + len(units)
        if coding is not None and not coding.is_due(total):
            coded = np.zeros((len(units), coding.width), np.uint8)
            coding, outlier = self._encoded(coding, units, coded)
            if not coding.is_due(total):
                old = base.prefilter if self.prefiltered else base.rows
                return coding, appended(old, base.n, coded), _marked(base.outlier, base.n, outlier)
        sample = np.linspace(0, total - 1, min(total, codes.FIT_ROWS)).astype(np.int64)
        old, new = sample[sample < base.n], sample[sample >= base.n] - base.n
        sample = np.concatenate([self._units(base, old), units[new]])
        coding = codes.fit(self.quantize, sample, total, self.metric, not self.codes_only)
        coded = aligned_empty((total, coding.width), np.uint8)
        outliers = []
        for start in range(0, base.n, codes.FIT_ROWS):
            slots = np.arange(start, min(start + codes.FIT_ROWS, base.n))
            coding, some = self._encoded(coding, self._units(base, slots), coded[start:])
            outliers.append(some)
        coding, some = self._encoded(coding, units, coded[base.n :])
        return coding, coded, _marked(np.zeros(0, np.bool_), 0, np.concatenate([*outliers, some]))

    def _encoded(self, coding, units, out):
        """Encode `units`; (coding, which are outliers: of a prefilter only)."""
        coding, errors = codes.encode(coding, units, out)
        none = np.zeros(0, np.bool_)
        return codes.find_outliers(coding, units, errors) if self.prefiltered else (coding, none)

    def _units(self, base, slots):
        """The vectors in `slots` as they are encoded."""
        if not len(slots):
            return np.zeros((0, self.dim), np.float32)
        if self.codes_only:
            return codes.restore(base.coding, base.rows[slots])
        factors = base.factors[slots] if self.metric == COSINE else base.factors
        return self._as_encoded(base.vectors[slots], factors)

    def _as_encoded(self, vectors, factors):
        """Stored vectors as float32, of length 1 with COSINE."""
        vectors = self._restored(vectors)
        if not np.isfinite(vectors).all():  # of a mapped file, whose vectors no load has read
            raise CorruptFileError("a stored vector holds what is not finite")
        return vectors * factors[:, None] if self.metric == COSINE else vectors

    def _restored(self, vectors):
        is_half = self.store == "float16"
        return vectors.view(np.float16).astype(np.float32) if is_half else vectors

    def as_given(self, base: Snapshot, slots: Int64s) -> Float32s:
        """The vectors in `slots` float32[n, d], as exactly as they are stored."""
        return self._units(base, slots) if self.codes_only else self._restored(base.vectors[slots])


def _marked(outlier, n, new) -> Bools:
    """outlier[:n] followed by `new`; empty while there is none."""
    if not len(outlier):
        if not new.any():
            return outlier
        outlier = np.zeros(n, np.bool_)
    return appended(outlier, n, new)
