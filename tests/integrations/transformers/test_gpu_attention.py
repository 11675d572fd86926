"""The engine as it runs on a GPU, on a CPU: graphs are plain calls of the same functions.

One test has Triton in its interpreter, which takes 10 ms for a tile; the others compute the same in
torch, from the same tensors.
"""

import runpy
import sys
from itertools import pairwise

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from .triton_interpreter import triton_kernels  # noqa: E402, I001
from llmds_nb.integrations.transformers import Engine, gpu_attention, graphs, opening  # noqa: E402
from llmds_nb.integrations.transformers.gpu_attention import GpuAttention  # noqa: E402
from llmds_nb.integrations.transformers.graphs import GraphRunner, buckets_of  # noqa: E402

from .models import build, prompts_of, reference  # noqa: E402

# The interpreter computes in NumPy, which warns of what a GPU does not: rows that are masked out.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid|divide|overflow):RuntimeWarning")
NEW = 7
GARBAGE = 2**30
POOLS = {
    "large": {"n_pages": 100},
    "chunks": {"n_pages": 100, "max_step_tokens": 11},
    "single": {"n_pages": 100, "max_step_tokens": 2},  # rows of one token that sample none
    "preempting": {"n_pages": 9, "page_size": 4, "max_step_tokens": 40},
}


@pytest.fixture(scope="module")
def llama():
    return build("llama", num_hidden_layers=2)


@pytest.fixture(scope="module")
def prompts():
    return prompts_of(4, shared=10, most=12)


@pytest.fixture(scope="module")
def expected(llama, prompts):
    return reference(llama, prompts, NEW)


class Captured:
    """In place of a CUDA graph: a plain call, in which nothing of an earlier step may be read."""

    def __init__(self):
        self.n_captures = self.n_replays = 0

    def __call__(self, compute):
        self.n_captures += 1
        compute()

        def replay():
            self.n_replays += 1
            compute()

        return replay


class Soiled(GraphRunner):
    """Fills all buffers with garbage after each step."""

    def run(self, plan, inputs, requests):
        answer = super().run(plan, inputs, requests)
        for buffer in (self._host, self._buffer, self._tokens, self._tokens_host):
            buffer.fill_(GARBAGE)
        if self._logits is not None:
            with torch.inference_mode():
                self._logits.fill_(float("nan"))
        return answer


