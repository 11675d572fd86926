"""TokenLRU: a cache whose budget is counted in tokens, not in entries."""

import json
import operator
import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

from .._core import validation
from .._core.forking import new_lock
from .._core.publishing import call_at_once
from .._core.storage import Stored, checking_parts
from .._core.validation import shown
from ..errors import CorruptFileError
from .plain_values import pack, unpack

# The recency list is the one inside OrderedDict: an intrusive doubly linked list in C. Measured
# against links in flat arrays (Python 3.11, numba 0.68, 1,000 entries), a look-up takes 0.2-0.4 us
# here, 0.7-0.9 us where a kernel relinks, and 0.27-0.44 us with links in Python lists: calling a
# kernel costs more than the six assignments it would save. A batch in one kernel call is no way
# either, because keys and values are Python objects.

# A change is one statement without a call, since the exception of a signal may be raised after any
# call: so two methods of the entries are called by an assignment.


class _Entries(OrderedDict):
    """Key -> (value, tokens), oldest first."""

    __slots__ = ()
    removed = property(None, operator.delitem)  # `entries.removed = key` removes it
    newest = property(None, OrderedDict.move_to_end)  # `entries.newest = key` makes it the newest


TokenOf: TypeAlias = Callable[[Any], int]
OnEvict: TypeAlias = Callable[[Any, Any], None]
_MISSING = object()


class LRUStats(NamedTuple):
    """Sizes and counters of a TokenLRU."""

    entries: int  # held now
    tokens: int  # the sum of their sizes
    token_budget: int
    hits: int  # look-ups by `get` since the start
    misses: int
    evictions: int  # entries dropped to hold a limit
    max_entries: int


