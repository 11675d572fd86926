"""Finds the modules of a model whose work a `Fused` may do, and tries each before it does.

Most families are built of the same parts: a root mean square norm, a gated feed-forward part, an
attention that rotates queries and keys, linear layers. A module is tried where it has the parts of
one of these and its code mentions nothing else: so a scale that depends on the position, say, which
shows only in long texts, is not overlooked. It is left as it is unless the result is the same on
the inputs that a few steps of the model give it.
"""

from collections.abc import Callable, Iterator
from functools import partial
from types import CodeType, FunctionType
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from llmds_nb._core.signals import uninterrupted
from llmds_nb.attention import takes_width

from .fused_modules import (
    EVERYWHERE,
    LAYER_PARTS,
    Fused,
    FusedAttention,
    FusedLayer,
    FusedLinear,
    FusedMlp,
    FusedNorm,
    are_readable,
    eps_of,
)
from .interface import Forward
from .packed_linear import packed_bytes

_PROJECTIONS, _NORMS = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"q_norm", "k_norm"}
_NORM_NAMES = {
    "dtype", "eps", "float", "float32", "mean", "pow", "rsqrt", "to", "torch", "type_as",
    "variance_epsilon", "weight", "_norm", "square",
}  # fmt: skip
_MLP_NAMES = {"act_fn", "down_proj", "gate_proj", "up_proj"}
_ATTENTION_NAMES = {
    "ALL_ATTENTION_FUNCTIONS", "_attn_implementation", "apply_rotary_pos_emb", "attention_dropout",
    "config", "contiguous", "eager_attention_forward", "get_interface", "getattr", "head_dim",
    "k_norm", "k_proj", "layer_idx", "o_proj", "q_norm", "q_proj", "reshape", "scaling", "shape",
    "sliding_window", "training", "transpose", "update", "v_proj", "view",
}  # fmt: skip


_CALLS = torch.nn.Module.__call__, GradientCheckpointingLayer.__call__


def _code(function):
    """The names that a function mentions, without those of transformers' own decorators."""
    while (
        isinstance(function, FunctionType)
        and hasattr(function, "__wrapped__")
        and function.__globals__.get("__name__", "").startswith("transformers.")
    ):
        function = function.__wrapped__
    if not isinstance(function, FunctionType):
        return {"<no function of Python>"}
    names, codes = set(), [function.__code__]
    for code in codes:
        names.update(code.co_names, code.co_freevars)
        codes += [each for each in code.co_consts if isinstance(each, CodeType)]
    return names


def _names(module):
    return _code(type(module).forward)


def _is_plain(module):
    """Whether a module's forward is its class's, and nobody listens to it."""
    return not (
        "forward" in module.__dict__
        or type(module).__call__ not in _CALLS
        or any((module._forward_hooks, module._forward_pre_hooks, *EVERYWHERE))
        or not are_readable(module)
    )


def _compiled(model):
    """The modules that torch.compile has taken, and all within them."""
    roots = [
        module
        for module in model.modules()
        if module._compiled_call_impl is not None or "_orig_mod" in module._modules
    ]
    return {module for root in roots for module in root.modules()}


def _is_linear(module):
    return type(module) is torch.nn.Linear and _is_plain(module)


def _is_norm(module, width):
    """Whether it may be a root mean square norm of rows of `width` numbers."""
    names = _names(module) | (_code(type(module)._norm) if hasattr(module, "_norm") else set())
    shapes = [None if w is None else w.shape for w in module._parameters.values()]
    return names <= _NORM_NAMES and bool(eps_of(module)) and shapes == [(width,)]


class Recorder:
    """A backend that notes on which terms each layer attends.

    Parameters
    ----------
    backend : Backend
    """

    def __init__(self, backend: Any) -> None:
        self.terms: dict[int, dict[str, Any]] = {}
        self.write, self.rotate_write = backend.write, backend.rotate_write
        self.new_pages, self.copy_pages = backend.new_pages, backend.copy_pages
        self._attend = backend.attend

    def attend(self, forward: Forward, layer: int, query: torch.Tensor, **terms: Any) -> Any:
        """As the backend's."""
        self.terms[layer] = terms
        return self._attend(forward, layer, query, **terms)


