"""Compiles kernels that only other kernels call to LLVM IR, without machine code of their own.

Numba optimises every function and emits its machine code, with all that it calls, before the caller
is compiled: a function five calls deep is optimised five times, and half of the compile time goes
into machine code that nothing enters. An IR-only callee stops at LLVM's first, cheap passes; the
kernel that links it optimises it, once.

This uses private parts of Numba. Where they are missing, `IrOnlyCompiler` is None and such kernels
are compiled like all others.
"""

try:
    from numba.core.codegen import JITCodeLibrary
    from numba.core.compiler import Compiler

    class _NoEnvironment:
        """Takes the environment of a function, which only Python objects in its body need."""

        def set_env(self, name, environment):
            pass

    class _IrOnlyLibrary(JITCodeLibrary):
        """LLVM IR to be linked into callers, never finalised to machine code."""

        codegen = _NoEnvironment()

        def _optimize_final_module(self):
            pass

        def _finalize_final_module(self):
            self._finalize_dynamic_globals()
            self._finalized = True

        def get_pointer_to_function(self, name):
            self._ensure_finalized()
            return 0  # what Numba gives for an entry point that was not compiled

    class IrOnlyCompiler(Compiler):
        def _compile_core(self):
            state = self.state
            if state.library is None:
                name = state.func_id.func_qualname
                state.library = _IrOnlyLibrary(state.targetctx.codegen(), name)
            return super()._compile_core()

except (ImportError, AttributeError):  # another Numba
    IrOnlyCompiler = None  # type: ignore[assignment, misc]
