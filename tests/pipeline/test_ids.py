"""The ids of the documents that a pipeline holds."""

import threading

import numpy as np
import pytest

from llmds_nb import RetrievalPipeline

from .samples import small


def named():
    pipeline = RetrievalPipeline(dim=2)
    given = [{"lang": "en"}, {"lang": "de", "year": 2020}, {}]
    pipeline.add(["c", "a", "b"], ["red fox", "Fuchs", "sky"], np.eye(3, 2), metadata=given)
    return pipeline


def test_ids_are_in_the_order_in_which_they_were_last_added():
    pipeline = named()
    assert pipeline.ids().tolist() == ["c", "a", "b"]
    pipeline.add(["c"], ["blue fox"], [[1, 1]])
    assert pipeline.ids().tolist() == ["a", "b", "c"]
    pipeline.remove(["b"])
    assert pipeline.ids().tolist() == ["a", "c"] and pipeline.ids().dtype == object
    again = RetrievalPipeline.from_bytes(pipeline.to_bytes())
    assert again.ids().tolist() == ["a", "c"]


def test_ids_of_a_where():
    pipeline = named()
    assert pipeline.ids({"lang": {"$in": ["en", "de"]}}).tolist() == ["c", "a"]
    assert pipeline.ids({"year": {"$exists": False}}).tolist() == ["c", "b"]
    assert pipeline.ids({}).tolist() == ["c", "a", "b"]
    pipeline.remove(pipeline.ids({"lang": "en"}))
    assert pipeline.ids().tolist() == ["a", "b"]
    with pytest.raises(ValueError, match=r"\$between"):
        pipeline.ids({"year": {"$between": 1}})


def test_ids_of_type_int_and_of_nothing():
    assert RetrievalPipeline().ids().dtype == np.int64
    assert RetrievalPipeline().ids({"a": 1}).tolist() == []
    pipeline = small()
    found = pipeline.ids()
    assert found.dtype == np.int64 and len(found) == len(pipeline)
    assert pipeline.ids({"a": 1}).tolist() == []
    assert pipeline.ids({"a": {"$exists": False}}).tolist() == found.tolist()
    found[:] = 0  # an array of its own
    assert pipeline.ids().tolist() != found.tolist()


def test_ids_of_a_mapped_file(tmp_path):
    pipeline = named()
    pipeline.save(tmp_path / "file")
    mapped = RetrievalPipeline.load(tmp_path / "file", mmap=True)
    assert mapped.ids({"lang": "de"}).tolist() == ["a"]
    assert mapped.ids().tolist() == ["c", "a", "b"]


def test_ids_beside_a_writer_are_those_of_one_moment():
    """Each write replaces all documents of one generation, with as many of the next."""
    pipeline = RetrievalPipeline(dim=2)
    vectors = np.ones((20, 2), np.float32)

    def write(generation):
        ids = [f"{generation}-{i}" for i in range(20)]
        pipeline.add(ids, ["sky"] * 20, vectors, metadata=[{"n": generation}] * 20)

    write(0)
    stop = threading.Event()

    def go_on():
        generation = 0
        while not stop.is_set():
            write(generation + 1)
            pipeline.remove([f"{generation}-{i}" for i in range(20)])
            generation += 1

    writer = threading.Thread(target=go_on)
    writer.start()
    try:
        for _ in range(500):
            every = pipeline.ids().tolist()
            assert len(every) in (20, 40) and len(set(every)) == len(every)
            n = int(every[0].split("-")[0])
            assert len(pipeline.ids({"n": {"$gte": n}})) in (20, 40)
            assert len(pipeline.ids({"n": n})) in (0, 20)
    finally:
        stop.set()
        writer.join()
    pipeline.check()
