"""Seeded sampling by the Engine: the same tokens whatever the pages, the steps and the others."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from llmds_nb.integrations.transformers import Engine, SamplingParams  # noqa: E402

from .models import build, prompts_of  # noqa: E402

NEW = 14
PARAMS = [
    SamplingParams(NEW, temperature=1.0, seed=1),
    SamplingParams(NEW, temperature=0.8, top_k=12, seed=2),
    SamplingParams(NEW, temperature=1.3, top_p=0.9, seed=3, logprobs=2),
    SamplingParams(NEW, repetition_penalty=1.4),
    SamplingParams(NEW, temperature=1.5, min_p=0.02, repetition_penalty=1.2, seed=4),
    SamplingParams(NEW, temperature=1.0, seed=5, top_k=40, top_p=0.8, min_p=0.01),
    SamplingParams(NEW),
    SamplingParams(NEW, temperature=2.0, repetition_penalty=0.9, seed=1),
]
POOLS = {
    "large": {"n_pages": 200},
    "chunks": {"n_pages": 200, "max_step_tokens": 9},
    "preempting": {"n_pages": 11, "max_step_tokens": 40},
    "few": {"n_pages": 200, "max_running": 3, "policy": "shortest"},
}


class Plan(NamedTuple):
    """What the sampler is set by of a step."""

    rows: Any
    seq_ids: Any


@pytest.fixture(scope="module")
def llama():
    return build("llama")


@pytest.fixture(scope="module")
def prompts():
    return prompts_of(6)


def tokens_of(engine, prompts, params):
    found = engine.generate(prompts, params, progress=False)
    engine.check()
    return [g.token_ids for g in found]


@pytest.fixture(scope="module")
def alone(llama, prompts):
    found = []
    for prompt, params in zip(prompts, PARAMS, strict=True):
        with Engine(llama, page_size=8, n_pages=20) as engine:
            found += tokens_of(engine, [prompt], [params])
    assert len(set(map(tuple, found))) == len(PARAMS)
    return found


@pytest.mark.parametrize("pool", POOLS)
def test_seeded_tokens_are_those_of_the_request_alone(llama, prompts, alone, pool):
    with Engine(llama, page_size=8, **POOLS[pool]) as engine:
        for _ in range(2):  # the second time from cached prefixes
            assert tokens_of(engine, prompts, PARAMS) == alone
        assert tokens_of(engine, prompts[::-1], PARAMS[::-1]) == alone[::-1]
        preempted = engine.batcher.stats().preempted
        assert (preempted > 0) == (pool == "preempting")


def test_a_request_that_returns_to_an_earlier_row_has_seen_all_its_tokens(llama, prompts):
    """Preempted, in another row, preempted again, and back in a row that nobody had meanwhile."""
    with Engine(llama, page_size=8, n_pages=40, max_running=3) as engine:
        runner, sampler = engine._runner, engine._runner.sampler
        request = engine.submit(prompts[0], max_new_tokens=8, repetition_penalty=1.5)
        for row, token in ((0, 7), (1, 8), (0, 9)):
            runner._set(Plan(np.array([row]), np.array([5])), [request], np.array([0]))
            own = set(prompts[0]) | set(request._tokens)
            assert set(sampler._seen[row].nonzero()[:, 0].tolist()) == own
            request._tokens.append(token)


def test_samples_of_one_prompt_differ_and_the_first_is_that_of_one(llama, prompts):
    params = SamplingParams(NEW, temperature=1.0, seed=7)
    with Engine(llama, page_size=8, n_pages=100) as engine:
        one = tokens_of(engine, prompts[:2], params)
        many = tokens_of(engine, prompts[:2], dataclasses.replace(params, n=4))
        assert [many[0], many[4]] == one
        assert len(set(map(tuple, many))) == 8
        assert many == tokens_of(engine, prompts[:2], dataclasses.replace(params, n=4))


def test_requests_without_a_seed_have_one_each_of_the_engine(llama, prompts):
    params = SamplingParams(NEW, temperature=1.0)

    def run(seed):
        with Engine(llama, page_size=8, n_pages=100, seed=seed) as engine:
            return tokens_of(engine, [prompts[0]] * 3, params)

    assert run(3) == run(3)
    different = [*run(3), *run(4), *run(None), *run(None)]
    assert len(set(map(tuple, different))) == 12


def test_logprobs_are_those_of_the_model(llama, prompts):
    params = SamplingParams(6, temperature=1.0, seed=1, logprobs=3, repetition_penalty=1.3)
    with Engine(llama, page_size=8, n_pages=100, max_step_tokens=17) as engine:
        found = engine.generate(prompts[:3], params, progress=False)
    for generation in found:
        ids = torch.tensor(generation.prompt_ids + generation.token_ids)[None]
        with torch.inference_mode():
            logits = llama(ids, use_cache=False).logits[0, len(generation.prompt_ids) - 1 : -1]
        true = logits.log_softmax(-1)
        best = true.topk(3)
        for i, (token, own) in enumerate(
            zip(generation.token_ids, generation.logprobs, strict=True)
        ):
            assert abs(own.sampled - true[i, token]) < 1e-3
            assert list(own.top) == best.indices[i].tolist()
            assert max(abs(p - true[i, t]) for t, p in own.top.items()) < 1e-3
