"""OpenAI's API, called by its own client: the tokens are those of Engine.generate."""

import asyncio

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs llmds_nb[hf]")
pytest.importorskip("transformers", reason="needs llmds_nb[hf]")
pytest.importorskip("starlette", reason="needs llmds_nb[serve]")
openai = pytest.importorskip("openai", reason="needs the client of OpenAI's API")

from llmds_nb.integrations.serve import create_app  # noqa: E402

from . import models  # noqa: E402
from .running import running  # noqa: E402

PROMPTS = ["What is a page?", "What is a token of a model?", "A"]
MESSAGES = [
    {"role": "system", "content": "You are brief."},
    {"role": "user", "content": "What is a page?"},
]
IDS = {"return_token_ids": True}


@pytest.fixture(scope="module")
def engine():
    with models.engine() as engine:
        yield engine


@pytest.fixture(scope="module")
def address(engine):
    with running(create_app(engine=engine, model_name="tiny")) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(autouse=True)
def _nothing_is_left(engine):
    yield
    models.nothing_is_held(engine)


def greedy(engine, prompts, new=12, **options):
    return engine.generate(prompts, max_new_tokens=new, progress=False, **options)


def test_completions_are_those_of_generate(client, engine):
    expected = greedy(engine, PROMPTS)
    for prompt in (PROMPTS, [list(text.encode()) for text in PROMPTS]):
        answer = client.completions.create(
            model="tiny", prompt=prompt, max_tokens=12, temperature=0, extra_body=IDS
        )
        assert [choice.token_ids for choice in answer.choices] == [g.token_ids for g in expected]
        assert [choice.text for choice in answer.choices] == [g.text for g in expected]
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert {choice.finish_reason for choice in answer.choices} == {"length"}
        assert answer.object == "text_completion" and answer.model == "tiny"
        assert answer.id.startswith("cmpl-") and answer.choices[0].logprobs is None
        usage = answer.usage
        assert (usage.prompt_tokens, usage.completion_tokens) == (sum(map(len, PROMPTS)), 36)
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens == 8 + 24  # whole pages


def test_chats_are_those_of_generate(client, engine):
    (expected,) = greedy(engine, [MESSAGES])
    for messages in (
        MESSAGES,
        [{**MESSAGES[0], "role": "developer"}, MESSAGES[1]],
        [MESSAGES[0], {"role": "user", "content": [{"type": "text", "text": "What is a page?"}]}],
    ):
        answer = client.chat.completions.create(
            model="tiny", messages=messages, max_completion_tokens=12, temperature=0, extra_body=IDS
        )
        (choice,) = answer.choices
        assert choice.token_ids == expected.token_ids
        assert choice.message.content == expected.text and choice.message.role == "assistant"
        assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
        assert answer.usage.prompt_tokens == len(expected.prompt_ids)
    # The answer goes back as it came, and the conversation so far is cached.
    more = [*messages, choice.message, {"role": "user", "content": "And a token?"}]
    answer = client.chat.completions.create(model="tiny", messages=more, max_tokens=1)
    cached = answer.usage.prompt_tokens_details.cached_tokens
    assert cached == (len(expected.prompt_ids) + 11) // 8 * 8


@pytest.mark.parametrize("n", [1, 3])
def test_streams_are_whole_answers_in_parts(client, engine, n):
    options = {"model": "tiny", "max_tokens": 9, "temperature": 0.9, "seed": 5, "n": n}
    whole = client.completions.create(**options, prompt=PROMPTS[:2], extra_body=IDS)
    expected = greedy(engine, PROMPTS[:2], 9, temperature=0.9, seed=5, n=n)
    assert [choice.token_ids for choice in whole.choices] == [g.token_ids for g in expected]
    with client.completions.create(
        **options, prompt=PROMPTS[:2], stream=True, extra_body=IDS,
        stream_options={"include_usage": True},
    ) as stream:  # fmt: skip
        *chunks, last = list(stream)
    texts, tokens, reasons = [""] * 2 * n, [[] for _ in range(2 * n)], {}
    for chunk in chunks:
        assert chunk.id == chunks[0].id and chunk.usage is None
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
        tokens[choice.index] += choice.token_ids
        if choice.finish_reason:
            reasons[choice.index] = choice.finish_reason
    assert texts == [choice.text for choice in whole.choices]
    assert tokens == [choice.token_ids for choice in whole.choices]
    assert reasons == dict.fromkeys(range(2 * n), "length")
    assert last.choices == [] and last.usage.completion_tokens == 18 * n


