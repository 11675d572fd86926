"""Which files of a path are read, under which names, and what is told of the others."""

import gzip
import os
from pathlib import Path

import pytest

from llmds_nb.tools.errors import BadInput
from llmds_nb.tools.index.files import find_files, source_name
from llmds_nb.tools.index.report import Report


def found(*paths, report=None):
    return [file.source for file in find_files([str(p) for p in paths], report or Report())]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs" / "deep er").mkdir(parents=True)
    for name in ("b.md", "a.TXT", "deep er/c.rst", "d.csv", "e.jsonl", "f.txt.gz", "g.tsv"):
        (tmp_path / "docs" / name).write_text("text")
    return Path("docs")


def test_sources_are_paths_as_given(folder):
    expected = ["docs/a.TXT", "docs/b.md", "docs/d.csv", "docs/deep er/c.rst", "docs/e.jsonl"]
    expected += ["docs/f.txt.gz", "docs/g.tsv"]
    assert found("docs") == found("./docs/") == found("docs", "docs//b.md") == expected
    assert found(folder.resolve() / "b.md") == [(folder.resolve() / "b.md").as_posix()]
    assert found("docs/b.md", "docs/a.TXT") == ["docs/b.md", "docs/a.TXT"]
    os.chdir("docs")
    assert found(".")[:2] == ["a.TXT", "b.md"]
    assert found("../docs/b.md") == ["../docs/b.md"]


def test_what_is_not_read_is_counted_and_named(folder):
    (folder / ".hidden.txt").write_text("text")
    (folder / ".git").mkdir()
    (folder / ".git" / "x.txt").write_text("text")
    (folder / "p.py").write_text("x = 1")
    (folder / "README").write_text("text")
    (folder / "loop").symlink_to("..")
    (folder / "broken.txt").symlink_to("nowhere")
    (folder / "link.txt").symlink_to("a.TXT")
    (folder / "x.txt").mkdir()
    os.mkfifo(folder / "pipe.txt")
    report = Report()
    assert "docs/link.txt" in found("docs", report=report)
    assert {kind: sorted(paths) for kind, paths in report.unread.items()} == {
        "hidden files and folders": ["docs/.git", "docs/.hidden.txt"],
        "files of other kinds (name them to read them)": ["docs/README", "docs/p.py"],
        "links to folders": ["docs/loop"],
    }
    assert sorted(report.skipped) == [
        "docs/broken.txt: a broken link",
        "docs/pipe.txt: not a regular file",
    ]
    assert found("docs/README", "docs/.hidden.txt", "docs/p.py")[0] == "docs/README"
    assert len(found("docs/loop/docs")) == len(found("docs"))
    with pytest.raises(BadInput, match=r"a broken link|not a regular file"):
        found("docs", report=Report(strict=True))


def test_folders_that_cannot_be_listed_are_named(folder, monkeypatch):
    whole = os.scandir

    def scandir(path):
        if str(path).endswith("deep er"):
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path)

    monkeypatch.setattr(os, "scandir", scandir)
    report = Report()
    assert len(found("docs", report=report)) == 6
    assert report.skipped == ["docs/deep er: Permission denied"]


def test_names_of_any_bytes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [b"caf\xe9.txt", b"caf\xe8.txt", b"new\nline.txt", "caf\u00e9.txt".encode(), b" .txt"]
    for name in names:
        Path(os.fsdecode(name)).write_text("text")
    expected = ["caf\\xe9.txt", "caf\\xe8.txt", "new\nline.txt", "caf\u00e9.txt", " .txt"]
    assert sorted(found(".")) == sorted(expected)
    assert [source_name(os.fsdecode(name)) for name in names] == expected


def test_refused_paths(folder):
    Path("empty").mkdir()
    os.mkfifo("pipe.txt")
    for path, message in [
        ("", "the path of the texts is empty"),
        ("nowhere", "nowhere: no such file or folder"),
        ("empty", "empty: none of .txt, .text, .md"),
        ("pipe.txt", "pipe.txt: not a regular file"),
        ("docs\0", "no such file or folder"),
    ]:
        with pytest.raises(BadInput, match=r".") as error:
            find_files([path], Report())
        assert message in str(error.value)


def test_gzipped_files(folder):
    (file,) = find_files(["docs/f.txt.gz"], Report())
    file.path.write_bytes(gzip.compress(b"whole text"))
    assert file.read() == b"whole text"
    for content in (
        b"text",
        gzip.compress(b"x" * 999)[:-12],
        gzip.compress(b"x")[:-1] + b"\1",
        b"",
    ):
        file.path.write_bytes(content)
        if content:
            with pytest.raises(BadInput, match="a damaged gzip file"):
                file.read()
        else:
            assert file.read() == b""
