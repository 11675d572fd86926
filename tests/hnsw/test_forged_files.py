"""HNSW files that someone changed, with right checksums: refused, or a sound index."""

import contextlib
import functools
import io

import numpy as np
import pytest

from llmds_nb import HNSW, CorruptFileError
from llmds_nb._core.file_format import read_bytes, write
from llmds_nb.hnsw import persistence
from llmds_nb.hnsw.kernels.graph_fault import COUNT, PARENT, SEEN, links_fault, tree_fault

from .cases import CASES, MORE, QUERIES
from .samples import data

NAMES = list(CASES)
N_WIDE = 130
# With a prefilter; with consecutive ids and nothing dead; with sign codes.
WIDE = {
    "prefilter": {"quantize": None, "metric": "ip"},
    "cosine": {"metric": "cosine"},
}
SEEDS = range(75)  # of each of four configurations
NUMBERS = [-(2**63), -(2**31), -2, -1, 0, 1, 2, 65536, 2**31 - 1, 2**31, 2**62, 10**30]
OTHERS = [None, True, 1.5, "1", [], {}]


@functools.cache
def saved(name):
    index = CASES[name].make()
    if name == "HNSW-pca":
        index.tune(QUERIES, k=2, target_recall=0.5)
    return index.to_bytes()


@functools.cache
def saved_wide(name):
    index = HNSW(64, M=2, ef_construction=8, **WIDE[name])
    vectors = data(N_WIDE, 64)
    vectors[3] *= 1e4  # an outlier of the prefilter
    index.add(vectors)
    return index.to_bytes()


def forged(arrays, header):
    file = io.BytesIO()
    write(file, "HNSW", arrays, header)
    return file.getvalue()


def opened(name):
    """(arrays, header) of a file, to be changed."""
    _, arrays, header = read_bytes(saved(name))
    return {array: values.copy() for array, values in arrays.items()}, header


def use(saved, path=None):
    """Load it and call what reads or follows everything; whether it was loaded."""
    try:
        if path is None:
            index = HNSW.from_bytes(saved)
        else:
            path.write_bytes(saved)
            index = HNSW.load(path, mmap=True)
    except CorruptFileError:
        return False
    index.check()
    follow(index)
    index.check()
    return True


def follow(index):
    """Call what reads everything, or changes it."""
    if index.dim != QUERIES.shape[1]:
        queries, more = data(6, index.dim, 1), data(60, index.dim, 2)
    else:
        queries, more = QUERIES, MORE
    index.search(queries, 5)
    index.search(queries, 5, ef=90)
    index.search(queries, 90, exact=True)
    index.search(queries, 3, filter=np.arange(0, 90, 3))
    index.stats()
    index.add(more[:9])
    index.add(more, np.arange(10, 70))  # repairs
    index.remove([10, 11])
    index.compact()
    index.search(queries, 5)


@pytest.mark.parametrize("name", NAMES)
def test_unchanged_file(name):
    assert use(forged(*opened(name)))


