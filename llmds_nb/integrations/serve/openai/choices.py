"""Choice: one of a call's answers as it comes; and what all of them used."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

from llmds_nb._core.typing import Int32s
from llmds_nb.integrations.transformers import LogProb, Request
from llmds_nb.integrations.transformers.stop_strings import TextStream

from ..errors import Problem
from .steps import Call


class News(NamedTuple):
    """What a choice grew by."""

    place: int  # of the choice
    text: str
    tokens: list[int]
    logprobs: list[LogProb]  # one for each token, if they were asked for
    finish_reason: str | None  # "stop" or "length" with the last of them


class Choice:
    """One answer: its text grows by whole characters, and never by a part of a stop string.

    Parameters
    ----------
    place : int
        In the answer.
    request : Request
    tokenizer : optional
        None: it has no text.
    """

    def __init__(self, place: int, request: Request, tokenizer: Any) -> None:
        self.place, self.request = place, request
        self.ended = False
        self._n_read = 0
        self._stream = None
        if tokenizer is not None:
            self._stream = TextStream(tokenizer, request.params.stop)

    def read(self) -> News | None:
        """What it grew by since the last call; None for nothing.

        Problem: the request failed, or the server has cancelled it.
        """
        if self.ended:
            return None
        reason = self.request.finish_reason  # before the tokens: those that it counts are there
        tokens, logprobs = self.request.since(self._n_read)
        if reason is None and not tokens:
            return None
        if reason not in (None, "stop", "length"):
            raise _failure(self.request)
        self._n_read += len(tokens)
        text = ""
        if self._stream is not None:
            text = "".join(
                self._stream.add(token) for token in tokens if self._stream.stopped is None
            )
            if reason is not None:
                text += self._stream.finish()
        self.ended = reason is not None
        return News(self.place, text, tokens, logprobs, reason)


def _failure(request):
    if request.error is not None:
        return Problem(500, str(request.error))
    return Problem(503, "the server cancelled the request")


async def news_of(call: Call, choices: Sequence[Choice]) -> AsyncIterator[News]:
    """What choices grow by, until all have ended.

    Problem: a request failed, or the server has cancelled it, or the model does not fit beside
    what else holds pages. Any other error: of the model.
    """
    while True:
        for choice in choices:
            if call.error is not None:
                raise call.error
            news = choice.read()
            if news is not None:
                yield news
        if all(choice.ended for choice in choices):
            return
        await call.wait()


async def finished(call: Call, choices: Sequence[Choice]) -> list[News]:
    """All of each choice, when all have ended. Problem: as `news_of`."""
    while not call.ended and call.error is None:
        await call.wait()
    found = [news async for news in news_of(call, choices)]
    return [
        news._replace(text=choice.request.text or "")
        for news, choice in zip(found, choices, strict=True)
    ]


def usage_of(prompts: Sequence[Int32s], requests: Sequence[Request], n: int) -> dict[str, Any]:
    """Tokens of prompts, each counted once for its `n` choices, and of what was generated."""
    prompt = sum(map(len, prompts))
    completion = sum(request.n_tokens for request in requests)
    cached = sum(request.cached_tokens for request in requests[::n])
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
