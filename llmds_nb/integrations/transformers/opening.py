"""What an Engine does before its first request: checks its model and makes its pages."""

from typing import Any

import torch

from llmds_nb import CapacityError
from llmds_nb._core import validation

from . import model_access, self_check
from .interface import Backend
from .pages import KvPages, free_memory, page_bytes, pages_that_fit

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def kv_dtype_of(kv_dtype: Any, model: Any) -> torch.dtype:
    """The dtype of stored K/V, from a name, a torch.dtype, or by default the model's."""
    given = model.dtype if kv_dtype is None else kv_dtype
    dtype: Any = _DTYPES.get(given) if isinstance(given, str) else given
    if dtype not in _DTYPES.values():
        named = f"the model's {given}: give another" if kv_dtype is None else repr(kv_dtype)
        raise ValueError(f"kv_dtype must be one of {', '.join(_DTYPES)}, not {named}")
    return dtype


def stop_tokens(model: Any) -> frozenset[int]:
    """The model's own end-of-sequence tokens."""
    found = None
    for config in (getattr(model, "generation_config", None), model.config.get_text_config()):
        if found is None and config is not None:
            found = config.eos_token_id
    if found is None:
        return frozenset()
    return frozenset(map(int, found)) if isinstance(found, list | tuple) else frozenset((found,))


def take_model(
    model: Any, backend: Backend, page_size: int, dtype: torch.dtype, max_len: int | None,
    check: bool,
) -> KvPages:  # fmt: skip
    """Let the model attend through the engine, and compare it with itself if `check`.

    Returns
    -------
    KvPages
        A few pages, from which the shapes of every layer are known. The caller gives the model
        back by `model_access.release`; where this raises, it has its own attention again.
    """
    vocab_size = model.get_input_embeddings().num_embeddings
    n_layers = model.config.get_text_config().num_hidden_layers
    own = None
    if check and not model_access.is_held(model):
        own = self_check.own_logits(model, vocab_size)
    model_access.hold(model)
    try:
        few = self_check.pages_needed(page_size)
        pages = KvPages(backend, n_layers, few, page_size, dtype, model.device)
        ours = self_check.probe(model, pages, backend, vocab_size)
        self_check.check_windows(model, pages, max_len)
        if own is not None:
            self_check.compare(model, own, ours, dtype)
    except BaseException:
        model_access.release(model)
        raise
    return pages


def make_pages(few: KvPages, n_pages: int | None, most: int) -> KvPages:
    """The pages of an engine, of the shapes of `few`; by default as many as memory allows.

    Raises
    ------
    CapacityError
        They do not fit.
    """
    device = few.device
    if n_pages is not None:
        n_pages = validation.integer(n_pages, "n_pages", low=1, high=validation.INT32_MAX)
    share = 0.9 if device.type == "cuda" else 0.5
    each = page_bytes(few.shapes, few.page_size, few.dtype)
    n_pages = pages_that_fit(n_pages, most, share, free_memory(device), each)
    shape = few.n_layers, n_pages, few.page_size, few.dtype, device
    try:
        return KvPages(few.backend, *shape, few.shapes)
    except (RuntimeError, MemoryError) as error:  # of torch: out of memory
        fit = pages_that_fit(None, n_pages, share, free_memory(device), each)
        text = f"{n_pages:,} pages do not fit into memory; about {fit:,} would"
        raise CapacityError(text) from error
