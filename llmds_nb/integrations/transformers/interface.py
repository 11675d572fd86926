"""The attention function of the engine, as transformers' AttentionInterface calls it.

A model computes all sequences of a step as one row of tokens, [1, T]; the function gets queries and
keys after their rotary embedding, writes keys and values to pages and attends over pages. What it
needs to know of the step is a `Forward`, which travels as the keyword `llmds_forward`, and in a
thread-local for models that drop keywords.
"""

import threading
from typing import Any, Protocol

import torch
from transformers import AttentionInterface

from llmds_nb import LlmdsError
from llmds_nb.scheduling import StepInputs

from .pages import KvPages

NAME = "llmds_paged"
# Keywords that say nothing that would change the result.
_HARMLESS = {
    "position_ids", "use_cache", "cache_position", "return_dict", "deterministic",
    "output_router_logits",
}  # fmt: skip
_current = threading.local()


class UnsupportedModelError(LlmdsError, ValueError):
    """The model's attention does not pass through the engine as it would have to."""


class Backend(Protocol):
    """Attention over pages on one kind of device."""

    def new_pages(
        self, n_pages: int, page_size: int, n_heads: int, width: int, dtype: torch.dtype,
        device: torch.device,
    ) -> torch.Tensor:  # fmt: skip
        """Zeroed pages in the backend's layout, and one more, number `n_pages`, for padding."""

    def copy_pages(self, pages: torch.Tensor, src: Any, dst: Any) -> None:
        """Copy pages int32[n] to pages int32[n]."""

    def write(
        self, k_pages: torch.Tensor, v_pages: torch.Tensor, key: torch.Tensor,
        value: torch.Tensor, forward: "Forward",
    ) -> None:  # fmt: skip
        """Write keys [1, Hkv, T, D] and values [1, Hkv, T, Dv] to the slots of a step."""

    def attend(
        self, forward: "Forward", layer: int, query: torch.Tensor, *, scale: float, window: int,
        softcap: float, sinks: torch.Tensor | None,
    ) -> torch.Tensor:  # fmt: skip
        """Attend queries [1, Hq, T, D] over the pages of a layer: [1, T, Hq, Dv].

        `window` and `softcap` are 0 for none; sinks [Hq] are logits without a value.
        """


