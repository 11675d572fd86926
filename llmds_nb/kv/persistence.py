"""What a KVCache writes to its file, and how it is read back."""

from typing import Any

import numpy as np
import numpy.typing as npt

from .._core.storage import PartError, checking_parts
from ..errors import CorruptFileError
from .extra import ExtraKeys
from .inspection import check
from .kernels import eviction_policy as ev, state as s
from .kernels.events import N_EVENTS
from .kernels.operations import kv_rekey
from .pins import Pins
from .salts import salt_from_json, salt_to_json
from .saved_arrays import check_arrays, check_domains, check_sizes
from .settings import CacheSettings, check_settings
from .state import CacheState, empty_arrays, ids_of

# The names in files of those fields of KVState that were renamed since the format was fixed.
_FILE_NAMES = {
    "tokens": "tok", "arena": "pool", "seq_hot": "hot", "seq_cold": "seq", "domain": "dom",
}  # fmt: skip
_NOT_IN_FILES = ("extra", "ids")  # of one call; made anew of `seq_hot`, older files hold it
_DEFAULTS = {  # of what version 1 lacks
    "version": 2,
    "max_events": 0,
    "extra": {"symbols": [], "ranges": []},
}


def to_file(state: CacheState, pins: Pins) -> tuple[dict[str, npt.NDArray], dict]:
    """The arrays, the large ones uncopied, and the header that JSON can hold."""
    settings, kv = state.settings, state.arrays
    arrays = {
        _FILE_NAMES.get(name, name): array
        for name, array in kv._asdict().items()
        if name not in _NOT_IN_FILES
    }
    arrays["meta"], arrays["hot"] = kv.meta.copy(), kv.seq_hot.copy()
    # What calls note for themselves, also those that are refused, is no part of the contents.
    arrays["meta"][[s.MISSING, s.CALLS]] = 0
    arrays["hot"][:, s.LAST_CALL] = 0
    arrays["events"] = kv.events[: 1 + len(state.logged())]
    arrays["pins"] = pins.all_pages()
    if state.tensors is not None:
        arrays["kv"] = _as_stored(state.tensors.kv)
    header = {
        **settings._asdict(),
        "eviction": settings.eviction if settings.custom_policy is None else None,
        "dtype": settings.dtype.name,
        "key": settings.key.hex(),
        "domains": [[*salt_to_json(salt), domain] for salt, domain in state.domains.items()],
        "extra": state.extras.to_json(),
        "pins": [[handle, len(pages)] for handle, pages in pins.held().items()],
        "next_pin": pins.next_handle,
    }
    return arrays, header


def _as_stored(kv):
    """Tensors of a dtype that files do not know, such as bfloat16, as unsigned integers."""
    return kv if kv.dtype.kind in "biuf" else kv.view(f"u{kv.itemsize}")


def from_file(
    arrays: dict[str, npt.NDArray], header: dict[str, Any], policy: Any
) -> tuple[CacheState, Pins]:
    """The state and the pins; CorruptFileError for arrays that do not fit one another."""
    header = {**_DEFAULTS, **header}
    *given, key = (header[name] for name in CacheSettings._fields)
    settings = _with_policy(given, bytes.fromhex(key), policy)
    if header["dtype"] != settings.dtype.name:
        raise CorruptFileError(f"header field 'dtype' is {header['dtype']!r}")
    found = _state_arrays(settings, arrays)
    saved = [(salt_from_json(kind, text), domain) for kind, text, domain in header["domains"]]
    check_domains(saved, settings.key, found.domain)
    domains = dict(saved)
    check_arrays(found, empty_arrays(settings), list(domains.values()))
    found = found._replace(ids=ids_of(found.seq_hot))
    kv = None
    if settings.tensor_shape is not None:
        kv = arrays["kv"].view(settings.dtype)
        if kv.shape != settings.tensor_shape or arrays["kv"].dtype != _as_stored(kv).dtype:
            raise CorruptFileError(f"array 'kv' has shape {list(arrays['kv'].shape)}")
    extras = ExtraKeys.from_json(settings.page_size, header["extra"])
    state = CacheState(settings, (found, domains, extras, kv))
    pins = _pins(arrays["pins"], header["pins"], header["next_pin"])
    try:
        check(state, pins.all_pages())
    except (AssertionError, IndexError) as error:
        raise CorruptFileError(f"the cache is inconsistent: {error}") from None
    if header["version"] == 1 and settings.eviction == "lfu":
        _rekey(state)
    return state, pins


