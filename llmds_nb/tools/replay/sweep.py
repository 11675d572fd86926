"""Replays of one trace at every point of a grid of options, in parallel processes."""

import itertools
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..progress import Progress
from . import replay, traces

_loaded: traces.Trace  # in each process


def grid(axes: Mapping[str, Sequence]) -> list[dict[str, Any]]:
    """Every combination of the values of ``axes``; the last axis varies fastest.

    >>> grid({"pages": [1, 2], "eviction": ["lru"]})
    [{'pages': 1, 'eviction': 'lru'}, {'pages': 2, 'eviction': 'lru'}]
    """
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def run(
    path: str | os.PathLike,
    limit: int | None,
    options: replay.Options,
    axes: Mapping[str, Sequence],
    jobs: int,
    progress: Progress,
) -> dict[str, Any]:
    """Replay a trace at every point of a grid; the points are in the order of `grid`.

    Parameters
    ----------
    path : str
        Read once in each process.
    limit : int or None
        Of requests.
    options : Options
        Values of all other options.
    axes : dict of list
        Values for fields of `Options`, by name.
    jobs : int
        Number of processes; 1 replays in this one.
    progress : Progress
    """
    points = grid(axes)
    for point in points:
        pages, replicas = (point.get(k, getattr(options, k)) for k in ("pages", "replicas"))
        if pages < replicas:
            raise BadInput(f"--pages {pages} are fewer than --replicas {replicas}")
    with progress.stage("read"):
        _load(path, limit)  # raises what is wrong with the trace before any process starts
    tasks = [options._replace(**point) for point in points]
    jobs = min(jobs, len(tasks))
    with progress.stage("sweep", len(tasks), "replays") as done:
        if jobs == 1:
            results = [_one(task, done) for task in tasks]
        else:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(jobs, context, _load, (path, limit)) as pool:
                futures = [pool.submit(_one, task) for task in tasks]
                for future in futures:
                    future.add_done_callback(lambda _: done(1))
                results = [future.result() for future in futures]
    conditions = dict(results[0]["conditions"], trace=Path(path).name)
    for result, point in zip(results, points, strict=True):
        result["values"] = point
        del result["conditions"]
    return {"conditions": conditions, "keys": list(axes), "points": results}


def _load(path, limit):
    global _loaded
    _loaded = traces.read(path, limit=limit)


def _one(options, done=lambda n: None):
    result = replay.run(_loaded, options)
    result.pop("samples", None)
    done(1)
    return result