def install(
    model: Any, backend: Any, probe: Callable[[Any], Any], most_bytes: int
) -> Iterator[Fused]:
    """Make what the parts of a model allow, and yield each that may take its module's place.

    Parameters
    ----------
    model : PreTrainedModel
        Which attends through `interface.paged_attention`.
    backend : CpuAttention
    probe : callable
        ``probe(backend)`` computes some steps of the model.
    most_bytes : int
        That packed weights may take; what is beyond stays as it is.

    Notes
    -----
    The caller puts each in its place before it takes the next: parts of those that are in place
    are not tried again.
    """
    done: dict[Any, Fused] = {}
    parts: set[Any] = _compiled(model)
    for make in (_composites, _norms, _layers, _linears):  # norms of heads belong to attention
        recorder = Recorder(backend)
        tried = []
        for module in model.modules():
            if module in parts or not _is_plain(module):
                continue
            for fused, n_bytes in make(module, done):
                if n_bytes <= most_bytes:
                    tried.append(fused())
                    most_bytes -= n_bytes
        for fused in _agreeing(tried, recorder, probe):
            done[fused.module] = fused
            parts |= {fused.module, *fused.parts.values()}
            yield fused


def _agreeing(tried, recorder, probe):
    """Those that gave, in each call of a probe, what their modules gave."""
    results: dict[int, bool] = {}

    def listener(i, fused):
        def compare(module, args, kwargs, returned):
            if isinstance(fused, FusedAttention):
                fused.terms = recorder.terms.get(module.layer_idx)
            if not args:
                first = next(iter(kwargs))
                args, kwargs = (kwargs[first],), {k: v for k, v in kwargs.items() if k != first}
            results[i] = results.get(i, True) and fused.agrees(args, kwargs, returned)

        return fused.module.register_forward_hook(compare, with_kwargs=True)

    handles: list[Any] = []

    def listen():
        handles.extend(listener(i, fused) for i, fused in enumerate(tried))

    def leave():
        for handle in handles:
            handle.remove()

    try:
        uninterrupted(listen)
        probe(recorder)
    finally:
        uninterrupted(leave)
    taken = set()
    for i, fused in enumerate(tried):
        if results.get(i, False) and fused.module not in taken:
            taken.add(fused.module)
            yield fused


def _norms(module, done):
    """A norm: (function that makes it, bytes) of each that it may be."""
    weight = module._parameters.get("weight")
    if weight is None or not takes_width(weight.numel()) or not _is_norm(module, weight.numel()):
        return
    for plus_one in (False, True):
        yield partial(FusedNorm, module, plus_one), 0


def _linears(module, done):
    if _is_linear(module):
        yield partial(FusedLinear, module, {}), packed_bytes([module])


def _composites(module, done):
    names, parts = _names(module), dict(module._modules)
    if names == _MLP_NAMES:
        act = type(parts.pop("act_fn", None)).__name__
        linears = list(parts.values())
        is_silu = act in ("SiLU", "SiLUActivation") and all(map(_is_linear, linears))
        if is_silu and takes_width(parts["down_proj"].in_features):
            yield partial(FusedMlp, module, parts), packed_bytes(linears)
    elif names <= _ATTENTION_NAMES and _PROJECTIONS <= set(parts) <= _PROJECTIONS | _NORMS:
        linears = [parts[name] for name in sorted(_PROJECTIONS)]
        norms = [part for name, part in parts.items() if name in _NORMS]
        width = getattr(module, "head_dim", None)
        if (
            isinstance(width, int) and width % 2 == 0
            and all(map(_is_linear, linears))
            and all(_is_plain(norm) and _is_norm(norm, width) for norm in norms)
        ):  # fmt: skip
            yield partial(FusedAttention, module, parts), packed_bytes(linears)


def _layers(module, done):
    parts = dict(module._modules)
    if _names(module) == set(parts) == set(LAYER_PARTS) and set(parts.values()) <= set(done):
        fused = {name: done[part] for name, part in parts.items()}
        kinds = [type(fused[name]) for name in LAYER_PARTS]
        if kinds == [FusedNorm, FusedAttention, FusedNorm, FusedMlp]:
            yield partial(FusedLayer, module, parts, fused), 0
