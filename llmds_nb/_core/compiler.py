"""How Numba compiles kernels: less of its own work around theirs, and the same machine code.

A cold start is spent compiling, and two thirds of that in Numba's Python code. Found by sampling,
as parts of all compile time, and avoided here:

- 1/2 once: a function was optimised and emitted as machine code by itself before its callers were.
  Kernels that only others call stop at LLVM IR and its first, cheap passes; the kernel that links
  them optimises them, once.
- 1/12: comparing compiler flags, option by option, at every look into a cache of overloads. Kernels
  share one object for equal flags, so that these comparisons end at the object's identity.
- 1/10: garbage collections, which find little: they wait until kernels are compiled.
- 1/20: passes for what no kernel uses (closures, `with`, `literal_unroll`), and the bookkeeping
  around every pass.
- 1/12: finding the rule for an operator among those for all types, for each `a + b` anew.
- 1/8: LLVM IR that LLVM throws away at once: see lowering.py.
- 1/30: LLVM's passes for single functions at level 3. What callers copy needs level 1.
- 1/16: the stack of CPython's frames, mapped and unmapped by the system at the same call over and
  over (`_with_room`).
- 1/30: an event for every call into LLVM, which every kernel in the making listens to.
- 1/30: the search for array expressions to fuse where none is.

This uses private parts of Numba. Where they are missing, both classes are None and kernels are
compiled as Numba compiles any function.
"""

import gc
import threading
from contextlib import contextmanager, nullcontext
from functools import cache
from itertools import count

from .signals import uninterrupted

