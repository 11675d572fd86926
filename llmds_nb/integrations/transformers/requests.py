"""Request: one request of an Engine, an iterator over its tokens; and what it came to."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from llmds_nb._core.forking import new_lock
from llmds_nb._core.typing import Int32s

from .stop_strings import TextStream, complete_part
from .streaming import TokenStream


class LogProb(NamedTuple):
    """Natural logarithms of probabilities of the model's distribution at one token."""

    sampled: float  # of the token itself
    top: dict[int, float]  # of the most probable tokens, as many as were asked for


class Generation(NamedTuple):
    """A request that has ended."""

    request_id: int | str
    prompt_ids: list[int]
    token_ids: list[int]  # with the stop token, if one ended it
    text: str | None  # None without a tokenizer
    logprobs: list[LogProb] | None  # one for each token, if they were asked for
    finish_reason: str  # "length", "stop", "cancelled" or "error"
    cached_tokens: int  # of the prompt, found in the cache


class StepOutput(NamedTuple):
    """A token that a step sampled."""

    request: "Request"
    token: int
    logprob: LogProb | None
    finished: bool


class RequestError(ValueError):
    """A request failed, such as by logits that are NaN; the others go on."""


class Request:
    """A request that was submitted: iterate over it for its tokens.

    The iterator computes steps of the engine, for all of its requests, until a token is there; any
    number of threads may iterate at once, each over a request of its own. ``async for`` computes
    the steps in a thread of the engine, and cancels the request when it is left before the end.
    `Engine.submit` makes these.

    Attributes
    ----------
    request_id : int or str
    prompt_ids : int32[n]
    params : SamplingParams
    finish_reason : str or None
        None while it goes on; then "length", "stop", "cancelled" or "error".
    error : Exception or None
        Why it failed.
    """

    def __init__(
        self, engine: Any, request_id: int | str, prompt_ids: Int32s, params: Any,
        stop: frozenset[int], seed: int,
    ) -> None:  # fmt: skip
        self.request_id, self.prompt_ids, self.params = request_id, prompt_ids, params
        self.finish_reason: str | None = None
        self.error: Exception | None = None
        self._engine, self._stop, self._seed = engine, stop, seed
        self._n_cached = -1  # before it runs
        self._seq_id = -1  # in the batcher
        self._tokens: list[int] = []
        self._logprobs: list[LogProb] = []
        self._stream: TextStream | None = None  # of one with stop strings
        self._n_read = 0
        self._reading = new_lock()

    @property
    def tokens(self) -> list[int]:
        """The tokens that were generated so far."""
        return self._tokens.copy()

    @property
    def n_tokens(self) -> int:
        """How many tokens were generated so far. O(1)."""
        return len(self._tokens)

    def since(self, start: int) -> tuple[list[int], list[LogProb]]:
        """The tokens from the `start`-th on, and their logprobs if they were asked for.

        Also while steps are computed; all there are, if the request had ended before the call.
        """
        tokens = self._tokens[start:]
        return tokens, self._logprobs[start : start + len(tokens)]

    @property
    def text(self) -> str | None:
        """Their text, without special tokens and up to a stop string; None without a tokenizer.

        Until the request ends, it only grows: of a character, all bytes must have come. O(tokens).
        """
        if self._stream is not None:
            return self._stream.text
        finished = self.finished
        text = self._engine._decode(self._tokens)
        return text if finished or text is None else complete_part(text)

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that were found in the cache when it began to run."""
        return max(self._n_cached, 0)

    @property
    def finished(self) -> bool:
        """Whether it has ended, for whatever reason."""
        return self.finish_reason is not None

    def cancel(self) -> None:
        """End the request now; nothing happens to one that has ended."""
        self._engine.cancel(self)

    def result(self) -> Generation:
        """Compute steps until it has ended, and return all of it. Raises its `error`."""
        self._engine._run_until(self, None)
        if self.error is not None:
            raise self.error
        return self._generation()

    def _generation(self):
        logprobs = None if self.params.logprobs is None else self._logprobs.copy()
        return Generation(
            self.request_id, self.prompt_ids.tolist(), self.tokens, self.text,
            logprobs, self.finish_reason or "", self.cached_tokens,
        )  # fmt: skip

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        with self._reading:
            self._engine._run_until(self, self._n_read)
            if self._n_read < len(self._tokens):
                token = self._tokens[self._n_read]
                self._n_read += 1
                return token
        if self.error is not None:
            raise self.error
        raise StopIteration

    def __aiter__(self) -> AsyncIterator[int]:
        return TokenStream(self._engine, self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "a Request cannot be copied or pickled: it is of an Engine; result() gives a Generation"
        )

    def __repr__(self) -> str:
        state = self.finish_reason or "running"
        return f"<Request {self.request_id!r}: {len(self._tokens)} tokens, {state}>"


def log_probs(requests: list[Request], found: Any) -> dict[Request, LogProb]:
    """Those of the sampled tokens, from LogProbs of the sampler, for requests that want them."""
    sampled, ids, top = (part.tolist() for part in found)
    return {
        r: LogProb(
            sampled[i],
            _top(ids[i], top[i], r.params.logprobs),
        )
        for i, r in enumerate(requests)
        if r.params.logprobs is not None
    }


def _top(ids, logs, n):
    return dict(zip(ids[:n], logs[:n], strict=True))


class Answer:
    """What a step computed."""

    __slots__ = ("failed", "logprobs", "requests", "seq_ids", "tokens", "undecoded")

    def __init__(
        self, seq_ids: Any, requests: list[Request | None], tokens: Any,
        logprobs: dict[Request, LogProb], failed: list[Request],
    ) -> None:  # fmt: skip
        self.seq_ids, self.requests = seq_ids, requests  # None: was cancelled
        self.tokens, self.logprobs = tokens, logprobs  # int32[n], -1 where none was sampled
        self.failed = failed  # their logits are no numbers
        self.undecoded: dict[Request, Exception] = {}  # for whose tokens the tokenizer has no text

    def ended(self) -> Any:
        """Which rows end by a stop string, bool[n], None for none; the batcher knows stop tokens.

        Texts have grown but those of `undecoded`; where this is interrupted, none has.
        """
        rows = [i for i, r in enumerate(self.requests) if r is not None and r._stream is not None]
        if not rows:
            return None
        ended = np.zeros(len(self.requests), np.bool_)
        grown: list[Any] = []
        try:
            for i in rows:
                r, token = self.requests[i], int(self.tokens[i])
                if r is None or r._stream is None or r.finished or token < 0:
                    continue
                grown.append((r._stream, r._stream._state))
                try:
                    r._stream.add(token)
                except Exception as error:
                    self.undecoded[r] = error
                ended[i] = r._stream.stopped is not None
        except BaseException:
            for stream, state in grown:
                stream._state = state
            raise
        return ended

    def errors(self) -> Iterator[tuple[Request, RequestError]]:
        """The requests that fail by this step, and why."""
        for r in self.failed:
            reason = "the logits of its next token are NaN or infinite"
            yield r, RequestError(f"request {r.request_id!r}: {reason}")
        for r, cause in self.undecoded.items():
            name = type(cause).__name__
            text = f"request {r.request_id!r}: its tokenizer raised {name}: {cause}"
            error = RequestError(text)
            error.__cause__ = cause
            yield r, error

    def deliver(self, end: Callable[[Request, str], None]) -> list[StepOutput]:
        """Give the tokens to the requests, and `end` those that end by them."""
        outputs = []
        for r, token in zip(self.requests, self.tokens.tolist(), strict=True):
            if r is None or token < 0 or r.finished:
                continue
            logprob = None
            if r.params.logprobs is not None:
                logprob = self.logprobs[r]
                r._logprobs.append(logprob)
            r._tokens.append(token)
            if token in r._stop or (r._stream is not None and r._stream.stopped is not None):
                end(r, "stop")
            elif len(r._tokens) == r.params.max_new_tokens:
                end(r, "length")
            outputs.append(StepOutput(r, token, logprob, r.finished))
        return outputs
