"""TokenLRU: a cache whose budget is counted in tokens, not in entries."""

import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple, TypeAlias

from .._core import validation
from .._core.forking import new_lock

# The recency list is the one inside OrderedDict: an intrusive doubly linked list in C. Measured
# against links in flat arrays (Python 3.11, numba 0.68, 1,000 entries), a look-up takes 0.2-0.4 us
# here, 0.7-0.9 us where a kernel relinks, and 0.27-0.44 us with links in Python lists: calling a
# kernel costs more than the six assignments it would save. A batch in one kernel call is no way
# either, because keys and values are Python objects.

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
    evictions: int  # entries dropped to hold a budget


class TokenLRU:
    """Least-recently-used cache of entries of different sizes under one budget of tokens.

    Every operation is O(1), plus O(1) per entry evicted. Thread-safe: one lock per object.
    TypeError or ValueError for an argument of the wrong kind, or out of range.

    Parameters
    ----------
    token_budget : int
        The sum of the sizes never exceeds this.
    token_of : callable, optional
        `token_of(value) -> int`: the size of a value put without `tokens`.
    on_evict : callable, optional
        `on_evict(key, value)`, called for each entry dropped to hold the budget (not for one that
        the caller replaces, pops or clears), oldest first, when the change is complete and the lock
        is free: it may use the cache. If it raises, the cache stays valid, the other callbacks
        still run, and the first exception goes to the caller.

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
        self, token_budget: int, token_of: TokenOf | None = None, *, on_evict: OnEvict | None = None
    ):
        self._budget = validation.integer(token_budget, "token_budget", low=1)
        for name, function in (("token_of", token_of), ("on_evict", on_evict)):
            if function is not None and not callable(function):
                raise TypeError(f"{name} must be callable, not {function!r}")
        self._token_of = token_of
        self._on_evict = on_evict
        self._entries: OrderedDict = OrderedDict()  # key -> (value, tokens), oldest first
        self._tokens = 0
        self._hits = self._misses = self._evictions = 0
        # Reentrant: dropping a value can run a destructor that uses the cache.
        self._lock = new_lock()

    @property
    def token_budget(self) -> int:
        """The largest sum of sizes."""
        return self._budget

    @property
    def total_tokens(self) -> int:
        """The sum of the sizes now."""
        return self._tokens

    @property
    def nbytes(self) -> int:
        """Memory of the bookkeeping; keys and values are not counted."""
        return sys.getsizeof(self._entries)

    def put(self, key: Hashable, value: Any, tokens: int | None = None) -> bool:
        """Store `value` as the most recently used, evicting the oldest entries to hold the budget.

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
        with self._lock:
            entries = self._entries
            if key in entries:
                self._tokens -= entries.pop(key)[1]
            if tokens > self._budget:
                return False
            left = self._budget - tokens
            evicted = self._shrink(left) if self._tokens > left else None
            entries[key] = (value, tokens)
            self._tokens += tokens
        if evicted and self._on_evict:
            self._notify(self._on_evict, evicted)
        return True

    def get(self, key: Hashable, default: Any = None) -> Any:
        """Value of `key`, which becomes the most recently used; `default` if it is absent."""
        # No lock: each step is atomic, and no count of tokens changes.
        entry = self._entries.get(key)
        if entry is None:
            self._misses += 1
            return default
        try:
            self._entries.move_to_end(key)
        except KeyError:  # another thread took it out just now
            return entry[0]
        self._hits += 1
        return entry[0]

    def peek(self, key: Hashable, default: Any = None) -> Any:
        """Value of `key` without touching its recency or the counters."""
        entry = self._entries.get(key)
        return default if entry is None else entry[0]

    def pop(self, key: Hashable, default: Any = _MISSING) -> Any:
        """Take `key` out and return its value; KeyError if it is absent and there is no default."""
        with self._lock:
            entry = self._entries.pop(key, None)
            if entry is not None:
                self._tokens -= entry[1]
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
            evicted = self._shrink(budget)
        if self._on_evict:
            self._notify(self._on_evict, evicted)
        return evicted

    def clear(self) -> None:
        """Drop every entry, without callbacks."""
        with self._lock:
            dropped, self._entries = self._entries, OrderedDict()
            self._tokens = 0
        dropped.clear()

    def _shrink(self, budget) -> list:
        evicted, held, pop = [], self._tokens, self._entries.popitem
        while held > budget:
            key, (value, tokens) = pop(False)
            held -= tokens
            evicted.append((key, value))
        self._tokens = held
        self._evictions += len(evicted)
        return evicted

    def _notify(self, on_evict, evicted) -> None:
        first = None
        for key, value in evicted:
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
            return LRUStats(*sizes, self._hits, self._misses, self._evictions)

    def check(self) -> None:
        """Assert the invariants. O(n)."""
        with self._lock:
            sizes = [tokens for _, tokens in self._entries.values()]
            assert all(tokens >= 0 for tokens in sizes)
            assert self._tokens == sum(sizes) <= self._budget

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Hashable]:
        """Iterate over a copy of the keys, least recently used first."""
        with self._lock:
            return iter(list(self._entries))

    def __repr__(self) -> str:
        return f"TokenLRU({len(self)} entries, {self._tokens} of {self._budget} tokens)"

    @staticmethod
    def _warmup() -> None:
        """Nothing to compile: see the note at the top of this file."""
