"""BatcherState: the requests of a ContinuousBatcher and their sequences in its cache."""

from collections import deque
from collections.abc import Iterable
from itertools import repeat
from typing import Any, NoReturn

import numpy as np

from .._core import validation
from .._core.arrays import address_of
from .._core.state import Handle
from .._core.typing import Bools, Int32s, Int64s
from ..errors import CapacityError
from ..kv.cache import KVCache
from ..kv.kernels.state import FIRST_UNKNOWN, MISSING, QUOTA
from ..kv.state import pages_lack
from ..primitives.hash_table import table_find
from ..primitives.status import (
    ABSENT,
    BAD_TOKEN,
    FULL,
    GROW,
    GROW_SEQUENCES,
    INVALID,
    OK,
    PRESENT,
    REPEATED,
    UNEVEN,
)
from .kernels import continuous as k, queue_state as s, step_advance as a, step_form as f
from .kernels.bitset import bitset_add, bitset_words
from .kernels.sequence_pages import pages_missing
from .kernels.step_deliver import step_deliver
from .kernels.step_form import step_form
from .kernels.step_inputs import N_PARTS
from .request_queue import RequestQueue

NO_IDS = np.zeros(0, np.int64)
_AS_PLANNED = NO_IDS  # no order of its own


class BatcherState:
    """The state of kernels/continuous.py, with what it does to the cache.

    The ContinuousBatcher and the simulated engine are its users. Both hold `queue.lock` and then
    the cache's lock around every call, where several threads have the batcher. Kernels take
    `handle.address`, which never changes; nor does any of the `arrays`. At most `n` requests run.

    A step is formed, and advanced, by one call of a kernel. What that needs besides - room in the
    cache, the domain of a salt, a preemption - is done between calls that each leave a whole state
    behind, so that an error or an interrupt anywhere is followed by a next call that goes on.
    """

    def __init__(
        self, cache: KVCache, queue: RequestQueue, n: int, max_step_tokens: int, max_hold_steps: int
    ) -> None:
        self.cache, self.queue = cache, queue
        most = min(max_step_tokens, cache.n_pages * cache.page_size * n)
        addresses = queue.handle.address, cache._cache_state.handle.address
        numbers = *addresses, max_step_tokens, max_hold_steps
        shapes: list[Any] = [k.N_COUNTS, s.WINDOW, s.WINDOW, n, n, n, n, most, 6, 3, (3, n), (n, 2)]
        integers = [np.zeros(shape, np.int64) for shape in shapes]
        planned, short = np.zeros((2, n), np.bool_), [np.zeros(n, np.int32) for _ in range(3)]
        free_rows = np.zeros(bitset_words(n), np.int64)
        self.arrays = k.Batcher(*numbers, *integers, planned, *short, free_rows)
        self.free_rows()
        self.handle = Handle(self.arrays)
        # By id, the tokens, the salt, and the array at STOP of every request that has not ended:
        # of one that does not run, the tokens are the array at its ADDRESS.
        self.requests: dict[int, tuple[Int32s, Any, Int32s | None]] = {}
        self._domains = cache._cache_state.domains  # those that DOMAIN refers to
        self.places = np.zeros(N_PARTS + 4, np.int64)  # scratch of `inputs`

    # ---- requests ----------------------------------------------------------------------------

    def submit(
        self, tokens: Int32s, salt: Any, max_new: int, now: int, terms: tuple[int, int, int],
        request_id: int | None = None, stop: Int32s | None = None,
    ) -> int:  # fmt: skip
        """Let a request wait and return its id; `terms` as by `RequestQueue.terms`."""
        cache, queue = self.cache._cache_state, self.queue
        domain = cache.domains.get(salt)
        if domain is None:
            with cache.lock:
                domain = cache.domain(salt)
        key = queue.key(now, tokens.size, terms[0], terms[2])
        request = now, tokens.size, *terms, key, max_new, address_of(tokens), domain
        given = self.arrays.given
        given[0] = 0  # an interrupted call may have left it
        if request_id is not None or stop is not None:
            given[1] = ABSENT if request_id is None else request_id
            given[2] = 0 if stop is None else address_of(stop)
            given[0] = 1
        while True:
            expected = queue.meta.item(s.NEXT_ID) if request_id is None else request_id
            if expected in self.requests:
                self._pass_over(request_id)
                continue
            self.requests[expected] = tokens, salt, stop  # before the kernel has the addresses
            id_ = k.step_submit(self.handle.address, *request)
            if id_ == expected:
                return id_
            del self.requests[expected]
            if id_ == PRESENT and request_id is not None:
                raise ValueError(f"request_id {request_id} is that of a sequence in the cache")
            if id_ == GROW:
                queue.grow(1, 1, self._running())
                self.forget_ended()
            elif id_ == FULL:
                self._refuse(tokens.size, max_new, domain)

    def _pass_over(self, request_id):
        """Let NEXT_ID not be that of a live request; ValueError for one that was asked for."""
        self.forget_ended()
        if request_id is None:
            meta = self.queue.meta
            meta[s.NEXT_ID] += int(meta[s.NEXT_ID]) in self.requests
        elif request_id in self.requests:
            raise ValueError(f"request_id {request_id} is in use")

    def _refuse(self, n, new, domain) -> NoReturn:
        quota = self.cache._cache_state.arrays.domain[domain, QUOTA]
        size = self.cache.page_size
        raise ValueError(
            f"{n} prompt tokens and {new} new ones need {-(-(n + new - 1) // size)} pages of "
            f"{size}; the quota of their salt is {quota}"
        )

    def cancel(self, ids: Int64s) -> None:
        """End requests before their time; KeyError if one is unknown or has ended."""
        j = k.step_cancel(self.handle.address, ids)
        if j != ABSENT:
            raise self.queue.absent(ids[j])
        self.forget(ids)

    def forget(self, ids: Int64s) -> None:
        """Let go of the tokens of requests that have ended."""
        _delete(self.requests, ids.tolist())

    def forget_ended(self) -> None:
        """`forget` those that an interrupt has left behind."""
        if len(self.requests) > self.queue.n_live:
            table = self.queue.handle.state.table
            _delete(self.requests, [i for i in self.requests if table_find(table, i) == ABSENT])

    def free_rows(self) -> None:
        """Let `free_rows` be those that no running request has. O(R log R)."""
        self.arrays.free_rows[:] = self._unused_rows()

    def _unused_rows(self):
        free, n = np.zeros_like(self.arrays.free_rows), self.arrays.running.size
        for row in np.setdiff1d(np.arange(n), self.arrays.rows[: self.queue.meta[s.RUNNING]]):
            bitset_add(free, n, int(row))
        return free

    def _running(self):
        return self.arrays.running[: self.queue.meta[s.RUNNING]]

    # ---- steps -------------------------------------------------------------------------------

    def form(self) -> int:
        """Plan the next step and reserve its pages: how many requests it has.

        `arrays` then has the plan. Raises as `ContinuousBatcher.step`.
        """
        now, cache = self.queue.now(), self.cache._cache_state
        if cache.domains is not self._domains:
            self._look_up_again()
        while (outcome := step_form(self.handle.address, now)) != f.FORMED:
            self._provide(outcome)
        if not cache.plain:
            cache.settle()
        return self.arrays.count.item(k.N_PLANNED)

    def _provide(self, outcome):
        """Do what a step that could not be formed needs, or raise why it cannot be."""
        cache, count = self.cache._cache_state, self.arrays.count
        culprit = count.item(k.CULPRIT)
        if outcome == f.NOT_ADVANCED:
            raise RuntimeError("advance() the last step before the next one")
        if outcome == f.NOT_APPENDED:
            self.append()
        elif outcome == f.STRAY:
            raise self.stray(culprit)
        elif outcome == f.CROWDED:
            self._preempt()
        elif outcome == f.STUCK:
            self._stuck()
        elif outcome == f.NEEDS_DOMAIN:
            domain = cache.domain(self.requests[culprit][1])
            if cache.domains is not self._domains:
                self._look_up_again()
            queue = self.queue.handle.state
            queue.request[table_find(queue.table, culprit), k.DOMAIN] = domain
        else:
            cache.grow(GROW if outcome == f.NEEDS_ARENA else GROW_SEQUENCES)

    def _look_up_again(self):
        """Domains of salts in no use were given to other salts: look all of them up again."""
        request = self.queue.handle.state.request
        request[:, k.DOMAIN], self._domains = ABSENT, self.cache._cache_state.domains

    def stray(self, id_: int) -> RuntimeError:
        """The error for a running request whose sequence is not as it was left."""
        return RuntimeError(
            f"sequence {id_} of a running request was detached or changed in the cache by someone "
            f"else: cancel({id_}) it"
        )

    def _stuck(self) -> NoReturn:
        queue = self.queue.handle.state
        if self.arrays.count[k.N_UNKNOWN]:
            raise RuntimeError("deliver() the tokens of the last step: nothing else can run")
        slot, pages = queue.meta.item(s.PARKED_FIRST), self.arrays.count.item(k.LACKING)
        if pages:
            id_, kind = self.arrays.count.item(k.CULPRIT), "pages"
        else:
            id_, kind = queue.request.item(slot, s.ID), "pages of its salt's quota"
            if id_ in self.cache:
                raise CapacityError(
                    f"request {id_} waits until the sequence {id_}, which someone else attached "
                    "in the cache, is detached, and nothing else runs"
                )
            domain, tokens = queue.request.item(slot, k.DOMAIN), self.requests[id_][0]
            _, pages, _ = pages_missing(self.arrays.cache, domain, tokens, 0)
        lacks = f"lacks {pages} {kind}" if pages else f"needs more {kind} than there are"
        raise CapacityError(f"request {id_} {lacks} and nothing runs that could free any")

    def check_number(self, number: int) -> None:
        """Refuse another plan than the last that was formed, by its number."""
        last = self.arrays.count.item(k.NUMBER)
        if number != last:
            raise ValueError(
                f"plan is not the present step of this batcher: its number is {number}, and that "
                f"of the last step is {last}"
            )

    def check_answer(self, ids: Int64s, sampled: Int32s) -> None:
        """Refuse what is not the answer to the present plan; no `sampled`: tokens come later."""
        order = _AS_PLANNED
        while True:
            status, j = a.step_check(self.handle.address, ids, sampled, order)
            if status == GROW:
                self.append()
            elif status == UNEVEN:
                order = np.argsort(self.arrays.plan[0, : self.arrays.count[k.N_PLANNED]])
            else:
                break
        if status == BAD_TOKEN:
            raise RuntimeError("deliver() the tokens of the last step before advance() of this one")
        if status == FULL:
            raise self.stray(j)
        if status == ABSENT:
            validation.distinct(np.sort(ids[ids == ids[j]]), "seq_ids")
            raise ValueError(f"sequence {ids[j]} is not in the present step")
        if status == INVALID:
            raise ValueError(f"sequence {ids[j]} decodes: its token must be >= 0, not {sampled[j]}")
        if status == PRESENT:
            raise ValueError(f"sequence {j} of the present step is not in seq_ids")

    def advance(self, now: int, ids: Int64s, sampled: Int32s, finished: Bools) -> Int64s:
        """Take over a step that `check_answer` accepts; the ids that have ended."""
        status = a.step_advance(self.handle.address, now, ids, sampled, finished)
        done = self._ended()
        if status != OK:
            self.append()
        cache = self.cache._cache_state
        if not cache.plain:
            cache.settle()
        return done

    def _ended(self):
        """The ids that ended in the last call of a kernel, whose tokens are let go of."""
        n, done = self.arrays.count.item(k.N_DONE), NO_IDS
        if n:
            done = self.arrays.done[:n].copy()
            self.forget(done)
        return done

    def deliver(
        self, now: int, ids: Int64s, tokens: Int32s, finished: Bools, number: int = ABSENT
    ) -> Int64s:
        """Name the unknown tokens of requests, of a plan by its number; the ids that end so."""
        self.append()
        cache = self.cache._cache_state
        while True:
            status, j = step_deliver(self.handle.address, now, ids, tokens, finished, number)
            if status == OK:
                break
            if status == ABSENT and j == GROW:
                cache.grow(j)
            else:
                self._refuse_delivery(status, j, ids, tokens)
        done = self._ended()
        if not cache.plain:
            cache.settle()
        return done

    def _refuse_delivery(self, status, j, ids, tokens) -> NoReturn:
        missing = self.cache._cache_state.arrays.meta.item(MISSING)
        if status == INVALID:
            raise ValueError(f"request {ids[j]} has no token to be delivered")
        if status == REPEATED:
            raise ValueError(f"seq_ids must be distinct, but {ids[j]} stands twice")
        if status == BAD_TOKEN:
            raise ValueError(f"the token of request {ids[j]} must be >= 0, not {tokens[j]}")
        if status == FULL:
            raise self.stray(j)
        if j == FULL:
            raise pages_lack(missing)
        raise self.stray(missing)

    def append(self) -> None:
        """Append what was sampled to the sequences that grow, preempting where pages lack."""
        cache = self.cache._cache_state
        while (status := a.step_append(self.handle.address)) != OK:
            if status == FULL:
                self._preempt()
            elif status == GROW:
                cache.grow(status)
            else:
                raise self.stray(cache.arrays.meta.item(MISSING))

    def _preempt(self):
        victim, n = k.step_victim(self.handle.address)
        tokens = np.empty(n, np.int32)
        self.requests[victim] = tokens, *self.requests[victim][1:]  # as in submit
        if k.step_preempt(self.handle.address, victim, tokens) != OK:
            raise self.stray(victim)

    # ---- files and inspection ----------------------------------------------------------------

    def not_running(self) -> list[int]:
        """The ids of the requests that wait or are parked, in the order of arrival."""
        rows = self.queue.handle.state.request[: self.queue.meta[s.FRESH]]
        return rows[np.isin(rows[:, s.STATE], (s.IS_WAITING, s.IS_PARKED)), s.ID].tolist()

    def restore(
        self, tokens: Int32s, ids: list[int], salts: dict[int, Any], stops: dict[int, Int32s]
    ) -> None:
        """Take the requests of a file: the tokens of those that do not run, all salts and stops."""
        request, table = self.queue.handle.state.request, self.queue.handle.state.table
        assert ids == self.not_running(), "requests without tokens"
        end, own = 0, dict.fromkeys(salts, np.zeros(0, np.int32))
        for id_ in ids:
            row = request[table_find(table, id_)]
            own[id_] = tokens[end : end + row[k.LENGTH]].copy()
            end += own[id_].size
            known = own[id_].size - row[k.UNKNOWN]
            assert (own[id_][:known] >= 0).all() and (own[id_][known:] == -1).all(), "UNKNOWN"
        for id_, salt in salts.items():
            row, stop = request[table_find(table, id_)], stops.get(id_)
            row[[k.ADDRESS, k.DOMAIN, k.CACHE_ROW]] = address_of(own[id_]), ABSENT, 0
            row[k.STOP] = 0 if stop is None else address_of(stop)
            self.requests[id_] = own[id_], salt, stop
        assert end == tokens.size, "tokens without a request"
        assert (self._running() >= 0).all() and (self._running() < len(request)).all()

    def warmup(self) -> None:
        """Compile the kernels that only a crowded cache needs; a request waits or runs."""
        pages_missing(self.arrays.cache, ABSENT, np.zeros(1, np.int32), 0)
        if self.queue.meta[s.RUNNING]:
            self._preempt()
        self.append()

    def check(self) -> None:
        """Assert every invariant of kernels/continuous.py. O(n)."""
        self.append()
        self.forget_ended()
        queue, count = self.queue, self.arrays.count
        queue.check()
        request, table = queue.handle.state.request, queue.handle.state.table
        slots, cache = self._running(), self.cache._cache_state.arrays
        runs = np.flatnonzero(request[:, s.STATE] == s.IS_RUNNING)
        assert sorted(slots.tolist()) == runs.tolist()
        rows = request[slots]
        assert (rows[:, k.COMPUTED] + rows[:, k.PLANNED] <= rows[:, k.LENGTH]).all()
        assert (rows[:, k.COMPUTED] < rows[:, k.LENGTH]).all()
        assert (rows[:, k.GENERATED] < rows[:, k.MAX_NEW]).all()
        for row in rows:
            assert self.cache.length(int(row[s.ID])) == row[k.LENGTH]
            unknown = cache.seq_cold[table_find(cache.ids, row[s.ID]), FIRST_UNKNOWN]
            assert unknown == row[k.UNKNOWN] * row[k.LENGTH]
            assert row[k.LENGTH] == row[s.TOKENS] + row[k.GENERATED]
        self._check_plan(rows)
        for id_, (tokens, _, stop) in self.requests.items():
            row = request[table_find(table, id_)]
            assert row[k.STOP] == (0 if stop is None else address_of(stop))
            if row[s.STATE] != s.IS_RUNNING:
                assert row[k.ADDRESS] == address_of(tokens)
                assert tokens.size == row[k.LENGTH] == row[s.TOKENS] + row[k.GENERATED]
        n_live = queue.n_live
        assert len(self.requests) == n_live
        ended = count[k.FINISHED] + count[k.CANCELLED]
        assert count[k.SUBMITTED] == n_live + ended
        live = request[np.isin(request[:, s.STATE], (s.IS_WAITING, s.IS_RUNNING, s.IS_PARKED))]
        assert count[k.N_UNKNOWN] == live[:, k.UNKNOWN].sum() and (live[:, k.UNKNOWN] <= 1).all()
        assert (live[:, k.SINCE] <= count[k.NUMBER]).all()
        assert (live[live[:, k.UNKNOWN] > 0, k.SINCE] < count[k.ADVANCED]).all()
        assert (live[live[:, k.PLANNED] > 0, k.SINCE] < count[k.NUMBER]).all()
        if len(self.cache) == 0:
            assert slots.size == 0

    def _check_plan(self, running):
        """Assert what holds of rows and of the plan, given the running requests."""
        arrays, n = self.arrays, len(running)
        numbers = arrays.rows[:n]
        assert np.unique(numbers).size == n
        assert np.array_equal(arrays.free_rows, self._unused_rows())
        end, n_decode = arrays.count.item(k.N_PLANNED), arrays.count.item(k.N_DECODE)
        plan, number = arrays.plan[:, :end], arrays.plan_rows[:end]
        assert (plan[2, :n_decode] == 1).all() and (plan[2, n_decode:] > 1).all()
        lives = np.isin(plan[0], running[:, s.ID])
        planned = running[:, k.PLANNED]
        order = np.append(np.flatnonzero(planned == 1), np.flatnonzero(planned > 1))
        columns = running[order][:, [s.ID, k.COMPUTED, k.PLANNED]].T
        assert np.array_equal(plan[:, lives], columns)
        assert np.array_equal(number[lives], numbers[order])
        samples = columns[1] + columns[2] == running[order, k.LENGTH]
        assert np.array_equal(arrays.planned[k.SAMPLES, :end][lives], samples)


def stop_array(tokens: Int32s) -> Int32s:
    """The array for STOP of distinct tokens, of which there is one at least."""
    validation.distinct(np.sort(tokens), "stop")
    return np.append(np.int32(tokens.size), tokens)


def _delete(entries: dict[int, Any], keys: Iterable[int]) -> None:
    """Delete entries, all in one call of C code that no interrupt divides; some may be absent."""
    deque(map(entries.pop, keys, repeat(None)), maxlen=0)
