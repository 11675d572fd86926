"""Writing an HNSW graph: copy-on-write links, insertion by batches, repair after removals."""

import contextlib
import weakref
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np

from .._core.arrays import appended
from .._core.progress import progress_bar
from .._core.state import Handle
from ..primitives.status import ABSENT
from .kernels import insert, repair, spanning_tree as tree
from .kernels.distance import IP, walked_space
from .kernels.state import Draft, Graph, Links, Ownership, Repair
from .snapshot import BLOCK, Snapshot, block_rows, drawn_levels, select_slots, with_levels
from .vector_store import VectorForm

_SPARE = 8  # blocks beyond the sure need, for links that `tree_force` makes
_SLACK_SHARE = 8  # when an array grows, at least one spare block is added for so many in use
# Slots of a batch are compared with each other: large batches cost more, small ones idle threads.
_MIN_BATCH, _MAX_BATCH, _BATCH_SHARE = 64, 128, 50
# Links to children in the spanning tree are never pruned. A slot gets more than so many children
# only where the others would be linked by force: if all places were for children, rows would keep
# too many for the tree's sake, and recall@10 of 60,000 hard vectors falls by .014 at ef = 10.
_FEW_CHILDREN = 2
_COARSE = 2  # links chosen by codes more than so many times as coarse as the new are rebuilt
_REPAIR_BATCH = 1 << 14  # slots whose new links are linked back at once
_CHUNKS_PER_THREAD, _MIN_CHUNK = 4, 8


