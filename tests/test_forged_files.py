"""Files that somebody changed, with right checksums: refused, or what they hold is sound.

For the structures whose files are small; those of HNSW, KVCache and the rest have their own tests.
"""

import contextlib
import copy
import io
import json

import numpy as np
import pytest

import llmds_nb
from llmds_nb import CorruptFileError
from llmds_nb._core import file_format

from .cases import cases

_CLASSES = (
    "InvertedIndex", "Tokenizer", "LsaEncoder", "StaticEncoder", "CountMinSketch", "IndexedHeap",
    "TokenLRU",
)  # fmt: skip
_CASES = [name for name in cases() if name.split("-")[0] in _CLASSES]
_NUMBERS = (-1, -(2**31), 2**31 - 1, 2**31, 2**32 - 7, 2**62, 2**63 - 1)
_VALUES = (None, True, -1, 0, 2**24, 2**31 - 1, 2**62, 2**63, 10**400, 0.5, "", "x", [], [1], {})
# What methods of a whole object may raise for arguments that its content does not suit.
_DOCUMENTED = (KeyError, ValueError, IndexError, TypeError)


def _written(name):
    saved = cases()[name].make()
    structure, arrays, header = file_format.read_bytes(saved.to_bytes())
    return structure, arrays, header, saved._parts()


def _loaded(structure, arrays, header, parts):
    """The object in a file of these, or None where it is refused."""
    file = io.BytesIO()
    file_format.write(file, structure, arrays, header)
    try:
        return getattr(llmds_nb, structure).from_bytes(file.getvalue(), **parts)
    except CorruptFileError:
        return None
    except TypeError as error:  # a part that the header does not ask for any more
        assert "pattern" in str(error) or "stemmer" in str(error)
        return None


def _exercise(name, made):
    """Use all of an object: sound from the beginning to the end, whatever it holds."""
    case = cases()[name]
    made.check()
    _tried(case.observe, made)
    made.check()
    for mutate in case.mutations.values():
        changed = copy.copy(made)
        _tried(mutate, changed)
        changed.check()
        _tried(case.observe, changed)
    assert type(made).from_bytes(made.to_bytes(), **made._parts()) is not None


def _tried(function, made):
    with contextlib.suppress(_DOCUMENTED):
        function(made)


