"""What a ShardedPipeline holds, read by id, and its figures."""

from typing import Any

import numpy as np

from llmds_nb.bm25 import Hits
from llmds_nb.pipeline import Document

from .arguments import checked_ids
from .coordinator import Coordinator
from .failures import shards_missing
from .placement import placed
from .replicas import Group, ask
from .results import ShardedStats, ShardStats
from .state import State, by_place, plain, some

_UNKNOWN = "whether they have these documents is not known"


class Contents:
    """The reading half of a ShardedPipeline that needs no search."""

    _coordinator: Coordinator

    @property
    def _state(self) -> State:
        return self._coordinator.state

    def __len__(self) -> int:
        return self._state.n

    def __contains__(self, id: object) -> bool:
        try:
            keys = checked_ids([id], self._state.strings)
        except (TypeError, ValueError):
            return False
        return bool(self._at_shards("has", keys)[0])

    def _at_shards(self, method: str, keys: Any, did: str | None = _UNKNOWN) -> list[Any]:
        """What the shard of each key answers about it.

        Where one is missing, an error says what was not done; or, if `did` is None, the answer is.
        """
        state = self._state
        answers: list[Any] = [None] * len(keys)
        chosen = by_place(keys, state)
        groups = {i: state.shard(i).group for i in chosen}
        parts = {i: some(keys, rows) for i, rows in chosen.items()}
        found, missing = ask(groups, lambda i, handle: getattr(handle, method).remote(parts[i]))
        if missing and did is not None:
            raise shards_missing(did, missing, plain(keys))
        for i, values in found.items():
            for row, value in zip(chosen[i].tolist(), values, strict=True):
                answers[row] = value
        return answers

    def get(self, ids: Any) -> list[str | None]:
        """The texts of documents, in the order of `ids`, which may repeat.

        Raises KeyError for an id that is not in the pipeline, ShardsMissingError where its shard
        does not answer.
        """
        return [None if each is None else each.text for each in self._documents(ids)]

    def documents(self, hits: Hits | Any) -> list[Document] | list[list[Document]]:
        """The documents of hits, or of ids, as `RetrievalPipeline.documents` gives them.

        Raises ShardsMissingError where the shard of one does not answer.
        """
        if not isinstance(hits, Hits):
            return [each for each in self._documents(hits) if each is not None]
        ids, scores = np.asarray(hits.ids), np.asarray(hits.scores)
        if ids.shape != scores.shape or ids.ndim not in (1, 2):
            shapes = f"{list(ids.shape)} and {list(scores.shape)}"
            raise ValueError(f"hits must have ids and scores [k], or [n, k], not {shapes}")
        found = self._documents(ids.ravel(), removed=True)
        whole = [
            None if each is None else each._replace(score=score)
            for each, score in zip(found, scores.ravel().tolist(), strict=True)
        ]
        n = ids.shape[-1]
        rows = [whole[i * n : (i + 1) * n] for i in range(len(ids) if ids.ndim == 2 else 1)]
        kept = [[document for document in row if document is not None] for row in rows]
        return kept if ids.ndim == 2 else kept[0]

    def _documents(self, ids, removed=False) -> list[Document | None]:
        """The present document of each id; None for a missing place, or for one not there."""
        self._coordinator.check_open()
        listed = ids.tolist() if isinstance(ids, np.ndarray) else ids
        if listed is None or isinstance(listed, str | int):
            listed = [listed]
        listed = list(listed)
        places = [i for i, id_ in enumerate(listed) if id_ is not None and id_ != -1]
        found: list[Document | None] = [None] * len(listed)
        keys = checked_ids([listed[i] for i in places], self._state.strings)
        for place, document in zip(places, self._at_shards("documents", keys), strict=True):
            if document is None and not removed:
                raise KeyError(f"{listed[place]!r} is not in the pipeline")
            found[place] = document
        return found

    def stats(self) -> ShardedStats:
        """Sizes, what is missing, and each shard."""
        coordinator = self._coordinator
        coordinator.check_open()
        coordinator.look_after()
        state, joining = self._state, coordinator.joining
        groups = {shard.id: shard.group for shard in state.shards}
        found, _ = ask(groups, lambda _, handle: handle.figures.remote())
        places = placed(list(state.lost), state.shard_ids).tolist() if state.lost else []
        shards = tuple(
            ShardStats(
                shard.id, shard.documents, len(shard.group.live),
                sum(join.shard_id == shard.id for join in joining), places.count(shard.id),
                coordinator.errors.get(shard.id),
            )
            for shard in state.shards
        )  # fmt: skip
        return ShardedStats(
            state.n, sum(each.vectors for each in found.values()), state.settings.dim,
            sum(each.nbytes for each in found.values()), state.missing, len(state.lost),
            state.generation, state.unsaved, shards,
        )  # fmt: skip

    def lost(self) -> dict[int, list[Any]]:
        """The ids of acknowledged documents that are gone, by shard.

        Their last `add` was after the last save, and all replicas of the shard died; of one that
        was replaced then, the pipeline has what the save has.
        """
        keys = sorted(self._state.lost)
        chosen = by_place(keys, self._state)
        return {i: some(keys, rows) for i, rows in chosen.items()}

    def forget_lost(self) -> None:
        """Take what is lost for removed: `lost` and `hits.missing` name it no more."""
        with self._coordinator.lock:
            self._coordinator.begin()
            coordinator = self._coordinator
            coordinator.state = coordinator.state.with_lost(frozenset())

    def check(self) -> None:
        """Assert the invariants of each live replica, and of all together. O(everything)."""
        with self._coordinator.lock:
            self._coordinator.begin()
            state = self._state
            for shard in state.shards:
                for replica in shard.group.live:
                    one = {shard.id: Group([replica])}
                    found, missing = ask(one, lambda _, handle: handle.check.remote())
                    if missing:
                        continue
                    assert found[shard.id] == shard.version
                    keys = ask(one, lambda _, handle: handle.keys.remote())[0][shard.id]
                    assert len(keys) == shard.documents
                    assert (placed(keys, state.shard_ids) == shard.id).all()
