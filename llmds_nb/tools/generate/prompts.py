"""The prompts of a run: of the command line, of a file, or of random tokens."""

import json
from typing import Any

import numpy as np

from ..decoding import utf8_lines
from ..errors import BadInput

_TAIL = (8, 64)  # tokens of a request behind the shared prefix, drawn evenly


def prompts_of(given: list[str], path: str | None) -> list[Any]:
    """Texts and lists of chat messages, first those of the command line.

    BadInput if one is empty, or the file cannot be read, is not UTF-8, or has none.
    """
    if not all(given):
        raise BadInput("a prompt is empty")
    return [*given, *_read(path)] if path is not None else [*given]


def _read(path):
    numbered = [(i, line) for i, line in enumerate(utf8_lines(path), 1) if line.strip()]
    if not numbered:
        raise BadInput(f"{path}: no prompt in it")
    if not path.endswith(".jsonl"):
        return [line for _, line in numbered]
    return [_record(line, f"{path}:{i}") for i, line in numbered]


def _record(line, place):
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise BadInput(f"{place}: not JSON") from None
    if isinstance(record, dict):
        text, messages = record.get("prompt"), record.get("messages")
        if isinstance(text, str) and text:
            return text
        if isinstance(messages, list) and messages and all(isinstance(m, dict) for m in messages):
            return messages
    raise BadInput(f'{place}: needs a field "prompt" with text, or "messages" with a list of them')


def as_chat(prompt: Any) -> Any:
    """A text as the only message of a user."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def shown(prompt: Any) -> str:
    """What stands for a prompt before its answer."""
    if isinstance(prompt, str):
        return prompt
    return str(prompt[-1].get("content", "")) if isinstance(prompt[-1], dict) else ""


def workload(n: int, shared: int, vocab_size: int, seed: int) -> list[list[int]]:
    """Prompts of random tokens that all begin with the same `shared` ones."""
    rng = np.random.default_rng(seed)
    prefix = rng.integers(0, vocab_size, shared).tolist()
    lengths = rng.integers(_TAIL[0], _TAIL[1] + 1, n).tolist()
    return [prefix + rng.integers(0, vocab_size, length).tolist() for length in lengths]
