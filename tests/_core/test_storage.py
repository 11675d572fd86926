"""Files: what is written is read, whole or not at all; what is not whole is refused."""

import json
import os

import numpy as np
import pytest
from safetensors.numpy import load_file

from llmds_nb import CorruptFileError, CountMinSketch, load
from llmds_nb._core.storage import Stored, nest, read, unnest, write

ARRAYS = {
    "f16": np.arange(6, dtype=np.float16).reshape(2, 3),
    "f64": np.linspace(0, 1, 5),
    "i32": np.arange(7, dtype=np.int32),
    "u8": np.arange(3, dtype=np.uint8),
    "u64": np.array([2**64 - 1], np.uint64),
    "flag": np.array([True, False]),
    "none": np.zeros((0, 4), np.float32),
}


class Box(Stored):
    """A structure of one array."""

    _stored_version = 2

    def __init__(self, array):
        self.array = array

    def _state(self):
        return {"array": self.array}, {"n": len(self.array)}

    @classmethod
    def _from_state(cls, arrays, header):
        if len(arrays["array"]) != header["n"]:
            raise CorruptFileError("the length is off")
        return cls(arrays["array"])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.safetensors"


@pytest.mark.parametrize("mmap", [False, True])
def test_arrays_and_header_come_back(path, mmap):
    write(path, "Box", ARRAYS, {"a": [1, "x", None, 2.5]})
    structure, arrays, header = read(path, mmap=mmap)
    assert structure == "Box" and header == {"a": [1, "x", None, 2.5]}
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype and np.array_equal(arrays[name], array)
        assert arrays[name].flags.writeable and type(arrays[name]) is np.ndarray


def test_any_reader_of_safetensors_opens_the_file(path):
    write(path, "Box", ARRAYS, {})
    assert np.array_equal(load_file(path)["i32"], ARRAYS["i32"])


def test_changes_to_mapped_arrays_do_not_reach_the_file(path):
    Box(np.arange(4)).save(path)
    Box.load(path, mmap=True).array[:] = 9
    assert Box.load(path).array.tolist() == [0, 1, 2, 3]


def test_a_failed_write_leaves_the_old_file_and_no_other(path, monkeypatch):
    Box(np.arange(4)).save(path)
    for name in ("os.replace", "os.fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(f"llmds_nb._core.files.{name}", _fail)
            with pytest.raises(OSError, match="disk"):
                Box(np.arange(5)).save(path)
        assert len(Box.load(path).array) == 4
        assert os.listdir(path.parent) == [path.name]


def _fail(*args, **kwargs):
    raise OSError("the disk is full")


def test_the_file_has_the_permissions_of_an_ordinary_one(path):
    Box(np.arange(4)).save(path)
    plain = path.with_name("plain")
    plain.write_text("")
    assert path.stat().st_mode == plain.stat().st_mode


def test_every_truncation_is_refused(path):
    Box(np.arange(4)).save(path)
    whole = path.read_bytes()
    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        with pytest.raises(CorruptFileError):
            Box.load(path, mmap=True)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CorruptFileError):
        Box.load(path)


def test_every_flipped_bit_is_refused(path):
    Box(np.arange(4)).save(path)
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for position in range(len(whole)):
        for bit in (0, 5):
            altered = bytearray(whole)
            altered[position] ^= 1 << bit
            path.write_bytes(altered)
            try:
                Box.load(path)
            except CorruptFileError:
                pass
            else:  # spaces that pad the header are not content
                assert position < start and whole[position : position + 1] == b" "
            if position >= start:
                assert len(Box.load(path, mmap=True).array) == 4  # array bytes: only on request
                with pytest.raises(CorruptFileError, match="altered"):
                    Box.load(path, mmap=True, verify=True)


def _rewrite(path, change):
    """Change the header of a file as an adversary or another program would, keeping it readable."""
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + n :])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda h: h.pop("__metadata__"), "not written by llmds_nb"),
        (lambda h: h["__metadata__"].update(llmds_nb="2"), "layout 2"),
        (lambda h: h["__metadata__"].update(structure="KVCache"), "altered header"),
        (lambda h: h["array"].update(dtype="F64"), "altered header"),
        (lambda h: h["array"].update(dtype="Q99"), "badly described"),
        (lambda h: h["array"].update(shape=[8]), "does not fit"),
        (lambda h: h["array"].update(shape=[-4]), "badly described|does not fit"),
        (lambda h: h["array"].update(data_offsets=[0, 64]), "does not fit"),
        (lambda h: h["array"].pop("shape"), "badly described"),
    ],
)
def test_altered_headers_are_refused(path, change, match):
    Box(np.arange(4)).save(path)
    _rewrite(path, change)
    with pytest.raises(CorruptFileError, match=match):
        Box.load(path)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x05\0\0\0\0\0\0\0[1,2]", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0{}"]
)
def test_foreign_files_are_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"file\.safetensors"):
        load(path)


def test_newer_and_other_structures_are_refused(path):
    write(path, "Box", {"array": np.arange(2)}, {"version": 3, "n": 2})
    with pytest.raises(CorruptFileError, match="format 3; this version reads 1 to 2"):
        Box.load(path)
    with pytest.raises(CorruptFileError, match="holds a Box, not a CountMinSketch"):
        CountMinSketch.load(path)
    with pytest.raises(CorruptFileError, match="'Box', which this version does not know"):
        load(path)
    write(path, "Box", {"array": np.arange(2)}, {"version": 1, "n": 3})
    with pytest.raises(CorruptFileError, match="the length is off"):
        Box.load(path)
    write(path, "Box", {}, {"version": 1, "n": 3})
    with pytest.raises(CorruptFileError, match="not a whole Box"):
        Box.load(path)


def test_missing_files_and_folders_are_named(path):
    with pytest.raises(FileNotFoundError, match=r"file\.safetensors"):
        load(path)
    with pytest.raises(FileNotFoundError):
        Box(np.arange(2)).save(path / "no" / "such" / "folder")


def test_states_nest(path):
    inner = {"x": np.arange(3)}, {"k": 1}
    arrays, header = nest("part", inner)
    write(path, "Box", {**arrays, "own": np.arange(2)}, header)
    _, arrays, header = read(path)
    part, part_header = unnest("part", arrays, header)
    assert part["x"].tolist() == [0, 1, 2] and part_header == {"k": 1}
