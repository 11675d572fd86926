"""How a kernel that only other kernels call is compiled: as a part of these, never by itself.

Numba optimises every function and emits its machine code, with all that it calls, before its caller
sees it: a function five calls deep is optimised five times over, and machine code that nothing ever
enters is half of the compile time. A part stops at LLVM's first, cheap passes; whoever links it
optimises it, once.

This uses private parts of Numba. Where they are missing, `PartCompiler` is None and such kernels
are compiled as all others are.
"""

try:
    from numba.core.codegen import JITCodeLibrary
    from numba.core.compiler import Compiler

    class _NoEnvironment:
        """Takes the environment of a function, which only Python objects in its body need."""

        def set_env(self, name, environment):
            pass

    class _PartLibrary(JITCodeLibrary):
        """What a part compiles to: LLVM's code, to be linked, and no machine code."""

        codegen = _NoEnvironment()

        def _optimize_final_module(self):
            pass

        def _finalize_final_module(self):
            self._finalize_dynamic_globals()
            self._finalized = True

        def get_pointer_to_function(self, name):
            self._ensure_finalized()
            return 0  # what Numba gives for a door that was not compiled

    class PartCompiler(Compiler):
        def _compile_core(self):
            state = self.state
            if state.library is None:
                name = state.func_id.func_qualname
                state.library = _PartLibrary(state.targetctx.codegen(), name)
            return super()._compile_core()

except (ImportError, AttributeError):  # another Numba
    PartCompiler = None
