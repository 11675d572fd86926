"""Hit ratio against capacity: the curves of eviction policies, and Belady's bound."""

import numpy as np

from llmds_nb import KVCache
from llmds_nb._core.typing import Int32s, Int64s

from ..progress import Done, Progress, nothing
from .arguments import Options
from .belady import belady_hits
from .replay import HASH_KEY
from .traces import Trace

STEPS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4)  # the capacities of a curve / that of the replay


def number_pages(trace: Trace, page_size: int) -> tuple[Int32s, Int64s]:
    """Number every full page of the prompts by the prefix that ends with it. O(parts + pages).

    Two pages have the same number exactly if all tokens up to their ends are equal, so a cache of
    these numbers, one token per page, has the hits of a cache of the tokens. Returns numbers
    int32[total] and offsets int64[n + 1]: request i has ``numbers[indptr[i]:indptr[i + 1]]``.
    """
    counts = trace.prompt // page_size
    indptr = np.concatenate([[0], np.cumsum(counts)])
    numbers = np.empty(indptr[-1], np.int32)
    known: dict[tuple, int] = {}
    for first, stop in trace.chunks():
        keys, bounds = _keys(trace, page_size, first, stop, counts[first:stop])
        place = int(indptr[first])
        at = 0
        for n in counts[first:stop].tolist():
            parent = -1
            for _ in range(n):
                key = parent, keys[bounds[at] : bounds[at + 1]]
                parent = numbers[place] = known.setdefault(key, len(known))
                place += 1
                at += 1
            at += 1  # the remainder after the last full page
    return numbers, indptr


def _keys(trace, page_size, first, stop, counts):
    """The ranges of token ids that make up each page, as bytes, and where each page's bytes begin.

    A range (first token id, length) begins at each boundary of a part, of a page, or of the
    remainder after the last full page. Every request has a remainder, which may be empty.
    """
    a, b = trace.indptr[first], trace.indptr[stop]
    ends = np.cumsum(trace.length[a:b], dtype=np.int64)
    begins = ends - trace.length[a:b]
    requests = np.concatenate([[0], np.cumsum(trace.prompt[first:stop])])
    n = counts + 1
    of = np.repeat(np.arange(counts.size), n)
    nth = np.arange(of.size) - np.repeat(np.cumsum(n) - n, n)
    pages = requests[of] + nth * page_size
    cuts = np.union1d(begins, pages)
    cuts = cuts[cuts < requests[-1]]
    part = np.searchsorted(begins, cuts, "right") - 1
    ranges = np.empty((cuts.size, 2), np.int32)
    ranges[:, 0] = trace.start[a:b][part] + (cuts - begins[part])
    ranges[:, 1] = np.diff(np.concatenate([cuts, requests[-1:]]))
    places = np.searchsorted(cuts, np.concatenate([pages, requests[-1:]]))
    return ranges.tobytes(), (places * 8).tolist()


def curve(
    trace: Trace, page_size: int, policies: list[str], capacities: list[int], done: Done = nothing
) -> dict[str, list[float]]:
    """Hit ratios of a cache without an engine: a list for each policy, and one for "belady".

    NaN for a capacity that cannot hold the longest request, except under "belady".
    """
    numbers, indptr = number_pages(trace, page_size)
    begun = int((-(-trace.prompt // page_size)).sum())
    largest = int((-(-trace.prompt // page_size)).max())
    done(1)
    result = {"belady": [hits / begun for hits in belady_hits(numbers, capacities)]}
    done(1)
    for policy in policies:
        result[policy] = []
        for capacity in capacities:
            ratio = float("nan")
            if capacity >= largest:
                ratio = _hits(numbers, indptr, trace, page_size, policy, capacity) / begun
            result[policy].append(ratio)
            done(1)
    return result


def around(trace: Trace, options: Options, progress: Progress) -> dict[str, list]:
    """Curves of LRU, path-LRFU and the policy of a replay, at capacities around that of the replay.

    Keys: "capacity", "belady" and the names of the policies.
    """
    capacities = sorted({max(1, round(options.pages * step)) for step in STEPS})
    policies = list(dict.fromkeys([options.eviction, "lru", "path-lrfu"]))
    total = 2 + len(policies) * len(capacities)
    with progress.stage("hit ratios", total, "runs") as done:
        curves = curve(trace, options.page_size, policies, capacities, done)
    return {"capacity": capacities, **curves}


def _hits(numbers, indptr, trace, page_size, policy, capacity):
    """Pages found in a cache with one token per page, the number of the page."""
    cache = KVCache(capacity, 1, eviction=policy, key=HASH_KEY)
    partial = (trace.prompt % page_size > 0).tolist()
    bounds, hits = indptr.tolist(), 0
    for i in range(len(trace)):
        pages = numbers[bounds[i] : bounds[i + 1]]
        if partial[i]:  # takes a page while the request runs; never committed, so never found
            pages = np.append(pages, np.int32(2**31 - 1))
        hits += cache.attach(i, pages)
        cache.commit(i, bounds[i + 1] - bounds[i])
        cache.detach(i)
    return hits