def _pins(array, held, next_pin):
    """The pins, whose handles and numbers of pages are in `held`."""
    if array.dtype != np.int32 or array.ndim != 1:
        raise CorruptFileError(f"array 'pins' is {array.dtype}{list(array.shape)}")
    pages, end = {}, 0
    for handle, n in held:
        numbers = type(handle) is int and type(n) is int and type(next_pin) is int
        if not numbers or not 1 <= handle <= next_pin or n < 0 or handle in pages:
            raise CorruptFileError(f"header field 'pins' has pin {handle!r} of {n!r} pages")
        pages[handle] = array[end : end + n]
        end += n
    if end != len(array) or type(next_pin) is not int or next_pin < 1:
        raise CorruptFileError(f"array 'pins' has {len(array)} pages, not {end}")
    return Pins(pages, next_pin)


def _with_policy(given, key, policy):
    """The settings, with a policy that the file cannot hold, and only with such a one."""
    place = CacheSettings._fields.index("eviction")
    if given[place] is not None:
        if policy is not None:
            raise PartError(f"the file names its eviction policy, {given[place]!r}")
        return check_settings(*given, key)
    if policy is None or isinstance(policy, str):
        raise PartError("the cache has an eviction policy of its own: pass it as eviction=")
    with checking_parts():
        return check_settings(*given[:place], policy, *given[place + 1 :], key)


def _state_arrays(settings, arrays):
    check_sizes(settings, arrays["page"], arrays["tok"])
    try:
        empty = empty_arrays(settings)
    except MemoryError:
        raise CorruptFileError(f"header field 'max_events' is {settings.max_events}") from None
    found = {name: getattr(empty, name) for name in _NOT_IN_FILES}
    for field, like in empty._asdict().items():
        if field in found:
            continue
        name = _FILE_NAMES.get(field, field)
        array = like[:1] if field == "events" and name not in arrays else arrays[name]
        if field == "seq_cold" and array.shape[1:] in ((s.OUTDATED,), (s.FIRST_UNKNOWN,)):
            array = np.pad(
                array, ((0, 0), (0, s.SEQ_COLD_COLUMNS - array.shape[1]))
            )  # versions 1, 2
        fixed = field in ("page", "tokens", "meta")
        same = array.shape == like.shape if fixed else array.shape[1:] == like.shape[1:]
        if array.dtype != like.dtype or not same:
            raise CorruptFileError(f"array {name!r} is {array.dtype}{list(array.shape)}")
        found[field] = array
    found["events"] = _log(empty.events, found["events"])
    return s.KVState(**found)


def _log(empty, saved):
    """The log that holds the saved events, and as many more as the empty one."""
    if len(saved) != (1 + int(saved[0, N_EVENTS]) if len(empty) else 0) or len(saved) > len(empty):
        raise CorruptFileError(f"array 'events' has {len(saved)} rows")
    empty[: len(saved)] = saved
    return empty


def _rekey(state):
    """Give the pages of a cache of version 1 the keys that `lfu` has had since."""
    page = state.arrays.page
    pages = np.flatnonzero(page[:, s.STATE] == s.CACHED)
    old = page[pages, s.KEY : s.KEY + 2].copy().view("<i8")[:, 0]
    kv_rekey(state.handle.address, pages, ev.lfu_keys(page[pages, s.USES], old & 0xFFFFFFFF))
