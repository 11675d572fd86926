"""The check of a model before its first request sees broken attention, in 16 bits as well."""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from llmds_nb.integrations.transformers import Engine, UnsupportedModelError  # noqa: E402
from llmds_nb.integrations.transformers.cpu_attention import CpuAttention  # noqa: E402

from .models import FAMILIES, build  # noqa: E402

DTYPES = torch.bfloat16, torch.float16
# The dtypes of weights and of pages.
BOTH = [(d, d) for d in DTYPES] + [(torch.float32, d) for d in DTYPES]


def start(model, kv_dtype):
    """Only start an engine."""
    Engine(model, n_pages=8, kv_dtype=kv_dtype).close()


def scale(terms, query, forward):
    return {**terms, "scale": 1.25 * terms["scale"]}, query, forward.inputs


def window(terms, query, forward):
    return {**terms, "window": 8}, query, forward.inputs


def heads(terms, query, forward):
    return terms, query[:, [1, 0, *range(2, query.shape[1])]], forward.inputs


def mask(terms, query, forward):
    """Rows of which only the last tokens are computed lack a token of their past."""
    inputs = forward.inputs
    kv_len = np.maximum(inputs.kv_len - 1, np.diff(inputs.cu_q)).astype(np.int32)
    return terms, query, inputs._replace(kv_len=kv_len)


BREAKAGES = [scale, window, heads, mask]


def broken(breakage):
    """The attention of a CPU with that fault in every layer."""
    plain = CpuAttention.attend

    def attend(self, forward, layer, query, **terms):
        own = forward.inputs
        terms, query, forward.inputs = breakage(terms, query, forward)
        try:
            return plain(self, forward, layer, query, **terms)
        finally:
            forward.inputs = own

    return attend


@pytest.mark.nightly
def test_broken_attention_is_refused_and_right_attention_is_not(amount, monkeypatch):
    """Of every family nightly, else of those with the most noise and the least."""
    families = [name for name, family in FAMILIES.items() if not family.refused]
    for name in amount(["deepseek_v3", "gemma2"], families):
        for weights, pages in amount(BOTH[:2], BOTH):
            model = build(name).to(weights)
            start(model, pages)
            for breakage in BREAKAGES:
                with monkeypatch.context() as patch:
                    patch.setattr(CpuAttention, "attend", broken(breakage))
                    with pytest.raises(UnsupportedModelError, match=r"is allowed"):
                        start(model, pages)


def test_layers_that_round_each_are_allowed_for():
    """A deep model is not refused for its rounding."""
    for dtype, n in itertools.product(DTYPES, (1, 12)):
        start(build("qwen3", num_hidden_layers=n).to(dtype), dtype)
