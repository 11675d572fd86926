"""Errors and interrupts in the middle of the engine's calls: all is whole, and goes on."""

import gc

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from llmds_nb.integrations.transformers import Engine  # noqa: E402

from ...interrupts import interrupt_every_line  # noqa: E402
from .models import build, prompts_of, reference  # noqa: E402

NEW = 3
OURS = "integrations/transformers", "_core/signals"


class Letters:
    """A tokenizer: a letter for each token."""

    def __call__(self, text):
        return {"input_ids": [ord(letter) for letter in text]}

    def decode(self, ids):
        return "".join(chr(97 + i % 26) for i in ids)


@pytest.fixture(scope="module")
def llama():
    return build("llama", num_hidden_layers=2)


@pytest.fixture(scope="module")
def prompts():
    return prompts_of(2, shared=8, most=8)


@pytest.fixture(scope="module")
def expected(llama, prompts):
    return reference(llama, prompts, NEW)


def small(model, **options):
    given = {"page_size": 4, "n_pages": 40, "max_running": 8, "self_check": False}
    return Engine(model, tokenizer=Letters(), **given | options)


def seen(engine):
    """All that is visible of an engine and its requests."""
    requests = engine.made
    return [(r.tokens, r.finish_reason, r.text) for r in requests], len(engine.batcher)


def test_a_step_interrupted_at_any_line(llama, prompts):
    opened = []

    def make(steps):
        engine = small(llama)
        opened.append(engine)
        stop = {"stop": ["zzz"], "logprobs": 1}
        engine.made = [engine.submit(p, max_new_tokens=2, **stop) for p in prompts[:3]]
        for _ in range(steps):
            engine.step()
        return engine

    for steps in (0, 1):
        n = interrupt_every_line(
            lambda steps=steps: make(steps), Engine.step, seen, only=OURS, every=5
        )
        assert n > 20
    for engine in opened:
        engine.close()


def test_a_submission_interrupted_at_any_line(llama, prompts):
    engine = small(llama)
    with engine:
        seen_ids = []

        def observe(_):
            return len(engine._requests) - len(seen_ids), len(engine.batcher) - len(seen_ids)

        def make():
            for id_ in list(engine._by_id):
                engine.cancel(id_)
            return engine

        def call(engine):
            engine.submit(prompts[0], max_new_tokens=2)

        interrupt_every_line(make, call, observe, only=OURS)


def test_a_constructor_interrupted_at_any_line_gives_the_model_back():
    model = build("llama", num_hidden_layers=1)
    own = model.config._attn_implementation
    options = {"page_size": 16, "n_pages": 8, "max_running": 2, "self_check": False}
    names = "engine.py", "opening.py", "model_access.py"
    files = OURS[1], *(f"transformers/{name}" for name in names)

    def attention(_):
        return model.config._attn_implementation

    class Maker:
        def check(self):
            gc.collect()
            assert attention(self) == own

    n = interrupt_every_line(
        Maker, lambda _: Engine(model, **options).close(), attention, only=files, every=9
    )
    assert n > 10 and model.config._attn_implementation == own
    with Engine(model, **options) as engine:
        engine.generate([[1, 2]], progress=False)


def test_a_close_interrupted_at_any_line_is_ended_by_the_next(prompts):
    model = build("llama", num_hidden_layers=1)
    own = model.config._attn_implementation

    def make():
        engine = small(model)
        engine.made = [engine.submit(p, max_new_tokens=NEW) for p in prompts]
        engine.step()
        return engine

    def closed(engine):
        engine.close()
        return [r.finish_reason for r in engine.made], model.config._attn_implementation

    interrupt_every_line(make, Engine.close, closed, only=OURS)
    assert model.config._attn_implementation == own


def test_a_cancel_interrupted_at_any_line(llama, prompts):
    opened = []

    def make():
        engine = small(llama)
        opened.append(engine)
        engine.made = [engine.submit(p, max_new_tokens=NEW, stop="zzz") for p in prompts]
        engine.step()
        return engine

    interrupt_every_line(make, lambda engine: engine.made[1].cancel(), seen, only=OURS)
    for engine in opened:
        engine.close()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_forward_pass_that_raises_is_made_again(llama, prompts, expected, error):
    with small(llama) as engine:
        requests = [engine.submit(p, max_new_tokens=NEW) for p in prompts]
        raising = True

        def hook(*_):
            if raising:
                raise error("in the middle")

        layer = llama.model.layers[1].register_forward_hook(hook)
        try:
            while engine.batcher.stats().finished < len(prompts):
                raising = True
                with pytest.raises(error, match="in the middle"):
                    engine.step()
                engine.check()
                raising = False
                engine.step()
                engine.check()
        finally:
            layer.remove()
        assert [r.tokens for r in requests] == expected


def test_requests_cancelled_after_a_step_that_raised(llama, prompts, expected):
    with small(llama) as engine:
        requests = [engine.submit(p, max_new_tokens=NEW) for p in prompts]
        layer = llama.model.layers[1].register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.step()
        layer.remove()
        requests[1].cancel()
        late = engine.submit(prompts[1], max_new_tokens=NEW)
        engine.check()
        assert [list(r) for r in requests] == [expected[0], [], *expected[2:]]
        assert list(late) == expected[1]
        engine.check()
        assert len(engine.cache) == 0


def test_generate_that_is_interrupted_leaves_nothing(llama, prompts):
    with small(llama) as engine:
        other = engine.submit(prompts[0], max_new_tokens=NEW)
        n = 0

        def hook(*_):
            nonlocal n
            n += 1
            if n == 2:
                raise KeyboardInterrupt

        layer = llama.register_forward_hook(hook)
        with pytest.raises(KeyboardInterrupt):
            engine.generate(prompts, max_new_tokens=NEW, progress=False)
        layer.remove()
        assert len(engine.batcher) == 1 and not other.finished
        assert len(list(other)) == NEW
        engine.check()


def test_logits_that_are_nan_fail_their_request_alone(llama, prompts, expected):
    poisoned = 7
    bad = [poisoned, *prompts[0], *prompts[1], *prompts[0]]
    weights = llama.model.embed_tokens.weight.data
    kept = weights[poisoned].clone()
    with small(llama, max_step_tokens=16) as engine:
        weights[poisoned] = np.nan
        try:
            requests = [engine.submit(p, max_new_tokens=NEW) for p in (*prompts, bad)]
            while any(not r.finished for r in requests):
                engine.step()
                engine.check()
        finally:
            weights[poisoned] = kept
        assert [r.tokens for r in requests[:-1]] == expected
        assert requests[-1].finish_reason == "error" and "NaN" in str(requests[-1].error)
        with pytest.raises(ValueError, match="NaN"):
            next(requests[-1])
        assert engine.cache.match(bad) == 0 and engine.stats().failed == 1
        healed = list(engine.submit(bad, max_new_tokens=NEW))
    assert healed == reference(llama, [bad], NEW)[0]
