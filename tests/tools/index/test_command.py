"""The command `index`: what it writes, adds, replaces and removes; what it prints and refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmds_nb import RetrievalPipeline
from llmds_nb.tools.main import main

OUT = Path("out.llmds")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Three texts and a table in the present folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs" / "cooking").mkdir(parents=True)
    (tmp_path / "docs" / "cooking" / "salt.md").write_text(
        "# Salt\n\nSalt raises the boiling point of water."
    )
    (tmp_path / "docs" / "stars.txt").write_text("\nStars are far away.\nThey shine at night.")
    (tmp_path / "docs" / "cars.rst").write_text("Cars need roads and fuel.")
    (tmp_path / "t.csv").write_text("id,text,year\nk1,Red foxes run.,2020\nk2,A blue sky.,1999\n")
    return tmp_path


def index(*arguments, code=0):
    assert main(["index", *map(str, arguments), "--out", "out.llmds"]) == code


def held():
    """{id: (text, metadata)} of the file."""
    pipeline = RetrievalPipeline.load("out.llmds")
    pipeline.check()
    documents = pipeline.documents(pipeline.ids())
    return {document.id: (document.text, document.metadata) for document in documents}


def content():
    """The bytes of the file; None: there is none."""
    return OUT.read_bytes() if OUT.exists() else None


def refused(capsys, *arguments):
    """The one line of a command that must be refused, and leave the file as it was."""
    before = content()
    capsys.readouterr()
    assert main(["index", *map(str, arguments), "--out", "out.llmds"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    assert content() == before
    return captured.err.splitlines()[-1]


def test_every_source_is_in_the_file(capsys):
    index("docs", "t.csv")
    size = os.path.getsize("out.llmds")
    captured = capsys.readouterr()
    assert captured.out == f"out.llmds: 5 documents of 4 sources, {size:,} bytes\n"
    assert captured.err.splitlines()[0].startswith("read files: 4 files (")
    assert held() == {
        "docs/cars.rst#0": (
            "Cars need roads and fuel.",
            {"source": "docs/cars.rst", "start": 0, "stop": 25},
        ),
        "docs/cooking/salt.md#0": (
            "# Salt\n\nSalt raises the boiling point of water.",
            {"source": "docs/cooking/salt.md", "start": 0, "stop": 47},
        ),
        "docs/stars.txt#1": (
            "Stars are far away.\nThey shine at night.",
            {"source": "docs/stars.txt", "start": 1, "stop": 41},
        ),
        "k1": ("Red foxes run.", {"source": "t.csv", "start": 0, "stop": 14, "year": 2020}),
        "k2": ("A blue sky.", {"source": "t.csv", "start": 0, "stop": 11, "year": 1999}),
    }


def test_chunks_of_chosen_columns(folder):
    (folder / "t.csv").write_text(f"key,head,body,n\n1,Head,{'some words. ' * 30},5\n")
    index(
        "t.csv", "--text-column", "head,body", "--id-column=key", "--max-tokens=40", "--overlap=9"
    )
    found = held()
    assert list(found) == [f"1#{i}" for i in range(len(found))] and len(found) > 2
    whole = "Head\n" + ("some words. " * 30).strip()
    for text, metadata in found.values():
        assert text == whole[metadata["start"] : metadata["stop"]] and metadata["n"] == 5


def test_what_is_left_out_is_counted_and_named(folder, capsys):
    (folder / "docs" / "image.txt").write_bytes(b"\x89PNG\0")
    (folder / "docs" / "code.py").write_text("x = 1")
    (folder / "c.jsonl").write_text('{"id": 1, "text": "One whole text."}\n' + "{\n" * 8)
    index("docs", "c.jsonl")
    lines = capsys.readouterr().err.splitlines()
    assert "not read: 1 files of other kinds (name them to read them): docs/code.py" in lines
    assert "skipped: docs/image.txt: binary, not text" in lines
    assert sum(line.startswith("skipped: ") for line in lines) == 5
    assert "9 files or records skipped (--strict refuses them)" in lines
    assert "docs/image.txt: binary, not text" in refused(capsys, "docs", "--strict")


def test_a_source_that_is_read_again_is_replaced(folder, capsys):
    index("docs", "t.csv")
    first = held()
    (folder / "docs" / "stars.txt").write_text("Stars are far.\n\nPlanets are near.")
    (folder / "docs" / "new.txt").write_text("A new text.")
    (folder / "docs" / "cars.rst").write_text(" ")
    (folder / "t.csv").write_text("id,text,year\nk1,Red foxes run.,2021\nk3,Rain.,2000\n")
    capsys.readouterr()
    index("--add", "docs", "t.csv", "--max-tokens", "6")
    out = capsys.readouterr().out
    assert out.startswith("out.llmds: 5 added, 2 changed, 3 removed; 7 documents of 4 sources, ")
    found = held()
    assert {"docs/cooking/salt.md#24", "docs/stars.txt#0", "docs/stars.txt#16", "k3"} < found.keys()
    assert "docs/cars.rst#0" not in found and "k2" not in found and "docs/stars.txt#1" not in found
    assert found["k1"][1]["year"] == 2021 and found["docs/new.txt#0"][0] == "A new text."
    assert first.keys() - found.keys() == {"docs/cars.rst#0", "docs/stars.txt#1", "k2"}


def test_a_source_that_is_the_same_leaves_the_file_alone(folder, capsys):
    index("docs", "t.csv")
    before = os.stat("out.llmds")
    capsys.readouterr()
    index("./docs/", "--add")
    assert "0 added, 0 changed, 0 removed; 5 documents of 4 sources" in capsys.readouterr().out
    assert os.stat("out.llmds") == before


def test_sources_that_are_gone_stay_and_are_told(folder, capsys):
    index("docs", "t.csv")
    os.remove("docs/stars.txt")
    capsys.readouterr()
    index("docs", "--add")
    line = "not read: 1 sources of the file that were not read now, and stay: docs/stars.txt"
    assert line in capsys.readouterr().err.splitlines()
    assert "docs/stars.txt#1" in held()


def test_sources_and_folders_of_them_are_removed(folder, capsys):
    index("docs", "t.csv")
    capsys.readouterr()
    index("--remove", "docs/cooking/", "t.csv")
    assert "0 added, 0 changed, 3 removed; 2 documents of 2 sources" in capsys.readouterr().out
    assert set(held()) == {"docs/cars.rst#0", "docs/stars.txt#1"}
    index("--remove", "./docs/cars.rst", "--add", "t.csv")
    assert set(held()) == {"docs/stars.txt#1", "k1", "k2"}
    index("--remove", ".")
    assert held() == {}
    index("t.csv", "--add")
    assert set(held()) == {"k1", "k2"}


def test_names_of_any_bytes_can_be_removed(folder):
    names = [os.fsdecode(b"caf\xe9.txt"), "new\nline.txt", "a b.txt"]
    for name in names:
        (folder / name).write_text("Some words in it.")
    index(*names)
    assert set(held()) == {"caf\\xe9.txt#0", "new\nline.txt#0", "a b.txt#0"}
    index("--remove", names[0], names[1])
    assert set(held()) == {"a b.txt#0"}
    index("--remove", "a b.txt")


def test_what_cannot_be_added_is_refused(folder, capsys):
    assert "No such file" in refused(capsys, "t.csv", "--add")
    index("docs", "t.csv")
    for arguments, message in (
        ([], "index needs a PATH, --remove or --refit"),
        (["--add"], "index needs a PATH, --remove or --refit"),
        (["--add", "--remove", "t.csv"], "--add needs a PATH"),
        (["docs", "--remove", "t.csv"], "--remove with a PATH needs --add"),
        (["docs", "--refit"], "--refit with a PATH needs --add"),
        (
            ["--remove", "no.txt"],
            "--remove no.txt: no such source in out.llmds, which has",
        ),
        (["--remove", "doc"], "--remove doc: no such source"),
        (["--add", "t.csv", "--remove", "t.csv"], "t.csv: is to be added and to be removed"),
        (["--add", "t.csv", "--language", "german"], "has the language 'english': --add takes no"),
        (["--add", "t.csv", "--language", "none"], "has the language 'english': --add takes no"),
        (["--add", "t.csv", "--encoder", "static"], "has the encoder 'lsa': --add takes no other"),
        (["--add", "nowhere"], "nowhere: no such file or folder"),
        (["t.csv", "--max-tokens", "0"], "--max-tokens: must be at least 1, not 0"),
        (["t.csv", "--overlap", "129"], "--overlap: must be at most half of --max-tokens, 128"),
        (["t.csv", "--text-column", "a,,b"], "--text-column/--text-field: must be names between"),
        (["t.csv", "--text-column", "body"], "t.csv: no column 'body' (--text-column): it has id"),
        (["t.csv", "--language", "klingon"], "language must be one of"),
        (["t.csv", "--encoder", "no-such-encoder"], "no-such-encoder"),
    ):
        assert message in refused(capsys, *arguments)
    index("t.csv", "--add", "--language", "english", "--encoder", "lsa")


def test_an_id_of_another_source_is_kept(folder, capsys):
    index("t.csv")
    (folder / "u.csv").write_text("id,text\nk1,Another text.\nk4,More.\n")
    capsys.readouterr()
    index("u.csv", "--add")
    assert "skipped: u.csv: the id 'k1' is already that of t.csv" in capsys.readouterr().err
    assert held()["k1"][0] == "Red foxes run." and "k4" in held()
    assert "is already that of t.csv" in refused(capsys, "u.csv", "--add", "--strict")
    index("u.csv", "--add", "--remove", "t.csv")
    assert {id_: text for id_, (text, _) in held().items()} == {
        "k1": "Another text.",
        "k4": "More.",
    }


def test_other_files_are_not_added_to(folder, capsys):
    old = RetrievalPipeline(dim=2)
    old.add([5], ["docs/a.md\n\nred fox"], [[1, 0]])
    old.save("out.llmds")
    assert "has numbers as ids, not names" in refused(capsys, "t.csv", "--add")
    own = RetrievalPipeline(dim=2)
    own.add(["k1"], ["red fox"], [[1, 0]])
    own.save("out.llmds")
    line = refused(capsys, "t.csv", "--add")
    assert line == "llmds-nb: the file has no encoder, or one that no file can hold"
    with open("out.llmds", "r+b") as file:
        file.truncate(os.path.getsize("out.llmds") - 10)
    assert "is it truncated?" in refused(capsys, "t.csv", "--add")


def test_texts_without_words_are_refused(folder, capsys):
    (folder / "c.jsonl").write_text('{"id": 1, "text": "... !"}')
    assert "none of the 1 texts holds a word" in refused(capsys, "c.jsonl")
    (folder / "e.txt").write_text(" \n")
    assert refused(capsys, "e.txt") == "llmds-nb: e.txt: no text in it"
    (folder / "e.txt").write_bytes(b"\0")
    assert "no text in it (1 skipped: e.txt: binary, not text)" in refused(capsys, "e.txt")
    index("t.csv")
    index("c.jsonl", "--add")  # found by nothing, but it is there
    assert "1" in held()


@pytest.mark.parametrize("language", ["none", "german"])
def test_a_language(folder, capsys, language):
    (folder / "d.txt").write_text("Die H\u00e4user der St\u00e4dte. The houses of the cities.")
    index("d.txt", "--language", language)
    capsys.readouterr()
    assert main(["info", "out.llmds"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{'language':<14} {language}" in lines and f"{'encoder':<14} lsa" in lines
    assert "ids            text, such as 'd.txt#0'" in lines
    assert "metadata       source  in 1 documents" in lines
    assert main(["search", "out.llmds", "Haus", "--json"]) == 0
    assert bool(json.loads(capsys.readouterr().out)) == (language == "german")
    index("t.csv", "--add", "--language", language)


def test_texts_of_other_scripts(folder, capsys):
    texts = {
        "zh.txt": "\u4f4e\u5934\u601d\u6545\u4e61\u3002" * 90,
        "hi.txt": "\u0939\u093f\u0928\u094d\u0926\u0940 \u092d\u093e\u0937\u093e",
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    index("zh.txt", "hi.txt", "--language", "none")
    for query, name in (
        ("\u6545\u4e61", "zh.txt"),
        ("\u0939\u093f\u0928\u094d\u0926\u0940", "hi.txt"),
    ):
        capsys.readouterr()
        assert main(["search", "out.llmds", query, "-k", "1", "--json"]) == 0
        (answer,) = json.loads(capsys.readouterr().out)
        metadata = answer["metadata"]
        assert metadata["source"] == name
        assert answer["text"] == texts[name][metadata["start"] : metadata["stop"]]
    assert sum(id_.startswith("zh.txt#") for id_ in held()) == 3  # 540 characters, 256 in each


def test_an_encoder_that_is_outgrown_can_be_fitted_anew(folder, capsys):
    index("t.csv")
    capsys.readouterr()
    (folder / "new.txt").write_text(
        "Quarks and gluons.\n\nBosons.\n\nLeptons, muons.\n\nNeutrinos."
    )
    index("new.txt", "--add", "--max-tokens=4")
    lines = capsys.readouterr().err.splitlines()
    assert "note: 5 documents have no word that the encoder knows: words alone find them" in lines
    due = "note: the encoder was fitted to 2 texts, and there are 7 now: --refit fits it to all"
    assert due in lines and not any("refit()" in line for line in lines)
    before = held()
    index("--refit")
    captured = capsys.readouterr()
    assert "0 added, 0 changed, 0 removed; 7 documents" in captured.out
    assert not any(line.startswith("note: ") for line in captured.err.splitlines())
    assert held() == before
    assert RetrievalPipeline.load("out.llmds").stats().vectors == 7


def test_an_encoder_by_name(folder, capsys):
    pytest.importorskip("wordllama")
    for name in ("static", "wordllama-64"):
        index("docs", "--encoder", name)
        index("t.csv", "--add", "--encoder", name)
        assert len(held()) == 5
        assert "has the encoder 'wordllama-" in refused(
            capsys, "t.csv", "--add", "--encoder", "lsa"
        )
        assert main(["search", "out.llmds", "animals in the wild", "-k", "1", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)[0]["id"] == "k1"
        assert main(["info", "out.llmds"]) == 0
        own = "wordllama-256" if name == "static" else name
        assert f"{'encoder':<14} {own}" in capsys.readouterr().out.splitlines()


def test_packages_that_are_missing_are_named(folder, capsys, monkeypatch):
    pytest.importorskip("wordllama")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    line = refused(capsys, "docs", "--encoder", "sentence-transformers/some-model")
    assert "pip install 'llmds_nb[st]'" in line
    index("docs", "--encoder", "static")
    from llmds_nb.text import static_model

    def missing(*_):
        raise ImportError("StaticEncoder needs wordllama: pip install 'llmds_nb[static]'")

    monkeypatch.setattr(static_model, "_find", missing)
    assert "pip install 'llmds_nb[static]'" in refused(capsys, "docs", "--encoder", "static")
    assert "pip install 'llmds_nb[static]'" in refused(capsys, "t.csv", "--add")
    assert main(["search", "out.llmds", "salt"]) == 2
    assert "pip install 'llmds_nb[static]'" in capsys.readouterr().err
    assert main(["info", "out.llmds"]) == 0
    assert "cannot be read: " in capsys.readouterr().out


def test_texts_and_changes_of_others_are_not_overwritten(folder, capsys, monkeypatch):
    (folder / "link.md").symlink_to("docs/stars.txt")
    for out in ("docs/stars.txt", "link.md", folder / "docs" / "stars.txt"):
        assert main(["index", "docs", "--out", str(out)]) == 2
        assert f"--out {out}: is one of the texts" in capsys.readouterr().err
    assert (folder / "docs" / "stars.txt").read_text().startswith("\nStars")
    index("docs")
    whole = RetrievalPipeline.add

    def add(self, *arguments, **options):
        monkeypatch.setattr(RetrievalPipeline, "add", whole)
        index("docs/cars.rst")  # another process
        changed.append(content())
        return whole(self, *arguments, **options)

    changed = []
    monkeypatch.setattr(RetrievalPipeline, "add", add)
    index("t.csv", "--add", code=2)
    assert "out.llmds: was changed by another process meanwhile" in capsys.readouterr().err
    assert [content()] == changed


def test_a_full_disk_leaves_the_old_file(folder, capsys, monkeypatch):
    index("docs")

    def fsync(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    for arguments in (["docs", "t.csv"], ["t.csv", "--add"], ["--remove", "docs/cars.rst"]):
        assert refused(capsys, *arguments).endswith("out.llmds: No space left on device")
    assert sorted(os.listdir()) == ["docs", "out.llmds", "t.csv"]


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_leaves_the_old_file(folder, number, code):
    index("docs")
    before = content()
    (folder / "big.txt").write_text("\n\n".join(f"word{i} and more" for i in range(400_000)))
    command = [sys.executable, "-m", "llmds_nb", "index", "big.txt", "--out", "out.llmds", "--add"]
    process = subprocess.Popen([*command, "--max-tokens=4"], stderr=subprocess.PIPE)
    assert process.stderr.readline().startswith(b"read out.llmds")
    time.sleep(0.5)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    word = "interrupted" if code == 130 else "terminated"
    assert said.decode().splitlines()[-1] == f"llmds-nb: {word}"
    assert content() == before
    assert sorted(os.listdir()) == ["big.txt", "docs", "out.llmds", "t.csv"]
