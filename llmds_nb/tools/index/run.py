"""Builds an index of chunks, or changes one, and saves it whole or not at all."""

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llmds_nb import RetrievalPipeline

from ..errors import BadInput, bad_input
from ..progress import Progress
from .files import find_files
from .held import Held, digest_of
from .reading import Chunk, Options, read_chunks
from .records import Fields
from .report import Report
from .settings import Settings

# What it would log, the report tells in words of the command line.
logging.getLogger("llmds_nb.pipeline.refitting").addHandler(logging.NullHandler())

_ENCODED, _ADDED = 256, 10_000  # documents at a time


class Result(NamedTuple):
    """What a file holds now, and how it differs from before: of what was changed, neither count."""

    documents: int
    sources: int
    added: int
    changed: int
    removed: int
    n_bytes: int


class Job(NamedTuple):
    """What a command is to read, how, and where it tells of that."""

    paths: Sequence[str]
    options: Options
    settings: Settings
    report: Report
    progress: Progress
    refit: bool = False  # whether the encoder is to be fitted to all documents of the file

    def read(self, out: Path) -> dict[str, list[Chunk]]:
        """The chunks of each source at the paths, of which `out` must be none."""
        try:
            files = find_files(self.paths, self.report)
            for file in files:
                if out.exists() and file.path.samefile(out):
                    raise BadInput(f"--out {out}: is one of the texts")
            return read_chunks(files, self.options, self.report, self.progress)
        except OSError as error:
            raise BadInput(f"{error.filename}: {error.strerror or error}") from None


def job_of(arguments: argparse.Namespace) -> Job:
    """What the command is to read; BadInput for options that do not go together."""
    given = arguments
    if not (given.path or given.remove or given.refit):
        raise BadInput("index needs a PATH, --remove or --refit (see llmds-nb index --help)")
    if given.add and not given.path:
        raise BadInput("--add needs a PATH")
    if given.path and (given.remove or given.refit) and not given.add:
        option = "--remove" if given.remove else "--refit"
        raise BadInput(f"{option} with a PATH needs --add: without it FILE is made anew")
    if given.overlap > given.max_tokens // 2:
        most = given.max_tokens // 2
        text = f"must be at most half of --max-tokens, {most}, not {given.overlap}"
        raise BadInput(f"--overlap: {text}")
    fields = Fields(given.text_fields, given.id_field)
    return Job(
        given.path, Options(given.max_tokens, given.overlap, fields),
        Settings(given.language, given.encoder), Report(strict=given.strict), Progress(sys.stderr),
        given.refit,
    )  # fmt: skip


def build(job: Job, out: Path) -> Result:
    """Index the texts and save to `out`, in place of what it held.

    BadInput for what cannot be read, a language or encoder that there is not, and where there is no
    text.
    """
    with _refusals():
        pipeline = job.settings.new_pipeline()
    read = job.read(out)
    chunks = [chunk for chunks in read.values() for chunk in chunks]
    if not chunks:
        skipped = job.report.skipped
        reason = f" ({len(skipped)} skipped: {skipped[0]})" if skipped else ""
        raise BadInput(f"{', '.join(job.paths)}: no text in it{reason}")
    with _refusals():
        _fit(pipeline.encoder, [chunk.text for chunk in chunks], job.progress)
        _add(pipeline, chunks, job)
    _tell_of_vectors(pipeline, job.report)
    n, n_bytes = len(chunks), _save(pipeline, out)
    return Result(n, sum(map(bool, read.values())), n, 0, 0, n_bytes)


