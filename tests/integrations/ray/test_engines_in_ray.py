"""RoutedEngines in real Ray: actors that are killed lose no request."""

import dataclasses
import os
import signal

import numpy as np
import pytest

pytest.importorskip("ray", reason="Ray is not installed")
pytest.importorskip("torch", reason="torch is not installed")

import ray

from llmds_nb.integrations.ray.engines import RoutedEngines

from .test_engines import answers, make_engine, workload


def process_of(actor):
    """The process in which an actor runs."""
    return ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))


@pytest.mark.nightly
def test_killed_actors_lose_no_request(cluster, amount, figures):
    if not amount(False, True):
        pytest.skip("actors take half a minute to make engines: nightly; test_engines simulates it")
    prompts, params = workload(amount(10, 120))
    params = [dataclasses.replace(own, seed=i) for i, own in enumerate(params)]
    with make_engine() as engine:
        expected = engine.generate(prompts, params, progress=False)
    rng = np.random.default_rng(0)
    n_killed = 0
    with RoutedEngines(make_engine, 2, num_cpus=0.5, max_attempts=99) as engines:
        assert answers(engines.generate(prompts, params, progress=False)) == answers(expected)
        for _ in range(amount(1, 25)):
            if len(engines) == 1:
                engines.add()
            victim = engines._fleet.members[engines.engines[rng.integers(2)]]
            process = process_of(victim.actor)
            requests = [engines.submit(p, q) for p, q in zip(prompts, params, strict=True)]
            for request in requests[: rng.integers(len(requests))]:
                next(request)
            os.kill(process, signal.SIGKILL)
            n_killed += 1
            assert answers([r.result() for r in requests]) == answers(expected)
            engines.check()
        stats = engines.stats()
        assert stats.failed == 0 and stats.failed_engines == n_killed
        assert sorted(stats.engines) == engines.engines
        figures(killed=n_killed, rerun=stats.rerun)
