"""The one way to pass the state of a structure to its kernels: declared once, passed as one int64.

An array costs 100 ns when it is passed from Python, and its reference counts are atomic operations
in every inner call; an array made from an address has none. So a structure packs its state into
*words*, int64[n]: the address of each array and those of its lengths that are not fixed, and the
scalars. Kernels that Python calls take the address of the words, the *handle*, and view it as the
state, whose attributes are the arrays and numbers. Both sides are generated from one declaration:

>>> import numba
>>> class Ring(State):
...     item = array(np.int64, ANY)  # int64[C]
...     pair = array(np.float32, ANY, 2)  # float32[C, 2]
...     start = INT
...     scale = FLOAT

`Ring` is now a named tuple class; in Python its fields are NumPy arrays and numbers:

>>> ring = Ring(item=np.arange(3), pair=np.zeros((4, 2), np.float32), start=1, scale=0.5)
>>> handle = Handle(ring)

and `viewer(Ring)` is what a kernel calls with a handle to get the state that its callees take:

>>> ring_at = viewer(Ring)
>>> @numba.njit
... def first(handle):
...     ring = ring_at(handle)
...     return ring.item[ring.start] + ring.scale + ring.pair.size
>>> first(handle.address)
9.5

A field may be a declared class itself: a state within the state. A dtype of None is left to the
caller: `viewer(Ring)(handle, like)` takes it from the array `like`, one for each such field in
order.

To a kernel a state is one pointer. It reads a word where a field is used, and LLVM may take it that
the words never change: they do not while a kernel runs. Passing the arrays instead, as a named
tuple, took an eighth of all compile time.

The words hold addresses: whoever owns a handle keeps it, and so the arrays, alive during a call.
"""

import collections
import copy
import itertools
import struct
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.typing.templates import AttributeTemplate
from numba.extending import (
    infer_getattr,
    intrinsic,
    lower_getattr_generic,
    models,
    register_model,
)
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

    @property
    def n_likes(self) -> int:
        return int(self.dtype is None)

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

    def value(self, context, builder, type_, words):
        address, *free = (_word(builder, words, place) for place in range(self.n_words))
        pointer, free = builder.inttoptr(address, cgutils.voidptr_t), iter(free)
        lengths = [next(free) if n is ANY else _WORD(n) for n in self.shape]
        return array_value(context, builder, type_, pointer, lengths)


class _Scalar(NamedTuple):
    """A field that is an int64 or float64 number."""

    dtype: np.dtype

    @property
    def n_words(self) -> int:
        return 1

    @property
    def n_likes(self) -> int:
        return 0

    def pack(self, value, name, words) -> None:
        if self.dtype.kind == "f":
            (value,) = _INT64.unpack(_FLOAT64.pack(value))
        words.append(value)

    def numba_type(self, likes):
        return numpy_support.from_dtype(self.dtype)

    def value(self, context, builder, type_, words):
        value = _word(builder, words, 0)
        return value if type_ == types.int64 else builder.bitcast(value, ir.DoubleType())


class _Nested(NamedTuple):
    """A field that is a state itself."""

    cls: Any
    fields: dict

    @property
    def n_words(self) -> int:
        return sum(field.n_words for field in self.fields.values())

    @property
    def n_likes(self) -> int:
        return sum(field.n_likes for field in self.fields.values())

    def pack(self, value, name, words) -> None:
        if type(value) is not self.cls:
            raise TypeError(f"{name} must be a {self.cls.__name__}, not {type(value).__name__}")
        for (own_name, field), own in zip(self.fields.items(), value, strict=True):
            field.pack(own, f"{name}.{own_name}", words)

    def numba_type(self, likes):
        return StateType(self.cls, tuple(itertools.islice(likes, self.n_likes)))

    def value(self, context, builder, type_, words):
        return words


def _word(builder, words, place):
    """Load word number `place` of those at a pointer."""
    word = builder.load(builder.gep(words, [_WORD(place)]), align=8)
    word.set_metadata("invariant.load", builder.module.add_metadata([]))
    return word


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


def pack(value) -> np.ndarray:
    """The words of a state of NumPy arrays, int64[n_words]."""
    found: list[int] = []
    _layout(type(value)).pack(value, type(value).__name__, found)
    return np.array(found, np.int64)


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
        packed = pack(state)
        self.words[:], self.state = packed, state  # one statement: no interrupt comes between

    def __copy__(self):
        return copy.deepcopy(self)

    def __reduce__(self):
        return Handle, (self.state,)


class StateType(types.Type):
    """The Numba type of a state in kernels: of a declared class, with dtypes for its Nones."""

    def __init__(self, cls, likes=()):
        self.members = {}  # by name: its first word, the field, its Numba type
        place, rest = 0, iter(likes)
        for name, field in _layout(cls).fields.items():
            self.members[name] = place, field, field.numba_type(rest)
            place += field.n_words
        super().__init__(f"{cls.__module__}.{cls.__qualname__}{likes}")


@register_model(StateType)
class _Pointer(models.PrimitiveModel):
    def __init__(self, manager, state):
        super().__init__(manager, state, _WORD.as_pointer())


@infer_getattr
class _Attributes(AttributeTemplate):
    key = StateType

    def generic_resolve(self, state, name):
        return member_type(state, name) if name in state.members else None


@lower_getattr_generic(StateType)
def _lower_attribute(context, builder, state, words, name):
    place, field, type_ = state.members[name]
    return field.value(context, builder, type_, builder.gep(words, [_WORD(place)]))


def member_type(state: Any, name: str) -> Any:
    """The Numba type of a field, given the Numba type of a state or of a named tuple."""
    if isinstance(state, StateType):
        return state.members[name][2]
    return state[state.fields.index(name)]


def viewer(cls, *dtypes) -> Any:
    """The intrinsic `view(handle, *likes)` that kernels call: the state at a handle. O(1).

    Without `likes`, arrays whose dtype is left open are seen as the Numba types `dtypes`.
    """

    @intrinsic
    def view(typingctx, handle, *likes):
        # Numba passes the variable arguments as one tuple.
        likes = likes[0] if len(likes) == 1 and isinstance(likes[0], types.BaseTuple) else likes
        result = StateType(cls, tuple(like.dtype for like in likes) or dtypes)

        def codegen(context, builder, signature, args):
            return builder.inttoptr(args[0], _WORD.as_pointer())

        return result(types.int64, types.StarArgTuple(likes)), codegen

    return view
