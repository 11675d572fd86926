"""The commands `index` and `search`: files, answers, what they print."""

import json
import os
import threading

import pytest

from llmds_nb import RetrievalPipeline
from llmds_nb.tools.main import main


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    (folder / "cooking").mkdir()
    (folder / "cooking" / "salt.md").write_text("# Salt\n\nSalt raises the boiling point of water.")
    (folder / "stars.txt").write_text("\nStars are far away.\nThey shine at night.")
    (folder / "cars.rst").write_text("Cars need roads and fuel.")
    out = tmp_path_factory.mktemp("out") / "texts.llmds"
    assert main(["index", str(folder), "--out", str(out)]) == 0
    return out


def test_index_prints_what_it_wrote(built, capsys, tmp_path):
    (tmp_path / "a.txt").write_text("Only one short text.")
    out = tmp_path / "out"
    assert main(["index", str(tmp_path), "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{out}: 1 documents, {out.stat().st_size:,} bytes\n"
    assert captured.err.splitlines()[0].startswith("read files: 1 files")


def test_search_prints_rank_score_id_source_and_first_line(built, capsys):
    assert main(["search", str(built), "boiling water", "-k", "2"]) == 0
    first, *_ = capsys.readouterr().out.splitlines()
    assert first.split() == ["1", first.split()[1], "1", "cooking/salt.md", "#", "Salt"]


def test_search_as_json(built, capsys):
    assert main(["search", str(built), "shine at night", "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert answers[0] == {
        "rank": 1,
        "score": pytest.approx(answers[0]["score"]),
        "id": 2,
        "source": "stars.txt",
        "first_line": "Stars are far away.",
    }
    assert [answer["rank"] for answer in answers] == list(range(1, len(answers) + 1))


def test_search_without_a_match(built, capsys):
    assert main(["search", str(built), "zyzzyva"]) == 0
    assert capsys.readouterr().out == "no document matches\n"
    assert main(["search", str(built), "zyzzyva", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_broken_lines_are_counted_and_named(tmp_path, capsys):
    path = tmp_path / "c.jsonl"
    path.write_text('{"id": 1, "text": "One whole text."}\n' + "{\n" * 8)
    assert main(["index", str(path), "--out", str(tmp_path / "o")]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith(f"skipped: {path}:2: not JSON")]
    assert sum(line.startswith("skipped: ") for line in lines) == 5
    assert "8 files or lines skipped (--strict refuses them)" in lines


def test_a_corpus_without_words_is_refused(tmp_path, capsys):
    path = tmp_path / "c.jsonl"
    path.write_text('{"id": 1, "text": "... !"}')
    assert main(["index", str(path), "--out", str(tmp_path / "o")]) == 2
    assert "none of the 1 texts holds a word" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "o").exists()


def test_search_refuses_other_files(built, tmp_path, capsys):
    cut = tmp_path / "cut"
    cut.write_bytes(built.read_bytes()[:-10])
    other = tmp_path / "other"
    from llmds_nb import CountMinSketch

    CountMinSketch(64).save(other)
    for path, message in [
        (cut, "is it truncated?"),
        (other, "holds a CountMinSketch, not a RetrievalPipeline"),
        (tmp_path, "Is a directory"),
    ]:
        assert main(["search", str(path), "salt"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("llmds-nb: ")
        assert message in line


def test_search_in_a_pipeline_without_an_encoder(tmp_path, capsys):
    pipeline = RetrievalPipeline(dim=2)
    pipeline.add([5], ["red fox\nin the snow"], [[1, 0]])
    pipeline.save(tmp_path / "own")
    assert main(["search", str(tmp_path / "own"), "fox", "--json"]) == 0
    captured = capsys.readouterr()
    (answer,) = json.loads(captured.out)
    assert (answer["id"], answer["source"], answer["first_line"]) == (5, "", "red fox")
    assert "by words alone" in captured.err


def test_info_on_an_index(built, capsys):
    assert main(["info", str(built)]) == 0
    out = capsys.readouterr().out
    assert "RetrievalPipeline" in out
    assert "fusion = 'convex'" in out
    assert "float32[" in out


def test_an_empty_path_is_not_the_present_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("red fox")
    assert main(["index", "", "--out", "o"]) == 2
    assert capsys.readouterr().err == "llmds-nb: the path of the texts is empty\n"


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
