"""Metadata of files that someone changed, with right checksums: refused, or a sound store."""

import contextlib

import numpy as np
import pytest

from llmds_nb import CorruptFileError
from llmds_nb.pipeline.metadata import MetadataStore, checked_metadata, parsed_where

from .samples_metadata import SAMPLE


def stored(documents, before=None):
    store = MetadataStore.empty() if before is None else before
    return store.added(checked_metadata(documents, len(documents)))


VALUES = [-(2**63), -2, -1, 0, 1, 2, 2**31, 2**62, 10**30, None, True, 1.5, "1", [], {}, "missing"]
REFUSED = (CorruptFileError, ValueError, TypeError, KeyError, LookupError)  # Stored: all are one


def use(arrays, header):
    """Load what may be forged, and call what reads or changes everything; whether it was loaded."""
    try:
        store = MetadataStore.from_state(arrays, header)
    except REFUSED:
        return False
    rows = np.arange(store.n)
    for call in (
        lambda: store.documents(rows),
        lambda: store.mask(parsed_where({"lang": "de", "year": {"$gt": 1}})),
        lambda: store.mask(parsed_where({"lang": {"$lt": "e"}})),
        lambda: store.mask(parsed_where({"tags": {"$in": ["x", None, *range(9)]}})),
        lambda: store.groups("a", rows),
        lambda: stored([{"lang": "new", "tags": ["x"]}], store).mask(parsed_where({"lang": "new"})),
        lambda: store.compacted(rows[::-1]).compacted(rows[:2]),
    ):
        with contextlib.suppress(CorruptFileError):
            call()
    return True


def opened():
    arrays, header = stored(SAMPLE).state()
    return {name: values.copy() for name, values in arrays.items()}, header


def test_unchanged_file():
    assert use(*opened())


def test_random_edits():
    for seed in range(400):
        rng = np.random.default_rng(seed)
        arrays, header = opened()
        values = arrays[rng.choice([name for name in arrays if arrays[name].size])]
        if rng.random() < 0.5:
            values.view(np.uint8)[rng.integers(0, values.nbytes, 3)] = rng.integers(0, 256, 3)
        else:
            values[rng.integers(0, values.size, 2)] = values[rng.integers(0, values.size)]
        use(arrays, header)


@pytest.mark.parametrize("name", list(opened()[0]))
def test_arrays_of_other_forms_are_refused(name):
    values = opened()[0][name]
    for form in (
        values[:-1],
        values[None],
        values.astype(np.float64),
        np.append(values, values[-1]),
    ):
        arrays, header = opened()
        arrays[name] = form
        assert not use(arrays, header), (name, form.dtype, form.shape)
    arrays, header = opened()
    del arrays[name]
    assert not use(arrays, header)


@pytest.mark.parametrize("value", VALUES)
def test_values_of_the_header(value):
    arrays, header = opened()
    header = {} if value == "missing" else {"n": value}
    assert not use(arrays, header)


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("rows", 0, -1), ("rows", 0, 4), ("rows", 1, 0), ("kinds", 0, 7), ("kinds", 0, 255),
        ("ptr", 2, 0), ("ptr", 1, 99), ("ptr", 0, -1), ("name_ptr", 1, 0), ("name_ptr", 1, 99),
        ("name_ptr", 0, -1), ("indptr", 1, -1), ("string_ptr", 1, 0), ("string_ptr", 2, 1000),
    ],
)  # fmt: skip
def test_what_would_be_read_out_of_bounds_is_refused(name, place, value):
    arrays, header = opened()
    if name == "rows" and value == 0:
        place = (
            int(arrays["ptr"][0]) + 1
        )  # the second entry of the first column, now the first again
    arrays[name][place] = value
    assert not use(arrays, header)


def test_values_that_no_kind_has_are_refused():
    arrays, _ = opened()
    for entry, (kind, value) in enumerate(zip(arrays["kinds"], arrays["values"], strict=True)):
        del value
        for wrong in {0: [1], 1: [2, -1], 3: [2**63 - 1], 4: [-1, 10**6], 5: [1], 6: [1]}.get(
            kind, []
        ):
            arrays, header = opened()
            arrays["values"][entry] = wrong
            assert not use(arrays, header), (kind, wrong)


def faulty():
    """Arrays and headers of which a string or a document is none."""
    for old, new in [(b"de", b"\xff\xff"), (b"y", b"x")]:  # no UTF-8; twice the same
        arrays, header = opened()
        place = arrays["string_blob"].tobytes().index(b"dexy") + b"dexy".index(old)
        arrays["string_blob"][place : place + len(old)] = list(new)
        yield arrays, header, "strings of metadata"
    for text in (b"[1]", b"{}}", b"\xff{}", b"{1:2}", b'{"a":NaN}', b'{"a":[-Infinity]}'):
        arrays, header = opened()
        arrays["blob"] = np.frombuffer(bytearray(text), np.uint8)
        arrays["indptr"][:] = [0, *[len(text)] * 4]
        yield arrays, header, "metadata is not that of a document"


def test_strings_and_json_of_a_file_are_checked_at_load():
    for arrays, header, message in faulty():
        with pytest.raises(CorruptFileError, match=message):
            MetadataStore.from_state(arrays, header)


def test_strings_and_json_of_a_large_mapped_file_are_checked_when_they_are_read(monkeypatch):
    monkeypatch.setattr("llmds_nb.pipeline.metadata.is_mapped", lambda array: True)
    monkeypatch.setattr("llmds_nb.pipeline.metadata._SMALL", 1)
    where = parsed_where({"lang": "de"})
    for arrays, header, message in faulty():
        store = MetadataStore.from_state(arrays, header)
        with pytest.raises(CorruptFileError, match=message):
            store.mask(where) if message[0] == "s" else store.documents([0])


def test_columns_that_differ_from_the_json_are_those_of_conditions():
    """A file may say what it likes, as its words may be others than those of its texts."""
    arrays, header = opened()
    place = arrays["string_blob"].tobytes().index(b"de")
    arrays["string_blob"][place : place + 2] = list(b"no")
    store = MetadataStore.from_state(arrays, header)
    store.check()
    assert store.documents([0])[0]["lang"] == "de"
    assert store.mask(parsed_where({"lang": "no"})).tolist() == [True, False, False, False]
