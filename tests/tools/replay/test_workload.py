"""The workload generator: it repeats, has the stated distributions, and is what replay reads."""

import json

import numpy as np
import pytest

from llmds_nb.tools.replay import traces, workload as g

SMALL = g.Options(requests=3000, rate=5.0, seed=4)


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    path = tmp_path_factory.mktemp("workload") / "w.jsonl"
    total = g.write(SMALL, path)
    trace = traces.read(path)
    assert total == trace.prompt.sum() and trace.notes == []
    return trace


def test_a_seed_gives_the_same_file_and_another_seed_another(tmp_path):
    paths = [tmp_path / str(i) for i in range(3)]
    for path, seed in zip(paths, (1, 1, 2), strict=True):
        g.write(g.Options(requests=50, seed=seed), path)
    one, same, other = (path.read_bytes() for path in paths)
    assert one == same != other and one.count(b"\n") == 50
    assert list(json.loads(one.splitlines()[0])) == ["arrival_ms", "parts", "output_tokens"]


def test_arrivals_come_at_the_rate_and_in_bursts(trace):
    gaps = np.diff(trace.arrival_ns) / 1e9
    assert 4 < 1 / gaps[500:].mean() < 6
    assert gaps.std() / gaps.mean() > 1.2  # of Poisson arrivals it is 1


def test_later_turns_hold_the_earlier_ones_with_their_answers():
    requests = list(g.generate(SMALL._replace(pause_s=0.5)))
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
    parts = [parts for _, parts, _ in g.generate(SMALL._replace(requests=20_000))]
    systems = np.bincount([p[0][0] for p in parts], minlength=20)
    expected = 1 / np.arange(1, 21) / (1 / np.arange(1, 21)).sum()
    assert np.abs(systems[:4] / systems.sum() / expected[:4] - 1).max() < 0.15
    chunks = [sum(20 <= id_ < 1020 for id_, _ in p) for p in parts]
    assert 0.45 < np.mean(np.array(chunks) > 0) < 0.55 and set(np.array(chunks) % 3) == {0}
    assert {n for p in parts for id_, n in p if 20 <= id_ < 1020} == {g.CHUNK_TOKENS}


def test_lengths_stay_in_their_ranges():
    for _, parts, answer in g.generate(SMALL):
        assert g.SYSTEM_TOKENS[0] <= parts[0][1] <= g.SYSTEM_TOKENS[2]
        assert g.QUESTION_TOKENS[0] <= parts[-1][1] <= g.QUESTION_TOKENS[2]
        assert 8 <= answer <= 384


def test_one_request_and_no_chunks():
    ((_, parts, _),) = g.generate(g.Options(requests=1, turns=1.0, rag_share=0.0, systems=1))
    assert len(parts) == 2
