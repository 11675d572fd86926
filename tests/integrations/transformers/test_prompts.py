"""Prompts: ids, text and chat messages, and the stop strings of an Engine with a tokenizer."""

from itertools import pairwise

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import PreTrainedTokenizerFast  # noqa: E402

from llmds_nb.integrations.transformers import Engine, SamplingParams  # noqa: E402
from llmds_nb.integrations.transformers.prompts import prompt_ids, prompt_list  # noqa: E402

from .models import build  # noqa: E402
from .test_stop_strings import byte_level, expected  # noqa: E402

TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
CHAT = [{"role": "system", "content": "Be quick."}, {"role": "user", "content": "the fox?"}]
BACKEND = byte_level(400)


@pytest.fixture(scope="module")
def tokenizer():
    return PreTrainedTokenizerFast(
        tokenizer_object=BACKEND, chat_template=TEMPLATE, bos_token="<s>", eos_token="</s>"
    )


@pytest.fixture(scope="module")
def llama():
    return build("llama", vocab_size=400)


def test_text_and_chats_become_the_ids_of_the_tokenizer(tokenizer):
    assert prompt_ids("the lazy dog", tokenizer, 400).tolist() == BACKEND.encode("the lazy dog").ids
    rendered = "<s>system: Be quick.</s><s>user: the fox?</s><s>assistant: "
    ids = BACKEND.encode(rendered).ids
    assert ids[0] == 0 and prompt_ids(CHAT, tokenizer, 400).tolist() == ids
    assert prompt_ids(tuple(CHAT), tokenizer, 400).tolist() == ids


@pytest.mark.parametrize("given", [[3, 5], (3, 5), np.array([3, 5]), torch.tensor([3, 5])])
def test_ids_of_any_kind(given):
    found = prompt_ids(given, None, 10)
    assert found.tolist() == [3, 5] and found.dtype == np.int32


@pytest.mark.parametrize(
    "prompt, own, kind, text",
    [
        ("a", None, ValueError, "prompt is text, for which the Engine needs a tokenizer"),
        (CHAT, None, ValueError, "prompt is chat messages, for which the Engine needs a tokeni"),
        ("a", BACKEND, TypeError, "prompt is text, but the Engine's Tokenizer has no __call__: g"),
        (CHAT, BACKEND, TypeError, "prompt is chat messages, but the Engine's Tokenizer has no ap"),
        ("", "own", ValueError, "prompt must hold at least one token"),
        ([], None, ValueError, "prompt must hold at least one token"),
        (CHAT[0], "own", TypeError, "prompt must be token ids, text or messages, not dict"),
        ({3, 5}, None, TypeError, "prompt must be token ids, text or messages, not set"),
        (b"a", "own", TypeError, "prompt must be token ids, text or messages, not bytes"),
        ([3, 400], None, ValueError, "prompt has the token 400; the model's vocabulary has 400"),
        ([3, -1], None, ValueError, "prompt must be in [0, "),
        ([3.5], None, TypeError, "prompt must be integers"),
        (["a"], "own", TypeError, "prompt must be"),
        (None, None, TypeError, "prompt must be"),
    ],
    ids=str,
)
def test_a_bad_prompt_is_refused(tokenizer, prompt, own, kind, text):
    with pytest.raises(kind) as error:
        prompt_ids(prompt, tokenizer if own == "own" else own, 400)
    assert str(error.value).startswith(text)


def test_a_tokenizer_without_a_chat_template():
    with pytest.raises(ValueError, match="chat_template"):
        prompt_ids(CHAT, PreTrainedTokenizerFast(tokenizer_object=BACKEND), 400)


@pytest.mark.parametrize("given", ["a", b"a", CHAT, CHAT[0], [3, 5], np.array([3]), 7])
def test_one_prompt_is_no_batch(given):
    with pytest.raises(TypeError, match="prompts must be a list of prompts, not"):
        prompt_list(given)


# ---- with a model -------------------------------------------------------------------------------


def test_chats_and_texts_by_an_engine(llama, tokenizer):
    with Engine(llama, tokenizer=tokenizer, n_pages=40) as engine:
        ids = prompt_ids(CHAT, tokenizer, 400).tolist()
        found = engine.generate([CHAT, "the fox", ids], max_new_tokens=6, progress=False)
        assert found[0].prompt_ids == found[2].prompt_ids == ids
        assert found[0].token_ids == found[2].token_ids
        for generation in found:
            own = BACKEND.decode(generation.token_ids)
            assert generation.text == own and generation.finish_reason == "length"
        with pytest.raises(ValueError, match=r"prompts\[1\] must hold at least one token"):
            engine.generate(["a", ""], progress=False)


@pytest.mark.parametrize("pool", [{"n_pages": 100}, {"n_pages": 14, "max_step_tokens": 20}])
def test_a_request_ends_at_its_stop_string(llama, tokenizer, pool):
    prompts = ["the quick brown fox", "the lazy dog sleeps;", "a stop string", CHAT]
    with Engine(llama, tokenizer=tokenizer, page_size=8, **pool) as engine:
        params = SamplingParams(30, temperature=1.0, seed=2)
        whole = engine.generate(prompts, params, progress=False)
        stop = []
        for generation in whole:  # from the middle of each text
            middle = len(generation.text) // 2
            stop.append((generation.text[middle : middle + 2], "never here"))
        each = [SamplingParams(30, temperature=1.0, seed=2, stop=own) for own in stop]
        found = engine.generate(prompts, each, progress=False)
        for before, after, own in zip(whole, found, stop, strict=True):
            text, by = expected(before.text, own)
            assert after.text == text and by == own[0] and after.finish_reason == "stop"
            n = len(after.token_ids)
            assert n < 30 and after.token_ids == before.token_ids[:n]
            assert own[0] in BACKEND.decode(after.token_ids)
        engine.check()
        assert len(engine.cache) == len(engine.batcher) == 0


def test_the_text_of_a_request_that_runs_only_grows(llama, tokenizer):
    with Engine(llama, tokenizer=tokenizer, n_pages=40) as engine:
        for stop in ((), "never here"):
            request = engine.submit(CHAT, max_new_tokens=60, temperature=2.0, seed=1, stop=stop)
            texts = [request.text for _ in request]
            assert request.text == BACKEND.decode(request.tokens)
            assert all(after.startswith(text) for text, after in pairwise(texts))
            assert texts[5] and request.text.startswith(texts[-1])
            halves = [BACKEND.decode(request.tokens[:n]) for n in range(1, 61)]
            assert any(half != text for half, text in zip(halves, texts, strict=True))


def test_the_text_has_the_stop_token_with_stop_strings_and_without(llama, tokenizer):
    params = SamplingParams(30, temperature=1.0, seed=3)
    with Engine(llama, tokenizer=tokenizer, n_pages=40) as engine:
        whole = engine.generate([CHAT], params, progress=False)[0]
        last = whole.token_ids[12]
        for stop in ((), "never here"):
            own = SamplingParams(30, temperature=1.0, seed=3, stop=stop, stop_token_ids=[last])
            found = engine.generate([CHAT], own, progress=False)[0]
            n = whole.token_ids.index(last) + 1
            assert found.token_ids == whole.token_ids[:n] and found.finish_reason == "stop"
            assert found.text == BACKEND.decode(found.token_ids)


def test_stop_strings_need_a_tokenizer(llama):
    with (
        Engine(llama, n_pages=40) as engine,
        pytest.raises(ValueError, match=r"stop.*tokenizer"),
    ):
        engine.submit([3, 5], stop="a")
