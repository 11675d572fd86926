"""`llmds-nb claims`: measures every promise of the design on this machine.

Each function returns a `Claim`: what is claimed, what was measured, the verdict and the conditions.
A claim that does not hold on this machine is shown as failed, and the command has exit code 1.
"""

import os
import textwrap
import time
from datetime import date
from typing import Any, NamedTuple

import numpy as np

from llmds_nb import HNSW, CountMinSketch, InvertedIndex, KVCache

from ..._core.statistics import nearest_rank
from .. import info
from ..demo.checks import neighbour_recall
from ..progress import Progress
from ..replay.microbatches import BATCH, largest_load, micro_batches
from ..replay.sharing import pages_needed, saved_percent
from . import growth

SAVED_PERCENT = (30.0, 40.0)
THROUGHPUT, P95_MS, MAX_WAIT_MS, SERVICE_MS = 0.95, 100.0, 50.0, (8, 16, 32)
RECALL, SEARCH_P95_MS = 0.95, 5.0
POSTING_BYTES, PLAIN_BYTES = 2.0, 8  # plain: an int32 document and an int32 count


_LIBRARIES = ("llmds_nb", "python", "numba", "numpy", "scipy")


class Claim(NamedTuple):
    """One promise and its measurement."""

    name: str
    claimed: str
    measured: str
    passed: bool
    conditions: str


def run(progress: Progress, *, seed: int = 0, smaller: int = 1) -> dict[str, Any]:
    """Measure everything; `smaller` divides the sizes, for a quick look: the claims are made for 1.

    Latencies and growth depend on the machine and its load; all else repeats with the seed. Returns
    "claims" (list of dict, Claim), "growth" (list of dict, Growth), "latencies_ms" (201 quantiles
    of the latency of the batch server, by S(32)), "machine" (dict), "seed", "smaller", "date",
    "seconds".
    """
    start = time.perf_counter()
    claims: list[Claim] = []
    grown: list[growth.Growth] = []
    latencies: dict[str, list[float]] = {}
    for name, measure in (
        ("prefix sharing", lambda: sharing(seed)),
        ("micro-batches", lambda: batching(seed, latencies, smaller)),
        ("HNSW", lambda: search(seed, smaller)),
        ("postings", lambda: postings(seed, smaller)),
        ("sketch", lambda: sketch(seed, smaller)),
    ):
        with progress.stage(name):
            claims.append(measure())
    for name, (_, _, sizes, _) in growth.CASES.items():
        with progress.stage(name, len(sizes) + growth.ROUNDS, "steps") as done:
            grown.append(growth.measure(name, seed, done, smaller=smaller))
        claims.append(_growth_claim(grown[-1]))
    known = dict(info.describe())
    machine = {"machine": known["machine"], "cores": str(os.cpu_count())}
    return {
        "claims": [claim._asdict() for claim in claims],
        "growth": [one._asdict() | {"passed": one.passed} for one in grown],
        "latencies_ms": latencies,
        "machine": machine | {name: known[name] for name in _LIBRARIES},
        "seed": seed,
        "smaller": smaller,
        "date": date.today().isoformat(),
        "seconds": time.perf_counter() - start,
    }


