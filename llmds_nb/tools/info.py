"""The command `info`: versions, the kernel cache, and the contents of a saved file."""

import importlib
import io
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llmds_nb
from llmds_nb._core import prebuilt
from llmds_nb._core.jit import KERNELS
from llmds_nb._core.kernel_cache import cache_folders, is_sound, stamps

from .errors import bad_input
from .index.settings import encoder_of, language_of

_READ = 10_000  # documents at a time
_LIBRARIES = ("numba", "llvmlite", "numpy", "scipy")


def describe(path: str | os.PathLike | None = None) -> list[tuple[str, Any]]:
    """(name, value) lines about this installation, or about one saved file.

    Raises BadInput if the file cannot be read, or was not written by llmds_nb.
    """
    if path is not None:
        return _describe_file(path)
    _import_all()
    return [
        ("llmds_nb", llmds_nb.__version__),
        ("python", platform.python_version()),
        *((name, version(name)) for name in _LIBRARIES),
        ("machine", f"{platform.machine()}, {platform.system()}"),
        ("kernels", _describe_prebuilt()),
        ("kernel cache", _describe_cache()),
    ]


def _import_all():
    for name in llmds_nb.__all__:  # the kernels of a structure are known once it is imported
        getattr(llmds_nb, name)
    importlib.import_module(".replay.belady", __package__)


def kernel_cache() -> tuple[str | None, list[Path]]:
    """The folder of the cache of compiled kernels, None without one, and the files in it."""
    _import_all()
    folders = cache_folders(KERNELS)
    if not folders:
        return None, []
    compiled = [file for folder in folders for file in sorted(Path(folder).glob("*.nbc"))]
    return os.path.commonpath(folders), compiled


def _describe_prebuilt():
    level, reason = prebuilt.choose()
    if level is None:
        return f"compiled for this CPU: {reason}"
    known = stamps(KERNELS)
    folders = [folder for folder in level.folder.iterdir() if folder.is_dir()]
    found = [folder for folder in folders if folder.name in known]
    files = [file for folder in found for file in folder.iterdir()]
    damaged = sum(not is_sound(file.read_bytes()) for file in files)
    text = f"prebuilt for {level.name}: {len(files) - damaged} of {level.kernels}"
    if damaged:
        text += f"; {damaged} are damaged"
    if len(found) < len(folders):
        text += "; for the others the sources or Numba's flags have changed"
    if kernel_cache()[1]:
        text += "; those in the kernel cache come first"
    return text


def _describe_cache():
    folder, compiled = kernel_cache()
    if folder is None:
        return "off: kernels compile in every process"
    if not compiled:
        native = " --native" if prebuilt.choose()[0] else ""
        return f"{folder}: empty; `llmds-nb warmup{native}` fills it"
    size = sum(file.stat().st_size for file in compiled)
    n_folders = len({file.parent for file in compiled})  # one for each domain
    return f"{folder}: {len(compiled)} compiled kernels in {n_folders} folders, {size / 1e6:.1f} MB"


def _describe_file(path):
    from llmds_nb._core import file_format

    ordinary = os.path.isfile(path)
    with bad_input(path, ValueError):
        structure, arrays, header = file_format.read(path, mmap=ordinary)
        size = f", {Path(path).stat().st_size:,} bytes" if ordinary else ""
    lines = [
        ("file", f"{path}{size}"),
        ("structure", structure),
        ("version", header.get("version")),
    ]
    if structure == "RetrievalPipeline":
        lines += _describe_pipeline(path, ordinary, (structure, arrays, header))
    lines += _settings(header)
    for name in sorted(arrays):
        array = arrays[name]
        shape = ", ".join(str(n) for n in array.shape)
        lines.append(("array", f"{name}  {array.dtype}[{shape}]"))
    return lines


def _describe_pipeline(path, ordinary, found):
    """What an index holds; its documents are read for the fields of their metadata. O(size)."""
    from llmds_nb import RetrievalPipeline
    from llmds_nb._core import file_format

    try:
        if ordinary:
            pipeline = RetrievalPipeline.load(path, mmap=True)
        else:  # read, and gone: write it again
            content = io.BytesIO()
            file_format.write(content, *found)
            pipeline = RetrievalPipeline.from_bytes(content.getvalue())
        ids = pipeline.ids()
        fields: dict[str, int] = {}
        for start in range(0, len(ids), _READ):
            documents: list[Any] = pipeline.documents(ids[start : start + _READ])
            for name in (name for document in documents for name in document.metadata):
                fields[name] = fields.get(name, 0) + 1
    except (ValueError, ImportError) as error:
        return [("documents", f"cannot be read: {error}")]
    kind = "text" if ids.dtype == object else "int"
    lines = [
        ("documents", f"{len(ids):,}, {pipeline.stats().vectors:,} of them with a vector"),
        ("ids", f"{kind}, such as {ids.tolist()[0]!r}" if len(ids) else "none yet"),
        ("language", language_of(pipeline)),
        ("encoder", encoder_of(pipeline)),
    ]
    for name, count in sorted(fields.items()):
        lines.append(("metadata", f"{name}  in {count:,} documents"))
    return lines


def _settings(header, prefix=""):
    lines = []
    for name, value in sorted(header.items()):
        if isinstance(value, dict):
            lines += _settings(value, f"{prefix}{name}.")
        elif name != "version" and len(str(value)) <= 200:
            lines.append(("setting", f"{prefix}{name} = {value!r}"))
    return lines
