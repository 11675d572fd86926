"""Packs a hybrid index, with its parts and its texts, into arrays and a header, and back."""

from typing import Any

from .._core import validation
from .._core.storage import Stored, checking_parts, nest, unnest
from ..bm25.index import InvertedIndex
from ..errors import CorruptFileError
from ..hnsw.index import HNSW
from ..text.lsa import LsaEncoder
from .embedder import Embedder
from .hybrid import HybridIndex
from .text_store import TextStore

_PARTS: dict[str, type[Stored]] = {"dense": HNSW, "sparse": InvertedIndex, "encoder": LsaEncoder}


def pack(index: HybridIndex) -> tuple[dict, dict]:
    """Arrays and header to store."""
    with index.write_lock:
        parts = {"dense": index.dense, "sparse": index.sparse, "encoder": index.embedder.lsa}
        snapshot = index.snapshot
        arrays, header = nest("texts", snapshot.texts.state())
        header |= {"parts": {}, "dim": snapshot.dim, "next_id": snapshot.next_id}
        for name, part in parts.items():
            if part is not None:
                part_arrays, part_header = nest(name, part._state())
                arrays |= part_arrays
                header |= part_header
                header["parts"][name] = part._stored_version
    return arrays, header | {"needs_encoder": index.embedder.is_function}


def unpack(arrays: dict, header: dict, seed: int, encoder: Any, callables: dict) -> HybridIndex:
    """The index that `pack` packed, with an encoder or None, and `callables` of its tokenizer.

    Raises
    ------
    CorruptFileError
        A part has a newer format than this version reads, or the parts do not fit together.
    """
    halves: dict[str, Any] = {}
    for name, version in header["parts"].items():
        part = _PARTS[name]
        if not 1 <= version <= part._stored_version:
            raise CorruptFileError(f"{name} has format {version}, newer than this version's")
        own = callables if name == "sparse" else {}
        halves[name] = part._from_state(*unnest(name, arrays, header), **own)
    embedder = Embedder(halves.get("encoder"), lost=bool(header["needs_encoder"]))
    if encoder is not None:
        with checking_parts():
            embedder = Embedder(encoder)
    texts = TextStore.from_state(*unnest("texts", arrays, header))
    next_id = validation.integer(header["next_id"], "next_id", low=0)
    dense, sparse, dim = halves.get("dense"), halves["sparse"], header["dim"]
    if texts.n_ids != len(sparse):
        raise CorruptFileError(f"{texts.n_ids} texts, but {len(sparse)} documents")
    if dense is not None and dense.dim != dim:
        raise CorruptFileError(f"dim {dim}, but vectors of {dense.dim}")
    return HybridIndex(dense, sparse, dim, embedder, seed, texts, next_id)
