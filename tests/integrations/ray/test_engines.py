"""RoutedEngines: the tokens of one Engine, whatever happens to the engines."""

import asyncio
import threading
from functools import partial

import numpy as np
import pytest

pytest.importorskip("ray", reason="Ray is not installed")
pytest.importorskip("torch", reason="torch is not installed")

from llmds_nb.integrations.ray import engines as engines_module, starting, waiting
from llmds_nb.integrations.ray.engines import RoutedEngines
from llmds_nb.integrations.ray.members import EngineFailedError
from llmds_nb.integrations.transformers import Engine, SamplingParams
from llmds_nb.integrations.transformers.random_models import byte_tokenizer, random_model

from .local_ray import LocalRay

SIZES = {"num_hidden_layers": 2, "hidden_size": 32, "max_position_embeddings": 256}


def make_engine(n_pages=96, **options):
    options = {"tokenizer": byte_tokenizer(), "page_size": 4, "max_running": 16, **options}
    return Engine(random_model("llama", **SIZES), n_pages=n_pages, **options)


def workload(n=24, seed=0):
    """Prompts that begin alike in four groups, and how to sample for each."""
    rng = np.random.default_rng(seed)
    heads = rng.integers(5, 512, (4, 24)).tolist()
    prompts = [
        heads[rng.integers(4)] + rng.integers(5, 512, rng.integers(1, 12)).tolist()
        for _ in range(n)
    ]
    kinds = [{}, {"temperature": 0.8, "seed": 7}, {"temperature": 1.2}, {"stop": "e"}]
    params = [
        SamplingParams(max_new_tokens=int(rng.integers(2, 20)), **kinds[i % 4]) for i in range(n)
    ]
    return prompts, params


@pytest.fixture(scope="module")
def expected():
    prompts, params = workload()
    with make_engine() as engine:
        return engine.generate(prompts, params, progress=False)


@pytest.fixture
def local(monkeypatch):
    fake = LocalRay()
    monkeypatch.setattr(engines_module, "ray", fake)
    monkeypatch.setattr(starting, "ray", fake)
    return fake


def answers(results):
    return [(r.token_ids, r.text, r.finish_reason) for r in results]


@pytest.mark.parametrize("turn_ms", [0.0, 10.0])
def test_tokens_are_those_of_one_engine(local, expected, turn_ms):
    prompts, params = workload()
    with RoutedEngines(make_engine, 3, turn_ms=turn_ms) as engines:
        assert answers(engines.generate(prompts, params, progress=False)) == answers(expected)
        stats = engines.stats()
        assert stats.finished == stats.submitted == 24 and stats.cached_tokens > 0
        assert sum(s.finished for s in stats.engines.values()) == 24
        assert sum(s.finished > 0 for s in stats.engines.values()) > 1
        assert stats.hit_ratio == stats.cached_tokens / sum(map(len, prompts))
        engines.check()


