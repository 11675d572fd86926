"""Several processes may fill one cold kernel cache."""

import pytest

from llmds_nb._core import kernel_cache

pytestmark = pytest.mark.skipif(kernel_cache._StampedCache is None, reason="no disk cache here")


def test_two_processes_saving_at_once_never_mix_up_their_code(tmp_path, monkeypatch):
    one, two = (kernel_cache._OwnDataFiles(str(tmp_path), "kernel", "stamp") for _ in range(2))
    one.save("int64", "code for int64")
    # The other process read the index before that save, and writes its own after it.
    monkeypatch.setattr(two, "_load_index", dict)
    two.save("float64", "code for float64")
    reader = kernel_cache._OwnDataFiles(str(tmp_path), "kernel", "stamp")
    assert reader.load("float64") == "code for float64"
    assert reader.load("int64") in (None, "code for int64")
    one.save("int64", "code for int64")
    assert reader.load("int64") == "code for int64"
    assert reader.load("float64") == "code for float64"


def test_a_save_that_is_cut_short_leaves_no_entry(tmp_path, monkeypatch):
    file = kernel_cache._OwnDataFiles(str(tmp_path), "kernel", "stamp")

    def fail(name, data):
        raise OSError("disk full")

    monkeypatch.setattr(file, "_save_data", fail)
    with pytest.raises(OSError, match=r"disk full"):
        file.save("int64", "code")
    assert file.load("int64") is None


def test_kernels_use_it():
    from llmds_nb.primitives import hashing

    assert isinstance(hashing.mix64._cache._cache_file, kernel_cache._OwnDataFiles)
