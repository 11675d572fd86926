"""/v1/embeddings: vectors of texts by the engine's model, between the steps of requests."""

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np

from llmds_nb._core.typing import Float32s, Int32s
from llmds_nb._core.validation import shown

from ..errors import Problem
from . import fields as f
from .completions import tokens_of
from .steps import Steps

MAX_INPUTS = 2048


def read(body: Any, engine: Any, model: str) -> tuple[Any, bool]:
    """The inputs of a body as it has them, and whether vectors are wanted in base64.

    Problem: another field of the body is wrong.
    """
    fields = f.fields_of(body, f.EMBEDDING)
    f.check_model(fields, model)
    form = fields.get("encoding_format", "float")
    if form not in ("float", "base64"):
        text = f"encoding_format must be float or base64, not {shown(form)}"
        raise Problem(400, text, "encoding_format")
    d = engine.model.config.get_text_config().hidden_size
    if f.integer_of(fields, "dimensions", d, 1, 2**31 - 1) != d:
        text = f"dimensions must be {d}, the model's own, not {shown(fields['dimensions'])}"
        raise Problem(400, text, "dimensions")
    if "input" not in fields:
        raise Problem(400, "input is missing", "input")
    return fields["input"], form == "base64"


def tokenised(given: Any, engine: Any) -> list[Int32s]:
    """Inputs as token ids. Not for an event loop. Problem: one is wrong, or too long."""
    tokens = tokens_of(f.prompts_of(given, "input", MAX_INPUTS), engine, "input")
    longest = engine.cache.n_pages * engine.cache.page_size
    if engine.max_len is not None:
        longest = min(longest, engine.max_len)
    for i, own in enumerate(tokens):
        if len(own) > longest:
            text = f"input[{i}] has {len(own)} tokens; there is room for {longest}"
            raise Problem(400, text, "input")
    return tokens


async def vectors_of(steps: Steps, tokens: list[Int32s]) -> Float32s:
    """Vectors float32[n, d] of length 1, the means of the last hidden states.

    In parts of at most a step's tokens, so that requests go on between them.
    """
    parts = [
        await steps.in_worker(_encoded, steps.engine, tokens[part])
        for part in _parts(tokens, steps.engine.batcher.max_step_tokens)
    ]
    return np.concatenate(parts)


def _encoded(engine, tokens):
    return engine.encode(tokens, normalize=True)


def _parts(tokens, most) -> Iterator[slice]:
    start = total = 0
    for i, own in enumerate(tokens):
        if i > start and total + len(own) > most:
            yield slice(start, i)
            start, total = i, 0
        total += len(own)
    yield slice(start, len(tokens))


def answer(vectors: Float32s, model: str, n_tokens: int, *, encoded: bool) -> dict[str, Any]:
    """Vectors as the API returns them. O(n d)."""
    return {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": i,
                "embedding": _base64(vector) if encoded else vector.tolist(),
            }
            for i, vector in enumerate(vectors)
        ],
        "model": model,
        "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
    }


def _base64(vector):
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
