"""The Engine on a GPU: checks first, then tokens/s against transformers' continuous batching.

One script for one run of at most 10 minutes on an H200::

    PYTHONPATH=. python -m asv_benchmarks._support.gpu_engine

`--cpu-dry-run` does all of it on a CPU, tiny, with Triton in its interpreter and no graphs.
"""

import argparse
import os
import sys
import time
import traceback

DRY = "--cpu-dry-run" in sys.argv
if DRY:
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

from llmds_nb.integrations.transformers import Engine, opening, triton_kernels  # noqa: E402
from llmds_nb.integrations.transformers.gpu_attention import GpuAttention  # noqa: E402
from llmds_nb.integrations.transformers.graphs import GraphRunner  # noqa: E402
from llmds_nb.integrations.transformers.random_models import random_model  # noqa: E402

DEVICE = "cpu" if DRY else "cuda"
N, SHARED, TAIL, NEW, VOCABULARY = (
    (3, 8, (2, 6), 2, 512) if DRY else (384, 256, (32, 512), 128, 32000)
)
BEGUN = time.perf_counter()


def say(*parts):
    """Write a line with the seconds since the start."""
    text = " ".join(map(str, parts))
    sys.stdout.write(f"[{time.perf_counter() - BEGUN:6.1f} s] {text}\n")
    sys.stdout.flush()


def dry_run():
    """Let engines on a CPU compute as on a GPU."""

    def runner_of(model, pages, sampler, max_running, max_step_tokens, max_len):
        return GraphRunner(
            model, pages, pages.backend, sampler, max_running,
            max_step_tokens=max_step_tokens, max_pages=pages.n_pages, capture=None,
        )  # fmt: skip

    opening.backend_of = lambda device, threads: GpuAttention()
    opening.runner_of = runner_of
    triton_kernels.BUSY = 4


def section(name, function, *arguments):
    """Run a part; one that fails does not end the others."""
    say(f"--- {name}")
    try:
        return function(*arguments)
    except Exception:
        traceback.print_exc()
        say(f"FAILED: {name}")
        return None


def check_tokens():
    """Float32 tokens of the engine against `generate`, one by one."""
    new, n = (3, 2) if DRY else (32, 8)
    model = random_model("llama", num_hidden_layers=1 if DRY else 4).to(DEVICE)
    rng = np.random.default_rng(1)
    shared = rng.integers(5, 512, 8 if DRY else 40).tolist()
    prompts = [shared + rng.integers(5, 512, k).tolist() for k in rng.integers(1, 8 * n, n)]
    expected = []
    with torch.inference_mode():
        for prompt in prompts:
            ids = torch.tensor([prompt], device=DEVICE)
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False,
                pad_token_id=0,
            )  # fmt: skip
            expected.append(out[0, len(prompt) :].tolist())
    for name, pages in (("large pool", 400), ("small pool", 4 if DRY else 22)):
        options = {"n_pages": pages, "max_running": 8, "max_step_tokens": 64, "page_size": 8}
        with Engine(model, self_check=not DRY, **options) as engine:
            found = engine.generate(prompts, max_new_tokens=new, progress=False)
            same = sum(g.token_ids == e for g, e in zip(found, expected, strict=True))
            engine.check()
            preempted = engine.stats().preempted
            say(f"float32, {name}: {same} of {n} identical; {preempted} preempted")


def check_kernel():
    """Errors of the kernel, and of FlashAttention's prompts, relative to attention in float64."""
    types = [torch.float32, torch.float16] + ([] if DRY else [torch.bfloat16])
    for dtype in types:
        for d, n_heads, n_kv, window, cap, new in (
            (128, 32, 8, 0, 0.0, 1), (64, 8, 8, 100, 0.0, 1), (80, 6, 2, 0, 30.0, 1),
            (256, 8, 4, 0, 0.0, 40), (128, 32, 8, 50, 0.0, 90), (64, 64, 8, 0, 0.0, 33),
        ):  # fmt: skip
            if DRY and d != 80:
                continue
            _kernel_error(dtype, d, n_heads, n_kv, window, cap, new)


