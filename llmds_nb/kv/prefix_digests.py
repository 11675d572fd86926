"""Digests that name the prefixes of a prompt alike on every machine."""

import hashlib

import numpy as np
import numpy.typing as npt

from .salts import Salt, salt_bytes


def prefix_digests(tokens: npt.NDArray[np.int32], page_size: int, salt: Salt) -> npt.NDArray:
    """The chained SHA-256 uint8[n_full_pages, 32] that `KVCache.prefix_digests` defines."""
    n = len(tokens) // page_size
    data = tokens[: n * page_size].astype("<i4").tobytes()
    step = 4 * page_size
    chained = b"llmds_nb prefix 1\0" + page_size.to_bytes(4, "little") + salt_bytes(salt)
    digests = np.empty((n, 32), np.uint8)
    for i in range(n):
        chained = hashlib.sha256(chained + data[step * i : step * (i + 1)]).digest()
        digests[i] = np.frombuffer(chained, np.uint8)
    return digests
