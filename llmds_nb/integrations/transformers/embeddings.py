"""Vectors of texts: the pooled last hidden states of the model of an Engine."""

from collections.abc import Iterable
from itertools import count, takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmds_nb._core import validation
from llmds_nb._core.signals import uninterrupted
from llmds_nb._core.typing import Float32s, Int32s
from llmds_nb.scheduling import StepInputs

from .interface import Forward, run_base, tensors_of
from .model_access import check_state
from .prompts import prompt_ids

# Texts have sequences of their own in the cache of an engine, beyond all ids of requests, and a
# salt of their own, under which nothing is ever committed: no prefix is found, all are computed.
_FIRST_ID = 2**62
_SALT = b"llmds_nb embeddings"
_POOLINGS = ("mean", "last")


def encode(
    engine: Any, texts: str | Iterable[Any], pooling: str, normalize: bool, truncate: bool
) -> Float32s:
    """Vectors float32[n, d] of texts; see `Engine.encode`."""
    validation.choice(pooling, "pooling", _POOLINGS)
    normalize = validation.flag(normalize, "normalize")
    prompts = _token_lists(engine, texts, validation.flag(truncate, "truncate"))
    vectors = np.zeros((len(prompts), 0), np.float32)
    for group in _groups(prompts, engine.batcher.max_step_tokens):
        with engine._stepping:
            engine._check_open()
            check_state(engine.model, engine.device)
            found = _pooled(engine, [prompts[i] for i in group], pooling == "mean")
        if not vectors.size:
            vectors = np.zeros((len(prompts), found.shape[1]), np.float32)
        vectors[group] = found
    if not vectors.size:  # no text has a token
        size = engine.model.config.get_text_config().hidden_size
        return np.zeros((len(prompts), size), np.float32)
    if normalize:
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        np.divide(vectors, norms, out=vectors, where=norms > 0)
    return vectors


def _token_lists(engine, texts, truncate) -> list[Int32s]:
    """The tokens of each text: of none for an empty one."""
    if isinstance(texts, str):
        texts = [texts]
    if not hasattr(texts, "__iter__") or isinstance(texts, bytes | dict):
        raise TypeError(f"texts must be a list of texts, not {validation.shown(texts)}")
    found = []
    places = engine.cache.n_pages * engine.cache.page_size
    for i, text in enumerate(texts):
        tokens = np.zeros(0, np.int32)
        if not isinstance(text, str) or text:
            tokens = prompt_ids(text, engine.tokenizer, engine.vocab_size, f"texts[{i}]")
        for most, what in ((engine.max_len, "the model has positions for"), (places, "pages hold")):
            if most is not None and len(tokens) > most:
                if not truncate:
                    text = f"texts[{i}] has {len(tokens)} tokens, and {what} {most}"
                    raise ValueError(f"{text}: truncate=True takes the first ones")
                tokens = tokens[:most]
        found.append(tokens)
    return found


def _groups(prompts, most):
    """Places of texts that are computed at once: of at most so many tokens, or one text."""
    group: list[int] = []
    total = 0
    for i, tokens in enumerate(prompts):
        if not len(tokens):
            continue
        if group and total + len(tokens) > most:
            yield group
            group, total = [], 0
        group.append(i)
        total += len(tokens)
    if group:
        yield group


def _pooled(engine, prompts, mean):
    """Vectors float32[n, d] of a group, over pages that are free again afterwards."""
    cache = engine.cache
    ids = _FIRST_ID + np.arange(len(prompts))
    lengths = np.array([len(tokens) for tokens in prompts])
    indptr = np.concatenate(([0], lengths.cumsum()))
    tokens = np.concatenate(prompts)
    uninterrupted(_detach, cache)  # of a call that was interrupted while it detached
    try:
        cache.attach_many(ids, tokens, indptr, salts=[_SALT] * len(prompts))
        table = cache.block_table(ids, pad=cache.n_pages)
        with torch.inference_mode():
            return _sums(engine, tokens, lengths, table, mean).cpu().numpy()
    finally:
        uninterrupted(_detach, cache)


def _detach(cache):
    """Free the pages of a group."""
    ids = list(takewhile(cache.__contains__, count(_FIRST_ID)))
    if ids:
        cache.detach(ids)


def _sums(engine, tokens, lengths, table, mean) -> Tensor:
    """Mean or last hidden states [n, d], in steps of at most `max_step_tokens` tokens."""
    size = engine.cache.page_size
    rows = np.repeat(np.arange(len(lengths)), lengths)
    ends = lengths.cumsum()
    positions = np.arange(len(tokens)) - np.repeat(ends - lengths, lengths)
    slots = table[rows, positions // size] * size + positions % size
    found = None
    for start in range(0, len(tokens), engine.batcher.max_step_tokens):
        part = slice(start, min(start + engine.batcher.max_step_tokens, len(tokens)))
        own = np.unique(rows[part])
        bounds = np.searchsorted(rows[part], own, side="right")
        flat: Any = (
            tokens[part],
            positions[part],
            slots[part],
            positions[part][bounds - 1] + 1,
            np.concatenate(([0], bounds)),
            bounds - 1,
        )
        inputs = StepInputs._make(
            (*(x.astype(np.int32) for x in flat), np.ascontiguousarray(table[own]), 0)
        )
        tensors = tensors_of(inputs, inputs.sample_rows, engine.device)
        forward = Forward(inputs, tensors, 0, engine._pages, engine._attention)
        hidden = run_base(engine.model, forward).float()
        if found is None:
            found = hidden.new_zeros((len(lengths), hidden.shape[1]))
        if mean:
            found.index_add_(0, torch.from_numpy(rows[part]).to(hidden.device), hidden)
        else:
            found[torch.from_numpy(own).to(hidden.device)] = hidden[tensors["keep"]]
    assert found is not None
    return found / torch.from_numpy(lengths).to(found.device)[:, None] if mean else found
