"""Random numbers that depend on a seed and a counter only, so threads and batches do not matter."""

import numpy as np

from .._jit import kernel
from .hashing import mix64

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_S11 = np.uint64(11)


@kernel(apart=True)
def random_u64(seed, counter):
    """The `counter`-th uint64 of the stream `seed` (splitmix64). O(1)."""
    return mix64(np.uint64(seed) + _GAMMA * (np.uint64(counter) + np.uint64(1)))


@kernel(apart=True)
def random_unit(seed, counter):
    """The `counter`-th float64 in [0, 1) of the stream `seed`. O(1)."""
    return np.float64(random_u64(seed, counter) >> _S11) * (1.0 / 9007199254740992.0)
