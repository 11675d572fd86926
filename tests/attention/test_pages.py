"""Keys and values to and from pages."""

import numpy as np
import pytest

from llmds_nb.attention import gather_pages, write_pages, write_pages_unchecked


def bfloat(x):
    """The nearest bfloat16 of float32, of two as near the even one, by integers of 64 bits."""
    bits = np.atleast_1d(x).astype(np.float32).view(np.uint32).astype(np.int64)
    low, high = bits & 0xFFFF, bits >> 16
    high += (low > 0x8000) | ((low == 0x8000) & (high & 1 == 1))
    return high.astype(np.uint16)


def hard_numbers():
    """float32 at, between and around the numbers of 16 bits, of every size."""
    rng = np.random.default_rng(0)
    every = np.arange(2**16, dtype=np.uint16)
    half = every.view(np.float16).astype(np.float32)
    half = half[np.isfinite(half)]
    brain = (every.astype(np.uint32) << 16).view(np.float32)
    brain = brain[np.isfinite(brain)]
    with np.errstate(over="ignore"):
        between = [(each[:-1] / 2 + each[1:] / 2) for each in (np.sort(half), np.sort(brain))]
        near = [np.nextafter(each, np.float32(s)) for each in between for s in (-np.inf, np.inf)]
    random = rng.integers(0, 2**32, 10_000, np.uint32).view(np.float32)
    special = np.float32([65504, 65519.996, 65520, 65536, np.inf, -np.inf, 0.0, -0.0])
    found = np.concatenate([half, brain, *between, *near, random[~np.isnan(random)], special])
    return np.concatenate([found, -found])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint16])
def test_rounding(dtype):
    numbers = hard_numbers()
    pages = np.zeros((2, 1, 1, 1, numbers.size), dtype)
    rows = numbers.reshape(1, 1, -1)
    write_pages(*pages, rows, rows, [0])
    with np.errstate(over="ignore"):
        wanted = bfloat(numbers) if dtype == np.uint16 else numbers.astype(dtype)
    for each in pages:
        bits = each.reshape(-1).view(np.uint32 if dtype == np.float32 else np.uint16)
        assert (bits == wanted.view(bits.dtype)).all()
    back = gather_pages(pages[0], [0], 1)
    exact = wanted
    if dtype == np.uint16:
        exact = (wanted.astype(np.uint32) << 16).view(np.float32)
    assert (back.reshape(-1) == exact.astype(np.float32)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint16])
def test_nan_stays_nan(dtype):
    rows = np.uint32([0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000]).view(np.float32)
    pages = np.zeros((2, 1, 1, 1, 5), dtype)
    write_pages(*pages, rows.reshape(1, 1, 5), rows.reshape(1, 1, 5), [0])
    assert np.isnan(gather_pages(pages[1], [0], 1)).all()


@pytest.mark.parametrize("slot_dtype", [np.int32, np.int64, np.uint8])
def test_every_slot_and_no_other(slot_dtype):
    rng = np.random.default_rng(1)
    k_pages = np.full((5, 3, 4, 6), 7, np.float32)
    v_pages = np.full((5, 3, 4, 2), 7, np.float32)
    slots = rng.permutation(20)[:9].astype(slot_dtype)
    k, v = (rng.standard_normal((9, 3, width), np.float32) for width in (6, 2))
    write_pages(k_pages, v_pages, k, v, slots)
    for pages, rows in ((k_pages, k), (v_pages, v)):
        flat = pages.transpose(0, 2, 1, 3).reshape(20, 3, -1)
        assert (flat[slots] == rows).all()
        assert (np.delete(flat, slots, axis=0) == 7).all()


def test_strides_of_rows():
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((6, 2, 8), np.float32)
    turned = np.ascontiguousarray(rows.transpose(1, 0, 2)).transpose(1, 0, 2)
    spaced = np.repeat(rows, 2, axis=2)[:, :, ::2]
    read_only = rows.copy()
    read_only.flags.writeable = False
    slots = np.arange(6, dtype=np.int64)
    made = []
    for each in (rows, turned, spaced, read_only):
        pages = np.zeros((2, 2, 2, 4, 8), np.float32)
        write_pages(*pages, each, each, slots)
        made.append(pages)
        write_pages_unchecked(*pages, each, each, slots)
        made.append(pages)
    assert all((each == made[0]).all() for each in made)
    assert (made[0][0].transpose(0, 2, 1, 3).reshape(8, 2, 8)[:6] == rows).all()


