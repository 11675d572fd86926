"""Adds and removes shards: documents whose shard is another now move, while searches go on.

What moves is added to its new shard first, and searches still read the version before. Then it is
removed where it was, or the whole shard is, and the new shards are published at once.
"""

from typing import Any

from .actors import new_version, start_actor
from .coordinator import Coordinator
from .failures import shards_missing
from .replicas import DIED, Group, Replica, answer_of, ask
from .state import ShardState, State


def add_shard(coordinator: Coordinator) -> int:
    """See ShardedPipeline.add_shard."""
    with coordinator.lock:
        coordinator.begin()
        return _added(coordinator)


def remove_shard(coordinator: Coordinator, shard_id: int) -> None:
    """See ShardedPipeline.remove_shard."""
    with coordinator.lock:
        coordinator.begin()
        state = coordinator.state
        if shard_id not in state.shard_ids:
            raise KeyError(f"there is no shard {shard_id}: there are {state.shard_ids}")
        others = [i for i in state.shard_ids if i != shard_id]
        if not others:
            raise ValueError("the last shard cannot be removed")
        coordinator.check_live(state.shard_ids, "no shard was removed")
        moved: dict[int, Any] = {}
        parts = {}
        for other in others:
            for *known, reference in _leaving(state, [shard_id], other, others).values():
                moved[other], parts[other] = tuple(known), ((reference,),)

        def after(state: State, done: set[int]) -> State:
            if len(done) < len(parts):  # searches read the versions before
                earlier = {shard.id: shard for shard in before}
                state = state._replace(shards=tuple(earlier[i] for i in state.shard_ids))
                return state.followed_by("release", {i: moved[i] for i in parts if i in done})
            shards = tuple(shard for shard in state.shards if shard.id != shard_id)
            state = state._replace(shards=shards)
            return state.with_lost(state.lost)

        def then(failed: dict[int, Exception | None]) -> None:
            for replica in () if failed else state.shard(shard_id).group.replicas:
                replica.retire()

        before = state.shards
        failed = coordinator.write("import", parts, after, then)
        if failed:
            raise shards_missing("no shard was removed", sorted(failed))


def _leaving(state, from_ids, shard_id, shard_ids) -> dict[int, tuple[Any, Any, Any]]:
    """What ShardActor.leaving answers, of the shards that have anything for another one."""
    answers, missing = ask(
        {i: state.shard(i).group for i in from_ids},
        lambda _, handle: handle.leaving.remote(shard_id, shard_ids),
    )
    if missing:
        raise shards_missing("no document was moved", missing)
    return {i: answer for i, answer in answers.items() if len(answer[0]) or len(answer[1])}


def _first_answer(sent, shard_id):
    """What the replicas of a new shard acknowledge; those that died are not waited for."""
    answer = None
    for replica, reference in sent:
        try:
            answer = answer_of(replica, reference)
        except DIED:
            replica.retire()
    if answer is None:
        raise shards_missing("its actors died before it had its documents", [shard_id])
    return answer


def _ef_of(tuned):
    return tuned[0]


def _added(coordinator) -> int:
    state = coordinator.state
    coordinator.check_live(state.shard_ids, "no shard was added")
    new_id, version = state.next_shard, new_version()
    options, ids = state.settings.of_shard(), [*state.shard_ids, state.next_shard]
    replicas = []
    try:
        for _ in range(coordinator.replication):
            handle = start_actor(new_id, options, coordinator.num_cpus, version)
            replicas.append(Replica(handle))
        leaving = _leaving(state, state.shard_ids, new_id, ids)
        references = tuple(reference for *_, reference in leaving.values())
        tuned = max((each.tuned for each in state.shards if each.tuned), default=None, key=_ef_of)
        # Numbers below 0 are no writes of the coordinator's.
        sent = [(r, r.handle.write.remote(-1, "import", references)) for r in replicas]
        _first_answer(sent, new_id)
        live = [replica for replica in replicas if replica.alive]
        sent = [(r, r.handle.write.remote(-2, "configure", tuned)) for r in live]
        shard = ShardState(new_id, Group(replicas), *_first_answer(sent, new_id))

        def after(state: State, done: set[int]) -> State:
            state = state._replace(shards=(*state.shards, shard), next_shard=new_id + 1)
            return state.with_lost(state.lost)

        def then(failed: dict[int, Exception | None]) -> None:
            for shard_id in failed:  # it must not have what has moved
                for replica in coordinator.state.shard(shard_id).group.live:
                    replica.retire()

        parts = {i: (keys, removed) for i, (keys, removed, _) in leaving.items()}
        coordinator.write("release", parts, after, then)
    except BaseException:
        state = coordinator.state
        if state.pending is None and new_id not in state.shard_ids:
            for replica in replicas:
                replica.retire()
        raise
    return new_id
