"""Replays of one trace at every point of a grid of options, in parallel processes."""

import itertools
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from ..errors import BadInput
from ..processes import end_on_interrupt
from ..progress import Progress, nothing
from . import replay, traces
from .arguments import Options

Axes = Mapping[str, Sequence]
_loaded: traces.Trace  # in each process


def grid(axes: Axes) -> list[dict[str, Any]]:
    """Every combination of the values of ``axes``; the last axis varies fastest.

    >>> grid({"pages": [1, 2], "eviction": ["lru"]})
    [{'pages': 1, 'eviction': 'lru'}, {'pages': 2, 'eviction': 'lru'}]
    """
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def run(
    read: Callable[[], traces.Trace], options: Options, axes: Axes, jobs: int, progress: Progress
) -> dict[str, Any]:
    """Replay a trace at every point of a grid; the points are in the order of `grid`.

    `axes` holds values for fields of `Options`, which has those of the others. Each of `jobs`
    processes reads the trace once; 1 replays in this one.
    """
    points = grid(axes)
    for point in points:
        pages, replicas = (point.get(k, getattr(options, k)) for k in ("pages", "replicas"))
        if pages < replicas:
            raise BadInput(f"--pages {pages} are fewer than --replicas {replicas}")
    with progress.stage("read"):
        _load(read)  # raises what is wrong with the trace before any process starts
    tasks = [options._replace(**point) for point in points]
    jobs = min(jobs, len(tasks))
    with progress.stage("sweep", len(tasks), "replays") as done:
        if jobs == 1:
            results = [_one(task, done) for task in tasks]
        else:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(jobs, context, _start, (read,)) as pool:
                try:
                    futures = [pool.submit(_one, task) for task in tasks]
                    for future in futures:
                        future.add_done_callback(lambda _: done(1))
                    results = [future.result() for future in futures]
                except BaseException:  # an interrupt does not wait for the tasks that are left
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
    conditions = results[0]["conditions"]
    for result, point in zip(results, points, strict=True):
        result["values"] = point
        del result["conditions"]
    return {"conditions": conditions, "keys": list(axes), "points": results}


def _start(read):
    end_on_interrupt()
    _load(read)


def _load(read):
    global _loaded
    _loaded = read()


def _one(options, done=nothing):
    result = replay.run(_loaded, options)
    result.pop("samples", None)
    done(1)
    return result