def test_rows_that_are_parts_of_the_pages():
    """Tokens move along by one slot, each as it was before; then keys to where values are."""
    pages = np.arange(2 * 8 * 4, dtype=np.float32).reshape(2, 1, 1, 8, 4)
    before = pages.copy()
    write_pages(*pages, *pages[:, 0].transpose(0, 2, 1, 3)[:, :7], range(1, 8))
    assert (pages[:, 0, 0, 1:] == before[:, 0, 0, :7]).all()
    before = pages.copy()
    write_pages(*pages, *pages[::-1, 0].transpose(0, 2, 1, 3), range(8))
    assert (pages == before[::-1]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint16])
def test_infinities_stay_infinite(dtype):
    rows = np.float32([[[np.inf, -np.inf, 3e38, -1.0]]])
    pages = np.zeros((2, 1, 1, 1, 4), dtype)
    write_pages(*pages, rows, rows, [0])
    top = np.inf if dtype == np.float16 else gather_pages(pages[0], [0], 1)[0, 0, 2]
    assert top > 2.9e38
    assert gather_pages(pages[1], [0], 1)[0, 0].tolist() == [np.inf, -np.inf, top, -1.0]


def test_gather():
    rng = np.random.default_rng(3)
    pages = rng.standard_normal((7, 2, 4, 5), np.float32)
    table, out = [6, 0, 3, 99], np.full((2, 10, 5), 7, np.float32)
    assert gather_pages(pages, table, 10, out) is out
    wanted = pages[[6, 0, 3]].transpose(1, 0, 2, 3).reshape(2, 12, 5)[:, :10]
    assert (out == wanted).all()
    assert gather_pages(pages, [], 0).shape == (2, 0, 5)


def test_refused():
    pages = np.zeros((2, 3, 2, 4, 8), np.float32)
    rows, slots = np.ones((2, 2, 8), np.float32), np.arange(2)
    frozen = pages[0].copy()
    frozen.flags.writeable = False
    cases = [
        (ValueError, r"slots must be in \[0, 12\) .* not 12", (*pages, rows, rows, [1, 12])),
        (ValueError, "not -1", (*pages, rows, rows, [-1, 2])),
        (TypeError, "slots must be integers", (*pages, rows, rows, [0.0, 1.0])),
        (ValueError, "one-dimensional", (*pages, rows, rows, [[0, 1]])),
        (ValueError, "slots must be numbers, or rows", (*pages, rows, rows, [[0], [1, 2]])),
        (ValueError, r"k must have shape \[3, 2, 8\], not \[2, 2, 8\]",
         (*pages, rows, rows, [0, 1, 2])),
        (ValueError, "v must have shape", (*pages, rows, rows[:, :1], slots)),
        (TypeError, "v must be float32, not float64", (*pages, rows, rows.astype(float), slots)),
        (ValueError, "read-only", (frozen, pages[1], rows, rows, slots)),
        (TypeError, "int32", (pages[0].view(np.int32), pages[1], rows, rows, slots)),
        (TypeError, ">f4", (*pages.astype(">f4"), rows, rows, slots)),
        (TypeError, "k_pages must be an array", (pages[0].tolist(), pages[1], rows, rows, slots)),
    ]  # fmt: skip
    for error, message, args in cases:
        with pytest.raises(error, match=message):
            write_pages(*args)
    for error, message, args in [
        (ValueError, r"\[0, 3\), not 3", (pages[0], [0, 3], 5)),
        (ValueError, "kv_len must be <= 8, not 9", (pages[0], [0, 1], 9)),
        (TypeError, "block_row", (pages[0], [0.5], 1)),
        (ValueError, "block_row must be numbers, or rows", (pages[0], [[0], [1, 2]], 1)),
        (ValueError, "out must have shape", (pages[0], [0], 1, np.zeros((2, 2, 8), np.float32))),
    ]:
        with pytest.raises(error, match=message):
            gather_pages(*args)
    assert (pages == 0).all()
