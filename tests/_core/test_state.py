"""A declared state: what is packed in Python is what kernels see."""

import copy
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, strategies as st

from llmds_nb._core.arrays import address_of
from llmds_nb._core.jit import kernel
from llmds_nb._core.state import ANY, FLOAT, INT, Handle, State, array, n_words, pack, viewer
from tests.interrupts import interrupt_every_line


class Links(State):
    """Nested in Graph."""

    row = array(np.int32, ANY, 3)
    block = array(np.uint8, ANY)


class Graph(State):
    """Every kind of field."""

    vectors = array(None, ANY, ANY)
    links = Links
    n = INT
    step = FLOAT
    codes = array(None, ANY)
    meta = array(np.int64, 4)
    cube = array(np.bool_, ANY, 2, ANY)


class Counts(State):
    """All fields of one type, which Numba has another named tuple for."""

    a = INT
    b = INT


graph_at, counts_at = viewer(Graph), viewer(Counts)
DTYPES = [np.float32, np.uint16, np.uint8, np.float64, np.int64]


def a_graph(n=5, m=4, vectors=np.float32, codes=np.int16, step=0.25):
    rng = np.random.default_rng(n * 10 + m)
    links = Links(row=rng.integers(0, 99, (n, 3)).astype(np.int32), block=np.zeros(m, np.uint8))
    return Graph(
        vectors=rng.integers(0, 99, (n, m)).astype(vectors), links=links, n=n, step=step,
        codes=rng.integers(0, 99, m).astype(codes), meta=np.arange(4),
        cube=rng.random((n, 2, m)) < 0.5,
    )  # fmt: skip


def call(kernel, state, *args):
    handle = Handle(state)  # alive until the kernel returns
    return kernel(handle.address, *args)


@kernel
def seen(handle, vectors, codes):
    g = graph_at(handle, vectors, codes)
    shapes = g.vectors.shape, g.links.row.shape, g.links.block.shape, g.cube.shape, g.meta.shape
    sums = g.vectors.sum(), g.links.row.sum(), g.codes.sum(), g.meta.sum(), g.cube.sum()
    return shapes, sums, g.n, g.step


@pytest.mark.parametrize("vectors", DTYPES)
@pytest.mark.parametrize("codes", DTYPES[:3])
def test_a_kernel_sees_what_was_packed(vectors, codes):
    for n, m in ((5, 4), (1, 1), (0, 0), (0, 7)):
        g = a_graph(n, m, vectors, codes)
        shapes, sums, count, step = call(seen, g, g.vectors, g.codes)
        arrays = g.vectors, g.links.row, g.links.block, g.cube, g.meta
        assert shapes == tuple(a.shape for a in arrays)
        arrays = g.vectors, g.links.row, g.codes, g.meta, g.cube
        assert sums == tuple(a.sum() for a in arrays)
        assert (count, step) == (n, g.step)


@kernel(borrow=True)
def fill(handle, vectors, codes, value):
    g = graph_at(handle, vectors, codes)
    for i in range(g.links.row.shape[0]):
        for j in range(3):
            g.links.row[i, j] = value + 3 * i + j
    g.cube[g.n - 1, 1, 2] = True


def test_a_kernel_writes_into_the_arrays_themselves():
    g = a_graph()
    g.cube[:] = False
    call(fill, g, g.vectors, g.codes, 7)
    assert (g.links.row == 7 + np.arange(15).reshape(5, 3)).all()
    assert np.argwhere(g.cube).tolist() == [[4, 1, 2]]


@kernel(borrow=True)
def total(handle):
    counts = counts_at(handle)
    return counts.a, counts.b


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
def test_integers_keep_all_their_bits(a, b):
    assert call(total, Counts(a, b)) == (a, b)


@pytest.mark.parametrize("step", [0.1, -0.0, np.inf, 5e-324])
def test_floats_keep_all_their_bits(step):
    g = a_graph(step=step)
    *_, got = call(seen, g, g.vectors, g.codes)
    assert np.float64(got).tobytes() == np.float64(step).tobytes()


