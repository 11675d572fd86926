"""What RoutedEngines knows of its engines and of the requests that they compute."""

import math
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from llmds_nb import LlmdsError, PrefixRouter

from ..transformers import EngineStats, Request
from .engine_actor import Limits, Work


class EngineFailedError(LlmdsError, RuntimeError):
    """A request was given up: the engines that computed it failed, or none is left."""


class RoutedStats(NamedTuple):
    """Counts since the start; `engines` has those of each engine, by its number."""

    engines: dict[int, EngineStats]
    submitted: int
    finished: int
    cancelled: int
    failed: int  # requests that ended by an error
    rerun: int  # times that a request was computed anew by another engine
    failed_engines: int
    prompt_tokens: int  # of the requests that have begun
    cached_tokens: int  # of these, found in the cache of their engine
    hit_ratio: float  # cached_tokens / prompt_tokens; NaN before the first
    generated_tokens: int
    imbalance: float  # largest load / mean load of the router
    followed: int  # prompts that went to an engine that had been sent a prefix of theirs
    spilled: int  # whose longest known prefix was on an overloaded engine


def stats_of(
    engines: dict[int, EngineStats], submitted: int, c: Counter[str], router: PrefixRouter
) -> RoutedStats:
    """See `RoutedEngines.stats`."""
    routed = router.stats()
    return RoutedStats(
        engines, submitted, c["finished"], c["cancelled"], c["failed"], c["rerun"],
        c["failed_engines"], c["prompt_tokens"], c["cached_tokens"],
        c["cached_tokens"] / (c["prompt_tokens"] or math.nan), c["generated_tokens"],
        routed.imbalance, routed.followed, routed.spilled,
    )  # fmt: skip


class Job:
    """A request, and how far the engine has come that computes it now."""

    __slots__ = ("attempts", "begun", "request", "seen", "work")

    def __init__(self, request: Request, work: Work) -> None:
        self.request, self.work = request, work
        self.seen = 0  # tokens that came from the present engine
        self.attempts = 0  # engines that failed with it
        self.begun = False

    def take(self, tokens: list[int], logprobs: list[Any]) -> tuple[list[int], list[Any]]:
        """The tokens that the request does not have yet.

        Those that it has, of an engine before, must be the same, else an EngineFailedError.
        """
        known = self.request._tokens[self.seen : self.seen + len(tokens)]
        if tokens[: len(known)] != known:
            text = f"request {self.request.request_id!r}: computed again after its engine failed, "
            raise EngineFailedError(text + f"it has other tokens from position {self.seen} on")
        self.seen += len(tokens)
        return tokens[len(known) :], logprobs[len(known) :]


class Member:
    """An engine: its actor, its requests, and what it has not been told yet."""

    __slots__ = (
        "actor",
        "call",
        "called_at",
        "cancelled",
        "jobs",
        "limits",
        "new",
        "number",
        "route",
    )

    def __init__(self, actor: Any, limits: Limits, number: int) -> None:
        self.actor, self.limits, self.number = actor, limits, number
        self.route: int | None = number  # of the router; None while it gets no prompts
        self.jobs: dict[int, Job] = {}
        self.new: list[Work] = []
        self.cancelled: list[int] = []
        self.call: Any = None  # the answer that is awaited
        self.called_at = 0.0

    def cancel(self, number: int) -> None:
        """Forget a request, and tell the actor if it has it."""
        del self.jobs[number]
        left = [work for work in self.new if work.number != number]
        if len(left) == len(self.new):
            self.cancelled.append(number)
        self.new = left


class Fleet:
    """The engines there are, by their numbers, and which of them computes each request.

    The router's numbers are its own: an engine that got no prompts for a while has another.
    """

    def __init__(self, started: Sequence[tuple[Any, Limits]], router: PrefixRouter) -> None:
        self.router = router
        self.members = {i: Member(*each, i) for i, each in enumerate(started)}
        self.by_route = dict(self.members)  # those that get prompts
        self.where: dict[int, Member] = {}  # by the number of a request that goes on
        self.next_number = len(started)
        self.limits = Limits.of_all([limits for _, limits in started])

    def send(self, job: Job) -> None:
        """Give a job to the engine that the router chooses."""
        work = job.work
        member = self.by_route[self.router.route(work.tokens, salt=work.salt)]
        job.seen = 0
        member.jobs[work.number] = job
        member.new.append(work)
        self.where[work.number] = member

    def launch(self, seconds: float) -> dict[Any, Member]:
        """Have each engine compute that has requests and does not: its answer, and whose it is."""
        for member in self.members.values():
            if member.call is None and (member.jobs or member.cancelled):
                member.call = member.actor.advance.remote(member.new, member.cancelled, seconds)
                member.called_at = time.monotonic()
                member.new, member.cancelled = [], []
        return {m.call: m for m in self.members.values() if m.call is not None}

    def join(self, actor: Any, limits: Limits) -> int:
        """Have one more engine: its number."""
        member = Member(actor, limits, self.next_number)
        member.route = None
        self.next_number += 1
        self.members[member.number] = member
        self.limits = Limits.of_all([each.limits for each in self.members.values()])
        self.open(member)
        return member.number

    def open(self, member: Member) -> None:
        """Let an engine get prompts, unless it is gone or does."""
        if self.members.get(member.number) is not member or member.route is not None:
            return
        member.route = self.router.add()
        self.by_route[member.route] = member
        for route in self.router.replicas:
            if route not in self.by_route:  # of the last engine, which failed
                self.router.remove(route)

    def shut(self, member: Member) -> None:
        """Let an engine get no more prompts."""
        if member.route is not None:
            del self.by_route[member.route]
            if self.by_route:
                self.router.remove(member.route)
            member.route = None

    def check(self) -> None:
        """Assert that every request is on one engine, and the invariants of the router."""
        self.router.check()
        open_ = {m.route: m for m in self.members.values() if m.route is not None}
        assert open_ == self.by_route
        assert not open_ or sorted(open_) == self.router.replicas
        assert self.where == {n: m for m in self.members.values() for n in m.jobs}
        assert not any(m.jobs[n].request.finished for n, m in self.where.items())
