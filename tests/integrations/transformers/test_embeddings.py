"""Engine.encode: the vectors of the plain model, one text at a time."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from llmds_nb import CapacityError, RetrievalPipeline  # noqa: E402
from llmds_nb.integrations.transformers import Engine  # noqa: E402
from tests.interrupts import Interrupt, _Tracer  # noqa: E402

from .models import VOCABULARY, build  # noqa: E402


class Words:
    """A tokenizer: a token for each word, by its letters; it has no decode that matters."""

    def __call__(self, text):
        return {"input_ids": [5 + sum(map(ord, word)) % 500 for word in text.split()]}

    def decode(self, ids):
        return " ".join(map(str, ids))


@pytest.fixture(scope="module")
def llama():
    return build("llama")


def ragged(n, most, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(5, VOCABULARY, k).tolist() for k in rng.integers(1, most, n)]


def plain(model, texts, pooling):
    """What the model computes of each text by itself, with its own attention."""
    found = []
    with torch.inference_mode():
        for ids in texts:
            hidden = model.base_model(torch.tensor(ids)[None], use_cache=False).last_hidden_state[0]
            found.append((hidden.mean(0) if pooling == "mean" else hidden[-1]).numpy())
    return np.array(found)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "qwen3", "mistral"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_vectors_are_those_of_the_plain_model(family, pooling):
    model = build(family)
    texts = [*ragged(12, 60), [7], ragged(1, 2, 3)[0] * 90]
    expected = plain(model, texts, pooling)
    with Engine(model, page_size=8, n_pages=40, max_step_tokens=50) as engine:
        found = engine.encode(texts, pooling)
        assert found.dtype == np.float32 and found.shape == (14, 64)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, atol=1e-4 * scale)
        unit = engine.encode(texts, pooling, normalize=True)
        np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-5)
        np.testing.assert_allclose(unit * np.linalg.norm(found, axis=1)[:, None], found, rtol=1e-4)
        engine.check()
        assert len(engine.cache) == 0 and engine.cache.stats().n_cached == 0


def test_texts_between_the_steps_of_requests(llama):
    texts, prompts = ragged(6, 40, 1), ragged(5, 30, 2)
    expected = plain(llama, texts, "mean")
    with Engine(llama, page_size=8, n_pages=60, max_step_tokens=30) as engine:
        alone = engine.generate(prompts, max_new_tokens=8, progress=False)
        requests = [engine.submit(p, max_new_tokens=8) for p in prompts]
        while not all(r.finished for r in requests):
            engine.step()
            np.testing.assert_allclose(engine.encode(texts), expected, atol=1e-3)
            engine.check()
        assert [r.tokens for r in requests] == [g.token_ids for g in alone]


def test_a_pipeline_finds_by_these_vectors(llama):
    texts = ["red fox", "blue sky over the sea", "green grass", "the old red barn"]
    with Engine(llama, tokenizer=Words(), n_pages=20) as engine:
        pipeline = RetrievalPipeline(encoder=engine.encode)
        pipeline.add(range(4), texts)
        for i, text in enumerate(texts):
            assert pipeline.search(text, 1, weight=1.0).ids.tolist() == [i]
        assert np.array_equal(engine.encode("red fox"), engine.encode(["red fox"]))


def test_an_empty_text_has_the_vector_0(llama):
    with Engine(llama, tokenizer=Words(), n_pages=20) as engine:
        found = engine.encode(["red fox", "", "sky"], normalize=True)
        assert found[1].tolist() == [0.0] * 64 and np.isfinite(found).all()
        np.testing.assert_allclose(found[2], engine.encode("sky", normalize=True)[0], atol=1e-5)
        assert engine.encode(["", ""]).tolist() == [[0.0] * 64] * 2
        assert engine.encode([]).shape == (0, 64)


def test_texts_that_are_too_long(llama):
    text = ragged(1, 2)[0] * 600
    with Engine(llama, page_size=8, n_pages=80) as engine:
        with pytest.raises(ValueError, match=r"texts\[1\] has 600 tokens, and the model has pos"):
            engine.encode([[5], text])
        found = engine.encode([text], truncate=True)
    with Engine(llama, page_size=8, n_pages=10) as engine:
        with pytest.raises(ValueError, match=r"texts\[0\] has 100 tokens, and pages hold 80: trun"):
            engine.encode([text[:100]])
        assert engine.encode([text[:100]], truncate=True).shape == (1, 64)
    np.testing.assert_allclose(found, plain(llama, [text[:512]], "mean"), atol=1e-3)


def test_bad_input(llama):
    with Engine(llama, n_pages=20) as engine:
        for call, kind, text in (
            (lambda: engine.encode([[5]], "max"), ValueError, "pooling must be"),
            (lambda: engine.encode([[5]], normalize=1), TypeError, "normalize must be True or"),
            (lambda: engine.encode([[5]], truncate=None), TypeError, "truncate must be True or"),
            (lambda: engine.encode(5), TypeError, "texts must be a list of texts, not 5"),
            (lambda: engine.encode(["a b"]), ValueError, r"texts\[0\] is text, for which"),
            (lambda: engine.encode([[5], []]), ValueError, r"texts\[1\] must hold at least one"),
            (lambda: engine.encode([[5], [VOCABULARY]]), ValueError, r"texts\[1\] has the token"),
        ):
            with pytest.raises(kind, match=text):
                call()
        engine.check()
    with pytest.raises(RuntimeError, match="closed"):
        engine.encode([[5]])


def test_no_page_is_lost_where_too_few_are_free(llama):
    with Engine(llama, page_size=8, n_pages=8) as engine:
        request = engine.submit(list(range(5, 45)), max_new_tokens=20)
        engine.step()
        with pytest.raises(CapacityError):
            engine.encode([list(range(5, 45))])
        engine.check()
        assert len(request.result().token_ids) == 20
        assert engine.encode([list(range(5, 45))]).shape == (1, 64)


def test_an_interrupted_call_holds_no_page(llama):
    texts = ragged(3, 20)
    with Engine(llama, page_size=8, n_pages=30, max_step_tokens=16) as engine:
        expected = engine.encode(texts)
        at = 0
        while True:
            tracer = _Tracer(at, ("embeddings",))
            try:
                with tracer:
                    engine.encode(texts)
            except Interrupt:
                pass
            if not tracer.place:
                break
            np.testing.assert_array_equal(engine.encode(texts), expected)
            engine.check()
            assert len(engine.cache) == 0, tracer.place
            at += 5
        assert at > 40
