"""An Engine in the hands of users who do what nobody thought of."""

import asyncio
import copy
import gc
import os
import pickle
import signal
import threading
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import (  # noqa: E402
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GenerationConfig,
)

from llmds_nb.integrations.transformers import (  # noqa: E402
    Engine,
    RequestError,
    UnsupportedModelError,
)

from .models import build, prompts_of, reference  # noqa: E402

NEW = 6


@pytest.fixture(scope="module")
def llama():
    return build("llama", num_hidden_layers=2)


@pytest.fixture(scope="module")
def prompts():
    return prompts_of(3)


@pytest.fixture(scope="module")
def expected(llama, prompts):
    return reference(llama, prompts, NEW)


def small(model, **options):
    return Engine(model, **{"page_size": 8, "n_pages": 60, "self_check": False, **options})


def tokens_of(engine, prompts, **options):
    return [g.token_ids for g in engine.generate(prompts, progress=False, **options)]


# ---- requests -----------------------------------------------------------------------------------


def test_copies_and_pickles_are_refused(llama):
    with small(llama) as engine:
        for thing in (engine, engine.submit([1])):
            for make in (copy.copy, copy.deepcopy, pickle.dumps):
                with pytest.raises(TypeError, match="cannot be copied or pickled"):
                    make(thing)


def test_progress_is_true_or_false(llama):
    with small(llama) as engine:
        with pytest.raises(TypeError, match="progress"):
            engine.generate([[1]], progress="yes")
        assert engine.stats().submitted == 0


def test_any_text_is_a_name(llama):
    with small(llama) as engine:
        request = engine.submit([1], request_id="")
        number = engine.submit([1]).request_id
        assert request.request_id == "" and number != ""
        with pytest.raises(ValueError, match="''"):
            engine.submit([2], request_id="")
        engine.check()


def test_a_refused_request_does_not_change_the_seeds_of_others(llama):
    def tokens(*refused):
        with small(llama) as engine:
            for options in refused:
                with pytest.raises((ValueError, TypeError)):
                    engine.submit([1], **options)
            return list(engine.submit([1, 2], temperature=2.0, max_new_tokens=NEW))

    refused = {"max_new_tokens": 10**6}, {"priority": "high"}, {"slo_ms": -1}, {"salt": 1.5}
    assert tokens(*refused) == tokens()


def test_numbers_in_place_of_prompts(llama):
    with small(llama) as engine:
        for one in (torch.tensor([1, 2]), [torch.tensor(1)], np.array([1])):
            with pytest.raises(TypeError, match="list of prompts"):
                engine.generate(one)
        for one in (torch.tensor(1), np.array(1), np.int64(1)):
            with pytest.raises(TypeError, match="prompt must be"):
                engine.submit(one)
        assert tokens_of(engine, torch.tensor([[1, 2], [3, 4]]), max_new_tokens=2) == tokens_of(
            engine, [(1, 2), np.array([3, 4], np.uint64)], max_new_tokens=2
        )


@pytest.mark.parametrize("eos", [-1, [-1], 50256, [600, -1]])
def test_end_tokens_that_no_token_is(llama, prompts, expected, eos, monkeypatch):
    monkeypatch.setattr(llama.generation_config, "eos_token_id", eos)
    with small(llama) as engine:
        assert tokens_of(engine, prompts, max_new_tokens=NEW) == expected
        found = engine.generate_batch(prompts, max_new_tokens=NEW)
        assert [out.generated_tokens for out in found.values()] == expected
        found = engine.generate_batch(prompts, max_new_tokens=NEW, eos_token_id=-1)
        assert [out.generated_tokens for out in found.values()] == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 2},
        {"suppress_tokens": [3]},
        {"forced_eos_token_id": 2},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 3},
        {"bad_words_ids": [[3]]},
        {"typical_p": 0.5},
    ],
)
def test_settings_that_would_change_the_tokens_are_refused(llama, settings):
    with small(llama) as engine:
        with pytest.raises(ValueError, match=f"generation_config has {next(iter(settings))}="):
            engine.generate_batch([[1]], GenerationConfig(**settings))
        assert len(engine.batcher) == 0
        same = {"num_beams": 1, "min_new_tokens": 0, "typical_p": 1.0, "max_new_tokens": 2}
        engine.generate_batch([[1]], GenerationConfig(**same))


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "top_p": 0.9}])
def test_a_step_computed_again_penalizes_no_token_that_nobody_got(llama, prompts, options):
    options = {"max_new_tokens": 12, "repetition_penalty": 1.8, "seed": 3, **options}
    with small(llama) as engine:
        once = tokens_of(engine, prompts, **options)
        requests = [engine.submit(p, **options) for p in prompts]
        deliver = engine._deliver

        def interrupted(answer):
            raise KeyboardInterrupt

        while len(engine.batcher):
            engine._deliver = interrupted
            with pytest.raises(KeyboardInterrupt):
                engine.step()
            engine._deliver = deliver
            engine.step()
        assert [r.tokens for r in requests] == once


