"""What surrounds the routes: keys, errors in one shape, health, metrics."""

import pytest

from llmds_nb import RetrievalPipeline
from llmds_nb.integrations.serve import Settings, create_app


def small():
    pipeline = RetrievalPipeline(dim=2)
    pipeline.add([1, 2, 3], ["red fox", "blue sky", "red sky"], [[1, 0], [0, 1], [1, 1]])
    return pipeline


async def test_search_of_the_state_is_that_of_the_pipeline(calling):
    pipeline = small()
    app = create_app(pipeline)
    async with calling(app):
        state = app.state.server
        hits, documents = await state.search("red sky", 2, vectors=[1.0, 0.9])
        expected = pipeline.search("red sky", 2, vectors=[1.0, 0.9])
        assert hits.ids.tolist() == expected.ids.tolist()
        assert hits.scores.tolist() == expected.scores.tolist()
        assert documents == pipeline.documents(expected)
        hits, documents = await state.search(["red", "sky"], 2, documents=False)
        assert hits.ids.shape == (2, 2) and documents is None


@pytest.mark.parametrize(("path", "method", "status", "kind"), [
    ("/nowhere", "GET", 404, "not_found_error"),
    ("/health", "POST", 405, "method_not_allowed_error"),
])  # fmt: skip
async def test_errors_have_one_shape(calling, path, method, status, kind):
    async with calling(create_app(small())) as client:
        answer = await client.request(method, path)
        assert answer.status_code == status
        error = answer.json()["error"]
        assert set(error) == {"type", "message", "param", "code"} and error["type"] == kind
        assert answer.headers["x-request-id"]


async def test_health_is_open_and_the_rest_needs_a_key(calling):
    app = create_app(small(), settings=Settings(api_keys=("one", "two")))
    async with calling(app) as client:
        for path in ("/health", "/health/live", "/health/ready"):
            assert (await client.get(path)).status_code == 200
        assert (await client.get("/metrics")).status_code == 401
        for headers in ({"Authorization": "Bearer two"}, {"X-API-Key": "one"}):
            assert (await client.get("/metrics", headers=headers)).status_code == 200
        answer = await client.get("/metrics", headers={"X-API-Key": "three"})
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"


async def test_the_encoder_has_encoded_a_query_before_the_first_one_comes(calling):
    asked = []

    def encoder(texts):
        asked.append(texts)
        return [[1.0, 0.0] for _ in texts]

    pipeline = RetrievalPipeline(encoder=encoder, dim=2)
    async with calling(create_app(pipeline)):
        assert not asked  # there is nothing to search
    pipeline.add([1], ["red fox"])
    asked.clear()
    async with calling(create_app(pipeline)):
        assert list(map(len, asked)) == [1]
        assert pipeline.stats().queries == 0  # nor has anyone searched
