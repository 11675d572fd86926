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


class BatcherState:
    """The state of kernels/continuous.py, with what it does to the cache.

    The ContinuousBatcher and the simulated engine are its users. Both hold `queue.lock` and then
    the cache's lock around every call, where several threads have the batcher. Kernels take
    `handle.address`, which never changes; nor does any of the `arrays`. At most `n` requests run.
    """

    def __init__(self, cache: KVCache, queue: RequestQueue, n: int, max_step_tokens: int) -> None:
        self.cache, self.queue = cache, queue
        most = min(max_step_tokens, cache.n_pages * cache.page_size * n)
        numbers = queue.handle.address, cache._cache_state.handle.address, max_step_tokens
        shapes: list[Any] = [k.N_COUNTS, s.WINDOW, s.WINDOW, n, n, n, most, (3, n), (n, 2)]
        integers = [np.zeros(shape, np.int64) for shape in shapes]
        is_prefill, sampled = np.zeros(n, np.bool_), np.zeros(n, np.int32)
        self.arrays = k.Batcher(*numbers, *integers, is_prefill, sampled)
        self.handle = Handle(self.arrays)
        self.tokens: dict[int, Int32s] = {}  # of each waiting request, by id
        self.salts: dict[int, Any] = {}  # of each waiting or running request
        self.preempted: list[int] = []  # ids that lost their pages since this was last cleared

    def submit(self, tokens: Int32s, salt: Any, max_new: int, *terms: int) -> int:
        """Let a request wait and return its id; `terms` as by `RequestQueue.terms`."""
        request = self.queue.new_request(tokens.size, *terms)
        id_ = k.step_submit(self.handle.address, *request, max_new)
        if id_ == GROW:
            self._grow()
            id_ = k.step_submit(self.handle.address, *request, max_new)
        self.tokens[id_] = tokens
        self.salts[id_] = salt
        return id_

    def _grow(self):
        queue, running = self.queue, self._running()
        ids = queue.handle.state.request[running, s.ID]
        queue.grow(1, 1)
        running[:] = queue.find(ids)[0]  # slots have changed

    def _running(self):
        return self.arrays.running[: self.queue.meta[s.RUNNING]]

    def form(self) -> tuple[int, int]:
        """Plan the next step and reserve its pages: (requests, tokens), as `step_plan` writes it.

        Raises as `ContinuousBatcher.step`.
        """
        n, end = k.step_form(self.handle.address)
        if n == INVALID:
            raise RuntimeError("advance() the last step before the next one")
        return (n, end) if n >= 0 else self.admit(end)

    def admit(self, budget: int) -> tuple[int, int]:
        """Let waiting requests run while budget and pages last; then plan the step."""
        handle, now, cache = self.handle.address, self.queue.now(), self.cache._cache_state
        while True:
            slot, id_, _ = k.step_next(handle, budget)
            if slot == ABSENT:
                break
            tokens, salt = self.tokens[id_], self.salts[id_]
            domain, running = cache.domains.get(salt, ABSENT), self.queue.meta.item(s.RUNNING)
            lacking = pages_missing(cache.handle.address, domain, tokens, running)
            if lacking and not running:
                raise CapacityError(
                    f"request {id_} lacks {lacking} pages and nothing runs that could free any"
                )
            if lacking:
                break
            hits = self.cache.attach(id_, tokens, salt=salt)
            del self.tokens[id_]
            budget = k.step_admit(handle, now, slot, hits, budget)
        return k.step_plan(handle)

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
            self.cache.commit(victim, computed)
            self.tokens[victim] = np.concatenate([self.cache.tokens(victim), tokens[own]])
            self.cache.detach(victim)
            k.step_preempt(self.handle.address, victim)
            self.preempted.append(victim)
            ids, tokens = ids[~own], tokens[~own]

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

    def check(self) -> None:
        """Assert every invariant of kernels/continuous.py. O(n)."""
        queue, count = self.queue, self.arrays.count
        queue.check()
        request, table = queue.handle.state.request, queue.handle.state.table
        slots = self._running()
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
        n_live = queue.meta[s.WAITING] + slots.size
        assert len(self.tokens) == queue.meta[s.WAITING] and len(self.salts) == n_live
        ended = count[k.FINISHED] + count[k.CANCELLED]
        assert count[k.SUBMITTED] == queue.meta[s.NEXT_ID] == n_live + ended
