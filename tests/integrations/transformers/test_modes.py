"""Modes of torch and of the model that change while an Engine has it; and ends of requests."""

import contextlib

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from llmds_nb.integrations.transformers import Engine  # noqa: E402

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


def small(model):
    return Engine(model, page_size=8, n_pages=48, self_check=False)


def tokens_of(engine, prompts, **options):
    found = engine.generate(prompts, max_new_tokens=NEW, progress=False, **options)
    return [g.token_ids for g in found]


@contextlib.contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


MODES = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "device": lambda: torch.device("meta"),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
}


@pytest.mark.parametrize("mode", MODES)
def test_modes_of_torch_that_begin_or_end_after_the_start_change_nothing(
    llama, prompts, expected, mode
):
    sampled = {"temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.1, "seed": 1}
    with small(llama) as engine:
        own = tokens_of(engine, prompts, **sampled)
        vectors = engine.encode(prompts)
    with small(llama) as engine, MODES[mode]():
        assert tokens_of(engine, prompts) == expected
        assert tokens_of(engine, prompts, **sampled) == own
        assert (engine.encode(prompts) == vectors).all()
    with MODES[mode]():
        engine = small(llama)
        requests = [engine.submit(prompt, max_new_tokens=NEW) for prompt in prompts]
        engine.step()
    with engine:
        assert [list(request) for request in requests] == expected
        assert tokens_of(engine, prompts, **sampled) == own


def test_autocast_and_training_mode_are_refused_by_name(llama, prompts, expected):
    with small(llama) as engine:
        requests = [engine.submit(prompt, max_new_tokens=NEW) for prompt in prompts]
        engine.step()
        calls = engine.step, lambda: engine.encode(prompts), lambda: tokens_of(engine, prompts)
        with torch.autocast("cpu", torch.bfloat16):
            for call in (*calls, lambda: small(llama)):
                with pytest.raises(RuntimeError, match=r"torch.autocast\('cpu'\) is on, but an"):
                    call()
            with torch.autocast("cpu", enabled=False):
                engine.step()
        llama.train()
        try:
            for call in calls:
                with pytest.raises(RuntimeError, match="is in training mode: call model"):
                    call()
        finally:
            llama.eval()
        engine.check()
        assert [list(request) for request in requests] == expected


def test_a_hook_added_after_the_start_counts_from_reset_on(llama, prompts, expected):
    def halve(module, args, output):
        return -0.5 * output

    with small(llama) as engine:
        assert tokens_of(engine, prompts) == expected
        hook = llama.model.layers[0].mlp.register_forward_hook(halve)
        try:
            engine.reset()
            found = tokens_of(engine, prompts)
            with small(llama) as fresh:
                assert tokens_of(fresh, prompts) == found != expected
        finally:
            hook.remove()
        engine.reset()
        assert tokens_of(engine, prompts) == expected


def test_the_sampler_forgets_requests_that_have_ended(llama, prompts):
    """Their parameters do not reach a request of the same id, nor is memory kept for them."""
    options = {"temperature": 1.0, "repetition_penalty": 1.3, "max_new_tokens": NEW}
    with small(llama) as engine:
        empty = engine._sampler.nbytes
        own = [list(engine.submit(prompts[0], seed=seed, **options)) for seed in (1, 2)]
        assert own[0] != own[1]
        for seed, tokens in zip((1, 2), own, strict=True):
            request = engine.submit(prompts[0], seed=seed, request_id=900, **options)
            assert list(request) == tokens
            assert engine._sampler.nbytes == empty
        request = engine.submit(prompts[0], seed=1, request_id=900, **options)
        engine.step()
        assert engine._sampler.nbytes > empty
        request.cancel()
        request = engine.submit(prompts[0], seed=2, request_id=900, **options)
        assert list(request) == own[1]
        assert engine._sampler.nbytes == empty and not engine._sampler._penalized.any()
