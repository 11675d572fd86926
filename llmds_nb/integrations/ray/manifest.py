"""The manifest of a saved ShardedPipeline: which files of a folder are one save.

A save writes one file a shard, one of the pipeline that encodes, and last `manifest.json`, which
names them. Names hold the save's generation and a random word, so no save writes over a file of an
earlier one: until the manifest is replaced, atomically, the last save is whole and is what `load`
opens; files that the new manifest does not name are then removed. A save that was interrupted
leaves files that the next one removes.

The manifest is JSON: format, version, a checksum of its body, and the body. It knows each file by
its length and a digest of its first MiB, which holds the checksums of all of its arrays: a file of
another save under that name is refused, without reading the whole.
"""

import contextlib
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from llmds_nb import CorruptFileError

from ..._core import validation
from ..._core.files import replace_file

NAME = "manifest.json"
FORMAT = "llmds_nb.ShardedPipeline"
VERSION = 1

_HEAD = 1 << 20  # bytes of a file that its digest covers
_MAX_BYTES = 1 << 30  # of a manifest
_FILE = re.compile(r"(?:shard-\d+|pipeline)\.(\d+)-[0-9a-f]{12}\.llmds")
_SHAPES = (AttributeError, KeyError, TypeError, ValueError)


class SavedFile(NamedTuple):
    """One file of a save, as its manifest knows it."""

    name: str
    n_bytes: int
    digest: str

    @classmethod
    def of(cls, folder: str, name: str) -> "SavedFile":
        """What a manifest says of a file that has been written. O(1 MiB)."""
        with open(os.path.join(folder, name), "rb") as file:
            n_bytes = os.fstat(file.fileno()).st_size
            return cls(name, n_bytes, hashlib.blake2b(file.read(_HEAD), digest_size=16).hexdigest())

    def check(self, folder: str) -> str:
        """The path of the file; FileNotFoundError, or CorruptFileError if it is another."""
        path = os.path.join(folder, self.name)
        try:
            found = SavedFile.of(folder, self.name)
        except FileNotFoundError:
            text = f"{path} is named by the manifest, but does not exist"
            raise FileNotFoundError(text) from None
        if found != self:
            raise CorruptFileError(
                f"{path} is not the file of this save: it has {found.n_bytes} bytes with the digest"
                f" {found.digest}, and the manifest names {self.n_bytes} with {self.digest}"
            )
        return path


class Manifest(NamedTuple):
    """The files of one save, and what the coordinator knew."""

    generation: int
    pipeline: SavedFile
    shards: dict[int, SavedFile]
    settings: dict[str, Any]  # JSON values

    def write(self, folder: str) -> None:
        """Make this the save that a folder holds, and remove files of earlier ones."""
        body = {
            "generation": self.generation,
            "pipeline": list(self.pipeline),
            "shards": {str(shard): list(file) for shard, file in self.shards.items()},
            "settings": self.settings,
        }
        top = {"format": FORMAT, "version": VERSION, "checksum": _checksum(body), "body": body}
        text = json.dumps(top, allow_nan=False)
        replace_file(os.path.join(folder, NAME), [text.encode("utf-8", "surrogatepass")])
        kept = {self.pipeline.name, *(file.name for file in self.shards.values())}
        for name in os.listdir(folder):
            match = _FILE.fullmatch(name)
            if match and name not in kept and int(match[1]) <= self.generation:
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(folder, name))

    @classmethod
    def read(cls, folder: str) -> "Manifest":
        """The manifest of a folder.

        Raises
        ------
        FileNotFoundError
            There is none.
        CorruptFileError
            It is torn, altered, not ours, or of a newer version.
        """
        path = os.path.join(folder, NAME)
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES)
        try:
            top = json.loads(data)
        except (ValueError, RecursionError):
            raise CorruptFileError(f"{path} is torn or altered: it is no JSON") from None
        if not isinstance(top, dict) or top.get("format") != FORMAT:
            raise CorruptFileError(f"{path} is no manifest of a ShardedPipeline")
        version = top.get("version")
        if type(version) is not int or not 1 <= version <= VERSION:
            raise CorruptFileError(
                f"{path} has the format version {version}; this version reads 1 to {VERSION}"
            )
        if top.get("checksum") != _checksum(top.get("body")):
            raise CorruptFileError(f"{path} is torn or altered: its checksum does not fit")
        try:
            body = top["body"]
            return cls(
                validation.integer(body["generation"], "generation", low=1),
                _saved_file(body["pipeline"]),
                {_shard_id(key): _saved_file(value) for key, value in body["shards"].items()},
                dict(body["settings"]),
            )
        except _SHAPES as error:
            raise CorruptFileError(f"{path} is not a whole manifest: {error!r:.200}") from error


def next_generation(folder: str) -> int:
    """One more than that of any file in a folder, of a whole save or of one that was left."""
    found = (_FILE.fullmatch(name) for name in os.listdir(folder))
    return 1 + max((int(match[1]) for match in found if match), default=0)


def file_name(part: str, generation: int, word: str) -> str:
    """The name of the file of a part, "pipeline" or "shard-3", in a save."""
    return f"{part}.{generation}-{word}.llmds"


def new_word() -> str:
    """What tells the files of two saves of one generation apart."""
    return os.urandom(6).hex()


def checked_folder(path: Any) -> str:
    """The absolute path of a folder, which workers open too; made where it does not exist."""
    folder = os.path.abspath(validation.path(path))
    Path(folder).mkdir(exist_ok=True)
    return folder


def _shard_id(key):
    if not key.isdecimal() or str(int(key)) != key:
        raise ValueError(f"a shard has the id {key!r}")
    return int(key)


def _saved_file(values) -> SavedFile:
    """A file that a manifest names; no name leads out of its folder."""
    name, n_bytes, digest = values
    if not _FILE.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a file of a save")
    validation.integer(n_bytes, "bytes", low=0)
    return SavedFile(name, n_bytes, digest)


def _checksum(body) -> str:
    text = json.dumps(body, sort_keys=True)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
