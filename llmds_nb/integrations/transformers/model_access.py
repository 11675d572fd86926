"""A model in the hands of engines: what is demanded of it, and its attention setting."""

import weakref
from typing import Any

import torch
from transformers import PreTrainedModel

from llmds_nb._core.forking import new_lock
from llmds_nb._core.signals import uninterrupted

from .interface import NAME, UnsupportedModelError

_lock = new_lock()  # reentrant: within it an engine may be collected, which releases a model
# The models that engines have, with their own settings of attention and how many engines those are.
_held: "weakref.WeakKeyDictionary[Any, _Held]" = weakref.WeakKeyDictionary()


class _Held:
    def __init__(self, model):
        configs = [model.config, model.config.get_text_config()]
        configs += [m.config for m in model.modules() if isinstance(m, PreTrainedModel)]
        own = {id(c): (c, c._attn_implementation_internal) for c in configs}
        self.settings, self.n_engines = list(own.values()), 0
        self.fused: list[Any] = []

    def restore(self):
        for fused in self.fused:
            fused.module.__dict__.pop("forward", None)
        for config, own in self.settings:
            config._attn_implementation_internal = own


def check_model(model: Any, device: Any) -> torch.device:
    """Refuse a model that no engine can run; return its device.

    Raises
    ------
    TypeError
        It is no model of transformers.
    ValueError
        It is on another device than `device`, on several, or on none (meta), or in training mode.
    UnsupportedModelError
        It does not generate text from left to right by attention.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model must be a PreTrainedModel, not {type(model).__name__}")
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise UnsupportedModelError(
            f"{name} is an encoder-decoder model; the engine runs decoder-only models"
        )
    if model.get_output_embeddings() is None or not model.can_generate():
        raise UnsupportedModelError(
            f"{name} gives no logits of a next token: load it by AutoModelForCausalLM"
        )
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    if any(each.type == "meta" for each in devices):
        raise ValueError(f"{name} has weights on the device meta: load them first")
    if len(devices) != 1:
        named = ", ".join(sorted(map(str, devices)))
        raise ValueError(f"{name} must be on one device, not on {named}")
    (found,) = devices
    if device is not None:
        wanted = torch.device(device)
        if wanted.type != found.type or wanted.index not in (None, found.index):
            raise ValueError(f"device is {wanted}, but {name} is on {found}: model.to({device!r})")
    if model.training:
        raise ValueError(f"{name} is in training mode: call model.eval()")
    if not model._can_set_attn_implementation():
        raise UnsupportedModelError(
            f"{name} computes its attention itself, not through transformers' AttentionInterface"
        )
    return found


def check_state(model: Any, device: torch.device) -> None:
    """Refuse a state in which the model would compute other tokens than in earlier steps.

    Raises
    ------
    RuntimeError
        torch.autocast is on, in which K/V would differ from that of pages which were computed
        without it, or by another thread; or the model is in training mode. Nothing was changed.
    """
    name = type(model).__name__
    if torch.is_autocast_enabled(device.type):
        raise RuntimeError(
            f"torch.autocast({device.type!r}) is on, but an Engine computes in the dtype of its "
            f"model: leave autocast, and load {name} in the dtype that you want"
        )
    if model.training:
        raise RuntimeError(f"{name} is in training mode: call model.eval()")


def is_held(model: Any) -> bool:
    """Whether an engine has the model already."""
    return model in _held


class Hold:
    """An engine's hold of a model, which attends through the engine meanwhile.

    Parameters
    ----------
    model : PreTrainedModel
        It has its own setting again when no engine holds it.
    """

    def __init__(self, model: Any) -> None:
        self.model, self._taken = model, False

    def take(self) -> None:
        """Let the model attend through the engine.

        Raises
        ------
        UnsupportedModelError
            It does not take another attention function.
        """
        uninterrupted(self._take)

    def _take(self):
        model = self.model
        with _lock:
            held = _held.get(model) or _Held(model)
            held.n_engines += 1
            if held.n_engines == 1:
                try:
                    model.set_attn_implementation(NAME)
                except BaseException as error:
                    held.restore()
                    if isinstance(error, ValueError | ImportError):
                        name = type(model).__name__
                        text = f"{name} does not take another attention function: {error}"
                        raise UnsupportedModelError(text) from error
                    raise
                _held[model] = held
            self._taken = True

    def put_in_place(self, fused: Any) -> None:
        """Let a `Fused` compute for its module as long as an engine holds the model."""

        def put():
            _held[self.model].fused.append(fused)
            fused.module.forward = fused

        with _lock:
            uninterrupted(put)

    def read_weights(self) -> None:
        """Let each `Fused` read the weights again before it computes."""
        with _lock:
            for fused in _held[self.model].fused:
                fused.forget()

    def release(self) -> None:
        """End it, if it was taken; again: nothing."""
        uninterrupted(self._give)

    def _give(self):
        with _lock:
            if self._taken:
                self._taken = False
                held = _held[self.model]
                held.n_engines -= 1
                if not held.n_engines:
                    held.restore()
                    del _held[self.model]


def longest(config: Any) -> int | None:
    """The most tokens that a sequence of the model may have, None for no limit.

    Beyond a chunk, layers of chunked attention rely on a mask, of which the engine has none. Beyond
    its first context a rotary embedding that depends on the longest sequence of a batch
    ("longrope", "dynamic") would depend on other requests.
    """
    limits = [getattr(config, "max_position_embeddings", None)]
    if "chunked_attention" in (getattr(config, "layer_types", None) or ()):
        limits.append(getattr(config, "attention_chunk_size", None))
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    for own in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if own.get("rope_type") in ("longrope", "dynamic"):
            limits.append(own.get("original_max_position_embeddings"))
    return min((limit for limit in limits if isinstance(limit, int) and limit > 0), default=None)
