"""RoutedEngines: several engines in actors of Ray, behind a PrefixRouter."""

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from typing import Any

import ray

from llmds_nb import PrefixRouter
from llmds_nb._core import validation
from llmds_nb._core.forking import Workers, new_lock
from llmds_nb._core.signals import uninterrupted

from ..transformers import Generation, Request, SamplingParams, batches
from ..transformers.prompts import prompt_ids
from ..transformers.salts import salt_of
from ..transformers.sampling import Seeds, sampling_params
from ..transformers.stop_strings import TextStream, decoder
from .engine_actor import Work
from .members import EngineFailedError, Fleet, Job, RoutedStats, stats_of
from .starting import check_factory, kill, start
from .waiting import Waits

_LOGGER = logging.getLogger(__name__)


class RoutedEngines:
    """Several engines, each in an actor of Ray, that share requests by their prefixes.

    A request goes to the engine that was sent the longest prefix of its prompt, unless that one is
    overloaded (`PrefixRouter`). Requests, their tokens and their text are those of `Engine`: the
    same seed gives the same tokens as one Engine, on whichever engine they are computed.

    Parameters
    ----------
    factory : callable
        Makes an `Engine`; called in each actor, so models are loaded there. It is pickled.
    n_engines : int, >= 1
    seed : int, optional
        From which requests get theirs that have none of their own, as that of an Engine.
    max_imbalance, max_prefixes, key
        As for `PrefixRouter`.
    num_cpus, num_gpus : float
        What Ray reserves for each actor.
    max_attempts : int, >= 1
        A request that was on so many engines when they failed is given up.
    turn_ms : float
        How long an engine computes before it returns the tokens that came meanwhile.
    start_timeout_s : float
        How long an actor may take to make its engine.
    answer_timeout_s : float, optional
        An engine that does not answer for so long counts as failed. None: Ray alone tells.

    Raises
    ------
    TimeoutError
        An actor did not start in time: the cluster may lack CPUs or GPUs for it.
    ValueError
        The engines differ in their vocabulary or page size.

    Notes
    -----
    Where an engine fails (its process or node ends, or a step raises), its unfinished requests run
    again on others, from their prompts, with the same seeds: their iterators go on with the next
    token. A request is reported by an `EngineFailedError` where no engine is left, where
    `max_attempts` engines failed with it, or where the tokens that it had come out differently;
    nothing is lost without one. The router forgets a failed engine; `add` starts another.

    Engines compute while a call waits for a request, such as `generate`, `result`, or iterating
    over one; then all of them do. A request costs one message to its engine, and its tokens one for
    each `turn_ms`. Thread-safe.

    Examples
    --------
    >>> def make_engine():  # doctest: +SKIP
    ...     model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen3-0.6B").eval()
    ...     return Engine(model, tokenizer=AutoTokenizer.from_pretrained("Qwen/Qwen3-0.6B"))
    >>> with RoutedEngines(make_engine, 4, num_gpus=1) as engines:  # doctest: +SKIP
    ...     results = engines.generate(["Once upon a time", "What is a page?"], max_new_tokens=64)
    ...     tokens = list(engines.submit("Tell me more"))
    """

    def __init__(
        self, factory: Callable[[], Any], n_engines: int, *, seed: int | None = 0,
        max_imbalance: float = 1.25, max_prefixes: int = 2**18, key: bytes | None = None,
        num_cpus: float = 1.0, num_gpus: float = 0.0, max_attempts: int = 3, turn_ms: float = 10.0,
        start_timeout_s: float = 600.0, answer_timeout_s: float | None = None,
    ) -> None:  # fmt: skip
        n = validation.integer(n_engines, "n_engines", low=1, high=4096)
        self._factory = check_factory(factory)
        self._seeds = Seeds(seed)
        real = validation.real
        needs = {"num_cpus": num_cpus, "num_gpus": num_gpus}
        self._needs = {name: real(value, name, low=0) for name, value in needs.items()}
        self._max_attempts = validation.integer(max_attempts, "max_attempts", low=1)
        self._turn_s = real(turn_ms, "turn_ms", low=0) / 1e3
        self._start_timeout_s = real(start_timeout_s, "start_timeout_s", above=0)
        self._answer_timeout_s = None
        if answer_timeout_s is not None:
            self._answer_timeout_s = real(answer_timeout_s, "answer_timeout_s", above=0)
        make_router = partial(
            PrefixRouter, max_imbalance=max_imbalance, max_prefixes=max_prefixes, key=key
        )
        make_router(n)  # so that a bad option is refused before actors start
        started = start([self._factory] * n, self._needs, self._start_timeout_s)
        self.tokenizer: Any = started[0][2]  # of the first engine, which all requests use
        self._text_of = None if self.tokenizer is None else decoder(self.tokenizer)
        router = make_router(n, page_size=started[0][1].page_size)
        self._fleet = Fleet([each[:2] for each in started], router)
        self._by_id: dict[int | str, int] = {}  # the number of a request, while it goes on
        self._n_submitted = 0
        self._counts: Counter[str] = Counter()
        self._state = new_lock()
        self._waits = Waits(self._state, self._turn)
        self._calls = Workers("llmds_nb routed calls", 1)
        self._closed = False

    # ---- requests ----------------------------------------------------------------------------

    def submit(
        self, prompt: Any, params: SamplingParams | None = None, *,
        request_id: int | str | None = None, salt: int | bytes | str = 0,
        extra: int | bytes | str | None = None, priority: int = 0, slo_ms: float | None = None,
        **options: Any,
    ) -> Request:  # fmt: skip
        """Route a request to an engine; iterate over it, or call its `result`, for its tokens.

        Parameters and errors are those of `Engine.submit`. Also ``async for`` works, as there.

        Raises
        ------
        EngineFailedError
            No engine is left.
        """
        given = sampling_params(params, options)
        if given.n != 1:
            raise ValueError(f"submit takes n=1, not {given.n}: generate() takes more")
        tokens = prompt_ids(prompt, self.tokenizer, self.vocab_size)
        salt = salt_of(salt, extra)
        return self._submit(tokens, given, None, request_id, salt, None, priority, slo_ms)

    def generate(
        self, prompts: Iterable[Any], params: Any = None, *, progress: bool = True, **options: Any
    ) -> list[Generation]:
        """Generate for many prompts; the results are in their order.

        Parameters and errors are those of `Engine.generate`.

        Raises
        ------
        EngineFailedError
            A request was given up; those of the call that go on are cancelled.
        """
        return batches.generate(self, prompts, params, progress, options)

    def cancel(self, request: Request | int | str) -> None:
        """End a request, given itself or by its request_id; nothing if it has ended.

        KeyError: no request that goes on has this id.
        """
        with self._state:
            if not isinstance(request, Request):
                if request not in self._by_id:
                    raise KeyError(f"no request that goes on has the id {request!r}")
                number = self._by_id[request]
                request = self._fleet.where[number].jobs[number].request
            elif request._engine is not self:
                raise ValueError(f"{request!r} is of other engines")
            uninterrupted(self._cancel, request)

    @property
    def vocab_size(self) -> int:
        """Token ids are below it."""
        return self._fleet.limits.vocab_size

    @property
    def max_len(self) -> int | None:
        """Positions of the model, for prompt and answer; None where it has no limit."""
        return self._fleet.limits.max_len

    def _check_request(self, tokens, params):
        self._fleet.limits.check(tokens, params, self.tokenizer is not None)

    def _submit(self, tokens, params, seed, request_id, salt, into=None, priority=0, slo_ms=None):
        self._check_request(tokens, params)
        if request_id is not None and not isinstance(request_id, str):
            request_id = validation.integer(request_id, "request_id", low=0, high=2**62 - 1)
        priority = validation.integer(priority, "priority", low=-(2**31), high=2**31 - 1)
        if slo_ms is not None:
            slo_ms = validation.real(slo_ms, "slo_ms", low=0)
        request = Request(self, -1, tokens, params, self._fleet.limits.stop_ids, 0)
        if params.stop:
            request._stream = TextStream(self.tokenizer, params.stop)
        work = Work(-1, tokens, params, salt, priority, slo_ms)
        uninterrupted(self._add, request, work, request_id, seed, into)
        return request

    def _add(self, request, work, request_id, seed, into):
        """Route a request. Not to be interrupted."""
        with self._state:
            self._check_open()
            if request_id in self._by_id:
                raise ValueError(f"request_id {request_id!r} is that of a request that goes on")
            if not self._fleet.by_route:
                raise EngineFailedError("no engine is left: add() starts one")
            number = self._n_submitted
            name = number if request_id is None else request_id
            if request_id is None and number in self._by_id:
                text = f"request_id {number}, the next number, is that of a request that goes on"
                raise ValueError(text)
            seed = self._seeds.of(work.params) if seed is None else seed
            params = dataclasses.replace(work.params, n=1, seed=seed)
            work = work._replace(number=number, params=params)
            self._fleet.send(Job(request, work))
            request._seed, request._seq_id, request.request_id = seed, number, name
            self._by_id[name] = number
            self._n_submitted += 1
            if into is not None:
                into.append(request)

    def _cancel(self, request):
        if not request.finished:
            self._fleet.where[request._seq_id].cancel(request._seq_id)
            self._end(request, "cancelled")
            self._waits.wake()

    def _end(self, request, reason, error=None):
        if request._stream is not None:
            request._stream.finish()
        count = {"cancelled": "cancelled", "error": "failed"}.get(reason, "finished")
        self._counts[count] += 1
        request.error, request.finish_reason = error, reason
        del self._by_id[request.request_id], self._fleet.where[request._seq_id]

    # ---- waiting for tokens ------------------------------------------------------------------

    def _run_until(self, request, n):
        """Wait until a request has ended or has more than `n` tokens (None: only that)."""
        self._waits.wait(self._reached(request, n))
        failed = isinstance(request.error, EngineFailedError)
        if failed and (n is None or len(request._tokens) <= n):
            raise request.error

    def _reached(self, request, n):
        return lambda: request.finished or (n is not None and len(request._tokens) > n)

    def in_worker(self, function: Callable[..., Any], *args: Any) -> "Future[Any]":
        """Call a function in another thread, as that of an Engine; waits for tokens need none.

        RuntimeError: the engines are closed.
        """
        self._check_open()
        if function != self._run_until:
            return self._calls.submit(function, *args)
        request, n = args
        return self._waits.future(self._reached(request, n))

    def _turn(self):
        """Let all engines compute until one has answered."""
        with self._state:
            calls = self._fleet.launch(self._turn_s)
        if not calls:
            raise RuntimeError("a request waits, but no engine computes one")
        ray.wait(list(calls), num_returns=1, timeout=self._answer_timeout_s)
        done, late = ray.wait(list(calls), num_returns=len(calls), timeout=0)
        with self._state:
            for call in done:
                self._take(calls[call])
            for call in late:
                self._check_time(calls[call])

    def _take(self, member):
        """Take the answer of an engine, which has come."""
        call, member.call = member.call, None
        if self._fleet.members.get(member.number) is not member:  # removed meanwhile
            return
        try:
            found = ray.get(call)
        except Exception as error:
            self._fail(member, error)
            return
        for progress in found:
            job = member.jobs.get(progress.number)  # None: was cancelled
            if job is not None:
                self._deliver(member, job, progress)

    def _deliver(self, member, job, progress):
        request, counts = job.request, self._counts
        if not job.begun and not isinstance(progress.error, ValueError | TypeError):
            job.begun, request._n_cached = True, progress.cached_tokens
            counts["prompt_tokens"] += len(request.prompt_ids)
            counts["cached_tokens"] += progress.cached_tokens
        error, reason = progress.error, progress.finish_reason
        try:
            tokens, logprobs = job.take(progress.tokens, progress.logprobs)
        except EngineFailedError as differs:
            member.cancelled.extend([] if reason else [progress.number])
            tokens, logprobs, error, reason = [], [], differs, "error"
        if request._stream is not None:
            for token in tokens:
                request._stream.add(token)
        request._logprobs += logprobs
        request._tokens += tokens
        counts["generated_tokens"] += len(tokens)
        if reason is not None:
            del member.jobs[progress.number]
            self._end(request, reason, error)

    # ---- engines -----------------------------------------------------------------------------

    def add(self, factory: Callable[[], Any] | None = None) -> int:
        """Start one more engine and return its number, which was never used before.

        Parameters
        ----------
        factory : callable, optional
            Default: that of the others.

        Raises
        ------
        TimeoutError
            It did not start in time.
        ValueError
            It differs from the others in its vocabulary or page size.
        """
        self._check_open()
        made = self._factory if factory is None else check_factory(factory)
        ((actor, limits, _),) = start(
            [made], self._needs, self._start_timeout_s, self._fleet.limits
        )
        return uninterrupted(self._join, actor, limits)

    def _join(self, actor, limits):
        with self._state:
            self._check_open()
            return self._fleet.join(actor, limits)

    def remove(self, engine: int, *, drain: bool = True) -> None:
        """Stop an engine; it gets no more requests.

        Parameters
        ----------
        engine : int
            Its number.
        drain : bool
            Whether to wait until its requests have ended. Otherwise they run again on others, from
            their prompts, as after a failure: none is lost, and none gets other tokens.

        Raises
        ------
        KeyError
            There is no such engine.
        ValueError
            It is the last one.
        """
        number, drain = validation.natural(engine, "engine"), validation.flag(drain, "drain")
        member = uninterrupted(self._retire, number)
        if drain:
            try:
                self._waits.wait(lambda: not member.jobs or number not in self._fleet.members)
            except BaseException:
                uninterrupted(self._reopen, member)
                raise
        uninterrupted(self._dismiss, member)

    def _retire(self, number):
        with self._state:
            self._check_open()
            if number not in self._fleet.members:
                raise KeyError(f"no engine has number {number}")
            member = self._fleet.members[number]
            if len(self._fleet.by_route) == 1 and member.route is not None:
                raise ValueError(f"engine {number} is the last one")
            self._fleet.shut(member)
            return member

    def _reopen(self, member):
        with self._state:
            self._fleet.open(member)

    def _dismiss(self, member):
        with self._state:
            if self._fleet.members.pop(member.number, None) is not None:
                for job in member.jobs.values():
                    self._counts["rerun"] += 1
                    self._fleet.send(job)
                member.jobs = {}
                kill(member.actor)
                self._waits.wake()

    def _fail(self, member, error):
        """An engine has failed: its requests go to others, or end with an error."""
        del self._fleet.members[member.number]
        self._fleet.shut(member)
        kill(member.actor)
        self._counts["failed_engines"] += 1
        jobs, member.jobs = member.jobs, {}
        text = f"engine {member.number} failed: {error}"
        _LOGGER.warning("%s; it had %d requests", text, len(jobs))
        for job in jobs.values():
            job.attempts += 1
            if self._fleet.by_route and job.attempts < self._max_attempts:
                self._counts["rerun"] += 1
                self._fleet.send(job)
                continue
            reason = f"it was on {job.attempts} engines that failed"
            if not self._fleet.by_route:
                reason = "no engine is left"
            failure = EngineFailedError(f"request {job.request.request_id!r}: {reason}; {text}")
            failure.__cause__ = error
            self._end(job.request, "error", failure)

    def _check_time(self, member):
        limit = self._answer_timeout_s
        if limit is not None and time.monotonic() - member.called_at > limit:
            self._fail(member, TimeoutError(f"no answer for {limit:g} s"))

    @property
    def engines(self) -> list[int]:
        """The numbers of the engines there are, rising."""
        with self._state:
            return sorted(self._fleet.members)

    def __len__(self) -> int:
        """Return how many engines there are."""
        return len(self._fleet.members)

    def stats(self) -> RoutedStats:
        """Counts of all, and of each engine, which is asked for its own."""
        with self._state:
            self._check_open()
            members = list(self._fleet.members.values())
            answers = [member.actor.stats.remote() for member in members]
        found = {}
        for member, answer in zip(members, answers, strict=True):
            try:
                found[member.number] = ray.get(answer, timeout=self._answer_timeout_s)
            except ray.exceptions.RayError as error:
                uninterrupted(self._report, member, error)
        with self._state:
            return stats_of(found, self._n_submitted, self._counts, self._fleet.router)

    def _report(self, member, error):
        with self._state:  # it did not answer to another call than that for tokens
            if self._fleet.members.get(member.number) is member:
                self._fail(member, error)
                self._waits.wake()

    def check(self) -> None:
        """Assert that every request that goes on is on one engine, and the router's invariants."""
        with self._state:
            fleet = self._fleet
            fleet.check()
            assert sorted(fleet.where) == sorted(self._by_id.values())
            for number, member in fleet.where.items():
                assert self._by_id[member.jobs[number].request.request_id] == number

    def close(self) -> None:
        """Cancel all requests and end the actors. Again: nothing."""
        uninterrupted(self._close)

    def _close(self):
        with self._state:
            if self._closed:
                return
            self._closed = True
            for member in self._fleet.members.values():
                for job in list(member.jobs.values()):
                    self._end(job.request, "cancelled")
                member.jobs = {}
                kill(member.actor)
            self._fleet.members, self._fleet.by_route = {}, {}
            self._waits.wake()
            self._waits.close()
            self._calls.close()

    def __enter__(self) -> "RoutedEngines":
        self._check_open()
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("RoutedEngines cannot be copied or pickled: requests wait for it here")

    def __repr__(self) -> str:
        return f"<RoutedEngines: {len(self)} engines, {len(self._by_id)} requests>"

    def _check_open(self):
        if self._closed:
            raise RuntimeError("the engines are closed")

    def _decode(self, tokens):
        return None if self._text_of is None else self._text_of(tokens)
