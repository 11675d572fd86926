"""CountMinSketch: how often each of very many items was seen, in a fixed amount of memory."""

import copy
import math
from typing import Any, NamedTuple, TypeAlias, overload

import numpy as np

from .._core import validation
from .._core.forking import new_lock
from .._core.state import Handle
from .._core.storage import Stored
from .._core.typing import ArrayLike, Bools, Int64s
from ..errors import CorruptFileError
from ..primitives.hashing import secret_word
from .item_hashing import hash_items, kind_of, pack, plain, string_to_hash, unpack
from .kernels import sketch as k

Item: TypeAlias = int | str | bytes
Items: TypeAlias = Item | ArrayLike  # one item, an array of integers, or a list of items
_MAX_WIDTH, _MAX_DEPTH = 2**30, 32
_MAX_TOP = 2**24
_ARRAYS = ("counters", "slot_hash", "slot_count")  # in files, under these names


class ErrorBound(NamedTuple):
    """An estimate exceeds the truth by more than `error` with at most this `probability`."""

    error: float
    probability: float


class TopItems(NamedTuple):
    """The heaviest items, heaviest first, and their estimated counts int64[k].

    `items` is int64[k] when all are integers, a list otherwise.
    """

    items: Int64s | list
    counts: Int64s


class SketchStats(NamedTuple):
    """Sizes and counters of a CountMinSketch."""

    width: int
    depth: int
    total: int  # sum of the counts added
    candidates: int  # items kept for `top`
    saturated: int  # cells that cannot count further


