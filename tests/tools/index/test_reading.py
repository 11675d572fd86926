"""Files read into chunks: their ids, offsets and metadata; broken files and records."""

import json
from pathlib import Path

import pytest

from llmds_nb.tools.errors import BadInput
from llmds_nb.tools.index.files import find_files
from llmds_nb.tools.index.reading import Options, read_chunks
from llmds_nb.tools.index.records import Fields
from llmds_nb.tools.index.report import Report
from llmds_nb.tools.progress import Progress


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def read(*paths, strict=False, text=None, id_=None, **options):
    """(chunks in order, the report)."""
    report = Report(strict=strict)
    options = Options(fields=Fields(text, id_), **options)
    chunks = read_chunks(find_files(paths, report), options, report, Progress())
    return [chunk for of_source in chunks.values() for chunk in of_source], report


def written(name, content):
    content = content if isinstance(content, bytes) else content.encode()
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_bytes(content)
    return name


def of_metadata(chunks, *fields):
    return [tuple(chunk.metadata.get(field) for field in fields) for chunk in chunks]


def test_a_chunk_is_the_text_between_its_offsets():
    text = "\n\n".join(f"Paragraph {i} has words.\nAnd a second line." for i in range(40))
    for name, content in (
        ("docs/lf.txt", text),
        ("docs/crlf.txt", text.replace("\n", "\r\n")),
        ("docs/cr.txt", text.replace("\n", "\r")),
        ("docs/bom.txt", "\ufeff" + text),
        ("docs/utf16.txt", text.encode("utf-16")),
    ):
        chunks, _ = read(written(name, content), max_tokens=30)
        assert len(chunks) > 5
        for chunk in chunks:
            start, stop = chunk.metadata["start"], chunk.metadata["stop"]
            assert chunk.text == text[start:stop] and chunk.metadata["source"] == name
            assert chunk.id == f"{name}#{start}"


def test_chunks_may_overlap():
    name = written("a.txt", "one two three four five six seven")
    chunks, _ = read(name, max_tokens=4, overlap=2)
    texts = ["one two", "two three four", "three four five six", "five six seven"]
    assert [c.text for c in chunks] == texts


def test_files_that_are_not_texts_are_skipped_by_name(monkeypatch):
    written("d/a.txt", "Plain text.")
    written("d/b.txt", "caf\u00e9 au lait".encode("latin-1"))
    written("d/c.txt", b"\x89PNG\r\n\0\0")
    written("d/e.txt", bytes(range(1, 256)))
    written("d/f.txt", " \n\n ")
    written("d/g.txt.gz", b"no gzip")
    written("d/h.txt", "closed")
    whole = Path.read_bytes

    def read_bytes(path):
        if path.name == "h.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    chunks, report = read("d")
    assert [(c.id, c.text) for c in chunks] == [
        ("d/a.txt#0", "Plain text."),
        ("d/b.txt#0", "caf\u00e9 au lait"),
    ]
    assert report.notes == ["d/b.txt: not UTF-8, read as Windows-1252"]
    assert report.skipped[0:2] == ["d/c.txt: binary, not text", "d/e.txt: binary, not text"]
    assert report.skipped[2].startswith("d/g.txt.gz: a damaged gzip file (")
    assert report.skipped[3] == "d/h.txt: Permission denied"
    assert report.unread == {"files without text": ["d/f.txt"]}
    with pytest.raises(BadInput, match=r"d/b\.txt: not UTF-8"):
        read("d", strict=True)