def attend_rows(
    query, k_pages, v_pages, rows, out, *, n_tokens, scale, window=0, softcap=0.0, sinks=None,
    splits=1,
):  # fmt: skip
    """What Triton's kernels compute, which see of the block table where it begins."""
    table, width, kv_len, cu_q = rows
    assert splits == 1 or n_tokens == 1
    shape = len(kv_len), int(width)
    table = torch.as_strided(table, shape, (shape[1], 1), table.storage_offset())
    for row, n in enumerate(kv_len.tolist()):
        first, last = cu_q[row : row + 2].tolist()
        assert 1 <= last - first <= min(n_tokens, n)
        pages = table[row, : -(-n // k_pages.shape[1])].long()
        k, v = (x[pages].flatten(0, 1)[:n].transpose(0, 1) for x in (k_pages, v_pages))
        group = query.shape[1] // k.shape[0]
        k, v = (x.repeat_interleave(group, 0) for x in (k, v))
        scores = query[first:last].transpose(0, 1) @ k.transpose(1, 2) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        distance = torch.arange(n - last + first, n)[:, None] - torch.arange(n)
        unseen = distance < 0
        if window:
            unseen |= distance >= window
        scores = scores.masked_fill(unseen, -torch.inf)
        if sinks is not None:
            own = sinks.detach().to(scores.dtype)[:, None, None].expand(-1, last - first, 1)
            scores = torch.cat((scores, own), -1)
        out[first:last] = (scores.softmax(-1)[..., :n] @ v).transpose(0, 1)


def gpu_engine(patch, model, capture=None, runner=Soiled, *, triton=False, **options):
    """An Engine that believes to be on a GPU; with a StepRunner of the CPU if `runner` is None."""
    patch.setattr(opening, "backend_of", lambda device, threads: GpuAttention())
    if not triton:
        patch.setattr(triton_kernels, "attend_rows", attend_rows)
    if runner is not None:

        def make(model, pages, sampler, max_running, max_step_tokens, max_len):
            return runner(
                model, pages, pages.backend, sampler, max_running,
                max_step_tokens=max_step_tokens, max_pages=pages.n_pages, capture=capture,
            )  # fmt: skip

        patch.setattr(opening, "runner_of", make)
    options = {"page_size": 8, "max_step_tokens": 200, "self_check": False, **options}
    return Engine(model, max_running=5, **options)


def tokens_of(engine, prompts, **params):
    found = engine.generate(prompts, max_new_tokens=NEW, progress=False, **params)
    engine.check()
    assert len(engine.cache) == len(engine.batcher) == 0
    return [g.token_ids for g in found]


def test_an_engine_through_triton(monkeypatch, prompts):
    llama = build("llama", num_hidden_layers=1)
    expected = reference(llama, prompts[:2], 3)
    monkeypatch.setattr(triton_kernels, "BUSY", 7)  # two splits for two rows
    with gpu_engine(
        monkeypatch, llama, Captured(), triton=True, n_pages=100, max_step_tokens=20
    ) as engine:
        found = engine.generate(prompts[:2], max_new_tokens=3, progress=False)
    assert [g.token_ids for g in found] == expected


def test_the_self_check_and_a_step_after_another(monkeypatch, llama, prompts, expected):
    with gpu_engine(monkeypatch, llama, runner=None, n_pages=100, self_check=True) as engine:
        assert tokens_of(engine, prompts) == expected


@pytest.mark.parametrize("pool", POOLS)
def test_graphs_give_the_tokens_of_generate(monkeypatch, llama, prompts, expected, pool):
    capture = Captured()
    with gpu_engine(monkeypatch, llama, capture, **POOLS[pool]) as engine:
        assert tokens_of(engine, prompts) == expected
        assert tokens_of(engine, prompts[::-1]) == expected[::-1]  # from cached prefixes
        preempted = engine.batcher.stats().preempted
    assert (preempted > 0) == (pool == "preempting")
    assert 1 <= capture.n_captures <= 4 < capture.n_replays


def test_windows_sinks_and_more_heads(monkeypatch):
    model = build("gpt_oss", num_hidden_layers=2, sliding_window=9)
    prompts = prompts_of(2, shared=10, most=12)
    expected = reference(model, prompts, NEW)
    with gpu_engine(monkeypatch, model, Captured(), n_pages=60) as engine:
        assert tokens_of(engine, prompts) == expected


def test_sampling_outside_the_graph(monkeypatch, llama, prompts):
    params = {"temperature": 0.9, "top_k": 40, "seed": 3, "repetition_penalty": 1.2, "logprobs": 2}
    with Engine(llama, n_pages=100, page_size=8) as engine:
        expected = tokens_of(engine, prompts, **params)
    capture = Captured()
    with gpu_engine(monkeypatch, llama, capture, n_pages=100) as engine:
        assert tokens_of(engine, prompts, **params) == expected
        # A greedy request beside one that is not, and then alone.
        requests = [
            engine.submit(prompts[0], max_new_tokens=NEW),
            engine.submit(prompts[1], max_new_tokens=3, **params),
        ]
        greedy, random = (request.result().token_ids for request in requests)
    assert greedy == reference(llama, prompts[:1], NEW)[0]
    assert random == expected[1][:3]


def test_a_request_whose_logits_are_nan_fails_alone(monkeypatch, llama, prompts, expected):
    weights = llama.get_input_embeddings().weight
    token = expected[0][1]
    own = weights.data[token].clone()
    others = [i for i in range(len(prompts)) if token not in prompts[i] + expected[i][:-1]]
    with gpu_engine(monkeypatch, llama, Captured(), n_pages=100) as engine:
        try:
            weights.data[token] = float("nan")
            requests = [engine.submit(p, max_new_tokens=NEW) for p in prompts]
            while engine.step():
                pass
        finally:
            weights.data[token] = own
        engine.check()
    assert requests[0].finish_reason == "error"
    assert requests[0].tokens == expected[0][:2]
    assert others
    for i in others:
        assert requests[i].tokens == expected[i]


def test_cancel_between_and_in_steps(monkeypatch, llama, prompts, expected):
    class Cancelling(Soiled):
        def run(self, plan, inputs, requests):
            if plan.n_decode == len(requests) and all(r.tokens for r in requests[1:2]):
                requests[1:2] and requests[1].cancel()
            return super().run(plan, inputs, requests)

    with gpu_engine(monkeypatch, llama, Captured(), Cancelling, n_pages=100) as engine:
        requests = [engine.submit(p, max_new_tokens=NEW) for p in prompts]
        while any(not r.finished for r in requests):
            engine.step()
        engine.check()
    assert {r.finish_reason for r in requests} == {"length", "cancelled"}
    for request, tokens in zip(requests, expected, strict=True):
        assert request.tokens == tokens[: len(request.tokens)]


def test_a_model_that_cannot_be_captured(monkeypatch, llama, prompts, expected):
    def capture(compute):
        raise RuntimeError("operation not permitted when stream is capturing")

    with (
        gpu_engine(monkeypatch, llama, capture, n_pages=100) as engine,
        pytest.warns(RuntimeWarning, match="LlamaForCausalLM cannot be captured.*not permitted"),
    ):
        assert tokens_of(engine, prompts) == expected


def test_warm_up_captures_all_buckets_and_reset_forgets_them(monkeypatch, llama, prompts, expected):
    capture = Captured()
    with gpu_engine(monkeypatch, llama, capture, n_pages=100) as engine:
        engine._runner.warm_up()
        assert capture.n_captures == len(buckets_of(5)) == 4
        assert tokens_of(engine, prompts) == expected
        assert capture.n_captures == 4
        engine.reset()
        assert tokens_of(engine, prompts[:1]) == expected[:1]
        assert capture.n_captures == 5


def test_prompts_by_flash_attention(monkeypatch, llama, prompts, expected):
    """What FlashAttention gets, by a function that computes what it does."""
    calls = []

    def flash(q, k, v, prefill, scale):
        out = torch.full((*q.shape[:2], v.shape[2]), torch.nan)
        q_ends, k_ends = prefill.cu_q.tolist(), prefill.cu_k.tolist()
        assert prefill.cu_q.dtype == prefill.cu_k.dtype == torch.int32
        assert q_ends[0] == k_ends[0] == 0
        assert (q_ends[-1], k_ends[-1]) == (len(q), len(k))
        assert prefill.max_q == np.diff(q_ends).max() and prefill.max_k == np.diff(k_ends).max()
        for (a, b), (c, d) in zip(pairwise(q_ends), pairwise(k_ends), strict=True):
            mask = torch.ones(b - a, d - c, dtype=torch.bool).tril(d - c - (b - a))
            x, y, z = (t.transpose(0, 1)[None] for t in (q[a:b], k[c:d], v[c:d]))
            found = torch.nn.functional.scaled_dot_product_attention(
                x, y, z, mask, scale=scale, enable_gqa=True
            )
            out[a:b] = found[0].transpose(0, 1)
        calls.append(len(q_ends) - 1)
        return out

    monkeypatch.setattr(gpu_attention, "flash_takes", lambda *_: True)
    monkeypatch.setattr(gpu_attention, "flash", flash)
    with gpu_engine(monkeypatch, llama, n_pages=100, max_step_tokens=11) as engine:
        assert tokens_of(engine, prompts) == expected
    assert len(calls) > 8


@pytest.mark.parametrize("n_tokens", [1, 30, 200])
def test_a_full_step(monkeypatch, llama, n_tokens):
    steps = []
    run_model = graphs.run_model

    def run(model, forward):
        steps.append(forward.n_tokens)
        return run_model(model, forward)

    monkeypatch.setattr(graphs, "run_model", run)
    with gpu_engine(monkeypatch, llama, n_pages=5) as engine:
        graphs.compute_full_step(llama, engine._pages, engine._attention, n_tokens, 24)
    assert n_tokens - 24 < steps[0] <= n_tokens + 1


def test_buckets():
    for n in (1, 3, 4, 5, 64, 65, 256, 384, 1000):
        found = buckets_of(n)
        assert found == sorted(set(found)) and found[0] == 1 and found[-1] == n
        assert all(b - a <= max(2, a / 2 + 4) for a, b in pairwise(found))


def test_without_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ImportError, match="pip install triton"):
        runpy.run_path(triton_kernels.__file__)


def test_other_devices_are_refused():
    with pytest.raises(ValueError, match="on devices cpu and cuda, not on mps"):
        opening.backend_of(torch.device("mps"), 1)
