"""The writer's side of an HNSW graph: snapshots, copy-on-write links, insertion by batches."""

import contextlib
import weakref
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from .._core.arrays import appended, taken
from ..primitives.status import ABSENT
from .id_map import ids_of, packed_ids
from .kernels import insert as k, repair as hnsw_mend
from .kernels.distance import IP
from .kernels.graph import BLOCK_BITS, HNSWState, handle_of
from .quantization import Coding

_BLOCK = 1 << BLOCK_BITS
_MAX_LEVEL = 31
_SPARE = 8  # blocks beyond the sure need, for links by force
_SLACK_SHARE = 8  # of the blocks are spare after the array has grown
# Slots of a batch are scanned by each other: more make that dear, fewer make the threads wait.
_MIN_BATCH, _MAX_BATCH, _BATCH_SHARE = 64, 128, 50
# Links to children in the spanning tree are never cut. A slot has more than so many only where the
# others would be linked by force: with all places for them, rows keep too many for the tree's sake,
# and recall@10 of 60,000 hard vectors falls by .014 at ef = 10.
_FEW_CHILDREN = 2
_MIN_DEAD, _DEAD_SHARE = 64, 0.2  # slots, and the share of them, that may stay dead
_MEND_BATCH = 1 << 14  # slots whose new links are answered at once
_CHUNKS_PER_THREAD = 4
_MIN_CHUNK = 8


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Snapshot:
    """All that a search reads, never changed once published; arrays as in `kernels.hnsw`."""

    vectors: np.ndarray
    rows: np.ndarray
    sieve: np.ndarray
    wild: np.ndarray
    factors: np.ndarray
    ids: np.ndarray
    live: np.ndarray
    levels: np.ndarray
    upper: np.ndarray
    links0: np.ndarray
    blocks0: np.ndarray
    links1: np.ndarray
    blocks1: np.ndarray
    coding: Coding | None
    n: int = 0
    n_live: int = 0
    n_upper: int = 0
    drawn: int = 0  # levels drawn for this graph
    entry: int = ABSENT
    top: int = -1
    handle: np.ndarray | None = field(init=False, compare=False)  # None if empty

    def __post_init__(self):
        handle = None
        if self.n:
            coding = self.coding
            state = HNSWState(
                *(getattr(self, name) for name in HNSWState._fields[:-2]),
                coding.basis, coding.offset,
            )  # fmt: skip
            handle = handle_of(state, coding.sieve_numbers, self.n, self.entry, self.top)
        object.__setattr__(self, "handle", handle)

    @property
    def is_sparse(self) -> bool:
        """Whether so many slots are dead that the graph had better be mended."""
        return self.n - self.n_live > max(_DEAD_SHARE * self.n, _MIN_DEAD)

    def live_slots(self) -> np.ndarray:
        """The slots that hold a vector of the index, ascending."""
        return np.flatnonzero(self.mask) if len(self.live) else np.arange(self.n)

    @property
    def mask(self) -> np.ndarray:
        """Which slots hold a vector of the index, bool[n]."""
        return self.live[: self.n] if len(self.live) else np.ones(self.n, np.bool_)

    def live_without(self, slots) -> np.ndarray:
        """The `live` of a snapshot of these slots without some of them."""
        if not len(slots):
            return self.live
        live = np.array(self.mask)
        live[slots] = False
        return live

    @property
    def graph(self) -> tuple:
        """The links, in the order in which kernels take them."""
        return self.links0, self.blocks0, self.links1, self.blocks1


def drawn_levels(base, n, M, seed) -> dict:
    """The levels of `n` slots after base.n and their upper rows, as fields of a snapshot.

    The level is floor(-ln(U) / ln(M)), each U from the seed and the count of those drawn before.
    """
    bits = np.random.PCG64(seed).advance(base.drawn).random_raw(n)
    uniform = ((bits >> np.uint64(11)) + 1.0) * 2.0**-53
    levels = np.minimum(-np.log(uniform) / np.log(M), _MAX_LEVEL).astype(np.uint8)
    return _with_levels(base, levels, base.drawn + n)


def _with_levels(base, levels, drawn) -> dict:
    """Slots of these levels after base.n, as fields of a snapshot."""
    heights = np.cumsum(levels, dtype=np.int64)
    upper = np.where(levels > 0, base.n_upper + heights - levels, ABSENT).astype(np.int32)
    return {
        "levels": appended(base.levels, base.n, levels),
        "upper": appended(base.upper, base.n, upper),
        "n_upper": base.n_upper + int(heights[-1]),
        "drawn": drawn,
    }