def sharing(seed: int) -> Claim:
    """Pages saved by sharing system prompts, against the formula."""
    rng, n, systems, page_size = np.random.default_rng(seed), 200, 8, 16
    lengths = np.linspace(300, 700, systems).astype(np.int64)
    owns = np.clip(np.exp(rng.normal(np.log(800), 0.5, n)), 50, 4000).astype(np.int64)
    chosen = np.concatenate([np.arange(systems), rng.integers(0, systems, n - systems)])
    cache = KVCache(40_000, page_size, key=b"claims")
    for i, (system, own) in enumerate(zip(chosen.tolist(), owns.tolist(), strict=True)):
        head = np.arange(lengths[system], dtype=np.int32) + 1000 * system
        prompt = np.concatenate([head, rng.integers(10**6, 2**31, own, np.int32)])
        cache.attach(i, prompt)
        cache.commit(i, prompt.size)
    needed = pages_needed(lengths[chosen] + owns, page_size)
    saved = cache.stats().saved
    members = np.bincount(chosen, minlength=systems)
    formula = int(((members - 1) * (lengths // page_size)).sum())
    percent = saved_percent(needed - saved, needed)
    low, high = SAVED_PERCENT
    return Claim(
        "memory saved by prefix sharing",
        f"{low:g} to {high:g} % on repeated system prompts, as the formula says to one page",
        f"{percent:.1f} %: {saved:,} of {needed:,} pages; by the formula {formula:,}",
        bool(low <= percent <= high and abs(saved - formula) <= 1),
        f"{n} sequences at once on {systems} system prompts of 300 to 700 tokens, each with "
        f"log-normal text of its own, median 800; pages of {page_size}. Formula: the sum over the "
        "system prompts of (sequences - 1) * floor(tokens / page size)",
    )


def batching(seed: int, latencies: dict[str, list[float]], smaller: int = 1) -> Claim:
    """The largest load of a server of micro-batches at which the p95 is still below the limit.

    Puts quantiles of the latency into `latencies`, by S(32).
    """
    n = max(60_000 // smaller, 4_000)
    loads = {}
    for service in SERVICE_MS:
        load = largest_load(service, seed, limit_ms=P95_MS, n=n, max_wait_ms=MAX_WAIT_MS)
        at = micro_batches(THROUGHPUT, service, seed, n=n, max_wait_ms=MAX_WAIT_MS)
        latencies[str(service)] = np.percentile(at, np.arange(0, 100.5, 0.5)).tolist()
        loads[service] = load, nearest_rank(at, (0.95,))[0]
    each = "; ".join(
        f"S({BATCH}) = {service} ms: {load:.2f} of the largest throughput, p95 {p95:.1f} ms at .95"
        for service, (load, p95) in loads.items()
    )
    return Claim(
        "throughput of micro-batches",
        f">= {THROUGHPUT:.0%} of the largest throughput with p95 < {P95_MS:g} ms, max_wait "
        f"{MAX_WAIT_MS:g} ms",
        each,
        all(load >= THROUGHPUT for load, _ in loads.values()),
        f"virtual clock, {n:,} Poisson arrivals, batches of at most {BATCH}; a batch of n takes "
        f"S({BATCH}) / 2 * (1 + n / {BATCH}); the largest load, in steps of .01, with p95 below "
        f"{P95_MS:g} ms. A server with S({BATCH}) = 48 ms cannot: its batch alone takes half of it",
    )


def search(seed: int, smaller: int = 1) -> Claim:
    """Recall against brute force, and the wall-clock latency of single queries."""
    n, n_queries, dim = max(20_000 // smaller, 500), 1000, 128
    rng = np.random.default_rng(seed)
    vectors, queries = growth.vectors(n, rng, dim), growth.vectors(n_queries, rng, dim)
    index = HNSW(dim, metric="cosine", M=16, ef_construction=200, ef_search=50, seed=seed)
    index.add(vectors)
    index.search(queries[0], 10)
    taken, found = [], []
    for query in queries:
        start = time.perf_counter_ns()
        found.append(index.search(query, 10).ids)
        taken.append((time.perf_counter_ns() - start) / 1e6)
    recall = neighbour_recall(np.array(found).reshape(n_queries, -1), vectors, queries)
    p50, p95 = nearest_rank(taken, (0.5, 0.95))
    return Claim(
        "HNSW search",
        f"recall@10 > {RECALL:.0%} and p95 < {SEARCH_P95_MS:g} ms with M=16, ef=50",
        f"recall@10 {recall:.4f}; p50 {p50:.3f} ms, p95 {p95:.3f} ms",
        bool(recall > RECALL and p95 < SEARCH_P95_MS),
        f"{n:,} vectors of {dim} dimensions, Gaussian along 16 directions with noise in all, "
        f"cosine, ef_construction=200, {n_queries:,} other vectors as queries, one a call, wall "
        "clock; recall against brute force, ties counted",
    )


def postings(seed: int, smaller: int = 1) -> Claim:
    """Bytes of a posting as stored."""
    n = max(50_000 // smaller, 500)
    texts = growth.texts(n, np.random.default_rng(seed))
    index = InvertedIndex()
    index.add(None, texts)
    index.compact()
    count = sum(len(set(text.split())) for text in texts)
    each = index.stats().postings_bytes / count
    return Claim(
        "compression of postings",
        f"<= {POSTING_BYTES:g} bytes a posting, where plain int32 pairs take {PLAIN_BYTES}",
        f"{each:.3f} bytes, {PLAIN_BYTES / each:.1f} times smaller",
        bool(each <= POSTING_BYTES),
        f"{n:,} documents of 50 words, Zipf over 20,000 words, {count:,} postings, document and "
        "count, without the vocabulary",
    )


def sketch(seed: int, smaller: int = 1) -> Claim:
    """No estimate below the true count, and the stated error bound."""
    n = max(1_000_000 // smaller, 1000)
    rng = np.random.default_rng(seed)
    items = rng.zipf(1.1, n) % 2**40
    kept = CountMinSketch(2**14, 4, seed=seed)
    for part in np.array_split(items, 10):
        kept.add(part)
    distinct, counts = np.unique(items, return_counts=True)
    over = kept.estimate(distinct).astype(np.int64) - counts
    error, probability = kept.error_bound()
    beyond = float((over > error).mean())
    return Claim(
        "sketch",
        "never counts too little; off by more than the stated error no oftener than stated",
        f"{int((over < 0).sum())} of {distinct.size:,} too low; {beyond:.4%} off by more than "
        f"{error:.0f}",
        bool((over >= 0).all() and beyond <= probability),
        f"{n:,} items by Zipf(1.1), width 2**14, depth 4, conservative; stated: an error above "
        f"{error:.0f} with a probability of at most {probability:.4f}",
    )


def _growth_claim(one) -> Claim:
    ends = f"{one.us[0]:.3g} us at {one.sizes[0]:,}, {one.us[-1]:.3g} us at {one.sizes[-1]:,}"
    claimed = f"{one.bound}: exponent <= {growth.LIMITS[one.bound]:g}"
    measured = f"n ** {one.exponent:.3f}; {ends} {one.size}"
    sizes = ", ".join(f"{n:,}" for n in one.sizes)
    timed = f"median CPU time of {growth.ROUNDS} rounds, the sizes in turns: {sizes} {one.size}"
    return Claim(f"cost to {one.name}", claimed, measured, one.passed, timed)


def table(result: dict[str, Any]) -> str:
    """Claims, measurements, verdicts and conditions as text of less than 100 columns."""
    machine = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    smaller = f"; sizes divided by {result['smaller']}" if result["smaller"] > 1 else ""
    lines = [f"Measured {result['date']} with seed {result['seed']}{smaller}", *_wrap(machine, 2)]
    for claim in result["claims"]:
        lines += ["", f"{'holds ' if claim['passed'] else 'FAILED'}  {claim['name']}"]
        for key in ("claimed", "measured", "conditions"):
            first, *more = _wrap(claim[key], 19)
            lines += [f"        {key:<11}" + first.strip(), *more]
    n_failed = sum(not claim["passed"] for claim in result["claims"])
    lines += ["", f"{len(result['claims']) - n_failed} of {len(result['claims'])} claims hold "
              f"({result['seconds']:.0f} s)"]  # fmt: skip
    return "\n".join(lines)


def _wrap(text, indent):
    return textwrap.wrap(text, 99, initial_indent=" " * indent, subsequent_indent=" " * indent)
