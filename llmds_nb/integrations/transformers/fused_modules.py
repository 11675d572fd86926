"""Parts of a model that are computed in fewer and faster calls on a CPU, in float32.

A `Fused` takes the place of a module's forward: `fusing` finds out which may. Where parts of the
module are replaced or get hooks later, it leaves the work to the module; where weights change, also
in place, it reads them again. A copy of the model, or a pickle, has none.
"""

from collections.abc import Callable
from itertools import chain
from operator import attrgetter, methodcaller
from typing import Any

import torch
from torch.nn.modules import module as torch_modules

from llmds_nb.attention import rms_norm_unchecked, silu_product_unchecked

from .interface import Forward, current_forward
from .packed_linear import PackedLinear

LAYER_PARTS = "input_layernorm", "self_attn", "post_attention_layernorm", "mlp"
_TOLERANCE = 1e-4  # of the root mean square of a result
_SCALES = 1.0, 1e-3, 30.0  # of inputs
# Hooks on all modules there are.
EVERYWHERE = torch_modules._global_forward_hooks, torch_modules._global_forward_pre_hooks
_version, _has_forward = attrgetter("_version"), methodcaller("__contains__", "forward")


def eps_of(module: Any) -> float | None:
    """What a root mean square norm adds to the mean, None where it does not tell."""
    found = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return found if isinstance(found, float) else None


