"""Files that are replaced: mode, owner, links, pipes, long names, full disks, kills, interrupts."""

import errno
import os
import resource
import signal
import stat
import subprocess
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import llmds_nb
from llmds_nb import CountMinSketch, load
from llmds_nb._core import files
from llmds_nb._core.files import replace_file
from llmds_nb._core.storage import Stored
from tests.forks import in_child
from tests.interrupts import interrupt_every_line

from .examples import MAKERS, answers

is_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")


@pytest.fixture
def sketch():
    return CountMinSketch(64)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file"


@pytest.fixture
def shared():
    """A folder that every user may write to."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        yield Path(folder)


def width(path):
    return CountMinSketch.load(path).width


def temporaries(folder):
    return [name for name in os.listdir(folder) if name.endswith(".tmp")]


def test_every_structure_saves_by_the_same_way():
    for name in llmds_nb.__all__:
        cls = getattr(llmds_nb, name)
        if isinstance(cls, type) and issubclass(cls, Stored):
            own = {"save", "load", "to_bytes", "from_bytes", "__copy__", "__reduce__"} & {
                *vars(cls)
            }
            assert not own, f"{name} has its own {own}"


# ---- mode and owner ----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o777, 0o606])
def test_the_mode_is_kept(sketch, path, mode):
    sketch.save(path)
    path.chmod(mode)
    CountMinSketch(8).save(path)
    assert stat.S_IMODE(path.stat().st_mode) == mode and width(path) == 8


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o000, 0o027])
def test_a_new_file_has_the_mode_that_open_gives(sketch, path, mask):
    old = os.umask(mask)
    try:
        sketch.save(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    finally:
        os.umask(old)


def test_the_mask_of_the_process_is_not_touched(sketch, path, monkeypatch):
    monkeypatch.setattr(os, "umask", None)  # it is that of all threads
    sketch.save(path)
    sketch.save(path)


@is_root
def test_the_owner_is_kept(sketch, path):
    sketch.save(path)
    os.chown(path, 12345, 54321)
    path.chmod(0o640)
    CountMinSketch(8).save(path)
    found = path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (12345, 54321, 0o640)


@is_root
def test_a_group_that_cannot_be_kept_gets_no_more_than_everyone(sketch, shared):
    path = shared / "file"
    sketch.save(path)
    path.chmod(0o664)

    def save():
        os.setgroups([])
        os.setgid(54321)
        os.setuid(12345)
        CountMinSketch(8).save(path)

    in_child(save)
    found = path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (12345, 54321, 0o644)
    assert width(path) == 8


def test_attributes_are_kept(sketch, path):
    sketch.save(path)
    try:
        os.setxattr(path, "user.note", b"mine")
    except OSError:
        pytest.skip("this file system has no attributes")
    sketch.save(path)
    assert os.getxattr(path, "user.note") == b"mine"


# ---- what is no ordinary file ------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKERS)
def test_a_symbolic_link_stays(tmp_path, name):
    made = MAKERS[name]()
    (tmp_path / "there").mkdir()
    target, link, over = (tmp_path / p for p in ("there/file", "link", "over"))
    link.symlink_to("there/file")
    over.symlink_to(link)
    for _ in range(2):  # at first, nothing is there
        made.save(over)
        assert over.is_symlink() and link.is_symlink() and not target.is_symlink()
        assert answers(load(link, **made._parts())) == answers(made)
    assert sorted(os.listdir(tmp_path)) == ["link", "over", "there"]
    assert os.listdir(tmp_path / "there") == ["file"]


@pytest.mark.parametrize("name", MAKERS)
def test_a_pipe_is_written_to_and_read_from(tmp_path, name):
    made, pipe = MAKERS[name](), tmp_path / "pipe"
    os.mkfifo(pipe)
    found = []
    reader = threading.Thread(target=lambda: found.append(load(pipe, **made._parts())))
    reader.start()
    made.save(pipe)
    reader.join(30)
    assert answers(found[0]) == answers(made)
    assert stat.S_ISFIFO(pipe.stat().st_mode) and os.listdir(tmp_path) == ["pipe"]


def test_devices_are_written_to(sketch, tmp_path):
    sketch.save("/dev/null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(OSError, match="/dev/full") as error:
        sketch.save("/dev/full")
    assert error.value.errno == errno.ENOSPC
    with open(tmp_path / "file", "wb") as file:
        subprocess.run(["cat"], input=sketch.to_bytes(), stdout=file, check=True)
        name = f"/proc/self/fd/{file.fileno()}"
        CountMinSketch(8).save(name)
    assert width(tmp_path / "file") == 8
    with pytest.raises(ValueError, match="ordinary file"):
        load("/dev/null", mmap=True)


def test_a_folder_is_refused_by_its_name(sketch, tmp_path):
    for folder in (tmp_path, f"{tmp_path}/"):
        with pytest.raises(IsADirectoryError, match=str(tmp_path)):
            sketch.save(folder)
    assert os.listdir(tmp_path) == []


# ---- names and errors --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x" * 250, "x" * 255, "\u00e9" * 127, "-", "a b\n", ".hidden"])
def test_every_name_that_the_system_allows_works(sketch, tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (name, tmp_path / name, os.fsencode(name)):
        sketch.save(path)
        assert width(path) == 64
    assert os.listdir(tmp_path) == [name]


def test_errors_name_the_path_that_was_given(sketch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    for path in ("no/such/folder", "x" * 256, "file/below"):
        with pytest.raises(OSError) as error:
            sketch.save(path)
        assert error.value.filename == path and ".tmp" not in str(error.value)
    assert os.listdir() == ["file"]


@is_root
def test_a_folder_that_may_not_be_written_to(sketch, shared):
    path = shared / "file"
    sketch.save(path)
    shared.chmod(0o755)

    def save():
        os.setuid(12345)
        with pytest.raises(PermissionError, match=str(path)):
            sketch.save(path)
        assert width(path) == 64

    in_child(save)


def test_a_full_disk_leaves_the_old_file(sketch, path):
    sketch.save(path)

    def save():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with pytest.raises(OSError) as error:
            CountMinSketch(1 << 16).save(path)
        assert error.value.errno == errno.EFBIG and error.value.filename == str(path)

    in_child(save)
    assert width(path) == 64 and os.listdir(path.parent) == [path.name]


@is_root
def test_a_disk_without_space_leaves_the_old_file(sketch, tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        sketch.save(tmp_path / "file")
        with pytest.raises(OSError, match="No space left") as error:
            CountMinSketch(1 << 16).save(tmp_path / "file")
        assert error.value.filename == str(tmp_path / "file")
        assert width(tmp_path / "file") == 64 and os.listdir(tmp_path) == ["file"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


# ---- kills and interrupts ----------------------------------------------------------------------


@contextmanager
def a_saver_in_the_middle(path):
    """The process id of one that has written half of a file, and waits."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:

        def parts():
            yield b"half"
            os.write(writer, b"x")
            signal.pause()

        signal.signal(signal.SIGUSR1, lambda *_: None)
        try:
            replace_file(str(path), parts())
        finally:
            os._exit(0)
    try:
        os.read(reader, 1)
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)
        os.close(writer)


