"""Seeded workloads: when requests arrive, what they ask, and how long their answers are.

`make_workload` draws single questions, for the demo. `generate` draws conversations, which `write`
stores as the JSONL that `traces.py` reads. All is drawn from one seeded generator, so a workload
repeats.

Arrivals   Gamma-distributed gaps with mean 1/rate and shape `BURST_SHAPE`. A shape below 1 makes
           bursts: the coefficient of variation is 1/sqrt(shape), 2 for a shape of 0.25; that of
           Poisson arrivals is 1.
Questions  of the demo by Zipf popularity: the r-th most popular is asked with probability
           proportional to r ** -exponent.
Answers    Log-normal lengths in tokens, clipped to a range.

The prompt of a request of a conversation is a system prompt, the turns before it with their
answers, and its own turn: retrieved chunks and a question.

Conversations  begin at bursty arrivals, as above.
Turns          a geometric number, `turns` on average, at most `MAX_TURNS`. The next turn comes when
               the answer is complete (`ANSWER_MS` per token) and after a pause, exponential with
               mean `pause_s`.
Systems        one of `systems` prompts by Zipf popularity; log-normal lengths.
Chunks         a conversation retrieves with probability `rag_share`; each of its turns then brings
               `chunks_per_turn` of `chunks` texts of `CHUNK_TOKENS`, by Zipf popularity.
Questions      log-normal lengths; no two are equal.
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from llmds_nb._core.files import replace_file
from llmds_nb._core.typing import Int64s, PathLike

from ..progress import Done, nothing

BURST_SHAPE = 0.25
ZIPF_EXPONENT = 1.0
ANSWER_TOKENS = (8, 90, 384)  # smallest, median, largest
ANSWER_SIGMA = 0.6  # of the logarithm
MAX_TURNS = 12
ANSWER_MS = 30.0
CHUNK_TOKENS = 200
SYSTEM_TOKENS = (64, 400, 2000)  # smallest, median, largest
QUESTION_TOKENS = (4, 40, 400)
PROMPT_SIGMA = 0.7  # of the logarithms of system prompts and questions


class Workload(NamedTuple):
    """Requests in the order of arrival."""

    arrival_ns: Int64s  # int64[n], non-decreasing
    question: Int64s  # int64[n], number of the question asked
    new_tokens: Int64s  # int64[n], length of the answer


class Options(NamedTuple):
    """A workload of conversations, as the user chooses it."""

    requests: int = 2000
    rate: float = 8.0  # requests per second
    seed: int = 0
    turns: float = 3.0
    pause_s: float = 20.0
    systems: int = 20
    rag_share: float = 0.5
    chunks: int = 1000
    chunks_per_turn: int = 3
    zipf: float = 1.0  # exponent of all popularities


def make_workload(
    n: int, n_questions: int, rate_per_s: float, rng: np.random.Generator
) -> Workload:
    """`n` single requests over `n_questions` questions."""
    arrivals, asked = bursty_arrivals(n, rate_per_s, rng), zipf_choices(n, n_questions, rng)
    return Workload(arrivals, asked, answer_lengths(n, rng))


def bursty_arrivals(
    n: int, rate_per_s: float, rng: np.random.Generator, *, shape: float = BURST_SHAPE
) -> Int64s:
    """Arrival times int64[n] in ns, with gamma-distributed gaps."""
    gaps = rng.gamma(shape, 1e9 / (rate_per_s * shape), n)
    return np.cumsum(gaps).astype(np.int64)


def zipf_choices(
    n: int, n_items: int, rng: np.random.Generator, *, exponent: float = ZIPF_EXPONENT
) -> Int64s:
    """Items int64[n] in [0, n_items); item 0 is the most popular."""
    weight = np.arange(1, n_items + 1, dtype=np.float64) ** -exponent
    return rng.choice(n_items, size=n, p=weight / weight.sum()).astype(np.int64)


def answer_lengths(n: int, rng: np.random.Generator) -> Int64s:
    """Answer lengths int64[n] in tokens."""
    return _lengths(n, ANSWER_TOKENS, ANSWER_SIGMA, rng)


def write(options: Options, path: PathLike, done: Done = nothing) -> int:
    """Write conversations to a file and return the prompt tokens in it. O(requests * turns)."""
    total = 0

    def lines():
        nonlocal total
        for arrival_ms, parts, output in generate(options):
            text = ", ".join(f"[{id_}, {n}]" for id_, n in parts)
            line = f'{{"arrival_ms": {arrival_ms}, "parts": [{text}], "output_tokens": {output}}}\n'
            yield line.encode("ascii")
            total += sum(n for _, n in parts)
            done(1)

    replace_file(os.fspath(path), lines())
    return total


def generate(options: Options) -> Iterator[tuple[float, list[tuple[int, int]], int]]:
    """Yield (arrival in ms, [(text, tokens), ...], answer tokens) in the order of arrival."""
    rng = np.random.default_rng(options.seed)
    n = int(options.requests * 1.2 / options.turns) + 20
    turns = np.zeros(0, np.int64)
    while turns.sum() < options.requests:  # more than needed: the first to arrive are taken
        turns = np.minimum(rng.geometric(1 / options.turns, n), MAX_TURNS)
        n = n * 3 // 2
    n = turns.size
    begins = bursty_arrivals(n, options.rate / turns.mean(), rng) / 1e6
    system = zipf_choices(n, options.systems, rng, exponent=options.zipf)
    system_tokens = _lengths(options.systems, SYSTEM_TOKENS, PROMPT_SIGMA, rng)
    retrieves = rng.random(n) < options.rag_share

    first = np.cumsum(turns) - turns  # number of each conversation's first turn
    of = np.repeat(np.arange(n), turns)  # the conversation of each turn
    question = _lengths(of.size, QUESTION_TOKENS, PROMPT_SIGMA, rng)
    answer = answer_lengths(of.size, rng)
    chunks = zipf_choices(of.size * options.chunks_per_turn, options.chunks, rng,
                          exponent=options.zipf).reshape(of.size, -1)  # fmt: skip
    gaps = answer * ANSWER_MS + rng.exponential(options.pause_s * 1000, of.size)
    since = np.cumsum(gaps) - gaps
    arrival = np.round(begins[of] + since - since[first[of]], 3)

    first_chunk = options.systems
    first_turn = first_chunk + options.chunks
    # The texts that each turn adds to the prompt: chunks, then its question.
    brought = [
        [(first_chunk + c, CHUNK_TOKENS) for c in (row if r else ())] + [(first_turn + 2 * i, q)]
        for i, (row, r, q) in enumerate(
            zip(chunks.tolist(), retrieves[of].tolist(), question.tolist(), strict=True)
        )
    ]
    order = np.argsort(arrival, kind="stable")[: options.requests]
    times, answers = arrival.tolist(), answer.tolist()
    firsts, systems = first[of].tolist(), system[of].tolist()
    lengths = system_tokens.tolist()
    for turn in order.tolist():
        parts = [(systems[turn], lengths[systems[turn]])]
        for before in range(firsts[turn], turn):
            parts += brought[before]
            parts.append((first_turn + 2 * before + 1, answers[before]))
        yield times[turn], parts + brought[turn], answers[turn]


def _lengths(n, tokens, sigma, rng):
    """Log-normal lengths int64[n], clipped; tokens: (smallest, median, largest)."""
    smallest, median, largest = tokens
    drawn = np.exp(rng.normal(np.log(median), sigma, n))
    return np.clip(np.rint(drawn), smallest, largest).astype(np.int64)
