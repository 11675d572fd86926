"""What an engine refuses: models, prompts, parameters and sizes; each by a clear error."""

import gc

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from llmds_nb import CapacityError  # noqa: E402
from llmds_nb.integrations.transformers import Engine, UnsupportedModelError  # noqa: E402
from llmds_nb.integrations.transformers.salts import salt_of  # noqa: E402
from llmds_nb.integrations.transformers.versions import check_version  # noqa: E402

from .models import VOCABULARY, build, prompts_of, reference  # noqa: E402


@pytest.fixture(scope="module")
def llama():
    return build("llama", num_hidden_layers=2)


@pytest.fixture(scope="module")
def engine(llama):
    with Engine(llama, n_pages=20, page_size=4) as engine:
        yield engine


BAD_PROMPTS = [
    ([], ValueError, "at least one"),
    ([1, VOCABULARY], ValueError, f"{VOCABULARY}"),
    ([1, -1], ValueError, "-1"),
    ([1, 2**40], ValueError, "1099511627776"),
    ([1.5, 2.0], TypeError, "integers"),
    (["a", "b"], TypeError, "integers"),
    ([[1, 2]], ValueError, "dimension"),
    (None, TypeError, "NoneType"),
    (3, TypeError, "int"),
    ({1, 2}, TypeError, "set"),
    ("text", ValueError, "tokenizer"),
    ([{"role": "user", "content": "hi"}], ValueError, "tokenizer"),
    ([1] * 100, ValueError, "20"),  # 20 pages of 4
    ([1] * 600, ValueError, "512"),  # positions of the model
    (torch.tensor([0.5]), TypeError, "integers"),
]


@pytest.mark.parametrize(("prompt", "kind", "text"), BAD_PROMPTS, ids=range(len(BAD_PROMPTS)))
def test_a_bad_prompt_changes_nothing(engine, prompt, kind, text):
    with pytest.raises(kind, match=text):
        engine.submit(prompt)
    with pytest.raises(kind, match=text):
        engine.generate([[1, 2, 3], prompt], progress=False)
    assert len(engine.batcher) == 0
    engine.check()


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens"),
        ({"max_new_tokens": 1000}, ValueError, "512"),
        ({"max_new_tokens": 90}, ValueError, "20"),
        ({"temperature": float("nan")}, ValueError, "temperature"),
        ({"stop": "x"}, ValueError, "tokenizer"),
        ({"stop": ""}, ValueError, "zero length"),
        ({"stop_token_ids": [VOCABULARY]}, ValueError, "stop_token_ids"),
        ({"n": 2, "temperature": 1.0}, ValueError, "generate"),
        ({"no_such": 1}, TypeError, "no_such"),
        ({"request_id": -1}, ValueError, "request_id"),
        ({"request_id": 1.5}, TypeError, "request_id"),
        ({"salt": 1.5}, TypeError, "salt"),
        ({"extra": [1]}, TypeError, "extra"),
        ({"priority": "high"}, TypeError, "priority"),
        ({"slo_ms": -1}, ValueError, "slo_ms"),
    ],
)
def test_a_bad_parameter_changes_nothing(engine, options, kind, text):
    with pytest.raises(kind, match=text):
        engine.submit([1, 2, 3], **options)
    assert len(engine.batcher) == 0
    engine.check()


@pytest.mark.parametrize("prompts", ["text", [1, 2, 3], 3, None, {"a": 1}])
def test_one_prompt_in_place_of_many(engine, prompts):
    with pytest.raises(TypeError, match="prompts must be a list"):
        engine.generate(prompts, progress=False)


def test_lists_of_parameters(engine):
    with pytest.raises(ValueError, match="2 entries"):
        engine.generate([[1]], [None, None], progress=False)
    assert engine.generate([], progress=False) == [] == engine.step()


