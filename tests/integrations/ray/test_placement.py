"""Rendezvous hashing: even, stable over machines and versions, and nothing moves that need not."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, strategies as st

from llmds_nb.integrations.ray.placement import key_hashes, placed

SHARDS = st.lists(st.integers(0, 2**62), min_size=1, max_size=9, unique=True)


@given(SHARDS, st.lists(st.integers(0, 2**63 - 1), max_size=60), st.integers(0, 2**62))
def test_only_keys_move_that_must(shards, keys, other):
    before = placed(keys, shards)
    assert set(before.tolist()) <= set(shards)
    assert (placed(keys, shards[::-1]) == before).all()
    if other not in shards:
        after = placed(keys, [*shards, other])
        assert (after[after != before] == other).all()
    if len(shards) > 1:
        after = placed(keys, shards[1:])
        assert (before[after != before] == shards[0]).all()


@pytest.mark.parametrize("kind", [int, "https://example.org/{}".format])
def test_shares_are_even(kind):
    keys = [kind(i) for i in range(40_000)]
    counts = np.bincount(placed(keys, range(4)), minlength=4)
    # A binomial share of 1/4 has a standard deviation of 87.
    assert (abs(counts - 10_000) < 500).all()
    moved = placed(keys, range(4)) != placed(keys, range(5))
    assert abs(moved.sum() - 8_000) < 500


def test_the_places_are_those_of_every_machine():
    assert key_hashes(["", "a", "\ud800", "Fuchs \u00e4"]).tolist() == [
        0xB4B2797457A0A6E4, 0x2F42665B399EF840, 0x680D7D923E780842, 0x6D2A927A949B2019,
    ]  # fmt: skip
    assert placed(range(12), [0, 1, 2]).tolist() == [0, 1, 2, 2, 2, 0, 2, 0, 1, 0, 1, 0]
    keys = [f"key {i}" for i in range(12)]
    assert placed(keys, [0, 1, 5]).tolist() == [0, 1, 5, 5, 1, 5, 5, 1, 0, 0, 1, 5]


def test_forms_of_keys():
    assert placed("a", [4]).tolist() == [4]
    assert placed([], [4]).tolist() == []
    assert (placed(np.arange(9), [1, 2]) == placed(list(range(9)), [1, 2])).all()
    assert (placed(np.array(["a", "b"]), [1, 2]) == placed(["a", "b"], [1, 2])).all()


@pytest.mark.parametrize(
    ("keys", "shards", "error"),
    [
        ([1], [], ValueError), ([1], [1, 1], ValueError), ([1], [-1], ValueError),
        ([-1], [0], ValueError), ([1.5], [0], TypeError), (["a", 1], [0], TypeError),
        ([None], [0], TypeError), ([1], ["a"], TypeError),
    ],
)  # fmt: skip
def test_bad_input(keys, shards, error):
    with pytest.raises(error):
        placed(keys, shards)


def test_shard_and_placement_need_no_ray():
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from llmds_nb.integrations.ray.shard import Shard\n"
        "from llmds_nb.integrations.ray.placement import placed\n"
        "from llmds_nb import RetrievalPipeline\n"
        "print(placed([1], [3])[0], len(Shard(RetrievalPipeline(dim=2))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3", "0"]
