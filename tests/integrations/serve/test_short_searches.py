"""Which searches are done in the event loop's thread, and that their answers are the same."""

import asyncio
import math
import threading

import pytest

from llmds_nb import RetrievalPipeline
from llmds_nb.integrations.serve import Settings, batching, create_app

from .conftest import httpx  # noqa: F401  (skips without the extra)

TEXTS = ["red fox", "blue sky", "red sky at night", "grey fox", "the red red sea"]


class Recording(RetrievalPipeline):
    """Remembers which threads searched."""

    def search(self, *arguments, **options):
        self.__dict__.setdefault("names", []).append(threading.current_thread().name)
        return super().search(*arguments, **options)

    def in_loop(self):
        """For each search since the last call, whether it was in the thread of the loop."""
        names, self.__dict__["names"] = self.__dict__.get("names", []), []
        return [not name.startswith("llmds-search") for name in names]


def made(encoder="lsa"):
    pipeline = Recording(encoder=encoder, cache_tokens=0)
    pipeline.add(range(5), TEXTS, metadata=[{"n": i} for i in range(5)])
    return pipeline


def letters(texts):
    return [[text.count("r") + 1, text.count("s") + 0.5] for text in texts]


async def test_plain_searches_are_done_at_once_after_the_first(calling, monkeypatch):
    monkeypatch.setattr(batching, "_SHORT_S", 10.0)
    pipeline = made()
    async with calling(app := create_app(pipeline)):
        state = app.state.server
        for i in range(3):
            hits, documents = await state.search("red fox", 3)
            expected = RetrievalPipeline.search(pipeline, "red fox", 3)
            assert hits.ids.tolist() == expected.ids.tolist()
            assert documents == pipeline.documents(expected)
            assert pipeline.in_loop() == [i > 0]
        for chosen in ({"where": {"n": 1}}, {"weight": 0.5}, {"filter": [1]}, {"k": 101}):
            await state.search("red fox", **chosen)
            assert pipeline.in_loop() == [False], chosen
        await state.search("red " * 300)
        assert pipeline.in_loop() == [False]
        await asyncio.gather(*(state.search(f"red {i}") for i in range(20)))
        assert pipeline.in_loop() == [True]  # one batch
        monkeypatch.setattr(batching, "_SHORT_S", 0.0)
        await state.search("red fox")
        assert pipeline.in_loop() == [False]


@pytest.mark.parametrize(
    ("encoder", "settings"), [(letters, Settings()), ("lsa", Settings(threads=2))]
)
async def test_code_of_others_and_more_threads_are_not_for_the_loop(
    calling, monkeypatch, encoder, settings
):
    monkeypatch.setattr(batching, "_SHORT_S", 10.0)
    pipeline = made(encoder)
    async with calling(app := create_app(pipeline, settings=settings)):
        for _ in range(3):
            await app.state.server.search("red fox")
    assert pipeline.in_loop() == [False] * 3


async def test_a_long_query_is_remembered_for_a_while(calling, monkeypatch):
    pipeline = made()
    async with calling(app := create_app(pipeline)):
        batcher = app.state.server.batcher
        assert batcher._seconds == math.inf
        await app.state.server.search("red fox")
        monkeypatch.setattr(batching, "_SHORT_S", 0.1)
        batcher._seconds = 100.0
        pipeline.in_loop()
        n = 0
        while batcher._seconds > batching._SHORT_S and n < 200:
            await app.state.server.search("red fox")
            n += 1
        assert 100 < n < 200 and pipeline.in_loop() == [False] * n


async def test_an_error_in_the_loop_is_that_of_its_query_alone(calling, monkeypatch):
    monkeypatch.setattr(batching, "_SHORT_S", 10.0)
    pipeline = made()
    async with calling(app := create_app(pipeline)):
        state = app.state.server
        await state.search("red fox")
        search = pipeline.search

        def failing(queries, *arguments, **options):
            if "bad" in queries:
                raise ValueError("a bad query")
            return search(queries, *arguments, **options)

        monkeypatch.setattr(pipeline, "search", failing)
        asked = [state.search(text) for text in ("red", "bad", "sky")]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert [getattr(one, "status", 200) for one in answers] == [200, 400, 200]
        assert len(state.batcher.scheduler) == 0
