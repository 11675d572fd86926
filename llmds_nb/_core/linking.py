"""Kernels that are compiled by themselves, once, and called by the machine code of others.

Numba gives every caller a copy of the IR of its callees. That is what a short or frequent callee
wants; but the eviction of a page, say, copied into eight kernels is optimised eight times. A
*separate* kernel is machine code of its own, and its callers hold the name of a symbol.

The symbol must be defined before LLVM resolves it, that is before a caller is compiled or loaded
from a cache. So a caller keeps a `_Definition` among the functions that Numba runs before it loads
a cached function ("reload_init"). Types are fixed where the kernel is defined.
"""

import importlib
from typing import Any, NamedTuple

import llvmlite.binding
from numba.core import cgutils, types
from numba.extending import intrinsic

_defined: dict[str, int] = {}  # the address of each symbol


class _Definition(NamedTuple):
    """What defines the symbol of a separate kernel, compiling or loading it. Picklable."""

    module: str
    name: str

    def __call__(self):
        kernel = importlib.import_module(self.module)
        getattr(kernel, self.name).define()


def separate(dispatcher: Any, signature: Any, symbol: str) -> Any:
    """What kernels call in place of a dispatcher: machine code compiled for a signature.

    Not for Python; `define()` compiles or loads the kernel, and `dispatcher` is for tests.
    """
    function = dispatcher.py_func
    result, arguments = signature.return_type, signature.args

    def define():
        if symbol in _defined:
            return
        dispatcher.compile(signature)
        compiled = dispatcher.overloads[arguments]
        address = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
        _defined[symbol] = address
        llvmlite.binding.add_symbol(symbol, address)

    @intrinsic
    def call(typingctx, *given):
        define()

        def codegen(context, builder, signature, args):
            convention = context.call_conv
            values = cgutils.unpack_tuple(builder, args[0])
            type_ = convention.get_function_type(result, arguments)
            callee = cgutils.get_or_insert_function(builder.module, type_, symbol)
            status, value = convention.call_function(builder, callee, result, arguments, values)
            with cgutils.if_unlikely(builder, status.is_error):
                convention.return_status_propagate(builder, status)
            definition = _Definition(function.__module__, function.__qualname__)
            context.active_code_library._reload_init.add(definition)
            return value

        return result(types.StarArgTuple(arguments)), codegen

    made: Any = call
    made.define, made.dispatcher = define, dispatcher
    return made
