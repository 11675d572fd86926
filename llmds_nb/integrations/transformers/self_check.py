"""The check of a model before its first request: its own attention against the engine's.

Two short prompts go through the pages in two chunks each, beside one another and then beside rows
of one token, as in the engine. Their logits must be those that the model computes by itself.

In float32 they are, but for 2e-3 of their spread. In 16 bits rounding moves them by amounts that
depend on the model, above all where it chooses experts. So the model tells by itself how much: with
embeddings moved by one unit of rounding of bfloat16, its logits move by `Own.noise`. Over 25
families of random models of 4 layers, weights and pages in 16 bits, those of the engine differ by
at most .72 of the limit, and by 1.07 of it or more (median: 2.6) where in all layers a row has a
token less, scores are 1.25 times as large, a window is 8 tokens, or two heads are exchanged.
float16 is held to no less: though it rounds less, a token that gets another expert moves as far.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch

from llmds_nb.scheduling import StepInputs

from .interface import Backend, Forward, UnsupportedModelError, logits_of, run_model, tensors_of
from .pages import KvPages

_LENGTHS = 13, 22
_CHUNKS = (5, 0), (11, 13), (12, 14), (13, 22)  # tokens of each that are computed after each step
# The most that logits may differ, relative to their own spread: in float32 those of any token, in
# 16 bits by the root of the mean square over all tokens.
_LIMIT, _LEAST, _MOST = 2e-3, 0.05, 0.4
_MOVES = 3  # of the embeddings: not in each does a token get another expert


class Own(NamedTuple):
    """What the model itself computes for the prompts."""

    logits: list[torch.Tensor]  # [n, V] of each
    noise: float  # how much they differ, as `compare` has it, where its embeddings differ
    n_layers: int


def own_logits(model: Any, vocab_size: int) -> Own:
    """What the model computes with its own attention, also with embeddings that are moved."""
    unit = torch.finfo(torch.bfloat16).eps
    generator = torch.Generator().manual_seed(9)

    def move(module, args, output):
        signs = torch.randint(0, 2, output.shape, generator=generator, device="cpu")
        return output + output * (2 * signs - 1).to(output) * unit

    with torch.inference_mode():
        prompts = [torch.from_numpy(p).to(model.device) for p in _prompts(vocab_size)]

        def computed():
            return [logits_of(model, model(input_ids=p[None], use_cache=False)) for p in prompts]

        own = computed()
        hook = model.get_input_embeddings().register_forward_hook(move)
        try:
            noise = max(_rms(_differences(own, computed())) for _ in range(_MOVES))
        finally:
            hook.remove()
    n_layers = model.config.get_text_config().num_hidden_layers
    return Own(own, noise, n_layers)


def _differences(own, other):
    """How much logits differ, of each token, relative to their spread; of those that are finite."""
    a, b = torch.cat(own).double(), torch.cat(other).double()
    whole = torch.isfinite(a).all(-1)  # there are weights that are NaN for some tokens
    a, b = a[whole], b[whole]
    spread = (a - a.mean(-1, keepdim=True)).pow(2).mean(-1).sqrt()
    return (a - b).pow(2).mean(-1).sqrt() / (spread + 1e-12)


def _rms(differences):
    return differences.pow(2).mean().sqrt().item() if len(differences) else 0.0


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


def compare(model: Any, own: Own, ours: list[torch.Tensor], dtype: Any) -> None:
    """Refuse a model whose logits differ.

    Raises
    ------
    UnsupportedModelError
        By more than rounding explains, for what is computed and stored in `dtype`.
    """
    differences = _differences(own.logits, ours)
    if not len(differences):
        return
    unit = max(torch.finfo(dtype).eps, torch.finfo(own.logits[0].dtype).eps)
    if unit <= torch.finfo(torch.float32).eps:
        found, limit = differences.max().item(), _LIMIT
    else:  # every layer rounds anew
        found, depth = _rms(differences), max(1.0, math.sqrt(own.n_layers / 4))
        limit = min(max(_LEAST, own.noise * depth), _MOST)
    if not found <= limit:
        raise UnsupportedModelError(
            f"{type(model).__name__}: the logits through the engine's attention differ from the "
            f"model's own by {found:.2g} of their spread; {limit:.2g} is allowed. Something that "
            "it computes between tokens does not pass through transformers' AttentionInterface"
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
