"""Building the graph of an HNSW index: extended by new vectors, repaired, or made anew."""

from .._core.progress import progress_bar
from .graph_writer import GraphWriter
from .snapshot import Snapshot, drawn_levels, only
from .vector_store import VectorForm

_COARSE = 2  # links that were chosen by codes so many times as coarse are not worth keeping

Built = tuple[Snapshot, GraphWriter, Snapshot]  # a base, its writer, and what that made of it


class GraphBuilder:
    """Builds snapshots under the settings of one index."""

    def __init__(self, form: VectorForm, M: int, ef_construction: int, seed: int):
        self._form, self._M, self._seed = form, M, seed
        self._ef = max(ef_construction, M)

    def empty(self) -> Snapshot:
        """The snapshot of an index without vectors."""
        return self._form.empty(self._M)

    def writer(self, snapshot: Snapshot, **history) -> GraphWriter:
        """A writer that goes on from a snapshot; `history` as in GraphWriter."""
        return GraphWriter(snapshot, self._ef, **history)

    def extended(
        self,
        base: Snapshot,
        writer: GraphWriter,
        fields: dict,
        n_new: int,
        threads: int,
        progress: bool = False,
    ) -> Snapshot:
        """The snapshot with `n_new` more slots than `base`, all of them linked."""
        fields |= drawn_levels(base, n_new, self._M, self._seed)
        with progress_bar(progress, n_new, "HNSW", "vector") as advance:
            return writer.insert(base, fields, n_new, threads, advance)

    def repaired(self, writer: GraphWriter, snapshot: Snapshot, threads: int) -> Built:
        """The live slots alone of a snapshot that `writer` made, and their links."""
        empty, slots = self.empty(), snapshot.live_slots()
        fields = self._form.refitted(empty, only(snapshot, slots))
        coarsest = writer.coarsest
        if snapshot.coding is not None:
            coarsest = max(coarsest, snapshot.coding.link_step)
        if fields["coding"].link_step * _COARSE < coarsest:  # the links are too bad to be kept
            return self._rebuilt(fields, threads)
        new_writer = self.writer(empty, coarsest=coarsest, repaired=True)
        return empty, new_writer, new_writer.repair(empty, fields, snapshot, slots, threads)

    def rebuilt(self, snapshot: Snapshot, threads: int) -> Built:
        """The live slots alone of a snapshot, in a graph of their own."""
        fields = only(snapshot, snapshot.live_slots())
        return self._rebuilt(self._form.refitted(self.empty(), fields), threads)

    def _rebuilt(self, fields: dict, threads: int) -> Built:
        empty = self.empty()
        writer = self.writer(empty)
        return empty, writer, self.extended(empty, writer, fields, fields["n_live"], threads)
