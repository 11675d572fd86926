"""What an index that is to be changed holds, by source."""

import hashlib
import json
from collections.abc import Collection
from typing import Any

from llmds_nb import RetrievalPipeline

from ..errors import BadInput
from ..progress import Progress
from .files import source_name
from .reading import Chunk

_READ = 10_000  # documents at a time
_SHOWN = 5


class Held:
    """The ids of each source, with digests of text and metadata. O(documents) to make.

    BadInput if the ids are numbers: those of a file of earlier versions, or not of `index`.
    """

    def __init__(self, pipeline: RetrievalPipeline, name: str, progress: Progress) -> None:
        self._name = name
        self.digests: dict[str, dict[str, bytes]] = {}
        self._source_of: dict[str, str | None] = {}
        ids = pipeline.ids()
        if len(ids) and not isinstance(ids[0], str):
            raise BadInput(f"{name} has numbers as ids, not names: build it anew, without --add")
        with progress.stage(f"read {name}", len(ids), "documents") as done:
            for start in range(0, len(ids), _READ):
                documents: list[Any] = pipeline.documents(ids[start : start + _READ])
                for document in documents:
                    source = document.metadata.get("source")
                    source = source if isinstance(source, str) else None
                    self._source_of[document.id] = source
                    if source is not None:
                        own = self.digests.setdefault(source, {})
                        own[document.id] = digest(document.text, document.metadata)
                    done(1)

    def sources_of(self, name: str) -> list[str]:
        """The source of this name, or those in the folder of this name; BadInput for neither."""
        for wanted in (name, source_name(name)):
            if wanted in self.digests:
                return [wanted]
        found = [source for source in self.digests if _is_in(source, source_name(name))]
        if not found:
            known = sorted(self.digests)
            shown = ", ".join(known[:_SHOWN]) + (", ..." if len(known) > _SHOWN else "")
            raise BadInput(f"--remove {name}: no such source in {self._name}, which has {shown}")
        return found

    def in_folder(self, folder: str) -> list[str]:
        """The sources in a folder, by their names."""
        return [source for source in self.digests if _is_in(source, source_name(folder))]

    def owner(self, id_: str, replaced: Collection[str]) -> str | None:
        """Who has an id, unless it is one of the sources that are replaced."""
        if id_ not in self._source_of or self._source_of[id_] in replaced:
            return None
        return self._source_of[id_] or "a document without a source"


def digest(text: str, metadata: dict[str, Any]) -> bytes:
    """What tells texts with metadata apart."""
    described = json.dumps([text, metadata], sort_keys=True)
    return hashlib.blake2b(described.encode(), digest_size=16).digest()


def digest_of(chunk: Chunk) -> bytes:
    """The digest of a chunk as it will be stored."""
    return digest(chunk.text, chunk.metadata)


def _is_in(source, folder):
    if folder == ".":
        return not source.startswith(("/", "../"))
    return source.startswith(folder.rstrip("/") + "/")