def _array_edits(array):
    flat = array.reshape(-1)
    yield "no items", flat[:0].reshape((0, *array.shape[1:]))
    yield "one less", array[:-1]
    yield "two of all", np.concatenate([array, array])
    yield "one dimension more", array[None]
    yield "other dtype", array.astype(np.float32 if array.dtype != np.float32 else np.int64)
    yield "other width", array.astype(np.int16 if array.dtype != np.int16 else np.int8)
    yield "reversed", array[::-1]
    yield "one value", np.full_like(array, flat[0] if flat.size else 0)
    for place in {0, flat.size // 2, flat.size - 1} if flat.size else ():
        for value in (*_NUMBERS, array.size, 0, 1, 127, 128, 255):
            changed = array.copy()
            with np.errstate(all="ignore"):
                changed.reshape(-1)[place] = np.array(value).astype(array.dtype)
            yield f"[{place}] = {value}", changed
    if array.dtype.kind == "f":
        for value in (np.nan, np.inf, -np.inf, 3e38):
            yield f"all {value}", np.full_like(array, value)


def _places(header):
    """Each (container, key) of a header, those of inner headers included."""
    for key in header if isinstance(header, dict) else range(len(header)):
        yield header, key
        if isinstance(header[key], dict | list):
            yield from _places(header[key])


@pytest.mark.parametrize("name", _CASES)
def test_a_changed_array_is_refused_or_sound(name):
    structure, arrays, header, parts = _written(name)
    assert _loaded(structure, arrays, header, parts) is not None
    for which, array in arrays.items():
        without = {n: a for n, a in arrays.items() if n != which}
        edits = [without, *({**arrays, which: edit} for _, edit in _array_edits(array))]
        for edit in edits:
            made = _loaded(structure, edit, header, parts)
            if made is not None:
                _exercise(name, made)
    more = arrays | {"more": np.arange(3)}
    made = _loaded(structure, more, header, parts)
    if made is not None:
        _exercise(name, made)


@pytest.mark.parametrize("name", _CASES)
def test_a_changed_header_is_refused_or_sound(name):
    structure, arrays, header, parts = _written(name)
    n_places = len(list(_places(header)))
    for number in range(n_places):
        for value in (KeyError, *_VALUES):
            changed = json.loads(json.dumps(header))
            container, key = list(_places(changed))[number]
            if value is KeyError:
                del container[key]
            else:
                container[key] = value
            made = _loaded(structure, arrays, changed, parts)
            if made is not None:
                _exercise(name, made)


@pytest.mark.parametrize("name", _CASES)
def test_many_changed_bytes_are_refused_or_sound(name):
    structure, arrays, header, parts = _written(name)
    rng = np.random.default_rng(7)
    names = [n for n, a in arrays.items() if a.size]
    for _ in range(300 if names else 0):
        changed = dict(arrays)
        for _ in range(rng.integers(1, 4)):
            which = names[rng.integers(len(names))]
            data = changed[which].copy()
            raw = data.reshape(-1).view(np.uint8)
            raw[rng.integers(raw.size)] = rng.choice([0, 1, 127, 128, 255, rng.integers(256)])
            changed[which] = data
        made = _loaded(structure, changed, header, parts)
        if made is not None:
            _exercise(name, made)


# ---- samples -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tf", [2**31, 2**32 - 7, 2**32 + 1, 2**40, 3])
def test_a_term_frequency_that_no_document_has_is_refused(tf):
    index = llmds_nb.InvertedIndex()
    index.add(None, ["red fox fox", "red sea"])
    structure, arrays, header = file_format.read_bytes(index.to_bytes())
    number = list(index.tokenizer.terms).index("fox")
    sizes = arrays["sizes"] // 2  # zigzag
    start, stop = sizes[:number].sum(), sizes[: number + 1].sum()
    more, rest = [], tf - 2
    while rest >= 128:
        more.append(rest & 127 | 128)
        rest >>= 7
    forged = np.array([0, *more, rest], np.uint8)
    assert arrays["data"][start:stop].tolist() == [0, 0]  # gap 0, tf 2
    arrays["data"] = np.concatenate([arrays["data"][:start], forged, arrays["data"][stop:]])
    arrays["sizes"] = arrays["sizes"].copy()
    arrays["sizes"][number] = 2 * len(forged)
    file = io.BytesIO()
    file_format.write(file, structure, arrays, header)
    with pytest.raises(CorruptFileError, match="'data'"):
        llmds_nb.InvertedIndex.from_bytes(file.getvalue())


@pytest.mark.parametrize(
    ("name", "value"),
    [("n_docs", 2**31 - 1), ("n_lists", 2**31 - 1), ("n_tokens", 2**80), ("next_id", -1)],
)
def test_counts_of_an_index_ask_for_no_memory(name, value):
    index = llmds_nb.InvertedIndex()
    index.add(None, ["red fox", "red sea"])
    structure, arrays, header = file_format.read_bytes(index.to_bytes())
    assert _loaded(structure, arrays, header | {name: value}, {}) is None


def test_a_sketch_asks_for_no_slots_that_the_file_does_not_hold():
    structure, arrays, header, _ = _written("CountMinSketch")
    file = io.BytesIO()
    file_format.write(file, structure, arrays, header | {"top": 2**24})
    with pytest.raises(CorruptFileError, match="slot_hash has 2 rows for a top of 16777216"):
        llmds_nb.CountMinSketch.from_bytes(file.getvalue())


@pytest.mark.parametrize("pattern", [r"(?:\w+)+!", "[" + "a-z" * 400 + r"]+!?", r"(?:a|b|\w)*\w+!"])
def test_a_pattern_of_a_file_that_may_run_for_ever_is_not_run(pattern):
    made = llmds_nb.Tokenizer(pattern=pattern).fit("red! sea!")
    for other in (copy.copy(made), llmds_nb.Tokenizer.from_bytes(made.to_bytes(), pattern=pattern)):
        assert other.encode("sea!").ids.tolist() == made.encode("sea!").ids.tolist() == [1]
    loaded = llmds_nb.Tokenizer.from_bytes(made.to_bytes())
    for again in (loaded, llmds_nb.Tokenizer.from_bytes(loaded.to_bytes())):
        with pytest.raises(ValueError, match="no file is trusted"):
            again.encode("a" * 60)
        with pytest.raises(ValueError, match="pattern must be"):
            again.supply(pattern=r"\w+!")
        again.supply(pattern=pattern)
        assert again.encode("sea!").ids.tolist() == [1]
    with pytest.raises(TypeError, match="pattern must be"):
        llmds_nb.Tokenizer.from_bytes(made.to_bytes(), pattern=str.split)


USUAL = [r"\w+", r"\b\w\w+\b", r"\S+", r"[a-z]+", r"[^\s,]+", r"\w"]
BOUNDED = [r"[^\W_]{2,}", r"\w{2}", "[a-z]{1,99}"]


@pytest.mark.parametrize("pattern", USUAL + BOUNDED)
def test_usual_patterns_are_loaded(pattern):
    made = llmds_nb.Tokenizer(pattern=pattern).fit("red, sea!")
    loaded = llmds_nb.Tokenizer.from_bytes(made.to_bytes())
    assert loaded.pattern == pattern
    assert loaded.encode("sea!").ids.tolist() == made.encode("sea!").ids.tolist()


def test_an_id_of_a_tokenizer_json_makes_no_strings_that_the_file_does_not_hold():
    pytest.importorskip("tokenizers")
    model = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": None, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {"red": 0, "sea": 9}, "unk_token": "red"},
    }  # fmt: skip
    assert len(llmds_nb.Tokenizer._from_model(json.dumps(model))) == 10
    model["model"]["vocab"]["sea"] = 4 * 10**9
    with pytest.raises(ValueError, match="id 4000000000 in a file of"):
        llmds_nb.Tokenizer._from_model(json.dumps(model))