def test_a_streamed_chat(client):
    options = {"model": "tiny", "messages": MESSAGES, "max_tokens": 9, "temperature": 0}
    whole = client.chat.completions.create(**options)
    with client.chat.completions.create(**options, stream=True) as stream:
        first, *chunks = list(stream)
    assert first.choices[0].delta.role == "assistant" and first.choices[0].delta.content == ""
    assert first.object == "chat.completion.chunk" and first.usage is None
    text = "".join(chunk.choices[0].delta.content for chunk in chunks)
    assert text == whole.choices[0].message.content
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["length"]


def test_stop_strings_seeds_and_other_options(client, engine):
    text = greedy(engine, PROMPTS[:1], 40)[0].text
    stop = text[20:22]
    for streamed in (False, True):
        answer = client.completions.create(
            model="tiny", prompt=PROMPTS[0], max_tokens=40, temperature=0, stop=[stop, "never"],
            stream=streamed,
        )  # fmt: skip
        found = list(answer) if streamed else [answer]
        assert "".join(one.choices[0].text for one in found) == text[: text.index(stop)]
        assert found[-1].choices[0].finish_reason == "stop"
    extra = {
        "top_k": 3, "min_p": 0.01, "repetition_penalty": 1.3, "cache_salt": "mine",
        "stop_token_ids": [7], "ignore_eos": True, **IDS,
    }  # fmt: skip
    answer = client.completions.create(
        model="tiny", prompt=PROMPTS[1], max_tokens=40, temperature=1.2, top_p=0.9, seed=3,
        presence_penalty=0, user="me", extra_body=extra,
    )  # fmt: skip
    (expected,) = greedy(
        engine, PROMPTS[1:2], 40, temperature=1.2, top_p=0.9, top_k=3, min_p=0.01,
        repetition_penalty=1.3, seed=3, stop_token_ids=[7], ignore_eos=True,
    )  # fmt: skip
    assert answer.choices[0].token_ids == expected.token_ids
    assert answer.usage.prompt_tokens_details.cached_tokens == 0  # another salt
    all_of_them = client.completions.create(
        model="tiny", prompt="A", seed=1, extra_body={"top_k": -1, **IDS}
    )
    (expected,) = greedy(engine, ["A"], 16, temperature=1.0, seed=1)  # the defaults of OpenAI
    assert all_of_them.choices[0].token_ids == expected.token_ids


def test_greedy_choices_of_one_prompt_are_equal(client):
    answer = client.completions.create(model="tiny", prompt="A", n=2, temperature=0, max_tokens=5)
    assert answer.choices[0].text == answer.choices[1].text
    assert answer.usage.prompt_tokens == 1 and answer.usage.completion_tokens == 10


def test_a_chat_without_max_tokens_goes_on_to_the_end_of_the_model(client):
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=0)
    assert answer.choices[0].finish_reason == "length" and answer.usage.total_tokens == 512


def test_echo(client, engine):
    (expected,) = greedy(engine, PROMPTS[:1], 4)
    whole = PROMPTS[0] + expected.text
    for prompt in (PROMPTS[0], list(PROMPTS[0].encode())):
        options = {"model": "tiny", "prompt": prompt, "echo": True, "temperature": 0}
        answer = client.completions.create(**options, max_tokens=4)
        assert answer.choices[0].text == whole
        with client.completions.create(**options, max_tokens=4, stream=True) as stream:
            assert "".join(chunk.choices[0].text for chunk in stream) == whole
        answer = client.completions.create(**options, max_tokens=0)
        assert answer.choices[0].text == PROMPTS[0] and answer.usage.completion_tokens == 0
        with client.completions.create(**options, max_tokens=0, stream=True) as stream:
            assert "".join(chunk.choices[0].text for chunk in stream) == PROMPTS[0]


