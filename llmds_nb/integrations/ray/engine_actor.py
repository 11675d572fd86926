"""EngineActor: an Engine in a process of its own, which computes several steps in each call.

A round trip to an actor takes about a millisecond, so that one for every token would cost more than
a small model's step. `advance` takes what is new, computes steps for some time, and returns what
has come of all requests.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from llmds_nb import CapacityError
from llmds_nb._core.typing import Int32s

from ..transformers import EngineStats, LogProb, Request, SamplingParams


class Limits(NamedTuple):
    """What an engine takes: requests are checked against it before they are sent."""

    vocab_size: int
    n_logits: int
    max_len: int | None  # positions of the model
    page_size: int
    n_pages: int
    stop_ids: frozenset[int]  # the model's own end-of-sequence tokens

    def check(self, tokens: Int32s, params: SamplingParams, has_tokenizer: bool) -> None:
        """Raise what an engine would raise for a request, but before it is sent. ValueError."""
        text = f"the size of the vocabulary, {self.n_logits}"
        if params.logprobs is not None and params.logprobs > self.n_logits:
            raise ValueError(f"logprobs must be at most {text}, not {params.logprobs}")
        for token in params.stop_token_ids:
            if token >= self.n_logits:
                raise ValueError(f"stop_token_ids must be below {text}, not {token}")
        if params.stop and not has_tokenizer:
            raise ValueError("stop strings are text, for which the engines need a tokenizer")
        n, new = len(tokens), params.max_new_tokens
        text = f"{n} prompt tokens and {new} new ones"
        if self.max_len is not None and n + new > self.max_len:
            raise ValueError(f"{text} are {n + new}; the model has positions for {self.max_len}")
        needed = -(-(n + new - 1) // self.page_size)
        if needed > self.n_pages:
            pages = f"{needed} pages of {self.page_size}"
            raise ValueError(f"{text} need {pages}; an engine has {self.n_pages}")

    def check_alike(self, other: "Limits") -> None:
        """Raise ValueError where a request could have other tokens on another engine."""
        for name in ("vocab_size", "n_logits", "page_size", "stop_ids"):
            a, b = getattr(self, name), getattr(other, name)
            if a != b:
                raise ValueError(f"the engines must be alike: {name} is {a} of one, {b} of another")

    @staticmethod
    def of_all(each: "Sequence[Limits]") -> "Limits":
        """What each of several engines takes."""
        n_pages = min(limits.n_pages for limits in each)
        lengths = [limits.max_len for limits in each if limits.max_len is not None]
        return each[0]._replace(n_pages=n_pages, max_len=min(lengths, default=None))


class Work(NamedTuple):
    """A request to compute."""

    number: int
    tokens: Int32s
    params: SamplingParams  # n is 1, and it has a seed
    salt: int | bytes | str
    priority: int
    slo_ms: float | None


class Progress(NamedTuple):
    """What has come of a request since the call before."""

    number: int
    tokens: list[int]
    logprobs: list[LogProb]  # one for each token, if they were asked for
    finish_reason: str | None
    error: Exception | None
    cached_tokens: int


class EngineActor:
    """What runs in an actor's process. `start` makes the engine."""

    def __init__(self) -> None:
        self._engine: Any = None
        self._requests: dict[int, Request] = {}  # those that go on
        self._sent: dict[int, int] = {}  # of each, how many of its tokens were returned

    def start(self, factory: Callable[[], Any]) -> tuple[Limits, Any]:
        """Make the engine; what it takes, and its tokenizer."""
        engine = self._engine = factory()
        limits = Limits(
            engine.vocab_size, engine.model.get_output_embeddings().weight.shape[0],
            engine.max_len, engine.cache.page_size, engine.cache.n_pages, engine._stop_ids,
        )  # fmt: skip
        return limits, engine.tokenizer

    def advance(
        self, new: Sequence[Work], cancelled: Sequence[int], seconds: float
    ) -> list[Progress]:
        """Take and cancel requests, compute steps for so long, at least one; what came of them."""
        for number in cancelled:
            if number in self._requests:
                self._requests.pop(number).cancel()
                del self._sent[number]
        found = [refused for work in new if (refused := self._take(work)) is not None]
        end = time.perf_counter() + seconds
        while any(not request.finished for request in self._requests.values()):
            self._engine.step()
            if time.perf_counter() >= end:
                break
        for number, request in list(self._requests.items()):
            at = self._sent[number]
            tokens, logprobs = request._tokens[at:], request._logprobs[at:]
            if tokens or request.finished:
                reason, error = request.finish_reason, request.error
                cached = request.cached_tokens
                found.append(Progress(number, tokens, logprobs, reason, error, cached))
            self._sent[number] = at + len(tokens)
            if request.finished:
                del self._requests[number], self._sent[number]
        return found

    def _take(self, work):
        """Submit a request; where it is refused, the Progress that says so."""
        try:
            request = self._engine.submit(
                work.tokens, work.params, salt=work.salt, priority=work.priority, slo_ms=work.slo_ms
            )
        except (ValueError, TypeError, CapacityError) as error:
            return Progress(work.number, [], [], "error", error, 0)
        self._requests[work.number], self._sent[work.number] = request, 0
        return None

    def stats(self) -> EngineStats:
        """Those of the engine."""
        return self._engine.stats()