class TokenLRU(Stored):
    """Least-recently-used cache of entries of different sizes under one budget of tokens.

    Every operation is O(1), plus O(1) per entry evicted. Thread-safe: one lock per object. An
    exception of a signal handler, such as KeyboardInterrupt, leaves the state before or after a
    call. TypeError or ValueError for an argument of the wrong kind, or out of range.

    Parameters
    ----------
    token_budget : int
        The sum of the sizes never exceeds this.
    token_of : callable, optional
        `token_of(value) -> int`: the size of a value put without `tokens`.
    on_evict : callable, optional
        `on_evict(key, value)`, called for each entry dropped to hold a limit (not for one that the
        caller replaces, pops or clears), oldest first, when the change is complete and the lock is
        free: it may use the cache. If it raises, the cache stays valid, the other callbacks still
        run, and the first exception goes to the caller.
    max_entries : int, optional
        The number of entries never exceeds this either. Default: `token_budget`, which only bounds
        the entries of 0 tokens.

    Notes
    -----
    Copies share the keys and values, and `token_of` and `on_evict`; pickles hold all of them. Files
    and bytes hold keys and values of None, bool, int, float, str, bytes, tuples, lists and dicts of
    these, NumPy arrays and numbers; `load` takes `token_of` and `on_evict`. Keys are hashed by
    Python, without a secret for numbers: strangers' ones are better str or bytes.

    >>> cache = TokenLRU(100, token_of=len)
    >>> cache.put("a", "x" * 60), cache.put("b", "x" * 30)
    (True, True)
    >>> _ = cache.get("a")
    >>> cache.put("c", "x" * 40), "a" in cache, "b" in cache
    (True, True, False)
    >>> cache.put("d", "x" * 101), cache.total_tokens
    (False, 100)
    """

    def __init__(
        self,
        token_budget: int,
        token_of: TokenOf | None = None,
        *,
        on_evict: OnEvict | None = None,
        max_entries: int | None = None,
    ):
        self._budget = validation.integer(token_budget, "token_budget", low=1)
        most = token_budget if max_entries is None else max_entries
        self._max_entries = validation.integer(most, "max_entries", low=1)
        for name, function in (("token_of", token_of), ("on_evict", on_evict)):
            if function is not None and not callable(function):
                raise TypeError(f"{name} must be callable, not {shown(function)}")
        self._token_of = token_of
        self._on_evict = on_evict
        self._entries = _Entries()
        self._tokens = 0
        self._hits = self._misses = self._evictions = 0
        # Reentrant: dropping a value can run a destructor that uses the cache.
        self._lock = new_lock()

    @property
    def token_budget(self) -> int:
        """The largest sum of sizes."""
        return self._budget

    @property
    def max_entries(self) -> int:
        """The largest number of entries."""
        return self._max_entries

    @property
    def total_tokens(self) -> int:
        """The sum of the sizes now."""
        return self._tokens

    @property
    def nbytes(self) -> int:
        """Memory of the bookkeeping; keys and values are not counted."""
        return sys.getsizeof(self._entries)

    def put(self, key: Hashable, value: Any, tokens: int | None = None) -> bool:
        """Store `value` as the most recently used, evicting the oldest entries to hold both limits.

        Parameters
        ----------
        key : hashable
        value : object
        tokens : int, optional
            Its size, >= 0; ValueError below. Default: `token_of(value)`; ValueError without one.

        Returns
        -------
        bool
            False if it is larger than the whole budget: it is not stored and nothing is evicted,
            but an old value of `key` is gone, since it is no longer the value of `key`.
        """
        if tokens is None:
            if self._token_of is None:
                raise ValueError("put needs tokens, since the cache has no token_of")
            tokens = self._token_of(value)
        if type(tokens) is not int or tokens < 0:  # the full check costs half a put
            tokens = validation.integer(tokens, "tokens", low=0)
        evicted: Any = ()
        with self._lock:
            entries, held = self._entries, self._tokens + tokens
            if key in entries:
                held -= entries[key][1]
                if tokens > self._budget:
                    entries.removed, self._tokens = key, held - tokens
                    return False
                if held > self._budget:
                    evicted = self._put_evicting(key, value, tokens, held, 0)
                else:
                    entries.newest, entries[key], self._tokens = key, (value, tokens), held
            elif held <= self._budget and len(entries) < self._max_entries:
                entries[key], self._tokens = (value, tokens), held
            elif tokens > self._budget:
                return False
            else:
                for out in entries:  # usually the oldest alone makes room
                    entry = entries[out]
                    break
                left = held - entry[1]
                if left <= self._budget:
                    evicted, count = ((out, entry),), self._evictions + 1
                    entries.removed, entries[key], self._tokens, self._evictions = (
                        out, (value, tokens), left, count
                    )  # fmt: skip
                else:
                    evicted = self._put_evicting(key, value, tokens, held, 1)
        if evicted and self._on_evict:
            self._notify(self._on_evict, evicted)
        return True

    def get(self, key: Hashable, default: Any = None) -> Any:
        """Value of `key`, which becomes the most recently used; `default` if it is absent."""
        # No lock: each step is atomic, and no count of tokens changes.
        entries = self._entries
        entry = entries.get(key)
        if entry is None:
            self._misses += 1
            return default
        try:
            entries.newest, self._hits = key, self._hits + 1
        except KeyError:  # another thread took it out just now
            return entry[0]
        return entry[0]

    def peek(self, key: Hashable, default: Any = None) -> Any:
        """Value of `key` without touching its recency or the counters."""
        entry = self._entries.get(key)
        return default if entry is None else entry[0]

    def pop(self, key: Hashable, default: Any = _MISSING) -> Any:
        """Take `key` out and return its value; KeyError if it is absent and there is no default."""
        with self._lock:
            entries = self._entries
            entry = entries.get(key)
            if entry is not None:
                entries.removed, self._tokens = key, self._tokens - entry[1]
                return entry[0]
        if default is _MISSING:
            raise KeyError(key)
        return default

    def evict_until(self, budget: int) -> list[tuple[Any, Any]]:
        """Evict the oldest entries until at most `budget` tokens are held.

        Returns the (key, value) of those that were evicted, oldest first.
        """
        budget = validation.integer(budget, "budget", low=0)
        with self._lock:
            evicted = self._oldest(self._tokens - budget, 0)
            if evicted:
                self._evict(evicted, self._tokens)
        if self._on_evict:
            self._notify(self._on_evict, evicted)
        return [(key, value) for key, (value, _) in evicted]

    def clear(self) -> None:
        """Drop every entry, without callbacks."""
        with self._lock:
            dropped, nothing = self._entries, _Entries()  # dropped outside of the lock
            self._entries, self._tokens = nothing, 0
        dropped.clear()

    def _put_evicting(self, key, value, tokens, held, n) -> list:
        """`put` with n more entries, of `held` tokens before any is evicted; return the evicted."""
        n += len(self._entries) - self._max_entries
        evicted = self._oldest(held - self._budget, n, key)
        new = (operator.setitem, self._entries, key, (value, tokens))
        self._evict(evicted, held, new, (self._entries.move_to_end, key))
        return evicted

    def _oldest(self, tokens, n, but=_MISSING) -> list:
        """The oldest entries (key, entry), at least n and of so many tokens; `but` is spared."""
        entries, count = self._entries, 8
        while True:
            try:
                some = list(islice(entries.items(), count))
            except RuntimeError:  # `get` in another thread moved an entry
                continue
            found: list[tuple] = []
            freed = 0
            for key, entry in some:
                if freed >= tokens and len(found) >= n:
                    break
                if key is not but and key != but:
                    found.append((key, entry))
                    freed += entry[1]
            if len(some) < count or (freed >= tokens and len(found) >= n):
                return found
            count *= 8

    def _evict(self, evicted, held, *changes) -> None:
        """Remove entries that are counted in `held`, and call `changes`, (function, *arguments)."""
        steps: list[tuple] = [(operator.delitem, self._entries, key) for key, _ in evicted]
        steps += changes
        held -= sum(tokens for _, (_, tokens) in evicted)
        steps.append((setattr, self, "_tokens", held))
        steps.append((setattr, self, "_evictions", self._evictions + len(evicted)))
        call_at_once(steps)

    def _notify(self, on_evict, evicted) -> None:
        first = None
        for key, (value, _) in evicted:
            try:
                on_evict(key, value)
            except Exception as error:
                first = first or error
        if first is not None:
            raise first

    def stats(self) -> LRUStats:
        """Sizes now and counters since the start."""
        with self._lock:
            sizes = len(self._entries), self._tokens, self._budget
            counts = self._hits, self._misses, self._evictions
            return LRUStats(*sizes, *counts, self._max_entries)

    def check(self) -> None:
        """Assert the invariants. O(n)."""
        with self._lock:
            # At once, and as a plain dict: `get` takes no lock and changes the order.
            entries = list(dict.values(self._entries))
            sizes = [tokens for _, tokens in entries]
            assert all(tokens >= 0 for tokens in sizes)
            assert self._tokens == sum(sizes) <= self._budget
            assert len(sizes) <= self._max_entries

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Hashable]:
        """Iterate over a copy of the keys, least recently used first."""
        with self._lock:
            return iter(list(self._entries))

    def _state(self):
        header, parts = self._header_and_parts()
        return pack(parts["entries"]), header

    def _header_and_parts(self) -> tuple[dict, dict]:
        """The state at one instant: `entries` are (key, value, tokens), oldest first."""
        with self._lock:
            counts = [self._hits, self._misses, self._evictions]
            entries = [(key, *entry) for key, entry in self._entries.items()]
        header = {"token_budget": self._budget, "max_entries": self._max_entries, "counts": counts}
        return header, {
            "token_of": self._token_of, "on_evict": self._on_evict, "entries": entries
        }  # fmt: skip

    def _copied(self):
        # Copies and pickles have the keys and values themselves, which may be of any kind.
        header, parts = self._header_and_parts()
        return {}, json.dumps(self._versioned(header)), parts

    @classmethod
    def _from_state(cls, arrays, header, token_of=None, on_evict=None, entries=None):
        limits = header["token_budget"], header["max_entries"]
        for name, limit in zip(("token_budget", "max_entries"), limits, strict=True):
            validation.integer(limit, name, low=1)
        with checking_parts():
            cache = cls(limits[0], token_of, on_evict=on_evict, max_entries=limits[1])
        entries = unpack(arrays) if entries is None else entries
        for key, value, tokens in entries:
            cache._entries[key] = value, validation.integer(tokens, "tokens", low=0)
            cache._tokens += tokens
        counts = [validation.integer(n, "counts", low=0) for n in header["counts"]]
        cache._hits, cache._misses, cache._evictions = counts
        try:
            cache.check()
            assert len(cache) == len(entries)
        except AssertionError:
            raise CorruptFileError("the entries exceed a limit, or a key stands twice") from None
        return cache

    def __repr__(self) -> str:
        return f"TokenLRU({len(self)} entries, {self._tokens} of {self._budget} tokens)"

    @staticmethod
    def _warmup() -> None:
        """Nothing to compile: see the note at the top of this file."""
