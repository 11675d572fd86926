"""One call that generates: its requests, its answer as a whole or as events, what it reserves."""

import dataclasses
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from llmds_nb._core.typing import Int32s
from llmds_nb.integrations.transformers.distributions import derived_seed

from ..errors import Problem, json_response
from .choices import Choice, News, finished, news_of, usage_of
from .connection import EventStream, while_connected
from .fields import COMPLETION, Options, named_by
from .steps import Call, Job, Steps

# Reserved for an answer whose client says nothing of its length; it may use more.
RESERVED = 1024
Prepare = Callable[[], Coroutine[Any, Any, list[Int32s]]]
LEFT = 499  # the status of logs for a client that left; it sees none


class Form:
    """What the answers of one endpoint look like; the subclasses say it.

    Parameters
    ----------
    model : str
        Its name.
    options : Options
    """

    prefix = whole = part = ""  # of ids; values of "object"

    def __init__(self, model: str, options: Options) -> None:
        self.options = options
        self.extra: dict[str, Any] = {}  # further fields of the answer, or of its first event
        self._head = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def choice(self, news: News) -> dict[str, Any]:
        """A choice of an answer, but for what all have."""
        raise NotImplementedError

    def delta(self, news: News) -> dict[str, Any]:
        """A choice of an event, but for what all have."""
        raise NotImplementedError

    def first(self, index: int) -> dict[str, Any] | None:
        """The choice of an event before all others of this index; None for no such event."""
        raise NotImplementedError

    def logprobs(self, news: News) -> Any:
        """The logprobs of the tokens, None if they were not asked for."""
        raise NotImplementedError

    def answer(self, found: Sequence[News], usage: dict[str, Any]) -> dict[str, Any]:
        """The answer as a whole."""
        choices = [{**self.choice(news), **self._common(news)} for news in found]
        return {
            **self._head,
            "object": self.whole,
            "choices": choices,
            "usage": usage,
            **self.extra,
        }

    def _common(self, news):
        found = {
            "index": news.place,
            "logprobs": self.logprobs(news),
            "finish_reason": news.finish_reason,
        }
        if self.options.token_ids:
            found["token_ids"] = news.tokens
        return found

    def _event(self, choices, **more):
        usage = {"usage": None} if self.options.include_usage else {}
        return {**self._head, "object": self.part, "choices": choices, **usage, **more}

    async def events(self, n: int, news: AsyncIterator[News], usage: Any) -> Any:
        """The answer as events, of `n` choices; `usage` is called at the end."""
        extra = self.extra
        for index in range(n):
            choice = self.first(index)
            if choice is not None:
                same = {"index": index, "logprobs": None, "finish_reason": None}
                yield self._event([{**choice, **same}], **extra)
                extra = {}
        seen_anyway = self.options.token_ids or self.options.params.logprobs is not None
        async for one in news:
            if one.text or one.finish_reason or seen_anyway:
                yield self._event([{**self.delta(one), **self._common(one)}], **extra)
                extra = {}
        if self.options.include_usage:
            yield {**self._event([]), "usage": usage()}


async def respond(
    request: Request, state: Any, steps: Steps, form: Form, about: int, prepare: Prepare
) -> Response:
    """Generate for prompts, and answer as a whole or by a stream of events.

    A client that leaves has its requests cancelled at once. Problem: the engine refuses a prompt,
    or the request is not admitted.

    Parameters
    ----------
    form : Form
    about : int
        Tokens to reserve: it takes a tokenizer to know them. In the end those that were used count.
    prepare : coroutine function
        The prompts, once the request is admitted.
    """
    call = Call(steps, streamed=form.options.stream)
    try:
        async with state.guarded(request, about) as reservation:
            prompts = await while_connected(request.receive, prepare())
            n = len(prompts) * form.options.n
            if form.options.max_tokens == 0:
                reservation.used = sum(map(len, prompts))
                return _nothing(prompts, form)
            begin = call.begin(_jobs(steps.engine, prompts, form.options), form.options.salt)
            try:
                await while_connected(request.receive, begin)
            except (ValueError, TypeError) as error:
                raise Problem(400, str(error), named_by(str(error), COMPLETION)) from error
            tokenizer = steps.engine.tokenizer if form.options.stream else None
            choices = [Choice(i, one, tokenizer) for i, one in enumerate(call.requests)]

            def usage():
                return usage_of(prompts, call.requests, form.options.n)

            if not form.options.stream:
                found = await while_connected(request.receive, finished(call, choices))
                used = usage()
                reservation.used = used["total_tokens"]
                return json_response(form.answer(found, used))
            reservation.detached = True
    except ClientDisconnect:
        call.close()
        return Response(status_code=LEFT)
    except BaseException:
        call.close()
        raise

    def close():
        call.close()
        reservation.used = usage()["total_tokens"]
        reservation.close()

    return EventStream(form.events(n, news_of(call, choices), usage), close)


def about_new(options: Options, n_prompts: int) -> int:
    """Tokens to reserve for the answers to prompts."""
    new = RESERVED if options.max_tokens is None else options.max_tokens
    return n_prompts * options.n * new


def _jobs(engine, prompts, options) -> list[Job]:
    """The requests of a call: of each prompt `n`, as Engine.generate seeds them."""
    jobs = []
    for prompt in prompts:
        new = _most_new(engine, prompt, options)
        for i in range(options.n):
            seed = options.params.seed
            if i and seed is not None:
                seed = derived_seed(seed, i)
            own = dataclasses.replace(options.params, max_new_tokens=new, seed=seed)
            jobs.append((prompt, own))
    return jobs


def _most_new(engine, prompt, options):
    """Tokens that an answer may have: those asked for, else as many as fit."""
    if options.max_tokens is not None:
        return options.max_tokens
    room = engine.cache.n_pages * engine.cache.page_size + 1 - len(prompt)
    if engine.max_len is not None:
        room = min(room, engine.max_len - len(prompt))
    return max(room, 1)  # the engine refuses the prompt where there is none


def _nothing(prompts, form):
    """The answer of max_tokens=0: what `echo` repeats."""
    found = [News(i, "", [], [], "length") for i in range(len(prompts) * form.options.n)]
    usage = usage_of(prompts, [], form.options.n)
    if not form.options.stream:
        return json_response(form.answer(found, usage))

    async def news():
        for one in found:
            yield one

    return EventStream(form.events(len(found), news(), lambda: usage), lambda: None)
