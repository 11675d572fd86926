"""Writing an HNSW graph: insertion by batches, repair after removals."""

import contextlib
import dataclasses
import time
from functools import partial
from itertools import pairwise
from typing import Any, Self

import numpy as np

from .._core.arrays import appended
from .._core.forking import threads_of_a_call
from .._core.progress import progress_bar
from .._core.state import Handle
from .._core.typing import Float32s, Float64s, Int32s, Int64s
from ..primitives.status import ABSENT
from .kernels import insert, repair, spanning_tree as tree
from .kernels.distance import IP, walked_space
from .kernels.state import LIVE, Draft, Graph, Links, Repair
from .links_draft import LinksDraft, pool_of
from .snapshot import (
    LINKS,
    Snapshot,
    appended_ids,
    drawn_levels,
    duplicates_of,
    nodes_of,
    select_slots,
    slots_of,
    with_levels,
    with_table,
)
from .vector_store import VectorForm

# Slots of a batch are compared with each other: large batches cost more, small ones idle threads.
_MIN_BATCH, _MAX_BATCH, _BATCH_SHARE = 64, 128, 50
# Links to children in the spanning tree are never pruned. A slot gets more than so many children
# only where the others would be linked by force: if all places were for children, rows would keep
# too many for the tree's sake, and recall@10 of 60,000 hard vectors falls by .014 at ef = 10.
_FEW_CHILDREN = 2
_COARSE = 2  # links chosen by codes more than so many times as coarse as the new are rebuilt
_REPAIR_BATCH = 1 << 14  # slots whose new links are linked back at once
_CHUNKS_PER_THREAD, _MIN_CHUNK = 4, 8
_COMPARED = 4096  # vectors at once


class GraphWriter:
    """Writes the graph of an index: each method returns another writer, whose `base` it made.

    Nothing of this writer or of what its `base` has is changed, so a write may end anywhere. `base`
    is the snapshot to go on from, `coarsest` the largest step of the codes by which any link was
    chosen, `repaired` whether it was repaired, so that one built of its slots differs.
    """

    def __init__(self, form: VectorForm, M: int, ef: int, seed: int, base: Snapshot | None = None):
        self._settings, self.ef = (form, M, ef, seed), max(ef, M)
        self.base = form.empty(M) if base is None else base
        self.coarsest, self.repaired = 0.0, False
        self.parent: Int32s = np.zeros(0, np.int32)
        self.pools = [pool_of(*self.base.links_of(name)) for name in LINKS]
        self._gates: list[_Gate] = []  # of writes that may have been interrupted

    def _with(self, base: Snapshot, **changes: Any) -> Self:
        writer = object.__new__(type(self))
        vars(writer).update(vars(self), base=base, **changes)
        return writer

    def anew(self, base: Snapshot | None = None, **history: Any) -> "GraphWriter":
        """A writer for an empty base, or for another with its `parent`, `coarsest`, `repaired`."""
        writer = GraphWriter(*self._settings, base)
        vars(writer).update(history, _gates=self._gates)
        return writer

    def add(
        self, vectors: Float32s, lengths: Float64s, ids: Int64s, threads: int, progress: bool,
        copy: bool,
    ) -> "GraphWriter":  # fmt: skip
        """Add vectors, as `HNSW.add` does; what has one of the ids is removed."""
        old = slots_of(self.base, ids)
        old = old[old != ABSENT]
        if len(old) and len(old) == self.base.n_live:  # nothing is kept: a new graph
            return self.anew().add(vectors, lengths, ids, threads, progress, copy)
        base, n_new, form = self.base, len(ids), self._settings[0]
        live = base.live_without(old)
        if len(live):
            live = appended(live, base.n, np.full(n_new, LIVE, np.uint8))
        fields = {
            **form.added(base, vectors, lengths, copy),
            "ids": appended_ids(base.ids, base.n, ids),
            "live": live,
            "n_live": base.n_live - len(old) + n_new,
            "node_of": base.node_of,
        }
        if form.splits(base, fields):  # some duplicates need places of their own
            all_ = dataclasses.replace(base, **fields, n=base.n + n_new)
            return self.rebuild(all_, threads)
        writer = self.insert(fields, n_new, threads, progress)
        return writer.repair(writer.base, threads) if writer.base.needs_repair else writer

    def remove(self, slots: Int64s) -> "GraphWriter":
        """Take live slots out."""
        base, n_live = self.base, self.base.n_live - len(slots)
        if n_live == 0:
            return self.anew()
        snapshot = dataclasses.replace(base, live=base.live_without(slots), n_live=n_live)
        if snapshot.needs_repair:
            return self.repair(snapshot, 1)
        pools = [pool.after(base, pool.free[:0]).reclaimed() for pool in self.pools]
        return self._with(snapshot, pools=pools)

    def insert(
        self, fields: dict, n_new: int, threads: int, progress: bool = False
    ) -> "GraphWriter":
        """Link `n_new` slots after those of `base`, for which all other arrays are in `fields`."""
        _, M, _, seed = self._settings
        fields |= drawn_levels(self.base, n_new, M, seed)
        with (
            self._threads(threads) as submit,
            progress_bar(progress, n_new, "HNSW", "vector") as advance,
        ):
            draft = _GraphDraft(self, fields, n_new, submit, threads)
            while draft.n < draft.stop:
                advance(draft.insert_batch())
        coarsest = max(self.coarsest, fields["coding"].link_step)
        return draft.finished(self, coarsest)

    def repair(self, snapshot: Snapshot, threads: int) -> "GraphWriter":
        """Link the live slots of `snapshot`, which has the graph of `base`, past the dead ones."""
        slots, coarsest = snapshot.live_slots(), self.coarsest
        if snapshot.coding is not None:
            coarsest = max(coarsest, snapshot.coding.link_step)
        fields = self._refitted(snapshot, slots)
        if fields["coding"].link_step * _COARSE < coarsest:  # the links are too bad to be kept
            return self._built(fields, threads)
        sources, fields["node_of"] = _promoted(snapshot, slots)
        writer = self.anew(repaired=True)
        fields |= with_levels(writer.base, snapshot.levels[sources], snapshot.drawn)
        with self._threads(threads) as submit:
            draft = _GraphDraft(writer, fields, len(slots), submit, threads)
            draft.repair(snapshot, sources)
        return draft.finished(writer, max(coarsest, fields["coding"].link_step))

    def rebuild(self, snapshot: Snapshot, threads: int) -> "GraphWriter":
        """Link the live slots of any snapshot in a graph of their own."""
        return self._built(self._refitted(snapshot, snapshot.live_slots()), threads)

    def _refitted(self, snapshot, slots):
        form, M, *_ = self._settings
        return form.refitted(form.empty(M), select_slots(snapshot, slots))

    def _built(self, fields, threads):
        return self.anew().insert(fields, fields["n_live"], threads)

    @contextlib.contextmanager
    def _threads(self, threads):
        """What submits calls to the threads of a write, or None for one thread.

        An interrupt may end the wait for them, so the next write waits: they use the free blocks.
        """
        while self._gates:
            self._gates[-1].close()
            self._gates.pop()
        if threads == 1:
            yield None
            return
        gate = _Gate()
        self._gates.append(gate)
        with threads_of_a_call(threads) as executor:
            yield partial(executor.submit, gate.run)


