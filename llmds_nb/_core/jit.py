"""`@kernel`: how this package compiles, and the only place that names Numba's options.

Compiled kernels are kept on disk by `kernel_cache`.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

import numba
from numba.core import config, sigutils, types
from numba.extending import overload

from . import linking
from .compiler import IrOnlyCompiler, KernelCompiler, compile_kernel
from .kernel_cache import attach_cache, stamp_of

# nnan and ninf are left out on purpose: with them LLVM may fold isnan(x) to False.
SAFE_FASTMATH = frozenset({"nsz", "arcp", "contract", "afn", "reassoc"})

# Every dispatcher made here, in order of definition; read by warm-up and its test.
KERNELS: list[Any] = []


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

    Numba's dispatcher distinguishes types at no cost; only arguments for which it has no machine
    code are checked here. With a Numba that compiles in another way, those of every call are.
    """
    hook = "_compile_for_args"
    proceed = getattr(dispatcher, hook, dispatcher)

    def check(*args):
        wanted, _ = sigutils.normalize_signature(f"({accepts})")
        try:
            given = tuple(numba.typeof(arg) for arg in args)
        except (numba.errors.NumbaError, ValueError):  # Numba has no type for one of them
            given = tuple(type(arg).__name__ for arg in args)
        if given != wanted:
            raise TypeError(f"a kernel of ({accepts}) does not take {given}")
        return proceed(*args)

    if proceed is dispatcher:
        return check
    setattr(dispatcher, hook, check)
    return dispatcher


def kernel(
    func=None, *, nogil=False, fastmath=False, inline=False, internal=False, noinline=False,
    borrow=False, accepts=None, separate=None, by_address=False,
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
        Only ever called from other kernels: compiled to LLVM IR and into its callers (see
        `compiler`), not cached by itself, and always inlined. By itself LLVM would not inline it
        where reference counts are left in the body, and a call passes a state of seven arrays as
        56 words.
    noinline : bool
        As `internal`, but not forced into its callers: for a loop that needs the registers for
        itself. LLVM may still inline it.
    inline : bool
        Part of its callers before type inference, for loops as short as a call: LLVM does not
        inline what it has vectorised, and passing arrays costs 10 to 20 ns.
    borrow : bool
        Count no references: all arrays stay the caller's. For a kernel that neither allocates nor
        returns an array; a call saves 40 ns per array on entry from Python, and 10 inside, where
        the counts are atomic.
    separate : Numba signature, optional
        Compiled once, by itself, for these types; its callers, which are other kernels, hold a
        call and no copy (see `linking`). For what is long and seldom runs, or runs long: a call
        costs 2 ns.
    by_address : bool
        As `separate`, for several lists of types: called by the address of its machine code for one
        of them, a *method* of a state: see `linking.method`.
    accepts : str, optional
        The types it takes, as in "int64, int64[::1]"; others raise one of REFUSALS instead of
        compiling anew. A caller may then pass arguments as they come, and validate them only if
        they are refused.
    """
    if func is None:
        options = {"nogil": nogil, "fastmath": fastmath, "inline": inline, "accepts": accepts}
        return lambda f: kernel(
            f, **options, internal=internal, noinline=noinline, borrow=borrow, separate=separate,
            by_address=by_address,
        )  # fmt: skip
    ir_only = internal or noinline
    dispatcher = numba.njit(
        nogil=nogil,
        fastmath=set(SAFE_FASTMATH) if fastmath else False,
        no_cfunc_wrapper=True,  # never called from C
        no_cpython_wrapper=ir_only or by_address or separate is not None,
        forceinline=internal,
        inline="always" if inline else "never",
        error_model="numpy",
        _nrt=not borrow,  # always given: a callee would inherit it from the caller compiled first
        pipeline_class=IrOnlyCompiler if ir_only else KernelCompiler,
    )(func)
    if not config.DISABLE_JIT:
        dispatcher.compile = partial(compile_kernel, dispatcher.compile)
        _ignore_literals(dispatcher)
        if not ir_only:
            attach_cache(dispatcher, func)
        KERNELS.append(dispatcher)
        if separate is not None:
            symbol = f"{func.__module__}.{func.__qualname__}.{stamp_of(func)}"
            return linking.separate(dispatcher, separate, symbol)
        if accepts is not None:
            return _accept_only(dispatcher, accepts)
    return dispatcher


def entry_of(dispatcher, *args):
    """The machine code of a kernel for arguments of these types, without its dispatcher.

    Saves the 0.1 us in which the dispatcher looks at the types of a call, and is only for arguments
    that never come from a user.
    """
    return dispatcher.compile(tuple(numba.typeof(arg) for arg in args))


class EntryPoints:
    """Kernels by name, called without their dispatchers; each is always given the same types.

    An attribute compiles (or loads) its kernel at the first call, for the types of that call, and
    is the machine code itself from then on: see `entry_of`.
    """

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, **dispatchers):
        for name, dispatcher in dispatchers.items():
            setattr(self, name, partial(self._first_call, name, dispatcher))

    def _first_call(self, name, dispatcher, *args):
        entry = entry_of(dispatcher, *args)
        setattr(self, name, entry)
        return entry(*args)


def compile_over(make, function):
    """Compile `make(function)`, which calls a user's function, itself compiled if it is not yet."""
    if not hasattr(function, "py_func"):
        function = numba.njit(function)
    return numba.njit(make(function))


def by_type(*, fastmath=False, inline=False):
    """Decorate a function of Numba types that returns what a kernel compiles for them.

    Kernels call it by its name. For the few operations that differ between array dtypes; the
    kernels above them stay one. `inline` as in `kernel`; without it LLVM inlines, as it does
    internal kernels.
    """
    options = {
        "fastmath": set(SAFE_FASTMATH) if fastmath else False,
        "error_model": "numpy",
        "forceinline": True,
        "pipeline_class": IrOnlyCompiler,
    }
    inlining = "always" if inline else "never"
    return lambda choose: overload(choose, jit_options=options, inline=inlining)(choose)
