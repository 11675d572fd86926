"""Copies, pickles and files of a structure, from one description of it: `Stored`."""

import contextlib
import copy
import importlib
import inspect
import io
import json
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, ClassVar, Self

import numpy as np

from ..errors import CorruptFileError
from .file_format import BYTES, Arrays, name_of, read, read_bytes, to_json, write
from .pickling import check_functions
from .typing import PathLike

_PACKAGE = __package__.rpartition(".")[0]
# What comes of arrays and headers that `_state` cannot have given.
_IMPOSSIBLE = (
    ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError,
    ValueError,
)  # fmt: skip


class PartError(TypeError):
    """A Python object that a file cannot hold is missing, or is not as it must be."""


@contextlib.contextmanager
def checking_parts() -> Iterator[None]:
    """Raise what is wrong with the parts given to `_from_state` as a fault of the caller."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise PartError(str(error)) from error


class Stored:
    """Copies, pickles, files and bytes of a structure, from three methods of its own.

    `_state()` returns `(arrays, header)`: the object at one instant, taken under its lock. Nobody
    changes the arrays later: they are copies, or those of a published snapshot. The header holds
    JSON values only. Times are relative to the present time of the object's clock.

    `_from_state(arrays, header, **parts)` is a class method that builds the object from arrays that
    are its own to keep; under mmap they are private copy-on-write views of the file. It raises
    CorruptFileError when they cannot be what `_state` wrote, and PartError where it needs a part
    that was not given, or is a wrong one (`checking_parts`).

    `_parts()` returns the Python objects that a file cannot hold, such as a clock or an encoder, by
    the names of the keyword arguments of `_from_state`: copies share them, pickles hold them, and
    `load` and `from_bytes` take them as keyword arguments.

    `_stored_version` counts the structure's own format. What an object has beside these, such as
    locks, handles, scratch and caches, is made anew.

    A caller's subclass needs nothing more: copies and pickles of its objects are of that class and
    hold the attributes that it adds; a file holds the structure alone.
    """

    _stored_version: ClassVar[int] = 1
    _state: Callable[[], tuple[Arrays, dict[str, Any]]]
    _from_state: ClassVar[Callable[..., Any]]

    def _parts(self) -> dict[str, Any]:
        return {}

    @contextlib.contextmanager
    def _held_state(self) -> Iterator[tuple[Arrays, dict[str, Any]]]:
        """`_state` during a block, in which `_parts` belong to it.

        A structure overrides this to hold its lock meanwhile: where its parts change, or where it
        is so large that a file is written from its own arrays, uncopied.
        """
        yield self._state()

    def _versioned(self, header):
        return {"version": self._stored_version, **header}

    def save(self, path: PathLike | BinaryIO) -> None:
        """Write everything to one file, replacing it atomically.

        A crash leaves the old file or the new one. The new one has the mode of the old one, and its
        owner where permitted; behind a symbolic link, the file that it leads to is replaced; a pipe
        or a device is written to.

        Parameters
        ----------
        path : str, os.PathLike or binary file object
            The file, in a folder that exists and can be written to. A file object is written to
            where it stands, and need not be seekable.

        Raises
        ------
        OSError
            The disk is full, or the file cannot be written; the old one is as it was.
        """
        with self._held_state() as (arrays, header):
            write(path, self._structure().__name__, arrays, self._versioned(header))

    def to_bytes(self) -> bytes:
        """What `save` writes to a file."""
        file = io.BytesIO()
        self.save(file)
        return file.getvalue()

    @classmethod
    def load(
        cls,
        path: PathLike | BinaryIO,
        *,
        mmap: bool = False,
        verify: bool | None = None,
        **parts: Any,
    ) -> Self:
        """Open a file that `save` wrote, or refuse it.

        Checksums tell of accidents; whoever changes a file can make them right. So all that the
        file holds is also checked for what it means, mapped or not and whatever `verify` is: every
        index, length, count and setting, in one pass over the arrays. No file crashes the process
        later, and none takes memory that its size does not justify. The one exception are numbers
        that only measure: of a mapped HNSW whose vectors take more than 16 MiB the components and
        codes are not read. (A million vectors of 128 components: 0.1 s mapped, 0.5 s read.)

        A file must not be written to in place while it is mapped; `save` replaces it.

        Parameters
        ----------
        path : str, os.PathLike or binary file object
            A file object is read from where it stands to the end of what one `save` wrote, and need
            not be seekable.
        mmap : bool
            Map the arrays instead of reading them; changes stay in memory and never reach the file.
            ValueError for a file object.
        verify : bool, optional
            Compare every array with its checksum, which reads the whole file. Default: not `mmap`.
        **parts
            What a file cannot hold, by the names of the constructor: see the class.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        CorruptFileError
            Not a file of this class, truncated, altered, or of a newer version.
        TypeError
            A part that this class does not have, or that it needs and was not given.
        """
        cls._check_parts(parts)
        return cls._opened(name_of(path), read(path, mmap=mmap, verify=verify), parts)

    @classmethod
    def from_bytes(cls, data: Any, **parts: Any) -> Self:
        """The structure that `to_bytes` gave, from bytes, a bytearray or a memoryview.

        Parts and errors are those of `load`.
        """
        cls._check_parts(parts)
        return cls._opened(BYTES, read_bytes(data), parts)

    @classmethod
    def _check_parts(cls, parts):
        known = list(inspect.signature(cls._from_state).parameters)[2:]
        for name in parts:
            if name not in known:
                takes = ", ".join(known) or "nothing besides mmap and verify"
                raise TypeError(f"{cls.__name__} has no part {name!r} to load: it takes {takes}")

    @classmethod
    def _opened(cls, where, found, parts):
        structure, arrays, header = found
        own = cls._structure()
        if structure != own.__name__:
            raise CorruptFileError(f"{where} holds a {structure}, not a {own.__name__}")
        version = header.get("version")
        if type(version) is not int or not 1 <= version <= cls._stored_version:
            raise CorruptFileError(
                f"{where} has {structure} format {version}; "
                f"this version reads 1 to {cls._stored_version}"
            )
        try:
            return cls._made(arrays, header, parts)
        except PartError:
            raise
        except CorruptFileError as error:
            raise CorruptFileError(f"{where}: {error}") from None
        except _IMPOSSIBLE as error:
            raise CorruptFileError(f"{where} is not a whole {structure}: {error!r:.200}") from error

    @classmethod
    def _structure(cls):
        """The class whose state this is: for a subclass without a state of its own, its base."""
        return next(each for each in cls.__mro__ if "_from_state" in vars(each))

    @classmethod
    def _made(cls, arrays, header, parts):
        made = cls._structure()._from_state(arrays, header, **parts)
        if type(made) is not cls:  # the constructor of a subclass may take anything
            made.__class__ = cls
        return made

    def _copied(self):
        """(arrays, JSON of the header, parts) of one instant, the arrays nobody else's."""
        with self._held_state() as (arrays, header):
            arrays = {name: np.array(array, order="C") for name, array in arrays.items()}
            return arrays, to_json(self._versioned(header)), self._parts()

    def __copy__(self) -> Self:
        """An independent object; the parts that a file cannot hold are shared."""
        other, added = self._twin()
        vars(other).update(added)
        return other

    def __deepcopy__(self, memo: dict) -> Self:
        other, added = self._twin()
        vars(other).update(copy.deepcopy(added, memo))
        return other

    def _twin(self):
        """A new object of the same state, and the attributes that this one has beyond it."""
        arrays, header, parts = self._copied()
        other = self._made(arrays, json.loads(header), parts)
        return other, self._added_to(other)

    def __reduce__(self) -> tuple:
        arrays, header, parts = self._copied()
        check_functions(type(self).__name__, parts)
        added = {}
        if type(self) is not self._structure():
            added = self._added_to(self._made(dict(arrays), json.loads(header), parts))
        return _from_pickle, (type(self), arrays, header, parts, added)

    def _added_to(self, other):
        """The attributes that this object has beyond those of a new one, which a subclass added."""
        return {name: value for name, value in vars(self).items() if name not in vars(other)}


