"""What a PrefixRouter knows of the pages that its replicas hold (kernels/held_pages.py)."""

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from .._core import validation
from .._core.state import Handle
from .._core.typing import Int32s, Int64s
from ..errors import CorruptFileError
from ..kv.events import KVEvent
from ..kv.salts import Salt, check_salt
from ..primitives.hash_table import empty_table, table_pairs
from ..primitives.status import ABSENT, OK
from .kernels import held_pages as k, router as r

MAX_PAGE = 2**16  # tokens of one page
_FIRST_PAGES = 8
_KINDS = {"stored": k.STORED, "removed": k.REMOVED, "cleared": k.CLEARED, "lost": k.CLEARED}


class Prepared(NamedTuple):
    """Events as kernels take them."""

    events: Int64s  # int64[n, N_COLUMNS]
    tokens: Int32s  # of all pages stored
    roots: Int64s  # int64[., 6]
    n_stored: int
    size: int  # of the pages stored before any "cleared"; 0 without such
    last_size: int | None  # of the pages stored behind the last "cleared"; None without one


def prepare(events: Any, root_of: Callable[[Salt], Int64s]) -> Prepared:
    """Check the events of one replica; TypeError or ValueError names what is wrong."""
    if isinstance(events, KVEvent | str | bytes) or not isinstance(events, Iterable):
        raise TypeError(f"events must be a list of KVEvent, not {validation.shown(events)}")
    rows: list[tuple[int, ...]] = []
    keys: list[bytes] = []
    tokens: list[Int32s] = []
    roots: dict[Salt, int] = {}
    n_tokens = size = n_stored = 0
    first_size = None
    for event in events:
        if not isinstance(event, KVEvent):
            raise TypeError(f"events must be KVEvent, not {validation.shown(event)}")
        kind = _KINDS.get(event.kind) if isinstance(event.kind, str) else None
        if kind is None:
            raise ValueError(f"the kind of an event must be one of {', '.join(_KINDS)}, "
                             f"not {validation.shown(event.kind)}")  # fmt: skip
        if kind == k.CLEARED:
            first_size, size = size if first_size is None else first_size, 0
            rows.append((kind, ABSENT, 0, 0))
            keys += [bytes(16), bytes(16)]
            continue
        keys.append(_hash(event.hash, "hash"))
        if kind == k.REMOVED:
            rows.append((kind, ABSENT, 0, 0))
            keys.append(bytes(16))
            continue
        page = validation.token_ids(event.tokens)
        if not 1 <= page.size <= MAX_PAGE:
            raise ValueError(f"a page must have 1 to {MAX_PAGE} tokens, not {page.size}")
        if size not in (0, page.size):
            raise ValueError(f"a page of {page.size} tokens, where those before have {size}")
        size, root = page.size, ABSENT
        if event.parent is None:
            salt = check_salt(0 if event.salt is None else event.salt)
            root = roots.setdefault(salt, len(roots))  # keys 0 and b"0" differ
            keys.append(bytes(16))
        else:
            keys.append(_hash(event.parent, "parent"))
        kind = k.PASSED if event.extra else kind
        rows.append((kind, root, n_tokens, n_tokens + page.size))
        tokens.append(page)
        n_tokens += page.size
        n_stored += 1
    table = np.zeros((len(rows), k.N_COLUMNS), np.int64)
    if rows:
        table[:, [k.EVENT_KIND, k.EVENT_ROOT, k.EVENT_START, k.EVENT_STOP]] = rows
        both = np.frombuffer(b"".join(keys), "<i8").reshape(-1, 4)
        table[:, k.EVENT_HASH : k.EVENT_ROOT] = both
    return Prepared(
        table,
        np.concatenate(tokens) if tokens else np.zeros(0, np.int32),
        np.array([root_of(salt) for salt in roots] or [root_of(0)]),
        n_stored,
        size if first_size is None else first_size,
        None if first_size is None else size,
    )


def _hash(value: Any, name: str) -> bytes:
    """16 bytes for the hash of a page, equal for equal ones."""
    if not isinstance(value, bytes) or not value:
        raise TypeError(f"the {name} of an event must be bytes, not {validation.shown(value)}")
    if len(value) == 16:
        return value
    return hashlib.blake2b(value, digest_size=16, person=b"llmds_nb held").digest()


class Room(NamedTuple):
    """What `HeldPages.room` found."""

    state: Any  # to publish before the events are taken
    place: int


