"""The settings of the shards' graphs: chosen by `tune`, and kept by whatever replaces a shard."""

import numpy as np
import pytest

from llmds_nb import RetrievalPipeline, StaticEncoder
from llmds_nb.integrations.ray.shard import Shard

from .samples import Samples

SAMPLES = Samples(300)


def efs(pipeline):
    found = {}
    for shard in pipeline._state.shards:
        for replica in shard.group.live:
            tuned = replica.handle._actor._shard.tuned
            assert shard.tuned == tuned
            found[shard.id] = tuned and tuned[0]
    return found


def test_what_tune_has_chosen_is_sent_again(sharded, fake_ray, tmp_path):
    pipeline = sharded(3, replication=2, dim=8)
    SAMPLES.add(pipeline, range(300))
    pipeline.save(tmp_path)
    before = efs(pipeline)
    top = pipeline.tune(SAMPLES.queries, vectors=SAMPLES.query_vectors, target_recall=0.5).ef
    tuned = efs(pipeline)
    assert tuned != before and max(tuned.values()) == top
    for handle in fake_ray.live[:4]:
        handle._dead = True
    pipeline.recover()
    assert efs(pipeline) == tuned
    added = pipeline.add_shard()
    assert efs(pipeline) == tuned | {added: top}
    pipeline.save(tmp_path)
    again = sharded.load(tmp_path)
    assert efs(again) == tuned | {added: top}
    more = again.add_shard()
    assert efs(again)[more] == top


def test_a_shard_without_documents_is_tuned_as_the_others(sharded):
    pipeline = sharded(4, dim=8)
    SAMPLES.add(pipeline, [0])
    top = pipeline.tune(["fox"], vectors=[[1.0] * 8], target_recall=0.9).ef
    assert set(efs(pipeline).values()) == {top}
    SAMPLES.add(pipeline, range(1, 40))
    assert set(efs(pipeline).values()) == {top}


def test_graphs_are_searched_as_wide_as_that_of_one_pipeline(sharded, monkeypatch):
    """With a StaticEncoder ef is three times the candidates, otherwise half as much."""
    pytest.importorskip("wordllama", reason="wordllama is not installed")
    encoder = StaticEncoder()
    factors, candidates = [], Shard.candidates

    def noted(self, *args, ef_factor, **options):
        factors.append(ef_factor)
        return candidates(self, *args, ef_factor=ef_factor, **options)

    monkeypatch.setattr(Shard, "candidates", noted)
    for given in ({"dim": 8}, {"encoder": encoder}):
        pipeline, one = sharded(2, **given), RetrievalPipeline(**given)
        for each in (pipeline, one):
            each.add([1, 2], ["red", "blue"], None if "encoder" in given else np.eye(8)[:2])
        pipeline.search("red", vectors=None if "encoder" in given else [1.0] * 8)
        assert set(factors) == {one.view().ef_factor}
        factors.clear()
    assert one.view().ef_factor == 3.0
