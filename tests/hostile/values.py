"""Values that no method expects: of every kind that Python and NumPy have, and objects that lie.

Each is made anew from a random generator, so a call is repeated by its seed. Left out is what no
library can survive: iterators without end, `__array_interface__` with an address that is no one's,
and arrays that another thread writes into while a call reads them.
"""

import decimal
import enum
import fractions
import math
import types
from collections import UserList, defaultdict, deque

import numpy as np

SCALARS = [
    None, True, False, -1, 0, 1, 2, 3, 7, 255, 2**15, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53 + 1,
    2**62, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64 - 1, 2**64, 2**70, -(2**70), 10**400,
    10**5000, 0.0, -0.0, 0.5, 1.0, 1e-300, 5e-324, 1e39, 1e308, math.nan, math.inf, -math.inf, 1j,
    decimal.Decimal("NaN"), decimal.Decimal(2), fractions.Fraction(1, 3), fractions.Fraction(4),
    np.int8(-1), np.int32(1), np.int64(-(2**63)), np.uint8(3), np.uint64(2**64 - 1),
    np.float16("nan"), np.float32(1e38), np.float64("inf"), np.longdouble("1e4000"), np.bool_(True),
    np.complex64(1), np.datetime64("NaT"), np.datetime64("2020"), np.timedelta64(5, "s"),
    np.void(b"ab"), np.str_("red"), np.bytes_(b"red"), np.ma.masked,
    "", "0", "1", "red fox", "lucene", "lru", "cosine", "a\0b", "\ud800", "\udfff\ud800",
    "\U0010ffff", "é" * 300, "x" * 70_000, b"", b"0", b"\xff\0", b"x" * 70_000,
    bytearray(b"red"), memoryview(b"red"), Ellipsis, NotImplemented, object, int, np.int32, np,
    (), [], {}, set(), frozenset([1]), range(0), range(3), slice(3), [None], [[]], [[], [1]],
    [1, "a"], ["red", None], ["red", 1], ["red", b"red"], [True, False], [0.5], [2**63], [2**70, 1],
    [math.nan, 1.0], [1, 1], [0, 2], [[1, 2], [3]], [(0, 1, "a")], (1, 2), {0: 1}, {"a": "b"},
    {1, 2}, deque([1, 2]), defaultdict(list), UserList([1, 2]), types.SimpleNamespace(ndim=1),
    types.SimpleNamespace(size=3), types.SimpleNamespace(shape=(3,), dtype=np.dtype(np.int32)),
]  # fmt: skip
DTYPES = [
    "?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "g", "F", "D", "O", "S3",
    "U3", "V4", "M8[s]", "m8[ns]", ">i4", ">i8", ">f4", ">u8", "i4,f8", [("seq", "i8", (2,))],
]  # fmt: skip
NUMBERS = [0, 1, 2, 3, 5, 7, 9, 99, -1, 127, 2**31 - 1, -(2**31), 2**62, 2**63 - 1]
SHAPES = [(), (0,), (1,), (2,), (3,), (9,), (0, 5), (5, 0), (1, 1), (2, 3), (2, 2, 2), (1,) * 40]


class HostileError(Exception):
    """What hostile objects raise; it must come through as it is."""


class Color(enum.IntEnum):
    RED = 1


class Text(str):
    """A str that equals, and hashes as, whatever it is asked about."""

    __slots__ = ()

    def __eq__(self, other):
        return True

    def __ne__(self, other):
        return False

    def __hash__(self):
        return hash("red")

    def __str__(self):
        return "other"

    def __len__(self):
        return 2**40

    def __getitem__(self, item):
        return "z"

    def encode(self, *_):
        return 5

    def isascii(self):
        return True

    def lower(self):
        return None

    def split(self, *_):
        return [1, None]


class Bytes(bytes):
    """As Text."""

    __slots__ = ()

    def __eq__(self, other):
        return True

    def __hash__(self):
        return hash("red")

    def __len__(self):
        return 2**40

    def hex(self):
        return "other"


class Number(int):
    """An int that says that it is another."""

    def __index__(self):
        return 2**40

    def __int__(self):
        return 3

    def __eq__(self, other):
        return True

    def __hash__(self):
        return 0

    def __lt__(self, other):
        return True

    __gt__ = __le__ = __ge__ = __lt__
    __ne__ = __lt__

    def __abs__(self):
        return "other"