def test_what_a_killed_save_left_is_removed_by_the_next(sketch, path):
    sketch.save(path)
    for _ in range(3):
        with a_saver_in_the_middle(path):
            pass
        assert len(temporaries(path.parent)) == 1
        assert width(path) == 64
    sketch.save(path.with_name("other"))
    assert sorted(os.listdir(path.parent)) == ["file", "other"]


def test_what_a_living_save_has_written_stays(sketch, path):
    with a_saver_in_the_middle(path) as child:
        sketch.save(path)
        assert len(temporaries(path.parent)) == 1
        os.kill(child, signal.SIGUSR1)
        deadline = time.monotonic() + 30
        while path.read_bytes() != b"half":
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert os.listdir(path.parent) == [path.name]


def test_only_what_is_certainly_dead_is_removed(sketch, path):
    now = time.time()
    ages = {
        ".llmds_nb-0123456789ab-1.tmp": 6 * 86400,  # of another machine
        ".llmds_nb-0123456789ab-2.tmp": 8 * 86400,
        "file.x.tmp": 9e8,
        ".llmds_nb-0123456789ab-3": 9e8,
    }
    for name, age in ages.items():
        path.with_name(name).touch()
        os.utime(path.with_name(name), (now - age, now - age))
    outside = path.parent.parent / f"{path.parent.name}-outside"
    outside.touch()
    path.with_name(f".llmds_nb-{files._machine()}-4.tmp").symlink_to(outside)
    sketch.save(path)
    left = {*os.listdir(path.parent)} - {"file", f".llmds_nb-{files._machine()}-4.tmp"}
    assert left == {*ages} - {".llmds_nb-0123456789ab-2.tmp"}
    assert outside.exists()


