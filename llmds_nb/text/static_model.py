"""The models of StaticEncoder: their two files, found in an installed package, read and checked."""

import hashlib
import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .._core import validation
from .._core.state import Handle
from .._core.typing import Float64s, Int64s, UInt8s
from ..errors import CorruptFileError
from ..primitives.hash_table import empty_table, table_set_many
from ..primitives.status import ABSENT
from .analyzer import without_surrogates
from .kernels import static_encoder as k
from .vocabulary import offsets

_PACKAGE = "wordllama"
_FILES = {
    "weights": "l2_supercat_256.safetensors",
    "tokenizer": "l2_supercat_tokenizer_config.json",
}
_TENSOR = "embedding.weight"
# The vectors were trained so that their first components are vectors as well.
MODELS = {"wordllama-256": 256, "wordllama-128": 128, "wordllama-64": 64}
_MARKER = "\u2581"  # what SentencePiece writes for a space
_PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
# What of a tokenizer.json decides how it encodes, and what the kernels do.
_EXPECTED: dict[str, Any] = {
    "truncation": None,
    "pre_tokenizer": None,
    "normalizer": {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": _MARKER},
            {"type": "Replace", "pattern": {"String": " "}, "content": _MARKER},
        ],
    },
}
_EXPECTED_MODEL: dict[str, Any] = {
    "type": "BPE", "dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
    "byte_fallback": True,
}  # fmt: skip
_ZIPF_SHIFT = 10  # of the prior: 1 / (place in the order of merges + 10)


class _Vocabulary(NamedTuple):
    """What a tokenizer.json says."""

    ids: dict[str, int]
    merges: list[tuple[str, str]]
    specials: dict[str, int]


class StaticModel:
    """The vectors and the tokenizer of a model; never changed, shared by all who use it.

    prior float64[V]: how often each token occurs in any text, by Zipf's law: the merges of a
    byte-pair encoding were learnt in the order of their frequency. The sum is 1.
    """

    def __init__(self, name: str, paths: dict[str, Path]):
        contents = {kind: path.read_bytes() for kind, path in paths.items()}
        self.name = name
        self.digests = {kind: hashlib.sha256(data).hexdigest() for kind, data in contents.items()}
        rows = _read(paths["weights"], contents["weights"], _vectors)[:, : MODELS[name]]
        vocabulary = _read(paths["tokenizer"], contents["tokenizer"], _vocabulary)
        if len(vocabulary.ids) != len(rows):
            raise CorruptFileError(
                f"{paths['tokenizer']} has {len(vocabulary.ids)} tokens for {len(rows)} vectors"
            )
        self.specials = list(vocabulary.specials)
        longest_first = sorted(self.specials, key=len, reverse=True)
        special = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        self._split, self._find_special = special.split, special.search
        self.handle = Handle(_state(vocabulary, rows))
        self.prior = _prior(vocabulary)

    @property
    def n_tokens(self) -> int:
        """How many tokens there are."""
        return len(self.handle.state.rows)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays: 35 million for 256 components, most of them float32 vectors."""
        state = self.handle.state
        tables = (state.merges, state.chars, state.ascii_tokens, state.byte_tokens)
        arrays = (*tables, state.specials, state.rows, self.prior)
        return sum(array.nbytes for array in arrays)

    def prepared(self, texts: list[str]) -> tuple[UInt8s, Int64s]:
        """Texts in the form that `kernels.static_encoder` takes: (data, text_ptr)."""
        together = " " + " ".join(texts)
        if together.isascii() and not self._find_special(together):
            data, lengths = together.encode(), [len(text) + 1 for text in texts]
        else:
            parts = [self.prepared_one(text) for text in texts]
            data, lengths = b"".join(parts), list(map(len, parts))
        return np.frombuffer(bytearray(data), np.uint8), offsets(lengths)

    def prepared_one(self, text: str) -> bytes:
        """The same of one text."""
        if self._find_special(text):
            return self._marked(text)
        return (" " + text).encode() if text.isascii() else _utf8(" " + text)

    def _marked(self, text):
        """A text in which special tokens are marked, each of the rest a piece of its own."""
        found = b""
        for place, piece in enumerate(self._split(text)):
            if place % 2:
                found += bytes([k.MARK, self.specials.index(piece)])
            elif piece:
                found += _utf8(" " + piece)
        return found


def _utf8(piece):
    piece = piece.replace(_MARKER, " ")
    try:
        return piece.encode()
    except UnicodeEncodeError:
        return without_surrogates(piece).encode()


def model_of(name: str) -> StaticModel:
    """The model of this name, read once while its files stay the same.

    Raises ImportError where its package is not installed, and CorruptFileError for a file that is
    not whole.
    """
    paths = _find(name)
    stamps = ((path, path.stat().st_mtime_ns, path.stat().st_size) for path in paths.values())
    return _opened(name, tuple(stamps))


def package_version() -> str | None:
    """The version of the package that has the files; None where it is unknown."""
    try:
        return importlib.metadata.version(_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None


@lru_cache(maxsize=len(MODELS))
def _opened(name, stamps):
    return StaticModel(name, dict(zip(_FILES, (path for path, *_ in stamps), strict=True)))


def _find(name) -> dict[str, Path]:
    """The files, wherever the package keeps them; it is not imported."""
    try:
        spec = importlib.util.find_spec(_PACKAGE)
    except ValueError:  # a module of that name was made by hand
        spec = None
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    if not folders:
        raise _missing(f"StaticEncoder({name!r}) needs {_PACKAGE}")
    found = {}
    for kind, file_name in _FILES.items():
        paths = [path for folder in folders for path in sorted(Path(folder).rglob(file_name))]
        if not paths:
            raise _missing(f"{folders[0]} has no file {file_name}")
        found[kind] = paths[0]
    return found


def _missing(reason):
    return ImportError(f"{reason}: pip install 'llmds_nb[static]'", name=_PACKAGE)


def _read(path: Path, data: bytes, parse: Callable[[bytes], Any]) -> Any:
    """What a file holds, or CorruptFileError with its name."""
    try:
        return parse(data)
    except CorruptFileError as error:
        raise CorruptFileError(f"{path}: {error}") from None
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise CorruptFileError(f"{path} is truncated or altered: {error!r:.200}") from None


def _require(holds, reason):
    if not holds:
        raise CorruptFileError(reason)


def _vectors(data) -> np.ndarray:
    """float32[V, d] of a safetensors file with one float16 or float32 matrix."""
    _require(len(data) >= 8, f"{len(data)} bytes are no safetensors file")
    start = 8 + int.from_bytes(data[:8], "little")
    _require(start <= len(data), f"a header of {start - 8} bytes in a file of {len(data)}")
    entry = json.loads(data[8:start])[_TENSOR]
    shape, (first, stop) = entry["shape"], entry["data_offsets"]
    kinds = {"F16": np.float16, "F32": np.float32}
    _require(entry["dtype"] in kinds, f"vectors of dtype {entry['dtype']}, not {list(kinds)}")
    kind = np.dtype(kinds[entry["dtype"]])
    sizes = [validation.integer(n, "shape", low=1, high=1 << 24) for n in shape]
    _require(len(sizes) == 2, f"vectors of shape {sizes}")
    _require(sizes[1] == max(MODELS.values()), f"vectors of {sizes[1]} components")
    n_bytes = sizes[0] * sizes[1] * kind.itemsize
    whole = first == 0 and stop == n_bytes == len(data) - start
    _require(whole, f"{n_bytes} bytes of vectors expected, {len(data) - start} found")
    rows = np.frombuffer(data, kind, offset=start).reshape(sizes).astype(np.float32)
    _require(np.isfinite(rows).all(), "vectors that are not finite")
    return rows


def _vocabulary(data) -> _Vocabulary:
    """What a tokenizer.json says, where the kernels do it: Llama's byte-pair encoding."""
    read = json.loads(data)
    model = read["model"]
    for name, expected in _EXPECTED.items():
        _require(read[name] == expected, f"{name} is {read[name]!r:.100}")
    for name, expected in _EXPECTED_MODEL.items():
        _require(model.get(name) == expected, f"{name} is {model.get(name)!r:.100}")
    ids = model["vocab"]
    numbers = [validation.integer(id_, "id", low=0, high=len(ids) - 1) for id_ in ids.values()]
    _require(len(set(numbers)) == len(numbers), "two tokens have the same id")
    specials = {}
    for token in read["added_tokens"]:
        content = token["content"]
        plain = all(token[name] == value for name, value in _PLAIN.items())
        _require(plain and content and ids[content] == token["id"], f"a special token {token}")
        specials[content] = token["id"]
    _require(0 < len(specials) < k.MARK, f"{len(specials)} special tokens")
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
    merges = [(left, right) for left, right in pairs]
    _require(len(set(merges)) == len(merges), "the same merge twice")
    for left, right in merges:
        _require(left in ids and right in ids and left + right in ids, f"a merge {left} {right}")
    return _Vocabulary(ids, merges, specials)