CSV = """\ufeffid,text,year,zip,price,note,empty
1,"Some, ""quoted""
text",2020,01234,1.5,,
2,Other text,1999,90210,2,yes,
"""


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_rows_of_csv(name):
    import gzip

    content = CSV.encode()
    chunks, report = read(written(name, gzip.compress(content) if "gz" in name else content))
    own = {"source": name, "start": 0}
    first = own | {"stop": 19, "year": 2020, "zip": "01234", "price": 1.5}
    second = own | {"stop": 10, "year": 1999, "zip": "90210", "price": 2.0, "note": "yes"}
    assert [(c.id, c.text, c.metadata) for c in chunks] == [
        ("1", 'Some, "quoted"\ntext', first),
        ("2", "Other text", second),
    ]
    assert isinstance(chunks[1].metadata["price"], float)
    assert report.skipped == report.notes == list(report.remarks) == []


@pytest.mark.parametrize(("name", "mark"), [("t.csv", ";"), ("t.csv", "\t"), ("t.tsv", "\t")])
def test_delimiters(name, mark):
    content = f'key{mark}body, long{mark}n\nk{mark}"a;b, c"{mark}1\n'
    chunks, _ = read(written(name, content), text=("body, long",), id_="key")
    assert [(c.id, c.text, c.metadata["n"]) for c in chunks] == [("k", "a;b, c", 1)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_of_csv(end):
    rows = ["", "id,text,n", '1,"two, three",4', "", "2,five,6", ""]
    chunks, report = read(written("t.csv", end.join(rows)))
    assert [(c.id, c.text, c.metadata["n"]) for c in chunks] == [
        ("1", "two, three", 4),
        ("2", "five", 6),
    ]
    assert not report.skipped


def test_chosen_columns():
    name = written("t.csv", "key,title,body,n\nk1,Salt,It is white.,1\nk2,,Only a body.,x\n")
    chunks, report = read(name, text=("title", "body"), id_="key")
    assert [(c.id, c.text) for c in chunks] == [
        ("k1", "Salt\nIt is white."),
        ("k2", "Only a body."),
    ]
    assert of_metadata(chunks, "n", "title", "key") == [("1", None, None), ("x", None, None)]
    chunks, _ = read(name, text=("body",))
    assert [c.id for c in chunks] == ["t.csv#2", "t.csv#3"]
    assert of_metadata(chunks, "title", "key") == [("Salt", "k1"), (None, "k2")]
    assert not report.skipped


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["1", "-2", "0"], [1, -2, 0]),
        (["1", "2.5", "-1e3"], [1.0, 2.5, -1000.0]),
        (["1", "01"], ["1", "01"]),
        (["1", "two"], ["1", "two"]),
        (["123456789012345678"], [123456789012345678]),
        (["1234567890123456789"], ["1234567890123456789"]),
        (["1234567890123456", "1.5"], ["1234567890123456", "1.5"]),
        (["1e999", "nan", "inf"], ["1e999", "nan", "inf"]),
        (["true", "\u0661"], ["true", "\u0661"]),
        ([" 7 ", ""], [7, None]),
    ],
)
def test_columns_of_numbers(cells, values):
    chunks, _ = read(written("t.csv", "text,n\n" + "".join(f"word,{cell}\n" for cell in cells)))
    found = [value for (value,) in of_metadata(chunks, "n")]
    assert found == values and list(map(type, found)) == list(map(type, values))


def test_broken_rows_are_named_by_file_and_line():
    content = 'id,text,n\n1,"two\nlines",1\nragged,2\n\n3,a,b,c\n4,"x"y,1\n5,,1\n1,again,1\n,t,1\n'
    content += '6,"open,1\n7,t'
    chunks, report = read(written("t.csv", content))
    assert [c.id for c in chunks] == ["1"]
    assert sorted(report.skipped) == [
        "t.csv:10: id must not be empty",
        "t.csv:11: a quote that is not closed",
        "t.csv:4: 2 cells below a header of 3",
        "t.csv:6: 4 cells below a header of 3",
        "t.csv:7: ',' expected after '\"'",
        "t.csv:8: text must not be empty",
        "t.csv:9: the id '1' already stands at t.csv:2",
    ]
    with pytest.raises(BadInput, match=r"t\.csv:\d"):
        read("t.csv", strict=True)


