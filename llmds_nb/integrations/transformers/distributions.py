"""Filtered distributions of logits and draws from them: the same bits in any batch, on any device.

A draw must depend on nothing but its own row, its seed and its position. Sums of floating-point
numbers do depend on the shape of the batch and on the device, so there are none: probabilities are
integers, whose sums are exact in any order, and each is computed by separate additions,
multiplications and roundings of IEEE 754, which give the same bits everywhere.

Weights
    w = floor(2**bits * 2**y), y = (x - max(x)) * log2(e) / temperature in float32: int64 >= 0, the
    largest is 2**bits exactly; an error of 1e-7 of a probability, none below 2**-bits of the
    largest.
Random numbers
    A counter, no state: the hash of SplitMix64 (Steele, Lea and Flood, Fast Splittable
    Pseudorandom Number Generators, 2014) of (seed, position).
"""

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 256  # entries of a vocabulary that are summed before the search of a draw looks at one
N_BUCKETS, SPAN = 4096, 16.0  # of top-p at most, and how many powers of 2 they span together
LEAST = -64.0  # log2 of the least weight that is looked at

# 2**f for -.5 <= f <= .5: interpolated at Chebyshev's points, with the value 1 at 0
_POWERS = (
    0.00015461447461506453,
    0.0013390867351329083,
    0.009618056669889543,
    0.05550357104253095,
    0.24022650922342728,
    0.6931471880293424,
    1.0,
)

_GOLDEN = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_MASK = (1 << 64) - 1


class Options(NamedTuple):
    """What filters each of S rows: tensors on the device, and what of it the host knows."""

    scale: Tensor  # float32[S]: log2(e) / temperature
    min_p: Tensor  # float32[S]: log2 of the least probability over the largest; -inf: none
    cut: Tensor  # float64[S]: 1 - top_p
    top_k: Tensor  # int64[S]; 0: all
    has_min_p: bool
    has_top_p: bool
    most_k: int  # the largest top_k

    def of(self, rows: Tensor | slice) -> "Options":
        """Those of some rows."""
        return self._replace(
            scale=self.scale[rows],
            min_p=self.min_p[rows],
            cut=self.cut[rows],
            top_k=self.top_k[rows],
        )


# ---- random numbers -----------------------------------------------------------------------------


def hashed(value: int) -> int:
    """64 random bits for 64 bits: the finaliser of SplitMix64."""
    value &= _MASK
    for shift, factor in _MIX:
        value = ((value ^ (value >> shift)) * factor) & _MASK
    return value ^ (value >> 31)


def derived_seed(seed: int, index: int) -> int:
    """The seed of copy `index` of a request: `seed` itself for 0, another one for each other."""
    return seed if index == 0 else hashed(hashed(seed) + index * _GOLDEN) >> 1


def uniform(seeds: Tensor, positions: Tensor) -> Tensor:
    """A float64 in [0, 1) for each int64 seed and int64 position, a multiple of 2**-53."""
    bits = _hashed(_hashed(seeds) + (positions + 1) * _signed(_GOLDEN))
    return _shifted(bits, 11).to(torch.float64) * 2.0**-53


