"""ContinuousBatcher against its oracle, any calls in any order."""

import contextlib
from unittest import mock

import numpy as np
import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmds_nb import CapacityError, ContinuousBatcher, KVCache
from llmds_nb.scheduling import continuous
from llmds_nb.scheduling.kernels.queue_state import ID

from .clock import MS, Clock
from .oracle_continuous import PlainBatcher
from .test_continuous import POLICIES, assert_own_slots, sampled_token

# Few distinct prompts with long common beginnings, so that prefixes are shared.
PROMPTS = st.builds(
    lambda stem, n, tail: ([stem] * n + tail)[:14],
    st.integers(0, 1),
    st.integers(0, 12),
    st.lists(st.integers(0, 2), min_size=1, max_size=3),
)


class BatcherMachine(RuleBasedStateMachine):
    @initialize(
        n_pages=st.integers(5, 12),
        sharing=st.booleans(),
        max_running=st.integers(1, 5),
        budget=st.sampled_from([1, 3, 7, 100]),
        policy=st.sampled_from(POLICIES),
        start=st.sampled_from([0, -7, 1_700_000_000 * 10**9]),
        hold=st.sampled_from([0, 1, 16]),
    )
    def start(self, n_pages, sharing, max_running, budget, policy, start, hold):
        self.clock = Clock(start)
        self.caches = [KVCache(n_pages, 4, prefix_sharing=sharing, key=b"k") for _ in range(2)]
        with mock.patch.object(continuous, "_MAX_HOLD_STEPS", hold):
            self.real = ContinuousBatcher(
                self.caches[0],
                max_running=max_running,
                max_step_tokens=budget,
                policy=policy,
                clock=self.clock,
            )
        self.oracle = PlainBatcher(self.caches[1], max_running, budget, policy, start, hold)
        self.texts, self.plan, self.foreign = {}, None, set()

    def live(self):
        return [r["id"] for r in self.oracle.waiting + self.oracle.running]

    @rule(ns=st.integers(-MS, 10 * MS))
    def wait(self, ns):
        self.clock.now += ns

    @rule(
        prompt=PROMPTS,
        max_new=st.integers(1, 6),
        salt=st.sampled_from([0, 0, "a"]),
        slo_ms=st.sampled_from([1.0, 5.0, 1000.0]),
        priority=st.sampled_from([0, 0, 0, 2]),
        tenant=st.sampled_from([0, 0, 3]),
        request_id=st.none() | st.none() | st.integers(0, 12),
        stop=st.sampled_from([(), (), (1,), (0, 3)]),
    )
    def submit(self, prompt, max_new, salt, slo_ms, priority, tenant, request_id, stop):
        self.oracle.tick(self.clock.now)
        kwargs = {"max_new_tokens": max_new, "salt": salt, "slo_ms": slo_ms}
        kwargs |= {"priority": priority, "tenant": tenant, "request_id": request_id}
        if stop:
            kwargs |= {"stop": stop}
        if -(-(len(prompt) + max_new - 1) // 4) > self.oracle.quota(salt):
            reason = r"need . pages|the quota of their salt is ."
            if request_id in self.live():  # is looked at in between
                reason += f"|request_id {request_id} is in use"
            with pytest.raises(ValueError, match=reason):
                self.real.submit(prompt, **kwargs)
            return
        if request_id in self.live() or (request_id is not None and request_id in self.caches[0]):
            with pytest.raises(ValueError, match=f"request_id {request_id} is"):
                self.real.submit(prompt, **kwargs)
            return
        id_ = self.real.submit(prompt, **kwargs)
        given = salt, slo_ms, priority, tenant, request_id, stop
        assert id_ == self.oracle.submit(prompt, max_new, *given)
        self.texts[id_] = list(prompt)

    @rule(salt=st.sampled_from([0, "a"]), n_pages=st.one_of(st.none(), st.integers(1, 6)))
    def set_quota(self, salt, n_pages):
        if self.real.policy != "fair":  # the oracle does not park: tenants would be lifted
            for cache in self.caches:
                cache.set_quota(salt, n_pages)

    @rule(ahead=st.integers(-3, 2), n=st.integers(0, 5))
    def attach_a_sequence_of_ones_own(self, ahead, n):
        id_ = self.oracle.n + ahead
        if id_ < 0 or id_ in self.caches[0] or self.real.policy == "fair":
            return
        for cache in self.caches:
            with contextlib.suppress(CapacityError):
                cache.attach(id_, [7] * n)
        if id_ in self.caches[0]:
            self.foreign.add(id_)

    @precondition(lambda self: self.foreign)
    @rule(data=st.data())
    def detach_a_sequence_of_ones_own(self, data):
        id_ = data.draw(st.sampled_from(sorted(self.foreign)))
        self.foreign.remove(id_)
        for cache in self.caches:
            cache.detach(id_)

    @rule()
    def copy_pages(self):
        moves = [cache.pending_copies() for cache in self.caches]
        assert len(moves[0].src) == len(moves[1].src)

    @precondition(lambda self: self.plan is None)
    @rule()
    def step(self):
        try:
            expected, lost = self.oracle.step()
        except CapacityError:
            error, message = CapacityError, r"request .* nothing"
            if self.oracle.undelivered:
                error, message = RuntimeError, r"deliver\(\) the tokens .* nothing else can run"
            with pytest.raises(error, match=message):
                self.real.step()
            return
        plan = self.real.step()
        assert_own_slots(self.caches[0], plan)
        rows = list(zip(*(column.tolist() for column in plan[:3]), strict=True))
        assert rows == expected
        assert plan.preempted.tolist() == lost and plan.rows.tolist() == self.oracle.rows
        ids, starts, n_tokens = plan[:3]
        lengths = [len(self.texts[id_]) for id_ in ids.tolist()]
        assert plan.samples.tolist() == (starts + n_tokens == lengths).tolist()
        assert (n_tokens[: plan.n_decode] == 1).all() and (n_tokens[plan.n_decode :] > 1).all()
        assert n_tokens.sum() <= self.real.max_step_tokens and (n_tokens > 0).all()
        slots = self.caches[0].slot_mapping(ids, starts, starts + n_tokens)
        assert plan.slots.tolist() == slots.tolist()
        assert bool(plan) == bool(rows)
        if not rows:
            assert not self.live()
        self.plan = plan if rows else None

    @precondition(lambda self: self.plan is not None)
    @rule(padding=st.none() | st.integers(0, 3), spare=st.none() | st.integers(0, 3))
    def inputs(self, padding, spare):
        plan, cache, pad_to, width = self.plan, self.caches[0], None, None
        planned = list(zip(*(column.tolist() for column in plan[:3]), strict=True))
        if padding is not None and plan.n_decode == len(planned):
            pad_to = len(planned) + padding
        expected = self.oracle.inputs(cache, planned, pad_to or 0)
        if spare is not None:
            width = len(expected[-1][0]) + spare
            expected = self.oracle.inputs(cache, planned, pad_to or 0, width)
        found = self.real.inputs(plan, pad_to=pad_to, width=width)
        assert [part.tolist() for part in found[:-1]] == expected
        columns = found.block_table.shape[1]
        size = self.real.inputs_size(len(found.kv_len), len(found.tokens), columns)
        assert found.used == size
        out = np.full(size + 1, -7, np.int32)
        with pytest.raises(ValueError, match=f"out must have {size} entries or more"):
            self.real.inputs(plan, out=out[: size - 1], pad_to=pad_to, width=width)
        with pytest.raises(ValueError, match=f"width must be >= {columns - (spare or 0)}"):
            self.real.inputs(plan, out=out, pad_to=pad_to, width=columns - (spare or 0) - 1)
        assert (out == -7).all()
        again = self.real.inputs(plan, out=out, pad_to=pad_to, width=width)
        assert [part.tolist() for part in again[:-1]] == expected and out[size] == -7
        layout = self.real.inputs_layout(out, len(found.kv_len), len(found.tokens), columns)
        assert layout.used == again.used and layout.sample_rows.size == len(found.kv_len)
        for part, same in zip(layout[:-1], again[:-1], strict=True):
            assert part.ctypes.data == same.ctypes.data or not same.size
            assert part.shape == same.shape or part is layout.sample_rows
        places = [(part.ctypes.data - out.ctypes.data) // 4 for part in again[:-1] if part.size]
        assert places[0] == 0 and places == sorted(places) and not any(p % 16 for p in places)

    @precondition(lambda self: self.plan is not None and not self.oracle.undelivered)
    @rule(data=st.data())
    def refuses_what_was_not_planned(self, data):
        ids = self.plan.seq_ids
        running = {request["id"] for request in self.oracle.running}  # not those of ids given anew
        tokens = np.zeros(ids.size, np.int32)
        with pytest.raises(ValueError, match="not in the present step"):
            self.real.advance([*ids[1:], 10**6], tokens)
        if set(ids.tolist()) & running - {int(ids[0])}:
            with pytest.raises(ValueError, match="is not in seq_ids"):
                self.real.advance(ids[:1], tokens[:1])
        with pytest.raises(RuntimeError, match="advance"):
            if not set(ids.tolist()) & running:
                raise RuntimeError("advance: everything planned was cancelled")
            self.real.step()

    @precondition(lambda self: self.plan is not None)
    @rule(data=st.data(), how=st.sampled_from(["ids", "plan", "sampled", "later"]))
    def advance(self, data, how):
        if self.oracle.undelivered:
            with pytest.raises(RuntimeError, match=r"deliver\(\) the tokens of the last step"):
                self.real.advance(self.plan, None if how == "later" else self.plan.seq_ids)
            self.deliver(data)
        if self.oracle.undelivered:
            return
        ids = data.draw(st.permutations(self.plan.seq_ids.tolist()))
        if how != "ids":
            ids = self.plan.seq_ids.tolist()
        if self.real.policy == "fair" and how == "later":  # the oracle does not park
            how = "plan"
        stops = (self.plan.starts + self.plan.n_tokens).tolist()
        ends = dict(zip(self.plan.seq_ids.tolist(), stops, strict=True))
        sampled, finished = {}, {}
        for id_ in ids:
            due = id_ in self.texts and ends[id_] == len(self.texts[id_])
            sampled[id_] = sampled_token(id_, int(ends[id_])) if due else -1
            finished[id_] = data.draw(st.sampled_from([False] * 9 + [True]))
        tokens, mask = [sampled[id_] for id_ in ids], [finished[id_] for id_ in ids]
        if how == "sampled":  # of the rows that sample, what was sampled
            tokens = [t for t, due in zip(tokens, self.plan.samples, strict=True) if due]
        elif how == "later":
            tokens = None
        done = self.real.advance(ids if how == "ids" else self.plan, tokens, finished=mask)
        assert done.tolist() == self.oracle.advance(sampled, finished, how == "later")
        for id_ in ids:
            if id_ in done.tolist():
                del self.texts[id_]
            elif id_ in self.texts and sampled[id_] >= 0:
                self.texts[id_].append(-1 if how == "later" else sampled[id_])
        self.plan = None

    @precondition(lambda self: self.oracle.undelivered)
    @rule(data=st.data())
    def deliver(self, data):
        due = sorted(self.oracle.undelivered)
        ids = data.draw(st.lists(st.sampled_from([*due, 10**6]), unique=True))
        tokens = [self.oracle.undelivered.get(id_, 0) for id_ in ids]
        finished = {id_: data.draw(st.sampled_from([False] * 5 + [True])) for id_ in ids}
        with pytest.raises(ValueError, match="twice"):
            self.real.deliver([*ids, due[0], due[0]], [*tokens, 1, 1])
        done = self.real.deliver(ids, tokens, finished=list(finished.values()))
        assert done.tolist() == self.oracle.deliver(finished)
        for id_, token in zip(ids, tokens, strict=True):
            if id_ in done.tolist():
                del self.texts[id_]
            elif id_ in self.texts:
                self.texts[id_][-1] = token
        known = [id_ for id_ in self.live() if id_ not in self.oracle.undelivered]
        if known:
            with pytest.raises(
                ValueError, match=f"request {known[0]} has no token to be delivered"
            ):
                ids = [*self.oracle.undelivered, known[0]]
                self.real.deliver(ids, [0] * len(ids))

    @precondition(lambda self: self.live())
    @rule(data=st.data())
    def cancel(self, data):
        some = data.draw(st.lists(st.sampled_from(self.live()), unique=True, max_size=2))
        with pytest.raises(KeyError, match="unknown"):
            self.real.cancel([*some, 10**6])
        self.real.cancel(some)
        for id_ in some:
            self.oracle.cancel(id_)
            del self.texts[id_]

    @invariant()
    def agrees(self):
        if not hasattr(self, "real"):
            return
        self.real.check()
        self.caches[0].check()
        assert [r["id"] for r in self.oracle.running] == self.running_ids()
        for id_ in self.running_ids():
            assert self.caches[0].tokens(id_).tolist() == self.texts[id_]
        for id_, (tokens, *_) in self.real._batcher_state.requests.items():
            if id_ not in self.running_ids():
                assert tokens.tolist() == self.texts[id_]
        stats = self.real.stats()
        assert stats.preempted == self.oracle.n_preempted and stats.held == self.oracle.n_held
        assert len(self.real) == stats.waiting + stats.running == len(self.texts)

    def running_ids(self):
        state = self.real._batcher_state
        slots = state.arrays.running[: self.real.n_running]
        return state.queue.handle.state.request[slots, ID].tolist()


BatcherMachine.TestCase.settings = settings()  # of the profile in conftest
test_agrees_with_the_oracle = BatcherMachine.TestCase
