"""The replicas of a shard as their coordinator knows them, and questions to many shards at once."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ray
from ray import exceptions

# What says that the process of an actor, or its machine, is gone; and that it may come back.
DIED = (
    exceptions.RayActorError, exceptions.ObjectLostError, exceptions.NodeDiedError,
    exceptions.WorkerCrashedError, exceptions.LocalRayletDiedError,
)  # fmt: skip
UNAVAILABLE = exceptions.ActorUnavailableError


class Replica:
    """One actor. `alive` only ever turns False, when it is found dead, or is given up."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.alive = True

    def retire(self) -> None:
        """Count it as dead, and make it so: it might lack a write that others acknowledge."""
        self.alive = False
        with contextlib.suppress(Exception):
            ray.kill(self.handle)


class Group:
    """The replicas of a shard that have all writes that it acknowledged.

    It does not change but for replicas that die; one that joins makes another group.
    """

    def __init__(self, replicas: Iterable[Replica]) -> None:
        self.replicas = tuple(replicas)
        self._turns = itertools.count()

    @property
    def live(self) -> list[Replica]:
        """Those that are not known to be dead."""
        return [replica for replica in self.replicas if replica.alive]

    def pick(self, but: Iterable[Replica] = ()) -> Replica | None:
        """A live replica, each in turn; None where there is none."""
        live = [replica for replica in self.live if replica not in but]
        return live[next(self._turns) % len(live)] if live else None


def ask(
    groups: Mapping[int, Group], send: Callable[[int, Any], Any]
) -> tuple[dict[int, Any], tuple[int, ...]]:
    """The answers of shards to a question, and the shards of which no replica answered.

    `send` gives the reference of the answer, from the id of a shard and the handle of one of its
    replicas. What a shard raises is raised, as it was raised there.
    """
    answers: dict[int, Any] = {}
    missing: list[int] = []
    tried: dict[int, list[Replica]] = {shard_id: [] for shard_id in groups}
    left = list(groups)
    while left:
        sent = {}
        for shard_id in left:
            replica = groups[shard_id].pick(tried[shard_id])
            if replica is None:
                missing.append(shard_id)
            else:
                tried[shard_id].append(replica)
                sent[shard_id] = replica, send(shard_id, replica.handle)
        left = []
        for shard_id, (replica, reference) in sent.items():
            try:
                answers[shard_id] = answer_of(replica, reference)
            except DIED:
                left.append(shard_id)
    return answers, tuple(sorted(missing))


def answer_of(replica: Replica, reference: Any) -> Any:
    """What an actor answers, or raises; one of DIED where it is gone, which is noted."""
    try:
        return ray.get(reference)
    except exceptions.RayTaskError as error:
        if isinstance(error.cause, Exception):
            raise error.cause from None
        raise
    except UNAVAILABLE:
        raise
    except DIED:
        replica.retire()
        raise
