"""The command `search`: answers, conditions, what it prints, which files it opens."""

import io
import json
import os
import sys
import threading

import pytest

from llmds_nb import CountMinSketch, RetrievalPipeline
from llmds_nb.tools.main import main
from llmds_nb.tools.search import snippet


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    salt = "# Salt\n\nSalt raises the boiling point of water."
    (folder / "salt.md").write_text(f"{salt}\n\nSalt melts ice on roads.")
    (folder / "t.jsonl").write_text(
        '{"id": "k1", "text": "Red foxes cross roads at night.", "year": 2020, "lang": "en"}\n'
        '{"id": "k2", "text": "Stars shine at night.", "year": 1999, "tags": ["sky"]}\n'
    )
    out = folder / "texts.llmds"
    here = os.getcwd()
    os.chdir(folder)
    try:
        arguments = ["index", "salt.md", "t.jsonl", "--out", str(out), "--max-tokens", "12"]
        assert main(arguments) == 0
    finally:
        os.chdir(here)
    return out


def asked(capsys, *arguments):
    capsys.readouterr()
    assert main(["search", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def ids(capsys, *arguments):
    return [answer["id"] for answer in asked(capsys, *arguments)]


def refused(capsys, *arguments):
    capsys.readouterr()
    assert main(["search", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert captured.out == "" and line.startswith("llmds-nb: ")
    return line


def test_answers_are_told_in_two_lines_each(built, capsys):
    capsys.readouterr()
    assert main(["search", str(built), "boiling water", "-k", "1"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.split() == ["1", first.split()[1], "salt.md#0", "[0:47]"]
    assert second == "     # Salt Salt raises the boiling point of water."
    assert main(["search", str(built), "foxes", "-k", "1"]) == 0
    first, _ = capsys.readouterr().out.splitlines()
    assert first.split()[2:] == ["k1", "t.jsonl", "[0:31]"]


def test_answers_as_json(built, capsys):
    answers = asked(capsys, built, "shine at night")
    assert answers[0] == {
        "rank": 1,
        "id": "k2",
        "score": pytest.approx(answers[0]["score"]),
        "text": "Stars shine at night.",
        "metadata": {"source": "t.jsonl", "start": 0, "stop": 21, "year": 1999, "tags": ["sky"]},
    }
    assert [answer["rank"] for answer in answers] == list(range(1, len(answers) + 1))


def test_conditions(built, capsys):
    def where(condition):
        return set(ids(capsys, built, "roads at night", "--where", json.dumps(condition)))

    assert where({}) >= {"k1", "k2"}
    assert where({"year": {"$gte": 2000}}) == {"k1"}
    assert where({"tags": "sky"}) == {"k2"}
    assert where({"source": "t.jsonl", "lang": {"$exists": False}}) == {"k2"}
    assert where({"source": "nowhere"}) == set()
    found = asked(capsys, built, "roads at night", "--group-by", "source")
    assert sorted(answer["metadata"]["source"] for answer in found) == ["salt.md", "t.jsonl"]
    scores = [answer["score"] for answer in asked(capsys, built, "roads at night")]
    some = asked(capsys, built, "roads at night", "--min-score", scores[1])
    assert [answer["score"] for answer in some] == [s for s in scores if s >= scores[1]]
    assert set(ids(capsys, built, "roads at night", "--diversity", "0.5")) == where({})


def test_several_queries(built, capsys, tmp_path, monkeypatch):
    (tmp_path / "q.txt").write_text("\ufeffred foxes\n\n  boiling point\r\n", encoding="utf-8")
    found = asked(capsys, built, "--queries", tmp_path / "q.txt", "-k", 1)
    assert [(one["query"], [hit["id"] for hit in one["hits"]]) for one in found] == [
        ("red foxes", ["k1"]),
        ("boiling point", ["salt.md#0"]),
    ]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"red foxes\nzyzzyva\n")))
    assert main(["search", str(built), "--queries", "-", "-k", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "red foxes:" and lines[3:] == ["zyzzyva:", "no document matches"]


def test_without_a_match(built, capsys):
    assert main(["search", str(built), "zyzzyva"]) == 0
    assert capsys.readouterr().out == "no document matches\n"
    assert asked(capsys, built, "zyzzyva") == []


def test_refused_options(built, capsys, tmp_path):
    (tmp_path / "bad").write_bytes(b"ok\n\xff\n")
    (tmp_path / "empty").write_text("\n")
    for arguments, message in (
        (["--where", "{"], "--where: not JSON"),
        (["--where", "[1]"], "--where: must be a JSON object, not [1]"),
        (["--where", '{"year": NaN}'], "--where: not JSON: NaN"),
        (["--where", '{"year": {"$between": 1}}'], "$between"),
        (["--where", '{"year": {"$gt": []}}'], "year"),
        (["--min-score", "high"], "--min-score: must be a number, not 'high'"),
        (["--min-score", "nan"], "--min-score: must be a finite number"),
        (["--diversity", "2"], "--diversity: must be in [0, 1], not 2"),
        (["-k", "0"], "-k: must be at least 1, not 0"),
        (["--queries", "x"], "search needs a QUERY or --queries FILE, and not both"),
    ):
        assert message in refused(capsys, built, "night", *arguments)
    assert "search needs a QUERY or --queries" in refused(capsys, built)
    assert "bad:2: not UTF-8" in refused(capsys, built, "--queries", tmp_path / "bad")
    assert "empty: no query in it" in refused(capsys, built, "--queries", tmp_path / "empty")
    assert "No such file" in refused(capsys, built, "--queries", tmp_path / "nowhere")


def test_other_files(built, tmp_path, capsys):
    cut = tmp_path / "cut"
    cut.write_bytes(built.read_bytes()[:-10])
    other = tmp_path / "other"
    CountMinSketch(64).save(other)
    for path, message in [
        (cut, "is it truncated?"),
        (other, "holds a CountMinSketch, not a RetrievalPipeline"),
        (tmp_path, "Is a directory"),
    ]:
        assert message in refused(capsys, path, "salt")


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_a_pipeline_without_an_encoder_answers_by_words(tmp_path, capsys, metric):
    from llmds_nb import HNSW

    dense = HNSW(2, metric=metric)
    fusion = "convex" if metric == "cosine" else "minmax"
    for ids_ in ([5, 6], ["five", "six"]):
        pipeline = RetrievalPipeline(dense=dense.__copy__(), fusion=fusion)
        texts = ["red fox\nin the snow", "blue sky"]
        pipeline.add(ids_, texts, [[1, 0], [0, 1]], metadata=[{"n": 1}, {"n": 2}])
        pipeline.save(tmp_path / "own")
        (answer,) = asked(capsys, tmp_path / "own", "fox")
        assert (answer["id"], answer["text"]) == (ids_[0], "red fox\nin the snow")
        assert ids(capsys, tmp_path / "own", "fox sky", "--where", '{"n": 2}') == [ids_[1]]
        assert main(["search", str(tmp_path / "own"), "fox"]) == 0
        assert "by words alone" in capsys.readouterr().err
    assert main(["search", str(tmp_path / "own"), "zyzzyva"]) == 0


def test_a_file_of_an_earlier_version(tmp_path, capsys):
    """`index` wrote numbers as ids, and the source as the first line of the text."""
    pipeline = RetrievalPipeline(dim=2)
    pipeline.add([0, 1], ["docs/a.md\n\nred fox\n\nin snow", "sky"], [[1, 0], [0, 1]])
    pipeline.save(tmp_path / "old")
    (answer,) = asked(capsys, tmp_path / "old", "fox")
    assert (answer["id"], answer["text"]) == (0, "red fox\n\nin snow")
    assert answer["metadata"] == {"source": "docs/a.md"}
    assert main(["search", str(tmp_path / "old"), "fox"]) == 0
    assert "0  docs/a.md" in capsys.readouterr().out


def test_an_empty_index(tmp_path, capsys):
    RetrievalPipeline(dim=2).save(tmp_path / "empty")
    assert asked(capsys, tmp_path / "empty", "fox") == []
    assert main(["info", str(tmp_path / "empty")]) == 0
    assert f"{'ids':<14} none yet" in capsys.readouterr().out


def test_info(built, capsys):
    assert main(["info", str(built)]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line in (
        "structure      RetrievalPipeline",
        "documents      4, 4 of them with a vector",
        "ids            text, such as 'salt.md#0'",
        "language       english",
        "encoder        lsa",
        "metadata       year  in 2 documents",
        "metadata       start  in 4 documents",
        "setting        settings.fusion = 'convex'",
    ):
        assert line in lines
    assert any(line.startswith("array ") and "float32[" in line for line in lines)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize("command", ["search", "info"])
def test_an_index_from_a_pipe(built, tmp_path, capsys, command):
    more = ["salt"] if command == "search" else []
    assert main([command, str(built), *more]) == 0
    right = capsys.readouterr().out
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(built.read_bytes(),))
    writer.start()
    assert main([command, str(path), *more]) == 0
    writer.join()
    shown = capsys.readouterr().out
    assert shown.splitlines()[more == [] :] == right.splitlines()[more == [] :]


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no such device")
@pytest.mark.parametrize("command", [["search", "/dev/zero", "x"], ["info", "/dev/null"]])
def test_a_device_is_no_index(capsys, command):
    assert main(command) == 2
    assert "truncated or not a safetensors file" in capsys.readouterr().err


def test_snippets():
    assert snippet("one\n\ntwo  three", "four") == "one two three"
    text = "far " * 100 + "the boiling point of water is here " + "far " * 100
    found = snippet(text, "does water boil")
    assert "boiling point of water" in found and len(found) < 175
    assert found.startswith("... far") and found.endswith("far ...")
    assert snippet("x" * 500, "y") == "x" * 160 + " ..."
    assert snippet("", "y") == ""
