"""AdmissionController against its oracle, and the exactness of its limits."""

import math

import numpy as np
import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from llmds_nb import AdmissionController
from llmds_nb.primitives import status
from llmds_nb.scheduling.kernels import token_bucket

from .clock import Clock
from .oracle_admission import PlainAdmission

SECOND = 10**9
RATES = st.sampled_from([None, 0.001, 0.3, 1, 2.5, 7, 333.3, 10**6])


class AdmissionMachine(RuleBasedStateMachine):
    @initialize(
        qps=RATES,
        tokens=RATES,
        burst_ms=st.sampled_from([0.001, 10.0, 1000.0, 12345.678]),
        start=st.sampled_from([0, 1_700_000_000 * SECOND, -5]),
        key_limit=st.tuples(RATES, RATES),
    )
    def start(self, qps, tokens, burst_ms, start, key_limit):
        self.clock = Clock(start)
        self.control = AdmissionController(
            qps, tokens, burst_ms=burst_ms, clock=self.clock, key_limit=key_limit
        )
        self.oracle = PlainAdmission(qps, tokens, burst_ms, start, key_limit)
        self.limits_keys = key_limit != (None, None)
        self.admitted = 0

    @rule(
        ns=st.one_of(st.integers(0, 10**6), st.integers(-(10**12), 10**12), st.just(10**18)),
    )
    def wait(self, ns):
        self.clock.now = min(self.clock.now + ns, 2**62)

    @rule(tokens=st.integers(0, 20))
    def admit(self, tokens):
        answer = self.control.admit(tokens)
        assert answer == self.oracle.admit(tokens, self.clock.now)
        self.admitted += answer.admitted

    @rule(tokens=st.integers(0, 20), key=st.sampled_from([0, "0", b"a"]))
    def admit_keyed(self, tokens, key):
        if not self.limits_keys:
            with pytest.raises(ValueError, match="give key_limit"):
                self.control.admit(tokens, key=key)
            return
        answer = self.control.admit(tokens, key=key)
        assert answer == self.oracle.admit(tokens, self.clock.now, key)
        self.admitted += answer.admitted

    @rule(
        reserved=st.integers(0, 30), used=st.integers(0, 30),
        key=st.sampled_from([None, 0, "0", b"a"]),
    )  # fmt: skip
    def settle(self, reserved, used, key):
        key = key if self.limits_keys else None
        self.control.settle(reserved, used, key=key)
        self.oracle.settle(reserved, used, self.clock.now, key)

    @rule(tokens=st.lists(st.integers(0, 2000), max_size=6))
    def admit_many(self, tokens):
        expected = [self.oracle.admit(n, self.clock.now)[0] for n in tokens]
        assert self.control.admit_many(tokens).tolist() == expected
        self.admitted += sum(expected)

    @invariant()
    def holds(self):
        if hasattr(self, "control"):
            self.oracle.advance(self.clock.now)  # stats() lets time pass too
            self.control.check()
            assert self.control.stats().admitted == self.admitted


AdmissionMachine.TestCase.settings = settings()  # of the profile in conftest
test_agrees_with_rational_arithmetic = AdmissionMachine.TestCase


@pytest.mark.parametrize(("qps", "tokens"), [(7.0, None), (None, 100.0), (0.3, 999.9)])
def test_retry_after_is_exact_to_the_nanosecond(qps, tokens):
    clock = Clock()
    control = AdmissionController(qps, tokens, burst_ms=5000.0, clock=clock)
    while (answer := control.admit(37)).admitted:
        pass
    wait = round(answer.retry_after_ms * 1e6)
    clock.now += wait - 1
    assert not control.admit(37).admitted
    clock.now += 1
    assert control.admit(37).admitted


