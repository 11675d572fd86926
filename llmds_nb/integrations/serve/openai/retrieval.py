"""Documents in the prompt of a chat: the field `retrieval` of /v1/chat/completions.

``true``, or an object of what a search takes: `k` (4), `where`, `min_score`, `group_by`,
`diversity`, `fusion`, `weight`; and `query`, in place of the last message of the user.

The documents go into the last message of the user, before its text: the prompt begins with the
system's message and the conversation so far, whose pages the KV cache has from the call before.
They are ordered by their ids and not by their scores, so that questions that find the same
documents share their pages, too. Where they do not all fit beside the answer, the worst are left
out.

The answer, or its first event, tells which they were, best first::

    "retrieval": {"query": str, "documents": [{"id": ..., "score": ...}], "left_out": [...]}
"""

from typing import Any, NamedTuple

from llmds_nb._core.typing import Int32s
from llmds_nb._core.validation import shown

from ..errors import Problem
from . import fields as f
from .chat import Chat, Message, prompt_of

K = 4  # documents, where the field does not say
LEAST_ANSWER = 256  # tokens left for an answer whose client says nothing of its length

_NUMBERS = ("min_score", "diversity", "weight")
_TEXTS = ("group_by", "fusion", "query")


class Wanted(NamedTuple):
    """What is searched."""

    query: str
    k: int
    options: dict[str, Any]


def wanted_of(value: Any, messages: list[Message], state: Any) -> Wanted | None:
    """What the field asks for; None for `false`. Problem: it is wrong.

    Without the field it is what the server's settings say: `retrieval_k` documents.
    """
    settings = state.settings
    if value is None and state.pipeline is not None and settings.retrieval_k:
        value = any(message["role"] == "user" for message in messages)
    if value is None or value is False:
        return None
    if state.pipeline is None:
        raise _wrong("this server has no documents: retrieval is not possible")
    given = {} if value is True else value
    if not isinstance(given, dict):
        raise _wrong(f"retrieval must be true, false or an object, not {shown(value)}")
    given = {name: one for name, one in given.items() if one is not None}
    for name, one in given.items():
        if name in _NUMBERS:
            if type(one) not in (int, float):
                raise _wrong(f"retrieval.{name} must be a number, not {shown(one)}")
        elif name in _TEXTS:
            f.text_of(one, f"retrieval.{name}")
        elif name == "where":
            if not isinstance(one, dict):
                raise _wrong(f"retrieval.where must be an object, not {shown(one)}")
        elif name != "k":
            listed = ", ".join(("k", "where", *_NUMBERS, *_TEXTS))
            raise _wrong(f"retrieval has no field {shown(name)}; it has {listed}")
    k = given.get("k", settings.retrieval_k or K)
    if type(k) is not int or not 1 <= k <= settings.max_k:
        raise _wrong(f"retrieval.k must be an integer in [1, {settings.max_k}], not {shown(k)}")
    query = given.get("query", messages[_last_of_user(messages)]["content"])
    if len(query) > settings.max_query_chars:
        text = f"a query has at most {settings.max_query_chars} characters, not {len(query)}"
        raise _wrong(f"{text}: give a shorter one as retrieval.query")
    options = {name: one for name, one in given.items() if name not in ("k", "query")}
    return Wanted(query, k, options)


def _wrong(text):
    return Problem(400, text, "retrieval")


def _last_of_user(messages):
    for i in reversed(range(len(messages))):
        if messages[i]["role"] == "user":
            return i
    raise _wrong("retrieval needs a message of the user")


async def search(state: Any, wanted: Wanted) -> list[Any]:
    """The documents found, best first. Problem: the pipeline refuses the search."""
    _, found = await state.search(wanted.query, wanted.k, **wanted.options)
    return [document for document in found if document is not None]


def prompt_with(chat: Chat, engine: Any, query: str, found: list[Any]) -> Int32s:
    """The prompt of a chat with as many of the best documents as fit, which its form then names.

    Tokenises, O(log k) times: not for an event loop.
    """
    new = chat.form.options.max_tokens or LEAST_ANSWER
    room = engine.cache.n_pages * engine.cache.page_size + 1
    if engine.max_len is not None:
        room = min(room, engine.max_len)

    def prompt(n):
        messages = with_documents(chat.messages, found[:n])
        return prompt_of(messages, engine, chat.template_options)

    tokens, n, too_many = prompt(len(found)), len(found), len(found) + 1
    if len(tokens) + new > room:
        n, too_many, tokens = 0, n, prompt(0)
        while too_many - n > 1:
            middle = (n + too_many) // 2
            tried = prompt(middle)
            if len(tried) + new > room:
                too_many = middle
            else:
                n, tokens = middle, tried
    chat.form.extra["retrieval"] = {
        "query": query,
        "documents": _named(found[:n]),
        "left_out": _named(found[n:]),
    }
    return tokens


def _named(documents):
    return [{"id": one.id, "score": float(one.score)} for one in documents]


def with_documents(messages: list[Message], documents: list[Any]) -> list[Message]:
    r"""Messages of which the last of the user has documents before its text, by their ids.

    Examples
    --------
    >>> from llmds_nb import Document
    >>> found = [Document("b", "Pages are shared.", {}, 0.9), Document("a", "A heap.", {}, 0.5)]
    >>> with_documents([{"role": "user", "content": "Who shares?"}], found)[0]["content"]
    'Documents:\n\n[a]\nA heap.\n\n[b]\nPages are shared.\n\nQuestion: Who shares?'
    """
    if not documents:
        return messages
    at = _last_of_user(messages)
    parts = [f"[{one.id}]\n{one.text}\n\n" for one in sorted(documents, key=lambda one: one.id)]
    content = f"Documents:\n\n{''.join(parts)}Question: {messages[at]['content']}"
    return [*messages[:at], {**messages[at], "content": content}, *messages[at + 1 :]]
