"""Prompts as token ids: from ids, text, or chat messages."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmds_nb._core import validation
from llmds_nb._core.typing import Int32s


def prompt_ids(prompt: Any, tokenizer: Any, vocab_size: int, name: str = "prompt") -> Int32s:
    """A prompt as int32[n], at least one.

    Parameters
    ----------
    prompt : sequence of int, str, or list of dict
        Token ids; text; or chat messages, for the tokenizer's chat template.

    Raises
    ------
    TypeError, ValueError
        It is none of these, is empty, there is no tokenizer, or an id is not in [0, vocab_size).
    """
    if isinstance(prompt, str):
        prompt = _needed(tokenizer, "text", name, "__call__")(prompt)["input_ids"]
    elif isinstance(prompt, list | tuple) and prompt and isinstance(prompt[0], Mapping):
        apply = _needed(tokenizer, "chat messages", name, "apply_chat_template")
        prompt = apply(
            list(prompt), add_generation_prompt=True, tokenize=True, return_dict=True
        )["input_ids"]  # fmt: skip
    elif hasattr(prompt, "detach"):  # a tensor
        prompt = prompt.detach().cpu().numpy()
    scalar = not hasattr(prompt, "__len__") or np.ndim(prompt) == 0
    if scalar or isinstance(prompt, Mapping | set | frozenset | bytes):
        raise TypeError(f"{name} must be token ids, text or messages, not {type(prompt).__name__}")
    tokens = np.array(validation.token_ids(prompt, name))
    if not tokens.size:
        raise ValueError(f"{name} must hold at least one token")
    if tokens.max() >= vocab_size:
        raise ValueError(
            f"{name} has the token {tokens.max()}; the model's vocabulary has {vocab_size}"
        )
    return tokens


def prompt_list(prompts: Any) -> list[Any]:
    """Prompts of a batch as a list; TypeError where it is one prompt only."""
    if isinstance(prompts, str | bytes | Mapping) or not hasattr(prompts, "__iter__"):
        kind = type(prompts).__name__
        raise TypeError(f"prompts must be a list of prompts, not one {kind}")
    found = list(prompts)
    if found and (isinstance(found[0], int | Mapping) or getattr(found[0], "ndim", None) == 0):
        kind = "one chat" if isinstance(found[0], Mapping) else "token ids of one prompt"
        raise TypeError(f"prompts must be a list of prompts, not {kind}: put it in a list")
    return found


def _needed(tokenizer, kind, name, method):
    """A method of the tokenizer."""
    if tokenizer is None:
        raise ValueError(f"{name} is {kind}, for which the Engine needs a tokenizer")
    found = getattr(tokenizer, method, None)
    if found is None:
        own = type(tokenizer).__name__
        remedy = "give a tokenizer of transformers, such as"
        remedy += " PreTrainedTokenizerFast(tokenizer_object=...), or token ids"
        raise TypeError(f"{name} is {kind}, but the Engine's {own} has no {method}: {remedy}")
    return found
