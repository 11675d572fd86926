"""`@kernel`: how this package compiles, and the only place that names Numba's options.

Numba stamps a cached function with a hash of the function's *own* file, so an edit or an upgrade of
a callee in another file leaves the cached caller running the old callee: a wrong result, silently.
Here every kernel is cached under one stamp of all the source that kernels can reach, this file and
`kernels/`, and of the Numba flags that change code. Each stamp has a folder of its own, so two
versions, or a run with bounds checks beside one without, can never read each other's machine code.

The stamp uses private parts of Numba (`numba.core.caching`). Where they are missing or no longer
behave as expected, kernels are compiled once per process and one warning is logged.
"""

import hashlib
import logging
import os
import shutil
import uuid
from functools import cache
from pathlib import Path

import numba
from llvmlite import ir
from numba.core import cgutils, config, sigutils, types
from numba.extending import intrinsic, overload
from numba.np import arrayobj

from ._parts import PartCompiler

logger = logging.getLogger(__name__)

# nnan and ninf are left out on purpose: with them LLVM may fold isnan(x) to False.
SAFE_FASTMATH = frozenset({"nsz", "arcp", "contract", "afn", "reassoc"})
_KEEP_FOLDERS = 8  # caches of other stamps that stay: versions and flags in use side by side

KERNELS = []  # every dispatcher made here, in order of definition; warm-up and its test read it


def _package_stamp(folder: Path) -> str:
    digest = hashlib.sha256(repr((config.BOUNDSCHECK, config.OPT)).encode())
    compiling = (folder / name for name in ("_jit.py", "_parts.py"))
    for path in [*compiling, *sorted((folder / "kernels").glob("*.py"))]:
        digest.update(path.name.encode() + b"\0")
        digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def _stamped_folder(parent: str) -> str:
    """Return the folder in `parent` for this stamp; drop the oldest others. Once per process."""
    folder = Path(parent, f"llmds_nb-{STAMP[:16]}")
    if not folder.is_dir():
        others = sorted(Path(parent).glob("llmds_nb-*"), key=lambda other: other.stat().st_mtime)
        for other in others[:-_KEEP_FOLDERS]:
            shutil.rmtree(other, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} is not writable")
    return str(folder)


@cache
def _warn_uncached(reason: str) -> None:
    logger.warning("kernels are not cached on disk and compile in every process: %s", reason)


try:
    STAMP = _package_stamp(Path(__file__).parent)
    from numba.core.caching import CompileResultCacheImpl, FunctionCache, IndexDataCacheFile

    class _PackageCacheImpl(CompileResultCacheImpl):
        """Numba's cache of compiled functions, under the package's stamp instead of the file's."""

        def __init__(self, py_func):
            super().__init__(py_func)
            folder = _stamped_folder(self._locator.get_cache_path())
            self._locator.get_cache_path = lambda: folder
            self._locator.get_source_stamp = lambda: STAMP

    class _OwnDataFiles(IndexDataCacheFile):
        """Lets several processes fill one cold cache.

        Numba numbers the data files of a function by the index as it last read it, so two processes
        that save two signatures at once both take number 1, and an index entry then names the other
        signature's machine code. Here every save has a file of its own, written before the index
        names it; of two indexes written at once one is lost, and its signature compiles again.
        """

        def save(self, key, data):
            name = self._data_name(uuid.uuid4().int)
            self._save_data(name, data)
            self._save_index(self._load_index() | {key: name})

    class _PackageCache(FunctionCache):
        _impl_class = _PackageCacheImpl

        def __init__(self, py_func):
            super().__init__(py_func)
            stamp = self._cache_file._source_stamp
            self._cache_file = _OwnDataFiles(self.cache_path, self._impl.filename_base, stamp)

        def save_overload(self, sig, data):
            try:
                super().save_overload(sig, data)
            except OSError as error:  # a full disk must not fail the call that compiled
                _warn_uncached(str(error))

except (ImportError, AttributeError, OSError) as error:  # zipped source, or another Numba
    _PackageCache = None
    _warn_uncached(f"no stamped cache with numba {numba.__version__}: {error}")


def _attach_cache(dispatcher, py_func) -> None:
    if _PackageCache is None:
        return
    try:
        attached = _PackageCache(py_func)
        kept = attached._cache_file._source_stamp == STAMP and STAMP[:16] in attached.cache_path
        if not kept or not hasattr(dispatcher, "_cache"):
            raise AttributeError("the stamp was not taken over")
    except (RuntimeError, OSError):
        _warn_uncached("no cache folder is writable; NUMBA_CACHE_DIR can name one")
    except (AttributeError, TypeError) as error:
        _warn_uncached(f"no stamped cache with numba {numba.__version__}: {error}")
    else:
        dispatcher._cache = attached


