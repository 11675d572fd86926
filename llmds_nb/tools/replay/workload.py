"""Workloads of conversations, written as the JSONL that `tools/replay/traces.py` reads.

All of it is drawn from one seeded generator, so a workload repeats. A request's prompt is a system
prompt, the turns before it with their answers, and its own turn: retrieved chunks and a question.

Conversations  begin with gamma-distributed gaps (see `tools/replay/arrivals.py`): bursts.
Turns          geometric, `turns` on average, cut at `MOST_TURNS`; the next one comes the answer's
               time (`ANSWER_MS` a token) and an exponential pause of `pause_s` on average later.
Systems        one of `systems` prompts by Zipf popularity; log-normal lengths.
Chunks         a conversation retrieves with probability `rag_share`; every turn of it then brings
               `chunks_per_turn` of `chunks` texts of `CHUNK_TOKENS`, by Zipf popularity.
Questions      log-normal lengths, never twice the same.
Answers        log-normal lengths, as in `tools/replay/arrivals.py`.
"""

from typing import NamedTuple

import numpy as np

from .arrivals import answer_lengths, bursty_arrivals, zipf_choices

MOST_TURNS = 12
ANSWER_MS = 30.0
CHUNK_TOKENS = 200
SYSTEM_TOKENS = (64, 400, 2000)  # least, median, most
QUESTION_TOKENS = (4, 40, 400)
SIGMA = 0.7  # of the logarithms


class Options(NamedTuple):
    """What the user can choose."""

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


def write(options, path, done=lambda n: None) -> int:
    """Write a workload to a file and return its prompt tokens. O(requests * turns).

    Raises
    ------
    OSError
        The file cannot be written.
    """
    total = 0
    with open(path, "w", encoding="ascii") as file:
        for arrival_ms, parts, output in generate(options):
            text = ", ".join(f"[{id_}, {n}]" for id_, n in parts)
            file.write(
                f'{{"arrival_ms": {arrival_ms}, "parts": [{text}], "output_tokens": {output}}}\n'
            )
            total += sum(n for _, n in parts)
            done(1)
    return total


def generate(options):
    """Yield (arrival in ms, [(text, tokens), ...], answer tokens) in the order of arrival."""
    rng = np.random.default_rng(options.seed)
    most = MOST_TURNS
    n = int(options.requests * 1.2 / options.turns) + 20
    turns = np.zeros(0, np.int64)
    while turns.sum() < options.requests:  # more conversations than needed; the first turns count
        turns = np.minimum(rng.geometric(1 / options.turns, n), most)
        n = n * 3 // 2
    n = turns.size
    begins = bursty_arrivals(n, options.rate / turns.mean(), rng) / 1e6
    system = zipf_choices(n, options.systems, rng, exponent=options.zipf)
    system_tokens = _lengths(options.systems, SYSTEM_TOKENS, rng)
    retrieves = rng.random(n) < options.rag_share

    first = np.cumsum(turns) - turns  # of each conversation's turns
    of = np.repeat(np.arange(n), turns)
    question, answer = _lengths(of.size, QUESTION_TOKENS, rng), answer_lengths(of.size, rng)
    chunks = zipf_choices(of.size * options.chunks_per_turn, options.chunks, rng,
                          exponent=options.zipf).reshape(of.size, -1)  # fmt: skip
    gaps = answer * ANSWER_MS + rng.exponential(options.pause_s * 1000, of.size)
    since = np.cumsum(gaps) - gaps
    arrival = np.round(begins[of] + since - since[first[of]], 3)

    first_chunk = options.systems
    first_turn = first_chunk + options.chunks
    # What each turn brings, with the answer behind it.
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


def _lengths(n, limits, rng):
    """Log-normal lengths int64[n], cut to a range."""
    least, median, most = limits
    drawn = np.exp(rng.normal(np.log(median), SIGMA, n))
    return np.clip(np.rint(drawn), least, most).astype(np.int64)
