"""Writes a file so that its name always stands for the old content or the new, both whole.

The content goes to a temporary file in the same folder, to the disk, and under the name. The new
file has the permissions and, where the system allows it, the owner of the old one; a symbolic link
stays, and the file that it leads to is replaced. What is no ordinary file, such as a pipe or a
device, is written to.

A process that is killed leaves its temporary file, up to the next save in that folder: the writer
of one holds a lock on it (flock), which ends with its process. The name says which machine wrote
it, since locks may not be seen by others: a file of another machine, or from before a restart, has
to be a week old as well.
"""

import contextlib
import errno
import hashlib
import os
import platform
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: no temporary file is known to be dead there
    fcntl = None  # type: ignore[assignment]

_PREFIX, _SUFFIX = ".llmds_nb-", ".tmp"
_OLD = 7 * 24 * 3600.0  # seconds


def replace_file(path: str, parts: Iterable[Any]) -> None:
    """Write the bytes-like parts to a file, replacing what it held, whole or not at all.

    Raises OSError, which names `path`, if that fails; the old file is then as it was.
    """
    with _naming(path):
        try:
            old = os.stat(path)
        except FileNotFoundError:
            old = None
        if old is not None and not stat.S_ISREG(old.st_mode):
            with open(path, "wb") as file:
                file.writelines(parts)
            return
        target = os.path.realpath(path) if os.path.islink(path) else path
        folder = os.path.dirname(target) or "."
        _remove_dead(folder)
        while not _write(target, folder, old, parts):
            pass
        _flush_folder(folder)


@contextlib.contextmanager
def _naming(path) -> Iterator[None]:
    """Let errors of the system name the path that the caller knows, not a temporary one."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, path) from None


def _write(target, folder, old, parts) -> bool:
    """Write and rename; False if another process took the new file for a dead one's, at once."""

    def create(path, flags):
        # Of 0o666 the system takes the umask off.
        return os.open(path, flags, 0o666 if old is None else 0o600)

    name = _PREFIX + _machine() + "-" + os.urandom(8).hex() + _SUFFIX  # short, whatever `target`
    temporary = os.path.join(folder, name)
    try:
        with open(temporary, "xb", opener=create) as file:
            if not (_locked(file.fileno()) and os.path.exists(temporary)):
                return False
            if old is not None:
                _make_alike(file.fileno(), target, old)
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
            if fcntl is not None:
                os.replace(temporary, target)  # while the lock is held
        if fcntl is None:
            os.replace(temporary, target)  # Windows renames no open file
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    return True


def _locked(handle) -> bool:
    """Lock an open file, where the file system has locks; False if another process has done so."""
    if fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass
    return True


def _make_alike(handle, path, old):
    """Give a new file what is permitted of the owner, the attributes and the mode of an old one."""
    if not hasattr(os, "fchown"):
        return
    mode = stat.S_IMODE(old.st_mode) & 0o777
    new = os.fstat(handle)
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        for owner in (old.st_uid, -1):
            with contextlib.suppress(OSError):
                os.fchown(handle, owner, old.st_gid)
                break
        else:  # another group: it may do what everyone may
            mode &= ~0o070 | (mode & 0o007) << 3
    if hasattr(os, "listxattr"):
        with contextlib.suppress(OSError):
            for name in os.listxattr(path):
                if name.startswith(("user.", "system.posix_acl")):
                    os.setxattr(handle, name, os.getxattr(path, name))
    os.fchmod(handle, mode)


def _machine() -> str:
    """What tells running systems apart: containers of one system share its locks."""
    try:
        system = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        system = platform.node()
    return hashlib.blake2b(system.encode(), digest_size=6).hexdigest()


def _remove_dead(folder):
    """Remove the temporary files of processes that do not live any more."""
    if fcntl is None:
        return
    own = f"{_PREFIX}{_machine()}-"
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(_PREFIX) and entry.name.endswith(_SUFFIX):
                with contextlib.suppress(OSError):
                    _remove_if_dead(entry.path, entry.name.startswith(own))


def _remove_if_dead(temporary, is_own):
    handle = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if is_own or time.time() - os.fstat(handle).st_mtime > _OLD:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(temporary)
    finally:
        os.close(handle)


def _flush_folder(folder):
    """Bring a rename to the disk, where the system can."""
    if os.name != "posix":
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder that may be written to and not read
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