def _ignore_literals(dispatcher) -> None:
    """Let a call with a constant share the machine code for its type: `f(x, 0)` with `f(x, n)`."""
    try:
        original = dispatcher.get_call_template
    except AttributeError:
        return

    def get_call_template(args, kws):
        kws = {name: types.unliteral(kind) for name, kind in kws.items()}
        return original(tuple(types.unliteral(kind) for kind in args), kws)

    dispatcher.get_call_template = get_call_template


# What a kernel with `accepts` raises for arguments that it does not take.
REFUSALS = (TypeError, ValueError, OverflowError)


def _accept_only(dispatcher, accepts):
    """The dispatcher, refusing with a TypeError what `accepts`, Numba types as text, does not name.

    It tells types apart at no cost; only what it has no machine code for is looked at here. With a
    Numba that compiles in another way, every call is.
    """
    hook = "_compile_for_args"
    proceed = getattr(dispatcher, hook, dispatcher)

    def check(*args):
        wanted, _ = sigutils.normalize_signature(f"({accepts})")
        try:
            given = tuple(numba.typeof(arg) for arg in args)
        except (numba.errors.NumbaError, ValueError):  # it knows no type for one of them
            given = tuple(type(arg).__name__ for arg in args)
        if given != wanted:
            raise TypeError(f"a kernel of ({accepts}) does not take {given}")
        return proceed(*args)

    if proceed is dispatcher:
        return check
    setattr(dispatcher, hook, check)
    return dispatcher


def kernel(
    func=None, *, nogil=False, fastmath=False, inline=False, internal=False, apart=False,
    borrow=False, accepts=None,
):  # fmt: skip
    """Compile a function on flat arrays in nopython mode, lazily, cached on disk.

    Parameters
    ----------
    nogil : bool
        Release the GIL. Only for kernels that read published snapshots or work on arrays that one
        thread owns; a mutation of a shared small structure keeps the GIL.
    fastmath : bool
        Allow reassociation and contraction, never the assumption that NaN and infinity are absent.
        Only for distance kernels, whose input was checked to be finite.
    internal : bool
        Only ever called from other kernels: a part of these, compiled with them (see `_parts`)
        and not cached by itself, and LLVM inlines it. By itself it would not where reference
        counts are left in the body, and a call passes a state of seven arrays as 56 words.
    apart : bool
        As `internal`, but a function of its own unless LLVM thinks otherwise: for a loop that
        needs the registers for itself.
    inline : bool
        Part of its callers before type inference, for loops as short as a call: LLVM does not
        inline what it has vectorised, and passing arrays costs 10 to 20 ns.
    borrow : bool
        Count no references: all arrays stay the caller's. For a kernel that neither allocates nor
        returns an array; a call saves 40 ns per array at Python's door, and 10 inside, where the
        counts are atomic.
    accepts : str, optional
        The types it takes, as in "int64, int64[::1]"; others raise one of REFUSALS instead of
        compiling anew. A caller may then pass arguments as they come, and look at them only if
        they are refused.
    """
    if func is None:
        options = {"nogil": nogil, "fastmath": fastmath, "inline": inline, "accepts": accepts}
        return lambda f: kernel(f, **options, internal=internal, apart=apart, borrow=borrow)
    part = internal or apart
    dispatcher = numba.njit(
        nogil=nogil,
        fastmath=set(SAFE_FASTMATH) if fastmath else False,
        no_cfunc_wrapper=True,  # never called from C
        no_cpython_wrapper=part,
        forceinline=internal,
        inline="always" if inline else "never",
        error_model="numpy",
        _nrt=not borrow,  # always said: a callee would inherit it from the caller compiled first
        pipeline_class=PartCompiler if part else None,
    )(func)
    if not config.DISABLE_JIT:
        _ignore_literals(dispatcher)
        if not part:
            _attach_cache(dispatcher, func)
        KERNELS.append(dispatcher)
        if accepts is not None:
            return _accept_only(dispatcher, accepts)
    return dispatcher


def entry_of(dispatcher, *args):
    """The machine code of a kernel for arguments of these types; it does not look at types again.

    Saves the 0.1 us of the dispatcher, and is only for arguments that never come from a user.
    """
    return dispatcher.compile(tuple(numba.typeof(arg) for arg in args))


def direct(names, name, dispatcher):
    """What stands for a kernel as names[name], in a module's globals(), until it is first called.

    From then on it is the machine code itself, of `entry_of`, for arguments of these types.
    """

    def first_call(*args):
        names[name] = entry_of(dispatcher, *args)
        return names[name](*args)

    return first_call


def compile_over(make, function):
    """Compile `make(function)`, which calls a user's function, itself compiled if it is not yet."""
    if not hasattr(function, "py_func"):
        function = numba.njit(function)
    return numba.njit(make(function))


