"""The fields of a request's body: which there are, what they mean, and which are refused.

A field that would change the answer, and that the engine does not have, is refused unless it has a
value that changes nothing; so is a field that nobody knows. What only describes the request to a
provider (`user`, `metadata`, ...) is not read.
"""

import re
from collections.abc import Collection
from typing import Any, NamedTuple

from llmds_nb._core import validation
from llmds_nb._core.validation import shown
from llmds_nb.integrations.transformers import SamplingParams

from ..errors import Problem

MAX_CHOICES = 1024  # of one call: prompts times n
MAX_STOP = 64  # stop strings
MAX_LOGPROBS = 20  # most probable tokens reported at each token

_SHARED = {
    "model", "n", "stop", "seed", "temperature", "top_p", "max_tokens", "stream", "stream_options",
    "logprobs", "top_k", "min_p", "repetition_penalty", "cache_salt", "salt", "ignore_eos",
    "stop_token_ids", "return_token_ids",
}  # fmt: skip
COMPLETION = _SHARED | {"prompt", "echo", "best_of"}
CHAT = _SHARED | {
    "messages", "max_completion_tokens", "top_logprobs", "chat_template_kwargs", "retrieval",
}  # fmt: skip
EMBEDDING = {"model", "input", "encoding_format", "dimensions"}

_NOT_READ = {
    "user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "prompt_cache_options", "parallel_tool_calls",
}  # fmt: skip
# Fields that the engine does not have, and the values of them that change nothing, besides null.
_UNCHANGED: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,), "frequency_penalty": (0,), "logit_bias": ({},), "suffix": ("",),
    "tools": ([],), "functions": ([],), "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"), "response_format": ({"type": "text"},),
    "modalities": (["text"],), "store": (False,), "service_tier": ("auto", "default"),
    "min_tokens": (0,), "length_penalty": (1,), "use_beam_search": (False,), "bad_words": ([],),
    "skip_special_tokens": (True,), "spaces_between_special_tokens": (True,),
    "include_stop_str_in_output": (False,), "add_special_tokens": (True,),
    "add_generation_prompt": (True,), "continue_final_message": (False,), "priority": (0,),
    "audio": (), "prediction": (), "web_search_options": (), "moderation": (),
    "reasoning_effort": (), "verbosity": (), "prompt_logprobs": (), "truncate_prompt_tokens": (),
    "allowed_token_ids": (), "structured_outputs": (), "guided_json": (), "guided_regex": (),
    "guided_choice": (), "guided_grammar": (), "logits_processors": (),
}  # fmt: skip


def fields_of(body: Any, known: set[str]) -> dict[str, Any]:
    """The fields of a body that say anything: not those that are null or change nothing.

    Problem: the body is no object, or has a field that is not `known`.
    """
    if not isinstance(body, dict):
        raise Problem(400, f"the body must be a JSON object, not {shown(body)}")
    found = {}
    for name, value in body.items():
        if value is None or name in _NOT_READ:
            continue
        if name in known:
            found[name] = value
        elif name not in _UNCHANGED:
            listed = ", ".join(sorted(known))
            raise Problem(400, f"there is no field {shown(name)}; there are {listed}", name[:60])
        elif value not in _UNCHANGED[name]:
            text = f"{name}={shown(value)} is not supported"
            if _UNCHANGED[name]:
                text += f": leave it out, or give {shown(_UNCHANGED[name][0])}"
            if name in ("presence_penalty", "frequency_penalty"):
                text += "; the engine has repetition_penalty"
            raise Problem(400, text, name)
    return found


class Options(NamedTuple):
    """How a call generates, whatever its prompts are."""

    params: SamplingParams  # of each of its requests, but for max_new_tokens
    max_tokens: int | None  # None: as many as fit
    n: int  # choices for each prompt
    salt: str
    stream: bool
    include_usage: bool  # a last chunk with the usage
    token_ids: bool  # whether to report them beside the text


def options_of(fields: dict[str, Any], *, chat: bool) -> Options:
    """The options among the fields of a completion or of a chat.

    Problem: a value of another type or out of its range.
    """
    n = integer_of(fields, "n", 1, 1, MAX_CHOICES)
    best_of = integer_of(fields, "best_of", n, 1, MAX_CHOICES)
    if best_of != n:
        raise Problem(400, f"best_of must be n, which is {n}, not {best_of}", "best_of")
    stop = fields.get("stop", ())
    if not isinstance(stop, str | list | tuple):
        raise Problem(400, f"stop must be a string or a list of strings, not {shown(stop)}", "stop")
    if not isinstance(stop, str) and len(stop) > MAX_STOP:
        raise Problem(400, f"stop must have at most {MAX_STOP} strings, not {len(stop)}", "stop")
    top_k = fields.get("top_k", 0)
    named: dict[str, Any] = {
        "temperature": fields.get("temperature", 1.0),
        "top_k": 0 if top_k == -1 else top_k,  # vLLM's name for all tokens
        "stop": stop,
        "logprobs": _chat_logprobs(fields) if chat else _completion_logprobs(fields),
        **{
            name: fields[name]
            for name in ("seed", "top_p", "min_p", "repetition_penalty", "ignore_eos")
            if name in fields
        },
        "stop_token_ids": fields.get("stop_token_ids", ()),
    }
    try:
        params = SamplingParams(**named)
    except (ValueError, TypeError) as error:
        raise Problem(400, str(error), named_by(str(error), named)) from error
    stream = flag_of(fields, "stream")
    return Options(
        params, _max_tokens(fields, chat), n, _salt(fields), stream,
        _include_usage(fields, stream), flag_of(fields, "return_token_ids"),
    )  # fmt: skip