def _kernel_error(dtype, d, n_heads, n_kv, window, cap, new):
    torch.manual_seed(0)
    size, lengths = 16, [new + 5, 120] + ([] if DRY else [900, 3000])
    counts = [-(-n // size) for n in lengths]
    k, v = (torch.randn(sum(counts), size, n_kv, d).to(DEVICE, dtype) for _ in range(2))
    table = torch.zeros(len(lengths), max(counts), dtype=torch.int32)
    order = torch.randperm(sum(counts)).int()
    for i, count in enumerate(counts):
        table[i, :count] = order[sum(counts[:i]) :][:count]
    q = torch.randn(len(lengths) * new, n_heads, d).to(DEVICE, dtype)
    sinks = torch.randn(n_heads).to(DEVICE)
    width, kv_len = torch.tensor([table.shape[1]]), torch.tensor(lengths)
    cu_q = torch.arange(len(lengths) + 1) * new
    rows = tuple(x.int().to(DEVICE) for x in (table, width, kv_len, cu_q))
    expected = torch.cat([
        _exact(
            q[i * new : (i + 1) * new], k[table[i, : counts[i]].long()].flatten(0, 1)[:n],
            v[table[i, : counts[i]].long()].flatten(0, 1)[:n], window, cap, sinks,
        )
        for i, n in enumerate(lengths)
    ])  # fmt: skip
    for splits in (1, 8) if new == 1 else (1,):
        out = torch.empty_like(q)
        triton_kernels.attend_rows(
            q, k, v, rows, out, n_tokens=new, scale=d**-0.5, window=window, softcap=cap,
            sinks=sinks, splits=splits,
        )  # fmt: skip
        error = (out.double() - expected).abs().max().item()
        say(f"{dtype} D={d} {n_heads}/{n_kv} window={window} softcap={cap} queries={new} "
            f"splits={splits}: largest error {error:.1e}")  # fmt: skip


def _exact(q, k, v, window, cap, sinks):
    q, k, v = (x.double().transpose(0, 1) for x in (q, k, v))
    group, n, m = q.shape[0] // k.shape[0], q.shape[1], k.shape[1]
    scores = q @ k.repeat_interleave(group, 0).transpose(1, 2) * q.shape[2] ** -0.5
    if cap:
        scores = cap * torch.tanh(scores / cap)
    distance = torch.arange(m - n, m)[:, None] - torch.arange(m)
    unseen = (distance < 0) | ((distance >= window) if window else False)
    scores = scores.masked_fill(unseen.to(q.device), -torch.inf)
    scores = torch.cat((scores, sinks.double()[:, None, None].expand(-1, n, 1)), -1)
    return (scores.softmax(-1)[..., :m] @ v.repeat_interleave(group, 0)).transpose(0, 1)


def large_model():
    """A random Llama of 853M parameters, bfloat16 (float32 in the dry run)."""
    sizes = (64, 128, 1, 4, 2) if DRY else (2048, 5632, 16, 32, 8)
    names = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads",
    )  # fmt: skip
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, max_position_embeddings=4096, pad_token_id=0, eos_token_id=None,
        **dict(zip(names, sizes, strict=True)),
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = transformers.LlamaForCausalLM(config)
    model = model.to(torch.float32 if DRY else torch.bfloat16).eval()
    model.generation_config.eos_token_id = None
    say(f"{sum(p.numel() for p in model.parameters()) / 1e6:.0f}M parameters")
    return model


def prompts_of(seed):
    """The workload's prompts; another seed gives others, the shared tokens too."""
    rng = np.random.default_rng(seed)
    shared = rng.integers(5, VOCABULARY, SHARED).tolist()
    lengths = rng.integers(TAIL[0], TAIL[1] + 1, N)
    return [shared + rng.integers(5, VOCABULARY, n).tolist() for n in lengths]


def timed(run):
    """Tokens/s of the second run of two; the first warms up."""
    for seed in (1, 2):
        begun = time.perf_counter()
        n_tokens = run(prompts_of(seed))
        seconds = time.perf_counter() - begun
        say(f"    {n_tokens / seconds:,.0f} tokens/s")
    assert n_tokens == N * NEW, f"{n_tokens} tokens"
    return n_tokens / seconds


def ours(model, running, page_size, most=N):
    """Tokens/s of the engine."""
    pages = {"n_pages": 60} if DRY else {}
    with Engine(
        model, max_running=running, page_size=page_size, max_step_tokens=8192, self_check=not DRY,
        **pages,
    ) as engine:  # fmt: skip
        say(f"    {engine}, opened")

        def run(prompts):
            found = engine.generate(prompts[:most], max_new_tokens=NEW, progress=False)
            return sum(len(g.token_ids) for g in found) * N // most

        speed = timed(run) * most / N
        stats = engine.stats()
        say(f"    hits {stats.cached_tokens:,}, steps {stats.steps}, failed {stats.failed}")
    return speed


def transformers_speed(model, **options):
    """Tokens/s of `generate_batch`."""
    settings = transformers.GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=-1)
    extra = (
        {"continuous_batching_config": transformers.ContinuousBatchingConfig(**options)}
        if options
        else {}
    )

    def run(prompts):
        found = model.generate_batch(
            prompts, generation_config=settings, progress_bar=False, **extra
        )
        return sum(len(g.generated_tokens) for g in found.values())

    return timed(run)


