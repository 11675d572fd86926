"""Files that were changed and have right checksums: refused, or answered from safely."""

import io

import numpy as np
import pytest

from llmds_nb import CapacityError, CorruptFileError, KVCache, PagedAllocator
from llmds_nb._core.file_format import read
from llmds_nb.kv.kernels import state as s

from ..forged_files import forged
from .cases import IMAGE, T

VALUES = [-(2**62), -(2**31), -5, -2, -1, 0, 1, 7, 39, 40, 65536, 2**31 - 1, 2**31, 2**40, 2**62]


def _cache(eviction):
    cache = KVCache(40, T, key=b"key", max_events=30, eviction=eviction)
    cache.attach(1, [1, 2, 3, 4, 5], salt="a")
    cache.commit(1, 5)
    cache.fork(1, 2)
    cache.append(2, [6])
    cache.attach(3, [1, 2, 9], priority=1, extra=IMAGE)
    cache.commit(3, 3)
    cache.attach(4, [7] * 10, salt="a")
    cache.commit(4, 10)
    cache.detach(4)
    cache.pin([7] * 4, salt="a")
    cache.set_quota("q", 5)
    cache.attach(5, [1, 2, 3], salt="q")
    cache.commit(5, 3)
    cache.detach(5)
    cache.attach(5, [2, 1], salt="q")
    cache.reserve(5, 2)
    return cache


