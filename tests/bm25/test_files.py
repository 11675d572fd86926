"""InvertedIndex: save and load, mapped and not, damaged files."""

import pytest

import llmds_nb
from llmds_nb import CorruptFileError, InvertedIndex


@pytest.fixture
def saved(tmp_path):
    index = InvertedIndex(k1=0.9, b=0.4, variant="bm25+")
    index.add([2**40, 7, 3], ["red fox", "blue fox fox", "gone"])
    index.add([9, 3], ["red \u00fcber sea", "red red"])
    index.remove(9)
    path = tmp_path / "index.safetensors"
    index.save(path)
    return index, path


@pytest.mark.parametrize("mmap", [False, True])
def test_save_and_load(saved, mmap):
    index, path = saved
    for loaded in (InvertedIndex.load(path, mmap=mmap), llmds_nb.load(path, mmap=mmap)):
        loaded.check()
        for query in ("red fox", "blue", "sea", "gone"):
            a, b = index.search(query, 5), loaded.search(query, 5)
            assert (a.ids == b.ids).all() and (a.scores == b.scores).all()
        loaded.add(None, "a new red whale")
        assert loaded.search("whale", 1).ids.tolist() == [2**40 + 1]
        loaded.check()
    assert len(InvertedIndex.load(path)) == 3


def test_an_empty_index_is_saved_and_loaded(tmp_path):
    InvertedIndex().save(tmp_path / "empty")
    loaded = InvertedIndex.load(tmp_path / "empty", mmap=True)
    loaded.check()
    loaded.add(None, "fox")
    assert loaded.search("fox", 1).ids.tolist() == [0]


def test_callables_are_given_back_after_loading(tmp_path):
    index = InvertedIndex(tokenizer=str.split)
    index.add(1, "Red,fox the")
    index.save(tmp_path / "index")
    loaded = InvertedIndex.load(tmp_path / "index")
    with pytest.raises(ValueError, match=r"callable pattern.*supply"):
        loaded.search("the")
    loaded.tokenizer.supply(pattern=str.split)
    assert loaded.search("the", 1).ids.tolist() == [1]
    loaded.save(tmp_path / "index")


def test_truncated_and_flipped_files_are_refused(saved):
    _, path = saved
    whole = path.read_bytes()
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptFileError):
            InvertedIndex.load(path)
    for place in range(0, len(whole), 11):
        flipped = bytearray(whole)
        flipped[place] ^= 64
        path.write_bytes(flipped)
        with pytest.raises(CorruptFileError):
            InvertedIndex.load(path)


def test_flipped_bytes_never_reach_foreign_memory_when_unverified(saved):
    _, path = saved
    whole = path.read_bytes()
    for place in range(8 + int.from_bytes(whole[:8], "little"), len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 0x55
        path.write_bytes(flipped)
        try:
            index = InvertedIndex.load(path, mmap=True)
        except CorruptFileError:
            continue
        try:
            index.search("red fox sea", 3)
            index.postings("red")
            index.compact()
            index.remove(3)
            index.search("red fox", 3)
        except (UnicodeDecodeError, KeyError):
            pass


def test_a_newer_version_is_refused(saved, monkeypatch):
    index, path = saved
    monkeypatch.setattr(InvertedIndex, "_stored_version", 7)
    index.save(path)
    monkeypatch.undo()
    with pytest.raises(CorruptFileError, match="format 7"):
        InvertedIndex.load(path)