def test_names_of_requests(engine):
    first = engine.submit([1, 2, 3], request_id="a")
    with pytest.raises(ValueError, match="'a'"):
        engine.submit([1, 2, 3], request_id="a")
    number = engine.submit([1, 2, 3], request_id=7)
    engine.cancel("a")
    engine.cancel(7)
    engine.cancel(number)
    assert first.finish_reason == "cancelled" and list(first) == []
    for gone in ("a", 7):
        with pytest.raises(KeyError, match="no request"):
            engine.cancel(gone)
    first = engine.submit([1]).request_id
    taken = engine.submit([1], request_id=first + 1)
    with pytest.raises(ValueError, match=str(first + 1)):
        engine.submit([1], request_id=first + 1)
    numbers = [first, taken.request_id, *(engine.submit([1]).request_id for _ in range(3))]
    assert len(set(numbers)) == 5
    for each in numbers:
        engine.cancel(each)
    engine.check()


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"n_pages": 10**9}, CapacityError, "pages fit"),
        ({"n_pages": 0}, ValueError, "n_pages"),
        ({"page_size": 3}, ValueError, "page_size"),
        ({"max_running": 0}, ValueError, "max_running"),
        ({"max_step_tokens": 0}, ValueError, "max_step_tokens"),
        ({"policy": "best"}, ValueError, "policy"),
        ({"device": "meta"}, ValueError, "meta"),
        ({"threads": 0}, ValueError, "threads"),
        ({"kv_dtype": "int8"}, ValueError, "kv_dtype"),
        ({"kv_dtype": torch.float64}, ValueError, "kv_dtype"),
        ({"eviction": "best"}, ValueError, "eviction"),
        ({"seed": -1}, ValueError, "seed"),
        ({"self_check": 1}, TypeError, "self_check"),
        ({"tokenizer": 3}, TypeError, "tokenizer"),
    ],
)
def test_a_constructor_that_raises_gives_the_model_back(options, kind, text):
    model = build("llama", num_hidden_layers=1)
    own = model.config._attn_implementation
    with pytest.raises(kind, match=text):
        Engine(model, **{"n_pages": 20, **options})
    assert model.config._attn_implementation == own
    with Engine(model, n_pages=20, page_size=4) as engine:
        engine.generate([[1, 2]], max_new_tokens=1, progress=False)


def test_models_that_no_engine_runs(llama):
    small = {
        "vocab_size": 32,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 16,
        "num_layers": 1,
        "num_heads": 2,
    }
    t5 = transformers.T5ForConditionalGeneration(transformers.T5Config(**small)).eval()
    with pytest.raises(UnsupportedModelError, match=r"T5.*encoder-decoder"):
        Engine(t5)
    with pytest.raises(UnsupportedModelError, match="LlamaModel"):
        Engine(llama.model)
    with pytest.raises(TypeError, match="PreTrainedModel"):
        Engine(torch.nn.Linear(2, 2))
    with torch.device("meta"):
        meta = transformers.LlamaForCausalLM(build("llama").config).eval()
    with pytest.raises(ValueError, match="meta"):
        Engine(meta)
    training = build("llama", num_hidden_layers=1).train()
    with pytest.raises(ValueError, match="eval"):
        Engine(training)


def test_a_keyword_that_is_unknown_is_refused_by_name(monkeypatch):
    model = build("llama", num_hidden_layers=2)
    attention = type(model.model.layers[1].self_attn)
    plain = attention.forward

    def odd(self, *args, **kwargs):
        return plain(self, *args, **kwargs, position_bias=torch.zeros(1))

    monkeypatch.setattr(attention, "forward", odd)
    with pytest.raises(UnsupportedModelError, match="position_bias"):
        Engine(model, n_pages=20, self_check=False)


def test_a_model_that_mixes_tokens_elsewhere_is_refused_by_its_logits(monkeypatch):
    model = build("llama", num_hidden_layers=2)
    mlp = type(model.model.layers[0].mlp)
    plain = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda self, x: plain(self, x + x.roll(1, 1)))
    with pytest.raises(UnsupportedModelError, match=r"LlamaForCausalLM.*differ"):
        Engine(model, n_pages=20)
    Engine(model, n_pages=20, self_check=False).close()