class Disguised:
    """An object that says that it is of another class."""

    def __init__(self, cls):
        object.__setattr__(self, "cls", cls)

    @property
    def __class__(self):
        return object.__getattribute__(self, "cls")


class Array(np.ndarray):
    """An ndarray whose methods lie."""

    def min(self, *_, **__):
        return 0

    max = argmax = min

    def __len__(self):
        return 2**40

    def __lt__(self, other):
        return np.zeros(3, bool)

    __gt__ = __eq__ = __lt__
    __hash__ = None

    def astype(self, *_, **__):
        return "other"

    copy = ravel = reshape = astype


def _raiser(name):
    def method(self, *_, **__):
        raise HostileError(name)

    return method


def _liar(name, answer):
    return type(f"Lies{name.strip('_').title()}", (), {name: lambda self, *_, **__: answer})


_METHODS = [
    "__array__", "__len__", "__iter__", "__index__", "__int__", "__float__", "__eq__", "__hash__",
    "__bool__", "__repr__", "__str__", "__getitem__", "__next__", "__array_interface__", "__call__",
    "__contains__", "__lt__", "__fspath__", "__buffer__", "__getattr__", "__class__",
    "__set_name__", "__reduce_ex__", "__deepcopy__", "ndim", "dtype", "size", "shape", "encode",
    "keys", "tokenizer",
]  # fmt: skip
_RAISERS = [
    type(f"Raises{name.strip('_').title()}", (), {name: _raiser(name)}) for name in _METHODS
]
_RAISERS.append(type("RaisesAll", (), {name: _raiser(name) for name in _METHODS[:-7]}))
_LIARS = [
    _liar(name, answer)
    for name, answer in [
        ("__array__", 5), ("__array__", np.zeros(3)), ("__array__", np.array([1, 2], np.int32)),
        ("__array__", None), ("__len__", 5), ("__len__", 2**62), ("__len__", 0), ("__iter__", 5),
        ("__iter__", iter(())), ("__index__", 5), ("__index__", 2**80), ("__index__", "5"),
        ("__int__", 5), ("__float__", math.nan), ("__eq__", True), ("__eq__", np.zeros(2)),
        ("__hash__", 0), ("__hash__", 2.5), ("__bool__", 3), ("__repr__", 3), ("__getitem__", 7),
        ("__fspath__", 3), ("ndim", 1), ("__call__", "other"),
    ]
]  # fmt: skip


class Raising(type):
    def __repr__(cls):
        raise HostileError("__repr__ of a class")


class Unshown(metaclass=Raising):
    def __repr__(self):
        raise HostileError("__repr__")


class Numpy:
    """An object that Numba takes for an array, if it asks."""

    size = 2
    dtype = np.dtype(np.int64)
    shape = (2,)
    ndim = 1

    @property
    def _numba_type_(self):
        from numba import types as numba_types

        return numba_types.Array(numba_types.int64, 1, "C")


def self_referring(kind):
    if kind == 0:
        made = []
        made.append(made)
    elif kind == 1:
        made = [1, 2]
        made.append((made, [made]))
    elif kind == 2:
        made = {}
        made["a"] = made
    else:
        made = np.empty(2, object)
        made[:] = [made, 1]
    return made


def nested(rng):
    made = [1]
    for _ in range(int(rng.choice([3, 40, 70, 900, 50_000]))):
        made = [made] if rng.random() < 0.9 else (made,)
    return made


def array(rng):
    """Any array: dtype, shape, order, strides, alignment, flags and class are drawn."""
    dtype = np.dtype(DTYPES[rng.integers(len(DTYPES))])
    shape = SHAPES[rng.integers(len(SHAPES))]
    n = math.prod(shape)
    with np.errstate(all="ignore"):
        if dtype.kind in "iuf?g":
            # One array in two holds small values alone, so that it can be taken.
            pool = np.array(NUMBERS[:6] if rng.random() < 0.5 else NUMBERS)
            made = rng.choice(pool, n).astype(dtype)
            if dtype.kind == "f" and n and rng.random() < 0.3:
                made[rng.integers(n)] = rng.choice([np.nan, np.inf, -np.inf, 1e30, -0.0])
        elif dtype.kind == "O":
            made = np.empty(n, object)
            for i in range(n):
                made[i] = SCALARS[rng.integers(len(SCALARS))] if rng.random() < 0.5 else 1
        else:
            made = np.zeros(n, dtype)
    made = made.reshape(shape)
    return _twisted(made, rng)