def _hashed(values: Tensor) -> Tensor:
    for shift, factor in _MIX:
        values = (values ^ _shifted(values, shift)) * _signed(factor)
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, n: int) -> Tensor:
    """Bits moved right by n, zeros coming in: `>>` of int64 repeats the sign."""
    return (values >> n) & ((1 << (64 - n)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


# ---- weights ------------------------------------------------------------------------------------


def weight_bits(vocab_size: int) -> int:
    """How many bits a weight has so that the sum of a row is below 2**63; at most 44."""
    return min(44, 62 - vocab_size.bit_length())


def weights(logits: Tensor, best: Tensor, options: Options, bits: int) -> Tensor:
    """Weights int64[S, n] of logits float32[S, n] whose maxima are `best` [S], after min-p.

    n is rounded up to a multiple of BLOCK, with weights 0. NaN has weight 0, too.
    """
    return _weighed(_powers_of(logits, best, options), options, bits)


def _powers_of(logits, best, options):
    """log2 of the ratio of each probability to the largest one, in [LEAST, 0]."""
    n_rows, n = logits.shape
    width = -(-n // BLOCK) * BLOCK
    y = torch.full((n_rows, width), LEAST, dtype=torch.float32, device=logits.device)
    inside = y[:, :n]
    torch.sub(logits, best[:, None], out=inside)
    inside.mul_(options.scale[:, None])
    return torch.fmax(y, y.new_tensor(LEAST), out=y)  # fmax, not clamp: NaN becomes LEAST


def _weighed(y, options, bits):
    """Weights of such powers, which are overwritten."""
    removed = y < options.min_p[:, None] if options.has_min_p else None
    whole = y.round()
    y.sub_(whole)
    power = y * _POWERS[0]
    for coefficient in _POWERS[1:-1]:
        power.add_(coefficient).mul_(y)
    power.add_(_POWERS[-1])
    # 2**(whole + bits) by its bits as a float32
    exponents = whole.to(torch.int32).add_(127 + bits).bitwise_left_shift_(23)
    found = power.mul_(exponents.view(torch.float32)).to(torch.int64)
    return found if removed is None else found.masked_fill_(removed, 0)


def filtered(logits: Tensor, best: Tensor, options: Options, bits: int) -> Tensor:
    """Weights int64[S, n'] after min-p, top-k and top-p; 0 for each token that is not kept.

    Of equal logits top-k keeps all that equal the last one kept, as in transformers, and top-p
    those of the smaller ids (in transformers it is left to the sort which).
    """
    n = logits.shape[1]
    y = _powers_of(logits, best, options)
    bucket = None
    if options.has_top_p:
        n_buckets = min(N_BUCKETS, 1 << (n - 1).bit_length())
        bucket = (y[:, :n] * (-n_buckets / SPAN)).clamp_(max=n_buckets - 1).to(torch.int64)
    found = _weighed(y, options, bits)
    inside = found[:, :n]
    if options.most_k:
        kth = _largest(logits, options.most_k)
        kth = kth.gather(1, (options.top_k - 1).clamp_(min=0)[:, None])
        kth.masked_fill_(options.top_k[:, None] == 0, -torch.inf)
        inside.masked_fill_(logits < kth, 0)
    if bucket is not None:
        _cut_top_p(inside, bucket, n_buckets, logits, best, options, bits)
    return found


def _largest(logits, n):
    """The n largest logits of each row, descending. A sort is faster than topk for many."""
    if n > logits.shape[1] // 8:
        return logits.sort(dim=-1, descending=True).values[:, :n]
    return logits.topk(n, dim=-1).values


def _cut_top_p(found, bucket, n_buckets, logits, best, options, bits):
    """Set the weights to 0 before which, in descending order, there is top_p of their sum already.

    Sums of buckets of about equal probabilities, descending, tell in which the last token kept is;
    only the tokens of that one are sorted.
    """
    ends = found.new_zeros((len(found), n_buckets)).scatter_add_(1, bucket, found).cumsum(-1)
    total = ends[:, -1:]
    limit = (total.to(torch.float64) * options.cut[:, None]).floor_().to(torch.int64)
    needed = (total - limit).clamp_(min=1)
    last = torch.searchsorted(ends, needed)
    last.masked_fill_(options.cut[:, None] == 0, n_buckets)  # all are kept
    among = (bucket == last) & (found > 0)
    n_most = int(among.sum(-1).max())
    if n_most == 0:
        return
    largest = _largest(logits.masked_fill(~among, -torch.inf), n_most)
    mass = weights(largest, best, options, bits)[:, :n_most]
    before = ends.gather(1, (last - 1).clamp_(0, n_buckets - 1)).masked_fill_(last == 0, 0)
    n_kept = ((before + mass.cumsum(-1) - mass < needed) & (mass > 0)).sum(-1, keepdim=True)
    value = largest.gather(1, (n_kept - 1).clamp_(min=0))  # -inf where all are kept
    n_ties = n_kept - (largest > value).sum(-1, keepdim=True)
    found.masked_fill_(logits < value, 0)
    ties = logits == value
    if bool((ties.sum(-1, keepdim=True) > n_ties).any()):
        order = ties.cumsum(-1, dtype=torch.int32)
        found.masked_fill_(ties & (order > n_ties), 0)


# ---- draws --------------------------------------------------------------------------------------


def drawn(found: Tensor, numbers: Tensor) -> Tensor:
    """A token int64[S] of each row of weights int64[S, n * BLOCK], by numbers float64[S] in [0, 1).

    The inverse of the distribution function, tokens in the order of their ids. O(n) a row. A row
    without a weight gives some token.
    """
    blocks = found.view(found.shape[0], -1, BLOCK)
    ends = blocks.sum(-1).cumsum(-1)
    total = ends[:, -1:]
    target = (numbers[:, None] * total.to(torch.float64)).to(torch.int64)
    target = torch.minimum(target, total - 1)  # where a float64 rounds the total up
    block = torch.searchsorted(ends, target, right=True).clamp_(max=blocks.shape[1] - 1)
    chosen = blocks.gather(1, block[:, :, None].expand(-1, -1, BLOCK))[:, 0]
    within = chosen.cumsum(-1)
    before = ends.gather(1, block) - within[:, -1:]
    inside = torch.searchsorted(within, target - before, right=True).clamp_(max=BLOCK - 1)
    return (block * BLOCK + inside)[:, 0]
