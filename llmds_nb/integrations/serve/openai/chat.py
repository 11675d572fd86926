"""The bodies and answers of /v1/chat/completions, and how messages become a prompt."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from llmds_nb._core.typing import Int32s
from llmds_nb._core.validation import shown
from llmds_nb.integrations.transformers.prompts import prompt_ids

from ..errors import Problem
from . import fields as f
from .choices import News
from .generation import Form
from .tokens import TokenTexts, chat_logprobs

Message = dict[str, str]

_ROLES = ("system", "developer", "user", "assistant")


class ChatForm(Form):
    """What the answers look like.

    Parameters
    ----------
    model, options
        As for `Form`.
    texts : TokenTexts
    """

    prefix, whole, part = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, model: str, options: f.Options, texts: TokenTexts) -> None:
        super().__init__(model, options)
        self._texts = texts

    def choice(self, news: News) -> dict[str, Any]:
        """The message."""
        return {"message": {"role": "assistant", "content": news.text, "refusal": None}}

    def delta(self, news: News) -> dict[str, Any]:
        """What the message grew by."""
        return {"delta": {"content": news.text}}

    def first(self, index: int) -> dict[str, Any] | None:
        """Whose message it is."""
        return {"delta": {"role": "assistant", "content": ""}}

    def logprobs(self, news: News) -> Any:
        """Of the tokens that came."""
        if self.options.params.logprobs is None:
            return None
        return chat_logprobs(self._texts, news.tokens, news.logprobs)


class Chat(NamedTuple):
    """What a body asks for."""

    messages: list[Message]
    template_options: dict[str, Any]
    retrieval: Any  # as the body has it; None without
    form: ChatForm


def read(body: Any, model: str, texts: TokenTexts) -> Chat:
    """What a body asks for. Problem: the body is wrong."""
    fields = f.fields_of(body, f.CHAT)
    f.check_model(fields, model)
    options = f.options_of(fields, chat=True)
    if "messages" not in fields:
        raise Problem(400, "messages is missing", "messages")
    given = fields.get("chat_template_kwargs", {})
    if not isinstance(given, dict):
        text = f"chat_template_kwargs must be an object, not {shown(given)}"
        raise Problem(400, text, "chat_template_kwargs")
    messages = messages_of(fields["messages"])
    return Chat(messages, given, fields.get("retrieval"), ChatForm(model, options, texts))


def messages_of(value: Any) -> list[Message]:
    """Messages with a role and a text each; those of a developer are the system's.

    Problem: another role, or a content that is no text.
    """
    if not isinstance(value, list) or not value:
        raise _wrong(f"messages must be a list of at least one message, not {shown(value)}")
    return [_message(one, f"messages[{i}]") for i, one in enumerate(value)]


def _message(value, name):
    if not isinstance(value, dict):
        raise _wrong(f"{name} must be an object, not {shown(value)}")
    for field, own in value.items():
        if field not in ("role", "content", "name") and own not in (None, [], ""):
            raise _wrong(f"{name} has {shown(field)}, which is not supported")
    role = value.get("role")
    if role not in _ROLES:
        raise _wrong(f"{name}.role must be one of {', '.join(_ROLES)}, not {shown(role)}")
    content = value.get("content")
    if isinstance(content, list):
        content = "\n".join(_part(one, f"{name}.content[{i}]") for i, one in enumerate(content))
    found = {
        "role": "system" if role == "developer" else role,
        "content": f.text_of(content, f"{name}.content"),
    }
    if value.get("name") is not None:
        found["name"] = f.text_of(value["name"], f"{name}.name")
    return found


def _part(value, name):
    if not isinstance(value, dict) or value.get("type") != "text":
        raise _wrong(f"{name} must be a part of type text, not {shown(value)}")
    return f.text_of(value.get("text"), f"{name}.text")


def _wrong(text):
    return Problem(400, text, "messages")


def prompt_of(messages: list[Message], engine: Any, options: dict[str, Any]) -> Int32s:
    """Messages as the token ids of a prompt, by the tokenizer's chat template.

    Not for an event loop. Problem: there is none, or it refuses the messages.
    """
    apply = template_of(engine.tokenizer)
    own = inspect.signature(apply).parameters
    for name in options:
        if name in own or name == "messages":
            text = f"chat_template_kwargs must not have {shown(name)}: it is for the template only"
            raise Problem(400, text, "chat_template_kwargs")
    # A template is a program of others: it raises errors of many kinds.
    try:
        found = apply(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, **options
        )["input_ids"]
    except Exception as error:
        raise Problem(
            400, f"the chat template refuses the messages: {error}", "messages"
        ) from error
    try:
        return prompt_ids(found, engine.tokenizer, engine.vocab_size, "messages")
    except (ValueError, TypeError) as error:
        raise Problem(400, str(error), "messages") from error


def template_of(tokenizer: Any) -> Callable[..., Any]:
    """What applies a tokenizer's chat template. Problem: it has none."""
    apply = getattr(tokenizer, "apply_chat_template", None)
    if apply is None or not getattr(tokenizer, "chat_template", True):
        what = "no tokenizer" if tokenizer is None else "a tokenizer without a chat template"
        text = f"the model has {what}: /v1/completions takes token ids"
        if tokenizer is not None:
            text += " and text"
        raise Problem(400, text, "messages", code="no_chat_template")
    return apply