class Fused:
    """What takes the place of a module's forward.

    Parameters
    ----------
    module : torch.nn.Module
    parts : dict of str to torch.nn.Module
        The submodules whose work it does.
    """

    def __init__(self, module: Any, parts: dict[str, Any]) -> None:
        self.module, self.parts = module, parts
        self.own: Callable[..., Any] = module.forward
        self._read()

    def _read(self):
        """Read the weights, and note what must stay for them to hold."""
        parts = self.parts.values()
        self._children = list(self.module._modules.values())
        self._listeners = [x for p in parts for x in (p._forward_hooks, p._forward_pre_hooks)]
        self._listeners += EVERYWHERE
        self._attributes = [part.__dict__ for part in parts]
        self._owners = [owner._parameters for owner in (self.module, *parts)]
        weights = list(chain.from_iterable(map(dict.values, self._owners)))
        self._ids = list(map(id, weights))
        self._weights = [w for w in weights if w is not None and not w.is_inference()]
        self._versions = list(map(_version, self._weights))
        self._build()

    def _build(self):
        """Make what `compute` uses."""
        raise NotImplementedError

    def forget(self) -> None:
        """Read the weights again before the next call; torch does not count every change."""
        self._ids = []

    def compute(self, *args: Any, **kwargs: Any) -> Any:
        """The result, or None where this is no input for it."""
        raise NotImplementedError

    def is_ready(self) -> bool:
        """Whether it may compute; weights that have changed are read again. 1 us."""
        if any(self._listeners) or list(self.module._modules.values()) != self._children:
            return False
        if any(map(_has_forward, self._attributes)):
            return False
        ids = list(map(id, chain.from_iterable(map(dict.values, self._owners))))
        if ids != self._ids or list(map(_version, self._weights)) != self._versions:
            if not are_readable(self.module, *self.parts.values()):
                return False
            self._read()
        return True

    def __reduce__(self):
        """In a copy of the module: the method of its class."""
        return getattr, (self.module, "forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward."""
        result = self.compute(*args, **kwargs) if self.is_ready() else None
        return self.own(*args, **kwargs) if result is None else self._returned(result, kwargs)

    def _returned(self, result, kwargs):
        """What the module returns for a result."""
        return result

    def agrees(self, args: tuple, kwargs: dict[str, Any], returned: Any) -> bool:
        """Whether it gives what the module returned, also for larger and smaller inputs."""
        for scale in _SCALES:
            x = args[0] if scale == 1 else args[0] * scale
            wanted = returned if scale == 1 else self.own(x, *args[1:], **kwargs)
            if not _close(self.compute(x, *args[1:], **kwargs), wanted):
                return False
        return True


def are_readable(*modules: Any) -> bool:
    """Whether all of their own weights are plain arrays of float32."""
    return all(
        type(weight) in (torch.Tensor, torch.nn.Parameter)  # others may hold what they stand for
        and weight.layout == torch.strided
        and weight.dtype == torch.float32
        for module in modules
        for weight in module.parameters(recurse=False)
    )


def _close(found, wanted):
    if found is None or found.shape != wanted.shape or found.dtype != wanted.dtype:
        return False
    size = wanted.square().mean().sqrt()
    return bool(((found - wanted).abs().max() <= _TOLERANCE * size + 1e-12).item())


def _is_float32(x):
    return (
        x.dtype == torch.float32 and x.is_contiguous() and x.numel() > 0 and not x.requires_grad
    )  # fmt: skip


class FusedNorm(Fused):
    """A root mean square norm, weights w or, in Gemma, 1 + w."""

    def __init__(self, module: Any, plus_one: bool) -> None:
        self._plus_one = plus_one
        super().__init__(module, {})

    def _build(self):
        self._eps, weight = eps_of(self.module), self.module.weight.detach()
        self._weight = (weight + 1 if self._plus_one else weight).contiguous().numpy()

    def compute(self, x: torch.Tensor) -> torch.Tensor | None:
        """Of [..., n]."""
        if not _is_float32(x):
            return None
        rows = x.view(-1, x.shape[-1]).numpy()
        found = rms_norm_unchecked(rows, self._weight, self._eps)
        return torch.from_numpy(found).view(x.shape)


class FusedMlp(Fused):
    """A feed-forward part: ``down(silu(gate(x)) * up(x))``."""

    def _build(self):
        parts = self.parts
        self._gate_up = PackedLinear([parts["gate_proj"], parts["up_proj"]])
        self._down = PackedLinear([parts["down_proj"]])

    def compute(self, x: torch.Tensor) -> torch.Tensor | None:
        """Of [..., d]."""
        if not _is_float32(x):
            return None
        both = self._gate_up(x.view(-1, x.shape[-1]))
        inner = torch.from_numpy(silu_product_unchecked(both.numpy()))
        return self._down(inner).view(x.shape)


class FusedLinear(Fused):
    """A linear layer."""

    def _build(self):
        self._packed = PackedLinear([self.module])

    def compute(self, x: torch.Tensor) -> torch.Tensor | None:
        """Of [..., d]."""
        if not _is_float32(x):
            return None
        return self._packed(x.view(-1, x.shape[-1])).view(*x.shape[:-1], -1)


class FusedAttention(Fused):
    """Attention over pages with its linear layers and rotary embedding."""

    terms: dict[str, Any] | None = None  # of the module's own call of the attention function

    def __init__(self, module: Any, parts: dict[str, Any]) -> None:
        self._settings = _settings(module)
        super().__init__(module, parts)

    def _build(self):
        parts = self.parts
        self._qkv = PackedLinear([parts["q_proj"], parts["k_proj"], parts["v_proj"]])
        self._out = PackedLinear([parts["o_proj"]])
        self._norms, self._eps = [None] * 2, 0.0
        for place, name in enumerate(("q_norm", "k_norm")):
            if name in parts:
                self._norms[place] = parts[name].weight.detach().contiguous().numpy()
                self._eps = eps_of(parts[name])

    def compute(
        self, hidden_states: torch.Tensor, position_embeddings: Any = None,
        attention_mask: Any = None, **kwargs: Any,
    ) -> torch.Tensor | None:  # fmt: skip
        """Of [1, T, d]; the keys and values are in their pages then."""
        forward: Forward | None = kwargs.get("llmds_forward") or current_forward()
        if forward is None or self.terms is None or position_embeddings is None:
            return None
        if _settings(self.module) != self._settings:
            return None
        if attention_mask is not None or not _is_float32(hidden_states):
            return None
        layer, pages = self.module.layer_idx, forward.pages
        shape, width = pages.shapes[layer], self.module.head_dim
        cos, sin = position_embeddings
        n_heads = self.parts["q_proj"].out_features // width
        for table in (cos, sin):
            if table.shape != (1, forward.n_tokens, width) or not _is_float32(table):
                return None
        if shape is None or hidden_states.shape[:2] != (1, forward.n_tokens):
            return None
        if self.parts["k_proj"].out_features != shape.n_heads * width != 0:
            return None
        if shape.key_width != width or not hasattr(forward.attention, "rotate_write"):
            return None
        qkv = self._qkv(hidden_states[0])
        rotation = cos[0].numpy(), sin[0].numpy(), *self._norms, self._eps
        query = forward.attention.rotate_write(forward, layer, qkv, rotation, n_heads)
        found = forward.attention.attend(forward, layer, query, **self.terms)
        return self._out(found.view(forward.n_tokens, -1))[None]

    def _returned(self, result, kwargs):
        forward = kwargs.get("llmds_forward") or current_forward()
        forward.calls[self.module.layer_idx] += 1
        return result, None

    def agrees(self, args: tuple, kwargs: dict[str, Any], returned: Any) -> bool:
        """Whether it gives what the module returned."""
        found = self.compute(*args, **kwargs)
        return returned[1:] == (None,) and _close(found, returned[0])


def _settings(module):
    """What the terms of an attention module are made of."""
    return module.__dict__.get("scaling"), module.__dict__.get("sliding_window")


class FusedLayer(Fused):
    """A layer: attention and a feed-forward part, each behind a norm, added to their inputs."""

    def __init__(self, module: Any, parts: dict[str, Any], fused: dict[str, Fused]) -> None:
        self._fused = [fused[name] for name in LAYER_PARTS]
        super().__init__(module, parts)

    def _build(self):
        self._attributes = []  # the forward of each part is that of a Fused

    def is_ready(self) -> bool:
        """Whether it and all of its parts are."""
        for each in self._fused:
            if not each.is_ready() or each.module.__dict__.get("forward") is not each:
                return False
        return super().is_ready()

    def compute(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Of [1, T, d]."""
        before, attention, between, mlp = self._fused
        if args or not _is_float32(x):
            return None
        found = attention.compute(before.compute(x), **kwargs)
        if found is None:
            return None
        found += x
        added = mlp.compute(between.compute(found))
        added += found
        return added

    def _returned(self, result, kwargs):
        self._fused[1]._returned(result, kwargs)
        return result

    def agrees(self, args: tuple, kwargs: dict[str, Any], returned: Any) -> bool:
        """Whether it gives what the module returned."""
        return isinstance(returned, torch.Tensor) and _close(
            self.compute(*args, **kwargs), returned
        )
