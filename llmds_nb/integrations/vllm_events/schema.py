"""The payload of a message: vLLM's events in msgpack, from KVEvents and back.

A batch is an array [ts, events, data_parallel_rank], the last one only where it is known. An event
is a map with its class as "type" (vLLM since 2026), or an array that begins with it (before); both
are read, and fields that are not known here are ignored. The fields are those of the NamedTuples
below, in that order; a block is what is a page here.

Between the two:

- A `BlockStored` has the hashes of consecutive blocks and the tokens of all; each is a KVEvent.
- A salt is a `cache_salt`, among the extra keys of a first block only; later ones follow from their
  parents. 0 is none; other ints and bytes have a text of their own. LoRA adapters are part of the
  salt: `lora_salt`.
- Ranges of `extra` are extra keys [key, start, stop]. Of vLLM's images (identifier, offset) the
  positions are within the page, up to its end.
- `page`, the number of a page, is not sent. "lost" becomes `AllBlocksCleared`: to whoever mirrors
  the cache they mean the same, and vLLM has no such event.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import msgpack
import numpy as np

from llmds_nb._core import validation
from llmds_nb.kv import KVEvent

Hash: TypeAlias = bytes | int  # vLLM sends bytes, or the last 64 bits of them as an int
Salt: TypeAlias = int | bytes | str
_OURS = "llmds_nb:"  # begins the texts of salts that are no str
_TOKEN_MAX = 2**31 - 1
_MAX_BLOCK = 2**16


class EventFormatError(ValueError):
    """A payload that is no batch of events; the message names what is wrong."""


class BlockStored(NamedTuple):
    """Blocks that became cached, the first one after `parent_block_hash`."""

    block_hashes: list[Hash]
    parent_block_hash: Hash | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: list[Any] | None = None  # of each block, or None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None
    locality: str | None = None
    ownership: str | None = None
    session_id: str | None = None


class BlockRemoved(NamedTuple):
    """Blocks that are cached no more."""

    block_hashes: list[Hash]
    medium: str | None = None
    group_idx: int | None = None
    locality: str | None = None
    ownership: str | None = None


class AllBlocksCleared(NamedTuple):
    """No block is cached any more."""


class EventBatch(NamedTuple):
    """What one message holds."""

    ts: float  # seconds since the epoch
    events: list[Any]
    data_parallel_rank: int | None = None


_TYPES: dict[str, Any] = {
    cls.__name__: cls for cls in (BlockStored, BlockRemoved, AllBlocksCleared)
}
_N_SENT = {BlockStored: 7, BlockRemoved: 2, AllBlocksCleared: 0}  # fields sent even if None
_INTS = {"block_size", "lora_id", "group_idx", "kv_cache_spec_sliding_window"}


def encode(
    events: Iterable[KVEvent],
    *,
    ts: float | None = None,
    medium: str | None = "GPU",
    data_parallel_rank: int | None = None,
    form: str = "map",
    int_hashes: bool = False,
) -> bytes:
    """Return events of a `KVCache` as the payload of a message. O(tokens), about 2 us an event.

    Parameters
    ----------
    events : iterable of KVEvent
        As `KVCache.events()` gives them.
    ts : float, optional
        Seconds since the epoch; now by default.
    medium : str, optional
        Where the pages are, as vLLM calls it: "GPU", "CPU", "STORAGE".
    data_parallel_rank : int, optional
        Of the engine, where there are several.
    form : {"map", "array"}
        How each event is written: as vLLM 0.32 does, or as those before it.
    int_hashes : bool
        Send the last 64 bits of each hash as an int, for consumers that expect them.

    >>> from llmds_nb import KVCache
    >>> cache = KVCache(8, 2, max_events=100)
    >>> _ = cache.attach(0, [1, 2, 3, 4])
    >>> cache.commit(0, 4)
    >>> [(event.kind, event.tokens.tolist()) for event in decode(encode(cache.events()))]
    [('stored', [1, 2]), ('stored', [3, 4])]
    """
    batch = EventBatch(
        time.time() if ts is None else validation.real(ts, "ts"),
        _blocks(events, medium, int_hashes),
        data_parallel_rank,
    )
    return pack_batch(batch, form=form)


def decode(
    payload: bytes,
    *,
    media: Sequence[str] = ("GPU",),
    group: int = 0,
    page_size: int | None = None,
) -> list[KVEvent]:
    """Return the events in a payload, as `PrefixRouter.observe` takes them.

    Parameters
    ----------
    payload : bytes
        The third frame of a message, from vLLM or `encode`.
    media : sequence of str
        Events of other media are left out; one that names none is of "GPU".
    group : int
        Of a model with several groups of caches, the one whose events count.
    page_size : int, optional
        Leave out blocks of other sizes, such as the parts of blocks of hybrid models.

    Raises
    ------
    EventFormatError
        The payload is no batch of events, or holds one of an unknown kind.
    """
    return kv_events(read_batch(payload), media, group, page_size)[0]


def lora_salt(name: str, salt: Salt = 0) -> str:
    """Return the salt under which pages of a LoRA adapter are known, for `PrefixRouter.route`.

    >>> lora_salt("french"), lora_salt("french", "tenant 1")
    ('llmds_nb:lora:6:french', 'llmds_nb:lora:6:french:tenant 1')
    """
    inner = _cache_salt(salt)
    return f"{_OURS}lora:{len(name)}:{name}" + ("" if inner is None else f":{inner}")


# ---- writing -----------------------------------------------------------------------------------


def pack_batch(batch: EventBatch, *, form: str = "map") -> bytes:
    """Return a batch of `BlockStored`, `BlockRemoved` and `AllBlocksCleared` as a payload."""
    validation.choice(form, "form", ("map", "array"))
    rows: list[Any] = []
    for event in batch.events:
        cls = type(event)
        if cls not in _N_SENT:
            raise TypeError(f"a batch holds no {validation.shown(event)}")
        if form == "map":
            fields = zip(event._fields, event, strict=True)
            row: Any = {"type": cls.__name__}
            row |= {n: v for i, (n, v) in enumerate(fields) if v is not None or i < _N_SENT[cls]}
        else:
            row = [cls.__name__, *event]
            while len(row) > 1 + _N_SENT[cls] and row[-1] is None:
                row.pop()
        rows.append(row)
    whole: list[Any] = [float(batch.ts), rows]
    if batch.data_parallel_rank is not None:
        whole.append(batch.data_parallel_rank)
    return msgpack.packb(whole)


def _blocks(events, medium, int_hashes) -> list[Any]:
    """KVEvents as events of vLLM; consecutive pages of one chain as one."""
    found: list[Any] = []
    last = None  # the hash of the page before, where another one may follow
    for event in events:
        if not isinstance(event, KVEvent):
            raise TypeError(f"events must be KVEvent, not {validation.shown(event)}")
        if event.kind == "removed":
            found.append(BlockRemoved([_sent(event.hash, int_hashes)], medium))
        elif event.kind != "stored":
            found.append(AllBlocksCleared())
        else:
            tokens = np.asarray(event.tokens)
            keys: list[Any] = [
                [_cache_salt(k) or "0", start, stop] for start, stop, k in event.extra
            ]
            salt = None if event.salt is None else _cache_salt(event.salt)
            if event.parent is None and salt is not None:
                keys.append(salt)
            stored: Any = found[-1] if last is not None else None
            if event.parent is None or event.parent != last or stored.block_size != tokens.size:
                parent = None if event.parent is None else _sent(event.parent, int_hashes)
                stored = BlockStored([], parent, [], tokens.size, medium=medium, extra_keys=[])
                found.append(stored)
            stored.block_hashes.append(_sent(event.hash, int_hashes))
            stored.token_ids.extend(tokens.tolist())
            stored.extra_keys.append(keys or None)
        last = event.hash if event.kind == "stored" else None
    return [
        event._replace(extra_keys=None)
        if isinstance(event, BlockStored) and not any(event.extra_keys or ())
        else event
        for event in found
    ]


def _sent(hash_: Any, int_hashes) -> Hash:
    if not isinstance(hash_, bytes) or not hash_:
        raise TypeError(f"the hash of an event must be bytes, not {validation.shown(hash_)}")
    return int.from_bytes(hash_[-8:], "big") if int_hashes else hash_


def _cache_salt(salt: Salt) -> str | None:
    """A salt as a text, None for 0; no two salts have the same."""
    if isinstance(salt, str):
        is_plain = salt and not salt.startswith(_OURS) and salt.isprintable()
        return salt if is_plain else f"{_OURS}s:{salt.encode('utf-8', 'surrogatepass').hex()}"
    if isinstance(salt, bytes):
        return f"{_OURS}b:{salt.hex()}"
    return None if salt == 0 else f"{_OURS}i:{salt}"


# ---- reading -----------------------------------------------------------------------------------


def read_batch(payload: bytes) -> EventBatch:
    """Return a payload as what it says; EventFormatError where it is no batch of events."""
    try:
        whole = msgpack.unpackb(payload, strict_map_key=False)
    except Exception as error:  # of many kinds, by what is wrong
        text = f"the payload of {len(payload)} bytes is not msgpack: {error!r:.100}"
        raise EventFormatError(text) from None
    if not isinstance(whole, list) or len(whole) < 2:
        raise EventFormatError(f"a batch must be [ts, events, ...], not {validation.shown(whole)}")
    ts, events, *rest = whole
    if isinstance(ts, bool) or not isinstance(ts, int | float):
        raise EventFormatError(f"ts must be a number, not {validation.shown(ts)}")
    if not isinstance(events, list):
        raise EventFormatError(f"events must be an array, not {validation.shown(events)}")
    rank = rest[0] if rest else None
    _check(rank is None or type(rank) is int, "data_parallel_rank", rank)
    return EventBatch(float(ts), [_event(event) for event in events], rank)


def _event(row: Any) -> Any:
    if isinstance(row, dict):
        name, given = row.get("type"), row
    elif isinstance(row, list) and row:
        name, given = row[0], None
    else:
        raise EventFormatError(f"an event must be a map or an array, not {validation.shown(row)}")
    cls = _TYPES.get(name) if isinstance(name, str) else None
    if cls is None:
        known = ", ".join(_TYPES)
        raise EventFormatError(f"an event must be one of {known}, not {validation.shown(name)}")
    if given is None:
        given = dict(zip(cls._fields, row[1:], strict=False))
    fields = {field: given[field] for field in cls._fields if field in given}
    missing = [f for f in cls._fields if f not in fields and f not in cls._field_defaults]
    if missing:
        raise EventFormatError(f"a {name} without {', '.join(missing)}")
    _check_fields(fields)
    return cls(**fields)


def _check_fields(fields):
    for field, value in fields.items():
        if field == "block_hashes":
            _check(isinstance(value, list) and all(map(_is_hash, value)), field, value)
        elif field == "parent_block_hash":
            _check(value is None or _is_hash(value), field, value)
        elif field == "token_ids":
            is_list = isinstance(value, list) and all(type(token) is int for token in value)
            _check(is_list, field, value)
            in_range = not value or (min(value) >= 0 and max(value) <= _TOKEN_MAX)
            _check(in_range, field, value)
        elif field == "extra_keys":
            _check(value is None or isinstance(value, list), field, value)
        elif field == "block_size":
            _check(type(value) is int and 1 <= value <= _MAX_BLOCK, field, value)
        elif field in _INTS:
            _check(value is None or type(value) is int, field, value)
        else:
            _check(value is None or isinstance(value, str), field, value)


def _check(holds: bool, field: str, value: Any) -> None:
    if not holds:
        raise EventFormatError(f"{field} must not be {validation.shown(value)}")


def _is_hash(value):
    return type(value) is int or (type(value) is bytes and len(value) > 0)


def kv_events(
    batch: EventBatch, media: Sequence[str], group: int, page_size: int | None
) -> tuple[list[KVEvent], int]:
    """(events of a batch, how many of it were left out); see `decode`."""
    found: list[KVEvent] = []
    left_out = 0
    for event in batch.events:
        if isinstance(event, AllBlocksCleared):
            found.append(KVEvent("cleared"))
        elif (
            (event.medium or "GPU") not in media
            or event.group_idx not in (None, group)
            or event.locality == "REMOTE"
            or event.ownership is not None
        ):
            left_out += 1
        elif isinstance(event, BlockRemoved):
            found += [KVEvent("removed", _received(h)) for h in event.block_hashes]
        elif (
            len(event.token_ids) != event.block_size * len(event.block_hashes)
            or page_size not in (None, event.block_size)
        ):  # fmt: skip
            left_out += 1
        else:
            found += _pages(event)
    return found, left_out


def _pages(event):
    """The blocks of a BlockStored as KVEvents."""
    size, n = event.block_size, len(event.block_hashes)
    tokens = np.array(event.token_ids, np.int32).reshape(n, size)
    parent = None if event.parent_block_hash is None else _received(event.parent_block_hash)
    lora = event.lora_name
    if lora is None and event.lora_id is not None:
        lora = str(event.lora_id)
    given = event.extra_keys or []
    for i, hash_ in enumerate(map(_received, event.block_hashes)):
        keys = given[i] if i < len(given) else None
        salt, extra = _salt_and_extra(keys, lora, parent is None, size)
        yield KVEvent("stored", hash_, parent, tokens[i], salt=salt, extra=extra)
        parent = hash_


def _salt_and_extra(keys, lora, is_first, size):
    """What the extra keys of one block say; they are ignored where tokens alone tell them."""
    keys = list(keys) if isinstance(keys, list) else [] if keys is None else [keys]
    if lora is not None and keys and keys[0] == lora:
        keys.pop(0)
    salt: Any = 0
    if is_first:
        texts = [key for key in keys if isinstance(key, str)]
        if len(texts) == 1:  # among several one cannot tell which is the salt
            keys.remove(texts[0])
            salt = _salt(texts[0])
    if lora is not None:
        salt = lora_salt(lora, salt)
    extra = tuple(sorted((_range(key, size) for key in keys), key=repr))
    return (salt if is_first else None), extra


def _range(key, size):
    """An extra key as (start, stop, key)."""
    is_list = isinstance(key, list) and len(key) in (2, 3) and isinstance(key[0], str)
    if is_list and all(type(n) is int for n in key[1:]):
        if len(key) == 3:
            return key[1], key[2], _salt(key[0]) if key[0] != "0" else 0
        return min(max(key[1], 0), size - 1), size, key[0]
    return 0, size, key if isinstance(key, str | bytes) else repr(key)


def _salt(text: str) -> Salt:
    """The inverse of `_cache_salt`."""
    kind, _, rest = text.removeprefix(_OURS).partition(":")
    if text.startswith(_OURS) and kind in ("s", "b", "i"):
        try:
            if kind == "i":
                return int(rest)
            data = bytes.fromhex(rest)
            return data if kind == "b" else data.decode("utf-8", "surrogatepass")
        except ValueError:
            pass  # somebody's own salt
    return text


def _received(hash_: Hash) -> bytes:
    """A hash as bytes; 64-bit ints as eight of them."""
    return hash_ if isinstance(hash_, bytes) else (hash_ % 2**64).to_bytes(8, "big")