def test_wrong_columns_are_refused_where_the_file_is_named():
    written("d/a.txt", "text")
    name = written("d/t.csv", "a,b\n1,2\n")
    for fields, message in [
        ({}, "d/t.csv: no column 'text' (--text-column): it has a, b"),
        ({"text": ("a",), "id_": "x"}, "d/t.csv: no column 'x' (--id-column): it has a, b"),
    ]:
        with pytest.raises(BadInput, match=r".") as error:
            read(name, **fields)
        assert str(error.value) == message
        chunks, report = read("d", **fields)
        assert [c.id for c in chunks] == ["d/a.txt#0"] and report.skipped == [message]
    with pytest.raises(BadInput, match="the column 'a' stands twice"):
        read(written("t.csv", "a,text,a\n1,2,3\n"))
    chunks, report = read(written("t.csv", "text,,\nx,1,2\n"))
    assert of_metadata(chunks, "column2", "column3") == [(1, 2)]
    for content in ("", "\n\n", "id,text\n"):
        chunks, report = read(written("t.csv", content))
        assert chunks == [] and report.unread == {"files without text": ["t.csv"]}


def test_huge_cells_and_lines():
    word = "word " * 60_000
    for name, content in (
        ("t.csv", f"id,text\n1,{word}\n"),
        ("t.jsonl", json.dumps({"id": 1, "text": word})),
        ("t.txt", word),
    ):
        chunks, report = read(written(name, content), max_tokens=1000)
        assert len(chunks) == 60 and not report.skipped
        assert chunks[1].id == ("t.txt#5000" if name == "t.txt" else "1#1")
        assert " ".join(c.text for c in chunks) == word.strip()


def jsonl(*rows):
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    return written("t.jsonl", b"\n".join(lines))


def test_lines_of_jsonl():
    name = jsonl(
        {"id": "a", "text": "One", "metadata": {"year": 2020, "deep": {"x": [1, None]}}, "more": 1},
        b"   ",
        {"_id": 7, "title": "Head", "text": "Two", "year": 1.5, "ok": True, "none": None},
        {"text": "Three", "tags": ["a", "b"], "vector": [0.5], "object": {}, "url": "http://x"},
    )
    chunks, report = read(name)
    own = {"source": name, "start": 0}
    assert [(c.id, c.text, c.metadata) for c in chunks] == [
        ("a", "One", own | {"stop": 3, "year": 2020, "deep": {"x": [1, None]}}),
        ("7", "Head\nTwo", own | {"stop": 8, "title": "Head", "year": 1.5, "ok": True}),
        ("t.jsonl#4", "Three", own | {"stop": 5, "tags": ["a", "b"], "url": "http://x"}),
    ]
    assert report.skipped == []
    assert sorted(report.remarks) == [
        "t.jsonl: the field 'object' holds an object and is left out of the metadata",
        "t.jsonl: the field 'vector' holds a list of other things than strings and is left out of "
        "the metadata",
    ]
    chunks, _ = read(jsonl({"k": 1, "body": "x", "text": "y"}), text=("body",), id_="k")
    assert [(c.id, c.text, c.metadata["text"]) for c in chunks] == [("1", "x", "y")]


def test_names_that_metadata_cannot_have():
    fields = {"source": "wiki", "start": 1, "a.b": 2, "$c": {"d.e": 3}, "": 4, "\ud800": "\ud800"}
    for row in ({"text": "x", "metadata": fields}, {"text": "x", **fields, "$c": 3}):
        (chunk,), report = read(jsonl(row))
        assert chunk.metadata == {
            "source": "t.jsonl", "start": 0, "stop": 1, "_source": "wiki", "_start": 1, "a_b": 2,
            "_c": {"d_e": 3} if "metadata" in row else 3, "_": 4, "?": "?",
        }  # fmt: skip
        assert "t.jsonl: the field 'a.b' is a_b in the metadata" in report.remarks
        assert "t.jsonl: the field 'source' of its records is _source in the metadata" in (
            report.remarks
        )