EDITS = {
    "links to 65536": lambda a, h: a["links0"][:, 1:].fill(65536),
    "links to -2": lambda a, h: a["links0"][:, 1:].fill(-2),
    "links to n": lambda a, h: a["links0"][:, 1:].fill(h["graph"]["n"]),
    "links to one slot": lambda a, h: a["links0"][:, 1:].fill(3),
    "links to itself": lambda a, h: a["links0"][:, 1:].__setitem__(
        slice(None), np.arange(len(a["links0"]), dtype=np.int32)[:, None]
    ),
    "no links": lambda a, h: a["links0"].fill(0),
    "too many links": lambda a, h: a["links0"][:, 0].fill(9),
    "far too many links": lambda a, h: a["links0"][:, 0].fill(2**31 - 1),
    "-1 links": lambda a, h: a["links0"][0].fill(-1),
    "upper links to 65536": lambda a, h: a["links1"].fill(4) or a["links1"][:, 1:].fill(65536),
    "upper links to low slots": lambda a, h: (
        a["links1"][:, 0].fill(1),
        a["links1"][:, 1].fill(int((a["levels"] == 0).argmax())),
    ),
    "parents in a ring": lambda a, h: a["parent"].__setitem__(
        slice(None), np.roll(np.arange(len(a["parent"]), dtype=np.int32), 1)
    ),
    "parent -1": lambda a, h: a["parent"].fill(-1),
    "parent n": lambda a, h: a["parent"].fill(len(a["parent"])),
    "entry's parent": lambda a, h: a["parent"].__setitem__(
        h["graph"]["entry"], (h["graph"]["entry"] + 1) % len(a["parent"])
    ),
    "levels 255": lambda a, h: a["levels"].fill(255),
    "upper 0": lambda a, h: a["upper"].fill(0),
    "live 2": lambda a, h: a["live"].view(np.uint8).fill(2),
    "none live": lambda a, h: a["live"].fill(False),
    "ids equal": lambda a, h: a["ids"].fill(7),
    "ids -1": lambda a, h: a["ids"].fill(-1),
    "ids 2**62": lambda a, h: a["ids"].__setitem__(0, 2**62),
    "node_of -2": lambda a, h: a["node_of"].fill(-2),
    "node_of 2**31 - 1": lambda a, h: a["node_of"].fill(2**31 - 1),
    "node_of 0": lambda a, h: a["node_of"].fill(0),
    "node_of missing": lambda a, h: a.pop("node_of"),
    "differs": lambda a, h: a.update(
        node_of=np.where(a["node_of"] < 0, -1, a["node_of"] ^ 1).astype(np.int32)
    ),
    "next_id 0": lambda a, h: h["counters"].update(next_id=0),
    "next_id of an id": lambda a, h: h["counters"].update(next_id=int(a["ids"].max())),
    "n 0": lambda a, h: h["graph"].update(n=0),
    "n 1.0": lambda a, h: h["graph"].update(n=float(h["graph"]["n"])),
    "M": lambda a, h: h["settings"].update(M=5),
    "no M": lambda a, h: h["settings"].pop("M"),
    "another setting": lambda a, h: h["settings"].update(more=5),
    "dim": lambda a, h: h["settings"].update(dim=2**31 - 1),
    "coding": lambda a, h: h["graph"]["coding"].append(1),
    "no coding": lambda a, h: h["graph"].update(coding=None),
    "depth": lambda a, h: h["counters"].update(depth=[1, 0]),
    "no depth": lambda a, h: h["counters"].update(depth={}),
}


@pytest.mark.parametrize("edit", list(EDITS))
@pytest.mark.parametrize("name", NAMES)
def test_refused(name, edit):
    arrays, header = opened(name)
    EDITS[edit](arrays, header)
    assert not use(forged(arrays, header))


@pytest.mark.parametrize(("degree", "fault"), [(1, 0), (2, COUNT), (-1, COUNT)])
def test_a_row_is_read_no_further_than_it_has_places(degree, fault):
    links = np.array([[degree, 1], [1, 2], [1, 0]], np.int32)
    none, levels, nodes = np.zeros((0, 2), np.int32), np.zeros(3, np.uint8), np.zeros(0, np.int32)
    starts, children = np.array([0, 1, 2, 2], np.int32), np.array([1, 2], np.int32)
    span, seen, where = np.array([0, 3, 0]), np.zeros(SEEN, np.uint16), np.zeros(3, int)
    rows = np.full(3, -1, np.int32)
    found = links_fault(links, none, levels, rows, nodes, span, starts, children, seen, where)
    assert found == fault
    assert where.tolist() == [0, 0, degree] or not fault


def test_the_children_of_each_slot_are_those_that_name_it_as_parent():
    parent = np.array([2, 0, 2, 2, 0, 2], np.int32)
    nodes = np.array([-1, -1, -1, -1, -1, 2 * 2], np.int32)  # slot 5 is a duplicate of slot 2
    for node_of, of_2 in ((nodes[:0], [0, 3, 5]), (nodes, [0, 3])):
        starts, children, where = np.empty(7, np.int32), np.empty(6, np.int32), np.zeros(3, int)
        assert tree_fault(parent, node_of, 2, starts, children, where) == 0
        parts = [children[starts[i] : starts[i + 1]].tolist() for i in range(6)]
        assert parts == [[1, 4], [], of_2, [], [], []]


@pytest.mark.parametrize("child", [0, 3, 5])
def test_a_child_that_its_parent_has_no_link_to(child):
    parent, node_of = np.array([2, 0, 2, 2, 0, 2], np.int32), np.zeros(0, np.int32)
    links = np.array([[2, 1, 4, 9], [0] * 4, [3, 0, 3, 5], [0] * 4, [0] * 4, [0] * 4], np.int32)
    starts, children, where = np.empty(7, np.int32), np.empty(6, np.int32), np.zeros(3, int)
    tree_fault(parent, node_of, 2, starts, children, where)
    none, levels, rows = np.zeros((0, 4), np.int32), np.zeros(6, np.uint8), np.full(6, -1, np.int32)
    given = none, levels, rows, node_of, np.array([0, 6, 0]), starts, children
    assert links_fault(links, *given, np.zeros(SEEN, np.uint16), where) == 0
    row = links[2]
    row[1:][row[1:] == child] = 1
    assert links_fault(links, *given, np.zeros(SEEN, np.uint16), where) == PARENT
    assert where.tolist() == [child, 0, 2]


