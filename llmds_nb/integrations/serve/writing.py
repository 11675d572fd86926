"""Writes, one after the other in a thread of their own, and the file that they are saved to."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from .errors import problem, retry_after
from .settings import Settings


class ChangedFileError(Exception):
    """Another process has changed the file since it was read or saved."""


class Writer:
    """Changes a pipeline and saves it.

    A search never waits for a write: the pipeline publishes its state whole. `save` replaces the
    file atomically, and refuses to replace what another process has written meanwhile.
    """

    def __init__(
        self, pipeline: Any, path: str | os.PathLike[str] | None, settings: Settings
    ) -> None:
        self._pipeline, self._max_waiting = pipeline, settings.max_writes
        self.path = None if path is None else os.fspath(path)
        self._worker = ThreadPoolExecutor(1, "llmds-write")
        self._n_waiting = 0
        self._on_disk = self._identity()
        self._saved_version = self._version()

    def _version(self):
        return 0 if self._pipeline is None else self._pipeline.stats().version

    def _identity(self):
        """What tells the content of the file from others; None without a file."""
        if self.path is None:
            return None
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size

    @property
    def unsaved(self) -> bool:
        """Whether there is a file, and documents were added or removed since it was written."""
        return self.path is not None and self._version() != self._saved_version

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in the thread of writes; a Problem of status 503 where too many wait."""
        if self._n_waiting >= self._max_waiting:
            text = f"{self._max_waiting} writes wait already"
            problem(503, text, code="overloaded", headers=retry_after(1))
        self._n_waiting += 1
        calls = [partial(function, *arguments)]

        def work():
            return calls.pop()() if calls else None

        try:
            return await asyncio.get_running_loop().run_in_executor(self._worker, work)
        finally:
            self._n_waiting -= 1
            calls.clear()  # of a client that left: the thread's queue holds no documents of it

    def save(self, overwrite: bool = False) -> int:
        """Write the file whole, if anything has changed; returns its size in bytes.

        ChangedFileError if another process has written it and not `overwrite`, OSError where it
        cannot be written; the old file is then as it was.
        """
        assert self.path is not None
        version, found = self._version(), self._identity()
        # A file that has gone is written again: nothing is lost by that.
        if found is not None and found != self._on_disk and not overwrite:
            raise ChangedFileError(self.path)
        if version != self._saved_version or found is None or found != self._on_disk:
            self._pipeline.save(self.path)
            self._on_disk, self._saved_version = self._identity(), version
        return os.stat(self.path).st_size

    def close(self) -> None:
        """End the thread, once what it does is done."""
        self._worker.shutdown(cancel_futures=True)
