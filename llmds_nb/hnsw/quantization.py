"""What an HNSW graph is walked on: the vectors, their uint8 codes, or codes of a projection.

Codes also help a walk on the vectors, and signs one on codes: see `kernels.sieve`.
"""

from typing import NamedTuple

import numpy as np

from .._core.arrays import aligned_empty
from .kernels import scalar_quantizer as k, sign_codes as signs
from .kernels.distance import IP, rounding

NONE, SQ8, PCA = "none", "sq8", "pca-sq8"

FIT_ROWS = 20_000  # rows that settle a fit; one on fewer is repeated when the index has grown
_FIT_VALUES = 2_000_000
_GROWTH = 4
_CLIPPED_SHARE = 0.01
_TAIL = 0.0002  # of the values lie beyond each end of the codes,
_ROW_TAIL = 0.05  # in this share of the rows at most
_MIN_DIM_AUTO = 32  # below, one float32 row costs no more cache lines than a walk has anyway
_MIN_DIM_SIEVE = 64
_ABOUT = 1.001  # what the arithmetic of codes may add to half a step
_MIN_DIM_PCA, _MAX_DIM_PCA_AUTO = 256, 2048  # a fit costs O(d^3): 2 s at 2048
_PCA_VARIANCE = 0.90
_CENTRE_ROWS = 1000  # settle the middle of the sample
_FAR = 16.0  # times the median squared distance from there is far out
_CHUNK = 4096
_LANES = 32
_MIN_WIDTH_SIGNS = 192  # bytes of a row of codes; fewer are compared as fast as signs
_MIN_ROWS_SIGNS = 1000  # fewer lie in the cache, and do not settle the margin
_SIGNS_PROBES, _SIGNS_ROWS, _SIGNS_NEAREST = 128, 4096, 128  # of a sample
# In a pool of the 10 nearest, the margin of signs leaves all but 2 % of them. What is ruled out is
# mostly what would leave the pool again: the recall of text stays within .002. Signs that would not
# spare half of the other rows would cost more time, and recall, than they save.
_SIGNS_BAR, _SIGNS_LOST, _SIGNS_SPARED = 10, 0.02, 0.5
_MIN_MARGIN = 0.75  # nine tenths of the errors for a query that is unlike the vectors
_MARGIN_STEP = 1 / 32  # so that no rounding error settles the graph