def _twisted(made, rng):
    kind = rng.integers(14)
    if kind == 0 and made.ndim:
        made = np.repeat(made, 2, axis=0)[::2]
    elif kind == 1 and made.ndim:
        made = made[::-1]
    elif kind == 2:
        made = np.asfortranarray(made)
    elif kind == 3 and made.size and made.dtype.kind != "O":
        made = np.broadcast_to(made.ravel()[:1], (int(rng.choice([1, 2, 9])),))
    elif kind == 4 and made.size:  # takes 2**50 entries, and no memory
        made = np.broadcast_to(made.ravel()[:1], (2**50,) if rng.random() < 0.5 else (2**25, 2**25))
    elif kind == 5 and made.dtype.kind != "O" and made.dtype.itemsize > 1:
        memory = np.zeros(made.nbytes + 1, np.uint8)
        loose = memory[1:].view(made.dtype).reshape(made.shape) if made.size else made
        loose[...] = made
        made = loose
    elif kind == 6:
        made.flags.writeable = False
    elif kind == 7:
        made = made.view(Array)
    elif kind == 8 and made.dtype.kind not in "OV":
        made = np.ma.array(made, mask=rng.random(made.shape) < 0.4)
    elif kind == 9 and made.ndim == 1 and made.dtype.kind not in "OV":
        made = np.lib.stride_tricks.as_strided(made, made.shape, (0,) if made.size else None)
    elif kind == 10 and made.dtype.kind not in "OMm" and made.flags.c_contiguous and made.ndim:
        made = memoryview(made)
    elif kind == 11 and made.ndim and made.dtype.kind != "O":
        made = made.tolist()
    elif kind == 12 and made.dtype.kind == "V" and made.dtype.names:
        made = made.view(np.recarray)
    return made


def make(rng, calls_back):
    """Any hostile value; `calls_back(rng)` changes the structure that is being called."""
    kind = rng.random()
    if kind < 0.35:
        return SCALARS[rng.integers(len(SCALARS))]
    if kind < 0.65:
        return array(rng)
    if kind < 0.72:
        return _RAISERS[rng.integers(len(_RAISERS))]()
    if kind < 0.79:
        return _LIARS[rng.integers(len(_LIARS))]()
    if kind < 0.83:
        return [Text("blue"), Bytes(b"blue"), Number(5), Color.RED, Numpy()][rng.integers(5)]
    if kind < 0.86:
        classes = [str, int, float, bytes, list, tuple, np.ndarray, np.integer, dict, bool]
        return Disguised(classes[rng.integers(len(classes))])
    if kind < 0.89:
        return self_referring(rng.integers(4))
    if kind < 0.91:
        return nested(rng)
    if kind < 0.94:
        return [make(rng, calls_back) for _ in range(rng.integers(1, 4))]
    if kind < 0.95:
        return tuple(make(rng, calls_back) for _ in range(rng.integers(1, 4)))
    if kind < 0.96:
        return {"a": make(rng, calls_back)}
    if kind < 0.97:
        return Unshown if rng.random() < 0.5 else Unshown()
    return _calling_back(rng, calls_back)


def _calling_back(rng, calls_back):
    """A generator, or an object with a method, that changes the structure when it is used."""
    kind, value = rng.integers(5), [1, "red", 0.5][rng.integers(3)]
    if kind == 0:

        def generate():
            calls_back(rng)
            yield value
            calls_back(rng)

        return generate()
    name = ["__array__", "__iter__", "__index__", "__len__"][kind - 1]
    answer = [np.array([1, 2]), iter([value]), 1, 1][kind - 1]

    def method(self, *_, **__):
        calls_back(rng)
        return answer

    return type("CallsBack", (), {name: method})()