class Broken:
    """A tokenizer that has no text for some tokens, nor for none."""

    def __init__(self, *without):
        self.without = without

    def decode(self, ids):
        if not ids or set(ids) & set(self.without):
            raise LookupError("no text")
        return "".join(chr(97 + i % 26) for i in ids)


def test_a_tokenizer_that_raises_fails_its_request_alone(llama, prompts, expected):
    (without,) = sorted(set(expected[1]) - {t for i in (0, 2, 3) for t in expected[i]})[:1]
    with small(llama, tokenizer=Broken(without)) as engine:
        requests = [engine.submit(p, max_new_tokens=NEW, stop="\n") for p in prompts[:4]]
        while len(engine.batcher):
            engine.step()
            engine.check()
        for i in (0, 2, 3):
            assert requests[i].tokens == expected[i]
        failed = requests[1]
        assert failed.tokens == expected[1][: expected[1].index(without)]
        with pytest.raises(RequestError, match="LookupError: no text") as caught:
            failed.result()
        assert isinstance(caught.value.__cause__, LookupError)
        early = engine.submit(prompts[0], stop="\n")
        early.cancel()
        assert early.text == "" and len(engine.cache) == 0


# ---- torch's settings ---------------------------------------------------------------------------


def test_defaults_of_torch_change_nothing(llama, prompts, expected):
    sampled = {"temperature": 1.0, "top_p": 0.9, "min_p": 0.01, "top_k": 90, "logprobs": 2}
    sampled |= {"repetition_penalty": 1.1, "seed": 1, "max_new_tokens": NEW}

    def run(model=llama):
        with Engine(model, n_pages=40) as engine:
            assert tokens_of(engine, prompts, max_new_tokens=NEW) == expected
            return tokens_of(engine, prompts, **sampled)

    own = run()
    with torch.device("meta"):
        assert run() == own
    with torch.inference_mode():
        assert run() == own
    torch.set_default_dtype(torch.float64)
    try:
        assert run() == own
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_model_that_returns_a_tuple(llama, monkeypatch):
    plain = type(llama).forward
    monkeypatch.setattr(type(llama), "forward", lambda *a, **k: (plain(*a, **k).logits,))
    for check in (True, False):
        with pytest.raises(UnsupportedModelError, match="tuple without logits"):
            Engine(llama, n_pages=40, self_check=check)


def test_a_model_changed_while_an_engine_has_it(llama, prompts, expected):
    own = llama.config._attn_implementation
    with small(llama) as engine:
        requests = [engine.submit(p, max_new_tokens=NEW) for p in prompts]
        llama.set_attn_implementation("eager")
        with pytest.raises(UnsupportedModelError, match="0 of 2 layers"):
            engine.step()
        llama.set_attn_implementation("llmds_paged")
        assert [list(r) for r in requests] == expected
    assert llama.config._attn_implementation == own


def test_every_part_of_a_composite_model_has_its_own_attention_again(prompts):
    text = {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 512, "sliding_window": 24,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    config = Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=1, image_token_index=500
    )
    model = Gemma3ForConditionalGeneration(config).eval()
    model.set_attn_implementation({"text_config": "eager", "vision_config": "sdpa"})

    def settings():
        parts = model.config, model.config.text_config, model.config.vision_config
        return [part._attn_implementation for part in parts]

    own = settings()
    with Engine(model, n_pages=60) as engine:
        assert settings() == ["llmds_paged"] * 3 != own
        found = tokens_of(engine, prompts, max_new_tokens=NEW, ignore_eos=True)
    assert settings() == own and found == reference(model, prompts, NEW)


# ---- ends ---------------------------------------------------------------------------------------


def test_a_closed_engine_is_not_entered_again(llama):
    engine = small(llama)
    with pytest.raises(LookupError), engine:
        engine.submit([1])
        raise LookupError("of the user")
    with pytest.raises(RuntimeError, match="closed"), engine:
        pass
    assert engine.stats().cancelled == 1


