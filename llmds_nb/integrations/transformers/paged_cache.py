"""PagedCache: a cache for `model.generate` whose prefixes are shared across calls (extra `hf`)."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import transformers
from transformers import PretrainedConfig
from transformers.cache_utils import DynamicCache, get_layer_types_and_kwargs
from transformers.generation.utils import GENERATION_MODES_MAPPING

from llmds_nb import KVCache
from llmds_nb.kv import KVCacheStats

from .interface import UnsupportedModelError
from .paged_rows import PagedRows
from .slot_pool import SlotPool

_CHUNKS_BEGIN_AT_0 = tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 24)
_CACHED = {"full_attention", "sliding_attention"}
_STATELESS = {"rwkv", "xlnet", "xlstm", "reformer"}  # keep their state elsewhere
_NAMES = "cache", "past_key_values"  # of the cache among the arguments, from 5.24 and before
# What `generate` gives a decoding method beside the tokens; none of it changes a key or a value.
_HARMLESS = {*_NAMES, "attention_mask", "position_ids", "use_cache", "logits_to_keep"}


class PagedCache(PagedRows):
    """A cache of transformers over pages: prompts that begin alike are computed once.

    Parameters
    ----------
    config : PretrainedConfig
        `model.config` of a decoder whose layers have full or sliding attention.
    n_pages : int
        Pages in the pool, for running and cached tokens together. The tensors are made when the
        first keys come: n_pages * page_size tokens in each layer.
    page_size : int
        Tokens a page, a power of two; prefixes are shared by whole pages.
    cache : KVCache, optional
        In place of these two: an empty one without tensors, to set its `eviction`, `key` or quotas.

    Notes
    -----
    A transformers cache never sees tokens. So say which prompt comes: by `custom_generate`, or by
    `generating` around the call::

        model.generate(**inputs, custom_generate=cache.generate, salt="tenant 1")

        with cache.generating(input_ids, attention_mask) as past:
            past.done(model.generate(input_ids, past_key_values=past, streamer=streamer))

    (`cache=past` from transformers 5.24.) A batch may be padded on the left; it computes the
    columns from min(padding + cached tokens) on. Sampling, beams, `num_return_sequences`,
    assisted and prompt-lookup decoding work. Passed as `past_key_values` itself, without either,
    a PagedCache is a DynamicCache over pages: it continues one batch and shares nothing.

    The attention reads copies [rows, heads, columns, width], gathered for one layer at a time by
    whole pages, or by tokens where a batch is padded. Sliding layers keep all tokens. A cached
    token of every prompt is computed again, to see that its key is the same; so another model, new
    weights, or images behind equal token ids, are errors. LoRA adapters that leave the first layer
    alone need a salt each.

    Raises
    ------
    UnsupportedModelError
        The layers are not only of full or sliding attention.
    ValueError
        `cache` is in use.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = dict(vocab_size=99, hidden_size=32, intermediate_size=32, num_attention_heads=2)
    >>> model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=2, pad_token_id=0))
    >>> cache = PagedCache(model.config, n_pages=64, page_size=16)
    >>> prompt = torch.arange(3, 43)[None]
    >>> inputs = dict(input_ids=prompt, attention_mask=torch.ones_like(prompt))
    >>> for _ in range(2):
    ...     output = model.generate(**inputs, custom_generate=cache.generate, max_new_tokens=4)
    >>> cache.stats().lookups, cache.stats().hits
    (80, 32)
    """

    def __init__(
        self, config: PretrainedConfig, *, n_pages: int = 4096, page_size: int = 16,
        cache: KVCache | None = None,
    ) -> None:  # fmt: skip
        n_layers = _layers_of(config)
        if cache is None:
            cache = KVCache(n_pages, page_size)
        elif not isinstance(cache, KVCache):
            raise TypeError(f"cache must be a KVCache, not {type(cache).__name__}")
        elif cache.kv is not None or cache.stats().n_free < cache.n_pages or len(cache):
            raise ValueError("cache must be a KVCache without tensors, sequences and cached pages")
        super().__init__(SlotPool(cache, n_layers))

    @property
    def kv(self) -> KVCache:
        """Which slot holds which token: for `stats(salt=...)`, `pin`, `set_quota`, `evict`."""
        return self.pool.kv

    # ---- calls that share ------------------------------------------------------------------

    @contextlib.contextmanager
    def generating(
        self, input_ids: Any, attention_mask: Any = None, *, salt: Any = 0, model: Any = None
    ) -> Iterator[PagedRows]:
        """Give one call of `generate` the cached prefixes of its prompts, and keep what it adds.

        Parameters
        ----------
        input_ids : int tensor or array [rows, columns]
            The prompts that the call gets.
        attention_mask : tensor or array [rows, columns], optional
            0 for padding, which has to be on the left.
        salt : int, bytes or str
            Tenant or adapter; nothing is shared between two.
        model : PreTrainedModel, optional
            Another than the one used before is refused. Assisted decoding skips the prefix only
            with it.

        Yields
        ------
        PagedRows
            The cache for the call. `done(output)` lets later calls find what was generated;
            without it they find the prompts, as far as they were computed.

        Raises
        ------
        ValueError
            Bad token ids or mask, or another model.
        CapacityError
            Too few pages for the prompts; the forward pass raises it where they run out later.
        """
        prompts, pads = _prompts_of(input_ids, attention_mask)
        self.pool.belongs_to(model)
        rows = PagedRows(self.pool)
        hook = None
        try:
            reused = rows.tell(prompts, pads, salt)
            if model is not None and reused:
                rows.skip_in_forward()
                hook = model.register_forward_pre_hook(_Skip(rows), with_kwargs=True)
            yield rows
        finally:
            if hook is not None:
                hook.remove()
            rows.end()

    def generate(
        self, model: Any, input_ids: torch.Tensor, logits_processor: Any = None,
        stopping_criteria: Any = None, generation_config: Any = None, *, salt: Any = 0,
        **model_kwargs: Any,
    ) -> Any:  # fmt: skip
        """Decode with shared prefixes: ``model.generate(..., custom_generate=cache.generate)``.

        transformers calls it with the arguments of its own decoding methods; `salt` is an argument
        of `model.generate` then. It gives a custom_generate neither `streamer` nor
        `assistant_model`: these need `generating`.

        Raises
        ------
        ValueError
            Something but tokens enters the model, positions are not those of the tokens, or another
            cache is asked for.
        """
        if logits_processor is None or generation_config is None:
            raise TypeError("call model.generate(..., custom_generate=cache.generate)")
        given = sys._getframe(1).f_locals
        lost = [name for name in ("streamer", "assistant_model") if given.get(name) is not None]
        if lost:
            raise ValueError(
                f"transformers keeps {' and '.join(lost)} from a custom_generate: use "
                f"`with cache.generating(input_ids, attention_mask) as past`"
            )
        method = GENERATION_MODES_MAPPING[generation_config.get_generation_mode(None)]
        if not hasattr(type(model), method):
            raise ValueError(f"custom_generate=cache.generate cannot run {method}")
        _check_arguments(input_ids, {k: v for k, v in model_kwargs.items() if v is not self})
        name = next((name for name in _NAMES if name in model_kwargs), _NAMES[0])
        mask = model_kwargs.get("attention_mask")
        with self.generating(input_ids, mask, salt=salt, model=model) as past:
            if generation_config.prefill_chunk_size is not None and _CHUNKS_BEGIN_AT_0:
                past.start_over()
            output = getattr(type(model), method)(
                model, input_ids, logits_processor=logits_processor,
                stopping_criteria=stopping_criteria, generation_config=generation_config,
                **{**model_kwargs, name: past},
            )  # fmt: skip
            eos = getattr(generation_config, "_eos_token_tensor", None)
            return past.done(output, eos_token_id=None if eos is None else eos.cpu())

    # ---- the pool --------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget every prefix and drop the rows, as for new weights. O(n_pages)."""
        self.drop()
        self.pool.forget()

    def stats(self) -> KVCacheStats:
        """Sizes and counts of the pages; `hits` are the prompt tokens found cached. O(n_pages)."""
        self.pool.collect()
        return self.pool.kv.stats()

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors and of the KVCache."""
        return self.pool.nbytes

    def check(self) -> None:
        """Assert that the pages are consistent. O(n_pages)."""
        self.pool.collect()
        self.pool.kv.check()

    def __repr__(self) -> str:
        return f"PagedCache({len(self.layers)} layers, {self.pool.kv!r})"


class _Skip:
    """A forward pre-hook: takes the columns that are cached from the first forward pass."""

    def __init__(self, rows: PagedRows) -> None:
        self._rows, self._first = rows, True

    def __call__(self, module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if not self._first or not any(kwargs.get(name) is self._rows for name in _NAMES):
            return None
        self._first = False
        ids, n = kwargs.get("input_ids"), self._rows.get_seq_length()
        if ids is None or not self._rows.is_assisted:
            return None
        kwargs = {**kwargs, "input_ids": ids[:, n:]}
        if kwargs.get("position_ids") is not None:
            kwargs["position_ids"] = kwargs["position_ids"][..., n:]
        return args, kwargs


def _layers_of(config: Any) -> int:
    if not isinstance(config, PretrainedConfig):
        raise TypeError(f"config must be model.config, not {type(config).__name__}")
    text = config.get_text_config(decoder=True)
    if config.is_encoder_decoder or text.is_encoder_decoder:
        raise UnsupportedModelError(
            f"PagedCache is for decoders: {config.model_type} has an encoder, too"
        )
    kinds = set() if text.model_type in _STATELESS else set(get_layer_types_and_kwargs(text)[0])
    if not kinds or kinds - _CACHED:
        found = ", ".join(sorted(kinds - _CACHED)) or "a state of another kind"
        raise UnsupportedModelError(
            f"PagedCache holds keys and values of full and sliding attention; {text.model_type} "
            f"has {found}"
        )
    return len(get_layer_types_and_kwargs(text)[0])


def _prompts_of(input_ids: Any, attention_mask: Any) -> tuple[np.ndarray, np.ndarray]:
    """Tokens int32[B, T] and how many of each row are padding int64[B]."""
    ids = np.asarray(input_ids.cpu() if torch.is_tensor(input_ids) else input_ids)
    if ids.ndim != 2 or not ids.size or ids.dtype.kind not in "iu":
        raise ValueError(
            f"input_ids must be whole numbers [rows, columns], not {ids.dtype} {ids.shape}"
        )
    if ids.min() < 0 or ids.max() >= 2**31:
        raise ValueError(f"token ids must be 0 to 2**31 - 1, not {ids.min()} to {ids.max()}")
    pads = np.zeros(len(ids), np.int64)
    if attention_mask is not None:
        mask = attention_mask.cpu() if torch.is_tensor(attention_mask) else attention_mask
        kept = np.asarray(mask) != 0
        if kept.shape != ids.shape:
            raise ValueError(f"attention_mask {kept.shape} for input_ids {ids.shape}")
        pads = (~kept).sum(1)
        wrong = np.flatnonzero((kept != (np.arange(ids.shape[1]) >= pads[:, None])).any(1))
        if len(wrong):
            raise ValueError(
                f"attention_mask of row {wrong[0]} has zeros behind ones: pad on the left"
            )
    return ids.astype(np.int32), pads.astype(np.int64)


def _check_arguments(input_ids: torch.Tensor, model_kwargs: dict) -> None:
    """Refuse what would change keys or values beside the tokens, and caches of other kinds."""
    for name, value in model_kwargs.items():
        if name in _NAMES and value is not None and type(value) is not DynamicCache:
            raise ValueError(
                f"custom_generate=cache.generate uses its own pages, not a {type(value).__name__}"
            )
        if name not in _HARMLESS and torch.is_tensor(value):
            raise ValueError(f"prefixes are found by token ids alone, so {name} is not taken")
    if model_kwargs.get("use_cache") is False:
        raise ValueError("use_cache=False and custom_generate=cache.generate exclude each other")
    positions = model_kwargs.get("position_ids")
    if positions is not None:
        mask = model_kwargs.get("attention_mask")
        mask = torch.ones_like(input_ids) if mask is None else mask
        if bool(((positions != mask.long().cumsum(-1) - 1) & (mask != 0)).any()):
            raise ValueError("position_ids must count the tokens that are not padding from 0")
