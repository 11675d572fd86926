"""Files of compiled kernels: several processes may fill one folder, and no foreign file is used."""

import pytest

from llmds_nb._core import kernel_cache
from llmds_nb._core.jit import kernel
from llmds_nb._core.kernel_cache import KernelCache, read_kernel, write_kernel

pytestmark = pytest.mark.skipif(KernelCache is None, reason="no disk cache here")


def test_a_file_is_read_only_under_its_own_key(tmp_path):
    file = tmp_path / "kernel.nbc"
    assert read_kernel(file, "key") is None
    write_kernel(file, "key", kernel_cache.dumps([1, 2]))
    assert read_kernel(file, "key") == [1, 2]
    for other in ("", "ke", "key2", "KEY"):
        assert read_kernel(file, other) is None
    write_kernel(file, "key", kernel_cache.dumps([3]))  # another process, at the same time
    assert read_kernel(file, "key") == [3]
    assert [path.name for path in tmp_path.iterdir()] == ["kernel.nbc"]


def test_a_damaged_file_is_not_read(tmp_path, caplog):
    file = tmp_path / "kernel.nbc"
    write_kernel(file, "key", kernel_cache.dumps([1, 2]))
    content = file.read_bytes()
    kernel_cache._warn_damaged.cache_clear()
    for n in range(len(content)):
        file.write_bytes(content[:n])
        assert read_kernel(file, "key") is None
        flipped = bytearray(content)
        flipped[n] ^= 1
        file.write_bytes(flipped)
        assert read_kernel(file, "key") is None
    file.write_bytes(content)
    assert read_kernel(file, "key") == [1, 2]
    assert [record.getMessage()[:13] for record in caplog.records] == ["damaged files"]


def test_a_save_that_is_cut_short_leaves_no_file(tmp_path, monkeypatch):
    def fail(self, content):
        self.touch()
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.write_bytes", fail)
    with pytest.raises(OSError, match=r"disk full"):
        write_kernel(tmp_path / "kernel.nbc", "key", b"")
    assert not list(tmp_path.iterdir())


def test_kernels_use_it(tmp_path, monkeypatch):
    @kernel
    def twice(x):
        return 2 * x

    cache = twice._cache
    assert isinstance(cache, KernelCache)
    monkeypatch.setattr(KernelCache, "cache_path", str(tmp_path))
    before = kernel_cache.compiled_functions()
    assert (twice(3), twice(1.5)) == (6, 3.0)
    assert kernel_cache.compiled_functions() == before + 2
    assert len(list(tmp_path.glob("*twice*.nbc"))) == 2

    again = kernel(twice.py_func)
    assert (again(3), again(1.5)) == (6, 3.0)
    assert kernel_cache.compiled_functions() == before + 2
    assert sum(again.stats.cache_hits.values()) == 2
    cache.flush()
    assert not list(tmp_path.iterdir())
