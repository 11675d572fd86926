"""What OpenAI's API refuses: in its shape, with the field; no body whatever is an error of ours."""

import json

import pytest
from hypothesis import given, settings, strategies as st

pytest.importorskip("torch", reason="needs llmds_nb[hf]")
pytest.importorskip("transformers", reason="needs llmds_nb[hf]")
pytest.importorskip("starlette", reason="needs llmds_nb[serve]")
httpx = pytest.importorskip("httpx", reason="needs httpx")

from llmds_nb import LsaEncoder, RetrievalPipeline  # noqa: E402
from llmds_nb.integrations.serve import Settings, create_app  # noqa: E402
from llmds_nb.integrations.serve.openai import fields  # noqa: E402

from . import models  # noqa: E402

COMPLETIONS, CHATS, EMBEDDINGS = "/v1/completions", "/v1/chat/completions", "/v1/embeddings"
USER = [{"role": "user", "content": "A"}]


@pytest.fixture(scope="module")
def engine():
    with models.engine(n_pages=64) as engine:
        yield engine


def documents():
    pipeline = RetrievalPipeline(encoder=LsaEncoder(dim=2))
    pipeline.add(["a", "b"], ["red fox", "blue sky"])
    return pipeline


@pytest.fixture
def app(engine):
    return create_app(documents(), engine=engine, model_name="tiny")


