"""PagedCache in `generate`: the tokens of a DynamicCache, and prefixes computed once."""

import contextlib
import copy
import functools
import pickle
import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from llmds_nb import CapacityError, KVCache  # noqa: E402
from llmds_nb.integrations.transformers import PagedCache, UnsupportedModelError  # noqa: E402

from .models import VOCABULARY, build  # noqa: E402

VERSION = tuple(map(int, transformers.__version__.split(".")[:2]))
NAME = "cache" if VERSION >= (5, 24) else "past_key_values"
FAMILIES = ["llama", "qwen2", "qwen3", "gpt2", "gemma3", "mistral"]
PAGE = 8
model_of = functools.cache(
    functools.partial(build, num_hidden_layers=2, max_position_embeddings=2048)
)
llama = functools.partial(model_of, "llama")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tokens(n, seed=0, rows=1):
    return torch.from_numpy(np.random.default_rng(seed).integers(5, VOCABULARY, (rows, n)))


def padded(pads, n=44, shared=30):
    """Rows that begin alike behind their padding, and the mask."""
    rows = tokens(n, 7, len(pads))
    rows[:, :shared] = tokens(shared, 8)
    mask = torch.ones_like(rows)
    for row, pad in enumerate(pads):
        rows[row] = torch.cat([torch.zeros(pad, dtype=torch.long), rows[row, : n - pad]])
        mask[row, :pad] = 0
    return rows, mask


def generate(model, ids, mask=None, new=10, seed=5, **kwargs):
    torch.manual_seed(seed)
    mask = torch.ones_like(ids) if mask is None else mask
    kwargs.setdefault("do_sample", False)
    return model.generate(
        ids, attention_mask=mask, max_new_tokens=new, pad_token_id=0, **kwargs
    )  # fmt: skip


@contextlib.contextmanager
def forwarded(model):
    """How many columns each forward pass computes."""
    seen = []
    hook = model.get_input_embeddings().register_forward_pre_hook(
        lambda module, args: seen.append(args[0].shape[1])
    )
    try:
        yield seen
    finally:
        hook.remove()


def idle(cache):
    """Check the cache, and that no sequence holds a page."""
    cache.check()
    assert len(cache.kv) == 0
    stats = cache.stats()
    assert stats.n_used == 0 and stats.n_free + stats.n_cached == stats.n_pages


DECODING = {
    "greedy": (lambda: (tokens(44), None), {}),
    "left padding": (lambda: padded([5, 0, 13]), {}),
    "sampling": (
        lambda: (tokens(44), None),
        {"do_sample": True, "top_k": 50, "num_return_sequences": 3},
    ),
    "beams": (lambda: padded([2, 0]), {"num_beams": 3, "num_return_sequences": 2}),
    "prompt lookup": (lambda: (tokens(22).repeat(1, 2), None), {"prompt_lookup_num_tokens": 3}),
    "chunks": (lambda: (tokens(44), None), {"prefill_chunk_size": 16}),
}


@pytest.mark.parametrize("decoding", DECODING)
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_a_dynamic_cache(family, decoding):
    model = model_of(family)
    make, kwargs = DECODING[decoding]
    ids, mask = make()
    want = generate(model, ids, mask, **kwargs)
    cache = PagedCache(model.config, n_pages=128, page_size=PAGE)
    for call in range(2):
        with forwarded(model) as seen:
            got = generate(model, ids, mask, custom_generate=cache.generate, **kwargs)
        assert torch.equal(got, want)
        idle(cache)
        if call and (decoding != "chunks" or VERSION >= (5, 24)):
            assert seen[0] < 20
    if decoding == "chunks" and VERSION < (5, 24):
        return
    with forwarded(model) as seen, cache.generating(ids, mask) as past:
        assert torch.equal(past.done(generate(model, ids, mask, **{NAME: past}, **kwargs)), want)
    assert (seen[0] < 20) == (decoding != "prompt lookup")
    idle(cache)
    assert torch.equal(generate(model, ids, mask, **{NAME: cache}, **kwargs), want)
    cache.reset()
    idle(cache)


def test_the_second_call_computes_the_last_page_only():
    model = llama()
    cache = PagedCache(model.config, n_pages=256, page_size=16)
    prefix = tokens(1000)
    first, second = (torch.cat([prefix, tokens(k, k)], 1) for k in (5, 30))
    for ids, columns in ((prefix, 1000), (prefix, 9), (first, 14), (second, 39), (second, 7)):
        with forwarded(model) as seen:
            got = generate(model, ids, new=2, custom_generate=cache.generate)
        assert seen == [columns, 1]
        assert torch.equal(got, generate(model, ids, new=2))
    idle(cache)


