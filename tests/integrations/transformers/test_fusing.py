"""Parts that are computed in fewer calls: which, that the results are the same, and when not."""

import copy
import functools
import io
from collections import Counter

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import llmds_nb.integrations.transformers.opening as opening  # noqa: E402
from llmds_nb.integrations.transformers import (  # noqa: E402
    Engine,
    fused_modules,
    fusing,
    model_access,
)

from .models import build, prompts_of, reference  # noqa: E402

NEW = 8
OPTIONS = {"max_new_tokens": NEW, "progress": False}
PROMPTS = prompts_of(4)


def kinds(model):
    """How many of each kind are in place."""
    return Counter(type(fused).__name__ for fused in model_access._held[model].fused)


def tokens(engine):
    return [g.token_ids for g in engine.generate(PROMPTS, **OPTIONS)]


ALL = {"FusedNorm": 9, "FusedAttention": 4, "FusedMlp": 4, "FusedLayer": 4, "FusedLinear": 1}
WHAT = {
    "llama": ALL,
    "qwen2": ALL,  # with biases
    "mistral": ALL,  # with a window
    "qwen3": ALL,  # with norms of each head
    "gemma": {"FusedNorm": 9, "FusedAttention": 4, "FusedLinear": 13},  # weights 1 + w, GELU
    "granite": {
        "FusedNorm": 9,
        "FusedAttention": 4,
        "FusedMlp": 4,
        "FusedLinear": 1,
    },  # multipliers
    "llama4": {"FusedNorm": 9, "FusedLinear": 29},  # scales queries by their position
    "gpt2": {"FusedLinear": 1},  # the rest is Conv1D and LayerNorm
}


@pytest.mark.parametrize("family", WHAT)
def test_what_is_fused_and_gives_the_same_tokens(family):
    model = build(family)
    expected = reference(model, PROMPTS, NEW)
    with Engine(model, n_pages=100) as engine:
        assert kinds(model) == WHAT[family]
        assert tokens(engine) == expected
    with Engine(model, n_pages=100, fuse=False) as engine:
        assert not kinds(model)
        assert tokens(engine) == expected


def test_the_model_is_as_it_was_after_the_last_engine():
    model = build("llama")
    x = torch.arange(12)[None]
    with torch.no_grad():
        own = model(x).logits
        first, second = Engine(model, n_pages=20), Engine(model, n_pages=20)
        first.close()
        assert kinds(model) == ALL
        second.close()
        assert not any("forward" in module.__dict__ for module in model.modules())
        assert torch.equal(model(x).logits, own)


def changed(model, how):
    """Change a model's weights, parts or hooks."""
    layer = model.model.layers[1]
    with torch.no_grad():
        if how == "weights in place":
            layer.self_attn.v_proj.weight.mul_(-1)
            layer.mlp.down_proj.weight.mul_(2)
            layer.input_layernorm.weight.add_(1)
        elif how == "weights of which torch keeps no count":
            layer.self_attn.k_proj.weight.data.neg_()
            layer.mlp.gate_proj.weight.data.neg_()
            model.lm_head.weight.data.neg_()
        elif how == "weights replaced":
            layer.mlp.up_proj.weight = torch.nn.Parameter(-layer.mlp.up_proj.weight)
            model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.flip(0))
        elif how == "state":
            model.load_state_dict({k: 1.5 * v for k, v in model.state_dict().items()})
        elif how == "another part":
            layer.self_attn.q_proj = torch.nn.Sequential(layer.self_attn.q_proj, torch.nn.Tanh())
        elif how == "another layer norm":
            layer.input_layernorm = torch.nn.LayerNorm(64)
        elif how == "hook on a linear layer":
            layer.self_attn.o_proj.register_forward_hook(lambda module, args, out: -out)
        elif how == "hook before a feed-forward part":
            layer.mlp.register_forward_pre_hook(lambda module, args: (-args[0],))
        elif how == "hook on a norm":
            model.model.norm.register_forward_hook(lambda module, args, out: out.flip(-1))
        else:
            layer.mlp.forward = lambda x: torch.zeros_like(x)


@pytest.mark.parametrize(
    "how",
    [
        "weights in place", "weights of which torch keeps no count", "weights replaced", "state",
        "another part", "another layer norm", "hook on a linear layer",
        "hook before a feed-forward part", "hook on a norm", "forward",
    ],
)  # fmt: skip
def test_what_changes_later_counts(how):
    model, other = build("llama"), build("llama")
    with Engine(model, n_pages=100) as engine:
        before = tokens(engine)
        changed(model, how)
        changed(other, how)
        engine.reset()
        after = tokens(engine)
        engine.check()
    with Engine(other, n_pages=100, fuse=False) as engine:
        assert after == tokens(engine) != before


def test_a_norm_of_another_formula_stays():
    model = build("llama")

    class Other(type(model.model.norm)):
        def forward(self, x):
            return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True)) * 1.001

    model.model.norm.__class__ = Other
    with Engine(model, n_pages=100):
        assert kinds(model) == {**ALL, "FusedNorm": 8}


def test_parts_that_do_not_fit_into_memory_stay(monkeypatch):
    monkeypatch.setattr(opening, "_PACKED_SHARE", 0.0)
    model = build("llama")
    with Engine(model, n_pages=100) as engine:
        assert kinds(model) == {"FusedNorm": 9}
        assert tokens(engine) == reference(build("llama"), PROMPTS, NEW)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_stay(dtype):
    model = build("llama").to(dtype)
    with Engine(model, n_pages=100, kv_dtype="float32"):
        assert not kinds(model)


