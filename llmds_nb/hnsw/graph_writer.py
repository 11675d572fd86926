"""Writing an HNSW graph: copy-on-write links, insertion by batches, repair after removals."""

import contextlib
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from .._core.arrays import appended
from .._core.state import Handle
from .._core.typing import Int32s, Int64s
from ..primitives.status import ABSENT
from .kernels import insert, repair, spanning_tree as tree
from .kernels.distance import IP
from .kernels.state import Draft, Graph, Links, Ownership, Repair, Space
from .snapshot import BLOCK, Snapshot, block_rows, with_levels

_SPARE = 8  # blocks beyond the sure need, for links that `tree_force` makes
_SLACK_SHARE = 8  # one in so many blocks is spare after the array has grown
# Slots of a batch are compared with each other: large batches cost more, small ones idle threads.
_MIN_BATCH, _MAX_BATCH, _BATCH_SHARE = 64, 128, 50
# Links to children in the spanning tree are never pruned. A slot gets more than so many children
# only where the others would be linked by force: if all places were for children, rows would keep
# too many for the tree's sake, and recall@10 of 60,000 hard vectors falls by .014 at ef = 10.
_FEW_CHILDREN = 2
_REPAIR_BATCH = 1 << 14  # slots whose new links are linked back at once
_CHUNKS_PER_THREAD = 4
_MIN_CHUNK = 8


class _BlockPool:
    """Which physical blocks of one links array are free, and which old readers may still use."""

    def __init__(self, blocks, n_physical):
        self.free = np.setdiff1d(np.arange(n_physical), blocks)
        self.retired = deque()  # (weak reference to the last snapshot that reads them, blocks)

    def retire(self, snapshot, blocks):
        """`snapshot` is no longer the newest; the newest has replaced `blocks` of it.

        Every superseded snapshot is queued, even one that lost no block: its readers may still use
        what a later one loses.
        """
        self.retired.append((weakref.ref(snapshot), blocks.astype(np.int64)))

    def reclaim(self):
        """Free what no reader can see any more."""
        while self.retired and self.retired[0][0]() is None:
            self.free = np.concatenate([self.free, self.retired.popleft()[1]])