def test_a_chat_computes_what_is_new_in_each_turn():
    model = llama()
    cache = PagedCache(model.config, n_pages=64, page_size=PAGE)
    said = tokens(30)
    for turn in range(4):
        with forwarded(model) as seen:
            got = generate(model, said, custom_generate=cache.generate)
        assert torch.equal(got, generate(model, said))
        assert seen[0] == 30 if turn == 0 else seen[0] <= 7 + 1 + PAGE
        said = torch.cat([got, tokens(7, turn)], 1)


def test_a_batch_computes_from_the_first_column_that_is_not_cached():
    model = llama()
    cache = PagedCache(model.config, n_pages=64, page_size=PAGE)
    ids, mask = padded([5, 0, 13], n=44, shared=30)
    generate(model, tokens(30, 8), custom_generate=cache.generate)  # what they share: 24 in pages
    with forwarded(model) as seen:
        generate(model, ids, mask, custom_generate=cache.generate)
    assert seen[0] == 44 - (0 + 24) + 1
    stats = cache.stats()
    row = ids[2, 13:].numpy()
    assert cache.kv.match(row) == 24 and cache.kv.match(ids[2].numpy()) == 0
    assert stats.n_sequences == 0


def test_assisted_decoding_with_a_model():
    model, assistant = llama(), build("llama", num_hidden_layers=1, max_position_embeddings=2048)
    cache = PagedCache(model.config, n_pages=64, page_size=PAGE)
    ids = tokens(44)
    want = generate(model, ids, assistant_model=assistant)
    for given, columns in ((None, 44), (model, 5)):
        for _ in range(2):
            with (
                forwarded(model) as seen,
                cache.generating(ids, model=given) as past,
            ):
                got = generate(model, ids, assistant_model=assistant, **{NAME: past})
                past.done(got)
            assert torch.equal(got, want)
            idle(cache)
        assert columns <= seen[0] < columns + 30  # its draft comes with it


def test_salts_share_nothing():
    model, ids = llama(), tokens(44)
    cache = PagedCache(model.config, n_pages=64, page_size=PAGE)
    for salt, columns in (("a", 44), ("b", 44), ("a", 5), ("b", 5)):
        with forwarded(model) as seen:
            generate(model, ids, custom_generate=cache.generate, salt=salt)
        assert seen[0] == columns


class Stop(Exception):
    pass


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("at", [0, 1, 4])
def test_an_error_in_a_forward_pass_loses_and_publishes_nothing_wrong(layer, at):
    model, ids = llama(), tokens(44)
    cache = PagedCache(model.config, n_pages=64, page_size=PAGE)
    calls = []

    def fail(module, args):
        calls.append(1)
        if len(calls) > at:
            raise Stop

    hook = model.model.layers[layer].mlp.register_forward_pre_hook(fail)
    with pytest.raises(Stop):
        generate(model, ids, custom_generate=cache.generate)
    hook.remove()
    idle(cache)
    assert cache.kv.match(ids[0].numpy()) == (40 if at or layer else 0)
    assert torch.equal(generate(model, ids, custom_generate=cache.generate), generate(model, ids))
    idle(cache)


def test_a_pool_too_small():
    model = llama()
    cache = PagedCache(model.config, n_pages=8, page_size=PAGE)
    with pytest.raises(CapacityError):
        generate(model, tokens(60), new=10, custom_generate=cache.generate)
    idle(cache)
    with pytest.raises(CapacityError):
        generate(model, *padded([0, 3]), custom_generate=cache.generate)
    idle(cache)
    for seed in range(4):  # each evicts the one before
        ids = tokens(50, seed)
        got = generate(model, ids, custom_generate=cache.generate)
        assert torch.equal(got, generate(model, ids))
    idle(cache)