class HeldPages:
    """The arrays of kernels/held_pages.py; under the lock of the router that has it."""

    def __init__(self, n_replicas: int, max_pages: int) -> None:
        self.max_pages = max_pages
        self.handle = Handle(_empty(0, n_replicas, 64))

    @property
    def n_observed(self) -> int:
        """How many replicas have sent events."""
        return int((self.handle.state.observed[:, k.ID] != ABSENT).sum())

    def by_replica(self) -> dict[int, int]:
        """How many pages of each replica that has sent events are known, by its number."""
        state = self.handle.state
        n_pages = state.count[k.PAGES]
        n = np.bincount(state.page[:n_pages, k.OWNER], minlength=len(state.observed))
        ids = state.observed[:, k.ID]
        return {int(ids[p]): int(n[p]) for p in np.argsort(ids, kind="stable") if ids[p] >= 0}

    def place_of(self, id_: int) -> int:
        """The place of a replica, or ABSENT."""
        found = np.flatnonzero(self.handle.state.observed[:, k.ID] == id_)
        return int(found[0]) if found.size else ABSENT

    def room(self, id_: int, given: Prepared, own: int) -> Room:
        """A place for a replica, and arrays large enough; ValueError for pages that do not go."""
        state = self.handle.state
        place = self.place_of(id_)
        size = int(state.observed[place, k.SIZE]) if place != ABSENT else 0
        if size and given.size not in (0, size):
            raise ValueError(
                f"a page of {given.size} tokens, where replica {id_} has pages of {size}"
            )
        last = given.last_size
        if last is None:
            last = given.size or size
        others = np.delete(state.observed[:, k.SIZE], place if place != ABSENT else [])
        sizes = {*others.tolist(), last} - {0, own}
        if len(sizes) > k.MAX_SIZES:
            raise ValueError(f"pages of {last} tokens are the ninth size beside the router's")
        places = len(state.observed)
        if place == ABSENT:
            free = np.flatnonzero(state.observed[:, k.ID] == ABSENT)
            place = int(free[0]) if free.size else places
            places = places if free.size else 2 * places
        needed = min(int(state.count[k.PAGES]) + given.n_stored, self.max_pages)
        capacity = len(state.page)
        if needed > capacity:
            capacity = min(max(_FIRST_PAGES, 1 << (needed - 1).bit_length()), self.max_pages)
        if capacity == len(state.page) and places == len(state.observed):
            return Room(state, place)
        return Room(_grown(state, capacity, places), place)

    def without(self, id_: int, router_state: Any, rows: np.ndarray) -> Any:
        """The state without a replica, where `rows`, bool[N], says which rows remain."""
        state = self.handle.state
        state = state._replace(**{name: getattr(state, name).copy() for name in state._fields})
        place = self.place_of(id_)
        if place != ABSENT:
            handle, own = Handle(state), Handle(router_state)
            k.pages_forget(own.address, handle.address, place)
        return _with_rows(state, state.place_of[rows])

    def with_replica(self) -> Any:
        """The state with one replica more, which has sent no events."""
        state = self.handle.state
        return _with_rows(state, np.append(state.place_of, ABSENT))

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(part.nbytes for part in self.handle.state)

    # ---- files, checks ---------------------------------------------------------------------------

    def saved(self) -> dict[str, np.ndarray]:
        """The arrays of a file."""
        state = self.handle.state
        n = state.count[k.PAGES]
        pages = np.zeros((n, 5), np.int64)
        pages[:, :4] = state.page[:n]
        used = dict(state.prefix[: state.count[k.PREFIXES], [k.NAME, k.USED]].tolist())
        pages[:, 4] = [used[name] for name in _names(pages).tolist()]
        return {"pages": pages, "observed": state.observed.copy(), "held": state.count.copy()}

    @classmethod
    def from_saved(cls, arrays: Any, router_state: Any, max_pages: int) -> "HeldPages":
        """The inverse of `saved`; CorruptFileError for what it cannot have given."""
        ids = router_state.replica[:, r.ID]
        pages, observed, count = (np.array(arrays[n]) for n in ("pages", "observed", "held"))
        for name, array, shape in (
            ("pages", pages, (len(pages), 5)),
            ("observed", observed, (len(observed), 3)),
            ("held", count, (k.N_COUNTS,)),
        ):
            if array.dtype != np.int64 or array.shape != shape:
                raise CorruptFileError(f"array {name!r} is {array.dtype}{list(array.shape)}")
        there = observed[:, k.ID] != ABSENT
        owners, sizes = pages[:, k.OWNER], observed[:, k.SIZE]
        sound = (
            len(observed) in {64 << i for i in range(7)}
            and not (observed[~there] != (ABSENT, 0, 0)).any()
            and np.isin(observed[there, k.ID], ids).all()
            and np.unique(observed[there, k.ID]).size == there.sum()
            and ((sizes >= 0) & (sizes <= MAX_PAGE)).all()
            and len({*sizes.tolist()} - {0, router_state.page_size}) <= k.MAX_SIZES
            and (observed[:, k.SINCE] >= 0).all()
            and (observed[:, k.SINCE] <= router_state.meta[r.ROUTES]).all()
            and ((owners >= 0) & (owners < len(observed))).all()
            and (sizes[owners] > 0).all()
            and (pages[:, k.KEY] >= 0).all()
            and ((pages[:, 4] == 0) | (pages[:, 4] == 1)).all()
            and (count >= 0).all()
            and (count < 2**62).all()
            and count[k.PAGES] == len(pages) <= max_pages
            and count[k.PREFIXES] == np.unique(_names(pages)).size
        )
        if not sound:
            raise CorruptFileError("the pages of replicas are inconsistent")
        made = cls(len(ids), max_pages)
        capacity = 0
        if len(pages):
            capacity = min(max(_FIRST_PAGES, 1 << (len(pages) - 1).bit_length()), max_pages)
        state = _empty(capacity, len(ids), len(observed))
        state.observed[:] = observed
        places = np.flatnonzero(there)
        rows = np.searchsorted(ids, observed[places, k.ID])
        state.place_of[rows], state.row_of[places] = places, rows
        distinct = list(dict.fromkeys(sizes[(sizes != 0) & (sizes != router_state.page_size)]))
        state.sizes[: len(distinct)] = distinct
        made.handle = Handle(state)
        if k.pages_enter(made.handle.address, np.ascontiguousarray(pages)) != OK:
            raise CorruptFileError("array 'pages' has a page twice")
        state.count[:] = count
        return made

    def check(self, router_state: Any) -> None:
        """Assert every invariant written in kernels/held_pages.py. O(P * W + B)."""
        state = self.handle.state
        n, m = state.count[[k.PAGES, k.PREFIXES]].tolist()
        page, prefix, observed = state.page[:n], state.prefix[:m], state.observed
        assert m <= n <= len(state.page) == len(state.prefix) <= self.max_pages
        assert (state.count >= 0).all()
        for table, names in ((state.by_key, page[:, k.KEY]), (state.by_name, prefix[:, k.NAME])):
            pairs = table_pairs(table)
            assert len(table) >= 2 * len(names) and len(pairs) == len(names)
            assert (names[pairs[:, 1]] == pairs[:, 0].astype(names.dtype)).all()
            assert np.unique(names).size == len(names)
        owners = page[:, k.OWNER]
        bits = {
            (64 * w + bit, int(row[k.NAME]))
            for row in prefix
            for w, word in enumerate(row[k.BITS :].tolist())
            for bit in range(64)
            if word >> bit & 1
        }
        assert bits == set(zip(owners.tolist(), _names(page).tolist(), strict=True))
        assert len(bits) == n and (prefix[:, k.BITS :].any(axis=1)).all()
        assert (prefix[:, k.USED] <= 1).all()
        there = observed[:, k.ID] != ABSENT
        assert there[owners].all() and (observed[owners, k.SIZE] > 0).all()
        ids = router_state.replica[:, r.ID]
        assert len(state.place_of) == len(ids)
        assert (state.row_of != ABSENT).tolist() == there.tolist()
        assert (ids[state.row_of[there]] == observed[there, k.ID]).all()
        known = state.place_of != ABSENT
        assert known.sum() == there.sum()
        assert (observed[state.place_of[known], k.ID] == ids[known]).all()
        sizes = {*observed[:, k.SIZE].tolist()} - {0, router_state.page_size}
        assert sorted(state.sizes.tolist()) == sorted([*sizes] + [0] * (k.MAX_SIZES - len(sizes)))


