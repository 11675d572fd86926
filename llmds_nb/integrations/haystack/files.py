"""The file of a document store: a zip archive of four parts, not compressed.

store.json    version, the store's parameters, dim, next_row, and blobs and sparse embeddings
pipeline      the pipeline's own file
rows.npy      int64[n], those rows of the pipeline whose documents have an embedding
vectors.npy   float64[n, dim], these
"""

import io
import json
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from haystack.dataclasses import ByteStream, SparseEmbedding

from llmds_nb import CorruptFileError, RetrievalPipeline

VERSION = 1


class Rest(NamedTuple):
    """What a pipeline does not keep of a document, or only as float32."""

    embedding: npt.NDArray[np.float64] | None
    blob: ByteStream | None
    sparse_embedding: SparseEmbedding | None


class Contents(NamedTuple):
    """A store, apart from its parameters.

    rows       from the id of each document to its row, that is its id in the pipeline
    rest       of each row
    """

    pipeline: RetrievalPipeline
    dim: int | None
    rows: dict[str, int]
    rest: dict[int, Rest]
    next_row: int


def write(path: str | os.PathLike, parameters: dict[str, Any], contents: Contents) -> None:
    """Write a store to a file, which it replaces whole."""
    pipeline, dim, _, rest, next_row = contents
    rows = [row for row, one in rest.items() if one.embedding is not None]
    vectors = np.array([rest[row].embedding for row in rows], np.float64)
    header = {
        "version": VERSION, "parameters": parameters, "dim": dim, "next_row": next_row,
        "blobs": [[row, one.blob.to_dict()] for row, one in rest.items() if one.blob],
        "sparse_embeddings": [
            [row, one.sparse_embedding.to_dict()]
            for row, one in rest.items() if one.sparse_embedding
        ],
    }  # fmt: skip
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr("store.json", json.dumps(header))
                archive.writestr("pipeline", pipeline.to_bytes())
                archive.writestr("rows.npy", _bytes(np.array(rows, np.int64)))
                archive.writestr("vectors.npy", _bytes(vectors.reshape(len(rows), dim or 0)))
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read(path: str | os.PathLike) -> tuple[dict[str, Any], Contents]:
    """(parameters, contents) of the store in a file.

    Raises
    ------
    CorruptFileError
        The file is none of a store, or its parts do not fit together.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            header = json.loads(archive.read("store.json"))
            pipeline = RetrievalPipeline.from_bytes(archive.read("pipeline"))
            rows, vectors = (_array(archive.read(f"{name}.npy")) for name in ("rows", "vectors"))
    except (zipfile.BadZipFile, KeyError, EOFError, ValueError, RecursionError) as error:
        if isinstance(error, CorruptFileError):
            raise
        raise CorruptFileError(f"{path}: not the file of a document store: {error}") from error
    try:
        _check(header["version"] == VERSION, f"version is {header['version']}, not {VERSION}")
        return header["parameters"], _contents(header, pipeline, rows, vectors)
    except (KeyError, TypeError, AttributeError) as error:
        raise CorruptFileError(f"{path}: store.json has no such parts: {error!r}") from error


def _contents(header, pipeline, rows, vectors):
    dim, next_row = header["dim"], header["next_row"]
    ids = pipeline.ids()
    documents: Any = pipeline.documents(ids)
    own = {document.metadata.get("id"): document.id for document in documents}
    _check(ids.dtype == np.int64, "the pipeline's ids are not int")
    _check(len(own) == len(ids) and all(map(_is_id, own)), "documents have no ids of their own")
    for document in documents:
        _check(isinstance(document.metadata.get("meta"), dict), "documents have no meta")
    _check(type(next_row) is int and next_row > ids.max(initial=-1), f"next_row is {next_row}")
    _check(dim is None or (type(dim) is int and dim > 0), f"dim is {dim}")
    pipeline_dim = pipeline.stats().dim
    _check(pipeline_dim == (dim or 1), f"the pipeline has dimension {pipeline_dim}, not {dim}")
    _check(rows.dtype == np.int64 and rows.ndim == 1, f"rows are {rows.dtype}{rows.shape}")
    shape = (rows.size, dim or 0)
    fits = vectors.dtype == np.float64 and vectors.shape == shape and np.isfinite(vectors).all()
    _check(fits, f"vectors are {vectors.dtype}{vectors.shape}, not finite float64{shape}")
    _check(dim is not None or not rows.size, "there are embeddings of no dimension")
    rest = {row: Rest(None, None, None) for row in own.values()}
    given: tuple[tuple[str, Mapping[int, Any]], ...] = (
        ("embedding", dict(zip(rows.tolist(), vectors, strict=True))),
        ("blob", _objects(header["blobs"], ByteStream)),
        ("sparse_embedding", _objects(header["sparse_embeddings"], SparseEmbedding)),
    )
    for field, of_rows in given:
        for row, value in of_rows.items():
            _check(row in rest, f"there is no document of row {row}, which has a {field}")
            rest[row] = rest[row]._replace(**{field: value})
    return Contents(pipeline, dim, own, rest, next_row)


def _objects(pairs, cls):
    try:
        return {row: cls.from_dict(data) for row, data in pairs}
    except ValueError as error:
        raise CorruptFileError(f"store.json: a {cls.__name__} is wrong: {error}") from error


def _is_id(name):
    return isinstance(name, str) and name != ""


def _check(holds, problem):
    if not holds:
        raise CorruptFileError(problem)


def _bytes(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _array(data):
    return np.load(io.BytesIO(data), allow_pickle=False)