def test_another_model_is_refused():
    ids = tokens(44)
    model, other = llama(), build("llama", num_hidden_layers=2)
    with torch.no_grad():
        other.model.layers[0].self_attn.k_proj.weight.add_(1)
    cache = PagedCache(model.config, n_pages=64, page_size=PAGE)
    generate(model, ids, custom_generate=cache.generate)
    with pytest.raises(ValueError, match="another Llama"):
        generate(other, ids, custom_generate=cache.generate)
    with pytest.raises(ValueError, match="another key"), cache.generating(ids) as past:
        generate(other, ids, **{NAME: past})
    idle(cache)
    cache.reset()
    with forwarded(other) as seen:
        got = generate(other, ids, custom_generate=cache.generate)
    assert seen[0] == 44 and torch.equal(got, generate(other, ids))
    with pytest.raises(ValueError, match="layer 0 holds keys of 2 heads"):
        generate(build("llama", num_key_value_heads=4), ids, **{NAME: cache})
    cache.reset()
    with pytest.raises(ValueError, match="bfloat16"):
        generate(build("llama", num_hidden_layers=2).bfloat16(), ids, **{NAME: cache})
    with pytest.raises(ValueError, match="layer 2 of a model whose config has 2 layers"):
        generate(build("llama", num_hidden_layers=3), ids, **{NAME: cache})


@pytest.mark.parametrize("family", ["mamba", "qwen3_next"])
def test_layers_that_keep_something_else_are_refused(family):
    with pytest.raises(UnsupportedModelError, match="linear_attention"):
        PagedCache(build(family).config)


def test_other_configurations_are_refused():
    with pytest.raises(UnsupportedModelError, match="t5 has an encoder"):
        PagedCache(transformers.T5Config())
    with pytest.raises(ValueError, match="chunked_attention"):
        PagedCache(build("llama4").config)
    with pytest.raises(TypeError, match=r"model\.config, not LlamaForCausalLM"):
        PagedCache(llama())
    with pytest.raises(ValueError, match="power of two"):
        PagedCache(llama().config, page_size=3)
    used = KVCache(8, 4)
    used.attach(1, [1, 2, 3])
    for kv in (used, KVCache(8, 4, kv_shape=(2,))):
        with pytest.raises(ValueError, match="without tensors"):
            PagedCache(llama().config, cache=kv)
    with pytest.raises(TypeError, match="KVCache, not dict"):
        PagedCache(llama().config, cache={})
    assert PagedCache(llama().config, cache=KVCache(8, 4, eviction="lfu")).kv.eviction == "lfu"


def test_what_changes_keys_beside_the_tokens_is_refused():
    model, ids = llama(), tokens(20)
    cache = PagedCache(model.config, n_pages=64, page_size=PAGE)
    call = functools.partial(generate, model, ids, custom_generate=cache.generate)
    with pytest.raises(ValueError, match="position_ids must count"):
        call(position_ids=torch.arange(1, 21)[None])
    with pytest.raises(ValueError, match="StaticCache"):
        call(cache_implementation="static")
    with pytest.raises(ValueError, match="use_cache=False"):
        call(use_cache=False)
    with pytest.raises(ValueError, match="keeps streamer"):
        call(streamer=transformers.TextStreamer(None, skip_prompt=True))
    with pytest.raises(ValueError, match="row 0 has zeros behind ones"):
        call(torch.tensor([[1] * 19 + [0]]))
    with pytest.raises(TypeError, match="custom_generate=cache"):
        cache.generate(model, ids)
    for bad in (ids[0], ids.float(), -ids, ids[:, :0]):
        with (
            pytest.raises(ValueError, match=r"input_ids must|token ids must"),
            cache.generating(bad),
        ):
            raise AssertionError
    with pytest.raises(ValueError, match="attention_mask"), cache.generating(ids, ids[:, :3]):
        raise AssertionError
    for copier in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            copier(cache)
    idle(cache)
    assert cache.stats().n_cached == 0


def test_wrong_prompts_publish_nothing():
    model, ids, others = llama(), tokens(20), tokens(20, 1)
    cache = PagedCache(model.config, n_pages=64, page_size=PAGE)
    with pytest.raises(ValueError, match="does not begin"), cache.generating(others) as past:
        past.done(generate(model, ids, **{NAME: past}))
    with pytest.raises(ValueError, match="does not begin"), cache.generating(ids) as past:
        past.done(generate(model, ids, **{NAME: past})[:, 20:])
    with pytest.raises(ValueError, match="ends at 20"), cache.generating(ids) as past:
        generate(model, tokens(25), **{NAME: past})
    with cache.generating(ids) as past:  # nothing was generated
        pass
    idle(cache)
    assert cache.stats().n_cached == 0
    with pytest.raises(RuntimeError, match="ended"):
        generate(model, ids, **{NAME: past})
    with pytest.raises(RuntimeError, match="once"):
        past.done(ids)