def torch_flash(module, query, key, value, attention_mask, scaling=None, **options):
    """Torch's FlashAttention for `generate_batch`, which otherwise needs the flash-attn package."""
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    out = torch.ops.aten._flash_attention_forward(
        q, k, v, options["cu_seq_lens_q"].int(), options["cu_seq_lens_k"].int(),
        options["max_length_q"], options["max_length_k"], 0.0, True, False, scale=scaling,
    )[0]  # fmt: skip
    return out[None], None


def main():
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu-dry-run", action="store_true")
    parser.add_argument("--seconds", type=float, default=560, help="begin no part after these")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if DRY:
        dry_run()
    else:
        say(torch.cuda.get_device_name(), torch.__version__)
    section("tokens", check_tokens)
    section("kernel", check_kernel)
    model = section("model", large_model)
    if model is None:
        return
    parts = [("ours, 384 / 8,192", ours, (model, N, 16), {})]
    if not DRY:
        transformers.AttentionInterface.register("torch_flash", torch_flash)
        blocks = {"auto_switch_to_flash": False, "max_blocks_per_request": 0}
        best = {"max_batch_tokens": 8192, "num_blocks": 1600, "use_cuda_graph": True, **blocks}
        parts += [
            ("ours, pages of 64", ours, (model, N, 64), {}),
            ("ours, 256 / 8,192", ours, (model, 256, 16), {}),
            ("generate_batch over flash, graphs", transformers_speed, (model,), best),
            ("ours, 1 request", ours, (model, N, 16, 1), {}),
            ("generate_batch as shipped", transformers_speed, (model,), {}),
            ("generate_batch over flash, defaults", transformers_speed, (model,), blocks),
        ]
    found = {}
    for name, function, arguments, keywords in parts:
        if time.perf_counter() - BEGUN > options.seconds:
            say(f"no time for {name}")
            continue
        own = model.config._attn_implementation
        if "flash" in name:
            model.config._attn_implementation = "torch_flash"
        found[name] = section(name, lambda f=function, a=arguments, k=keywords: f(*a, **k))
        model.config._attn_implementation = own
        if not DRY:
            torch.cuda.empty_cache()
    say("=== tokens/s, and ours (384 / 8,192) as many times")
    first = found.get("ours, 384 / 8,192")
    for name, speed in found.items():
        ratio = f"{first / speed:6.1f}x" if first and speed else "  none"
        say(f"{name:40} {speed or 0:10,.0f} {ratio}")


if __name__ == "__main__":
    main()
