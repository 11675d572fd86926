"""Documents that are removed and added again rank, where scores are equal, as in one pipeline."""

import random

import numpy as np
import pytest

from llmds_nb import RetrievalPipeline

from .samples import assert_same_ranking

QUERIES = {"vectors": np.ones((2, 2), np.float32), "k": 200}


def write(pipelines, ids, *, remove=False):
    """Add documents that all tie, or remove them."""
    for pipeline in pipelines:
        if remove:
            pipeline.remove(ids)
        else:
            pipeline.add(ids, ["red fox"] * len(ids), [[1.0, 0.0]] * len(ids))


def assert_tied_alike(pipelines):
    many, one = pipelines
    assert_same_ranking(many, one, ["red", "fox"], **QUERIES)
    many.check()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("replication", [1, 2])
def test_after_any_removals_and_moves(sharded, tmp_path, seed, replication):
    rng = random.Random(seed)
    many, one = sharded(1 + seed, replication=replication, dim=2), RetrievalPipeline(dim=2)
    pipelines, there, gone = (many, one), set(), set()
    for _ in range(40):
        choice = rng.random()
        if choice < 0.4:
            ids = [f"{i}" for i in rng.sample(range(150), rng.choice([3, 40]))]
            write(pipelines, ids)
            there.update(ids)
        elif choice < 0.75 and there:
            ids = rng.sample(sorted(there), rng.choice([1, len(there) // 2, len(there)]))
            write(pipelines, ids, remove=True)
            there -= set(ids)
            gone |= set(ids)
        elif choice < 0.85:
            again = sorted(gone, key=lambda id_: rng.random())[:60]
            write(pipelines, again)
            there.update(again)
        elif choice < 0.93 or len(many.shards) == 1:
            many.add_shard()
        else:
            many.remove_shard(rng.choice(many.shards))
        assert_tied_alike(pipelines)
    many.save(tmp_path / "many")
    one.save(tmp_path / "one")
    again = sharded.load(tmp_path / "many"), RetrievalPipeline.load(tmp_path / "one")
    everything = [f"{i}" for i in range(150)]
    rng.shuffle(everything)
    write(again, everything)
    assert_tied_alike(again)


def test_a_shard_that_lost_most_of_its_documents_remembers_their_numbers(sharded):
    """Only a remove after which all shards remember too many keys forgets any."""
    many, one = sharded(3, dim=2), RetrievalPipeline(dim=2)
    pipelines, ids = (many, one), [f"{i}" for i in range(120)]
    write(pipelines, ids)
    write(pipelines, ids[:50], remove=True)
    write(pipelines, ids[:50][::-1])
    assert_tied_alike(pipelines)
    write(pipelines, ids[:70], remove=True)
    write(pipelines, ids[:70][::-1])
    assert_tied_alike(pipelines)


def test_before_the_first_document_each_query_has_its_row(sharded):
    many, one = sharded(2, dim=2), RetrievalPipeline(dim=2)
    assert_same_ranking(many, one, ["red", "fox"], **QUERIES)
