"""How an HNSW index keeps its vectors: as given, rounded to float16, or as codes alone."""

import numpy as np

from .._core import validation
from .._core.arrays import aligned_empty, appended
from . import quantization as codes
from .graph_writer import Snapshot
from .kernels.distance import COSINE, IP, L2

METRICS = {"l2": L2, "ip": IP, "cosine": COSINE}
STORES = {"float32": np.float32, "float16": np.uint16, None: np.uint8}
_MAX_NORM = 1e18  # its square, times four, is a float32


class VectorForm:
    """What the settings of an index mean for the arrays of its snapshots."""

    def __init__(self, dim, metric, quantize, store):
        self.dim, self.quantize, self.store = dim, quantize, store
        self.metric = METRICS[metric]
        self.codes_only = store is None
        self.sieved = codes.wants_sieve(quantize, store, dim)
        # Codes are those of unit vectors with COSINE, so L2 between them orders as the metric does.
        self.kernel_metric = L2 if self.metric == COSINE and self.codes_only else self.metric
        # Arrays of the types of rows and vectors, and the machine code for searches of them.
        self.samples = tuple(np.zeros((0, 0), dtype) for dtype in self._dtypes())
        self.search_entry = None

    def _dtypes(self):
        """Of rows and vectors."""
        dtype = STORES[self.store]
        return np.uint8 if codes.wants_codes(self.quantize, self.dim) else dtype, dtype

    def empty(self, M) -> Snapshot:
        """The snapshot of an index without vectors."""
        row_dtype, dtype = self._dtypes()
        vectors, coded = np.zeros((0, self.dim), dtype), row_dtype == np.uint8
        return Snapshot(
            vectors=vectors, rows=np.zeros((0, 0), np.uint8) if coded else vectors,
            sieve=np.zeros((0, 0), np.uint8), wild=np.zeros(0, np.bool_),
            factors=np.zeros(0, np.float32), ids=np.zeros(0, np.int64),
            live=np.zeros(0, np.bool_), levels=np.zeros(0, np.uint8), upper=np.zeros(0, np.int32),
            links0=np.zeros((0, 1 + 2 * M), np.int32), blocks0=np.zeros(0, np.int32),
            links1=np.zeros((0, 1 + M), np.int32), blocks1=np.zeros(0, np.int32),
            coding=None if coded or self.sieved else codes.uncoded(),
        )  # fmt: skip

    def added(self, base, vectors, lengths, copy=True) -> dict:
        """The arrays of `base` that hold vectors, with float32[n, d] `vectors` after its slots.

        Without `copy` they are kept as they are; base is empty then.
        """
        stored = self._stored(vectors)
        units, factors = vectors, base.factors
        if self.metric == COSINE:
            if self.store == "float16":
                lengths = self.lengths(stored.view(np.float16), "vectors")
            units = vectors / lengths[:, None].astype(np.float32)
            if not self.codes_only:
                factors = appended(factors, base.n, (1 / lengths).astype(np.float32))
        if self.codes_only:
            fields = self._walked(base, units, None)
            return {**fields, "vectors": fields["rows"], "factors": factors}
        kept = appended(base.vectors, base.n, stored) if copy else vectors
        return {**self._walked(base, units, kept), "vectors": kept, "factors": factors}

    def refitted(self, empty, fields) -> dict:
        """`fields` with all their vectors, under codes fitted to these alone.

        Codes stay where the vectors themselves are no longer kept.
        """
        if self.codes_only or fields["coding"].kind == codes.NONE:
            return fields
        units = fields["vectors"]
        if self.store == "float16":
            units = units.view(np.float16).astype(np.float32)
        if self.metric == COSINE:
            units = units * fields["factors"][:, None]
        return {**fields, **self._walked(empty, units, fields["vectors"])}

    def queries(self, values) -> tuple[np.ndarray, bool]:
        """(float32[n, dim], whether one vector was given), of lengths that the metric accepts."""
        array = np.asarray(values)
        single = array.ndim == 1 and array.size > 0
        array = validation.vectors(array, self.dim, "queries")
        self.lengths(array, "queries")
        return array, single

    def lengths(self, vectors, name):
        """Euclidean lengths float64[n] of what the metric accepts, or ValueError."""
        lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
        if len(lengths) and not lengths.max() <= _MAX_NORM:
            worst = int(lengths.argmax())
            raise ValueError(
                f"{name} must have lengths <= {_MAX_NORM:g}, not {lengths[worst]:g} (row {worst})"
            )
        if self.metric == COSINE and len(lengths) and lengths.min() < 1 / _MAX_NORM:
            worst = int(lengths.argmin())
            raise ValueError(
                f"{name} must not be zero (shorter than {1 / _MAX_NORM:g}) with metric 'cosine', "
                f"but row {worst} is"
            )
        return lengths

    def _stored(self, vectors):
        if self.store != "float16":
            return vectors
        with np.errstate(over="ignore"):
            half = vectors.astype(np.float16)
        if not np.isfinite(half).all():
            raise ValueError(
                f"store='float16' holds components up to 65504, not {np.abs(vectors).max():g}"
            )
        return half.view(np.uint16)

    def _walked(self, base, units, kept) -> dict:
        """What the graph is walked on with `units` after base; `kept` are all the vectors."""
        coding, sieve, wild = base.coding, base.sieve, base.wild
        if coding is not None and coding.kind == codes.NONE:
            return {"coding": coding, "rows": kept, "sieve": sieve, "wild": wild}
        coding, coded, now_wild = self._coded(base, units)
        if self.sieved:
            return {"coding": coding, "rows": kept, "sieve": coded, "wild": now_wild}
        # Under another basis or scale all codes were written anew, and so must signs be.
        same = base.coding is not None and coding.offset is base.coding.offset
        start = base.n if same else 0
        new = codes.signs_of(coding, coded[start : base.n + len(units)], self.metric)
        sieve = appended(sieve, start, new) if start and len(new) else new
        return {"coding": coding, "rows": coded, "sieve": sieve, "wild": wild}

    def _coded(self, base, units):
        """(coding, codes, wild) of base and `units`, under a new coding if one is due."""
        coding, total = base.coding, base.n + len(units)
        if coding is not None and not coding.is_due(total):
            coded = np.zeros((len(units), coding.width), np.uint8)
            coding, wild = self._encoded(coding, units, coded)
            if not coding.is_due(total):
                old = base.sieve if self.sieved else base.rows
                return coding, appended(old, base.n, coded), _marked(base.wild, base.n, wild)
        sample = codes.sample_rows(total)
        old, new = sample[sample < base.n], sample[sample >= base.n] - base.n
        sample = np.concatenate([self._units(base, old), units[new]])
        coding = codes.fit(self.quantize, sample, total, self.metric, allow_pca=not self.codes_only)
        coded = aligned_empty((total, coding.width), np.uint8)
        wild = []
        for start in range(0, base.n, codes.FIT_ROWS):
            slots = np.arange(start, min(start + codes.FIT_ROWS, base.n))
            coding, some = self._encoded(coding, self._units(base, slots), coded[start:])
            wild.append(some)
        coding, some = self._encoded(coding, units, coded[base.n :])
        return coding, coded, _marked(np.zeros(0, np.bool_), 0, np.concatenate([*wild, some]))

    def _encoded(self, coding, units, out):
        """`codes.encode`, and which are wild; where there is no sieve none is."""
        coding, errors = codes.encode(coding, units, out)
        if not self.sieved:
            return coding, np.zeros(0, np.bool_)
        return codes.find_wild(coding, units, errors)

    def _units(self, base, slots):
        """The stored vectors as coding sees them, float32: of length 1 with COSINE."""
        if self.codes_only:
            if not len(slots):
                return np.zeros((0, self.dim), np.float32)
            return codes.restore(base.coding, base.rows[slots])
        vectors = self.as_given(base, slots)
        return vectors * base.factors[slots][:, None] if self.metric == COSINE else vectors

    def as_given(self, base, slots) -> np.ndarray:
        """The vectors in `slots` float32[n, d], as exactly as they are kept."""
        if self.codes_only:
            return self._units(base, slots)
        vectors = base.vectors[slots]
        return vectors.view(np.float16).astype(np.float32) if self.store == "float16" else vectors


def _marked(wild, n, new) -> np.ndarray:
    """wild[:n] followed by `new`; empty while none is."""
    if not len(wild):
        if not new.any():
            return wild
        wild = np.zeros(n, np.bool_)
    return appended(wild, n, new)
