"""Sends writes to every replica of shards, publishes them at once, and replaces replicas that died.

A write has a number and is kept in the state until every shard has answered, so that a call that an
exception interrupts leaves one that the next call finishes: all shards show it, at once, or none.
Writes and restarts hold one lock; searches read the published state and wait for nobody.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ray

from ..._core.forking import is_held, new_lock
from ..._core.signals import uninterrupted
from .actors import Acknowledged, new_version, start_actor
from .failures import shards_missing
from .replicas import DIED, UNAVAILABLE, Group, Replica, answer_of
from .state import Pending, ShardState, State

_TRIES = 3  # of a write to a replica that cannot be reached for the moment
_PAUSE = 0.2  # seconds between them, and between looks at replicas that are being opened

logger = logging.getLogger(__name__)


class Joining(NamedTuple):
    """A replica that is being opened: a copy of a live one, or else from the last save."""

    shard_id: int
    replica: Replica
    reference: Any  # of its last answer
    is_copy: bool
    lost: tuple[Any, ...] = ()  # keys that the save it is opened from lacks
    opened: Acknowledged | None = None


class Coordinator:
    """The state of a ShardedPipeline, and all that changes it."""

    def __init__(self, state: State, replication: int, num_cpus: float) -> None:
        self.state = state
        self.replication, self.num_cpus = replication, num_cpus
        self.joining: tuple[Joining, ...] = ()
        self.errors: dict[int, str] = {}  # why a shard has no new replica
        self.closed = False
        self._lock = new_lock()

    # ---- writes -------------------------------------------------------------------------------

    @property
    def lock(self) -> Any:
        """For a block that changes the state, after `begin`. RuntimeError within such a block."""
        if is_held(self._lock):
            raise RuntimeError("documents cannot be changed within a write to the pipeline")
        return self._lock

    def begin(self) -> None:
        """Finish what was interrupted before, and look after replicas that died."""
        self.check_open()
        self._settle()
        self._tend()

    def check_open(self) -> None:
        """Refuse to go on after `close`."""
        if self.closed:
            raise RuntimeError("the ShardedPipeline is closed")

    def check_live(self, shard_ids: Sequence[int], did: str, ids: Sequence[Any] = ()) -> None:
        """Raise ShardsMissingError if one of the shards has no live replica."""
        dead = [i for i in shard_ids if not self.state.shard(i).group.live]
        if dead:
            raise shards_missing(f"{did}; nothing was changed", dead, ids)

    def write(
        self,
        method: str,
        parts: dict[int, tuple],
        after: Callable[[State, set[int]], State],
        then: Callable[[dict[int, Exception | None]], None] | None = None,
    ) -> dict[int, Exception | None]:
        """Do a write on shards, publish `after` and call `then`: see `Pending`.

        Returns the shards that have not done it, and why: None where the last replica died.
        """
        number = self.state.n_writes + 1
        if self.replication > 1:
            parts = {i: tuple(map(_shared, args)) for i, args in parts.items()}
        pending = Pending(number, method, parts, {}, after, then)
        self.state = self.state._replace(n_writes=number, pending=pending)
        return self._finish(pending)

    def _settle(self):
        """Finish the write of a call that was interrupted."""
        pending = self.state.pending
        if pending is not None:
            failed = self._finish(pending)
            if failed:
                logger.warning("of an interrupted write, shards %s have nothing", sorted(failed))

    def _finish(self, pending: Pending) -> dict[int, Exception | None]:
        state, sent = self.state, pending.sent
        for shard_id, args in pending.parts.items():
            copies = [join.replica for join in self.joining if join.shard_id == shard_id]
            for replica in (*state.shard(shard_id).group.live, *copies):
                if replica not in sent:
                    sent[replica] = self._send(replica, pending, args)
        self.joining = tuple(
            join._replace(reference=sent.get(join.replica, join.reference)) for join in self.joining
        )
        failed: dict[int, Exception | None] = {}
        for shard_id in pending.parts:
            shard = state.shard(shard_id)
            done, raised = self._outcomes(shard.group, pending, pending.parts[shard_id])
            if done:
                answer = next(iter(done.values()))
                state = state.with_shard(shard._replace(**answer._asdict()))
                for replica in raised:
                    replica.retire()  # it lacks what the others have
            else:
                failed[shard_id] = next(iter(raised.values()), None)
        done_by = set(pending.parts) - set(failed)
        state = pending.after(state._replace(pending=None), done_by)
        uninterrupted(self._publish, state, pending.then, failed)
        if state.pending is not None:
            self._finish(state.pending)
        return failed

    def _publish(self, state, then, failed):
        self.state = state
        if then is not None:
            then(failed)

    def _send(self, replica, pending, args):
        return replica.handle.write.remote(pending.number, pending.method, *args)

    def _outcomes(self, group, pending, args):
        """What the replicas of a shard acknowledge, and what they raise, by replica."""
        done: dict[Replica, Acknowledged] = {}
        raised: dict[Replica, Exception] = {}
        for replica in group.live:
            for last in range(_TRIES - 1, -1, -1):
                try:
                    done[replica] = answer_of(replica, pending.sent[replica])
                except UNAVAILABLE:
                    if not last:
                        replica.retire()
                    else:
                        time.sleep(_PAUSE)
                        pending.sent[replica] = self._send(replica, pending, args)
                    continue
                except DIED:
                    pass
                except Exception as error:
                    raised[replica] = error
                break
        return done, raised

    # ---- replicas that died -------------------------------------------------------------------

    def look_after(self) -> None:
        """Replace replicas that died, unless that has to wait: for searches, which do not."""
        if self.joining or any(len(s.group.live) < self.replication for s in self.state.shards):
            if is_held(self._lock):
                return
            try:
                free = self._lock.acquire(blocking=False)
                if free and self.state.pending is None and not self.closed:
                    self._tend()
            finally:
                if is_held(self._lock):  # whatever has interrupted the line above
                    self._lock.release()

    def recover(self, timeout: float | None) -> None:
        """Replace every replica that died, also where that failed before, and wait for it."""
        end = None if timeout is None else time.monotonic() + timeout
        self.errors = {}
        for shard in self.state.shards:
            for replica in shard.group.live:
                with contextlib.suppress(*DIED):  # which is noted
                    answer_of(replica, replica.handle.figures.remote())
        while True:
            with self.lock:
                self.begin()
                references = [join.reference for join in self.joining]
            left = _PAUSE if end is None else end - time.monotonic()
            if not references:
                return
            if left <= 0:
                raise TimeoutError(f"{len(references)} replicas are not open after {timeout:g} s")
            ray.wait(references, timeout=min(left, _PAUSE), fetch_local=False)

    def _tend(self):
        """Take in the replicas that have been opened, and start those that are wanted."""
        for join in self.joining:
            ready, _ = ray.wait([join.reference], timeout=0, fetch_local=False)
            if ready:
                self._take_in(join)
        for shard in self.state.shards:
            live = shard.group.live
            coming = sum(join.shard_id == shard.id for join in self.joining)
            if shard.id in self.errors or (coming and not live):
                continue
            # Of a shard without a live replica one is opened from the save, of which others
            # are copies then.
            wanted = self.replication - len(live) - coming if live else 1
            for _ in range(wanted):
                self._start(shard, live)

    def _start(self, shard: ShardState, live: list[Replica]):
        state = self.state
        options = state.settings.of_shard()
        replica = Replica(start_actor(shard.id, options, self.num_cpus, new_version()))
        if live:
            reference = replica.handle.copy.remote(live[0].handle.state.remote())
            self.joining += (Joining(shard.id, replica, reference, True),)
            return
        lost, removed = state.since_save(shard.id)
        reference = replica.handle.open.remote(state.saved, state.shard_ids, removed, shard.tuned)
        self.joining += (Joining(shard.id, replica, reference, False, tuple(lost)),)

    def _take_in(self, join: Joining):
        state = self.state
        shard = state.shard(join.shard_id)
        self.joining = tuple(other for other in self.joining if other is not join)
        try:
            answer = answer_of(join.replica, join.reference)
        except Exception as error:
            join.replica.retire()
            if not isinstance(error, DIED):  # else it is tried again
                self.errors[shard.id] = str(error)
                logger.warning("shard %d has no new replica: %s", shard.id, error)
            return
        if join.is_copy:
            if answer.version != shard.version:
                join.replica.retire()  # it was being copied when the last replica died
                return
            replicas = (*shard.group.live, join.replica)
        else:
            replicas = (join.replica,)
            if join.lost:
                logger.warning(
                    "shard %d was restarted from its last save, without the last writes of %d "
                    "documents: lost() names them", shard.id, len(join.lost)
                )  # fmt: skip
        changed = ShardState(shard.id, Group(replicas), *answer)
        self.state = state.with_shard(changed).with_lost(state.lost.union(join.lost))

    def close(self) -> None:
        """End all actors; no call does anything after it."""
        self.closed = True
        for shard in self.state.shards:
            for replica in shard.group.replicas:
                replica.retire()
        for join in self.joining:
            join.replica.retire()


def _shared(value):
    """A value that several replicas are sent, as a reference to it where it is large."""
    return ray.put(value) if hasattr(value, "__len__") and len(value) > 64 else value