def _names(pages):
    """The names of the prefixes that end with these pages."""
    return (pages[:, k.H0].astype(np.uint64) >> np.uint64(1)).astype(np.int64)


def _empty(capacity, n_replicas, places):
    observed = np.zeros((places, 3), np.int64)
    observed[:, k.ID] = ABSENT
    return k.Held(
        page=np.zeros((capacity, 4), np.int64),
        prefix=np.zeros((capacity, k.BITS + places // 64), np.uint64),
        by_key=empty_table(capacity),
        by_name=empty_table(capacity),
        observed=observed,
        place_of=np.full(n_replicas, ABSENT, np.int64),
        row_of=np.full(places, ABSENT, np.int64),
        sizes=np.zeros(k.MAX_SIZES, np.int64),
        count=np.zeros(k.N_COUNTS, np.int64),
    )


def _grown(state, capacity, places):
    """The same in larger arrays. O(P)."""
    new = _empty(capacity, len(state.place_of), places)
    n, m = state.count[[k.PAGES, k.PREFIXES]]
    new.page[:n] = state.page[:n]
    new.prefix[:m, : state.prefix.shape[1]] = state.prefix[:m]
    for name in ("observed", "place_of", "row_of", "sizes", "count"):
        old = getattr(state, name)
        getattr(new, name)[: len(old)] = old
    if capacity == len(state.page):
        return new._replace(by_key=state.by_key, by_name=state.by_name)
    k.tables_fill(new.by_key, new.by_name, new.page[:n], new.prefix[:m])
    return new


def _with_rows(state, place_of):
    """The state whose replicas have these places, by row."""
    row_of = np.full(len(state.row_of), ABSENT, np.int64)
    rows = np.flatnonzero(place_of != ABSENT)
    row_of[place_of[rows]] = rows
    return state._replace(place_of=np.ascontiguousarray(place_of), row_of=row_of)
