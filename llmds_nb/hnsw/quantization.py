"""Codes of an HNSW index: what its graph is walked on, and what rejects rows on the way.

A walk compares the vectors, their uint8 codes, or codes of a projection. Codes are also the
prefilter of a walk on the vectors, and sign codes that of a walk on codes: see `kernels.prefilter`.
"""

from typing import NamedTuple

import numpy as np

from .._core.arrays import aligned_empty
from .._core.typing import Bools, Float32s, UInt8s
from .kernels import scalar_quantizer as k, sign_codes
from .kernels.distance import IP, rounding
from .kernels.prefilter import prefilter_of
from .kernels.state import Prefilter, Quantizer

NONE, SQ8, PCA = "none", "sq8", "pca-sq8"

FIT_ROWS = 20_000  # rows that settle a fit; one on fewer is repeated when the index has grown
_FIT_VALUES = 2_000_000
_GROWTH = 4
_CLIPPED_SHARE = 0.01
_TAIL = 0.0002  # share of the values beyond each end of the codes
_ROW_TAIL = 0.05  # largest share of the rows that may have such values
_MIN_DIM_AUTO = 32  # below, one float32 row costs no more cache lines than a walk has anyway
_MIN_DIM_PREFILTER = 64
_ABOUT = 1.001  # times half a step: the error of a code with the rounding of its arithmetic
_MIN_DIM_PCA, _MAX_DIM_PCA_AUTO = 256, 2048  # a fit costs O(d^3): 2 s at 2048
_PCA_VARIANCE = 0.90
_CENTRE_ROWS = 1000  # settle the median of the sample
_FAR = 16.0  # squared distances of so many medians are outliers
_CHUNK = 4096
_LANES = 32
_MIN_WIDTH_SIGNS = 192  # bytes of a row of codes; fewer are compared as fast as sign codes
_MIN_ROWS_SIGNS = 1000  # fewer fit the cache, and do not settle the error bound
_SIGNS_PROBES, _SIGNS_ROWS, _SIGNS_NEAREST = 128, 4096, 128  # of a sample
# With 10 candidates kept, the error bound of sign codes lets all but 2 % of the 10 nearest through.
# Rejected are mostly candidates that later ones would evict anyway: the recall of text stays within
# .002. Sign codes that would not reject half of the other rows cost more time, and recall, than
# they save.
_SIGNS_KEPT, _SIGNS_LOST, _SIGNS_REJECTED = 10, 0.02, 0.5
_MIN_ERROR_BOUND = 0.75  # the 90 % quantile of the errors for queries unlike the vectors
_ERROR_BOUND_STEP = 1 / 32  # so that no rounding error decides what the graph becomes