class _BlockPool:
    """Which physical blocks of one links array are free, and which old readers may still use."""

    def __init__(self, blocks, n_physical):
        self.free = np.setdiff1d(np.arange(n_physical), blocks)
        self.retired = deque()  # (weak reference to the last snapshot that reads them, blocks)

    def retire(self, snapshot, blocks):
        """Called when a newer snapshot replaces `snapshot`, whose `blocks` that one no longer uses.

        Queued even if it lost no block: its readers may still use what a later one loses.
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

    def reserve(self, n_changes, n_new=0):
        """Make enough blocks spare to change some rows and add blocks; may replace all arrays."""
        n = min(n_changes, np.count_nonzero(~self.owned)) + n_new + _SPARE
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
            self.reserve(0, missing)
            added = self.spare[self.spare[0] - missing + 1 : self.spare[0] + 1][::-1]
            self.spare[0] -= missing
            self.blocks = np.concatenate([self.blocks, added.astype(np.int32)])
            self.owned = np.concatenate([self.owned, np.ones(missing, np.bool_)])

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
    """Writes the graph of an index, one call at a time; holds what only a writer needs.

    `base` is the published snapshot that it goes on from, `coarsest` the largest step of the codes
    by which any link was chosen, `repaired` whether it was repaired, so that one built of its slots
    differs.
    """

    def __init__(self, form: VectorForm, M: int, ef: int, seed: int, base: Snapshot | None = None):
        self._settings, self.ef = (form, M, ef, seed), max(ef, M)
        self.base = form.empty(M) if base is None else base
        self.coarsest, self.repaired = 0.0, False
        self.pool0 = _BlockPool(self.base.blocks0, len(self.base.links0) // BLOCK)
        self.pool1 = _BlockPool(self.base.blocks1, len(self.base.links1) // BLOCK)
        self.parent = np.zeros(0, np.int32)
        self._pending: _GraphDraft | None = None

    def anew(self, base: Snapshot | None = None, **history: Any) -> "GraphWriter":
        """A writer for an empty base, or for another with its `parent`, `coarsest`, `repaired`."""
        writer = GraphWriter(*self._settings, base)
        vars(writer).update(history)
        return writer

    def insert(self, fields: dict, n_new: int, threads: int, progress: bool = False) -> Snapshot:
        """Link `n_new` slots after those of `base`, for which all other arrays are in `fields`.

        Nothing of this object or of `base` changes until `commit`.
        """
        _, M, _, seed = self._settings
        fields |= drawn_levels(self.base, n_new, M, seed)
        with _executor(threads) as pool, progress_bar(progress, n_new, "HNSW", "vector") as advance:
            draft = _GraphDraft(self, fields, n_new, pool, threads)
            while draft.n < draft.stop:
                advance(draft.insert_batch())
        self._pending = draft
        return draft.snapshot()

    def repair(self, snapshot: Snapshot, threads: int) -> tuple["GraphWriter", Snapshot]:
        """(a writer, what it made): the live slots of a snapshot, linked past the dead ones."""
        slots, coarsest = snapshot.live_slots(), self.coarsest
        if snapshot.coding is not None:
            coarsest = max(coarsest, snapshot.coding.link_step)
        fields = self._refitted(snapshot, slots)
        if fields["coding"].link_step * _COARSE < coarsest:  # the links are too bad to be kept
            return self._built(fields, threads)
        writer = self.anew(coarsest=coarsest, repaired=True)
        fields |= with_levels(writer.base, snapshot.levels[slots], snapshot.drawn)
        with _executor(threads) as executor:
            draft = _GraphDraft(writer, fields, len(slots), executor, threads)
            draft.repair(snapshot, slots)
        writer._pending = draft
        return writer, draft.snapshot()

    def rebuild(self, snapshot: Snapshot, threads: int) -> tuple["GraphWriter", Snapshot]:
        """(a writer, what it made): the live slots of a snapshot, in a graph of their own."""
        return self._built(self._refitted(snapshot, snapshot.live_slots()), threads)

    def _refitted(self, snapshot, slots):
        form, M, *_ = self._settings
        return form.refitted(form.empty(M), select_slots(snapshot, slots))

    def _built(self, fields, threads):
        writer = self.anew()
        return writer, writer.insert(fields, fields["n_live"], threads)

    def commit(self, snapshot: Snapshot) -> None:
        """The snapshot of the last `insert` or `repair` is published in place of `base`."""
        draft, self._pending = self._pending, None
        assert draft is not None
        self.parent = draft.parent
        self.coarsest = max(self.coarsest, draft.fields["coding"].link_step)
        draft.links0.commit(self.base)
        draft.links1.commit(self.base)
        self.base = snapshot

    def retire(self, snapshot: Snapshot) -> None:
        """A snapshot with the same links is published in place of `base`."""
        for pool in (self.pool0, self.pool1):
            pool.retire(self.base, pool.free[:0])
            pool.reclaim()
        self.base = snapshot


class _GraphDraft:
    """A graph to which one write adds slots: those below `n` are in it, of `stop` in all."""

    def __init__(self, writer, fields, n_new, executor, threads):
        base = self._base = writer.base
        self.fields, self._ef, self._executor, self._threads = fields, writer.ef, executor, threads
        self.n, self.stop = base.n, base.n + n_new
        self.entry, self.top = base.entry, base.top
        self.levels = fields["levels"]
        all_live = fields["n_live"] == self.stop
        self._allowed = np.zeros(0, np.bool_) if all_live else fields["live"]
        self.links0 = _LinksDraft(writer.pool0, base.links0, base.blocks0)
        self.links1 = _LinksDraft(writer.pool1, base.links1, base.blocks1)
        self.links0.cover(self.stop)
        self.links1.cover(fields["n_upper"])
        self.parent = appended(writer.parent, base.n, np.full(n_new, ABSENT, np.int32))

    def _packed(self):
        """The handle of the draft as it is now, to be made anew once arrays were replaced."""
        zero, one, fields = self.links0, self.links1, self.fields
        measure = fields["factors"], self._base.metric
        space = walked_space(fields["rows"], *measure)
        codes = fields["coding"].for_kernels(fields["prefilter"], fields["outlier"], *measure)
        links = Links(zero.links, zero.blocks), Links(one.links, one.blocks)
        graph = Graph(*links, fields["upper"], self.entry, self.top)
        own = Ownership(zero.owned, zero.spare), Ownership(one.owned, one.spare)
        slots = self.levels, self._allowed, self.parent
        return Handle(Draft(space, *codes, graph, *own, *slots))

    def insert_batch(self):
        """Link the next slots; return how many."""
        first = self.n
        size = min(max(first // _BATCH_SHARE, _MIN_BATCH), _MAX_BATCH)
        stop = min(first + size, self.stop)
        M = self.links1.links.shape[1] - 1
        forward = np.empty((stop - first, M + 1), np.int32)
        edges = self._edges(first, stop, 1)
        self.links0.reserve((stop - first) * M)
        self.links1.reserve(len(edges) - (stop - first) * M)
        draft = self._packed()

        def connect(start, end):
            insert.hnsw_connect(draft.address, first, start, end, self._ef, forward)

        self._run(connect, self._cuts(first, stop))
        n_edges = insert.hnsw_edges(draft.address, first, stop, edges)
        self._link_back(draft, edges[:n_edges], first)
        self._span(draft, first, stop, forward)
        self.n = stop
        return stop - first

    def _edges(self, first, stop, more):
        """Memory for the edges of slots: M for each level above 0, and `more` M for level 0."""
        M = self.links1.links.shape[1] - 1
        return np.empty((int(self.levels[first:stop].sum()) + more * (stop - first)) * M, np.int64)

    def _link_back(self, draft, edges, first):
        """Add the reverse link of each of the `edges`, whose sources count from `first`."""
        edges = np.sort(edges)
        cuts = self._cuts(0, len(edges))
        if len(cuts) > 2:  # keep each target whole
            targets = edges >> insert.TARGET_SHIFT
            cuts[1:-1] = np.searchsorted(targets, targets[cuts[1:-1]]).tolist()

        def backlink(start, end):
            insert.hnsw_backlink(draft.address, edges[start:end], first)

        self._run(backlink, cuts)

    def repair(self, old, slots):
        """Take over the rows of these slots of the snapshot `old`."""
        renamed = np.full(old.n, ABSENT, np.int32)
        renamed[slots] = np.arange(len(slots), dtype=np.int32)
        draft, source = self._packed(), Handle(Repair(old.graph, slots, renamed))

        def write(start, end):
            repair.hnsw_repair(draft.address, source.address, start, end)

        self._run(write, self._cuts(0, self.stop))
        for first in range(0, self.stop, _REPAIR_BATCH):
            stop = min(first + _REPAIR_BATCH, self.stop)
            edges = self._edges(first, stop, 2)
            n_edges = repair.repair_edges(draft.address, source.address, first, stop, edges)
            self._link_back(draft, edges[:n_edges], first)
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
            missing = tree.tree_extend(draft.address, first, stop, _FEW_CHILDREN, forward)
            if missing:
                missing = tree.tree_extend(draft.address, first, stop, many, forward)
        while missing and start < stop:
            start = tree.tree_force(draft.address, start, stop, many)
            links.reserve(0)
            draft = self._packed()

    def _cuts(self, start, stop):
        """Where [start, stop) is split among the threads."""
        n, parts = stop - start, 1
        if self._threads > 1:
            parts = max(1, min(n // _MIN_CHUNK, self._threads * _CHUNKS_PER_THREAD))
        return [start + n * i // parts for i in range(parts + 1)]

    def _run(self, function, cuts):
        """Call function(start, end) for every two neighbouring cuts."""
        if len(cuts) == 2:
            return function(*cuts)
        for done in [self._executor.submit(function, *pair) for pair in pairwise(cuts)]:
            done.result()

    def snapshot(self):
        """The snapshot with all slots, once they are linked."""
        zero, one, base = self.links0, self.links1, self._base
        return Snapshot(
            metric=base.metric, dim=base.dim, links0=zero.links, blocks0=zero.blocks,
            links1=one.links, blocks1=one.blocks, entry=self.entry, top=self.top, n=self.stop,
            **self.fields,
        )  # fmt: skip


def _executor(threads):
    return ThreadPoolExecutor(threads) if threads > 1 else contextlib.nullcontext()