class _Gate:
    """Knows what threads do for a write, which an executor does not once it was interrupted."""

    def __init__(self):
        self._closed, self._running = False, set()

    def run(self, function, *args):
        """Call a function, unless the gate is closed."""
        self._running.add(args)
        try:
            if not self._closed:
                function(*args)
        finally:
            self._running.discard(args)

    def close(self):
        """Let nothing begin any more, and wait for what has begun."""
        self._closed = True
        while self._running:
            time.sleep(1e-3)


def _promoted(snapshot, slots):
    """(sources, node_of) of the live `slots` once they are numbered anew: see `kernels.repair`.

    The first live slot of each group of duplicates is its node.
    """
    if not len(snapshot.node_of):
        return slots, snapshot.node_of
    nodes = nodes_of(snapshot.node_of[slots], slots)
    _, first, group = np.unique(nodes, return_index=True, return_inverse=True)
    is_node = first[group] == np.arange(len(slots))
    if is_node.all():
        return nodes, snapshot.node_of[:0]
    vectors, others = snapshot.vectors, np.flatnonzero(~is_node)
    node_of = np.full(len(slots), ABSENT, np.int32)
    node_of[others] = 2 * first[group[others]]
    node_of[others] += _differ(vectors, slots[others], slots[first[group[others]]])
    return np.where(is_node, nodes, slots), node_of


def _differ(vectors, slots, others):
    """Whether the vectors in `slots` differ from those in `others`, bool[n]."""
    parts = [slice(i, i + _COMPARED) for i in range(0, len(slots), _COMPARED)]
    found = [(vectors[slots[part]] != vectors[others[part]]).any(axis=1) for part in parts]
    return np.concatenate(found)