REFUSED = [
    (COMPLETIONS, {}, 400, "prompt"),
    (COMPLETIONS, {"prompt": None}, 400, "prompt"),
    (COMPLETIONS, {"prompt": ""}, 400, "prompt"),
    (COMPLETIONS, {"prompt": []}, 400, "prompt"),
    (COMPLETIONS, {"prompt": [[]]}, 400, "prompt"),
    (COMPLETIONS, {"prompt": ["A", 1]}, 400, "prompt"),
    (COMPLETIONS, {"prompt": [1, "A"]}, 400, "prompt"),
    (COMPLETIONS, {"prompt": [1, True]}, 400, "prompt"),
    (COMPLETIONS, {"prompt": [True]}, 400, "prompt"),
    (COMPLETIONS, {"prompt": [-1]}, 400, "prompt"),
    (COMPLETIONS, {"prompt": [128]}, 400, "prompt"),
    (COMPLETIONS, {"prompt": [2**70]}, 400, "prompt"),
    (COMPLETIONS, {"prompt": {"text": "A"}}, 400, "prompt"),
    (COMPLETIONS, {"prompt": "é"}, 400, "prompt"),  # bytes that the model does not have
    (COMPLETIONS, {"prompt": "\ud800"}, 400, "prompt"),
    (COMPLETIONS, {"prompt": ["A"] * 1025}, 400, "prompt"),
    (COMPLETIONS, {"prompt": ["A"] * 2, "n": 1000}, 400, "prompt"),
    (COMPLETIONS, {"prompt": "A" * 2000}, 400, None),
    (COMPLETIONS, {"prompt": "A", "max_tokens": 100_000}, 400, None),
    (COMPLETIONS, {"prompt": "A", "max_tokens": -1}, 400, "max_tokens"),
    (COMPLETIONS, {"prompt": "A", "max_tokens": 2.5}, 400, "max_tokens"),
    (COMPLETIONS, {"prompt": "A", "max_tokens": True}, 400, "max_tokens"),
    (COMPLETIONS, {"prompt": "A", "max_tokens": 2**40}, 400, "max_tokens"),
    (COMPLETIONS, {"prompt": "A", "temperature": -1}, 400, "temperature"),
    (COMPLETIONS, {"prompt": "A", "temperature": "0"}, 400, "temperature"),
    (COMPLETIONS, {"prompt": "A", "temperature": 10**400}, 400, "temperature"),
    (COMPLETIONS, {"prompt": "A", "top_p": 0}, 400, "top_p"),
    (COMPLETIONS, {"prompt": "A", "top_k": -2}, 400, "top_k"),
    (COMPLETIONS, {"prompt": "A", "min_p": 2}, 400, "min_p"),
    (COMPLETIONS, {"prompt": "A", "repetition_penalty": 0}, 400, "repetition_penalty"),
    (COMPLETIONS, {"prompt": "A", "seed": -1}, 400, "seed"),
    (COMPLETIONS, {"prompt": "A", "n": 0}, 400, "n"),
    (COMPLETIONS, {"prompt": "A", "n": 1025}, 400, "n"),
    (COMPLETIONS, {"prompt": "A", "best_of": 3}, 400, "best_of"),
    (COMPLETIONS, {"prompt": "A", "stop": ""}, 400, "stop"),
    (COMPLETIONS, {"prompt": "A", "stop": {"A": 1}}, 400, "stop"),
    (COMPLETIONS, {"prompt": "A", "stop": ["A", 1]}, 400, "stop"),
    (COMPLETIONS, {"prompt": "A", "stop": ["A"] * 65}, 400, "stop"),
    (COMPLETIONS, {"prompt": "A", "stop_token_ids": [128]}, 400, "stop_token_ids"),
    (COMPLETIONS, {"prompt": "A", "stop_token_ids": "A"}, 400, "stop_token_ids"),
    (COMPLETIONS, {"prompt": "A", "logprobs": 21}, 400, "logprobs"),
    (COMPLETIONS, {"prompt": "A", "logprobs": True}, 400, "logprobs"),
    (COMPLETIONS, {"prompt": "A", "echo": True, "logprobs": 1}, 400, "echo"),
    (COMPLETIONS, {"prompt": "A", "echo": 1}, 400, "echo"),
    (COMPLETIONS, {"prompt": "A", "stream": "yes"}, 400, "stream"),
    (COMPLETIONS, {"prompt": "A", "stream_options": {"include_usage": True}}, 400,
     "stream_options"),
    (COMPLETIONS, {"prompt": "A", "stream": True, "stream_options": [1]}, 400, "stream_options"),
    (COMPLETIONS, {"prompt": "A", "stream": True, "stream_options": {"x": True}}, 400,
     "stream_options"),
    (COMPLETIONS, {"prompt": "A", "presence_penalty": 0.5}, 400, "presence_penalty"),
    (COMPLETIONS, {"prompt": "A", "frequency_penalty": 1}, 400, "frequency_penalty"),
    (COMPLETIONS, {"prompt": "A", "logit_bias": {"1": 2}}, 400, "logit_bias"),
    (COMPLETIONS, {"prompt": "A", "suffix": "B"}, 400, "suffix"),
    (COMPLETIONS, {"prompt": "A", "cache_salt": ""}, 400, "cache_salt"),
    (COMPLETIONS, {"prompt": "A", "salt": "x", "cache_salt": "y"}, 400, "salt"),
    (COMPLETIONS, {"prompt": "A", "salt": 1}, 400, "salt"),
    (COMPLETIONS, {"prompt": "A", "temprature": 0}, 400, "temprature"),
    (COMPLETIONS, {"prompt": "A", "messages": USER}, 400, "messages"),
    (COMPLETIONS, {"prompt": "A", "retrieval": True}, 400, "retrieval"),
    (COMPLETIONS, {"prompt": "A", "model": "gpt"}, 404, "model"),
    (COMPLETIONS, {"prompt": "A", "model": 1}, 400, "model"),
    (COMPLETIONS, [], 400, None),
    (COMPLETIONS, "A", 400, None),
    (CHATS, {}, 400, "messages"),
    (CHATS, {"messages": []}, 400, "messages"),
    (CHATS, {"messages": "A"}, 400, "messages"),
    (CHATS, {"messages": ["A"]}, 400, "messages"),
    (CHATS, {"messages": [{"role": "user"}]}, 400, "messages[0].content"),
    (CHATS, {"messages": [{"content": "A"}]}, 400, "messages"),
    (CHATS, {"messages": [{"role": ["user"], "content": "A"}]}, 400, "messages"),
    (CHATS, {"messages": [{"role": "tool", "content": "A"}]}, 400, "messages"),
    (CHATS, {"messages": [{"role": "user", "content": 1}]}, 400, "messages[0].content"),
    (CHATS, {"messages": [{"role": "user", "content": "\udfff"}]}, 400, "messages[0].content"),
    (CHATS, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages"),
    (CHATS, {"messages": [{**USER[0], "tool_calls": [{}]}]}, 400, "messages"),
    (CHATS, {"messages": USER, "max_tokens": 0}, 400, "max_tokens"),
    (CHATS, {"messages": USER, "max_tokens": 1, "max_completion_tokens": 2}, 400, "max_tokens"),
    (CHATS, {"messages": USER, "logprobs": 1}, 400, "logprobs"),
    (CHATS, {"messages": USER, "top_logprobs": 1}, 400, "top_logprobs"),
    (CHATS, {"messages": USER, "tools": [{"type": "function"}]}, 400, "tools"),
    (CHATS, {"messages": USER, "response_format": {"type": "json_object"}}, 400,
     "response_format"),
    (CHATS, {"messages": USER, "modalities": ["audio"]}, 400, "modalities"),
    (CHATS, {"messages": USER, "chat_template_kwargs": 1}, 400, "chat_template_kwargs"),
    (CHATS, {"messages": USER, "chat_template_kwargs": {"tokenize": False}}, 400,
     "chat_template_kwargs"),
    (CHATS, {"messages": USER, "chat_template_kwargs": {"chat_template": "x"}}, 400,
     "chat_template_kwargs"),
    (CHATS, {"messages": USER, "chat_template_kwargs": {"messages": []}}, 400,
     "chat_template_kwargs"),
    (CHATS, {"messages": USER, "retrieval": 1}, 400, "retrieval"),
    (CHATS, {"messages": USER, "retrieval": {"k": 0}}, 400, "retrieval"),
    (CHATS, {"messages": USER, "retrieval": {"k": True}}, 400, "retrieval"),
    (CHATS, {"messages": USER, "retrieval": {"k": 10**6}}, 400, "retrieval"),
    (CHATS, {"messages": USER, "retrieval": {"top": 1}}, 400, "retrieval"),
    (CHATS, {"messages": USER, "retrieval": {"min_score": [1]}}, 400, "retrieval"),
    (CHATS, {"messages": USER, "retrieval": {"where": []}}, 400, "retrieval"),
    (CHATS, {"messages": USER, "retrieval": {"where": {"$no": 1}}}, 400, None),
    (CHATS, {"messages": USER, "retrieval": {"weight": 7}}, 400, None),
    (CHATS, {"messages": USER, "retrieval": {"query": "A" * 20_001}}, 400, "retrieval"),
    (CHATS, {"messages": [{"role": "system", "content": "A"}], "retrieval": True}, 400,
     "retrieval"),
    (EMBEDDINGS, {}, 400, "input"),
    (EMBEDDINGS, {"input": ""}, 400, "input"),
    (EMBEDDINGS, {"input": ["A", ""]}, 400, "input"),
    (EMBEDDINGS, {"input": "A" * 600}, 400, "input"),
    (EMBEDDINGS, {"input": "A", "encoding_format": "int8"}, 400, "encoding_format"),
    (EMBEDDINGS, {"input": "A", "dimensions": 8}, 400, "dimensions"),
    (EMBEDDINGS, {"input": ["A"] * 2049}, 400, "input"),
    (EMBEDDINGS, {"input": "A", "model": "ada"}, 404, "model"),
]  # fmt: skip


async def test_each_wrong_field_is_named(calling, app, engine):
    async with calling(app) as client:
        for path, body, status, param in REFUSED:
            answer = await client.post(
                path, content=json.dumps(body), headers={"Content-Type": "application/json"}
            )
            assert "error" in answer.json(), body
            error = answer.json()["error"]
            assert (answer.status_code, error["param"]) == (status, param), (body, error)
            kind = "not_found_error" if status == 404 else "invalid_request_error"
            assert error["type"] == kind and error["message"]
            assert (error["code"] == "model_not_found") == (status == 404)
    models.nothing_is_held(engine)
    assert engine.stats().submitted == 0


async def test_values_that_change_nothing_are_taken(calling, app):
    nothing = {name: values[0] for name, values in fields._UNCHANGED.items() if values}
    given = {"prompt": "A", "max_tokens": 1, "top_k": None, "user": "me", **nothing}
    async with calling(app) as client:
        answer = await client.post(COMPLETIONS, json=given)
        assert answer.status_code == 200, answer.json()
        for value in ([], False, None):
            messages = {"role": "user", "content": "A", "tool_calls": [], "refusal": None}
            body = {"messages": [messages], "max_tokens": 1, "audio": None, "retrieval": False}
            answer = await client.post(CHATS, json={**body, "tools": value or None})
            assert answer.status_code == 200, answer.json()


async def test_options_of_the_chat_template_reach_it(calling, app):
    body = {"messages": USER, "max_tokens": 1}
    async with calling(app) as client:
        plain = (await client.post(CHATS, json=body)).json()["usage"]["prompt_tokens"]
        body["chat_template_kwargs"] = {"shout": True}
        loud = (await client.post(CHATS, json=body)).json()["usage"]["prompt_tokens"]
    assert loud == plain + 1


@pytest.mark.parametrize("tokenizer", [None, models.tokenizer(template=None)])
async def test_a_chat_needs_a_template(calling, tokenizer):
    with models.engine(tokenizer=tokenizer) as engine:
        async with calling(create_app(engine=engine)) as client:
            error = await client.post(CHATS, json={"messages": USER})
            assert error.status_code == 400
            assert error.json()["error"]["code"] == "no_chat_template"
            expected = engine.generate([[5, 6]], max_new_tokens=3, progress=False)
            body = {"prompt": [5, 6], "max_tokens": 3, "temperature": 0, "logprobs": 1}
            answer = await client.post(COMPLETIONS, json={**body, "return_token_ids": True})
            choice = answer.json()["choices"][0]
            assert choice["token_ids"] == expected[0].token_ids
            if tokenizer is None:
                assert choice["text"] == ""
                assert choice["logprobs"]["tokens"][0] == f"token_id:{choice['token_ids'][0]}"
                for body in ({"prompt": "A"}, {"prompt": [5], "stop": "x"},
                             {"prompt": [5], "echo": True}):  # fmt: skip
                    answer = await client.post(COMPLETIONS, json=body)
                    assert answer.status_code == 400, body
                    assert "tokenizer" in answer.json()["error"]["message"]


async def test_a_template_that_refuses(calling):
    broken = models.tokenizer("{{ raise_exception('no chats today') }}")
    with models.engine(tokenizer=broken) as engine:
        async with calling(create_app(engine=engine)) as client:
            answer = await client.post(CHATS, json={"messages": USER})
            assert answer.status_code == 400
            assert "no chats today" in answer.json()["error"]["message"]


async def test_limits_count_what_was_used(calling):
    limits = Settings(token_rate_limit=1.0, burst_ms=40_000.0)
    with models.engine() as engine:
        app = create_app(engine=engine, settings=limits)
        async with calling(app) as client:
            body = {"prompt": "A", "max_tokens": 30}
            assert (await client.post(COMPLETIONS, json={**body, "echo": 1})).status_code == 400
            answer = await client.post(COMPLETIONS, json={**body, "stop_token_ids": [*range(128)]})
            assert answer.json()["usage"]["total_tokens"] == 2  # of 31 that were reserved
            assert (await client.post(COMPLETIONS, json=body)).status_code == 200
            answer = await client.post(COMPLETIONS, json=body)
            assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
            answer = await client.post(COMPLETIONS, json={**body, "max_tokens": 400})
            assert answer.status_code == 413


texts = st.text(max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 130) | st.floats() | texts | st.just(2**80),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system", "assistant", "tool"]) | values},
        optional={"content": texts | values, "name": values},
    ),
    max_size=3,
)
retrievals = st.fixed_dictionaries(
    {},
    optional={
        "k": values, "where": st.dictionaries(texts | st.just("$gt"), values, max_size=2),
        "weight": values, "group_by": texts, "query": texts, "diversity": values,
        "min_score": values, "fusion": values,
    },
)  # fmt: skip
ASKED = {
    COMPLETIONS: (fields.COMPLETION, {"prompt": texts | st.lists(st.integers(-1, 128)) | values}),
    CHATS: (fields.CHAT, {"messages": messages | values, "retrieval": retrievals | values}),
    EMBEDDINGS: (fields.EMBEDDING, {"input": texts | values}),
}


