"""What a coordinator knows: one value, which each change replaces by another at once."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from llmds_nb import HNSW, InvertedIndex, RetrievalPipeline

from .actors import Saved
from .placement import placed
from .replicas import Group

_SPARE_KEYS = 16  # as in one pipeline


class ShardState(NamedTuple):
    """One shard: its replicas, and the version of its documents that searches are to see."""

    id: int
    group: Group
    version: int
    documents: int
    n_keys: int  # that have a number, of removed documents too
    tuned: tuple[int, Any] | None  # the settings of its graph, see `Shard.tuned`


class Journal(NamedTuple):
    """Keys that were added or removed since the last save, the latest first."""

    before: "Journal | None"
    added: bool
    keys: Any


class Pending(NamedTuple):
    """A write that is being sent: it is finished, before all else, where a call was interrupted.

    `parts` are the arguments for each shard, `sent` what has been sent to which replica. `after`
    gives the state to publish, from that with the new versions and the ids of the shards that have
    done it; its `pending` is a write that is to follow. `then` is called when it is
    published, with those that have not, and why.
    """

    number: int
    method: str
    parts: dict[int, tuple]
    sent: dict[Any, Any]
    after: "Callable[[State, set[int]], State]"
    then: Callable[[dict[int, Exception | None]], None] | None = None


class Settings(NamedTuple):
    """The arguments of a RetrievalPipeline that all shards make up; `dense` and `sparse` empty."""

    encoder: Any
    dim: int | None
    dense: HNSW | None
    sparse: InvertedIndex
    fusion: str
    weight: float
    seed: int

    def pipeline(self) -> RetrievalPipeline:
        """One without documents."""
        return RetrievalPipeline(**self._asdict(), cache_tokens=0)

    def of_shard(self) -> dict[str, Any]:
        """The arguments of the pipeline of a shard, which is given vectors."""
        options = {"dim": self.dim, "dense": self.dense, "sparse": self.sparse, "seed": self.seed}
        return options | {"cache_tokens": 0}


class State(NamedTuple):
    """All that a coordinator knows of its shards and documents."""

    shards: tuple[ShardState, ...]
    settings: Settings
    pipeline: RetrievalPipeline  # of these settings, without documents: checks arguments
    strings: bool | None = None  # whether ids are str; None: there never was one
    next_number: int = 0
    next_shard: int = 0
    n_writes: int = 0
    journal: Journal | None = None
    unsaved: int = 0  # keys in the journal
    lost: frozenset[Any] = frozenset()  # keys of acknowledged documents that are gone
    lacking: tuple[int, ...] = ()  # the shards of these keys
    saved: Saved | None = None
    generation: int = 0
    pending: Pending | None = None

    @property
    def shard_ids(self) -> list[int]:
        """The ids of the shards, ascending."""
        return [shard.id for shard in self.shards]

    @property
    def n(self) -> int:
        """Documents of all shards."""
        return sum(shard.documents for shard in self.shards)

    def shard(self, shard_id: int) -> ShardState:
        """The shard of an id that there is."""
        return next(shard for shard in self.shards if shard.id == shard_id)

    def with_settings(self, **changed: Any) -> "State":
        """With other settings."""
        settings = self.settings._replace(**changed)
        return self._replace(settings=settings, pipeline=settings.pipeline())

    def with_shard(self, changed: ShardState) -> "State":
        """With another value of a shard."""
        return self._replace(
            shards=tuple(changed if shard.id == changed.id else shard for shard in self.shards)
        )

    def noted(self, added: bool, keys: Any) -> "State":
        """With keys that were added, or removed."""
        if not len(keys):
            return self
        journal = Journal(self.journal, added, keys)
        state = self._replace(journal=journal, unsaved=self.unsaved + len(keys))
        if not self.lost:
            return state
        return state.with_lost(self.lost.difference(plain(keys)))

    def with_lost(self, lost: frozenset[Any]) -> "State":
        """With these keys as those of the documents that are gone."""
        keys = list(lost)
        lacking = np.unique(placed(keys, self.shard_ids)).tolist() if keys else []
        return self._replace(lost=lost, lacking=tuple(lacking))

    def followed_by(self, method: str, parts: dict[int, tuple]) -> "State":
        """With a write that is to be done next, and changes no more than the shards."""
        number = self.n_writes + 1
        pending = Pending(number, method, parts, {}, lambda state, done: state)
        return self._replace(n_writes=number, pending=pending if parts else None)

    def forgetting(self) -> "State":
        """Followed by forgetting keys that were removed, when one pipeline would forget them."""
        if sum(shard.n_keys for shard in self.shards) <= 2 * self.n + _SPARE_KEYS:
            return self
        return self.followed_by("forget", {s.id: () for s in self.shards if s.group.live})

    @property
    def missing(self) -> tuple[int, ...]:
        """The shards whose documents are not all there to be found."""
        dead = (shard.id for shard in self.shards if not shard.group.live)
        return tuple(sorted({*dead, *self.lacking}))

    def since_save(self, shard_id: int) -> tuple[list[Any], list[Any]]:
        """The keys of a shard whose last write since the save added them, or removed them."""
        last: dict[Any, bool] = {}
        for entry in _entries(self.journal):
            for key in _placed(entry.keys, self.shard_ids, shard_id):
                last.setdefault(key, entry.added)
        return [k for k, added in last.items() if added], [k for k, a in last.items() if not a]


def plain(keys: Any) -> list[Any]:
    """Keys as a list of int or of str."""
    return keys.tolist() if isinstance(keys, np.ndarray) else list(keys)


def some(values: Any, places: Any) -> Any:
    """The values at places, of an array or a sequence."""
    return values[places] if isinstance(values, np.ndarray) else [values[i] for i in places]


def by_place(keys: Any, state: "State") -> dict[int, Any]:
    """The places of the keys of each shard that has any, ascending."""
    if not len(keys):
        return {}
    place = placed(keys, state.shard_ids)
    return {int(i): np.flatnonzero(place == i) for i in np.unique(place)}


def _entries(journal: Journal | None) -> Iterator[Journal]:
    while journal is not None:
        yield journal
        journal = journal.before


def _placed(keys, shard_ids, shard_id) -> list[Any]:
    """Those of the keys that a shard has, as plain values."""
    return plain(some(keys, np.flatnonzero(placed(keys, shard_ids) == shard_id)))
