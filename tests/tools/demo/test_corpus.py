"""Corpora: what is read, how it is named, and what is refused."""

import json
import os
from pathlib import Path

import pytest

from llmds_nb.tools.demo import corpus as c
from llmds_nb.tools.errors import BadInput
from llmds_nb.tools.progress import Progress

QUIET = Progress()

SOURCE = '''"""The module speaks of many things at once."""

def outer():
    """Return something that is worth a long docstring."""
    text = """not a docstring, only a string of words"""
    if text:
        def inner():
            """Stands inside an if and inside a function."""
    try:
        pass
    except ValueError:
        class Late:
            """Stands inside an exception handler, of all places."""

class Thing:
    """Too short."""
    async def method(self):
        \'\'\'An asynchronous method with single quotes around.\'\'\'
'''


def test_docstrings_of_files_finds_every_definition(tmp_path):
    path = tmp_path / "mod.py"
    path.write_text(SOURCE)
    found = c.docstrings_of_files([(str(path), "pkg.mod")])
    assert {d.source: d.text for d in found} == {
        "pkg.mod": "The module speaks of many things at once.",
        "pkg.mod.outer": "Return something that is worth a long docstring.",
        "pkg.mod.outer.inner": "Stands inside an if and inside a function.",
        "pkg.mod.outer.Late": "Stands inside an exception handler, of all places.",
        "pkg.mod.Thing": "Too short.",
        "pkg.mod.Thing.method": "An asynchronous method with single quotes around.",
    }


def test_docstrings_agree_with_a_walk_over_the_whole_tree():
    import argparse
    import ast

    tree = ast.parse(Path(argparse.__file__).read_bytes())
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    expected = [ast.get_docstring(n) for n in ast.walk(tree) if isinstance(n, kinds)]
    found = c.docstrings_of_files([(argparse.__file__, "argparse")])
    assert sorted(d.text for d in found) == sorted(text for text in expected if text)