class _LinksDraft:
    """Links that one write changes: blocks are copied before the first change."""

    def __init__(self, pool, links, blocks):
        pool.reclaim()
        self._pool, self._old_links, self._old_blocks = pool, links, blocks
        self.links, self.blocks = links, blocks.copy()
        self.owned = np.zeros(len(blocks), np.bool_)
        self._set_spare(pool.free)

    def _set_spare(self, blocks):
        self.spare = np.empty(len(self.links) // BLOCK + 1, np.int64)
        self.spare[0] = len(blocks)
        self.spare[1 : 1 + len(blocks)] = blocks[::-1]

    def reserve(self, n):
        """Make at least `n` blocks spare; may replace all arrays."""
        if self.spare[0] >= n:
            return
        used = len(self.blocks)
        n_physical = used + max(n, used // _SLACK_SHARE)
        links = np.zeros((n_physical * BLOCK, self.links.shape[1]), np.int32)
        links[: used * BLOCK] = self.links[block_rows(self.blocks, used * BLOCK)]
        # Old readers keep the old array, so every block of the new one is the writer's own.
        self.links, self.blocks = links, np.arange(used, dtype=np.int32)
        self.owned[:] = True
        self._set_spare(np.arange(used, n_physical))

    def cover(self, n_rows):
        """Give logical rows 0 to n_rows - 1 a place."""
        missing = -(-n_rows // BLOCK) - len(self.blocks)
        if missing > 0:
            self.reserve(missing + _SPARE)
            added = self.spare[self.spare[0] - missing + 1 : self.spare[0] + 1][::-1]
            self.spare[0] -= missing
            self.blocks = np.concatenate([self.blocks, added.astype(np.int32)])
            self.owned = np.concatenate([self.owned, np.ones(missing, np.bool_)])

    def reserve_for(self, n_changes):
        """Make enough blocks spare to change `n_changes` rows anywhere; may replace all arrays."""
        self.reserve(min(int(n_changes), int((~self.owned).sum())) + _SPARE)

    def commit(self, old_snapshot):
        """The new links are published; what they replaced is kept for readers of the old ones."""
        pool = self._pool
        pool.free = self.spare[1 : 1 + self.spare[0]][::-1].copy()
        if self.links is not self._old_links:
            pool.retired.clear()  # older snapshots read another array
            return
        n = len(self._old_blocks)
        pool.retire(old_snapshot, self._old_blocks[self.blocks[:n] != self._old_blocks])


class GraphWriter:
    """Inserts slots into snapshots; one thread at a time. Holds what only a writer needs.

    `coarsest` is the largest step of the codes by which any of the links was chosen, and `repaired`
    whether the graph is other than one built of its slots.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        ef_construction: int,
        *,
        parent: Int32s | None = None,
        coarsest: float = 0.0,
        repaired: bool = False,
    ):
        self.ef = ef_construction
        self.coarsest, self.repaired = coarsest, repaired
        self.pool0 = _BlockPool(snapshot.blocks0, len(snapshot.links0) // BLOCK)
        self.pool1 = _BlockPool(snapshot.blocks1, len(snapshot.links1) // BLOCK)
        self.parent = np.zeros(0, np.int32) if parent is None else parent
        self._pending: _GraphDraft | None = None

    def insert(
        self,
        base: Snapshot,
        fields: dict,
        n_new: int,
        threads: int,
        advance: Callable[[int], object],
    ) -> Snapshot:
        """Link `n_new` slots after base.n, whose other arrays are in `fields`.

        Nothing of this object or of `base` changes until `commit`.
        """
        draft = _GraphDraft(self, base, fields, n_new)
        with _executor(threads) as executor:
            for first in draft.batches():
                advance(draft.insert_batch(first, executor, threads))
        self._pending = draft
        return draft.snapshot()

    def repair(
        self, base: Snapshot, fields: dict, old: Snapshot, slots: Int64s, threads: int
    ) -> Snapshot:
        """Fill the empty `base` with the `slots` of `old`, and the graph that they had there.

        The links of slots that are left out go to slots near them. As `insert`, in all else.
        """
        fields |= with_levels(base, old.levels[slots], old.drawn)
        draft = _GraphDraft(self, base, fields, len(slots))
        with _executor(threads) as executor:
            draft.repair(old, slots, executor, threads)
        self._pending = draft
        return draft.snapshot()

    def commit(self, base: Snapshot) -> None:
        """The snapshot of the last `insert` or `repair` is published in place of `base`."""
        draft, self._pending = self._pending, None
        assert draft is not None
        self.parent = draft.parent
        self.coarsest = max(self.coarsest, draft.fields["coding"].link_step)
        draft.links0.commit(base)
        draft.links1.commit(base)

    def retire(self, base: Snapshot) -> None:
        """A snapshot with the same links is published in place of `base`."""
        for pool in (self.pool0, self.pool1):
            pool.retire(base, pool.free[:0])
            pool.reclaim()


class _GraphDraft:
    """A graph to which one write adds slots: those below `n` are in it, of `stop` in all."""

    def __init__(self, writer, base, fields, n_new):
        self._base, self._ef, self.fields = base, writer.ef, fields
        self.n, self.stop = base.n, base.n + n_new
        self.entry, self.top = base.entry, base.top
        self.levels, self._like = fields["levels"], fields["rows"][:0]
        all_live = fields["n_live"] == base.n + n_new
        self._allowed = np.zeros(0, np.bool_) if all_live else fields["live"]
        self.links0 = _LinksDraft(writer.pool0, base.links0, base.blocks0)
        self.links1 = _LinksDraft(writer.pool1, base.links1, base.blocks1)
        self.links0.cover(self.stop)
        self.links1.cover(fields["n_upper"])
        self.parent = appended(writer.parent, base.n, np.full(n_new, ABSENT, np.int32))

    def _packed(self) -> Handle:
        """The handle of the draft as it is now, to be made anew once arrays were replaced."""
        zero, one, coding = self.links0, self.links1, self.fields["coding"]
        return Handle(
            Draft(
                space=Space(self.fields["rows"], self.fields["factors"], self._base.metric),
                prefilter=coding.prefilter(self.fields["prefilter"], self.fields["outlier"]),
                quantizer=coding.quantizer,
                graph=Graph(
                    level0=Links(zero.links, zero.blocks),
                    above=Links(one.links, one.blocks),
                    upper=self.fields["upper"],
                    entry=self.entry,
                    top=self.top,
                ),
                own0=Ownership(zero.owned, zero.spare),
                own_above=Ownership(one.owned, one.spare),
                levels=self.levels,
                allowed=self._allowed,
                parent=self.parent,
            )
        )

    def batches(self) -> Iterator[int]:
        while self.n < self.stop:
            yield self.n

    def insert_batch(self, first, executor, threads) -> int:
        size = min(max(first // _BATCH_SHARE, _MIN_BATCH), _MAX_BATCH)
        stop = min(first + size, self.stop)
        M = self.links1.links.shape[1] - 1
        forward = np.empty((stop - first, M + 1), np.int32)
        edges = self._edges(first, stop, 1)
        self.links0.reserve_for((stop - first) * M)
        self.links1.reserve_for(len(edges) - (stop - first) * M)
        draft = self._packed()

        def connect(start, end):
            insert.hnsw_connect(draft.address, self._like, first, start, end, self._ef, forward)

        _run(connect, np.linspace(first, stop, _parts(stop - first, threads) + 1), executor)
        n_edges = insert.hnsw_edges(draft.address, first, stop, edges)
        self._link_back(draft, edges[:n_edges], first, executor, threads)
        self._span(draft, first, stop, forward)
        self.n = stop
        return stop - first

    def _edges(self, first, stop, more):
        """Memory for the edges of these slots: M for each level, and `more` times M for each."""
        M = self.links1.links.shape[1] - 1
        return np.empty(int((self.levels[first:stop].astype(np.int64) + more).sum()) * M, np.int64)

    def _link_back(self, draft, edges, first, executor, threads):
        """Add the links against the `edges`, whose sources count from `first`."""
        edges = np.sort(edges)
        targets = edges >> insert.TARGET_SHIFT
        cuts = np.linspace(0, len(edges), _parts(len(edges), threads) + 1).astype(np.int64)
        cuts[1:-1] = np.searchsorted(targets, targets[cuts[1:-1]])  # keep each target whole

        def backlink(start, end):
            insert.hnsw_backlink(draft.address, self._like, edges[start:end], first)

        _run(backlink, cuts, executor)

    def repair(self, old, slots, executor, threads):
        """Take over the rows of these slots of the snapshot `old`."""
        renamed = np.full(old.n, ABSENT, np.int32)
        renamed[slots] = np.arange(len(slots), dtype=np.int32)
        draft, source = self._packed(), Handle(Repair(old.graph, slots, renamed))

        def write(start, end):
            repair.hnsw_repair(draft.address, source.address, self._like, start, end)

        _run(write, np.linspace(0, self.stop, _parts(self.stop, threads) + 1), executor)
        for first in range(0, self.stop, _REPAIR_BATCH):
            stop = min(first + _REPAIR_BATCH, self.stop)
            edges = self._edges(first, stop, 2)
            n_edges = repair.repair_edges(draft.address, source.address, first, stop, edges)
            self._link_back(draft, edges[:n_edges], first, executor, threads)
        self._span(draft, 0, self.stop, None)

    def _span(self, draft, first, stop, forward):
        """Extend the spanning tree to the batch; from a new entry it is grown anew."""
        highest = first + int(self.levels[first:stop].argmax())
        start, links = first, self.links0
        many = links.links.shape[1] - 1
        if self._base.metric == IP:  # long vectors, everyone's nearest, need links to each other
            many //= 4
        if self.levels[highest] > self.top:
            self.entry, self.top = highest, int(self.levels[highest])
            self.parent = self.parent.copy()
            level0 = Handle(Links(links.links, links.blocks))
            found = tree.tree_count(level0.address, self.entry, _FEW_CHILDREN, self.parent[:stop])
            start, missing = 0, stop - found
            draft = self._packed()
        else:
            for most in (_FEW_CHILDREN, many):
                missing = tree.tree_extend(draft.address, first, stop, most, forward)
        while missing and start < stop:
            start = tree.tree_force(draft.address, start, stop, many)
            links.reserve(_SPARE)
            draft = self._packed()

    def snapshot(self) -> Snapshot:
        zero, one, base = self.links0, self.links1, self._base
        return Snapshot(
            metric=base.metric, dim=base.dim, links0=zero.links, blocks0=zero.blocks,
            links1=one.links, blocks1=one.blocks, entry=self.entry, top=self.top, n=self.stop,
            **self.fields,
        )  # fmt: skip


def _parts(n, threads) -> int:
    return 1 if threads == 1 else max(1, min(n // _MIN_CHUNK, threads * _CHUNKS_PER_THREAD))


def _executor(threads) -> contextlib.AbstractContextManager[Executor | None]:
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