# ---- containers --------------------------------------------------------------------------------


def _sealed(change):
    """A file of two arrays whose entries `change` edits, sealed again."""
    file = io.BytesIO()
    arrays = {"a": np.arange(4), "flags": np.array([True, False])}
    file_format.write(file, "IndexedHeap", arrays, {"version": 1})
    data = file.getvalue()
    start = 8 + int.from_bytes(data[:8], "little")
    entries = json.loads(data[8:start])
    body = change(entries) or data[start:]
    metadata = entries.get("__metadata__")
    if isinstance(metadata, dict):
        described = {n: e for n, e in entries.items() if n != "__metadata__"}
        seals = {n: v for n, v in metadata.items() if n != "seal"}
        try:
            shapes = {n: (e["dtype"], e["shape"]) for n, e in described.items()}
            metadata["seal"] = file_format._seal(seals, shapes)
        except (KeyError, TypeError):
            pass
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


_DEEP = "[" * 100_000
_ENDLESS = [f'{{"version": 1, "a": {number}}}' for number in ("NaN", "-Infinity", "1e999")]


@pytest.mark.parametrize(
    "change",
    [
        *(
            lambda e, n=n, v=v: e["__metadata__"].update({n: v})
            for n in ("header", "checksums", "structure", "llmds_nb", "more")
            for v in (
                None,
                1,
                [],
                {},
                "[]",
                "null",
                "1",
                "{",
                _DEEP,
                "1" * 5000,
                "\ud800",
                *_ENDLESS,
            )
            if (n, type(v)) != ("more", str) and (n, v) != ("structure", "")
        ),
        *(lambda e, n=n: e["__metadata__"].pop(n) and None for n in ("header", "checksums")),
        *(lambda e, n=n: e["__metadata__"].pop(n) and None for n in ("structure", "llmds_nb")),
        *(lambda e, v=v: e.update(__metadata__=v) for v in (None, 1, [], "x")),
        *(
            lambda e, n=n, v=v: e["a"].update({n: v})
            for n in ("dtype", "shape", "data_offsets")
            for v in (None, 1, [], {}, "x", [1.5], [True, 4], [10**400], [2**62, 4], [4] * 99)
        ),
        *(
            lambda e, s=s: e.update(z={"dtype": "I64", "shape": s, "data_offsets": [34, 34]})
            for s in ([0, 2**62], [0, 2**40, 2**40], [0, 10**400], [0] * 99, [0, -1])
        ),
        *(lambda e, v=v: e.update(a=v) for v in (None, 1, [], "x")),
        lambda e: (e["a"]["data_offsets"], e["flags"]["data_offsets"]) and _swap(e),
    ],
)
def test_a_damaged_container_is_refused(change):
    data = _sealed(change)
    for opened in (
        lambda: llmds_nb.IndexedHeap.from_bytes(data),
        lambda: llmds_nb.load(io.BytesIO(data)),
    ):
        with pytest.raises(CorruptFileError):
            opened()


def _swap(entries):
    """Put the flags first, so that the numbers begin within a word."""
    entries["flags"]["data_offsets"], entries["a"]["data_offsets"] = [0, 2], [2, 34]


def test_the_damage_of_containers_is_seen_in_a_file_that_is_whole_otherwise():
    structure, arrays, header = file_format.read_bytes(_sealed(lambda entries: None))
    assert (structure, header, len(arrays)) == ("IndexedHeap", {"version": 1}, 2)


def test_flags_are_true_or_false():
    data = bytearray(_sealed(lambda entries: None))
    data[-1] = 2
    with pytest.raises(CorruptFileError, match="neither True nor False"):
        file_format.read(io.BytesIO(data), verify=False)


def test_a_header_that_is_nested_without_end_is_refused():
    data = (100_000).to_bytes(8, "little") + _DEEP.encode()
    with pytest.raises(CorruptFileError, match="no JSON"):
        file_format.read_bytes(data)