def test_windows_that_only_a_mask_knows_are_refused(monkeypatch):
    model = build("gemma2", num_hidden_layers=2)
    for layer in model.model.layers:
        monkeypatch.setattr(layer.self_attn, "sliding_window", None)
    with pytest.raises(UnsupportedModelError, match="sliding window of 24"):
        Engine(model, n_pages=20, self_check=False)


def test_two_engines_on_one_model():
    model, prompts = build("llama", num_hidden_layers=2), prompts_of(2)
    own = model.config._attn_implementation
    expected = reference(model, prompts, 4)
    first, second = Engine(model, n_pages=40), Engine(model, n_pages=60)
    requests = [e.submit(prompts[0], max_new_tokens=4) for e in (first, second)]
    assert [next(r) for r in requests] == 2 * expected[0][:1]
    first.close()
    assert requests[0].finish_reason == "cancelled" and model.config._attn_implementation != own
    assert list(requests[1]) == expected[0][1:]
    with pytest.raises(RuntimeError, match="closed"):
        first.submit([1])
    with pytest.raises(RuntimeError, match="closed"):
        first.step()
    with pytest.raises(ValueError, match="another engine"):
        second.cancel(requests[0])
    with pytest.raises(RuntimeError, match="Engine"):
        model(torch.tensor([[1, 2]]))
    second.close()
    second.close()
    assert model.config._attn_implementation == own
    assert reference(model, prompts, 4) == expected


def test_an_engine_that_is_forgotten_gives_the_model_back():
    model = build("llama", num_hidden_layers=1)
    own = model.config._attn_implementation
    Engine(model, n_pages=20).submit([1, 2])
    gc.collect()
    assert model.config._attn_implementation == own


def test_a_sequence_is_no_longer_than_where_rows_are_independent():
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    rope["original_max_position_embeddings"] = 64
    for name, sizes, most in (
        ("phi3", {"rope_parameters": rope, "original_max_position_embeddings": 64}, 64),
        ("llama4", {"attention_chunk_size": 32}, 32),
    ):
        with Engine(build(name, **sizes), n_pages=20) as engine:
            assert engine.max_len == most
            with pytest.raises(ValueError, match=f"positions for {most}"):
                engine.submit([1] * most, max_new_tokens=1)


def test_versions():
    check_version("transformers", transformers.__version__)
    check_version("torch", "2.13.0+cpu")
    for name, version in (("transformers", "5.16.3"), ("torch", "2.8.1"), ("transformers", "4.57")):
        with pytest.raises(ImportError, match=r"too old.*llmds_nb\[hf\]"):
            check_version(name, version)
    with pytest.raises(ImportError, match="too new"):
        check_version("transformers", "6.0.0.dev0")


def test_salts_with_an_adapter_are_never_mixed_up():
    values = [0, "0", b"0", 1, -1, 10**30, "", b"", b"e", "ab", b"llmds_nb extra\0"]
    pairs = [(salt, extra) for salt in values for extra in (None, *values)]
    made = {salt_of(*pair) for pair in pairs}
    again = {salt_of(salt) for salt in made if isinstance(salt, bytes)}
    assert len(made) == len(pairs)
    assert not again & {salt_of(*pair) for pair in pairs if pair[1] is not None}


def test_salts_and_adapters_share_no_prefix(engine):
    prompt = list(range(1, 14))
    for salt, extra in ((0, None), (b"a", None), (0, "lora"), (0, 1), ("a", None)):
        for hits in (0, 12):
            request = engine.submit(prompt, max_new_tokens=1, salt=salt, extra=extra)
            list(request)
            assert request.cached_tokens == hits
    assert engine.reset() > 0
    assert engine.submit(np.array(prompt, np.int64), max_new_tokens=1).result().cached_tokens == 0