def _state(vocabulary, rows) -> k.StaticModelState:
    ids, merges, specials = vocabulary
    pairs = np.array([(ids[a], ids[b], ids[a + b]) for a, b in merges], np.int64).reshape(-1, 3)
    values = (np.arange(len(pairs)) << 32) | pairs[:, 2]
    # A space stands for the marker in the texts of the kernels.
    chars = {
        ord(" " if token == _MARKER else token): ids[token]
        for token in ids
        if len(token) == 1 and token != " "
    }
    chars_known = np.array(list(chars.items()), np.int64)
    ascii_tokens = np.array([chars.get(code, ABSENT) for code in range(128)], np.int32)
    by_word = not any(_MARKER in token.lstrip(_MARKER) for token in ids)
    return k.StaticModelState(
        table_of((pairs[:, 0] << 32) | pairs[:, 1], values),
        table_of(chars_known[:, 0].copy(), chars_known[:, 1].copy()),
        ascii_tokens,
        np.array([ids[f"<0x{byte:02X}>"] for byte in range(256)], np.int32),
        np.array(list(specials.values()), np.int32),
        np.ascontiguousarray(rows),
        int(by_word),
    )


def table_of(keys: Int64s, values: Int64s) -> np.ndarray:
    """The hash table of pairs of int64, as the kernels read it."""
    table = empty_table(len(keys))
    table_set_many(table, keys, values)
    return table


def _prior(vocabulary) -> Float64s:
    """How often each token occurs in any text, by Zipf's law."""
    ids, merges, _ = vocabulary
    order = list(dict.fromkeys(ids[a + b] for a, b in merges))  # by the first merge that gives each
    prior = np.full(len(ids), 1.0 / (len(ids) + _ZIPF_SHIFT))
    prior[order] = 1.0 / (np.arange(len(order)) + _ZIPF_SHIFT)
    return prior / prior.sum()