def test_the_words_of_a_state_count_addresses_free_lengths_and_scalars():
    assert n_words(Counts) == 2
    assert n_words(Links) == (1 + 1) + (1 + 1)
    assert n_words(Graph) == 3 + n_words(Links) + 2 + 2 + 1 + 3
    words = pack(a_graph().links)
    assert words.dtype == np.int64 and words.tolist()[1::2] == [5, 4]


def test_states_can_be_packed_into_the_rows_of_a_table():
    table = np.zeros((3, n_words(Counts)), np.int64)
    for i in range(3):
        table[i] = pack(Counts(i, 10 * i))
    for i in range(3):
        assert total(address_of(table) + i * table.strides[0]) == (i, 10 * i)


BAD = [
    ({"meta": np.zeros(5, np.int64)}, r"Graph.meta must be .* int64\[4\], not int64\[5\]"),
    ({"meta": np.zeros(4, np.int32)}, r"Graph.meta must be .* int64\[4\], not int32\[4\]"),
    ({"meta": np.zeros((4, 1), np.int64)}, r"Graph.meta"),
    ({"meta": np.zeros(8, np.int64)[::2]}, r"C-contiguous"),
    ({"meta": [0, 1, 2, 3]}, r"Graph.meta must be .* not \[0, 1, 2, 3\]"),
    ({"cube": np.zeros((5, 3, 4), np.bool_)}, r"bool\[., 2, .\]"),
    ({"vectors": np.zeros(3)}, r"Graph.vectors must be a C-contiguous array any dtype\[., .\]"),
    ({"links": (1, 2)}, r"Graph.links must be a Links, not tuple"),
    ({"n": "many"}, r"many"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_what_does_not_fit_the_declaration_is_refused(change, message):
    handle = Handle(a_graph())
    before = handle.words.copy()
    with pytest.raises((TypeError, ValueError), match=message):
        handle.replace(a_graph()._replace(**change))
    assert (handle.words == before).all()
    inner = a_graph().links._replace(row=np.zeros((2, 2), np.int32))
    with pytest.raises(TypeError, match=r"Graph.links.row must be"):
        Handle(a_graph()._replace(links=inner))


def test_a_handle_keeps_its_address_when_its_state_is_replaced():
    handle = Handle(Counts(1, 2))
    address = handle.address
    handle.replace(Counts(3, 4))
    assert handle.address == address and total(address) == (3, 4)
    assert handle.state == Counts(3, 4)


class Replaced(Handle):
    """A handle whose words are always those of its state."""

    def check(self):
        assert (self.words == pack(self.state)).all()


def test_no_interrupt_leaves_words_that_are_not_those_of_the_state():
    """Words of arrays that are gone would be pointers to freed memory."""
    graphs = a_graph(), a_graph()
    lines = interrupt_every_line(
        lambda: Replaced(graphs[0]),
        lambda handle: handle.replace(graphs[1]),
        lambda handle: handle.state is graphs[1],
    )
    assert lines > 20


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda handle: pickle.loads(pickle.dumps(handle))]
)
def test_a_copy_of_a_handle_shares_no_memory(copied):
    handle = Handle(a_graph())
    other = copied(handle)
    assert other.address != handle.address
    other.state.links.row[:] = -1
    assert (handle.state.links.row >= 0).all()
    g = other.state
    assert seen(other.address, g.vectors, g.codes)[1][1] == -15


CACHED = """
import sys
sys.path.insert(0, {folder!r})
import own
handle = own.Handle(own.Ring(own.np.arange(3) + 5, 1))
print(own.first(handle.address), sum(own.first.stats.cache_hits.values()))
"""
OWN = """
import numpy as np
from llmds_nb._core.jit import kernel
from llmds_nb._core.state import ANY, INT, Handle, array, State, viewer
class Ring(State):
    item = array(np.int64, ANY)
    start = INT
ring_at = viewer(Ring)
@kernel
def first(handle):
    ring = ring_at(handle)
    return ring.item[ring.start]
"""


def test_kernels_over_a_state_are_cached_on_disk(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    code = CACHED.format(folder=str(tmp_path))
    for hits in "01":
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=env
        )
        assert result.stdout.split() == ["6", hits], result.stderr