def test_a_machine_without_a_number_of_its_own_goes_by_its_name(sketch, path, monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda path: os.stat(path / "missing"))
    assert files._machine() == files._machine() != ""
    with a_saver_in_the_middle(path):
        pass
    sketch.save(path)
    assert temporaries(path.parent) == []


def test_many_savers_do_not_disturb_each_other(path):
    def save():
        for _ in range(30):
            for name in ("file", "other"):
                CountMinSketch(8).save(path.with_name(name))

    threads = [threading.Thread(target=in_child, args=(save,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    save()
    for thread in threads:
        thread.join()
    assert sorted(os.listdir(path.parent)) == ["file", "other"]


class Saved:
    """A file, as an object whose `call` saves another content."""

    def __init__(self, folder):
        self.folder = Path(folder)
        for each in self.folder.iterdir():
            each.unlink()
        self.path = self.folder / "file"
        CountMinSketch(8).save(self.path)

    def check(self):
        """Whatever was left is removed by the next save."""
        CountMinSketch(16).save(self.folder / "other")
        assert temporaries(self.folder) == []


def test_an_interrupt_at_any_line_leaves_the_old_file_or_the_new_one(tmp_path):
    new = CountMinSketch(64)
    lines = interrupt_every_line(
        lambda: Saved(tmp_path), lambda saved: new.save(saved.path), lambda saved: width(saved.path)
    )
    assert lines > 30


def test_kills_at_any_time_leave_a_whole_file(path):
    rng, widths = np.random.default_rng(0), (1 << 10, 1 << 14)
    CountMinSketch(widths[0]).save(path)
    for _ in range(30):
        child = os.fork()
        if child == 0:
            sketches = [CountMinSketch(n) for n in widths]
            while True:
                for sketch in sketches:
                    sketch.save(path)
        time.sleep(rng.uniform(0.001, 0.02))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert width(path) in widths
    CountMinSketch(8).save(path)
    assert os.listdir(path.parent) == [path.name]


# ---- a reader beside a writer ------------------------------------------------------------------


@pytest.mark.parametrize("mmap", [False, True])
def test_a_file_that_is_replaced_meanwhile_loads_whole(path, mmap):
    """One handle: never the header of one file and the data of another."""
    sketches = []
    for total, width in ((1, 64), (2, 64), (3, 4096)):
        sketch = CountMinSketch(width, 1, top=1, conservative=False)
        sketch.add(np.arange(1000), total)
        sketches.append(sketch)
    sketches[0].save(path)
    stop = threading.Event()

    def save():
        while not stop.is_set():
            for sketch in sketches:
                sketch.save(path)

    child = os.fork()
    if child == 0:
        while True:
            save()
    try:
        for n in range(400):
            how = (CountMinSketch.load, load)[n % 2]
            loaded = how(path, mmap=mmap, verify=bool(n % 3))
            loaded.check()
            assert int(loaded._handle.state.counters.sum()) == loaded.total
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_file_is_opened_once(sketch, path, monkeypatch):
    sketch.save(path)
    opened = []
    real = os.stat

    def count(name, *args, **kwargs):
        opened.append(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(os, "stat", count)
    for mmap in (False, True):
        CountMinSketch.load(path, mmap=mmap)
    assert str(path) not in map(str, opened)
