"""What becomes of a file that somebody changed: refused, or an object that works."""

import contextlib
import copy
import math
import os

import numpy as np

import llmds_nb
from llmds_nb import CapacityError, CorruptFileError
from llmds_nb._core.storage import PartError

from ..cases import cases

MODES = {
    "read": {},
    "mapped": {"mmap": True},
    "mapped and verified": {"mmap": True, "verify": True},
}
REFUSED, SOUND = "refused", "sound"
# What methods of a sound object raise for arguments that its content does not suit.
DOCUMENTED = (CapacityError, KeyError, ValueError, IndexError, RuntimeError)
_OTHER_KIND = "as those of this pipeline are"  # a TypeError: an edit may decide what ids are
_BEYOND = "index is out of bounds"  # what kernels with NUMBA_BOUNDSCHECK=1 say


def loaded(structure, data, parts, mode, path):
    """The object that a file of these bytes holds, or None where it is refused."""
    load = getattr(llmds_nb, structure).load
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # an object that is mapped keeps the old file
    path.write_bytes(data)
    try:
        return load(path, **MODES[mode], **parts)
    except (CorruptFileError, PartError) as error:
        _assert_within(error)
        return None


def is_same(name, made, answers):
    """Whether an object answers as that of its case does."""
    made.check()
    return cases()[name].observe(made) == answers


def look(name, made):
    """Use an object without a change, and assert that what it answers is possible."""
    made.check()
    found = _tried(cases()[name].observe, made)
    _assert_numbers(found)
    _tried(_assert_valid, made)
    made.check()
    return repr(found)


def use(name, made, rng):
    """Use all of an object, change it in three ways, store it again; `look` at each."""
    case = cases()[name]
    first = look(name, made)
    assert look(name, made) == first, "two answers to one question"
    changes = list(case.mutations.values())
    for number in rng.permutation(len(changes))[:3]:
        changed = copy.copy(made)
        _tried(changes[number], changed)
        look(name, changed)
    again = type(made).from_bytes(made.to_bytes(), **made._parts())
    assert look(name, again) == first, "a copy answers otherwise"


def _tried(function, made):
    try:
        return function(made)
    except DOCUMENTED as error:
        if isinstance(error, CorruptFileError):
            raise
        _assert_within(error)
        return repr(error)
    except TypeError as error:
        if _OTHER_KIND not in str(error):
            raise
        return repr(error)


def _assert_within(error):
    """No kernel has read beyond its arrays, which a load may not take for its check."""
    while error is not None:
        assert str(error) != _BEYOND, "a kernel reads or writes beyond an array"
        error = error.__context__


def _assert_numbers(value):
    """No answer is a NaN, which memory that nobody wrote may hold."""
    if isinstance(value, float):
        assert not math.isnan(value), "an answer is not a number"
    elif isinstance(value, np.ndarray):
        assert value.dtype.kind != "f" or not np.isnan(value).any(), "an answer is not a number"
    elif isinstance(value, dict):
        _assert_numbers(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            _assert_numbers(item)


def _assert_valid(made):
    check = _VALID.get(type(made).__name__)
    if check is not None:
        check(made)


def _valid_neighbors(index):
    queries = np.random.default_rng(1).standard_normal((3, index.dim)).astype(np.float32)
    for options in ({}, {"exact": True}):
        ids, distances = index.search(queries, 7, **options)
        for found, far in zip(ids, distances, strict=True):
            found, far = found[found >= 0], far[found >= 0]
            assert all(id_ in index for id_ in found.tolist())
            assert len(set(found.tolist())) == len(found) and (np.diff(far) >= 0).all()
    if len(index):
        assert (ids[:, 0] >= 0).all(), "nothing is found"


def _valid_hits(index):
    ids, scores = index.search(["red fox sea blue", "car3 new1"], 9)
    for found, score in zip(ids, scores, strict=True):
        found, score = found[found >= 0], score[found >= 0]
        assert all(id_ in index for id_ in found.tolist())
        assert len(set(found.tolist())) == len(found)
        assert np.isfinite(score).all() and (np.diff(score) <= 0).all()


def _valid_cache(cache):
    for seq_id in [i for i in range(200) if i in cache]:
        pages = cache.page_table(seq_id).indices
        assert ((pages >= 0) & (pages < cache.n_pages)).all()
        assert len(pages) * cache.page_size >= len(cache.tokens(seq_id))
    for salt in ("a", 0, "q"):
        assert 0 <= cache.match([7] * 10, salt=salt) <= 10


_VALID = {"HNSW": _valid_neighbors, "InvertedIndex": _valid_hits, "KVCache": _valid_cache}
