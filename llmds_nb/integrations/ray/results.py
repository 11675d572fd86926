"""What a ShardedPipeline answers: hits that say which shards are missing, and figures by shard."""

from typing import Any, NamedTuple, Self

from llmds_nb.bm25 import Hits


class ShardedHits(Hits):
    """Hits, and the shards whose documents may be missing from them.

    It is the pair of ids and scores that RetrievalPipeline returns, and unpacks as that. `missing`
    holds the ids of shards that did not answer, for want of a live replica, or that were restarted
    and lack documents they had acknowledged (`ShardedPipeline.lost`); () when nothing is missing.
    """

    missing: tuple[int, ...]

    def __new__(cls, ids: Any, scores: Any, missing: tuple[int, ...] = ()) -> Self:
        """Hits of arrays of ids and scores."""
        made = super().__new__(cls, ids, scores)
        made.missing = missing
        return made

    def _replace(self, **values: Any) -> Self:
        return type(self)(
            values.pop("ids", self.ids), values.pop("scores", self.scores), self.missing, **values
        )

    def __repr__(self) -> str:
        return f"ShardedHits(ids={self.ids}, scores={self.scores}, missing={self.missing})"


class ShardStats(NamedTuple):
    """One shard: what it holds, as of its last acknowledged write, and its replicas.

    `replicas` answer; `restarting` are being opened. `lost` counts acknowledged documents that went
    with its replicas and are not in its last save. `error` is why a replica could not be restarted.
    """

    id: int
    documents: int
    replicas: int
    restarting: int
    lost: int
    error: str | None


class ShardedStats(NamedTuple):
    """Sizes, and what is missing.

    `documents` are those acknowledged and not lost, also those of missing shards; `vectors`
    and `nbytes` those of the shards that answer, each counted once. `generation` is that of the
    last save, 0 before the first; `unsaved` counts the documents added or removed since.
    """

    documents: int
    vectors: int
    dim: int | None
    nbytes: int
    missing: tuple[int, ...]
    lost: int
    generation: int
    unsaved: int
    shards: tuple[ShardStats, ...]