def test_without_done_the_prompts_are_found():
    model, ids = llama(), tokens(44)
    cache = PagedCache(model.config, n_pages=64, page_size=PAGE)
    with cache.generating(ids) as past:
        got = generate(model, ids, **{NAME: past})
    assert cache.kv.match(got[0].numpy()) == 40
    idle(cache)


def test_beams_publish_their_prompts_only():
    model, ids = llama(), tokens(44)
    cache = PagedCache(model.config, n_pages=256, page_size=PAGE)
    got = generate(model, ids, new=30, num_beams=4, custom_generate=cache.generate)
    assert cache.kv.match(got[0].numpy()) == 40
    idle(cache)
    assert cache.stats().n_cached == 5


def test_a_result_with_more_than_sequences():
    model, ids = llama(), tokens(44)
    cache = PagedCache(model.config, n_pages=64, page_size=PAGE)
    kwargs = {"return_dict_in_generate": True, "output_logits": True}
    got = generate(model, ids, custom_generate=cache.generate, **kwargs)
    want = generate(model, ids, **kwargs)
    assert torch.equal(got.sequences, want.sequences)
    assert torch.allclose(torch.stack(got.logits), torch.stack(want.logits), atol=1e-4)
    assert cache.kv.match(got.sequences[0].numpy()) == 48


def test_two_threads_generate_over_one_pool():
    model = llama()
    cache = PagedCache(model.config, n_pages=256, page_size=PAGE)
    prompts = [torch.cat([tokens(30), tokens(10, k)], 1) for k in range(1, 5)]
    want = [generate(model, ids) for ids in prompts]
    got = {}

    def work(k):
        for _ in range(2):
            with cache.generating(prompts[k]) as past:
                got[k] = past.done(
                    model.generate(
                        prompts[k], attention_mask=torch.ones_like(prompts[k]),
                        max_new_tokens=10, do_sample=False, pad_token_id=0, **{NAME: past},
                    )
                )  # fmt: skip

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(got[k], want[k]) for k in range(4))
    idle(cache)


def test_padding_behind_the_end_of_a_row_is_not_published():
    model = llama()
    cache = PagedCache(model.config, n_pages=64, page_size=PAGE)
    ids = torch.cat([tokens(20, 3), tokens(20, 4)])
    free = generate(model, ids, new=30)
    end = int(free[0, 25])
    assert end not in free[0, 20:25] and end not in free[1, 20:]
    got = generate(model, ids, new=30, eos_token_id=end, custom_generate=cache.generate)
    assert torch.equal(got, generate(model, ids, new=30, eos_token_id=end))
    assert (got[0, 26:] == 0).all()
    assert [cache.kv.match(row.numpy()) for row in got] == [24, 48]
    idle(cache)


@pytest.mark.parametrize("family", ["gemma2", "deepseek_v3", "gpt_neox", "phi3", "mixtral"])
def test_other_families(family):
    model, ids = build(family, num_hidden_layers=2), tokens(44)
    want = generate(model, ids)
    cache = PagedCache(model.config, n_pages=64, page_size=PAGE)
    for columns in (44, 5):
        with forwarded(model) as seen:
            assert torch.equal(generate(model, ids, custom_generate=cache.generate), want)
        assert seen[0] == columns


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounded_keys_are_those_of_the_same_model(dtype):
    model, (ids, mask) = build("llama", num_hidden_layers=2).to(dtype), padded([0, 5, 9])
    cache = PagedCache(model.config, n_pages=64, page_size=PAGE)
    for columns in (44, 8):
        with forwarded(model) as seen:
            generate(model, ids, mask, custom_generate=cache.generate)
        assert seen[0] == columns


def test_inference_mode_and_gradients():
    model, ids = llama(), tokens(44)
    cache = PagedCache(model.config, n_pages=64, page_size=PAGE)
    want = generate(model, ids)
    with torch.inference_mode():
        assert torch.equal(generate(model, ids, custom_generate=cache.generate), want)
    assert torch.equal(generate(model, ids, custom_generate=cache.generate), want)
    with torch.inference_mode():
        assert torch.equal(generate(model, ids, custom_generate=cache.generate), want)
    with pytest.raises(RuntimeError, match="no gradients"):
        model(ids, **{NAME: cache})
