"""Saves that are killed, or that the disk refuses: the old file or the new one, each whole."""

import copy
import errno
import functools
import os
import resource
import signal
import time
import traceback

import numpy as np
import pytest

import llmds_nb
from llmds_nb._core import files
from tests.cases import cases, structures
from tests.forks import in_child

from .worker import names_of

STEPS = ("open", "write", "flush", "fsync", "replace", "fsync of the folder")
WIDE = "CountMinSketch, 4 MB"


@functools.cache
def _two(structure):
    """An object and another one, with the bytes of their files."""
    if structure == WIDE:
        old = llmds_nb.CountMinSketch(1 << 17)
        new = copy.copy(old)
        new.add(range(1000))
    else:
        case = cases()[names_of(structure)[0]]
        old = case.make()
        new = copy.copy(old)
        for mutate in case.mutations.values():
            mutate(new)
            if new.to_bytes() != old.to_bytes():
                break
    assert old.to_bytes() != new.to_bytes()
    return old, new, old.to_bytes(), new.to_bytes()


def _is_whole(path, structure):
    """Whether a file is the old or the new one, and loads."""
    old, _, old_bytes, new_bytes = _two(structure)
    if path.read_bytes() not in (old_bytes, new_bytes):
        return False
    type(old).load(path, **old._parts()).check()
    return True


def _temporaries(folder):
    return [name for name in os.listdir(folder) if name.endswith(".tmp")]


def _save_for_ever(path, structure):
    try:
        while True:
            for made in _two(structure)[1::-1]:  # the new one first
                made.save(path)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


@pytest.mark.nightly
@pytest.mark.parametrize("structure", [*structures(), WIDE])
def test_a_killed_save_leaves_a_whole_file(structure, tmp_path, amount, figures):
    path, rng = tmp_path / "file", np.random.default_rng(1)
    _two(structure)[0].save(path)
    n, within = amount(3, 40), 0
    for _ in range(n):
        child = os.fork()
        if child == 0:
            _save_for_ever(path, structure)
        time.sleep(rng.uniform(0.0005, 0.02))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL, "it ended before it was killed"
        assert _is_whole(path, structure)
        left = len(_temporaries(tmp_path))
        assert left <= 1, "a save has not removed what others left"
        within += left
    _two(structure)[1].save(path)
    assert os.listdir(tmp_path) == ["file"]
    figures(kills=n, within_a_save=within)


class _Failing:
    """A file that fails at a step, and does all else."""

    def __init__(self, file, step, error):
        self._file, self._step, self._error = file, step, error

    def __enter__(self):
        self._file.__enter__()
        return self

    def __exit__(self, *exception):
        return self._file.__exit__(*exception)

    def fileno(self):
        return self._file.fileno()

    def writelines(self, parts):
        data = b"".join(parts)
        if self._step == "write":
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            raise self._error
        self._file.write(data)

    def flush(self):
        if self._step == "flush":
            raise self._error
        self._file.flush()


def _refuse(patch, step, error):
    """Let one step of the next save fail."""

    def fail(*args, **kwargs):
        raise error

    def opened(*args, **kwargs):
        return fail() if step == "open" else _Failing(open(*args, **kwargs), step, error)

    def synced(handle):
        is_folder = os.path.isdir(f"/proc/self/fd/{handle}")
        if step == ("fsync of the folder" if is_folder else "fsync"):
            raise error

    patch.setattr(files, "open", opened, raising=False)
    patch.setattr(files.os, "fsync", synced)
    if step == "replace":
        patch.setattr(files.os, "replace", fail)


@pytest.mark.nightly
@pytest.mark.parametrize("structure", structures())
def test_a_save_that_the_disk_refuses_changes_nothing(structure, tmp_path, monkeypatch, figures):
    path = tmp_path / "file"
    old, new, old_bytes, new_bytes = _two(structure)
    for step in STEPS:
        for number in (errno.ENOSPC, errno.EIO, errno.EDQUOT):
            old.save(path)
            with monkeypatch.context() as patch:
                _refuse(patch, step, OSError(number, os.strerror(number), "another name"))
                with pytest.raises(OSError) as error:
                    new.save(path)
            assert error.value.errno == number and error.value.filename == str(path)
            is_renamed = step == STEPS[-1]  # and may be lost with the power
            assert path.read_bytes() == (new_bytes if is_renamed else old_bytes), step
            assert os.listdir(tmp_path) == ["file"]
            new.save(path)
            assert path.read_bytes() == new_bytes
    figures(refusals=3 * len(STEPS))


@pytest.mark.nightly
@pytest.mark.parametrize("structure", structures())
def test_a_file_that_may_not_grow_is_as_it_was(structure, tmp_path):
    """The system itself refuses to write on, at any byte."""
    path = tmp_path / "file"
    old, new, old_bytes, new_bytes = _two(structure)
    old.save(path)

    def save():
        for most in {0, 1, len(new_bytes) // 2, len(new_bytes) - 1}:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
            try:
                new.save(path)
            except OSError as error:
                assert error.errno == errno.EFBIG
            else:
                raise AssertionError(f"a file of {len(new_bytes)} bytes took {most}")

    in_child(save)
    assert path.read_bytes() == old_bytes and os.listdir(tmp_path) == ["file"]
