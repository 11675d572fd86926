"""Searches that wait are joined to batches: one call of the pipeline for all with equal options.

A search waits in a Scheduler until a worker thread is free, which then takes all that wait, up to
`max_batch_queries`: no search waits for others while a worker has nothing to do. Callers take turns
by the number of their queries (policy "fair"). All of this runs in the thread of the event loop;
`_answers` in a worker, or, for a batch that takes less than the way to one and back, in that thread
too: of plain queries of an encoder of ours, by the CPU time of those before.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from llmds_nb import LsaEncoder, Scheduler, StaticEncoder

from .errors import Problem, problem, retry_after
from .settings import Settings
from .words import is_by_words, words_alone

_OF_EACH = "vectors", "where", "filter"  # options that have a value for each query
_SHORT_S = 1e-3  # two turns of threads take 0.2 ms of CPU, and the core's cache
_KEPT = 0.95  # of the time of a longer query, at each one after it
_PLAIN_K, _PLAIN_CHARS = 100, 1000
_log = logging.getLogger(__name__)


class Query(NamedTuple):
    """The queries of one request, and how they are to be answered."""

    texts: list[str]
    k: int
    documents: bool
    one: bool  # whether the request had one query and no list
    shared: tuple[tuple[str, Any], ...]  # options that the whole batch must have
    of_each: dict[str, list[Any]]  # the others, a value for each text

    @classmethod
    def of(
        cls, texts: list[str], k: int, documents: bool, one: bool, options: dict[str, Any]
    ) -> "Query":
        """The query of a call of `ServerState.search`; options that are None are left out."""
        given = {name: value for name, value in options.items() if value is not None}
        of_each = {
            name: _each(given.pop(name), name, len(texts), one)
            for name in _OF_EACH
            if name in given
        }
        return cls(texts, k, documents, one, tuple(sorted(given.items())), of_each)

    @property
    def key(self) -> tuple:
        """Equal for queries that one call can answer."""
        return self.k, self.documents, "vectors" in self.of_each, self.shared


def _each(value, name, n, one):
    if name == "vectors":
        return [value] if one else list(value)
    for_all = isinstance(value, dict) if name == "where" else not _is_nested(value)
    return [value] * n if for_all else list(value)


def _is_nested(filters):
    return any(one is None or isinstance(one, list | tuple | np.ndarray) for one in filters)


class _Waiting(NamedTuple):
    query: Query
    answer: asyncio.Future


class MicroBatcher:
    """Runs searches in worker threads, those that wait together where their options are equal."""

    def __init__(self, pipeline: Any, settings: Settings) -> None:
        most = max(settings.max_batch_queries, settings.max_queries)
        self.scheduler = Scheduler(
            settings.max_batch_queries, 0.0, max_batch_tokens=most, policy="fair"
        )
        self._most = most
        self._pipeline, self._threads = pipeline, settings.threads
        self._max_waiting, self._idle_workers = settings.max_waiting, settings.workers
        self._workers = ThreadPoolExecutor(settings.workers, "llmds-search")
        self._waiting: dict[int, _Waiting] = {}
        self._groups: deque[list[tuple[int, _Waiting]]] = deque()
        self._is_due = False
        self._seconds = math.inf  # of a plain query, or what is left of a longer one before it

    async def run(self, query: Query, tenant: int = 0) -> tuple[Any, Any]:
        """(Hits [n, k], documents) of a query; a Problem of status 503 where too many wait."""
        if len(self._waiting) >= self._max_waiting:
            text = f"{self._max_waiting} searches wait already"
            problem(503, text, code="overloaded", headers=retry_after(1))
        loop = asyncio.get_running_loop()
        tokens = min(max(1, len(query.texts)), self._most)
        number = self.scheduler.submit(tokens, tenant=tenant)
        answer = loop.create_future()
        self._waiting[number] = _Waiting(query, answer)
        if not self._is_due:  # after others that came in the same turn of the loop
            self._is_due = True
            loop.call_soon(self._dispatch, loop)
        try:
            return await answer
        finally:
            if self._waiting.pop(number, None) is not None:  # cancelled before its turn
                self.scheduler.cancel(number)

    def _dispatch(self, loop):
        self._is_due = False
        while self._idle_workers:
            if not self._groups:
                self._groups.extend(self._next_groups())
            if not self._groups:
                return
            group = self._groups.popleft()
            if self._is_short(group):
                self._give(group, self._answers_of(group))
                self._is_due = True  # what has come meanwhile is read first
                loop.call_soon(self._dispatch, loop)
                return
            self._idle_workers -= 1
            self._workers.submit(self._work, loop, group)

    def _next_groups(self):
        """The next batch, by options."""
        groups: dict[tuple, list] = {}
        for number in self.scheduler.get_batch(idle=True).ids.tolist():
            waiting = self._waiting.pop(number)
            groups.setdefault(waiting.query.key, []).append((number, waiting))
        return groups.values()

    def _is_short(self, group):
        """Whether a group takes less time than the way to a worker and back."""
        queries = [waiting.query for _, waiting in group]
        n = sum(len(query.texts) for query in queries)
        if n * self._seconds > _SHORT_S or not all(map(_is_plain, queries)):
            return False
        return self._threads == 1 and isinstance(self._pipeline.encoder, LsaEncoder | StaticEncoder)

    def _answers_of(self, group):
        """The outcomes of a group; it measures plain queries, in CPU time."""
        queries, begun = [waiting.query for _, waiting in group], time.thread_time()
        outcomes = self._answers(queries)
        if all(map(_is_plain, queries)):
            n = sum(len(query.texts) for query in queries)
            seconds = (time.thread_time() - begun) / max(1, n)
            before = 0.0 if self._seconds == math.inf else self._seconds
            self._seconds = max(seconds, _KEPT * before)
        return outcomes

    def _work(self, loop, group):
        outcomes = self._answers_of(group)
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
            loop.call_soon_threadsafe(self._deliver, loop, group, outcomes)

    def _deliver(self, loop, group, outcomes):
        self._idle_workers += 1
        self._give(group, outcomes)
        self._dispatch(loop)

    def _give(self, group, outcomes):
        self.scheduler.complete([number for number, _ in group])
        for (_, waiting), outcome in zip(group, outcomes, strict=True):
            if waiting.answer.done():  # its request has ended
                continue
            if isinstance(outcome, BaseException):
                waiting.answer.set_exception(outcome)
            else:
                waiting.answer.set_result(outcome)

    def _answers(self, queries: Sequence[Query]) -> list[Any]:
        """The answer of each query, or its error: what is wrong with one is no fault of others."""
        try:
            return self._search(queries)
        except Exception as error:
            if len(queries) > 1:
                return [self._answers([query])[0] for query in queries]
            return [_problem_of(error)]

    def _search(self, queries):
        pipeline, (first, *others) = self._pipeline, queries
        texts = [text for query in queries for text in query.texts]
        options = dict(first.shared)
        for name in _OF_EACH:
            if any(name in query.of_each for query in queries):
                options[name] = [
                    value for query in queries
                    for value in query.of_each.get(name, [None] * len(query.texts))
                ]  # fmt: skip
        by_words = is_by_words(pipeline, options)
        if by_words:
            options = words_alone(pipeline, options, (len(texts),))
        elif "vectors" in options:
            options["vectors"] = _matrix(options["vectors"])
        if not others and len(texts) == 1 and not options:  # the quickest, and cached, of all
            hits = pipeline.search(texts[0], first.k, threads=self._threads)
            hits = type(hits)(hits.ids[None], hits.scores[None])
        else:
            hits = pipeline.search(texts, first.k, threads=self._threads, **options)
        if by_words:
            hits = _with_words(hits)
        found = pipeline.documents(hits) if first.documents else None
        answers, start = [], 0
        for query in queries:
            stop = start + len(query.texts)
            some = type(hits)(hits.ids[start:stop], hits.scores[start:stop])
            answers.append((some, None if found is None else found[start:stop]))
            start = stop
        return answers

    def close(self) -> None:
        """End the workers, once what they do is done."""
        self._workers.shutdown(cancel_futures=True)


def _is_plain(query):
    """Whether its time is that of the plain queries before it."""
    small = query.k <= _PLAIN_K and all(len(text) <= _PLAIN_CHARS for text in query.texts)
    return small and not query.shared and not query.of_each


def _matrix(vectors):
    sizes = {len(vector) for vector in vectors}
    if len(sizes) > 1:
        raise ValueError(f"vectors must have one dimension, not {sorted(sizes)}")
    return np.asarray(vectors, np.float32)


def _with_words(hits):
    """Hits without those that only a vector could have found."""
    ids, scores = hits.ids.copy(), hits.scores.copy()
    none = scores <= 0
    ids[none] = None if ids.dtype == object else -1
    scores[none] = -np.inf
    return type(hits)(ids, scores)


def _problem_of(error):
    """What the pipeline refuses is the client's to correct; the rest is not."""
    if isinstance(error, ValueError | TypeError) and not isinstance(error, UnicodeError):
        return Problem(400, str(error), code="invalid_search")
    if isinstance(error, KeyError):
        return Problem(404, str(error.args[0]), "filter", code="unknown_id")
    return error
