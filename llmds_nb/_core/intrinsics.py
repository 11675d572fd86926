"""LLVM instructions that Numba has no function for, as intrinsics for kernels."""

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .llvm import array_value


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

    It owns no memory: whoever passes the address keeps it alive. Unlike `numba.carray` it is not a
    function that is compiled for every shape and dtype.
    """
    several = isinstance(shape, types.BaseTuple)
    n_dims = len(shape) if several else 1
    sizes = types.UniTuple(types.intp, n_dims) if several else types.intp

    def codegen(context, builder, signature, args):
        lengths = cgutils.unpack_tuple(builder, args[1]) if several else [args[1]]
        pointer = builder.inttoptr(args[0], cgutils.voidptr_t)
        return array_value(context, builder, signature.return_type, pointer, lengths)

    return types.Array(dtype.dtype, n_dims, "C")(types.int64, sizes, dtype), codegen


@intrinsic
def array_address(typingctx, array):
    """The int64 address of an array's memory; whoever uses it keeps the array alive."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(data, cgutils.intp_t)

    return types.int64(array), codegen


@intrinsic
def borrowed(typingctx, array):
    """The same array without its owner, so that slicing and passing it count no references.

    Reference counts are atomic operations, and LLVM removes none that are inside a loop with
    branches. The owner must outlive it: an argument of the kernel does, a local array only up to
    its last use under its own name.
    """

    def codegen(context, builder, signature, args):
        made = context.make_array(signature.args[0])(context, builder, args[0])
        made.meminfo = cgutils.get_null_value(made.meminfo.type)
        made.parent = cgutils.get_null_value(made.parent.type)
        return made._getvalue()

    return array(array), codegen


@intrinsic
def borrowed_part(typingctx, array, start, size):
    """`size` items of a 1-D array from `start` on, as `borrowed`; both are within the array.

    A slice that ends within the array: for a tenth of the code, most of which is about other ends.
    """

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        pointer = builder.gep(data, [args[1]])
        return array_value(context, builder, signature.return_type, pointer, [args[2]])

    return types.Array(array.dtype, 1, "C")(array, types.intp, types.intp), codegen


@intrinsic
def prefetch(typingctx, rows, row, byte):
    """Prefetch the cache line that holds byte `byte` of rows[row]; never faults. rows is 2-D."""

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