def test_does_not_drift_over_a_million_calls_a_second_apart():
    clock = Clock()
    control = AdmissionController(7, clock=clock)
    control.admit_many(np.zeros(7, np.int64))
    for _ in range(10**6):
        clock.now += SECOND // 7 + 1  # one request flows in, and a little more
        control.admit()
    assert control.stats().admitted == 10**6 + 7
    control = AdmissionController(7, clock=clock)
    assert control.admit_many(np.zeros(7, np.int64)).all()
    admitted = 0
    for _ in range(10**5):
        clock.now += SECOND // 7  # a hair less: 6/7 ns short, so a refusal now and then
        admitted += control.admit().admitted
    assert admitted == 10**5 * (SECOND // 7) * 7 // SECOND


def test_names_the_bucket_that_takes_longer():
    clock = Clock()
    control = AdmissionController(1, 10, clock=clock)
    assert control.admit(10) == (True, "ok", 0.0)
    assert control.admit(5) == (False, "qps", 1000.0)
    clock.now += SECOND // 2
    assert control.admit(10) == (False, "qps", 500.0)
    assert control.admit(0) == (False, "qps", 500.0)
    clock.now += SECOND // 2
    assert control.admit(9).admitted
    clock.now += SECOND // 10
    assert control.admit(3) == (False, "qps", 900.0)
    assert control.admit((10.0).__int__()) == (False, "qps", 900.0)
    assert control.admit(11) == (False, "too_large", math.inf)
    stats = control.stats()
    assert (stats.admitted, stats.refused_by_qps, stats.too_large) == (2, 5, 1)
    assert stats.refused_tokens == 5 + 10 + 0 + 3 + 10 + 11


def test_a_refusal_takes_nothing_from_the_other_bucket():
    control = AdmissionController(5, 10, clock=Clock())
    assert control.admit_many([10, 1, 1, 1, 1, 1, 0]).tolist() == [True] + [False] * 5 + [True]
    assert control.stats().available_requests == 3.0


def test_a_clock_that_goes_back_admits_nothing_extra():
    clock = Clock(100 * SECOND)
    control = AdmissionController(1, clock=clock)
    assert control.admit().admitted
    for _ in range(1000):
        clock.now -= SECOND
        assert not control.admit().admitted
        clock.now += SECOND
        assert not control.admit().admitted
    clock.now += SECOND
    assert control.admit().admitted


def test_without_limits_everything_is_admitted():
    control = AdmissionController(clock=Clock())
    assert control.admit_many([2**40] * 5).all()
    stats = control.stats()
    assert stats.available_requests == stats.available_tokens == math.inf
    assert "qps_limit=None" in repr(control)


def test_averages_approach_the_true_rates():
    clock = Clock()
    control = AdmissionController(50, clock=clock)
    for _ in range(6000):
        clock.now += SECOND // 100
        control.admit(20)
    stats = control.stats()
    assert stats.qps == pytest.approx(100, rel=0.01)
    assert stats.admitted_qps == pytest.approx(50, rel=0.01)
    assert stats.admitted_token_rate == pytest.approx(1000, rel=0.01)
    clock.now += 3600 * SECOND
    assert control.stats().qps < 1e-9
    assert repr(control).startswith("<AdmissionController: qps_limit=50, token_rate_limit=None")
    assert control.nbytes > 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: AdmissionController(0), ValueError, "qps_limit must be > 0"),
        (lambda: AdmissionController(-1), ValueError, "qps_limit"),
        (lambda: AdmissionController(math.nan), ValueError, "qps_limit"),
        (lambda: AdmissionController(math.inf), ValueError, "qps_limit"),
        (lambda: AdmissionController("3"), TypeError, "qps_limit"),
        (lambda: AdmissionController(1e-7), ValueError, "beyond exact arithmetic"),
        (lambda: AdmissionController(None, 1e12), ValueError, "beyond exact arithmetic"),
        (lambda: AdmissionController(1.5, burst_ms=1e12), ValueError, "beyond exact"),
        (lambda: AdmissionController(burst_ms=0), ValueError, "burst_ms must be > 0"),
        (lambda: AdmissionController(clock=5), TypeError, "clock"),
        (lambda: AdmissionController(clock=lambda: 1.5), TypeError, "clock"),
        (lambda: AdmissionController(clock=lambda: 2**63), ValueError, "clock"),
        (lambda: AdmissionController().admit(-1), ValueError, "tokens must be >= 0"),
        (lambda: AdmissionController().admit(1.5), TypeError, "tokens"),
        (lambda: AdmissionController().admit(2**41), ValueError, "tokens"),
        (lambda: AdmissionController().admit_many([1, -1]), ValueError, "tokens"),
        (lambda: AdmissionController().admit_many([0.5]), TypeError, "tokens"),
        (lambda: AdmissionController(key_limit="1"), TypeError, "key_limit must be a number or"),
        (lambda: AdmissionController(key_limit=(1, 2, 3)), TypeError, "key_limit"),
        (lambda: AdmissionController(key_limit=(1, -2)), ValueError, "key_limit must be > 0"),
        (lambda: AdmissionController(key_limit=True), TypeError, "key_limit"),
        (lambda: AdmissionController(key_limit=1, max_keys=1), ValueError, "max_keys"),
        (lambda: AdmissionController(key_limit=1).admit(1, key=1.5), TypeError, "key must be int"),
        (lambda: AdmissionController(key_limit=1).admit(1, key=True), TypeError, "key must be"),
        (lambda: AdmissionController().admit(1, key="a"), ValueError, "give key_limit"),
        (lambda: AdmissionController().settle(-1, 0), ValueError, "reserved must be >= 0"),
        (lambda: AdmissionController().settle(0, 1.5), TypeError, "used"),
        (lambda: AdmissionController().settle(0, 2**41), ValueError, "used"),
    ],
)
def test_refuses_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_settles_what_was_used_against_what_was_reserved():
    clock = Clock()
    control = AdmissionController(None, 10, clock=clock)
    assert control.admit(8).admitted
    control.settle(8, 3)  # five come back
    assert control.stats().available_tokens == 7
    control.settle(5, 0)
    assert control.stats().available_tokens == 10  # never more than full
    assert control.admit(10).admitted
    control.settle(10, 30)  # twenty are owed: two seconds
    assert control.stats().available_tokens == -20
    assert control.admit(1) == (False, "tokens", 2100.0)
    clock.now += 2 * SECOND
    assert control.admit(1) == (False, "tokens", 100.0)
    clock.now += 10 * SECOND
    assert control.stats().available_tokens == 10
    for _ in range(100):
        control.settle(0, 2**40)
    control.check()
    assert -2_400_000_000 < control.stats().available_tokens < -2_200_000_000
    assert control.stats().settled_tokens == 100 * 2**40 + 20 - 10


