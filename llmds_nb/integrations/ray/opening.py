"""Starts the shards of a ShardedPipeline, empty or from a save, and writes a save."""

import copy
import os
import time
from typing import Any

import ray

from llmds_nb import CorruptFileError, RetrievalPipeline

from ..._core import validation
from ..._core.signals import uninterrupted
from .actors import Saved, new_version, start_actor
from .coordinator import Coordinator
from .failures import shards_missing
from .manifest import Manifest, SavedFile, checked_folder, file_name, new_word, next_generation
from .placement import placed
from .replicas import Group, Replica, answer_of, ask
from .state import Settings, ShardState, State, plain

_SHAPES = (AttributeError, KeyError, TypeError, ValueError)


def new_settings(
    encoder: Any, dim: Any, dense: Any, sparse: Any, fusion: Any, weight: Any, seed: Any
) -> Settings:
    """The settings of a pipeline without documents, checked as RetrievalPipeline does."""
    pipeline = RetrievalPipeline(
        encoder=encoder, dim=dim, dense=copy.copy(dense), sparse=copy.copy(sparse), fusion=fusion,
        weight=weight, seed=seed, cache_tokens=0,
    )  # fmt: skip
    return settings_of(pipeline, dim, seed)


def settings_of(pipeline: RetrievalPipeline, dim: int | None, seed: int) -> Settings:
    """The settings of a pipeline without documents."""
    dense, sparse = pipeline.dense, pipeline.sparse
    dim = dim if dense is None else dense.dim
    return Settings(pipeline.encoder, dim, dense, sparse, pipeline.fusion, pipeline.weight, seed)


def started(
    state: State, shard_ids: list[int], replication: int, num_cpus: float, timeout: float
) -> State:
    """With the shards, whose actors have been started, and have opened the save of the state.

    TimeoutError, or what one of them raises: then none is left.
    """
    replicas: dict[int, list[Replica]] = {}
    sent = {}
    try:
        for i in shard_ids:
            version = new_version()
            for _ in range(replication):
                handle = start_actor(i, state.settings.of_shard(), num_cpus, version)
                replica = Replica(handle)
                replicas.setdefault(i, []).append(replica)
                sent[replica] = handle.open.remote(state.saved, shard_ids)
        _, late = ray.wait(list(sent.values()), num_returns=len(sent), timeout=timeout)
        if late:
            raise TimeoutError(
                f"{len(late)} of {len(sent)} actors have not started after {timeout:g} s: they "
                f"need {num_cpus:g} CPUs each, and Ray has {ray.cluster_resources().get('CPU', 0)}"
            )
        shards = []
        for i, own in replicas.items():
            for replica in own:
                answer = answer_of(replica, sent[replica])
            shards.append(ShardState(i, Group(own), *answer))
    except BaseException:
        for own in replicas.values():
            for replica in own:
                replica.retire()
        raise
    return state._replace(shards=tuple(shards))


def save(coordinator: Coordinator, folder: Any) -> None:
    """See ShardedPipeline.save."""
    with coordinator.lock:
        coordinator.begin()
        state = coordinator.state
        coordinator.check_live(state.shard_ids, "it was not saved")
        folder = checked_folder(folder)
        generation = max(next_generation(folder), state.generation + 1)
        word = new_word()
        files, missing = ask(
            {shard.id: shard.group for shard in state.shards},
            lambda i, handle: handle.save.remote(folder, file_name(f"shard-{i}", generation, word)),
        )
        if missing:
            raise shards_missing("it was not saved", missing)
        name = file_name("pipeline", generation, word)
        state.pipeline.save(os.path.join(folder, name))
        settings = {
            "dim": state.settings.dim, "seed": state.settings.seed, "strings": state.strings,
            "next_number": state.next_number, "next_shard": state.next_shard,
            "replication": coordinator.replication, "lost": plain(sorted(state.lost)),
        }  # fmt: skip
        manifest = Manifest(generation, SavedFile.of(folder, name), files, settings)
        parts = {k: v for k, v in state.settings.sparse._parts().items() if v is not None}
        saved = Saved(folder, files, True, None, parts)

        def published():
            manifest.write(folder)
            coordinator.state = coordinator.state._replace(
                saved=saved, generation=generation, journal=None, unsaved=0
            )

        uninterrupted(published)


def opened(
    folder: Any, mmap: bool, verify: bool | None, encoder: Any, parts: dict[str, Any]
) -> tuple[State, list[int], int]:
    """The state of a saved pipeline, its shards not yet started; their ids; its replication."""
    folder = os.path.abspath(validation.path(folder))
    mmap = validation.flag(mmap, "mmap")
    manifest = Manifest.read(folder)
    while True:
        try:
            path = manifest.pipeline.check(folder)
            pipeline = RetrievalPipeline.load(path, encoder=encoder, **parts)
            for file in manifest.shards.values():
                file.check(folder)
            break
        except FileNotFoundError:
            earlier, manifest = manifest, Manifest.read(folder)
            if manifest == earlier:
                raise
            time.sleep(0)  # a save has replaced it meanwhile
    try:
        return _state_of(folder, manifest, pipeline, (mmap, verify, parts))
    except _SHAPES as error:
        if isinstance(error, CorruptFileError):
            raise
        raise CorruptFileError(
            f"the manifest of {folder} has settings that no save writes: {error!r:.200}"
        ) from error


def _state_of(folder, manifest, pipeline, options):
    values = manifest.settings
    dim, strings = values["dim"], values["strings"]
    if dim is not None:
        dim = validation.integer(dim, "dim", low=1)
    if strings is not None:
        strings = validation.flag(strings, "strings")
    seed = validation.natural(values["seed"], "seed")
    shard_ids = sorted(manifest.shards)
    top = validation.integer(values["next_shard"], "next_shard", low=max(shard_ids) + 1)
    settings = settings_of(pipeline, dim, seed)
    state = State(
        shards=(), settings=settings, pipeline=settings.pipeline(), strings=strings,
        next_number=validation.natural(values["next_number"], "next_number"), next_shard=top,
        saved=Saved(folder, manifest.shards, *options), generation=manifest.generation,
    )  # fmt: skip
    lost = frozenset(values["lost"])
    if lost:
        lacking = sorted({int(i) for i in placed(list(lost), shard_ids)})
        state = state._replace(lost=lost, lacking=tuple(lacking))
    return state, shard_ids, validation.integer(values["replication"], "replication", low=1)
