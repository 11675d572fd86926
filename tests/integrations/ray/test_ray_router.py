"""PrefixRouter beside Ray's PrefixCacheAffinityRouter: as many hits, and better balanced."""

import random

import pytest

pytest.importorskip("ray.serve", reason="Ray Serve is not installed")

from asv_benchmarks._support.ray_router import BlockTexts, RayRouter
from llmds_nb.tools.replay import replay, traces
from llmds_nb.tools.replay.arguments import Options


@pytest.mark.peer
@pytest.mark.nightly
@pytest.mark.parametrize("replicas", [4, 16])
def test_hits_and_balance_are_those_of_ray_or_better(shared_data, replicas, amount, figures):
    random.seed(replicas)  # Ray draws two replicas
    path = shared_data / "traces" / "mooncake_conversation_trace.jsonl.gz"
    trace = traces.read(path, limit=amount(2_000, 12_031))
    texts = BlockTexts(trace)
    options = Options(replicas=replicas, speed=replicas / 4)
    ours = replay.run(trace, options)["cache"]
    theirs = replay.run(
        trace, options, router=lambda o, loads: RayRouter(o.replicas, loads, texts)
    )["cache"]
    figures(ours=ours["hit_ratio"], ray=theirs["hit_ratio"])
    figures(our_imbalance=ours["imbalance"], ray_imbalance=theirs["imbalance"])
    assert ours["prompt_pages"] == theirs["prompt_pages"]
    assert ours["hit_ratio"] >= theirs["hit_ratio"] - amount(0.002, 0)
    assert ours["imbalance"] <= theirs["imbalance"]
    assert min(r["requests"] for r in ours["replicas"]) > 0


def test_texts_have_as_much_in_common_as_prompts():
    parts = {"indptr": [0, 2, 4, 6], "part": [7, 8, 7, 9, 7, 8], "length": [4, 3, 4, 2, 4, 1]}
    import numpy as np

    zeros = np.zeros(3, np.int64)
    trace = traces.from_parts("llmds", zeros, zeros, zeros, *map(np.array, parts.values()))
    one, other, short = (BlockTexts(trace)(tokens) for _, tokens in trace.prompts())
    assert [len(one), len(other), len(short)] == [7, 6, 5]
    assert one[:4] == other[:4] and one[4] != other[4] and one.startswith(short)
