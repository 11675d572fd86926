"""The one way to pass the state of a structure to its kernels: declared once, passed as one int64.

An array costs 100 ns when it is passed from Python, and its reference counts are atomic operations
in every inner call; an array made from an address has none. So a structure packs its state into
*words*, int64[n]: the address of each array and those of its lengths that are not fixed, and the
scalars. Kernels that Python calls take the address of the words, the *handle*, and unpack it into a
named tuple. Both sides are generated from one declaration:

>>> import numba
>>> class Ring(State):
...     item = array(np.int64, ANY)  # int64[C]
...     pair = array(np.float32, ANY, 2)  # float32[C, 2]
...     start = INT
...     scale = FLOAT

`Ring` is now a named tuple class; in Python its fields are NumPy arrays and numbers:

>>> ring = Ring(item=np.arange(3), pair=np.zeros((4, 2), np.float32), start=1, scale=0.5)
>>> handle = Handle(ring)

and `unpacker(Ring)` is what a kernel calls with a handle to get the named tuple of arrays and
numbers that its callees take:

>>> ring_at = unpacker(Ring)
>>> @numba.njit
... def first(handle):
...     ring = ring_at(handle)
...     return ring.item[ring.start] + ring.scale + ring.pair.size
>>> first(handle.address)
9.5

A field may be a declared class itself: its fields travel as one nested named tuple. A dtype of None
is left to the caller: `unpacker(Ring)(handle, like)` takes it from the array `like`, one for each
such field in order.

The words hold addresses: whoever owns a handle keeps it, and so the arrays, alive during a call.
"""

import collections
import copy
import struct
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numba.np import numpy_support

from .arrays import address_of
from .llvm import array_value

ANY = None  # a length that differs between arrays
_WORD = ir.IntType(64)
_INT64, _FLOAT64 = struct.Struct("q"), struct.Struct("d")


class _Array(NamedTuple):
    """A field that is a C-contiguous array."""

    dtype: np.dtype | None
    shape: tuple[int | None, ...]

    @property
    def n_words(self) -> int:
        return 1 + self.shape.count(ANY)

    def pack(self, value, name, words) -> None:
        dtype, shape = self
        if type(value) is not np.ndarray or not (
            (dtype is None or value.dtype == dtype)
            and len(shape) == value.ndim
            and value.flags.c_contiguous
        ):
            self._refuse(value, name)
        words.append(address_of(value))
        for fixed, length in zip(shape, value.shape, strict=True):
            if fixed is ANY:
                words.append(length)
            elif fixed != length:
                self._refuse(value, name)

    def _refuse(self, value, name):
        shape = ", ".join("." if n is ANY else str(n) for n in self.shape)
        kind = "any dtype" if self.dtype is None else self.dtype
        given = f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else value
        raise TypeError(f"{name} must be a C-contiguous array {kind}[{shape}], not {given}")

    def numba_type(self, likes):
        dtype = next(likes) if self.dtype is None else numpy_support.from_dtype(self.dtype)
        return types.Array(dtype, len(self.shape), "C")

    def unpack(self, context, builder, type_, load):
        pointer = builder.inttoptr(load(), cgutils.voidptr_t)
        lengths = [load() if n is ANY else _WORD(n) for n in self.shape]
        return array_value(context, builder, type_, pointer, lengths)


class _Scalar(NamedTuple):
    """A field that is an int64 or float64 number."""

    dtype: np.dtype

    @property
    def n_words(self) -> int:
        return 1

    def pack(self, value, name, words) -> None:
        if self.dtype.kind == "f":
            (value,) = _INT64.unpack(_FLOAT64.pack(value))
        words.append(value)

    def numba_type(self, likes):
        return numpy_support.from_dtype(self.dtype)

    def unpack(self, context, builder, type_, load):
        value = load()
        return value if type_ == types.int64 else builder.bitcast(value, ir.DoubleType())