def test_copies_of_a_prompt_are_those_of_one_engine(local):
    options = {"n": 3, "temperature": 1.0, "max_new_tokens": 6, "logprobs": 2, "progress": False}
    with make_engine() as engine:
        wanted = engine.generate([[5, 6, 7], "text"], **options)
    with RoutedEngines(make_engine, 2) as engines:
        found = engines.generate([[5, 6, 7], "text"], **options)
    assert answers(found) == answers(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert [p.sampled for p in a.logprobs] == pytest.approx(
            [p.sampled for p in b.logprobs], abs=1e-4
        )
        assert [list(p.top) for p in a.logprobs] == [list(p.top) for p in b.logprobs]


@pytest.mark.parametrize("seed", range(3))
def test_when_engines_die_their_requests_run_again(local, expected, seed):
    prompts, params = workload()
    rng = np.random.default_rng(seed)
    with RoutedEngines(make_engine, 4, turn_ms=0.0, max_attempts=9) as engines:
        for actor in local.actors[: rng.integers(1, 4)]:
            actor.dies_after = int(rng.integers(1, 12))
        requests = [engines.submit(p, q) for p, q in zip(prompts, params, strict=True)]
        streamed = []
        for request in requests:
            streamed.append(list(request))
            engines.check()
        assert [r.result()[2:4] + r.result()[5:6] for r in requests] == [
            (r.token_ids, r.text, r.finish_reason) for r in expected
        ]
        assert streamed == [r.token_ids for r in expected]
        stats = engines.stats()
        dead = sum(actor.dead for actor in local.actors)
        assert stats.failed_engines == dead == 4 - len(engines)
        assert stats.failed == 0 and stats.finished == 24
        number = engines.add()
        assert number == 4 and engines.engines[-1] == 4
        assert engines.submit(prompts[0], params[0]).result().token_ids == expected[0].token_ids
        engines.check()


def test_without_an_engine_requests_are_reported_and_add_begins_anew(local):
    with RoutedEngines(make_engine, 2, turn_ms=0.0) as engines:
        for actor in local.actors:
            actor.dies_after = 3
        requests = [engines.submit([5, 6, i], max_new_tokens=40) for i in range(7, 12)]
        for request in requests:
            with pytest.raises(EngineFailedError, match="no engine is left"):
                list(request)
            assert request.finish_reason == "error" and len(request.tokens) <= 3
            with pytest.raises(EngineFailedError):
                request.result()
        with pytest.raises(EngineFailedError, match="no engine is left: add"):
            engines.submit([5])
        with pytest.raises(EngineFailedError):
            engines.generate([[5]], progress=False)
        engines.check()
        assert engines.stats().failed == 5 and len(engines) == 0
        assert engines.add() == 2
        assert len(engines.generate([[5]], max_new_tokens=3, progress=False)[0].token_ids) == 3
        engines.check()


def test_a_request_that_engines_die_of_is_given_up(local):
    with RoutedEngines(make_engine, 5, turn_ms=0.0, max_attempts=2) as engines:
        request = engines.submit([5, 6], max_new_tokens=9)
        for actor in local.actors:
            actor.dies_after = 1
        with pytest.raises(EngineFailedError, match="on 2 engines that failed"):
            request.result()
        assert len(engines) == 3


def test_a_step_that_raises_is_a_failure_of_its_engine(local, expected):
    prompts, params = workload()
    with RoutedEngines(make_engine, 2) as engines:
        broken = local.actors[0].target._engine
        broken.step = lambda: 1 / 0
        found = engines.generate(prompts, params, progress=False)
        assert answers(found) == answers(expected) and engines.engines == [1]


def test_other_tokens_in_a_second_run_are_reported(local):
    with RoutedEngines(make_engine, 2, turn_ms=0.0) as engines:
        request = engines.submit([5, 6], max_new_tokens=9)
        assert next(request) >= 0
        request._tokens[0] += 1  # as if this engine had computed another token
        number = request._seq_id
        engines.remove(engines._fleet.where[number].number, drain=False)
        with pytest.raises(EngineFailedError, match="other tokens from position 0"):
            request.result()
        engines.check()


@pytest.mark.parametrize("drain", [True, False])
def test_a_removed_engine_loses_nothing(local, expected, drain):
    prompts, params = workload()
    with RoutedEngines(make_engine, 3, turn_ms=0.0) as engines:
        requests = [engines.submit(p, q) for p, q in zip(prompts, params, strict=True)]
        first = next(requests[0])
        engines.remove(0, drain=drain)
        assert engines.engines == [1, 2] and local.actors[0].dead
        assert [first, *requests[0]] == expected[0].token_ids
        assert answers([r.result() for r in requests]) == answers(expected)
        assert (engines.stats().rerun > 0) == (not drain)
        engines.remove(1)
        with pytest.raises(ValueError, match="engine 2 is the last one"):
            engines.remove(2)
        with pytest.raises(KeyError, match="no engine has number 0"):
            engines.remove(0)
        engines.check()


def test_requests_are_cancelled_by_themselves_and_by_close(local):
    engines = RoutedEngines(make_engine, 2, turn_ms=0.0)
    requests = [engines.submit([5, 6, i], max_new_tokens=20, request_id=f"r{i}") for i in range(6)]
    next(requests[0])
    engines.cancel("r0")
    requests[1].cancel()
    requests[1].cancel()
    assert requests[0].finish_reason == requests[1].finish_reason == "cancelled"
    assert len(requests[2].result().token_ids) == 20
    with pytest.raises(KeyError, match="'r0'"):
        engines.cancel("r0")
    engines.submit([5], request_id="x", max_new_tokens=200)
    with pytest.raises(ValueError, match="request_id 'x' is that"):
        engines.submit([5], request_id="x")
    engines.check()
    actors = [actor.target for actor in local.actors]
    assert sum(len(actor._requests) for actor in actors) <= 3
    engines.close()
    engines.close()
    assert {r.finish_reason for r in requests} <= {"cancelled", "length"}
    assert all(actor.dead for actor in local.actors)
    with pytest.raises(RuntimeError, match="closed"):
        engines.submit([5])


async def test_asynchronous_iterators_go_on_together(local, expected):
    prompts, params = workload()
    with RoutedEngines(make_engine, 3, turn_ms=0.0) as engines:

        async def read(prompt, own):
            return [token async for token in engines.submit(prompt, own)]

        tasks = [read(p, q) for p, q in zip(prompts, params, strict=True)]
        assert await asyncio.gather(*tasks) == [r.token_ids for r in expected]
        request = engines.submit(prompts[0], max_new_tokens=40)
        async for _ in request:
            break
        engines.check()


def test_threads_wait_for_their_own_requests(local, expected):
    prompts, params = workload()
    with RoutedEngines(make_engine, 2, turn_ms=0.0) as engines:
        requests = [engines.submit(p, q) for p, q in zip(prompts, params, strict=True)]
        found = [None] * 24
        threads = [
            threading.Thread(target=lambda i=i: found.__setitem__(i, list(requests[i])))
            for i in range(24)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [r.token_ids for r in expected]


def test_an_interrupted_wait_leaves_the_requests(local, monkeypatch):
    with RoutedEngines(make_engine, 2, turn_ms=0.0) as engines:
        requests = [engines.submit([5, 6, i], max_new_tokens=8) for i in range(5)]

        def interrupted(*_, **__):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(waiting.Future, "result", interrupted)
            with pytest.raises(KeyboardInterrupt):
                requests[0].result()
            with pytest.raises(KeyboardInterrupt):
                engines.remove(1)
            with pytest.raises(KeyboardInterrupt):
                engines.generate([[7, 8]], progress=False)
        assert len(engines) == 2
        engines.check()
        assert all(len(request.result().token_ids) == 8 for request in requests)


BAD = [
    ({"prompt": []}, ValueError, "at least one token"),
    ({"prompt": [512]}, ValueError, "512"),
    ({"prompt": [1] * 250, "max_new_tokens": 7}, ValueError, "positions for 256"),
    ({"prompt": [1] * 200, "max_new_tokens": 56}, ValueError, "need 64 pages of 4; an engine has"),
    ({"prompt": [1], "n": 2, "temperature": 1}, ValueError, "n=1"),
    ({"prompt": [1], "logprobs": 513}, ValueError, "at most the size of the vocabulary, 512"),
    ({"prompt": [1], "stop_token_ids": [512]}, ValueError, "below the size of the vocabulary, 512"),
    ({"prompt": [1], "request_id": -1}, ValueError, "request_id"),
    ({"prompt": [1], "salt": 1.5}, TypeError, "salt"),
    ({"prompt": [1], "slo_ms": -1}, ValueError, "slo_ms"),
    ({"prompt": [1], "priority": "high"}, TypeError, "priority"),
    ({"prompt": [1], "beams": 3}, TypeError, "beams"),
]


@pytest.mark.parametrize("given, error, text", BAD)
def test_bad_requests_are_refused_at_once(local, given, error, text):
    with RoutedEngines(partial(make_engine, 60), 2) as engines:
        with pytest.raises(error, match=text):
            engines.submit(**given)
        with make_engine(60) as engine, pytest.raises(error):  # an engine refuses them, too
            engine.submit(**given)
        engines.check()
        assert engines.stats().submitted == 0


@pytest.mark.parametrize(
    "given, error, text",
    [
        ({"factory": 5}, TypeError, "factory must be callable"),
        ({"n_engines": 0}, ValueError, "n_engines"),
        ({"max_imbalance": 0.5}, ValueError, "max_imbalance"),
        ({"num_gpus": -1}, ValueError, "num_gpus"),
        ({"max_attempts": 0}, ValueError, "max_attempts"),
        ({"turn_ms": -1}, ValueError, "turn_ms"),
        ({"key": b""}, ValueError, "key"),
    ],
)
def test_bad_options_start_no_actor(local, given, error, text):
    with pytest.raises(error, match=text):
        RoutedEngines(**{"factory": make_engine, "n_engines": 2, **given})
    assert local.actors == []


def test_engines_that_do_not_start_or_differ_leave_no_actor(local):
    def fails():
        raise OSError("no such model")

    with pytest.raises(OSError, match="no such model"):
        RoutedEngines(fails, 2)
    assert all(actor.dead for actor in local.actors)
    with RoutedEngines(make_engine, 1) as engines:
        with pytest.raises(ValueError, match="page_size is 8 of one, 4 of another"):
            engines.add(partial(make_engine, page_size=8))
        assert local.actors[-1].dead and engines.engines == [0]
        assert engines.add(partial(make_engine, 40)) == 1  # fewer pages: the least counts
        with pytest.raises(ValueError, match="an engine has 40"):
            engines.submit([1] * 200, max_new_tokens=9)
        with pytest.raises(TypeError, match="copied or pickled"):
            engines.__reduce_ex__(2)
