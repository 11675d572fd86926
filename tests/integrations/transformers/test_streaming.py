"""Tokens as they come: iterators in threads and in asyncio, disconnects, many random cancels."""

import asyncio
import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from llmds_nb.integrations.transformers import Engine, SamplingParams  # noqa: E402

from .models import build, prompts_of, reference  # noqa: E402

NEW = 8


@pytest.fixture(scope="module")
def llama():
    return build("llama", num_hidden_layers=2)


@pytest.fixture(scope="module")
def prompts():
    return prompts_of(6)


@pytest.fixture(scope="module")
def expected(llama, prompts):
    return reference(llama, prompts, NEW)


@pytest.fixture
def engine(llama):
    with Engine(llama, page_size=8, n_pages=60, max_step_tokens=64, self_check=False) as engine:
        yield engine
        engine.check()
        assert len(engine.cache) == len(engine.batcher) == 0


def test_a_request_gives_each_token_once(engine, prompts, expected):
    request = engine.submit(prompts[0], max_new_tokens=NEW, request_id="mine")
    assert next(request) == expected[0][0]
    assert request.tokens == expected[0][:1] and not request.finished
    assert list(request) == expected[0][1:] and list(request) == []
    assert request.finish_reason == "length" and request.text is None
    result = request.result()
    assert result == ("mine", prompts[0], expected[0], None, None, "length", 0)


def test_steps_report_tokens_as_requests_have_them(engine, prompts, expected):
    requests = [engine.submit(p, max_new_tokens=NEW) for p in prompts]
    seen = {r: [] for r in requests}
    while outputs := engine.step() or len(engine.batcher):
        for output in outputs if isinstance(outputs, list) else ():
            seen[output.request].append(output.token)
            assert output.finished == (len(seen[output.request]) == NEW)
    assert list(seen.values()) == expected == [r.tokens for r in requests]


def test_threads_iterate_at_once(engine, prompts, expected):
    found = {}

    def read(i):
        for _ in range(3):
            found[i] = list(engine.submit(prompts[i], max_new_tokens=NEW))

    threads = [threading.Thread(target=read, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(len(prompts))] == expected


async def test_asynchronous_iterators(engine, prompts, expected):
    async def read(prompt):
        return [token async for token in engine.submit(prompt, max_new_tokens=NEW)]

    assert list(await asyncio.gather(*map(read, prompts))) == expected


async def test_a_client_that_leaves_cancels_its_request(engine, prompts, expected):
    stays, leaves, breaks, fails = (engine.submit(p, max_new_tokens=NEW) for p in prompts[:4])

    async def read(request, at):
        async for _ in request:
            if at is not None and len(request.tokens) >= 2:
                await at()

    task = asyncio.create_task(read(leaves, lambda: asyncio.sleep(60)))
    iterator = aiter(breaks)
    await anext(iterator)
    await iterator.aclose()

    async def fail():
        raise LookupError("of a client")

    with pytest.raises(LookupError):
        await read(fails, fail)
    await read(stays, None)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    assert stays.tokens == expected[0]
    for request in (leaves, breaks):
        assert request.finish_reason == "cancelled" and len(request.tokens) < NEW
    fails.cancel()


def test_many_requests_with_random_cancels(llama, amount):
    rng = np.random.default_rng(3)
    options = {"page_size": 4, "n_pages": 12, "max_step_tokens": 24, "self_check": False}
    n = amount(120, 2000)
    with Engine(llama, **options) as engine:
        system = rng.integers(0, 512, 9).tolist()
        running, ended = [], []
        for i in range(n):
            tail = rng.integers(0, 512, rng.integers(1, 12)).tolist()
            salt = int(rng.integers(2))
            kept = system if rng.random() < 0.8 else []
            new = int(rng.integers(1, 16))
            running.append(engine.submit(kept + tail, max_new_tokens=new, salt=salt))
            for _ in range(rng.integers(4)):
                engine.step()
            if rng.random() < 0.4:
                running[rng.integers(len(running))].cancel()
            ended += [r for r in running if r.finished]
            running = [r for r in running if not r.finished]
            if i % 20 == 0:
                engine.check()
        for request in running:
            list(request)
        engine.check()
        reasons = [r.finish_reason for r in ended + running]
        assert len(reasons) == n and set(reasons) == {"length", "cancelled"}
        for request in ended + running:
            whole = len(request.tokens) == request.params.max_new_tokens
            assert whole == (request.finish_reason == "length")
        assert len(engine.cache) == len(engine.batcher) == 0
        cache = engine.cache.stats()
        assert cache.n_free + cache.n_cached == cache.n_pages and cache.n_used == 0
        assert engine.stats().preempted > 0


def test_samples_of_one_prompt_share_its_pages(engine, prompts):
    params = SamplingParams(max_new_tokens=4, temperature=1.0, seed=5, n=3)
    found = engine.generate(prompts[:2], params, progress=False)
    assert [g.prompt_ids for g in found] == [prompts[0]] * 3 + [prompts[1]] * 3
    assert len({tuple(g.token_ids) for g in found[:3]}) == 3
    whole = min(len(prompts[0]) // 8 * 8, len(prompts[0]) - 1)
    assert [g.cached_tokens for g in found[1:3]] == [whole, whole]
    alone = engine.generate(prompts[1:2], params, progress=False)
    assert [g.token_ids for g in alone] == [g.token_ids for g in found[3:]]


def test_generate_batch_has_the_form_of_transformers(engine, prompts, expected):
    found = engine.generate_batch(prompts, max_new_tokens=NEW)
    assert list(found) == [f"req_{i}" for i in range(len(prompts))]
    assert [out.generated_tokens for out in found.values()] == expected
    first = found["req_0"]
    assert first.is_finished() and first.error is None and first.prompt_ids == prompts[0]
    assert first.status.name == "FINISHED" and first.lifespan[0] < first.lifespan[1]
    config = engine.model.generation_config.__class__(
        max_new_tokens=3, do_sample=True, top_k=5, eos_token_id=[2], num_return_sequences=2
    )
    found = engine.generate_batch(prompts[:1], config, request_ids=["a"])
    assert list(found) == ["a", "a__child#0"]
    with pytest.raises(TypeError, match="num_beams"):
        engine.generate_batch(prompts, num_beams=2)
    with pytest.raises(ValueError, match="request_ids"):
        engine.generate_batch(prompts[:2], request_ids=["a", "a"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", torch.float32])
def test_pages_of_other_dtypes(llama, prompts, expected, dtype):
    with Engine(llama, n_pages=60, kv_dtype=dtype, threads=2) as engine:
        found = engine.generate(prompts, max_new_tokens=NEW, progress=False)
        assert engine.stats().kv_bytes == 61 * 16 * 2 * 2 * 2 * 16 * (
            4 if dtype == torch.float32 else 2
        )
        firsts = [g.token_ids[0] == own[0] for g, own in zip(found, expected, strict=True)]
        assert np.mean(firsts) > 0.5
        if dtype is torch.float32:
            assert [g.token_ids for g in found] == expected


def test_pages_are_sized_from_memory(llama):
    with Engine(llama, max_running=3, page_size=64, self_check=False) as engine:
        assert engine.cache.n_pages == 3 * 512 // 64  # what three of the longest requests need