class CountMinSketch(Stored):
    """Estimated counts of ints, strings and bytes that are never below the true ones.

    Adding and estimating are O(depth) per item. A batch has the same effect as its items one after
    another. Thread-safe: one lock per object.

    Parameters
    ----------
    width : int
        Counters per row, rounded up to a power of two, at most 2**30.
    depth : int
        Rows, at most 32. Memory is `4 * width * depth` bytes.
    conservative : bool
        Raise a cell only as far as the estimate needs (Estan and Varghese, SIGCOMM 2002): several
        times more exact. The standard form (Cormode and Muthukrishnan 2005) is linear: merging is
        exact.
    top : int
        Keep candidates for the `top` most frequent items in the same pass.
    seed : int, optional
        Another seed gives other collisions, and sketches of one seed can be merged. None: a secret
        one of its own; then nobody can choose items that collide with another's.

    Notes
    -----
    An item is a Python or NumPy integer in int64's range, a str or a bytes; 7, "7" and b"7" are
    three items. Counters saturate at 2**32 - 1 and never under-count before that. Every method
    raises TypeError or ValueError for an argument of the wrong kind, or out of range.

    >>> sketch = CountMinSketch(1024, top=2)
    >>> sketch.add(["a", "b", "a", "c", "a", "b"])
    >>> sketch.estimate("a"), sketch.estimate(["b", "zzz"])
    (3, array([2, 0]))
    >>> sketch.top(2)
    TopItems(items=['a', 'b'], counts=array([3, 2]))
    """

    def __init__(
        self, width: int = 2048, depth: int = 4, *,
        conservative: bool = True, top: int = 0, seed: int | None = 0,
    ):  # fmt: skip
        width = validation.integer(width, "width", low=1, high=_MAX_WIDTH)
        depth = validation.integer(depth, "depth", low=1, high=_MAX_DEPTH)
        conservative = bool(validation.choice(conservative, "conservative", (True, False)))
        self._top = validation.integer(top, "top", low=0, high=_MAX_TOP)
        seed = secret_word() % 2**64 if seed is None else seed
        self._seed = validation.integer(seed, "seed", low=0, high=2**64 - 1)
        self._handle = Handle(_empty_state(width, depth, conservative, self._top))
        self._slot_items: list = [None] * self._handle.state.slot_count.size
        self._batch: Any = None  # being added: what took a slot is not in _slot_items yet
        self._halved = False
        self._lock = new_lock()

    @classmethod
    def from_error(cls, epsilon: float, delta: float, **settings: Any) -> "CountMinSketch":
        """Make the smallest sketch with error <= epsilon * total in all but a delta of estimates.

        Both are in (0, 1], above e / 2**30 and e**-32, which a sketch of the largest width and
        depth has; the settings are `conservative`, `top` and `seed` of the constructor.

        >>> CountMinSketch.from_error(0.01, 0.01)
        CountMinSketch(width=512, depth=5, total=0)
        """
        epsilon = validation.real(epsilon, "epsilon", low=math.e / _MAX_WIDTH, high=1)
        delta = validation.real(delta, "delta", low=math.exp(-_MAX_DEPTH), high=1)
        depth = max(1, math.ceil(-math.log(delta)))
        return cls(math.ceil(math.e / epsilon), depth, **settings)

    @property
    def width(self) -> int:
        """Counters per row."""
        return self._handle.state.counters.shape[1]

    @property
    def depth(self) -> int:
        """Rows."""
        return self._handle.state.counters.shape[0]

    @property
    def _conservative(self) -> bool:
        return bool(self._handle.state.conservative)

    @property
    def total(self) -> int:
        """The sum of all counts added (halved by `halve`)."""
        return int(self._handle.state.total[0])

    @property
    def nbytes(self) -> int:
        """Memory of the counters and candidates; the candidates' own items are not counted."""
        *arrays, _ = self._handle.state
        return sum(array.nbytes for array in arrays)

    def add(self, items: Items, counts: ArrayLike = 1) -> None:
        """Count items. O(depth) per item.

        Parameters
        ----------
        items : int, str, bytes, int array or list of these
            Arrays of integers are the fastest (30 ns an item), then lists of strings (100 ns).
            Sets, generators and columns of a table are lists of their items. TypeError for another
            kind, ValueError for an integer outside int64.
        counts : int or int array
            How often, >= 0, since a sketch cannot decrement; one for all or one for each. More than
            2**32 - 1 counts as that.
        """
        items, hashes, _ = self._hashed(items)
        if isinstance(counts, int | np.integer):
            least = count = validation.integer(counts, "counts")
            each = np.array([min(count, k.COUNTER_MAX)])
        else:
            each = validation.integers(counts, "counts", low=-(2**63))
            validation.same_length("counts", each, "items", hashes)
            least = each.min(initial=0)
            each = np.minimum(each, k.COUNTER_MAX)
        if least < 0:
            raise ValueError(f"counts must be >= 0, not {least}: a sketch cannot decrement")
        with self._lock:
            if self._batch is not None:
                self._store_candidates()
            if self._top:  # an interrupted call is completed by the next, whatever becomes of items
                self._batch = copy.copy(items)
            if k.sketch_add_many(self._handle.address, hashes, each):
                self._store_candidates()
            self._batch = None  # also where no item took a slot

    def _store_candidates(self) -> None:
        """Store the items of the batch added last that took a slot."""
        if self._batch is None:
            return
        origin = self._handle.state.slot_origin.reshape(-1)
        for slot in np.flatnonzero(origin != k.UNMOVED).tolist():
            item = plain(self._batch[origin[slot]])
            self._slot_items[slot], origin[slot] = item, k.UNMOVED
        self._batch = None

    @overload
    def estimate(self, items: Item) -> int: ...  # type: ignore[overload-overlap]

    @overload
    def estimate(self, items: ArrayLike) -> Int64s: ...

    def estimate(self, items: Items) -> int | Int64s:
        """Return an upper bound on the count of one item, int, or of n, int64[n]. O(depth) each.

        Items are given as to `add`. 0 only for an item that was never counted.
        """
        if type(items) is str:  # in one kernel call
            data, seed = string_to_hash(items, self._seed)
            with self._lock:
                return k.sketch_estimate_string(self._handle.address, data, seed)
        _, hashes, single = self._hashed(items)
        with self._lock:
            counts = self._estimates(hashes)
        return int(counts[0]) if single else counts

    def _estimates(self, hashes) -> np.ndarray:
        counts = np.empty(hashes.size, np.int64)
        k.sketch_estimate_many(self._handle.address, hashes, counts)
        return counts

    @overload
    def is_hot(self, item: Item, threshold: int) -> bool: ...  # type: ignore[overload-overlap]

    @overload
    def is_hot(self, item: ArrayLike, threshold: int) -> Bools: ...

    def is_hot(self, item: Items, threshold: int) -> bool | Bools:
        """Return whether the estimate reaches `threshold`: bool for one item, bool[n] for many."""
        threshold = validation.integer(threshold, "threshold")
        return self.estimate(item) >= threshold

    def error_bound(self) -> ErrorBound:
        """Return by how much an estimate can exceed the truth: (e / width * total, e**-depth).

        A bound for the standard form (Cormode and Muthukrishnan 2005); the conservative form is far
        below it in practice. After `halve` it is for floor(true / 2) and includes the rounding.
        """
        with self._lock:
            error = math.e / self.width * (self.total + self._halved) + self._halved
        return ErrorBound(error, math.exp(-self.depth))

    def top(self, k: int) -> TopItems:
        """Return the k most frequent items among the candidates; fewer if fewer were seen.

        O(candidates log candidates). Equal counts are ordered by the smaller item. Beyond the `top`
        of the sketch, frequent items may be missing; ValueError if that is 0.
        """
        k = validation.integer(k, "k", low=1)
        if not self._top:
            raise ValueError("this sketch keeps no candidates: make it with top=k")
        with self._lock:
            entries = [(-count, item) for item, count in self._candidates().values()]
        # Ties by smaller item; kinds, which cannot be compared, one after the other.
        entries.sort(key=lambda entry: (entry[0], kind_of(type(entry[1])), entry[1]))
        items = [item for _, item in entries[:k]]
        whole = all(isinstance(item, int) for item in items)
        counts = np.array([-count for count, _ in entries[:k]], np.int64)
        return TopItems(np.array(items, np.int64) if whole else items, counts)

    def _candidates(self) -> dict:
        """Hash -> (item, count) of every taken slot."""
        self._store_candidates()
        state = self._handle.state
        taken = np.flatnonzero(state.slot_count)
        hashes = state.slot_hash.reshape(-1)[taken].tolist()
        counts = state.slot_count.reshape(-1)[taken].tolist()
        items = [self._slot_items[slot] for slot in taken.tolist()]
        return dict(zip(hashes, zip(items, counts, strict=True), strict=True))

    def _replace(self, counters, total, halved, candidates) -> None:
        """Replace all at once, the slots by the heaviest of `candidates` in each bucket."""
        ours = self._handle.state
        total = np.array([min(total, k.TOTAL_MAX)])
        parts = [np.zeros_like(ours.slot_hash), np.zeros_like(ours.slot_count)]
        state = ours._replace(
            counters=counters, slot_hash=parts[0], slot_count=parts[1], total=total
        )
        slot_items: list = [None] * state.slot_count.size
        taken = [0] * len(state.slot_count)
        for h, (item, count) in sorted(candidates.items(), key=lambda c: (-c[1][1], c[0])):
            bucket = h & (len(taken) - 1)
            slot = taken[bucket]
            if count and slot < k.SLOTS:
                state.slot_hash[bucket, slot] = h
                state.slot_count[bucket, slot] = count
                slot_items[bucket * k.SLOTS + slot] = item
                taken[bucket] += 1
        handle = Handle(state)
        self._handle, self._slot_items, self._halved = handle, slot_items, halved

    def merge(self, other: "CountMinSketch") -> None:
        """Add everything that `other` has counted.

        In standard mode the counters are those of one sketch that saw both streams. In conservative
        mode estimates still never under-count, but can be higher than such a sketch's. ValueError
        for another width, depth, mode or seed.
        """
        if not isinstance(other, CountMinSketch):
            raise TypeError(f"other must be a CountMinSketch, not {type(other).__name__}")
        for name in ("width", "depth", "_conservative", "_seed"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                raise ValueError(f"{name.strip('_')} differs: {ours} here, {theirs} in other")
        first, second = sorted((self, other), key=id)
        with first._lock, second._lock:
            found = other._candidates() | self._candidates() if self._top else {}
            hashes = np.fromiter(found, np.uint64, len(found))
            sums = self._estimates(hashes) + other._estimates(hashes)
            counts = np.minimum(sums, k.COUNTER_MAX).tolist()
            items = (item for item, _ in found.values())
            candidates = zip(found, zip(items, counts, strict=True), strict=True)
            ours, theirs = self._handle.state.counters, other._handle.state.counters
            counters = ours + np.minimum(theirs, k.COUNTER_MAX - ours)
            halved = self._halved or other._halved
            self._replace(counters, self.total + other.total, halved, dict(candidates))

    def halve(self) -> None:
        """Age: halve every count, rounding down; estimates then bound floor(true / 2)."""
        with self._lock:
            candidates = {h: (item, n // 2) for h, (item, n) in self._candidates().items()}
            counters = self._handle.state.counters >> np.uint32(1)
            self._replace(counters, self.total // 2, True, candidates)

    def _hashed(self, items):
        return hash_items(items, self._seed)

    def stats(self) -> SketchStats:
        """Return sizes and counters. O(width * depth)."""
        with self._lock:
            state = self._handle.state
            candidates = int(np.count_nonzero(state.slot_count))
            saturated = int(np.count_nonzero(state.counters == k.COUNTER_MAX))
            return SketchStats(self.width, self.depth, self.total, candidates, saturated)

    def check(self) -> None:
        """Assert the invariants of `kernels/sketch.py` that do not need the true counts."""
        with self._lock:
            self._store_candidates()
            state = self._handle.state
            assert self.width & (self.width - 1) == 0
            sums = state.counters.sum(axis=1, dtype=np.uint64).tolist()
            assert all(row <= self.total for row in sums)
            exact = not (self._conservative or self._halved)
            if exact and state.counters.max() < k.COUNTER_MAX:
                assert all(row == self.total for row in sums)
            assert (state.slot_origin == k.UNMOVED).all()
            empty = state.slot_count == 0
            assert (state.slot_hash[empty] == 0).all()
            candidates = self._candidates()
            assert len(candidates) == int((~empty).sum()), "a hash occurs twice"
            hashes = np.fromiter(candidates, np.uint64, len(candidates))
            buckets = np.repeat(np.arange(len(empty)), k.SLOTS)[~empty.reshape(-1)]
            assert (hashes & np.uint64(max(len(empty) - 1, 0)) == buckets).all()
            items = [item for item, _ in candidates.values()]
            assert (self._hashed(items)[1] == hashes).all()
            none = {"slot_hash": state.slot_hash[:0], "slot_count": state.slot_count[:0]}
            only_cells, cells = Handle(state._replace(**none)), np.empty(hashes.size, np.int64)
            k.sketch_estimate_many(only_cells.address, hashes, cells)
            assert all(n <= cell for (_, n), cell in zip(candidates.values(), cells, strict=True))

    def _state(self):
        with self._lock:
            self._store_candidates()
            state = self._handle.state
            items = [self._slot_items[i] for i in np.flatnonzero(state.slot_count)]
            arrays = {name: getattr(state, name).copy() for name in _ARRAYS} | pack(items)
            made = {"conservative": self._conservative, "top": self._top, "seed": self._seed}
            return arrays, {**made, "total": self.total, "halved": self._halved}

    @classmethod
    def _from_state(cls, arrays, header):
        depth, width = arrays["counters"].shape
        made = {name: header[name] for name in ("conservative", "top", "seed")}
        wanted = _buckets(validation.integer(made["top"], "top", low=0, high=_MAX_TOP))
        if len(arrays["slot_hash"]) != wanted:
            found = len(arrays["slot_hash"])
            raise CorruptFileError(f"slot_hash has {found} rows for a top of {made['top']}")
        validation.integer(made["seed"], "seed")  # no None, which would make a new one
        sketch = cls(width, depth, **made)
        loaded = {name: arrays[name] for name in _ARRAYS}
        for name, array in loaded.items():
            ours = getattr(sketch._handle.state, name)
            if array.shape != ours.shape or array.dtype != ours.dtype:
                raise CorruptFileError(f"{name} is {array.dtype}{array.shape}")
        total = validation.integer(header["total"], "total", low=0)
        loaded["total"] = np.array([min(total, k.TOTAL_MAX)])
        sketch._handle.replace(sketch._handle.state._replace(**loaded))
        taken = np.flatnonzero(loaded["slot_count"])
        items = unpack(arrays)
        hashes = sketch._hashed(items)[1]
        if not np.array_equal(hashes, loaded["slot_hash"].reshape(-1)[taken]):
            raise CorruptFileError("the stored candidates are not the items of their slots")
        for slot, item in zip(taken.tolist(), items, strict=True):
            sketch._slot_items[slot] = item
        sketch._halved = validation.flag(header["halved"], "halved")
        try:
            sketch.check()
        except AssertionError as error:
            raise CorruptFileError(f"the counts are inconsistent: {error}") from None
        return sketch

    def __repr__(self) -> str:
        return f"CountMinSketch(width={self.width}, depth={self.depth}, total={self.total})"

    @staticmethod
    def _warmup() -> None:
        for top in (0, 1):
            sketch = CountMinSketch(4, 2, top=top)
            sketch.add([1, 2, 1])
            sketch.add(["a", "b"], [1, 2])
            sketch.estimate("a")
            sketch.estimate(["a", "b"])


def _buckets(top):
    # 1.6 wanted items per bucket of 8 on average: one is crowded out with probability < 1e-4.
    return 1 << ((5 * top + 7) // 8 - 1).bit_length() if top else 0


def _empty_state(width, depth, conservative, top):
    buckets = _buckets(top)
    return k.SketchState(
        counters=np.zeros((depth, 1 << (width - 1).bit_length()), np.uint32),
        slot_hash=np.zeros((buckets, k.SLOTS), np.uint64),
        slot_count=np.zeros((buckets, k.SLOTS), np.uint32),
        slot_origin=np.full((buckets, k.SLOTS), k.UNMOVED),
        total=np.zeros(1, np.int64),
        conservative=int(conservative),
    )
