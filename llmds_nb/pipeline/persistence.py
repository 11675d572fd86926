"""Packs a hybrid index, with its parts and its texts, into arrays and a header, and back."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from .._core import validation
from .._core.forking import threads_of_a_call
from .._core.storage import Stored, checking_parts, nest, unnest
from ..bm25 import segments as segs
from ..bm25.index import InvertedIndex
from ..errors import CorruptFileError
from ..hnsw.index import HNSW, MAX_DIM
from ..hnsw.snapshot import ids_of, is_packed, marked_live
from ..text.lsa import LsaEncoder
from ..text.static_encoder import StaticEncoder
from .embedder import Embedder
from .hybrid import HybridIndex
from .keys import KeyStore
from .metadata import MetadataStore
from .named_encoders import SentenceTransformers
from .text_store import TextStore

_PARTS: dict[str, type[Stored]] = {"dense": HNSW, "sparse": InvertedIndex, "encoder": LsaEncoder}
_ENCODERS: dict[str, type[Stored]] = {"LsaEncoder": LsaEncoder, "StaticEncoder": StaticEncoder}

_LARGE = 1 << 24  # bytes of a dense half that are worth a thread
_SPARSE = 8  # numbers an id above which ids are searched for, not marked
_SETTINGS = {"fusion", "weight", "seed", "cache_tokens", "hot_threshold"}


def pack(index: HybridIndex) -> tuple[dict, dict]:
    """Arrays and header to store."""
    with index.write_lock:
        snapshot = index.snapshot
        encoder = snapshot.embedder.stored
        parts = {"dense": index.dense, "sparse": index.sparse, "encoder": encoder}
        arrays, header = nest("texts", snapshot.texts.state())
        header |= {"parts": {}, "dim": snapshot.dim, "next_id": snapshot.next_id}
        for name, store in (("keys", snapshot.keys), ("metadata", snapshot.metadata)):
            if store is not None:
                own_arrays, own_header = nest(name, store.state())
                arrays |= own_arrays
                header |= own_header
        for name, part in parts.items():
            if part is not None:
                part_arrays, part_header = nest(name, part._state())
                arrays |= part_arrays
                header |= part_header
                header["parts"][name] = part._stored_version
        if encoder is not None:
            header["encoder_class"] = encoder._structure().__name__
        if index.embedder.name is not None:
            header["encoder_name"] = index.embedder.name
    return arrays, header | {"needs_encoder": index.embedder.is_function}


def unpack(arrays: dict, header: dict, seed: int, encoder: Any, callables: dict) -> HybridIndex:
    """The index that `pack` packed, with an encoder or None, and `callables` of its tokenizer.

    Raises
    ------
    CorruptFileError
        A part has a newer format than this version reads, or the parts do not fit together.
    """
    makers = _makers(arrays, header, callables)

    def others():
        """The other parts, the texts, and what there is of keys and metadata."""
        own = {name: make() for name, make in makers.items()}
        texts = TextStore.from_state(*unnest("texts", arrays, header))
        keys, metadata = (
            kind.from_state(*unnest(name, arrays, header)) if name in header else None
            for name, kind in (("keys", KeyStore), ("metadata", MetadataStore))
        )
        return own, texts, keys, metadata

    # Most of a large file is the dense half and its checks, which all cores share.
    n_bytes = sum(array.nbytes for name, array in arrays.items() if name.startswith("dense/"))
    make_dense = makers.pop("dense", lambda: None)
    if n_bytes < _LARGE or validation.threads(-1) == 1:
        dense, rest = make_dense(), others()
    else:
        with threads_of_a_call(1) as executor:
            made = executor.submit(make_dense)
            rest = others()
            dense = made.result()
    halves, texts, keys, metadata = rest
    lost = validation.flag(header["needs_encoder"], "needs_encoder")
    own_encoder = halves.get("encoder")
    if "encoder_name" in header:
        if own_encoder is not None:
            raise CorruptFileError("there is an encoder, and the name of one")
        own_encoder = SentenceTransformers(header["encoder_name"])
    if lost and own_encoder is not None:
        raise CorruptFileError("needs_encoder is true, but an encoder is stored")
    embedder = Embedder(own_encoder, lost=lost)
    if encoder is not None:
        with checking_parts():
            embedder = Embedder(encoder)
    next_id = validation.integer(header["next_id"], "next_id", low=0, high=2**63)
    sparse, dim = halves["sparse"], header["dim"]
    if dim is not None:
        dim = validation.integer(dim, "dim", low=1, high=MAX_DIM)
    if dense is not None and dense.dim != dim:
        raise CorruptFileError(f"dim {dim}, but vectors of {dense.dim}")
    ids = _ascending(texts.pairs()[0])
    _check_ids(dense, sparse, ids, next_id)
    if keys is not None:
        _check_keys(keys, ids, next_id)
    if metadata is not None and metadata.n != texts.n:
        raise CorruptFileError(f"metadata has {metadata.n} rows, but there are {texts.n} texts")
    return HybridIndex(dense, sparse, dim, embedder, seed, (texts, metadata, keys, next_id))


def _makers(arrays, header, callables) -> dict[str, Callable[[], Any]]:
    """What makes each part of a file, by its name."""
    if set(header["parts"]) - set(_PARTS):
        raise CorruptFileError(f"parts are {sorted(header['parts'])}")
    makers: dict[str, Callable[[], Any]] = {}
    for name, version in header["parts"].items():
        part = _PARTS[name]
        if name == "encoder":  # files of earlier versions hold no other than an LsaEncoder
            kind = header.get("encoder_class", LsaEncoder.__name__)
            part = _ENCODERS[validation.choice(kind, "encoder_class", tuple(_ENCODERS))]
        if not 1 <= validation.integer(version, name) <= part._stored_version:
            raise CorruptFileError(f"{name} has format {version}, newer than this version's")
        own = callables if name == "sparse" else {}
        makers[name] = partial(part._from_state, *unnest(name, arrays, header), **own)
    return makers


def check_settings(settings: dict) -> None:
    """Refuse settings that are not those of a pipeline, since the others would be the defaults."""
    if set(settings) != _SETTINGS:
        raise CorruptFileError(f"settings has {sorted(settings)}")


def _check_keys(keys, ids, next_id):
    """Refuse keys whose numbers are not those of the texts, ascending, or no numbers at all."""
    numbers = keys.numbers[: keys.n]
    if numbers.max(initial=-1) >= next_id or not (
        np.array_equal(numbers, ids) or keys.has_numbers(ids)
    ):
        raise CorruptFileError(f"the {keys.n} str ids are not those of the {len(ids)} texts")


def _check_ids(dense, sparse, ids, next_id):
    """Refuse parts of other ids than the texts, ascending, of which some may have no vector."""
    if len(ids) and not 0 <= ids[0] <= ids[-1] < next_id:
        raise CorruptFileError(f"texts have ids {ids[0]} to {ids[-1]}, next_id is {next_id}")
    segments = sparse._contents.snapshot.segments
    parts = [segs.ids_at(segment, segs.docs_alive(segment)) for segment in segments]
    if not np.array_equal(ids, _ascending(np.concatenate([ids[:0], *parts]))):
        raise CorruptFileError(f"the {len(ids)} texts have other ids than the documents")
    if dense is not None and not _are_in(dense._snapshot, ids):
        raise CorruptFileError(f"some of {len(dense)} vectors have the id of no text")


def _are_in(snapshot, ids):
    """Whether every vector has one of ids, which ascend. O(n)."""
    n = snapshot.n
    if not snapshot.n_live or not len(ids):
        return not snapshot.n_live
    first, span = ids[0], ids[-1] - ids[0] + 1
    if is_packed(snapshot.ids) and snapshot.n_live == n == span == len(ids):
        return snapshot.ids[0] == first  # as it mostly is, and seen at once
    slots = np.flatnonzero(marked_live(snapshot.live[:n])) if len(snapshot.live) else np.arange(n)
    own = ids_of(snapshot.ids, slots)
    if own.min() < first or own.max() > ids[-1]:
        return False
    if span > _SPARSE * len(ids):
        return (ids[np.searchsorted(ids, own)] == own).all()
    there = np.zeros(span, np.bool_)
    there[ids - first] = True
    return there[own - first].all()


def _ascending(ids):
    return ids if (ids[1:] > ids[:-1]).all() else np.sort(ids)
