"""Engine: the tokens of `generate`, whatever the pages and steps; requests that come and go."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from llmds_nb.integrations.transformers import Engine  # noqa: E402

from .models import build, prompts_of, reference  # noqa: E402

NEW = 12


@pytest.fixture(scope="module")
def llama():
    return build("llama")


@pytest.fixture(scope="module")
def prompts():
    return prompts_of(6)


@pytest.fixture(scope="module")
def expected(llama, prompts):
    return reference(llama, prompts, NEW)


POOLS = {
    "large": {"n_pages": 200},
    "chunks": {"n_pages": 200, "max_step_tokens": 9},
    "preempting": {"n_pages": 11, "max_step_tokens": 40},
}


@pytest.mark.parametrize("pool", POOLS)
def test_tokens_are_those_of_generate(llama, prompts, expected, pool):
    with Engine(llama, page_size=8, **POOLS[pool]) as engine:
        for _ in range(2):  # the second time from cached prefixes
            found = engine.generate(prompts, max_new_tokens=NEW, progress=False)
            assert [g.token_ids for g in found] == expected
            engine.check()
            assert len(engine.cache) == len(engine.batcher) == 0
        preempted = engine.batcher.stats().preempted
        assert (preempted > 0) == (pool == "preempting")


def test_cancel_at_every_step(llama, prompts, expected):
    with Engine(llama, page_size=8, n_pages=40, max_step_tokens=40) as engine:
        for at in range(20):
            requests = [engine.submit(p, max_new_tokens=NEW) for p in prompts]
            for _ in range(at):
                engine.step()
            requests[2].cancel()
            requests[5].cancel()
            engine.check()
            for i, request in enumerate(requests):
                tokens = list(request)
                assert tokens == expected[i][: len(tokens)]
                assert (len(tokens) == NEW) == (request.finish_reason == "length")
            engine.check()
            assert len(engine.cache) == len(engine.batcher) == 0