@pytest.fixture(scope="module", params=["lru", "path-lrfu"])
def saved(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("forged") / "cache"
    _cache(request.param).save(path)
    return read(path)


def _use(cache):
    """Whatever a caller may do; it ends, and what is left is whole."""
    cache.check()
    for tokens, salt in (([7] * 12, "a"), ([1, 2, 3, 4], "a"), ([1, 2], "q")):
        cache.match(tokens, salt=salt)
    for step in range(60):
        try:
            cache.attach(1000 + step, [step % 3] * (step % 9), salt="aq"[step % 2])
            cache.commit(1000 + step, step % 9)
            cache.append(1000 + step, [1, 2, 3])
        except CapacityError:
            cache.evict(3)
        live = [i for i in (*range(1, 6), *range(1000, 1060)) if i in cache]
        if step % 4 == 3:
            cache.detach(live[step % len(live)])
    cache.pending_copies()
    cache.compact()
    cache.stats()
    cache.reset()
    cache.check()


def _refused_or_right(data):
    """Whether a file is refused; if not, the cache works."""
    try:
        cache = KVCache.from_bytes(data)
    except CorruptFileError:
        return True
    _use(cache)
    return False


def _set(name, place, value):
    def edit(arrays, header):
        array = arrays[name]
        array[place] = np.clip(value, np.iinfo(array.dtype).min, np.iinfo(array.dtype).max)

    return edit


def test_the_file_itself_works(saved):
    assert not _refused_or_right(forged(*saved, lambda arrays, header: None))


@pytest.mark.parametrize("place", range(s.META_SIZE))
def test_no_count_or_offset_is_believed(saved, place):
    for value in VALUES:
        _refused_or_right(forged(*saved, _set("meta", place, value)))


@pytest.mark.parametrize("name", ["page", "hot", "seq", "dom"])
def test_no_column_is_believed(saved, name):
    array = saved[1][name]
    rng = np.random.default_rng(1)
    for column in range(array.shape[1]):
        for value in VALUES[:: 1 if column % 2 else 2]:
            row = rng.integers(min(len(array), 12))
            _refused_or_right(forged(*saved, _set(name, (row, column), value)))
        _refused_or_right(forged(*saved, _set(name, (slice(None), column), 3)))


@pytest.mark.parametrize("place", ["ARENA_TOP", "N_LEAVES", "N_FREE", "FREE_SEQUENCE"])
@pytest.mark.parametrize("value", [-2, 2**31, 2**40, 2**62])
def test_wild_counts_are_refused(saved, place, value):
    with pytest.raises(CorruptFileError, match=f"{place}.*{value}"):
        KVCache.from_bytes(forged(*saved, _set("meta", getattr(s, place), value)))


def test_the_samples_are_refused(saved):
    meta = saved[1]["meta"]
    free = np.flatnonzero(saved[1]["hot"][:, s.ID] < 0)[0]
    for edit in (
        _set("meta", 6, 2**40),
        _set("hot", (free, s.LENGTH), 2**40),
        _set("hot", (free, s.LENGTH), free),  # a cycle
        _set("hot", (free, s.TAIL_FREE), 1),
        _set("pool", slice(int(meta[s.PREFIX_TABLE]), None), -1),
        _set("page", (slice(None), s.PARENT), 0),
        _set("seq", (0, s.TABLE_CLASS), 40),
        _set("dom", (slice(None), s.ROOT0), 1),
        lambda arrays, header: header["domains"].append(["s", "62", header["domains"][0][2]]),
        lambda arrays, header: header["domains"][0].__setitem__(1, "7a"),
    ):
        with pytest.raises(CorruptFileError):
            KVCache.from_bytes(forged(*saved, edit))


FIELDS = {
    "n_pages": [0, -1, 2**24, 2**27, 2**62, 1.5, "4", None, [], True],
    "page_size": [0, 3, 4096, -4, None],
    "max_events": [-1, 2**25, 2**62, 3, None],
    "key": ["zz", "", None, "00" * 65],
    "dtype": ["O", "nothing", None, 3, "V8"],
    "eviction": ["none", 3, "fifo"],
    "kv_shape": [[-1], [2**62], [1, 2], 3, "a"],
    "prefix_sharing": [2, None, "yes", False],
    "domains": [
        [],
        None,
        [["i", "30", 0], ["i", "30", 1]],
        [["s", "61", -1]],
        [["s", "61", 2**40]],
    ],
    "pins": [[], [[1, -1]], [[1, 2**40]], [[1, 1], [1, 1]], [["1", 2]], None],
    "next_pin": [0, -1, "5", None],
    "extra": [None, [], {"symbols": [], "ranges": []}, {"symbols": [[0, 1, []]], "ranges": []}],
    "version": [0, 4, "2", None],
}


@pytest.mark.parametrize("field", FIELDS)
def test_a_wrong_header_field_is_refused(saved, field):
    for value in FIELDS[field]:
        with pytest.raises(CorruptFileError):
            KVCache.from_bytes(forged(*saved, lambda a, h, value=value: h.update({field: value})))
    if field != "max_events" and field != "extra":  # which version 1 lacks
        with pytest.raises(CorruptFileError):
            KVCache.from_bytes(forged(*saved, lambda a, h: h.pop(field)))


@pytest.mark.parametrize(
    "name", ["page", "tok", "pool", "hot", "seq", "dom", "meta", "pins", "events"]
)
def test_a_missing_or_misshapen_array_is_refused(saved, name):
    edits = {
        "dtype": lambda a: a.update({name: a[name].astype(np.float32)}),
        "flat": lambda a: a.update({name: a[name].reshape(1, -1, 1)}),
        "empty": lambda a: a.update({name: a[name][:0]}),
    }
    if name != "events":  # which version 1 lacks
        edits["missing"] = lambda a: a.pop(name)
    for edit in edits.values():
        with pytest.raises(CorruptFileError):
            KVCache.from_bytes(forged(*saved, lambda a, h, edit=edit: edit(a)))


def test_random_edits(saved):
    rng = np.random.default_rng(20)
    refused = 0
    names = [name for name, array in saved[1].items() if array.size]
    for _ in range(150):
        edits = []
        for _ in range(rng.integers(1, 4)):
            name = names[rng.integers(len(names))]
            place = tuple(rng.integers(n) for n in saved[1][name].shape)
            edits.append(_set(name, place, VALUES[rng.integers(len(VALUES))]))

        def edit(arrays, header, edits=edits):
            for each in edits:
                each(arrays, header)

        refused += _refused_or_right(forged(*saved, edit))
    assert 30 < refused < 150


@pytest.mark.parametrize(
    "header", [{"n_pages": 2**31 - 1}, {"n_pages": -1}, {"n_pages": "8"}, {"page_size": 3}]
)
def test_a_forged_allocator_is_refused(header):
    pool = PagedAllocator(8)
    pool.alloc(3)
    file = io.BytesIO()
    pool.save(file)
    file.seek(0)
    with pytest.raises(CorruptFileError):
        PagedAllocator.from_bytes(forged(*read(file), lambda a, h: h.update(header)))
