"""Opens the file or the model, listens, and serves until a signal."""

import argparse
import errno
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

from llmds_nb import RetrievalPipeline

from ..errors import BadInput, bad_input
from ..index.settings import Settings as IndexSettings
from ..streams import write
from . import addresses
from .engine import open_engine

KEYS = "LLMDS_API_KEY"


def run(given: argparse.Namespace) -> None:
    """Serve what the arguments ask for; returns after the signal that ended it.

    BadInput for everything that the user has to correct, and if the documents could not be saved.
    """
    _check(given)
    try:
        from llmds_nb.integrations.serve import create_app, run_server
    except ImportError as error:
        raise BadInput(str(error)) from None
    keys = keys_of(os.environ.get(KEYS, ""))
    listener = addresses.bound(given.host, given.port)
    with listener:
        settings = _settings(given, keys, addresses.is_loopback(listener))
        pipeline, path, read = _pipeline(given)
        engine, name = _engine(given)
        if path is not None and _identity(path) != read:  # a model takes minutes to open
            raise BadInput(f"{path}: was changed by another process since it was read")
        _prepare_process(given)
        app = create_app(
            pipeline, path=None if given.read_only else path, engine=engine, model_name=name,
            settings=settings,
        )  # fmt: skip

        def on_ready(stop: Any) -> None:
            what = [] if pipeline is None else [f"{path}, {len(pipeline):,} documents"]
            what += [] if engine is None else [f"model {name}"]
            line = f"serving {' and '.join(what)} at {addresses.url(listener)} (Ctrl-C ends it)"
            write(sys.stdout, line)

        try:
            _serve(app, listener, on_ready, run_server)
        finally:
            if engine is not None:
                engine.close()


def keys_of(text: str) -> tuple[str, ...]:
    """The API keys of an environment variable, between commas or white space.

    >>> keys_of("one, two three")
    ('one', 'two', 'three')
    """
    return tuple(key for key in re.split(r"[,\s]+", text) if key)


def _check(given):
    if given.file is None and given.model is None:
        raise BadInput("serve needs a FILE or --model DIR (see llmds-nb serve --help)")
    if given.file is None and (given.new or given.read_only):
        raise BadInput("--new and --read-only need a FILE")
    if given.rag and (given.file is None or given.model is None):
        raise BadInput("--rag needs a FILE and --model DIR")
    if not given.new and (given.language or given.encoder):
        raise BadInput("--language and --encoder are for --new: FILE has its own")
    if given.new and given.read_only:
        raise BadInput("--new with --read-only would serve nothing, for ever")


def _settings(given, keys, is_local):
    from llmds_nb.integrations.serve import Settings

    if not (is_local or keys or given.without_key):
        text = f"set {KEYS}, or give --without-key if everyone there may call"
        raise BadInput(f"--host {given.host} is reached from other machines: {text}")
    hosts = tuple(name.lower() for name in given.allowed_host)
    if not hosts and is_local and not keys:
        hosts = addresses.names(given.host)
    return Settings(
        api_keys=keys, read_only=given.read_only, allowed_hosts=hosts,
        cors_origins=tuple(given.cors), max_body_bytes=given.max_body * 2**20,
        request_timeout_s=given.timeout, drain_timeout_s=given.drain_timeout,
        qps_limit=given.qps, token_rate_limit=given.tokens_per_s, key_qps_limit=given.key_qps,
        key_token_rate_limit=given.key_tokens_per_s, workers=given.workers, threads=given.threads,
        access_log=given.access_log, retrieval_k=given.rag,
    )  # fmt: skip


def _pipeline(given) -> tuple[RetrievalPipeline | None, str | None, Any]:
    """(the pipeline or None, its path, the identity of the file that was read)."""
    path, before = given.file, None
    if path is None:
        return None, None, None
    folder = Path(path).resolve().parent
    if given.new:
        if os.path.lexists(path):
            raise BadInput(f"{path}: is there already; without --new it is served")
        if not folder.is_dir():
            raise BadInput(f"{path}: there is no folder {folder}")
        try:
            pipeline = IndexSettings(given.language, given.encoder).new_pipeline()
        except (ValueError, TypeError, ImportError, OSError) as error:
            raise BadInput(str(error)) from None
    else:
        with bad_input(path, ValueError, ImportError):
            before = _identity(path)
            pipeline = RetrievalPipeline.load(path)
            after = _identity(path)
        if before != after:
            raise BadInput(f"{path}: was changed by another process while it was read")
    if not given.read_only and not os.access(folder, os.W_OK):
        raise BadInput(f"{path}: documents cannot be saved there; --read-only serves it")
    return pipeline, path, before


def _identity(path):
    """What tells the content of a file from others; None without a file."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _aside(path):
    """A name beside a file that nothing has: documents of servers before are kept."""
    aside, n = f"{path}.unsaved", 1
    while os.path.lexists(aside):
        n += 1
        aside = f"{path}.unsaved-{n}"
    return aside


def _engine(given):
    return (None, "model") if given.model is None else open_engine(given)


def _prepare_process(given):
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("llmds_nb", "uvicorn.error"):
        logging.getLogger(name).addHandler(handler)
    if given.access_log:
        logging.getLogger("llmds_nb.serve.access").setLevel(logging.INFO)
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:  # each client is an open file
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _serve(app, listener, on_ready, run_server):
    from llmds_nb.integrations.serve import ChangedFileError

    state = app.state.server
    path, place = state.writer.path, addresses.url(listener)
    try:
        run_server(app, listener, on_ready=on_ready)
    except ChangedFileError:
        aside = _aside(path)
        with bad_input(aside):
            state.pipeline.save(aside)
        text = "was changed by another process, and is left so"
        raise BadInput(f"{path}: {text}; the documents of this server are in {aside}") from None
    except OSError as error:
        reason = error.strerror or errno.errorcode.get(error.errno or 0, "error")
        if not state.writer.unsaved:
            raise BadInput(f"{place}: {reason}") from None
        raise BadInput(f"{path}: {reason}; documents that were not saved are lost") from None