def only(base, slots) -> dict:
    """The vectors in `slots` alone, all of them live, as fields of a snapshot."""
    rows = taken(base.rows, slots)
    return {
        "vectors": rows if base.rows is base.vectors else taken(base.vectors, slots),
        "rows": rows,
        "sieve": taken(base.sieve, slots) if len(base.sieve) else base.sieve,
        "wild": base.wild[slots] if len(base.wild) else base.wild,
        "factors": base.factors[slots] if len(base.factors) else base.factors,
        "ids": packed_ids(ids_of(base.ids, slots)),
        "live": np.zeros(0, np.bool_),
        "coding": base.coding,
        "n_live": len(slots),
    }


def block_rows(blocks, n) -> np.ndarray:
    """The physical rows of logical rows 0 to n - 1."""
    rows = np.arange(n)
    return (blocks[rows >> BLOCK_BITS].astype(np.int64) << BLOCK_BITS) | (rows & (_BLOCK - 1))


class _Links:
    """Which physical blocks of one links array are free, and which wait for old readers."""

    def __init__(self, blocks, n_physical):
        self.free = np.setdiff1d(np.arange(n_physical), blocks)
        self.retired = deque()  # (weak reference to the last snapshot that reads them, blocks)

    def retire(self, snapshot, blocks):
        """`snapshot` is no longer the newest; the newest has replaced `blocks` of it.

        Every superseded snapshot waits in line, even one that lost no block: its readers may
        still use what a later one loses.
        """
        self.retired.append((weakref.ref(snapshot), blocks.astype(np.int64)))

    def reclaim(self):
        """Free what no reader can see any more."""
        while self.retired and self.retired[0][0]() is None:
            self.free = np.concatenate([self.free, self.retired.popleft()[1]])


