"""Every family of the table: the tokens of `generate`, or a refusal that says why."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from llmds_nb.integrations.transformers import Engine, UnsupportedModelError  # noqa: E402

from .models import FAMILIES, build, prompts_of, reference  # noqa: E402

NEW = 10
POOLS = {
    "large": {"n_pages": 200},
    "chunks": {"n_pages": 200, "max_step_tokens": 9},
    "preempting": {"n_pages": 11, "max_step_tokens": 40},
}
IDENTICAL = [name for name, family in FAMILIES.items() if not family.refused]
REFUSED = [name for name, family in FAMILIES.items() if family.refused]
THOROUGH = "llama", "mistral", "gpt2", "gpt_oss"  # in every run


def compare(name, pools):
    model, prompts = build(name), prompts_of(6)
    own = model.config._attn_implementation
    expected = reference(model, prompts, NEW)
    assert len({token for tokens in expected for token in tokens}) > 20, (
        "the tokens hardly depend on the prompts"
    )
    for pool in pools:
        with Engine(model, page_size=8, **POOLS[pool]) as engine:
            for _ in range(2):  # then from cached prefixes
                found = engine.generate(prompts, max_new_tokens=NEW, progress=False)
                assert [g.token_ids for g in found] == expected, pool
                engine.check()
                assert len(engine.cache) == len(engine.batcher) == 0
            assert (engine.stats().preempted > 0) == (pool == "preempting")
    assert model.config._attn_implementation == own


@pytest.mark.nightly
@pytest.mark.parametrize("name", IDENTICAL)
def test_tokens_are_those_of_generate(name, amount):
    compare(name, POOLS if name in THOROUGH else amount(["preempting"], POOLS))


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_cannot_be_right_is_refused_by_name(name):
    model = build(name)
    own = model.config._attn_implementation
    with pytest.raises(UnsupportedModelError, match=FAMILIES[name].refused) as caught:
        Engine(model, n_pages=40)
    assert type(model).__name__ in str(caught.value)
    assert model.config._attn_implementation == own