class Coding(NamedTuple):
    """How vectors become codes; arrays as in `kernels.scalar_quantizer`."""

    kind: str
    basis: np.ndarray
    offset: np.ndarray
    step: float
    fitted_on: int  # rows in the index when it was fitted
    clipped: int = 0  # components beyond the codes' range, and all, since then
    coded: int = 0
    walks_vectors: bool = False  # the walk compares vectors; codes, if any, are its prefilter
    longest: float = 0.0  # as in `kernels.prefilter`
    centre: int = 0  # as in `kernels.sign_codes`
    error_bound: float = 0.0  # as in `kernels.sign_codes`; 0 if there are none

    def for_kernels(
        self, codes: UInt8s, outlier: Bools, factors: Float32s, metric: int
    ) -> tuple[Prefilter, Quantizer]:
        """The prefilter of these codes, and what queries are encoded with."""
        error = float(self.error(self.longest)) if self.walks_vectors else 0.0
        numbers = error, self.longest, self.error_bound, self.centre
        prefilter = prefilter_of(codes, factors, metric, outlier, *numbers)
        return prefilter, Quantizer(self.basis, self.offset, self.step, not self.walks_vectors)

    @property
    def link_step(self) -> float:
        """The step of the codes by which links are chosen; 0 if the vectors are compared."""
        return 0.0 if self.walks_vectors else self.step

    def error(self, lengths):
        """How far the codes of a prefilter may be off, for vectors of these lengths."""
        dim = len(self.offset)
        return 0.5 * _ABOUT * self.step * np.sqrt(dim) + rounding.py_func(dim) * lengths

    @property
    def width(self) -> int:
        """Bytes of one row of codes."""
        return _padded(len(self.offset))

    @property
    def signs_width(self) -> int:
        """Bytes of one row of sign codes, 0 if there are none."""
        return _padded(self.width // 8 + sign_codes.NUMBERS) if self.error_bound else 0

    def is_due(self, total: int) -> bool:
        """Whether a fit to `total` rows is due: there are many more, or the values drifted."""
        grown = self.fitted_on < FIT_ROWS and total >= _GROWTH * self.fitted_on
        return grown or self.clipped > _CLIPPED_SHARE * self.coded


def _padded(n_bytes) -> int:
    return -(-n_bytes // _LANES) * _LANES


def uncoded() -> Coding:
    """No codes: the walk reads the vectors."""
    none = np.zeros((0, 0), np.float32), np.zeros(0, np.float32)
    return Coding(NONE, *none, 1.0, FIT_ROWS, walks_vectors=True)


def uses(quantize: str | None, store: str | None, dim: int) -> tuple[bool, bool]:
    """Whether walks with these settings are on codes, or on vectors with a prefilter of codes."""
    coded = quantize in (SQ8, PCA) or (quantize == "auto" and dim >= _MIN_DIM_AUTO)
    prefiltered = quantize is None and store == "float32" and dim >= _MIN_DIM_PREFILTER
    return coded or store is None, prefiltered


def fit(quantize: str | None, sample: Float32s, total: int, metric: int, allow_pca: bool) -> Coding:
    """Fit a coding to `sample` float32[m, d] of `total` rows (unit vectors with COSINE)."""
    # A prefilter (quantize=None) has plain codes: a projection rejects no more rows in less time.
    dim = sample.shape[1]
    sample = _typical(sample)
    kind, basis = SQ8, np.zeros((0, 0), np.float32)
    mean = np.zeros(dim, np.float32) if metric == IP else sample.mean(axis=0)
    projected = quantize == PCA or (quantize == "auto" and _MIN_DIM_PCA <= dim <= _MAX_DIM_PCA_AUTO)
    if projected and allow_pca and len(sample) >= 4 * dim:
        found = _principal(sample, mean)
        if quantize == PCA or 2 * found.shape[1] <= dim:
            kind, basis = PCA, found
    few = sample[:: max(1, len(sample) * dim // _FIT_VALUES)]
    values = (few - mean) @ basis if basis.size else few - mean
    # Extremes by row, so that a few far rows cannot stretch the scale for all others.
    tail = min(_TAIL * values.shape[1], _ROW_TAIL)
    low = float(np.quantile(values.min(axis=1), tail, method="higher"))
    high = float(np.quantile(values.max(axis=1), 1 - tail, method="lower"))
    step = max(-low, high) / 127 if metric == IP else (high - low) / 255
    step = step if step > 0 else 1 / 255
    if metric == IP:
        offset = np.full(values.shape[1], -128 * step, np.float32)
    else:
        offset = (mean @ basis if basis.size else mean) + np.float32(low)
    coding = Coding(kind, basis, offset, step, total, walks_vectors=quantize is None)
    if not coding.walks_vectors:
        centre = 128 if metric == IP else min(max(int(np.rint(-low / coding.step)), 0), 255)
        coding = coding._replace(centre=centre)
        coding = coding._replace(error_bound=_fitted_error_bound(coding, sample, metric))
    return coding


def _fitted_error_bound(coding, sample, metric) -> float:
    """The error bound of sign codes of such vectors, 0 if sign codes are of no use."""
    if coding.width < _MIN_WIDTH_SIGNS or len(sample) < _MIN_ROWS_SIGNS:
        return 0.0
    sample = sample[:: -(-len(sample) // _SIGNS_ROWS)]
    coded = np.empty((len(sample), coding.width), np.uint8)
    encode(coding, sample, coded)
    offsets = coded[:, : len(coding.offset)] - np.float64(coding.centre)
    probes = offsets[:: -(-len(offsets) // _SIGNS_PROBES)]
    squares = np.einsum("ij,ij->i", offsets, offsets)
    gains = squares / np.maximum(np.abs(offsets).sum(axis=1), 1)
    dots = probes @ offsets.T
    guesses = gains * (probes @ np.where(offsets >= 0, 1.0, -1.0).T)
    lengths = np.sqrt(np.einsum("ij,ij->i", probes, probes))
    units = np.maximum(gains * lengths[:, None], 1e-30)
    # Keys of the nearest in order, less what is the same for all rows, and their estimates.
    squares = np.broadcast_to(0 if metric == IP else squares / 2, dots.shape)
    parts = squares - dots, squares - guesses, units
    order = np.argsort(parts[0], axis=1, kind="stable")[:, 1:_SIGNS_NEAREST]
    keys, guesses, units = (np.take_along_axis(part, order, axis=1) for part in parts)
    beyond = (guesses - keys[:, _SIGNS_KEPT, None]) / units
    bound = np.quantile(beyond[:, :_SIGNS_KEPT], 1 - _SIGNS_LOST)
    bound = max(_MIN_ERROR_BOUND, float(np.ceil(bound / _ERROR_BOUND_STEP)) * _ERROR_BOUND_STEP)
    rejected = (beyond[:, _SIGNS_KEPT:] > bound).mean()
    return bound if rejected >= _SIGNS_REJECTED else 0.0


def _typical(sample) -> Float32s:
    """The rows of `sample` without a few far out, which would dominate its mean and directions.

    Many are no outliers: what is close together are then copies, or nearly so, of one vector.
    """
    centre = np.median(sample[:: max(1, len(sample) // _CENTRE_ROWS)], axis=0)
    offsets = sample - centre
    squares = np.einsum("ij,ij->i", offsets, offsets, dtype=np.float64)
    spread = squares[squares > 0]  # copies of one vector would make all others far out
    near = squares <= _FAR * np.median(spread) if len(spread) else squares == 0
    return sample[near] if near.mean() >= 1 - _ROW_TAIL else sample


def _principal(sample, mean) -> Float32s:
    """Directions float32[d, p], p % 32 = 0, in the span of the leading ones that keep the variance.

    At random, so that all components vary about the same: one step then fits them, and is finer.
    """
    centred = sample - mean
    values, vectors = np.linalg.eigh((centred.T @ centred).astype(np.float64))
    shares = np.cumsum(values[::-1]) / max(values.sum(), np.finfo(float).tiny)
    count = int(np.searchsorted(shares, _PCA_VARIANCE)) + 1
    count = min(-(-count // _LANES) * _LANES, sample.shape[1])
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((count, count)))[0]
    return np.ascontiguousarray(vectors[:, ::-1][:, :count] @ turn, np.float32)


def encode(coding: Coding, vectors: Float32s, out: UInt8s) -> tuple[Coding, Float32s]:
    """Write the codes of float32[n, d] vectors to `out`.

    Returns the coding with its counts, and float32[n], how far the codes are off.
    """
    clipped, errors = 0, np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), _CHUNK):
        part = vectors[start : start + _CHUNK]
        if coding.basis.size:
            part = part @ coding.basis
        outs, part = (out[start:], errors[start:]), np.ascontiguousarray(part)
        clipped += k.codes_quantize(part, coding.offset, coding.step, *outs)
    coded = coding.coded + len(vectors) * len(coding.offset)
    return coding._replace(clipped=coding.clipped + clipped, coded=coded), errors


def find_outliers(coding: Coding, vectors: Float32s, errors: Float32s) -> tuple[Coding, Bools]:
    """(coding, outlier bool[n]): of a prefilter, and the coding with `longest` of the others."""
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    outlier = ~(errors <= coding.error(lengths))
    longest = float(lengths[~outlier].max(initial=coding.longest))
    return coding._replace(longest=longest), outlier


def restore(coding: Coding, codes: UInt8s) -> Float32s:
    """What sq8 codes represent, float32[n, d]."""
    out = np.empty((len(codes), len(coding.offset)), np.float32)
    k.codes_restore(codes, coding.offset, coding.step, out)
    return out


def signs_of(coding: Coding, rows: UInt8s, metric: int) -> UInt8s:
    """The sign codes uint8[n, S] of uint8[n, P] codes; uint8[0, 0] where the coding has none."""
    if not coding.error_bound:
        return np.zeros((0, 0), np.uint8)
    out = aligned_empty((len(rows), coding.signs_width), np.uint8)
    sign_codes.sign_codes_encode(rows, len(coding.offset), coding.centre, metric, out)
    return out