def test_files_that_cannot_be_parsed_or_read_give_nothing(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text('def f(:\n    """Never read."""\n')
    null = tmp_path / "null.py"
    null.write_bytes(b'"""a\0b"""')
    files = [(str(broken), "a"), (str(null), "b"), (str(tmp_path / "missing.py"), "c")]
    assert c.docstrings_of_files(files) == []


def test_read_docstrings_is_the_same_in_one_process_and_in_two():
    alone = c.read_docstrings(QUIET, workers=1, every=40)
    together = c.read_docstrings(QUIET, workers=2, every=40)
    assert alone == together
    assert len(alone.documents) > 100
    assert len({d.text for d in alone.documents}) == len(alone.documents)
    assert min(len(d.text.split()) for d in alone.documents) >= c.MIN_DOCSTRING_WORDS


def test_without_processes_docstrings_are_read_in_this_one(monkeypatch):
    class NoPool:
        def __init__(self, *_, **__):
            raise OSError("no semaphores here")

    expected = c.read_docstrings(QUIET, workers=1, every=60)
    monkeypatch.setattr(c, "ProcessPoolExecutor", NoPool)
    assert c.read_docstrings(QUIET, workers=2, every=60) == expected


def test_folder_is_read_in_order_with_all_three_suffixes(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.md").write_text("\ufeffSecond file.\n")
    (tmp_path / "a.txt").write_text("First file.")
    (tmp_path / "sub" / "c.RST").write_text("Third file.")
    (tmp_path / "ignored.py").write_text("x = 1")
    (tmp_path / "empty.txt").write_text(" \n ")
    assert c.read_path(tmp_path, QUIET).documents == [
        c.Document("a.txt", "First file."),
        c.Document("b.md", "Second file."),
        c.Document("sub/c.RST", "Third file."),
    ]


def test_one_text_file_is_a_corpus(tmp_path):
    path = tmp_path / "only.txt"
    path.write_text("All there is.")
    assert c.read_path(path, QUIET).documents == [c.Document("only.txt", "All there is.")]


def test_long_files_are_cut_between_paragraphs(tmp_path):
    paragraphs = [f"Paragraph {i}. " + "word " * 100 for i in range(30)]
    path = tmp_path / "long.md"
    path.write_text("\n\n".join(paragraphs))
    documents = c.read_path(path, QUIET).documents
    lines = path.read_text().splitlines()
    assert len(documents) > 3
    assert all(len(d.text) <= c.PASSAGE_CHARS for d in documents)
    for document in documents:
        name, line = document.source.split(":")
        assert name == "long.md"
        text = "\n".join(lines[int(line) - 1 :]).strip()
        assert text.startswith(document.text.splitlines()[0].strip())
    together = " ".join(" ".join(d.text for d in documents).split())
    assert together == " ".join(" ".join(paragraphs).split())


def test_a_line_longer_than_a_passage_is_cut(tmp_path):
    path = tmp_path / "line.txt"
    path.write_text("x" * (2 * c.PASSAGE_CHARS + 7))
    assert [len(d.text) for d in c.read_path(path, QUIET).documents] == [4000, 4000, 7]


def jsonl(tmp_path, *lines):
    path = tmp_path / "c.jsonl"
    path.write_bytes(
        b"\n".join(x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines)
    )
    return path


def test_jsonl_takes_id_or_underscore_id_and_a_title(tmp_path):
    path = jsonl(
        tmp_path,
        {"id": "a", "text": "First."},
        b"   ",
        {"_id": 7, "text": "Second.", "title": "Head"},
    )
    corpus = c.read_path(path, QUIET)
    assert corpus.documents == [c.Document("a", "First."), c.Document("7", "Head\nSecond.")]
    assert corpus.skipped == []


BROKEN_LINES = [
    (b"{not json", "not JSON"),
    (b"[1, 2]", "expected an object with id and text, not list"),
    (b'{"id": "b"}', "text must be a string, not missing"),
    (b'{"text": "no id"}', "id must be a string or an integer, not missing"),
    (b'{"id": 1.5, "text": "t"}', "id must be a string or an integer, not float"),
    (b'{"id": true, "text": "t"}', "id must be a string or an integer, not bool"),
    (b'{"id": " ", "text": "t"}', "id must not be empty"),
    (b'{"id": "b", "text": 3}', "text must be a string, not int"),
    (b'{"id": "b", "text": "t", "title": []}', "title must be a string, not list"),
    (b'{"id": "b", "text": " "}', "text must not be empty"),
    (b'{"id": "a", "text": "again"}', "id 'a' already stands in line 1"),
    (b"1" * 5000, "not JSON"),
    (b"[" * 100_000, "not JSON"),
]


@pytest.mark.parametrize(("line", "problem"), BROKEN_LINES)
def test_broken_lines_are_named_skipped_or_refused(tmp_path, line, problem):
    path = jsonl(tmp_path, {"id": "a", "text": "First."}, line, {"id": "z", "text": "Last."})
    corpus = c.read_path(path, QUIET)
    assert [d.source for d in corpus.documents] == ["a", "z"]
    assert len(corpus.skipped) == 1
    assert corpus.skipped[0].startswith(f"{path}:2: {problem}")
    with pytest.raises(BadInput) as error:
        c.read_path(path, QUIET, strict=True)
    assert str(error.value).startswith(f"{path}:2: {problem}")


def test_lone_surrogates_and_line_breaks_in_names_become_storable(tmp_path):
    path = jsonl(tmp_path, b'{"id": "a\\nb", "text": "x \\ud800 y"}')
    assert c.read_path(path, QUIET).documents == [c.Document("a b", "x ? y")]


def test_a_folder_is_read_whatever_some_files_are(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("Plain text.")
    (tmp_path / "b.txt").write_bytes("caf\u00e9 au lait".encode("latin-1"))
    (tmp_path / "c.txt").write_bytes("\u4e2d\u6587".encode() + b"\xff")
    (tmp_path / "d.md").write_text("Windows.", encoding="utf-16")
    (tmp_path / "e.rst").write_bytes(b"\x89PNG\r\n\0\0")
    (tmp_path / "f.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "g.txt").mkdir()
    os.mkfifo(tmp_path / "h.txt")
    (tmp_path / "i.txt").write_text("Not for us.")
    (tmp_path / "loop").symlink_to(tmp_path)
    whole = Path.read_bytes

    def read_bytes(path):
        if path.name == "i.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    corpus = c.read_path(tmp_path, QUIET)
    assert corpus.documents == [
        c.Document("a.txt", "Plain text."),
        c.Document("b.txt", "caf\u00e9 au lait"),
        c.Document("c.txt", "\u4e2d\u6587\ufffd"),
        c.Document("d.md", "Windows."),
    ]
    assert corpus.notes == [
        f"{tmp_path}/b.txt: not UTF-8, read as Windows-1252",
        f"{tmp_path}/c.txt: not UTF-8, read as UTF-8, 1 wrong bytes replaced",
        f"{tmp_path}/d.md: not UTF-8, read as UTF-16",
    ]
    assert sorted(corpus.skipped) == [
        f"{tmp_path}/e.rst: binary, not text",
        f"{tmp_path}/f.txt: a broken link",
        f"{tmp_path}/h.txt: not a regular file",
        f"{tmp_path}/i.txt: Permission denied",
    ]
    with pytest.raises(BadInput, match=r"/(f\.txt: a broken link|h\.txt: not a regular file)$"):
        c.read_path(tmp_path, QUIET, strict=True)


def test_folders_that_cannot_be_listed_are_named(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("Plain text.")
    (tmp_path / "closed").mkdir()
    whole = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path)

    monkeypatch.setattr(os, "scandir", scandir)
    corpus = c.read_path(tmp_path, QUIET)
    assert len(corpus.documents) == 1
    assert corpus.skipped == [f"{tmp_path}/closed: Permission denied"]


def test_one_file_and_lines_of_another_encoding(tmp_path):
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"caf\xe9")
    lines = tmp_path / "latin.jsonl"
    lines.write_bytes(b'{"id": 1, "text": "ok"}\n{"id": 2, "text": "\xe9"}\n{"id": 3, "\0": 1}\n')
    corpus = c.read_path(latin, QUIET)
    assert [d.text for d in corpus.documents] == ["caf\u00e9"]
    corpus = c.read_path(lines, QUIET)
    assert [d.text for d in corpus.documents] == ["ok", "\u00e9"]
    assert corpus.notes == [f"{lines}:2: not UTF-8, read as Windows-1252"]
    assert corpus.skipped == [f"{lines}:3: binary, not text"]
    for path, place in ((latin, "latin.txt:"), (lines, "latin.jsonl:2:")):
        with pytest.raises(BadInput, match=f"{place} not UTF-8"):
            c.read_path(path, QUIET, strict=True)


def test_refused_paths(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    blank = tmp_path / "blank.txt"
    blank.write_text("\n")
    only_broken = tmp_path / "broken.jsonl"
    only_broken.write_text("{\n[\n")
    image = tmp_path / "image.txt"
    image.write_bytes(b"\x89PNG\0")
    pipe = tmp_path / "pipe.txt"
    os.mkfifo(pipe)
    binary = tmp_path / "x.bin"
    binary.write_bytes(b"\0")
    for path, message in [
        (tmp_path / "nowhere", "no such file or folder"),
        (empty, "no .txt, .md, .rst file in this folder"),
        (blank, "no text in it"),
        (only_broken, f"no text in it (2 skipped: {only_broken}:1: not JSON"),
        (image, f"no text in it (1 skipped: {image}: binary, not text)"),
        (pipe, "not a regular file"),
        (binary, "expected a folder of .txt, .md, .rst files or a .jsonl file"),
    ]:
        with pytest.raises(BadInput, match=r".") as error:
            c.read_path(path, QUIET)
        assert message in str(error.value)
        assert str(path) in str(error.value)


def test_a_stored_text_is_split_into_name_and_text():
    for document in (c.Document("a b", "x\n\ny"), c.Document("n", "  x"), c.Document("n", "\n\n")):
        assert c.split_indexed(c.indexed_text(document)) == document
