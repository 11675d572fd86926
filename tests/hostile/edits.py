"""Edits that an attacker makes in a file, whose checksums are then made right."""

import copy
import io

import numpy as np

from llmds_nb._core import file_format

NUMBERS = (
    -(2**63), -(2**62), -(2**31) - 1, -(2**31), -5, -2, -1, 0, 1, 2, 3, 7, 16, 40, 127, 128, 255,
    256, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 7, 2**32, 2**40, 2**62, 2**63 - 1, 2**63,
    2**64 - 1,
)  # fmt: skip
REALS = (np.nan, np.inf, -np.inf, 0.0, -0.0, -1.0, 1e-45, 3e38, 1e300, 0.5)
VALUES = (
    *NUMBERS, 10**400, 0.5, -1.5, 1e300, 1e-300, None, True, False, "", "x", "-1", "\ud800",
    "0" * 5000, [], [1], [[]], {}, {"a": 1},
)  # fmt: skip
DTYPES = ("?", "u1", "i1", "u2", "i2", "f2", "u4", "i4", "f4", "u8", "i8", "f8")


def written(data):
    """(structure, arrays, header) of the bytes of a file."""
    return file_format.read_bytes(data)


def to_bytes(structure, arrays, header):
    """The bytes of a file with right checksums."""
    file = io.BytesIO()
    file_format.write(file, structure, arrays, header)
    return file.getvalue()


def edited(rng, file, others):
    """The bytes of a file, as `written` gives it, with one to three edits.

    Some edits take arrays and values of `others`, files of the same class.
    """
    structure, arrays, header = file
    arrays, header = dict(arrays), copy.deepcopy(header)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        edit = _EDITS[rng.integers(len(_EDITS))]
        edit(rng, arrays, header, others)
    return to_bytes(structure, arrays, header)