def update(job: Job, removed: Sequence[str], out: Path) -> Result:
    """Index the texts in a file that `build` wrote, and take sources, or folders of them, out.

    All documents of a source that is read anew are replaced; those that are the same are kept as
    they are. BadInput where `build` raises it, for a source that is not in the file, and for
    settings or ids that are not those of the file; then it is left as it is.
    """
    with bad_input(out, ValueError, ImportError):
        opened = out.stat()
        pipeline = RetrievalPipeline.load(out)
    job.settings.check(pipeline, str(out))
    held = Held(pipeline, str(out), job.progress)
    gone = {source for name in removed for source in held.sources_of(name)}
    read = job.read(out) if job.paths else {}
    both = sorted(gone & read.keys())
    if both:
        raise BadInput(f"{both[0]}: is to be added and to be removed")
    folders = [path for path in job.paths if os.path.isdir(path)]
    for source in sorted({s for folder in folders for s in held.in_folder(folder)} - gone):
        if source not in read:
            job.report.leave_unread("sources of the file that were not read now, and stay", source)
    new, n_changed, old = [], 0, [id_ for source in gone for id_ in held.digests.pop(source)]
    replaced = gone | read.keys()
    for source, chunks in read.items():
        before = held.digests.pop(source, {})
        after = {}
        for chunk in chunks:
            owner = held.owner(chunk.id, replaced)
            if owner is not None:
                job.report.skip(f"{source}: the id {chunk.id!r} is already that of {owner}")
                continue
            after[chunk.id] = digest_of(chunk)
            if before.get(chunk.id) != after[chunk.id]:
                new.append(chunk)
                n_changed += chunk.id in before
        old += before.keys() - after.keys()
        held.digests[source] = after
    n_removed = len(set(old) - {chunk.id for chunk in new})
    if old:
        pipeline.remove(old)
    with _refusals():
        if new:
            _add(pipeline, new, job)
        if job.refit and len(pipeline):
            with job.progress.stage("fit the encoder anew", len(pipeline), "documents") as done:
                pipeline.refit()
                done(len(pipeline))
    _tell_of_vectors(pipeline, job.report)
    with bad_input(out):
        now = out.stat()
    if (now.st_ino, now.st_mtime_ns) != (opened.st_ino, opened.st_mtime_ns):
        raise BadInput(f"{out}: was changed by another process meanwhile, and is left so")
    n_bytes = _save(pipeline, out) if new or old or job.refit else now.st_size
    n_sources = sum(map(bool, held.digests.values()))
    n_added = len(new) - n_changed
    return Result(len(pipeline), n_sources, n_added, n_changed, n_removed, n_bytes)


def described(result: Result, with_changes: bool) -> str:
    """A result in one line."""
    n, n_sources, *changes, n_bytes = result
    line = f"{n:,} documents of {n_sources:,} sources, {n_bytes:,} bytes"
    if with_changes:
        line = "{:,} added, {:,} changed, {:,} removed; ".format(*changes) + line
    return line


@contextmanager
def _refusals() -> Iterator[None]:
    """Raise what a pipeline refuses as BadInput: a language, an encoder, texts without a word."""
    try:
        yield
    except (ValueError, TypeError, ImportError, OSError) as error:  # OSError: no such model
        raise BadInput(str(error)) from None


def _fit(encoder: Any, texts, progress):
    if hasattr(encoder, "fit"):
        with progress.stage("fit the encoder", len(texts), "documents") as done:
            encoder.fit(texts)
            done(len(texts))


def _add(pipeline, chunks, job):
    """Encode and add chunks, some at a time."""
    progress, encoder = job.progress, pipeline.encoder
    encode = getattr(encoder, "encode", encoder)
    if encode is None:
        raise BadInput("the file has no encoder, or one that no file can hold")
    parts = []
    with progress.stage("encode", len(chunks), "documents") as done:
        for start in range(0, len(chunks), _ENCODED):
            texts = [chunk.text for chunk in chunks[start : start + _ENCODED]]
            parts.append(np.asarray(encode(texts)))
            done(len(texts))
    vectors = np.concatenate(parts)
    with progress.stage("index", len(chunks), "documents") as done:
        for start in range(0, len(chunks), _ADDED):
            some = chunks[start : start + _ADDED]
            ids, texts, metadata = (list(column) for column in zip(*some, strict=True))
            pipeline.add(ids, texts, vectors[start : start + _ADDED], metadata=metadata)
            done(len(some))


def _tell_of_vectors(pipeline, report):
    """Tell of documents without a vector, and of an encoder that was fitted to few of them."""
    stats = pipeline.stats()
    if stats.vectors < stats.documents:
        n = stats.documents - stats.vectors
        report.remark(f"{n:,} documents have no word that the encoder knows: words alone find them")
    if pipeline.refit_due:
        fitted = pipeline.encoder.n_texts
        text = f"the encoder was fitted to {fitted:,} texts, and there are {stats.documents:,} now"
        report.remark(f"{text}: --refit fits it to all")


def _save(pipeline, out) -> int:
    with bad_input(out):
        pipeline.save(out)
        return out.stat().st_size