def _another_parent(arrays, header):
    """Give the last leaf another parent, from which there is no link to it, and no ring."""
    parent, entry = arrays["parent"], header["graph"]["entry"]
    nodes = np.flatnonzero(arrays.get("node_of", np.full(len(parent), -1)) == -1)
    leaf = next(i for i in nodes[::-1] if i not in parent and i != entry)
    links = arrays["links0"]
    parent[leaf] = next(
        at for at in nodes if at != leaf and leaf not in links[at, 1 : 1 + links[at, 0]]
    )


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_another_parent, "parent of slot"),
        (lambda a, h: a["upper"].__setitem__(-1, a["upper"][-1] + 1), "upper of slot"),
        (lambda a, h: a["upper"].__setitem__(0, a["upper"][0] - 1), "upper of slot"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_wrong_with_one_slot_is_said(name, edit, message):
    arrays, header = opened(name)
    edit(arrays, header)
    with pytest.raises(CorruptFileError, match=message):
        HNSW.from_bytes(forged(arrays, header))


@pytest.mark.parametrize("name", NAMES)
def test_vectors_that_are_no_numbers_are_refused(name):
    for array in ("vectors", "factors", "offset", "basis"):
        arrays, header = opened(name)
        values = arrays[array]
        if values.size and values.dtype != np.uint8:
            values.view(f"u{values.itemsize}").fill(0x7F80_0000 if values.itemsize == 4 else 0x7C00)
            assert not use(forged(arrays, header)), array


@pytest.mark.parametrize("name", NAMES)
def test_arrays_of_other_forms_are_refused(name):
    for array, values in opened(name)[0].items():
        forms = [values[:-1], values[None], np.concatenate([values, values]), values.view(np.uint8)]
        forms.append(values.astype(np.float64))
        for form in forms:
            arrays, header = opened(name)
            arrays[array] = form
            changed = form.shape != values.shape or form.dtype != values.dtype
            same = not changed or (array == "live" and not values.size)
            assert use(forged(arrays, header)) <= same, (array, form.dtype, form.shape)
        arrays, header = opened(name)
        del arrays[array]
        assert not use(forged(arrays, header)) or array == "rows", array


@pytest.mark.parametrize("name", NAMES)
def test_values_of_the_header(name):
    _, header = opened(name)
    for group, fields in header.items():
        for field in fields if isinstance(fields, dict) else ():
            for value in [*NUMBERS, *OTHERS, "missing"]:
                arrays, changed = opened(name)
                if value == "missing":
                    del changed[group][field]
                else:
                    changed[group][field] = value
                use(forged(arrays, changed))
        for value in [*OTHERS, "missing"]:
            arrays, changed = opened(name)
            changed[group] = 99 if group == "version" else value
            if value == "missing":
                del changed[group]
            assert not use(forged(arrays, changed)), (group, value)
    for place in range(len(header["graph"]["coding"])):
        for value in [*NUMBERS, *OTHERS, 1e300]:
            arrays, changed = opened(name)
            changed["graph"]["coding"][place] = value
            use(forged(arrays, changed))


def edited(rng, arrays, n):
    """Change one of the arrays at random."""
    array = rng.choice([each for each, values in arrays.items() if values.size])
    values = arrays[array].reshape(-1)
    places = rng.integers(0, values.size, rng.choice([1, 3, values.size]))
    if rng.random() < 0.5:
        values.view(np.uint8)[rng.integers(0, values.nbytes, 3)] = rng.integers(0, 256, 3)
    elif values.dtype.kind in "iu":
        high = int(np.iinfo(values.dtype).max)
        one = [0, 1, 2, high, high // 2, values.size, n]
        values[places] = np.array([min(int(i), high) for i in one])[rng.integers(0, 7)]
    else:
        values[places] = values[rng.integers(0, values.size)]


@pytest.mark.parametrize("name", NAMES)
def test_random_edits(name):
    for seed in SEEDS:
        arrays, header = opened(name)
        edited(np.random.default_rng(seed), arrays, header["graph"]["n"])
        use(forged(arrays, header))


@pytest.mark.parametrize("name", NAMES)
def test_links_checked_by_several_threads(name, monkeypatch):
    def refused_links(seed):
        arrays, header = opened(name)
        if seed:
            array = ("links0", "links1", "parent")[seed % 3]
            few = {array: arrays[array]} if arrays[array].size else {"links0": arrays["links0"]}
            edited(np.random.default_rng(seed), few, header["graph"]["n"])
        try:
            HNSW.from_bytes(forged(arrays, header))
        except CorruptFileError as error:
            return str(error)
        return None

    by_one = [refused_links(seed) for seed in SEEDS]
    assert by_one[0] is None and len({*by_one}) > 10
    monkeypatch.setattr(persistence, "_LINKS_PER_THREAD", 1)
    monkeypatch.setattr(persistence.validation, "threads", lambda value: 3)
    assert [refused_links(seed) for seed in SEEDS] == by_one


@pytest.mark.parametrize("name", list(WIDE))
def test_random_edits_of_mapped_files(name, tmp_path):
    for seed in SEEDS[:50]:
        _, arrays, header = read_bytes(saved_wide(name))
        arrays = {each: values.copy() for each, values in arrays.items()}
        if seed:
            edited(np.random.default_rng(seed), arrays, N_WIDE)
        assert use(forged(arrays, header), path=tmp_path / "index") or seed


@pytest.mark.parametrize("name", list(WIDE))
@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38, 1e10])
def test_components_of_mapped_vectors_are_read_where_they_are_few(name, value, tmp_path):
    _, arrays, header = read_bytes(saved_wide(name))
    vectors = arrays["vectors"].copy()
    vectors[8, 5] = value
    assert not use(forged({**arrays, "vectors": vectors}, header), path=tmp_path / "index")