try:
    from llvmlite.binding import Linkage, ffi
    from numba.core import transforms, typed_passes, types, untyped_passes
    from numba.core.codegen import JITCodeLibrary
    from numba.core.compiler import CompilerBase, Flags
    from numba.core.compiler_lock import global_compiler_lock
    from numba.core.compiler_machinery import PassManager, _pass_registry, register_pass
    from numba.core.targetconfig import ConfigStack

    from .lowering import KernelLower, signature_at_hand

    @register_pass(mutates_CFG=True, analysis_only=False)
    class _Lowering(typed_passes.BaseNativeLowering):
        _name = "kernel_lowering"  # type: ignore[assignment]

        @property
        def lowering_class(self):
            return KernelLower

    @register_pass(mutates_CFG=True, analysis_only=False)
    class _ArrayExpressions(typed_passes.NopythonRewrites):
        """Numba's pass that makes one loop of `a + b * c`, where operators return arrays."""

        _name = "kernel_array_expressions"

        def run_pass(self, state):
            signatures = state.calltypes.values()
            if any(isinstance(each.return_type, types.Array) for each in signatures if each):
                return super().run_pass(state)
            return False

    _PASSES = [
        untyped_passes.TranslateByteCode,
        untyped_passes.FixupArgs,
        untyped_passes.IRProcessing,
        untyped_passes.RewriteSemanticConstants,
        untyped_passes.DeadBranchPrune,
        untyped_passes.GenericRewrites,
        untyped_passes.InlineInlinables,
        untyped_passes.DeadBranchPrune,
        untyped_passes.ReconstructSSA,
        untyped_passes.DeadBranchPrune,
        typed_passes.NopythonTypeInference,
        typed_passes.PreLowerStripPhis,
        typed_passes.InlineOverloads,
        _ArrayExpressions,
        typed_passes.IRLegalization,
        typed_passes.AnnotateTypes,
        _Lowering,
        typed_passes.NoPythonBackend,
    ]

    class _SharedFlags(Flags):
        """The flags that callees inherit; equal only ever to itself, so compared at once."""

        __hash__ = object.__hash__

        def __eq__(self, other):
            return self is other

    _shared_flags: dict[tuple, _SharedFlags] = {}

    def _inherited(flags):
        """The one object for the flags that a kernel hands on to the overloads that it calls."""
        key = repr(flags.fastmath), flags.error_model
        if key not in _shared_flags:
            shared = _shared_flags[key] = _SharedFlags()
            shared.nrt = True
            shared.error_model = flags.error_model
            if flags.fastmath:
                shared.fastmath = flags.fastmath
        return _shared_flags[key]

    class _Typing:
        """A typing context that remembers what built-in functions and operators return.

        For every `a + b` Numba tries the rules for strings, sets, dates and so on anew, until one
        fits. What a function compiles for itself depends on the flags that it inherits.
        """

        def __init__(self, context):
            self._context, self._known = context, {}

        def __getattr__(self, name):
            return getattr(self._context, name)

        def resolve_function_type(self, function, args, kws):
            operator = getattr(function, "__module__", None) == "_operator"
            if kws or not (operator or isinstance(function, types.Function)):
                return self._context.resolve_function_type(function, args, kws)
            key = function, tuple(args), ConfigStack().top()
            if key not in self._known:
                found = signature_at_hand(self._context, function, args)
                found = found or self._context.resolve_function_type(function, args, kws)
                self._known[key] = found
            return self._known[key]

    _typing = cache(_Typing)

    _pauses = count(1)

    @contextmanager
    def _no_collection():
        """No garbage collection meanwhile; in the end all objects count as old.

        Else the next allocation would search what was just made, most of which stays. Every tenth
        time it does, so that the garbage of many kernels does not add up. What a program has frozen
        stays frozen.
        """
        if not gc.isenabled():
            yield
            return
        gc.disable()
        try:
            yield
        finally:
            if gc.get_freeze_count() == 0 and next(_pauses) % 10:
                gc.freeze()
                gc.unfreeze()
            gc.enable()

    class _CountedLibrary(JITCodeLibrary):
        """Knows how many LLVM instructions it was given, which differ between no two machines."""

        given = 0

        def add_ir_module(self, module):
            self.given += sum(len(b.instructions) for f in module.functions for b in f.blocks)
            super().add_ir_module(module)

        def linked(self):
            """Itself, and the libraries of IR-only kernels that are copied into it.

            Not through kernels with machine code of their own, which may come from the disk cache.
            """
            found, rest = {self}, [self]
            while rest:
                others = set(rest.pop()._linking_libraries) - found
                new = {other for other in others if isinstance(other, _IrOnlyLibrary)}
                found |= new
                rest += new
            return found

    class _Library(_CountedLibrary):
        """Machine code, and the size of what LLVM made it from."""

        size = 0, 0  # functions, with those copied from callees, and the instructions of kernels

        def _optimize_final_module(self):
            given = sum(library.given for library in self.linked())
            functions = sum(not each.is_declaration for each in self._final_module.functions)
            self.size = functions, given
            super()._optimize_final_module()

    class KernelCompiler(CompilerBase):
        """Compiles a kernel to machine code."""

        library: type[JITCodeLibrary] = _Library

        def define_pipelines(self):
            manager = PassManager("kernel")
            for pass_ in _PASSES:
                manager.add_pass(pass_, pass_.name())
            manager.finalize()
            return [manager]

        def _compile_core(self):
            state = self.state
            state.typingctx = _typing(state.typingctx)
            if state.library is None:
                name = state.func_id.func_qualname
                state.library = self.library(state.targetctx.codegen(), name)
                if self.library is _Library:
                    state.library.enable_object_caching()
            (manager,) = self.define_pipelines()
            state.metadata["pipeline_times"] = {}
            with _no_collection(), ConfigStack().enter(_inherited(state.flags)):
                for pass_, _ in manager.passes:
                    registered = _pass_registry.get(pass_)
                    step = registered.pass_inst
                    step.analysis = manager._analysis
                    changed = step.run_initialization(state)
                    changed |= step.run_pass(state)
                    changed |= step.run_finalizer(state)
                    if registered.mutates_CFG:
                        state.func_ir.blocks = transforms.canonicalize_cfg(state.func_ir.blocks)
            state.pipeline = None
            return state.cr

    class _NoEnvironment:
        """Takes the environment of a function, which only Python objects in its body need."""

        def set_env(self, name, environment):
            pass

    class _IrOnlyLibrary(_CountedLibrary):
        """LLVM IR to be linked into callers, never finalised to machine code."""

        codegen = _NoEnvironment()

        def _optimize_functions(self, module):
            # Enough to keep the copies in callers small: those are optimised in full.
            module.data_layout = self._codegen._data_layout
            manager, builder = self._codegen._function_pass_manager(opt=1)
            for function in module.functions:
                if not function.is_declaration:
                    manager.run(function, builder)

        def _optimize_final_module(self):
            pass

        def _finalize_final_module(self):
            self._finalize_dynamic_globals()
            self._finalized = True
            # No module of machine code will hold these, so callers need no copy with this linkage.
            for function in self._final_module.functions:
                if not function.is_declaration and function.linkage == Linkage.external:
                    function.linkage = Linkage.linkonce_odr

        def get_pointer_to_function(self, name):
            self._ensure_finalized()
            return 0  # what Numba gives for an entry point that was not compiled

    class IrOnlyCompiler(KernelCompiler):
        """Compiles a kernel that only other kernels call to LLVM IR."""

        library = _IrOnlyLibrary

    @contextmanager
    def _no_lock_events():
        """Nobody is told that LLVM's lock is taken, which happens at every call into LLVM."""
        lock = ffi.lib._lock
        with global_compiler_lock:
            listeners, lock._cblist = lock._cblist, []
            try:
                yield
            finally:
                lock._cblist = listeners

except (ImportError, AttributeError):  # another Numba
    KernelCompiler = IrOnlyCompiler = None  # type: ignore[assignment, misc]
    _no_lock_events = nullcontext  # type: ignore[assignment]


def _with_room(compile_, signature):
    """Compile, in a frame that takes half a megabyte of CPython's stack.

    CPython maps a piece of that stack when a call does not fit into the last one, unmaps it when
    the call returns, and takes a piece twice as large as such a frame. So what follows fits.
    """
    with _no_lock_events():
        return compile_(signature)


_with_room.__code__ = _with_room.__code__.replace(co_stacksize=1 << 16)

_this_thread = threading.local()


def _outermost(compile_, signature):
    try:
        _this_thread.compiles = True
        return _with_room(compile_, signature)
    finally:
        _this_thread.compiles = False


def compile_kernel(compile_, signature):
    """Compile a kernel by Numba's method of its dispatcher; signals wait until that is done.

    Numba compiles callees while it compiles their caller, by this function as well.
    """
    if getattr(_this_thread, "compiles", False):
        return compile_(signature)
    return uninterrupted(_outermost, compile_, signature)
