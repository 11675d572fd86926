"""What a KVCache writes to its file, and how it is read back."""

from typing import Any

import numpy.typing as npt

from ..errors import CorruptFileError
from .inspection import check
from .kernels.state import KVState
from .operations import Pins
from .salts import salt_from_json, salt_to_json
from .settings import CacheSettings, check_settings
from .state import CacheState, empty_arrays, ids_of

# The names in files of those fields of KVState that were renamed since the format was fixed.
_FILE_NAMES = {
    "tokens": "tok", "arena": "pool", "seq_hot": "hot", "seq_cold": "seq", "domain": "dom",
}  # fmt: skip


def to_file(state: CacheState, pins: Pins) -> tuple[dict[str, npt.NDArray], dict]:
    """The arrays, uncopied, and the header that JSON can hold."""
    settings = state.settings
    if settings.custom_policy is not None:
        policy = settings.custom_policy
        raise TypeError(f"a KVCache with the custom policy {policy!r} cannot be saved")
    arrays = {_FILE_NAMES.get(name, name): a for name, a in state.arrays._asdict().items()}
    del arrays["ids"]  # made anew from `seq_hot`; older files hold it
    arrays["pins"] = pins.all_pages()
    if state.tensors is not None:
        arrays["kv"] = state.tensors.kv
    header = {
        **settings._asdict(),
        "dtype": settings.dtype.name,
        "key": settings.key.hex(),
        "domains": [[*salt_to_json(salt), domain] for salt, domain in state.domains.items()],
        "pins": [[number, len(pages)] for number, pages in pins.pages.items()],
        "next_pin": pins.next_number,
    }
    return arrays, header


def from_file(arrays: dict[str, npt.NDArray], header: dict[str, Any]) -> tuple[CacheState, Pins]:
    """The state and the pins; CorruptFileError for arrays that do not fit one another."""
    *given, key = (header[name] for name in CacheSettings._fields)
    settings = check_settings(*given, bytes.fromhex(key))
    domains = {salt_from_json(kind, text): domain for kind, text, domain in header["domains"]}
    kv = None if settings.tensor_shape is None else arrays["kv"]
    if kv is not None and kv.shape != settings.tensor_shape:
        raise CorruptFileError(f"array 'kv' has shape {list(kv.shape)}")
    state = CacheState(settings, (_state_arrays(settings, arrays), domains, kv))
    pages, end = {}, 0
    for number, n in header["pins"]:
        pages[number] = arrays["pins"][end : end + n]
        end += n
    pins = Pins(pages, header["next_pin"])
    try:
        check(state.arrays, pins.all_pages())
    except (AssertionError, IndexError) as error:
        raise CorruptFileError(f"the cache is inconsistent: {error}") from None
    return state, pins


def _state_arrays(settings, arrays):
    found = {}
    empties = empty_arrays(settings)._asdict()
    del empties["ids"]
    for field, empty in empties.items():
        name = _FILE_NAMES.get(field, field)
        array = arrays[name]
        fixed = field in ("page", "tokens", "meta")
        same = array.shape == empty.shape if fixed else array.shape[1:] == empty.shape[1:]
        if array.dtype != empty.dtype or not same:
            raise CorruptFileError(f"array {name!r} is {array.dtype}{list(array.shape)}")
        found[field] = array
    return KVState(**found, ids=ids_of(found["seq_hot"]))