DEEP = {"x": 1}
for _ in range(70):
    DEEP = {"x": DEEP}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{not json", "not JSON"),
        (b'{"text": "x", "n": NaN}', "not JSON: NaN is no number of JSON"),
        (b"[1, 2]", "expected an object, not list"),
        (b"1" * 5000, "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\0", "binary, not text"),
        ({"id": "b"}, "text must be a string, not missing"),
        ({"id": 1.5, "text": "t"}, "id must be a string or an integer, not float"),
        ({"id": True, "text": "t"}, "id must be a string or an integer, not bool"),
        ({"id": " ", "text": "t"}, "id must not be empty"),
        ({"id": "b", "text": 3}, "text must be a string, not int"),
        ({"id": "b", "text": "t", "title": []}, "title must be a string, not list"),
        ({"id": "b", "text": " "}, "text must not be empty"),
        ({"id": "a", "text": "again"}, "the id 'a' already stands at t.jsonl:1"),
        ({"text": "t", "n": 2**64}, "metadata has a number beyond 64 bits, 18446744073709551616"),
        (b'{"text": "t", "n": 1e999}', "metadata has a number beyond those of a float"),
        ({"text": "t", "metadata": {"a.b": 1, "a_b": 2}}, "metadata has the field 'a_b' twice"),
        ({"text": "t", "metadata": DEEP}, "metadata has more than 60 levels"),
    ],
)
def test_broken_lines_are_named_skipped_or_refused(line, problem):
    name = jsonl({"id": "a", "text": "First."}, line, {"id": "z", "text": "Last."})
    chunks, report = read(name)
    assert [c.id for c in chunks] == ["a", "z"]
    assert len(report.skipped) == 1
    assert report.skipped[0].startswith(f"t.jsonl:2: {problem}")
    with pytest.raises(BadInput) as error:
        read(name, strict=True)
    assert str(error.value).startswith(f"t.jsonl:2: {problem}")


def test_lines_of_other_encodings():
    chunks, report = read(jsonl({"text": "ok"}, b'{"text": "caf\xe9"}'))
    assert [c.text for c in chunks] == ["ok", "caf\u00e9"]
    assert report.notes == ["t.jsonl:2: not UTF-8, read as Windows-1252"]
    with pytest.raises(BadInput, match=r"^t\.jsonl:2: not UTF-8, read as Windows-1252$"):
        read("t.jsonl", strict=True)
    text = '{"text": "one"}\n{"text": "\u4e2d"}\n'
    for encoding in ("utf-8-sig", "utf-16"):
        chunks, report = read(written("t.jsonl", text.encode(encoding)))
        assert [c.text for c in chunks] == ["one", "\u4e2d"]
        assert len(report.notes) == (encoding == "utf-16")


def test_an_id_that_two_files_have_is_kept_for_the_first():
    written("a.jsonl", '{"id": 1, "text": "first"}')
    written("b.jsonl", '{"id": 1, "text": "second"}\n{"id": 2, "text": "third"}')
    chunks, report = read("a.jsonl", "b.jsonl")
    assert [c.text for c in chunks] == ["first", "third"]
    assert report.skipped == ["b.jsonl:1: the id '1' already stands at a.jsonl:1"]


def test_a_report_names_the_first_and_counts_all(capsys):
    import sys

    report = Report()
    for i in range(8):
        report.skip(f"f{i}.txt: binary,\nnot text")
        report.leave_unread("links to folders", f"l{i}")
    for i in [*range(12), 0]:
        report.remark(f"remark {i}")
    report.say(Progress(sys.stderr))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        *(f"note: remark {i}" for i in range(10)),
        "note: 2 more of such",
        "not read: 8 links to folders: l0, l1, l2, ...",
        *(f"skipped: f{i}.txt: binary, not text" for i in range(5)),
        "8 files or records skipped (--strict refuses them)",
    ]
