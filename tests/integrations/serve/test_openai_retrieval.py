"""Documents in the prompt of a chat: which, where, in what order, and that the answer says so."""

import pytest

pytest.importorskip("torch", reason="needs llmds_nb[hf]")
pytest.importorskip("transformers", reason="needs llmds_nb[hf]")
pytest.importorskip("starlette", reason="needs llmds_nb[serve]")
pytest.importorskip("httpx", reason="needs httpx")

from llmds_nb import LsaEncoder, RetrievalPipeline
from llmds_nb.integrations.serve import Settings, create_app

from . import models

CHATS = "/v1/chat/completions"
DOCUMENTS = {
    "pages": "Cached prefixes share their pages.",
    "heap": "A heap orders requests by priority.",
    "ranks": "Okapi ranks documents by term frequency.",
    "cows": "A shared page is copied before a write.",
    "words": "A tokenizer splits a text into words.",
}
SYSTEM = {"role": "system", "content": "You answer briefly, from what you are given."}
QUESTION = "which pages do cached prefixes share"


def asked(*more, **fields):
    messages = [SYSTEM, *more, {"role": "user", "content": QUESTION}]
    return {
        "messages": messages, "max_tokens": 6, "temperature": 0, "return_token_ids": True, **fields
    }  # fmt: skip


@pytest.fixture(scope="module")
def pipeline():
    made = RetrievalPipeline(encoder=LsaEncoder(dim=4))
    metadata = [{"n": n} for n in range(len(DOCUMENTS))]
    made.add(list(DOCUMENTS), list(DOCUMENTS.values()), metadata=metadata)
    return made


@pytest.fixture(scope="module")
def engine():
    with models.engine() as engine:
        yield engine
        models.nothing_is_held(engine)


async def answer_of(client, body):
    answer = await client.post(CHATS, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_the_prompt_has_the_documents_by_their_ids(calling, pipeline, engine):
    hits = pipeline.search(QUESTION, 3)
    best = [str(id_) for id_ in hits.ids]
    assert sorted(best) != best  # else the order would show nothing
    parts = [f"[{id_}]\n{DOCUMENTS[id_]}\n\n" for id_ in sorted(best)]
    content = f"Documents:\n\n{''.join(parts)}Question: {QUESTION}"
    prompt = [SYSTEM, {"role": "user", "content": content}]
    (expected,) = engine.generate([prompt], max_new_tokens=6, progress=False)
    async with calling(create_app(pipeline, engine=engine)) as client:
        answer = await answer_of(client, asked(retrieval={"k": 3}))
        assert answer["choices"][0]["token_ids"] == expected.token_ids
        found = answer["retrieval"]
        assert found["query"] == QUESTION and found["left_out"] == []
        assert [one["id"] for one in found["documents"]] == best
        scores = [one["score"] for one in found["documents"]]
        assert scores == pytest.approx(hits.scores.tolist())
        # All but the last tokens of the same prompt are cached.
        cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached == (len(expected.prompt_ids) - 1) // 8 * 8
        plain = await answer_of(client, asked())
        assert "retrieval" not in plain
        assert plain["usage"]["prompt_tokens"] < answer["usage"]["prompt_tokens"]


async def test_what_comes_before_the_last_question_stays_cached(calling, pipeline, engine):
    before = {"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello, you."}
    async with calling(create_app(pipeline, engine=engine)) as client:
        first = await answer_of(client, asked(*before, retrieval={"k": 1}, salt="of this test"))
        body = asked(*before, retrieval={"k": 1, "query": "heap"}, salt="of this test")
        second = await answer_of(client, body)
    assert first["retrieval"]["documents"] != second["retrieval"]["documents"]
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    text = engine.tokenizer.apply_chat_template([SYSTEM, *before], tokenize=False)
    assert cached >= len(text.removesuffix("<assistant>")) // 8 * 8


async def test_options_of_the_search(calling, pipeline, engine):
    async with calling(create_app(pipeline, engine=engine)) as client:
        for options in (
            {"where": {"n": {"$gte": 2}}}, {"min_score": 0.6}, {"weight": 0.0, "k": 2},
            {"fusion": "rrf"}, {"diversity": 0.5, "k": 2}, {"group_by": "n"}, {},
        ):  # fmt: skip
            answer = await answer_of(client, asked(retrieval=options or True))
            hits = pipeline.search(QUESTION, **{"k": 4, **options})
            expected = [id_ for id_ in hits.ids.tolist() if id_ is not None]
            assert [one["id"] for one in answer["retrieval"]["documents"]] == expected, options
        nothing = await answer_of(client, asked(retrieval={"where": {"n": 77}}))
        assert nothing["retrieval"]["documents"] == []
        plain = await answer_of(client, asked())
        assert nothing["choices"] == plain["choices"]


async def test_the_first_event_of_a_stream_names_them(calling, pipeline, engine):
    import json

    async with calling(create_app(pipeline, engine=engine)) as client:
        whole = await answer_of(client, asked(retrieval=True))
        answer = await client.post(CHATS, json=asked(retrieval=True, stream=True))
        parts = answer.text.split("\n\n")
        events = [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]
    assert events[0]["retrieval"] == whole["retrieval"]
    assert not any("retrieval" in event for event in events[1:])
    text = "".join(event["choices"][0]["delta"]["content"] for event in events)
    assert text == whole["choices"][0]["message"]["content"]


async def test_the_default_of_a_server(calling, pipeline, engine):
    app = create_app(pipeline, engine=engine, settings=Settings(retrieval_k=2))
    async with calling(app) as client:
        for fields, n in (({}, 2), ({"retrieval": {"k": 1}}, 1), ({"retrieval": {}}, 2)):
            answer = await answer_of(client, asked(**fields))
            assert len(answer["retrieval"]["documents"]) == n
        assert "retrieval" not in await answer_of(client, asked(retrieval=False))
        body = {**asked(), "messages": [SYSTEM]}
        assert "retrieval" not in await answer_of(client, body)


async def test_the_worst_documents_are_left_out_where_they_do_not_fit(calling, pipeline):
    with models.engine(n_pages=32) as engine:  # 256 tokens
        async with calling(create_app(pipeline, engine=engine)) as client:
            answer = await answer_of(client, asked(retrieval={"k": 5}))
            found = answer["retrieval"]
            ids = [one["id"] for part in ("documents", "left_out") for one in found[part]]
            assert ids == pipeline.search(QUESTION, 5).ids.tolist()
            assert 0 < len(found["documents"]) < 5
            body = asked(retrieval={"k": len(found["documents"]) + 1}, max_tokens=1)
            more = await answer_of(client, body)
            assert len(more["retrieval"]["left_out"]) == 1  # no more would have fitted
            body = asked(retrieval={"k": 5})
            body["messages"][1]["content"] = "x" * 300
            answer = await client.post(CHATS, json=body)
            assert answer.status_code == 400
            assert "pages" in answer.json()["error"]["message"]


async def test_a_server_without_documents(calling, engine):
    async with calling(create_app(engine=engine)) as client:
        answer = await client.post(CHATS, json=asked(retrieval=True))
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "retrieval"
