"""SIMD comparison of 64 uint16 score upper bounds at a time, in portable LLVM IR.

LLVM does not turn a plain loop into a bit mask: it would write one byte for each comparison.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..._core.llvm import ints, spread

LANES = 64  # bounds compared at a time, the bits of a mask

_BOUNDS = ints(16, LANES)
_WORD = ir.IntType(64)


def _at(builder, data, offset):
    """The pointer to the vector of bounds that begins at data[offset]."""
    return builder.bitcast(builder.gep(data, [offset]), _BOUNDS.as_pointer())


def _threshold_mask(context, builder, signature, args):
    data = context.make_array(signature.args[0])(context, builder, args[0]).data
    threshold = spread(builder, args[2], LANES)
    bounds = builder.load(_at(builder, data, args[1]), align=2)
    return builder.bitcast(builder.icmp_unsigned(">=", bounds, threshold), _WORD)


def _columns_max(context, builder, signature, args):
    data, out = (
        context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 4)
    )
    first, strips, width = args[1:4]
    largest = cgutils.alloca_once_value(builder, ir.Constant(_BOUNDS, [0] * LANES))
    with cgutils.for_range(builder, strips) as loop:
        offset = builder.add(first, builder.mul(loop.index, width))
        bounds, before = builder.load(_at(builder, data, offset), align=2), builder.load(largest)
        larger = builder.icmp_unsigned(">", bounds, before)
        builder.store(builder.select(larger, bounds, before), largest)
    builder.store(builder.load(largest), _at(builder, out, first), align=2)
    return context.get_dummy_value()


@intrinsic
def threshold_mask(typingctx, bounds, at, threshold):
    """uint64 whose bit i is bounds[at + i] >= threshold; bounds uint16[>= at + 64]."""
    _check_uint16(bounds)
    return types.uint64(bounds, types.intp, types.uint16), _threshold_mask


@intrinsic
def columns_max(typingctx, bounds, at, strips, width, out):
    """out[at + i] = the largest of bounds[at + i + strip * width], for i < 64; both are uint16."""
    _check_uint16(bounds)
    _check_uint16(out)
    return types.void(bounds, types.intp, types.intp, types.intp, out), _columns_max


def _check_uint16(array):
    if array.dtype != types.uint16:
        raise TypeError(f"bounds must be uint16, not {array.dtype}")