@st.composite
def bodies(draw):
    path = draw(st.sampled_from(list(ASKED)))
    known, own = ASKED[path]
    names = sorted((known | set(fields._UNCHANGED)) - own.keys() - {"max_tokens", "n", "model"})
    body = draw(st.fixed_dictionaries(own))
    body |= draw(st.dictionaries(st.sampled_from(names) | texts, values, max_size=2))
    if path != EMBEDDINGS:
        body |= {"max_tokens": draw(st.integers(1, 3)), "n": draw(st.integers(1, 2))}
    return path, body


@given(asked=st.lists(bodies() | st.tuples(st.sampled_from(list(ASKED)), values), max_size=8))
@settings(max_examples=25)
def test_no_body_is_an_error_of_the_server(app, engine, asked):
    import asyncio

    async def ask():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        headers = {"Content-Type": "application/json"}
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await asyncio.gather(
                *(client.post(p, content=json.dumps(b), headers=headers) for p, b in asked)
            )

    for (path, body), answer in zip(asked, asyncio.run(ask()), strict=True):
        assert answer.status_code in (200, 400), (path, body, answer.text)
        if answer.headers["content-type"] == "application/json":
            answer.json()
        else:
            *_, last, end = answer.text.split("\n\n")
            assert last == "data: [DONE]" and not end
            assert '"error"' not in answer.text
    models.nothing_is_held(engine)


async def test_the_description_names_every_field(calling, app):
    validate = pytest.importorskip("openapi_spec_validator").validate
    async with calling(app) as client:
        document = (await client.get("/openapi.json")).json()
    validate(document)
    for path, (known, _) in ASKED.items():
        content = document["paths"][path]["post"]["requestBody"]["content"]
        described = content["application/json"]["schema"]["properties"]
        assert set(described) == known - {"best_of"}  # which may only say what n does
    assert set(document["paths"]) >= {"/v1/models", "/v1/models/{model}"}
