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


def test_stop_tokens_end_a_request_with_the_token(llama, prompts, expected):
    stop = expected[2][4]
    cut = [tokens[: tokens.index(stop) + 1] if stop in tokens else tokens for tokens in expected]
    with Engine(llama, n_pages=60) as engine:
        found = engine.generate(prompts, max_new_tokens=NEW, stop_token_ids=[stop], progress=False)
        assert [g.token_ids for g in found] == cut
        assert {g.finish_reason for g in found} == {"stop", "length"}
    llama.generation_config.eos_token_id = [stop]
    try:
        with Engine(llama, n_pages=60) as engine:
            found = engine.generate(prompts, max_new_tokens=NEW, progress=False)
            assert [g.token_ids for g in found] == cut
            found = engine.generate(prompts, max_new_tokens=NEW, ignore_eos=True, progress=False)
            assert [g.token_ids for g in found] == expected
            batch = engine.generate_batch(prompts, max_new_tokens=NEW)
            assert [out.generated_tokens for out in batch.values()] == cut
    finally:
        llama.generation_config.eos_token_id = None


class Letters:
    """A tokenizer of transformers' form: a letter for each token, and a chat template."""

    def __call__(self, text):
        return {"input_ids": [ord(letter) for letter in text]}

    def apply_chat_template(self, messages, **options):
        assert options["add_generation_prompt"]
        return self("".join(f"{m['role']}:{m['content']}\n" for m in messages) + "assistant:")

    def decode(self, ids):
        return "".join(chr(97 + i % 26) for i in ids)


def test_text_chat_and_stop_strings(llama):
    with Engine(llama, tokenizer=Letters(), n_pages=60) as engine:
        chat = [{"role": "user", "content": "hi"}]
        found = engine.generate(["hello", chat, [5, 6]], max_new_tokens=NEW, progress=False)
        assert found[0].prompt_ids == [ord(letter) for letter in "hello"]
        assert found[1].prompt_ids == Letters()("user:hi\nassistant:")["input_ids"]
        assert all(g.text == Letters().decode(g.token_ids) for g in found)
        whole = found[0]
        stopped = engine.generate(
            ["hello"], max_new_tokens=NEW, stop=whole.text[3:5], logprobs=2, progress=False
        )[0]
        end = whole.text.index(whole.text[3:5])
        assert (stopped.text, stopped.finish_reason) == (whole.text[:end], "stop")
        assert stopped.token_ids == whole.token_ids[: end + 2]
        assert len(stopped.logprobs) == end + 2
        for token, logprob in zip(stopped.token_ids, stopped.logprobs, strict=True):
            assert logprob.top[token] == logprob.sampled <= 0 and len(logprob.top) == 2


def test_new_weights_after_reset(prompts, expected):
    model = build("llama")
    with Engine(model, n_pages=60) as engine:
        engine.generate(prompts, max_new_tokens=NEW, progress=False)
        model.model.layers[0].self_attn.v_proj.weight.data.neg_()
        engine.reset()
        found = engine.generate(prompts, max_new_tokens=NEW, progress=False)
    assert [g.token_ids for g in found] == reference(model, prompts, NEW) != expected