def test_keys_have_limits_of_their_own_and_full_ones_are_forgotten():
    clock = Clock()
    control = AdmissionController(10**6, key_limit=(2, 100), clock=clock, max_keys=256)
    assert [control.admit(1, key="a").reason for _ in range(3)] == ["ok", "ok", "key_qps"]
    assert control.admit(1, key=b"a").admitted  # another key
    assert control.admit(99, key=7).admitted
    assert control.admit(2, key=7) == (False, "key_tokens", 10.0)
    control.settle(99, 9, key=7)
    assert control.admit(2, key=7).admitted
    assert control.admit(101, key=8) == (False, "too_large", math.inf)
    bytes_before = control.nbytes
    for i in range(20_000):
        clock.now += SECOND // 100  # a bucket is full again after 50 others
        assert control.admit(1, key=1000 + i).admitted
        if i % 100 == 0:
            control.check()
    assert control.nbytes < bytes_before + 256 * 24 and control.stats().keys <= 256
    assert control.stats().refused_by_key_qps == 1 == control.stats().refused_by_key_tokens


def test_too_many_keys_are_bounded_and_those_nearly_full_go_first():
    clock = Clock()
    control = AdmissionController(key_limit=0.001, burst_ms=10**7, clock=clock, max_keys=100)
    for key in range(1000):
        clock.now += SECOND
        for _ in range(10 if key % 50 == 0 else 1):
            assert control.admit(key=key).admitted
        control.check()
    assert control.stats().keys <= 100
    assert not control.admit(key=0).admitted  # it had used up everything, and is still known


@pytest.mark.parametrize("call", ["admit", "admit_many", "settle", "stats"])
def test_a_clock_that_raises_or_calls_back_changes_nothing(call):
    def clock():
        if fails:
            raise OSError("no clock")
        if control is not None:
            control.check()
        return 0

    fails, control = False, None
    control = AdmissionController(10, 100, key_limit=5, clock=clock)
    arguments = {"admit": (5,), "admit_many": ([1, 2],), "settle": (3, 1), "stats": ()}[call]
    before, fails = control.stats(), True
    for _ in range(2):
        with pytest.raises(OSError, match="no clock"):
            getattr(control, call)(*arguments)
    fails = False
    assert control.stats() == before
    getattr(control, call)(*arguments)


def test_takes_an_empty_batch():
    assert AdmissionController(1).admit_many([]).size == 0


def test_reasons_of_refusals_are_not_statuses():
    statuses = {value for value in vars(status).values() if isinstance(value, int)}
    assert not statuses & {token_bucket.BY_QPS, token_bucket.BY_TOKENS, token_bucket.BY_SIZE}
