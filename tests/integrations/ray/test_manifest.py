"""The files of a save: what a manifest refuses, and what a save that was interrupted leaves."""

import json
import subprocess
import sys

import pytest

from llmds_nb import CorruptFileError
from llmds_nb.integrations.ray.manifest import Manifest, SavedFile, file_name, next_generation

WORDS = "0123456789ab", "ba9876543210"


def save(folder, generation=1, word=WORDS[0], content=b"x"):
    """A save of two shards."""
    files = {}
    for part in ("pipeline", "shard-0", "shard-3"):
        name = file_name(part, generation, word)
        (folder / name).write_bytes(part.encode() + content * 100)
        files[part] = SavedFile.of(str(folder), name)
    shards = {0: files["shard-0"], 3: files["shard-3"]}
    manifest = Manifest(generation, files["pipeline"], shards, {"keys": ["\udc80", 7]})
    manifest.write(str(folder))
    return manifest


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    manifest = save(tmp_path)
    assert Manifest.read(str(tmp_path)) == manifest
    for file in (manifest.pipeline, *manifest.shards.values()):
        assert file.check(str(tmp_path)) == str(tmp_path / file.name)


def test_a_save_removes_the_files_of_earlier_ones_and_no_others(tmp_path):
    save(tmp_path)
    (tmp_path / "shard-9.2-000000000000.llmds").write_bytes(b"left by an interrupted save")
    (tmp_path / "notes.txt").write_text("mine")
    assert next_generation(str(tmp_path)) == 3
    manifest = save(tmp_path, 3, WORDS[1])
    names = {manifest.pipeline.name, *(file.name for file in manifest.shards.values())}
    assert {path.name for path in tmp_path.iterdir()} == names | {"manifest.json", "notes.txt"}


def test_an_interrupted_save_leaves_the_last_one(tmp_path):
    manifest = save(tmp_path)
    (tmp_path / file_name("shard-0", 2, WORDS[1])).write_bytes(b"half")
    assert Manifest.read(str(tmp_path)) == manifest
    for file in manifest.shards.values():
        file.check(str(tmp_path))


def test_a_file_of_another_generation_under_the_name_is_refused(tmp_path):
    old = save(tmp_path, content=b"o")
    (tmp_path / "kept").write_bytes((tmp_path / old.shards[0].name).read_bytes())
    new = save(tmp_path, 2, WORDS[1], content=b"n")
    (tmp_path / "kept").rename(tmp_path / new.shards[0].name)
    with pytest.raises(CorruptFileError, match="not the file of this save"):
        new.shards[0].check(str(tmp_path))


def test_a_missing_file_is_named(tmp_path):
    manifest = save(tmp_path)
    (tmp_path / manifest.shards[3].name).unlink()
    with pytest.raises(FileNotFoundError, match=r"shard-3.*does not exist"):
        manifest.shards[3].check(str(tmp_path))


def test_a_missing_manifest_is_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"manifest\.json"):
        Manifest.read(str(tmp_path))


def test_every_torn_manifest_is_refused(tmp_path):
    save(tmp_path)
    path = tmp_path / "manifest.json"
    data = path.read_bytes()
    for n in range(len(data)):
        path.write_bytes(data[:n])
        with pytest.raises(CorruptFileError, match=r"manifest\.json"):
            Manifest.read(str(tmp_path))


def test_every_changed_byte_of_a_manifest_is_refused(tmp_path):
    manifest = save(tmp_path)
    path = tmp_path / "manifest.json"
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        try:
            found = Manifest.read(str(tmp_path))
        except CorruptFileError:
            continue
        assert found == manifest, place  # as for the space between two tokens


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "has the format version 2; this version reads 1 to 1"),
        ({"version": "1"}, "has the format version 1"),
        ({"version": True}, "has the format version True"),
        ({"format": "other"}, "no manifest of a ShardedPipeline"),
        ({"body": None}, "checksum"),
    ],
)
def test_another_format_or_version_is_refused(tmp_path, change, message):
    save(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CorruptFileError, match=message):
        Manifest.read(str(tmp_path))


@pytest.mark.parametrize(
    "body",
    [
        None,
        {},
        {"shards": []},
        {"shards": {"0": ["../x", 1, "d"]}},
        {"shards": {"0": ["shard-0.1-0123456789ab.llmds", -1, "d"]}},
        {"shards": {"0": ["shard-0.1-0123456789ab.llmds", 1]}},
        {"shards": {"-1": ["shard-0.1-0123456789ab.llmds", 1, "d"]}},
        {"generation": 0},
        {"settings": 3},
        {"pipeline": ["/etc/passwd", 1, "d"]},
    ],
)
def test_a_manifest_with_a_right_checksum_and_a_wrong_body_is_refused(tmp_path, body, monkeypatch):
    save(tmp_path)
    path = tmp_path / "manifest.json"
    top = json.loads(path.read_text())
    whole = top["body"] | body if body else body
    monkeypatch.setattr("llmds_nb.integrations.ray.manifest._checksum", lambda _: "same")
    path.write_text(json.dumps(top | {"body": whole, "checksum": "same"}))
    with pytest.raises(CorruptFileError, match="not a whole manifest"):
        Manifest.read(str(tmp_path))


def test_without_ray_the_error_names_the_command():
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from llmds_nb.integrations.ray import manifest\n"
        "from llmds_nb.integrations.ray import ShardsMissingError\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode and "pip install 'llmds_nb[ray]'" in done.stderr