class Forward:
    """One forward pass: what the attention function reads of a step.

    Parameters
    ----------
    inputs : StepInputs
        The step in NumPy arrays.
    tensors : dict of str to Tensor
        The same on the model's device, by the names of the fields; tokens and positions are
        int64[1, T]. Besides `keep` int64[S], the tokens whose logits are wanted.
    n_decode : int
        Rows of one token, which come first.
    pages : KvPages
    attention : Backend
    """

    __slots__ = (
        "attention",
        "calls",
        "inputs",
        "n_decode",
        "n_tokens",
        "pages",
        "shared",
        "tensors",
    )

    def __init__(
        self, inputs: StepInputs, tensors: dict[str, torch.Tensor], n_decode: int, pages: KvPages,
        attention: Backend,
    ) -> None:  # fmt: skip
        self.inputs, self.tensors, self.n_decode = inputs, tensors, n_decode
        self.pages, self.attention = pages, attention
        self.n_tokens = len(inputs.tokens)
        self.calls = [0] * pages.n_layers
        self.shared: Any = None  # what the backend keeps of a step, for all its layers


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    is_causal: bool | None = None,
    output_attentions: bool | None = None,
    llmds_forward: Forward | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one layer; registered under the name `llmds_paged`.

    Raises
    ------
    UnsupportedModelError
        A keyword, a mask or a shape that the engine does not know.
    RuntimeError
        The model was called by someone else while an engine has it.
    """
    forward = llmds_forward if llmds_forward is not None else current_forward()
    if forward is None:
        raise RuntimeError(
            "this model belongs to an open llmds_nb Engine: close() the engine, or leave its "
            "`with` block, before you call the model yourself"
        )
    if attention_mask is not None or dropout or is_causal is False or output_attentions:
        _refuse(attention_mask, dropout, is_causal)
    for name, given in kwargs.items():
        if given is not None and name not in _HARMLESS:
            raise UnsupportedModelError(
                f"{type(module).__name__} passes {name}= to its attention, which the engine does "
                "not know"
            )
    layer = getattr(module, "layer_idx", None)
    if type(layer) is not int or not 0 <= layer < len(forward.calls):
        raise UnsupportedModelError(
            f"{type(module).__name__} has the layer index {layer!r}, of {len(forward.calls)} layers"
        )
    if not query.shape[2] == key.shape[2] == value.shape[2] == forward.n_tokens:
        raise UnsupportedModelError(
            f"{type(module).__name__} attends from {query.shape[2]} to {key.shape[2]} tokens in a "
            f"step of {forward.n_tokens}"
        )
    forward.calls[layer] += 1
    if query.shape[1] % key.shape[1] or query.shape[3] != key.shape[3] or query.shape[0] != 1:
        raise UnsupportedModelError(
            f"{type(module).__name__} has queries {list(query.shape)} to keys {list(key.shape)}"
        )
    pages, window = forward.pages, sliding_window or 0
    k_pages, v_pages = pages.of_layer(layer, key, value, window)
    attention = forward.attention
    attention.write(k_pages, v_pages, key, value, forward)
    scale = float(query.shape[-1] ** -0.5 if scaling is None else scaling)
    return attention.attend(
        forward, layer, query, scale=scale, window=window, softcap=softcap or 0.0, sinks=s_aux
    ), None


def _refuse(mask, dropout, is_causal):
    if mask is not None:
        reason = "makes an attention mask of its own"
    elif dropout:
        reason = f"drops {dropout} of its attention: call model.eval()"
    elif is_causal is False:
        reason = "attends to later tokens (is_causal=False)"
    else:
        reason = "is to return attention weights (output_attentions)"
    raise UnsupportedModelError(f"the model {reason}; the engine does not support that")


def current_forward() -> Forward | None:
    """The forward pass of this thread, None outside of one."""
    return getattr(_current, "forward", None)


AttentionInterface.register(NAME, paged_attention)  # no mask function: transformers makes no mask


def tensors_of(inputs: StepInputs, keep: Any, device: torch.device) -> dict[str, torch.Tensor]:
    """The arrays of a step as tensors on a device, as a `Forward` has them; keep int32[S]."""
    fields = ("tokens", "positions", "slots", "kv_len", "cu_q", "block_table")
    tensors = {name: torch.from_numpy(getattr(inputs, name)).to(device) for name in fields}
    tensors["keep"] = torch.from_numpy(keep).to(device).long()
    for name in ("tokens", "positions"):
        tensors[name] = tensors[name].long()[None]
    return tensors


def run_model(model: Any, forward: Forward) -> torch.Tensor:
    """Compute a step: logits [S, V] of the tokens `keep`. Every layer must have attended once."""
    keep = forward.tensors["keep"]
    logits = logits_of(model, _run(model, forward, logits_to_keep=keep))
    if logits.shape[0] != keep.shape[0]:  # the model knows no logits_to_keep
        logits = logits[keep]
    return logits


def logits_of(model: Any, output: Any) -> torch.Tensor:
    """The logits [T, V] of what a model returned; UnsupportedModelError where it has none."""
    if not hasattr(output, "logits"):
        kind = type(output).__name__
        raise UnsupportedModelError(f"{type(model).__name__} returns a {kind} without logits")
    return output.logits[0]


def run_base(model: Any, forward: Forward) -> torch.Tensor:
    """The last hidden states [T, d] of all tokens of a step, without the model's head."""
    return _run(model.base_model, forward).last_hidden_state[0]


def _run(model, forward, **options):
    tensors = forward.tensors
    _current.forward = forward
    try:
        output = model(
            input_ids=tensors["tokens"], position_ids=tensors["positions"], use_cache=False,
            llmds_forward=forward, **options,
        )  # fmt: skip
    finally:
        _current.forward = None
    calls = forward.calls
    if calls.count(1) != len(calls):
        raise UnsupportedModelError(
            f"{type(model).__name__}: {sum(map(bool, calls))} of {len(calls)} layers attend "
            f"through transformers' AttentionInterface, with {sum(calls)} calls; the engine needs "
            "one call of every layer"
        )
    return output