class Coding(NamedTuple):
    """How vectors become codes; arrays as in `kernels.codes`.

    `strict`: the codes are a sieve, or there are none, and the walk compares the vectors.
    """

    kind: str
    basis: np.ndarray
    offset: np.ndarray
    step: float
    fitted_on: int  # rows in the index when it was fitted
    clipped: int = 0  # components beyond the codes' range, and all, since then
    coded: int = 0
    strict: bool = False
    longest: float = 0.0  # as in `kernels.sieve`
    centre: int = 0  # as in `kernels.signs`
    margin: float = 0.0  # as in `kernels.signs`, 0 if there are none

    @property
    def link_step(self) -> float:
        """The step of the codes by which links are chosen; 0 if the vectors are compared."""
        return 0.0 if self.strict else self.step

    def error(self, lengths):
        """How far the codes of a sieve may be off, of vectors of these lengths."""
        dim = len(self.offset)
        return 0.5 * _ABOUT * self.step * np.sqrt(dim) + rounding.py_func(dim) * lengths

    @property
    def sieve_numbers(self) -> tuple[float, float, float]:
        """The step, and the error and longest of `kernels.sieve`, or margin and centre."""
        if not self.strict:
            return self.step, self.margin, float(self.centre)
        return self.step, float(self.error(self.longest)), self.longest

    @property
    def width(self) -> int:
        """Bytes of one row of codes."""
        return _padded(len(self.offset))

    @property
    def signs_width(self) -> int:
        """Bytes of one row of signs, 0 if there are none."""
        return _padded(self.width // 8 + signs.NUMBERS) if self.margin else 0

    def is_due(self, total) -> bool:
        """Whether `total` rows deserve a new fit: it grew much, or the values drifted."""
        grown = self.fitted_on < FIT_ROWS and total >= _GROWTH * self.fitted_on
        return grown or self.clipped > _CLIPPED_SHARE * self.coded


def _padded(n_bytes) -> int:
    return -(-n_bytes // _LANES) * _LANES


def uncoded() -> Coding:
    """No codes: the walk reads the vectors."""
    none = np.zeros((0, 0), np.float32), np.zeros(0, np.float32)
    return Coding(NONE, *none, 1.0, FIT_ROWS, strict=True)


def wants_codes(quantize, dim) -> bool:
    """Whether an index with this setting has codes at all."""
    return quantize in (SQ8, PCA) or (quantize == "auto" and dim >= _MIN_DIM_AUTO)


def wants_sieve(quantize, store, dim) -> bool:
    """Whether an index with this setting walks on the vectors with the help of codes."""
    return quantize is None and store == "float32" and dim >= _MIN_DIM_SIEVE


def sample_rows(total) -> np.ndarray:
    """At most FIT_ROWS row numbers, spread evenly."""
    return np.linspace(0, total - 1, min(total, FIT_ROWS)).astype(np.int64)


def fit(quantize, sample, total, metric, *, allow_pca) -> Coding:
    """Fit on `sample` float32[m, d], spread over the `total` rows (unit vectors with COSINE).

    For quantize=None it is a sieve, of plain codes: a projection rules out no more in less time.
    """
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
    if metric == IP:
        step = max(-low, high) / 127
        offset = np.full(values.shape[1], -128 * _positive(step), np.float32)
    else:
        step = (high - low) / 255
        offset = (mean @ basis if basis.size else mean) + np.float32(low)
    coding = Coding(kind, basis, offset, _positive(step), total, strict=quantize is None)
    if coding.strict:
        return coding
    centre = 128 if metric == IP else min(max(int(np.rint(-low / coding.step)), 0), 255)
    coding = coding._replace(centre=centre)
    return coding._replace(margin=_signs_margin(coding, sample, metric))


def _signs_margin(coding, sample, metric) -> float:
    """The margin of signs of such vectors, 0 if signs are of no use."""
    if coding.width < _MIN_WIDTH_SIGNS or len(sample) < _MIN_ROWS_SIGNS:
        return 0.0
    sample = sample[:: -(-len(sample) // _SIGNS_ROWS)]
    coded = np.empty((len(sample), coding.width), np.uint8)
    encode(coding, sample, coded)
    apart = coded[:, : len(coding.offset)] - np.float64(coding.centre)
    probes = apart[:: -(-len(apart) // _SIGNS_PROBES)]
    squares = np.einsum("ij,ij->i", apart, apart)
    gains = squares / np.maximum(np.abs(apart).sum(axis=1), 1)
    dots = probes @ apart.T
    guesses = gains * (probes @ np.where(apart >= 0, 1.0, -1.0).T)
    lengths = np.sqrt(np.einsum("ij,ij->i", probes, probes))
    units = np.maximum(gains * lengths[:, None], 1e-30)
    # Keys of the nearest in order, less what is the same for all rows, and what signs make of them.
    squares = np.broadcast_to(0 if metric == IP else squares / 2, dots.shape)
    order = np.argsort(squares - dots, axis=1, kind="stable")[:, 1:_SIGNS_NEAREST]
    keys, guesses, units = (
        np.take_along_axis(part, order, axis=1)
        for part in (squares - dots, squares - guesses, units)
    )
    beyond = (guesses - keys[:, _SIGNS_BAR, None]) / units
    margin = np.quantile(beyond[:, :_SIGNS_BAR], 1 - _SIGNS_LOST)
    margin = max(_MIN_MARGIN, float(np.ceil(margin / _MARGIN_STEP)) * _MARGIN_STEP)
    spared = (beyond[:, _SIGNS_BAR:] > margin).mean()
    return margin if spared >= _SIGNS_SPARED else 0.0


def _typical(sample) -> np.ndarray:
    """The rows of `sample` but for those far out, which would settle its mean and directions."""
    centre = np.median(sample[:: max(1, len(sample) // _CENTRE_ROWS)], axis=0)
    apart = sample - centre
    squares = np.einsum("ij,ij->i", apart, apart, dtype=np.float64)
    spread = squares[squares > 0]  # copies of one vector would make all others far out
    return sample[squares <= _FAR * np.median(spread)] if len(spread) else sample


def _positive(step) -> float:
    return step if step > 0 else 1 / 255


def _principal(sample, mean) -> np.ndarray:
    """Directions float32[d, p] within the leading ones that keep the variance; p a multiple of 32.

    Turned at random, so that all components vary alike: one step then fits them all, and is finer.
    """
    centred = sample - mean
    values, vectors = np.linalg.eigh((centred.T @ centred).astype(np.float64))
    shares = np.cumsum(values[::-1]) / max(values.sum(), np.finfo(float).tiny)
    count = int(np.searchsorted(shares, _PCA_VARIANCE)) + 1
    count = min(-(-count // _LANES) * _LANES, sample.shape[1])
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((count, count)))[0]
    return np.ascontiguousarray(vectors[:, ::-1][:, :count] @ turn, np.float32)


def encode(coding, vectors, out) -> tuple[Coding, np.ndarray]:
    """Write the codes of float32[n, d] vectors to `out`; return the coding with its counts, and
    float32[n], how far the codes are off."""
    clipped, errors = 0, np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), _CHUNK):
        part = vectors[start : start + _CHUNK]
        if coding.basis.size:
            part = part @ coding.basis
        clipped += k.codes_quantize(
            np.ascontiguousarray(part), coding.offset, coding.step, out[start : start + _CHUNK],
            errors[start : start + _CHUNK],
        )  # fmt: skip
    coded = coding.coded + len(vectors) * len(coding.offset)
    return coding._replace(clipped=coding.clipped + clipped, coded=coded), errors


def find_wild(coding, vectors, errors) -> tuple[Coding, np.ndarray]:
    """(coding, bool[n]): which vectors are wild, as `kernels.sieve` has it; the others count."""
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    wild = ~(errors <= coding.error(lengths))
    longest = float(lengths[~wild].max(initial=coding.longest))
    return coding._replace(longest=longest), wild


def restore(coding, codes) -> np.ndarray:
    """What sq8 codes stand for, float32[n, d]."""
    out = np.empty((len(codes), len(coding.offset)), np.float32)
    k.codes_restore(codes, coding.offset, coding.step, out)
    return out


def signs_of(coding, rows, metric) -> np.ndarray:
    """The signs uint8[n, S] of uint8[n, P] codes; uint8[0, 0] where the coding has none."""
    if not coding.margin:
        return np.zeros((0, 0), np.uint8)
    out = aligned_empty((len(rows), coding.signs_width), np.uint8)
    signs.signs_encode(rows, len(coding.offset), coding.centre, metric, out)
    return out