def named_by(message: str, names: Collection[str]) -> str | None:
    """The field that a message begins with, if it is one of `names`."""
    first = re.match(r"\w*", message)
    return first[0] if first and first[0] in names else None


def _max_tokens(fields, chat):
    found = {
        name: integer_of(fields, name, None, 1 if chat else 0, validation.INT32_MAX)
        for name in ("max_completion_tokens", "max_tokens")
        if name in fields
    }
    if len(set(found.values())) > 1:
        listed = " and ".join(f"{name}={value}" for name, value in found.items())
        raise Problem(400, f"{listed} mean the same: give one of them", "max_tokens")
    return next(iter(found.values()), None if chat else 16)


def _completion_logprobs(fields):
    return integer_of(fields, "logprobs", None, 0, MAX_LOGPROBS)


def _chat_logprobs(fields):
    top = integer_of(fields, "top_logprobs", 0, 0, MAX_LOGPROBS)
    if flag_of(fields, "logprobs"):
        return top
    if "top_logprobs" in fields and top:
        raise Problem(400, "top_logprobs needs logprobs=true", "top_logprobs")
    return None


def _salt(fields):
    found = {name: fields[name] for name in ("cache_salt", "salt") if name in fields}
    for name, value in found.items():
        if not isinstance(value, str) or not value:
            raise Problem(
                400, f"{name} must be a string that is not empty, not {shown(value)}", name
            )
    if len(set(found.values())) > 1:
        raise Problem(400, "cache_salt and salt mean the same: give one of them", "salt")
    return text_of(next(iter(found.values()), ""), "cache_salt")


def _include_usage(fields, stream):
    given = fields.get("stream_options", {})
    if not isinstance(given, dict):
        text = f"stream_options must be an object, not {shown(given)}"
        raise Problem(400, text, "stream_options")
    if given and not stream:
        raise Problem(400, "stream_options needs stream=true", "stream_options")
    for name, value in given.items():
        if name not in ("include_usage", "include_obfuscation"):
            raise Problem(400, f"stream_options has no field {shown(name)}", "stream_options")
        if not isinstance(value, bool):
            text = f"stream_options.{name} must be true or false, not {shown(value)}"
            raise Problem(400, text, "stream_options")
    if given.get("include_obfuscation"):
        raise Problem(400, "stream_options.include_obfuscation is not supported", "stream_options")
    return given.get("include_usage", False)


def prompts_of(value: Any, name: str, most: int) -> list[str | list[int]]:
    """Prompts, from a text, several, the token ids of one, or those of several.

    Problem: it is none of these, or there are more than `most`.
    """
    several = value if isinstance(value, list) else [value]
    if not several:
        raise Problem(400, f"{name} must not be empty", name)
    if isinstance(several[0], int):
        several = [several]
    if len(several) > most:
        raise Problem(400, f"{name} must hold at most {most:,}, not {len(several):,}", name)
    for prompt in several:
        if isinstance(prompt, str):
            text_of(prompt, name)
        elif not isinstance(prompt, list) or not all(type(token) is int for token in prompt):
            kinds = "a string, a list of strings, token ids, or a list of them"
            raise Problem(400, f"{name} must be {kinds}, not {shown(value)}", name)
    return several


def about_tokens(value: Any) -> tuple[int, int]:
    """How many prompts a field has, and about how many tokens, a quarter of the characters.

    >>> about_tokens(["What is a page?", "A"]), about_tokens([1, 2, 3]), about_tokens([[1], [2, 3]])
    ((2, 5), (1, 3), (2, 3))
    """
    several = value if isinstance(value, list) else [value]
    if several and isinstance(several[0], int):
        return 1, len(several)
    sizes = [
        len(one) // 4 + 1 if isinstance(one, str) else len(one) if isinstance(one, list) else 1
        for one in several
    ]
    return len(several), sum(sizes)


def text_of(value: Any, name: str) -> str:
    """A text that UTF-8 can hold; Problem if it is none."""
    if not isinstance(value, str):
        raise Problem(400, f"{name} must be a string, not {shown(value)}", name)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Problem(
            400, f"{name} has half of a surrogate pair, which is no character", name
        ) from None
    return value


def echo_of(fields: dict[str, Any], options: Options) -> bool:
    """Whether a completion begins with its prompt."""
    echo = flag_of(fields, "echo")
    if echo and options.params.logprobs is not None:
        text = "echo with logprobs is not supported: the engine computes none of prompts"
        raise Problem(400, text, "echo")
    return echo


def integer_of(fields: dict[str, Any], name: str, default: Any, low: int, high: int) -> Any:
    """A field that is an integer in [low, high], or `default` without it."""
    value = fields.get(name)
    if value is None:
        return default
    if type(value) is not int:
        raise Problem(400, f"{name} must be an integer, not {shown(value)}", name)
    if not low <= value <= high:
        raise Problem(400, f"{name} must be in [{low}, {high}], not {shown(value)}", name)
    return value


def flag_of(fields: dict[str, Any], name: str) -> bool:
    """A field that is true or false; false without it."""
    value = fields.get(name, False)
    if type(value) is not bool:
        raise Problem(400, f"{name} must be true or false, not {shown(value)}", name)
    return value


def check_model(fields: dict[str, Any], name: str) -> None:
    """Problem of status 404 if another model is asked for; without the field it is this one."""
    given = fields.get("model", name)
    if not isinstance(given, str):
        raise Problem(400, f"model must be a string, not {shown(given)}", "model")
    if given != name:
        text = f"there is no model {shown(given)}; this server has {shown(name)}"
        raise Problem(404, text, "model", code="model_not_found")