def test_a_start_that_fails_leaves_the_model_as_it_was(monkeypatch):
    model = build("llama")
    monkeypatch.setattr(opening, "make_pages", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        Engine(model, n_pages=100)
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


def late(y):
    """What only texts that are longer than those of the check show."""
    return 3 * y if y.shape[-2] > 30 else y


def mlp_of(model, how):
    """A feed-forward part with a fault that the check does not see, behind `how`."""
    own, local = type(model.model.layers[0].mlp), late
    if how == "closure":

        def forward(self, x):
            return local(self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)))

    elif how == "lambda":

        def forward(self, x):
            end = lambda y: late(y)  # noqa: E731
            return end(self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)))

    elif how == "decorator":

        @functools.wraps(own.forward)
        def forward(self, x):
            return late(own.forward(self, x))

    else:
        return type("Other", (own,), {"__call__": lambda self, x: late(own.__call__(self, x))})
    return type("Other", (own,), {"forward": forward})


@pytest.mark.parametrize("how", ["closure", "lambda", "decorator", "call"])
def test_code_that_mentions_more_stays(how):
    model = build("llama")
    for layer in model.model.layers:
        layer.mlp.__class__ = mlp_of(model, how)
    with Engine(model, n_pages=100) as engine:
        assert not {"FusedMlp", "FusedLayer"} & set(kinds(model))
        found = tokens(engine)
    with Engine(model, n_pages=100, fuse=False) as engine:
        assert found == tokens(engine)


def test_a_forward_that_is_no_python_stays():
    model = build("llama")
    kind = type("Other", (torch.nn.Module,), {"forward": print})
    model.model.other = kind()
    model.model.other.weight = torch.nn.Parameter(torch.ones(64))
    with Engine(model, n_pages=20):
        assert kinds(model) == ALL


def test_a_compiled_part_stays():
    model = build("llama")
    expected = reference(model, PROMPTS, NEW)
    model.model.layers[1].mlp.compile(backend="eager")
    with Engine(model, n_pages=100) as engine:
        assert kinds(model)["FusedMlp"] == 3
        assert tokens(engine) == expected


def test_weights_made_in_inference_mode():
    """torch counts no changes of them: `reset` reads them again."""
    with torch.inference_mode():
        model = build("llama")
    with Engine(model, n_pages=100) as engine:
        assert kinds(model) == ALL
        before = tokens(engine)
        with torch.inference_mode():
            model.model.layers[1].mlp.down_proj.weight.neg_()
        engine.reset()
        after = tokens(engine)
    assert before != after == reference(model, PROMPTS, NEW)


def test_weights_that_stand_for_others_stay():
    """As those of torchao, whose dtype is that of the numbers which they hold in few bits."""
    from torch.testing._internal.two_tensor import TwoTensor

    linear = torch.nn.Linear(32, 32)
    assert fusing._is_linear(linear)
    weight = linear.weight.detach()
    linear.weight = torch.nn.Parameter(TwoTensor(weight, weight))
    assert not fusing._is_linear(linear)
    linear.weight = torch.nn.Parameter(weight.to_sparse())
    assert not fusing._is_linear(linear)


def test_norms_of_wide_heads_belong_to_their_attention():
    model = build("qwen3", head_dim=128)
    with Engine(model, n_pages=100) as engine:
        assert kinds(model) == ALL
        assert tokens(engine) == reference(build("qwen3", head_dim=128), PROMPTS, NEW)


def test_other_scales_count_after_reset():
    model = build("llama")
    with Engine(model, n_pages=100) as engine:
        before = tokens(engine)
        model.model.norm.variance_epsilon = 5.0
        for layer in model.model.layers:
            layer.self_attn.scaling *= 3
        engine.reset()
        after = tokens(engine)
    with Engine(model, n_pages=100, fuse=False) as engine:
        assert before != after == tokens(engine)


def test_hooks_on_all_modules_see_the_linear_layers():
    model, seen = build("llama"), []
    with Engine(model, n_pages=100) as engine:
        hook = torch.nn.modules.module.register_module_forward_hook(
            lambda module, args, result: seen.append(module)
        )
        try:
            tokens(engine)
        finally:
            hook.remove()
    assert set(model.modules()) - {model.model.layers} <= set(seen)


@pytest.mark.parametrize("how", ["copy", "pickle"])
def test_a_copy_of_a_model_is_its_own(how):
    model = build("llama")
    names, x = list(model.state_dict()), torch.arange(12)[None]
    with Engine(model, n_pages=20):
        assert list(model.state_dict()) == names
        if how == "copy":
            other = copy.deepcopy(model)
        else:
            stored = io.BytesIO()
            torch.save(model, stored)
            assert b"llmds_nb" not in stored.getvalue()
            stored.seek(0)
            other = torch.load(stored, weights_only=False)
    other.set_attn_implementation("sdpa")
    assert not any(
        isinstance(part, fused_modules.Fused)
        for module in other.modules()
        for part in module.__dict__.values()
    )
    with torch.no_grad():
        for each in (model, other):
            for weight in each.parameters():
                weight.data.mul_(0.7)
        assert torch.equal(model(x).logits, other(x).logits)


def test_an_interrupt_leaves_no_hooks(monkeypatch):
    model = build("llama")
    modules = list(model.modules())
    monkeypatch.setattr(fusing.Recorder, "attend", lambda *_, **__: raised())

    def raised():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Engine(model, n_pages=20)
    assert not any(m._forward_hooks or "forward" in m.__dict__ for m in modules)