def kernel_by_type(stub, *, fastmath=False, inline=False):
    """Decorate a function of `stub`'s arguments' Numba types that returns what `stub` compiles to.

    For the few operations that differ between array dtypes; the kernels above them stay one.
    `inline` as in `kernel`; without it LLVM inlines, as it does internal kernels.
    """
    options = {
        "fastmath": set(SAFE_FASTMATH) if fastmath else False,
        "error_model": "numpy",
        "forceinline": True,
        "pipeline_class": PartCompiler,
    }
    return overload(stub, jit_options=options, inline="always" if inline else "never")


@intrinsic
def mul_hi(typingctx, a, b):
    """Upper 64 bits of the 128-bit product of two uint64."""

    def codegen(context, builder, signature, args):
        wide = ir.IntType(128)
        product = builder.mul(builder.zext(args[0], wide), builder.zext(args[1], wide))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), codegen


@intrinsic
def array_at(typingctx, address, shape, dtype):
    """The C-contiguous array of a shape, an int or a tuple, at an int64 address.

    It has no owner: whoever passes the address keeps the memory alive. Unlike `numba.carray` it is
    not a function to compile for every shape and dtype.
    """
    several = isinstance(shape, types.BaseTuple)
    n_dims = len(shape) if several else 1
    sizes = types.UniTuple(types.intp, n_dims) if several else types.intp

    def codegen(context, builder, signature, args):
        made = context.make_array(signature.return_type)(context, builder)
        lengths = cgutils.unpack_tuple(builder, args[1]) if several else [args[1]]
        item = context.get_abi_sizeof(context.get_data_type(signature.return_type.dtype))
        strides = [ir.Constant(cgutils.intp_t, item)]
        for length in lengths[:0:-1]:
            strides.insert(0, builder.mul(strides[0], length))
        arrayobj.populate_array(
            made,
            data=builder.inttoptr(args[0], made.data.type),
            shape=cgutils.pack_array(builder, lengths),
            strides=cgutils.pack_array(builder, strides),
            itemsize=strides[-1],
            meminfo=None,
        )
        return made._getvalue()

    return types.Array(dtype.dtype, n_dims, "C")(types.int64, sizes, dtype), codegen


@intrinsic
def borrowed(typingctx, array):
    """The same array without its owner, so that slicing and passing it count no references.

    Counts are atomic operations, and LLVM drops none of those that a loop of branches leaves in.
    The owner must live as long: an argument of the kernel does, a local array only up to its last
    use by its own name.
    """

    def codegen(context, builder, signature, args):
        made = context.make_array(signature.args[0])(context, builder, args[0])
        made.meminfo = cgutils.get_null_value(made.meminfo.type)
        made.parent = cgutils.get_null_value(made.parent.type)
        return made._getvalue()

    return array(array), codegen


@intrinsic
def prefetch(typingctx, rows, row, byte):
    """Ask for the cache line that holds byte `byte` of rows[row]; never faults. rows is 2-D."""

    def codegen(context, builder, signature, args):
        array = context.make_array(signature.args[0])(context, builder, args[0])
        stride = cgutils.unpack_tuple(builder, array.strides)[0]
        offset = builder.add(builder.mul(args[1], stride), args[2])
        address = builder.gep(builder.bitcast(array.data, ir.IntType(8).as_pointer()), [offset])
        i32 = ir.IntType(32)
        shape = ir.FunctionType(ir.VoidType(), [address.type, i32, i32, i32])
        call = builder.module.declare_intrinsic("llvm.prefetch", [address.type], shape)
        builder.call(call, [address, *(ir.Constant(i32, flag) for flag in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(rows, types.intp, types.intp), codegen


def _plain_half(builder, bits):
    """float32 of the float16 in an int16, from its bits: for what is finite."""
    wide, single = ir.IntType(32), ir.FloatType()
    bits = builder.zext(bits, wide)
    size = builder.shl(builder.and_(bits, wide(0x7FFF)), wide(13))
    # Moves the exponent's bias; subnormal numbers come out right as well.
    size = builder.fmul(builder.bitcast(size, single), single(2.0**112))
    sign = builder.shl(builder.and_(bits, wide(0x8000)), wide(16))
    return builder.bitcast(builder.or_(builder.bitcast(size, wide), sign), single)


@intrinsic
def half_value(typingctx, bits):
    """The float32 that uint16 bits of a finite float16 stand for.

    One instruction where the compiler's target has it (x86 F16C), a few that vectorise elsewhere:
    LLVM's own replacement would be a call for each value.
    """

    def codegen(context, builder, signature, args):
        if "+f16c" not in getattr(context.codegen(), "_tm_features", ""):
            return _plain_half(builder, args[0])
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), codegen