class _Nested(NamedTuple):
    """A field that is a named tuple of fields."""

    cls: Any
    fields: dict

    @property
    def n_words(self) -> int:
        return sum(field.n_words for field in self.fields.values())

    def pack(self, value, name, words) -> None:
        if type(value) is not self.cls:
            raise TypeError(f"{name} must be a {self.cls.__name__}, not {type(value).__name__}")
        for (own_name, field), own in zip(self.fields.items(), value, strict=True):
            field.pack(own, f"{name}.{own_name}", words)

    def numba_type(self, likes):
        members = [field.numba_type(likes) for field in self.fields.values()]
        return types.BaseTuple.from_types(members, pyclass=self.cls)

    def unpack(self, context, builder, type_, load):
        members = [
            field.unpack(context, builder, member, load)
            for field, member in zip(self.fields.values(), type_, strict=True)
        ]
        return context.make_tuple(builder, type_, members)


INT: Any = _Scalar(np.dtype(np.int64))
FLOAT: Any = _Scalar(np.dtype(np.float64))


def array(dtype, *shape) -> Any:
    """A field of a state: a C-contiguous array of a dtype, each length a number or ANY."""
    return _Array(None if dtype is None else np.dtype(dtype), shape)


class _Declared(type):
    """Makes a named tuple class of the fields that the body of a class declares, in their order."""

    def __new__(mcs, name, bases, body):
        if not bases:
            return super().__new__(mcs, name, bases, body)
        fields = {
            field: _layout(kind) if isinstance(kind, type) else kind
            for field, kind in body.items()
            if not field.startswith("__")
        }
        made = cast(Any, collections.namedtuple)(name, fields, module=body["__module__"])
        made.__doc__ = body.get("__doc__")
        made._layout = _Nested(made, fields)
        return made


if TYPE_CHECKING:

    class State(tuple):
        """What type checkers see of a declared class."""

        _fields: tuple[str, ...]

        def __new__(cls, *args: Any, **kwargs: Any) -> Self: ...
        def __getattr__(self, name: str) -> Any: ...
        def _replace(self, **kwargs: Any) -> Self: ...
        def _asdict(self) -> dict[str, Any]: ...

else:

    class State(metaclass=_Declared):
        """Base of the declarations; a subclass is a named tuple class, and no subclass of this."""


def _layout(cls) -> _Nested:
    return cls._layout


def n_words(cls) -> int:
    """How many int64 the packed state of a declared class takes."""
    return _layout(cls).n_words


def pack(value, words=None) -> np.ndarray:
    """Write the words of a state of NumPy arrays, into `words` int64[n_words] where given."""
    found: list[int] = []
    _layout(type(value)).pack(value, type(value).__name__, found)
    packed = np.array(found, np.int64)
    if words is None:
        return packed
    words[:] = packed
    return words


class Handle:
    """A state of NumPy arrays, packed for kernels, which take its `address`.

    Keep the handle itself while a kernel runs: `Handle(state).address` alone frees the words.

    The address stays the same while `state` is replaced. A copy, and what a pickle gives back, has
    words of its own over copied arrays.
    """

    __slots__ = ("address", "state", "words")

    def __init__(self, state):
        self.words = pack(state)
        self.address = address_of(self.words)
        self.state = state

    def replace(self, state) -> None:
        """Pass another state of the same class from now on: the words change at once."""
        pack(state, self.words)
        self.state = state

    def __copy__(self):
        return copy.deepcopy(self)

    def __reduce__(self):
        return Handle, (self.state,)


def unpacker(cls) -> Any:
    """The intrinsic `unpack(handle, *likes)` that kernels call: the named tuple at a handle.

    O(1): only the fields that are used cost anything after LLVM's passes.
    """
    layout = _layout(cls)

    @intrinsic
    def unpack(typingctx, handle, *likes):
        # Numba passes the variable arguments as one tuple.
        likes = likes[0] if len(likes) == 1 and isinstance(likes[0], types.BaseTuple) else likes
        result = layout.numba_type(like.dtype for like in likes)

        def codegen(context, builder, signature, args):
            words = builder.inttoptr(args[0], _WORD.as_pointer())
            places = iter(range(layout.n_words))

            def load():
                return builder.load(builder.gep(words, [_WORD(next(places))]), align=8)

            return layout.unpack(context, builder, result, load)

        return result(types.int64, types.StarArgTuple(likes)), codegen

    return unpack
