"""Kernels that are compiled by themselves, once, and called by the machine code of others.

Numba gives every caller a copy of the IR of its callees. That is what a short or frequent callee
wants; but the eviction of a page, say, copied into eight kernels is optimised eight times. A
*separate* kernel is machine code of its own, and its callers hold the name of a symbol.

The symbol must be defined before LLVM resolves it, that is before a caller is compiled or loaded
from a cache. So a caller keeps a `_Definition` among the functions that Numba runs before it loads
a cached function ("reload_init"). Types are fixed where the kernel is defined.

A *method* of a state is machine code whose address is a field of that state. What differs between
dtypes is compiled for each of them; the callers, which see only a pointer to the state, are
compiled once for all, and Python chooses the code by the address that it packs. Such an address is
of this process: a state that has one is never pickled.
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


def code_address(dispatcher: Any, signature: Any) -> int:
    """The address, in this process, of a kernel's machine code for a signature."""
    dispatcher.compile(signature)
    compiled = dispatcher.overloads[signature.args]
    return compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)


def _call(context, builder, callee, signature, values):
    """Call machine code; what it raises, its caller raises."""
    convention, result = context.call_conv, signature.return_type
    status, value = convention.call_function(builder, callee, result, signature.args, values)
    with cgutils.if_unlikely(builder, status.is_error):
        convention.return_status_propagate(builder, status)
    return value


def separate(dispatcher: Any, signature: Any, symbol: str) -> Any:
    """What kernels call in place of a dispatcher: machine code compiled for a signature.

    Not for Python; `define()` compiles or loads the kernel, and `dispatcher` is for tests.
    """
    function = dispatcher.py_func
    result, arguments = signature.return_type, signature.args

    def define():
        if symbol in _defined:
            return
        _defined[symbol] = address = code_address(dispatcher, signature)
        llvmlite.binding.add_symbol(symbol, address)

    @intrinsic
    def call(typingctx, *given):
        define()

        def codegen(context, builder, signature, args):
            values = cgutils.unpack_tuple(builder, args[0])
            type_ = context.call_conv.get_function_type(result, arguments)
            callee = cgutils.get_or_insert_function(builder.module, type_, symbol)
            definition = _Definition(function.__module__, function.__qualname__)
            context.active_code_library._reload_init.add(definition)
            return _call(context, builder, callee, result(*arguments), values)

        return result(types.StarArgTuple(arguments)), codegen

    made: Any = call
    made.define, made.dispatcher = define, dispatcher
    return made


def method(field: str, signature: Any) -> Any:
    """What kernels call as `call(state, *arguments)`: the code whose address is in a field of it.

    That is an address of the method's `code(kernel, *states)`, for a kernel with `by_address`. Its
    signature is this one, but for the dtypes of states, which are pointers all the same. An array
    given for an int64 is passed as its address: that is one word instead of seven.
    """
    result, wanted = signature.return_type, signature.args

    @intrinsic
    def call(typingctx, *given):
        # Numba passes the variable arguments as one tuple.
        given = given[0] if isinstance(given[0], types.BaseTuple) else given
        kinds = [
            array if isinstance(array, types.Array) and kind == types.int64 else kind
            for kind, array in zip(wanted, given, strict=True)
        ]

        def codegen(context, builder, signature, args):
            values = cgutils.unpack_tuple(builder, args[0])
            load = context.get_getattr(kinds[0], field)
            address = load(context, builder, kinds[0], values[0], field)
            type_ = context.call_conv.get_function_type(result, wanted)
            callee = builder.inttoptr(address, type_.as_pointer())
            for i, kind in enumerate(kinds):
                if kind != wanted[i]:
                    array = context.make_array(kind)(context, builder, values[i])
                    values[i] = builder.ptrtoint(array.data, cgutils.intp_t)
            return _call(context, builder, callee, result(*wanted), values)

        return result(types.StarArgTuple(kinds)), codegen

    def code(dispatcher, *states):
        """The address of a kernel compiled for states, the first arguments, of these types."""
        return code_address(dispatcher, result(*states, *wanted[len(states) :]))

    made: Any = call
    made.code = code
    return made
