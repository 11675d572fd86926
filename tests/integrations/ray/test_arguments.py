"""What a ShardedPipeline refuses, as one RetrievalPipeline does; and how replicas take turns."""

import pickle

import pytest

from llmds_nb import RetrievalPipeline

from .samples import Samples

SAMPLES = Samples(60)


def test_what_is_wrong_is_refused_as_by_one_pipeline(sharded):
    with sharded(2, num_cpus=0, dim=8) as many:
        one = RetrievalPipeline(dim=8)
        calls = [
            lambda p: p.search("a", 0, vectors=[0.0] * 8),
            lambda p: p.search("a", vectors=[0.0] * 7),
            lambda p: p.search("a"),
            lambda p: p.search(3, vectors=[0.0] * 8),
            lambda p: p.search("a", vectors=[0.0] * 8, fusion="best"),
            lambda p: p.search("a", vectors=[0.0] * 8, weight=2),
            lambda p: p.search("a", vectors=[0.0] * 8, where={"a": {"$no": 1}}),
            lambda p: p.search("a", vectors=[0.0] * 8, threads=0),
            lambda p: p.search("a", vectors=[0.0] * 8, diversity=3),
            lambda p: p.search("a", vectors=[0.0] * 8, exact=2),
            lambda p: p.add([1], ["a", "b"], [[0.0] * 8] * 2),
            lambda p: p.add([1, 1], ["a", "b"], [[0.0] * 8] * 2),
            lambda p: p.add(["x", 1], ["a", "b"], [[0.0] * 8] * 2),
            lambda p: p.add([-1], ["a"], [[0.0] * 8]),
            lambda p: p.add([500], ["a"], [[0.0] * 9]),
            lambda p: p.add([500], ["a"], [[float("nan")] * 8]),
            lambda p: p.add([500], ["a"]),
            lambda p: p.add([500], ["a"], [[0.0] * 8], metadata=[{"a": object()}]),
            lambda p: p.add([500], [3], [[0.0] * 8]),
            lambda p: p.remove([10_000]),
            lambda p: p.get([10_000]),
        ]
        for filled in (False, True):
            for call in calls:
                errors = []
                for pipeline in (one, many):
                    with pytest.raises((ValueError, TypeError, KeyError)) as raised:
                        call(pipeline)
                    errors.append(raised.type)
                assert errors[0] is errors[1], raised.value
            if not filled:
                for pipeline in (one, many):
                    SAMPLES.add(pipeline, range(50))
                more = [
                    lambda p: p.add(["x"], ["a"], [[0.0] * 8]),
                    lambda p: p.remove(["x"]),
                    lambda p: p.get(["x"]),
                    lambda p: p.search("a", vectors=[0.0] * 8, filter=["x"]),
                ]
                calls = calls + more
        assert len(many) == 50 and many.search("fox", vectors=[0.0] * 8).missing == ()
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(many)
        with pytest.raises(KeyError, match="no shard 7"):
            many.remove_shard(7)
        with pytest.raises(TypeError, match="unexpected keyword"):
            sharded(2, ef=3)
    with pytest.raises(RuntimeError, match="closed"):
        many.search("fox", vectors=[0.0] * 8)
    with pytest.raises(RuntimeError, match="closed"):
        SAMPLES.add(many, [1])
    with pytest.raises(ValueError, match="n_shards"):
        sharded(0)


def test_replicas_take_turns(sharded):
    with sharded(1, replication=2, num_cpus=0, dim=8) as pipeline:
        group = pipeline._state.shards[0].group
        assert {id(group.pick()) for _ in range(4)} == {id(each) for each in group.replicas}
