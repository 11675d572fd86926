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
    )
    def start(self, qps, tokens, burst_ms, start):
        self.clock = Clock(start)
        self.control = AdmissionController(qps, tokens, burst_ms=burst_ms, clock=self.clock)
        self.oracle = PlainAdmission(qps, tokens, burst_ms, start)
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
    ],
)
def test_refuses_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_takes_an_empty_batch():
    assert AdmissionController(1).admit_many([]).size == 0


def test_reasons_of_refusals_are_not_statuses():
    statuses = {value for value in vars(status).values() if isinstance(value, int)}
    assert not statuses & {token_bucket.BY_QPS, token_bucket.BY_TOKENS, token_bucket.BY_SIZE}
