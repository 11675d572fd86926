"""The simulation of RAG serving follows the stated cost models exactly."""

import numpy as np
import pytest

from llmds_nb import AdmissionController, ContinuousBatcher, KVCache, Scheduler
from llmds_nb.tools.replay.engine import (
    EngineStage,
    RetrievalCost,
    RetrievalStage,
    StepCost,
    VirtualClock,
    serve,
)
from llmds_nb.tools.replay.sharing import SharingAudit
from llmds_nb.tools.replay.workload import Workload

STEP = StepCost(base=10.0, prefill_token=1.0, decoding=0.5, kv_token=0.01)
RETRIEVAL = RetrievalCost(base=5.0, searched=2.0, cached=0.25)
MS = 1_000_000


def run(arrivals_ms, prompts, new_tokens, *, qps=None, cached=0, pages=64, batch=4):
    """Serve requests with given prompts; `cached` queries of each batch come from a cache."""
    clock = VirtualClock()
    cache = KVCache(pages, 4)
    batcher = ContinuousBatcher(cache, max_running=8, max_step_tokens=64, clock=clock)
    n = len(arrivals_ms)
    load = Workload(
        np.array(arrivals_ms, np.int64) * MS, np.zeros(n, np.int64), np.array(new_tokens, np.int64)
    )
    ones = np.ones(n, np.int64)
    scheduler = Scheduler(batch, 50.0, policy="fcfs", clock=clock)

    def retrieve(requests):
        return [np.array(prompts[r], np.int32) for r in requests], min(cached, len(requests))

    ended = []
    records = serve(
        load,
        ones,
        clock,
        AdmissionController(qps, burst_ms=1000.0, clock=clock),
        RetrievalStage(scheduler, retrieve, RETRIEVAL, ones),
        EngineStage(
            batcher,
            cache,
            STEP,
            load.new_tokens,
            lambda n: np.full(n, 9, np.int32),
            SharingAudit(4),
        ),
        ended.append,
    )
    assert sum(ended) == n
    assert (records.n_ends == 1).all()
    assert cache.stats().n_used == 0
    cache.check()
    return records


def test_one_request_takes_what_the_formula_says():
    records = run([3], [range(10)], [3])
    retrieved = 3 + 5 + 2
    first = retrieved + 10 + 10 * 1.0 + 10 * 0.01  # prefill of ten tokens
    second = first + 10 + 0.5 + 11 * 0.01  # one sequence decodes, eleven tokens are read
    third = second + 10 + 0.5 + 12 * 0.01
    assert records.retrieved_ns[0] / MS == pytest.approx(retrieved)
    assert records.first_token_ns[0] / MS == pytest.approx(first)
    assert records.end_ns[0] / MS == pytest.approx(third)
    assert records.generated.tolist() == [3]
    assert [step.running for step in records.steps] == [1, 1, 1]
    assert [step.pages_used for step in records.steps] == [3, 3, 3]


def test_a_shared_prefix_is_not_computed_again():
    records = run([0, 1000], [range(10), [*range(8), 90, 91]], [1, 1])
    assert [step.prefill_tokens for step in records.steps] == [10, 2]  # two pages of four cached
    took = (records.end_ns - records.retrieved_ns) / MS
    assert took == pytest.approx([10 + 10 + 0.1, 10 + 2 + 0.1])


def test_a_cached_query_is_charged_less():
    records = run([0], [range(4)], [1], cached=1)
    assert records.retrieved_ns[0] / MS == pytest.approx(5 + 0.25)


def test_requests_that_wait_share_a_retrieval_batch():
    records = run([0, 1, 2, 3, 4, 5], [[i, i] for i in range(6)], [1] * 6)
    assert records.batch_sizes == [1, 4, 1]
    ends = [7, *[7 + 5 + 4 * 2] * 4, 20 + 7]
    assert (records.retrieved_ns / MS).tolist() == pytest.approx(ends)


def test_running_requests_share_their_pages():
    same = list(range(8))
    records = run([0, 100, 100], [same, [*same, 50], [*same, 60]], [40, 2, 2])
    step = max(records.steps, key=lambda step: step.running)
    assert step.running == 3
    assert step.pages_shared == 2
    assert step.pages_needed - step.pages_used == 2 * 2


def test_a_refused_request_ends_at_once():
    records = run([0, 0, 0, 0], [[1, 2]] * 4, [1] * 4, qps=2.0)
    assert records.rejected.tolist() == [False, False, True, True]
    assert records.end_ns[2:].tolist() == [0, 0]
    assert records.generated.tolist() == [1, 1, 0, 0]


def test_preempted_requests_end_with_all_their_tokens():
    prompts = [[10 * i + j for j in range(8)] for i in range(4)]
    records = run([0, 0, 0, 0], prompts, [20] * 4, pages=16)
    assert records.n_preempted > 0
    assert records.generated.tolist() == [20] * 4


def test_nothing_to_do_is_no_error():
    assert run([], [], []).steps == []