async def test_a_stream_that_is_closed_before_it_begins(llama, prompts):
    with small(llama) as engine:
        request = engine.submit(prompts[0])
        await aiter(request).aclose()
        assert request.finish_reason == "cancelled" and len(engine.batcher) == 0


async def test_the_thread_ends_with_an_engine_that_is_forgotten(llama, prompts):
    def threads():
        return [t for t in threading.enumerate() if t.name.startswith("llmds_nb engine")]

    own = llama.config._attn_implementation
    async for _ in small(llama).submit(prompts[0], max_new_tokens=2):
        assert threads()
    deadline = time.monotonic() + 10
    while threads() and time.monotonic() < deadline:
        gc.collect()
        await asyncio.sleep(0.01)
    assert not threads() and llama.config._attn_implementation == own


def test_an_engine_collected_while_another_takes_its_model(llama, monkeypatch):
    own = llama.config._attn_implementation
    other = build("llama", num_hidden_layers=1)
    plain = type(llama).set_attn_implementation
    small(other).submit([1])  # only a collection of garbage ends it

    def collecting(self, name):
        gc.collect()
        plain(self, name)

    gc.disable()
    try:
        monkeypatch.setattr(type(llama), "set_attn_implementation", collecting)
        with small(llama) as engine:
            assert other.config._attn_implementation == own
            engine.generate([[1]], progress=False)
    finally:
        gc.enable()
    assert llama.config._attn_implementation == own


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
async def test_a_child_goes_on_with_an_open_engine(llama, prompts, expected):
    with small(llama) as engine:
        assert [t async for t in engine.submit(prompts[0], max_new_tokens=NEW)] == expected[0]
        request = engine.submit(prompts[1], max_new_tokens=NEW)
        next(request)
        forked, held = threading.Event(), threading.Event()

        def hold():
            with engine._stepping, engine._state, request._reading:
                held.set()
                forked.wait(60)

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait(60)
        child = os.fork()
        if not child:
            status = 1
            try:
                signal.alarm(60)
                rest = list(request)
                asyncio.events._set_running_loop(None)

                async def read():
                    return [t async for t in engine.submit(prompts[2], max_new_tokens=NEW)]

                streamed = asyncio.new_event_loop().run_until_complete(read())
                engine.close()
                if rest == expected[1][1:] and streamed == expected[2]:
                    status = 0
            finally:
                os._exit(status)
        forked.set()
        thread.join()
        assert os.waitpid(child, 0)[1] == 0
        assert list(request) == expected[1][1:]


# ---- all at once --------------------------------------------------------------------------------


async def test_random_requests_cancels_and_disconnects(llama):
    rng = np.random.default_rng(11)
    system = rng.integers(0, 512, 9).tolist()
    with small(llama, page_size=4, n_pages=14, max_step_tokens=24) as engine:
        requests, readers = [], []

        async def read(request, most):
            async for token in request:
                assert token in request.tokens
                if len(request.tokens) >= most:
                    return

        for _ in range(300):
            tail = rng.integers(0, 512, rng.integers(1, 12)).tolist()
            request = engine.submit(
                (system if rng.random() < 0.7 else []) + tail,
                max_new_tokens=int(rng.integers(1, 16)),
                salt=int(rng.integers(2)),
                temperature=float(rng.integers(2)),
                repetition_penalty=1.0 + 0.2 * float(rng.integers(2)),
            )
            requests.append(request)
            kind = rng.random()
            if kind < 0.3:
                readers.append(asyncio.create_task(read(request, int(rng.integers(1, 20)))))
            elif kind < 0.5:
                requests[rng.integers(len(requests))].cancel()
            elif kind < 0.6 and readers:
                readers[rng.integers(len(readers))].cancel()
            for _ in range(rng.integers(3)):
                engine.step()
                engine.check()
            await asyncio.sleep(0)
        await asyncio.gather(*readers, return_exceptions=True)
        for request in requests:
            list(request)
        engine.check()
        gc.collect()
        for request in requests:
            assert request.finish_reason in ("length", "cancelled")
            whole = len(request.tokens) == request.params.max_new_tokens
            assert whole or request.finish_reason == "cancelled"
        assert {r.finish_reason for r in requests} == {"length", "cancelled"}
        assert len(engine.cache) == len(engine.batcher) == 0
        cache = engine.cache.stats()
        assert cache.n_free + cache.n_cached == cache.n_pages and cache.n_used == 0
