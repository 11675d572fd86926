"""What a KVCache writes to its file, and how it is read back."""

from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CorruptFileError
from .kernels.state import KVState
from .salts import salt_from_json, salt_to_json
from .settings import CacheSettings, check_settings
from .state import CacheState, empty_arrays
from .tensors import Tensors

Pins = dict[int, npt.NDArray[np.int32]]  # the pages of each pin, by its handle


def to_file(state: CacheState, pins: Pins, next_pin: int) -> tuple[dict[str, npt.NDArray], dict]:
    """The arrays, uncopied, and the header that JSON can hold."""
    settings = state.settings
    if settings.custom_policy is not None:
        raise TypeError(
            f"a KVCache with the custom policy {settings.custom_policy!r} cannot be saved"
        )
    arrays = state.arrays._asdict()
    arrays["pins"] = np.concatenate([np.zeros(0, np.int32), *pins.values()])
    if state.tensors is not None:
        arrays["kv"] = state.tensors.kv
    header = {
        "n_pages": settings.n_pages,
        "page_size": settings.page_size,
        "kv_shape": settings.kv_shape,
        "dtype": settings.dtype.name,
        "eviction": settings.eviction,
        "prefix_sharing": settings.prefix_sharing,
        "key": settings.key.hex(),
        "domains": [[*salt_to_json(salt), domain] for salt, domain in state.domains.items()],
        "pins": [[handle, len(pages)] for handle, pages in pins.items()],
        "next_pin": next_pin,
    }
    return arrays, header


def from_file(arrays: dict[str, npt.NDArray], header: dict[str, Any]) -> tuple[CacheState, Pins]:
    """The state and the pins; CorruptFileError for arrays that do not fit one another."""
    settings = check_settings(
        header["n_pages"], header["page_size"], kv_shape=header["kv_shape"],
        dtype=header["dtype"], eviction=header["eviction"],
        prefix_sharing=header["prefix_sharing"], key=bytes.fromhex(header["key"]),
    )  # fmt: skip
    state = CacheState(
        settings,
        _state_arrays(settings, arrays),
        {salt_from_json(kind, text): domain for kind, text, domain in header["domains"]},
        _tensors(settings, arrays),
    )
    ends = np.cumsum([0] + [n for _, n in header["pins"]])
    pins = {
        handle: arrays["pins"][ends[i] : ends[i + 1]]
        for i, (handle, _) in enumerate(header["pins"])
    }
    return state, pins


def _state_arrays(settings: CacheSettings, arrays) -> Any:
    found = {}
    for name, empty in empty_arrays(settings)._asdict().items():
        array = arrays[name]
        fixed = name in ("page", "tok", "meta")
        same = array.shape == empty.shape if fixed else array.shape[1:] == empty.shape[1:]
        if array.dtype != empty.dtype or not same:
            raise CorruptFileError(f"array {name!r} is {array.dtype}{list(array.shape)}")
        found[name] = array
    return KVState(**found)


def _tensors(settings: CacheSettings, arrays) -> Tensors | None:
    if settings.kv_shape is None:
        return None
    if arrays["kv"].shape != (settings.n_pages, settings.page_size, *settings.kv_shape):
        raise CorruptFileError(f"array 'kv' has shape {list(arrays['kv'].shape)}")
    return Tensors(arrays["kv"])
