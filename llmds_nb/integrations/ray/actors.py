"""The actor that holds one replica of a shard, and what it is opened from.

Reads and writes have threads of their own, so that searches do not wait for a write; writes are
done one by one in the order in which they were sent. Each write has a number: one that is sent
again, because its answer was not waited for, is done once.
"""

import os
import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import ray

from llmds_nb import RetrievalPipeline

from .manifest import SavedFile
from .placement import placed
from .shard import Shard

_READERS = 4  # searches that an actor runs at once


class Acknowledged(NamedTuple):
    """What a replica says after a write: the version of its documents, and how many there are.

    Also how many keys have a number, of removed documents too, and the settings of its graph.
    """

    version: int
    documents: int
    n_keys: int
    tuned: tuple[int, Any] | None


class Saved(NamedTuple):
    """The save that a replica is opened from."""

    folder: str
    files: dict[int, SavedFile]  # by shard
    mmap: bool
    verify: bool | None
    parts: dict[str, Any]  # what a file cannot hold: callables of the tokenizer


class Figures(NamedTuple):
    """Sizes of a replica, and its present settings."""

    documents: int
    vectors: int
    nbytes: int
    ef_search: int
    pid: int


class ShardActor:
    """One replica of a shard, in a process of its own.

    version: that of the shard before its first write, the same for replicas that start together.
    """

    def __init__(self, shard_id: int, options: dict[str, Any], version: int) -> None:
        self._id, self._version = shard_id, version
        self._shard = Shard(RetrievalPipeline(**options), version=version)
        self._last: tuple[int, Any] = (0, None)  # the number of the last write, and its answer

    # ---- reads --------------------------------------------------------------------------------

    @ray.method(concurrency_group="read")
    def read(self, method: str, *args: Any, **options: Any) -> Any:
        """Call a reading method of the shard."""
        return getattr(self._shard, method)(*args, **options)

    @ray.method(concurrency_group="read")
    def has(self, keys: Any) -> list[bool]:
        """Whether each key is in the shard, or each number where there are no keys."""
        return [key in self._shard for key in _plain(keys)]

    @ray.method(concurrency_group="read")
    def numbers_of(self, keys: Sequence[str]) -> list[int]:
        """The number of each key; -1 for one that is not here."""
        return self._shard.numbers_of(keys).tolist()

    @ray.method(concurrency_group="read")
    def documents(self, keys: Any) -> list[Any]:
        """The present document of each key, None for one that is not here."""
        numbers = self._shard.numbers_of(keys) if isinstance(keys, list) else keys
        found = self._shard.documents(numbers[numbers >= 0])
        return [found.get(number) for number in numbers.tolist()]

    @ray.method(concurrency_group="read")
    def keys(self) -> Any:
        """The keys of all documents, or their numbers int64[n] where there are no keys."""
        return _keys(self._shard)

    @ray.method(concurrency_group="read")
    def figures(self) -> Figures:
        """See Figures."""
        stats, dense = self._shard.pipeline.stats(), self._shard.pipeline.dense
        ef_search = 0 if dense is None else dense.ef_search
        return Figures(stats.documents, stats.vectors, self._shard.nbytes, ef_search, os.getpid())

    @ray.method(concurrency_group="read")
    def check(self) -> int:
        """Assert the invariants of the shard; return its version."""
        self._shard.check()
        return self._shard.version

    # ---- writes -------------------------------------------------------------------------------

    @ray.method(concurrency_group="write")
    def write(self, number: int, method: str, *args: Any) -> Acknowledged:
        """Do a write, unless it is the last one, which is being sent again."""
        if number != self._last[0]:
            getattr(self, f"_{method}")(*args)
            self._last = number, self._acknowledged()
        return self._last[1]

    @ray.method(concurrency_group="write")
    def open(
        self, saved: Saved | None, shard_ids: Sequence[int], removed: Sequence[Any] = (),
        tuned: Any = None,
    ) -> Acknowledged:  # fmt: skip
        """Open what a save has for this shard, placed among the shards that there are now.

        Those of the keys `removed` that it has are removed again, and `tuned` are the settings of
        its graph, if any.
        """
        if saved is not None:
            if self._id in saved.files:
                self._shard = self._opened(saved, self._id)
            if set(saved.files) != set(shard_ids):  # shards were added or removed since
                keys = _keys(self._shard)
                self._release(_some(keys, placed(keys, shard_ids) != self._id), ())
                for other_id in sorted(set(saved.files) - {self._id}):
                    other = self._opened(saved, other_id)
                    keys = _keys(other)
                    own = _some(keys, placed(keys, shard_ids) == self._id)
                    self._shard.imports(other.export(own))
        self._discard(removed)
        self._shard.tuned = tuned
        return self._acknowledged()

    @ray.method(concurrency_group="write")
    def copy(self, state: Any) -> Acknowledged:
        """Become a copy of another replica, by its `state`."""
        data, version, parts, self._last = state
        self._shard = Shard.from_bytes(data, version=version, **parts)
        return self._acknowledged()

    @ray.method(concurrency_group="write")
    def state(self) -> Any:
        """What `copy` needs; no write is done meanwhile."""
        shard = self._shard
        return shard.to_bytes(), shard.version, shard._parts(), self._last

    @ray.method(concurrency_group="write")
    def leaving(self, shard_id: int, shard_ids: Sequence[int]) -> tuple[Any, Any, Any]:
        """The documents that another shard is to have among `shard_ids`.

        Returns their keys, those of removed documents whose numbers it is to know, and a reference
        to what the write "import" takes.
        """
        keys, removed = _keys(self._shard), self._shard.removed_keys()
        keys, removed = (
            _some(each, placed(each, shard_ids) == shard_id) for each in (keys, removed)
        )
        return keys, removed, ray.put(self._shard.export(keys, removed))

    @ray.method(concurrency_group="write")
    def save(self, folder: str, name: str) -> SavedFile:
        """Write everything to a file of a folder."""
        self._shard.save(os.path.join(folder, name))
        return SavedFile.of(folder, name)

    def _acknowledged(self):
        shard = self._shard
        return Acknowledged(shard.version, len(shard), shard.n_keys, shard.tuned)

    def _add(self, keys, texts, vectors, metadata, numbers):
        self._shard.add(keys, texts, vectors, metadata, numbers=numbers)

    def _discard(self, keys, forget=False):
        """Remove those of the keys that are there."""
        there = np.array([key in self._shard for key in _plain(keys)], np.bool_)
        if there.any():
            self._shard.remove(_some(keys, there), forget=forget)

    def _release(self, keys, removed):
        """Know no more of what another shard has now."""
        self._discard(keys, forget=True)
        self._shard.forget(removed)

    def _forget(self):
        self._shard.forget_removed()

    def _configure(self, tuned):
        self._shard.tuned = tuned

    def _import(self, references):
        for reference in references:
            self._shard.imports(ray.get(reference))

    def _tune(self, texts, vectors, target_recall):
        if len(self._shard):
            self._shard.pipeline.tune(texts, vectors=vectors, target_recall=target_recall)

    def _opened(self, saved, shard_id):
        path = saved.files[shard_id].check(saved.folder)
        return Shard.load(
            path, mmap=saved.mmap, verify=saved.verify, version=self._version, **saved.parts
        )


def _keys(shard) -> Any:
    numbers = shard.pipeline.view().numbers()
    keys = shard.keys_of(numbers)
    return numbers if None in keys else keys


def _plain(keys):
    return keys.tolist() if isinstance(keys, np.ndarray) else keys


def _some(keys, chosen) -> Any:
    """The keys at the places of a mask."""
    if isinstance(keys, np.ndarray):
        return keys[chosen]
    return [keys[i] for i in np.flatnonzero(chosen)]


def new_version() -> int:
    """A version for a new shard, that no other has."""
    return secrets.randbits(50) << 10


def start_actor(shard_id: int, options: dict[str, Any], num_cpus: float, version: int) -> Any:
    """The handle of a new actor, which Ray starts, and does not restart."""
    groups = {"read": _READERS, "write": 1}
    made = ray.remote(num_cpus=num_cpus, max_restarts=0, concurrency_groups=groups)(ShardActor)
    return made.remote(shard_id, options, version)
