"""RetrievalPipeline: save and load, mapped or not, with every kind of encoder; damaged files."""

import io

import numpy as np
import pytest

from llmds_nb import CorruptFileError, LsaEncoder, RetrievalPipeline, load
from llmds_nb._core.file_format import read_bytes, write

from .samples import DOCUMENTS, letters, small


def test_file_with_lsa(tmp_path):
    path = tmp_path / "pipeline"
    encoder = LsaEncoder(3)
    pipeline = RetrievalPipeline(encoder=encoder, hot_threshold=2, weight=0.4, seed=3)
    pipeline.add(np.arange(5), DOCUMENTS)
    assert encoder.fitted
    pipeline.add([5, 0], ["a red car", "caf\u00e9 \ud800"])
    for _ in range(3):
        pipeline.search("red fox")
    pipeline.save(path)
    for again in (
        RetrievalPipeline.load(path),
        RetrievalPipeline.load(path, mmap=True),
        load(path, mmap=True, verify=True),
    ):
        again.check()
        assert again.get(np.arange(6)) == pipeline.get(np.arange(6))
        assert again.hot_queries(5) == [("red fox", 3)]
        assert (again.weight, again.fusion, len(again)) == (0.4, "convex", 6)
        for query in ("red sky", "caf\u00e9", "zebra"):
            expected, found = pipeline.search(query), again.search(query)
            np.testing.assert_array_equal(found.ids, expected.ids)
            np.testing.assert_array_equal(found.scores, expected.scores)
        again.add(None, "written after loading")
        assert again.get(6) == ["written after loading"]
        again.remove([6, 1])
        again.check()
        assert again.prime(1) == 1
    assert RetrievalPipeline.load(path).get(1) == ["blue sky"]  # the file did not change


def test_file_with_a_function(tmp_path):
    path = tmp_path / "pipeline"
    pipeline = small(encoder=letters)
    pipeline.save(path)
    without = RetrievalPipeline.load(path)
    with pytest.raises(ValueError, match="give it to load"):
        without.search("red fox")
    expected = pipeline.search("red fox")
    vectors = letters(["red fox"])
    np.testing.assert_array_equal(without.search("red fox", vectors=vectors[0]).ids, expected.ids)
    without.save(path)
    with pytest.raises(ValueError, match="give it to load"):
        RetrievalPipeline.load(path).add(9, "more")
    again = RetrievalPipeline.load(path, encoder=letters)
    np.testing.assert_array_equal(again.search("red fox").ids, expected.ids)
    with pytest.raises(TypeError, match="encoder"):
        RetrievalPipeline.load(path, encoder=3)


def test_empty_file(tmp_path):
    RetrievalPipeline(dim=4).save(tmp_path / "empty")
    pipeline = RetrievalPipeline.load(tmp_path / "empty")
    assert len(pipeline) == 0 and pipeline.stats().dim == 4
    pipeline.add(None, "text", np.ones((1, 4)))


def test_altered_file(tmp_path):
    path = tmp_path / "pipeline"
    small().save(path)
    data = path.read_bytes()
    for damaged in (data[:-5], data[:1000], data[:-40] + b"\0" + data[-39:]):
        path.write_bytes(damaged)
        with pytest.raises(CorruptFileError):
            RetrievalPipeline.load(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda a, h: a["index/texts/ids"].fill(1),
        lambda a, h: a["index/texts/indptr"].fill(9),
        lambda a, h: h["index"].update(dim=7),
        lambda a, h: h["index"]["parts"].update(dense=99),
        lambda a, h: h["index"]["parts"].pop("sparse"),
        lambda a, h: h["settings"].update(fusion="none"),
        lambda a, h: h.pop("sketch"),
        lambda a, h: a["index/dense/links0"][:, 1:].fill(65536),
        lambda a, h: a["index/dense/ids"].__iadd__(1),
        lambda a, h: a["index/texts/ids"].__iadd__(1),
        lambda a, h: a["index/texts/ids"].fill(-1),
        lambda a, h: a["index/texts/blob"].fill(0x80),
        lambda a, h: a["index/texts/blob"].fill(0xC3),
        lambda a, h: h["index"]["texts"].update(n_ids=0),
        lambda a, h: h["index"].update(next_id=0),
        lambda a, h: h["index"].update(next_id=2**63 + 1),
        lambda a, h: h["index"].update(dim=None),
        lambda a, h: h["index"].update(needs_encoder=1),
        lambda a, h: h["index"]["parts"].update(other=1),
        lambda a, h: h["index"]["parts"].update(dense=True),
        lambda a, h: h["index"]["parts"].update(dense=1.0),
        lambda a, h: h["settings"].pop("seed"),
    ],
)
def test_state_that_does_not_fit(change):
    arrays, header = small()._state()
    header = {"version": 1, **header}
    arrays = {name: array.copy() for name, array in arrays.items()}
    change(arrays, header)
    with pytest.raises(CorruptFileError):
        RetrievalPipeline._opened("path", ("RetrievalPipeline", arrays, header), {})


@pytest.mark.parametrize("unused", [False, True])
def test_files_of_format_1_are_read(unused):
    """They have pairs of an id and its row; before that, the unused rows of the table as well."""
    pipeline = small()
    pipeline.add([1], ["replaced"], [[1, 2]])
    _, arrays, header = read_bytes(pipeline.to_bytes())
    ids = arrays.pop("index/texts/ids")
    pairs = [[id_, row] for row, id_ in enumerate(ids.tolist()) if id_ >= 0][::-1]
    arrays["index/texts/table"] = np.array(pairs + [[0, -1], [7, -1]] * unused)
    header["version"] = 1
    file = io.BytesIO()
    write(file, "RetrievalPipeline", arrays, header)
    other = RetrievalPipeline.from_bytes(file.getvalue())
    other.check()
    assert other.get([1, 0, 4]) == ["replaced", DOCUMENTS[0], DOCUMENTS[4]]
    assert other.search("red", vectors=[1, 0]).ids.tolist() == [
        *pipeline.search("red", vectors=[1, 0]).ids.tolist()
    ]


@pytest.mark.parametrize("spread", [1, 10**15])
def test_every_vector_of_a_file_has_a_text(spread):
    pipeline = RetrievalPipeline(dim=2)
    assert len(RetrievalPipeline.from_bytes(pipeline.to_bytes())) == 0
    vectors = np.ones((9, 2))
    vectors[[2, 8]] = 0  # without a direction
    ids = np.array([5, 1, 8, 3, 2, 7, 4, 0, 6]) * spread
    pipeline.add(ids, ["word"] * 9, vectors)
    pipeline.remove([3 * spread, 5 * spread])
    other = RetrievalPipeline.from_bytes(pipeline.to_bytes())
    other.check()
    assert len(other.dense) == 5 and len(other) == 7
    _, arrays, header = read_bytes(pipeline.to_bytes())
    assert sorted(arrays["index/dense/ids"] // spread) == [0, 1, 2, 3, 4, 5, 7]
    header["index"]["dense"]["counters"]["next_id"] = 10**17
    for wrong in [3 * spread, 5 * spread, 9 * spread, 10**16, *[1, 2 * spread + 1][: spread - 1]]:
        changed = arrays["index/dense/ids"].copy()
        changed[changed == 7 * spread] = wrong
        file = io.BytesIO()
        write(file, "RetrievalPipeline", {**arrays, "index/dense/ids": changed}, header)
        with pytest.raises(CorruptFileError, match="id of no text"):
            RetrievalPipeline.from_bytes(file.getvalue())
