"""Pipeline files that someone changed, with right checksums: refused, or a sound pipeline."""

import io

import numpy as np
import pytest

from llmds_nb import CorruptFileError, RetrievalPipeline
from llmds_nb._core.file_format import read_bytes, write

from .samples import MATRIX, small

VALUES = [-(2**63), -2, -1, 0, 1, 2, 2**31, 2**62, 10**30, None, True, 1.5, "1", [], {}, "missing"]


def opened():
    """(arrays, header) of a file, to be changed."""
    _, arrays, header = read_bytes(small().to_bytes())
    return {array: values.copy() for array, values in arrays.items()}, header


def use(arrays, header):
    """Load it and call what reads or changes everything; whether it was loaded."""
    file = io.BytesIO()
    write(file, "RetrievalPipeline", arrays, header)
    try:
        pipeline = RetrievalPipeline.from_bytes(file.getvalue())
    except CorruptFileError:
        return False
    pipeline.check()
    pipeline.search("red sky", vectors=np.ones(2))
    pipeline.search(["red", "sea"], k=3, vectors=MATRIX[:2])
    pipeline.get(np.arange(5))
    pipeline.stats()
    pipeline.add([3, 9], ["grey sea", "new fox"], MATRIX[:2])
    pipeline.remove([1, 2])
    pipeline.search("red sky", vectors=np.ones(2))
    pipeline.check()
    return True


def test_unchanged_file():
    assert use(*opened())


@pytest.mark.parametrize("part", ["index/dense/", "index/texts/"])
def test_random_edits(part):
    for seed in range(100):
        rng = np.random.default_rng(seed)
        arrays, header = opened()
        own = [name for name, values in arrays.items() if values.size and name.startswith(part)]
        name = rng.choice(own)
        values = arrays[name].reshape(-1)
        if rng.random() < 0.5:
            values.view(np.uint8)[rng.integers(0, values.nbytes, 3)] = rng.integers(0, 256, 3)
        else:
            values[rng.integers(0, values.size, 2)] = values[rng.integers(0, values.size)]
        use(arrays, header)


@pytest.mark.parametrize("part", ["index/dense/", "index/texts/"])
def test_arrays_of_other_forms_are_refused(part):
    for name, values in opened()[0].items():
        if not name.startswith(part):
            continue
        for form in (values[:-1], values[None], values.astype(np.float64)):
            if form.shape == values.shape and form.dtype == values.dtype:
                continue
            arrays, header = opened()
            arrays[name] = form
            assert not use(arrays, header), (name, form.dtype, form.shape)


def test_values_of_the_header():
    _, header = opened()
    groups = [("settings", header["settings"]), ("index", header["index"])]
    groups += [("parts", header["index"]["parts"]), ("texts", header["index"]["texts"])]
    for group, fields in groups:
        for field in fields:
            for value in VALUES:
                arrays, changed = opened()
                at = changed if group in changed else changed["index"]
                if value == "missing":
                    del at[group][field]
                else:
                    at[group][field] = value
                use(arrays, changed)
