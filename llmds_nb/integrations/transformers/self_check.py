"""The check of a model before its first request: its own attention against the engine's.

Two short prompts go through the pages in two chunks each, beside one another and then beside rows
of one token, as in the engine. Their logits must be those that the model computes by itself.
"""

from typing import Any

import numpy as np
import torch

from llmds_nb.scheduling import StepInputs

from .interface import Backend, Forward, UnsupportedModelError, logits_of, run_model, tensors_of
from .pages import KvPages

_LENGTHS = 13, 22
_CHUNKS = (5, 0), (11, 13), (12, 14), (13, 22)  # tokens of each that are computed after each step
# The most that logits may differ, relative to their own spread.
_LIMITS = {torch.float64: 1e-3, torch.float32: 2e-3, torch.bfloat16: 0.25, torch.float16: 0.05}


def own_logits(model: Any, vocab_size: int) -> list[torch.Tensor]:
    """What the model itself computes for the prompts: logits [n, V] of each."""
    with torch.inference_mode():
        prompts = [torch.from_numpy(p).to(model.device) for p in _prompts(vocab_size)]
        return [logits_of(model, model(input_ids=p[None], use_cache=False)) for p in prompts]


def _prompts(vocab_size):
    rng = np.random.default_rng(7)
    return [rng.integers(0, vocab_size, n) for n in _LENGTHS]


def probe(model: Any, pages: KvPages, backend: Backend, vocab_size: int) -> list[torch.Tensor]:
    """The logits of the prompts by the engine's attention; `pages` then knows its shapes."""
    prompts = _prompts(vocab_size)
    found: list[list[torch.Tensor]] = [[], []]
    size = pages.page_size
    tables = np.full((2, pages.n_pages), pages.n_pages, np.int32)
    order = np.random.default_rng(8).permutation(pages.n_pages)
    counts = [-(-n // size) for n in _LENGTHS]
    for row, n in enumerate(counts):
        tables[row, :n] = order[sum(counts[:row]) :][:n]
    done = [0, 0]
    for step in _CHUNKS:
        spans = [(i, done[i], stop) for i, stop in enumerate(step) if stop > done[i]]
        spans.sort(key=lambda span: span[2] - span[1] > 1)  # rows of one token first
        done = [max(a, b) for a, b in zip(done, step, strict=True)]
        positions = np.concatenate([np.arange(a, b) for _, a, b in spans])
        rows = np.repeat([i for i, _, _ in spans], [b - a for _, a, b in spans])
        tokens = np.concatenate([prompts[i][a:b] for i, a, b in spans])
        slots = tables[rows, positions // size] * size + positions % size
        lengths = np.array([b for _, _, b in spans])
        cu_q = np.cumsum([0, *(b - a for _, a, b in spans)])
        flat: Any = tokens, positions, slots, lengths, cu_q, np.arange(len(tokens))
        table = np.ascontiguousarray(tables[[i for i, _, _ in spans]])
        inputs = StepInputs._make((*(x.astype(np.int32) for x in flat), table, 0))
        tensors = tensors_of(inputs, inputs.sample_rows, model.device)
        n_decode = sum(b - a == 1 for _, a, b in spans)
        with torch.inference_mode():
            logits = run_model(model, Forward(inputs, tensors, n_decode, pages, backend))
        for (i, _, _), part in zip(spans, logits.split(np.diff(cu_q).tolist()), strict=True):
            found[i].append(part)
    return [torch.cat(parts) for parts in found]


def compare(model: Any, own: list[torch.Tensor], ours: list[torch.Tensor], dtype: Any) -> None:
    """Refuse a model whose logits differ.

    Raises
    ------
    UnsupportedModelError
        By more than rounding explains, for what is computed and stored in `dtype`.
    """
    limit = max(_LIMITS.get(dtype, 0.25), _LIMITS.get(own[0].dtype, 0.25))
    a, b = torch.cat(own).double(), torch.cat(ours).double()
    whole = torch.isfinite(a).all(-1)  # there are weights that are NaN for some tokens
    a, b = a[whole], b[whole]
    if not len(a):
        return
    spread = (a - a.mean(-1, keepdim=True)).pow(2).mean(-1).sqrt()
    difference = (a - b).pow(2).mean(-1).sqrt() / (spread + 1e-12)
    worst = difference.max().item() if limit < 0.01 else difference.median().item()
    if not worst <= limit:
        raise UnsupportedModelError(
            f"{type(model).__name__}: the logits through the engine's attention differ from the "
            f"model's own by {worst:.2g} of their spread; {limit:g} is allowed. Something that it "
            "computes between tokens does not pass through transformers' AttentionInterface"
        )


def check_windows(model: Any, pages: KvPages, max_len: int | None) -> None:
    """Refuse a model that keeps its sliding windows by a mask only, which the engine has not."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ()
    window = getattr(config, "sliding_window", None)
    for layer, kind in enumerate(kinds):
        narrow = window is not None and (max_len is None or max_len > window)
        if kind == "sliding_attention" and narrow and not pages.windows[layer]:
            raise UnsupportedModelError(
                f"{type(model).__name__}: layer {layer} has a sliding window of {window} tokens, "
                "of which it tells its attention function nothing"
            )


def pages_needed(page_size: int) -> int:
    """Pages that `probe` uses, and two more."""
    return 2 + sum(-(-n // page_size) for n in _LENGTHS)
