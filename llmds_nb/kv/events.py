"""KVEvent: what a router or another mirror of a KVCache needs to know (kernels/events.py)."""

from typing import Any, Literal, NamedTuple

from .._core.typing import Int32s
from .extra import ExtraKeys, Ranges
from .kernels import events as k
from .salts import Salt

_KINDS: tuple[Literal["stored", "removed", "cleared"], ...] = ("stored", "removed", "cleared")


class KVEvent(NamedTuple):
    """A page became cached or stopped being so, all did, or events were lost.

    `kind` is "stored", "removed" (evicted), "cleared" (`reset`: no page is found any more), or
    "lost": the log was full, so that a mirror has to forget what it knows. A `hash` names a page
    with all that precedes it, within one cache and, if they have the same `key`, among caches.
    """

    kind: Literal["stored", "removed", "cleared", "lost"]
    hash: bytes | None = None  # 16 bytes; of "stored" and "removed"
    parent: bytes | None = None  # of "stored": hash of the page before, None for a first page
    tokens: Int32s | None = None  # of "stored": int32[page_size]
    page: int | None = None  # its number at that time; of "stored" and "removed"
    salt: Salt | None = None  # of "stored" and "removed"
    extra: Ranges = ()  # of "stored": (start, stop, key) as far as they touch the page
    lost: int = 0  # of "lost": how many events are missing here


def decode(log: Any, salts: dict[int, Salt], extras: ExtraKeys) -> list[KVEvent]:
    """The events in a log; `salts` by domain."""
    found = []
    for row in log[1 : 1 + log[0, k.N_EVENTS]]:
        kind, page, domain, has_parent = row[: k.EVENT_HASH].tolist()
        if kind == k.CLEARED:
            found.append(KVEvent("cleared"))
            continue
        hash_ = row[k.EVENT_HASH : k.EVENT_PARENT].tobytes()
        event = KVEvent(_KINDS[kind], hash_, page=page, salt=salts[domain])
        if kind == k.STORED:
            parent, tokens = row[k.EVENT_PARENT : k.EVENT_TOKENS], row[k.EVENT_TOKENS :].copy()
            extra = extras.parts_of(int(tokens[0]))
            extras.take_out(tokens, len(tokens))
            parent = parent.tobytes() if has_parent else None
            event = event._replace(parent=parent, tokens=tokens, extra=extra)
        found.append(event)
    lost = int(log[0, k.N_LOST])
    return [*found, KVEvent("lost", lost=lost)] if lost else found
