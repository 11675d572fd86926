"""A grid of replays in parallel processes: the answer to how many pages, and which policy."""

import itertools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from ..errors import BadInput
from . import replay, traces

_loaded = None  # the trace, in each process


def grid(axes) -> list[dict]:
    """Every combination of the values of ``axes``, a dict of lists, the last one fastest.

    >>> grid({"pages": [1, 2], "eviction": ["lru"]})
    [{'pages': 1, 'eviction': 'lru'}, {'pages': 2, 'eviction': 'lru'}]
    """
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def run(path, limit, options, axes, jobs, progress) -> dict:
    """Replay a trace at every point of a grid; the order of the points is that of `grid`.

    Parameters
    ----------
    path : str
        Read once in each process.
    limit : int or None
        Of requests.
    options : Options
        What the axes leave open.
    axes : dict of list
        Values for fields of `Options`, by name.
    jobs : int
        Processes; 1 works in this one.
    progress : Progress
    """
    points = grid(axes)
    for point in points:
        pages, replicas = (point.get(k, getattr(options, k)) for k in ("pages", "replicas"))
        if pages < replicas:
            raise BadInput(f"--pages {pages} are fewer than --replicas {replicas}")
    with progress.stage("read"):
        _load(path, limit)  # what is wrong with it is said before any process starts
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