def _from_pickle(cls, arrays, header, parts, added):
    # A loader of protocol 5 may share its buffers with others, or have them read-only.
    arrays = {
        name: array if array.flags.owndata and array.flags.c_contiguous else np.array(array)
        for name, array in arrays.items()
    }
    found = cls._structure().__name__, arrays, json.loads(header)
    made = cls._opened("the pickle", found, parts)
    vars(made).update(added)
    return made


def share(structure: Any) -> Any:
    """Another object with the same attributes: unlike `copy.copy` it shares arrays and locks."""
    other = object.__new__(type(structure))
    vars(other).update(vars(structure))
    return other


def load(
    path: PathLike | BinaryIO, *, mmap: bool = False, verify: bool | None = None, **parts: Any
) -> Any:
    """Open a saved structure of any class, by the class that its header names.

    Parameters and errors are those of the `load` of each class.

    >>> import llmds_nb, tempfile, os
    >>> sketch = llmds_nb.CountMinSketch(64)
    >>> path = os.path.join(tempfile.mkdtemp(), "sketch.safetensors")
    >>> sketch.save(path)
    >>> type(llmds_nb.load(path)).__name__
    'CountMinSketch'
    """
    where, found = name_of(path), read(path, mmap=mmap, verify=verify)
    structure = found[0]
    package = importlib.import_module(_PACKAGE)
    cls = getattr(package, structure) if structure in package.__all__ else None
    if not (isinstance(cls, type) and issubclass(cls, Stored)):
        raise CorruptFileError(f"{where} holds {structure!r}, which this version does not know")
    cls._check_parts(parts)
    return cls._opened(where, found, parts)


def nest(prefix, state) -> tuple[dict, dict]:
    """Put one structure's `(arrays, header)` under a name, to store it inside another's file."""
    arrays, header = state
    return {f"{prefix}/{name}": array for name, array in arrays.items()}, {prefix: header}


def unnest(prefix, arrays, header) -> tuple[dict, dict]:
    """Take out again what `nest` put in."""
    start = prefix + "/"
    inner = {n[len(start) :]: a for n, a in arrays.items() if n.startswith(start)}
    return inner, header[prefix]