@pytest.mark.parametrize("value", [np.nan, 1e10, -1e18])
def test_components_that_are_not_read_harm_nothing(value, tmp_path, monkeypatch):
    monkeypatch.setattr("llmds_nb.hnsw.persistence._SMALL", 0)
    for name in WIDE:
        _, arrays, header = read_bytes(saved_wide(name))
        vectors = arrays["vectors"].copy()
        vectors[::2] = value
        path = tmp_path / name
        path.write_bytes(forged({**arrays, "vectors": vectors}, header))
        index = HNSW.load(path, mmap=True)
        with contextlib.suppress(CorruptFileError):  # where vectors are encoded anew
            follow(index)
        ids, _ = index.search(data(6, 64, 1), 5)
        assert all(id_ == -1 or id_ in index for id_ in ids.ravel().tolist())


@pytest.mark.parametrize("store", ["float32", "float16", None])
@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_sign_codes_are_those_of_the_rows(store, metric):
    clustered = np.repeat(data(150, 256), 8, axis=0) + 0.5 * data(1200, 256, 1)
    index = HNSW(256, M=4, ef_construction=8, quantize="sq8", store=store, metric=metric)
    index.add(clustered)
    _, arrays, header = read_bytes(index.to_bytes())
    assert len(arrays["sieve"]), "there are sign codes"
    HNSW.from_bytes(forged(arrays, header)).check()
    sieve = arrays["sieve"].copy()
    sieve[700, 3] ^= 4
    assert not use(forged({**arrays, "sieve": sieve}, header))


def test_an_empty_array_has_its_dtype():
    for name, made in (("node_of", np.zeros(0)), ("live", np.zeros(0, np.float32))):
        _, arrays, header = read_bytes(saved_wide("cosine"))
        assert not use(forged({**arrays, name: made}, header))


@pytest.mark.parametrize("name", ["wild", "sieve"])
def test_codes_of_a_prefilter(name):
    _, arrays, header = read_bytes(saved_wide("prefilter"))
    arrays = {each: values.copy() for each, values in arrays.items()}
    changed = {"wild": arrays["wild"].view(np.uint8) + 1, "sieve": arrays["sieve"][:, :-1]}
    arrays[name] = changed[name] if name == "sieve" else changed[name].view(np.bool_)
    assert arrays[name].size
    assert not use(forged(arrays, header))


def test_small_files():
    for n in (0, 1):
        index = HNSW(8)
        if n:
            index.add(data(1, 8), [5])
        _, arrays, header = read_bytes(index.to_bytes())
        assert use(forged(arrays, header))
        for field, value in {"n": 1 - n, "entry": 1, "top": 3, "n_upper": 1}.items():
            changed = {**header, "graph": {**header["graph"], field: value}}
            assert not use(forged(arrays, changed)), (n, field)
