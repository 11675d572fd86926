"""BatcherState: the requests of a ContinuousBatcher and their sequences in its cache."""

from typing import Any

import numpy as np

from .._core.state import Handle
from .._core.typing import Int32s, Int64s
from ..errors import CapacityError
from ..kv.cache import KVCache
from ..primitives.hash_table import table_find
from ..primitives.status import ABSENT, GROW, INVALID
from .kernels import continuous as k, queue_state as s
from .kernels.sequence_pages import pages_missing
from .request_queue import RequestQueue

Batcher: Any = k.Batcher  # a named tuple class: see _core/state.py


class BatcherState:
    """The state of kernels/continuous.py, with what it does to the cache.

    The ContinuousBatcher and the simulated engine are its users. Both hold `queue.lock` and then
    the cache's lock around every call, where several threads have the batcher.

    Attributes
    ----------
    handle : Handle
        Over the Batcher: kernels take `handle.address`, which never changes.
    queue : RequestQueue
    cache : KVCache
    tokens : dict
        The tokens int32[n] of each waiting request, by id.
    salts : dict
        The salt of each waiting or running request, by id.
    preempted : list of int
        Requests that lost their pages since the list was last cleared.
    """

    def __init__(
        self, cache: KVCache, queue: RequestQueue, max_running: int, max_step_tokens: int
    ) -> None:
        self.cache, self.queue = cache, queue
        most = min(max_step_tokens, cache.n_pages * cache.page_size * max_running)
        self.handle = Handle(
            Batcher(
                queue=queue.handle.address,
                cache=cache._cache_state.handle.address,
                max_step_tokens=max_step_tokens,
                count=np.zeros(k.N_COUNTS, np.int64),
                first_tokens=np.zeros(k.WINDOW, np.int64),
                latencies=np.zeros(k.WINDOW, np.int64),
                running=np.zeros(max_running, np.int64),
                plan=np.zeros((3, max_running), np.int64),
                is_prefill=np.zeros(max_running, np.bool_),
                slots=np.empty(most, np.int64),
                growing=np.zeros(max_running, np.int64),
                sampled=np.zeros(max_running, np.int32),
                committed=np.zeros((max_running, 2), np.int64),
                done=np.zeros(max_running, np.int64),
            )
        )
        self.arrays: Any = self.handle.state  # never replaced
        self.tokens: dict[int, Int32s] = {}
        self.salts: dict[int, Any] = {}
        self.preempted: list[int] = []

    def submit(self, tokens: Int32s, salt: Any, max_new: int, *terms: int) -> int:
        """Let a request wait and return its id; `terms` as by `request_terms`."""
        request = self.queue.new_request(tokens.size, *terms)
        id_ = k.step_submit(self.handle.address, *request, max_new)
        if id_ == GROW:
            self._grow()
            id_ = k.step_submit(self.handle.address, *request, max_new)
        self.tokens[id_] = tokens
        self.salts[id_] = salt
        return id_

    def _grow(self):
        queue = self.queue
        running = self.arrays.running[: queue.n_running]
        ids = queue.handle.state.request[running, s.ID]
        queue.grow(1, 1)
        k.running_find(self.handle.address, ids)  # slots have changed

    def form(self) -> tuple[int, int]:
        """Plan the next step and reserve its pages: (requests, tokens), as `step_plan` writes it.

        Raises
        ------
        RuntimeError, CapacityError
            As `ContinuousBatcher.step`.
        """
        n, end = k.step_form(self.handle.address)
        if n == INVALID:
            raise RuntimeError("advance() the last step before the next one")
        return (n, end) if n >= 0 else self.admit(end)

    def admit(self, budget: int) -> tuple[int, int]:
        """Let waiting requests run while budget and pages last; then plan the step."""
        handle, now = self.handle.address, self.queue.now()
        while True:
            slot, id_, _ = k.step_next(handle, budget)
            if slot == ABSENT:
                break
            lacking = self._lacking(id_)
            if lacking and not self.queue.n_running:
                raise CapacityError(
                    f"request {id_} lacks {lacking} pages and nothing runs that could free any"
                )
            if lacking:
                break
            hits = self.cache.attach(id_, self.tokens[id_], salt=self.salts[id_])
            del self.tokens[id_]
            budget = k.step_admit(handle, now, slot, hits, budget)
        return k.step_plan(handle)

    def _lacking(self, id_):
        state = self.cache._cache_state
        domain = state.domains.get(self.salts[id_], ABSENT)
        return pages_missing(state.handle.address, domain, self.tokens[id_], self.queue.n_running)

    def append(self, n: int) -> None:
        """Append `sampled[:n]` to the sequences `growing[:n]`, preempting where pages lack."""
        ids, tokens = self.arrays.growing[:n], self.arrays.sampled[:n]
        while ids.size:
            try:
                self.cache.append_many(ids, tokens)
                return
            except CapacityError:
                victim, computed = k.step_victim(self.handle.address)
            own = ids == victim
            self._preempt(victim, computed, tokens[own])
            ids, tokens = ids[~own], tokens[~own]

    def _preempt(self, id_, computed, appended):
        """Take a running request's pages; `appended` is what it was about to append."""
        self.cache.commit(id_, computed)
        self.tokens[id_] = np.concatenate([self.cache.tokens(id_), appended])
        self.cache.detach(id_)
        k.step_preempt(self.handle.address, id_)
        self.preempted.append(id_)

    def end(self, ids: Int64s) -> None:
        """Forget requests, waiting or running, and what the cache holds for them."""
        if ids.size:
            numbers = ids.tolist()
            self.cache.detach([id_ for id_ in numbers if id_ not in self.tokens])
            k.step_end(self.handle.address, ids)
            for id_ in numbers:
                self.tokens.pop(id_, None)
                del self.salts[id_]

    def cancel(self, ids: Int64s) -> None:
        """End requests before their time; KeyError if one is unknown or has ended."""
        for id_ in ids.tolist():
            if id_ not in self.salts:
                raise self.queue.absent(id_)
        self.end(ids)
        self.arrays.count[k.CANCELLED] += ids.size

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, without the cache's."""
        arrays = [*self.tokens.values(), *self.arrays[3:]]
        return self.queue.nbytes + sum(array.nbytes for array in arrays)

    def check(self) -> None:
        """Assert every invariant of kernels/continuous.py. O(n)."""
        queue, count = self.queue, self.arrays.count
        queue.check()
        request, table = queue.handle.state.request, queue.handle.state.table
        slots = self.arrays.running[: queue.n_running]
        runs = np.flatnonzero(request[:, s.STATE] == s.IS_RUNNING)
        assert sorted(slots.tolist()) == runs.tolist()
        rows = request[slots]
        assert (rows[:, k.COMPUTED] + rows[:, k.PLANNED] <= rows[:, k.LENGTH]).all()
        assert (rows[:, k.COMPUTED] < rows[:, k.LENGTH]).all()
        assert (rows[:, k.GENERATED] < rows[:, k.MAX_NEW]).all()
        for row in rows:
            assert self.cache.length(int(row[s.ID])) == row[k.LENGTH]
            assert row[k.LENGTH] == row[s.TOKENS] + row[k.GENERATED]
        for id_, tokens in self.tokens.items():
            row = request[table_find(table, id_)]
            assert row[s.STATE] == s.IS_WAITING
            assert tokens.size == row[k.LENGTH] == row[s.TOKENS] + row[k.GENERATED]
        n_live = queue.n_waiting + queue.n_running
        assert len(self.tokens) == queue.n_waiting and len(self.salts) == n_live
        ended = count[k.FINISHED] + count[k.CANCELLED]
        assert count[k.SUBMITTED] == queue.meta[s.NEXT_ID] == n_live + ended