def test_logprobs(client, engine):
    (expected,) = greedy(engine, PROMPTS[:1], 6, logprobs=3)
    options = {"model": "tiny", "prompt": PROMPTS[0], "max_tokens": 6, "temperature": 0}
    found = client.completions.create(**options, logprobs=3).choices[0].logprobs
    assert "".join(found.tokens) == expected.text
    assert found.text_offset == [0, 1, 2, 3, 4, 5]
    assert found.token_logprobs == pytest.approx([own.sampled for own in expected.logprobs])
    for token, log, top, own in zip(
        found.tokens, found.token_logprobs, found.top_logprobs, expected.logprobs, strict=True
    ):
        assert len(top) == 3 and top[token] == log == max(top.values())
        assert {ord(name): value for name, value in top.items()} == pytest.approx(own.top)
    with client.completions.create(**options, logprobs=3, stream=True) as stream:
        parts = [chunk.choices[0].logprobs for chunk in stream]
    assert [name for part in parts for name in part.tokens] == found.tokens
    assert [at for part in parts for at in part.text_offset] == found.text_offset
    chat = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=6, temperature=0, logprobs=True, top_logprobs=2
    )
    (own,) = greedy(engine, [MESSAGES], 6, logprobs=2)
    content = chat.choices[0].logprobs.content
    assert [entry.logprob for entry in content] == pytest.approx([o.sampled for o in own.logprobs])
    assert "".join(entry.token for entry in content) == own.text
    assert [entry.bytes for entry in content] == [[token] for token in own.token_ids]
    for entry, one in zip(content, own.logprobs, strict=True):
        assert {ord(t.token): t.logprob for t in entry.top_logprobs} == pytest.approx(one.top)


def test_models(client):
    (found,) = client.models.list().data
    assert found.id == "tiny" and found.object == "model" and found.max_model_len == 512
    assert client.models.retrieve("tiny") == found
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("other/model")
    assert error.value.code == "model_not_found"


def test_embeddings(client, engine):
    texts = [*PROMPTS, "x" * 300]
    expected = engine.encode(texts, normalize=True)
    for given in (texts, [list(text.encode()) for text in texts]):
        for options in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
            answer = client.embeddings.create(model="tiny", input=given, **options)
            found = [one.embedding for one in answer.data]
            if options == {"encoding_format": "base64"}:
                import base64

                found = [np.frombuffer(base64.b64decode(one), "<f4") for one in found]
            np.testing.assert_allclose(np.array(found), expected, rtol=1e-4, atol=1e-5)
            assert answer.usage.prompt_tokens == sum(map(len, texts))
            assert [one.index for one in answer.data] == [0, 1, 2, 3]
    (one,) = client.embeddings.create(model="tiny", input=PROMPTS[0], dimensions=64).data
    np.testing.assert_allclose(one.embedding, expected[0], rtol=1e-4, atol=1e-5)


async def test_requests_of_all_clients_are_one_batch(address, engine):
    before = engine.stats()
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none") as client:

        async def ask(i):
            stream = await client.completions.create(
                model="tiny", prompt=f"{i}: {PROMPTS[0]}", max_tokens=60, temperature=0,
                stream=True,
            )  # fmt: skip
            return "".join([chunk.choices[0].text async for chunk in stream])

        found = await asyncio.gather(*map(ask, range(8)), client.embeddings.create(
            model="tiny", input=PROMPTS))  # fmt: skip
    after = engine.stats()
    expected = greedy(engine, [f"{i}: {PROMPTS[0]}" for i in range(8)], 60)
    assert found[:8] == [g.text for g in expected]
    assert after.generated_tokens - before.generated_tokens == 480
    assert after.steps - before.steps < 240  # alone they would take 480