def simple(file, share):
    """The bytes of a file with one simple edit, of all that there are the one at a share of them.

    Each place of the header gets each value, or is missing; the first, middle and last item, and
    all items, of each array get each number.
    """
    structure, arrays, header = file
    header, items = copy.deepcopy(header), []
    fields = [(*place, value) for place in _places(header) for value in (KeyError, *VALUES)]
    for name, array in arrays.items():
        if array.ndim and array.size:
            numbers = REALS if array.dtype.kind == "f" else (*NUMBERS, array.size, len(array))
            places = [0, array.size // 2, array.size - 1, slice(None)]
            items += [(name, place, number) for place in places for number in numbers]
    chosen = int(share * (len(fields) + len(items)))
    if chosen < len(fields):
        container, key, value = fields[chosen]
        if value is KeyError:
            del container[key]
        else:
            container[key] = copy.deepcopy(value)
        return to_bytes(structure, arrays, header)
    name, place, number = items[chosen - len(fields)]
    changed = np.array(arrays[name], order="C")
    _put(changed, place, number)
    return to_bytes(structure, arrays | {name: changed}, header)


def _pick(rng, items):
    return items[rng.integers(len(items))]


def _array(rng, arrays):
    """The name of an array of items, or None, and a copy of it."""
    names = [name for name, array in arrays.items() if array.ndim and array.size]
    if not names:
        return None, None
    name = _pick(rng, names)
    arrays[name] = np.array(arrays[name], order="C")
    return name, arrays[name]


def _put(array, places, value):
    with np.errstate(all="ignore"):
        if array.dtype.kind in "iu":
            info = np.iinfo(array.dtype)
            value = min(max(int(value), info.min), info.max)
        array.reshape(-1)[places] = value


def _set_items(rng, arrays, header, others):
    """Items of an array become a number, most of which no index or count may be."""
    _, array = _array(rng, arrays)
    if array is None:
        return
    near = (array.size, array.size - 1, array.size + 1, len(array), len(array) - 1)
    value = _pick(rng, REALS if array.dtype.kind == "f" else (*NUMBERS, *near))
    n = rng.choice([1, 1, 1, 2, array.size])
    _put(array, rng.integers(array.size, size=n), value)


def _set_column(rng, arrays, header, others):
    """A column, or a part of it, becomes one value."""
    _, array = _array(rng, arrays)
    if array is None:
        return
    flat = array.reshape(len(array), -1)
    start, stop = np.sort(rng.integers(len(array) + 1, size=2))
    column = rng.integers(flat.shape[1])
    part = flat[start:stop, column]
    if part.size:
        value = _pick(rng, [*part[:3].tolist(), *(REALS if array.dtype.kind == "f" else NUMBERS)])
        values = part.copy()
        _put(values, slice(None), value)
        flat[start:stop, column] = values


def _set_bytes(rng, arrays, header, others):
    _, array = _array(rng, arrays)
    if array is not None:
        raw = array.reshape(-1).view(np.uint8)
        raw[rng.integers(raw.size, size=rng.integers(1, 4))] = rng.choice([0, 1, 127, 128, 255])


def _add_to_items(rng, arrays, header, others):
    """Items that are nearly right."""
    _, array = _array(rng, arrays)
    if array is not None and array.dtype != np.bool_:
        with np.errstate(all="ignore"):
            place = rng.integers(array.size)
            array.reshape(-1)[place] += np.array(_pick(rng, (1, 2, 3, 8))).astype(array.dtype)


def _swap_items(rng, arrays, header, others):
    _, array = _array(rng, arrays)
    if array is not None:
        flat = array.reshape(-1)
        a, b = rng.integers(flat.size, size=2)
        flat[[a, b]] = flat[[b, a]]


def _copy_rows(rng, arrays, header, others):
    """What is there once is there twice."""
    _, array = _array(rng, arrays)
    if array is not None:
        a, b = rng.integers(len(array), size=2)
        n = rng.integers(1, len(array) + 1 - max(a, b))
        array[a : a + n] = array[b : b + n].copy()


def _permute(rng, arrays, header, others):
    name, array = _array(rng, arrays)
    if array is not None:
        arrays[name] = _pick(rng, (array[::-1], np.roll(array, 1, axis=0), rng.permutation(array)))


def _reshape(rng, arrays, header, others):
    """Another length, form or dtype."""
    name, array = _array(rng, arrays)
    if array is None:
        return
    n = rng.integers(len(array) + 1)
    forms = [
        array[:n], array[1:], np.concatenate([array, array[:n]]), array[None], array.reshape(-1),
        array.reshape(-1, 1), array.reshape(-1)[0], np.repeat(array, 3, axis=0), array.T,
        array[..., :-1],
    ]  # fmt: skip
    if rng.random() < 0.5:
        arrays[name] = forms[rng.integers(len(forms))]
    else:
        with np.errstate(all="ignore"):
            arrays[name] = array.astype(_pick(rng, DTYPES))


def _rename(rng, arrays, header, others):
    """An array is missing, has another's name, or changes places with it."""
    names = list(arrays)
    if not names:
        arrays["more"] = np.arange(3)
        return
    a, b = _pick(rng, names), _pick(rng, names)
    what = rng.integers(4)
    if what == 0:
        del arrays[a]
    elif what == 1:
        arrays[a], arrays[b] = arrays[b], arrays[a]
    elif what == 2:
        arrays[a] = arrays[b]
    else:
        arrays[a + "x"] = arrays[b]


def _splice(rng, arrays, header, others):
    """An array, or a value of the header, is that of another file."""
    _, their_arrays, their_header = _pick(rng, others)
    common = [name for name in arrays if name in their_arrays]
    if common and rng.random() < 0.7:
        name = _pick(rng, common)
        arrays[name] = their_arrays[name]
    else:
        key = _pick(rng, list(header))
        if key in their_header:
            header[key] = copy.deepcopy(their_header[key])


def _places(value):
    """Each (container, key) of a header, those of inner ones included."""
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def _set_header(rng, arrays, header, others):
    container, key = _pick(rng, list(_places(header)))
    old = container[key]
    near = [old + 1, old - 1, 2 * old] if type(old) in (int, float) else []
    what = rng.integers(8)
    if what == 0:
        del container[key]
    elif what == 1 and isinstance(container, list):
        container.insert(key, copy.deepcopy(old))
    elif what < 5 and near:
        container[key] = _pick(rng, near)
    else:
        container[key] = copy.deepcopy(_pick(rng, VALUES))


def _swap_header(rng, arrays, header, others):
    (a, i), (b, j) = (_pick(rng, list(_places(header))) for _ in range(2))
    a[i], b[j] = copy.deepcopy(b[j]), copy.deepcopy(a[i])


def _change_count(rng, arrays, header, others):
    """A number becomes another wherever it stands, so that all that hold it still agree."""
    counts = [c[k] for c, k in _places(header) if type(c[k]) is int and c[k] > 0]
    counts += [len(array) for array in arrays.values() if array.ndim and len(array)]
    if not counts:
        return
    old = _pick(rng, counts)
    new = _pick(rng, (old + 1, old - 1, 2 * old, 1, 2**24, 2**31 - 1, 2**40))
    for container, key in list(_places(header)):
        if type(container[key]) is int and container[key] == old:
            container[key] = new
    for name, array in arrays.items():
        if array.dtype.kind in "iu" and array.size < 200 and new <= np.iinfo(array.dtype).max:
            arrays[name] = np.where(array == old, new, array).astype(array.dtype)
        if array.ndim and len(array) == old and new <= 4 * old:
            arrays[name] = np.resize(arrays[name], (new, *array.shape[1:]))


def _empty(rng, arrays, header, others):
    """All arrays of some number of rows have none."""
    name, array = _array(rng, arrays)
    if array is not None:
        n = len(array)
        for name, other in arrays.items():
            if other.ndim and len(other) == n:
                arrays[name] = other[:0]


_EDITS = (
    _set_items, _set_items, _set_items, _set_column, _set_column, _set_bytes, _add_to_items,
    _add_to_items, _swap_items, _copy_rows, _copy_rows, _permute, _reshape, _rename, _splice,
    _set_header, _set_header, _set_header, _swap_header, _change_count, _empty,
)  # fmt: skip


def flipped(data, bit):
    """A file with one bit flipped."""
    changed = bytearray(data)
    changed[bit >> 3] ^= 1 << (bit & 7)
    return bytes(changed)