class _LinksDraft:
    """Links that one write changes: blocks are copied before the first change."""

    def __init__(self, home, links, blocks):
        home.reclaim()
        self._home, self._old_links, self._old_blocks = home, links, blocks
        self.links, self.blocks = links, blocks.copy()
        self.owned = np.zeros(len(blocks), np.bool_)
        self._set_spare(home.free)

    def _set_spare(self, blocks):
        self.spare = np.empty(len(self.links) // _BLOCK + 1, np.int64)
        self.spare[0] = len(blocks)
        self.spare[1 : 1 + len(blocks)] = blocks[::-1]

    def reserve(self, n):
        """Make at least `n` blocks spare."""
        if self.spare[0] >= n:
            return
        used = len(self.blocks)
        n_physical = used + max(n, used // _SLACK_SHARE)
        links = np.zeros((n_physical * _BLOCK, self.links.shape[1]), np.int32)
        links[: used * _BLOCK] = self.links[block_rows(self.blocks, used * _BLOCK)]
        # Old readers keep the old array, so every block of the new one is the writer's own.
        self.links, self.blocks = links, np.arange(used, dtype=np.int32)
        self.owned[:] = True
        self._set_spare(np.arange(used, n_physical))

    def cover(self, n_rows):
        """Give logical rows 0 to n_rows - 1 a place."""
        missing = -(-n_rows // _BLOCK) - len(self.blocks)
        if missing > 0:
            self.reserve(missing + _SPARE)
            taken = self.spare[self.spare[0] - missing + 1 : self.spare[0] + 1][::-1]
            self.spare[0] -= missing
            self.blocks = np.concatenate([self.blocks, taken.astype(np.int32)])
            self.owned = np.concatenate([self.owned, np.ones(missing, np.bool_)])

    def reserve_for(self, n_changes):
        """Make enough blocks spare to change `n_changes` rows anywhere."""
        self.reserve(min(int(n_changes), int((~self.owned).sum())) + _SPARE)

    def commit(self, old_snapshot):
        """The new links are published; what they replaced waits for the readers of the old ones."""
        home = self._home
        home.free = self.spare[1 : 1 + self.spare[0]][::-1].copy()
        if self.links is not self._old_links:
            home.retired.clear()  # older snapshots read another array
            return
        n = len(self._old_blocks)
        home.retire(old_snapshot, self._old_blocks[self.blocks[:n] != self._old_blocks])


class GraphWriter:
    """Inserts slots into snapshots; one thread at a time. Holds what only a writer needs.

    `coarsest` is the largest step of the codes by which any of the links was chosen, and `mended`
    whether the graph is other than one built of its slots.
    """

    def __init__(
        self, snapshot, metric, ef_construction, *, parent=None, coarsest=0.0, mended=False
    ):
        self.metric, self._ef = metric, ef_construction
        self.coarsest, self.mended = coarsest, mended
        self.links0 = _Links(snapshot.blocks0, len(snapshot.links0) // _BLOCK)
        self.links1 = _Links(snapshot.blocks1, len(snapshot.links1) // _BLOCK)
        self.parent = np.zeros(0, np.int32) if parent is None else parent
        self._pending = None

    def insert(self, base, fields, n_new, threads, advance) -> Snapshot:
        """Link `n_new` slots after base.n, whose other arrays are in `fields`.

        Nothing of this object or of `base` changes until `commit`.
        """
        draft = _GraphDraft(self, base, fields, n_new)
        with _executor(threads) as executor:
            for first in draft.batches():
                advance(draft.insert_batch(first, executor, threads))
        self._pending = draft
        return draft.snapshot()

    def mend(self, base, fields, old, slots, threads) -> Snapshot:
        """Fill the empty `base` with the `slots` of `old`, and the graph that they had there.

        The links of slots that are left out go to slots near them. As `insert`, in all else.
        """
        fields |= _with_levels(base, old.levels[slots], old.drawn)
        draft = _GraphDraft(self, base, fields, len(slots))
        with _executor(threads) as executor:
            draft.mend(old, slots, executor, threads)
        self._pending = draft
        return draft.snapshot()

    def commit(self, base) -> None:
        """The snapshot of the last `insert` or `mend` is published in place of `base`."""
        draft, self._pending = self._pending, None
        self.parent = draft.parent
        self.coarsest = max(self.coarsest, draft.fields["coding"].link_step)
        draft.links0.commit(base)
        draft.links1.commit(base)

    def retire(self, base) -> None:
        """A snapshot with the same links is published in place of `base`."""
        for links in (self.links0, self.links1):
            links.retire(base, links.free[:0])
            links.reclaim()


class _GraphDraft:
    def __init__(self, writer, base, fields, n_new):
        self.metric, self.ef, self.fields = writer.metric, writer._ef, fields
        self.n, self.stop = base.n, base.n + n_new
        self.entry, self.top = base.entry, base.top
        self.levels, self.upper = fields["levels"], fields["upper"]
        live = fields["live"]
        all_live = fields["n_live"] == base.n + n_new
        self.allowed = np.zeros(0, np.bool_) if all_live else live
        self.links0 = _LinksDraft(writer.links0, base.links0, base.blocks0)
        self.links1 = _LinksDraft(writer.links1, base.links1, base.blocks1)
        self.links0.cover(self.stop)
        self.links1.cover(fields["n_upper"])
        self.parent = appended(writer.parent, base.n, np.full(n_new, ABSENT, np.int32))

    @property
    def _space(self):
        return self.metric, self.fields["rows"], self.fields["factors"]

    @property
    def _sieve(self):
        sieve, wild, coding = (self.fields[name] for name in ("sieve", "wild", "coding"))
        return sieve, wild, coding.basis, coding.offset, *coding.sieve_numbers

    @property
    def _graph(self):
        return self.links0.links, self.links0.blocks, self.links1.links, self.links1.blocks

    def batches(self):
        while self.n < self.stop:
            yield self.n

    def insert_batch(self, first, executor, threads) -> int:
        size = min(max(first // _BATCH_SHARE, _MIN_BATCH), _MAX_BATCH)
        stop = min(first + size, self.stop)
        M = self.links1.links.shape[1] - 1
        forward = np.empty((stop - first, M + 1), np.int32)

        def connect(start, end):
            k.hnsw_connect(
                first, start, end, self.ef, *self._space, self._sieve, self.levels, self.upper,
                self.allowed, *self._graph, self.entry, self.top, self.parent, forward,
            )  # fmt: skip

        _run(connect, np.linspace(first, stop, _parts(stop - first, threads) + 1), executor)
        zero, one = self.links0, self.links1
        edges = np.empty(int((self.levels[first:stop].astype(np.int64) + 1).sum()) * M, np.int64)
        zero.reserve_for((stop - first) * M)
        one.reserve_for(len(edges) - (stop - first) * M)
        n_edges = k.hnsw_edges(
            first, stop, self.levels, self.upper, zero.links, zero.blocks, zero.owned, zero.spare,
            one.links, one.blocks, one.owned, one.spare, edges,
        )  # fmt: skip
        self._link_back(edges[:n_edges], first, executor, threads)
        self._span(first, stop, forward)
        self.n = stop
        return stop - first

    def _link_back(self, edges, first, executor, threads):
        """Add the links against the `edges`, whose sources count from `first`."""
        edges = np.sort(edges)
        targets = edges >> k.TARGET_SHIFT
        cuts = np.linspace(0, len(edges), _parts(len(edges), threads) + 1).astype(np.int64)
        cuts[1:-1] = np.searchsorted(targets, targets[cuts[1:-1]])  # keep each target whole

        def backlink(start, end):
            k.hnsw_backlink(
                edges[start:end], first, *self._space, self.upper, *self._graph, self.parent
            )

        _run(backlink, cuts, executor)

    def mend(self, old, slots, executor, threads):
        """Take over the rows of these slots of the snapshot `old`."""
        renamed = np.full(old.n, ABSENT, np.int32)
        renamed[slots] = np.arange(len(slots), dtype=np.int32)

        def mend(start, end):
            hnsw_mend.hnsw_mend(
                start, end, *self._space, self.levels, self.upper, slots, renamed, old.upper,
                *old.graph, *self._graph,
            )  # fmt: skip

        _run(mend, np.linspace(0, self.stop, _parts(self.stop, threads) + 1), executor)
        M = self.links1.links.shape[1] - 1
        for first in range(0, self.stop, _MEND_BATCH):
            stop = min(first + _MEND_BATCH, self.stop)
            edges = np.empty(
                int((self.levels[first:stop].astype(np.int64) + 2).sum()) * M, np.int64
            )
            n_edges = hnsw_mend.mend_edges(
                first, stop, self.levels, self.upper, slots, old.upper, *old.graph, *self._graph,
                edges,
            )  # fmt: skip
            self._link_back(edges[:n_edges], first, executor, threads)
        self._span(0, self.stop, None)

    def _span(self, first, stop, forward):
        """Extend the spanning tree to the batch; from a new entry it is grown anew."""
        highest = first + int(self.levels[first:stop].argmax())
        start, links = first, self.links0
        many = links.links.shape[1] - 1
        if self.metric == IP:  # long vectors, everyone's nearest, need room for one another
            many //= 4
        if self.levels[highest] > self.top:
            self.entry, self.top = highest, int(self.levels[highest])
            self.parent = self.parent.copy()
            found = k.tree_count(
                self.entry, _FEW_CHILDREN, links.links, links.blocks, self.parent[:stop]
            )
            start, missing = 0, stop - found
        else:
            for most in (_FEW_CHILDREN, many):
                missing = k.tree_extend(
                    first, stop, most, forward, links.links, links.blocks, self.parent
                )
        while missing and start < stop:
            start = k.tree_force(
                start, stop, self.entry, many, links.links, links.blocks, links.owned,
                links.spare, self.parent,
            )  # fmt: skip
            links.reserve(_SPARE)

    def snapshot(self) -> Snapshot:
        zero, one = self.links0, self.links1
        return Snapshot(
            links0=zero.links, blocks0=zero.blocks, links1=one.links, blocks1=one.blocks,
            entry=self.entry, top=self.top, n=self.stop, **self.fields,
        )  # fmt: skip


def _parts(n, threads) -> int:
    return 1 if threads == 1 else max(1, min(n // _MIN_CHUNK, threads * _CHUNKS_PER_THREAD))


def _executor(threads):
    return ThreadPoolExecutor(threads) if threads > 1 else contextlib.nullcontext()


def _run(function, cuts, executor) -> None:
    """Call function(start, end) for every two neighbouring cuts."""
    cuts = [int(cut) for cut in cuts]
    if executor is None or len(cuts) == 2:
        for start, end in pairwise(cuts):
            function(start, end)
        return
    for done in [executor.submit(function, *pair) for pair in pairwise(cuts)]:
        done.result()