class _GraphDraft:
    """A graph to which one write adds slots: those below `n` are in it, of `stop` in all."""

    def __init__(self, writer, fields, n_new, submit, threads):
        base = self._base = writer.base
        self.fields, self._ef, self._submit, self._threads = fields, writer.ef, submit, threads
        self.n, self.stop = base.n, base.n + n_new
        self.entry, self.top = base.entry, base.top
        self.levels = fields["levels"]
        all_live = fields["n_live"] == self.stop
        self._allowed = np.zeros(0, np.uint8) if all_live else fields["live"]
        drafts = [
            LinksDraft(pool, *base.links_of(name))
            for pool, name in zip(writer.pools, LINKS, strict=True)
        ]
        self.links0, self.links1, self.duplicates = drafts
        self.links0.cover(self.stop)
        self.links1.cover(fields["n_upper"])
        none = np.full(n_new, ABSENT, np.int32)
        if len(base.node_of):
            self.duplicates.cover(self.stop)
            fields["node_of"] = appended(base.node_of, base.n, none)
        self.parent = appended(writer.parent, base.n, none)

    @property
    def _node_of(self):
        return self.fields["node_of"]

    def _packed(self):
        """The handle of the draft as it is now, to be made anew once arrays were replaced."""
        fields = self.fields
        drafts = self.links0, self.links1, self.duplicates
        links, own = zip(*(draft.for_kernels() for draft in drafts), strict=True)
        measure = fields["factors"], self._base.metric
        space = walked_space(fields["rows"], *measure)
        codes = fields["coding"].for_kernels(fields["prefilter"], fields["outlier"], *measure)
        graph = Graph(*links, fields["upper"], self.entry, self.top)
        slots = self.levels, self._allowed, self.parent
        return Handle(Draft(space, *codes, graph, *own, *slots))

    def insert_batch(self):
        """Link the next slots; return how many."""
        first = self.n
        size = min(max(first // _BATCH_SHARE, _MIN_BATCH), _MAX_BATCH)
        stop = min(first + size, self.stop)
        M = self.links1.links.shape[1] - 1
        forward = np.empty((stop - first, M + 1), np.int32)
        same = np.empty(stop - first + 1, np.int32)
        edges = self._edges(first, stop, 1)
        self.links0.reserve((stop - first) * M)
        self.links1.reserve(len(edges) - (stop - first) * M)
        draft = self._packed()
        ef = min(self._ef, stop)  # there are no more candidates

        def connect(start, end):
            insert.hnsw_connect(draft.address, first, start, end, ef, forward, same)

        self._run(connect, self._cuts(first, stop))
        n_edges = insert.hnsw_edges(draft.address, first, stop, edges, forward, same)
        if same[-1] or len(self._node_of):
            draft = self._add_duplicates(first, stop, same[:-1])
        self._link_back(draft, edges[:n_edges], first)
        self._span(draft, first, stop, forward)
        self.n = stop
        return stop - first

    def _add_duplicates(self, first, stop, same):
        """Enter the duplicates of the slots [first, stop), which equal the nodes `same`."""
        if not len(self._node_of):
            self.fields["node_of"] = np.full(self.stop, ABSENT, np.int32)
        node_of, others = self._node_of[first:stop], np.flatnonzero(same != ABSENT)
        if len(others):
            nodes = same[others]
            differ = _differ(self.fields["vectors"], first + others, nodes)
            node_of[others] = 2 * nodes + differ
        return self._link_duplicates(first, stop)

    def _link_duplicates(self, first, stop):
        """Write the lists of duplicates of the slots [first, stop); return a handle."""
        node_of = self._node_of[first:stop]
        self.duplicates.cover(self.stop)
        self.duplicates.reserve(np.count_nonzero(node_of != ABSENT))
        draft = self._packed()
        insert.duplicates_link(draft.address, first, stop, node_of)
        return draft

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
        """Take over the rows of these slots of the snapshot `old`; list what `node_of` says."""
        if len(self._node_of):
            self._link_duplicates(0, self.stop)
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
        links, heights = self.links0, self.levels[first:stop]
        others = duplicates_of(self._node_of, first, stop)
        if len(others):
            heights = heights.astype(np.int64)
            heights[others - first] = -1
        highest = first + int(heights.argmax())
        start = first
        many = links.links.shape[1] - 1
        if self._base.metric == IP:  # long vectors, everyone's nearest, need links to each other
            many //= 4
        if heights[highest - first] > self.top:
            self.entry, self.top = highest, int(heights[highest - first])
            self.parent = self.parent.copy()
            level0 = Handle(Links(links.links, links.blocks))
            found = tree.tree_count(level0.address, self.entry, _FEW_CHILDREN, self.parent[:stop])
            others = duplicates_of(self._node_of, 0, stop)
            self.parent[others] = self._node_of[others] >> 1
            start, missing = 0, stop - len(others) - found
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
        for done in [self._submit(function, *pair) for pair in pairwise(cuts)]:
            done.result()

    def finished(self, writer: GraphWriter, coarsest: float) -> GraphWriter:
        """The writer of the graph once all slots are linked, after that of its base."""
        base = self._base
        links: dict[str, Any] = {}
        drafts = self.links0, self.links1, self.duplicates
        for name, draft in zip(LINKS, drafts, strict=True):
            links |= {name: draft.links, LINKS[name]: draft.blocks}
        snapshot = Snapshot(
            metric=base.metric, dim=base.dim, entry=self.entry, top=self.top, n=self.stop,
            table=base.table, **links, **self.fields,
        )  # fmt: skip
        snapshot = with_table(base, snapshot)
        pools = [draft.pool_after(base) for draft in drafts]
        return writer._with(snapshot, pools=pools, parent=self.parent, coarsest=coarsest)
