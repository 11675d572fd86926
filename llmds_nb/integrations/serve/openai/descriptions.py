"""What /openapi.json says of the routes: an OpenAPI operation of each."""

from typing import Any

from ..openapi import operation

_TEXT = {"type": "string"}
_WHOLE = {"type": "integer"}
_NUMBER = {"type": "number"}
_FLAG = {"type": "boolean"}
_TEXTS = {"type": "array", "items": _TEXT}
_TOKENS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_OBJECT = {"type": "object"}
_INPUT = {"oneOf": [_TEXT, {**_TEXTS, "minItems": 1}, _TOKENS, {"type": "array", "items": _TOKENS}]}

_SAMPLING: dict[str, Any] = {
    "model": _TEXT,
    "n": {"type": "integer", "minimum": 1, "maximum": 1024, "default": 1},
    "max_tokens": {"type": "integer", "minimum": 0},
    "temperature": {"type": "number", "minimum": 0, "default": 1},
    "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1, "default": 1},
    "top_k": {"type": "integer", "minimum": -1, "default": 0},
    "min_p": {"type": "number", "minimum": 0, "maximum": 1, "default": 0},
    "repetition_penalty": {"type": "number", "exclusiveMinimum": 0, "default": 1},
    "seed": {"type": "integer", "minimum": 0},
    "stop": {"oneOf": [_TEXT, {**_TEXTS, "maxItems": 64}]},
    "stop_token_ids": {"type": "array", "items": {"type": "integer", "minimum": 0}},
    "ignore_eos": _FLAG,
    "stream": _FLAG,
    "stream_options": {"type": "object", "properties": {"include_usage": _FLAG}},
    "cache_salt": {
        "type": "string",
        "minLength": 1,
        "description": "cached prefixes are shared only by requests of the same salt",
    },
    "salt": {"type": "string", "minLength": 1, "description": "another name of cache_salt"},
    "return_token_ids": {"type": "boolean", "description": "each choice has token_ids, too"},
}
_RETRIEVAL = {
    "oneOf": [
        _FLAG,
        {
            "type": "object",
            "properties": {
                "k": {"type": "integer", "minimum": 1, "default": 4},
                "query": _TEXT, "where": _OBJECT, "min_score": _NUMBER, "group_by": _TEXT,
                "diversity": _NUMBER, "fusion": _TEXT, "weight": _NUMBER,
            },
        },
    ],
    "description": "put the documents that a search with the last message of the user finds before "
    "it; the answer names them",
}  # fmt: skip


def _post(summary, required, fields, answer, *, streams):
    body = {"type": "object", "required": required, "properties": fields}
    made = operation(summary, answer, body=body, errors=(404, 429, 504))
    if streams:
        events = {**_TEXT, "description": "with stream=true: events, each a part of the answer"}
        made["responses"]["200"]["content"]["text/event-stream"] = {"schema": events}
    return made


_USAGE = {
    "type": "object",
    "properties": {
        "prompt_tokens": _WHOLE, "completion_tokens": _WHOLE, "total_tokens": _WHOLE,
        "prompt_tokens_details": {"type": "object", "properties": {"cached_tokens": _WHOLE}},
    },
}  # fmt: skip
_ANSWER = {
    "type": "object",
    "required": ["id", "object", "created", "model", "choices", "usage"],
    "properties": {
        "id": _TEXT, "object": _TEXT, "created": _WHOLE, "model": _TEXT,
        "choices": {"type": "array", "items": _OBJECT}, "usage": _USAGE, "retrieval": _OBJECT,
    },
}  # fmt: skip
_LIST = {
    "type": "object",
    "required": ["object", "data"],
    "properties": {"object": _TEXT, "data": {"type": "array", "items": _OBJECT}},
}

COMPLETE = _post(
    "Go on with texts or token ids.",
    ["prompt"],
    {
        **_SAMPLING,
        "prompt": _INPUT,
        "echo": _FLAG,
        "logprobs": {"type": "integer", "minimum": 0, "maximum": 20},
    },
    _ANSWER,
    streams=True,
)
CHAT = _post(
    "Answer messages.",
    ["messages"],
    {
        **_SAMPLING,
        "messages": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["role", "content"],
                "properties": {
                    "role": {"enum": ["system", "developer", "user", "assistant"]},
                    "content": {"oneOf": [_TEXT, {"type": "array", "items": _OBJECT}]},
                },
            },
        },
        "max_completion_tokens": {"type": "integer", "minimum": 1},
        "logprobs": _FLAG,
        "top_logprobs": {"type": "integer", "minimum": 0, "maximum": 20},
        "chat_template_kwargs": _OBJECT,
        "retrieval": _RETRIEVAL,
    },
    _ANSWER,
    streams=True,
)
EMBED = _post(
    "Vectors of texts.",
    ["input"],
    {
        "model": _TEXT,
        "input": _INPUT,
        "encoding_format": {"enum": ["float", "base64"], "default": "float"},
        "dimensions": {"type": "integer", "description": "no other than the model's own"},
    },
    _LIST,
    streams=False,
)
MODELS = operation("The models: one.", _LIST)
MODEL = operation(
    "A model by its name.",
    _OBJECT,
    errors=(404,),
    parameters=[{"name": "model", "in": "path", "required": True, "schema": _TEXT}],
)
