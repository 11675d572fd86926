"""Which shard holds a document: rendezvous hashing of its key over the ids of the shards.

Every pair of a key and a shard has a weight by hash, and the shard of largest weight holds the
document (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998). A shard
that is added takes only the keys for which its weight is the largest, 1 in n + 1, and one that is
removed gives only its own away. The weights are the same on every machine and in every version.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..._core import validation
from ..._core.typing import ArrayLike, Int64s

UInt64s: TypeAlias = npt.NDArray[np.uint64]

_STEP, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def placed(keys: Sequence[str] | ArrayLike, shards: Sequence[int]) -> Int64s:
    """The id of the shard of each key, int64[n]. O(n * shards).

    Parameters
    ----------
    keys : list of str, or int64[n]
    shards : list of int >= 0
        Distinct, at least one.

    Examples
    --------
    >>> before = placed(range(1000), [0, 1, 2])
    >>> after = placed(range(1000), [0, 1, 2, 3])
    >>> moved = before != after
    >>> bool((after[moved] == 3).all()), 200 < int(moved.sum()) < 300
    (True, True)
    """
    ids = validation.ids(list(shards), "shards")
    if not len(ids):
        raise ValueError("shards must hold at least one id")
    ids = np.sort(ids)  # of equal weights, the smallest id
    hashes = key_hashes(keys)
    best, shard_of = np.zeros(len(hashes), np.uint64), np.full(len(hashes), ids[0])
    for place, (id_, own) in enumerate(zip(ids, _mixed(ids.astype(np.uint64)), strict=True)):
        weights = _mixed(hashes ^ own)
        better = weights > best if place else np.ones(len(hashes), np.bool_)
        best[better], shard_of[better] = weights[better], id_
    return shard_of


def key_hashes(keys: Sequence[str] | ArrayLike) -> UInt64s:
    """uint64[n] for str or int keys: BLAKE2b of a str, SplitMix64 of an int."""
    given: Any = [keys] if isinstance(keys, str) else keys
    if not isinstance(given, np.ndarray) or given.dtype.kind in "UTO":
        given = list(given)
        if any(isinstance(key, str) for key in given):
            return np.array([_hash_of(validation.text(key, "keys")) for key in given], np.uint64)
    return _mixed(validation.ids(given, "keys", unique=False).astype(np.uint64))


def _hash_of(text):
    data = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _mixed(values: UInt64s) -> UInt64s:
    """SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    z = values + np.uint64(_STEP)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX_1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX_2)
    return z ^ (z >> np.uint64(31))
