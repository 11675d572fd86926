"""Workloads repeat with the seed, have the stated distributions, and can be replayed."""

import json

import numpy as np
import pytest

from llmds_nb.tools.replay import traces, workload

SMALL = workload.Options(requests=3000, rate=5.0, seed=4)

# ---- single requests ----------------------------------------------------------------------------


def test_workload_repeats_with_the_seed():
    one, same, other = (
        workload.make_workload(200, 30, 10.0, np.random.default_rng(s)) for s in (1, 1, 2)
    )
    assert all((a == b).all() for a, b in zip(one, same, strict=True))
    assert (one.arrival_ns != other.arrival_ns).any()


def test_arrivals_have_the_rate_and_the_bursts():
    gaps = np.diff(workload.bursty_arrivals(200_000, 50.0, np.random.default_rng(0))) / 1e9
    assert (gaps >= 0).all()
    assert abs(gaps.mean() * 50 - 1) < 0.02
    assert abs(gaps.std() / gaps.mean() - 2) < 0.05  # 1 / sqrt(0.25)


def test_questions_are_zipf():
    drawn = workload.zipf_choices(200_000, 100, np.random.default_rng(0))
    counts = np.bincount(drawn, minlength=100)
    expected = 200_000 / np.arange(1, 101) / (1 / np.arange(1, 101)).sum()
    assert np.abs(counts[:10] / expected[:10] - 1).max() < 0.05
    assert workload.zipf_choices(5, 1, np.random.default_rng(0)).tolist() == [0] * 5


def test_answer_lengths_stay_in_range():
    lengths = workload.answer_lengths(100_000, np.random.default_rng(0))
    smallest, median, largest = workload.ANSWER_TOKENS
    assert (lengths.min(), lengths.max()) == (smallest, largest)
    assert abs(np.median(lengths) - median) <= 2


# ---- conversations ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    path = tmp_path_factory.mktemp("workload") / "w.jsonl"
    total = workload.write(SMALL, path)
    trace = traces.read(path)
    assert total == trace.prompt.sum() and trace.notes == []
    return trace


def test_a_seed_gives_the_same_file_and_another_seed_another(tmp_path):
    paths = [tmp_path / str(i) for i in range(3)]
    for path, seed in zip(paths, (1, 1, 2), strict=True):
        workload.write(workload.Options(requests=50, seed=seed), path)
    one, same, other = (path.read_bytes() for path in paths)
    assert one == same != other and one.count(b"\n") == 50
    assert list(json.loads(one.splitlines()[0])) == ["arrival_ms", "parts", "output_tokens"]


def test_arrivals_come_at_the_rate_and_in_bursts(trace):
    gaps = np.diff(trace.arrival_ns) / 1e9
    assert 4 < 1 / gaps[500:].mean() < 6
    assert gaps.std() / gaps.mean() > 1.2  # of Poisson arrivals it is 1


def test_later_turns_contain_the_earlier_ones_with_their_answers():
    requests = list(workload.generate(SMALL._replace(pause_s=0.5)))
    whole = [(tuple(parts), answer) for _, parts, answer in requests]
    longer = 0
    for parts, answer in whole:
        turn = parts[-1][0]  # its question, a text of its own
        for later, _ in whole:
            if later[: len(parts)] == parts and len(later) > len(parts):
                assert later[len(parts)] == (turn + 1, answer)
                longer += 1
                break
    assert 0.5 * len(whole) < longer < 0.75 * len(whole)  # 2 of 3 turns have a next one


def test_popularity_is_zipf_and_chunks_come_with_half_of_the_conversations():
    parts = [parts for _, parts, _ in workload.generate(SMALL._replace(requests=20_000))]
    systems = np.bincount([p[0][0] for p in parts], minlength=20)
    expected = 1 / np.arange(1, 21) / (1 / np.arange(1, 21)).sum()
    assert np.abs(systems[:4] / systems.sum() / expected[:4] - 1).max() < 0.15
    chunks = [sum(20 <= id_ < 1020 for id_, _ in p) for p in parts]
    assert 0.45 < np.mean(np.array(chunks) > 0) < 0.55 and set(np.array(chunks) % 3) == {0}
    assert {n for p in parts for id_, n in p if 20 <= id_ < 1020} == {workload.CHUNK_TOKENS}


def test_lengths_stay_in_their_ranges():
    for _, parts, answer in workload.generate(SMALL):
        assert workload.SYSTEM_TOKENS[0] <= parts[0][1] <= workload.SYSTEM_TOKENS[2]
        assert workload.QUESTION_TOKENS[0] <= parts[-1][1] <= workload.QUESTION_TOKENS[2]
        assert 8 <= answer <= 384


def test_one_request_and_no_chunks():
    ((_, parts, _),) = workload.generate(
        workload.Options(requests=1, turns=1.0, rag_share=0.0, systems=1)
    )
    assert len(parts) == 2
